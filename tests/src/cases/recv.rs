//! recv, recvfrom, recvmsg, read, readv and their flags.

use super::{Ctx, assert_empty};
use crate::{
    peer::{number_of, numbered},
    sock::{self, errno},
};
use std::{
    io::Error,
    ptr::null_mut,
    time::{Duration, Instant},
};

const WAIT: Duration = Duration::from_millis(150);

pub(super) fn recv_takes_one_datagram(ctx: &mut Ctx) {
    let (s, at) = ctx.bound4();
    ctx.send(at, &[b"one", b"two"]);
    assert_eq!(sock::take(&s, 100, 0).unwrap(), b"one");
    assert_eq!(sock::take(&s, 100, 0).unwrap(), b"two");
}

pub(super) fn recvfrom_tells_the_sender(ctx: &mut Ctx) {
    let (s, at) = ctx.bound4();
    ctx.send(at, &[b"hello"]);
    let mut buffer = [0; 100];
    assert_eq!(sock::recv_from(&s, &mut buffer, 0).unwrap(), (5, ctx.from(at)));
    assert_eq!(&buffer[..6], b"hello\0");
}

pub(super) fn recvfrom_without_an_address_works(ctx: &mut Ctx) {
    let (s, at) = ctx.bound4();
    ctx.send(at, &[b"hello"]);
    assert_eq!(recvfrom_raw(&s, &mut [0; 100], null_mut(), null_mut()), 5);
}

pub(super) fn recvfrom_cuts_the_address_and_tells_its_length(ctx: &mut Ctx) {
    let (s, at) = ctx.bound4();
    ctx.send(at, &[b"hello"]);
    let (mut address, mut len) = ([0xeeu8; 16], 4u32);
    assert_eq!(recvfrom_raw(&s, &mut [0; 100], address.as_mut_ptr().cast(), &mut len), 5);
    assert_eq!(len, 16);
    assert_eq!(address[..4], [2, 0, 0x75, 0x30]); // AF_INET, port 30000
    assert_eq!(address[4..], [0xee; 12]);
}

fn recvfrom_raw(
    s: &impl std::os::fd::AsRawFd,
    buffer: &mut [u8],
    address: *mut libc::sockaddr,
    len: *mut u32,
) -> isize {
    // SAFETY: pointer and length describe `buffer`; address and len are null or point to the caller's locals.
    unsafe { libc::recvfrom(s.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), 0, address, len) }
}

pub(super) fn recvmsg_scatters_over_buffers(ctx: &mut Ctx) {
    let (s, at) = ctx.bound4();
    ctx.send(at, &[b"hello world"]);
    let (mut a, mut b, mut c) = ([0; 3], [0; 5], [0; 20]);
    let m = sock::recv_msg(&s, &mut [&mut a, &mut [], &mut b, &mut c], 0, 0).unwrap();
    assert_eq!((m.len, m.flags, m.from, m.name_len), (11, 0, Some(ctx.from(at)), 16));
    assert_eq!([&a[..], &b[..], &c[..3]].concat(), b"hello world");
}

pub(super) fn read_takes_one_datagram(ctx: &mut Ctx) {
    let (s, at) = ctx.bound4();
    ctx.send(at, &[b"hello", b"again"]);
    let mut buffer = [0; 100];
    assert_eq!(sock::read(&s, &mut buffer).unwrap(), 5);
    assert_eq!(&buffer[..5], b"hello");
    assert_eq!(sock::read(&s, &mut buffer[..2]).unwrap(), 2);
    assert_empty(&s);
}

pub(super) fn readv_scatters_over_buffers(ctx: &mut Ctx) {
    let (s, at) = ctx.bound4();
    ctx.send(at, &[b"hello world"]);
    let (mut a, mut b) = ([0; 4], [0; 100]);
    assert_eq!(sock::readv(&s, &mut [&mut a, &mut b]).unwrap(), 11);
    assert_eq!((&a[..], &b[..7]), (&b"hell"[..], &b"o world"[..]));
}

