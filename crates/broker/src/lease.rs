//! The AF_XDP rings: one pool of frames for the run, and for each process that has rings a lease with a seat.
//!
//! A queue of a device has one fill ring (`xsk_bind`), which all leases use under the lock of the hub, and for each of them a socket with an rx
//! ring of its own.

use crate::{
    account::Frames,
    device::{self, Device},
    error::{Context, Error},
    steer::Steer,
    sys::{self, VNET_HEADER},
    tap::Tap,
};
use hoist_ipc::{
    RingInfo,
    hub::{BROKER, Held, Hub, SEATS},
    page::{Mapped, StatsPage},
};
use hoist_packet::{
    checksum::{pseudo_header_v4, pseudo_header_v6},
    ethernet, ipv4, ipv6, udp,
};
use hoist_xsk::{ChunkSize, FillRing, Mode, RxRing, Socket, Statistics, Umem};
use std::{
    collections::BTreeSet,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::atomic::Ordering::Relaxed,
};

/// Entries of an rx ring.
pub const RX_SIZE: u32 = 2048;
/// Entries of a fill ring.
pub const FILL_SIZE: u32 = 4096;
/// Frames of a queue, unless many queues have to share; a quarter more is kept for further processes.
pub const FRAMES: u32 = 4096;
/// The same where TCP is lifted, or several processes may share the queue. A window of the kernel's default size (tcp_rmem, 6 MiB) and more
/// must fit in a ring, which loses what a socket's buffer would have held; and what stalls must not have all frames.
pub(crate) const DEEP_FRAMES: u32 = 16_384;
/// Bytes of a frame.
pub const CHUNK: ChunkSize = ChunkSize::K2;
/// Longest packet that a frame holds: the kernel keeps XDP_PACKET_HEADROOM in front of it.
pub const MAX_FRAME: u32 = 2048 - 256;

const COMPLETION_SIZE: u32 = 64; // the kernel wants one; nothing is sent
/// `virtio_net_hdr.flags`.
const VIRTIO_NET_HDR_F_NEEDS_CSUM: u8 = 1;
const TCP: u8 = 6;
/// Where the checksum lies in a TCP header.
const TCP_CHECKSUM: usize = 16;
const TOTAL_FRAMES: u32 = 65_536;
const MIN_FRAMES: u32 = 512;
/// Entries of the rx ring that a queue's first socket must have and nobody uses (`xsk_bind`).
const UNUSED: u32 = 2;
/// Attempts at a fill ring's lock in a row: its holders keep it for microseconds, but may be stopped.
const ATTEMPTS: u32 = 1000;

/// Frames of each of `rings` rings, at most `most`.
fn frames_per_ring(rings: u32, most: u32) -> u32 {
    let share = TOTAL_FRAMES / rings.max(1);
    let power = if share.is_power_of_two() { share } else { share.next_power_of_two() / 2 };
    power.clamp(MIN_FRAMES, most)
}

/// One queue of a device: its fill ring, and the socket that keeps it.
struct Queue {
    info: RingInfo,
    socket: Socket,
    fill: FillRing,
    /// Why zero-copy was refused.
    refused: Option<String>,
    /// Nobody has been given the frames that are meant for the first process.
    fresh: bool,
    /// From here on frames are kept for others who come: a first one that stalls must not have all.
    spare: u32,
    /// Frames that earlier processes lost on purpose ([`Frames::bad`]), and whether the kernel ever found a ring of theirs full.
    bad: u64,
    was_full: bool,
}

impl Queue {
    fn frames(&self) -> std::ops::Range<u32> {
        self.info.first_frame..self.end()
    }

    fn end(&self) -> u32 {
        self.info.first_frame + self.info.frames
    }
}

/// Frames and queues of a run, while some process has rings.
pub(crate) struct Pool {
    pub(crate) umem: Umem,
    hub: Mapped<Hub>,
    hub_memfd: OwnedFd,
    queues: Vec<Queue>,
    numbers: Numbers,
    rx_size: u32,
    /// User of the processes: frames are shared between processes that could read each other anyway.
    uid: u32,
    taken: [bool; SEATS],
    /// Frames of the dead that wait for a fill ring's lock, by number of the queue.
    stranded: Vec<(u32, u32)>,
}

