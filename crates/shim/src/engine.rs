//! Rings to sockets: the pump, run inline by whichever thread of the program looks for data.
//!
//! Everything the kernel hands over ends in exactly one place: a socket's queue, back in the fill ring with a count
//! (damaged, or no room in the socket), or back to the stack through the TAP (`ride`).

use crate::{
    demux::{self, Endpoint},
    driver,
    frames::{Arrival, Frames, Returned},
    lock::{Guard, PumpLock},
    socket::{self, Socket, want},
    sys,
    tcp::{self, Flows, Stream},
};
use core::sync::atomic::{
    AtomicBool, AtomicI32, AtomicPtr, AtomicU32, AtomicU64,
    Ordering::{Acquire, Relaxed, Release, SeqCst},
    fence,
};
use hoist_ipc::{
    hub::{Fill, Hub},
    page::{RingStats, StatsPage},
};
use hoist_packet::udp::{self, ChecksumTrust, Datagram};
use hoist_packet::{Refused, flow::FlowKey};
use hoist_stream::Room;
use hoist_xsk::{Desc, FillRing, RxRing, Umem};
use std::io::IoSlice;

/// Frames taken from one ring before the next gets its turn.
const BATCH: u32 = 64;

/// Datagrams a socket may hold when frames are few.
const HOARD: u32 = 64;

/// Packets whose headers are fetched into the cache before their turn.
const AHEAD: u32 = 4;

/// Sockets touched by one pass that are remembered for waking; further ones are woken at once.
const TOUCHED: usize = 32;

/// Attempts in a row at a fill ring's lock.
const ATTEMPTS: u32 = 256;

/// Frames that circulate in one ring when all is calm. Fewer stay warmer in the cache; more ride out longer pauses of
/// the program. The rest of the ring's frames is in reserve and goes out when readers hold frames back.
/// A ring that was made for TCP has more, as many as it holds: what is in flight must fit, or is sent again.
const CIRCULATING: u32 = 2048;
/// At least so many circulate where threads run the driver themselves, and what a ring overflows with is sent again (TCP).
const FEWEST: u32 = 256;
/// Looks at a ring without a crowd after which fewer frames circulate.
const CALM: u32 = 1 << 14;

/// Payload bytes of the longest TCP segment that surely fits a frame: a chunk of 2,048 less XDP's headroom of 256, and at most 134
/// bytes of headers.
pub(crate) const LONGEST_SEGMENT: u32 = 1658;

/// A `virtio_net_hdr` that says nothing: what stands in front of a frame on the TAP.
const PLAIN: [u8; 10] = [0; 10];

/// Magic that `steer` writes before a packet together with its arrival time (bpf/hoist.h).
const META_MAGIC: u64 = 0x6d69_7474_7369_6f68;
/// Bytes of `struct hoist_meta`: magic and CLOCK_MONOTONIC nanoseconds.
const META_LEN: u64 = 16;

/// Memory that readers reach without a lock; made once, never unmapped.
pub(crate) struct Memory {
    pub(crate) umem: Umem,
    pub(crate) frames: Frames,
    /// Shared with the other processes of the run, and the place of this one in it.
    hub: &'static Hub,
    pub(crate) seat: u8,
    returned: [Returned; hoist_ipc::page::RINGS],
    short: [AtomicBool; hoist_ipc::page::RINGS],
}

static MEMORY: AtomicPtr<Memory> = AtomicPtr::new(core::ptr::null_mut());
/// AF_XDP descriptors, for those who wait.
static RING_FDS: [AtomicI32; hoist_ipc::page::RINGS] = [const { AtomicI32::new(-1) }; hoist_ipc::page::RINGS];
static RING_COUNT: AtomicU32 = AtomicU32::new(0);
/// Some socket wants arrival times.
static TIME_WANTED: AtomicBool = AtomicBool::new(false);
/// Of the stats page.
pub(crate) static PAGE: AtomicPtr<StatsPage> = AtomicPtr::new(core::ptr::null_mut());

pub(crate) static ENGINE: PumpLock<State> = PumpLock::new(State::new());

/// UMEM and frames, once there are any.
#[inline]
pub(crate) fn memory() -> Option<&'static Memory> {
    // SAFETY: only `set_memory` stores here, a leaked allocation.
    unsafe { MEMORY.load(Acquire).as_ref() }
}

/// In a forked child: a later lease has a UMEM of its own.
pub(crate) fn forget_memory() {
    MEMORY.store(core::ptr::null_mut(), Release);
}

