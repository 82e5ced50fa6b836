//! What is done with a lifted segment: held and a ghost in its place, or up the stack as it is. Pure but for the writing of
//! what rides, which `Ride` stands for.
//!
//! A segment is held only if Linux would surely accept it: it is the next one in order, and acknowledges, and is stamped, no
//! differently from one that Linux has accepted. Whatever else comes (out of order, a new acknowledgement, options) rides with
//! its bytes, and what Linux makes of it is then looked up. So no stranger's segment can be held in place of the peer's, and
//! what is held is in order of the stream.

use super::payload::Held;
use hoist_packet::{
    flow::FlowKey,
    gro::{Gro, Limits, Merged},
    tcp::{self, Segment},
};
use hoist_stream::{Insert, Reader, StreamIndex, position};

/// Payload of one merged header, bytes: what fits under 65,535 with any headers. Larger ones are cheaper: one pass through the
/// stack for more bytes.
pub(crate) const MERGED_BYTES: u32 = 64_000;
const MERGED_SEGMENTS: u32 = 255;
/// A segment with less payload rides with it, unless it ends a ghost: holding it would cost more than copying.
const SMALL: u32 = 256;
/// How far ahead of the stream a segment may be, bytes: more than any window.
const FAR: u64 = 1 << 30;

/// Where merged packets go.
pub(crate) trait Ride {
    /// A header for payload that is held.
    fn ghost(&mut self, merged: &Merged);
    /// A header with the payload of its segments.
    fn real(&mut self, merged: &Merged, loads: &[Load]);
    /// A frame as it is.
    fn frame(&mut self, frame: &[u8], segment: &Segment);
    /// A frame is done with.
    fn free(&mut self, frame: u32);
    /// The kernel's rcv_nxt as a position of the stream, given what has been drained.
    fn accepted(&mut self, reader: &Reader) -> Option<u64>;
}

/// Payload in a frame, until it has been written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Load {
    /// UMEM address.
    pub(crate) address: u64,
    pub(crate) len: u32,
    pub(crate) frame: u32,
}

/// How a segment is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Room {
    /// In its frame.
    Frame,
    /// Copied out, for frames are few.
    Copy,
    /// Not at all.
    None,
}

/// What Linux has accepted lately of the fields that `tcp_ack` and `tcp_paws_check` judge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Good {
    ack: u32,
    time: Option<u32>,
}

/// A segment that rode in order with its bytes, and tells what is good once Linux has accepted it.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    end: u64,
    good: Good,
}

/// What became of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// Held, with a ghost.
    Held,
    /// Rode, or will, with its bytes.
    Real,
    /// It has urgent data: lifting must end.
    Urgent,
}

/// The receiving state of one stream, guarded by its lock.
pub(crate) struct Work {
    pub(crate) index: StreamIndex<Held>,
    /// Sequence number of byte 0.
    pub(crate) base: u32,
    /// What its segments carry.
    pub(crate) key: Option<FlowKey>,
    /// Position after the last segment in order, as far as is known.
    next: u64,
    good: Option<Good>,
    candidate: Option<Candidate>,
    gro: Option<Box<Gro<1>>>,
    /// What is merged at the moment are ghosts.
    ghosts: bool,
    /// Payload of what is merged at the moment, if it rides with it.
    loads: Vec<Load>,
    pub(crate) tap: i32,
    /// In the pump's list of streams to flush.
    pub(crate) listed: bool,
    /// Shares its cell with a forked child.
    pub(crate) shared: bool,
}

impl Work {
    pub(crate) const fn new() -> Self {
        Self {
            index: StreamIndex::new(),
            base: 0,
            key: None,
            next: 0,
            good: None,
            candidate: None,
            gro: None,
            ghosts: false,
            loads: Vec::new(),
            tap: -1,
            listed: false,
            shared: false,
        }
    }

    /// A new connection, of which the kernel has accepted everything before `next`.
    pub(crate) fn begin(&mut self, base: u32, key: FlowKey, next: u64) {
        (self.base, self.key, self.next) = (base, Some(key), next);
        (self.good, self.candidate) = (None, None);
        self.gro.get_or_insert_with(|| {
            Box::new(Gro::new(Limits { flows: 1, bytes: MERGED_BYTES, segments: MERGED_SEGMENTS }))
        });
    }

    /// Nothing waits to ride.
    #[inline]
    pub(crate) fn idle(&self) -> bool {
        self.gro.as_ref().is_none_or(|gro| gro.is_empty()) && self.loads.is_empty()
    }

    /// Forgets everything that is held or waits.
    pub(crate) fn clear(&mut self, free: impl FnMut(Held)) {
        self.index.clear(free);
        (self.key, self.good, self.candidate, self.next) = (None, None, None, 0);
        self.loads.clear();
        self.gro = None;
    }

