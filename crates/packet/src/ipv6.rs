//! IPv6 without extension headers (RFC 8200), by the rules of `ip6_rcv_core`.

use crate::{Refused, array, be16};

mod field {
    pub(super) const VERSION_CLASS_LABEL: usize = 0;
    pub(super) const PAYLOAD_LEN: usize = 4;
    pub(super) const NEXT_HEADER: usize = 6;
    pub(super) const HOP_LIMIT: usize = 7;
    pub(super) const SOURCE: usize = 8;
    pub(super) const DESTINATION: usize = 24;
}

/// Bytes of the fixed header.
pub const HEADER_LEN: usize = 40;

/// Extension headers that may stand before a transport header: hop-by-hop, routing, fragment, AH, destination
/// options, mobility, HIP, shim6 (RFC 7045 and IANA's registry).
const EXTENSIONS: [u8; 8] = [0, 43, 44, 51, 60, 135, 139, 140];
/// First octet of `ff00::/8`.
const MULTICAST: u128 = 0xff;
/// First 96 bits of `::ffff:0:0/96`.
const V4_MAPPED: u128 = 0xffff;
const LOOPBACK: u128 = 1;

/// A header read in place.
#[derive(Clone, Copy, Debug)]
pub struct View<'a>(&'a [u8; HEADER_LEN]);

impl<'a> View<'a> {
    /// The header and the packet's body, cut at the payload length; Ethernet padding is left out.
    ///
    /// # Errors
    /// * [`Refused::Short`]: no room for a header.
    /// * [`Refused::NotIp`]: another version.
    /// * [`Refused::Length`]: a payload length beyond the packet.
    #[inline]
    pub fn split(packet: &'a [u8]) -> Result<(Self, &'a [u8]), Refused> {
        let (header, rest) = packet.split_first_chunk::<HEADER_LEN>().ok_or(Refused::Short)?;
        if header[field::VERSION_CLASS_LABEL] >> 4 != 6 {
            return Err(Refused::NotIp);
        }
        let body = rest.get(..be16(header, field::PAYLOAD_LEN).into()).ok_or(Refused::Length)?;
        Ok((Self(header), body))
    }

    /// Traffic class: DSCP and ECN.
    #[inline]
    pub fn traffic_class(&self) -> u8 {
        (be16(self.0, field::VERSION_CLASS_LABEL) >> 4) as u8
    }

    /// Flow label, 20 bits.
    #[inline]
    pub fn flow_label(&self) -> u32 {
        u32::from_be_bytes(array(self.0, field::VERSION_CLASS_LABEL)) & 0x000f_ffff
    }

    /// Hop limit.
    #[inline]
    pub fn hop_limit(&self) -> u8 {
        self.0[field::HOP_LIMIT]
    }

    /// Transport protocol, or the first extension header.
    #[inline]
    pub fn next_header(&self) -> u8 {
        self.0[field::NEXT_HEADER]
    }

    /// An extension header follows.
    #[inline]
    pub fn has_extension(&self) -> bool {
        EXTENSIONS.contains(&self.next_header())
    }

    /// Source address.
    #[inline]
    pub fn source(&self) -> [u8; 16] {
        array(self.0, field::SOURCE)
    }

    /// Destination address.
    #[inline]
    pub fn destination(&self) -> [u8; 16] {
        array(self.0, field::DESTINATION)
    }

    /// Addresses that Linux accepts from no device. A v4-mapped source would let an IPv6 packet pass for an IPv4 peer
    /// on a dual-stack socket.
    #[inline]
    pub fn is_martian(&self) -> bool {
        let (source, destination) =
            (u128::from_be_bytes(self.source()), u128::from_be_bytes(self.destination()));
        let reserved_scope = destination >> 120 == MULTICAST && (destination >> 112) & 0xf <= 1;
        source >> 120 == MULTICAST
            || source == LOOPBACK
            || source >> 32 == V4_MAPPED
            || destination == LOOPBACK
            || reserved_scope
    }
}

