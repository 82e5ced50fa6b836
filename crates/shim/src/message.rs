//! A received datagram in the program's terms: buffers, `sockaddr`, control messages.

use crate::{
    engine::Memory,
    frames::Arrival,
    merge::{Kin, Segment},
    options::number::UDP_GRO,
    socket::{Socket, want},
    sys,
};
use core::sync::atomic::Ordering::Relaxed;
use hoist_packet::{Ip, SocketAddrRaw, ipv4, ipv6, udp};
use hoist_sys::Errno;
use hoist_xsk::Desc;
use libc::{c_int, iovec, sockaddr, socklen_t};

/// A received datagram: its packet, and what the pump noted.
#[derive(Clone, Copy)]
pub(crate) struct Received<'m> {
    packet: &'m [u8],
    pub(crate) arrival: &'m Arrival,
}

impl<'m> Received<'m> {
    #[inline]
    pub(crate) fn new(memory: &'m Memory, arrival: &'m Arrival) -> Self {
        let desc = Desc { addr: arrival.address, len: arrival.len.into(), options: 0 };
        Self { packet: memory.umem.packet(desc).unwrap_or(&[]), arrival }
    }

    /// The payload of the datagram in its frame.
    #[inline]
    pub(crate) fn payload(&self) -> &'m [u8] {
        let at = usize::from(self.arrival.payload_at);
        self.packet.get(at..at + usize::from(self.arrival.payload_len)).unwrap_or(&[])
    }

    /// Bytes of a header before the payload. `steer` lifts, and `udp::parse` accepts, headers of one length only, so they lie at
    /// fixed distances. Bytes that are not there read as zero.
    #[inline]
    fn header<const LEN: usize>(&self, before_payload: usize) -> [u8; LEN] {
        let at = usize::from(self.arrival.payload_at).wrapping_sub(before_payload);
        self.packet.get(at..).and_then(|bytes| bytes.first_chunk()).copied().unwrap_or([0; LEN])
    }

    /// Distance from the payload back to the IP header.
    fn network(&self) -> usize {
        udp::HEADER_LEN + if self.arrival.v6 { ipv6::HEADER_LEN } else { ipv4::HEADER_LEN }
    }

    /// What it has in common with others that merge with it.
    pub(crate) fn segment(&self) -> Segment {
        let [_, _, _, _, _, _, check @ ..]: [u8; udp::HEADER_LEN] = self.header(udp::HEADER_LEN);
        let class = if self.arrival.v6 {
            self.header(self.network()) // version, traffic class, flow label
        } else {
            [0, self.tos(), 0, 0]
        };
        Segment {
            kin: Kin {
                ifindex: self.arrival.ifindex,
                source: self.source(),
                destination: self.destination(),
                class,
                ttl: self.ttl(),
            },
            checksummed: check != [0; 2],
            headers: self.network(),
            len: self.arrival.payload_len.into(),
        }
    }

    /// Who sent it.
    #[inline]
    pub(crate) fn source(&self) -> SocketAddrRaw {
        let port = u16::from_be_bytes(self.header(udp::HEADER_LEN));
        let ip = if self.arrival.v6 {
            Ip::V6(self.header(self.network() - 8))
        } else {
            Ip::V4(self.header(self.network() - 12))
        };
        SocketAddrRaw { ip, port }
    }

    /// The address it was sent to.
    fn destination(&self) -> Ip {
        if self.arrival.v6 {
            Ip::V6(self.header(self.network() - 24))
        } else {
            Ip::V4(self.header(self.network() - 16))
        }
    }

    /// Time to live, or hop limit.
    fn ttl(&self) -> u8 {
        let [ttl] = self.header(self.network() - if self.arrival.v6 { 7 } else { 8 });
        ttl
    }

    /// Type of service, or traffic class.
    fn tos(&self) -> u8 {
        let [first, second] = self.header(self.network());
        if self.arrival.v6 { first << 4 | second >> 4 } else { second }
    }
}

/// What a read took: one datagram, or several merged.
#[derive(Clone, Copy)]
pub(crate) struct Taken {
    /// Bytes that reached the program.
    pub(crate) copied: usize,
    /// Payload of all that was taken.
    pub(crate) len: usize,
    /// If it is several, the length of each but the last.
    pub(crate) segment: Option<u16>,
}

