//! poll and ppoll.

use super::{Ctx, assert_empty};
use crate::{
    cases::signals::{blocked, count_signals, none_blocked, raise, signals_seen},
    sock::{self, DEADLINE_MS, errno, events, poll, pollfd, ppoll},
};
use libc::{POLLIN, POLLNVAL, POLLOUT, POLLRDNORM, POLLWRNORM};
use std::{
    os::fd::{AsRawFd, IntoRawFd, OwnedFd},
    time::{Duration, Instant},
};

/// Proves that the socket is lifted and works.
#[track_caller]
fn exchange(ctx: &mut Ctx, s: &OwnedFd, at: std::net::SocketAddr) {
    ctx.send(at, &[b"exchange"]);
    assert_eq!(sock::take(s, 100, 0).unwrap(), b"exchange");
}

#[track_caller]
fn assert_waited(start: Instant, wait: Duration) {
    assert!((wait..wait + Duration::from_secs(3)).contains(&start.elapsed()), "{:?}", start.elapsed());
}

pub(super) fn times_out(ctx: &mut Ctx) {
    let (s, at) = ctx.bound4();
    exchange(ctx, &s, at);
    assert_eq!(events(&s, POLLIN, 0), 0);
    let start = Instant::now();
    assert_eq!(events(&s, POLLIN, 100), 0);
    assert_waited(start, Duration::from_millis(100));
}

pub(super) fn sees_what_is_there(ctx: &mut Ctx) {
    let (s, at) = ctx.bound4();
    ctx.send(at, &[b"hello"]);
    assert_eq!(events(&s, POLLIN | POLLRDNORM, DEADLINE_MS), POLLIN | POLLRDNORM);
    assert_eq!(events(&s, POLLIN, 0), POLLIN);
    assert_eq!(events(&s, libc::POLLPRI, 0), 0);
    assert_eq!(sock::take(&s, 100, 0).unwrap(), b"hello");
}

pub(super) fn wakes_up(ctx: &mut Ctx) {
    let (s, at) = ctx.bound4();
    for round in 0..10u8 {
        ctx.send_when_asleep(at, &[&[round]]);
        assert_eq!(events(&s, POLLIN, DEADLINE_MS), POLLIN);
        assert_eq!(sock::take(&s, 100, libc::MSG_DONTWAIT).unwrap(), [round]);
        ctx.finish();
    }
    ctx.send_when_asleep(at, &[b"for ever"]);
    assert_eq!(events(&s, POLLIN, -1), POLLIN);
}

pub(super) fn clears_when_drained(ctx: &mut Ctx) {
    let (s, at) = ctx.bound4();
    ctx.send(at, &[b"one", b"two"]);
    for _ in 0..2 {
        sock::wait_readable(&s);
        sock::take(&s, 100, libc::MSG_PEEK).unwrap();
        assert_eq!(events(&s, POLLIN, 0), POLLIN);
        sock::take(&s, 100, 0).unwrap();
    }
    assert_eq!(events(&s, POLLIN, 0), 0);
    assert_empty(&s);
}

pub(super) fn is_writable_at_once(ctx: &mut Ctx) {
    let (s, at) = ctx.bound4();
    assert_eq!(events(&s, POLLIN | POLLOUT | POLLWRNORM, -1), POLLOUT | POLLWRNORM);
    ctx.send(at, &[b"hello"]);
    sock::wait_readable(&s);
    assert_eq!(events(&s, POLLIN | POLLOUT, -1), POLLIN | POLLOUT);
    sock::take(&s, 100, 0).unwrap();
}

pub(super) fn finds_the_one_of_many(ctx: &mut Ctx) {
    let sockets: Vec<_> = (0..64).map(|_| ctx.bound4()).collect();
    for chosen in [0, 31, 63] {
        ctx.send_when_asleep(sockets[chosen].1, &[b"hello"]);
        let mut set: Vec<_> = sockets.iter().map(|(s, _)| pollfd(s, POLLIN)).collect();
        assert_eq!(poll(&mut set, DEADLINE_MS).unwrap(), 1);
        let ready: Vec<_> = (0..64).filter(|&i| set[i].revents != 0).collect();
        assert_eq!(ready, [chosen]);
        sock::take(&sockets[chosen].0, 100, 0).unwrap();
        ctx.finish();
    }
}

pub(super) fn a_pipe_wakes_it(ctx: &mut Ctx) {
    let (s, at) = ctx.bound4();
    exchange(ctx, &s, at);
    let (reader, writer) = sock::pipe();
    let waiting = crate::cases::signals::Thread::this();
    let helper = std::thread::spawn(move || {
        waiting.until_asleep();
        sock::write(&writer, b"x").unwrap();
        writer
    });
    let mut set = [pollfd(&s, POLLIN), pollfd(&reader, POLLIN)];
    assert_eq!(poll(&mut set, DEADLINE_MS).unwrap(), 1);
    assert_eq!((set[0].revents, set[1].revents), (0, POLLIN));
    helper.join().unwrap();
}

