//! Headers as GRO compares them: word by word, under a mask of what may differ.

use super::MAX_HEADERS;
use crate::{
    Ip, be32,
    ethernet::HEADER_LEN as LINK,
    flow::FlowKey,
    ipv4, ipv6,
    tcp::{self, FIN, PSH, Segment, field},
};

/// Where the TCP header starts in an IPv4 frame.
pub(super) const V4_AT: usize = LINK + ipv4::HEADER_LEN;
/// Where the TCP header starts in an IPv6 frame.
pub(super) const V6_AT: usize = LINK + ipv6::HEADER_LEN;
/// Bytes before the options.
pub(super) const V4_BASE: usize = V4_AT + tcp::HEADER_LEN;
pub(super) const V6_BASE: usize = V6_AT + tcp::HEADER_LEN;

/// IPv4: total length, then identification.
pub(super) const V4_LEN: usize = LINK + 2;
pub(super) const V4_ID: usize = LINK + 4;
pub(super) const V4_FRAGMENT: usize = LINK + 6;
const V4_CHECKSUM: usize = LINK + 10;
/// IPv6: payload length.
pub(super) const V6_LEN: usize = LINK + 4;

/// Addresses and ports lie together: they end with the ports.
const V4_KEY: usize = LINK + 12;
const V6_KEY: usize = LINK + 8;
const V4_KEY_END: usize = V4_AT + field::SEQ;
const V6_KEY_END: usize = V6_AT + field::SEQ;

const RESERVED: u8 = 0x80;
/// Don't fragment, in the first byte of the fragment field.
pub(super) const DONT_FRAGMENT: u8 = 0x40;

/// Set where two segments of one packet must be equal: all but lengths, checksums, identification, sequence number,
/// PSH and FIN. `inet_gro_flush`, `ipv6_gro_flush`, `tcp_gro_receive`, `gro_list_prepare`.
static V4_MASK: [u8; V4_BASE] =
    transport_mask(without(without([0xff; V4_BASE], V4_LEN, 4), V4_CHECKSUM, 2), V4_AT);
static V6_MASK: [u8; V6_BASE] = transport_mask(without([0xff; V6_BASE], V6_LEN, 2), V6_AT);

const fn transport_mask<const N: usize>(mask: [u8; N], at: usize) -> [u8; N] {
    let mut mask = without(without(mask, at + field::SEQ, 4), at + field::CHECKSUM, 2);
    mask[at + field::FLAGS] = !(PSH | FIN);
    mask
}

const fn without<const N: usize>(mut mask: [u8; N], at: usize, len: usize) -> [u8; N] {
    let mut i = at;
    while i < at + len {
        mask[i] = 0;
        i += 1;
    }
    mask
}

/// The headers of a segment in its frame: all before the options, and the options.
#[derive(Clone, Copy, Debug)]
pub(super) enum Headers<'a> {
    V4(&'a [u8; V4_BASE], &'a [u8]),
    V6(&'a [u8; V6_BASE], &'a [u8]),
}

impl<'a> Headers<'a> {
    /// `None` if the segment's offsets are not possible in a packet, or not in this frame.
    #[inline(always)]
    pub(super) fn of(frame: &'a [u8], segment: &Segment) -> Option<Self> {
        let headers = frame.get(..segment.payload.start as usize)?;
        let split = match segment.transport_at as usize {
            V4_AT => headers.split_first_chunk().map(|(base, options)| Self::V4(base, options)),
            V6_AT => headers.split_first_chunk().map(|(base, options)| Self::V6(base, options)),
            _ => None,
        };
        let possible = segment.payload_len() <= u16::MAX.into();
        split.filter(|found| possible && found.options().len() <= tcp::MAX_OPTIONS_LEN)
    }

