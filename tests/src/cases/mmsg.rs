//! recvmmsg.

use super::{Ctx, assert_empty, numbers};
use crate::{
    peer::number_of,
    sock::{self, Datagram, errno, recv_mmsg},
};
use std::{
    io::Error,
    os::fd::{AsRawFd, OwnedFd},
    ptr::null_mut,
    time::Duration,
};

/// Sends `count` datagrams and waits until all of them can be read.
fn queued(ctx: &mut Ctx, count: u32) -> OwnedFd {
    let (s, at) = ctx.bound4();
    ctx.send_numbered(at, 0, count, 8);
    ctx.fence();
    s
}

fn payloads(list: &[Datagram]) -> Vec<Vec<u8>> {
    list.iter().map(|d| d.bytes.clone()).collect()
}

pub(super) fn a_batch_is_taken_in_order(ctx: &mut Ctx) {
    let s = queued(ctx, 40);
    let first = recv_mmsg(&s, 32, 100, 0, None).unwrap();
    assert_eq!(payloads(&first), numbers(0..32, 8));
    assert!(first.iter().all(|d| d.flags == 0 && d.from == Some((ctx.net.wire4, 30_000).into())));
    assert_eq!(payloads(&recv_mmsg(&s, 8, 100, 0, None).unwrap()), numbers(32..40, 8));
    assert_empty(&s);
}

pub(super) fn a_full_batch_is_waited_for(ctx: &mut Ctx) {
    let (s, at) = ctx.bound4();
    ctx.send(at, &[b"one"]);
    ctx.send_when_asleep(at, &[b"two", b"three"]);
    assert_eq!(payloads(&recv_mmsg(&s, 3, 100, 0, None).unwrap()), [&b"one"[..], b"two", b"three"]);
}

pub(super) fn waitforone_takes_what_is_there(ctx: &mut Ctx) {
    let s = queued(ctx, 3);
    assert_eq!(recv_mmsg(&s, 32, 100, libc::MSG_WAITFORONE, None).unwrap().len(), 3);
}

pub(super) fn waitforone_waits_for_the_first(ctx: &mut Ctx) {
    let (s, at) = ctx.bound4();
    ctx.send_when_asleep(at, &[b"one"]);
    assert_eq!(payloads(&recv_mmsg(&s, 32, 100, libc::MSG_WAITFORONE, None).unwrap()), [b"one"]);
}

pub(super) fn dontwait_takes_what_is_there(ctx: &mut Ctx) {
    let s = queued(ctx, 5);
    assert_eq!(payloads(&recv_mmsg(&s, 32, 100, libc::MSG_DONTWAIT, None).unwrap()), numbers(0..5, 8));
}

pub(super) fn dontwait_says_eagain(ctx: &mut Ctx) {
    let s = queued(ctx, 1);
    assert_eq!(recv_mmsg(&s, 1, 100, 0, None).unwrap().len(), 1);
    assert_eq!(errno(recv_mmsg(&s, 4, 100, libc::MSG_DONTWAIT, None)), libc::EAGAIN);
}

/// `do_recvmmsg` looks at the clock only after a datagram.
pub(super) fn a_passed_timeout_ends_after_one(ctx: &mut Ctx) {
    let s = queued(ctx, 3);
    assert_eq!(recv_mmsg(&s, 3, 100, 0, Some(Duration::from_nanos(1))).unwrap().len(), 1);
    assert_eq!(recv_mmsg(&s, 3, 100, 0, Some(Duration::ZERO)).unwrap().len(), 1);
    assert_eq!(number_of(&sock::take(&s, 100, 0).unwrap()), 2);
}

pub(super) fn a_timeout_in_the_future_lets_a_batch_through(ctx: &mut Ctx) {
    let (s, at) = ctx.bound4();
    ctx.send_when_asleep(at, &[b"one", b"two"]);
    assert_eq!(recv_mmsg(&s, 2, 100, 0, Some(Duration::from_secs(20))).unwrap().len(), 2);
}

pub(super) fn peek_reads_the_same_over_and_over(ctx: &mut Ctx) {
    let s = queued(ctx, 2);
    let list = recv_mmsg(&s, 3, 100, libc::MSG_PEEK, None).unwrap();
    assert!(list.iter().all(|d| number_of(&d.bytes) == 0));
    assert_eq!(payloads(&recv_mmsg(&s, 2, 100, 0, None).unwrap()), numbers(0..2, 8));
}

pub(super) fn truncation_is_flagged_for_each(ctx: &mut Ctx) {
    let (s, at) = ctx.bound4();
    ctx.send(at, &[b"short", b"rather long"]);
    let list = recv_mmsg(&s, 2, 6, libc::MSG_TRUNC, None).unwrap();
    assert_eq!((list[0].len, list[0].flags), (5, 0));
    assert_eq!((list[1].len, list[1].flags), (11, libc::MSG_TRUNC));
}

pub(super) fn no_buffers_read_nothing(ctx: &mut Ctx) {
    let s = queued(ctx, 1);
    assert_eq!(recv_mmsg(&s, 0, 100, 0, None).unwrap().len(), 0);
    assert_eq!(recv_mmsg(&s, 1, 100, 0, None).unwrap().len(), 1);
}

pub(super) fn a_bad_timeout_is_einval(ctx: &mut Ctx) {
    let s = queued(ctx, 1);
    for nanoseconds in [-1, 1_000_000_000] {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: nanoseconds };
        // SAFETY: no messages, so the null list is not read; the time is a local.
        let result = unsafe { libc::recvmmsg(s.as_raw_fd(), null_mut(), 0, 0, &mut time) };
        assert_eq!((result, Error::last_os_error().raw_os_error()), (-1, Some(libc::EINVAL)));
    }
    assert_eq!(recv_mmsg(&s, 1, 100, 0, None).unwrap().len(), 1);
}