    /// Deals with one verified segment of the stream. `lifting`: it may be held.
    #[inline]
    pub(crate) fn segment(
        &mut self,
        reader: &Reader,
        frame: u32,
        address: u64,
        packet: &[u8],
        segment: &Segment,
        room: Room,
        ride: &mut impl Ride,
    ) -> Fate {
        let len = segment.payload_len();
        if len == 0 || self.gro.is_none() || segment.flags & (tcp::SYN | tcp::RST | tcp::URG) != 0 {
            return self.alone(reader, frame, packet, segment, ride);
        }
        let at = position(self.base, self.next, segment.seq).filter(|&at| at <= self.next + FAR);
        let at = self.catch_up(reader, at, ride);
        let in_order = at == Some(self.next);
        let mark = mark(packet, segment);
        let hold = in_order && room != Room::None && self.surely_good(segment, mark, len);
        if !self.idle() && (hold != self.ghosts || !in_order) {
            self.flush(reader, ride);
        }
        self.ghosts = hold;
        let load = Load { address: address + u64::from(segment.payload.start), len, frame };
        if hold {
            self.hold(reader, load, packet, segment, room, ride);
            self.good = mark; // its time is the latest
        } else {
            self.loads.push(load);
            self.candidate = at
                .filter(|_| in_order)
                .zip(mark)
                .map(|(at, good)| Candidate { end: at + u64::from(len), good });
        }
        if in_order {
            self.next += u64::from(len);
        }
        let (gro, loads) = (&mut self.gro, &mut self.loads);
        if let Some(gro) = gro {
            gro.receive(packet, segment, &mut |merged| emit(merged, hold, loads, ride));
        }
        if self.idle() {
            self.learn(reader, ride);
        }
        if hold { Fate::Held } else { Fate::Real }
    }

    /// If the segment leaves a gap, the kernel may know of more than has come by here.
    #[inline]
    fn catch_up(&mut self, reader: &Reader, at: Option<u64>, ride: &mut impl Ride) -> Option<u64> {
        if at.is_some_and(|at| at > self.next) {
            self.flush(reader, ride);
            if let Some(accepted) = ride.accepted(reader) {
                self.next = self.next.max(accepted);
            }
        }
        at
    }

    #[inline]
    fn surely_good(&self, segment: &Segment, mark: Option<Good>, len: u32) -> bool {
        let (Some(good), Some(mark)) = (self.good, mark) else { return false };
        let in_time = match (good.time, mark.time) {
            (None, None) => true,
            (Some(before), Some(now)) => now.wrapping_sub(before) as i32 >= 0,
            _ => false,
        };
        let long = len >= SMALL || self.ghosts && !self.idle();
        in_time && long && mark.ack == good.ack && segment.flags & !(tcp::PSH | tcp::FIN) == tcp::ACK
    }

    fn hold(
        &mut self,
        reader: &Reader,
        load: Load,
        packet: &[u8],
        segment: &Segment,
        room: Room,
        ride: &mut impl Ride,
    ) {
        let held = match room {
            Room::Copy => {
                ride.free(load.frame);
                Held::copy_of(segment.payload_in(packet).unwrap_or_default())
            }
            _ => Held::Frame { address: load.address, len: load.len, frame: load.frame },
        };
        match self.index.insert(reader.position(), self.next, load.len, held) {
            Insert::Kept => {}
            // held already, or read: the ghost stands for what is known
            Insert::Covered(held) | Insert::Scattered(held) => {
                debug_assert!(false, "the next segment in order is new");
                if let Held::Frame { frame, .. } = held {
                    ride.free(frame);
                }
            }
        }
    }

    /// A segment that is never merged, after all that waits.
    #[cold]
    fn alone(
        &mut self,
        reader: &Reader,
        frame: u32,
        packet: &[u8],
        segment: &Segment,
        ride: &mut impl Ride,
    ) -> Fate {
        self.flush(reader, ride);
        ride.frame(packet, segment);
        ride.free(frame);
        if segment.flags & tcp::URG != 0 { Fate::Urgent } else { Fate::Real }
    }

    /// Lets what is merged ride.
    pub(crate) fn flush(&mut self, reader: &Reader, ride: &mut impl Ride) {
        if self.idle() {
            return;
        }
        let (gro, loads, ghosts) = (&mut self.gro, &mut self.loads, self.ghosts);
        if let Some(gro) = gro {
            gro.flush_all(&mut |merged| emit(merged, ghosts, loads, ride));
        }
        debug_assert!(self.loads.is_empty());
        self.learn(reader, ride);
    }

    /// A segment that tells what is good has ridden: has Linux accepted it?
    fn learn(&mut self, reader: &Reader, ride: &mut impl Ride) {
        let Some(candidate) = self.candidate.take() else { return };
        let Some(accepted) = ride.accepted(reader) else { return };
        self.next = self.next.max(accepted);
        if accepted >= candidate.end {
            self.good = Some(candidate.good);
        }
    }
}

/// One merged packet, with its payload if it is not held.
fn emit(merged: &Merged, ghosts: bool, loads: &mut Vec<Load>, ride: &mut impl Ride) {
    if ghosts {
        return ride.ghost(merged);
    }
    let count = (merged.segments() as usize).min(loads.len());
    ride.real(merged, &loads[..count]);
    loads.drain(..count).for_each(|load| ride.free(load.frame));
}

/// Acknowledgement and timestamp of a segment; None if it has other options (`tcp_fast_parse_options`).
#[inline]
fn mark(packet: &[u8], segment: &Segment) -> Option<Good> {
    let options =
        packet.get(segment.transport_at as usize + tcp::HEADER_LEN..segment.payload.start as usize)?;
    let time = match options {
        [] => None,
        // NOP, NOP, timestamps
        [1, 1, 8, 10, a, b, c, d, _, _, _, _] => Some(u32::from_be_bytes([*a, *b, *c, *d])),
        _ => return None,
    };
    Some(Good { ack: segment.ack, time })
}
