//! libc's socket calls with Rust types. Each function makes one call, by the symbol a C program would use.

use std::{
    io::{Error, Result},
    mem::{MaybeUninit, size_of, zeroed},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6},
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
    ptr::{null, null_mut},
    time::Duration,
};

/// `SO_RXQ_OVFL` (asm-generic/socket.h).
pub const SO_RXQ_OVFL: i32 = 40;

/// Turns -1 into the errno libc left.
pub fn check<T: Copy + Into<i64>>(value: T) -> Result<T> {
    if value.into() == -1 { Err(Error::last_os_error()) } else { Ok(value) }
}

fn count(value: isize) -> Result<usize> {
    usize::try_from(value).map_err(|_| Error::last_os_error())
}

/// The errno of a call that must fail.
#[track_caller]
pub fn errno<T: std::fmt::Debug>(result: Result<T>) -> i32 {
    match result {
        Ok(value) => panic!("expected an error, got {value:?}"),
        Err(error) => error.raw_os_error().expect("an error of the system"),
    }
}

/// A descriptor the call has just returned.
pub fn own(fd: i32) -> Result<OwnedFd> {
    // SAFETY: the kernel has just handed out this descriptor and nobody else owns it.
    check(fd).map(|fd| unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A socket address as the kernel reads it.
#[derive(Clone, Copy)]
pub struct RawAddress {
    storage: libc::sockaddr_storage,
    len: libc::socklen_t,
}

impl RawAddress {
    /// Room for any address.
    pub fn room() -> Self {
        // SAFETY: sockaddr_storage is plain old data for which all-zero is valid.
        Self { storage: unsafe { zeroed() }, len: size_of::<libc::sockaddr_storage>() as u32 }
    }

    /// `AF_UNSPEC`, which disconnects.
    pub fn unspecified() -> Self {
        Self { len: size_of::<libc::sockaddr_in>() as u32, ..Self::room() }
    }

    /// The address to pass by pointer.
    pub fn pointer(&self) -> *const libc::sockaddr {
        (&raw const self.storage).cast()
    }

    fn pointer_mut(&mut self) -> *mut libc::sockaddr {
        (&raw mut self.storage).cast()
    }

    /// Its length.
    pub fn len(&self) -> libc::socklen_t {
        self.len
    }

    /// Whether the kernel wrote no address.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The address, None for any family but IPv4 and IPv6.
    pub fn address(&self) -> Option<SocketAddr> {
        match i32::from(self.storage.ss_family) {
            libc::AF_INET => {
                // SAFETY: the family says that the storage holds a sockaddr_in, which is smaller and less aligned.
                let raw = unsafe { *self.pointer().cast::<libc::sockaddr_in>() };
                let ip = Ipv4Addr::from(u32::from_be(raw.sin_addr.s_addr));
                Some(SocketAddrV4::new(ip, u16::from_be(raw.sin_port)).into())
            }
            libc::AF_INET6 => {
                // SAFETY: as above for sockaddr_in6.
                let raw = unsafe { *self.pointer().cast::<libc::sockaddr_in6>() };
                let ip = Ipv6Addr::from(raw.sin6_addr.s6_addr);
                Some(SocketAddrV6::new(ip, u16::from_be(raw.sin6_port), 0, raw.sin6_scope_id).into())
            }
            _ => None,
        }
    }
}

impl From<SocketAddr> for RawAddress {
    fn from(address: SocketAddr) -> Self {
        let mut raw = Self::room();
        match address {
            SocketAddr::V4(v4) => {
                let sin = libc::sockaddr_in {
                    sin_family: libc::AF_INET as u16,
                    sin_port: v4.port().to_be(),
                    sin_addr: libc::in_addr { s_addr: u32::from(*v4.ip()).to_be() },
                    sin_zero: [0; 8],
                };
                // SAFETY: sockaddr_storage is larger than and as aligned as every address.
                unsafe { raw.pointer_mut().cast::<libc::sockaddr_in>().write(sin) };
                raw.len = size_of::<libc::sockaddr_in>() as u32;
            }
            SocketAddr::V6(v6) => {
                let sin6 = libc::sockaddr_in6 {
                    sin6_family: libc::AF_INET6 as u16,
                    sin6_port: v6.port().to_be(),
                    sin6_flowinfo: 0,
                    sin6_addr: libc::in6_addr { s6_addr: v6.ip().octets() },
                    sin6_scope_id: v6.scope_id(),
                };
                // SAFETY: as above.
                unsafe { raw.pointer_mut().cast::<libc::sockaddr_in6>().write(sin6) };
                raw.len = size_of::<libc::sockaddr_in6>() as u32;
            }
        }
        raw
    }
}

/// socket(2) for UDP; `flags` is 0 or of `SOCK_NONBLOCK`, `SOCK_CLOEXEC`.
pub fn udp(family: i32, flags: i32) -> Result<OwnedFd> {
    // SAFETY: no pointers.
    own(unsafe { libc::socket(family, libc::SOCK_DGRAM | flags, 0) })
}

/// A UDP socket of the address's family.
pub fn udp_for(address: SocketAddr) -> Result<OwnedFd> {
    udp(if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 }, libc::SOCK_CLOEXEC)
}

/// A UDP socket bound to `address`.
pub fn bound(address: SocketAddr) -> OwnedFd {
    let socket = udp_for(address).unwrap();
    bind(&socket, address).unwrap_or_else(|error| panic!("bind {address}: {error}"));
    socket
}

/// bind(2).
pub fn bind(s: &impl AsRawFd, address: SocketAddr) -> Result<()> {
    let raw = RawAddress::from(address);
    // SAFETY: pointer and length describe `raw`.
    check(unsafe { libc::bind(s.as_raw_fd(), raw.pointer(), raw.len()) }).map(drop)
}

/// connect(2).
pub fn connect(s: &impl AsRawFd, address: SocketAddr) -> Result<()> {
    connect_raw(s, &address.into())
}

/// connect(2) to `AF_UNSPEC`.
pub fn disconnect(s: &impl AsRawFd) -> Result<()> {
    connect_raw(s, &RawAddress::unspecified())
}

fn connect_raw(s: &impl AsRawFd, raw: &RawAddress) -> Result<()> {
    // SAFETY: pointer and length describe `raw`.
    check(unsafe { libc::connect(s.as_raw_fd(), raw.pointer(), raw.len()) }).map(drop)
}

/// getsockname(2).
pub fn name(s: &impl AsRawFd) -> Result<SocketAddr> {
    let mut raw = RawAddress::room();
    let mut len = raw.len;
    // SAFETY: pointer and length describe `raw`.
    check(unsafe { libc::getsockname(s.as_raw_fd(), raw.pointer_mut(), &mut len) })?;
    Ok(raw.address().expect("an internet address"))
}

/// shutdown(2).
pub fn shutdown(s: &impl AsRawFd, how: i32) -> Result<()> {
    // SAFETY: no pointers.
    check(unsafe { libc::shutdown(s.as_raw_fd(), how) }).map(drop)
}

/// close(2) of a descriptor nobody owns.
pub fn close(fd: RawFd) -> Result<()> {
    // SAFETY: no pointers; the caller gives the descriptor up.
    check(unsafe { libc::close(fd) }).map(drop)
}

/// dup(2).
pub fn dup(s: &impl AsRawFd) -> Result<OwnedFd> {
    // SAFETY: no pointers.
    own(unsafe { libc::dup(s.as_raw_fd()) })
}

/// send(2).
pub fn send(s: &impl AsRawFd, bytes: &[u8]) -> Result<usize> {
    // SAFETY: pointer and length describe `bytes`.
    count(unsafe { libc::send(s.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), 0) })
}