/// The stats page, once the broker has given one.
#[inline]
pub(crate) fn page() -> Option<&'static StatsPage> {
    // SAFETY: only a leaked mapping is ever stored here.
    unsafe { PAGE.load(Acquire).as_ref() }
}

/// Descriptors of all rings.
pub(crate) fn ring_fds() -> impl Iterator<Item = i32> + Clone {
    let count = RING_COUNT.load(Acquire) as usize;
    RING_FDS[..count].iter().map(|fd| fd.load(Relaxed))
}

pub(crate) fn ring_count() -> u32 {
    RING_COUNT.load(Acquire)
}

/// What a ring is made of when it arrives from the broker.
pub(crate) struct NewRing {
    pub(crate) info: hoist_ipc::RingInfo,
    pub(crate) rx: RxRing,
    pub(crate) fill: FillRing,
    pub(crate) fd: i32,
    pub(crate) tap: i32,
    pub(crate) trust: ChecksumTrust,
}

struct Ring {
    rx: RxRing,
    fill: FillRing,
    fd: i32,
    tap: i32,
    trust: ChecksumTrust,
    ifindex: u32,
    stats: Option<&'static RingStats>,
    /// Frames neither with the kernel nor with a socket, warmest last. Never grows past its first capacity.
    reserve: Vec<u32>,
    /// Frames of this queue.
    frames: u32,
    /// How many of them this process may have: a part for each that shares them.
    quota: u32,
    /// How many it has, and how many of those sockets held at the last look.
    mine: u32,
    held: u32,
    /// Of the fill ring.
    lock: &'static Fill,
    /// How many are to circulate.
    circulating: u32,
    /// The most that waited at a look, and looks since it was taken stock of.
    crowd: u32,
    looks: u32,
}

