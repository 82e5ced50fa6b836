//! What each socket option means for lifting: pure.
//!
//! An option is followed, known to be harmless, or it demotes the socket: what the shim does not understand only the
//! kernel can honour.

use crate::socket::want;
use hoist_ipc::Reason;
use libc::c_int;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// What the shim does after a successful setsockopt.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Effect {
    /// Nothing: it does not concern receiving, or the kernel's own state is enough.
    None,
    /// Sets or clears these bits of `wants`.
    Want { bits: u32, on: bool },
    /// The receive buffer has another size.
    ReceiveBuffer,
    /// SO_RCVTIMEO, microseconds.
    Timeout(u64),
    /// Who may send to the socket changed.
    Endpoint,
    /// Joined or left a group.
    Group { join: bool, group: IpAddr, ifindex: u32 },
    /// Only the kernel can honour it.
    Demote(Reason),
}

/// What the shim does before a setsockopt on a TCP socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum StreamEffect {
    /// Nothing.
    None,
    /// SO_RCVLOWAT.
    LowWater,
    /// Only the kernel can honour it: it serves the socket from here on.
    Demote,
    /// The kernel takes the stream from here on: no byte of it may be held.
    Takes,
}

pub(crate) const TCP_ZEROCOPY_RECEIVE: c_int = 35;
pub(crate) const SIOCATMARK: libc::Ioctl = 0x8905;

/// Classifies an option of a TCP socket. All that concern sending, or of which the kernel's own state is enough, are harmless.
pub(crate) fn stream_effect(level: c_int, name: c_int) -> StreamEffect {
    const TCP_MD5SIG: c_int = 14;
    const TCP_REPAIR: c_int = 19;
    const TCP_ULP: c_int = 31;
    const TCP_MD5SIG_EXT: c_int = 32;
    const TCP_INQ: c_int = 36;
    const TCP_AO: core::ops::RangeInclusive<c_int> = 38..=43;
    match (level, name) {
        (libc::SOL_SOCKET, libc::SO_RCVLOWAT) => StreamEffect::LowWater,
        (
            libc::SOL_SOCKET,
            libc::SO_TIMESTAMP
            | libc::SO_TIMESTAMPNS
            | libc::SO_TIMESTAMPING
            | number::SO_TIMESTAMP_NEW
            | number::SO_TIMESTAMPNS_NEW
            | libc::SO_ATTACH_FILTER
            | libc::SO_ATTACH_BPF
            | libc::SO_LOCK_FILTER,
        ) => StreamEffect::Demote,
        (libc::SOL_SOCKET, libc::SO_PEEK_OFF) | (libc::IPPROTO_TCP, TCP_ULP | TCP_REPAIR) => {
            StreamEffect::Takes
        }
        (libc::IPPROTO_TCP, TCP_INQ | TCP_MD5SIG | TCP_MD5SIG_EXT) => StreamEffect::Demote,
        (libc::IPPROTO_TCP, name) if TCP_AO.contains(&name) => StreamEffect::Demote,
        _ => StreamEffect::None,
    }
}

/// Options that libc's crate lacks (include/uapi/linux/{in,in6,udp}.h, asm-generic/socket.h).
pub(crate) mod number {
    use libc::c_int;
    pub(super) const SO_RCVTIMEO_NEW: c_int = 66;
    pub(super) const SO_TIMESTAMP_NEW: c_int = 63;
    pub(super) const SO_TIMESTAMPNS_NEW: c_int = 64;
    pub(super) const SO_SNDTIMEO_NEW: c_int = 67;
    pub(super) const SO_BINDTOIFINDEX: c_int = 62;
    pub(super) const SO_PREFER_BUSY_POLL: c_int = 69;
    pub(super) const SO_BUSY_POLL_BUDGET: c_int = 70;
    pub(super) const SO_NETNS_COOKIE: c_int = 71;
    pub(super) const SO_BUF_LOCK: c_int = 72;
    pub(super) const SO_RESERVE_MEM: c_int = 73;
    pub(super) const SO_TXREHASH: c_int = 74;
    pub(super) const MCAST_JOIN_GROUP: c_int = 42;
    pub(super) const MCAST_LEAVE_GROUP: c_int = 45;
    pub(super) const IP_LOCAL_PORT_RANGE: c_int = 51;
    pub(super) const IPV6_ADDR_PREFERENCES: c_int = 72;
    pub(super) const UDP_CORK: c_int = 1;
    pub(super) const UDP_NO_CHECK6_TX: c_int = 101;
    pub(super) const UDP_SEGMENT: c_int = 103;
    pub(crate) const UDP_GRO: c_int = 104;
}