pub(super) fn counts_sockets_and_pipes(ctx: &mut Ctx) {
    let (s, at) = ctx.bound4();
    let (quiet, _) = ctx.bound4();
    let (reader, writer) = sock::pipe();
    sock::write(&writer, b"x").unwrap();
    ctx.send(at, &[b"hello"]);
    sock::wait_readable(&s);
    let mut set =
        [pollfd(&quiet, POLLIN), pollfd(&s, POLLIN), pollfd(&reader, POLLIN), pollfd(&writer, POLLOUT)];
    assert_eq!(poll(&mut set, DEADLINE_MS).unwrap(), 3);
    assert_eq!(set.map(|p| p.revents), [0, POLLIN, POLLIN, POLLOUT]);
    sock::take(&s, 100, 0).unwrap();
    assert_eq!(poll(&mut set, DEADLINE_MS).unwrap(), 2);
}

pub(super) fn skips_negative_and_flags_closed(ctx: &mut Ctx) {
    let (s, at) = ctx.bound4();
    let closed = ctx.bound4().0.into_raw_fd();
    sock::close(closed).unwrap();
    ctx.send(at, &[b"hello"]);
    sock::wait_readable(&s);
    let mut set = [pollfd(&-1, POLLIN), pollfd(&closed, POLLIN), pollfd(&s, POLLIN)];
    assert_eq!(poll(&mut set, DEADLINE_MS).unwrap(), 2);
    assert_eq!(set.map(|p| p.revents), [0, POLLNVAL, POLLIN]);
    sock::take(&s, 100, 0).unwrap();
}

pub(super) fn the_same_socket_twice(ctx: &mut Ctx) {
    let (s, at) = ctx.bound4();
    ctx.send_when_asleep(at, &[b"hello"]);
    let mut set = [pollfd(&s, POLLIN), pollfd(&s, POLLIN)];
    assert_eq!(poll(&mut set, DEADLINE_MS).unwrap(), 2);
    sock::take(&s, 100, 0).unwrap();
}

pub(super) fn sees_a_socket_not_bound_yet(ctx: &mut Ctx) {
    let at = ctx.address4();
    let s = sock::udp(libc::AF_INET, 0).unwrap();
    assert_eq!(events(&s, POLLIN, 0), 0);
    sock::bind(&s, at).unwrap();
    ctx.send_when_asleep(at, &[b"hello"]);
    assert_eq!(events(&s, POLLIN, DEADLINE_MS), POLLIN);
    assert_eq!(sock::take(&s, 100, 0).unwrap(), b"hello");
}

pub(super) fn ppoll_times_out(ctx: &mut Ctx) {
    let (s, at) = ctx.bound4();
    exchange(ctx, &s, at);
    let start = Instant::now();
    let wait = Duration::from_micros(70_500);
    assert_eq!(ppoll(&mut [pollfd(&s, POLLIN)], Some(wait), None).unwrap(), 0);
    assert_waited(start, wait);
    assert_eq!(ppoll(&mut [pollfd(&s, POLLIN)], Some(Duration::ZERO), None).unwrap(), 0);
}

pub(super) fn ppoll_wakes_up(ctx: &mut Ctx) {
    let (s, at) = ctx.bound4();
    for wait in [None, Some(Duration::from_secs(20))] {
        ctx.send_when_asleep(at, &[b"hello"]);
        assert_eq!(ppoll(&mut [pollfd(&s, POLLIN)], wait, None).unwrap(), 1);
        assert_eq!(sock::take(&s, 100, 0).unwrap(), b"hello");
        ctx.finish();
    }
}

/// A blocked signal is pending; the mask of the call lets it in, and only for the call.
pub(super) fn ppoll_sets_the_mask(ctx: &mut Ctx) {
    let (s, at) = ctx.bound4();
    exchange(ctx, &s, at);
    count_signals(libc::SIGUSR1, 0);
    let _guard = blocked(libc::SIGUSR1);
    raise(libc::SIGUSR1);
    assert_eq!(signals_seen(), 0);
    let wait = Some(Duration::from_secs(20));
    assert_eq!(errno(ppoll(&mut [pollfd(&s, POLLIN)], wait, Some(&none_blocked()))), libc::EINTR);
    assert_eq!(signals_seen(), 1);
    raise(libc::SIGUSR1);
    assert_eq!(signals_seen(), 1, "the mask is back after the call");
    assert!(s.as_raw_fd() >= 0);
}
