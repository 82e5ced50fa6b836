//! The way to the broker: what is asked when sockets come, change and go. Never on the path of a datagram.

use crate::{
    chunk,
    demux::Endpoint,
    driver,
    engine::{self, ENGINE, NewRing},
    epoll::{self, Epoll},
    lock::PumpLock,
    socket::{Socket, State, peeked, want},
    sys,
    table::{EPOLLS, FDS, SOCKETS, STREAMS},
    tcp::{self, Stream},
    wait,
};
use core::sync::atomic::{
    AtomicBool, AtomicI32, AtomicU32, AtomicU64,
    Ordering::{Acquire, Relaxed, Release, SeqCst},
};
use hoist_ipc::{
    MAX_MESSAGE, Reason, Reply, Request, VERSION,
    hub::{Hub, SEATS},
    page,
    tcp::{PortCounts, Slots},
};
use hoist_packet::{Ip, udp::ChecksumTrust};
use hoist_xsk::{ChunkSize, FillRing, RxRing, Umem};
use std::os::fd::{AsRawFd, BorrowedFd, IntoRawFd, OwnedFd};

/// The inherited socket, -1: not under `hoist run`.
static INHERITED: AtomicI32 = AtomicI32::new(-1);
/// Its inode: a program that closed it may have given the number to something else.
static INHERITED_INODE: AtomicU64 = AtomicU64::new(0);
/// Anything is lifted at all.
static ACTIVE: AtomicBool = AtomicBool::new(false);
/// `--udp` is not off, as far as known.
static UDP: AtomicBool = AtomicBool::new(true);
static PID: AtomicI32 = AtomicI32::new(0);
/// `--spin-us`.
pub(crate) static SPIN_US: AtomicU32 = AtomicU32::new(0);
/// Datagrams after which an ephemeral port is registered.
static YOUNG: AtomicU32 = AtomicU32::new(8);
/// `--admit flow`.
pub(crate) static ADMIT_FLOW: AtomicBool = AtomicBool::new(false);
/// Sockets lifted now, to spare fork the work.
static LIFTED: AtomicU32 = AtomicU32::new(0);
/// One more than the highest descriptor ever in a table.
static HIGHEST: AtomicU32 = AtomicU32::new(0);
/// The shim's own descriptors, which the program must not close.
static HIDDEN: [AtomicU64; FDS / 64] = [const { AtomicU64::new(0) }; FDS / 64];

static CLIENT: PumpLock<Client> = PumpLock::new(Client::new());

/// Closed sockets are used again only when this many others were closed after them: a thread that lost a race with
/// `close` may still look at one.
const RESTING: usize = 1024;

