//! Readiness: poll, select, epoll with every mode, and nothing ready that is not.

use super::{Ctx, conn::Conn, signals::Thread};
use crate::{
    remote::Do,
    sock::{self, DEADLINE_MS, check, epoll, epoll_add, epoll_ctl, epoll_wait, pollfd},
    stream::Draw,
};
use std::{os::fd::AsRawFd, ptr::null_mut, thread::scope};

const IN: i32 = libc::EPOLLIN;
const EDGE: i32 = libc::EPOLLIN | libc::EPOLLET;

pub(super) fn poll_reports_until_drained(ctx: &mut Ctx) {
    let mut c = ctx.tcp();
    assert_eq!(sock::events(&c, libc::POLLIN, 20), 0);
    c.arrive(&[5_000]);
    for _ in 0..5 {
        assert_eq!(sock::events(&c, libc::POLLIN, 0), libc::POLLIN);
        assert_eq!(c.take(1_000, 0).unwrap(), 1_000);
    }
    assert_eq!(sock::events(&c, libc::POLLIN, 20), 0);
    assert_eq!(sock::events(&c, libc::POLLIN | libc::POLLOUT, 0), libc::POLLOUT);
}

/// Read empty, it is never ready: a thread that trusted that would block.
pub(super) fn nothing_is_ready_that_is_not(ctx: &mut Ctx) {
    let mut c = ctx.tcp();
    let ep = epoll();
    epoll_add(&ep, &c, IN, 1);
    let mut draw = Draw::new(7);
    for _ in 0..200 {
        let size = draw.size(1, 60_000);
        c.write_later(&[size]);
        c.exact(size);
        c.finish();
        assert_eq!(sock::events(&c, libc::POLLIN, 0), 0);
        assert_eq!(epoll_wait(&ep, 4, 0).unwrap(), []);
        c.assert_empty();
    }
}

pub(super) fn poll_wakes_up(ctx: &mut Ctx) {
    let mut c = ctx.tcp();
    for size in [1, 500, 30_000, 2] {
        c.write_when_asleep(&[size]);
        sock::wait_readable(&c);
        c.exact(size);
        c.finish();
    }
}

pub(super) fn ppoll_wakes_up(ctx: &mut Ctx) {
    let mut c = ctx.tcp();
    for size in [1, 500, 30_000] {
        c.write_when_asleep(&[size]);
        let mut set = [pollfd(&c, libc::POLLIN)];
        assert_eq!(sock::ppoll(&mut set, None, None).unwrap(), 1);
        c.exact(size);
        c.finish();
    }
}

pub(super) fn poll_finds_the_one_of_many(ctx: &mut Ctx) {
    let mut all: Vec<_> = (0..10).map(|_| ctx.tcp()).collect();
    for i in [3, 9, 0, 5] {
        all[i].write_when_asleep(&[700]);
        let mut set: Vec<_> = all.iter().map(|c| pollfd(c, libc::POLLIN)).collect();
        assert_eq!(sock::poll(&mut set, DEADLINE_MS).unwrap(), 1);
        assert_eq!(set.iter().position(|entry| entry.revents != 0), Some(i));
        all[i].exact(700);
        all[i].finish();
    }
}

fn select(c: &Conn, seconds: i64) -> i32 {
    let mut set = sock::fd_set(&[c.as_raw_fd()]);
    let mut time = libc::timeval { tv_sec: seconds, tv_usec: 20_000 };
    // SAFETY: set and time are locals.
    check(unsafe { libc::select(c.as_raw_fd() + 1, &mut set, null_mut(), null_mut(), &mut time) }).unwrap()
}

pub(super) fn select_reports_until_drained(ctx: &mut Ctx) {
    let mut c = ctx.tcp();
    for size in [1, 10_000] {
        assert_eq!(select(&c, 0), 0);
        c.write_when_asleep(&[size]);
        assert_eq!(select(&c, 10), 1);
        c.finish();
        c.order(Do::Arrived);
        c.exact(size / 2);
        assert_eq!(select(&c, 0), 1);
        c.exact(size - size / 2);
    }
    assert_eq!(select(&c, 0), 0);
}