/// Classifies `setsockopt(level, name, value)`. `value` is what the kernel accepted.
pub(crate) fn effect(level: c_int, name: c_int, value: &[u8]) -> Effect {
    match level {
        libc::SOL_SOCKET => socket(name, value),
        libc::IPPROTO_IP => v4(name, value),
        libc::IPPROTO_IPV6 => v6(name, value),
        libc::IPPROTO_UDP => udp(name, value),
        _ => Effect::Demote(Reason::Option),
    }
}

/// An int option's value; IP options may be one byte.
fn int(value: &[u8]) -> i32 {
    match value.first_chunk() {
        Some(word) => i32::from_ne_bytes(*word),
        None => value.first().copied().unwrap_or(0).into(),
    }
}

fn want(bits: u32, value: &[u8]) -> Effect {
    Effect::Want { bits, on: int(value) != 0 }
}

fn demote_if_on(value: &[u8]) -> Effect {
    if int(value) != 0 { Effect::Demote(Reason::Option) } else { Effect::None }
}

fn socket(name: c_int, value: &[u8]) -> Effect {
    match name {
        libc::SO_RCVBUF | libc::SO_RCVBUFFORCE => Effect::ReceiveBuffer,
        libc::SO_RCVTIMEO | number::SO_RCVTIMEO_NEW => Effect::Timeout(microseconds(value)),
        libc::SO_TIMESTAMP => want(want::TIMESTAMP, value),
        libc::SO_TIMESTAMPNS => want(want::TIMESTAMPNS, value),
        number::SO_TIMESTAMP_NEW => want(want::TIMESTAMP | want::TIME_NEW, value),
        number::SO_TIMESTAMPNS_NEW => want(want::TIMESTAMPNS | want::TIME_NEW, value),
        libc::SO_RXQ_OVFL => want(want::OVERFLOW, value),
        libc::SO_BINDTODEVICE | number::SO_BINDTOIFINDEX | libc::SO_REUSEPORT => Effect::Endpoint,
        libc::SO_REUSEADDR
        | libc::SO_SNDBUF
        | libc::SO_SNDBUFFORCE
        | libc::SO_SNDTIMEO
        | number::SO_SNDTIMEO_NEW
        | libc::SO_SNDLOWAT
        | libc::SO_RCVLOWAT
        | libc::SO_BROADCAST
        | libc::SO_KEEPALIVE
        | libc::SO_LINGER
        | libc::SO_OOBINLINE
        | libc::SO_PRIORITY
        | libc::SO_MARK
        | libc::SO_DEBUG
        | libc::SO_DONTROUTE
        | libc::SO_NO_CHECK
        | libc::SO_BUSY_POLL
        | number::SO_PREFER_BUSY_POLL
        | number::SO_BUSY_POLL_BUDGET
        | number::SO_NETNS_COOKIE
        | number::SO_BUF_LOCK
        | number::SO_RESERVE_MEM
        | number::SO_TXREHASH
        | libc::SO_ZEROCOPY
        | libc::SO_TXTIME
        | libc::SO_INCOMING_CPU
        | libc::SO_MAX_PACING_RATE
        | libc::SO_SELECT_ERR_QUEUE => Effect::None,
        libc::SO_PEEK_OFF if int(value) < 0 => Effect::None,
        libc::SO_TIMESTAMPING | libc::SO_PASSCRED | libc::SO_PASSSEC => demote_if_on(value),
        _ => Effect::Demote(Reason::Option),
    }
}

/// A timeval as microseconds; 0: no timeout.
fn microseconds(value: &[u8]) -> u64 {
    let word =
        |at: usize| value.get(at..at + 8).and_then(|word| word.try_into().ok()).map_or(0, i64::from_ne_bytes);
    (word(0).max(0) as u64).saturating_mul(1_000_000).saturating_add(word(8).max(0) as u64)
}

