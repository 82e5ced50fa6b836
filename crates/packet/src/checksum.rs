//! The internet checksum: RFC 1071, incremental update by RFC 1624.

use core::ops::Add;

/// A ones' complement sum, not folded. Pieces added together must each start at an even offset of the whole.
///
/// Kept in memory byte order: the sum of swapped words is the swapped sum (RFC 1071, 2(B)), so only the fold swaps.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Sum(u64);

impl Sum {
    /// The sum over `bytes`, an odd last byte padded with zero.
    #[inline]
    pub fn of(bytes: &[u8]) -> Self {
        let (blocks, rest) = bytes.as_chunks::<BLOCK>();
        let head = if blocks.is_empty() { 0 } else { of_blocks(blocks) };
        Self(head) + of_short(rest)
    }

    /// One 16-bit word, host byte order.
    #[inline]
    pub const fn word(value: u16) -> Self {
        Self(value.to_be() as u64)
    }

    /// The 16-bit ones' complement sum, host byte order; not inverted. Zero only if every byte was zero.
    #[inline]
    pub const fn fold(self) -> u16 {
        let sum = (self.0 & LOW) + (self.0 >> 32);
        let sum = (sum & 0xffff) + ((sum >> 16) & 0xffff) + (sum >> 32);
        let sum = (sum & 0xffff) + (sum >> 16);
        let sum = (sum & 0xffff) + (sum >> 16);
        u16::from_be(sum as u16)
    }

    /// The checksum field's value: the fold, inverted. A correct header that includes its field gives zero.
    #[inline]
    pub const fn checksum(self) -> u16 {
        !self.fold()
    }
}

impl Add for Sum {
    type Output = Self;
    #[inline]
    fn add(self, other: Self) -> Self {
        // Every term is a word of at most 32 bits, so nothing is carried out below 16 GiB.
        Self(self.0.wrapping_add(other.0))
    }
}

/// The IPv4 pseudo-header (RFC 768): addresses, protocol, length of header and payload in bytes.
#[inline]
pub fn pseudo_header_v4(source: [u8; 4], destination: [u8; 4], protocol: u8, len: u16) -> Sum {
    let addresses = u64::from(u32::from_ne_bytes(source)) + u64::from(u32::from_ne_bytes(destination));
    Sum(addresses) + Sum::word(protocol.into()) + Sum::word(len)
}

/// The IPv6 pseudo-header (RFC 8200, 8.1): addresses, length of header and payload in bytes, next header.
#[inline]
pub fn pseudo_header_v6(source: &[u8; 16], destination: &[u8; 16], protocol: u8, len: u32) -> Sum {
    let high = Sum::word((len >> 16) as u16);
    Sum::of(source) + Sum::of(destination) + Sum::word(protocol.into()) + high + Sum::word(len as u16)
}

/// The checksum field after a 16-bit word it covers went from `old` to `new`: RFC 1624, equation 3.
///
/// For UDP a result of zero must be sent as 0xffff: see [`for_udp`].
#[inline]
pub const fn update(checksum: u16, old: u16, new: u16) -> u16 {
    let sum = !checksum as u32 + !old as u32 + new as u32;
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    !(sum as u16)
}

/// [`update`] for a 32-bit word at an even offset.
#[inline]
pub const fn update_u32(checksum: u16, old: u32, new: u32) -> u16 {
    update(update(checksum, (old >> 16) as u16, (new >> 16) as u16), old as u16, new as u16)
}

/// UDP's form of a checksum: zero means "none", so a computed zero travels as 0xffff (RFC 768).
#[inline]
pub const fn for_udp(checksum: u16) -> u16 {
    if checksum == 0 { 0xffff } else { checksum }
}

/// What a checksum field may hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ChecksumTrust {
    /// A checksum that holds, or UDP's zero on IPv4.
    Verify,
    /// Also the folded pseudo-header sum, not inverted: `CHECKSUM_PARTIAL`, which a sender on the same host leaves to
    /// the device and veth hands on as it is. The payload of such a packet never met a wire and is not verified.
    /// Only for devices that do so: on a real wire a corrupted packet could pass for one.
    PartialAllowed,
}

const BLOCK: usize = 64;
const LANES: usize = BLOCK / 8;
const LOW: u64 = 0xffff_ffff;

