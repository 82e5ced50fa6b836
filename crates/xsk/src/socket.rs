//! The AF_XDP socket: UMEM, rings, the queue it is bound to, and how the kernel agreed to serve it.
//!
//! Order matters to the kernel: register the UMEM, set ring sizes, then bind; rings can be mapped before or after
//! (Linux 6.4). A queue is free again only when every ring mapped from its sockets is unmapped too.

use crate::{Error, Umem, sys};
use std::ffi::c_int;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::thread;
use std::time::Duration;

/// Who moves packets into the UMEM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// Zero-copy, or copy where it is refused.
    Auto,
    /// The device writes to the UMEM; refused unless the driver can.
    ZeroCopy,
    /// The kernel copies packets into the UMEM.
    Copy,
}

/// How the kernel bound a socket.
#[derive(Debug)]
pub struct Bound {
    /// Whether the device writes to the UMEM itself.
    pub zero_copy: bool,
    /// Why zero-copy was refused, if [`Mode::Auto`] fell back to copy mode.
    pub refused: Option<io::Error>,
}

/// Counters of a socket since it was bound, in packets or descriptors (`struct xdp_statistics`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Received packets dropped for want of a frame or because they were too long.
    pub rx_dropped: u64,
    /// Always 0: Linux reports the rx ring's count here and keeps that of bad fill addresses to itself (`xsk_getsockopt`).
    pub rx_invalid_descs: u64,
    /// Tx descriptors that are not in the UMEM.
    pub tx_invalid_descs: u64,
    /// Received packets dropped because the rx ring was full.
    pub rx_ring_full: u64,
    /// Times the fill ring was found empty.
    pub rx_fill_ring_empty_descs: u64,
    /// Times the tx ring was found empty.
    pub tx_ring_empty_descs: u64,
}

/// An AF_XDP socket.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
}

impl Socket {
    /// Opens an unbound socket.
    ///
    /// # Errors
    /// No CAP_NET_RAW, or a kernel without AF_XDP.
    pub fn open() -> Result<Self, Error> {
        sys::xdp_socket().map(|fd| Self { fd })
    }

    /// Makes `umem` the memory of this socket, each packet preceded by `headroom` bytes besides the kernel's own 256.
    /// A socket that shares another's UMEM does not register it.
    ///
    /// # Errors
    /// A UMEM is registered already (EBUSY), or the memory may not be locked (ENOBUFS).
    pub fn register_umem(&self, umem: &Umem, headroom: u32) -> Result<(), Error> {
        let chunk_size = umem.chunk().bytes();
        let (addr, len) = (umem.base() as u64, umem.len_bytes() as u64);
        let umem = libc::xdp_umem_reg { addr, len, chunk_size, headroom, flags: 0, tx_metadata_len: 0 };
        self.set(libc::XDP_UMEM_REG, &umem, "setsockopt(XDP_UMEM_REG)")
    }

    /// Makes the rings of this socket, in entries: powers of two, or 0 for none.
    ///
    /// # Errors
    /// A size that is not a power of two, or a ring that exists or came too late.
    pub fn set_rings(&self, rx: u32, tx: u32) -> Result<(), Error> {
        self.set_ring(libc::XDP_RX_RING, rx, "setsockopt(XDP_RX_RING)")?;
        self.set_ring(libc::XDP_TX_RING, tx, "setsockopt(XDP_TX_RING)")
    }

    /// Makes the rings of this socket's queue, in entries: powers of two, both needed, or 0 for none. A socket that shares the
    /// queue of another has none of its own.
    ///
    /// # Errors
    /// A size that is not a power of two, or a ring that exists or came too late.
    pub fn set_umem_rings(&self, fill: u32, completion: u32) -> Result<(), Error> {
        self.set_ring(libc::XDP_UMEM_FILL_RING, fill, "setsockopt(XDP_UMEM_FILL_RING)")?;
        self.set_ring(libc::XDP_UMEM_COMPLETION_RING, completion, "setsockopt(XDP_UMEM_COMPLETION_RING)")
    }

    /// Binds to a receive queue of a device.
    ///
    /// With `share`, the UMEM is that of the bound socket given, and so is the mode: `mode` is not looked at. On the same
    /// queue pass *that queue's* first socket and set no UMEM rings; on another queue set them. A queue just given up stays
    /// busy for a moment (`xp_put_pool` defers the release to a worker), so EBUSY is retried for about a second.
    ///
    /// # Errors
    /// No such device or queue, a queue that is taken, a mode that is refused, rings or UMEM that are missing.
    pub fn bind(
        &self,
        ifindex: u32,
        queue: u32,
        mode: Mode,
        share: Option<BorrowedFd<'_>>,
    ) -> Result<Bound, Error> {
        let mut waits = waits();
        let attempt = |flags| {
            let address = address(ifindex, queue, flags, share);
            retry_busy(&mut waits, thread::sleep, || sys::bind(self.fd.as_fd(), &address))
        };
        let refused = match share {
            Some(_) => share_umem(attempt),
            None => choose(mode, attempt),
        }
        .map_err(|cause| Error::Bind { ifindex, queue, mode, cause })?;
        Ok(Bound { zero_copy: self.is_zero_copy()?, refused })
    }

