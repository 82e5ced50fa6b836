//! UDP (RFC 768) in an Ethernet frame, by the rules of `__udp4_lib_rcv` and `__udp6_lib_rcv`.
//!
//! [`parse`] is what stands between a ring and a program: a frame that passes it is one that Linux would have given to
//! the socket too, as far as the packet alone can tell.

use crate::{
    Ip, PROTOCOL_UDP, Refused, SocketAddrRaw, be16,
    checksum::{self, Sum},
    ethernet, ipv4, ipv6,
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

/// What a checksum field may hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ChecksumTrust {
    /// A checksum that holds, or zero on IPv4.
    Verify,
    /// Also the folded pseudo-header sum, not inverted: `CHECKSUM_PARTIAL`, which a sender on the same host leaves to
    /// the device and veth hands on as it is. The payload of such a packet never met a wire and is not verified.
    /// Only for devices that do so: on a real wire a corrupted packet could pass for one.
    PartialAllowed,
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
        let (segment, pseudo) = self.write_network(len, out)?;
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

    /// Ethernet and IP headers; gives back the rest and the pseudo-header of a segment of `len` bytes.
    fn write_network<'b>(&self, len: usize, out: &'b mut [u8]) -> Option<(&'b mut [u8], Sum)> {
        let udp_len = u16::try_from(len).ok()?;
        match (self.source.ip, self.destination.ip) {
            (Ip::V4(source), Ip::V4(destination)) => {
                let ip = ipv4::Header {
                    tos: self.tos,
                    ttl: self.ttl,
                    protocol: PROTOCOL_UDP,
                    source,
                    destination,
                };
                let rest = ip.write(len, self.link.write(ethernet::TYPE_IPV4, out)?)?;
                Some((rest, checksum::pseudo_header_v4(source, destination, PROTOCOL_UDP, udp_len)))
            }
            (Ip::V6(source), Ip::V6(destination)) => {
                let ip = ipv6::Header {
                    traffic_class: self.tos,
                    flow_label: self.flow_label,
                    hop_limit: self.ttl,
                    next_header: PROTOCOL_UDP,
                    source,
                    destination,
                };
                let rest = ip.write(len, self.link.write(ethernet::TYPE_IPV6, out)?)?;
                Some((rest, checksum::pseudo_header_v6(&source, &destination, PROTOCOL_UDP, udp_len.into())))
            }
            _ => None,
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

/// What UDP asks of the header before it. A trait, not an enum: each family's way through [`parse`] is then
/// straight code.
trait Network<'a>: Sized {
    const HEADER_LEN: usize;
    /// Zero in the UDP checksum field means that there is none.
    const ZERO_IS_NONE: bool;
    /// The header and the body of a UDP packet that is whole and may come from a device.
    fn accept(packet: &'a [u8]) -> Result<(Self, &'a [u8]), Refused>;
    fn segment(body: &'a [u8]) -> Result<(View<'a>, &'a [u8]), Refused>;
    fn header_holds(&self) -> bool;
    fn pseudo_header(&self, len: u16) -> Sum;
    fn addresses(&self) -> (Ip, Ip);
    fn ttl(&self) -> u8;
    fn tos(&self) -> u8;
    fn flow_label(&self) -> u32;
}

impl<'a> Network<'a> for ipv4::View<'a> {
    const HEADER_LEN: usize = ipv4::HEADER_LEN;
    const ZERO_IS_NONE: bool = true;

    #[inline(always)]
    fn accept(packet: &'a [u8]) -> Result<(Self, &'a [u8]), Refused> {
        let (ip, body) = Self::split(packet)?;
        match ip {
            _ if ip.protocol() != PROTOCOL_UDP => Err(Refused::NotUdp),
            _ if ip.is_fragment() => Err(Refused::Fragment),
            _ if ip.is_martian() => Err(Refused::Martian),
            _ => Ok((ip, body)),
        }
    }

    #[inline(always)]
    fn segment(body: &'a [u8]) -> Result<(View<'a>, &'a [u8]), Refused> {
        View::split_v4(body)
    }

    #[inline(always)]
    fn header_holds(&self) -> bool {
        self.checksum_holds()
    }

    #[inline(always)]
    fn pseudo_header(&self, len: u16) -> Sum {
        checksum::pseudo_header_v4(self.source(), self.destination(), PROTOCOL_UDP, len)
    }

    #[inline(always)]
    fn addresses(&self) -> (Ip, Ip) {
        (Ip::V4(self.source()), Ip::V4(self.destination()))
    }

    #[inline(always)]
    fn ttl(&self) -> u8 {
        self.ttl()
    }

    #[inline(always)]
    fn tos(&self) -> u8 {
        self.tos()
    }

    #[inline(always)]
    fn flow_label(&self) -> u32 {
        0
    }
}

impl<'a> Network<'a> for ipv6::View<'a> {
    const HEADER_LEN: usize = ipv6::HEADER_LEN;
    const ZERO_IS_NONE: bool = false;

    #[inline(always)]
    fn accept(packet: &'a [u8]) -> Result<(Self, &'a [u8]), Refused> {
        let (ip, body) = Self::split(packet)?;
        match ip.next_header() {
            PROTOCOL_UDP if ip.is_martian() => Err(Refused::Martian),
            PROTOCOL_UDP => Ok((ip, body)),
            _ if ip.has_extension() => Err(Refused::Extension),
            _ => Err(Refused::NotUdp),
        }
    }

    #[inline(always)]
    fn segment(body: &'a [u8]) -> Result<(View<'a>, &'a [u8]), Refused> {
        View::split_v6(body)
    }

    #[inline(always)]
    fn header_holds(&self) -> bool {
        true
    }

    #[inline(always)]
    fn pseudo_header(&self, len: u16) -> Sum {
        checksum::pseudo_header_v6(&self.source(), &self.destination(), PROTOCOL_UDP, len.into())
    }

    #[inline(always)]
    fn addresses(&self) -> (Ip, Ip) {
        (Ip::V6(self.source()), Ip::V6(self.destination()))
    }

    #[inline(always)]
    fn ttl(&self) -> u8 {
        self.hop_limit()
    }

    #[inline(always)]
    fn tos(&self) -> u8 {
        self.traffic_class()
    }

    #[inline(always)]
    fn flow_label(&self) -> u32 {
        self.flow_label()
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

impl<'a, N: Network<'a>> Found<'a, N> {
    #[inline(always)]
    fn new(link: ethernet::View<'a>, packet: &'a [u8]) -> Result<Self, Refused> {
        let (ip, body) = N::accept(packet)?;
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
        self.ip.pseudo_header(self.segment.len() as u16)
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

fn store(bytes: &mut [u8], at: usize, value: u16) -> Result<(), Refused> {
    let field = bytes.get_mut(at..).and_then(<[u8]>::first_chunk_mut::<2>).ok_or(Refused::Short)?;
    *field = value.to_be_bytes();
    Ok(())
}
