//! Which socket a datagram belongs to: pure, after `compute_score` of net/ipv4/udp.c and net/ipv6/udp.c (Linux 6.18).

use hoist_packet::{Ip, flow::FlowKey};

/// What decides whether a socket may receive a route. IPv4 addresses of dual-stack sockets are kept as IPv4.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Endpoint {
    /// AF_INET6 socket.
    pub(crate) v6: bool,
    /// IPV6_V6ONLY.
    pub(crate) v6only: bool,
    /// Local address, None: any.
    pub(crate) address: Option<Ip>,
    /// Local port, 0: none yet.
    pub(crate) port: u16,
    /// Peer of a connected socket.
    pub(crate) peer: Option<(Ip, u16)>,
    /// SO_BINDTODEVICE, 0: none.
    pub(crate) ifindex: u32,
    /// SO_REUSEPORT.
    pub(crate) reuseport: bool,
}

impl Endpoint {
    pub(crate) const UNBOUND: Self =
        Self { v6: false, v6only: false, address: None, port: 0, peer: None, ifindex: 0, reuseport: false };

    /// How well the socket fits, higher is better; None: not at all. An exact address beats everything else, as
    /// `__udp4_lib_lookup` tries the hash of (address, port) before that of (any, port).
    pub(crate) fn score(&self, route: &FlowKey, ifindex: u32) -> Option<u32> {
        let v4 = matches!(route.destination.ip, Ip::V4(_));
        if self.port != route.destination.port
            || !self.speaks(v4)
            || !(self.ifindex == 0 || self.ifindex == ifindex)
        {
            return None;
        }
        let exact = match self.address {
            None => 0,
            Some(address) if address == route.destination.ip => 16,
            Some(_) => return None,
        };
        let connected = match self.peer {
            None => 0,
            Some((ip, port)) if ip == route.source.ip && port == route.source.port => 8,
            Some(_) => return None,
        };
        let family = u32::from(v4 != self.v6); // an AF_INET socket is the better home of IPv4, as in the kernel
        Some(exact + connected + 4 * u32::from(self.ifindex != 0) + family)
    }

    /// Whether a datagram to a group or a broadcast address is (also) for this socket: `__udp_is_mcast_sock`.
    pub(crate) fn takes_group(&self, route: &FlowKey, ifindex: u32) -> bool {
        self.score(route, ifindex).is_some()
    }

    fn speaks(&self, v4: bool) -> bool {
        if v4 { !self.v6 || !self.v6only } else { self.v6 }
    }
}

/// Picks among `sockets`, newest first. Of equals the newest wins, unless they form an SO_REUSEPORT group: then the
/// flow's hash chooses, so that a flow stays with one socket (`reuseport_select_sock`).
pub(crate) fn choose<T: Copy>(
    sockets: impl Iterator<Item = (T, Endpoint)> + Clone,
    route: &FlowKey,
    ifindex: u32,
    hash: impl FnOnce() -> u32,
) -> Option<T> {
    let mut best: Option<(u32, T, bool)> = None;
    let mut equals = 0;
    for (socket, endpoint) in sockets.clone() {
        let Some(score) = endpoint.score(route, ifindex) else { continue };
        match best {
            Some((top, ..)) if score < top => {}
            Some((top, _, true)) if score == top => equals += u32::from(endpoint.reuseport),
            Some((top, ..)) if score == top => {}
            _ => (best, equals) = (Some((score, socket, endpoint.reuseport)), 1),
        }
    }
    let (top, first, reuseport) = best?;
    if !reuseport || equals < 2 {
        return Some(first);
    }
    let index = (u64::from(hash()) * u64::from(equals)) >> 32;
    sockets
        .filter(|(_, endpoint)| endpoint.reuseport && endpoint.score(route, ifindex) == Some(top))
        .nth(index as usize)
        .map(|(socket, _)| socket)
}

#[cfg(test)]
mod tests {
    use super::*;
    use hoist_packet::SocketAddrRaw;

    const HERE: Ip = Ip::V4([10, 0, 0, 2]);
    const THERE: Ip = Ip::V4([10, 0, 0, 1]);

    fn route(destination: Ip, source: Ip) -> FlowKey {
        FlowKey {
            destination: SocketAddrRaw { ip: destination, port: 53 },
            source: SocketAddrRaw { ip: source, port: 999 },
        }
    }

    fn any() -> Endpoint {
        Endpoint { port: 53, ..Endpoint::UNBOUND }
    }

    fn pick(sockets: &[Endpoint], hash: u32) -> Option<usize> {
        choose(sockets.iter().copied().enumerate(), &route(HERE, THERE), 7, || hash)
    }

    #[test]
    fn a_specific_address_beats_a_wildcard_and_a_peer_beats_none() {
        let specific = Endpoint { address: Some(HERE), ..any() };
        let connected = Endpoint { peer: Some((THERE, 999)), ..specific };
        assert_eq!(pick(&[any(), specific], 0), Some(1));
        assert_eq!(pick(&[connected, specific, any()], 0), Some(0));
        assert_eq!(pick(&[Endpoint { peer: Some((THERE, 998)), ..specific }, any()], 0), Some(1));
    }

    #[test]
    fn nobody_gets_what_is_for_another_port_address_device_or_family() {
        assert_eq!(pick(&[Endpoint { port: 54, ..any() }], 0), None);
        assert_eq!(pick(&[Endpoint { address: Some(THERE), ..any() }], 0), None);
        assert_eq!(pick(&[Endpoint { ifindex: 8, ..any() }], 0), None);
        assert_eq!(pick(&[Endpoint { v6: true, v6only: true, ..any() }], 0), None);
        assert_eq!(pick(&[Endpoint { v6: true, ..any() }], 0), Some(0));
        assert!(any().score(&route(Ip::V6([1; 16]), Ip::V6([2; 16])), 7).is_none());
    }

    #[test]
    fn the_newest_of_equals_wins_without_reuseport() {
        assert_eq!(pick(&[any(), any()], u32::MAX), Some(0));
    }

    #[test]
    fn a_reuseport_group_is_spread_by_hash_and_only_over_itself() {
        let member = Endpoint { reuseport: true, ..any() };
        let sockets = [member, any(), member, member];
        assert_eq!(pick(&sockets, 0), Some(0));
        assert_eq!(pick(&sockets, u32::MAX / 2), Some(2));
        assert_eq!(pick(&sockets, u32::MAX), Some(3));
    }
}