pub(super) fn raw_syscall_reads_the_same(ctx: &mut Ctx) {
    use std::os::fd::AsRawFd;
    let (s, at) = ctx.bound4();
    ctx.send(at, &[b"hello", b"again"]);
    sock::wait_readable(&s);
    let mut buffer = [0u8; 100];
    let (fd, to) = (s.as_raw_fd(), buffer.as_mut_ptr());
    // SAFETY: recvfrom(2) with a buffer of 100 bytes and no address.
    let len = unsafe { libc::syscall(libc::SYS_recvfrom, fd, to, 100usize, 0, 0usize, 0usize) };
    assert_eq!((len, &buffer[..5]), (5, &b"hello"[..]), "{}", Error::last_os_error());
    // SAFETY: read(2) with a buffer of 100 bytes.
    let len = unsafe { libc::syscall(libc::SYS_read, fd, to, 100usize) };
    assert_eq!((len, &buffer[..5]), (5, &b"again"[..]), "{}", Error::last_os_error());
}

pub(super) fn a_blocked_recv_wakes_up(ctx: &mut Ctx) {
    let (s, at) = ctx.bound4();
    for round in 0..20u8 {
        ctx.send_when_asleep(at, &[&[round]]);
        assert_eq!(sock::take(&s, 100, 0).unwrap(), [round]);
        ctx.finish();
    }
}

pub(super) fn a_blocked_read_wakes_up(ctx: &mut Ctx) {
    let (s, at) = ctx.bound4();
    ctx.send_when_asleep(at, &[b"hello"]);
    assert_eq!(sock::read(&s, &mut [0; 100]).unwrap(), 5);
}

pub(super) fn peek_leaves_the_datagram(ctx: &mut Ctx) {
    let (s, at) = ctx.bound4();
    ctx.send(at, &[b"one", b"two"]);
    for _ in 0..3 {
        assert_eq!(sock::take(&s, 100, libc::MSG_PEEK).unwrap(), b"one");
    }
    let mut buffer = [0; 2];
    assert_eq!(sock::recv_from(&s, &mut buffer, libc::MSG_PEEK).unwrap(), (2, ctx.from(at)));
    assert_eq!(sock::take(&s, 100, 0).unwrap(), b"one");
    assert_eq!(sock::take(&s, 100, 0).unwrap(), b"two");
}

pub(super) fn peek_with_trunc_measures(ctx: &mut Ctx) {
    let (s, at) = ctx.bound4();
    ctx.send(at, &[&[7; 1000]]);
    assert_eq!(sock::recv(&s, &mut [], libc::MSG_PEEK | libc::MSG_TRUNC).unwrap(), 1000);
    assert_eq!(sock::take(&s, 2000, 0).unwrap(), [7; 1000]);
}

pub(super) fn trunc_tells_the_real_length(ctx: &mut Ctx) {
    let (s, at) = ctx.bound4();
    ctx.send(at, &[b"hello world", b"next"]);
    let mut buffer = [0; 5];
    assert_eq!(sock::recv(&s, &mut buffer, libc::MSG_TRUNC).unwrap(), 11);
    assert_eq!(&buffer, b"hello");
    assert_eq!(sock::take(&s, 100, 0).unwrap(), b"next");
}

pub(super) fn truncation_is_flagged_and_the_rest_is_gone(ctx: &mut Ctx) {
    let (s, at) = ctx.bound4();
    ctx.send(at, &[b"hello world", b"hello world", b"next"]);
    let mut buffer = [0; 5];
    let m = sock::recv_msg(&s, &mut [&mut buffer], 0, 0).unwrap();
    assert_eq!((m.len, m.flags), (5, libc::MSG_TRUNC));
    let m = sock::recv_msg(&s, &mut [&mut buffer], 0, libc::MSG_TRUNC).unwrap();
    assert_eq!((m.len, m.flags), (11, libc::MSG_TRUNC));
    let m = sock::recv_msg(&s, &mut [&mut buffer], 0, 0).unwrap();
    assert_eq!((m.len, m.flags), (4, 0));
}

