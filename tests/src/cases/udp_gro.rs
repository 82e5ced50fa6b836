//! UDP_GRO. What merges is up to the receiver, so that natively and hoisted alike only what was merged must be told rightly.

use super::{Ctx, assert_empty, numbers};
use crate::{
    peer::{Payloads, Shot, number_of, numbered},
    sock::{self, Control, Message, recv_mmsg, recv_msg},
};
use std::{
    net::SocketAddr,
    os::fd::OwnedFd,
    sync::atomic::{AtomicU32, Ordering::SeqCst},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// Of a socket without its own size of receive buffer, so that no case overflows it.
const RCVBUF: i32 = 4 << 20;

/// One read.
struct Row {
    message: Message,
    bytes: Vec<u8>,
}

impl Row {
    /// The datagrams in it: by the length in the control message, or one.
    fn datagrams(&self) -> Vec<Vec<u8>> {
        split(&self.bytes, &self.message.control)
    }
}

fn segment(control: &[Control]) -> Option<usize> {
    let found = control.iter().find(|c| (c.level, c.kind) == (libc::SOL_UDP, libc::UDP_GRO))?;
    let size = i32::from_ne_bytes(found.data.as_slice().try_into().expect("an int"));
    Some(usize::try_from(size).expect("a length"))
}

fn split(bytes: &[u8], control: &[Control]) -> Vec<Vec<u8>> {
    match segment(control) {
        None => vec![bytes.to_vec()],
        Some(size) => {
            assert!(bytes.len() > size, "told of {size} bytes, but {} are one datagram", bytes.len());
            bytes.chunks(size).map(<[u8]>::to_vec).collect()
        }
    }
}

fn merging(s: &OwnedFd) {
    sock::set(s, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, RCVBUF).unwrap();
    sock::set(s, libc::SOL_UDP, libc::UDP_GRO, 1i32).unwrap();
}

fn merging4(ctx: &mut Ctx) -> (OwnedFd, SocketAddr) {
    let (s, at) = ctx.bound4();
    merging(&s);
    (s, at)
}

fn row(s: &OwnedFd, flags: i32) -> Row {
    let mut bytes = vec![0; 65_536];
    let (first, second) = bytes.split_at_mut(1_111);
    let message = recv_msg(s, &mut [first, second], 512, flags).unwrap();
    assert_eq!(message.flags, 0);
    bytes.truncate(message.len);
    Row { message, bytes }
}

/// Reads until `count` datagrams have come.
fn rows(s: &OwnedFd, count: usize) -> Vec<Row> {
    let (mut list, mut seen) = (Vec::new(), 0);
    while seen < count {
        let row = row(s, 0);
        seen += row.datagrams().len();
        list.push(row);
    }
    assert_eq!(seen, count);
    assert_empty(s);
    list
}

fn all(rows: &[Row]) -> Vec<Vec<u8>> {
    rows.iter().flat_map(Row::datagrams).collect()
}

/// Rows of equal lengths, some with a shorter end, and lengths that rise and fall; the first four bytes are numbers.
fn mixture() -> Vec<Vec<u8>> {
    let lengths = [1000; 50].into_iter().chain([500]).chain([1000; 30]).chain([4, 700, 701, 702, 701, 700]);
    lengths.chain([1472; 70]).chain([8; 100]).enumerate().map(|(i, len)| numbered(i as u32, len)).collect()
}

fn arrives(ctx: &mut Ctx, s: &OwnedFd, at: SocketAddr) {
    let sent = mixture();
    ctx.shoot(Shot { payloads: Payloads::List(sent.clone()), ..ctx.shot(at, &[]) });
    ctx.fence();
    let rows = rows(s, sent.len());
    assert!(rows.iter().all(|row| row.message.from == Some(ctx.from(at))));
    assert!(all(&rows) == sent, "{:?}", all(&rows).iter().map(Vec::len).collect::<Vec<_>>());
}

pub(super) fn payloads_and_boundaries_are_right(ctx: &mut Ctx) {
    let (s, at) = merging4(ctx);
    arrives(ctx, &s, at);
}

pub(super) fn the_same_over_ipv6(ctx: &mut Ctx) {
    let (s, at) = ctx.bound6();
    merging(&s);
    // an MTU of 1,500 holds 1,452 bytes
    let sent: Vec<_> = (0..90).map(|i| numbered(i, if i % 40 == 39 { 900 } else { 1452 })).collect();
    ctx.shoot(Shot { payloads: Payloads::List(sent.clone()), ..ctx.shot(at, &[]) });
    ctx.fence();
    assert_eq!(all(&rows(&s, sent.len())), sent);
}

fn segmented(ctx: &Ctx, at: SocketAddr) -> (Shot, Vec<Vec<u8>>) {
    let datagrams: Vec<_> = (0..11).map(|i| numbered(i, if i == 10 { 500 } else { 1000 })).collect();
    let payloads = Payloads::List(vec![datagrams.concat()]);
    (Shot { payloads, segment: Some(1000), ..ctx.shot(at, &[]) }, datagrams)
}

pub(super) fn what_a_sender_segmented_arrives(ctx: &mut Ctx) {
    let (s, at) = merging4(ctx);
    let (shot, datagrams) = segmented(ctx, at);
    ctx.shoot(shot);
    assert_eq!(all(&rows(&s, datagrams.len())), datagrams);
}

pub(super) fn a_batch_is_right(ctx: &mut Ctx) {
    let (s, at) = merging4(ctx);
    ctx.send_numbered(at, 0, 200, 600);
    ctx.fence();
    let mut seen = Vec::new();
    while seen.len() < 200 {
        let batch = recv_mmsg(&s, 4, 65_536, libc::MSG_WAITFORONE, None).unwrap();
        assert!(batch.iter().all(|d| d.flags == 0));
        seen.extend(batch.iter().flat_map(|d| split(&d.bytes, &d.control)));
    }
    assert_eq!(seen, numbers(0..200, 600));
}

pub(super) fn senders_do_not_mix(ctx: &mut Ctx) {
    let (s, at) = merging4(ctx);
    for i in 0..60 {
        let from = ctx.from_port(at, 31_000 + (i % 5 / 2) as u16);
        let payload = numbered(i, 300);
        ctx.shoot(Shot { from, ..ctx.shot(at, &[&payload]) });
    }
    ctx.fence();
    for row in rows(&s, 60) {
        let port = row.message.from.unwrap().port();
        let sender = |bytes: &Vec<u8>| 31_000 + (number_of(bytes) % 5 / 2) as u16;
        assert!(row.datagrams().iter().all(|bytes| sender(bytes) == port));
    }
}

pub(super) fn congestion_marks_do_not_mix(ctx: &mut Ctx) {
    let (s, at) = merging4(ctx);
    sock::set(&s, libc::IPPROTO_IP, libc::IP_RECVTOS, 1i32).unwrap();
    let tos = |i: u32| if i % 3 == 0 { 3 } else { 2 };
    for i in 0..60 {
        ctx.shoot(Shot { tos: Some(tos(i)), ..ctx.shot(at, &[&numbered(i, 300)]) });
    }
    ctx.fence();
    let rows = rows(&s, 60);
    for row in &rows {
        let marked = i32::from(row.message.value::<u8>(libc::IPPROTO_IP, libc::IP_TOS));
        assert!(row.datagrams().iter().all(|bytes| tos(number_of(bytes)) == marked));
    }
    assert_eq!(all(&rows).len(), 60);
}

/// `udp_gro_receive_segment` lets an empty datagram overtake what it holds of the flow, so only the others have an order.
pub(super) fn empty_datagrams_stay_alone(ctx: &mut Ctx) {
    let (s, at) = merging4(ctx);
    let sent: Vec<_> = (0..60).map(|i| if i % 7 == 3 { Vec::new() } else { numbered(i, 100) }).collect();
    ctx.shoot(Shot { payloads: Payloads::List(sent.clone()), ..ctx.shot(at, &[]) });
    ctx.fence();
    let full = |list: Vec<Vec<u8>>| list.into_iter().filter(|bytes| !bytes.is_empty()).collect::<Vec<_>>();
    assert_eq!(full(all(&rows(&s, 60))), full(sent));
}

pub(super) fn the_time_is_the_first_ones(ctx: &mut Ctx) {
    let clock = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let (s, at) = merging4(ctx);
    sock::set(&s, libc::SOL_SOCKET, libc::SO_TIMESTAMPNS, 1i32).unwrap();
    sock::set(&s, libc::IPPROTO_IP, libc::IP_RECVTTL, 1i32).unwrap();
    let mut last = clock();
    ctx.send_numbered(at, 0, 200, 100);
    ctx.fence();
    for row in rows(&s, 200) {
        let time: libc::timespec = row.message.value(libc::SOL_SOCKET, libc::SO_TIMESTAMPNS);
        let time = Duration::new(time.tv_sec as u64, time.tv_nsec as u32);
        assert!((last..=clock()).contains(&time), "{last:?} {time:?}");
        assert_eq!(row.message.value::<i32>(libc::IPPROTO_IP, libc::IP_TTL), 64);
        last = time;
    }
}

pub(super) fn a_peek_shows_what_the_read_takes(ctx: &mut Ctx) {
    let (s, at) = merging4(ctx);
    ctx.send_numbered(at, 0, 100, 500);
    ctx.fence();
    let mut seen = 0;
    while seen < 100 {
        let peeked = [row(&s, libc::MSG_PEEK), row(&s, libc::MSG_PEEK)];
        let taken = row(&s, 0);
        for peeked in peeked {
            assert_eq!(peeked.datagrams(), taken.datagrams());
        }
        seen += taken.datagrams().len();
    }
    assert_empty(&s);
}

pub(super) fn fionread_tells_what_the_read_takes(ctx: &mut Ctx) {
    let (s, at) = merging4(ctx);
    ctx.send_numbered(at, 0, 100, 500);
    ctx.fence();
    let mut seen = 0;
    while seen < 100 {
        let told = sock::fionread(&s).unwrap();
        let taken = row(&s, 0);
        assert_eq!(told as usize, taken.bytes.len());
        seen += taken.datagrams().len();
    }
    assert_eq!(sock::fionread(&s).unwrap(), 0);
}

pub(super) fn without_control_no_byte_is_lost(ctx: &mut Ctx) {
    let (s, at) = merging4(ctx);
    ctx.send_numbered(at, 0, 80, 800);
    ctx.fence();
    let (mut seen, expected) = (Vec::new(), numbers(0..80, 800).concat());
    while seen.len() < expected.len() {
        seen.extend(sock::take(&s, 65_536, 0).unwrap());
    }
    assert!(seen == expected);
    assert_empty(&s);
}

pub(super) fn switched_off_they_come_alone(ctx: &mut Ctx) {
    let (s, at) = merging4(ctx);
    sock::set(&s, libc::SOL_UDP, libc::UDP_GRO, 0i32).unwrap();
    ctx.send_numbered(at, 0, 80, 800);
    ctx.fence();
    let rows = rows(&s, 80);
    assert_eq!(rows.len(), 80);
    assert!(rows.iter().all(|row| row.message.control.is_empty()));
}

const TOTAL: u32 = 4_000;
const BATCH: u32 = 100;

/// Reads numbers until the end mark; the numbers of one read have no gap.
fn read_to_end(s: &OwnedFd, seen: &AtomicU32) -> Vec<u32> {
    let mut list = Vec::new();
    loop {
        let datagrams = row(s, 0).datagrams();
        let numbers: Vec<_> = datagrams.iter().filter(|d| d.len() == 64).map(|d| number_of(d)).collect();
        assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "a gap in {numbers:?}");
        seen.fetch_add(numbers.len() as u32, SeqCst);
        list.extend(numbers);
        if datagrams.iter().any(|d| d.len() != 64) {
            return list;
        }
    }
}

