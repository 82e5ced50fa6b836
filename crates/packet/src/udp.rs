//! UDP (RFC 768) in an Ethernet frame, by the rules of `__udp4_lib_rcv` and `__udp6_lib_rcv`.
//!
//! [`parse`] is what stands between a ring and a program: a frame that passes it is one that Linux would have given to
//! the socket too, as far as the packet alone can tell.

pub use crate::checksum::ChecksumTrust;

use crate::{
    PROTOCOL_UDP, Refused, SocketAddrRaw, be16,
    checksum::{self, Sum},
    ethernet, ipv4, ipv6,
    network::{Envelope, Network, store},
};
use core::ops::Range;

mod field {
    pub(super) const SOURCE: usize = 0;
    pub(super) const DESTINATION: usize = 2;
    pub(super) const LEN: usize = 4;
    pub(super) const CHECKSUM: usize = 6;
}

/// Bytes of a header.
pub const HEADER_LEN: usize = 8;

/// One UDP datagram inside an Ethernet frame as the kernel handed it over.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Datagram {
    /// VLAN id; a priority tag (id 0) is none.
    pub vlan: Option<u16>,
    /// Who sent it.
    pub source: SocketAddrRaw,
    /// Where it was sent to.
    pub destination: SocketAddrRaw,
    /// Time to live, or hop limit.
    pub ttl: u8,
    /// Type of service, or traffic class.
    pub tos: u8,
    /// Flow label, 20 bits; 0 on IPv4.
    pub flow_label: u32,
    /// Where the payload lies in the frame, bytes.
    pub payload: Range<u32>,
    /// Sent to many: a group address in the Ethernet header, or IP multicast or broadcast.
    pub group: bool,
    /// The checksum field holds a partial sum: [`complete_checksum`] before the frame leaves this host's hands.
    pub partial: bool,
}

impl Datagram {
    /// The payload in `frame`, the frame that was parsed; `None` if it is another, shorter one.
    #[inline]
    pub fn payload_in<'a>(&self, frame: &'a [u8]) -> Option<&'a [u8]> {
        frame.get(self.payload.start as usize..self.payload.end as usize)
    }

    /// Payload bytes.
    #[inline]
    pub fn payload_len(&self) -> u32 {
        self.payload.end.saturating_sub(self.payload.start)
    }
}

/// Reads a frame: Ethernet with at most one VLAN tag, IPv4 without options or IPv6 without extension headers, UDP.
///
/// Whatever follows the lengths of IP and UDP is ignored, as `pskb_trim_rcsum` cuts it off. Whether the Ethernet
/// destination is this host (`PACKET_OTHERHOST`) is for the caller, who knows the device.
///
/// # Errors
/// [`Refused`]; [`Refused::is_damaged`] tells what Linux would drop from what the stack should see.
#[inline]
pub fn parse(frame: &[u8], trust: ChecksumTrust) -> Result<Datagram, Refused> {
    let (link, packet) = ethernet::View::split(frame).ok_or(Refused::Short)?;
    match link.ethertype() {
        ethernet::TYPE_IPV4 => Found::<ipv4::View<'_>>::new(link, packet)?.parse(trust),
        ethernet::TYPE_IPV6 => Found::<ipv6::View<'_>>::new(link, packet)?.parse(trust),
        _ => Err(Refused::NotIp),
    }
}

/// Turns a partial checksum into a full one in place, before the frame is given back to the stack or to a wire.
/// A checksum that is complete or absent stays as it is.
///
/// # Errors
/// As [`parse`] with [`ChecksumTrust::PartialAllowed`]; the frame is unchanged then.
pub fn complete_checksum(frame: &mut [u8]) -> Result<(), Refused> {
    let datagram = parse(frame, ChecksumTrust::PartialAllowed)?;
    if datagram.partial { fill_checksums(frame) } else { Ok(()) }
}

