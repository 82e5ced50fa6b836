//! Generic receive offload for TCP: consecutive segments of a flow become one packet.
//!
//! The rules are those of `inet_gro_receive`, `ipv6_gro_receive` and `tcp_gro_receive`, where they differ between
//! kernels the strictest; docs/gro.md has them in one table. Only headers are held: whoever owns the frames keeps the
//! payload, which [`Merged::payload_len`] counts.

mod engine;
mod headers;
pub mod lab;
mod lists;
mod merged;
mod table;

pub use merged::Merged;

use crate::{
    flow::FlowKey,
    tcp::{CWR, FIN, PSH, RST, SYN, Segment, URG},
};
use engine::Engine;
use table::Table;

/// Bytes of the longest headers of a segment: Ethernet, IPv6, TCP with options.
pub const MAX_HEADERS: usize = 14 + 40 + 60;
/// Most packets that are held.
pub const MAX_FLOWS: usize = 64;
/// Most bytes of payload in one packet. `skb_gro_receive` keeps a packet from its network header on below 65,536 bytes
/// (`GRO_LEGACY_MAX_SIZE`).
pub const MAX_BYTES: u32 = 65_535 - 40 - 60;

/// A packet that has a segment with one of these is complete. `tcp_gro_receive`.
const CLOSING: u8 = PSH | FIN;
/// A segment with one of these is never merged. `tcp_gro_receive`; CWR in front of others only in kernels whose
/// segmentation clears it again.
const SOLITARY: u8 = SYN | RST | URG | CWR;

/// What may be held; values out of range are brought into it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Packets held at once, one a flow: 1 to the engine's room.
    pub flows: usize,
    /// Payload bytes of one packet: at most [`MAX_BYTES`]. A longer segment passes alone.
    pub bytes: u32,
    /// Segments of one packet; below 2 nothing is merged.
    pub segments: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self { flows: MAX_FLOWS, bytes: MAX_BYTES, segments: u32::MAX }
    }
}

/// What an engine did since it was made: segments merged, and why packets were given out.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    /// Segments added to a packet that was held.
    pub merged: u64,
    /// Packets of one segment that was not held: its flags, no payload, or longer than a packet may be.
    pub alone: u64,
    /// By PSH or FIN of the last segment.
    pub pushed: u64,
    /// The last segment was shorter than the first.
    pub short: u64,
    /// No room for the next segment, or no more segments allowed.
    pub full: u64,
    /// The next segment began elsewhere.
    pub gap: u64,
    /// The next segment had another header.
    pub differed: u64,
    /// The next segment was longer than the first.
    pub longer: u64,
    /// The next segment is one that is never merged.
    pub overtaken: u64,
    /// The place was needed for another flow.
    pub evicted: u64,
    /// By [`Gro::flush_flow`] or [`Gro::flush_all`].
    pub asked: u64,
}

/// Why a packet is complete.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Cause {
    Alone,
    Pushed,
    Short,
    Full,
    Gap,
    Differed,
    Longer,
    Overtaken,
    Evicted,
    Asked,
}

impl Counts {
    fn add(&mut self, cause: Cause) {
        let count = match cause {
            Cause::Alone => &mut self.alone,
            Cause::Pushed => &mut self.pushed,
            Cause::Short => &mut self.short,
            Cause::Full => &mut self.full,
            Cause::Gap => &mut self.gap,
            Cause::Differed => &mut self.differed,
            Cause::Longer => &mut self.longer,
            Cause::Overtaken => &mut self.overtaken,
            Cause::Evicted => &mut self.evicted,
            Cause::Asked => &mut self.asked,
        };
        *count += 1;
    }
}

/// Merges segments of up to `FLOWS` flows at a time, at most [`MAX_FLOWS`]. Of a fixed size, some 160 bytes a flow; nothing is
/// allocated.
#[derive(Clone, Debug)]
pub struct Gro<const FLOWS: usize = MAX_FLOWS> {
    engine: Engine<Table<FLOWS>>,
}

impl<const FLOWS: usize> Gro<FLOWS> {
    /// An engine that holds nothing yet.
    pub fn new(limits: Limits) -> Self {
        const { assert!(FLOWS >= 1 && FLOWS <= MAX_FLOWS, "a bit of 64 for each flow") };
        let flows = limits.flows.clamp(1, FLOWS);
        Self { engine: Engine::new(Table::new(flows), Limits { flows, ..limits }) }
    }

    /// Takes the headers of `segment`, which was parsed from `frame`; the payload is not looked at, nor need it be
    /// there. `out` gets every packet that this completes. Packets of one flow come out in the order of their segments.
    ///
    /// A segment that cannot be of this frame is ignored.
    #[inline]
    pub fn receive(&mut self, frame: &[u8], segment: &Segment, out: &mut impl FnMut(&Merged)) {
        self.engine.receive(frame, segment, out);
    }

    /// Gives out what is held of a flow.
    pub fn flush_flow(&mut self, key: &FlowKey, out: &mut impl FnMut(&Merged)) {
        self.engine.flush_flow(key, out);
    }

    /// Gives out all that is held, what was begun first first.
    pub fn flush_all(&mut self, out: &mut impl FnMut(&Merged)) {
        self.engine.flush_all(out);
    }

    /// Nothing is held.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.engine.store().is_empty()
    }

    /// What was done so far.
    pub fn counts(&self) -> Counts {
        self.engine.counts()
    }
}
