//! From a segment's addresses to the stream it belongs to: open addressing, under the pump lock.

use super::stream::Stream;
use hoist_packet::flow::FlowKey;

/// Streams by the flow key that their peer's segments carry.
#[derive(Default)]
pub(crate) struct Flows {
    /// A power of two, at most three quarters used.
    slots: Vec<Option<(FlowKey, &'static Stream)>>,
    used: usize,
    seed: u32,
    last: Option<(FlowKey, &'static Stream)>,
}

const FIRST: usize = 64;

impl Flows {
    pub(crate) const fn new() -> Self {
        Self { slots: Vec::new(), used: 0, seed: 0, last: None }
    }

    fn home(&self, key: &FlowKey) -> usize {
        key.hash(self.seed) as usize & (self.slots.len() - 1)
    }

    #[inline]
    pub(crate) fn find(&mut self, key: &FlowKey) -> Option<&'static Stream> {
        if let Some((known, stream)) = self.last
            && known == *key
        {
            return Some(stream);
        }
        let index = self.place(key)?;
        self.last = self.slots[index];
        self.last.map(|(_, stream)| stream)
    }

    /// Where `key` is.
    fn place(&self, key: &FlowKey) -> Option<usize> {
        if self.slots.is_empty() {
            return None;
        }
        let mut index = self.home(key);
        while let Some((found, _)) = self.slots[index] {
            if found == *key {
                return Some(index);
            }
            index = (index + 1) & (self.slots.len() - 1);
        }
        None
    }

    /// A stream that was known under `key` is forgotten.
    pub(crate) fn insert(&mut self, key: FlowKey, stream: &'static Stream) {
        self.last = None;
        if let Some(index) = self.place(&key) {
            self.slots[index] = Some((key, stream));
            return;
        }
        if (self.used + 1) * 4 > self.slots.len() * 3 {
            self.grow();
        }
        self.used += 1;
        self.put(key, stream);
    }

    fn put(&mut self, key: FlowKey, stream: &'static Stream) {
        let mut index = self.home(&key);
        while self.slots[index].is_some() {
            index = (index + 1) & (self.slots.len() - 1);
        }
        self.slots[index] = Some((key, stream));
    }

    fn grow(&mut self) {
        if self.slots.is_empty() {
            self.seed = crate::sys::getrandom_u64() as u32; // so that no peer can choose flows that collide
        }
        let size = (self.slots.len() * 2).max(FIRST);
        let old = core::mem::replace(&mut self.slots, vec![None; size]);
        old.into_iter().flatten().for_each(|(key, stream)| self.put(key, stream));
    }

    /// Forgets `stream`, if it is what `key` means.
    pub(crate) fn remove(&mut self, key: &FlowKey, stream: &'static Stream) {
        self.last = None;
        let Some(mut hole) = self.place(key) else { return };
        if self.slots[hole].is_none_or(|(_, found)| !core::ptr::eq(found, stream)) {
            return;
        }
        self.used -= 1;
        self.slots[hole] = None;
        // close the gap: what follows without one may have been pushed past it
        let mask = self.slots.len() - 1;
        let mut index = (hole + 1) & mask;
        while let Some((key, _)) = self.slots[index] {
            let home = self.home(&key);
            if (index.wrapping_sub(home) & mask) >= (index.wrapping_sub(hole) & mask) {
                self.slots[hole] = self.slots[index].take();
                hole = index;
            }
            index = (index + 1) & mask;
        }
    }

    pub(crate) fn clear(&mut self) {
        *self = Self::new();
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &'static Stream> + '_ {
        self.slots.iter().flatten().map(|(_, stream)| *stream)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hoist_packet::{Ip, SocketAddrRaw};
    use proptest::prelude::*;

    fn key(port: u16) -> FlowKey {
        let end = |port| SocketAddrRaw { ip: Ip::V4([10, 0, 0, 1]), port };
        FlowKey { source: end(port), destination: end(80) }
    }

    proptest! {
        #[test]
        fn finds_what_was_put_in_and_not_taken_out(steps in prop::collection::vec((0u16..200, any::<bool>()), 0..400)) {
            let streams: Vec<&'static Stream> = (0..200).map(|_| &*Box::leak(Box::new(Stream::new()))).collect();
            let mut flows = Flows::new();
            let mut oracle = std::collections::BTreeSet::new();
            for (port, add) in steps {
                if add {
                    flows.insert(key(port), streams[port as usize]);
                    oracle.insert(port);
                } else {
                    flows.remove(&key(port), streams[port as usize]);
                    oracle.remove(&port);
                }
                for port in 0..200 {
                    let found = flows.find(&key(port));
                    prop_assert_eq!(found.is_some(), oracle.contains(&port));
                    prop_assert!(found.is_none_or(|found| core::ptr::eq(found, streams[port as usize])));
                }
                prop_assert_eq!(flows.iter().count(), oracle.len());
            }
        }
    }
}
