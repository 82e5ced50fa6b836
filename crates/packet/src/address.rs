//! Addresses as they stand in headers, cheap to copy and compare.

use core::net::{IpAddr, SocketAddr};

/// An IP address in network byte order.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub enum Ip {
    /// IPv4.
    V4([u8; 4]),
    /// IPv6.
    V6([u8; 16]),
}

impl Ip {
    /// A multicast address: `224.0.0.0/4` or `ff00::/8`.
    #[inline]
    pub fn is_multicast(self) -> bool {
        match self {
            Self::V4(octets) => octets[0] & 0xf0 == 0xe0,
            Self::V6(octets) => octets[0] == 0xff,
        }
    }

    /// The limited broadcast address `255.255.255.255`.
    #[inline]
    pub fn is_broadcast(self) -> bool {
        self == Self::V4([255; 4])
    }
}

impl From<Ip> for IpAddr {
    #[inline]
    fn from(ip: Ip) -> Self {
        match ip {
            Ip::V4(octets) => octets.into(),
            Ip::V6(octets) => octets.into(),
        }
    }
}

impl From<IpAddr> for Ip {
    #[inline]
    fn from(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(ip) => Self::V4(ip.octets()),
            IpAddr::V6(ip) => Self::V6(ip.octets()),
        }
    }
}

/// An address and a port (host byte order), without IPv6's scope and flow label.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct SocketAddrRaw {
    /// The address.
    pub ip: Ip,
    /// The port, host byte order.
    pub port: u16,
}

impl From<SocketAddrRaw> for SocketAddr {
    #[inline]
    fn from(address: SocketAddrRaw) -> Self {
        Self::new(address.ip.into(), address.port)
    }
}

impl From<SocketAddr> for SocketAddrRaw {
    #[inline]
    fn from(address: SocketAddr) -> Self {
        Self { ip: address.ip().into(), port: address.port() }
    }
}