/// sendto(2).
pub fn send_to(s: &impl AsRawFd, bytes: &[u8], to: SocketAddr) -> Result<usize> {
    let raw = RawAddress::from(to);
    // SAFETY: pointers and lengths describe `bytes` and `raw`.
    count(unsafe {
        libc::sendto(s.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), 0, raw.pointer(), raw.len())
    })
}

/// recv(2).
pub fn recv(s: &impl AsRawFd, buffer: &mut [u8], flags: i32) -> Result<usize> {
    // SAFETY: pointer and length describe `buffer`.
    count(unsafe { libc::recv(s.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), flags) })
}

/// recv(2) into a fresh vector of at most `size` bytes.
pub fn take(s: &impl AsRawFd, size: usize, flags: i32) -> Result<Vec<u8>> {
    let mut buffer = vec![0; size];
    let len = recv(s, &mut buffer, flags)?;
    buffer.truncate(len);
    Ok(buffer)
}

/// recvfrom(2).
pub fn recv_from(s: &impl AsRawFd, buffer: &mut [u8], flags: i32) -> Result<(usize, SocketAddr)> {
    let mut raw = RawAddress::room();
    let mut len = raw.len;
    // SAFETY: pointers and lengths describe `buffer` and `raw`.
    let got = count(unsafe {
        let (pointer, room) = (buffer.as_mut_ptr().cast(), buffer.len());
        libc::recvfrom(s.as_raw_fd(), pointer, room, flags, raw.pointer_mut(), &mut len)
    })?;
    Ok((got, raw.address().expect("an internet address")))
}

