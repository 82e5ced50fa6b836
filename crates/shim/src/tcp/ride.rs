//! Segments from a ring to their stream, and up the stack: a virtio_net_hdr, the headers, and ghost bytes or the payload, written
//! to the device's TAP.

use super::{
    payload::{COPIED_OUT, Held},
    stream::{Guard, Stream},
};
use crate::{
    engine::{Memory, State, give_back},
    frames::Arrival,
    sys,
};
use core::sync::atomic::Ordering::Relaxed;
use hoist_ipc::tcp::Slot;
use hoist_packet::{
    flow::FlowKey,
    gro::Merged,
    tcp::{self, Segment},
};
use hoist_stream::{Arrived, Fate, Load, Reader, Ride, Room};
use hoist_xsk::Desc;
use std::io::IoSlice;

/// Ghost bytes. A page stays in the first-level cache, however often it is written.
static GHOST: [u8; 4096] = [0; 4096];
/// Entries of a vector: virtio_net_hdr, headers, payload.
const VECTOR: usize = 2 + 256;
/// Payload that may be copied out of frames, in all, bytes; beyond it segments ride with their bytes.
const COPIED_OUT_MAX: u64 = 256 << 20;
/// Entries of a stream that lies in frames while these are few: more are copied out.
const PINNED: usize = 64;

const VIRTIO_NET_HDR_F_NEEDS_CSUM: u8 = 1;
/// Bytes of a virtio_net_hdr without buffers to merge.
const VIRTIO: usize = 10;

/// One stream's way up the stack.
pub(crate) struct Rider {
    pub(crate) memory: &'static Memory,
    pub(crate) tap: i32,
    pub(crate) fd: i32,
    pub(crate) slot: Option<&'static Slot>,
    pub(crate) failed: u64,
}

impl Rider {
    fn write(&mut self, vector: &[IoSlice<'_>]) {
        if sys::writev(self.tap, vector).is_err() {
            self.failed += 1; // as if the wire had lost it
        }
    }

    fn payload(&self, load: &Load) -> &'static [u8] {
        let desc = Desc { addr: load.address, len: load.len, options: 0 };
        self.memory.umem.packet(desc).unwrap_or_default()
    }

    fn merged(&mut self, merged: &Merged, payload: impl Iterator<Item = IoSlice<'static>>) {
        let virtio = merged.virtio_net_hdr();
        let mut vector = [IoSlice::new(&[]); VECTOR];
        (vector[0], vector[1]) = (IoSlice::new(&virtio), IoSlice::new(merged.headers()));
        let mut used = 2;
        for (slot, piece) in vector[2..].iter_mut().zip(payload) {
            *slot = piece;
            used += 1;
        }
        self.write(&vector[..used]);
    }
}

impl Ride for Rider {
    type Held = Held;

    #[inline]
    fn hold(&mut self, load: Load, payload: &[u8], room: Room) -> Held {
        if room == Room::Copy {
            self.free(load.frame);
            return Held::copy_of(payload);
        }
        Held::Frame { address: load.address, len: load.len, frame: load.frame }
    }

    fn drop(&mut self, held: Held) {
        held.free(self.memory);
    }

    fn ghost(&mut self, merged: &Merged) {
        let mut left = merged.payload_len() as usize;
        let ghosts = core::iter::from_fn(|| {
            let now = left.min(GHOST.len());
            left -= now;
            (now > 0).then(|| IoSlice::new(&GHOST[..now]))
        });
        self.merged(merged, ghosts);
        if let Some(slot) = self.slot {
            slot.rode.fetch_add(1, Relaxed);
        }
    }

    fn real(&mut self, merged: &Merged, loads: &[Load]) {
        let mut payload = [IoSlice::new(&[]); VECTOR];
        for (slot, load) in payload.iter_mut().zip(loads) {
            *slot = IoSlice::new(self.payload(load));
        }
        self.merged(merged, payload[..loads.len().min(VECTOR - 2)].iter().copied());
        if let Some(slot) = self.slot {
            slot.rode.fetch_add(1, Relaxed);
            slot.rode_real.fetch_add(loads.len() as u64, Relaxed);
        }
    }

    fn frame(&mut self, frame: &[u8], segment: &Segment) {
        // what follows IP's length is no part of the packet
        let frame = &frame[..frame.len().min(segment.payload.end as usize)];
        self.write(&[IoSlice::new(&virtio_of(segment)), IoSlice::new(frame)]);
        if let Some(slot) = self.slot {
            slot.rode_real.fetch_add(1, Relaxed);
        }
    }

