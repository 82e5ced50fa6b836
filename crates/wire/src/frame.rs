//! The frame that all frames of a run are made of, and the sums of what does not vary in it.

use crate::stamp::Stamp;
use std::net::{IpAddr, SocketAddr};

/// What a frame is made of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) source_mac: [u8; 6],
    pub(crate) target_mac: [u8; 6],
    pub(crate) vlan: Option<u16>,
    pub(crate) source: IpAddr,
    pub(crate) target: SocketAddr,
    pub(crate) payload_len: usize,
}

/// A frame with ports, low half of the source address, checksums and stamp still zero.
#[derive(Clone, Debug)]
pub(crate) struct Frame {
    pub(crate) bytes: Vec<u8>,
    pub(crate) ip_at: usize,
    /// Sum of the IPv4 header, in the machine's byte order, not folded.
    pub(crate) ip_sum: u32,
    /// Sum of pseudo header, UDP header and payload, likewise.
    pub(crate) udp_sum: u32,
}

impl Shape {
    /// Bytes of Ethernet, VLAN, IP and UDP headers.
    pub(crate) fn headers_len(&self) -> usize {
        self.ip_at() + self.ip_len() + 8
    }

    fn ip_at(&self) -> usize {
        if self.vlan.is_some() { 18 } else { 14 }
    }

    fn ip_len(&self) -> usize {
        if self.target.is_ipv4() { 20 } else { 40 }
    }

    pub(crate) fn frame(&self) -> Frame {
        let mut bytes = self.ethernet();
        match (self.source, self.target.ip()) {
            (IpAddr::V4(source), IpAddr::V4(target)) => self.v4(&mut bytes, source.octets(), target.octets()),
            (source, target) => self.v6(&mut bytes, v6_octets(source), v6_octets(target)),
        }
        self.udp(&mut bytes);
        let ip_at = self.ip_at();
        let udp_at = ip_at + self.ip_len();
        let addresses = if self.target.is_ipv4() { ip_at + 12 } else { ip_at + 8 };
        let pseudo = 17u16.to_be_bytes().into_iter().chain((8 + self.payload_len as u16).to_be_bytes());
        let pseudo: Vec<u8> = pseudo.collect();
        Frame {
            ip_at,
            ip_sum: sum(&bytes[ip_at..udp_at]),
            udp_sum: sum(&bytes[addresses..]) + sum(&pseudo),
            bytes,
        }
    }

    fn ethernet(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.headers_len() + self.payload_len);
        bytes.extend(self.target_mac);
        bytes.extend(self.source_mac);
        if let Some(id) = self.vlan {
            bytes.extend(0x8100u16.to_be_bytes());
            bytes.extend(id.to_be_bytes());
        }
        bytes.extend(if self.target.is_ipv4() { [0x08, 0x00] } else { [0x86, 0xdd] });
        bytes
    }

    fn v4(&self, bytes: &mut Vec<u8>, source: [u8; 4], target: [u8; 4]) {
        let source = [source[0], source[1], 0, 0];
        bytes.extend(v4_header(17, 8 + self.payload_len, source, target));
    }

    fn v6(&self, bytes: &mut Vec<u8>, source: [u8; 16], target: [u8; 16]) {
        bytes.extend([0x60, 0, 0, 0]);
        bytes.extend((8 + self.payload_len as u16).to_be_bytes());
        bytes.extend([17, 64]);
        bytes.extend(&source[..14]);
        bytes.extend([0, 0]);
        bytes.extend(target);
    }

    fn udp(&self, bytes: &mut Vec<u8>) {
        bytes.extend([0; 4]);
        bytes.extend((8 + self.payload_len as u16).to_be_bytes());
        bytes.extend([0, 0]);
        bytes.extend([0; Stamp::LEN]);
        bytes.extend((Stamp::LEN..self.payload_len).map(|i| i as u8));
    }
}