/// One AF_XDP socket of a process.
pub(crate) struct Ring {
    pub(crate) info: RingInfo,
    pub(crate) socket: Socket,
}

/// Rings of one process.
pub(crate) struct Lease {
    pub(crate) seat: u8,
    pub(crate) rings: Vec<Ring>,
    /// The process knows the UMEM already.
    pub(crate) umem_sent: bool,
    /// Numbers of the rings that it knows.
    pub(crate) announced: BTreeSet<u32>,
    /// Devices it knows already.
    pub(crate) devices: BTreeSet<u32>,
}

/// Numbers of queues, and with them their frames. None is given twice in a pool: a process may still use the frames of a
/// queue that is gone.
#[derive(Clone, Copy, Debug)]
struct Numbers {
    next: u32,
    end: u32,
    per_ring: u32,
}

impl Numbers {
    fn new(rings: u32, most: u32) -> Self {
        Self { next: 0, end: rings, per_ring: frames_per_ring(rings, most) }
    }

    /// Frames of a queue, with a quarter more for who comes later.
    fn with_spare(&self) -> u32 {
        self.per_ring + self.per_ring / 4
    }

    /// The next queue's number and first frame.
    fn take(&mut self) -> Option<(u32, u32)> {
        let ring = self.next;
        (ring < self.end).then(|| {
            self.next += 1;
            (ring, ring * self.with_spare())
        })
    }
}

/// What was found in a ring when the lease ended.
pub(crate) struct Ended {
    pub(crate) info: RingInfo,
    pub(crate) frames: Frames,
    pub(crate) statistics: Statistics,
    /// Packets that nobody had taken and that were given to the stack.
    pub(crate) rode: u64,
}

impl Pool {
    /// Makes the UMEM for `rings` queues; `tcp` is lifted; `wide`: several processes may share it.
    pub(crate) fn new(rings: u32, tcp: bool, wide: bool, uid: u32) -> Result<Self, Error> {
        let rings = rings.clamp(1, hoist_ipc::page::RINGS as u32);
        let numbers = Numbers::new(rings, if tcp || wide { DEEP_FRAMES } else { FRAMES });
        let umem = Umem::create(numbers.with_spare() * rings, CHUNK, false)
            .map_err(|cause| Error::Xsk { operation: "make the UMEM".into(), cause })?;
        let hub_memfd = sys::sealed_memfd(c"hoist-hub", Hub::LEN).context("make the hub")?;
        let hub = Mapped::new(hub_memfd.as_fd()).context("map the hub")?;
        let rx_size = if tcp { RX_SIZE.max(numbers.per_ring / 2) } else { RX_SIZE };
        let (queues, stranded, taken) = (Vec::new(), Vec::new(), [false; SEATS]);
        Ok(Self { umem, hub, hub_memfd, queues, numbers, rx_size, uid, taken, stranded })
    }

