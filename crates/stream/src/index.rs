//! What payload of a stream is held, by position.

use std::collections::VecDeque;

/// Where the bytes of an entry are.
pub trait Payload {
    /// All bytes of the segment that the entry was made of.
    fn bytes(&self) -> &[u8];
}

/// Payload of one segment, or what was new of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry<D> {
    /// Position of its first byte.
    pub start: u64,
    /// Bytes of it.
    pub len: u32,
    /// Bytes of `data` in front of the first.
    pub skip: u32,
    /// Where they are.
    pub data: D,
}

impl<D> Entry<D> {
    /// Position after its last byte.
    #[inline]
    pub fn end(&self) -> u64 {
        self.start + u64::from(self.len)
    }
}

impl<D: Payload> Entry<D> {
    /// The bytes from position `from` to `to`, both clipped to the entry.
    #[inline]
    pub fn slice(&self, from: u64, to: u64) -> &[u8] {
        let (from, to) = (from.clamp(self.start, self.end()), to.clamp(self.start, self.end()));
        let at = |position: u64| (position - self.start) as usize + self.skip as usize;
        self.data.bytes().get(at(from)..at(to)).unwrap_or_default()
    }
}

/// What became of a segment's payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Insert<D> {
    /// It is held; some of it may have been held already.
    Kept,
    /// All of it was held already, or has been read: nothing is kept of it, and a ghost may stand for it.
    Covered(D),
    /// It would close several holes at once, which one entry cannot: it must ride with its bytes.
    Scattered(D),
}

/// Entries in order, none overlapping another.
#[derive(Debug)]
pub struct StreamIndex<D> {
    entries: VecDeque<Entry<D>>,
}

impl<D> Default for StreamIndex<D> {
    fn default() -> Self {
        Self { entries: VecDeque::new() }
    }
}

impl<D> StreamIndex<D> {
    /// Nothing held.
    pub const fn new() -> Self {
        Self { entries: VecDeque::new() }
    }

    /// Nothing held.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Entries held.
    #[inline]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Entries in order of position.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &Entry<D>> {
        self.entries.iter()
    }

    /// Entries in order of position, for moving their bytes elsewhere.
    pub fn iter_mut(&mut self) -> impl DoubleEndedIterator<Item = &mut Entry<D>> {
        self.entries.iter_mut()
    }

    /// Holds `len` bytes at position `start`; what lies before `floor` has been read.
    #[inline]
    pub fn insert(&mut self, floor: u64, start: u64, len: u32, data: D) -> Insert<D> {
        let end = start + u64::from(len);
        let from = start.max(floor);
        if from >= end {
            return Insert::Covered(data);
        }
        let place = match self.entries.back() {
            Some(last) if last.end() > from => match self.gap(from, end) {
                Ok(Some(gap)) => gap,
                Ok(None) => return Insert::Covered(data),
                Err(Holes) => return Insert::Scattered(data),
            },
            _ => Gap { at: self.entries.len(), from, to: end },
        };
        let (len, skip) = ((place.to - place.from) as u32, (place.from - start) as u32);
        self.entries.insert(place.at, Entry { start: place.from, len, skip, data });
        Insert::Kept
    }

    /// The one stretch of `from..to` that no entry holds; None: all is held.
    fn gap(&self, from: u64, to: u64) -> Result<Option<Gap>, Holes> {
        let first = self.entries.partition_point(|entry| entry.end() <= from);
        let mut found = None;
        let mut at = from;
        let mut note = |index, from, to| {
            if from < to && found.replace(Gap { at: index, from, to }).is_some() {
                Err(Holes)
            } else {
                Ok(())
            }
        };
        let mut index = first;
        while let Some(entry) = self.entries.get(index).filter(|entry| entry.start < to) {
            note(index, at, entry.start)?;
            at = entry.end();
            index += 1;
        }
        note(index, at, to)?;
        Ok(found)
    }

    /// The entry that holds the byte at `position`, and its number.
    #[inline]
    fn find(&self, position: u64) -> Option<usize> {
        match self.entries.front() {
            None => None,
            Some(first) if first.start > position => None,
            Some(first) if position < first.end() => Some(0),
            Some(_) => {
                let index = self.entries.partition_point(|entry| entry.end() <= position);
                self.entries.get(index).filter(|entry| entry.start <= position).map(|_| index)
            }
        }
    }

    /// The entry that holds the byte at `position`.
    #[inline]
    pub fn at(&self, position: u64) -> Option<&Entry<D>> {
        self.find(position).map(|index| &self.entries[index])
    }

    /// How many bytes from `position` on are held without a hole, at most `max`.
    #[inline]
    pub fn covered(&self, position: u64, max: u64) -> u64 {
        let Some(first) = self.find(position) else { return 0 };
        let mut end = position;
        for entry in self.entries.range(first..) {
            if entry.start > end || end - position >= max {
                break;
            }
            end = entry.end();
        }
        (end - position).min(max)
    }

    /// Where the entry or the hole at `position` ends. None: nothing is held from there on.
    pub fn piece_end(&self, position: u64) -> Option<u64> {
        let index = self.entries.partition_point(|entry| entry.end() <= position);
        let next = self.entries.get(index)?;
        Some(if next.start <= position { next.end() } else { next.start })
    }

    /// Takes out entries that end at or before `position`.
    #[inline]
    pub fn release(&mut self, position: u64, mut free: impl FnMut(D)) {
        while self.entries.front().is_some_and(|entry| entry.end() <= position) {
            if let Some(entry) = self.entries.pop_front() {
                free(entry.data);
            }
        }
    }

    /// Takes out the entry that holds the byte at `position`.
    #[inline]
    pub fn pop_at(&mut self, position: u64) -> Option<Entry<D>> {
        let index = self.find(position)?;
        self.entries.remove(index)
    }

    /// Takes out everything.
    pub fn clear(&mut self, mut free: impl FnMut(D)) {
        self.entries.drain(..).for_each(|entry| free(entry.data));
    }
}

