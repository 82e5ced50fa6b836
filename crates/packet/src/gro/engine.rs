//! The rules by which a segment joins what is held of its flow, however that is found.

use super::{
    CLOSING, Cause, Counts, Limits, MAX_BYTES, Merged, SOLITARY,
    headers::{Headers, Probe},
};
use crate::{flow::FlowKey, tcp::Segment};

/// Where packets are held: at most one a flow, in slots that have numbers.
pub(super) trait Store {
    /// The slot of the flow that these headers are of. `crowded` and `insert` are of these headers, too.
    fn find(&mut self, headers: &Headers<'_>) -> Option<usize>;
    /// A packet that was found, is the oldest or is in the way.
    fn held_mut(&mut self, slot: usize) -> &mut Merged;
    /// What must go before another can be held.
    fn crowded(&self) -> Option<usize>;
    /// What is given out first when all is.
    fn oldest(&self) -> Option<usize>;
    /// Holds the first of a flow; the caller has made room.
    fn insert(&mut self, headers: &Headers<'_>, first: Merged);
    /// Holds it no longer.
    fn remove(&mut self, slot: usize);
}

#[derive(Clone, Debug)]
pub(super) struct Engine<S> {
    store: S,
    limits: Limits,
    counts: Counts,
}

impl<S: Store> Engine<S> {
    pub(super) fn new(store: S, limits: Limits) -> Self {
        let limits = Limits { bytes: limits.bytes.min(MAX_BYTES), ..limits };
        Self { store, limits, counts: Counts::default() }
    }

    #[inline(always)]
    pub(super) fn store(&self) -> &S {
        &self.store
    }

    #[inline(always)]
    pub(super) fn store_mut(&mut self) -> &mut S {
        &mut self.store
    }

    pub(super) fn counts(&self) -> Counts {
        self.counts
    }

    #[inline(always)]
    pub(super) fn receive(&mut self, frame: &[u8], segment: &Segment, out: &mut impl FnMut(&Merged)) {
        let Some(headers) = Headers::of(frame, segment) else { return };
        match self.store.find(&headers) {
            Some(slot) => self.join(slot, &headers, segment, out),
            None => self.begin(&headers, segment, out),
        }
    }

    pub(super) fn flush_flow(&mut self, key: &FlowKey, out: &mut impl FnMut(&Merged)) {
        let Some(probe) = Probe::new(key) else { return };
        if let Some(slot) = self.store.find(&probe.headers()) {
            self.complete(slot, Cause::Asked, out);
        }
    }

    pub(super) fn flush_all(&mut self, out: &mut impl FnMut(&Merged)) {
        while let Some(slot) = self.store.oldest() {
            self.complete(slot, Cause::Asked, out);
        }
    }

    #[inline]
    fn join(&mut self, slot: usize, headers: &Headers<'_>, segment: &Segment, out: &mut impl FnMut(&Merged)) {
        let held = self.store.held_mut(slot);
        if let Err(cause) = held.admits(headers, segment, &self.limits) {
            self.complete(slot, cause, out);
            return self.begin(headers, segment, out);
        }
        held.append(segment);
        let closed = held.closed(segment, &self.limits);
        self.counts.merged += 1;
        if let Some(cause) = closed {
            self.complete(slot, cause, out);
        }
    }

    /// Holds a segment of a flow of which nothing is held, or lets it pass alone.
    fn begin(&mut self, headers: &Headers<'_>, segment: &Segment, out: &mut impl FnMut(&Merged)) {
        let first = Merged::first(headers, segment);
        if !self.may_grow(headers, segment) {
            self.counts.add(Cause::Alone);
            return give(first, out);
        }
        if let Some(slot) = self.store.crowded() {
            self.complete(slot, Cause::Evicted, out);
        }
        self.store.insert(headers, first);
    }

    fn may_grow(&self, headers: &Headers<'_>, segment: &Segment) -> bool {
        let len = segment.payload_len();
        len != 0
            && len <= self.limits.bytes
            && self.limits.segments > 1
            && segment.flags & (CLOSING | SOLITARY) == 0
            && !headers.has_reserved_fragment_bit()
    }

    fn complete(&mut self, slot: usize, cause: Cause, out: &mut impl FnMut(&Merged)) {
        self.counts.add(cause);
        let held = self.store.held_mut(slot);
        held.finish();
        out(held);
        self.store.remove(slot);
    }
}

fn give(mut merged: Merged, out: &mut impl FnMut(&Merged)) {
    merged.finish();
    out(&merged);
}