impl Taken {
    /// One datagram, of which `copied` bytes fitted.
    #[inline]
    pub(crate) fn one(copied: usize, received: &Received<'_>) -> Self {
        Self { copied, len: received.arrival.payload_len.into(), segment: None }
    }

    /// What the call returns: with MSG_TRUNC the real length.
    #[inline]
    pub(crate) fn outcome(&self, flags: c_int) -> usize {
        if flags & libc::MSG_TRUNC != 0 { self.len } else { self.copied }
    }
}

/// Whether the kernel could accept this as an address of the program's: not in the first page (`mmap_min_addr`), not
/// beyond user space. The cheap part of what `access_ok` and a page fault tell the kernel.
#[inline]
pub(crate) fn plausible<T>(pointer: *const T) -> bool {
    (4096..1 << 47).contains(&(pointer as usize))
}

/// Where a read goes: the program's buffers.
#[derive(Clone, Copy)]
pub(crate) enum Buffers {
    One { base: *mut u8, len: usize },
    Many { vector: *const iovec, count: usize },
}

impl Buffers {
    /// Copies as much as fits behind the first `skip` bytes; returns how much.
    ///
    /// An address that cannot be the program's is `EFAULT`, as in Linux; one that is merely not mapped is a SIGSEGV
    /// (docs/limitations.md).
    #[inline]
    pub(crate) fn fill(self, skip: usize, bytes: &[u8]) -> Result<usize, Errno> {
        match self {
            Self::One { base, len } => copy(bytes, base.wrapping_add(skip), len.saturating_sub(skip)),
            Self::Many { vector, count } => fill_many(vector, count, skip, bytes),
        }
    }

    /// Bytes they take.
    pub(crate) fn room(self) -> usize {
        match self {
            Self::One { len, .. } => len,
            Self::Many { vector, count } => {
                // SAFETY: the program passed `count` entries.
                let len = |i| unsafe { (*vector.add(i)).iov_len };
                (0..count).map(len).fold(0, usize::saturating_add)
            }
        }
    }
}

#[inline]
fn copy(bytes: &[u8], base: *mut u8, len: usize) -> Result<usize, Errno> {
    let len = bytes.len().min(len);
    if len == 0 {
        return Ok(0);
    }
    if !plausible(base) {
        return Err(Errno(libc::EFAULT));
    }
    // SAFETY: the program vouches for its buffer by the call's contract; the frame is ours and not the program's.
    unsafe { core::ptr::copy_nonoverlapping(bytes.as_ptr(), base, len) };
    Ok(len)
}

/// What `import_iovec` refuses, before any datagram is taken.
///
/// # Safety
/// `vector` has `count` entries if it is plausible.
pub(crate) unsafe fn check_vector(vector: *const iovec, count: usize) -> Result<(), Errno> {
    if count > libc::UIO_MAXIOV as usize {
        return Err(Errno(libc::EMSGSIZE));
    }
    if count > 0 && !plausible(vector) {
        return Err(Errno(libc::EFAULT));
    }
    // SAFETY: by contract.
    let negative = (0..count).any(|i| unsafe { (*vector.add(i)).iov_len } as isize <= -1);
    if negative { Err(Errno(libc::EINVAL)) } else { Ok(()) }
}

fn fill_many(vector: *const iovec, count: usize, mut skip: usize, bytes: &[u8]) -> Result<usize, Errno> {
    if !plausible(vector) && count > 0 {
        return Err(Errno(libc::EFAULT));
    }
    let mut done = 0;
    for i in 0..count {
        // SAFETY: the program passed `count` entries.
        let entry = unsafe { *vector.add(i) };
        if (entry.iov_len as isize) < 0 {
            return Err(Errno(libc::EINVAL));
        }
        let over = skip.min(entry.iov_len);
        skip -= over;
        let base: *mut u8 = entry.iov_base.cast();
        done += copy(&bytes[done..], base.wrapping_add(over), entry.iov_len - over)?;
    }
    Ok(done)
}