struct Client {
    channel: i32,
    gone: bool,
    /// Rings or memory of the lease could not be taken: no socket may be lifted.
    crippled: bool,
    slots: Option<Slots>,
    hub: Option<(&'static Hub, u8)>,
    devices: Vec<Device>,
    closed: std::collections::VecDeque<&'static Socket>,
    closed_streams: std::collections::VecDeque<&'static Stream>,
    closed_epolls: std::collections::VecDeque<&'static Epoll>,
}

#[derive(Clone, Copy)]
struct Device {
    ifindex: u32,
    tap: i32,
    trust: ChecksumTrust,
}

/// Whether sockets are followed at all.
#[inline]
pub(crate) fn active() -> bool {
    ACTIVE.load(Relaxed)
}

/// Start-up: remembers the broker's socket. `fd` comes from the environment and may be nonsense.
pub(crate) fn start(fd: i32) {
    PID.store(sys::getpid(), Relaxed);
    if let Some(inode) = socket_inode(fd) {
        INHERITED_INODE.store(inode, Relaxed);
        INHERITED.store(fd, Release);
        mark_hidden(fd, true);
        engine::own();
        ACTIVE.store(true, Release);
    }
}

fn socket_inode(fd: i32) -> Option<u64> {
    // SAFETY: stat is plain data and ours; fstat is not hooked.
    let (status, found) = unsafe {
        let mut status: libc::stat = core::mem::zeroed();
        let found = libc::fstat(fd, &raw mut status);
        (status, found)
    };
    (found == 0 && status.st_mode & libc::S_IFMT == libc::S_IFSOCK).then_some(status.st_ino)
}

/// Whether `fd` is the shim's own.
#[inline]
pub(crate) fn hidden(fd: i32) -> bool {
    HIDDEN.get(fd as usize / 64).is_some_and(|word| word.load(Relaxed) >> (fd as usize % 64) & 1 == 1)
}

fn mark_hidden(fd: i32, hidden: bool) {
    let Some(word) = HIDDEN.get(fd as usize / 64) else { return };
    let bit = 1 << (fd as usize % 64);
    if hidden {
        word.fetch_or(bit, Relaxed)
    } else {
        word.fetch_and(!bit, Relaxed)
    };
}

/// Moves a descriptor out of the program's way and protects it from the program's `close`.
pub(crate) fn hide(fd: i32) -> Option<i32> {
    let limit = sys::nofile_limit().min(FDS as u64);
    let floor = (limit - (limit / 4).min(4096)) as i32;
    let fd = sys::raise_fd(fd, floor).ok()?;
    mark_hidden(fd, true);
    Some(fd)
}

/// Closes a hidden descriptor.
pub(crate) fn discard(fd: i32) {
    mark_hidden(fd, false);
    sys::close(fd);
}

fn hide_owned(fd: Option<OwnedFd>) -> Option<i32> {
    hide(fd?.into_raw_fd())
}

/// Descriptors below this may be in a table.
pub(crate) fn highest() -> usize {
    HIGHEST.load(Relaxed) as usize
}

/// Notes that `fd` is in a table.
pub(crate) fn note_descriptor(fd: i32) {
    HIGHEST.fetch_max(fd as u32 + 1, Relaxed);
}

/// This process, as far as known without a system call.
#[inline]
pub(crate) fn pid() -> i32 {
    PID.load(Relaxed)
}

/// A vfork or raw clone child shares memory or copies of descriptors with the process that owns them: hands off.
pub(crate) fn own_process() -> bool {
    PID.load(Relaxed) == sys::getpid()
}

/// Follows a new UDP socket.
pub(crate) fn track(fd: i32, v6: bool) {
    if !UDP.load(Relaxed) {
        return;
    }
    let Some(mut client) = CLIENT.lock() else { return };
    let rested = client.closed.len() > RESTING;
    let socket = if rested { client.closed.pop_front() } else { None };
    drop(client);
    let socket = socket.unwrap_or_else(|| Box::leak(Box::new(Socket::new())));
    let cookie = sys::option::<u64>(fd, libc::SOL_SOCKET, libc::SO_COOKIE).unwrap_or(0);
    socket.renew(fd, cookie, v6, rcvbuf(fd));
    note_descriptor(fd);
    if let Some(stale) = SOCKETS.set(fd, Some(socket)) {
        forget_descriptor(stale); // closed past the shim
    }
}

/// Whether TCP sockets are followed: asks the broker the first time.
pub(crate) fn follows_streams() -> bool {
    active() && page_for_young().is_some() && tcp::active()
}

/// Follows a new TCP socket, or what accept returned.
pub(crate) fn track_stream(fd: i32) {
    let Some(mut client) = CLIENT.lock() else { return };
    let rested = client.closed_streams.len() > RESTING;
    let stream = if rested { client.closed_streams.pop_front() } else { None };
    drop(client);
    let stream = stream.unwrap_or_else(|| Box::leak(Box::new(Stream::new())));
    stream.renew(fd);
    note_descriptor(fd);
    if let Some(stale) = STREAMS.set(fd, Some(stream)) {
        forget_stream(stale, -1); // closed past the shim: the number means another socket
    }
}

/// One descriptor of the stream less; the last one ends it.
fn forget_stream(stream: &'static Stream, fd: i32) {
    if stream.descriptors.fetch_sub(1, Relaxed) != 1 {
        if stream.fd.load(Relaxed) == fd
            && let Some((other, _)) = STREAMS.iter(highest()).find(|(_, found)| core::ptr::eq(*found, stream))
        {
            stream.fd.store(other, Relaxed);
        }
        return;
    }
    tcp::close(stream, fd);
    if let Some(mut client) = CLIENT.lock() {
        client.closed_streams.push_back(stream);
    }
}

/// Asks for rings where the connection's packets arrive.
pub(crate) fn ask_for_streams(fd: i32, cookie: u64) -> Reason {
    if !own_process() || engine_held() {
        return Reason::RingSetup;
    }
    let Some(mut client) = CLIENT.lock() else { return Reason::RingSetup };
    match client.ask(&Request::Stream { cookie }, Some(fd)) {
        Some(Reply::Registered { reason, .. }) => reason,
        Some(_) => Reason::Refused,
        None => Reason::BrokerGone,
    }
}

/// Follows a new epoll instance: a duplicate made before the first socket is added must mean the same.
pub(crate) fn track_epoll(epfd: i32) {
    let Some(mut client) = CLIENT.lock() else { return };
    let rested = client.closed_epolls.len() > RESTING;
    let epoll = if rested { client.closed_epolls.pop_front() } else { None };
    drop(client);
    let epoll = epoll.unwrap_or_else(|| Box::leak(Box::new(Epoll::new())));
    epoll.renew(epfd);
    note_descriptor(epfd);
    if let Some(stale) = EPOLLS.set(epfd, Some(epoll)) {
        stale.forget_descriptor(); // closed past the shim
    }
}

/// An instance has lost its last descriptor.
pub(crate) fn retire_epoll(epoll: &'static Epoll) {
    if let Some(mut client) = CLIENT.lock() {
        client.closed_epolls.push_back(epoll);
    }
}

pub(crate) fn rcvbuf(fd: i32) -> u32 {
    sys::option::<i32>(fd, libc::SOL_SOCKET, libc::SO_RCVBUF).unwrap_or(212_992) as u32
}

/// What the kernel says of a socket's addresses.
fn endpoint(fd: i32, v6: bool) -> Option<Endpoint> {
    let (address, port) = address(&sys::name(fd, libc::SYS_getsockname).ok()?)?;
    let peer = sys::name(fd, libc::SYS_getpeername).ok().and_then(|name| address_of_peer(&name));
    let flag = |level, name| sys::option::<i32>(fd, level, name).is_ok_and(|value| value != 0);
    Some(Endpoint {
        v6,
        v6only: v6 && flag(libc::IPPROTO_IPV6, libc::IPV6_V6ONLY),
        address,
        port,
        peer,
        ifindex: sys::option::<i32>(fd, libc::SOL_SOCKET, SO_BINDTOIFINDEX).unwrap_or(0) as u32,
        reuseport: flag(libc::SOL_SOCKET, libc::SO_REUSEPORT),
    })
}

const SO_BINDTOIFINDEX: i32 = 62;

/// Address and port; None for "any". IPv4-mapped addresses become IPv4.
pub(crate) fn address(name: &libc::sockaddr_in6) -> Option<(Option<Ip>, u16)> {
    let port = u16::from_be(name.sin6_port);
    let ip = match i32::from(name.sin6_family) {
        libc::AF_INET => Ip::V4(name.sin6_flowinfo.to_ne_bytes()),
        libc::AF_INET6 => unmapped(name.sin6_addr.s6_addr),
        _ => return None,
    };
    let any = matches!(ip, Ip::V4([0, 0, 0, 0])) || ip == Ip::V6([0; 16]);
    Some(((!any).then_some(ip), port))
}

fn address_of_peer(name: &libc::sockaddr_in6) -> Option<(Ip, u16)> {
    let (ip, port) = address(name)?;
    ip.map(|ip| (ip, port))
}

fn unmapped(octets: [u8; 16]) -> Ip {
    match octets {
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d] => Ip::V4([a, b, c, d]),
        octets => Ip::V6(octets),
    }
}

