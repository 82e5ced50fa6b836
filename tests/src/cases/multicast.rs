//! Multicast and broadcast receive.

use super::{Ctx, assert_empty};
use crate::{
    peer::ifindex,
    sock::{self, bind, set, udp},
};
use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::OwnedFd,
};

const GROUP: Ipv4Addr = Ipv4Addr::new(239, 7, 7, 7);
const OTHER: Ipv4Addr = Ipv4Addr::new(239, 7, 7, 8);
const GROUP6: Ipv6Addr = Ipv6Addr::new(0xff15, 0, 0, 0, 0, 0, 0, 0x77);

/// A socket on `at` that lets others bind it too.
fn shared(at: SocketAddr) -> OwnedFd {
    let s = sock::udp_for(at).unwrap();
    set(&s, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1i32).unwrap();
    bind(&s, at).unwrap();
    s
}

fn membership(ctx: &Ctx, group: Ipv4Addr) -> libc::ip_mreqn {
    libc::ip_mreqn {
        imr_multiaddr: libc::in_addr { s_addr: u32::from(group).to_be() },
        imr_address: libc::in_addr { s_addr: 0 },
        imr_ifindex: ifindex(&ctx.net.device).unwrap() as i32,
    }
}

fn join(ctx: &Ctx, s: &OwnedFd, group: Ipv4Addr) {
    set(s, libc::IPPROTO_IP, libc::IP_ADD_MEMBERSHIP, membership(ctx, group)).unwrap();
}

fn any(port: u16) -> SocketAddr {
    (Ipv4Addr::UNSPECIFIED, port).into()
}

pub(super) fn both_members_get_a_copy(ctx: &mut Ctx) {
    let port = ctx.port();
    let members = [shared(any(port)), shared(any(port))];
    members.iter().for_each(|s| join(ctx, s, GROUP));
    ctx.send((GROUP, port).into(), &[b"one", b"two"]);
    for s in &members {
        let mut buffer = [0; 100];
        assert_eq!(sock::recv_from(s, &mut buffer, 0).unwrap(), (3, (ctx.net.wire4, 30_000).into()));
        assert_eq!(sock::take(s, 100, 0).unwrap(), b"two");
        assert_empty(s);
    }
}

pub(super) fn leaving_stops_it(ctx: &mut Ctx) {
    let port = ctx.port();
    let s = shared(any(port));
    join(ctx, &s, GROUP);
    join(ctx, &s, OTHER);
    ctx.send((GROUP, port).into(), &[b"in"]);
    assert_eq!(sock::take(&s, 100, 0).unwrap(), b"in");
    set(&s, libc::IPPROTO_IP, libc::IP_DROP_MEMBERSHIP, membership(ctx, GROUP)).unwrap();
    ctx.send((GROUP, port).into(), &[b"out"]);
    ctx.send((OTHER, port).into(), &[b"other"]);
    assert_eq!(sock::take(&s, 100, 0).unwrap(), b"other");
    ctx.fence();
    assert_empty(&s);
}

pub(super) fn a_group_address_can_be_bound(ctx: &mut Ctx) {
    let port = ctx.port();
    let s = shared((GROUP, port).into());
    join(ctx, &s, GROUP);
    ctx.send((GROUP, port).into(), &[b"group"]);
    assert_eq!(sock::take(&s, 100, 0).unwrap(), b"group");
    ctx.send((ctx.net.host4, port).into(), &[b"unicast"]);
    ctx.fence();
    assert_empty(&s);
}

