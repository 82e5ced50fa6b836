//! What makes two packets one flow, and its hash.

use crate::{Ip, SocketAddrRaw, tcp::Segment, udp::Datagram};

/// Family, addresses and ports of one direction; the protocol is UDP or TCP by context.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct FlowKey {
    /// Who sends.
    pub source: SocketAddrRaw,
    /// Who receives.
    pub destination: SocketAddrRaw,
}

impl FlowKey {
    /// The same flow seen from the other end.
    #[inline]
    pub fn reversed(self) -> Self {
        Self { source: self.destination, destination: self.source }
    }

    /// 32 well mixed bits. With a random `seed` a stranger cannot choose flows that collide.
    #[inline]
    pub fn hash(&self, seed: u32) -> u32 {
        let start = mix(u64::from(seed) ^ ports(self), MULTIPLIERS[0]);
        let hash = match (self.source.ip, self.destination.ip) {
            (Ip::V4(source), Ip::V4(destination)) => absorb(start, four(source), four(destination)),
            (Ip::V6(source), Ip::V6(destination)) => {
                let ([a, b], [c, d]) = (halves(source), halves(destination));
                absorb(absorb(start, a, b), c, d)
            }
            // Families never mix in one packet; the hash stays defined all the same.
            (Ip::V4(v4), Ip::V6(v6)) | (Ip::V6(v6), Ip::V4(v4)) => {
                let [a, b] = halves(v6);
                absorb(absorb(start, a, b), four(v4), 0)
            }
        };
        (hash ^ (hash >> 32)) as u32
    }

    /// [`FlowKey::hash`] that is equal for both directions of a flow.
    #[inline]
    pub fn symmetric_hash(&self, seed: u32) -> u32 {
        let ordered = if self.source <= self.destination { *self } else { self.reversed() };
        ordered.hash(seed)
    }
}

impl From<&Datagram> for FlowKey {
    #[inline]
    fn from(datagram: &Datagram) -> Self {
        Self { source: datagram.source, destination: datagram.destination }
    }
}

impl From<&Segment> for FlowKey {
    #[inline]
    fn from(segment: &Segment) -> Self {
        Self { source: segment.source, destination: segment.destination }
    }
}

/// Odd, with bits set evenly: digits of pi.
const MULTIPLIERS: [u64; 3] = [0x243f_6a88_85a3_08d3, 0x1319_8a2e_0370_7345, 0xa409_3822_299f_31d1];

#[inline(always)]
fn absorb(state: u64, a: u64, b: u64) -> u64 {
    mix(state ^ mix(a ^ MULTIPLIERS[1], state | 1) ^ b, MULTIPLIERS[2])
}

/// Both halves of a 128-bit product, so that every input bit reaches every output bit.
#[inline(always)]
fn mix(a: u64, b: u64) -> u64 {
    let product = u128::from(a).wrapping_mul(u128::from(b));
    product as u64 ^ (product >> 64) as u64
}

#[inline(always)]
fn ports(key: &FlowKey) -> u64 {
    u64::from(key.source.port) << 48 | u64::from(key.destination.port) << 32
}

#[inline(always)]
fn four(octets: [u8; 4]) -> u64 {
    u32::from_be_bytes(octets).into()
}

#[inline(always)]
fn halves(octets: [u8; 16]) -> [u64; 2] {
    let bits = u128::from_be_bytes(octets);
    [(bits >> 64) as u64, bits as u64]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::{vec, vec::Vec};

    const BUCKETS: usize = 1024;

    fn v4(source: u32, source_port: u16, destination: u32, destination_port: u16) -> FlowKey {
        let end = |ip: u32, port| SocketAddrRaw { ip: Ip::V4(ip.to_be_bytes()), port };
        FlowKey { source: end(source, source_port), destination: end(destination, destination_port) }
    }

    fn end(v6: bool) -> impl Strategy<Value = SocketAddrRaw> {
        (any::<[u8; 16]>(), any::<u16>()).prop_map(move |(ip, port)| {
            let [a, b, c, d, ..] = ip;
            SocketAddrRaw { ip: if v6 { Ip::V6(ip) } else { Ip::V4([a, b, c, d]) }, port }
        })
    }

    fn key() -> impl Strategy<Value = FlowKey> {
        any::<bool>()
            .prop_flat_map(|v6| (end(v6), end(v6)))
            .prop_map(|(source, destination)| FlowKey { source, destination })
    }

    /// Chi-squared of the bucket counts; about `BUCKETS` for a hash that cannot be told from chance.
    fn chi_squared(hashes: impl Iterator<Item = u32>, shift: u32) -> f64 {
        let mut counts: Vec<u32> = vec![0; BUCKETS];
        hashes.for_each(|hash| counts[(hash >> shift) as usize % BUCKETS] += 1);
        let expected = f64::from(counts.iter().sum::<u32>()) / BUCKETS as f64;
        counts.iter().map(|&count| (f64::from(count) - expected).powi(2) / expected).sum()
    }

    #[test]
    fn neighbouring_flows_spread_evenly_over_buckets() {
        let ports = || (0..60_000u16).map(|port| v4(0x0a00_0001, 1024 + port, 0x0a00_0002, 53));
        let hosts = || (0..60_000u32).map(|host| v4(0x0a00_0000 + host, 5000, 0x0b00_0002, 53));
        for seed in [0, 1, 0xdead_beef] {
            for shift in [0, 22] {
                for chi in [
                    chi_squared(ports().map(|key| key.hash(seed)), shift),
                    chi_squared(hosts().map(|key| key.hash(seed)), shift),
                    chi_squared(hosts().map(|key| key.symmetric_hash(seed)), shift),
                ] {
                    // Mean 1023, deviation 45: six deviations.
                    assert!(chi < 1295.0, "{chi} with seed {seed}, bits from {shift}");
                }
            }
        }
    }

    proptest! {
        #[test]
        fn both_directions_share_the_symmetric_hash_alone(key in key(), seed: u32) {
            prop_assume!(key != key.reversed());
            prop_assert_eq!(key.symmetric_hash(seed), key.reversed().symmetric_hash(seed));
            prop_assert_ne!(key.hash(seed), key.reversed().hash(seed));
        }

        #[test]
        fn a_changed_bit_changes_half_of_the_hash(key in key(), port_bit in 0u32..16) {
            let mut other = key;
            other.source.port ^= 1 << port_bit;
            let changed: u32 = (0..64).map(|seed| (key.hash(seed) ^ other.hash(seed)).count_ones()).sum();
            // 2,048 bits, mean 1,024, deviation 23 were they independent.
            prop_assert!((800..1250).contains(&changed), "{} of 2048 bits", changed);
        }
    }
}