fn v4(name: c_int, value: &[u8]) -> Effect {
    match name {
        libc::IP_PKTINFO => want(want::PKTINFO, value),
        libc::IP_RECVTTL => want(want::TTL, value),
        libc::IP_RECVTOS => want(want::TOS, value),
        libc::IP_ADD_MEMBERSHIP => membership(true, value),
        libc::IP_DROP_MEMBERSHIP => membership(false, value),
        number::MCAST_JOIN_GROUP => group_request(true, value),
        number::MCAST_LEAVE_GROUP => group_request(false, value),
        // packets with options or in fragments pass, so the kernel serves what these ask for
        libc::IP_RECVOPTS | libc::IP_RETOPTS | libc::IP_RECVFRAGSIZE => Effect::None,
        libc::IP_TOS
        | libc::IP_TTL
        | libc::IP_OPTIONS
        | libc::IP_MULTICAST_IF
        | libc::IP_MULTICAST_TTL
        | libc::IP_MULTICAST_LOOP
        | libc::IP_MTU_DISCOVER
        | libc::IP_RECVERR
        | libc::IP_FREEBIND
        | libc::IP_BIND_ADDRESS_NO_PORT
        | libc::IP_UNICAST_IF
        | number::IP_LOCAL_PORT_RANGE => Effect::None,
        libc::IP_MULTICAST_ALL if int(value) != 0 => Effect::None,
        libc::IP_MINTTL
        | libc::IP_TRANSPARENT
        | libc::IP_RECVORIGDSTADDR
        | libc::IP_PASSSEC
        | libc::IP_CHECKSUM => demote_if_on(value),
        libc::IP_ADD_SOURCE_MEMBERSHIP
        | libc::IP_DROP_SOURCE_MEMBERSHIP
        | libc::IP_BLOCK_SOURCE
        | libc::IP_UNBLOCK_SOURCE
        | libc::IP_MSFILTER
        | 43..=44
        | 46..=48 => Effect::Demote(Reason::SourceFilter),
        _ => Effect::Demote(Reason::Option),
    }
}

/// `ip_mreq` or `ip_mreqn`: the interface index is the third word of the latter.
fn membership(join: bool, value: &[u8]) -> Effect {
    let Some(group) = value.first_chunk::<4>() else { return Effect::None };
    let ifindex = value.get(8..12).map_or(0, int) as u32;
    Effect::Group { join, group: Ipv4Addr::from(*group).into(), ifindex }
}

/// `group_req`: interface index, padding, sockaddr_storage.
fn group_request(join: bool, value: &[u8]) -> Effect {
    let Some(address) = value.get(8..) else { return Effect::None };
    let group = match address.first_chunk().map(|family| i32::from(u16::from_ne_bytes(*family))) {
        Some(libc::AF_INET) => address.get(4..8).and_then(|a| <[u8; 4]>::try_from(a).ok()).map(IpAddr::from),
        Some(libc::AF_INET6) => {
            address.get(8..24).and_then(|a| <[u8; 16]>::try_from(a).ok()).map(IpAddr::from)
        }
        _ => None,
    };
    match group {
        Some(group) => Effect::Group { join, group, ifindex: int(value) as u32 },
        None => Effect::None,
    }
}

fn v6(name: c_int, value: &[u8]) -> Effect {
    match name {
        libc::IPV6_RECVPKTINFO => want(want::PKTINFO6, value),
        libc::IPV6_RECVHOPLIMIT => want(want::HOPLIMIT, value),
        libc::IPV6_RECVTCLASS => want(want::TCLASS, value),
        libc::IPV6_V6ONLY => Effect::Endpoint,
        libc::IPV6_ADD_MEMBERSHIP => membership6(true, value),
        libc::IPV6_DROP_MEMBERSHIP => membership6(false, value),
        number::MCAST_JOIN_GROUP => group_request(true, value),
        number::MCAST_LEAVE_GROUP => group_request(false, value),
        // packets with extension headers or in fragments pass, so the kernel serves what these ask for
        libc::IPV6_RECVRTHDR
        | libc::IPV6_RECVHOPOPTS
        | libc::IPV6_RECVDSTOPTS
        | libc::IPV6_RECVFRAGSIZE
        | libc::IPV6_RECVPATHMTU => Effect::None,
        libc::IPV6_UNICAST_HOPS
        | libc::IPV6_MULTICAST_IF
        | libc::IPV6_MULTICAST_HOPS
        | libc::IPV6_MULTICAST_LOOP
        | libc::IPV6_MTU_DISCOVER
        | libc::IPV6_MTU
        | libc::IPV6_RECVERR
        | libc::IPV6_TCLASS
        | libc::IPV6_DONTFRAG
        | libc::IPV6_AUTOFLOWLABEL
        | libc::IPV6_FLOWLABEL_MGR
        | libc::IPV6_FREEBIND
        | number::IPV6_ADDR_PREFERENCES => Effect::None,
        libc::IPV6_TRANSPARENT | libc::IPV6_RECVORIGDSTADDR | libc::IPV6_MINHOPCOUNT => demote_if_on(value),
        43..=44 | 46..=48 => Effect::Demote(Reason::SourceFilter),
        _ => Effect::Demote(Reason::Option),
    }
}