pub(super) fn dontwait_says_eagain(ctx: &mut Ctx) {
    let (s, at) = ctx.bound4();
    assert_empty(&s);
    ctx.send(at, &[b"hello"]);
    assert_eq!(sock::take(&s, 100, 0).unwrap(), b"hello");
    assert_empty(&s);
}

pub(super) fn dontwait_takes_what_is_there(ctx: &mut Ctx) {
    let (s, at) = ctx.bound4();
    ctx.send(at, &[b"hello"]);
    sock::wait_readable(&s);
    assert_eq!(sock::take(&s, 100, libc::MSG_DONTWAIT).unwrap(), b"hello");
}

pub(super) fn waitall_returns_one_datagram(ctx: &mut Ctx) {
    let (s, at) = ctx.bound4();
    ctx.send(at, &[b"hello", b"world"]);
    assert_eq!(sock::take(&s, 100, libc::MSG_WAITALL).unwrap(), b"hello");
    assert_eq!(sock::take(&s, 100, libc::MSG_WAITALL).unwrap(), b"world");
}

pub(super) fn an_empty_datagram_is_one(ctx: &mut Ctx) {
    let (s, at) = ctx.bound4();
    ctx.send(at, &[b"", b"x", b""]);
    assert_eq!(sock::recv_from(&s, &mut [0; 10], 0).unwrap(), (0, ctx.from(at)));
    assert_eq!(sock::read(&s, &mut [0; 10]).unwrap(), 1);
    sock::wait_readable(&s);
    assert_eq!(sock::fionread(&s).unwrap(), 0);
    assert_eq!(sock::recv(&s, &mut [0; 10], 0).unwrap(), 0);
    assert_empty(&s);
}

pub(super) fn an_empty_buffer_takes_a_datagram(ctx: &mut Ctx) {
    let (s, at) = ctx.bound4();
    ctx.send(at, &[b"one", b"two", b"three"]);
    assert_eq!(sock::recv(&s, &mut [], 0).unwrap(), 0);
    let m = sock::recv_msg(&s, &mut [], 0, 0).unwrap();
    assert_eq!((m.len, m.flags), (0, libc::MSG_TRUNC));
    assert_eq!(sock::take(&s, 100, 0).unwrap(), b"three");
}

/// `sock_read_iter` returns at once for a length of zero.
pub(super) fn a_read_of_nothing_takes_nothing(ctx: &mut Ctx) {
    let (s, at) = ctx.bound4();
    assert_eq!(sock::read(&s, &mut []).unwrap(), 0);
    ctx.send(at, &[b"hello"]);
    sock::wait_readable(&s);
    assert_eq!(sock::read(&s, &mut []).unwrap(), 0);
    assert_eq!(sock::readv(&s, &mut [&mut [], &mut []]).unwrap(), 0);
    assert_eq!(sock::take(&s, 100, 0).unwrap(), b"hello");
}

pub(super) fn rcvtimeo_ends_a_recv(ctx: &mut Ctx) {
    let (s, at) = ctx.bound4();
    ctx.send(at, &[b"hello"]);
    assert_eq!(sock::take(&s, 100, 0).unwrap(), b"hello");
    sock::set_timeout(&s, WAIT);
    let start = Instant::now();
    assert_eq!(errno(sock::take(&s, 100, 0)), libc::EAGAIN);
    assert!((WAIT..10 * WAIT).contains(&start.elapsed()), "{:?}", start.elapsed());
    assert_eq!(errno(sock::read(&s, &mut [0; 10])), libc::EAGAIN);
}