/// End marks are longer than what they follow, so that each ends a row of its own.
pub(super) fn two_readers_take_rows_without_gaps(ctx: &mut Ctx) {
    let (s, at) = merging4(ctx);
    let seen = AtomicU32::new(0);
    let lists = std::thread::scope(|scope| {
        let readers = [(); 2].map(|()| scope.spawn(|| read_to_end(&s, &seen)));
        for first in (0..TOTAL).step_by(BATCH as usize) {
            ctx.send_numbered(at, first, BATCH, 64);
            while seen.load(SeqCst) < first {
                std::thread::yield_now();
            }
        }
        ctx.send(at, &[&[0; 65], &[0; 66]]);
        readers.map(|reader| reader.join().unwrap())
    });
    let mut all = lists.concat();
    all.sort_unstable();
    assert_eq!(all, (0..TOTAL).collect::<Vec<_>>());
}

/// Hoisted only: natively a veth merges what one NAPI poll sees.
pub(super) fn what_waits_is_one(ctx: &mut Ctx) {
    let (s, at) = merging4(ctx);
    let sent = numbers(0..100, 1_000);
    ctx.send_numbered(at, 0, 100, 1_000);
    ctx.fence();
    let rows = rows(&s, 100);
    assert_eq!(all(&rows), sent);
    // 64 at most by count, or by length; the 64th lifted datagram gives the kernel's queue its turn
    assert_eq!(rows.iter().map(|row| row.datagrams().len()).collect::<Vec<_>>(), [64, 36]);
}