    /// The memfd of the hub.
    pub(crate) fn hub(&self) -> BorrowedFd<'_> {
        self.hub_memfd.as_fd()
    }

    /// Has `uid`'s process sit down; None: it is another user's, or all seats are taken.
    pub(crate) fn sit(&mut self, uid: u32) -> Option<Lease> {
        let seat = self.taken.iter().position(|taken| !taken).filter(|_| self.seats_for(uid))?;
        self.taken[seat] = true;
        self.hub.seats.fetch_add(1, Relaxed);
        let (announced, devices) = (BTreeSet::new(), BTreeSet::new());
        Some(Lease { seat: seat as u8, rings: Vec::new(), umem_sent: false, announced, devices })
    }

    /// Whether a process of `uid` could sit down.
    pub(crate) fn seats_for(&self, uid: u32) -> bool {
        uid == self.uid && self.taken.contains(&false)
    }

    /// Without rings the process needs no seat.
    pub(crate) fn stand_up(&mut self, lease: &Lease) {
        self.taken[usize::from(lease.seat)] = false;
        self.hub.seats.fetch_sub(1, Relaxed);
    }

    /// How the queues of a device were bound: zero-copy or not, and why not.
    pub(crate) fn bound(&self, ifindex: u32) -> Option<(bool, Option<String>)> {
        let queue = self.queues.iter().find(|queue| queue.info.ifindex == ifindex)?;
        Some((queue.info.zero_copy, queue.refused.clone()))
    }

    /// Gives the lease a ring on every queue of `device` and puts it in steer's map. All or none.
    pub(crate) fn add(
        &mut self,
        lease: &mut Lease,
        device: &Device,
        steer: &mut Steer,
        mode: Mode,
        page: &StatsPage,
    ) -> Result<(), Error> {
        self.open(device, mode)?;
        let before = lease.rings.len();
        let queues = self.queues.iter().filter(|queue| queue.info.ifindex == device.ifindex);
        for queue in queues {
            let ring = self.ring(queue).map_err(|cause| making(device, queue.info.queue, cause));
            let ring = ring.and_then(|ring| {
                steer.set_ring(lease.seat, ring.info.queue, ring.socket.as_fd()).map(|()| ring)
            });
            match ring {
                Ok(ring) => lease.rings.push(ring),
                Err(error) => {
                    lease.rings.truncate(before);
                    return Err(error);
                }
            }
        }
        for ring in &lease.rings[before..] {
            self.hand_over(ring, lease.seat, page);
        }
        Ok(())
    }

    /// Opens the queues of a device. All or none.
    fn open(&mut self, device: &Device, mode: Mode) -> Result<(), Error> {
        if self.queues.iter().any(|queue| queue.info.ifindex == device.ifindex) {
            return Ok(());
        }
        let before = self.queues.len();
        let done =
            (0..device::rx_queues(device)).try_for_each(|queue| self.open_queue(device, queue, mode, before));
        if done.is_err() {
            self.queues.truncate(before);
        }
        done
    }

    fn open_queue(
        &mut self,
        device: &Device,
        queue: u32,
        mode: Mode,
        first_of_device: usize,
    ) -> Result<(), Error> {
        let Some((ring, first_frame)) = self.numbers.take() else {
            return Err(Error::Other(format!(
                "{}: more receive queues than hoist has rings for",
                device.name
            )));
        };
        let info = RingInfo {
            ring,
            ifindex: device.ifindex,
            queue,
            rx_size: self.rx_size,
            fill_size: self.numbers.with_spare().next_power_of_two().max(FILL_SIZE),
            first_frame,
            frames: self.numbers.with_spare(),
            prefilled: self.numbers.per_ring / 2,
            own: self.numbers.per_ring / 2,
            zero_copy: false, // known once it is bound
        };
        let first = self.queues.get(first_of_device).map(|queue| &queue.socket);
        let made = bind(&self.umem, info, mode, first).map_err(|cause| making(device, queue, cause))?;
        self.queues.push(made);
        Ok(())
    }

    /// One more socket on a queue. Those that come later have smaller rings: a process that stalls keeps as many frames as its ring holds.
    fn ring(&self, queue: &Queue) -> Result<Ring, hoist_xsk::Error> {
        let socket = Socket::open()?;
        let (rx_size, own) = match queue.fresh {
            true => (queue.info.rx_size, queue.info.own),
            false => (later_rx_size(self.numbers.per_ring), 0),
        };
        socket.set_rings(rx_size, 0)?;
        socket.bind(queue.info.ifindex, queue.info.queue, Mode::Auto, Some(queue.socket.as_fd()))?;
        Ok(Ring { info: RingInfo { rx_size, own, ..queue.info }, socket })
    }

    /// The first who comes has frames of his own, the second has the spare ones put in the fill ring.
    fn hand_over(&mut self, ring: &Ring, seat: u8, page: &StatsPage) {
        let RingInfo { ring: number, first_frame, prefilled, own, .. } = ring.info;
        // Right until the shim counts for itself; also if it never does.
        page.rings[number as usize].free.store(own.into(), Relaxed);
        (prefilled..prefilled + own).for_each(|frame| self.hub.take(first_frame + frame, seat));
        let Some(queue) = self.queues.iter_mut().find(|queue| queue.info.ring == number) else { return };
        if !std::mem::take(&mut queue.fresh) {
            let end = queue.end();
            let spare = std::mem::replace(&mut queue.spare, end)..end;
            self.stranded.extend(spare.map(|frame| (number, frame)));
            self.give_stranded();
        }
    }

    /// The rings of one device are gone with it.
    pub(crate) fn drop_device(&mut self, ifindex: u32) {
        self.queues.retain(|queue| queue.info.ifindex != ifindex);
    }

    /// Gives packets that nobody took to the stack and counts the frames of the last lease. Call it when nothing is lifted any more
    /// and a grace period has passed. While the holder lives its rings are its own: it takes the rest out of them itself. `others`:
    /// processes that do not listen any more have frames.
    pub(crate) fn end<'t>(
        mut self,
        lease: &Lease,
        page: &StatsPage,
        alive: bool,
        others: bool,
        tap: impl Fn(u32) -> Option<(&'t Tap, bool)>,
    ) -> Vec<Ended> {
        self.give_stranded();
        let end = |ring: &Ring| {
            let queue = self.queues.iter().find(|queue| queue.info.ring == ring.info.ring)?;
            match alive || others {
                true => ring.leave().ok(),
                false => ring.end(queue, &self.umem, page, tap(ring.info.ifindex)).ok(),
            }
        };
        lease.rings.iter().filter_map(end).collect()
    }

    /// Ends a lease that is not the last, of a process that is dead: its frames go back to the others.
    pub(crate) fn reclaim<'t>(
        &mut self,
        lease: &Lease,
        page: &StatsPage,
        tap: impl Fn(u32) -> Option<(&'t Tap, bool)>,
    ) -> Vec<Ended> {
        let mut ended = Vec::new();
        for ring in &lease.rings {
            let rode = self.reclaim_ring(ring, lease.seat, page, tap(ring.info.ifindex)).unwrap_or(0);
            ended.extend(ring.leave().ok().map(|ended| Ended { rode, ..ended }));
        }
        self.stand_up(lease);
        self.give_stranded();
        ended
    }

    fn reclaim_ring(
        &mut self,
        ring: &Ring,
        seat: u8,
        page: &StatsPage,
        tap: Option<(&Tap, bool)>,
    ) -> Result<u64, hoist_xsk::Error> {
        let Some(queue) = self.queues.iter_mut().find(|queue| queue.info.ring == ring.info.ring) else {
            return Ok(0);
        };
        queue.bad =
            queue.bad.saturating_add(page.rings[ring.info.ring as usize].bad_descriptor.load(Relaxed));
        queue.was_full |= ring.was_full();
        let mut frames: BTreeSet<u32> = left_in_fill(queue, &self.hub, &self.umem, seat);
        let mut rx = RxRing::map(ring.socket.as_fd(), ring.info.rx_size)?;
        let waiting = (0..rx.available()).filter_map(|i| rx.peek(i));
        frames.extend(waiting.filter_map(|desc| self.umem.frame_of(desc.addr)));
        frames.extend(queue.frames().filter(|frame| self.hub.owner(*frame) == Some(seat)));
        let rode = tap.map_or(0, |(tap, partial)| ride_leftovers(&mut rx, &self.umem, tap, partial));
        let own = queue.frames();
        self.stranded.extend(
            frames.into_iter().filter(|frame| own.contains(frame)).map(|frame| (ring.info.ring, frame)),
        );
        Ok(rode)
    }

    /// Gives frames of the dead to the kernel, as far as the fill rings' locks are free. Later ones: call it again.
    pub(crate) fn give_stranded(&mut self) {
        for queue in &mut self.queues {
            let mine = |(ring, _): &(u32, u32)| *ring == queue.info.ring;
            if self.stranded.iter().any(mine) {
                let frames: Vec<u32> =
                    self.stranded.iter().filter(|s| mine(s)).map(|(_, frame)| *frame).collect();
                if give(queue, &self.hub, &self.umem, &frames) {
                    self.stranded.retain(|s| s.0 != queue.info.ring);
                }
            }
        }
    }
}

