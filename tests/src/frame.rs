//! Ethernet frames with a UDP datagram in them, right or wrong on purpose.

use std::net::{IpAddr, SocketAddr};

const IP4: usize = 20;
const IP6: usize = 40;
const UDP: u8 = 17;
const FRAGMENT6: u8 = 44;
const DESTINATION6: u8 = 60;
const MORE_FRAGMENTS: u16 = 0x2000;

/// What goes into the UDP checksum field.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Checksum {
    /// The checksum.
    Right,
    /// Something else, and not zero.
    Wrong,
    /// Zero: none.
    Zero,
}

/// A frame to be made.
#[derive(Clone, Debug)]
pub struct Frame {
    /// Source and destination Ethernet address.
    pub link: ([u8; 6], [u8; 6]),
    /// Where from.
    pub from: SocketAddr,
    /// Where to, of the same family.
    pub to: SocketAddr,
    /// UDP payload.
    pub payload: Vec<u8>,
    /// UDP checksum.
    pub checksum: Checksum,
    /// IPv4 options, or IPv6 destination options with their two leading bytes; a multiple of 4 or 8 bytes.
    pub options: Vec<u8>,
    /// 802.1Q tag.
    pub vlan: Option<u16>,
}

impl Frame {
    /// A frame with nothing wrong.
    pub fn new(link: ([u8; 6], [u8; 6]), from: SocketAddr, to: SocketAddr, payload: &[u8]) -> Self {
        let payload = payload.to_vec();
        Self { link, from, to, payload, checksum: Checksum::Right, options: Vec::new(), vlan: None }
    }

    /// The frame in one piece.
    pub fn bytes(&self) -> Vec<u8> {
        self.packet(&self.udp(), 0, false)
    }

    /// The same datagram in fragments of `len` bytes, a multiple of 8.
    pub fn fragments(&self, len: usize) -> Vec<Vec<u8>> {
        assert_eq!(len % 8, 0, "fragments start at multiples of 8");
        let udp = self.udp();
        let last = (udp.len() - 1) / len;
        let piece = |(i, bytes): (usize, &[u8])| self.packet_fragment(bytes, i * len, i < last);
        udp.chunks(len).enumerate().map(piece).collect()
    }

    fn packet_fragment(&self, udp: &[u8], offset: usize, more: bool) -> Vec<u8> {
        if self.to.is_ipv4() { self.packet(udp, offset, more) } else { self.fragment6(udp, offset, more) }
    }

    fn packet(&self, udp: &[u8], offset: usize, more: bool) -> Vec<u8> {
        match (self.from.ip(), self.to.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                let header = self.ip4(udp.len(), offset, more, &[from.octets(), to.octets()].concat());
                [self.ethernet(0x0800), header, udp.to_vec()].concat()
            }
            _ if self.options.is_empty() => self.ip6(UDP, udp),
            _ => {
                let mut options = self.options.clone();
                options[0] = UDP;
                self.ip6(DESTINATION6, &[&options, udp].concat())
            }
        }
    }

    fn fragment6(&self, udp: &[u8], offset: usize, more: bool) -> Vec<u8> {
        let field = offset as u16 | u16::from(more);
        let header = [&[UDP, 0][..], &field.to_be_bytes(), &0x1234_5678u32.to_be_bytes()].concat();
        self.ip6(FRAGMENT6, &[&header, udp].concat())
    }

    fn ethernet(&self, kind: u16) -> Vec<u8> {
        let mut bytes = [self.link.1, self.link.0].concat();
        if let Some(tag) = self.vlan {
            bytes.extend(0x8100u16.to_be_bytes());
            bytes.extend(tag.to_be_bytes());
        }
        bytes.extend(kind.to_be_bytes());
        bytes
    }

    fn ip4(&self, payload: usize, offset: usize, more: bool, addresses: &[u8]) -> Vec<u8> {
        let header = IP4 + self.options.len();
        let total = (header + payload) as u16;
        let fragment = (offset / 8) as u16 | if more { MORE_FRAGMENTS } else { 0 };
        let mut bytes = vec![0x40 | (header / 4) as u8, 0];
        for field in [total, 0x4321, fragment] {
            bytes.extend(field.to_be_bytes());
        }
        bytes.extend([64, UDP, 0, 0]);
        bytes.extend(addresses);
        bytes.extend(&self.options);
        let sum = !fold(sum(&bytes));
        bytes[10..12].copy_from_slice(&sum.to_be_bytes());
        bytes
    }

    fn ip6(&self, next: u8, payload: &[u8]) -> Vec<u8> {
        let mut bytes = self.ethernet(0x86dd);
        bytes.reserve(IP6 + payload.len());
        bytes.extend([0x60, 0, 0, 0]);
        bytes.extend((payload.len() as u16).to_be_bytes());
        bytes.extend([next, 64]);
        bytes.extend(octets(self.from.ip()));
        bytes.extend(octets(self.to.ip()));
        bytes.extend(payload);
        bytes
    }

    fn udp(&self) -> Vec<u8> {
        let len = (8 + self.payload.len()) as u16;
        let mut bytes = Vec::new();
        for field in [self.from.port(), self.to.port(), len, 0] {
            bytes.extend(field.to_be_bytes());
        }
        bytes.extend(&self.payload);
        let checksum = self.udp_checksum(&bytes).to_be_bytes();
        bytes[6..8].copy_from_slice(&checksum);
        bytes
    }

    fn udp_checksum(&self, udp: &[u8]) -> u16 {
        let pseudo = [octets(self.from.ip()), octets(self.to.ip())].concat();
        let right = match !fold(sum(&pseudo) + sum(udp) + u32::from(UDP) + udp.len() as u32) {
            0 => 0xffff,
            value => value,
        };
        match self.checksum {
            Checksum::Right => right,
            Checksum::Wrong => {
                if right == 0x5a5a {
                    0xa5a5
                } else {
                    0x5a5a
                }
            }
            Checksum::Zero => 0,
        }
    }
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

