//! SO_RCVBUF bounds what waits; SO_RXQ_OVFL counts what did not fit.

use super::{Ctx, drain};
use crate::{
    peer::number_of,
    sock::{self, recv_msg},
};
use std::{net::SocketAddr, os::fd::OwnedFd};

const FLOOD: u32 = 10_000;

fn bounded(ctx: &mut Ctx, bytes: i32) -> (OwnedFd, SocketAddr) {
    let (s, at) = ctx.bound4();
    sock::set(&s, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, bytes).unwrap();
    (s, at)
}

/// Sends `FLOOD` datagrams, waits for their end and reads what is left of them: the first ones, in order.
fn flood(ctx: &mut Ctx, s: &OwnedFd, at: SocketAddr) -> u32 {
    ctx.send_numbered(at, 0, FLOOD, 100);
    ctx.fence();
    let kept: Vec<u32> = drain(s).iter().map(|bytes| number_of(bytes)).collect();
    assert!(kept.is_sorted_by(|a, b| a < b), "out of order");
    kept.len() as u32
}

pub(super) fn a_full_queue_drops_and_counts(ctx: &mut Ctx) {
    let (s, at) = bounded(ctx, 65_536);
    sock::set(&s, libc::SOL_SOCKET, sock::SO_RXQ_OVFL, 1i32).unwrap();
    let kept = flood(ctx, &s, at);
    assert!((16..FLOOD / 2).contains(&kept), "{kept} of {FLOOD} kept by 64 KiB");
    ctx.send(at, &[b"next"]);
    let dropped: u32 =
        recv_msg(&s, &mut [&mut [0; 200]], 64, 0).unwrap().value(libc::SOL_SOCKET, sock::SO_RXQ_OVFL);
    assert_eq!(kept + dropped, FLOOD);
}

pub(super) fn a_drained_queue_takes_more(ctx: &mut Ctx) {
    let (s, at) = bounded(ctx, 65_536);
    let first = flood(ctx, &s, at);
    let second = flood(ctx, &s, at);
    assert!(second >= first / 2, "{first} kept, then {second}");
}

pub(super) fn one_full_queue_leaves_another_alone(ctx: &mut Ctx) {
    let (full, at) = bounded(ctx, 65_536);
    let (other, other_at) = ctx.bound4();
    ctx.send_numbered(at, 0, FLOOD, 100);
    ctx.send_numbered(other_at, 0, 50, 100);
    for i in 0..50 {
        assert_eq!(number_of(&sock::take(&other, 200, 0).unwrap()), i);
    }
    assert!(!drain(&full).is_empty());
}

pub(super) fn a_larger_buffer_holds_more(ctx: &mut Ctx) {
    let (small, small_at) = bounded(ctx, 65_536);
    let (large, large_at) = bounded(ctx, 4 * 65_536);
    let (few, many) = (flood(ctx, &small, small_at), flood(ctx, &large, large_at));
    assert!(many >= 2 * few, "{few} in 64 KiB, {many} in 256 KiB");
}