    /// Counters of this socket.
    ///
    /// # Errors
    /// The descriptor is not an AF_XDP socket.
    pub fn statistics(&self) -> Result<Statistics, Error> {
        let raw = sys::statistics(self.fd.as_fd())?;
        Ok(Statistics {
            rx_dropped: raw.rx_dropped,
            rx_invalid_descs: raw.rx_invalid_descs,
            tx_invalid_descs: raw.tx_invalid_descs,
            rx_ring_full: raw.rx_ring_full,
            rx_fill_ring_empty_descs: raw.rx_fill_ring_empty_descs,
            tx_ring_empty_descs: raw.tx_ring_empty_descs,
        })
    }

    /// Whether the device writes to the UMEM itself; false while not bound.
    ///
    /// # Errors
    /// The descriptor is not an AF_XDP socket.
    pub fn is_zero_copy(&self) -> Result<bool, Error> {
        Ok(sys::options(self.fd.as_fd())?.flags & libc::XDP_OPTIONS_ZEROCOPY != 0)
    }

    /// Makes the kernel send what is in the tx ring; call it when the ring [needs it](crate::TxRing::needs_wakeup).
    /// Copy mode sends at most 32 packets a call, so look at the ring again.
    ///
    /// # Errors
    /// The device is down or gone, or the socket is not bound. A kernel that is merely busy or full is no error.
    pub fn wake_tx(&self) -> Result<(), Error> {
        unless_busy(sys::send_nothing(self.fd.as_fd()), "sendto(AF_XDP)")
    }

    /// Makes the driver take frames from the fill ring; call it when the ring [needs it](crate::FillRing::needs_wakeup)
    /// and nobody is about to poll.
    ///
    /// # Errors
    /// The device is down or gone, or the socket is not bound. A kernel that is merely busy is no error.
    pub fn wake_rx(&self) -> Result<(), Error> {
        unless_busy(sys::receive_nothing(self.fd.as_fd()), "recvfrom(AF_XDP)")
    }

    fn set_ring(&self, option: c_int, size: u32, operation: &'static str) -> Result<(), Error> {
        match size {
            0 => Ok(()),
            _ if size.is_power_of_two() => self.set(option, &size, operation),
            _ => Err(Error::RingSize { size }),
        }
    }

    fn set<T: Copy>(&self, option: c_int, value: &T, operation: &'static str) -> Result<(), Error> {
        sys::set_option(self.fd.as_fd(), option, value, operation)
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Takes a descriptor that was passed on; what is not an AF_XDP socket shows at the first call.
impl From<OwnedFd> for Socket {
    fn from(fd: OwnedFd) -> Self {
        Self { fd }
    }
}

impl From<Socket> for OwnedFd {
    fn from(socket: Socket) -> Self {
        socket.fd
    }
}

fn address(ifindex: u32, queue: u32, flags: u16, share: Option<BorrowedFd<'_>>) -> libc::sockaddr_xdp {
    libc::sockaddr_xdp {
        sxdp_family: libc::AF_XDP as u16,
        sxdp_flags: flags,
        sxdp_ifindex: ifindex,
        sxdp_queue_id: queue,
        sxdp_shared_umem_fd: share.map_or(0, |fd| fd.as_raw_fd().cast_unsigned()),
    }
}

/// Binds in `mode`; returns why zero-copy was refused if that did not end the matter.
fn choose(mode: Mode, mut attempt: impl FnMut(u16) -> io::Result<()>) -> io::Result<Option<io::Error>> {
    let mut with = |flag| attempt(flag | libc::XDP_USE_NEED_WAKEUP);
    match mode {
        Mode::ZeroCopy => with(libc::XDP_ZEROCOPY).map(|()| None),
        Mode::Copy => with(libc::XDP_COPY).map(|()| None),
        Mode::Auto => match with(libc::XDP_ZEROCOPY) {
            Ok(()) => Ok(None),
            Err(refused) => with(libc::XDP_COPY).map(|()| Some(refused)),
        },
    }
}

/// Any other flag beside XDP_SHARED_UMEM is refused (`xsk_bind`): mode and wake-ups are the first socket's.
fn share_umem(mut attempt: impl FnMut(u16) -> io::Result<()>) -> io::Result<Option<io::Error>> {
    attempt(libc::XDP_SHARED_UMEM).map(|()| None)
}

/// Repeats `attempt` while it fails with EBUSY and `waits` lasts. The kernel has no event for a queue that becomes free.
fn retry_busy(
    waits: &mut impl Iterator<Item = Duration>,
    pause: impl Fn(Duration),
    mut attempt: impl FnMut() -> io::Result<()>,
) -> io::Result<()> {
    loop {
        let result = attempt();
        let busy = matches!(&result, Err(error) if error.raw_os_error() == Some(libc::EBUSY));
        match busy.then(|| waits.next()).flatten() {
            Some(wait) => pause(wait),
            None => return result,
        }
    }
}

/// 1 ms, doubling up to 128 ms: 1,023 ms in all.
fn waits() -> impl Iterator<Item = Duration> {
    (0..14).map(|n: u32| Duration::from_millis(1 << n.min(7)))
}

fn unless_busy(result: io::Result<()>, operation: &'static str) -> Result<(), Error> {
    match result {
        Err(cause) if !is_busy(&cause) => Err(Error::Sys { operation, cause }),
        _ => Ok(()),
    }
}

/// More work than fits in one call, or a queue that is full for now: the ring keeps the packets.
fn is_busy(cause: &io::Error) -> bool {
    matches!(cause.raw_os_error(), Some(libc::EAGAIN | libc::EBUSY | libc::ENOBUFS | libc::EINTR))
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::cell::{Cell, RefCell};

    const ZERO_COPY: u16 = libc::XDP_ZEROCOPY | libc::XDP_USE_NEED_WAKEUP;
    const COPY: u16 = libc::XDP_COPY | libc::XDP_USE_NEED_WAKEUP;

    /// Flags tried, and the outcome as errnos.
    fn tried(mode: Mode, answers: &[i32]) -> (Vec<u16>, Result<Option<i32>, i32>) {
        let (mut flags, mut answers) = (Vec::new(), answers.iter());
        let outcome = choose(mode, |flag| {
            flags.push(flag);
            answer(*answers.next().expect("no more attempts than answers"))
        });
        let errno = |error: io::Error| error.raw_os_error().expect("an errno");
        (flags, outcome.map(|refused| refused.map(errno)).map_err(errno))
    }

    fn answer(errno: i32) -> io::Result<()> {
        if errno == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(errno)) }
    }

