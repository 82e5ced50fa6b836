//! Every call that reads a stream.

use super::{
    Ctx,
    conn::{Conn, Kind},
};
use crate::{
    sock::{self, errno},
    stream::{self, Draw},
};
use std::{
    os::fd::AsRawFd,
    ptr::{null, null_mut},
};

pub(super) fn recv_takes_what_is_there(ctx: &mut Ctx) {
    let mut c = ctx.tcp();
    c.arrive(&[5]);
    assert_eq!(c.take(100, 0).unwrap(), 5);
    c.arrive(&[1_000, 1_000]);
    assert_eq!(c.take(10, 0).unwrap(), 10);
    assert_eq!(c.take(5_000, 0).unwrap(), 1_990);
}

/// Writes from a byte to 200 KB, reads of other sizes.
pub(super) fn every_size_arrives(ctx: &mut Ctx) {
    let mut c = ctx.tcp();
    let mut draw = Draw::new(1);
    let sizes =
        [&[1, 2, 3, 1_447, 1_448, 1_449, 65_535, 65_536, 200_000][..], &draw.sizes(8_000_000, 200_000)]
            .concat();
    c.write_later(&sizes);
    c.exact_mixed(sizes.iter().sum(), &mut draw);
    c.finish();
    c.assert_empty();
}

pub(super) fn small_writes_arrive(ctx: &mut Ctx) {
    let mut c = ctx.tcp();
    let sizes = Draw::new(2).sizes(200_000, 100);
    c.write_later(&sizes);
    c.exact(200_000);
    c.finish();
}

pub(super) fn large_reads_of_large_writes(ctx: &mut Ctx) {
    let mut c = ctx.tcp();
    c.write_later(&[200_000; 100]);
    let mut left = 20_000_000;
    while left > 0 {
        left -= c.take(1 << 20, 0).unwrap();
    }
    c.finish();
}

pub(super) fn reads_of_one_byte(ctx: &mut Ctx) {
    let mut c = ctx.tcp();
    c.write_later(&[3_000, 1, 3_000, 10_000]);
    (0..16_001).for_each(|_| assert_eq!(c.take(1, 0).unwrap(), 1));
    c.finish();
}

/// `__sys_recvfrom` reports the length that TCP leaves at zero.
pub(super) fn recvfrom_tells_no_address(ctx: &mut Ctx) {
    let mut c = ctx.tcp();
    c.arrive(&[100]);
    let (mut buffer, mut name, mut len) = ([0u8; 50], [0xeeu8; 16], 16u32);
    let (to, room, from) = (buffer.as_mut_ptr().cast(), buffer.len(), name.as_mut_ptr().cast());
    // SAFETY: pointers and lengths describe locals.
    let got = unsafe { libc::recvfrom(c.as_raw_fd(), to, room, 0, from, &mut len) };
    assert_eq!((got, len, name), (50, 0, [0xee; 16]));
    c.advance(&buffer);
    let to = buffer.as_mut_ptr().cast();
    // SAFETY: the same without an address.
    assert_eq!(unsafe { libc::recvfrom(c.as_raw_fd(), to, room, 0, null_mut(), null_mut()) }, 50);
    c.advance(&buffer);
}

pub(super) fn recvmsg_scatters_over_buffers(ctx: &mut Ctx) {
    let mut c = ctx.tcp();
    c.arrive(&[1_000, 3_000]);
    let (mut a, mut b, mut d) = ([0; 3], [0; 1_500], [0; 5_000]);
    let m = sock::recv_msg(&c, &mut [&mut a, &mut [], &mut b, &mut d], 100, 0).unwrap();
    assert_eq!((m.len, m.flags, m.name_len, m.control.len()), (4_000, 0, 0, 0));
    c.advance(&[&a[..], &b, &d[..2_497]].concat());
    c.arrive(&[10]);
    let m = sock::recv_msg(&c, &mut [&mut a], 0, 0).unwrap();
    assert_eq!((m.len, m.flags), (3, 0), "a stream is never cut");
    c.advance(&a);
    assert_eq!(c.take(100, 0).unwrap(), 7);
}

pub(super) fn recvmsg_of_the_whole_way(ctx: &mut Ctx) {
    let mut c = ctx.tcp();
    let mut draw = Draw::new(3);
    c.write_later(&draw.sizes(2_000_000, 50_000));
    let mut left = 2_000_000;
    while left > 0 {
        let mut buffers: Vec<_> = (0..1 + draw.below(8)).map(|_| vec![0; draw.size(1, 9_000)]).collect();
        let mut parts: Vec<&mut [u8]> = buffers.iter_mut().map(Vec::as_mut_slice).collect();
        let len = sock::recv_msg(&c, &mut parts, 0, 0).unwrap().len;
        c.advance(&buffers.concat()[..len]);
        left -= len;
    }
    c.finish();
}

