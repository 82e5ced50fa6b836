//! Several sockets on one port, and sockets bound to a device.

use super::{Ctx, assert_empty, drain};
use crate::{
    peer::{Shot, number_of},
    sock::{self, bind, set},
};
use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, SocketAddr},
    os::fd::OwnedFd,
};

fn with_option(at: SocketAddr, option: i32) -> OwnedFd {
    let s = sock::udp_for(at).unwrap();
    set(&s, libc::SOL_SOCKET, option, 1i32).unwrap();
    bind(&s, at).unwrap();
    s
}

fn group(at: SocketAddr) -> [OwnedFd; 4] {
    [(); 4].map(|()| with_option(at, libc::SO_REUSEPORT))
}

/// Sends `each` numbers on every of `flows` flows; the number's thousands are the flow.
fn send_flows(ctx: &mut Ctx, at: SocketAddr, flows: u32, each: u32) {
    for flow in 0..flows {
        let payloads = crate::peer::Payloads::Numbered { first: flow * 1000, count: each, len: 8 };
        let from = ctx.from_port(at, 31_000 + flow as u16);
        ctx.shoot(Shot { from, payloads, ..ctx.shot(at, &[]) });
    }
    ctx.fence();
}

fn numbers(s: &OwnedFd) -> Vec<u32> {
    drain(s).iter().map(|bytes| number_of(bytes)).collect()
}

pub(super) fn reuseport_gives_each_datagram_to_one(ctx: &mut Ctx) {
    let at = ctx.address4();
    let sockets = group(at);
    send_flows(ctx, at, 64, 5);
    let lists = sockets.each_ref().map(numbers);
    assert!(lists.iter().filter(|list| !list.is_empty()).count() >= 2, "64 flows spread over sockets");
    let mut all = lists.concat();
    all.sort_unstable();
    let expected: Vec<u32> = (0..64).flat_map(|flow| (0..5).map(move |i| flow * 1000 + i)).collect();
    assert_eq!(all, expected);
}

pub(super) fn reuseport_keeps_a_flow_on_one_socket(ctx: &mut Ctx) {
    let at = ctx.address4();
    let sockets = group(at);
    let mut seen = [(); 4].map(|()| BTreeSet::new());
    for _ in 0..3 {
        send_flows(ctx, at, 32, 3);
        for (s, seen) in sockets.iter().zip(&mut seen) {
            seen.extend(numbers(s).iter().map(|n| n / 1000));
        }
    }
    assert_eq!(seen.iter().map(BTreeSet::len).sum::<usize>(), 32, "{seen:?}");
}

pub(super) fn a_member_that_leaves_hands_over(ctx: &mut Ctx) {
    let at = ctx.address4();
    let [a, b, c, d] = group(at);
    send_flows(ctx, at, 32, 1);
    assert_eq!([&a, &b, &c, &d].map(|s| numbers(s).len()).iter().sum::<usize>(), 32);
    drop(a);
    drop(c);
    send_flows(ctx, at, 32, 1);
    assert_eq!([&b, &d].map(|s| numbers(s).len()).iter().sum::<usize>(), 32);
}

pub(super) fn reuseaddr_gives_to_the_last(ctx: &mut Ctx) {
    let at = ctx.address4();
    let [first, last] = [(); 2].map(|()| with_option(at, libc::SO_REUSEADDR));
    ctx.send(at, &[b"one"]);
    assert_eq!(sock::take(&last, 100, 0).unwrap(), b"one");
    assert_empty(&first);
    drop(last);
    ctx.send(at, &[b"two"]);
    assert_eq!(sock::take(&first, 100, 0).unwrap(), b"two");
}

pub(super) fn a_specific_address_wins(ctx: &mut Ctx) {
    let at = ctx.address4();
    let specific = with_option(at, libc::SO_REUSEADDR);
    let wildcard = with_option((Ipv4Addr::UNSPECIFIED, at.port()).into(), libc::SO_REUSEADDR);
    ctx.send(at, &[b"one"]);
    assert_eq!(sock::take(&specific, 100, 0).unwrap(), b"one");
    assert_empty(&wildcard);
    drop(specific);
    ctx.send(at, &[b"two"]);
    assert_eq!(sock::take(&wildcard, 100, 0).unwrap(), b"two");
}

pub(super) fn two_ports_are_two_sockets(ctx: &mut Ctx) {
    let ((a, a_at), (b, b_at)) = (ctx.bound4(), ctx.bound4());
    ctx.send(b_at, &[b"b"]);
    ctx.send(a_at, &[b"a"]);
    assert_eq!(sock::take(&a, 100, 0).unwrap(), b"a");
    assert_eq!(sock::take(&b, 100, 0).unwrap(), b"b");
    assert_empty(&a);
    assert_empty(&b);
}

fn bind_to_device(s: &OwnedFd, device: &str) {
    let mut name = [0u8; libc::IFNAMSIZ];
    name[..device.len()].copy_from_slice(device.as_bytes());
    set(s, libc::SOL_SOCKET, libc::SO_BINDTODEVICE, name).unwrap();
}

pub(super) fn bound_to_the_device(ctx: &mut Ctx) {
    let at = ctx.address4();
    let s = sock::udp(libc::AF_INET, 0).unwrap();
    bind_to_device(&s, &ctx.net.device);
    bind(&s, (Ipv4Addr::UNSPECIFIED, at.port()).into()).unwrap();
    ctx.send(at, &[b"hello"]);
    assert_eq!(sock::take(&s, 100, 0).unwrap(), b"hello");
}

pub(super) fn bound_to_another_device(ctx: &mut Ctx) {
    let at = ctx.address4();
    let s = sock::udp(libc::AF_INET, 0).unwrap();
    bind_to_device(&s, "lo");
    bind(&s, (Ipv4Addr::UNSPECIFIED, at.port()).into()).unwrap();
    ctx.send(at, &[b"hello"]);
    ctx.fence();
    assert_empty(&s);
    let local = sock::udp(libc::AF_INET, 0).unwrap();
    sock::send_to(&local, b"local", (Ipv4Addr::LOCALHOST, at.port()).into()).unwrap();
    assert_eq!(sock::take(&s, 100, 0).unwrap(), b"local");
}

pub(super) fn a_wildcard_socket_is_lifted(ctx: &mut Ctx) {
    let port = ctx.port();
    let s = sock::bound((Ipv4Addr::UNSPECIFIED, port).into());
    ctx.send((ctx.net.host4, port).into(), &[b"hello"]);
    assert_eq!(sock::take(&s, 100, 0).unwrap(), b"hello");
    assert_empty(&s);
}
