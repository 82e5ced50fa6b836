//! TCP: payload in frames, headers up Linux's own stack.
//!
//! The descriptor stays an ordinary kernel socket. A connection becomes *involved* when lifting begins: reads then go through
//! the index ([`read`]) until nothing is held any more. Lifting begins inside a read, so whoever never reads through the shim
//! is never lifted; it ends when nobody reads ([`ticker`]), for good when something comes up that only the kernel can do.
//!
//! | file | owns |
//! |---|---|
//! | `stream`, `cell` | a connection, its lock and positions, which a forked child shares |
//! | `ride` | segments to their streams, and up the stack: what `hoist_stream::Worker` decides |
//! | `read`, `chunk`, `wait` | the program's side |
//! | `flows` | from a segment to its connection |
//! | `ticker` | acknowledgements while nobody reads |

mod cell;
mod flows;
mod payload;
mod read;
mod ride;
mod stream;
mod ticker;
mod wait;

pub(crate) use flows::Flows;
#[cfg_attr(test, allow(unused_imports))] // the hooks are not in the test program
pub(crate) use read::{readv, recv_chunk, recvfrom, recvmsg, splice};
pub(crate) use ride::{Delivered, From, deliver, flush};
pub(crate) use stream::{Guard, Stream};
pub(crate) use ticker::Asleep;

use crate::{
    control,
    engine::{self, ENGINE},
    lock::PumpLock,
    sys,
    table::STREAMS,
};
use core::sync::atomic::{
    AtomicBool, AtomicPtr, AtomicU32, AtomicU64,
    Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst},
};
use hoist_ipc::{
    Reason,
    tcp::{Policy, PortCounts, Slot, Slots, Steering},
};
use hoist_packet::{Ip, SocketAddrRaw, flow::FlowKey};
use hoist_sys::Errno;
use libc::{c_int, ssize_t};

/// `--tcp`.
static POLICY: AtomicU32 = AtomicU32::new(Policy::Off as u32);
/// Connections that `steer` lifts.
pub(crate) static LIFTING: AtomicU32 = AtomicU32::new(0);
/// Involved connections.
pub(crate) static INVOLVED: AtomicU32 = AtomicU32::new(0);
/// Counts reads, so that the ticker sees whether there are any.
pub(crate) static PUMPED: AtomicU64 = AtomicU64::new(0);
/// Some device writes into the UMEM itself.
static ZERO_COPY: AtomicBool = AtomicBool::new(false);
static TABLES: AtomicPtr<Tables> = AtomicPtr::new(core::ptr::null_mut());

/// A connection must have received so much before `--tcp auto` thinks of lifting it, bytes.
const SMALL: u64 = 256 << 10;

struct Tables {
    slots: Slots,
    ports: PortCounts,
}

fn tables() -> Option<&'static Tables> {
    // SAFETY: only `set_tables` stores here, a leaked allocation.
    unsafe { TABLES.load(Acquire).as_ref() }
}

/// The broker has sent the maps.
pub(crate) fn set_tables(slots: Slots, ports: PortCounts) {
    TABLES.store(Box::into_raw(Box::new(Tables { slots, ports })), Release);
}

pub(crate) fn set_policy(policy: Policy) {
    POLICY.store(policy as u32, Relaxed);
}

fn policy() -> Policy {
    Policy::try_from(POLICY.load(Relaxed)).unwrap_or(Policy::Off)
}

/// A ring has come that belongs to a device with or without zero-copy.
pub(crate) fn ring_added(zero_copy: bool) {
    ZERO_COPY.fetch_or(zero_copy, Relaxed);
}

/// Whether TCP sockets are followed at all.
#[inline]
pub(crate) fn active() -> bool {
    POLICY.load(Relaxed) != Policy::Off as u32
}

/// Whether any connection needs the shim's help when the program waits.
#[inline]
pub(crate) fn involved() -> bool {
    INVOLVED.load(Relaxed) > 0
}

/// The stream behind `fd` if its reads go through the index; begins to lift it if that is due.
#[inline(always)]
pub(crate) fn reading(fd: c_int) -> Option<&'static Stream> {
    let stream = STREAMS.of(fd)?;
    if !stream.lifting.load(Relaxed) && due(stream) {
        begin(stream, fd);
    }
    stream.involved().then_some(stream)
}