/// After a successful `bind`.
pub(crate) fn bound(socket: &'static Socket, fd: i32, asked_port: u16) {
    socket.named_port.store(asked_port != 0, Relaxed);
    if asked_port != 0 && !waits_for_a_datagram(socket, fd) {
        register(socket, fd);
    }
}

/// With spinning, a socket is lifted after its first datagram, for that tells it its NAPI instance (see [`driver`]).
///
/// Not if it may share its port, for what is lifted of the port must know all sockets that could receive it; nor if other
/// threads could wait for it in the kernel meanwhile, which a lift would not wake.
fn waits_for_a_datagram(socket: &'static Socket, fd: i32) -> bool {
    let set = |option| sys::option::<i32>(fd, libc::SOL_SOCKET, option).is_ok_and(|on| on != 0);
    own_process()
        && page_for_young().is_some()
        && driver::spins()
        && wait::single_threaded()
        && socket.young_reads.load(Relaxed) == 0
        && !set(libc::SO_REUSEPORT)
        && !set(libc::SO_REUSEADDR)
}

/// Before a call that may wait in the kernel for a socket that [waits](waits_for_a_datagram): if there are other threads by now,
/// it waits no longer.
#[cold]
pub(crate) fn no_longer_alone(socket: &'static Socket, fd: i32) {
    let waits = socket.named_port.load(Relaxed) && socket.state() == State::Kernel;
    if waits && !wait::single_threaded() && socket.kernel_waits.load(SeqCst) == 0 {
        register(socket, fd);
    }
}

/// After `connect` (also to AF_UNSPEC), or an option that changes who may send.
pub(crate) fn changed(socket: &'static Socket, fd: i32) {
    let named = socket.named_port.load(Relaxed) && !waits_for_a_datagram(socket, fd);
    if named || socket.state() != State::Kernel {
        register(socket, fd);
    }
}