/// Computes every checksum of a frame anew, whatever it holds: for generators and for frames that were edited.
///
/// # Errors
/// As [`parse`], but for [`Refused::HeaderChecksum`] and [`Refused::Checksum`]; the frame is unchanged then.
pub fn fill_checksums(frame: &mut [u8]) -> Result<(), Refused> {
    let (link, packet) = ethernet::View::split(frame).ok_or(Refused::Short)?;
    let (at, checksum) = match link.ethertype() {
        ethernet::TYPE_IPV4 => Found::<ipv4::View<'_>>::new(link, packet)?.full_checksum(),
        ethernet::TYPE_IPV6 => Found::<ipv6::View<'_>>::new(link, packet)?.full_checksum(),
        _ => return Err(Refused::NotIp),
    };
    if link.ethertype() == ethernet::TYPE_IPV4 {
        let header = frame.get_mut(at - ipv4::HEADER_LEN..).and_then(<[u8]>::first_chunk_mut);
        ipv4::set_checksum(header.ok_or(Refused::Short)?);
    }
    store(frame, at + field::CHECKSUM, checksum)
}

/// A frame to write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Template<'a> {
    /// Ethernet header.
    pub link: ethernet::Header,
    /// From where, of the same family as `destination`.
    pub source: SocketAddrRaw,
    /// Where to.
    pub destination: SocketAddrRaw,
    /// Time to live, or hop limit.
    pub ttl: u8,
    /// Type of service, or traffic class.
    pub tos: u8,
    /// Flow label; for IPv6 only.
    pub flow_label: u32,
    /// Payload.
    pub payload: &'a [u8],
}

impl Template<'_> {
    /// Writes the frame with full checksums and gives its length; `None` if `out` is too short, the payload too
    /// long for one packet, or the families differ. Shorter than Ethernet's minimum is not padded.
    pub fn write(&self, out: &mut [u8]) -> Option<usize> {
        let len = HEADER_LEN.checked_add(self.payload.len())?;
        let room = out.len();
        let (segment, pseudo) = self.envelope().write(len, out)?;
        let segment_at = room - segment.len();
        let segment = segment.get_mut(..len)?;
        let (header, payload) = segment.split_first_chunk_mut::<HEADER_LEN>()?;
        header[field::SOURCE..field::DESTINATION].copy_from_slice(&self.source.port.to_be_bytes());
        header[field::DESTINATION..field::LEN].copy_from_slice(&self.destination.port.to_be_bytes());
        header[field::LEN..field::CHECKSUM].copy_from_slice(&u16::try_from(len).ok()?.to_be_bytes());
        header[field::CHECKSUM..].fill(0);
        payload.copy_from_slice(self.payload);
        let checksum = checksum::for_udp((pseudo + Sum::of(segment)).checksum());
        store(segment, field::CHECKSUM, checksum).ok()?;
        Some(segment_at + len)
    }

    fn envelope(&self) -> Envelope {
        Envelope {
            link: self.link,
            source: self.source.ip,
            destination: self.destination.ip,
            ttl: self.ttl,
            tos: self.tos,
            flow_label: self.flow_label,
            protocol: PROTOCOL_UDP,
        }
    }
}

/// A header read in place.
#[derive(Clone, Copy, Debug)]
pub struct View<'a>(&'a [u8; HEADER_LEN]);

impl<'a> View<'a> {
    /// The header, and the segment (header and payload) of an IPv4 packet's body cut at the UDP length.
    ///
    /// # Errors
    /// [`Refused::Short`] without room for a header, [`Refused::Length`] for a length below 8 or beyond the body.
    #[inline]
    pub fn split_v4(body: &'a [u8]) -> Result<(Self, &'a [u8]), Refused> {
        let header = body.first_chunk::<HEADER_LEN>().ok_or(Refused::Short)?;
        let len = usize::from(be16(header, field::LEN));
        let segment = body.get(..len).filter(|_| len >= HEADER_LEN).ok_or(Refused::Length)?;
        Ok((Self(header), segment))
    }

    /// [`View::split_v4`] for an IPv6 packet, where a length of zero means the whole body (`__udp6_lib_rcv`).
    ///
    /// # Errors
    /// As [`View::split_v4`].
    #[inline]
    pub fn split_v6(body: &'a [u8]) -> Result<(Self, &'a [u8]), Refused> {
        let header = body.first_chunk::<HEADER_LEN>().ok_or(Refused::Short)?;
        if be16(header, field::LEN) == 0 {
            return Ok((Self(header), body));
        }
        Self::split_v4(body)
    }

    /// Source port.
    #[inline]
    pub fn source(&self) -> u16 {
        be16(self.0, field::SOURCE)
    }