/// Whether a read of it should begin lifting.
#[inline]
fn due(stream: &Stream) -> bool {
    let wanted = match policy() {
        Policy::Off => false,
        Policy::Lift => true,
        Policy::Auto => stream.seen() >= SMALL || stream.native.load(Relaxed),
    };
    wanted && stream.kept().is_none() && control::own_process()
}

/// A read that goes straight to the kernel; None: the stream has become involved, and nothing was read.
///
/// # Errors
/// EINTR while it spins.
pub(crate) fn plain_read(
    stream: &'static Stream,
    fd: c_int,
    flags: c_int,
    read: impl FnOnce() -> ssize_t,
) -> Result<Option<ssize_t>, Errno> {
    if crate::driver::spins() && flags & libc::MSG_DONTWAIT == 0 {
        wait::before_plain_read(stream, fd)?;
    }
    let took = |received: &ssize_t| {
        let counts = *received > 0 && flags & (libc::MSG_PEEK | libc::MSG_OOB | libc::MSG_ERRQUEUE) == 0;
        if counts { *received as u64 } else { 0 }
    };
    let Some(received) = stream.plainly(read, took) else { return Ok(None) };
    read::count_passed(stream, took(&received) as usize);
    Ok(Some(received))
}

/// What `--tcp auto` says of it: None: lift.
fn verdict() -> Option<Reason> {
    match policy() {
        Policy::Off => Some(Reason::Off),
        Policy::Auto if !ZERO_COPY.load(Relaxed) => Some(Reason::NotWorth),
        Policy::Auto | Policy::Lift => None,
    }
}

/// Begins to lift `stream`, or keeps it with the kernel for a reason that is shown.
#[cold]
fn begin(stream: &'static Stream, fd: c_int) {
    if ENGINE.held_by_me() {
        return;
    }
    match prepare(stream, fd) {
        Ok(()) => {}
        Err(Refusal::Later) => {}
        Err(Refusal::Never(reason)) => stream.keep(reason, 0),
    }
}

/// Why lifting did not begin.
enum Refusal {
    /// It may at another read.
    Later,
    /// It never will.
    Never(Reason),
}

fn prepare(stream: &'static Stream, fd: c_int) -> Result<(), Refusal> {
    if fd == libc::STDIN_FILENO {
        return Err(Refusal::Never(Reason::Stdio));
    }
    let slot = published(stream, fd)?;
    if stream.involved() {
        ticker::need();
        return lift(stream, slot);
    }
    known_place(slot, stream, fd)?;
    if let Some(reason) = verdict() {
        return Err(Refusal::Never(reason));
    }
    let standing = Standing::of(fd).ok_or(Refusal::Later)?;
    if !standing.receives {
        return Err(Refusal::Later); // nothing more will come, or not yet
    }
    if standing.longest > engine::LONGEST_SEGMENT {
        return Err(Refusal::Never(Reason::Jumbo));
    }
    ticker::need();
    if !ticker::runs() {
        return Err(Refusal::Never(Reason::RingSetup));
    }
    if crate::driver::spins() && !stream.watched.swap(true, Relaxed) {
        crate::driver::watch_stream(fd); // it knows its NAPI instance until its headers come through the TAP
    }
    let mut state = ENGINE.lock().ok_or(Refusal::Later)?;
    if !stream.with_cell() {
        return Err(Refusal::Never(Reason::Memory));
    }
    let mut guard = stream.lock().ok_or(Refusal::Later)?;
    if !stream.involved() {
        // every byte that was read was seen: else somebody reads past the shim, and would read ghosts
        if standing.read != stream.seen() {
            return Err(if stream.seen() > standing.read {
                Refusal::Later
            } else {
                Refusal::Never(Reason::ReadAround)
            });
        }
        if !stream.involve(&mut guard) {
            return Err(Refusal::Later);
        }
        INVOLVED.fetch_add(1, Relaxed);
        let key = key_of(slot);
        guard.work().worker.begin(slot.base.load(Relaxed), key, standing.accepted);
        state.streams.insert(key, stream);
    }
    drop(guard);
    drop(state);
    lift(stream, slot)
}

fn lift(stream: &Stream, slot: &Slot) -> Result<(), Refusal> {
    if steer(stream, Steering::Lift) {
        slot.pid.store(control::pid() as u32, Relaxed);
        slot.reason.store(Reason::Lifted as u32, Relaxed);
        slot.lifts.fetch_add(1, Relaxed);
    }
    Ok(())
}