    #[inline(always)]
    pub(super) fn base(&self) -> &'a [u8] {
        match self {
            Self::V4(base, _) => &base[..],
            Self::V6(base, _) => &base[..],
        }
    }

    #[inline(always)]
    pub(super) fn options(&self) -> &'a [u8] {
        match self {
            Self::V4(_, options) | Self::V6(_, options) => options,
        }
    }

    #[inline(always)]
    pub(super) fn transport_at(&self) -> usize {
        match self {
            Self::V4(..) => V4_AT,
            Self::V6(..) => V6_AT,
        }
    }

    /// Addresses and ports are those of `other`, headers of the same family.
    #[inline(always)]
    pub(super) fn same_flow(&self, other: &[u8; MAX_HEADERS]) -> bool {
        match self {
            Self::V4(base, _) => differ(&base[V4_KEY..V4_KEY_END], &other[V4_KEY..V4_KEY_END]) == 0,
            Self::V6(base, _) => differ(&base[V6_KEY..V6_KEY_END], &other[V6_KEY..V6_KEY_END]) == 0,
        }
    }

    /// Addresses are those of `other`, headers of the same family.
    #[inline(always)]
    pub(super) fn same_addresses(&self, other: &[u8; MAX_HEADERS]) -> bool {
        match self {
            Self::V4(base, _) => differ(&base[V4_KEY..V4_AT], &other[V4_KEY..V4_AT]) == 0,
            Self::V6(base, _) => differ(&base[V6_KEY..V6_AT], &other[V6_KEY..V6_AT]) == 0,
        }
    }

    /// Both ports, as they are read.
    #[inline(always)]
    pub(super) fn ports(&self) -> u32 {
        match self {
            Self::V4(base, _) => be32(base, V4_AT),
            Self::V6(base, _) => be32(base, V6_AT),
        }
    }

    /// All that must be equal within a packet is, but for what needs arithmetic: sequence number and identification.
    /// Equal data offsets, which lie under the mask, make the options equally long.
    #[inline(always)]
    pub(super) fn same_but_masked(&self, other: &[u8; MAX_HEADERS]) -> bool {
        match self {
            Self::V4(base, options) => {
                masked(base, other, &V4_MASK) | differ(options, &other[V4_BASE..][..options.len()]) == 0
            }
            Self::V6(base, options) => {
                masked(base, other, &V6_MASK) | differ(options, &other[V6_BASE..][..options.len()]) == 0
            }
        }
    }

    /// IPv4's identification; `None` on IPv6.
    #[inline(always)]
    pub(super) fn id(&self) -> Option<u16> {
        match self {
            Self::V4(base, _) => Some(u16::from_be_bytes([base[V4_ID], base[V4_ID + 1]])),
            Self::V6(..) => None,
        }
    }

    /// The bit of IPv4's fragment field that is neither fragmentation nor its ban. `inet_gro_receive` flushes it.
    pub(super) fn has_reserved_fragment_bit(&self) -> bool {
        matches!(self, Self::V4(base, _) if base[V4_FRAGMENT] & RESERVED != 0)
    }

    /// Some bits of addresses and ports.
    #[inline(always)]
    pub(super) fn tag(&self) -> u32 {
        match self {
            Self::V4(base, _) => tag(&base[V4_KEY..V4_KEY_END]),
            Self::V6(base, _) => tag(&base[V6_KEY..V6_KEY_END]),
        }
    }
}

/// Zero if the first `N` bytes are equal where the mask is set.
#[inline(always)]
fn masked<const N: usize>(a: &[u8; N], b: &[u8; MAX_HEADERS], mask: &[u8; N]) -> u64 {
    let words = words(a).zip(words(&b[..N])).zip(words(mask));
    words.fold(0, |all, ((a, b), mask)| all | (a ^ b) & mask)
}

/// All bytes as words; the last overlaps the one before it.
#[inline(always)]
fn words(bytes: &[u8]) -> impl Iterator<Item = u64> {
    let (whole, last) = (bytes.as_chunks().0, bytes.last_chunk());
    whole.iter().chain(last).map(|word| u64::from_ne_bytes(*word))
}

/// Zero if two equally long runs of four-byte words are equal.
#[inline(always)]
fn differ(a: &[u8], b: &[u8]) -> u64 {
    let (a, b) = (a.as_chunks::<4>().0, b.as_chunks::<4>().0);
    a.iter().zip(b).fold(0, |all, (a, b)| all | (u32::from_ne_bytes(*a) ^ u32::from_ne_bytes(*b))).into()
}

#[inline(always)]
fn tag(key: &[u8]) -> u32 {
    let mixed = key.as_chunks::<4>().0.iter().fold(0u64, |mixed, word| {
        (mixed.rotate_left(23) ^ u64::from(u32::from_ne_bytes(*word))).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    });
    (mixed >> 32) as u32
}

/// Headers of which only addresses and ports are there, to look a flow up with.
pub(super) enum Probe {
    V4([u8; V4_BASE]),
    V6([u8; V6_BASE]),
}

impl Probe {
    /// `None` if the families differ: no packet is of such a flow.
    pub(super) fn new(key: &FlowKey) -> Option<Self> {
        let ports = [key.source.port.to_be_bytes(), key.destination.port.to_be_bytes()];
        match (key.source.ip, key.destination.ip) {
            (Ip::V4(source), Ip::V4(destination)) => {
                let mut base = [0; V4_BASE];
                fill(&mut base[V4_KEY..V4_KEY_END], &source, &destination, ports.as_flattened());
                Some(Self::V4(base))
            }
            (Ip::V6(source), Ip::V6(destination)) => {
                let mut base = [0; V6_BASE];
                fill(&mut base[V6_KEY..V6_KEY_END], &source, &destination, ports.as_flattened());
                Some(Self::V6(base))
            }
            _ => None,
        }
    }

    pub(super) fn headers(&self) -> Headers<'_> {
        match self {
            Self::V4(base) => Headers::V4(base, &[]),
            Self::V6(base) => Headers::V6(base, &[]),
        }
    }
}

fn fill(out: &mut [u8], source: &[u8], destination: &[u8], ports: &[u8]) {
    let bytes = source.iter().chain(destination).chain(ports);
    out.iter_mut().zip(bytes).for_each(|(out, byte)| *out = *byte);
}