/// After a successful `connect`: a port that the kernel chose is shown as young from now on.
pub(crate) fn connected(socket: &'static Socket, fd: i32) {
    changed(socket, fd);
    if socket.state() == State::Kernel {
        count_young(socket);
    }
}

fn count_young(socket: &'static Socket) {
    if own_process()
        && let Some(page) = page_for_young()
        && !socket.young.swap(true, Relaxed)
    {
        page.young_sockets.fetch_add(1, Relaxed);
    }
}

/// After a datagram read from the kernel by a socket that is not registered.
#[cold]
pub(crate) fn read_while_young(socket: &'static Socket, fd: i32, bytes: usize) {
    count_young(socket);
    if let Some(page) = engine::page() {
        page.unregistered_packets.fetch_add(1, Relaxed);
        page.unregistered_bytes.fetch_add(bytes as u64, Relaxed);
    }
    let reads = socket.young_reads.fetch_add(1, Relaxed) + 1;
    let enough = if socket.named_port.load(Relaxed) { 1 } else { YOUNG.load(Relaxed) };
    if reads >= enough && socket.kernel_waits.load(SeqCst) == 0 {
        register(socket, fd);
    }
}

/// The stats page, asked for if need be: what is not lifted is counted too.
fn page_for_young() -> Option<&'static page::StatsPage> {
    if engine::page().is_none() {
        let mut client = CLIENT.lock()?;
        if !client.gone && client.channel < 0 {
            client.gone = client.connect().is_none();
        }
    }
    engine::page()
}

/// Asks for the socket to be lifted, or tells that it changed.
pub(crate) fn register(socket: &'static Socket, fd: i32) {
    if !own_process() || engine_held() {
        return;
    }
    let Some(endpoint) = endpoint(fd, socket.v6.load(Relaxed)) else { return };
    if endpoint.port == 0 {
        return;
    }
    let Some(mut client) = CLIENT.lock() else { return };
    if socket.young.swap(false, Relaxed)
        && let Some(page) = engine::page()
    {
        page.young_sockets.fetch_sub(1, Relaxed);
    }
    let timestamps = socket.wants.load(Relaxed) & want::TIME != 0;
    let request = Request::Register { cookie: socket.cookie.load(Relaxed), timestamps };
    let (slot, reason) = match client.ask(&request, Some(fd)) {
        Some(Reply::Registered { slot, reason }) => (Some(slot), reason),
        _ => (None, Reason::BrokerGone),
    };
    if let Some(stats) = slot.and_then(|slot| engine::page()?.sockets.get(slot as usize)) {
        socket.set_stats(stats);
    }
    let watched_from_outside = watched_by_shared_epoll(socket);
    let kept = Reason::try_from(socket.kept.load(Relaxed)).unwrap_or(Reason::Lifted);
    let kept = if watched_from_outside { Reason::Forked } else { kept };
    if reason == Reason::Lifted && kept == Reason::Lifted {
        begin_lift(socket, fd, endpoint);
    } else {
        if reason == Reason::Lifted {
            client.ask(&Request::Demote { cookie: socket.cookie.load(Relaxed), reason: kept }, None);
        }
        end_lift(socket, State::Passing);
    }
    drop(client);
    epoll::add_rings_for(socket);
}

fn watched_by_shared_epoll(socket: &'static Socket) -> bool {
    let Some(mut state) = ENGINE.lock() else { return false };
    socket.lock_held.watchers.with(&mut state).iter().any(|(epoll, _)| epoll.shared())
}

fn begin_lift(socket: &'static Socket, fd: i32, endpoint: Endpoint) {
    driver::learn(fd);
    let Some(mut state) = ENGINE.lock() else { return };
    let known = state.remove_socket(socket);
    if !known {
        if socket.is_empty() {
            socket.set_queue(capacity(socket.rcvbuf.load(Relaxed)));
        }
        LIFTED.fetch_add(1, Relaxed);
        socket.kernel_first.store(true, Relaxed);
        socket.kernel_older.store(true, Relaxed);
        let drops = kernel_drops(fd);
        let known = socket.kernel_drops.swap(drops, Relaxed);
        socket.drops.fetch_add(drops.wrapping_sub(known), Relaxed);
    }
    state.add_socket(socket, endpoint);
    socket.set_state(State::Lifted);
}

/// What the kernel has dropped of a socket before it was lifted (SK_MEMINFO_DROPS): SO_RXQ_OVFL tells of all drops.
fn kernel_drops(fd: i32) -> u32 {
    const SO_MEMINFO: i32 = 55;
    sys::option::<[u32; 9]>(fd, libc::SOL_SOCKET, SO_MEMINFO).map_or(0, |memory| memory[8])
}