/// The slot in which the connection is published.
fn published(stream: &Stream, fd: c_int) -> Result<&'static Slot, Refusal> {
    if let Some(slot) = stream.slot() {
        return stream.own_slot().map(|_| slot).ok_or(Refusal::Never(Reason::Unpublished));
    }
    if Standing::of(fd).is_none_or(|standing| !standing.receives) {
        return Err(Refusal::Later); // not connected yet, or not any more
    }
    if stream.cookie.load(Relaxed) == 0 {
        let kind = sys::option::<c_int>(fd, libc::SOL_SOCKET, libc::SO_PROTOCOL).unwrap_or(0);
        if kind != libc::IPPROTO_TCP {
            return Err(Refusal::Never(Reason::Refused)); // accepted from a Unix socket, or MPTCP
        }
        let cookie = sys::option::<u64>(fd, libc::SOL_SOCKET, libc::SO_COOKIE).unwrap_or(0);
        stream.cookie.store(cookie, Relaxed);
    }
    let cookie = stream.cookie.load(Relaxed);
    let tables = match tables() {
        Some(tables) => tables,
        None => {
            let reason = control::ask_for_streams(fd, cookie);
            match tables() {
                Some(tables) => tables,
                None if reason == Reason::Lifted => return Err(Refusal::Never(Reason::NoConnections)),
                None => return Err(Refusal::Never(reason)),
            }
        }
    };
    let slot = tables.slots.of(cookie).ok_or(Refusal::Never(Reason::Unpublished))?;
    match Reason::try_from(slot.reason.load(Relaxed)) {
        Ok(Reason::NotSelected) => return Err(Refusal::Never(Reason::NotSelected)),
        _ => stream.set_slot(slot),
    }
    slot.pid.store(control::pid() as u32, Relaxed);
    Ok(slot)
}

/// A local address for which the broker has been asked.
struct Place {
    local: [u8; 16],
    /// Its answer.
    reason: Reason,
    /// Until when a refusal holds, CLOCK_MONOTONIC ns.
    until: u64,
}

static PLACES: PumpLock<Vec<Place>> = PumpLock::new(Vec::new());

/// For so long a refusal is not asked about again, ns.
const REFUSED_NS: u64 = 1_000_000_000;

/// Makes sure that there are rings where the connection's packets arrive.
fn known_place(slot: &Slot, stream: &Stream, fd: c_int) -> Result<(), Refusal> {
    let local = Slot::address(&slot.local);
    let now = sys::clock_ns(libc::CLOCK_MONOTONIC);
    let holds =
        |place: &&Place| place.local == local && (place.reason == Reason::Lifted || now < place.until);
    let known = PLACES.lock().and_then(|places| places.iter().find(holds).map(|place| place.reason));
    let reason = known.unwrap_or_else(|| {
        let reason = control::ask_for_streams(fd, stream.cookie.load(Relaxed));
        if let Some(mut places) = PLACES.lock() {
            places.retain(|place| place.local != local);
            places.push(Place { local, reason, until: now + REFUSED_NS });
        }
        reason
    });
    if reason == Reason::Lifted { Ok(()) } else { Err(Refusal::Never(reason)) }
}

/// Rings are gone or new: the broker is asked again.
pub(crate) fn forget_places() {
    if let Some(mut places) = PLACES.lock() {
        places.clear();
    }
}

/// What the kernel says of a connection (`tcp_get_info`).
struct Standing {
    /// Data may still come.
    receives: bool,
    /// Position of rcv_nxt.
    accepted: u64,
    /// Position of copied_seq.
    read: u64,
    /// Payload bytes of its longest segments.
    longest: u32,
}

/// `struct tcp_info`, as far as it is read here.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct TcpInfo {
    state: u8,
    others: [u8; 7],
    words: [u32; 24],
    quads: [u64; 4],
}

/// `tcpi_advmss`.
const ADVMSS: usize = 19;
/// `tcpi_bytes_received`.
const BYTES_RECEIVED: usize = 3;

impl Standing {
    fn of(fd: c_int) -> Option<Self> {
        for _ in 0..16 {
            let info = sys::option::<TcpInfo>(fd, libc::IPPROTO_TCP, libc::TCP_INFO).ok()?;
            let queued = sys::queued(fd).ok()?;
            let again = sys::option::<TcpInfo>(fd, libc::IPPROTO_TCP, libc::TCP_INFO).ok()?;
            let accepted = info.quads[BYTES_RECEIVED];
            if again.quads[BYTES_RECEIVED] == accepted && queued <= accepted {
                // ESTABLISHED, FIN_WAIT1, FIN_WAIT2
                let receives = matches!(again.state, 1 | 4 | 5);
                return Some(Self {
                    receives,
                    accepted,
                    read: accepted - queued,
                    longest: again.words[ADVMSS],
                });
            }
        }
        None
    }
}