/// ip(7): with IP_MULTICAST_ALL on (the default) a wildcard socket hears what any socket of the host has joined.
pub(super) fn strangers_hear_nothing_with_multicast_all_off(ctx: &mut Ctx) {
    let port = ctx.port();
    let [member, open, shut] = [(); 3].map(|()| shared(any(port)));
    join(ctx, &member, GROUP);
    set(&shut, libc::IPPROTO_IP, libc::IP_MULTICAST_ALL, 0i32).unwrap();
    ctx.send((GROUP, port).into(), &[b"hello"]);
    assert_eq!(sock::take(&member, 100, 0).unwrap(), b"hello");
    assert_eq!(sock::take(&open, 100, 0).unwrap(), b"hello");
    ctx.fence();
    assert_empty(&shut);
    let (lifted, at) = ctx.bound4();
    ctx.send(at, &[b"hello"]);
    assert_eq!(sock::take(&lifted, 100, 0).unwrap(), b"hello");
}

pub(super) fn members6_get_a_copy(ctx: &mut Ctx) {
    let port = ctx.port();
    let members = [(); 2].map(|()| shared((Ipv6Addr::UNSPECIFIED, port).into()));
    for s in &members {
        let request = libc::ipv6_mreq {
            ipv6mr_multiaddr: libc::in6_addr { s6_addr: GROUP6.octets() },
            ipv6mr_interface: ifindex(&ctx.net.device).unwrap(),
        };
        set(s, libc::IPPROTO_IPV6, libc::IPV6_ADD_MEMBERSHIP, request).unwrap();
    }
    ctx.send((GROUP6, port).into(), &[b"hello"]);
    for s in &members {
        assert_eq!(sock::take(s, 100, 0).unwrap(), b"hello");
        assert_empty(s);
    }
}

pub(super) fn unicast_goes_to_one(ctx: &mut Ctx) {
    let port = ctx.port();
    let members = [shared(any(port)), shared(any(port))];
    members.iter().for_each(|s| join(ctx, s, GROUP));
    ctx.send((ctx.net.host4, port).into(), &[b"hello"]);
    assert_eq!(sock::take(&members[1], 100, 0).unwrap(), b"hello", "the socket bound last");
    ctx.fence();
    members.iter().for_each(assert_empty);
}

pub(super) fn a_source_filter_is_honoured(ctx: &mut Ctx) {
    let port = ctx.port();
    let s = shared(any(port));
    let (group, wire) = (u32::from(GROUP).to_be(), u32::from(ctx.net.wire4).to_be());
    let request = libc::ip_mreq_source {
        imr_multiaddr: libc::in_addr { s_addr: group },
        imr_interface: libc::in_addr { s_addr: u32::from(ctx.net.host4).to_be() },
        imr_sourceaddr: libc::in_addr { s_addr: wire },
    };
    set(&s, libc::IPPROTO_IP, libc::IP_ADD_SOURCE_MEMBERSHIP, request).unwrap();
    let mut foreign = ctx.frame((GROUP, port).into(), b"foreign");
    foreign.link.1 = [0x01, 0x00, 0x5e, 7, 7, 7];
    foreign.from = (Ipv4Addr::new(10, 77, 9, 9), 1234).into();
    ctx.send_frames(vec![foreign.bytes()]);
    ctx.send((GROUP, port).into(), &[b"wanted"]);
    assert_eq!(sock::take(&s, 100, 0).unwrap(), b"wanted");
    ctx.fence();
    assert_empty(&s);
}

pub(super) fn broadcast_reaches_every_socket(ctx: &mut Ctx) {
    let port = ctx.port();
    let sockets = [shared(any(port)), shared(any(port))];
    let [a, b, ..] = ctx.net.host4.octets();
    ctx.send((Ipv4Addr::new(a, b, 255, 255), port).into(), &[b"all"]);
    for s in &sockets {
        assert_eq!(sock::take(s, 100, 0).unwrap(), b"all");
        assert_empty(s);
    }
}

pub(super) fn limited_broadcast_is_received(ctx: &mut Ctx) {
    let port = ctx.port();
    let s = udp(libc::AF_INET, 0).unwrap();
    bind(&s, any(port)).unwrap();
    ctx.send((Ipv4Addr::BROADCAST, port).into(), &[b"all"]);
    assert_eq!(sock::take(&s, 100, 0).unwrap(), b"all");
}