/// Writes the sender's address as `move_addr_to_user` does: cut to `*len`, and `*len` set to the full length.
pub(crate) fn write_name(
    v6: bool,
    received: &Received<'_>,
    name: *mut sockaddr,
    len: *mut socklen_t,
) -> Result<(), Errno> {
    if name.is_null() {
        return Ok(());
    }
    if !plausible(len) {
        return Err(Errno(libc::EFAULT));
    }
    // SAFETY: the program passed a valid length with its name buffer.
    let room = unsafe { *len };
    if (room as i32) < 0 {
        return Err(Errno(libc::EINVAL));
    }
    let (bytes, full) = sockaddr_bytes(v6, &received.source(), received.arrival.ifindex);
    copy(&bytes[..full], name.cast(), room as usize)?;
    // SAFETY: as above.
    unsafe { *len = full as socklen_t };
    Ok(())
}

/// `sockaddr_in` or `sockaddr_in6` (v4-mapped for IPv4) in memory form, and its length.
pub(crate) fn sockaddr_bytes(v6: bool, from: &SocketAddrRaw, ifindex: u32) -> ([u8; 28], usize) {
    let mut bytes = [0; 28];
    let family = if v6 { libc::AF_INET6 } else { libc::AF_INET } as u16;
    bytes[..2].copy_from_slice(&family.to_ne_bytes());
    bytes[2..4].copy_from_slice(&from.port.to_be_bytes());
    if let (false, Ip::V4(octets)) = (v6, from.ip) {
        bytes[4..8].copy_from_slice(&octets);
        return (bytes, 16);
    }
    let octets = mapped(from.ip);
    bytes[8..24].copy_from_slice(&octets);
    if octets[0] == 0xfe && octets[1] & 0xc0 == 0x80 {
        bytes[24..28].copy_from_slice(&ifindex.to_ne_bytes()); // ipv6_iface_scope_id: link-local only
    }
    (bytes, 28)
}

fn mapped(ip: Ip) -> [u8; 16] {
    match ip {
        Ip::V6(octets) => octets,
        Ip::V4([a, b, c, d]) => [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d],
    }
}

/// Control messages under construction, as `put_cmsg` writes them.
pub(crate) struct Control<'a> {
    room: &'a mut [u8],
    used: usize,
    pub(crate) truncated: bool,
}

/// `CMSG_ALIGN`.
fn align(len: usize) -> usize {
    len.next_multiple_of(size_of::<usize>())
}

const HEADER: usize = size_of::<libc::cmsghdr>();

impl<'a> Control<'a> {
    pub(crate) fn new(room: &'a mut [u8]) -> Self {
        Self { room, used: 0, truncated: false }
    }

    /// Appends one message; what does not fit is cut and marked.
    pub(crate) fn put(&mut self, level: c_int, kind: c_int, data: &[u8]) {
        let room = &mut self.room[self.used..];
        if room.len() < HEADER {
            self.truncated = true;
            return;
        }
        let len = (HEADER + data.len()).min(room.len());
        self.truncated |= len < HEADER + data.len();
        room[..8].copy_from_slice(&len.to_ne_bytes());
        room[8..12].copy_from_slice(&level.to_ne_bytes());
        room[12..16].copy_from_slice(&kind.to_ne_bytes());
        room[HEADER..len].copy_from_slice(&data[..len - HEADER]);
        self.used += align(len).min(room.len());
    }

    pub(crate) fn used(&self) -> usize {
        self.used
    }
}

/// The ancillary data a socket asked for, in the kernel's order: `sock_recv_cmsgs`, `udp_cmsg_recv`, then `ip_cmsg_recv` or
/// `ip6_datagram_recv_ctl`. `local` is the address an answer would come from.
pub(crate) fn put_wanted(
    control: &mut Control<'_>,
    wants: u32,
    received: &Received<'_>,
    segment: Option<u16>,
    local: impl FnOnce() -> [u8; 4],
) {
    let arrival = received.arrival;
    put_time(control, wants, arrival.time_ns);
    if wants & want::OVERFLOW != 0 && arrival.drops > 0 {
        control.put(libc::SOL_SOCKET, libc::SO_RXQ_OVFL, &arrival.drops.to_ne_bytes());
    }
    if let Some(segment) = segment {
        control.put(libc::SOL_UDP, UDP_GRO, &c_int::from(segment).to_ne_bytes());
    }
    if wants & want::PKTINFO6 != 0 {
        let mut info = [0; 20];
        info[..16].copy_from_slice(&mapped(received.destination()));
        info[16..].copy_from_slice(&arrival.ifindex.to_ne_bytes());
        control.put(libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, &info);
    }
    match received.destination() {
        Ip::V4(destination) => put_v4(control, wants, received, destination, local),
        Ip::V6(_) => put_v6(control, wants, received),
    }
}