pub(super) fn level_reports_until_drained(ctx: &mut Ctx) {
    let mut c = ctx.tcp();
    let ep = epoll();
    epoll_add(&ep, &c, IN, 7);
    assert_eq!(epoll_wait(&ep, 4, 0).unwrap(), []);
    c.write_when_asleep(&[4_000]);
    assert_eq!(epoll_wait(&ep, 4, DEADLINE_MS).unwrap(), [(IN, 7)]);
    c.finish();
    c.order(Do::Arrived);
    for _ in 0..4 {
        assert_eq!(epoll_wait(&ep, 4, 0).unwrap(), [(IN, 7)]);
        assert_eq!(c.take(1_000, 0).unwrap(), 1_000);
    }
    assert_eq!(epoll_wait(&ep, 4, 20).unwrap(), []);
}

/// An edge is an arrival: none for what is left after a partial read, one for each further arrival.
pub(super) fn edge_reports_each_arrival(ctx: &mut Ctx) {
    let mut c = ctx.tcp();
    let ep = epoll();
    epoll_add(&ep, &c, EDGE, 7);
    assert_eq!(epoll_wait(&ep, 4, 0).unwrap(), []);
    for round in 0..10 {
        c.write_when_asleep(&[1_000]);
        assert_eq!(epoll_wait(&ep, 4, DEADLINE_MS).unwrap(), [(IN, 7)], "round {round}");
        c.finish();
        c.exact(900);
        assert_eq!(epoll_wait(&ep, 4, 20).unwrap(), [], "round {round}");
    }
    assert_eq!(c.take(5_000, 0).unwrap(), 1_000);
    assert_eq!(epoll_wait(&ep, 4, 20).unwrap(), []);
}

/// The loop of every edge-triggered program: read until EAGAIN, wait, and never wait in vain.
pub(super) fn edge_triggered_readers_miss_nothing(ctx: &mut Ctx) {
    const TOTAL: usize = 6_000_000;
    let mut c = ctx.tcp();
    sock::fionbio(&c, true).unwrap();
    let ep = epoll();
    epoll_add(&ep, &c, EDGE | libc::EPOLLRDHUP, 7);
    let mut draw = Draw::new(11);
    c.write_later(&draw.sizes(TOTAL, 60_000));
    c.tell(Do::ShutdownWrite);
    let mut left = TOTAL;
    'connection: loop {
        assert_ne!(epoll_wait(&ep, 4, DEADLINE_MS).unwrap(), [], "an edge is missing, {left} bytes left");
        loop {
            match c.take(draw.size(1, 50_000), 0) {
                Ok(0) => break 'connection,
                Ok(got) => left -= got,
                Err(error) => break assert_eq!(error.raw_os_error(), Some(libc::EAGAIN)),
            }
        }
    }
    assert_eq!(left, 0);
}

/// The same with pauses, so that most edges are waited for.
pub(super) fn edge_triggered_readers_are_woken_each_time(ctx: &mut Ctx) {
    let mut c = ctx.tcp();
    sock::fionbio(&c, true).unwrap();
    let ep = epoll();
    epoll_add(&ep, &c, EDGE, 7);
    let mut draw = Draw::new(12);
    for _ in 0..100 {
        let size = draw.size(1, 20_000);
        c.write_later(&[size]);
        let mut left = size;
        while left > 0 {
            assert_ne!(epoll_wait(&ep, 4, DEADLINE_MS).unwrap(), [], "{left} of {size} bytes left");
            while let Ok(got) = c.take(3_000, 0) {
                left -= got;
            }
        }
        c.finish();
    }
}

pub(super) fn edge_reports_what_was_there_before(ctx: &mut Ctx) {
    let mut c = ctx.tcp();
    c.arrive(&[1_000]);
    let ep = epoll();
    epoll_add(&ep, &c, EDGE, 7);
    assert_eq!(epoll_wait(&ep, 4, 0).unwrap(), [(IN, 7)]);
    assert_eq!(epoll_wait(&ep, 4, 20).unwrap(), []);
    epoll_ctl(&ep, libc::EPOLL_CTL_MOD, &c, EDGE, 8).unwrap();
    assert_eq!(epoll_wait(&ep, 4, 0).unwrap(), [(IN, 8)], "EPOLL_CTL_MOD looks again");
    c.exact(1_000);
}

