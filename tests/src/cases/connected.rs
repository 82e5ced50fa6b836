//! connect, disconnect, automatic binding and ICMP errors.

use super::{Ctx, assert_empty};
use crate::{
    peer::Shot,
    sock::{self, DEADLINE_MS, errno, events, name},
};
use std::net::SocketAddr;

/// Port of the peer that a case connects to.
const FRIEND: u16 = 41_000;
const STRANGER: u16 = 42_000;

fn send_from(ctx: &mut Ctx, port: u16, to: SocketAddr, bytes: &[u8]) {
    let shot = Shot { from: ctx.from_port(to, port), ..ctx.shot(to, &[bytes]) };
    ctx.shoot(shot);
}

fn friend(ctx: &Ctx) -> SocketAddr {
    (ctx.net.wire4, FRIEND).into()
}

pub(super) fn connect_filters_senders(ctx: &mut Ctx) {
    let (s, at) = ctx.bound4();
    sock::connect(&s, friend(ctx)).unwrap();
    send_from(ctx, STRANGER, at, b"stranger");
    send_from(ctx, FRIEND, at, b"friend");
    assert_eq!(sock::take(&s, 100, 0).unwrap(), b"friend");
    ctx.fence();
    assert_empty(&s);
}

/// `udp_recvmsg` takes what was queued before connect(2), whoever sent it.
pub(super) fn connect_keeps_what_is_queued(ctx: &mut Ctx) {
    let (s, at) = ctx.bound4();
    send_from(ctx, STRANGER, at, b"early");
    sock::wait_readable(&s);
    sock::connect(&s, friend(ctx)).unwrap();
    send_from(ctx, FRIEND, at, b"friend");
    assert_eq!(sock::take(&s, 100, 0).unwrap(), b"early");
    assert_eq!(sock::take(&s, 100, 0).unwrap(), b"friend");
}

pub(super) fn disconnect_opens_again(ctx: &mut Ctx) {
    let (s, at) = ctx.bound4();
    sock::connect(&s, friend(ctx)).unwrap();
    send_from(ctx, FRIEND, at, b"friend");
    assert_eq!(sock::take(&s, 100, 0).unwrap(), b"friend");
    sock::disconnect(&s).unwrap();
    assert_eq!(name(&s).unwrap().port(), at.port());
    send_from(ctx, STRANGER, at, b"stranger");
    assert_eq!(sock::take(&s, 100, 0).unwrap(), b"stranger");
}

pub(super) fn recv_on_a_connected_socket(ctx: &mut Ctx) {
    let (s, at) = ctx.bound4();
    let peer = friend(ctx);
    ctx.open_peer(peer);
    sock::connect(&s, peer).unwrap();
    sock::send(&s, b"question").unwrap();
    assert_eq!(ctx.peer_receives(peer, 1), [(b"question".to_vec(), at)]);
    send_from(ctx, FRIEND, at, b"answer");
    let mut buffer = [0; 100];
    assert_eq!(sock::recv_from(&s, &mut buffer, 0).unwrap(), (6, peer));
}

pub(super) fn autobind_takes_replies(ctx: &mut Ctx) {
    let peer = friend(ctx);
    ctx.open_peer(peer);
    let s = sock::udp(libc::AF_INET, 0).unwrap();
    assert_eq!(name(&s).unwrap().port(), 0);
    sock::send_to(&s, b"question", peer).unwrap();
    let port = name(&s).unwrap().port();
    assert_ne!(port, 0);
    let at = (ctx.net.host4, port).into();
    assert_eq!(ctx.peer_receives(peer, 1), [(b"question".to_vec(), at)]);
    send_from(ctx, FRIEND, at, b"answer");
    let mut buffer = [0; 100];
    assert_eq!(sock::recv_from(&s, &mut buffer, 0).unwrap(), (6, peer));
}

pub(super) fn a_busy_autobound_socket_is_lifted(ctx: &mut Ctx) {
    let peer = friend(ctx);
    ctx.open_peer(peer);
    let s = sock::udp(libc::AF_INET, 0).unwrap();
    sock::connect(&s, peer).unwrap();
    let at = name(&s).unwrap();
    for i in 0..500u32 {
        send_from(ctx, FRIEND, at, &i.to_be_bytes());
        assert_eq!(sock::take(&s, 100, 0).unwrap(), i.to_be_bytes());
    }
}

pub(super) fn port_unreachable_is_econnrefused(ctx: &mut Ctx) {
    let s = sock::udp(libc::AF_INET, 0).unwrap();
    sock::connect(&s, (ctx.net.wire4, 9).into()).unwrap();
    sock::send(&s, b"anybody?").unwrap();
    assert_eq!(errno(sock::take(&s, 100, 0)), libc::ECONNREFUSED);
    sock::send(&s, b"anybody?").unwrap();
    assert_ne!(events(&s, libc::POLLIN, DEADLINE_MS) & libc::POLLERR, 0);
    assert_eq!(sock::get(&s, libc::SOL_SOCKET, libc::SO_ERROR).unwrap(), libc::ECONNREFUSED);
    assert_empty(&s);
}

pub(super) fn port_unreachable_wakes_a_reader(ctx: &mut Ctx) {
    let (s, at) = ctx.bound4();
    send_from(ctx, FRIEND, at, b"hello");
    assert_eq!(sock::take(&s, 100, 0).unwrap(), b"hello");
    ctx.close_peer(friend(ctx));
    sock::connect(&s, friend(ctx)).unwrap();
    let reader = crate::cases::signals::Thread::this();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            reader.until_asleep();
            sock::send(&s, b"anybody?").unwrap();
        });
        assert_eq!(errno(sock::take(&s, 100, 0)), libc::ECONNREFUSED);
    });
    send_from(ctx, FRIEND, at, b"here");
    assert_eq!(sock::take(&s, 100, 0).unwrap(), b"here");
}

pub(super) fn a_connected_socket_wins(ctx: &mut Ctx) {
    let at = ctx.address4();
    let [open, closed] = [(); 2].map(|()| {
        let s = sock::udp(libc::AF_INET, 0).unwrap();
        sock::set(&s, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1i32).unwrap();
        sock::bind(&s, at).unwrap();
        s
    });
    sock::connect(&closed, friend(ctx)).unwrap();
    send_from(ctx, FRIEND, at, b"friend");
    send_from(ctx, STRANGER, at, b"stranger");
    assert_eq!(sock::take(&closed, 100, 0).unwrap(), b"friend");
    assert_eq!(sock::take(&open, 100, 0).unwrap(), b"stranger");
    assert_empty(&open);
    assert_empty(&closed);
}