/// Each lane adds 32-bit halves, so it cannot overflow below 2^31 blocks, and the compiler is free to vectorise.
#[inline]
fn of_blocks(blocks: &[[u8; BLOCK]]) -> u64 {
    let mut lanes = [0u64; LANES];
    for block in blocks {
        let (words, _) = block.as_chunks::<8>();
        for (lane, word) in lanes.iter_mut().zip(words) {
            *lane = lane.wrapping_add(halves(u64::from_ne_bytes(*word)));
        }
    }
    lanes.into_iter().fold(Sum(0), |sum, lane| sum + Sum(lane)).0
}

/// Fewer than [`BLOCK`] bytes.
#[inline]
fn of_short(bytes: &[u8]) -> Sum {
    let (words, mut rest) = bytes.as_chunks::<8>();
    let mut sum = words.iter().fold(0u64, |sum, word| sum.wrapping_add(halves(u64::from_ne_bytes(*word))));
    if let Some((word, tail)) = rest.split_first_chunk::<4>() {
        sum = sum.wrapping_add(u32::from_ne_bytes(*word).into());
        rest = tail;
    }
    if let Some((word, tail)) = rest.split_first_chunk::<2>() {
        sum = sum.wrapping_add(u16::from_ne_bytes(*word).into());
        rest = tail;
    }
    let odd = rest.first().map_or(0, |&last| u16::from_ne_bytes([last, 0]));
    Sum(sum.wrapping_add(odd.into()))
}

#[inline(always)]
fn halves(word: u64) -> u64 {
    (word & LOW) + (word >> 32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    /// RFC 1071's definition, word by word.
    fn slow(bytes: &[u8]) -> u16 {
        let mut sum = 0u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }

    #[test]
    fn the_example_of_rfc_1071_sums_to_ddf2() {
        assert_eq!(Sum::of(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]).fold(), 0xddf2);
    }

    #[test]
    fn nothing_but_ones_keeps_every_carry() {
        for len in 0..=4096 {
            let bytes = std::vec![0xff; len];
            assert_eq!(Sum::of(&bytes).fold(), slow(&bytes), "{len} bytes");
        }
    }

    #[test]
    fn the_example_of_rfc_1624_updates_to_zero() {
        // Section 4: HC = 0xDD2F, m = 0x5555, m' = 0x3285 must give 0x0000, where RFC 1141 gives 0xFFFF.
        assert_eq!(update(0xdd2f, 0x5555, 0x3285), 0);
    }

    proptest! {
        #[test]
        fn the_sum_is_the_definition(bytes in prop::collection::vec(any::<u8>(), 0..3000)) {
            prop_assert_eq!(Sum::of(&bytes).fold(), slow(&bytes));
        }

        #[test]
        fn pieces_cut_at_even_offsets_add_up(bytes in prop::collection::vec(any::<u8>(), 0..300), cut in 0usize..150) {
            let (head, tail) = bytes.split_at((cut * 2).min(bytes.len() & !1));
            prop_assert_eq!((Sum::of(head) + Sum::of(tail)).fold(), slow(&bytes));
        }

        #[test]
        fn an_update_equals_a_new_sum(mut bytes in prop::collection::vec(any::<u8>(), 8..64), at in 0usize..32, new: u32) {
            let at = (at * 2).min((bytes.len() - 4) & !1);
            // RFC 1624 assumes that the data is not all zeroes: fixed words see to it, as in a real header.
            bytes.extend([0x45, 0x00]);
            bytes.rotate_right(2);
            let at = at + 2;
            let checksum = Sum::of(&bytes).checksum();
            let old = u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap());
            bytes[at..at + 4].copy_from_slice(&new.to_be_bytes());
            prop_assert_eq!(update_u32(checksum, old, new), Sum::of(&bytes).checksum());
        }

        #[test]
        fn pseudo_headers_are_their_bytes(a: [u8; 16], b: [u8; 16], protocol: u8, len: u32) {
            let v6: Vec<u8> = [&a[..], &b, &len.to_be_bytes(), &[0, 0, 0, protocol]].concat();
            prop_assert_eq!(pseudo_header_v6(&a, &b, protocol, len).fold(), slow(&v6));
            let (a, b) = ([a[0], a[1], a[2], a[3]], [b[0], b[1], b[2], b[3]]);
            let v4: Vec<u8> = [&a[..], &b, &[0, protocol], &(len as u16).to_be_bytes()].concat();
            prop_assert_eq!(pseudo_header_v4(a, b, protocol, len as u16).fold(), slow(&v4));
        }
    }
}