/// `ipv6_mreq`.
fn membership6(join: bool, value: &[u8]) -> Effect {
    let Some(group) = value.first_chunk::<16>() else { return Effect::None };
    let ifindex = value.get(16..20).map_or(0, int) as u32;
    Effect::Group { join, group: Ipv6Addr::from(*group).into(), ifindex }
}

fn udp(name: c_int, value: &[u8]) -> Effect {
    match name {
        number::UDP_CORK | number::UDP_SEGMENT | number::UDP_NO_CHECK6_TX => Effect::None,
        number::UDP_GRO => want(want::GRO, value),
        _ => demote_if_on(value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ON: [u8; 4] = 1i32.to_ne_bytes();
    const OFF: [u8; 4] = 0i32.to_ne_bytes();

    #[test]
    fn what_only_the_kernel_can_honour_demotes() {
        for (level, name) in [
            (libc::SOL_SOCKET, libc::SO_ATTACH_FILTER),
            (libc::SOL_SOCKET, libc::SO_ATTACH_REUSEPORT_EBPF),
            (libc::SOL_SOCKET, libc::SO_TIMESTAMPING),
            (libc::IPPROTO_IP, libc::IP_TRANSPARENT),
            (libc::IPPROTO_IP, 250),
            (libc::IPPROTO_UDP, 100),
            (250, 1),
        ] {
            assert_eq!(effect(level, name, &ON), Effect::Demote(Reason::Option), "{level} {name}");
        }
        assert_eq!(
            effect(libc::IPPROTO_IP, libc::IP_BLOCK_SOURCE, &ON),
            Effect::Demote(Reason::SourceFilter)
        );
        assert_eq!(effect(libc::SOL_SOCKET, libc::SO_TIMESTAMPING, &OFF), Effect::None);
    }

    #[test]
    fn ancillary_data_is_switched_on_and_off() {
        assert_eq!(
            effect(libc::IPPROTO_IP, libc::IP_PKTINFO, &[1]),
            Effect::Want { bits: want::PKTINFO, on: true }
        );
        assert_eq!(
            effect(libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS, &OFF),
            Effect::Want { bits: want::TCLASS, on: false }
        );
    }

    #[test]
    fn merging_is_switched_on_and_off() {
        let merging = |value: &[u8]| effect(libc::IPPROTO_UDP, number::UDP_GRO, value);
        assert_eq!(merging(&ON), Effect::Want { bits: want::GRO, on: true });
        assert_eq!(merging(&OFF), Effect::Want { bits: want::GRO, on: false });
    }

    #[test]
    fn groups_are_read_from_every_form_of_request() {
        let group = [239, 1, 2, 3];
        let mreqn = [group, [0; 4], 7i32.to_ne_bytes()].concat();
        let expected = Effect::Group { join: true, group: IpAddr::from(group), ifindex: 7 };
        assert_eq!(effect(libc::IPPROTO_IP, libc::IP_ADD_MEMBERSHIP, &mreqn), expected);
        let mut request = vec![0; 136];
        request[..4].copy_from_slice(&7i32.to_ne_bytes());
        request[8..10].copy_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
        request[12..16].copy_from_slice(&group);
        assert_eq!(effect(libc::IPPROTO_IP, number::MCAST_JOIN_GROUP, &request), expected);
        assert_eq!(effect(libc::IPPROTO_IP, libc::IP_ADD_MEMBERSHIP, &[1]), Effect::None);
    }

    #[test]
    fn a_timeout_is_read_in_microseconds() {
        let value = [2i64.to_ne_bytes(), 500_000i64.to_ne_bytes()].concat();
        assert_eq!(effect(libc::SOL_SOCKET, libc::SO_RCVTIMEO, &value), Effect::Timeout(2_500_000));
    }
}
