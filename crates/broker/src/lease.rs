//! The AF_XDP rings while one process has them.

use crate::{
    account::Frames,
    device::{self, Device},
    error::Error,
    steer::Steer,
    sys::VNET_HEADER,
    tap::Tap,
};
use hoist_ipc::{RingInfo, page::StatsPage};
use hoist_packet::{
    checksum::{pseudo_header_v4, pseudo_header_v6},
    ethernet, ipv4, ipv6, udp,
};
use hoist_xsk::{ChunkSize, FillRing, Mode, RxRing, Socket, Statistics, Umem};
use std::{collections::BTreeSet, os::fd::AsFd, sync::atomic::Ordering::Relaxed};

/// Entries of an rx ring.
pub const RX_SIZE: u32 = 2048;
/// Entries of a fill ring.
pub const FILL_SIZE: u32 = 4096;
/// Frames of a ring, unless many rings have to share.
pub const FRAMES: u32 = 4096;
/// The same where TCP is lifted: a window of the kernel's default size (tcp_rmem, 6 MiB) and more must fit in a ring, which loses
/// what a socket's buffer would have held.
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

/// Frames of each of `rings` rings, at most `most`.
fn frames_per_ring(rings: u32, most: u32) -> u32 {
    let share = TOTAL_FRAMES / rings.max(1);
    let power = if share.is_power_of_two() { share } else { share.next_power_of_two() / 2 };
    power.clamp(MIN_FRAMES, most)
}

/// One AF_XDP socket.
pub(crate) struct Ring {
    pub(crate) info: RingInfo,
    pub(crate) socket: Socket,
    pub(crate) zero_copy: bool,
    /// Why zero-copy was refused.
    pub(crate) refused: Option<String>,
}

/// UMEM and rings of one process.
pub(crate) struct Lease {
    /// Channel of the process.
    pub(crate) owner: u64,
    pub(crate) umem: Umem,
    pub(crate) rings: Vec<Ring>,
    /// The process knows the UMEM already.
    pub(crate) umem_sent: bool,
    /// It knows the rings below this number already.
    pub(crate) announced: u32,
    /// Devices it knows already.
    pub(crate) devices: BTreeSet<u32>,
    numbers: Numbers,
}