fn key_of(slot: &Slot) -> FlowKey {
    let (local_port, remote_port) = slot.ports();
    FlowKey {
        source: SocketAddrRaw { ip: ip(Slot::address(&slot.remote)), port: remote_port },
        destination: SocketAddrRaw { ip: ip(Slot::address(&slot.local)), port: local_port },
    }
}

fn ip(octets: [u8; 16]) -> Ip {
    match octets {
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d] => Ip::V4([a, b, c, d]),
        octets => Ip::V6(octets),
    }
}

/// Tells `steer`; false if it was so already, or the connection is gone.
fn steer(stream: &Stream, to: Steering) -> bool {
    let lift = to == Steering::Lift;
    let (Some(slot), Some(tables)) = (stream.slot(), tables()) else { return false };
    if stream.lifting.swap(lift, SeqCst) == lift {
        return false;
    }
    let count = tables.ports.of(slot.ports().0);
    if lift {
        slot.seat.store(engine::memory().map_or(0, |memory| memory.seat.into()), Relaxed);
        LIFTING.fetch_add(1, SeqCst);
        count.fetch_add(1, AcqRel);
        return slot.steer(stream.cookie.load(Relaxed), to);
    }
    let done = slot.steer(stream.cookie.load(Relaxed), to);
    count.fetch_sub(1, AcqRel);
    LIFTING.fetch_sub(1, SeqCst);
    done
}

/// Stops lifting `stream` for the time being.
fn park(stream: &Stream, reason: Reason) {
    if steer(stream, Steering::Pass) {
        stream.show(reason, 0);
    }
}

/// Nobody reads: everything rides, and connections pass until somebody does.
pub(crate) fn park_all() {
    for_each_lifted(|stream| park(stream, Reason::Parked));
    sweep();
    settle();
}