fn making(device: &Device, queue: u32, cause: hoist_xsk::Error) -> Error {
    Error::Xsk { operation: format!("make the AF_XDP socket of {} queue {queue}", device.name), cause }
}

fn later_rx_size(frames: u32) -> u32 {
    (frames / 8).clamp(64, RX_SIZE)
}

/// Frees the fill ring's lock if the dead process at `seat` had it. Returns the frames that it had written there and not published.
fn left_in_fill(queue: &mut Queue, hub: &Hub, umem: &Umem, seat: u8) -> BTreeSet<u32> {
    let lock = hub.fill(queue.info.ring);
    let Some((lock, Held { start, pushed })) =
        lock.and_then(|lock| Some((lock, lock.left_by(u32::from(seat) + 1)?)))
    else {
        return BTreeSet::new();
    };
    let published = queue.fill.take_over().wrapping_sub(start).min(queue.fill.size());
    let written = if published > 0 { published } else { pushed.min(queue.fill.size()) };
    let frame = |at: u32| umem.frame_of(queue.fill.entry(start.wrapping_add(at)));
    let frames: BTreeSet<u32> = (0..written).filter_map(frame).collect();
    if published > 0 {
        // those that went round since are others'
        let own = frames.iter().filter(|frame| hub.owner(**frame) == Some(seat));
        own.for_each(|frame| hub.give(*frame));
    }
    lock.unlock();
    if published > 0 { BTreeSet::new() } else { frames }
}

