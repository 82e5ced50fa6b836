//! Ethernet II with at most one VLAN tag (IEEE 802.1Q, 802.1ad).

use crate::{array, be16};

mod field {
    pub(super) const DESTINATION: usize = 0;
    pub(super) const SOURCE: usize = 6;
    pub(super) const TYPE: usize = 12;
    pub(super) const TCI: usize = 0;
    pub(super) const INNER_TYPE: usize = 2;
}

/// Bytes of a header without tag.
pub const HEADER_LEN: usize = 14;
/// Bytes that a VLAN tag adds.
pub const TAG_LEN: usize = 4;

/// EtherType of IPv4.
pub const TYPE_IPV4: u16 = 0x0800;
/// EtherType of IPv6.
pub const TYPE_IPV6: u16 = 0x86dd;
/// Tag protocol of 802.1Q.
pub const TYPE_VLAN: u16 = 0x8100;
/// Tag protocol of 802.1ad (service tag).
pub const TYPE_SERVICE_VLAN: u16 = 0x88a8;

const VLAN_ID: u16 = 0x0fff;

/// A header read in place.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    header: &'a [u8; HEADER_LEN],
    tag: Option<&'a [u8; TAG_LEN]>,
}

impl<'a> View<'a> {
    /// The header and what follows it; `None` if the frame is too short. A second tag is left as the EtherType.
    #[inline]
    pub fn split(frame: &'a [u8]) -> Option<(Self, &'a [u8])> {
        let (header, rest) = frame.split_first_chunk::<HEADER_LEN>()?;
        if !matches!(be16(header, field::TYPE), TYPE_VLAN | TYPE_SERVICE_VLAN) {
            return Some((Self { header, tag: None }, rest));
        }
        let (tag, rest) = rest.split_first_chunk::<TAG_LEN>()?;
        Some((Self { header, tag: Some(tag) }, rest))
    }

    /// Bytes of the header with its tag.
    #[inline]
    #[allow(clippy::len_without_is_empty)] // a header is never empty
    pub fn len(&self) -> usize {
        HEADER_LEN + if self.tag.is_some() { TAG_LEN } else { 0 }
    }

    /// Destination address.
    #[inline]
    pub fn destination(&self) -> [u8; 6] {
        array(self.header, field::DESTINATION)
    }

    /// Source address.
    #[inline]
    pub fn source(&self) -> [u8; 6] {
        array(self.header, field::SOURCE)
    }

    /// Sent to a group: the lowest bit of the first octet, set for broadcast too.
    #[inline]
    pub fn is_group(&self) -> bool {
        self.header[field::DESTINATION] & 1 != 0
    }

    /// VLAN id. A priority tag (id 0) belongs to no VLAN: Linux delivers it to the device itself (`vlan_do_receive`).
    #[inline]
    pub fn vlan(&self) -> Option<u16> {
        let id = be16(self.tag?, field::TCI) & VLAN_ID;
        (id != 0).then_some(id)
    }

    /// EtherType behind the tag.
    #[inline]
    pub fn ethertype(&self) -> u16 {
        self.tag.map_or(be16(self.header, field::TYPE), |tag| be16(tag, field::INNER_TYPE))
    }
}

/// A header to write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// Destination address.
    pub destination: [u8; 6],
    /// Source address.
    pub source: [u8; 6],
    /// An 802.1Q tag with this id.
    pub vlan: Option<u16>,
}

impl Header {
    /// Bytes that [`Header::write`] fills.
    #[allow(clippy::len_without_is_empty)] // a header is never empty
    pub fn len(&self) -> usize {
        HEADER_LEN + if self.vlan.is_some() { TAG_LEN } else { 0 }
    }

    /// Writes the header and gives back what follows it; `None` if `out` is too short.
    pub fn write<'a>(&self, ethertype: u16, out: &'a mut [u8]) -> Option<&'a mut [u8]> {
        let (header, mut rest) = out.split_first_chunk_mut::<HEADER_LEN>()?;
        header[field::DESTINATION..field::SOURCE].copy_from_slice(&self.destination);
        header[field::SOURCE..field::TYPE].copy_from_slice(&self.source);
        let outer = self.vlan.map_or(ethertype, |_| TYPE_VLAN);
        header[field::TYPE..].copy_from_slice(&outer.to_be_bytes());
        if let Some(id) = self.vlan {
            let (tag, inner) = rest.split_first_chunk_mut::<TAG_LEN>()?;
            tag[..field::INNER_TYPE].copy_from_slice(&(id & VLAN_ID).to_be_bytes());
            tag[field::INNER_TYPE..].copy_from_slice(&ethertype.to_be_bytes());
            rest = inner;
        }
        Some(rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Header = Header { destination: [1, 2, 3, 4, 5, 6], source: [2, 0, 0, 0, 0, 9], vlan: None };

    fn written(header: Header) -> std::vec::Vec<u8> {
        let mut out = std::vec![0; header.len()];
        assert!(header.write(TYPE_IPV6, &mut out).unwrap().is_empty());
        out
    }

    #[test]
    fn what_is_written_is_read_with_and_without_tag() {
        for vlan in [None, Some(1), Some(4094)] {
            let header = Header { vlan, ..PLAIN };
            let bytes = written(header);
            let (view, rest) = View::split(&bytes).unwrap();
            assert_eq!((view.destination(), view.source()), (header.destination, header.source));
            assert_eq!((view.vlan(), view.ethertype(), view.len()), (vlan, TYPE_IPV6, header.len()));
            assert!(rest.is_empty() && view.is_group());
        }
    }

    #[test]
    fn a_priority_tag_is_no_vlan_and_its_priority_no_id() {
        let mut bytes = written(Header { vlan: Some(0), ..PLAIN });
        bytes[HEADER_LEN] = 0xe0;
        assert_eq!(View::split(&bytes).unwrap().0.vlan(), None);
        bytes[HEADER_LEN + 1] = 7;
        assert_eq!(View::split(&bytes).unwrap().0.vlan(), Some(7));
    }

    #[test]
    fn a_second_tag_is_an_ethertype_of_its_own() {
        let mut bytes = written(Header { vlan: Some(5), ..PLAIN });
        bytes[16..18].copy_from_slice(&TYPE_VLAN.to_be_bytes());
        assert_eq!(View::split(&bytes).unwrap().0.ethertype(), TYPE_VLAN);
    }

    #[test]
    fn every_prefix_of_a_tagged_header_is_too_short() {
        let bytes = written(Header { vlan: Some(5), ..PLAIN });
        for len in 0..bytes.len() {
            assert!(View::split(&bytes[..len]).is_none());
            assert!(Header { vlan: Some(5), ..PLAIN }.write(0, &mut std::vec![0; len]).is_none());
        }
    }
}