pub(super) fn oneshot_waits_for_rearming(ctx: &mut Ctx) {
    let mut c = ctx.tcp();
    let ep = epoll();
    epoll_add(&ep, &c, IN | libc::EPOLLONESHOT, 7);
    for _ in 0..5 {
        c.write_when_asleep(&[1_000]);
        assert_eq!(epoll_wait(&ep, 4, DEADLINE_MS).unwrap(), [(IN, 7)]);
        c.finish();
        c.order(Do::Arrived);
        c.exact(400);
        c.arrive(&[10]);
        assert_eq!(epoll_wait(&ep, 4, 20).unwrap(), []);
        epoll_ctl(&ep, libc::EPOLL_CTL_MOD, &c, IN | libc::EPOLLONESHOT, 7).unwrap();
        assert_eq!(epoll_wait(&ep, 4, 0).unwrap(), [(IN, 7)]);
        c.exact(610);
        epoll_ctl(&ep, libc::EPOLL_CTL_MOD, &c, IN | libc::EPOLLONESHOT, 7).unwrap();
        assert_eq!(epoll_wait(&ep, 4, 20).unwrap(), []);
    }
}

pub(super) fn rdhup_tells_the_end(ctx: &mut Ctx) {
    let mut c = ctx.tcp();
    let ep = epoll();
    epoll_add(&ep, &c, IN | libc::EPOLLRDHUP, 7);
    c.arrive(&[2_000]);
    assert_eq!(epoll_wait(&ep, 4, DEADLINE_MS).unwrap(), [(IN, 7)]);
    c.order(Do::ShutdownWrite);
    c.order(Do::Arrived);
    assert_eq!(epoll_wait(&ep, 4, DEADLINE_MS).unwrap(), [(IN | libc::EPOLLRDHUP, 7)]);
    c.exact(2_000);
    assert_eq!(epoll_wait(&ep, 4, 0).unwrap(), [(IN | libc::EPOLLRDHUP, 7)]);
    c.assert_end();
    sock::shutdown(&c, libc::SHUT_WR).unwrap();
    assert_eq!(epoll_wait(&ep, 4, 0).unwrap(), [(IN | libc::EPOLLRDHUP | libc::EPOLLHUP, 7)]);
}

/// Readiness by epoll in one thread, reading in another.
pub(super) fn one_thread_waits_another_reads(ctx: &mut Ctx) {
    let mut c = ctx.tcp();
    let ep = epoll();
    epoll_add(&ep, &c, EDGE, 7);
    let (wake, woken) = std::sync::mpsc::channel();
    c.write_later(&[20_000; 100]);
    scope(|scope| {
        scope.spawn(move || {
            while let Ok(list) = epoll_wait(&ep, 4, DEADLINE_MS) {
                if list.is_empty() || wake.send(()).is_err() {
                    return;
                }
            }
        });
        let mut left = 2_000_000;
        while left > 0 {
            match c.take(30_000, libc::MSG_DONTWAIT) {
                Ok(got) => left -= got,
                Err(_) => woken.recv().expect("an edge"),
            }
        }
        drop(woken);
        c.finish();
        c.write(&[1]); // the last edge, by which the other thread ends
    });
    c.exact(1);
}

/// Two connections, one epoll, both busy; neither starves.
pub(super) fn an_epoll_of_many_connections(ctx: &mut Ctx) {
    const EACH: usize = 400_000;
    let ep = epoll();
    let mut all: Vec<_> = (0..16).map(|_| ctx.tcp()).collect();
    let mut draw = Draw::new(13);
    for (i, c) in all.iter_mut().enumerate() {
        sock::fionbio(c, true).unwrap();
        epoll_add(&ep, c, if i % 2 == 0 { IN } else { EDGE }, i as u64);
        c.write_later(&draw.sizes(EACH, 30_000));
    }
    let mut left = [EACH; 16];
    while left.iter().any(|&left| left > 0) {
        let list = epoll_wait(&ep, 5, DEADLINE_MS).unwrap();
        assert_ne!(list, [], "nothing is ready, left are {left:?}");
        for (_, i) in list {
            let (i, edge) = (i as usize, i % 2 == 1);
            while let Ok(got) = all[i].take(20_000, 0) {
                left[i] -= got;
                if !edge {
                    break;
                }
            }
        }
    }
    assert_eq!(epoll_wait(&ep, 16, 20).unwrap(), []);
}