/// Puts frames in the fill ring; false: its lock is held.
fn give(queue: &mut Queue, hub: &Hub, umem: &Umem, frames: &[u32]) -> bool {
    let Some(lock) = hub.fill(queue.info.ring) else { return false };
    if !(0..ATTEMPTS).any(|_| lock.try_lock(BROKER)) {
        return false;
    }
    lock.begin(queue.fill.take_over());
    for &frame in frames {
        if queue.fill.push(umem.addr_of(frame)) {
            hub.give(frame);
        }
    }
    queue.fill.submit();
    lock.unlock();
    true
}

fn bind(umem: &Umem, info: RingInfo, mode: Mode, first: Option<&Socket>) -> Result<Queue, hoist_xsk::Error> {
    let socket = Socket::open()?;
    if first.is_none() {
        // Each device registers the memory anew, so that each has the mode its driver can.
        socket.register_umem(umem, 0)?;
    }
    socket.set_umem_rings(info.fill_size, COMPLETION_SIZE)?;
    socket.set_rings(UNUSED, 0)?;
    let mut fill = FillRing::map(socket.as_fd(), info.fill_size)?;
    for frame in info.first_frame..info.first_frame + info.prefilled {
        fill.push(umem.addr_of(frame));
    }
    fill.submit();
    let bound = socket.bind(info.ifindex, info.queue, mode, first.map(|socket| socket.as_fd()))?;
    let refused = bound.refused.map(|error| error.to_string());
    let info = RingInfo { zero_copy: bound.zero_copy, ..info };
    let spare = info.first_frame + info.prefilled + info.own;
    Ok(Queue { info, socket, fill, refused, fresh: true, spare, bad: 0, was_full: false })
}

impl Lease {
    pub(crate) fn has(&self, ifindex: u32) -> bool {
        self.rings.iter().any(|ring| ring.info.ifindex == ifindex)
    }

    /// Takes the rings of one device away, for a device that is gone.
    pub(crate) fn drop_device(&mut self, ifindex: u32) -> Vec<Ring> {
        let (gone, kept) = self.rings.drain(..).partition(|ring| ring.info.ifindex == ifindex);
        self.rings = kept;
        self.devices.remove(&ifindex); // it may come back with another TAP
        gone
    }
}

impl Ring {
    fn frames(&self, page: &StatsPage, queue: &Queue, rx: &RxRing) -> Frames {
        let stats = &page.rings[self.info.ring as usize];
        Frames {
            total: (queue.spare - queue.info.first_frame).into(),
            fill: queue.fill.pending().into(),
            rx: rx.pending().into(),
            queued: stats.queued.load(Relaxed),
            free: stats.free.load(Relaxed),
            bad: queue.bad.saturating_add(stats.bad_descriptor.load(Relaxed)),
            zero_copy: self.info.zero_copy,
            uncounted: page.pumps.load(Relaxed) > 0 && page.accounted.load(Relaxed) == 0,
            was_full: queue.was_full || self.was_full(),
        }
    }

    fn was_full(&self) -> bool {
        self.socket.statistics().is_ok_and(|s| s.rx_ring_full > 0)
    }

    /// To whom it was, uncounted.
    fn leave(&self) -> Result<Ended, hoist_xsk::Error> {
        let frames = Frames { uncounted: true, ..Frames::default() };
        Ok(Ended { info: self.info, frames, statistics: self.socket.statistics()?, rode: 0 })
    }

