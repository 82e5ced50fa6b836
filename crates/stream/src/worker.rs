//! What is done with a lifted segment: held and a ghost in its place, or up the stack as it is. Pure but for the writing of
//! what rides, which [`Ride`] stands for.
//!
//! A segment is held only if Linux would surely accept it: it is the next one in order, and acknowledges, and is stamped, no
//! differently from one that Linux has accepted. Whatever else comes (out of order, a new acknowledgement, options) rides with
//! its bytes, and what Linux makes of it is then looked up. So no stranger's segment can be held in place of the peer's, and
//! what is held is in order of the stream.

use crate::{Insert, Reader, StreamIndex, position};
use hoist_packet::{
    flow::FlowKey,
    gro::{Gro, Limits, Merged},
    tcp::{self, Segment},
};

/// Payload of one merged header, bytes: what fits under 65,535 with any headers. Larger ones are cheaper: one pass through the
/// stack for more bytes.
pub const MERGED_BYTES: u32 = 64_000;
const MERGED_SEGMENTS: u32 = 255;
/// A segment with less payload rides with it, unless it ends a ghost: holding it would cost more than copying.
const SMALL: u32 = 256;
/// How far ahead of the stream a segment may be, bytes: more than any window.
const FAR: u64 = 1 << 30;

/// Where merged packets go.
pub trait Ride {
    /// What stands for held payload.
    type Held;

    /// Payload that is to be held: in its frame, or copied out of it, and the frame freed.
    fn hold(&mut self, load: Load, payload: &[u8], room: Room) -> Self::Held;
    /// A header for payload that is held.
    fn ghost(&mut self, merged: &Merged);
    /// A header with the payload of its segments.
    fn real(&mut self, merged: &Merged, loads: &[Load]);
    /// A frame as it is.
    fn frame(&mut self, frame: &[u8], segment: &Segment);
    /// Held payload that is not needed after all.
    fn drop(&mut self, held: Self::Held);
    /// A frame is done with.
    fn free(&mut self, frame: u32);
    /// The kernel's rcv_nxt as a position of the stream, given what has been drained.
    fn accepted(&mut self, reader: &Reader) -> Option<u64>;
}

/// A verified segment in its frame.
#[derive(Clone, Copy, Debug)]
pub struct Arrived<'a> {
    /// The frame.
    pub frame: u32,
    /// UMEM address of the packet.
    pub address: u64,
    /// The packet.
    pub packet: &'a [u8],
    /// What it is.
    pub segment: &'a Segment,
}

impl Arrived<'_> {
    #[inline]
    fn load(&self) -> Load {
        let address = self.address + u64::from(self.segment.payload.start);
        Load { address, len: self.segment.payload_len(), frame: self.frame }
    }

    /// Acknowledgement and timestamp; None if it has other options (`tcp_fast_parse_options`).
    #[inline]
    fn mark(&self) -> Option<Good> {
        let options =
            self.segment.transport_at as usize + tcp::HEADER_LEN..self.segment.payload.start as usize;
        let time = match self.packet.get(options)? {
            [] => None,
            // NOP, NOP, timestamps
            [1, 1, 8, 10, a, b, c, d, _, _, _, _] => Some(u32::from_be_bytes([*a, *b, *c, *d])),
            _ => return None,
        };
        Some(Good { ack: self.segment.ack, time })
    }
}

/// Payload in a frame, until it has been written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// UMEM address.
    pub address: u64,
    /// Bytes.
    pub len: u32,
    /// The frame.
    pub frame: u32,
}

/// How a segment may be held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
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
pub enum Fate {
    /// Held, with a ghost.
    Held,
    /// Rode, or will, with its bytes.
    Real,
    /// So did this one; it has urgent data: lifting must end.
    Urgent,
}