pub(super) fn rcvtimeo_lets_a_datagram_through(ctx: &mut Ctx) {
    let (s, at) = ctx.bound4();
    sock::set_timeout(&s, Duration::from_secs(10));
    let start = Instant::now();
    ctx.send_when_asleep(at, &[b"hello"]);
    assert_eq!(sock::take(&s, 100, 0).unwrap(), b"hello");
    assert!(start.elapsed() < Duration::from_secs(5));
}

pub(super) fn nonblocking_by_socket(ctx: &mut Ctx) {
    let at = ctx.address4();
    let s = sock::udp(libc::AF_INET, libc::SOCK_NONBLOCK).unwrap();
    sock::bind(&s, at).unwrap();
    assert_eq!(errno(sock::take(&s, 100, 0)), libc::EAGAIN);
    assert_eq!(errno(sock::read(&s, &mut [0; 10])), libc::EAGAIN);
    ctx.send(at, &[b"hello"]);
    sock::wait_readable(&s);
    assert_eq!(sock::take(&s, 100, 0).unwrap(), b"hello");
}

pub(super) fn nonblocking_by_fcntl_and_back(ctx: &mut Ctx) {
    let (s, at) = ctx.bound4();
    let flags = sock::fcntl(&s, libc::F_GETFL, 0).unwrap();
    sock::fcntl(&s, libc::F_SETFL, flags | libc::O_NONBLOCK).unwrap();
    assert_eq!(errno(sock::take(&s, 100, 0)), libc::EAGAIN);
    sock::fcntl(&s, libc::F_SETFL, flags).unwrap();
    ctx.send_when_asleep(at, &[b"hello"]);
    assert_eq!(sock::take(&s, 100, 0).unwrap(), b"hello");
}

pub(super) fn nonblocking_by_ioctl_and_back(ctx: &mut Ctx) {
    let (s, at) = ctx.bound4();
    sock::fionbio(&s, true).unwrap();
    assert_eq!(errno(sock::take(&s, 100, 0)), libc::EAGAIN);
    sock::fionbio(&s, false).unwrap();
    ctx.send_when_asleep(at, &[b"hello"]);
    assert_eq!(sock::take(&s, 100, 0).unwrap(), b"hello");
}

pub(super) fn fionread_tells_the_next_length(ctx: &mut Ctx) {
    let (s, at) = ctx.bound4();
    assert_eq!(sock::fionread(&s).unwrap(), 0);
    ctx.send(at, &[b"hello", b"worlds"]);
    sock::wait_readable(&s);
    assert_eq!(sock::fionread(&s).unwrap(), 5);
    sock::take(&s, 100, 0).unwrap();
    sock::wait_readable(&s);
    assert_eq!(sock::fionread(&s).unwrap(), 6);
    sock::take(&s, 100, 0).unwrap();
    assert_eq!(sock::fionread(&s).unwrap(), 0);
}

pub(super) fn the_error_queue_is_empty(ctx: &mut Ctx) {
    let (s, at) = ctx.bound4();
    ctx.send(at, &[b"hello"]);
    sock::wait_readable(&s);
    assert_eq!(errno(sock::take(&s, 100, libc::MSG_ERRQUEUE)), libc::EAGAIN);
    assert_eq!(sock::take(&s, 100, 0).unwrap(), b"hello");
}

pub(super) fn every_size_arrives_whole(ctx: &mut Ctx) {
    let (s, at) = ctx.bound4();
    for len in (4..64).chain((64..1472).step_by(61)).chain([1471, 1472]) {
        let payload = numbered(len as u32, len);
        ctx.send(at, &[&payload]);
        assert_eq!(sock::take(&s, 2000, 0).unwrap(), payload);
    }
}

pub(super) fn order_is_kept(ctx: &mut Ctx) {
    let (s, at) = ctx.bound4();
    for batch in 0..50 {
        ctx.send_numbered(at, batch * 100, 100, 32);
        for i in 0..100 {
            assert_eq!(number_of(&sock::take(&s, 100, 0).unwrap()), batch * 100 + i);
        }
    }
}