    fn end(
        &self,
        queue: &Queue,
        umem: &Umem,
        page: &StatsPage,
        tap: Option<(&Tap, bool)>,
    ) -> Result<Ended, hoist_xsk::Error> {
        let mut rx = RxRing::map(self.socket.as_fd(), self.info.rx_size)?;
        let frames = self.frames(page, queue, &rx);
        let rode = tap.map_or(0, |(tap, partial)| ride_leftovers(&mut rx, umem, tap, partial));
        let statistics = self.socket.statistics()?;
        Ok(Ended { info: self.info, frames, statistics, rode })
    }
}

/// Packets left in the ring go up the stack: sockets that outlive the lease (exec, fork) may still read them.
fn ride_leftovers(rx: &mut RxRing, umem: &Umem, tap: &Tap, partial: bool) -> u64 {
    let mut rode = 0;
    let count = rx.available();
    for packet in (0..count).filter_map(|i| rx.peek(i)).filter_map(|desc| umem.packet(desc)) {
        let mut frame = packet.to_vec();
        let Some(header) = prepare_ride(&mut frame, partial) else { continue };
        rode += u64::from(tap.ride(header, &frame).is_ok());
    }
    rx.release(count);
    rode
}

/// The `virtio_net_hdr` with which a frame rides as it is. A partial checksum of UDP is completed, one of TCP is left to
/// the stack, which would trust it from this device, too.
fn prepare_ride(frame: &mut [u8], partial: bool) -> Option<[u8; VNET_HEADER]> {
    let mut header = [0; VNET_HEADER];
    let tcp = tcp_checksum(frame);
    match tcp {
        Some((start, partial_sum)) if partial => {
            let field = frame.get(start + TCP_CHECKSUM..start + TCP_CHECKSUM + 2)?;
            if field == partial_sum.to_be_bytes() {
                header[0] = VIRTIO_NET_HDR_F_NEEDS_CSUM;
                header[6..8].copy_from_slice(&(start as u16).to_ne_bytes());
                header[8..].copy_from_slice(&(TCP_CHECKSUM as u16).to_ne_bytes());
            }
        }
        None if partial => udp::complete_checksum(frame).ok()?,
        _ => {}
    }
    Some(header)
}

/// Where the TCP header begins, and what its checksum field holds if the driver is to complete it; None: it is not TCP.
fn tcp_checksum(frame: &[u8]) -> Option<(usize, u16)> {
    let (ethernet, packet) = ethernet::View::split(frame)?;
    let at = ethernet.len();
    if let Ok((ip, body)) = ipv4::View::split(packet) {
        let sum = pseudo_header_v4(ip.source(), ip.destination(), TCP, body.len() as u16);
        return (ip.protocol() == TCP).then(|| (at + ipv4::HEADER_LEN, sum.fold()));
    }
    let (ip, body) = ipv6::View::split(packet).ok()?;
    let sum = pseudo_header_v6(&ip.source(), &ip.destination(), TCP, body.len() as u32);
    (ip.next_header() == TCP).then(|| (at + ipv6::HEADER_LEN, sum.fold()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ring_numbers_and_frames_are_given_once_and_end_with_the_memory() {
        let mut numbers = Numbers::new(20, FRAMES);
        let given: Vec<_> = std::iter::from_fn(|| numbers.take()).collect();
        let expected: Vec<_> =
            (0..20).map(|ring| (ring, ring * frames_per_ring(20, FRAMES) / 4 * 5)).collect();
        assert_eq!(given, expected);
        assert_eq!(numbers.take(), None);
    }

    #[test]
    fn many_rings_share_the_memory_and_every_ring_keeps_a_minimum() {
        assert_eq!(frames_per_ring(1, FRAMES), FRAMES);
        assert_eq!(frames_per_ring(1, DEEP_FRAMES), DEEP_FRAMES);
        assert_eq!(frames_per_ring(16, DEEP_FRAMES), FRAMES);
        assert_eq!(frames_per_ring(17, FRAMES), FRAMES / 2);
        assert_eq!(frames_per_ring(256, FRAMES), MIN_FRAMES);
        assert!((1..=256).all(|rings| frames_per_ring(rings, DEEP_FRAMES).is_power_of_two()));
    }
}
