//! Why a frame is not one that may be given to a program.

/// Why [`udp::parse`](crate::udp::parse) or [`tcp::parse`](crate::tcp::parse) did not accept a frame.
///
/// Linux drops what [`Refused::is_damaged`] holds for, and counts it as noted; the rest is only more than this crate
/// reads, and the stack decides.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Refused {
    /// Too short for its headers. `ip_rcv_core`, `ip6_rcv_core`: InHdrErrors; `__udp4_lib_rcv`: InErrors;
    /// `tcp_v4_rcv`, `tcp_v6_rcv`: not counted.
    Short,
    /// Neither IPv4 nor IPv6 under at most one VLAN tag, or the version field contradicts the EtherType.
    NotIp,
    /// UDP was looked for, and it is another transport protocol.
    NotUdp,
    /// TCP was looked for, and it is another transport protocol.
    NotTcp,
    /// TCP under a VLAN tag: a connection of another device.
    Vlan,
    /// TCP to a group address, of Ethernet or of IP. `tcp_v4_rcv`, `tcp_v6_rcv`: dropped for its `pkt_type`.
    Group,
    /// The IPv4 header checksum is wrong. `ip_rcv_core`: InCsumErrors and InHdrErrors of Ip.
    HeaderChecksum,
    /// A length field contradicts the frame or its own header. `ip_rcv_core`, `ip6_rcv_core`: InTruncatedPkts or
    /// InHdrErrors; `__udp4_lib_rcv`, `__udp6_lib_rcv`: InErrors of Udp; `tcp_v4_rcv`, `tcp_v6_rcv`: InErrs of Tcp.
    Length,
    /// The UDP checksum is wrong, or zero on IPv6. `udp4_csum_init`, `udp6_csum_init`, `udp_lib_checksum_complete`:
    /// InCsumErrors and InErrors of Udp. Or the TCP checksum is wrong. `skb_checksum_init`, `tcp_checksum_complete`:
    /// InCsumErrors and InErrs of Tcp.
    Checksum,
    /// A fragment: only the stack reassembles.
    Fragment,
    /// IPv4 options.
    Options,
    /// IPv6 extension headers.
    Extension,
    /// An address that must not arrive from a device: loopback, a multicast or v4-mapped source, a destination of
    /// reserved scope. `ip_route_input_slow`, `ip_mc_validate_source` (unless `route_localnet`), `ip6_rcv_core`.
    Martian,
}

impl Refused {
    /// The packet is broken: Linux would drop and count it. Else it is for the stack to judge.
    #[inline]
    pub fn is_damaged(self) -> bool {
        matches!(self, Self::Short | Self::HeaderChecksum | Self::Length | Self::Checksum)
    }
}
