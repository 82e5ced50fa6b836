//! How connections begin, and what they say of themselves.

use super::{Ctx, conn::Kind, tcp_recv::mixed};
use crate::{
    remote::Do,
    sock::{self, DEADLINE_MS, errno},
};

pub(super) fn accept_tells_the_peer(ctx: &mut Ctx) {
    let (at, to) = ctx.addresses(Kind::V4);
    let listener = sock::listening(at);
    let mut c = ctx.accepted(&listener, to);
    c.warm();
    assert_eq!(sock::name(&c).unwrap(), at);
    assert_eq!(sock::peer_name(&c).unwrap().ip(), ctx.net.wire4);
    mixed(&mut c);
    assert_eq!(sock::peer_name(&c).unwrap().ip(), ctx.net.wire4);
}

pub(super) fn accept4_sets_flags(ctx: &mut Ctx) {
    let (at, to) = ctx.addresses(Kind::V4);
    let listener = sock::listening(at);
    let pending = ctx.pending(to);
    let (s, _) = sock::accept4(&listener, libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC).unwrap();
    let mut c = pending.with(s);
    assert_eq!(sock::fcntl(&c, libc::F_GETFD, 0).unwrap(), libc::FD_CLOEXEC);
    c.assert_empty();
    assert_eq!(errno(c.take(100, 0)), libc::EAGAIN);
    for size in [1, 5_000, 100] {
        c.arrive(&[size]);
        assert_eq!(c.take(65_536, 0).unwrap(), size);
        assert_eq!(errno(c.take(100, 0)), libc::EAGAIN);
    }
}

/// Everything has come before accept(2), and the peer has ended too.
pub(super) fn data_before_accept(ctx: &mut Ctx) {
    let (at, to) = ctx.addresses(Kind::V4);
    let listener = sock::listening(at);
    for sizes in [&[1][..], &[3_000, 1], &[50_000]] {
        let mut pending = ctx.pending(to);
        pending.write(sizes);
        let mut c = pending.accept(&listener);
        c.write(&[700]);
        c.order(Do::ShutdownWrite);
        c.exact(sizes.iter().sum::<usize>() + 700);
        c.assert_end();
    }
    let mut c = ctx.accepted(&listener, to);
    c.warm();
}

/// Data comes all the while: before accept, between accept and the first read, and after it.
pub(super) fn data_around_the_first_read(ctx: &mut Ctx) {
    let (at, to) = ctx.addresses(Kind::V4);
    let listener = sock::listening(at);
    for first in [1, 100, 1_448, 10_000] {
        let mut pending = ctx.pending(to);
        pending.write(&[2_000]);
        let mut c = pending.accept(&listener);
        c.write_later(&[500; 400]);
        assert_ne!(c.take(first, 0).unwrap(), 0);
        let read = c.at as usize;
        c.exact(202_000 - read);
        c.finish();
        c.assert_empty();
    }
}

pub(super) fn connect_opens(ctx: &mut Ctx) {
    let mut c = ctx.connected(Kind::V4);
    c.warm();
    mixed(&mut c);
}

pub(super) fn connect6_opens(ctx: &mut Ctx) {
    let mut c = ctx.connected(Kind::V6);
    c.warm();
    mixed(&mut c);
}

pub(super) fn connect_to_a_mapped_address_opens(ctx: &mut Ctx) {
    let mut c = ctx.connected(Kind::Mapped);
    c.warm();
    mixed(&mut c);
}

pub(super) fn connect_without_waiting(ctx: &mut Ctx) {
    let to = ctx.peer_listens(Kind::V4);
    let s = sock::tcp(libc::AF_INET, libc::SOCK_NONBLOCK).unwrap();
    assert_eq!(errno(sock::connect(&s, to)), libc::EINPROGRESS);
    assert_eq!(sock::events(&s, libc::POLLOUT, DEADLINE_MS), libc::POLLOUT);
    assert_eq!(sock::get(&s, libc::SOL_SOCKET, libc::SO_ERROR).unwrap(), 0);
    let mut c = ctx.adopt(s, to);
    assert_eq!(errno(c.take(10, 0)), libc::EAGAIN);
    sock::fionbio(&c, false).unwrap();
    c.warm();
    mixed(&mut c);
}