/// Whether a read can be told the boundaries of merged datagrams: the message finds room behind those that may precede it.
/// Without it Linux merges all the same; who cannot be told is better served one by one.
pub(crate) fn tells_segments(wants: u32, header: &libc::msghdr) -> bool {
    let message = |bit, len| if wants & bit != 0 { align(HEADER + len) } else { 0 };
    let before = message(want::TIME, 16) + message(want::OVERFLOW, 4);
    wants & want::GRO != 0
        && !header.msg_control.is_null()
        && header.msg_controllen >= before + HEADER + size_of::<c_int>()
}

fn put_time(control: &mut Control<'_>, wants: u32, time_ns: u64) {
    let (seconds, nanos) = (time_ns / 1_000_000_000, time_ns % 1_000_000_000);
    let (fraction, old, new) = match wants & want::TIME {
        0 => return,
        bits if bits & want::TIMESTAMPNS != 0 => (nanos, libc::SO_TIMESTAMPNS, 64),
        _ => (nanos / 1000, libc::SO_TIMESTAMP, 63),
    };
    let mut data = [0; 16];
    data[..8].copy_from_slice(&seconds.to_ne_bytes());
    data[8..].copy_from_slice(&fraction.to_ne_bytes());
    control.put(libc::SOL_SOCKET, if wants & want::TIME_NEW != 0 { new } else { old }, &data);
}

fn put_v4(
    control: &mut Control<'_>,
    wants: u32,
    received: &Received<'_>,
    destination: [u8; 4],
    local: impl FnOnce() -> [u8; 4],
) {
    if wants & want::PKTINFO != 0 {
        let mut info = [0; 12];
        info[..4].copy_from_slice(&received.arrival.ifindex.to_ne_bytes());
        info[4..8].copy_from_slice(&if received.arrival.group { local() } else { destination });
        info[8..].copy_from_slice(&destination);
        control.put(libc::IPPROTO_IP, libc::IP_PKTINFO, &info);
    }
    if wants & want::TTL != 0 {
        control.put(libc::IPPROTO_IP, libc::IP_TTL, &i32::from(received.ttl()).to_ne_bytes());
    }
    if wants & want::TOS != 0 {
        control.put(libc::IPPROTO_IP, libc::IP_TOS, &[received.tos()]);
    }
}

fn put_v6(control: &mut Control<'_>, wants: u32, received: &Received<'_>) {
    if wants & want::HOPLIMIT != 0 {
        control.put(libc::IPPROTO_IPV6, libc::IPV6_HOPLIMIT, &i32::from(received.ttl()).to_ne_bytes());
    }
    if wants & want::TCLASS != 0 {
        control.put(libc::IPPROTO_IPV6, libc::IPV6_TCLASS, &i32::from(received.tos()).to_ne_bytes());
    }
}