/// The receiving state of one connection.
pub struct Worker<D> {
    /// What is held.
    pub index: StreamIndex<D>,
    /// Sequence number of byte 0.
    base: u32,
    key: Option<FlowKey>,
    /// Position after the last segment in order, as far as is known.
    next: u64,
    good: Option<Good>,
    candidate: Option<Candidate>,
    gro: Option<Box<Gro<1>>>,
    /// Position of the first byte of what is merged at the moment, if that is in order.
    waits_from: u64,
    /// What is merged at the moment are ghosts.
    ghosts: bool,
    /// Payload of what is merged at the moment, if it rides with it.
    loads: Vec<Load>,
}

impl<D> Default for Worker<D> {
    fn default() -> Self {
        Self::new()
    }
}

impl<D> Worker<D> {
    /// Of no connection yet.
    pub const fn new() -> Self {
        Self {
            index: StreamIndex::new(),
            base: 0,
            key: None,
            next: 0,
            good: None,
            candidate: None,
            gro: None,
            waits_from: 0,
            ghosts: false,
            loads: Vec::new(),
        }
    }

    /// A connection whose byte 0 has sequence number `base`, and of which the kernel has accepted everything before `next`.
    pub fn begin(&mut self, base: u32, key: FlowKey, next: u64) {
        (self.base, self.key, self.next) = (base, Some(key), next);
        (self.good, self.candidate) = (None, None);
        let limits = Limits { flows: 1, bytes: MERGED_BYTES, segments: MERGED_SEGMENTS };
        self.gro.get_or_insert_with(|| Box::new(Gro::new(limits)));
    }

    /// What its segments carry.
    pub fn key(&self) -> Option<FlowKey> {
        self.key
    }

    /// Nothing waits to ride.
    #[inline]
    pub fn idle(&self) -> bool {
        self.gro.as_ref().is_none_or(|gro| gro.is_empty()) && self.loads.is_empty()
    }

    /// Whether what lies at `position`, if it has come, has ridden: nothing of it waits to be merged with more.
    #[inline]
    pub fn rode(&self, position: u64) -> bool {
        self.idle() || position < self.waits_from
    }

    /// Forgets the connection and everything that is held or waits.
    pub fn clear(&mut self, free: impl FnMut(D)) {
        self.index.clear(free);
        (self.key, self.good, self.candidate, self.next) = (None, None, None, 0);
        self.loads.clear();
        self.gro = None;
    }

    /// Deals with one verified segment of the connection; `room`: whether and how it may be held.
    #[inline]
    pub fn segment<R: Ride<Held = D>>(
        &mut self,
        reader: &Reader,
        arrived: &Arrived<'_>,
        room: Room,
        ride: &mut R,
    ) -> Fate {
        let segment = arrived.segment;
        let len = segment.payload_len();
        if len == 0 || self.gro.is_none() || segment.flags & (tcp::SYN | tcp::RST | tcp::URG) != 0 {
            return self.alone(reader, arrived, ride);
        }
        self.next = self.next.max(reader.position()); // what was read has come, some way past here
        let at = position(self.base, self.next, segment.seq).filter(|&at| at <= self.next + FAR);
        self.catch_up(reader, at, ride);
        let in_order = at == Some(self.next);
        let mark = arrived.mark();
        let hold = in_order && room != Room::None && self.surely_good(segment, mark, len);
        if !self.idle() && (hold != self.ghosts || !in_order) {
            self.flush(reader, ride);
        }
        self.ghosts = hold;
        if hold {
            self.hold(reader, arrived, room, ride);
            self.good = mark; // its time is the latest
        } else {
            self.candidate = self.probe(reader, mark.filter(|_| in_order), len, ride);
            self.loads.push(arrived.load());
        }
        let start = self.next;
        if in_order {
            self.next += u64::from(len);
        }
        let (gro, loads) = (&mut self.gro, &mut self.loads);
        if let Some(gro) = gro {
            let mut begins = gro.is_empty();
            gro.receive(arrived.packet, segment, &mut |merged| {
                begins = true;
                emit(merged, hold, loads, ride);
            });
            if begins {
                self.waits_from = start;
            }
        }
        if self.idle() {
            self.learn(reader, ride);
        }
        if hold { Fate::Held } else { Fate::Real }
    }

