//! IPv4 without options (RFC 791), by the rules of `ip_rcv_core`.

use crate::{Refused, array, be16, checksum::Sum};

mod field {
    pub(super) const VERSION_IHL: usize = 0;
    pub(super) const TOS: usize = 1;
    pub(super) const TOTAL_LEN: usize = 2;
    pub(super) const FRAGMENT: usize = 6;
    pub(super) const TTL: usize = 8;
    pub(super) const PROTOCOL: usize = 9;
    pub(super) const CHECKSUM: usize = 10;
    pub(super) const SOURCE: usize = 12;
    pub(super) const DESTINATION: usize = 16;
}

/// Bytes of a header without options.
pub const HEADER_LEN: usize = 20;

const DONT_FRAGMENT: u16 = 0x4000;
/// More-fragments flag and offset: either makes a fragment (`ip_is_fragment`).
const FRAGMENT_MASK: u16 = 0x3fff;

/// First octet of `127.0.0.0/8`.
const LOOPBACK: u32 = 127;
/// First four bits of `224.0.0.0/4`.
const MULTICAST: u32 = 0xe;
/// First three octets of `224.0.0.0/24`.
const LOCAL_GROUPS: u32 = 0x00e0_0000;
const BROADCAST: u32 = 0xffff_ffff;

/// A header of 20 bytes read in place.
#[derive(Clone, Copy, Debug)]
pub struct View<'a>(&'a [u8; HEADER_LEN]);

impl<'a> View<'a> {
    /// The header and the packet's body, cut at the total length; Ethernet padding is left out. The checksum is not
    /// looked at: see [`View::checksum_holds`].
    ///
    /// # Errors
    /// * [`Refused::Short`]: no room for a header.
    /// * [`Refused::NotIp`]: another version.
    /// * [`Refused::Length`]: header shorter than 20 bytes, or a total length below that or beyond the packet.
    /// * [`Refused::Options`]: a longer header.
    #[inline]
    pub fn split(packet: &'a [u8]) -> Result<(Self, &'a [u8]), Refused> {
        let (header, rest) = packet.split_first_chunk::<HEADER_LEN>().ok_or(Refused::Short)?;
        match header[field::VERSION_IHL] {
            0x45 => {}
            other if other >> 4 != 4 => return Err(Refused::NotIp),
            other if other & 0xf < 5 => return Err(Refused::Length),
            _ => return Err(Refused::Options),
        }
        let len = usize::from(be16(header, field::TOTAL_LEN)).checked_sub(HEADER_LEN);
        let body = len.and_then(|len| rest.get(..len)).ok_or(Refused::Length)?;
        Ok((Self(header), body))
    }

    /// The header checksum is right.
    #[inline]
    pub fn checksum_holds(&self) -> bool {
        Sum::of(self.0).checksum() == 0
    }

    /// Type of service: DSCP and ECN.
    #[inline]
    pub fn tos(&self) -> u8 {
        self.0[field::TOS]
    }

    /// Time to live.
    #[inline]
    pub fn ttl(&self) -> u8 {
        self.0[field::TTL]
    }

    /// Transport protocol.
    #[inline]
    pub fn protocol(&self) -> u8 {
        self.0[field::PROTOCOL]
    }

    /// One piece of a datagram, first and last included.
    #[inline]
    pub fn is_fragment(&self) -> bool {
        be16(self.0, field::FRAGMENT) & FRAGMENT_MASK != 0
    }

    /// Source address.
    #[inline]
    pub fn source(&self) -> [u8; 4] {
        array(self.0, field::SOURCE)
    }

    /// Destination address.
    #[inline]
    pub fn destination(&self) -> [u8; 4] {
        array(self.0, field::DESTINATION)
    }

    /// Addresses that Linux accepts from no device: `ip_route_input_slow`, `ip_mc_validate_source`.
    #[inline]
    pub fn is_martian(&self) -> bool {
        let (source, destination) =
            (u32::from_be_bytes(self.source()), u32::from_be_bytes(self.destination()));
        is_martian_source(source, destination) || is_martian_destination(destination)
    }
}

/// A header to write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// Type of service.
    pub tos: u8,
    /// Time to live.
    pub ttl: u8,
    /// Transport protocol.
    pub protocol: u8,
    /// Source address.
    pub source: [u8; 4],
    /// Destination address.
    pub destination: [u8; 4],
}

impl Header {
    /// Writes the header with its checksum and gives back what follows; `None` if `out` is too short or `body_len`
    /// (bytes after the header) too long.
    pub fn write<'a>(&self, body_len: usize, out: &'a mut [u8]) -> Option<&'a mut [u8]> {
        let total = u16::try_from(body_len.checked_add(HEADER_LEN)?).ok()?;
        let (header, rest) = out.split_first_chunk_mut::<HEADER_LEN>()?;
        *header = [0; HEADER_LEN];
        header[field::VERSION_IHL] = 0x45;
        header[field::TOS] = self.tos;
        header[field::TOTAL_LEN..][..2].copy_from_slice(&total.to_be_bytes());
        header[field::FRAGMENT..][..2].copy_from_slice(&DONT_FRAGMENT.to_be_bytes());
        header[field::TTL] = self.ttl;
        header[field::PROTOCOL] = self.protocol;
        header[field::SOURCE..field::DESTINATION].copy_from_slice(&self.source);
        header[field::DESTINATION..].copy_from_slice(&self.destination);
        set_checksum(header);
        Some(rest)
    }
}