/// Hoisted only: natively a merged datagram that is longer than the buffer is cut.
pub(super) fn only_what_fits(ctx: &mut Ctx) {
    let (s, at) = merging4(ctx);
    ctx.send_numbered(at, 0, 5, 1_000);
    ctx.send(at, &[&[7; 1_001]]);
    ctx.fence();
    let mut buffer = [0; 2_500];
    for (len, told) in [(2_000, Some(1_000)), (2_000, Some(1_000)), (1_000, None), (1_001, None)] {
        let message = recv_msg(&s, &mut [&mut buffer], 512, libc::MSG_TRUNC).unwrap();
        assert_eq!((message.len, message.flags, segment(&message.control)), (len, 0, told));
    }
    assert_empty(&s);
}

/// On a device that takes a sender's segments whole: natively they cross it as one, hoisted they are merged again.
pub(super) fn segments_stay_together(ctx: &mut Ctx) {
    let (s, at) = merging4(ctx);
    let (shot, datagrams) = segmented(ctx, at);
    ctx.shoot(shot);
    ctx.fence();
    let rows = rows(&s, datagrams.len());
    assert_eq!(rows.len(), 1);
    assert_eq!(segment(&rows[0].message.control), Some(1_000));
    assert_eq!(rows[0].datagrams(), datagrams);
}
