//! IPv6 and sockets of both families.

use super::{Ctx, assert_empty};
use crate::{
    peer::ifindex,
    sock::{self, bind, set},
};
use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6},
    os::fd::OwnedFd,
};

fn any(port: u16) -> SocketAddr {
    (Ipv6Addr::UNSPECIFIED, port).into()
}

fn from(s: &OwnedFd) -> (Vec<u8>, SocketAddr) {
    let mut buffer = [0; 100];
    let (len, from) = sock::recv_from(s, &mut buffer, 0).unwrap();
    (buffer[..len].to_vec(), from)
}

pub(super) fn recvfrom_tells_the_sender(ctx: &mut Ctx) {
    let (s, at) = ctx.bound6();
    ctx.send(at, &[b"hello"]);
    assert_eq!(from(&s), (b"hello".to_vec(), ctx.from(at)));
}

pub(super) fn a_dual_socket_takes_both(ctx: &mut Ctx) {
    let port = ctx.port();
    let s = sock::bound(any(port));
    ctx.send((ctx.net.host4, port).into(), &[b"four"]);
    let mapped = (ctx.net.wire4.to_ipv6_mapped(), 30_000).into();
    assert_eq!(from(&s), (b"four".to_vec(), mapped));
    ctx.send((ctx.net.host6, port).into(), &[b"six"]);
    assert_eq!(from(&s), (b"six".to_vec(), (ctx.net.wire6, 30_000).into()));
}

pub(super) fn a_mapped_bind_takes_ipv4(ctx: &mut Ctx) {
    let port = ctx.port();
    let s = sock::bound((ctx.net.host4.to_ipv6_mapped(), port).into());
    ctx.send((ctx.net.host4, port).into(), &[b"four"]);
    assert_eq!(from(&s).0, b"four");
    ctx.send((ctx.net.host6, port).into(), &[b"six"]);
    ctx.fence();
    assert_empty(&s);
}

fn only6(port: u16) -> OwnedFd {
    let s = sock::udp(libc::AF_INET6, 0).unwrap();
    set(&s, libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, 1i32).unwrap();
    bind(&s, any(port)).unwrap();
    s
}

pub(super) fn v6only_leaves_ipv4_alone(ctx: &mut Ctx) {
    let port = ctx.port();
    let s = only6(port);
    ctx.send((ctx.net.host4, port).into(), &[b"four"]);
    ctx.send((ctx.net.host6, port).into(), &[b"six"]);
    assert_eq!(from(&s).0, b"six");
    ctx.fence();
    assert_empty(&s);
}

pub(super) fn two_families_one_port(ctx: &mut Ctx) {
    let port = ctx.port();
    let (six, four) = (only6(port), sock::bound((Ipv4Addr::UNSPECIFIED, port).into()));
    ctx.send((ctx.net.host4, port).into(), &[b"four"]);
    ctx.send((ctx.net.host6, port).into(), &[b"six"]);
    assert_eq!(from(&four), (b"four".to_vec(), (ctx.net.wire4, 30_000).into()));
    assert_eq!(from(&six).0, b"six");
    assert_empty(&four);
    assert_empty(&six);
}

/// A link-local sender means something only together with the device it was heard on.
pub(super) fn a_link_local_sender_has_its_scope(ctx: &mut Ctx) {
    let (s, at) = ctx.bound6();
    let sender = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0x99);
    let mut frame = ctx.frame(at, b"hello");
    frame.from = (sender, 1234).into();
    ctx.send_frames(vec![frame.bytes()]);
    let scope = ifindex(&ctx.net.device).unwrap();
    assert_eq!(from(&s), (b"hello".to_vec(), SocketAddrV6::new(sender, 1234, 0, scope).into()));
    ctx.send(at, &[b"global"]);
    assert_eq!(from(&s), (b"global".to_vec(), ctx.from(at)));
}
