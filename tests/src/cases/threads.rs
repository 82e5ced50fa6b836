//! Several threads.

use super::Ctx;
use crate::{cases::signals::Thread, peer::number_of, sock};
use std::{
    os::fd::OwnedFd,
    sync::{
        Mutex,
        atomic::{AtomicU32, Ordering::SeqCst},
    },
    thread::{scope, yield_now},
};

const TOTAL: u32 = 5_000;
const BATCH: u32 = 50;
const END: &[u8] = b"end";

/// Reads numbers until the end mark.
fn read_to_end(s: &OwnedFd, seen: &AtomicU32) -> Vec<u32> {
    let mut list = Vec::new();
    loop {
        let bytes = sock::take(s, 100, 0).unwrap();
        if bytes == END {
            return list;
        }
        list.push(number_of(&bytes));
        seen.fetch_add(1, SeqCst);
    }
}

/// Sends `TOTAL` numbers, never more than two batches ahead of the readers, so that no queue overflows.
fn send_all(ctx: &mut Ctx, at: std::net::SocketAddr, seen: &AtomicU32) {
    for first in (0..TOTAL).step_by(BATCH as usize) {
        ctx.send_numbered(at, first, BATCH, 16);
        until_read(seen, first.saturating_sub(BATCH));
    }
}

fn until_read(seen: &AtomicU32, count: u32) {
    while seen.load(SeqCst) < count {
        yield_now();
    }
}

pub(super) fn two_readers_share_a_socket(ctx: &mut Ctx) {
    let (s, at) = ctx.bound4();
    let seen = AtomicU32::new(0);
    let lists = scope(|scope| {
        let readers = [(); 2].map(|()| scope.spawn(|| read_to_end(&s, &seen)));
        send_all(ctx, at, &seen);
        ctx.send(at, &[END, END]);
        readers.map(|reader| reader.join().unwrap())
    });
    assert!(lists.iter().all(|list| list.is_sorted()), "a reader saw datagrams out of order");
    let mut all = lists.concat();
    all.sort_unstable();
    assert_eq!(all, (0..TOTAL).collect::<Vec<_>>());
}

pub(super) fn eight_threads_eight_sockets(ctx: &mut Ctx) {
    let sockets: Vec<_> = (0..8).map(|_| ctx.bound4()).collect();
    let seen = AtomicU32::new(0);
    scope(|scope| {
        let readers: Vec<_> = sockets.iter().map(|(s, _)| scope.spawn(|| read_to_end(s, &seen))).collect();
        for first in (0..1_000).step_by(25) {
            sockets.iter().for_each(|(_, at)| ctx.send_numbered(*at, first, 25, 16));
            until_read(&seen, 8 * first.saturating_sub(25));
        }
        sockets.iter().for_each(|(_, at)| ctx.send(*at, &[END]));
        for reader in readers {
            assert_eq!(reader.join().unwrap(), (0..1_000).collect::<Vec<_>>());
        }
    });
}

pub(super) fn a_reader_and_a_poller(ctx: &mut Ctx) {
    let (a, a_at) = ctx.bound4();
    let (b, b_at) = ctx.bound4();
    scope(|scope| {
        let reader = scope.spawn(|| {
            (0..200u8).for_each(|i| assert_eq!(sock::take(&a, 100, 0).unwrap(), [i]));
        });
        let poller = scope.spawn(|| {
            for i in 0..200u8 {
                sock::wait_readable(&b);
                assert_eq!(sock::take(&b, 100, libc::MSG_DONTWAIT).unwrap(), [i]);
            }
        });
        for i in 0..200u8 {
            ctx.send(a_at, &[&[i]]);
            ctx.send(b_at, &[&[i]]);
        }
        reader.join().unwrap();
        poller.join().unwrap();
    });
}

pub(super) fn a_socket_opened_while_others_read(ctx: &mut Ctx) {
    let (s, at) = ctx.bound4();
    let seen = AtomicU32::new(0);
    scope(|scope| {
        let reader = scope.spawn(|| read_to_end(&s, &seen));
        for first in (0..500).step_by(10) {
            ctx.send_numbered(at, first, 10, 16);
            let (new, new_at) = ctx.bound4();
            ctx.send(new_at, &[b"new"]);
            assert_eq!(sock::take(&new, 100, 0).unwrap(), b"new");
            until_read(&seen, first.saturating_sub(50));
        }
        ctx.send(at, &[END]);
        assert_eq!(reader.join().unwrap(), (0..500).collect::<Vec<_>>());
    });
}

/// One thread sleeps on a socket that gets nothing; another must not starve behind it.
pub(super) fn a_blocked_reader_does_not_stop_others(ctx: &mut Ctx) {
    let (quiet, quiet_at) = ctx.bound4();
    let (s, at) = ctx.bound4();
    let sleeper = Mutex::new(None);
    scope(|scope| {
        scope.spawn(|| {
            *sleeper.lock().unwrap() = Some(Thread::this());
            assert_eq!(sock::take(&quiet, 100, 0).unwrap(), b"at last");
        });
        let thread = loop {
            if let Some(thread) = *sleeper.lock().unwrap() {
                break thread;
            }
            yield_now();
        };
        thread.until_asleep();
        for i in 0..100u8 {
            ctx.send_when_asleep(at, &[&[i]]);
            assert_eq!(sock::take(&s, 100, 0).unwrap(), [i]);
            ctx.finish();
        }
        ctx.send(quiet_at, &[b"at last"]);
    });
}