pub(super) fn read_takes_what_is_there(ctx: &mut Ctx) {
    let mut c = ctx.tcp();
    c.write_later(&Draw::new(4).sizes(500_000, 20_000));
    let (mut left, mut buffer) = (500_000, [0; 7_000]);
    while left > 0 {
        let got = sock::read(&c, &mut buffer).unwrap();
        c.advance(&buffer[..got]);
        left -= got;
    }
    c.finish();
}

pub(super) fn readv_scatters_over_buffers(ctx: &mut Ctx) {
    let mut c = ctx.tcp();
    c.arrive(&[5_000]);
    let (mut a, mut b, mut d) = ([0; 1], [0; 2_000], [0; 10_000]);
    assert_eq!(sock::readv(&c, &mut [&mut a, &mut b, &mut [], &mut d]).unwrap(), 5_000);
    c.advance(&[&a[..], &b, &d[..2_999]].concat());
}

pub(super) fn preadv2_with_no_offset_reads(ctx: &mut Ctx) {
    let mut c = ctx.tcp();
    c.arrive(&[100]);
    let mut buffer = [0u8; 60];
    let iov = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: the vector describes a local; offset -1 is the position of the file.
    assert_eq!(unsafe { libc::preadv2(c.as_raw_fd(), &iov, 1, -1, 0) }, 60);
    c.advance(&buffer);
    assert_eq!(c.take(100, 0).unwrap(), 40);
}

unsafe extern "C" {
    fn __recv_chk(fd: i32, to: *mut u8, len: usize, room: usize, flags: i32) -> isize;
    fn __read_chk(fd: i32, to: *mut u8, len: usize, room: usize) -> isize;
    fn __recvfrom_chk(
        fd: i32,
        to: *mut u8,
        len: usize,
        room: usize,
        flags: i32,
        name: *mut u8,
        name_len: *mut u32,
    ) -> isize;
}

pub(super) fn fortified_calls_read(ctx: &mut Ctx) {
    let mut c = ctx.tcp();
    c.arrive(&[2_500]);
    let (fd, mut buffer) = (c.as_raw_fd(), [0; 800]);
    // SAFETY: each is given the size of the buffer.
    unsafe {
        assert_eq!(__recv_chk(fd, buffer.as_mut_ptr(), 800, 800, 0), 800);
        c.advance(&buffer);
        assert_eq!(__read_chk(fd, buffer.as_mut_ptr(), 800, 800), 800);
        c.advance(&buffer);
        assert_eq!(__recvfrom_chk(fd, buffer.as_mut_ptr(), 800, 800, 0, null_mut(), null_mut()), 800);
        c.advance(&buffer);
    }
    assert_eq!(c.take(800, 0).unwrap(), 100);
}

/// By syscall(2) of libc.
pub(super) fn raw_syscalls_read_the_same(ctx: &mut Ctx) {
    let mut c = ctx.tcp();
    c.arrive(&[3_000]);
    let (fd, mut buffer) = (c.as_raw_fd(), [0u8; 1_000]);
    let to = buffer.as_mut_ptr();
    // SAFETY: recvfrom(2) with a buffer of 1,000 bytes and no address.
    assert_eq!(unsafe { libc::syscall(libc::SYS_recvfrom, fd, to, 1_000usize, 0, 0usize, 0usize) }, 1_000);
    c.advance(&buffer);
    // SAFETY: read(2) with a buffer of 1,000 bytes.
    assert_eq!(unsafe { libc::syscall(libc::SYS_read, fd, to, 1_000usize) }, 1_000);
    c.advance(&buffer);
    let iov = libc::iovec { iov_base: to.cast(), iov_len: 1_000 };
    // SAFETY: readv(2) with one vector of 1,000 bytes.
    assert_eq!(unsafe { libc::syscall(libc::SYS_readv, fd, &raw const iov, 1usize) }, 1_000);
    c.advance(&buffer);
}

/// Each message takes what is there: on a stream the second one finds nothing.
pub(super) fn recvmmsg_fills_message_after_message(ctx: &mut Ctx) {
    let mut c = ctx.tcp();
    c.arrive(&[2_500]);
    let list = sock::recv_mmsg(&c, 4, 1_000, libc::MSG_DONTWAIT, None).unwrap();
    assert_eq!(list.iter().map(|m| m.len).collect::<Vec<_>>(), [1_000, 1_000, 500]);
    c.advance(&list.iter().flat_map(|m| m.bytes.clone()).collect::<Vec<_>>());
    c.arrive(&[10]);
    let list = sock::recv_mmsg(&c, 4, 1_000, libc::MSG_WAITFORONE, None).unwrap();
    assert_eq!(list.iter().map(|m| m.len).collect::<Vec<_>>(), [10]);
    c.advance(&list[0].bytes);
}

pub(super) fn a_blocked_recv_wakes_up(ctx: &mut Ctx) {
    let mut c = ctx.tcp();
    for size in 1..40 {
        c.write_when_asleep(&[size * 37]);
        c.exact(size * 37);
        c.finish();
    }
}