/// Slots for what `rcvbuf` can hold of small datagrams; more than the frames of a large UMEM are never needed.
fn capacity(rcvbuf: u32) -> u32 {
    (rcvbuf / crate::socket::truesize(42) + 2).clamp(64, 1 << 16)
}

/// SO_RCVBUF changed.
pub(crate) fn rcvbuf_changed(socket: &'static Socket, fd: i32) {
    let rcvbuf = rcvbuf(fd);
    socket.rcvbuf.store(rcvbuf, Relaxed);
    let Some(_state) = ENGINE.lock() else { return };
    if socket.is_empty() {
        socket.set_queue(capacity(rcvbuf));
    }
}

fn end_lift(socket: &'static Socket, state: State) {
    let Some(mut engine) = ENGINE.lock() else { return };
    if engine.remove_socket(socket) {
        LIFTED.fetch_sub(1, Relaxed);
    }
    socket.set_state(state);
}

/// Keeps the kernel serving this socket from now on, and says why.
pub(crate) fn demote(socket: &'static Socket, reason: Reason, option: u32) {
    socket.kept.store(reason as u32, Relaxed);
    socket.kept_option.store(option, Relaxed);
    if let Some(stats) = socket.stats() {
        stats.reason.store(reason as u32, Relaxed);
        stats.option.store(option, Relaxed);
    }
    if socket.state() != State::Lifted || !own_process() || engine_held() {
        return;
    }
    end_lift(socket, State::Passing);
    give_to_kernel(&[socket], socket.cookie.load(Relaxed), reason);
}

/// What is queued and what still arrives rides to the kernel, in order: the sockets are no longer known to the pump.
///
/// Almost everything rides before new datagrams may pass, what `steer` lifts until then right after, and what a processor was
/// just redirecting after a grace period. Only datagrams of that last moment can be overtaken.
fn give_to_kernel(sockets: &[&'static Socket], cookie: u64, reason: Reason) {
    let ride = || {
        let Some(mut state) = ENGINE.lock() else { return };
        sockets.iter().for_each(|socket| state.ride_queue(socket));
        state.drain_all();
    };
    let ask = |request| CLIENT.lock().map(|mut client| client.ask(&request, None));
    ride();
    ask(Request::Demote { cookie, reason });
    ride();
    ask(Request::Settle);
    ride();
}

/// Everything goes back to the kernel, for another process is about to share the sockets.
pub(crate) fn demote_all(reason: Reason) {
    if LIFTED.load(Relaxed) == 0 || !own_process() || engine_held() {
        return;
    }
    let mut lifted: Vec<&'static Socket> = SOCKETS.iter(highest()).map(|(_, socket)| socket).collect();
    lifted.retain(|socket| socket.state() == State::Lifted);
    for socket in &lifted {
        socket.kept.store(reason as u32, Relaxed);
        if let Some(stats) = socket.stats() {
            stats.reason.store(reason as u32, Relaxed);
        }
        end_lift(socket, State::Passing);
    }
    give_to_kernel(&lifted, 0, reason);
}

/// Before a child that starts another program without the fork handlers: sockets that stay open in it go to the kernel.
pub(crate) extern "C" fn before_spawn() {
    if !own_process() {
        return;
    }
    tcp::before_start_of_program();
    if LIFTED.load(Relaxed) == 0 {
        return;
    }
    let stay_open = |fd| sys::descriptor_flags(fd).is_ok_and(|flags| flags & libc::FD_CLOEXEC == 0);
    for (fd, socket) in SOCKETS.iter(highest()) {
        if socket.state() == State::Lifted && stay_open(fd) {
            demote(socket, Reason::Forked, 0);
        }
    }
}

fn engine_held() -> bool {
    ENGINE.held_by_me()
}

/// Multicast membership changed.
pub(crate) fn group(socket: &'static Socket, join: bool, group: std::net::IpAddr, ifindex: u32) {
    if !own_process() || engine_held() {
        return;
    }
    let Some(mut client) = CLIENT.lock() else { return };
    let cookie = socket.cookie.load(Relaxed);
    client.ask(&Request::Group { cookie, join, group, ifindex }, None);
}

/// `--admit flow`: the kernel delivered this flow.
pub(crate) fn admit(socket: &'static Socket, from: std::net::SocketAddr, to: std::net::SocketAddr) {
    if !own_process() || engine_held() {
        return;
    }
    let Some(client) = CLIENT.lock() else { return };
    if client.channel >= 0 && !client.gone {
        let request = Request::Admit { cookie: socket.cookie.load(Relaxed), from, to };
        let _ = hoist_sys::send_with_fds(borrow(client.channel), request.encode().as_ref(), &[]);
    }
}

/// One descriptor of the socket less. The last one ends it: what is queued is dropped, as the kernel does.
pub(crate) fn forget_descriptor(socket: &'static Socket) {
    if socket.descriptors.fetch_sub(1, Relaxed) != 1 {
        return;
    }
    let registered = socket.state() != State::Kernel;
    end_lift(socket, State::Closed);
    if registered && own_process() && !engine_held() {
        if let Some(mut client) = CLIENT.lock() {
            client.ask(&Request::Unregister { cookie: socket.cookie.load(Relaxed) }, None);
        }
        empty(socket);
    }
    epoll::forget_socket(socket);
    socket.ring_bells();
    if let Some(mut client) = CLIENT.lock() {
        client.closed.push_back(socket);
    }
}

fn empty(socket: &'static Socket) {
    let Some(memory) = engine::memory() else { return };
    while let Some((frame, _)) = socket.pop() {
        engine::give_back(memory, frame);
    }
    socket.peeked.store(peeked::NOTHING, Relaxed);
}

/// `new` now means what `old` means.
pub(crate) fn duplicated(old: i32, new: i32) {
    if let Some(socket) = SOCKETS.of(old) {
        socket.descriptors.fetch_add(1, Relaxed);
        note_descriptor(new);
        if let Some(stale) = SOCKETS.set(new, Some(socket)) {
            driver::forget(new);
            forget_descriptor(stale);
        }
    }
    if let Some(stream) = STREAMS.of(old) {
        stream.descriptors.fetch_add(1, Relaxed);
        note_descriptor(new);
        if let Some(stale) = STREAMS.set(new, Some(stream)) {
            forget_stream(stale, -1); // as above
        }
    }
    if let Some(epoll) = EPOLLS.of(old) {
        epoll.duplicate();
        note_descriptor(new);
        EPOLLS.set(new, Some(epoll));
    }
}

/// `fd` is about to be closed.
pub(crate) fn closing(fd: i32) {
    if let Some(socket) = SOCKETS.of(fd)
        && own_process()
    {
        SOCKETS.set(fd, None);
        driver::forget(fd);
        forget_descriptor(socket);
    }
    if let Some(stream) = STREAMS.of(fd)
        && own_process()
    {
        STREAMS.set(fd, None);
        forget_stream(stream, fd);
    }
    if let Some(epoll) = EPOLLS.of(fd)
        && own_process()
    {
        EPOLLS.set(fd, None);
        epoll.forget_descriptor();
    }
}

fn borrow(fd: i32) -> BorrowedFd<'static> {
    // SAFETY: hidden descriptors are closed by the shim alone, never while the client lock is held by another.
    unsafe { BorrowedFd::borrow_raw(fd) }
}

