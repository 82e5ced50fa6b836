//! TCP (RFC 9293) in an Ethernet frame, by the rules of `tcp_v4_rcv` and `tcp_v6_rcv` as far as the packet alone goes.
//!
//! Sequence numbers, windows and options are for whoever knows the connection; [`parse`] vouches for every byte of the
//! segment.

pub use crate::checksum::ChecksumTrust;

use crate::{
    PROTOCOL_TCP, Refused, SocketAddrRaw, be16, be32,
    checksum::Sum,
    ethernet, ipv4, ipv6,
    network::{Envelope, Network, store},
};
use core::ops::Range;

pub(crate) mod field {
    pub(crate) const SOURCE: usize = 0;
    pub(crate) const DESTINATION: usize = 2;
    pub(crate) const SEQ: usize = 4;
    pub(crate) const ACK: usize = 8;
    pub(crate) const DATA_OFFSET: usize = 12;
    pub(crate) const FLAGS: usize = 13;
    pub(crate) const WINDOW: usize = 14;
    pub(crate) const CHECKSUM: usize = 16;
    pub(crate) const URGENT: usize = 18;
}

/// Bytes of a header without options.
pub const HEADER_LEN: usize = 20;
/// Most bytes of options.
pub const MAX_OPTIONS_LEN: usize = 40;

/// Flag: no more data from the sender.
pub const FIN: u8 = 0x01;
/// Flag: synchronise sequence numbers.
pub const SYN: u8 = 0x02;
/// Flag: reset the connection.
pub const RST: u8 = 0x04;
/// Flag: push.
pub const PSH: u8 = 0x08;
/// Flag: the acknowledgement number counts.
pub const ACK: u8 = 0x10;
/// Flag: the urgent pointer counts.
pub const URG: u8 = 0x20;
/// Flag: congestion was experienced (RFC 3168).
pub const ECE: u8 = 0x40;
/// Flag: the congestion window was reduced (RFC 3168).
pub const CWR: u8 = 0x80;

/// One TCP segment inside an Ethernet frame as the kernel handed it over.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Segment {
    /// Who sent it.
    pub source: SocketAddrRaw,
    /// Where it was sent to.
    pub destination: SocketAddrRaw,
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgement number, whatever the flags say.
    pub ack: u32,
    /// The flag byte: [`FIN`] to [`CWR`].
    pub flags: u8,
    /// The window field, not scaled.
    pub window: u16,
    /// Time to live, or hop limit.
    pub ttl: u8,
    /// Type of service, or traffic class.
    pub tos: u8,
    /// Where the TCP header starts in the frame, bytes.
    pub transport_at: u32,
    /// Where the payload lies in the frame, bytes: from the end of all headers.
    pub payload: Range<u32>,
    /// The checksum field holds a partial sum: [`complete_checksum`] before the frame leaves this host's hands.
    pub partial: bool,
}

