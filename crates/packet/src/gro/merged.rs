//! One packet that is held or given out.

use super::{
    CLOSING, Cause, Limits, MAX_HEADERS, SOLITARY,
    headers::{DONT_FRAGMENT, Headers, V4_AT, V4_FRAGMENT, V4_ID, V4_LEN, V6_AT, V6_LEN},
};
use crate::{
    Ip, PROTOCOL_TCP, SocketAddrRaw, array, be16, be32,
    checksum::{Sum, pseudo_header_v4, pseudo_header_v6},
    ethernet::HEADER_LEN as LINK,
    flow::FlowKey,
    ipv4,
    tcp::{Segment, field},
};

/// `VIRTIO_NET_HDR_F_NEEDS_CSUM`.
const NEEDS_CSUM: u8 = 1;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;

/// One or more segments as one packet.
#[derive(Clone, Debug)]
pub struct Merged {
    headers: [u8; MAX_HEADERS],
    len: u8,
    transport_at: u8,
    ids: Ids,
    gso_size: u16,
    payload_len: u32,
    segments: u32,
    next_seq: u32,
}

/// How IPv4's identification goes on. `inet_gro_flush` decides with the second segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Ids {
    Open,
    Fixed,
    Counting,
}

impl Merged {
    pub(super) const EMPTY: Self = Self {
        headers: [0; MAX_HEADERS],
        len: 0,
        transport_at: 0,
        ids: Ids::Open,
        gso_size: 0,
        payload_len: 0,
        segments: 0,
        next_seq: 0,
    };

    #[inline]
    pub(super) fn first(headers: &Headers<'_>, segment: &Segment) -> Self {
        let (base, options) = (headers.base(), headers.options());
        let len = base.len() + options.len();
        let mut bytes = [0; MAX_HEADERS];
        bytes[..base.len()].copy_from_slice(base);
        bytes[base.len()..len].copy_from_slice(options);
        let payload_len = segment.payload_len();
        Self {
            headers: bytes,
            len: len as u8,
            transport_at: headers.transport_at() as u8,
            ids: Ids::Open,
            gso_size: payload_len as u16,
            payload_len,
            segments: 1,
            next_seq: segment.seq.wrapping_add(payload_len),
        }
    }

    /// Ethernet, IP and TCP headers: the first segment's, with the whole packet's length, PSH and FIN of the last, and
    /// in TCP's checksum field the folded sum of the pseudo-header, not inverted (`CHECKSUM_PARTIAL`).
    #[inline]
    pub fn headers(&self) -> &[u8] {
        &self.headers[..usize::from(self.len)]
    }

    /// Payload bytes of all segments.
    #[inline]
    pub fn payload_len(&self) -> u32 {
        self.payload_len
    }

    /// Segments, at least one.
    #[inline]
    pub fn segments(&self) -> u32 {
        self.segments
    }

    /// Payload bytes of each segment but the last, which may have fewer.
    #[inline]
    pub fn gso_size(&self) -> u16 {
        self.gso_size
    }

    /// Sequence number of the first payload byte.
    #[inline]
    pub fn seq(&self) -> u32 {
        be32(&self.headers, usize::from(self.transport_at) + field::SEQ)
    }

    /// Whose packet it is.
    pub fn flow(&self) -> FlowKey {
        let ports = usize::from(self.transport_at);
        let end = |ip, at| SocketAddrRaw { ip, port: be16(&self.headers, ports + at) };
        let [source, destination] = match self.is_v4() {
            true => [12, 16].map(|at| Ip::V4(array(&self.headers, LINK + at))),
            false => [8, 24].map(|at| Ip::V6(array(&self.headers, LINK + at))),
        };
        FlowKey { source: end(source, field::SOURCE), destination: end(destination, field::DESTINATION) }
    }

    /// `struct virtio_net_hdr` for a TAP with `IFF_VNET_HDR`; its fields are in host byte order.
    ///
    /// There is never a need for `VIRTIO_NET_HDR_GSO_ECN`: a segment with CWR is not merged.
    pub fn virtio_net_hdr(&self) -> [u8; 10] {
        let (gso_type, gso_size) = match self.segments {
            0 | 1 => (GSO_NONE, 0),
            _ if self.is_v4() => (GSO_TCPV4, self.gso_size),
            _ => (GSO_TCPV6, self.gso_size),
        };
        let [hdr_len, gso_size, csum_start, csum_offset] =
            [self.len.into(), gso_size, self.transport_at.into(), field::CHECKSUM as u16]
                .map(u16::to_ne_bytes);
        let mut out = [0; 10];
        out[..2].copy_from_slice(&[NEEDS_CSUM, gso_type]);
        out[2..].copy_from_slice([hdr_len, gso_size, csum_start, csum_offset].as_flattened());
        out
    }