impl Client {
    const fn new() -> Self {
        Self {
            channel: -1,
            gone: false,
            crippled: false,
            slots: None,
            hub: None,
            devices: Vec::new(),
            closed: std::collections::VecDeque::new(),
            closed_streams: std::collections::VecDeque::new(),
            closed_epolls: std::collections::VecDeque::new(),
        }
    }

    /// One request and its replies. None once the broker is gone.
    fn ask(&mut self, request: &Request, fd: Option<i32>) -> Option<Reply> {
        if self.gone {
            return None;
        }
        let reply = self.try_ask(request, fd);
        if reply.is_none() {
            self.gone = true;
            if self.channel >= 0 {
                discard(self.channel); // the broker lifts nothing for who does not listen
                self.channel = -1;
            }
        }
        reply
    }

    fn try_ask(&mut self, request: &Request, fd: Option<i32>) -> Option<Reply> {
        if self.channel < 0 {
            self.connect()?;
        }
        let fd = fd.map(borrow);
        hoist_sys::send_with_fds(borrow(self.channel), request.encode().as_ref(), fd.as_slice()).ok()?;
        loop {
            let (reply, fd) = self.receive()?;
            let taken = match reply {
                Reply::Hub { seat } => self.take_hub(seat, fd),
                Reply::Umem { frames, chunk } => self.take_umem(frames, chunk, fd),
                Reply::Device { ifindex, partial_checksum } => {
                    self.take_device(ifindex, partial_checksum, fd)
                }
                Reply::Ring(info) => self.take_ring(info, fd),
                Reply::Connections { ports } => self.take_connections(ports, fd),
                Reply::Registered { slot, reason: Reason::Lifted } if self.crippled => {
                    return self.decline(request, slot);
                }
                last => return Some(last),
            };
            self.crippled |= taken.is_none();
        }
    }

