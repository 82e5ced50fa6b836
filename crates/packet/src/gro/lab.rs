//! The engine with its way of matching as a parameter: to see what `dev_gro_receive`'s way costs, and what others would.
//!
//! The rules of merging are those of [`Gro`](super::Gro). Packets are held in lists, one a bucket, newest first, as the kernel
//! holds them (`gro_list`, since 4.19). Not here: device, VLAN tag and Ethernet header, which `gro_list_prepare` compares for every
//! packet of the list and which are the same for all traffic through one router.

use super::{Counts, Limits, Merged, engine::Engine, lists::Lists};
use crate::tcp::Segment;

/// What is compared first with each packet that is held in the bucket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Order {
    /// Three passes: hashes for all of the list (`gro_list_prepare`), addresses for those with equal hashes (`inet_gro_receive`),
    /// then ports until the flow is found (`tcp_gro_lookup`).
    Kernel,
    /// One pass: addresses, then ports.
    L3First,
    /// One pass: ports, then addresses.
    L4First,
    /// One pass: the hash, then ports and addresses.
    HashFirst,
}

/// Where a segment's hash comes from: it chooses the bucket, and is what [`Order::Kernel`] and [`Order::HashFirst`] compare.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Hash {
    /// There is none: 0 for every segment, as `skb_get_hash_raw` is on veth. All are in one bucket.
    None,
    /// It comes with the segment.
    Device,
    /// The engine computes it.
    Computed,
}

/// A way of matching; values out of range are brought into it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Setup {
    /// What is compared first.
    pub order: Order,
    /// Where hashes come from.
    pub hash: Hash,
    /// A power of two; `GRO_HASH_BUCKETS`.
    pub buckets: usize,
    /// Packets held in one bucket; `MAX_GRO_SKBS`.
    pub held: usize,
}

impl Setup {
    /// `GRO_HASH_BUCKETS`.
    pub const BUCKETS: usize = 8;
    /// `MAX_GRO_SKBS`.
    pub const HELD: usize = 8;

    /// The kernel's numbers.
    pub fn of(order: Order, hash: Hash) -> Self {
        Self { order, hash, buckets: Self::BUCKETS, held: Self::HELD }
    }
}

/// What happens while a segment's flow is looked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// A segment comes.
    Begin,
    /// A hash is computed.
    Hash,
    /// A pass comes to a packet of the list.
    Visit,
    /// Hashes are compared.
    CompareHash,
    /// Addresses are.
    CompareL3,
    /// Ports are.
    CompareL4,
}

/// Whoever looks on. `()` does not, and costs nothing.
pub trait Watch {
    /// One step more.
    #[inline(always)]
    fn saw(&mut self, _: Step) {}
}

impl Watch for () {}

/// Steps, counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Walks {
    /// Segments.
    pub segments: u64,
    /// Hashes that the engine computed.
    pub hashed: u64,
    /// Packets that passes came to, once for each pass.
    pub visited: u64,
    /// Comparisons of hashes.
    pub hashes: u64,
    /// Of addresses.
    pub l3: u64,
    /// Of ports.
    pub l4: u64,
}

impl Watch for Walks {
    fn saw(&mut self, step: Step) {
        let count = match step {
            Step::Begin => &mut self.segments,
            Step::Hash => &mut self.hashed,
            Step::Visit => &mut self.visited,
            Step::CompareHash => &mut self.hashes,
            Step::CompareL3 => &mut self.l3,
            Step::CompareL4 => &mut self.l4,
        };
        *count += 1;
    }
}

/// The engine, with room for `PLACES` packets: a power of two, and all buckets together have no more. Some 170 bytes a place.
#[derive(Clone, Debug)]
pub struct Lab<const PLACES: usize, W = ()> {
    engine: Engine<Lists<PLACES, W>>,
}

impl<const PLACES: usize, W: Watch> Lab<PLACES, W> {
    /// An engine that holds nothing yet.
    pub fn new(setup: Setup, watch: W) -> Self {
        Self { engine: Engine::new(Lists::new(setup, watch), Limits::default()) }
    }

    /// As [`Gro::receive`](super::Gro::receive); `hash` is the device's.
    #[inline]
    pub fn receive(&mut self, frame: &[u8], segment: &Segment, hash: u32, out: &mut impl FnMut(&Merged)) {
        self.engine.store_mut().expect(hash);
        self.engine.receive(frame, segment, out);
    }

    /// The end of a poll after which nothing may be held: gives out all, bucket by bucket, what was begun first first
    /// (`napi_gro_flush`).
    pub fn flush_all(&mut self, out: &mut impl FnMut(&Merged)) {
        self.engine.flush_all(out);
    }

    /// What was done so far.
    pub fn counts(&self) -> Counts {
        self.engine.counts()
    }

    /// Who looks on.
    pub fn watch(&self) -> &W {
        self.engine.store().watch()
    }
}