/// Computes the checksum field anew.
pub fn set_checksum(header: &mut [u8; HEADER_LEN]) {
    header[field::CHECKSUM..field::SOURCE].fill(0);
    let checksum = Sum::of(header).checksum();
    header[field::CHECKSUM..field::SOURCE].copy_from_slice(&checksum.to_be_bytes());
}

/// A source of zero is a host without an address yet (DHCP): allowed towards broadcast and `224.0.0.0/24` only.
#[inline(always)]
fn is_martian_source(source: u32, destination: u32) -> bool {
    let nobody = source == 0 && destination != BROADCAST && destination >> 8 != LOCAL_GROUPS;
    source >> 24 == LOOPBACK || source >> 28 == MULTICAST || source == BROADCAST || nobody
}

#[inline(always)]
fn is_martian_destination(destination: u32) -> bool {
    destination >> 24 == LOOPBACK || destination == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: Header =
        Header { tos: 0x2e, ttl: 63, protocol: 17, source: [10, 0, 0, 1], destination: [10, 0, 0, 2] };

    fn packet() -> [u8; 24] {
        let mut out = [0; 24];
        assert_eq!(HEADER.write(4, &mut out).map(|body| body.len()), Some(4));
        out
    }

    fn refused(change: impl FnOnce(&mut [u8; 24])) -> Refused {
        let mut bytes = packet();
        change(&mut bytes);
        View::split(&bytes).map(|_| ()).unwrap_err()
    }

    #[test]
    fn what_is_written_is_read() {
        let bytes = packet();
        let (view, body) = View::split(&bytes).unwrap();
        let read = Header {
            tos: view.tos(),
            ttl: view.ttl(),
            protocol: view.protocol(),
            source: view.source(),
            destination: view.destination(),
        };
        assert_eq!((read, body.len()), (HEADER, 4));
        assert!(view.checksum_holds() && !view.is_fragment() && !view.is_martian());
    }

    #[test]
    fn one_changed_bit_breaks_the_header_checksum() {
        for bit in 0..HEADER_LEN * 8 {
            let mut bytes = packet();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let header: &[u8; HEADER_LEN] = bytes.first_chunk().unwrap();
            assert!(!View(header).checksum_holds(), "bit {bit}");
        }
    }

    #[test]
    fn impossible_headers_are_refused_by_their_reason() {
        assert_eq!(refused(|b| b[0] = 0x65), Refused::NotIp);
        assert_eq!(refused(|b| b[0] = 0x44), Refused::Length);
        assert_eq!(refused(|b| b[0] = 0x46), Refused::Options);
        assert_eq!(refused(|b| b[3] = 19), Refused::Length);
        assert_eq!(refused(|b| b[3] = 25), Refused::Length);
        assert_eq!(View::split(&packet()[..19]).unwrap_err(), Refused::Short);
    }

    #[test]
    fn both_ends_and_the_middle_of_a_fragmented_datagram_are_fragments() {
        for (bytes, fragment) in
            [([0x20, 0], true), ([0x20, 9], true), ([0, 9], true), ([0x40, 0], false), ([0x80, 0], false)]
        {
            let mut packet = packet();
            packet[6..8].copy_from_slice(&bytes);
            assert_eq!(View::split(&packet).unwrap().0.is_fragment(), fragment, "{bytes:?}");
        }
    }

    #[test]
    fn martians_are_those_of_linux() {
        let martian = |source, destination| {
            let mut out = [0; 24];
            Header { source, destination, ..HEADER }.write(4, &mut out).unwrap();
            View::split(&out).unwrap().0.is_martian()
        };
        let host = [10, 0, 0, 2];
        for source in [[127, 0, 0, 1], [224, 0, 0, 1], [239, 1, 1, 1], [255; 4], [0; 4]] {
            assert!(martian(source, host), "{source:?}");
        }
        for destination in [[127, 0, 0, 1], [0; 4]] {
            assert!(martian(host, destination), "{destination:?}");
        }
        for (source, destination) in [([0; 4], [255; 4]), ([0; 4], [224, 0, 0, 22]), (host, [239, 1, 1, 1])] {
            assert!(!martian(source, destination), "{source:?} to {destination:?}");
        }
    }

    #[test]
    fn a_body_beyond_64_kib_is_not_written() {
        let mut out = std::vec![0; 70_000];
        assert!(HEADER.write(65_515, &mut out).is_some());
        assert!(HEADER.write(65_516, &mut out).is_none());
    }
}