/// read(2).
pub fn read(s: &impl AsRawFd, buffer: &mut [u8]) -> Result<usize> {
    // SAFETY: pointer and length describe `buffer`.
    count(unsafe { libc::read(s.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len()) })
}

/// write(2).
pub fn write(s: &impl AsRawFd, bytes: &[u8]) -> Result<usize> {
    // SAFETY: pointer and length describe `bytes`.
    count(unsafe { libc::write(s.as_raw_fd(), bytes.as_ptr().cast(), bytes.len()) })
}

/// readv(2).
pub fn readv(s: &impl AsRawFd, buffers: &mut [&mut [u8]]) -> Result<usize> {
    let iov = iovecs(buffers);
    // SAFETY: every iovec describes one of `buffers`.
    count(unsafe { libc::readv(s.as_raw_fd(), iov.as_ptr(), iov.len() as i32) })
}

fn iovecs(buffers: &mut [&mut [u8]]) -> Vec<libc::iovec> {
    let iovec = |b: &mut &mut [u8]| libc::iovec { iov_base: b.as_mut_ptr().cast(), iov_len: b.len() };
    buffers.iter_mut().map(iovec).collect()
}

/// One control message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Control {
    /// `cmsg_level`.
    pub level: i32,
    /// `cmsg_type`.
    pub kind: i32,
    /// What follows the header.
    pub data: Vec<u8>,
}

/// What recvmsg(2) returned beside the payload.
#[derive(Clone, Debug)]
pub struct Message {
    /// Return value.
    pub len: usize,
    /// `msg_flags`.
    pub flags: i32,
    /// `msg_name`.
    pub from: Option<SocketAddr>,
    /// `msg_namelen`.
    pub name_len: u32,
    /// Control messages in order.
    pub control: Vec<Control>,
}

impl Message {
    /// The data of the control message of this level and type.
    pub fn find(&self, level: i32, kind: i32) -> Option<&[u8]> {
        self.control.iter().find(|c| c.level == level && c.kind == kind).map(|c| c.data.as_slice())
    }

    /// The same, read as `T`, which must have its size.
    #[track_caller]
    pub fn value<T: Copy>(&self, level: i32, kind: i32) -> T {
        let data =
            self.find(level, kind).unwrap_or_else(|| panic!("no cmsg {level}/{kind} in {:?}", self.control));
        assert_eq!(data.len(), size_of::<T>(), "cmsg {level}/{kind}");
        // SAFETY: `data` has the size of T, a plain struct of the kernel's; the read is unaligned.
        unsafe { data.as_ptr().cast::<T>().read_unaligned() }
    }
}

/// Aligned as cmsghdr wants.
#[repr(C, align(16))]
struct ControlRoom([u8; 512]);