/// RFC 1071: the ones' complement sum, not yet folded.
fn sum(bytes: &[u8]) -> u32 {
    bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0))).sum()
}

fn fold(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINK: ([u8; 6], [u8; 6]) = ([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);

    fn frame4(payload: &[u8]) -> Frame {
        Frame::new(LINK, "10.0.0.1:1000".parse().unwrap(), "10.0.0.2:2000".parse().unwrap(), payload)
    }

    fn frame6(payload: &[u8]) -> Frame {
        Frame::new(LINK, "[fd00::1]:1000".parse().unwrap(), "[fd00::2]:2000".parse().unwrap(), payload)
    }

    #[test]
    fn an_ipv4_frame_sums_to_what_receivers_demand() {
        let bytes = frame4(b"odd").bytes();
        assert_eq!(bytes.len(), 14 + IP4 + 8 + 3);
        assert_eq!(fold(sum(&bytes[14..34])), 0xffff);
        let udp = &bytes[34..];
        assert_eq!(fold(sum(&bytes[26..34]) + sum(udp) + u32::from(UDP) + udp.len() as u32), 0xffff);
    }

    #[test]
    fn ipv4_options_lengthen_the_header() {
        let bytes = Frame { options: vec![1; 4], ..frame4(b"x") }.bytes();
        assert_eq!(bytes[14], 0x46);
        assert_eq!(fold(sum(&bytes[14..38])), 0xffff);
    }

    #[test]
    fn fragments_hold_the_datagram_in_order() {
        let whole = frame4(&[7; 100]).bytes();
        let fragments = frame4(&[7; 100]).fragments(48);
        assert_eq!(fragments.iter().flat_map(|f| &f[34..]).copied().collect::<Vec<_>>(), whole[34..]);
        let field = |f: &Vec<u8>| u16::from_be_bytes([f[20], f[21]]);
        assert_eq!(fragments.iter().map(field).collect::<Vec<_>>(), [MORE_FRAGMENTS, MORE_FRAGMENTS | 6, 12]);
    }

    #[test]
    fn an_ipv6_extension_header_precedes_udp() {
        let bytes = Frame { options: vec![0, 0, 1, 4, 0, 0, 0, 0], ..frame6(b"x") }.bytes();
        assert_eq!((bytes[20], bytes[54]), (DESTINATION6, UDP));
    }

    #[test]
    fn a_vlan_tag_stands_before_the_type() {
        let bytes = Frame { vlan: Some(100), ..frame4(b"x") }.bytes();
        assert_eq!(bytes[12..18], [0x81, 0, 0, 100, 8, 0]);
    }
}