fn for_each_lifted(f: impl Fn(&'static Stream)) {
    let Some(state) = ENGINE.lock() else { return };
    let lifted: Vec<_> = state.streams.iter().filter(|stream| stream.lifting.load(Relaxed)).collect();
    drop(state);
    lifted.into_iter().for_each(f);
}

/// Everything that is in the rings goes where it belongs, and rides.
pub(crate) fn sweep() {
    if let Some(mut state) = ENGINE.lock() {
        state.drain_all();
    }
}

/// Discards the ghosts of all that has been read: from here on the kernel's word on readiness is right.
pub(crate) fn settle() {
    let Some(state) = ENGINE.lock() else { return };
    let involved: Vec<_> = state.streams.iter().filter(|stream| stream.involved()).collect();
    drop(state);
    for stream in involved {
        settle_one(stream);
    }
}

fn settle_one(stream: &'static Stream) {
    if let Some(mut guard) = stream.lock() {
        read::drain(&mut guard, stream.fd.load(Relaxed));
        guard.retire();
    }
}

/// Before the program waits in poll, select or epoll: what has come rides, what was read is drained.
#[inline]
pub(crate) fn before_wait() {
    if involved() {
        PUMPED.store(PUMPED.load(Relaxed).wrapping_add(1), Relaxed);
        settle();
    }
}

/// Before the program asks the kernel about the stream (FIONREAD, TCP_INFO, shutdown…).
pub(crate) fn before_asking(fd: c_int) {
    if let Some(stream) = STREAMS.of(fd)
        && stream.involved()
    {
        sweep();
        settle_one(stream);
    }
}

/// Keeps the stream with the kernel from now on. True if nothing of it is held: the kernel has every byte that was not read.
pub(crate) fn demote(stream: &'static Stream, reason: Reason, option: u32) -> bool {
    if !stream.involved() {
        stream.keep(reason, option);
        return !stream.involved();
    }
    steer(stream, Steering::Pass);
    stream.keep(reason, option);
    stream.show(reason, option);
    sweep();
    settle_one(stream);
    !stream.involved()
}

/// [`demote`] by descriptor; true for what is not followed.
pub(crate) fn demote_fd(fd: c_int, reason: Reason, option: u32) -> bool {
    STREAMS.of(fd).is_none_or(|stream| demote(stream, reason, option))
}

/// The peer has sent urgent data.
pub(crate) fn urgent(stream: &'static Stream) {
    steer(stream, Steering::Pass);
    stream.keep(Reason::Urgent, 0);
    stream.show(Reason::Urgent, 0);
}

/// The last descriptor is about to be closed.
pub(crate) fn close(stream: &'static Stream, fd: c_int) {
    if stream.involved() {
        steer(stream, Steering::Pass);
        sweep();
    }
    forget(stream, fd);
}

/// What is known of the connection ends with it; read data is drained, so that the peer sees a FIN, not a reset.
fn forget(stream: &'static Stream, fd: c_int) {
    if let Some(mut state) = ENGINE.lock()
        && let Some(mut guard) = stream.lock()
    {
        if stream.involved() {
            read::drain(&mut guard, fd);
        }
        if let Some(key) = guard.work().worker.key() {
            state.streams.remove(&key, stream);
        }
        let shared = core::mem::take(&mut guard.work().shared);
        guard.empty(engine::memory());
        drop(guard);
        if shared {
            stream.leave_cell();
        }
    }
}

/// Before connect on a socket that may have been connected before.
pub(crate) fn reconnecting(fd: c_int) {
    if let Some(stream) = STREAMS.of(fd) {
        close(stream, fd);
        stream.reset();
    }
}

// ---- fork, exec, exit ----

/// Streams whose locks the forking thread holds until it has forked.
static FORKING: PumpLock<Vec<Guard>> = PumpLock::new(Vec::new());

/// Before fork: nothing is lifted any more, and what is held is in memory that parent and child have both.
pub(crate) fn before_fork() {
    if !active() {
        return;
    }
    for (_, stream) in STREAMS.iter(control::highest()) {
        stream.keep(Reason::Forked, 0);
        steer(stream, Steering::Pass);
    }
    if !involved() {
        return;
    }
    sweep();
    let Some(mut held) = FORKING.lock() else { return };
    for (fd, stream) in STREAMS.iter(control::highest()) {
        if !stream.involved() {
            continue;
        }
        let Some(mut guard) = stream.lock() else { continue };
        read::drain(&mut guard, fd);
        guard.retire();
        if let Some(memory) = engine::memory() {
            guard.work().worker.index.iter_mut().for_each(|entry| entry.data.copy_out(memory));
        }
        guard.work().shared = true;
        held.push(guard);
    }
}

pub(crate) fn after_fork_in_parent() {
    if let Some(mut held) = FORKING.lock() {
        held.clear();
    }
}

/// The child reads on from what it has been left; it lifts nothing that it inherited.
pub(crate) fn after_fork_in_child() {
    FORKING.release_forgotten();
    if let Some(mut held) = FORKING.lock() {
        held.drain(..).for_each(core::mem::forget); // the parent's to release
    }
    cell::forget();
    ticker::forget();
    LIFTING.store(0, Relaxed);
    let mut left = 0;
    for (fd, stream) in STREAMS.iter(control::highest()) {
        stream.lifting.store(false, Relaxed);
        if stream.involved() {
            left += 1;
        } else {
            STREAMS.set(fd, None);
        }
    }
    INVOLVED.store(left, Relaxed);
    TABLES.store(core::ptr::null_mut(), Release);
    forget_places();
}

/// Before a program is started that may inherit sockets: it would read ghosts, so sockets with held data are not inherited.
pub(crate) fn before_start_of_program() {
    if !involved() {
        return;
    }
    for_each_lifted(|stream| {
        let fd = stream.fd.load(Relaxed);
        if sys::descriptor_flags(fd).is_ok_and(|flags| flags & libc::FD_CLOEXEC == 0) {
            demote(stream, Reason::Exec, 0);
        }
    });
    sweep();
    settle();
    for (fd, stream) in STREAMS.iter(control::highest()) {
        if stream.involved() {
            sys::set_cloexec(fd);
        }
    }
}

/// At exit: the kernel closes the sockets, and would reset connections that have ghosts left.
pub(crate) fn at_exit() {
    if involved() {
        for_each_lifted(|stream| park(stream, Reason::Parked));
        sweep();
        settle();
    }
}

/// Errors of calls that cannot be served while data of the connection is held.
pub(crate) const HELD: Errno = Errno(libc::EBUSY);
