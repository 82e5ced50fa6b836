//! What is held, and how a segment finds its flow: the last flow first, then by tag, then by addresses and ports.

use super::{MAX_FLOWS, Merged, engine::Store, headers::Headers};

/// No slot: the end of a chain or of the row.
const NONE: u8 = u8::MAX;

/// At most one packet a flow.
#[derive(Clone, Debug)]
pub(super) struct Table<const FLOWS: usize> {
    /// Slots in use, a bit each.
    used: u64,
    /// Slots that may be used, a bit each.
    allowed: u64,
    last: usize,
    tags: [u32; FLOWS],
    chains: Chains<FLOWS>,
    row: Row<FLOWS>,
    held: [Merged; FLOWS],
}

impl<const FLOWS: usize> Table<FLOWS> {
    /// Room for `flows`, 1 to `FLOWS`.
    pub(super) fn new(flows: usize) -> Self {
        Self {
            used: 0,
            allowed: u64::MAX >> (MAX_FLOWS - flows),
            last: 0,
            tags: [0; FLOWS],
            chains: Chains { first: [NONE; FLOWS], next: [NONE; FLOWS] },
            row: Row { oldest: NONE, newest: NONE, older: [NONE; FLOWS], newer: [NONE; FLOWS] },
            held: [const { Merged::EMPTY }; FLOWS],
        }
    }

    #[inline(always)]
    pub(super) fn is_empty(&self) -> bool {
        self.used == 0
    }

    fn search(&mut self, headers: &Headers<'_>) -> Option<usize> {
        let tag = headers.tag();
        let slot = self.chains.of(tag).find(|&slot| self.tags[slot] == tag && self.holds(slot, headers))?;
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
        (self.row.oldest != NONE).then_some(self.row.oldest.into())
    }

    fn insert(&mut self, headers: &Headers<'_>, first: Merged) {
        let slot = (!self.used & self.allowed).trailing_zeros() as usize % FLOWS;
        let tag = headers.tag();
        self.held[slot] = first;
        self.tags[slot] = tag;
        self.chains.push(tag, slot);
        self.row.push(slot);
        self.used |= 1 << slot;
        self.last = slot;
    }

    #[inline(always)]
    fn remove(&mut self, slot: usize) {
        let slot = slot % FLOWS;
        self.used &= !(1 << slot);
        self.chains.remove(self.tags[slot], slot);
        self.row.remove(slot);
    }
}

/// Slots by some bits of their tags.
#[derive(Clone, Debug)]
struct Chains<const FLOWS: usize> {
    first: [u8; FLOWS],
    next: [u8; FLOWS],
}

impl<const FLOWS: usize> Chains<FLOWS> {
    fn of(&self, tag: u32) -> impl Iterator<Item = usize> {
        let mut at = self.first[tag as usize % FLOWS];
        core::iter::from_fn(move || {
            let slot = (at != NONE).then_some(usize::from(at) % FLOWS)?;
            at = self.next[slot];
            Some(slot)
        })
    }

    fn push(&mut self, tag: u32, slot: usize) {
        let first = &mut self.first[tag as usize % FLOWS];
        self.next[slot] = core::mem::replace(first, slot as u8);
    }

    fn remove(&mut self, tag: u32, slot: usize) {
        let next = self.next[slot];
        let before = self.of(tag).find(|&before| usize::from(self.next[before]) == slot);
        match before {
            Some(before) => self.next[before] = next,
            None => self.first[tag as usize % FLOWS] = next,
        }
    }
}

/// Slots in the order in which they were taken.
#[derive(Clone, Debug)]
struct Row<const FLOWS: usize> {
    oldest: u8,
    newest: u8,
    older: [u8; FLOWS],
    newer: [u8; FLOWS],
}

impl<const FLOWS: usize> Row<FLOWS> {
    fn push(&mut self, slot: usize) {
        self.older[slot] = self.newest;
        self.newer[slot] = NONE;
        match core::mem::replace(&mut self.newest, slot as u8) {
            NONE => self.oldest = slot as u8,
            before => self.newer[usize::from(before) % FLOWS] = slot as u8,
        }
    }

    fn remove(&mut self, slot: usize) {
        let (older, newer) = (self.older[slot], self.newer[slot]);
        match older {
            NONE => self.oldest = newer,
            older => self.newer[usize::from(older) % FLOWS] = newer,
        }
        match newer {
            NONE => self.newest = older,
            newer => self.older[usize::from(newer) % FLOWS] = older,
        }
    }
}