impl<D: Payload> StreamIndex<D> {
    /// Calls `piece` with what is held of `from..to`, in order: position and bytes. Returns how many bytes that were.
    #[inline]
    pub fn each(&self, from: u64, to: u64, mut piece: impl FnMut(u64, &[u8])) -> u64 {
        let first = match self.entries.front() {
            Some(entry) if entry.end() > from => 0,
            _ => self.entries.partition_point(|entry| entry.end() <= from),
        };
        let mut held = 0;
        for entry in self.entries.range(first.min(self.entries.len())..) {
            if entry.start >= to {
                break;
            }
            let bytes = entry.slice(from, to);
            held += bytes.len() as u64;
            piece(entry.start.max(from), bytes);
        }
        held
    }
}

struct Gap {
    /// Number of the entry behind it.
    at: usize,
    from: u64,
    to: u64,
}

/// More than one gap.
struct Holes;

#[cfg(test)]
mod tests {
    use super::*;

    impl Payload for Vec<u8> {
        fn bytes(&self) -> &[u8] {
            self
        }
    }

    fn data(start: u64, len: u32) -> Vec<u8> {
        (start..start + u64::from(len)).map(|position| position as u8).collect()
    }

    fn index(ranges: &[(u64, u32)]) -> StreamIndex<Vec<u8>> {
        let mut index = StreamIndex::default();
        for &(start, len) in ranges {
            index.insert(0, start, len, data(start, len));
        }
        index
    }

    fn held(index: &StreamIndex<Vec<u8>>) -> Vec<(u64, u64)> {
        index.iter().map(|entry| (entry.start, entry.end())).collect()
    }

    #[test]
    fn segments_are_held_in_order_of_position_whatever_order_they_came_in() {
        let index = index(&[(20, 10), (0, 10), (10, 10)]);
        assert_eq!(held(&index), [(0, 10), (10, 20), (20, 30)]);
        assert_eq!((index.covered(0, 100), index.covered(5, 10), index.covered(30, 1)), (30, 10, 0));
    }

    #[test]
    fn only_what_is_new_of_a_segment_is_kept() {
        let mut index = index(&[(10, 10), (30, 10)]);
        assert_eq!(index.insert(0, 12, 5, data(12, 5)), Insert::Covered(data(12, 5)));
        assert_eq!(index.insert(0, 15, 20, data(15, 20)), Insert::Kept); // 20..30
        assert_eq!(index.insert(4, 0, 12, data(0, 12)), Insert::Kept); // 4..10
        assert_eq!(index.insert(4, 0, 4, data(0, 4)), Insert::Covered(data(0, 4)));
        assert_eq!(held(&index), [(4, 10), (10, 20), (20, 30), (30, 40)]);
        let mut seen = Vec::new();
        assert_eq!(index.each(5, 35, |position, bytes| seen.push((position, bytes.to_vec()))), 30);
        let all: Vec<u8> = seen.into_iter().flat_map(|(_, bytes)| bytes).collect();
        assert_eq!(all, data(5, 30));
    }

    #[test]
    fn a_piece_ends_where_another_begins() {
        let index = index(&[(10, 5), (15, 5), (30, 5)]);
        assert_eq!([9, 10, 14, 15, 20, 29].map(|at| index.piece_end(at)), [10, 15, 15, 20, 30, 30].map(Some));
        assert_eq!((index.piece_end(34), index.piece_end(35)), (Some(35), None));
    }

    #[test]
    fn a_segment_over_two_holes_is_refused() {
        let mut index = index(&[(10, 10), (30, 10)]);
        assert_eq!(index.insert(0, 0, 50, data(0, 50)), Insert::Scattered(data(0, 50)));
        assert_eq!(index.insert(0, 5, 20, data(5, 20)), Insert::Scattered(data(5, 20)));
        assert_eq!(held(&index), [(10, 20), (30, 40)]);
    }

    #[test]
    fn what_has_been_read_is_given_back_entry_by_entry() {
        let mut index = index(&[(0, 10), (10, 10)]);
        let mut freed = Vec::new();
        index.release(9, |data| freed.push(data));
        assert!(freed.is_empty());
        index.release(15, |data| freed.push(data));
        assert_eq!((freed.len(), held(&index)), (1, vec![(10, 20)]));
        assert_eq!(index.pop_at(9), None);
        assert_eq!(index.pop_at(15).map(|entry| entry.slice(15, 99).to_vec()), Some(data(15, 5)));
        assert!(index.is_empty());
    }
}