/// A header to write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// Traffic class.
    pub traffic_class: u8,
    /// Flow label; 20 bits are used.
    pub flow_label: u32,
    /// Hop limit.
    pub hop_limit: u8,
    /// Transport protocol.
    pub next_header: u8,
    /// Source address.
    pub source: [u8; 16],
    /// Destination address.
    pub destination: [u8; 16],
}

impl Header {
    /// Writes the header and gives back what follows; `None` if `out` is too short or `body_len` (bytes after the
    /// header) too long.
    pub fn write<'a>(&self, body_len: usize, out: &'a mut [u8]) -> Option<&'a mut [u8]> {
        let len = u16::try_from(body_len).ok()?;
        let (header, rest) = out.split_first_chunk_mut::<HEADER_LEN>()?;
        let first = 6 << 28 | u32::from(self.traffic_class) << 20 | self.flow_label & 0x000f_ffff;
        header[..field::PAYLOAD_LEN].copy_from_slice(&first.to_be_bytes());
        header[field::PAYLOAD_LEN..field::NEXT_HEADER].copy_from_slice(&len.to_be_bytes());
        header[field::NEXT_HEADER] = self.next_header;
        header[field::HOP_LIMIT] = self.hop_limit;
        header[field::SOURCE..field::DESTINATION].copy_from_slice(&self.source);
        header[field::DESTINATION..].copy_from_slice(&self.destination);
        Some(rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::net::Ipv6Addr;

    const HEADER: Header = Header {
        traffic_class: 0xb9,
        flow_label: 0xabcde,
        hop_limit: 64,
        next_header: 17,
        source: [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
        destination: [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2],
    };

    fn packet(header: Header) -> [u8; 44] {
        let mut out = [0; 44];
        assert_eq!(header.write(4, &mut out).map(|body| body.len()), Some(4));
        out
    }

    #[test]
    fn what_is_written_is_read() {
        let bytes = packet(HEADER);
        let (view, body) = View::split(&bytes).unwrap();
        let read = Header {
            traffic_class: view.traffic_class(),
            flow_label: view.flow_label(),
            hop_limit: view.hop_limit(),
            next_header: view.next_header(),
            source: view.source(),
            destination: view.destination(),
        };
        assert_eq!((read, body.len()), (HEADER, 4));
        assert!(!view.is_martian() && !view.has_extension());
    }

    #[test]
    fn impossible_headers_are_refused_by_their_reason() {
        let mut bytes = packet(HEADER);
        assert_eq!(View::split(&bytes[..39]).unwrap_err(), Refused::Short);
        bytes[5] = 5;
        assert_eq!(View::split(&bytes).unwrap_err(), Refused::Length);
        bytes[0] = 0x40;
        assert_eq!(View::split(&bytes).unwrap_err(), Refused::NotIp);
    }

    #[test]
    fn a_payload_length_of_zero_is_an_empty_body_not_a_jumbogram() {
        let mut bytes = packet(HEADER);
        bytes[5] = 0;
        assert!(View::split(&bytes).unwrap().1.is_empty());
    }

    #[test]
    fn martians_are_those_of_linux() {
        let martian = |source: &str, destination: &str| {
            let octets = |text: &str| text.parse::<Ipv6Addr>().unwrap().octets();
            let header = Header { source: octets(source), destination: octets(destination), ..HEADER };
            View::split(&packet(header)).unwrap().0.is_martian()
        };
        for source in ["::1", "ff02::1", "::ffff:10.0.0.1"] {
            assert!(martian(source, "fd00::2"), "{source}");
        }
        for destination in ["::1", "ff00::1", "ff01::1", "ff11::1"] {
            assert!(martian("fd00::1", destination), "{destination}");
        }
        for (source, destination) in [("::", "ff02::1"), ("fe80::1", "ff05::1"), ("fd00::1", "fd00::2")] {
            assert!(!martian(source, destination), "{source} to {destination}");
        }
    }
}