pub(super) fn a_blocked_read_wakes_up(ctx: &mut Ctx) {
    let mut c = ctx.tcp();
    let mut buffer = [0; 500];
    for _ in 0..20 {
        c.write_when_asleep(&[400]);
        assert_eq!(sock::read(&c, &mut buffer).unwrap(), 400);
        c.advance(&buffer[..400]);
        c.finish();
    }
}

/// `sock_read_iter` returns at once for a length of zero, `tcp_recvmsg_locked` waits for something.
pub(super) fn a_read_of_nothing_takes_nothing(ctx: &mut Ctx) {
    let mut c = ctx.tcp();
    assert_eq!(sock::read(&c, &mut []).unwrap(), 0);
    assert_eq!(sock::readv(&c, &mut [&mut [], &mut []]).unwrap(), 0);
    assert_eq!(errno(sock::recv(&c, &mut [], libc::MSG_DONTWAIT)), libc::EAGAIN);
    c.write_when_asleep(&[10]);
    assert_eq!(sock::recv(&c, &mut [], 0).unwrap(), 0);
    c.finish();
    assert_eq!(sock::recv(&c, &mut [], libc::MSG_DONTWAIT).unwrap(), 0);
    assert_eq!(sock::read(&c, &mut []).unwrap(), 0);
    assert_eq!(sock::recv_msg(&c, &mut [], 0, 0).unwrap().len, 0);
    assert_eq!(c.take(100, 0).unwrap(), 10);
}

/// What a failed read would have taken is still there.
pub(super) fn a_bad_buffer_is_efault_and_loses_nothing(ctx: &mut Ctx) {
    let mut c = ctx.tcp();
    c.arrive(&[2_000]);
    let fd = c.as_raw_fd();
    // SAFETY: the kernel's or the shim's checks are what is tested: the page at 8 is never mapped.
    let got = unsafe { libc::recv(fd, 8 as *mut libc::c_void, 100, 0) };
    assert_eq!((got, std::io::Error::last_os_error().raw_os_error()), (-1, Some(libc::EFAULT)));
    // SAFETY: as above.
    let got = unsafe { libc::read(fd, null::<u8>().cast_mut().cast(), 100) };
    assert_eq!((got, std::io::Error::last_os_error().raw_os_error()), (-1, Some(libc::EFAULT)));
    let mut buffer = [0u8; 100];
    let iov = [
        libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: 100 },
        libc::iovec { iov_base: 8 as *mut libc::c_void, iov_len: 100 },
    ];
    // SAFETY: as above; the first vector is good. `__skb_datagram_iter` takes back what did not fit.
    let got = unsafe { libc::readv(fd, iov.as_ptr(), 2) };
    if got > 0 {
        c.advance(&buffer[..got as usize]);
    }
    let left = 2_000 - got.max(0) as usize;
    assert_eq!(c.take(5_000, 0).unwrap(), left);
}

pub(super) fn the_error_queue_is_empty(ctx: &mut Ctx) {
    let mut c = ctx.tcp();
    c.arrive(&[10]);
    assert_eq!(errno(sock::take(&c, 100, libc::MSG_ERRQUEUE)), libc::EAGAIN);
    assert_eq!(c.take(100, 0).unwrap(), 10);
}

pub(super) fn ipv6_arrives(ctx: &mut Ctx) {
    whole_way(ctx, Kind::V6);
}

pub(super) fn mapped_addresses_arrive(ctx: &mut Ctx) {
    whole_way(ctx, Kind::Mapped);
}

fn whole_way(ctx: &mut Ctx, kind: Kind) {
    let mut c = ctx.fresh(kind);
    c.warm();
    mixed(&mut c);
}

/// 2 MB in writes and reads of all sizes, and the end.
pub(super) fn mixed(c: &mut Conn) {
    let mut draw = Draw::new(5);
    c.write_later(&draw.sizes(2_000_000, 100_000));
    c.exact_mixed(2_000_000, &mut draw);
    c.finish();
    c.ask(50_000);
    c.order(crate::remote::Do::ShutdownWrite);
    c.assert_end();
}

/// The case writes as much as it reads, at the same time.
pub(super) fn both_ways_at_once(ctx: &mut Ctx) {
    const TOTAL: usize = 3_000_000;
    let mut c = ctx.tcp();
    let number = c.number();
    c.write_later(&[30_000; TOTAL / 30_000]);
    let s = sock::dup(&c).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mine = stream::bytes(!number, 0, TOTAL);
            let mut rest = &mine[..];
            while !rest.is_empty() {
                rest = &rest[sock::send(&s, &rest[..rest.len().min(20_000)]).unwrap()..];
            }
        });
        let mut reader = Conn::of(sock::dup(&s).unwrap(), number, 0);
        scope.spawn(move || reader.order(crate::remote::Do::Read(TOTAL)));
        c.exact(TOTAL);
    });
    c.finish();
    c.assert_empty();
}
