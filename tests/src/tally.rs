//! What was received of a stream, in few words that two processes can compare.

use std::fmt;

/// Bytes of a stream, counted and hashed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tally {
    /// How many.
    pub bytes: u64,
    /// How many of them were read where they arrived.
    pub borrowed: u64,
    hash: u64,
}

impl Default for Tally {
    fn default() -> Self {
        Self { bytes: 0, borrowed: 0, hash: 0xcbf2_9ce4_8422_2325 }
    }
}

impl Tally {
    /// The next bytes; the hash is FNV-1a of all so far.
    pub fn add(&mut self, bytes: &[u8], borrowed: bool) {
        self.bytes += bytes.len() as u64;
        self.borrowed += if borrowed { bytes.len() as u64 } else { 0 };
        let step = |hash: u64, &byte: &u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        self.hash = bytes.iter().fold(self.hash, step);
    }

    /// Of the whole stream.
    pub fn of(bytes: &[u8]) -> Self {
        let mut tally = Self::default();
        tally.add(bytes, false);
        tally
    }

    /// Whether the same bytes were received, wherever.
    pub fn same(&self, other: &Self) -> bool {
        (self.bytes, self.hash) == (other.bytes, other.hash)
    }

    /// From what `Display` has written.
    pub fn parse(text: &str) -> Option<Self> {
        let words: Vec<&str> = text.split_whitespace().collect();
        match words[..] {
            [bytes, "bytes,", borrowed, "borrowed,", "hash", hash] => Some(Self {
                bytes: bytes.parse().ok()?,
                borrowed: borrowed.parse().ok()?,
                hash: u64::from_str_radix(hash, 16).ok()?,
            }),
            _ => None,
        }
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes, {} borrowed, hash {:016x}", self.bytes, self.borrowed, self.hash)
    }
}

/// The next of a row of numbers that `state` begins (SplitMix64).
pub fn draw(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mixed = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tally_tells_streams_apart_and_is_read_back() {
        let mut parts = Tally::default();
        parts.add(b"in two", true);
        parts.add(b" parts", false);
        assert!(parts.same(&Tally::of(b"in two parts")) && !parts.same(&Tally::of(b"in two party")));
        assert_eq!(Tally::parse(&parts.to_string()), Some(parts));
        assert_eq!(Tally::parse("3 bytes"), None);
    }
}