    /// If the segment leaves a gap, the kernel may know of more than has come by here.
    #[inline]
    fn catch_up<R: Ride<Held = D>>(&mut self, reader: &Reader, at: Option<u64>, ride: &mut R) {
        if at.is_some_and(|at| at > self.next) {
            self.flush(reader, ride);
            if let Some(accepted) = ride.accepted(reader) {
                self.next = self.next.max(accepted);
            }
        }
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

    /// A segment in order that rides with its bytes tells what is good, if the kernel's position is right before it: what the
    /// kernel then moves on by is this segment, and nothing that came past here.
    fn probe<R: Ride<Held = D>>(
        &mut self,
        reader: &Reader,
        mark: Option<Good>,
        len: u32,
        ride: &mut R,
    ) -> Option<Candidate> {
        if self.candidate.map(|candidate| candidate.good) != mark {
            self.flush(reader, ride);
        }
        let sure =
            if self.idle() { ride.accepted(reader) == Some(self.next) } else { self.candidate.is_some() };
        mark.filter(|_| sure).map(|good| Candidate { end: self.next + u64::from(len), good })
    }

    fn hold<R: Ride<Held = D>>(&mut self, reader: &Reader, arrived: &Arrived<'_>, room: Room, ride: &mut R) {
        let load = arrived.load();
        let held = ride.hold(load, arrived.segment.payload_in(arrived.packet).unwrap_or_default(), room);
        match self.index.insert(reader.position(), self.next, load.len, held) {
            Insert::Kept => {}
            Insert::Covered(held) | Insert::Scattered(held) => {
                debug_assert!(false, "the next segment in order is new");
                ride.drop(held);
            }
        }
    }

    /// A segment that is never merged, after all that waits.
    #[cold]
    fn alone<R: Ride<Held = D>>(&mut self, reader: &Reader, arrived: &Arrived<'_>, ride: &mut R) -> Fate {
        self.flush(reader, ride);
        ride.frame(arrived.packet, arrived.segment);
        ride.free(arrived.frame);
        if arrived.segment.flags & tcp::URG != 0 { Fate::Urgent } else { Fate::Real }
    }

    /// Lets what is merged ride.
    pub fn flush<R: Ride<Held = D>>(&mut self, reader: &Reader, ride: &mut R) {
        if self.idle() {
            return;
        }
        // What has passed by meanwhile may have moved the kernel on as far as the candidate would, which it refuses.
        if self.candidate.is_some() && ride.accepted(reader) != Some(self.waits_from) {
            self.candidate = None;
        }
        let (gro, loads, ghosts) = (&mut self.gro, &mut self.loads, self.ghosts);
        if let Some(gro) = gro {
            gro.flush_all(&mut |merged| emit(merged, ghosts, loads, ride));
        }
        debug_assert!(self.loads.is_empty());
        self.learn(reader, ride);
    }

    /// A segment that tells what is good has ridden: has Linux accepted it?
    fn learn<R: Ride<Held = D>>(&mut self, reader: &Reader, ride: &mut R) {
        let Some(candidate) = self.candidate.take() else { return };
        let Some(accepted) = ride.accepted(reader) else { return };
        self.next = self.next.max(accepted);
        if accepted == candidate.end {
            self.good = Some(candidate.good);
        }
    }
}

/// One merged packet, with its payload if that is not held.
fn emit<R: Ride>(merged: &Merged, ghosts: bool, loads: &mut Vec<Load>, ride: &mut R) {
    if ghosts {
        return ride.ghost(merged);
    }
    let count = (merged.segments() as usize).min(loads.len());
    ride.real(merged, &loads[..count]);
    loads.drain(..count).for_each(|load| ride.free(load.frame));
}