/// recvmsg(2) with `control` bytes (at most 512) of room for control messages.
pub fn recv_msg(s: &impl AsRawFd, buffers: &mut [&mut [u8]], control: usize, flags: i32) -> Result<Message> {
    let mut room = ControlRoom([0; 512]);
    assert!(control <= room.0.len());
    let mut iov = iovecs(buffers);
    let mut raw = RawAddress::room();
    // SAFETY: msghdr is plain old data for which all-zero is valid.
    let mut header: libc::msghdr = unsafe { zeroed() };
    header.msg_name = raw.pointer_mut().cast();
    header.msg_namelen = raw.len;
    header.msg_iov = iov.as_mut_ptr();
    header.msg_iovlen = iov.len() as _;
    header.msg_control = room.0.as_mut_ptr().cast();
    header.msg_controllen = control as _;
    // SAFETY: all pointers of `header` live across the call with the lengths given.
    let len = count(unsafe { libc::recvmsg(s.as_raw_fd(), &mut header, flags) })?;
    // SAFETY: the kernel or the shim filled in msg_controllen bytes of control messages.
    let control = unsafe { controls(&header) };
    let from = (header.msg_namelen > 0).then(|| raw.address()).flatten();
    Ok(Message { len, flags: header.msg_flags, from, name_len: header.msg_namelen, control })
}

/// # Safety
/// `header` must describe control messages as recvmsg(2) leaves them.
unsafe fn controls(header: &libc::msghdr) -> Vec<Control> {
    let mut list = Vec::new();
    // SAFETY: CMSG_FIRSTHDR and CMSG_NXTHDR stay within msg_controllen; cmsg_len covers header and data.
    unsafe {
        let mut next = libc::CMSG_FIRSTHDR(header);
        while let Some(c) = next.as_ref() {
            let len = c.cmsg_len - libc::CMSG_LEN(0) as usize;
            let data = std::slice::from_raw_parts(libc::CMSG_DATA(c), len).to_vec();
            list.push(Control { level: c.cmsg_level, kind: c.cmsg_type, data });
            next = libc::CMSG_NXTHDR(header, c);
        }
    }
    list
}

/// One datagram of recvmmsg(2).
#[derive(Clone, Debug)]
pub struct Datagram {
    /// The payload, as far as it fitted.
    pub bytes: Vec<u8>,
    /// `msg_len`.
    pub len: usize,
    /// `msg_flags`.
    pub flags: i32,
    /// `msg_name`.
    pub from: Option<SocketAddr>,
    /// Control messages in order.
    pub control: Vec<Control>,
}

/// recvmmsg(2) with `vlen` buffers of `size` bytes.
pub fn recv_mmsg(
    s: &impl AsRawFd,
    vlen: usize,
    size: usize,
    flags: i32,
    timeout: Option<Duration>,
) -> Result<Vec<Datagram>> {
    let mut buffers = vec![vec![0u8; size]; vlen];
    let mut names = vec![RawAddress::room(); vlen];
    let mut rooms: Vec<_> = (0..vlen).map(|_| ControlRoom([0; 512])).collect();
    let mut iov: Vec<_> = buffers
        .iter_mut()
        .map(|b| libc::iovec { iov_base: b.as_mut_ptr().cast(), iov_len: b.len() })
        .collect();
    // SAFETY: mmsghdr is plain old data for which all-zero is valid.
    let mut headers: Vec<libc::mmsghdr> = (0..vlen).map(|_| unsafe { zeroed() }).collect();
    for (((header, iov), name), room) in headers.iter_mut().zip(&mut iov).zip(&mut names).zip(&mut rooms) {
        header.msg_hdr.msg_iov = iov;
        header.msg_hdr.msg_iovlen = 1;
        header.msg_hdr.msg_name = name.pointer_mut().cast();
        header.msg_hdr.msg_namelen = name.len;
        header.msg_hdr.msg_control = room.0.as_mut_ptr().cast();
        header.msg_hdr.msg_controllen = room.0.len() as _;
    }
    let mut time = timeout.map(timespec);
    let time = time.as_mut().map_or(null_mut(), |t| t as *mut _);
    // SAFETY: every header points into `iov`, `names` and `rooms`, which live across the call.
    let got =
        check(unsafe { libc::recvmmsg(s.as_raw_fd(), headers.as_mut_ptr(), vlen as u32, flags as _, time) })?;
    let datagram = |((header, mut bytes), name): ((&libc::mmsghdr, Vec<u8>), &RawAddress)| {
        let len = header.msg_len as usize;
        bytes.truncate(len);
        // SAFETY: the kernel or the shim filled in msg_controllen bytes of control messages.
        let control = unsafe { controls(&header.msg_hdr) };
        Datagram { bytes, len, flags: header.msg_hdr.msg_flags, from: name.address(), control }
    };
    Ok(headers.iter().zip(buffers).zip(&names).take(got as usize).map(datagram).collect())
}

