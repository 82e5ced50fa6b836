//! Control messages.

use super::Ctx;
use crate::{
    peer::{Shot, ifindex},
    sock::{self, Message, recv_msg},
};
use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::OwnedFd,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

const IP: i32 = libc::IPPROTO_IP;
const IPV6: i32 = libc::IPPROTO_IPV6;
const SOCKET: i32 = libc::SOL_SOCKET;

fn message(s: &OwnedFd) -> Message {
    recv_msg(s, &mut [&mut [0; 2048]], 512, 0).unwrap()
}

fn on(s: &OwnedFd, level: i32, option: i32) {
    sock::set(s, level, option, 1i32).unwrap();
}

pub(super) fn none_without_options(ctx: &mut Ctx) {
    let (s, at) = ctx.bound4();
    ctx.send(at, &[b"hello"]);
    let m = message(&s);
    assert_eq!((m.control, m.flags), (Vec::new(), 0));
}

pub(super) fn pktinfo(ctx: &mut Ctx) {
    let port = ctx.port();
    let s = sock::bound((Ipv4Addr::UNSPECIFIED, port).into());
    on(&s, IP, libc::IP_PKTINFO);
    ctx.send((ctx.net.host4, port).into(), &[b"hello"]);
    let info: libc::in_pktinfo = message(&s).value(IP, libc::IP_PKTINFO);
    let host = u32::from(ctx.net.host4).to_be();
    assert_eq!(info.ipi_ifindex as u32, ifindex(&ctx.net.device).unwrap());
    assert_eq!((info.ipi_addr.s_addr, info.ipi_spec_dst.s_addr), (host, host));
}

pub(super) fn pktinfo6(ctx: &mut Ctx) {
    let port = ctx.port();
    let s = sock::bound((Ipv6Addr::UNSPECIFIED, port).into());
    on(&s, IPV6, libc::IPV6_RECVPKTINFO);
    ctx.send((ctx.net.host6, port).into(), &[b"hello"]);
    let info: libc::in6_pktinfo = message(&s).value(IPV6, libc::IPV6_PKTINFO);
    assert_eq!(Ipv6Addr::from(info.ipi6_addr.s6_addr), ctx.net.host6);
    assert_eq!(info.ipi6_ifindex, ifindex(&ctx.net.device).unwrap());
}

pub(super) fn pktinfo_of_mapped_addresses(ctx: &mut Ctx) {
    let port = ctx.port();
    let s = sock::bound((Ipv6Addr::UNSPECIFIED, port).into());
    on(&s, IPV6, libc::IPV6_RECVPKTINFO);
    ctx.send((ctx.net.host4, port).into(), &[b"hello"]);
    let info: libc::in6_pktinfo = message(&s).value(IPV6, libc::IPV6_PKTINFO);
    assert_eq!(Ipv6Addr::from(info.ipi6_addr.s6_addr), ctx.net.host4.to_ipv6_mapped());
}

pub(super) fn ttl_and_tos(ctx: &mut Ctx) {
    let (s, at) = ctx.bound4();
    on(&s, IP, libc::IP_RECVTTL);
    on(&s, IP, libc::IP_RECVTOS);
    ctx.shoot(Shot { ttl: Some(33), tos: Some(0x28), ..ctx.shot(at, &[b"hello"]) });
    let m = message(&s);
    assert_eq!(m.value::<i32>(IP, libc::IP_TTL), 33);
    assert_eq!(m.value::<u8>(IP, libc::IP_TOS), 0x28);
}

pub(super) fn hoplimit_and_tclass(ctx: &mut Ctx) {
    let (s, at) = ctx.bound6();
    on(&s, IPV6, libc::IPV6_RECVHOPLIMIT);
    on(&s, IPV6, libc::IPV6_RECVTCLASS);
    ctx.shoot(Shot { ttl: Some(7), tos: Some(0xb8), ..ctx.shot(at, &[b"hello"]) });
    let m = message(&s);
    assert_eq!(m.value::<i32>(IPV6, libc::IPV6_HOPLIMIT), 7);
    assert_eq!(m.value::<i32>(IPV6, libc::IPV6_TCLASS), 0xb8);
}

