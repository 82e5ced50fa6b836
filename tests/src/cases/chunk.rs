//! The native API: chunks of datagrams, lent where they were lifted and copied where not.

use super::{Ctx, numbers, process};
use crate::{peer::number_of, sock};
use hoist::{Chunk, UdpSocket, is_hoisted};
use std::{io::ErrorKind, mem, net::SocketAddr, sync::mpsc, thread};

const BATCH: u32 = 100;

/// A socket through which one datagram has come: from the next one on it is lifted, with `--spin-us` too.
fn used(ctx: &mut Ctx) -> (UdpSocket, SocketAddr) {
    let at = ctx.address4();
    let s = UdpSocket::bind(at).unwrap();
    ctx.send(at, &[b"first"]);
    assert_eq!(&s.recv_chunk().unwrap().0[..], b"first");
    (s, at)
}

/// The chunks of `count` datagrams that have just been sent.
fn chunks(ctx: &mut Ctx, (s, at): &(UdpSocket, SocketAddr), first: u32, count: u32) -> Vec<Chunk> {
    let mut list = Vec::new();
    for first in (first..first + count).step_by(BATCH as usize) {
        ctx.send_numbered(*at, first, BATCH, 500);
        list.extend((0..BATCH).map(|_| s.recv_chunk().unwrap().0));
    }
    list
}

/// Makes every frame that is free receive something else.
fn churn(ctx: &mut Ctx, socket: &(UdpSocket, SocketAddr)) {
    let count = 10_000;
    for (i, chunk) in (1 << 20..).zip(chunks(ctx, socket, 1 << 20, count)) {
        assert_eq!(number_of(&chunk), i);
    }
}

fn borrowed(chunks: &[Chunk]) -> usize {
    chunks.iter().filter(|chunk| chunk.is_borrowed()).count()
}

pub(super) fn a_lifted_datagram_is_lent(ctx: &mut Ctx) {
    let (s, at) = used(ctx);
    ctx.send(at, &[b"one", b"two"]);
    let ((one, from), (two, _)) = (s.recv_chunk().unwrap(), s.recv_chunk().unwrap());
    assert_eq!((&one[..], &two[..], from), (&b"one"[..], &b"two"[..], ctx.from(at)));
    assert_eq!([one.is_borrowed(), two.is_borrowed()], [is_hoisted(); 2]);
    assert_eq!(one.into_vec(), b"one");
}

pub(super) fn every_size_arrives_whole(ctx: &mut Ctx) {
    let (s, at) = used(ctx);
    for len in (4..1_472).step_by(7) {
        ctx.send_numbered(at, len, 1, len as usize);
        let (chunk, _) = s.recv_chunk().unwrap();
        assert_eq!((chunk.len(), number_of(&chunk)), (len as usize, len));
    }
}

pub(super) fn an_empty_datagram_is_one(ctx: &mut Ctx) {
    let (s, at) = used(ctx);
    ctx.send(at, &[b"", b"after"]);
    let (chunk, from) = s.recv_chunk().unwrap();
    assert_eq!((chunk.len(), chunk.is_borrowed(), from), (0, false, ctx.from(at)));
    assert_eq!(&s.recv_chunk().unwrap().0[..], b"after");
}

pub(super) fn senders_of_ipv6_are_told(ctx: &mut Ctx) {
    let at = ctx.address6();
    let s = UdpSocket::bind(at).unwrap();
    ctx.send(at, &[b"six"]);
    let (chunk, from) = s.recv_chunk().unwrap();
    assert_eq!((&chunk[..], from), (&b"six"[..], ctx.from(at)));
}

pub(super) fn a_stream_read_cuts_a_datagram(ctx: &mut Ctx) {
    let (s, at) = used(ctx);
    ctx.send(at, &[b"cut here", b"gone", b"next"]);
    assert_eq!(&hoist::recv_chunk(&s, 3).unwrap()[..], b"cut");
    assert!(hoist::recv_chunk(&s, 0).unwrap().is_empty());
    assert_eq!(&hoist::recv_chunk(&s, 100).unwrap()[..], b"next");
}

pub(super) fn chunks_and_reads_take_turns(ctx: &mut Ctx) {
    let (s, at) = used(ctx);
    ctx.send_numbered(at, 0, 3, 100);
    assert_eq!(number_of(&s.recv_chunk().unwrap().0), 0);
    assert_eq!(number_of(&sock::take(&s, 200, libc::MSG_PEEK).unwrap()), 1);
    assert_eq!(number_of(&s.recv_chunk().unwrap().0), 1);
    assert_eq!(number_of(&sock::take(&s, 200, 0).unwrap()), 2);
}