pub(super) fn a_read_before_connect_is_enotconn(ctx: &mut Ctx) {
    let to = ctx.peer_listens(Kind::V4);
    let s = sock::tcp_for(to).unwrap();
    assert_eq!(errno(sock::take(&s, 100, 0)), libc::ENOTCONN);
    assert_eq!(errno(sock::read(&s, &mut [0; 10])), libc::ENOTCONN);
    sock::connect(&s, to).unwrap();
    let mut c = ctx.adopt(s, to);
    c.warm();
    let listener = sock::listening(ctx.addresses(Kind::V4).0);
    assert_eq!(errno(sock::take(&listener, 100, 0)), libc::ENOTCONN);
}

/// A blocked connect and a read in one: the read waits for the handshake (`tcp_recvmsg` of a nonblocking socket says ENOTCONN).
pub(super) fn a_refused_connect(ctx: &mut Ctx) {
    let to = std::net::SocketAddr::from((ctx.net.wire4, 9));
    let s = sock::tcp_for(to).unwrap();
    assert_eq!(errno(sock::connect(&s, to)), libc::ECONNREFUSED);
    let to = ctx.peer_listens(Kind::V4);
    sock::connect(&s, to).unwrap(); // Linux lets a socket try again
    let mut c = ctx.adopt(s, to);
    c.warm();
}

/// `TCP_DEFER_ACCEPT`: the connection is accepted with its first data.
pub(super) fn accept_deferred_until_data(ctx: &mut Ctx) {
    let (at, to) = ctx.addresses(Kind::V4);
    let listener = sock::listening(at);
    sock::set(&listener, libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, 5).unwrap();
    let mut pending = ctx.pending(to);
    pending.write(&[900]);
    let mut c = pending.accept(&listener);
    c.exact(900);
    c.warm();
    mixed(&mut c);
}

pub(super) fn many_connections_in_turn(ctx: &mut Ctx) {
    let (at, to) = ctx.addresses(Kind::V4);
    let listener = sock::listening(at);
    for size in 1..100 {
        let mut c = ctx.accepted(&listener, to);
        c.write(&[size * 100]);
        c.exact(size * 100);
        c.ask(100);
        c.order(Do::ShutdownWrite);
        c.assert_end();
        assert_eq!(c.close(), (0, 0));
    }
    let mut c = ctx.accepted(&listener, to);
    c.warm();
}

pub(super) fn two_listeners_share_a_port(ctx: &mut Ctx) {
    let (at, to) = ctx.addresses(Kind::V4);
    let listeners = [(); 2].map(|()| {
        let s = sock::tcp_for(at).unwrap();
        sock::set(&s, libc::SOL_SOCKET, libc::SO_REUSEPORT, 1).unwrap();
        sock::bind(&s, at).unwrap();
        sock::listen(&s, 10).unwrap();
        s
    });
    for _ in 0..10 {
        let pending = ctx.pending(to);
        let mut set = listeners.each_ref().map(|s| sock::pollfd(s, libc::POLLIN));
        sock::poll(&mut set, DEADLINE_MS).unwrap();
        let ready = set.iter().position(|entry| entry.revents != 0).expect("one listener is ready");
        let mut c = pending.accept(&listeners[ready]);
        c.warm();
    }
}

/// Options that change nothing of what is read.
pub(super) fn options_leave_the_stream_alone(ctx: &mut Ctx) {
    let mut c = ctx.tcp();
    let tcp = libc::IPPROTO_TCP;
    for (level, option, value) in [
        (tcp, libc::TCP_NODELAY, 1),
        (tcp, libc::TCP_QUICKACK, 1),
        (tcp, libc::TCP_CORK, 1),
        (tcp, libc::TCP_WINDOW_CLAMP, 100_000),
        (tcp, libc::TCP_USER_TIMEOUT, 10_000),
        (libc::SOL_SOCKET, libc::SO_PRIORITY, 3),
        (libc::SOL_SOCKET, libc::SO_BUSY_POLL, 50),
        (libc::SOL_SOCKET, libc::SO_TIMESTAMPNS, 1),
        (libc::IPPROTO_IP, libc::IP_TOS, 0x10),
    ] {
        sock::set(&c, level, option, value).unwrap();
        c.arrive(&[5_000, 300]);
        c.exact(5_300);
    }
    mixed(&mut c);
}
