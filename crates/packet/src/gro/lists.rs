//! What is held in lists of buckets, and the ways to find a flow in one.

use super::{
    Merged,
    engine::Store,
    headers::Headers,
    lab::{Hash, Order, Setup, Step, Watch},
};

/// No place: the end of a list.
const NONE: u16 = u16::MAX;

#[derive(Clone, Debug)]
pub(super) struct Lists<const PLACES: usize, W> {
    setup: Setup,
    watch: W,
    /// Of the segment that is being received.
    hash: u32,
    /// Places that hold nothing, by `older`.
    free: u16,
    /// No bucket before this one holds anything.
    first: usize,
    buckets: [Bucket; PLACES],
    places: [Place; PLACES],
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    newest: u16,
    oldest: u16,
    len: u16,
}

#[derive(Clone, Debug)]
struct Place {
    newer: u16,
    older: u16,
    hash: u32,
    /// Nothing was found yet that tells it from the segment's flow. `NAPI_GRO_CB(p)->same_flow`.
    same: bool,
    held: Merged,
}

impl Bucket {
    const EMPTY: Self = Self { newest: NONE, oldest: NONE, len: 0 };
}

impl Place {
    const EMPTY: Self = Self { newer: NONE, older: NONE, hash: 0, same: false, held: Merged::EMPTY };
}

impl<const PLACES: usize, W: Watch> Lists<PLACES, W> {
    pub(super) fn new(setup: Setup, watch: W) -> Self {
        const { assert!(PLACES.is_power_of_two() && PLACES < NONE as usize, "places have 16-bit numbers") };
        let buckets = setup.buckets.clamp(1, PLACES).next_power_of_two();
        let held = setup.held.clamp(1, PLACES / buckets);
        let mut lists = Self {
            setup: Setup { buckets, held, ..setup },
            watch,
            hash: 0,
            free: NONE,
            first: PLACES,
            buckets: [Bucket::EMPTY; PLACES],
            places: [const { Place::EMPTY }; PLACES],
        };
        (0..PLACES as u16).rev().for_each(|place| lists.release(place));
        lists
    }

    pub(super) fn watch(&self) -> &W {
        &self.watch
    }

    /// The device's hash of the segment that comes next.
    #[inline(always)]
    pub(super) fn expect(&mut self, hash: u32) {
        self.watch.saw(Step::Begin);
        self.hash = if self.setup.hash == Hash::Device { hash } else { 0 };
    }

    #[inline(always)]
    fn bucket(&self) -> usize {
        self.bucket_of(self.hash)
    }

    #[inline(always)]
    fn bucket_of(&self, hash: u32) -> usize {
        hash as usize & (self.setup.buckets - 1) & (PLACES - 1)
    }

    /// `gro_list_prepare`, `inet_gro_receive`, `tcp_gro_lookup`.
    #[inline(always)]
    fn passes(&mut self, headers: &Headers<'_>) -> Option<usize> {
        let hash = self.hash;
        self.mark(|place, watch| place.has_hash(hash, watch));
        self.mark(|place, watch| place.same && place.has_addresses(headers, watch));
        self.walk(|place, watch| place.same && place.has_ports(headers, watch))
    }

    /// A pass over all of the list.
    #[inline(always)]
    fn mark(&mut self, is_same: impl Fn(&Place, &mut W) -> bool) {
        let mut at = self.buckets[self.bucket()].newest;
        while at != NONE {
            self.watch.saw(Step::Visit);
            let place = &mut self.places[usize::from(at) % PLACES];
            place.same = is_same(place, &mut self.watch);
            at = place.older;
        }
    }

    /// A pass that ends where the flow is found.
    #[inline(always)]
    fn walk(&mut self, is_it: impl Fn(&Place, &mut W) -> bool) -> Option<usize> {
        let mut at = self.buckets[self.bucket()].newest;
        while at != NONE {
            self.watch.saw(Step::Visit);
            let place = &self.places[usize::from(at) % PLACES];
            if is_it(place, &mut self.watch) {
                return Some(at.into());
            }
            at = place.older;
        }
        None
    }

    fn release(&mut self, place: u16) {
        self.places[usize::from(place) % PLACES].older = self.free;
        self.free = place;
    }
}

impl Place {
    #[inline(always)]
    fn has_hash(&self, hash: u32, watch: &mut impl Watch) -> bool {
        watch.saw(Step::CompareHash);
        self.hash == hash
    }

    #[inline(always)]
    fn has_addresses(&self, headers: &Headers<'_>, watch: &mut impl Watch) -> bool {
        watch.saw(Step::CompareL3);
        self.held.same_addresses(headers)
    }

    #[inline(always)]
    fn has_ports(&self, headers: &Headers<'_>, watch: &mut impl Watch) -> bool {
        watch.saw(Step::CompareL4);
        self.held.same_ports(headers)
    }
}

impl<const PLACES: usize, W: Watch> Store for Lists<PLACES, W> {
    #[inline(always)]
    fn find(&mut self, headers: &Headers<'_>) -> Option<usize> {
        if self.setup.hash == Hash::Computed {
            self.watch.saw(Step::Hash);
            self.hash = headers.tag();
        }
        let hash = self.hash;
        match self.setup.order {
            Order::Kernel => self.passes(headers),
            Order::L3First => self
                .walk(|place, watch| place.has_addresses(headers, watch) && place.has_ports(headers, watch)),
            Order::L4First => self
                .walk(|place, watch| place.has_ports(headers, watch) && place.has_addresses(headers, watch)),
            Order::HashFirst => self.walk(|place, watch| {
                place.has_hash(hash, watch)
                    && place.has_ports(headers, watch)
                    && place.has_addresses(headers, watch)
            }),
        }
    }

    #[inline(always)]
    fn held_mut(&mut self, slot: usize) -> &mut Merged {
        &mut self.places[slot % PLACES].held
    }

    fn crowded(&self) -> Option<usize> {
        let bucket = &self.buckets[self.bucket()];
        (usize::from(bucket.len) >= self.setup.held).then_some(bucket.oldest.into())
    }

    fn oldest(&self) -> Option<usize> {
        let buckets = self.buckets.get(self.first..self.setup.buckets)?;
        buckets.iter().find(|bucket| bucket.len != 0).map(|bucket| bucket.oldest.into())
    }

    fn insert(&mut self, _: &Headers<'_>, first: Merged) {
        let (bucket, at) = (self.bucket(), self.free);
        let place = &mut self.places[usize::from(at) % PLACES];
        self.free = place.older;
        let list = &mut self.buckets[bucket];
        *place = Place { newer: NONE, older: list.newest, hash: self.hash, same: false, held: first };
        match core::mem::replace(&mut list.newest, at) {
            NONE => list.oldest = at,
            second => self.places[usize::from(second) % PLACES].newer = at,
        }
        list.len += 1;
        self.first = self.first.min(bucket);
    }

    fn remove(&mut self, slot: usize) {
        let Place { newer, older, hash, .. } = self.places[slot % PLACES];
        let bucket = self.bucket_of(hash);
        match newer {
            NONE => self.buckets[bucket].newest = older,
            newer => self.places[usize::from(newer) % PLACES].older = older,
        }
        match older {
            NONE => self.buckets[bucket].oldest = newer,
            older => self.places[usize::from(older) % PLACES].newer = newer,
        }
        self.buckets[bucket].len -= 1;
        if self.buckets[bucket].len == 0 && self.first == bucket {
            self.first += 1;
        }
        self.release(slot as u16);
    }
}