/// Fills a `msghdr` for what was taken: name, control, flags. `received` is the first datagram.
///
/// # Safety
/// `header` is the program's own, valid for reading and writing, and so is what it points to.
pub(crate) unsafe fn write_header(
    socket: &Socket,
    fd: c_int,
    received: &Received<'_>,
    header: *mut libc::msghdr,
    taken: &Taken,
) -> Result<(), Errno> {
    // SAFETY: by the function's contract.
    let header = unsafe { &mut *header };
    let v6 = socket.v6.load(Relaxed);
    if header.msg_name.is_null() {
        header.msg_namelen = 0;
    } else {
        write_name(v6, received, header.msg_name.cast(), &raw mut header.msg_namelen)?;
    }
    header.msg_flags = if taken.copied < taken.len { libc::MSG_TRUNC } else { 0 };
    let wants = socket.wants.load(Relaxed);
    if wants == 0 || header.msg_control.is_null() {
        let always = wants & !(want::OVERFLOW | want::GRO);
        header.msg_flags |= if always != 0 { libc::MSG_CTRUNC } else { 0 };
        header.msg_controllen = 0;
        return Ok(());
    }
    // SAFETY: the program says that msg_control has msg_controllen bytes.
    let room =
        unsafe { core::slice::from_raw_parts_mut(header.msg_control.cast::<u8>(), header.msg_controllen) };
    let mut control = Control::new(room);
    put_wanted(&mut control, wants, received, taken.segment, || {
        sys::interface_address(fd, received.arrival.ifindex).unwrap_or([0; 4])
    });
    header.msg_flags |= if control.truncated { libc::MSG_CTRUNC } else { 0 };
    header.msg_controllen = control.used() as _;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_messages_lie_as_the_kernel_lays_them_out() {
        let mut room = [0xff; 64];
        let mut control = Control::new(&mut room);
        control.put(libc::IPPROTO_IP, libc::IP_TTL, &64i32.to_ne_bytes());
        control.put(libc::IPPROTO_IP, libc::IP_TOS, &[0x2e]);
        assert_eq!((control.used(), control.truncated), (48, false));
        assert_eq!(room[..8], 20usize.to_ne_bytes());
        assert_eq!(room[24..32], 17usize.to_ne_bytes());
        assert_eq!(room[40], 0x2e);
    }

    #[test]
    fn control_that_does_not_fit_is_cut_and_marked() {
        let mut room = [0; 18];
        let mut control = Control::new(&mut room);
        control.put(libc::IPPROTO_IP, libc::IP_TTL, &64i32.to_ne_bytes());
        assert_eq!((control.used(), control.truncated), (18, true));
        let mut control = Control::new(&mut []);
        control.put(libc::IPPROTO_IP, libc::IP_TTL, &[0; 4]);
        assert_eq!((control.used(), control.truncated), (0, true));
    }

    #[test]
    fn what_follows_is_copied_behind_over_every_buffer() {
        let (mut a, mut b) = ([0u8; 3], [0u8; 4]);
        let entry = |bytes: &mut [u8]| iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
        let vector = [entry(&mut a), entry(&mut []), entry(&mut b)];
        let buffers = Buffers::Many { vector: vector.as_ptr(), count: 3 };
        assert_eq!(buffers.room(), 7);
        assert_eq!(buffers.fill(0, &[1, 2]), Ok(2));
        assert_eq!(buffers.fill(2, &[3, 4, 5]), Ok(3));
        assert_eq!(buffers.fill(5, &[6, 7, 8]), Ok(2));
        assert_eq!(buffers.fill(7, &[9]), Ok(0));
        assert_eq!((a, b), ([1, 2, 3], [4, 5, 6, 7]));
    }

    #[test]
    fn boundaries_need_room_behind_the_other_messages() {
        let mut room = [0u64; 16];
        // SAFETY: msghdr is plain data for which zero is valid.
        let mut header: libc::msghdr = unsafe { core::mem::zeroed() };
        header.msg_controllen = 128;
        assert!(!tells_segments(want::GRO, &header), "no control buffer");
        header.msg_control = room.as_mut_ptr().cast();
        for (wants, least) in [
            (want::GRO, 20),
            (want::GRO | want::TIMESTAMPNS, 52),
            (want::GRO | want::OVERFLOW, 44),
            (want::GRO | want::TIMESTAMP | want::OVERFLOW | want::TTL, 76),
        ] {
            header.msg_controllen = least;
            assert!(tells_segments(wants, &header), "{wants}");
            header.msg_controllen = least - 1;
            assert!(!tells_segments(wants, &header), "{wants}");
        }
        header.msg_controllen = 128;
        assert!(!tells_segments(want::TTL, &header), "not asked for");
    }

    #[test]
    fn names_are_mapped_for_dual_stack_and_scoped_for_link_local() {
        let v4 = SocketAddrRaw { ip: Ip::V4([10, 0, 0, 1]), port: 53 };
        let (bytes, len) = sockaddr_bytes(false, &v4, 7);
        assert_eq!((len, &bytes[2..8]), (16, &[0, 53, 10, 0, 0, 1][..]));
        let (bytes, len) = sockaddr_bytes(true, &v4, 7);
        assert_eq!((len, &bytes[18..24]), (28, &[0xff, 0xff, 10, 0, 0, 1][..]));
        let mut local = [0; 16];
        (local[0], local[1]) = (0xfe, 0x80);
        let (bytes, _) = sockaddr_bytes(true, &SocketAddrRaw { ip: Ip::V6(local), port: 1 }, 7);
        assert_eq!(bytes[24..28], 7u32.to_ne_bytes());
    }
}