/// What the pump lock guards.
pub(crate) struct State {
    rings: Vec<Ring>,
    /// Newest socket of each local port.
    ports: Vec<Option<&'static Socket>>,
    touched: [Option<&'static Socket>; TOUCHED],
    touched_count: usize,
    /// Some UDP socket is, or was, lifted.
    datagrams: bool,
    /// Connections that have been involved.
    pub(crate) streams: Flows,
    /// Those of which something is merged and has not ridden.
    pub(crate) unflushed: Vec<&'static Stream>,
}

// SAFETY: rings hold raw pointers into shared mappings that any thread may use, one at a time.
unsafe impl Send for State {}

/// Not zero in the process that owns the rings, zero in any child, however it was made: the page is wiped by fork
/// (MADV_WIPEONFORK).
static OWNER: AtomicPtr<AtomicU32> = AtomicPtr::new(core::ptr::null_mut());

/// Whether this process owns the rings and queues it sees in its memory.
#[inline]
pub(crate) fn ours() -> bool {
    // SAFETY: only `own` stores here, a mapping that is never removed.
    unsafe { OWNER.load(Relaxed).as_ref() }.is_none_or(|owner| owner.load(Relaxed) != 0)
}

/// Makes this process the owner. Without the page (an old kernel) every process takes itself for it, as before Linux 4.14.
pub(crate) fn own() {
    if OWNER.load(Relaxed).is_null()
        && let Some(page) = sys::page_wiped_on_fork()
    {
        OWNER.store(page, Relaxed);
    }
    // SAFETY: as in `ours`.
    if let Some(owner) = unsafe { OWNER.load(Relaxed).as_ref() } {
        owner.store(1, Relaxed);
    }
}

/// A look at the rings: moves what is there to sockets, wakes who sleeps on them. Does nothing if another thread is at it.
#[inline]
pub(crate) fn pump() {
    pump_and(Merged::Rides);
}

/// [`pump`] by a thread that looks again at once: headers that more may be merged with wait for it. False: there was nothing.
#[inline]
pub(crate) fn pump_on() -> bool {
    pump_and(Merged::Waits)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Merged {
    Rides,
    Waits,
}

#[inline]
fn pump_and(merged: Merged) -> bool {
    if ring_count() == 0 || !ours() {
        return false;
    }
    ENGINE.try_lock().is_some_and(|guard| pump_with(guard, merged))
}

fn pump_with(mut state: Guard<'_, State>, merged: Merged) -> bool {
    let Some(memory) = memory() else { return false };
    let mut found = false;
    if let Some(page) = page() {
        bump(&page.pumps, 1);
        page.accounted.store(0, Relaxed); // an exec may have failed
    }
    for ring in 0..state.rings.len() {
        found |= state.drain(memory, ring, BATCH) > 0;
        state.refill(memory, ring);
        state.relieve(memory, ring);
    }
    if merged == Merged::Rides {
        state.flush_streams(memory);
    }
    state.finish();
    let touched = core::mem::replace(&mut state.touched, [None; TOUCHED]);
    state.touched_count = 0;
    drop(state);
    wake(&touched);
    found
}

/// Bells are rung after the lock is free: a system call must not hold up other readers.
fn wake(touched: &[Option<&'static Socket>]) {
    for socket in touched.iter().flatten() {
        if socket.sleepers.load(Relaxed) > 0 {
            socket.ring_bells();
        }
    }
    crate::epoll::ring_pending();
}

/// Gives a frame back after reading.
#[inline]
pub(crate) fn give_back(memory: &Memory, frame: u32) {
    let ring = usize::from(memory.frames.arrival(frame).ring);
    if let Some(returned) = memory.returned.get(ring) {
        returned.push(&memory.frames, frame);
    }
}

/// Whether so many of a ring's frames are away that no more may be held back by chunks. Exact enough as of the last look: sockets and
/// chunks have more frames only after one.
#[inline]
pub(crate) fn runs_short(memory: &Memory, ring: u16) -> bool {
    memory.short.get(usize::from(ring)).is_none_or(|short| short.load(Relaxed))
}

impl State {
    const fn new() -> Self {
        Self {
            rings: Vec::new(),
            ports: Vec::new(),
            touched: [None; TOUCHED],
            touched_count: 0,
            datagrams: false,
            streams: Flows::new(),
            unflushed: Vec::new(),
        }
    }

    /// Remembers the UMEM. A second one is refused: frames of the first may still be in use.
    pub(crate) fn set_memory(&mut self, umem: Umem, hub: &'static Hub, seat: u8) -> bool {
        if memory().is_some() {
            return false;
        }
        let frames = Frames::new(umem.frames());
        let memory = Memory {
            umem,
            frames,
            hub,
            seat,
            returned: [const { Returned::new() }; hoist_ipc::page::RINGS],
            short: [const { AtomicBool::new(false) }; hoist_ipc::page::RINGS],
        };
        MEMORY.store(Box::into_raw(Box::new(memory)), Release);
        true
    }

    /// Starts using a ring.
    pub(crate) fn add_ring(&mut self, new: NewRing) {
        let Some(memory) = memory() else { return };
        let Some(lock) = memory.hub.fill(new.info.ring) else { return };
        let index = self.rings.len();
        let first = new.info.first_frame.saturating_add(new.info.prefilled);
        let idle = first..first.saturating_add(new.info.own);
        let mut reserve = Vec::with_capacity(new.info.frames as usize);
        reserve.extend(idle.filter(|&frame| frame < memory.umem.frames()));
        let stats = page().and_then(|page| page.rings.get(new.info.ring as usize));
        self.rings.push(Ring {
            rx: new.rx,
            fill: new.fill,
            fd: new.fd,
            tap: new.tap,
            trust: new.trust,
            ifindex: new.info.ifindex,
            stats,
            frames: new.info.frames,
            quota: new.info.frames,
            mine: reserve.len() as u32,
            held: 0,
            lock,
            reserve,
            circulating: most_circulating(new.info.rx_size),
            crowd: 0,
            looks: 0,
        });
        RING_FDS[index].store(new.fd, Relaxed);
        RING_COUNT.store(index as u32 + 1, Release);
    }

    pub(crate) fn ring_room(&self) -> bool {
        self.rings.len() < hoist_ipc::page::RINGS
    }

    /// Forgets every ring (the mappings stay: nobody else uses their addresses).
    pub(crate) fn forget_rings(&mut self) {
        RING_COUNT.store(0, Release);
        self.rings.clear();
    }

    /// Forgets which socket owns which port.
    pub(crate) fn forget_ports(&mut self) {
        self.ports.fill(None);
        self.streams.clear();
        self.unflushed.clear();
    }

    /// Descriptors to close when the rings are forgotten.
    pub(crate) fn descriptors(&self) -> impl Iterator<Item = i32> + '_ {
        self.rings.iter().flat_map(|ring| [ring.fd, ring.tap])
    }

    /// Takes up to `budget` frames from a ring.
    fn drain(&mut self, memory: &'static Memory, index: usize, budget: u32) -> u32 {
        let ring = &mut self.rings[index];
        let waiting = ring.rx.available();
        let count = waiting.min(budget);
        if count == 0 {
            return 0;
        }
        ring.crowd = ring.crowd.max(waiting);
        let trust = ring.trust;
        let time = Clock::now();
        for i in 0..count {
            let ring = &self.rings[index];
            if let Some(ahead) = ring.rx.peek(i + AHEAD) {
                prefetch(memory, ahead);
            }
            if let Some(desc) = ring.rx.peek(i) {
                self.deliver(memory, index, desc, trust, time);
            }
        }
        let ring = &mut self.rings[index];
        ring.rx.release(count);
        if let Some(stats) = ring.stats {
            bump(&stats.received, count.into());
        }
        count
    }

    /// Goes on while a ring fills up with datagrams for sockets that nobody is reading: who pumps has an empty queue, so a long
    /// one is somebody else's, and must not take the ring's room from the rest.
    #[inline]
    fn relieve(&mut self, memory: &'static Memory, index: usize) {
        for _ in 0..self.rings[index].rx.size() / BATCH {
            let pressed = self.rings[index].rx.pending() > self.rings[index].rx.size() / 4;
            if !pressed
                || !self.touched[..self.touched_count].iter().flatten().any(|s| s.queued() > 2 * BATCH)
            {
                return;
            }
            self.drain(memory, index, BATCH);
            self.refill(memory, index);
        }
    }

    /// Puts frames in the fill ring: first those just read, which are warm, then the reserve.
    fn refill(&mut self, memory: &'static Memory, index: usize) {
        let datagrams = self.datagrams;
        let ring = &mut self.rings[index];
        ring.adapt(datagrams);
        let seats = memory.hub.seats.load(Relaxed).max(1);
        ring.quota = ring.frames / seats;
        ring.held = ring.mine.saturating_sub(ring.reserve.len() as u32);
        memory.short[index].store(ring.held > ring.quota / 4, Relaxed);
        // what others need must not lie in a reserve
        let full = if seats > 1 { ring.frames / 2 } else { ring.circulating };
        let mut want = full.min(ring.fill.size()).saturating_sub(ring.fill.pending());
        let mut returned = memory.returned[index].take(&memory.frames).peekable();
        let some = returned.peek().is_some() || !ring.reserve.is_empty();
        if want == 0 || !some || !ring.lock_fill(memory) {
            ring.reserve.extend(returned);
        } else {
            for frame in returned {
                if want > 0 && ring.give(memory, frame) {
                    want -= 1;
                } else {
                    ring.reserve.push(frame);
                }
            }
            while want > 0 {
                let Some(frame) = ring.reserve.pop() else { break };
                if !ring.give(memory, frame) {
                    ring.reserve.push(frame);
                    break;
                }
                want -= 1;
            }
            ring.unlock_fill();
        }
        if ring.fill.needs_wakeup() {
            let _ = sys::recvfrom(
                ring.fd,
                core::ptr::null_mut(),
                0,
                libc::MSG_DONTWAIT,
                core::ptr::null_mut(),
                core::ptr::null_mut(),
            );
            if let Some(stats) = ring.stats {
                bump(&stats.wakeups, 1);
            }
        }
    }

    #[inline]
    fn deliver(
        &mut self,
        memory: &'static Memory,
        index: usize,
        desc: Desc,
        trust: ChecksumTrust,
        time: Clock,
    ) {
        let ring = &mut self.rings[index];
        let Some((frame, packet)) = memory.umem.frame_of(desc.addr).zip(memory.umem.packet(desc)) else {
            ring.count(|stats| &stats.bad_descriptor);
            return; // whose frame it is cannot be known: it is not used again
        };
        memory.hub.take(frame, memory.seat);
        ring.mine += 1;
        if is_tcp(packet) {
            return self.deliver_tcp(memory, index, desc, frame, packet, trust);
        }
        let datagram = match udp::parse(packet, trust) {
            Ok(datagram) => datagram,
            Err(refused) if refused.is_damaged() => return self.damaged(index, frame, refused),
            Err(_) => return self.ride(memory, index, frame, desc),
        };
        let route = FlowKey::from(&datagram);
        let ifindex = ring.ifindex;
        if datagram.group {
            return self.deliver_group(memory, index, desc, frame, &datagram, route, time);
        }
        match self.find(&route, ifindex) {
            Some(socket) => {
                let arrival = arrival(memory, index, ifindex, desc, &datagram, time);
                self.enqueue(memory, socket, frame, arrival);
            }
            None => self.ride(memory, index, frame, desc),
        }
    }

    fn find(&mut self, route: &FlowKey, ifindex: u32) -> Option<&'static Socket> {
        let first = (*self.ports.get(route.destination.port as usize)?)?;
        if first.lock_held.next_on_port.with(self).is_none() {
            return first.lock_held.endpoint.with(self).score(route, ifindex).map(|_| first);
        }
        let sockets = self.on_port(route.destination.port);
        demux::choose(sockets.into_iter(), route, ifindex, || route.hash(0))
    }

    /// Sockets of one port, newest first, with copies of their endpoints.
    fn on_port(&mut self, port: u16) -> PortWalk {
        PortWalk { next: self.ports.get(port as usize).copied().flatten() }
    }

    #[inline]
    fn deliver_tcp(
        &mut self,
        memory: &'static Memory,
        index: usize,
        desc: Desc,
        frame: u32,
        packet: &[u8],
        trust: ChecksumTrust,
    ) {
        let ring = &self.rings[index];
        let room = if ring.held > ring.quota / 2 { Room::Copy } else { Room::Frame };
        let from = tcp::From { ring: index, tap: ring.tap, trust, room };
        match tcp::deliver(self, memory, &from, desc, frame, packet) {
            tcp::Delivered::Done => {}
            tcp::Delivered::Damaged(refused) => self.damaged(index, frame, refused),
            tcp::Delivered::Other => self.ride(memory, index, frame, desc),
        }
    }

    /// Drops what Linux would drop, and counts it.
    #[cold]
    fn damaged(&mut self, index: usize, frame: u32, refused: Refused) {
        let ring = &mut self.rings[index];
        let checksum = refused == Refused::Checksum;
        ring.count(|stats| if checksum { &stats.bad_checksum } else { &stats.bad_header });
        ring.reserve.push(frame);
    }

    /// A datagram to a group goes to every socket that takes it, each with a frame of its own.
    #[cold]
    #[allow(clippy::too_many_arguments)]
    fn deliver_group(
        &mut self,
        memory: &'static Memory,
        index: usize,
        desc: Desc,
        frame: u32,
        datagram: &Datagram,
        route: FlowKey,
        time: Clock,
    ) {
        let ifindex = self.rings[index].ifindex;
        let original = arrival(memory, index, ifindex, desc, datagram, time);
        let mut last: Option<&'static Socket> = None;
        for (socket, endpoint) in self.on_port(route.destination.port) {
            if endpoint.takes_group(&route, ifindex)
                && let Some(previous) = last.replace(socket)
            {
                self.enqueue_copy(memory, index, previous, &original);
            }
        }
        match last {
            Some(socket) => self.enqueue(memory, socket, frame, original),
            None => self.ride(memory, index, frame, desc),
        }
    }

    fn enqueue_copy(
        &mut self,
        memory: &'static Memory,
        index: usize,
        socket: &'static Socket,
        original: &Arrival,
    ) {
        let Some(frame) = self.rings[index].reserve.pop() else {
            socket.drops.fetch_add(1, Relaxed);
            if let Some(stats) = socket.stats() {
                bump(&stats.dropped_rcvbuf, 1);
            }
            return;
        };
        let address =
            memory.umem.addr_of(frame) + (original.address % u64::from(memory.umem.chunk().bytes()));
        let from = Desc { addr: original.address, len: original.len.into(), options: 0 };
        let to = Desc { addr: address, ..from };
        if let (Some(from), Some(to)) = (memory.umem.packet(from), memory.umem.packet_mut(to)) {
            // SAFETY: both lie in the UMEM (checked by packet and packet_mut), in different frames, and we own both.
            unsafe { core::ptr::copy_nonoverlapping(from.as_ptr(), to.cast::<u8>(), from.len()) };
            self.enqueue(memory, socket, frame, Arrival { address, ..*original });
        }
    }

    #[inline]
    fn enqueue(
        &mut self,
        memory: &'static Memory,
        socket: &'static Socket,
        frame: u32,
        mut arrival: Arrival,
    ) {
        if socket.spills() || self.hoards(socket, usize::from(arrival.ring)) {
            return self.spill(memory, socket, frame, &arrival);
        }
        let held = socket.charged(&memory.frames);
        let bytes = arrival.payload_len;
        arrival.charged_before = socket.lock_held.charged.load(Relaxed);
        arrival.drops = socket.drops.load(Relaxed);
        let (charge, ring) = (socket::truesize(arrival.len.into()), usize::from(arrival.ring));
        memory.frames.record(frame, arrival);
        // sock_queue_rcv_skb's rule: one datagram may overshoot
        let room = held <= u64::from(socket.rcvbuf.load(Relaxed));
        if !room || !socket.push(frame) {
            socket.drops.fetch_add(1, Relaxed);
            if let Some(stats) = socket.stats() {
                bump(&stats.dropped_rcvbuf, 1);
            }
            self.rings[ring].reserve.push(frame);
            return;
        }
        socket.lock_held.charged.store(arrival.charged_before + u64::from(charge), Relaxed);
        if let Some(stats) = socket.stats() {
            bump(&stats.lifted_packets, 1);
            bump(&stats.lifted_bytes, bytes.into());
        }
        self.touch(socket);
    }

    /// Whether `socket` holds many frames while its ring has few left: the other sockets of the ring must go on.
    #[inline]
    fn hoards(&self, socket: &Socket, ring: usize) -> bool {
        let ring = &self.rings[ring];
        ring.held > ring.quota / 2 && socket.queued() > HOARD
    }

    /// From here on the socket's datagrams wait in the kernel's queue, behind those that wait here, until both are read.
    #[cold]
    fn spill(&mut self, memory: &'static Memory, socket: &'static Socket, frame: u32, arrival: &Arrival) {
        socket.begin_spill();
        self.touch(socket); // for `relieve`
        let desc = Desc { addr: arrival.address, len: arrival.len.into(), options: 0 };
        self.ride(memory, usize::from(arrival.ring), frame, desc);
    }

    #[inline]
    fn touch(&mut self, socket: &'static Socket) {
        let known =
            self.touched[..self.touched_count].iter().flatten().any(|&known| core::ptr::eq(known, socket));
        if known {
            return;
        }
        if self.touched_count == TOUCHED {
            self.settle();
        }
        self.touched[self.touched_count] = Some(socket);
        self.touched_count += 1;
    }

    /// Tells epoll instances of the sockets that got data.
    fn finish(&mut self) {
        if self.touched_count == 0 {
            return;
        }
        fence(SeqCst); // pairs with the one in `wait`: either the sleeper sees the data or we see the sleeper
        for i in 0..self.touched_count {
            if let Some(socket) = self.touched[i] {
                self.tell_watchers(socket);
            }
        }
    }

    /// The list of touched sockets is full: tell and wake them now, bells under the lock for once.
    #[cold]
    fn settle(&mut self) {
        self.finish();
        wake(&self.touched[..self.touched_count]);
        self.touched = [None; TOUCHED];
        self.touched_count = 0;
    }

    pub(crate) fn tell_watchers(&mut self, socket: &'static Socket) {
        for &(epoll, interest) in socket.lock_held.watchers.with(self).iter() {
            epoll.arrived(interest);
        }
        if let Some(stats) = socket.stats() {
            stats.queued.store(socket.queued().into(), Relaxed);
        }
    }

    /// Gives a whole frame to the Linux stack through the device's TAP, as if it had passed.
    fn ride(&mut self, memory: &'static Memory, index: usize, frame: u32, desc: Desc) {
        let ring = &mut self.rings[index];
        let rode = memory.umem.packet_mut(desc).is_some_and(|packet| {
            // SAFETY: in bounds (packet_mut checked), and the frame is ours: no queue and no ring has it.
            let packet = unsafe { &mut *packet };
            let partial = udp::parse(packet, ring.trust).is_ok_and(|datagram| datagram.partial);
            if partial && udp::complete_checksum(packet).is_err() {
                return false;
            }
            sys::writev(ring.tap, &[IoSlice::new(&PLAIN), IoSlice::new(packet)]).is_ok()
        });
        ring.count(|stats| if rode { &stats.rode } else { &stats.ride_failed });
        ring.reserve.push(frame);
    }

    /// Starts delivering to a socket.
    pub(crate) fn add_socket(&mut self, socket: &'static Socket, endpoint: Endpoint) {
        self.datagrams = true;
        if self.ports.is_empty() {
            self.ports = vec![None; 1 << 16];
        }
        let port = endpoint.port as usize;
        *socket.lock_held.endpoint.with(self) = endpoint;
        let next = self.ports[port].replace(socket);
        *socket.lock_held.next_on_port.with(self) = next;
        if socket.wants.load(Relaxed) & want::TIME != 0 {
            TIME_WANTED.store(true, Relaxed);
        }
    }

    /// Stops delivering to a socket; false if it was not there.
    pub(crate) fn remove_socket(&mut self, socket: &'static Socket) -> bool {
        let port = socket.lock_held.endpoint.with(self).port as usize;
        let next = socket.lock_held.next_on_port.with(self).take();
        let Some(mut at) = self.ports.get(port).copied().flatten() else { return false };
        if core::ptr::eq(at, socket) {
            self.ports[port] = next;
            return true;
        }
        while let Some(after) = *at.lock_held.next_on_port.with(self) {
            if core::ptr::eq(after, socket) {
                *at.lock_held.next_on_port.with(self) = next;
                return true;
            }
            at = after;
        }
        false
    }

    /// Moves everything that is in the rings. Unknown sockets' datagrams ride to the stack.
    pub(crate) fn drain_all(&mut self) {
        let Some(memory) = memory() else { return };
        for ring in 0..self.rings.len() {
            // what is there now: a flood must not keep the caller here
            let mut left = self.rings[ring].rx.pending();
            while left > 0 {
                left -= self.drain(memory, ring, BATCH.min(left)).max(1);
                self.refill(memory, ring);
            }
        }
        self.flush_streams(memory);
        self.settle();
    }

    /// What is merged of TCP connections rides.
    #[inline]
    fn flush_streams(&mut self, memory: &'static Memory) {
        while let Some(stream) = self.unflushed.pop() {
            tcp::flush(stream, memory);
        }
    }

    /// The TAP refused so many frames of a ring.
    #[inline]
    pub(crate) fn ride_failed(&mut self, ring: usize, count: u64) {
        if count > 0
            && let Some(stats) = self.rings.get(ring).and_then(|ring| ring.stats)
        {
            bump(&stats.ride_failed, count);
        }
    }

    /// What is queued on a socket rides to the stack, oldest first: another process may read it there.
    pub(crate) fn ride_queue(&mut self, socket: &'static Socket) {
        let Some(memory) = memory() else { return };
        while let Some((frame, _)) = socket.pop() {
            let arrival = *memory.frames.arrival(frame);
            let desc = Desc { addr: arrival.address, len: arrival.len.into(), options: 0 };
            self.ride(memory, usize::from(arrival.ring), frame, desc);
            if let Some(stats) = socket.stats() {
                bump(&stats.rode, 1);
            }
        }
    }

    /// Writes where every frame is to the stats page, for the account at the end.
    pub(crate) fn account(&mut self, sockets: impl Iterator<Item = &'static Socket>) {
        let Some(memory) = memory() else { return };
        for index in 0..self.rings.len() {
            let returned: Vec<u32> = memory.returned[index].take(&memory.frames).collect();
            self.rings[index].reserve.extend(returned);
        }
        let mut queued = vec![0u64; self.rings.len()];
        for frame in memory.frames.held() {
            queued[usize::from(memory.frames.arrival(frame).ring)] += 1;
        }
        for frame in self.streams.iter().flat_map(Stream::frames) {
            queued[usize::from(memory.frames.arrival(frame).ring)] += 1;
        }
        for socket in sockets {
            while let Some((frame, _)) = socket.pop() {
                queued[usize::from(memory.frames.arrival(frame).ring)] += 1;
            }
        }
        for (ring, queued) in self.rings.iter().zip(queued) {
            if let Some(stats) = ring.stats {
                stats.queued.store(queued, Relaxed);
                stats.free.store(ring.reserve.len() as u64, Relaxed);
            }
        }
        if let Some(page) = page() {
            page.accounted.store(1, Release);
        }
    }
}

fn most_circulating(rx_size: u32) -> u32 {
    CIRCULATING.max(rx_size)
}

impl Ring {
    /// Has the fill ring for itself; false: another process does, for microseconds or because it was stopped. When frames are few it
    /// is worth some attempts.
    #[inline]
    fn lock_fill(&mut self, memory: &Memory) -> bool {
        let attempts = if self.fill.pending() < self.frames / 8 { ATTEMPTS } else { 1 };
        let attempt = |_| {
            core::hint::spin_loop();
            self.lock.try_lock(u32::from(memory.seat) + 1)
        };
        let locked = (0..attempts).any(attempt);
        if locked {
            self.lock.begin(self.fill.take_over());
        }
        locked
    }