    #[inline(always)]
    pub(super) fn same_flow(&self, headers: &Headers<'_>) -> bool {
        usize::from(self.transport_at) == headers.transport_at() && headers.same_flow(&self.headers)
    }

    /// The comparison of `inet_gro_receive` and `ipv6_gro_receive`.
    #[inline(always)]
    pub(super) fn same_addresses(&self, headers: &Headers<'_>) -> bool {
        usize::from(self.transport_at) == headers.transport_at() && headers.same_addresses(&self.headers)
    }

    /// The comparison of `tcp_gro_lookup`.
    #[inline(always)]
    pub(super) fn same_ports(&self, headers: &Headers<'_>) -> bool {
        let at = if self.is_v4() { V4_AT } else { V6_AT };
        be32(&self.headers, at) == headers.ports()
    }

    /// Whether a segment of the same flow may be appended; else why the packet is complete before it.
    #[inline(always)]
    pub(super) fn admits(
        &mut self,
        headers: &Headers<'_>,
        segment: &Segment,
        limits: &Limits,
    ) -> Result<(), Cause> {
        let len = segment.payload_len();
        match () {
            _ if len == 0 || segment.flags & SOLITARY != 0 => Err(Cause::Overtaken),
            _ if segment.seq != self.next_seq => Err(Cause::Gap),
            _ if !headers.same_but_masked(&self.headers) => Err(Cause::Differed),
            _ if len > self.gso_size.into() => Err(Cause::Longer),
            _ if len > limits.bytes - self.payload_len => Err(Cause::Full),
            _ if !self.id_goes_on(headers) => Err(Cause::Differed),
            _ => Ok(()),
        }
    }

    /// With DF the identification may stand still or count, without it must count. `inet_gro_flush`.
    #[inline(always)]
    fn id_goes_on(&mut self, headers: &Headers<'_>) -> bool {
        let Some(id) = headers.id() else { return true };
        let offset = id.wrapping_sub(be16(&self.headers, V4_ID));
        if self.ids == Ids::Open {
            let fixed = offset == 0 && self.headers[V4_FRAGMENT] & DONT_FRAGMENT != 0;
            self.ids = if fixed { Ids::Fixed } else { Ids::Counting };
        }
        offset == if self.ids == Ids::Fixed { 0 } else { self.segments as u16 }
    }

    #[inline(always)]
    pub(super) fn append(&mut self, segment: &Segment) {
        let len = segment.payload_len();
        self.headers[usize::from(self.transport_at) + field::FLAGS] |= segment.flags & CLOSING;
        self.payload_len += len;
        self.segments += 1;
        self.next_seq = self.next_seq.wrapping_add(len);
    }

    /// Why nothing may follow the segment that was just appended, if so.
    #[inline(always)]
    pub(super) fn closed(&self, last: &Segment, limits: &Limits) -> Option<Cause> {
        match () {
            _ if last.flags & CLOSING != 0 => Some(Cause::Pushed),
            _ if last.payload_len() < self.gso_size.into() => Some(Cause::Short),
            _ if self.segments >= limits.segments => Some(Cause::Full),
            _ => None,
        }
    }

    /// Makes the headers those of the whole packet. `inet_gro_complete`, `tcp4_gro_complete`, `tcp6_gro_complete`.
    pub(super) fn finish(&mut self) {
        let tcp_len = u32::from(self.len - self.transport_at) + self.payload_len;
        let pseudo = if self.is_v4() { self.finish_v4(tcp_len) } else { self.finish_v6(tcp_len) };
        let at = usize::from(self.transport_at) + field::CHECKSUM;
        self.headers[at..at + 2].copy_from_slice(&pseudo.fold().to_be_bytes());
    }

    fn finish_v4(&mut self, tcp_len: u32) -> Sum {
        let total = (tcp_len + ipv4::HEADER_LEN as u32) as u16;
        self.headers[V4_LEN..V4_LEN + 2].copy_from_slice(&total.to_be_bytes());
        if let Some(header) = self.headers[LINK..].first_chunk_mut() {
            ipv4::set_checksum(header);
        }
        let [source, destination] = [12, 16].map(|at| array(&self.headers, LINK + at));
        pseudo_header_v4(source, destination, PROTOCOL_TCP, tcp_len as u16)
    }

    fn finish_v6(&mut self, tcp_len: u32) -> Sum {
        self.headers[V6_LEN..V6_LEN + 2].copy_from_slice(&(tcp_len as u16).to_be_bytes());
        let [source, destination]: [[u8; 16]; 2] = [8, 24].map(|at| array(&self.headers, LINK + at));
        pseudo_header_v6(&source, &destination, PROTOCOL_TCP, tcp_len)
    }

    #[inline(always)]
    fn is_v4(&self) -> bool {
        usize::from(self.transport_at) == V4_AT
    }
}