    /// The slots come first, then the ports.
    fn take_connections(&mut self, ports: bool, fd: Option<OwnedFd>) -> Option<()> {
        let fd = hide_owned(fd)?;
        if !ports {
            self.slots = Some(Slots::map(borrow(fd)).ok()?);
        } else {
            tcp::set_tables(self.slots?, PortCounts::map(borrow(fd)).ok()?);
        }
        discard(fd);
        Some(())
    }

    /// The broker lifts a socket whose rings this process could not take (out of descriptors): it must not.
    #[cold]
    fn decline(&mut self, request: &Request, slot: u32) -> Option<Reply> {
        let Request::Register { cookie, .. } = *request else { return None };
        let reason = Reason::RingSetup;
        let demote = Request::Demote { cookie, reason }.encode();
        hoist_sys::send_with_fds(borrow(self.channel), demote.as_ref(), &[]).ok()?;
        self.receive()?;
        Some(Reply::Registered { slot, reason })
    }

    fn receive(&self) -> Option<(Reply, Option<OwnedFd>)> {
        let mut bytes = [0; MAX_MESSAGE];
        let (len, mut fds) = hoist_sys::recv_with_fds(borrow(self.channel), &mut bytes, 0).ok()?;
        Some((Reply::decode(&bytes[..len]).ok()?, fds[0].take()))
    }

    /// Introduces this process to the broker.
    fn connect(&mut self) -> Option<()> {
        let inherited = INHERITED.load(Acquire);
        if inherited < 0 || socket_inode(inherited) != Some(INHERITED_INODE.load(Relaxed)) {
            return None;
        }
        let [ours, theirs] = sys::socketpair_seqpacket().ok()?;
        let hello = Request::Hello { version: VERSION }.encode();
        let sent = hoist_sys::send_with_fds(borrow(inherited), hello.as_ref(), &[borrow(theirs)]);
        sys::close(theirs);
        self.channel = hide(ours)?;
        sent.ok()?;
        let (Reply::Welcome { version: VERSION, spin_us, young, admit_flow, udp, tcp: policy }, Some(fd)) =
            self.receive()?
        else {
            return None;
        };
        let page = page::Mapped::<page::StatsPage>::new(borrow(fd.as_raw_fd())).ok()?;
        sys::close(fd.into_raw_fd());
        engine::PAGE.store(core::ptr::from_ref(page.leak()).cast_mut(), Release);
        SPIN_US.store(spin_us, Relaxed);
        driver::open(spin_us);
        YOUNG.store(young, Relaxed);
        ADMIT_FLOW.store(admit_flow, Relaxed);
        tcp::set_policy(policy);
        UDP.store(udp, Relaxed);
        ACTIVE.store(udp || tcp::active(), Release);
        Some(())
    }

    fn take_hub(&mut self, seat: u32, fd: Option<OwnedFd>) -> Option<()> {
        let seat = u8::try_from(seat).ok().filter(|seat| usize::from(*seat) < SEATS)?;
        let fd = fd?.into_raw_fd();
        let hub = page::Mapped::<Hub>::new(borrow(fd));
        sys::close(fd);
        self.hub = Some((hub.ok()?.leak(), seat));
        Some(())
    }

    fn take_umem(&self, frames: u32, chunk: u32, fd: Option<OwnedFd>) -> Option<()> {
        let chunk = match chunk {
            2048 => ChunkSize::K2,
            4096 => ChunkSize::K4,
            _ => return None,
        };
        let hidden = hide_owned(fd)?;
        // SAFETY: hide returned a descriptor that nothing else owns; the Umem lives forever.
        let fd = unsafe { <OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(hidden) };
        let umem = Umem::map(fd, frames, chunk).ok()?;
        let (hub, seat) = self.hub?;
        ENGINE.lock()?.set_memory(umem, hub, seat).then_some(())
    }

    fn take_device(&mut self, ifindex: u32, partial: bool, fd: Option<OwnedFd>) -> Option<()> {
        let trust = if partial { ChecksumTrust::PartialAllowed } else { ChecksumTrust::Verify };
        self.devices.push(Device { ifindex, tap: hide_owned(fd)?, trust });
        Some(())
    }

    fn take_ring(&self, info: hoist_ipc::RingInfo, fd: Option<OwnedFd>) -> Option<()> {
        let fd = hide_owned(fd)?;
        let device = self.devices.iter().rev().find(|device| device.ifindex == info.ifindex)?;
        let rx = RxRing::map(borrow(fd), info.rx_size).ok()?;
        let fill = FillRing::map(borrow(fd), info.fill_size).ok()?;
        let mut state = ENGINE.lock()?;
        if !state.ring_room() {
            return None;
        }
        state.add_ring(NewRing { info, rx, fill, fd, tap: device.tap, trust: device.trust });
        driver::ring_added(fd);
        tcp::ring_added(info.zero_copy);
        Some(())
    }
}

