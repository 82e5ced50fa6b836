//! What is held, and how a segment finds its flow: the last flow first, then by tag, then by addresses and ports.

use super::{MAX_FLOWS, Merged, engine::Store, headers::Headers};

/// At most one packet a flow.
#[derive(Clone, Debug)]
pub(super) struct Table<const FLOWS: usize> {
    /// Slots in use, a bit each.
    used: u64,
    /// Slots that may be used, a bit each.
    allowed: u64,
    last: usize,
    /// Order of insertion, modulo 2^32.
    clock: u32,
    tags: [u32; FLOWS],
    born: [u32; FLOWS],
    held: [Merged; FLOWS],
}

impl<const FLOWS: usize> Table<FLOWS> {
    /// Room for `flows`, 1 to `FLOWS`.
    pub(super) fn new(flows: usize) -> Self {
        Self {
            used: 0,
            allowed: u64::MAX >> (MAX_FLOWS - flows),
            last: 0,
            clock: 0,
            tags: [0; FLOWS],
            born: [0; FLOWS],
            held: [const { Merged::EMPTY }; FLOWS],
        }
    }

    #[inline(always)]
    pub(super) fn is_empty(&self) -> bool {
        self.used == 0
    }

    fn search(&mut self, headers: &Headers<'_>) -> Option<usize> {
        let tag = headers.tag();
        let slot = slots(self.used).find(|&slot| self.tags[slot] == tag && self.holds(slot, headers))?;
        self.last = slot;
        Some(slot)
    }

    #[inline(always)]
    fn holds(&self, slot: usize, headers: &Headers<'_>) -> bool {
        self.used >> (slot % FLOWS) & 1 == 1 && self.held[slot % FLOWS].same_flow(headers)
    }
}

impl<const FLOWS: usize> Store for Table<FLOWS> {
    #[inline(always)]
    fn find(&mut self, headers: &Headers<'_>) -> Option<usize> {
        if self.holds(self.last, headers) {
            return Some(self.last);
        }
        if self.used == 0 { None } else { self.search(headers) }
    }

    #[inline(always)]
    fn held_mut(&mut self, slot: usize) -> &mut Merged {
        &mut self.held[slot % FLOWS]
    }

    fn crowded(&self) -> Option<usize> {
        if self.used == self.allowed { self.oldest() } else { None }
    }

    fn oldest(&self) -> Option<usize> {
        slots(self.used).max_by_key(|&slot| self.clock.wrapping_sub(self.born[slot]))
    }

    fn insert(&mut self, headers: &Headers<'_>, first: Merged) {
        let slot = (!self.used & self.allowed).trailing_zeros() as usize % FLOWS;
        self.held[slot] = first;
        self.tags[slot] = headers.tag();
        self.born[slot] = self.clock;
        self.clock = self.clock.wrapping_add(1);
        self.used |= 1 << slot;
        self.last = slot;
    }

    #[inline(always)]
    fn remove(&mut self, slot: usize) {
        self.used &= !(1 << (slot % FLOWS));
    }
}

fn slots(mut bits: u64) -> impl Iterator<Item = usize> {
    core::iter::from_fn(move || {
        let slot = bits.trailing_zeros() as usize;
        bits &= bits.wrapping_sub(1);
        (slot < MAX_FLOWS).then_some(slot)
    })
}