/// A duration as the kernel reads it.
pub fn timespec(d: Duration) -> libc::timespec {
    libc::timespec { tv_sec: d.as_secs() as _, tv_nsec: d.subsec_nanos() as _ }
}

/// setsockopt(2) with a plain value.
pub fn set<T: Copy>(s: &impl AsRawFd, level: i32, option: i32, value: T) -> Result<()> {
    let (pointer, len) = ((&raw const value).cast(), size_of::<T>() as u32);
    // SAFETY: pointer and length describe `value`.
    check(unsafe { libc::setsockopt(s.as_raw_fd(), level, option, pointer, len) }).map(drop)
}

/// getsockopt(2) of an `int`.
pub fn get(s: &impl AsRawFd, level: i32, option: i32) -> Result<i32> {
    let (mut value, mut len) = (0i32, 4u32);
    // SAFETY: pointer and length describe `value`.
    check(unsafe { libc::getsockopt(s.as_raw_fd(), level, option, (&raw mut value).cast(), &mut len) })?;
    Ok(value)
}

/// `SO_RCVTIMEO`.
pub fn set_timeout(s: &impl AsRawFd, d: Duration) {
    let time = libc::timeval { tv_sec: d.as_secs() as _, tv_usec: d.subsec_micros() as _ };
    set(s, libc::SOL_SOCKET, libc::SO_RCVTIMEO, time).unwrap();
}

/// ioctl(2) `FIONREAD`.
pub fn fionread(s: &impl AsRawFd) -> Result<usize> {
    let mut value = 0i32;
    // SAFETY: FIONREAD writes one int.
    check(unsafe { libc::ioctl(s.as_raw_fd(), libc::FIONREAD, &raw mut value) })?;
    Ok(value as usize)
}

/// ioctl(2) `FIONBIO`.
pub fn fionbio(s: &impl AsRawFd, on: bool) -> Result<()> {
    let value = i32::from(on);
    // SAFETY: FIONBIO reads one int.
    check(unsafe { libc::ioctl(s.as_raw_fd(), libc::FIONBIO, &raw const value) }).map(drop)
}

/// fcntl(2) with an integer argument.
pub fn fcntl(s: &impl AsRawFd, command: i32, argument: i32) -> Result<i32> {
    // SAFETY: no pointers for the commands used (F_GETFL, F_SETFL, F_DUPFD, F_SETFD…).
    check(unsafe { libc::fcntl(s.as_raw_fd(), command, argument) })
}

/// One entry of a poll set.
pub fn pollfd(s: &impl AsRawFd, events: i16) -> libc::pollfd {
    libc::pollfd { fd: s.as_raw_fd(), events, revents: 0 }
}

/// poll(2); `timeout_ms` -1 waits for ever.
pub fn poll(set: &mut [libc::pollfd], timeout_ms: i32) -> Result<usize> {
    // SAFETY: pointer and length describe `set`.
    check(unsafe { libc::poll(set.as_mut_ptr(), set.len() as _, timeout_ms) }).map(|n| n as usize)
}

/// ppoll(2).
pub fn ppoll(set: &mut [libc::pollfd], d: Option<Duration>, mask: Option<&libc::sigset_t>) -> Result<usize> {
    let time = d.map(timespec);
    let time = time.as_ref().map_or(null(), |t| t as *const _);
    let mask = mask.map_or(null(), |m| m as *const _);
    // SAFETY: pointers are null or describe locals; pointer and length describe `set`.
    check(unsafe { libc::ppoll(set.as_mut_ptr(), set.len() as _, time, mask) }).map(|n| n as usize)
}

/// The events poll(2) reports for one descriptor within `timeout_ms`.
pub fn events(s: &impl AsRawFd, events: i16, timeout_ms: i32) -> i16 {
    let mut set = [pollfd(s, events)];
    poll(&mut set, timeout_ms).unwrap();
    set[0].revents
}

/// How long something that must come may take.
pub const DEADLINE_MS: i32 = 10_000;

