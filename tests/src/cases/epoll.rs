//! epoll in all its modes.

use super::{Ctx, assert_empty};
use crate::{
    cases::signals::{Thread, blocked, count_signals, none_blocked, raise, signals_seen},
    peer::number_of,
    sock::{
        self, DEADLINE_MS, epoll, epoll_add, epoll_ctl, epoll_pwait, epoll_pwait2, epoll_wait, errno, events,
    },
};
use libc::{
    EPOLL_CTL_ADD, EPOLL_CTL_DEL, EPOLL_CTL_MOD, EPOLLET, EPOLLEXCLUSIVE, EPOLLIN, EPOLLONESHOT, EPOLLOUT,
    POLLIN,
};
use std::{
    collections::BTreeSet,
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::{AsRawFd, IntoRawFd, OwnedFd},
    sync::{
        Mutex,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

/// A socket in an epoll instance, with data 7.
fn watched(ctx: &mut Ctx, mask: i32) -> (OwnedFd, OwnedFd, SocketAddr) {
    let (s, at) = ctx.bound4();
    let ep = epoll();
    epoll_add(&ep, &s, mask, 7);
    (ep, s, at)
}

#[track_caller]
fn wait(ep: &OwnedFd) -> Vec<(i32, u64)> {
    epoll_wait(ep, 16, DEADLINE_MS).unwrap()
}

#[track_caller]
fn assert_silent(ep: &OwnedFd) {
    assert_eq!(epoll_wait(ep, 16, 0).unwrap(), []);
}

#[track_caller]
fn assert_take(s: &OwnedFd, bytes: &[u8]) {
    assert_eq!(sock::take(s, 100, libc::MSG_DONTWAIT).unwrap(), bytes);
}

pub(super) fn level_reports_until_drained(ctx: &mut Ctx) {
    let (ep, s, at) = watched(ctx, EPOLLIN);
    assert_silent(&ep);
    ctx.send(at, &[b"one", b"two"]);
    ctx.fence();
    for bytes in [b"one", b"two"] {
        assert_eq!(wait(&ep), [(EPOLLIN, 7)]);
        assert_eq!(wait(&ep), [(EPOLLIN, 7)]);
        assert_take(&s, bytes);
    }
    assert_silent(&ep);
}

pub(super) fn edge_reports_each_arrival_once(ctx: &mut Ctx) {
    let (ep, s, at) = watched(ctx, EPOLLIN | EPOLLET);
    ctx.send(at, &[b"one"]);
    assert_eq!(wait(&ep), [(EPOLLIN, 7)]);
    assert_silent(&ep);
    ctx.send(at, &[b"two"]);
    assert_eq!(wait(&ep), [(EPOLLIN, 7)], "a further arrival, though nothing was read");
    assert_silent(&ep);
    assert_take(&s, b"one");
    assert_silent(&ep);
    assert_take(&s, b"two");
    ctx.send_when_asleep(at, &[b"three"]);
    assert_eq!(wait(&ep), [(EPOLLIN, 7)]);
    assert_take(&s, b"three");
}

pub(super) fn edge_reports_what_was_there_before(ctx: &mut Ctx) {
    let (s, at) = ctx.bound4();
    ctx.send(at, &[b"one"]);
    sock::wait_readable(&s);
    let ep = epoll();
    epoll_add(&ep, &s, EPOLLIN | EPOLLET, 7);
    assert_eq!(wait(&ep), [(EPOLLIN, 7)]);
    assert_silent(&ep);
    epoll_ctl(&ep, EPOLL_CTL_MOD, &s, EPOLLIN | EPOLLET, 8).unwrap();
    assert_eq!(wait(&ep), [(EPOLLIN, 8)], "EPOLL_CTL_MOD looks again");
    assert_take(&s, b"one");
}

pub(super) fn oneshot_waits_for_rearming(ctx: &mut Ctx) {
    let (ep, s, at) = watched(ctx, EPOLLIN | EPOLLONESHOT);
    ctx.send(at, &[b"one"]);
    assert_eq!(wait(&ep), [(EPOLLIN, 7)]);
    ctx.send(at, &[b"two"]);
    ctx.fence();
    assert_silent(&ep);
    epoll_ctl(&ep, EPOLL_CTL_MOD, &s, EPOLLIN | EPOLLONESHOT, 9).unwrap();
    assert_eq!(wait(&ep), [(EPOLLIN, 9)]);
    assert_take(&s, b"one");
    assert_take(&s, b"two");
    epoll_ctl(&ep, EPOLL_CTL_MOD, &s, EPOLLIN | EPOLLONESHOT, 10).unwrap();
    assert_silent(&ep);
}

pub(super) fn exclusive_wakes_somebody(ctx: &mut Ctx) {
    let (s, at) = ctx.bound4();
    let instances = [epoll(), epoll()];
    for ep in &instances {
        epoll_add(ep, &s, EPOLLIN | EPOLLEXCLUSIVE, 7);
    }
    ctx.send(at, &[b"one"]);
    let mut set = instances.each_ref().map(|ep| sock::pollfd(ep, POLLIN));
    assert!(sock::poll(&mut set, DEADLINE_MS).unwrap() >= 1);
    let reports: usize = instances.iter().map(|ep| epoll_wait(ep, 4, 0).unwrap().len()).sum();
    assert!(reports >= 1);
    assert_take(&s, b"one");
    instances.iter().for_each(assert_silent);
}

pub(super) fn wakes_up(ctx: &mut Ctx) {
    let (ep, s, at) = watched(ctx, EPOLLIN);
    for round in 0..10u8 {
        ctx.send_when_asleep(at, &[&[round]]);
        assert_eq!(
            epoll_wait(&ep, 4, if round % 2 == 0 { -1 } else { DEADLINE_MS }).unwrap(),
            [(EPOLLIN, 7)]
        );
        assert_take(&s, &[round]);
        ctx.finish();
    }
}

pub(super) fn times_out(ctx: &mut Ctx) {
    let (ep, s, at) = watched(ctx, EPOLLIN);
    ctx.send(at, &[b"one"]);
    assert_eq!(wait(&ep), [(EPOLLIN, 7)]);
    assert_take(&s, b"one");
    let start = Instant::now();
    assert_eq!(epoll_wait(&ep, 4, 100).unwrap(), []);
    let took = start.elapsed();
    assert!((Duration::from_millis(100)..Duration::from_secs(3)).contains(&took), "{took:?}");
}

pub(super) fn nested(ctx: &mut Ctx) {
    let (inner, s, at) = watched(ctx, EPOLLIN);
    let outer = epoll();
    epoll_add(&outer, &inner, EPOLLIN, 42);
    assert_silent(&outer);
    for _ in 0..3 {
        ctx.send_when_asleep(at, &[b"one"]);
        assert_eq!(wait(&outer), [(EPOLLIN, 42)]);
        assert_eq!(wait(&inner), [(EPOLLIN, 7)]);
        assert_take(&s, b"one");
        assert_silent(&inner);
        assert_silent(&outer);
        ctx.finish();
    }
}

pub(super) fn an_epoll_in_a_poll(ctx: &mut Ctx) {
    let (ep, s, at) = watched(ctx, EPOLLIN);
    assert_eq!(events(&ep, POLLIN, 0), 0);
    ctx.send_when_asleep(at, &[b"one"]);
    assert_eq!(events(&ep, POLLIN, DEADLINE_MS), POLLIN);
    assert_eq!(wait(&ep), [(EPOLLIN, 7)]);
    assert_take(&s, b"one");
    assert_eq!(events(&ep, POLLIN, 0), 0);
}

pub(super) fn two_epolls_see_one_socket(ctx: &mut Ctx) {
    let (a, s, at) = watched(ctx, EPOLLIN);
    let b = epoll();
    epoll_add(&b, &s, EPOLLIN, 8);
    ctx.send(at, &[b"one"]);
    assert_eq!(wait(&a), [(EPOLLIN, 7)]);
    assert_eq!(wait(&b), [(EPOLLIN, 8)]);
    assert_take(&s, b"one");
    assert_silent(&a);
    assert_silent(&b);
}

pub(super) fn modify_changes_data_and_events(ctx: &mut Ctx) {
    let (ep, s, at) = watched(ctx, 0);
    ctx.send(at, &[b"one"]);
    sock::wait_readable(&s);
    assert_silent(&ep);
    epoll_ctl(&ep, EPOLL_CTL_MOD, &s, EPOLLIN, 1).unwrap();
    assert_eq!(wait(&ep), [(EPOLLIN, 1)]);
    epoll_ctl(&ep, EPOLL_CTL_MOD, &s, EPOLLIN | EPOLLOUT, 2).unwrap();
    assert_eq!(wait(&ep), [(EPOLLIN | EPOLLOUT, 2)]);
    epoll_ctl(&ep, EPOLL_CTL_MOD, &s, 0, 3).unwrap();
    assert_silent(&ep);
    assert_take(&s, b"one");
}

pub(super) fn delete_silences(ctx: &mut Ctx) {
    let (ep, s, at) = watched(ctx, EPOLLIN);
    ctx.send(at, &[b"one"]);
    assert_eq!(wait(&ep), [(EPOLLIN, 7)]);
    epoll_ctl(&ep, EPOLL_CTL_DEL, &s, 0, 0).unwrap();
    assert_silent(&ep);
    assert_take(&s, b"one");
    ctx.send(at, &[b"two"]);
    sock::wait_readable(&s);
    assert_silent(&ep);
    epoll_add(&ep, &s, EPOLLIN, 8);
    assert_eq!(wait(&ep), [(EPOLLIN, 8)]);
    assert_take(&s, b"two");
}

pub(super) fn close_silences(ctx: &mut Ctx) {
    let (ep, s, at) = watched(ctx, EPOLLIN);
    ctx.send(at, &[b"one", b"two"]);
    ctx.fence();
    assert_eq!(wait(&ep), [(EPOLLIN, 7)]);
    assert_eq!(sock::take(&s, 100, 0).unwrap(), b"one");
    drop(s);
    assert_silent(&ep);
    let again = sock::bound(at);
    assert_silent(&ep);
    epoll_add(&ep, &again, EPOLLIN, 8);
    ctx.send(at, &[b"three"]);
    assert_eq!(wait(&ep), [(EPOLLIN, 8)]);
    assert_take(&again, b"three");
}

/// An epoll entry belongs to the open file, which a dup keeps alive.
pub(super) fn a_dup_keeps_reporting(ctx: &mut Ctx) {
    let (ep, s, at) = watched(ctx, EPOLLIN);
    let copy = sock::dup(&s).unwrap();
    drop(s);
    ctx.send_when_asleep(at, &[b"one"]);
    assert_eq!(wait(&ep), [(EPOLLIN, 7)]);
    assert_take(&copy, b"one");
    assert_silent(&ep);
}

/// Event loops often register through one descriptor of the instance and wait on another.
pub(super) fn a_dup_of_the_instance_is_the_instance(ctx: &mut Ctx) {
    let (s, at) = ctx.bound4();
    let wait_on = epoll();
    let register_on = sock::dup(&wait_on).unwrap();
    epoll_add(&register_on, &s, EPOLLIN | EPOLLET, 7);
    for round in 0..5u8 {
        ctx.send_when_asleep(at, &[&[round]]);
        assert_eq!(wait(&wait_on), [(EPOLLIN, 7)]);
        assert_silent(&register_on);
        assert_take(&s, &[round]);
        ctx.finish();
    }
    assert_eq!(errno(epoll_ctl(&wait_on, EPOLL_CTL_ADD, &s, EPOLLIN, 8)), libc::EEXIST);
    drop(wait_on);
    ctx.send(at, &[b"after"]);
    assert_eq!(wait(&register_on), [(EPOLLIN, 7)]);
    assert_take(&s, b"after");
}

pub(super) fn a_forked_child_waits(ctx: &mut Ctx) {
    let (ep, s, at) = watched(ctx, EPOLLIN);
    ctx.send(at, &[b"parent"]);
    assert_eq!(wait(&ep), [(EPOLLIN, 7)]);
    assert_take(&s, b"parent");
    let pid = super::process::fork(|| {
        assert_eq!(wait(&ep), [(EPOLLIN, 7)]);
        assert_take(&s, b"child");
        assert_silent(&ep);
    });
    ctx.send(at, &[b"child"]);
    super::process::assert_child_succeeds(pid);
    ctx.send(at, &[b"parent"]);
    assert_eq!(wait(&ep), [(EPOLLIN, 7)]);
    assert_take(&s, b"parent");
}

pub(super) fn maxevents_takes_turns(ctx: &mut Ctx) {
    let ep = epoll();
    let sockets: Vec<_> = (0..3).map(|_| ctx.bound4()).collect();
    for (i, (s, at)) in sockets.iter().enumerate() {
        epoll_add(&ep, s, EPOLLIN, i as u64);
        ctx.send(*at, &[b"one"]);
        sock::wait_readable(s);
    }
    let mut seen = BTreeSet::new();
    for _ in 0..6 {
        let list = epoll_wait(&ep, 1, DEADLINE_MS).unwrap();
        assert_eq!(list.len(), 1);
        seen.insert(list[0].1);
    }
    assert_eq!(seen.len(), 3, "level-triggered entries take turns");
    assert_eq!(epoll_wait(&ep, 2, DEADLINE_MS).unwrap().len(), 2);
    assert_eq!(epoll_wait(&ep, 8, DEADLINE_MS).unwrap().len(), 3);
    sockets.iter().for_each(|(s, _)| assert_take(s, b"one"));
}

pub(super) fn data_is_kept_whole(ctx: &mut Ctx) {
    for data in [0, u64::MAX, 0xdead_beef_0123_4567, 1 << 63] {
        let (s, at) = ctx.bound4();
        let ep = epoll();
        epoll_add(&ep, &s, EPOLLIN, data);
        ctx.send(at, &[b"one"]);
        assert_eq!(wait(&ep), [(EPOLLIN, data)]);
        assert_take(&s, b"one");
    }
}

pub(super) fn added_before_bind(ctx: &mut Ctx) {
    let at = ctx.address4();
    let s = sock::udp(libc::AF_INET, 0).unwrap();
    let ep = epoll();
    epoll_add(&ep, &s, EPOLLIN | EPOLLET, 7);
    sock::bind(&s, at).unwrap();
    ctx.send_when_asleep(at, &[b"one"]);
    assert_eq!(wait(&ep), [(EPOLLIN, 7)]);
    assert_take(&s, b"one");
}

pub(super) fn writable_at_once(ctx: &mut Ctx) {
    let (ep, s, at) = watched(ctx, EPOLLIN | EPOLLOUT | EPOLLET);
    assert_eq!(wait(&ep), [(EPOLLOUT, 7)]);
    assert_silent(&ep);
    ctx.send(at, &[b"one"]);
    assert_eq!(wait(&ep), [(EPOLLIN | EPOLLOUT, 7)]);
    assert_take(&s, b"one");
}

pub(super) fn pwait_sets_the_mask(ctx: &mut Ctx) {
    let (ep, s, at) = watched(ctx, EPOLLIN);
    count_signals(libc::SIGUSR1, 0);
    let _guard = blocked(libc::SIGUSR1);
    raise(libc::SIGUSR1);
    assert_eq!(errno(epoll_pwait(&ep, 4, DEADLINE_MS, &none_blocked())), libc::EINTR);
    assert_eq!(signals_seen(), 1);
    ctx.send_when_asleep(at, &[b"one"]);
    assert_eq!(epoll_pwait(&ep, 4, DEADLINE_MS, &none_blocked()).unwrap(), [(EPOLLIN, 7)]);
    assert_take(&s, b"one");
}

pub(super) fn pwait2_times_out_in_microseconds(ctx: &mut Ctx) {
    let (ep, s, at) = watched(ctx, EPOLLIN);
    ctx.send(at, &[b"one"]);
    assert_eq!(wait(&ep), [(EPOLLIN, 7)]);
    assert_take(&s, b"one");
    let start = Instant::now();
    let time = Duration::from_micros(1_700);
    assert_eq!(epoll_pwait2(&ep, 4, Some(time)).unwrap(), []);
    assert!((time..Duration::from_secs(3)).contains(&start.elapsed()), "{:?}", start.elapsed());
}

pub(super) fn pwait2_wakes_up(ctx: &mut Ctx) {
    let (ep, s, at) = watched(ctx, EPOLLIN);
    for time in [None, Some(Duration::from_secs(20))] {
        ctx.send_when_asleep(at, &[b"one"]);
        assert_eq!(epoll_pwait2(&ep, 4, time).unwrap(), [(EPOLLIN, 7)]);
        assert_take(&s, b"one");
        ctx.finish();
    }
}

pub(super) fn mixes_with_timers_pipes_and_tcp(ctx: &mut Ctx) {
    let (ep, s, at) = watched(ctx, EPOLLIN);
    let (reader, writer) = sock::pipe();
    let timer = timer();
    let listener = TcpListener::bind((ctx.net.host4, ctx.port())).unwrap();
    epoll_add(&ep, &reader, EPOLLIN, 1);
    epoll_add(&ep, &timer, EPOLLIN, 2);
    epoll_add(&ep, &listener, EPOLLIN, 3);
    assert_eq!(wait(&ep), [(EPOLLIN, 2)], "the timer ends the wait");
    sock::read(&timer, &mut [0; 8]).unwrap();
    ctx.send_when_asleep(at, &[b"one"]);
    assert_eq!(wait(&ep), [(EPOLLIN, 7)]);
    sock::write(&writer, b"x").unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let mut data: Vec<_> = wait(&ep).into_iter().map(|(_, data)| data).collect();
    data.sort_unstable();
    assert_eq!(data, [1, 3, 7]);
    assert_take(&s, b"one");
    let accepted = listener.accept().unwrap().0;
    epoll_add(&ep, &accepted, EPOLLIN, 4);
    sock::read(&reader, &mut [0; 8]).unwrap();
    sock::write(&client, b"bytes").unwrap();
    assert_eq!(wait(&ep), [(EPOLLIN, 4)]);
}

/// A timer that ends once, in a millisecond.
fn timer() -> OwnedFd {
    // SAFETY: no pointers.
    let timer = sock::own(unsafe { libc::timerfd_create(libc::CLOCK_MONOTONIC, 0) }).unwrap();
    let time = sock::timespec(Duration::from_millis(1));
    let once = libc::itimerspec { it_interval: sock::timespec(Duration::ZERO), it_value: time };
    // SAFETY: the new value is a local, the old one is not asked for.
    sock::check(unsafe { libc::timerfd_settime(timer.as_raw_fd(), 0, &once, std::ptr::null_mut()) }).unwrap();
    timer
}

const TOTAL: u32 = 2_000;
const BATCH: u32 = 50;

pub(super) fn two_threads_on_one_epoll(ctx: &mut Ctx) {
    let (ep, s, at) = watched(ctx, EPOLLIN);
    let (seen, list) = (AtomicU32::new(0), Mutex::new(Vec::new()));
    let work = || {
        while seen.load(Relaxed) < TOTAL {
            if epoll_wait(&ep, 4, 50).unwrap().is_empty() {
                continue;
            }
            while let Ok(bytes) = sock::take(&s, 100, libc::MSG_DONTWAIT) {
                list.lock().unwrap().push(number_of(&bytes));
                seen.fetch_add(1, Relaxed);
            }
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(work);
        scope.spawn(work);
        for batch in 0..TOTAL / BATCH {
            ctx.send_numbered(at, batch * BATCH, BATCH, 16);
            while seen.load(Relaxed) + 2 * BATCH < batch * BATCH {
                std::thread::yield_now();
            }
        }
    });
    let mut list = list.into_inner().unwrap();
    list.sort_unstable();
    assert_eq!(list, (0..TOTAL).collect::<Vec<_>>());
}

pub(super) fn one_thread_waits_another_reads(ctx: &mut Ctx) {
    let (ep, s, at) = watched(ctx, EPOLLIN);
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        let s = &s;
        scope.spawn(move || {
            for round in 0..50u8 {
                told.recv().unwrap();
                assert_take(s, &[round]);
            }
        });
        for round in 0..50u8 {
            ctx.send(at, &[&[round]]);
            assert_eq!(wait(&ep), [(EPOLLIN, 7)]);
            tell.send(()).unwrap();
            while !epoll_wait(&ep, 4, 0).unwrap().is_empty() {
                std::thread::yield_now();
            }
        }
    });
    let waiting = Thread::this();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            waiting.until_asleep();
            assert_empty(&s);
            ctx.send(at, &[b"end"]);
        });
        assert_eq!(wait(&ep), [(EPOLLIN, 7)]);
    });
    assert_take(&s, b"end");
}

