//! What a transport asks of the header before it, whichever the IP version.

use crate::{
    Ip, Refused,
    checksum::{self, Sum},
    ethernet, ipv4, ipv6,
};

/// A received header. A trait, not an enum: each family's way through a parser is then straight code.
pub(crate) trait Network<'a>: Sized {
    const HEADER_LEN: usize;
    /// The header and the body of a packet of `protocol` that is whole and may come from a device; `other` is the
    /// refusal of any other protocol.
    fn accept(packet: &'a [u8], protocol: u8, other: Refused) -> Result<(Self, &'a [u8]), Refused>;
    fn header_holds(&self) -> bool;
    fn pseudo_header(&self, protocol: u8, len: u16) -> Sum;
    fn addresses(&self) -> (Ip, Ip);
    fn ttl(&self) -> u8;
    fn tos(&self) -> u8;
    fn flow_label(&self) -> u32;
}

impl<'a> Network<'a> for ipv4::View<'a> {
    const HEADER_LEN: usize = ipv4::HEADER_LEN;

    #[inline(always)]
    fn accept(packet: &'a [u8], protocol: u8, other: Refused) -> Result<(Self, &'a [u8]), Refused> {
        let (ip, body) = Self::split(packet)?;
        match ip {
            _ if ip.protocol() != protocol => Err(other),
            _ if ip.is_fragment() => Err(Refused::Fragment),
            _ if ip.is_martian() => Err(Refused::Martian),
            _ => Ok((ip, body)),
        }
    }

    #[inline(always)]
    fn header_holds(&self) -> bool {
        self.checksum_holds()
    }

    #[inline(always)]
    fn pseudo_header(&self, protocol: u8, len: u16) -> Sum {
        checksum::pseudo_header_v4(self.source(), self.destination(), protocol, len)
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

    #[inline(always)]
    fn accept(packet: &'a [u8], protocol: u8, other: Refused) -> Result<(Self, &'a [u8]), Refused> {
        let (ip, body) = Self::split(packet)?;
        match ip.next_header() {
            next if next == protocol && ip.is_martian() => Err(Refused::Martian),
            next if next == protocol => Ok((ip, body)),
            _ if ip.has_extension() => Err(Refused::Extension),
            _ => Err(other),
        }
    }

    #[inline(always)]
    fn header_holds(&self) -> bool {
        true
    }

    #[inline(always)]
    fn pseudo_header(&self, protocol: u8, len: u16) -> Sum {
        checksum::pseudo_header_v6(&self.source(), &self.destination(), protocol, len.into())
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

/// What is written before a transport header.
pub(crate) struct Envelope {
    pub(crate) link: ethernet::Header,
    pub(crate) source: Ip,
    pub(crate) destination: Ip,
    pub(crate) ttl: u8,
    pub(crate) tos: u8,
    pub(crate) flow_label: u32,
    pub(crate) protocol: u8,
}

impl Envelope {
    /// Ethernet and IP headers; gives back the rest and the pseudo-header of a segment of `len` bytes.
    pub(crate) fn write<'b>(&self, len: usize, out: &'b mut [u8]) -> Option<(&'b mut [u8], Sum)> {
        let segment_len = u16::try_from(len).ok()?;
        let protocol = self.protocol;
        match (self.source, self.destination) {
            (Ip::V4(source), Ip::V4(destination)) => {
                let ip = ipv4::Header { tos: self.tos, ttl: self.ttl, protocol, source, destination };
                let rest = ip.write(len, self.link.write(ethernet::TYPE_IPV4, out)?)?;
                Some((rest, checksum::pseudo_header_v4(source, destination, protocol, segment_len)))
            }
            (Ip::V6(source), Ip::V6(destination)) => {
                let ip = ipv6::Header {
                    traffic_class: self.tos,
                    flow_label: self.flow_label,
                    hop_limit: self.ttl,
                    next_header: protocol,
                    source,
                    destination,
                };
                let rest = ip.write(len, self.link.write(ethernet::TYPE_IPV6, out)?)?;
                Some((rest, checksum::pseudo_header_v6(&source, &destination, protocol, segment_len.into())))
            }
            _ => None,
        }
    }
}

/// Writes a 16-bit field.
pub(crate) fn store(bytes: &mut [u8], at: usize, value: u16) -> Result<(), Refused> {
    let field = bytes.get_mut(at..).and_then(<[u8]>::first_chunk_mut::<2>).ok_or(Refused::Short)?;
    *field = value.to_be_bytes();
    Ok(())
}