pub(super) fn two_epolls_see_one_connection(ctx: &mut Ctx) {
    let mut c = ctx.tcp();
    let (a, b) = (epoll(), epoll());
    epoll_add(&a, &c, IN, 1);
    epoll_add(&b, &c, EDGE, 2);
    c.arrive(&[600]);
    assert_eq!(epoll_wait(&a, 4, DEADLINE_MS).unwrap(), [(IN, 1)]);
    assert_eq!(epoll_wait(&b, 4, DEADLINE_MS).unwrap(), [(IN, 2)]);
    c.exact(600);
    assert_eq!(epoll_wait(&a, 4, 0).unwrap(), []);
}

pub(super) fn a_blocked_reader_and_a_poller(ctx: &mut Ctx) {
    let mut a = ctx.tcp();
    let mut b = ctx.tcp();
    let poller = Thread::this();
    scope(|scope| {
        scope.spawn(|| {
            for _ in 0..50 {
                a.write_when_asleep(&[2_000]);
                a.exact(2_000);
                a.finish();
            }
        });
        for _ in 0..50 {
            let more = Do::Write { sizes: vec![900], gap_us: 0, asleep: Some(poller.tid()) };
            b.tell(more);
            sock::wait_readable(&b);
            b.exact(900);
            assert_eq!(sock::events(&b, libc::POLLIN, 0), 0);
            b.finish();
        }
    });
}

/// One thread waits all the time; another reads everything and arms the connection again, when nothing is left.
pub(super) fn rearming_wakes_nobody_in_vain(ctx: &mut Ctx) {
    const ONCE: i32 = IN | libc::EPOLLONESHOT;
    let mut c = ctx.tcp();
    let ep = epoll();
    let (wake, woken) = std::sync::mpsc::channel();
    epoll_add(&ep, &c, ONCE, 7);
    scope(|scope| {
        scope.spawn(|| {
            let wake = wake; // gone with this thread
            while epoll_wait(&ep, 4, DEADLINE_MS).unwrap() == [(IN, 7)] && wake.send(()).is_ok() {}
        });
        for size in (1..60).map(|i| i * 331) {
            c.write_later(&[size]);
            woken.recv().expect("an event");
            c.finish();
            c.order(Do::Arrived);
            c.exact(size);
            epoll_ctl(&ep, libc::EPOLL_CTL_MOD, &c, ONCE, 7).unwrap();
            let early = woken.recv_timeout(std::time::Duration::from_millis(5));
            assert!(early.is_err(), "woken with nothing to read");
        }
        epoll_ctl(&ep, libc::EPOLL_CTL_MOD, &c, IN, 8).unwrap();
        c.write(&[1]);
    });
    c.exact(1);
}

/// One thread waits in poll(2), another reads everything: the first is woken by what comes, never by what was read.
pub(super) fn a_poller_of_what_another_reads(ctx: &mut Ctx) {
    let mut c = ctx.tcp();
    let mut last = ctx.tcp();
    let other = sock::dup(&c).unwrap();
    let more = sock::dup(&last).unwrap();
    scope(|scope| {
        scope.spawn(move || {
            // Readable while the reader sleeps is right; for ever is not.
            while sock::events(&more, libc::POLLIN, 0) == 0 {
                let mut set = [pollfd(&other, libc::POLLIN), pollfd(&more, libc::POLLIN)];
                assert_ne!(sock::poll(&mut set, DEADLINE_MS).unwrap(), 0);
            }
        });
        for _ in 0..200 {
            c.write_later(&[5_000]);
            c.exact(5_000);
            c.finish();
        }
        last.write(&[1]);
    });
    last.exact(1);
    assert_eq!(sock::events(&c, libc::POLLIN, 0), 0);
}