    fn free(&mut self, frame: u32) {
        give_back(self.memory, frame);
    }

    fn accepted(&mut self, reader: &Reader) -> Option<u64> {
        let queued = sys::queued(self.fd).ok()?;
        Some(reader.position() - reader.undrained() + queued)
    }
}

/// The header of a segment that rides as it is: a checksum that its sender left unfinished is for the stack to trust, as it would
/// have been.
fn virtio_of(segment: &Segment) -> [u8; VIRTIO] {
    let mut header = [0; VIRTIO];
    if segment.partial {
        header[0] = VIRTIO_NET_HDR_F_NEEDS_CSUM;
        header[2..4].copy_from_slice(&(segment.payload.start as u16).to_ne_bytes());
        header[6..8].copy_from_slice(&(segment.transport_at as u16).to_ne_bytes());
        header[8..10].copy_from_slice(&16u16.to_ne_bytes());
    }
    header
}

/// What became of a frame with TCP in it.
pub(crate) enum Delivered {
    /// It is dealt with.
    Done,
    /// The checksum or a length is wrong: drop it.
    Damaged(hoist_packet::Refused),
    /// It is not TCP as it is read here: let it ride as it is.
    Other,
}

/// Where a frame came from.
pub(crate) struct From {
    pub(crate) ring: usize,
    pub(crate) tap: i32,
    pub(crate) trust: hoist_packet::udp::ChecksumTrust,
    pub(crate) room: Room,
}

/// Deals with one lifted frame with TCP in it.
#[inline]
pub(crate) fn deliver(
    state: &mut State,
    memory: &'static Memory,
    from: &From,
    desc: Desc,
    frame: u32,
    packet: &[u8],
) -> Delivered {
    let segment = match tcp::parse(packet, from.trust) {
        Ok(segment) => segment,
        Err(refused) if refused.is_damaged() => return Delivered::Damaged(refused),
        Err(_) => return Delivered::Other,
    };
    memory.frames.record(frame, Arrival { address: desc.addr, ring: from.ring as u16, ..Arrival::default() });
    let stream = state.streams.find(&FlowKey::from(&segment));
    let guard = stream.filter(|stream| stream.involved()).and_then(Stream::lock);
    let Some(mut guard) = guard else {
        let slot = stream.and_then(Stream::own_slot);
        let mut rider = Rider { memory, tap: from.tap, fd: -1, slot, failed: 0 };
        rider.frame(packet, &segment);
        rider.free(frame);
        state.ride_failed(from.ring, rider.failed);
        return Delivered::Done;
    };
    let stream = guard.stream;
    let arrived = Arrived { frame, address: desc.addr, packet, segment: &segment };
    let failed = through(&mut guard, memory, from, &arrived);
    let listed = !guard.work().worker.idle() && !core::mem::replace(&mut guard.work().listed, true);
    drop(guard);
    state.ride_failed(from.ring, failed);
    if listed {
        state.unflushed.push(stream);
    }
    Delivered::Done
}

#[inline]
fn through(guard: &mut Guard, memory: &'static Memory, from: &From, arrived: &Arrived<'_>) -> u64 {
    let stream = guard.stream;
    let (reader, work) = guard.parts();
    work.tap = from.tap;
    let slot = stream.own_slot();
    let mut rider = Rider { memory, tap: from.tap, fd: stream.fd.load(Relaxed), slot, failed: 0 };
    let room = if stream.kept().is_some() { Room::None } else { room(from.room) };
    let fate = work.worker.segment(reader, arrived, room, &mut rider);
    if room == Room::Copy && work.worker.index.len() > PINNED {
        work.worker.index.iter_mut().for_each(|entry| entry.data.copy_out(memory));
    }
    if fate == Fate::Urgent {
        super::urgent(stream);
    }
    rider.failed
}

fn room(room: Room) -> Room {
    if room == Room::Copy && COPIED_OUT.load(Relaxed) > COPIED_OUT_MAX { Room::None } else { room }
}

/// Lets what is merged of `stream` ride.
pub(crate) fn flush(stream: &'static Stream, memory: &'static Memory) {
    let Some(mut guard) = stream.lock() else { return };
    guard.work().listed = false;
    let slot = stream.own_slot();
    let (reader, work) = guard.parts();
    let mut rider = Rider { memory, tap: work.tap, fd: stream.fd.load(Relaxed), slot, failed: 0 };
    work.worker.flush(reader, &mut rider);
}