fn clock() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap()
}

pub(super) fn timestamp_is_true(ctx: &mut Ctx) {
    let (s, at) = ctx.bound4();
    on(&s, SOCKET, libc::SO_TIMESTAMP);
    let before = clock() - Duration::from_micros(1); // a timeval cuts off nanoseconds
    ctx.send(at, &[b"hello"]);
    let time: libc::timeval = message(&s).value(SOCKET, libc::SCM_TIMESTAMP);
    let time = Duration::new(time.tv_sec as u64, time.tv_usec as u32 * 1000);
    assert!((before..=clock()).contains(&time), "{before:?} {time:?}");
}

pub(super) fn timestampns_is_true_and_rises(ctx: &mut Ctx) {
    let (s, at) = ctx.bound4();
    on(&s, SOCKET, libc::SO_TIMESTAMPNS);
    let mut last = clock();
    ctx.send_numbered(at, 0, 20, 8);
    for _ in 0..20 {
        let time: libc::timespec = message(&s).value(SOCKET, libc::SO_TIMESTAMPNS);
        let time = Duration::new(time.tv_sec as u64, time.tv_nsec as u32);
        assert!((last..=clock()).contains(&time), "{last:?} {time:?}");
        last = time;
    }
}

pub(super) fn several_at_once(ctx: &mut Ctx) {
    let (s, at) = ctx.bound4();
    for option in [libc::IP_PKTINFO, libc::IP_RECVTTL, libc::IP_RECVTOS] {
        on(&s, IP, option);
    }
    on(&s, SOCKET, libc::SO_TIMESTAMPNS);
    ctx.send(at, &[b"hello"]);
    let m = message(&s);
    assert_eq!((m.control.len(), m.flags), (4, 0));
    for (level, kind) in
        [(SOCKET, libc::SO_TIMESTAMPNS), (IP, libc::IP_PKTINFO), (IP, libc::IP_TTL), (IP, libc::IP_TOS)]
    {
        assert!(m.find(level, kind).is_some(), "{level}/{kind} of {:?}", m.control);
    }
}

/// Room for the header and half of what follows: `put_cmsg` cuts and flags.
pub(super) fn too_little_room_is_flagged(ctx: &mut Ctx) {
    let (s, at) = ctx.bound4();
    on(&s, IP, libc::IP_PKTINFO);
    ctx.send(at, &[b"hello"]);
    let m = recv_msg(&s, &mut [&mut [0; 100]], 22, 0).unwrap();
    assert_eq!((m.len, m.flags), (5, libc::MSG_CTRUNC));
    assert_eq!(m.find(IP, libc::IP_PKTINFO).map(<[u8]>::len), Some(6));
}

pub(super) fn no_room_is_flagged(ctx: &mut Ctx) {
    let (s, at) = ctx.bound4();
    on(&s, IP, libc::IP_PKTINFO);
    ctx.send(at, &[b"hello", b"again"]);
    for room in [0, 8] {
        let m = recv_msg(&s, &mut [&mut [0; 100]], room, 0).unwrap();
        assert_eq!((m.len, m.flags, m.control.len()), (5, libc::MSG_CTRUNC, 0));
    }
}

pub(super) fn an_option_switched_off_is_silent(ctx: &mut Ctx) {
    let (s, at): (OwnedFd, SocketAddr) = ctx.bound4();
    on(&s, IP, libc::IP_RECVTTL);
    ctx.send(at, &[b"hello"]);
    assert_eq!(message(&s).control.len(), 1);
    sock::set(&s, IP, libc::IP_RECVTTL, 0i32).unwrap();
    ctx.send(at, &[b"hello"]);
    assert_eq!(message(&s).control, Vec::new());
}