impl Segment {
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

/// Reads a frame: Ethernet without tag, IPv4 without options or IPv6 without extension headers, TCP.
///
/// Whatever follows IP's length is ignored, as `pskb_trim_rcsum` cuts it off. Whether the Ethernet destination is this
/// host's own is for the caller, who knows the device; a group address is refused, as no segment may be sent to one.
///
/// # Errors
/// [`Refused`]; [`Refused::is_damaged`] tells what Linux would drop from what the stack should see.
#[inline]
pub fn parse(frame: &[u8], trust: ChecksumTrust) -> Result<Segment, Refused> {
    match Either::find(frame)? {
        Either::V4(found) => found.parse(trust),
        Either::V6(found) => found.parse(trust),
    }
}

/// Turns a partial checksum into a full one in place, before the frame is given back to the stack or to a wire.
/// A checksum that is complete stays as it is.
///
/// # Errors
/// As [`parse`] with [`ChecksumTrust::PartialAllowed`]; the frame is unchanged then.
pub fn complete_checksum(frame: &mut [u8]) -> Result<(), Refused> {
    let segment = parse(frame, ChecksumTrust::PartialAllowed)?;
    if segment.partial { fill_checksums(frame) } else { Ok(()) }
}

/// Computes every checksum of a frame anew, whatever it holds: for generators and for frames that were edited.
///
/// # Errors
/// As [`parse`], but for [`Refused::HeaderChecksum`] and [`Refused::Checksum`]; the frame is unchanged then.
pub fn fill_checksums(frame: &mut [u8]) -> Result<(), Refused> {
    let (at, checksum) = match Either::find(frame)? {
        Either::V4(found) => found.full_checksum(),
        Either::V6(found) => {
            let (at, checksum) = found.full_checksum();
            return store(frame, at + field::CHECKSUM, checksum);
        }
    };
    let header = frame.get_mut(at - ipv4::HEADER_LEN..).and_then(<[u8]>::first_chunk_mut);
    ipv4::set_checksum(header.ok_or(Refused::Short)?);
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
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgement number.
    pub ack: u32,
    /// The flag byte.
    pub flags: u8,
    /// The window field.
    pub window: u16,
    /// The urgent pointer.
    pub urgent: u16,
    /// Options with their padding: a multiple of four bytes, at most [`MAX_OPTIONS_LEN`].
    pub options: &'a [u8],
    /// Payload.
    pub payload: &'a [u8],
}

impl Template<'_> {
    /// Writes the frame with full checksums and gives its length; `None` if `out` is too short, the options impossible,
    /// the payload too long for one packet, or the families differ. Shorter than Ethernet's minimum is not padded.
    pub fn write(&self, out: &mut [u8]) -> Option<usize> {
        let headers_len = self.header_len()?;
        let len = headers_len.checked_add(self.payload.len())?;
        let room = out.len();
        let (segment, pseudo) = self.envelope().write(len, out)?;
        let segment_at = room - segment.len();
        let segment = segment.get_mut(..len)?;
        self.write_header(headers_len, segment.first_chunk_mut()?);
        segment.get_mut(HEADER_LEN..headers_len)?.copy_from_slice(self.options);
        segment.get_mut(headers_len..)?.copy_from_slice(self.payload);
        let checksum = (pseudo + Sum::of(segment)).checksum();
        store(segment, field::CHECKSUM, checksum).ok()?;
        Some(segment_at + len)
    }

    fn header_len(&self) -> Option<usize> {
        let len = self.options.len();
        (len.is_multiple_of(4) && len <= MAX_OPTIONS_LEN).then_some(HEADER_LEN + len)
    }

    fn write_header(&self, len: usize, header: &mut [u8; HEADER_LEN]) {
        header[field::SOURCE..field::DESTINATION].copy_from_slice(&self.source.port.to_be_bytes());
        header[field::DESTINATION..field::SEQ].copy_from_slice(&self.destination.port.to_be_bytes());
        header[field::SEQ..field::ACK].copy_from_slice(&self.seq.to_be_bytes());
        header[field::ACK..field::DATA_OFFSET].copy_from_slice(&self.ack.to_be_bytes());
        header[field::DATA_OFFSET] = (len as u8 / 4) << 4;
        header[field::FLAGS] = self.flags;
        header[field::WINDOW..field::CHECKSUM].copy_from_slice(&self.window.to_be_bytes());
        header[field::CHECKSUM..field::URGENT].fill(0);
        header[field::URGENT..].copy_from_slice(&self.urgent.to_be_bytes());
    }

    fn envelope(&self) -> Envelope {
        Envelope {
            link: self.link,
            source: self.source.ip,
            destination: self.destination.ip,
            ttl: self.ttl,
            tos: self.tos,
            flow_label: self.flow_label,
            protocol: PROTOCOL_TCP,
        }
    }
}

/// A header read in place.
#[derive(Clone, Copy, Debug)]
pub struct View<'a>(&'a [u8; HEADER_LEN]);

impl<'a> View<'a> {
    /// The header in an IP packet's body, which is the whole segment.
    ///
    /// # Errors
    /// [`Refused::Short`] without room for a header, [`Refused::Length`] for a data offset below 20 bytes or beyond
    /// the body.
    #[inline]
    pub fn split(body: &'a [u8]) -> Result<Self, Refused> {
        let view = Self(body.first_chunk().ok_or(Refused::Short)?);
        let len = view.header_len();
        if len < HEADER_LEN || len > body.len() { Err(Refused::Length) } else { Ok(view) }
    }