/// Before fork: everything that a child could read goes through the kernel, and no lock is held by another thread.
pub(crate) extern "C" fn before_fork() {
    if !active() {
        return;
    }
    demote_all(Reason::Forked);
    tcp::before_fork();
    epoll::share_all();
    TAKEN_FOR_FORK.store(0, Relaxed);
    if let Some(client) = CLIENT.lock() {
        core::mem::forget(client);
        TAKEN_FOR_FORK.fetch_or(1, Relaxed);
    }
    if let Some(engine) = ENGINE.lock() {
        chunk::before_fork();
        core::mem::forget(engine);
        TAKEN_FOR_FORK.fetch_or(2, Relaxed);
    }
}

/// Which locks `before_fork` took: a fork in a signal handler that interrupted the holder took none.
static TAKEN_FOR_FORK: AtomicU32 = AtomicU32::new(0);

fn release_after_fork(child: bool) {
    let taken = TAKEN_FOR_FORK.swap(0, Relaxed);
    if taken & 2 != 0 {
        chunk::after_fork(child);
        ENGINE.release_forgotten();
    }
    if taken & 1 != 0 {
        CLIENT.release_forgotten();
    }
}

pub(crate) extern "C" fn after_fork_in_parent() {
    if active() {
        release_after_fork(false);
        tcp::after_fork_in_parent();
    }
}

/// The child starts anew: what it inherited goes through the kernel; sockets it makes may be lifted.
pub(crate) extern "C" fn after_fork_in_child() {
    if !active() {
        return;
    }
    release_after_fork(true);
    PID.store(sys::getpid(), Relaxed);
    engine::own();
    for (fd, _) in SOCKETS.iter(highest()) {
        SOCKETS.set(fd, None);
    }
    for (fd, _) in EPOLLS.iter(highest()) {
        EPOLLS.set(fd, None);
    }
    tcp::after_fork_in_child();
    LIFTED.store(0, Relaxed);
    let (Some(mut engine), Some(mut client)) = (ENGINE.lock(), CLIENT.lock()) else { return };
    engine.descriptors().for_each(discard);
    engine.forget_rings();
    engine.forget_ports();
    engine::forget_memory();
    driver::forget_all();
    if client.channel >= 0 {
        discard(client.channel);
    }
    *client = Client::new();
    crate::bells::forget();
    engine::PAGE.store(core::ptr::null_mut(), Release);
}

/// Before exec: the new image knows nothing of the rings.
pub(crate) extern "C" fn before_exec() {
    if active() && own_process() {
        demote_all(Reason::Exec);
        tcp::before_start_of_program();
        at_exit(); // if exec succeeds, this image runs no destructors
    }
}

/// Before `_exit`: no destructors run, but read data must be drained all the same.
pub(crate) fn before_exit() {
    if active() && own_process() {
        tcp::at_exit();
    }
}

/// At exit: the account of frames.
pub(crate) fn at_exit() {
    if active() && own_process() {
        tcp::at_exit();
        let Some(mut state) = ENGINE.lock() else { return };
        state.account(SOCKETS.iter(highest()).map(|(_, socket)| socket));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_names_become_addresses() {
        let mut name = libc::sockaddr_in6 {
            sin6_family: libc::AF_INET as u16,
            sin6_port: 53u16.to_be(),
            sin6_flowinfo: u32::from_ne_bytes([10, 0, 0, 2]),
            sin6_addr: libc::in6_addr { s6_addr: [0; 16] },
            sin6_scope_id: 0,
        };
        assert_eq!(address(&name), Some((Some(Ip::V4([10, 0, 0, 2])), 53)));
        name.sin6_flowinfo = 0;
        assert_eq!(address(&name), Some((None, 53)));
        name.sin6_family = libc::AF_INET6 as u16;
        assert_eq!(address(&name), Some((None, 53)));
        name.sin6_addr.s6_addr = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, 2];
        assert_eq!(address(&name), Some((Some(Ip::V4([10, 0, 0, 2])), 53)));
        name.sin6_family = libc::AF_UNIX as u16;
        assert_eq!(address(&name), None);
    }

    #[test]
    fn a_queue_has_room_for_what_the_buffer_may_hold() {
        assert!(capacity(212_992) >= 277);
        assert_eq!(capacity(0), 64);
        assert_eq!(capacity(u32::MAX), 1 << 16);
    }
}