/// Waits until the socket is readable.
#[track_caller]
pub fn wait_readable(s: &impl AsRawFd) {
    assert_eq!(events(s, libc::POLLIN, DEADLINE_MS), libc::POLLIN, "nothing became readable");
}

/// A set of descriptors for select(2).
pub fn fd_set(fds: &[RawFd]) -> libc::fd_set {
    let mut set = MaybeUninit::uninit();
    // SAFETY: FD_ZERO initialises the whole set; descriptors of a test are below FD_SETSIZE.
    unsafe {
        libc::FD_ZERO(set.as_mut_ptr());
        let mut set: libc::fd_set = set.assume_init();
        fds.iter().for_each(|&fd| libc::FD_SET(fd, &mut set));
        set
    }
}

/// Whether a descriptor is in the set.
pub fn is_set(set: &libc::fd_set, s: &impl AsRawFd) -> bool {
    // SAFETY: descriptors of a test are below FD_SETSIZE.
    unsafe { libc::FD_ISSET(s.as_raw_fd(), set) }
}

/// epoll_create1(2).
pub fn epoll() -> OwnedFd {
    // SAFETY: no pointers.
    own(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) }).unwrap()
}

/// epoll_ctl(2).
pub fn epoll_ctl(ep: &impl AsRawFd, op: i32, s: &impl AsRawFd, events: i32, data: u64) -> Result<()> {
    let mut event = libc::epoll_event { events: events as u32, u64: data };
    // SAFETY: the event is a local.
    check(unsafe { libc::epoll_ctl(ep.as_raw_fd(), op, s.as_raw_fd(), &mut event) }).map(drop)
}

/// epoll_ctl(2) `EPOLL_CTL_ADD`.
#[track_caller]
pub fn epoll_add(ep: &impl AsRawFd, s: &impl AsRawFd, events: i32, data: u64) {
    epoll_ctl(ep, libc::EPOLL_CTL_ADD, s, events, data).unwrap();
}

/// epoll_wait(2): events and data, in the order reported.
pub fn epoll_wait(ep: &impl AsRawFd, max: usize, timeout_ms: i32) -> Result<Vec<(i32, u64)>> {
    epoll_pairs(max, |events| {
        // SAFETY: `events` has room for `max` entries.
        unsafe { libc::epoll_wait(ep.as_raw_fd(), events, max as i32, timeout_ms) }
    })
}

/// epoll_pwait(2).
pub fn epoll_pwait(
    ep: &impl AsRawFd,
    max: usize,
    timeout_ms: i32,
    mask: &libc::sigset_t,
) -> Result<Vec<(i32, u64)>> {
    epoll_pairs(max, |events| {
        // SAFETY: `events` has room for `max` entries; the mask is a reference.
        unsafe { libc::epoll_pwait(ep.as_raw_fd(), events, max as i32, timeout_ms, mask) }
    })
}

/// epoll_pwait2(2) without a mask.
pub fn epoll_pwait2(ep: &impl AsRawFd, max: usize, d: Option<Duration>) -> Result<Vec<(i32, u64)>> {
    let time = d.map(timespec);
    let time = time.as_ref().map_or(null(), |t| t as *const _);
    epoll_pairs(max, |events| {
        // SAFETY: `events` has room for `max` entries; the time is null or a local.
        unsafe { libc::epoll_pwait2(ep.as_raw_fd(), events, max as i32, time, null()) }
    })
}

fn epoll_pairs(max: usize, wait: impl FnOnce(*mut libc::epoll_event) -> i32) -> Result<Vec<(i32, u64)>> {
    let mut events = vec![libc::epoll_event { events: 0, u64: 0 }; max];
    let got = check(wait(events.as_mut_ptr()))?;
    events.truncate(got as usize);
    Ok(events.iter().map(|e| (e.events as i32, e.u64)).collect())
}

/// pipe2(2): the reading and the writing end.
pub fn pipe() -> (OwnedFd, OwnedFd) {
    let mut fds = [0; 2];
    // SAFETY: pipe2 writes two descriptors.
    check(unsafe { libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC) }).unwrap();
    (own(fds[0]).unwrap(), own(fds[1]).unwrap())
}