    /// Destination port.
    #[inline]
    pub fn destination(&self) -> u16 {
        be16(self.0, field::DESTINATION)
    }

    /// Checksum field.
    #[inline]
    pub fn checksum(&self) -> u16 {
        be16(self.0, field::CHECKSUM)
    }
}

/// What the families make of a UDP header.
trait Family<'a>: Network<'a> {
    /// Zero in the UDP checksum field means that there is none.
    const ZERO_IS_NONE: bool;
    fn segment(body: &'a [u8]) -> Result<(View<'a>, &'a [u8]), Refused>;
}

impl<'a> Family<'a> for ipv4::View<'a> {
    const ZERO_IS_NONE: bool = true;

    #[inline(always)]
    fn segment(body: &'a [u8]) -> Result<(View<'a>, &'a [u8]), Refused> {
        View::split_v4(body)
    }
}

impl<'a> Family<'a> for ipv6::View<'a> {
    const ZERO_IS_NONE: bool = false;

    #[inline(always)]
    fn segment(body: &'a [u8]) -> Result<(View<'a>, &'a [u8]), Refused> {
        View::split_v6(body)
    }
}

/// The headers of a frame whose lengths agree; checksums not yet looked at.
struct Found<'a, N> {
    link: ethernet::View<'a>,
    ip: N,
    udp: View<'a>,
    /// Header and payload.
    segment: &'a [u8],
}

impl<'a, N: Family<'a>> Found<'a, N> {
    #[inline(always)]
    fn new(link: ethernet::View<'a>, packet: &'a [u8]) -> Result<Self, Refused> {
        let (ip, body) = N::accept(packet, PROTOCOL_UDP, Refused::NotUdp)?;
        let (udp, segment) = N::segment(body)?;
        Ok(Self { link, ip, udp, segment })
    }

    #[inline(always)]
    fn parse(&self, trust: ChecksumTrust) -> Result<Datagram, Refused> {
        if !self.ip.header_holds() {
            return Err(Refused::HeaderChecksum);
        }
        Ok(self.datagram(self.verify(trust)?))
    }

    /// Whether the checksum is a partial one; an error if it is neither that nor right.
    #[inline(always)]
    fn verify(&self, trust: ChecksumTrust) -> Result<bool, Refused> {
        if self.udp.checksum() == 0 {
            return if N::ZERO_IS_NONE { Ok(false) } else { Err(Refused::Checksum) };
        }
        let pseudo = self.pseudo_header();
        if trust == ChecksumTrust::PartialAllowed && self.udp.checksum() == pseudo.fold() {
            return Ok(true);
        }
        let holds = (pseudo + Sum::of(self.segment)).checksum() == 0;
        if holds { Ok(false) } else { Err(Refused::Checksum) }
    }

    #[inline(always)]
    fn pseudo_header(&self) -> Sum {
        // A segment lies within one IP packet, so its length fits 16 bits.
        self.ip.pseudo_header(PROTOCOL_UDP, self.segment.len() as u16)
    }

    /// Offset of the segment in the frame, bytes.
    #[inline(always)]
    fn at(&self) -> usize {
        self.link.len() + N::HEADER_LEN
    }

    /// Where the segment is, and the checksum it ought to have.
    fn full_checksum(&self) -> (usize, u16) {
        // Adding the inverse of the field makes it count as zero.
        let without_field = Sum::of(self.segment) + Sum::word(!self.udp.checksum());
        (self.at(), checksum::for_udp((self.pseudo_header() + without_field).checksum()))
    }

    #[inline(always)]
    fn datagram(&self, partial: bool) -> Datagram {
        let (source, destination) = self.ip.addresses();
        let start = self.at() as u32;
        Datagram {
            vlan: self.link.vlan(),
            source: SocketAddrRaw { ip: source, port: self.udp.source() },
            destination: SocketAddrRaw { ip: destination, port: self.udp.destination() },
            ttl: self.ip.ttl(),
            tos: self.ip.tos(),
            flow_label: self.ip.flow_label(),
            payload: start + HEADER_LEN as u32..start + self.segment.len() as u32,
            group: self.link.is_group() || destination.is_multicast() || destination.is_broadcast(),
            partial,
        }
    }
}