/// Without its checksum: id 0, don't fragment, TTL 64.
fn v4_header(protocol: u8, payload_len: usize, source: [u8; 4], target: [u8; 4]) -> [u8; 20] {
    let mut header = [0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, protocol, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    header[2..4].copy_from_slice(&(20 + payload_len as u16).to_be_bytes());
    header[12..16].copy_from_slice(&source);
    header[16..].copy_from_slice(&target);
    header
}

/// With its checksum.
pub(crate) fn v4_header_summed(
    protocol: u8,
    payload_len: usize,
    source: [u8; 4],
    target: [u8; 4],
) -> [u8; 20] {
    let mut header = v4_header(protocol, payload_len, source, target);
    let check = !fold(sum(&header));
    header[10..12].copy_from_slice(&check.to_ne_bytes());
    header
}

/// The MAC address a frame to `target` carries: that of the group, or of the neighbour.
pub(crate) fn mac_of(target: IpAddr, neighbour: [u8; 6]) -> [u8; 6] {
    match target {
        IpAddr::V4(v4) if v4.is_multicast() => {
            let [_, b, c, d] = v4.octets();
            [0x01, 0x00, 0x5e, b & 0x7f, c, d]
        }
        IpAddr::V4(v4) if v4.is_broadcast() => [0xff; 6],
        IpAddr::V6(v6) if v6.is_multicast() => {
            let octets = v6.octets();
            [0x33, 0x33, octets[12], octets[13], octets[14], octets[15]]
        }
        _ => neighbour,
    }
}

fn v6_octets(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// The sum of the 16-bit words, an odd byte padded with zero.
pub(crate) fn sum(bytes: &[u8]) -> u32 {
    bytes.chunks(2).map(|pair| u32::from(u16::from_ne_bytes([pair[0], *pair.get(1).unwrap_or(&0)]))).sum()
}

/// A sum of 16-bit words in 16 bits.
pub(crate) fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(target: &str, vlan: Option<u16>, payload_len: usize) -> Shape {
        let target: SocketAddr = target.parse().unwrap();
        let source = if target.is_ipv4() { "10.77.0.1" } else { "fd77::1" }.parse().unwrap();
        Shape { source_mac: [1; 6], target_mac: [2; 6], vlan, source, target, payload_len }
    }

    #[test]
    fn the_smallest_frame_has_64_bytes() {
        assert_eq!(shape("10.77.0.2:9", None, Stamp::LEN).frame().bytes.len(), 64);
    }

    #[test]
    fn lengths_agree_for_every_kind_of_frame() {
        for target in ["10.77.0.2:9", "[fd77::2]:9"] {
            for vlan in [None, Some(100)] {
                let shape = shape(target, vlan, 333);
                assert_eq!(shape.frame().bytes.len(), shape.headers_len() + 333, "{target} {vlan:?}");
            }
        }
    }

    #[test]
    fn an_ipv4_header_sums_to_a_known_checksum() {
        // RFC 1071 by hand: the header of a 50-byte datagram from 10.77.0.0 to 10.77.0.2.
        let frame = shape("10.77.0.2:9", None, Stamp::LEN).frame();
        let header = &frame.bytes[14..34];
        let be: u32 = header.chunks(2).map(|w| u32::from(u16::from_be_bytes([w[0], w[1]]))).sum();
        assert_eq!(fold(frame.ip_sum), fold(be).to_be());
    }

    #[test]
    fn an_ip_header_with_its_checksum_sums_to_all_ones() {
        assert_eq!(fold(sum(&v4_header_summed(6, 1480, [10, 77, 0, 1], [10, 77, 0, 2]))), 0xffff);
    }

    #[test]
    fn groups_have_macs_of_their_own() {
        assert_eq!(mac_of("239.129.2.3".parse().unwrap(), [9; 6]), [1, 0, 0x5e, 1, 2, 3]);
        assert_eq!(mac_of("ff02::1:2".parse().unwrap(), [9; 6]), [0x33, 0x33, 0, 1, 0, 2]);
        assert_eq!(mac_of("10.77.0.2".parse().unwrap(), [9; 6]), [9; 6]);
    }
}