    /// Pushes a frame: in an order that tells, if this process dies, whose it is.
    #[inline]
    fn give(&mut self, memory: &Memory, frame: u32) -> bool {
        let pushed = self.fill.push(memory.umem.addr_of(frame));
        if pushed {
            self.lock.pushed();
            memory.hub.give(frame);
            self.mine = self.mine.saturating_sub(1);
        }
        pushed
    }

    #[inline]
    fn unlock_fill(&mut self) {
        self.fill.submit();
        self.lock.unlock();
    }

    /// Lets more frames circulate when a crowd has waited, fewer after a long time without one. `datagrams`: lifted datagrams are
    /// lost for good when there is no frame, so there are always many.
    #[inline]
    fn adapt(&mut self, datagrams: bool) {
        self.looks += 1;
        let most = most_circulating(self.rx.size());
        if self.circulating < most && (datagrams || self.crowd > self.circulating / 2) {
            self.circulating = if datagrams { most } else { self.circulating * 2 };
        } else if self.looks < CALM {
            return;
        } else if !datagrams && driver::spins() && self.crowd <= self.circulating / 4 {
            self.circulating = (self.circulating / 2).max(FEWEST);
        }
        (self.crowd, self.looks) = (0, 0);
    }

    #[cold]
    fn count(&self, field: impl Fn(&RingStats) -> &AtomicU64) {
        if let Some(stats) = self.stats {
            bump(field(stats), 1);
        }
    }
}

/// Whether a frame holds TCP: its ethertype and protocol say so, all else is for the parser to judge.
#[inline]
fn is_tcp(frame: &[u8]) -> bool {
    const TCP: u8 = libc::IPPROTO_TCP as u8;
    match frame {
        [_, _, _, _, _, _, _, _, _, _, _, _, 0x08, 0x00, ..] => frame.get(23) == Some(&TCP),
        [_, _, _, _, _, _, _, _, _, _, _, _, 0x86, 0xdd, ..] => frame.get(20) == Some(&TCP),
        _ => false,
    }
}

/// Adds to a counter that only the holder of the pump lock writes.
#[inline]
fn bump(counter: &AtomicU64, by: u64) {
    counter.store(counter.load(Relaxed) + by, Relaxed);
}

/// The sockets of a port.
#[derive(Clone)]
struct PortWalk {
    next: Option<&'static Socket>,
}

impl Iterator for PortWalk {
    type Item = (&'static Socket, Endpoint);

    fn next(&mut self) -> Option<Self::Item> {
        let socket = self.next?;
        // SAFETY: walks are made and used up within methods of `&mut State`, whose borrow excludes other access.
        let (endpoint, next) =
            unsafe { (socket.lock_held.endpoint.read(), socket.lock_held.next_on_port.read()) };
        self.next = next;
        Some((socket, endpoint))
    }
}

/// The two clocks, read once a batch when some socket wants arrival times.
#[derive(Clone, Copy)]
struct Clock {
    /// CLOCK_REALTIME, ns; 0: nobody asked.
    now: u64,
    /// CLOCK_REALTIME minus CLOCK_MONOTONIC, ns.
    offset: u64,
}

impl Clock {
    fn now() -> Self {
        if !TIME_WANTED.load(Relaxed) {
            return Self { now: 0, offset: 0 };
        }
        let now = sys::clock_ns(libc::CLOCK_REALTIME);
        Self { now, offset: now.wrapping_sub(sys::clock_ns(libc::CLOCK_MONOTONIC)) }
    }
}

#[inline]
fn prefetch(memory: &Memory, desc: Desc) {
    #[cfg(target_arch = "x86_64")]
    if let Some(packet) = memory.umem.packet(desc) {
        // SAFETY: a hint; the address is within the UMEM.
        unsafe { core::arch::x86_64::_mm_prefetch(packet.as_ptr().cast(), core::arch::x86_64::_MM_HINT_T0) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (memory, desc);
}

#[inline]
fn arrival(
    memory: &Memory,
    index: usize,
    ifindex: u32,
    desc: Desc,
    datagram: &Datagram,
    time: Clock,
) -> Arrival {
    Arrival {
        address: desc.addr,
        charged_before: 0,
        time_ns: if time.now == 0 { 0 } else { arrival_time(memory, desc, time) },
        ifindex,
        drops: 0,
        // a packet lies within a chunk of at most 4,096 bytes (Umem::packet)
        len: desc.len as u16,
        payload_at: datagram.payload.start as u16,
        payload_len: datagram.payload_len() as u16,
        ring: index as u16,
        v6: matches!(datagram.destination.ip, hoist_packet::Ip::V6(_)),
        group: datagram.group,
    }
}

/// When `steer` saw the packet, or else now. The stamp is wiped, so that a frame used again shows no old one.
fn arrival_time(memory: &Memory, desc: Desc, time: Clock) -> u64 {
    let Some(address) = desc.addr.checked_sub(META_LEN) else { return time.now };
    let Some(meta) = memory.umem.packet_mut(Desc { addr: address, len: META_LEN as u32, options: 0 }) else {
        return time.now;
    };
    if memory.umem.frame_of(address) != memory.umem.frame_of(desc.addr) {
        return time.now;
    }
    // SAFETY: 16 bytes inside our frame (checked), which no one else touches until it is refilled.
    let meta = unsafe { &mut *meta };
    let (magic, stamp) = meta.split_at_mut(8);
    if *magic != META_MAGIC.to_ne_bytes() {
        return time.now;
    }
    magic.fill(0);
    let stamp = u64::from_ne_bytes(stamp.try_into().unwrap_or_default());
    stamp.wrapping_add(time.offset).min(time.now)
}