pub(super) fn errors_are_the_kernels(ctx: &mut Ctx) {
    let (ep, s, at) = watched(ctx, EPOLLIN);
    let (other, _) = ctx.bound4();
    let (plain, _pipe) = sock::pipe();
    assert_eq!(errno(epoll_ctl(&ep, EPOLL_CTL_ADD, &s, EPOLLIN, 7)), libc::EEXIST);
    assert_eq!(errno(epoll_ctl(&ep, EPOLL_CTL_MOD, &other, EPOLLIN, 7)), libc::ENOENT);
    assert_eq!(errno(epoll_ctl(&ep, EPOLL_CTL_DEL, &other, EPOLLIN, 7)), libc::ENOENT);
    assert_eq!(errno(epoll_ctl(&plain, EPOLL_CTL_ADD, &s, EPOLLIN, 7)), libc::EINVAL);
    let closed = ctx.bound4().0.into_raw_fd();
    sock::close(closed).unwrap();
    assert_eq!(errno(epoll_ctl(&ep, EPOLL_CTL_ADD, &closed, EPOLLIN, 7)), libc::EBADF);
    assert_eq!(errno(epoll_wait(&ep, 0, 0)), libc::EINVAL);
    assert_eq!(errno(epoll_wait(&closed, 1, 0)), libc::EBADF);
    assert_eq!(errno(epoll_wait(&s, 1, 0)), libc::EINVAL);
    ctx.send(at, &[b"one"]);
    assert_eq!(wait(&ep), [(EPOLLIN, 7)]);
    assert_take(&s, b"one");
}