pub(super) fn nothing_there_is_would_block(ctx: &mut Ctx) {
    let (s, at) = used(ctx);
    s.set_nonblocking(true).unwrap();
    assert_eq!(s.recv_chunk().unwrap_err().kind(), ErrorKind::WouldBlock);
    ctx.send(at, &[b"there"]);
    sock::wait_readable(&s);
    assert_eq!(&s.recv_chunk().unwrap().0[..], b"there");
    s.set_nonblocking(false).unwrap();
    sock::set_timeout(&s, std::time::Duration::from_millis(50));
    assert_eq!(s.recv_chunk().unwrap_err().kind(), ErrorKind::WouldBlock);
}

pub(super) fn a_blocked_reader_wakes_up(ctx: &mut Ctx) {
    let (s, at) = used(ctx);
    ctx.send_when_asleep(at, &[b"wake"]);
    assert_eq!(&s.recv_chunk().unwrap().0[..], b"wake");
    ctx.finish();
}

pub(super) fn a_fragmented_datagram_is_a_copy(ctx: &mut Ctx) {
    let (s, at) = used(ctx);
    ctx.send_numbered(at, 7, 1, 10_000);
    let (chunk, from) = s.recv_chunk().unwrap();
    assert_eq!((chunk.len(), number_of(&chunk), from), (10_000, 7, ctx.from(at)));
    assert!(!chunk.is_borrowed());
    ctx.send(at, &[b"whole"]);
    assert_eq!(s.recv_chunk().unwrap().0.is_borrowed(), is_hoisted());
}

/// More chunks than there are frames: the first ones are lent, later ones copied, nothing is lost, and when they are dropped
/// lending goes on.
pub(super) fn a_keeper_of_chunks_starves_nobody(ctx: &mut Ctx) {
    let socket = used(ctx);
    let kept = chunks(ctx, &socket, 0, 10_000);
    let list: Vec<_> = kept.iter().map(|chunk| number_of(chunk)).collect();
    assert_eq!(list, (0..10_000).collect::<Vec<_>>());
    let lent = borrowed(&kept);
    assert!(lent < 5_000 && (lent > 500) == is_hoisted(), "{lent} of 10,000 lent");
    drop(kept);
    drop(chunks(ctx, &socket, 0, BATCH));
    assert_eq!(borrowed(&chunks(ctx, &socket, 0, BATCH)) > 90, is_hoisted());
}

pub(super) fn chunks_outlive_their_socket(ctx: &mut Ctx) {
    let ((socket, at), other) = (used(ctx), used(ctx));
    let mut kept = chunks(ctx, &(socket, at), 0, BATCH);
    kept.truncate(50);
    churn(ctx, &other);
    let bytes: Vec<_> = kept.into_iter().map(Chunk::into_vec).collect();
    assert_eq!(bytes, numbers(0..50, 500));
}

pub(super) fn another_thread_gives_chunks_back(ctx: &mut Ctx) {
    let socket = used(ctx);
    let (sender, receiver) = mpsc::channel::<Chunk>();
    let other = thread::spawn(move || receiver.iter().map(|chunk| u64::from(number_of(&chunk))).sum::<u64>());
    for first in (0..20_000).step_by(BATCH as usize) {
        chunks(ctx, &socket, first, BATCH).into_iter().for_each(|chunk| sender.send(chunk).unwrap());
    }
    drop(sender);
    assert_eq!(other.join().unwrap(), (0..20_000).sum::<u64>());
}

/// The parent gives its chunk back and the frame is written anew, but the child's bytes stay.
pub(super) fn a_forked_child_keeps_its_chunks(ctx: &mut Ctx) {
    let socket = used(ctx);
    let kept = chunks(ctx, &socket, 0, BATCH);
    let (go, told) = sock::pipe();
    let pid = process::fork(|| {
        sock::read(&go, &mut [0]).unwrap();
        (0..).zip(&kept).for_each(|(i, chunk)| assert_eq!(number_of(chunk), i));
    });
    drop(kept);
    let fresh = used(ctx);
    churn(ctx, &fresh);
    sock::write(&told, &[1]).unwrap();
    process::assert_child_succeeds(pid);
    churn(ctx, &fresh);
}

pub(super) fn a_program_may_end_with_chunks(ctx: &mut Ctx) {
    let socket = used(ctx);
    chunks(ctx, &socket, 0, BATCH).into_iter().for_each(mem::forget);
}