    /// Bytes of the header with its options.
    #[inline]
    pub fn header_len(&self) -> usize {
        usize::from(self.0[field::DATA_OFFSET] >> 4) * 4
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

    /// Sequence number.
    #[inline]
    pub fn seq(&self) -> u32 {
        be32(self.0, field::SEQ)
    }

    /// Acknowledgement number.
    #[inline]
    pub fn ack(&self) -> u32 {
        be32(self.0, field::ACK)
    }

    /// The flag byte.
    #[inline]
    pub fn flags(&self) -> u8 {
        self.0[field::FLAGS]
    }

    /// The window field.
    #[inline]
    pub fn window(&self) -> u16 {
        be16(self.0, field::WINDOW)
    }

    /// The urgent pointer.
    #[inline]
    pub fn urgent(&self) -> u16 {
        be16(self.0, field::URGENT)
    }

    /// Checksum field.
    #[inline]
    pub fn checksum(&self) -> u16 {
        be16(self.0, field::CHECKSUM)
    }
}

enum Either<'a> {
    V4(Found<'a, ipv4::View<'a>>),
    V6(Found<'a, ipv6::View<'a>>),
}

impl<'a> Either<'a> {
    #[inline(always)]
    fn find(frame: &'a [u8]) -> Result<Self, Refused> {
        let (link, packet) = ethernet::View::split(frame).ok_or(Refused::Short)?;
        match link.ethertype() {
            ethernet::TYPE_IPV4 => Found::new(link, packet).map(Self::V4),
            ethernet::TYPE_IPV6 => Found::new(link, packet).map(Self::V6),
            _ => Err(Refused::NotIp),
        }
    }
}

/// The headers of a frame whose lengths agree; checksums not yet looked at.
struct Found<'a, N> {
    ip: N,
    tcp: View<'a>,
    /// Header and payload.
    segment: &'a [u8],
}

impl<'a, N: Network<'a>> Found<'a, N> {
    /// Offset of the segment in the frame, bytes.
    const AT: usize = ethernet::HEADER_LEN + N::HEADER_LEN;

    #[inline(always)]
    fn new(link: ethernet::View<'a>, packet: &'a [u8]) -> Result<Self, Refused> {
        let (ip, segment) = N::accept(packet, PROTOCOL_TCP, Refused::NotTcp)?;
        let (_, destination) = ip.addresses();
        match destination {
            _ if link.len() != ethernet::HEADER_LEN => Err(Refused::Vlan),
            _ if link.is_group() || destination.is_multicast() || destination.is_broadcast() => {
                Err(Refused::Group)
            }
            _ => Ok(Self { ip, tcp: View::split(segment)?, segment }),
        }
    }

    #[inline(always)]
    fn parse(&self, trust: ChecksumTrust) -> Result<Segment, Refused> {
        if !self.ip.header_holds() {
            return Err(Refused::HeaderChecksum);
        }
        Ok(self.typed(self.verify(trust)?))
    }

    /// Whether the checksum is a partial one; an error if it is neither that nor right.
    #[inline(always)]
    fn verify(&self, trust: ChecksumTrust) -> Result<bool, Refused> {
        let pseudo = self.pseudo_header();
        if trust == ChecksumTrust::PartialAllowed && self.tcp.checksum() == pseudo.fold() {
            return Ok(true);
        }
        let holds = (pseudo + Sum::of(self.segment)).checksum() == 0;
        if holds { Ok(false) } else { Err(Refused::Checksum) }
    }

    #[inline(always)]
    fn pseudo_header(&self) -> Sum {
        // A segment lies within one IP packet, so its length fits 16 bits.
        self.ip.pseudo_header(PROTOCOL_TCP, self.segment.len() as u16)
    }

    /// Where the segment is, and the checksum it ought to have.
    fn full_checksum(&self) -> (usize, u16) {
        // Adding the inverse of the field makes it count as zero.
        let without_field = Sum::of(self.segment) + Sum::word(!self.tcp.checksum());
        (Self::AT, (self.pseudo_header() + without_field).checksum())
    }

    #[inline(always)]
    fn typed(&self, partial: bool) -> Segment {
        let (source, destination) = self.ip.addresses();
        let at = Self::AT as u32;
        Segment {
            source: SocketAddrRaw { ip: source, port: self.tcp.source() },
            destination: SocketAddrRaw { ip: destination, port: self.tcp.destination() },
            seq: self.tcp.seq(),
            ack: self.tcp.ack(),
            flags: self.tcp.flags(),
            window: self.tcp.window(),
            ttl: self.ip.ttl(),
            tos: self.ip.tos(),
            transport_at: at,
            payload: at + self.tcp.header_len() as u32..at + self.segment.len() as u32,
            partial,
        }
    }
}
