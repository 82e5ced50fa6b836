//! SO_RCVBUF bounds what waits; SO_RXQ_OVFL counts what did not fit.

use super::{Ctx, drain};
use crate::{
    peer::number_of,
    sock::{self, recv_msg},
};
use std::{net::SocketAddr, os::fd::OwnedFd};

const FLOOD: u32 = 10_000;
const BATCH: u32 = 500;

fn bounded(ctx: &mut Ctx, bytes: i32) -> (OwnedFd, SocketAddr) {
    let (s, at) = ctx.bound4();
    sock::set(&s, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, bytes).unwrap();
    (s, at)
}

/// Sends `FLOOD` datagrams while the process reads another socket, then reads what is left of them, in order.
fn flood(ctx: &mut Ctx, s: &OwnedFd, at: SocketAddr) -> u32 {
    for first in (0..FLOOD).step_by(BATCH as usize) {
        ctx.send_numbered(at, first, BATCH, 100);
        ctx.fence();
    }
    kept(s)
}

fn kept(s: &OwnedFd) -> u32 {
    let kept: Vec<u32> = drain(s).iter().map(|bytes| number_of(bytes)).collect();
    assert!(kept.is_sorted_by(|a, b| a < b), "out of order");
    kept.len() as u32
}

/// The drops that a datagram sent after them tells of.
fn dropped(ctx: &mut Ctx, s: &OwnedFd, at: SocketAddr) -> u32 {
    ctx.send(at, &[b"next"]);
    recv_msg(s, &mut [&mut [0; 200]], 64, 0).unwrap().value(libc::SOL_SOCKET, sock::SO_RXQ_OVFL)
}

pub(super) fn a_full_queue_drops_and_counts(ctx: &mut Ctx) {
    let (s, at) = bounded(ctx, 65_536);
    sock::set(&s, libc::SOL_SOCKET, sock::SO_RXQ_OVFL, 1i32).unwrap();
    let kept = flood(ctx, &s, at);
    assert!((16..FLOOD / 2).contains(&kept), "{kept} of {FLOOD} kept by 64 KiB");
    assert_eq!(kept + dropped(ctx, &s, at), FLOOD);
}

/// Where such a burst overflows first is not the socket's business; that it does, and says so, is.
pub(super) fn a_burst_nobody_waits_for_is_bounded(ctx: &mut Ctx) {
    let (s, at) = bounded(ctx, 65_536);
    sock::set(&s, libc::SOL_SOCKET, sock::SO_RXQ_OVFL, 1i32).unwrap();
    ctx.send_numbered(at, 0, FLOOD, 100);
    ctx.fence();
    let kept = kept(&s);
    assert!((16..FLOOD / 2).contains(&kept), "{kept} of {FLOOD} kept by 64 KiB");
    let dropped = dropped(ctx, &s, at);
    assert!(dropped > 0 && kept + dropped <= FLOOD, "{kept} kept, {dropped} dropped");
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
    for i in 0..FLOOD / BATCH {
        ctx.send_numbered(at, i * BATCH, BATCH, 100);
        ctx.send_numbered(other_at, i, 1, 100);
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