/// Numbers of rings, and with them their frames. None is given twice in a lease: the process may still use the frames of a
/// ring that is gone.
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

    /// The next ring's number and first frame.
    fn take(&mut self) -> Option<(u32, u32)> {
        let ring = self.next;
        (ring < self.end).then(|| {
            self.next += 1;
            (ring, ring * self.per_ring)
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

impl Lease {
    /// Makes the UMEM for `rings` rings; `deep`: TCP is lifted.
    pub(crate) fn new(owner: u64, rings: u32, deep: bool) -> Result<Self, Error> {
        let rings = rings.clamp(1, hoist_ipc::page::RINGS as u32);
        let numbers = Numbers::new(rings, if deep { DEEP_FRAMES } else { FRAMES });
        let umem = Umem::create(numbers.per_ring * rings, CHUNK, false)
            .map_err(|cause| Error::Xsk { operation: "make the UMEM".into(), cause })?;
        let (rings, devices) = (Vec::new(), BTreeSet::new());
        Ok(Self { owner, umem, rings, umem_sent: false, announced: 0, devices, numbers })
    }

    pub(crate) fn has(&self, ifindex: u32) -> bool {
        self.rings.iter().any(|ring| ring.info.ifindex == ifindex)
    }

    /// Binds one socket to every queue of `device` and puts it in steer's map. All or none.
    pub(crate) fn add(
        &mut self,
        device: &Device,
        steer: &mut Steer,
        mode: Mode,
        page: &StatsPage,
    ) -> Result<(), Error> {
        let before = self.rings.len();
        let done =
            (0..device::rx_queues(device)).try_for_each(|queue| self.add_ring(device, queue, mode, before));
        let done = done.and_then(|()| {
            let new = &self.rings[before..];
            new.iter().try_for_each(|ring| steer.set_ring(ring.info.queue, ring.socket.as_fd()))
        });
        if done.is_err() {
            self.rings.truncate(before);
            return done;
        }
        for ring in &self.rings[before..] {
            // Right until the shim counts for itself; also if it never does.
            let free = u64::from(ring.info.frames - ring.info.prefilled);
            page.rings[ring.info.ring as usize].free.store(free, Relaxed);
        }
        Ok(())
    }

    fn add_ring(
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
            rx_size: RX_SIZE.max(self.numbers.per_ring / 2),
            fill_size: FILL_SIZE.max(self.numbers.per_ring),
            first_frame,
            frames: self.numbers.per_ring,
            prefilled: self.numbers.per_ring / 2,
            zero_copy: false, // known once it is bound
        };
        let first = self.rings.get(first_of_device).map(|ring| &ring.socket);
        let made = bind(&self.umem, info, mode, first).map_err(|cause| Error::Xsk {
            operation: format!("make the AF_XDP socket of {} queue {queue}", device.name),
            cause,
        })?;
        self.rings.push(made);
        Ok(())
    }

    /// Takes the rings of one device away, for a device that is gone.
    pub(crate) fn drop_device(&mut self, ifindex: u32) -> Vec<Ring> {
        let (gone, kept) = self.rings.drain(..).partition(|ring| ring.info.ifindex == ifindex);
        self.rings = kept;
        self.devices.remove(&ifindex); // it may come back with another TAP
        gone
    }

    /// Gives packets that nobody took to the stack and counts the frames. Call it when nothing is lifted any more and a grace
    /// period has passed. While the owner lives (`alive`) its rings are its own: it takes the rest out of them itself.
    pub(crate) fn end<'t>(
        self,
        page: &StatsPage,
        alive: bool,
        tap: impl Fn(u32) -> Option<(&'t Tap, bool)>,
    ) -> Vec<Ended> {
        let end = |ring: &Ring| match alive {
            true => ring.leave(),
            false => ring.end(&self.umem, page, tap(ring.info.ifindex)),
        };
        self.rings.iter().filter_map(|ring| end(ring).ok()).collect()
    }
}

fn bind(umem: &Umem, info: RingInfo, mode: Mode, first: Option<&Socket>) -> Result<Ring, hoist_xsk::Error> {
    let socket = Socket::open()?;
    if first.is_none() {
        // Each device registers the memory anew, so that each has the mode its driver can.
        socket.register_umem(umem, 0)?;
    }
    socket.set_umem_rings(info.fill_size, COMPLETION_SIZE)?;
    socket.set_rings(info.rx_size, 0)?;
    let mut fill = FillRing::map(socket.as_fd(), info.fill_size)?;
    for frame in info.first_frame..info.first_frame + info.prefilled {
        fill.push(umem.addr_of(frame));
    }
    fill.submit();
    let bound = socket.bind(info.ifindex, info.queue, mode, first.map(|socket| socket.as_fd()))?;
    let refused = bound.refused.map(|error| error.to_string());
    let info = RingInfo { zero_copy: bound.zero_copy, ..info };
    Ok(Ring { info, socket, zero_copy: bound.zero_copy, refused })
}

impl Ring {
    pub(crate) fn frames(&self, page: &StatsPage, fill: &FillRing, rx: &RxRing) -> Frames {
        let stats = &page.rings[self.info.ring as usize];
        Frames {
            total: self.info.frames.into(),
            fill: fill.pending().into(),
            rx: rx.pending().into(),
            queued: stats.queued.load(Relaxed),
            free: stats.free.load(Relaxed),
            bad: stats.bad_descriptor.load(Relaxed),
            zero_copy: self.zero_copy,
            uncounted: page.pumps.load(Relaxed) > 0 && page.accounted.load(Relaxed) == 0,
            was_full: self.socket.statistics().is_ok_and(|s| s.rx_ring_full > 0),
        }
    }

    /// To its owner, uncounted.
    fn leave(&self) -> Result<Ended, hoist_xsk::Error> {
        let frames = Frames { uncounted: true, ..Frames::default() };
        Ok(Ended { info: self.info, frames, statistics: self.socket.statistics()?, rode: 0 })
    }

    fn end(
        &self,
        umem: &Umem,
        page: &StatsPage,
        tap: Option<(&Tap, bool)>,
    ) -> Result<Ended, hoist_xsk::Error> {
        let mut rx = RxRing::map(self.socket.as_fd(), self.info.rx_size)?;
        let fill = FillRing::map(self.socket.as_fd(), self.info.fill_size)?;
        let frames = self.frames(page, &fill, &rx);
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
        let expected: Vec<_> = (0..20).map(|ring| (ring, ring * frames_per_ring(20, FRAMES))).collect();
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