    #[test]
    fn auto_takes_zero_copy_where_it_is_granted() {
        assert_eq!(tried(Mode::Auto, &[0]), (vec![ZERO_COPY], Ok(None)));
    }

    #[test]
    fn auto_falls_back_to_copy_and_keeps_the_reason() {
        let reason = Ok(Some(libc::EOPNOTSUPP));
        assert_eq!(tried(Mode::Auto, &[libc::EOPNOTSUPP, 0]), (vec![ZERO_COPY, COPY], reason));
    }

    #[test]
    fn auto_reports_the_error_of_copy_mode_when_both_fail() {
        let answers = [libc::EOPNOTSUPP, libc::ENETDOWN];
        assert_eq!(tried(Mode::Auto, &answers), (vec![ZERO_COPY, COPY], Err(libc::ENETDOWN)));
    }

    #[test]
    fn a_mode_that_was_asked_for_is_the_only_one_tried() {
        assert_eq!(tried(Mode::ZeroCopy, &[libc::EINVAL]), (vec![ZERO_COPY], Err(libc::EINVAL)));
        assert_eq!(tried(Mode::Copy, &[0]), (vec![COPY], Ok(None)));
    }

    #[test]
    fn a_busy_queue_is_retried_until_it_is_free() {
        let (left, slept) = (Cell::new(3), RefCell::new(Vec::new()));
        let result = retry_busy(
            &mut waits(),
            |wait| slept.borrow_mut().push(wait.as_millis()),
            || answer(if left.replace(left.get() - 1) > 0 { libc::EBUSY } else { 0 }),
        );
        assert!(result.is_ok());
        assert_eq!(*slept.borrow(), [1, 2, 4]);
    }

    #[test]
    fn a_queue_that_stays_busy_is_given_up_after_a_second() {
        let slept = Cell::new(Duration::ZERO);
        let result = retry_busy(&mut waits(), |wait| slept.set(slept.get() + wait), || answer(libc::EBUSY));
        assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::EBUSY));
        assert_eq!(slept.get(), Duration::from_millis(1023));
    }

    #[test]
    fn only_a_busy_queue_is_retried() {
        let tries = Cell::new(0);
        let result = retry_busy(
            &mut waits(),
            |_| panic!("slept"),
            || {
                tries.set(tries.get() + 1);
                answer(libc::EINVAL)
            },
        );
        assert_eq!((result.unwrap_err().raw_os_error(), tries.get()), (Some(libc::EINVAL), 1));
    }

    #[test]
    fn a_descriptor_that_is_no_af_xdp_socket_is_named_as_such() {
        let socket = Socket::from(OwnedFd::from(std::fs::File::open("/dev/null").unwrap()));
        let error = socket.statistics().unwrap_err();
        assert_eq!(error.errno(), Some(libc::ENOTSOCK));
        assert!(error.to_string().contains("not an AF_XDP socket"), "{error}");
    }

    #[test]
    fn a_ring_size_that_is_no_power_of_two_is_refused_before_the_kernel_sees_it() {
        let socket = Socket::from(OwnedFd::from(std::fs::File::open("/dev/null").unwrap()));
        assert!(matches!(socket.set_rings(48, 0), Err(Error::RingSize { size: 48 })));
        assert!(matches!(socket.set_umem_rings(0, 3), Err(Error::RingSize { size: 3 })));
    }
}
