//! MSG_PEEK, MSG_WAITALL, MSG_TRUNC, MSG_DONTWAIT, timeouts, low-water marks, and what ioctls and options tell.

use super::{
    Ctx,
    conn::Conn,
    signals::{Thread, count_signals, interrupted},
    unless_held,
};
use crate::{
    remote::Do,
    sock::{self, check, errno},
    stream,
};
use std::{
    mem::zeroed,
    os::fd::AsRawFd,
    ptr::null_mut,
    thread::scope,
    time::{Duration, Instant},
};

const WAIT: Duration = Duration::from_millis(150);
const PEEK: i32 = libc::MSG_PEEK;

pub(super) fn peek_leaves_everything(ctx: &mut Ctx) {
    let mut c = ctx.tcp();
    c.arrive(&[1_000]);
    for size in [1, 10, 1_000, 5_000, 300] {
        assert_eq!(c.take(size, PEEK).unwrap(), size.min(1_000));
    }
    assert_eq!(c.take(5_000, 0).unwrap(), 1_000);
    c.assert_empty();
}

pub(super) fn peek_sees_over_segments(ctx: &mut Ctx) {
    let mut c = ctx.tcp();
    c.arrive(&[1_000, 10, 5_000, 1, 20_000]);
    for _ in 0..3 {
        assert_eq!(c.take(50_000, PEEK).unwrap(), 26_011);
    }
    assert_eq!(c.take(7_000, 0).unwrap(), 7_000);
    assert_eq!(c.take(50_000, PEEK).unwrap(), 19_011);
    assert_eq!(c.take(50_000, 0).unwrap(), 19_011);
}

pub(super) fn peek_grows_with_what_arrives(ctx: &mut Ctx) {
    let mut c = ctx.tcp();
    for round in 1..30 {
        c.arrive(&[500]);
        assert_eq!(c.take(50_000, PEEK).unwrap(), 500 * round);
    }
    c.exact(500 * 29);
    c.assert_empty();
}

pub(super) fn a_blocked_peek_wakes_up(ctx: &mut Ctx) {
    let mut c = ctx.tcp();
    for _ in 0..10 {
        c.write_when_asleep(&[100]);
        assert_eq!(c.take(1_000, PEEK).unwrap(), 100);
        c.finish();
        assert_eq!(c.take(1_000, 0).unwrap(), 100);
    }
}

pub(super) fn peek_with_waitall_waits_for_all(ctx: &mut Ctx) {
    let mut c = ctx.tcp();
    c.write_slowly(&[1_000; 5], 5_000);
    assert_eq!(c.take(5_000, PEEK | libc::MSG_WAITALL).unwrap(), 5_000);
    c.finish();
    c.exact(5_000);
}

/// What there is before the end is all that there will be.
pub(super) fn peek_with_waitall_ends_with_the_stream(ctx: &mut Ctx) {
    let mut c = ctx.tcp();
    c.arrive(&[9_000]);
    c.exact(5_000);
    c.order(Do::ShutdownWrite);
    for _ in 0..3 {
        assert_eq!(c.take(10_000, PEEK | libc::MSG_WAITALL).unwrap(), 4_000);
    }
    c.exact(4_000);
    assert_eq!(c.take(10_000, PEEK | libc::MSG_WAITALL).unwrap(), 0);
    c.assert_end();
}

/// The same while it waits, and the end comes with the last data.
pub(super) fn peek_with_waitall_wakes_up_at_the_end(ctx: &mut Ctx) {
    for round in 0..10 {
        let mut c = ctx.tcp();
        c.arrive(&[1_000]);
        c.write_later(&[300 + round]);
        c.tell(Do::ShutdownWrite);
        assert_eq!(c.take(10_000, PEEK | libc::MSG_WAITALL).unwrap(), 1_300 + round);
        c.finish();
        c.finish();
        c.exact(1_300 + round);
        c.assert_end();
    }
}

pub(super) fn a_reset_ends_a_peek_with_waitall(ctx: &mut Ctx) {
    let mut c = ctx.tcp();
    c.arrive(&[700]);
    c.tell(Do::Reset(None));
    assert_eq!(c.take(10_000, PEEK | libc::MSG_WAITALL).unwrap(), 700);
}

/// `tcp_recvmsg_locked` copies nothing with MSG_TRUNC and does not go on with MSG_PEEK.
pub(super) fn peek_with_trunc_measures(ctx: &mut Ctx) {
    let mut c = ctx.tcp();
    c.arrive(&[3_000]);
    let mut untouched = [0xeeu8; 2_000];
    assert_eq!(sock::recv(&c, &mut untouched, PEEK | libc::MSG_TRUNC).unwrap(), 2_000);
    assert_eq!(untouched, [0xee; 2_000]);
    assert_eq!(c.take(5_000, 0).unwrap(), 3_000);
}

pub(super) fn peek_by_recvmsg_scatters(ctx: &mut Ctx) {
    let mut c = ctx.tcp();
    c.arrive(&[100, 4_000]);
    let (mut a, mut b) = ([0; 1_700], [0; 1_700]);
    for _ in 0..2 {
        assert_eq!(sock::recv_msg(&c, &mut [&mut a, &mut b], 0, PEEK).unwrap().len, 3_400);
        c.check(&[a, b].concat());
    }
    c.exact(4_100);
}

/// `SO_PEEK_OFF` of TCP (Linux 6.9): peeks go on where the last one ended.
pub(super) fn a_peek_offset_moves_on(ctx: &mut Ctx) {
    let mut c = ctx.tcp();
    c.arrive(&[3_000]);
    if unless_held(sock::set(&c, libc::SOL_SOCKET, libc::SO_PEEK_OFF, 0)).is_none() {
        c.exact(3_000);
        sock::set(&c, libc::SOL_SOCKET, libc::SO_PEEK_OFF, 0).unwrap();
        c.arrive(&[3_000]);
    }
    for at in [0, 1_000, 2_000] {
        let bytes = sock::take(&c, 1_000, PEEK).unwrap();
        stream::check(c.number(), c.at + at, &bytes);
        assert_eq!(bytes.len(), 1_000);
    }
    sock::set(&c, libc::SOL_SOCKET, libc::SO_PEEK_OFF, -1).unwrap();
    c.exact(3_000);
}

pub(super) fn peek_at_the_end_is_zero(ctx: &mut Ctx) {
    let mut c = ctx.tcp();
    c.arrive(&[100]);
    c.order(Do::ShutdownWrite);
    assert_eq!(c.take(1_000, PEEK).unwrap(), 100);
    c.exact(100);
    assert_eq!(c.take(1_000, PEEK).unwrap(), 0);
    c.assert_end();
}

pub(super) fn waitall_fills_the_buffer(ctx: &mut Ctx) {
    let mut c = ctx.tcp();
    c.write_slowly(&[700; 30], 1_000);
    for _ in 0..3 {
        assert_eq!(c.take(7_000, libc::MSG_WAITALL).unwrap(), 7_000);
    }
    c.finish();
}

/// More than the receive buffer holds: reading makes the room for the rest.
pub(super) fn waitall_of_more_than_the_window(ctx: &mut Ctx) {
    const TOTAL: usize = 5_000_000;
    let mut c = ctx.tcp();
    sock::set(&c, libc::SOL_SOCKET, libc::SO_RCVBUF, 65_536).unwrap();
    c.write_later(&[50_000; TOTAL / 50_000]);
    assert_eq!(c.take(TOTAL, libc::MSG_WAITALL).unwrap(), TOTAL);
    c.finish();
}

pub(super) fn waitall_by_recvmsg(ctx: &mut Ctx) {
    let mut c = ctx.tcp();
    c.write_slowly(&[900; 10], 1_000);
    let (mut a, mut b) = ([0; 4_000], [0; 5_000]);
    assert_eq!(sock::recv_msg(&c, &mut [&mut a, &mut b], 0, libc::MSG_WAITALL).unwrap().len, 9_000);
    c.advance(&[&a[..], &b].concat());
    c.finish();
}

pub(super) fn waitall_ends_with_the_stream(ctx: &mut Ctx) {
    let mut c = ctx.tcp();
    c.write_slowly(&[500; 4], 1_000);
    c.tell(Do::ShutdownWrite);
    assert_eq!(c.take(10_000, libc::MSG_WAITALL).unwrap(), 2_000);
    assert_eq!(c.take(10_000, libc::MSG_WAITALL).unwrap(), 0);
}

pub(super) fn waitall_ends_with_the_timeout(ctx: &mut Ctx) {
    let mut c = ctx.tcp();
    sock::set_timeout(&c, WAIT);
    c.arrive(&[500]);
    let start = Instant::now();
    assert_eq!(c.take(10_000, libc::MSG_WAITALL).unwrap(), 500);
    assert!((WAIT..10 * WAIT).contains(&start.elapsed()), "{:?}", start.elapsed());
    assert_eq!(errno(c.take(10_000, libc::MSG_WAITALL)), libc::EAGAIN);
}

pub(super) fn waitall_ends_with_a_signal(ctx: &mut Ctx) {
    let mut c = ctx.tcp();
    count_signals(libc::SIGUSR1, 0);
    c.arrive(&[500]);
    assert_eq!(interrupted(|| c.take(10_000, libc::MSG_WAITALL)).unwrap(), 500);
    assert_eq!(errno(interrupted(|| c.take(10_000, libc::MSG_WAITALL))), libc::EINTR);
    c.write_when_asleep(&[10_000]);
    assert_eq!(c.take(10_000, libc::MSG_WAITALL).unwrap(), 10_000);
    c.finish();
}

pub(super) fn waitall_with_dontwait_takes_what_is_there(ctx: &mut Ctx) {
    let mut c = ctx.tcp();
    c.arrive(&[500]);
    assert_eq!(c.take(1_000, libc::MSG_WAITALL | libc::MSG_DONTWAIT).unwrap(), 500);
    assert_eq!(errno(c.take(1_000, libc::MSG_WAITALL | libc::MSG_DONTWAIT)), libc::EAGAIN);
}

pub(super) fn waitall_of_exactly_what_is_there(ctx: &mut Ctx) {
    let mut c = ctx.tcp();
    c.arrive(&[500, 1_500]);
    assert_eq!(c.take(2_000, libc::MSG_WAITALL).unwrap(), 2_000);
    c.assert_empty();
}

/// tcp(7): the bytes are discarded, and the buffer is not touched: it may be null.
pub(super) fn trunc_discards(ctx: &mut Ctx) {
    let mut c = ctx.tcp();
    c.arrive(&[1_000, 4_000]);
    let mut untouched = [0xeeu8; 1_500];
    assert_eq!(sock::recv(&c, &mut untouched, libc::MSG_TRUNC).unwrap(), 1_500);
    assert_eq!(untouched, [0xee; 1_500]);
    c.at += 1_500;
    assert_eq!(c.take(500, 0).unwrap(), 500);
    // SAFETY: with MSG_TRUNC nothing is written.
    assert_eq!(unsafe { libc::recv(c.as_raw_fd(), null_mut(), 2_000, libc::MSG_TRUNC) }, 2_000);
    c.at += 2_000;
    assert_eq!(c.take(5_000, 0).unwrap(), 1_000);
    assert_eq!(errno(sock::recv(&c, &mut [0; 10], libc::MSG_TRUNC | libc::MSG_DONTWAIT)), libc::EAGAIN);
}

pub(super) fn trunc_waits_and_takes_what_comes(ctx: &mut Ctx) {
    let mut c = ctx.tcp();
    for _ in 0..10 {
        c.write_when_asleep(&[300]);
        let got = sock::recv(&c, &mut [0; 1_000], libc::MSG_TRUNC).unwrap();
        c.finish();
        c.at += got as u64;
        c.exact(300 - got);
    }
    c.arrive(&[100_000]);
    let got = sock::recv(&c, &mut vec![0; 90_000], libc::MSG_TRUNC | libc::MSG_WAITALL).unwrap();
    assert_eq!(got, 90_000);
    c.at += 90_000;
    c.exact(10_000);
}

pub(super) fn dontwait_says_eagain(ctx: &mut Ctx) {
    let mut c = ctx.tcp();
    for size in [1, 100, 20_000] {
        c.assert_empty();
        c.arrive(&[size]);
        assert_eq!(c.take(65_536, libc::MSG_DONTWAIT).unwrap(), size);
    }
    c.assert_empty();
}

pub(super) fn nonblocking_by_fcntl_and_back(ctx: &mut Ctx) {
    let mut c = ctx.tcp();
    let flags = sock::fcntl(&c, libc::F_GETFL, 0).unwrap();
    sock::fcntl(&c, libc::F_SETFL, flags | libc::O_NONBLOCK).unwrap();
    nonblocking(&mut c);
    sock::fcntl(&c, libc::F_SETFL, flags).unwrap();
    c.write_when_asleep(&[10]);
    assert_eq!(c.take(100, 0).unwrap(), 10);
}

pub(super) fn nonblocking_by_ioctl_and_back(ctx: &mut Ctx) {
    let mut c = ctx.tcp();
    sock::fionbio(&c, true).unwrap();
    nonblocking(&mut c);
    sock::fionbio(&c, false).unwrap();
    c.write_when_asleep(&[10]);
    assert_eq!(c.take(100, 0).unwrap(), 10);
}

fn nonblocking(c: &mut Conn) {
    assert_eq!(errno(c.take(100, 0)), libc::EAGAIN);
    assert_eq!(errno(sock::read(&*c, &mut [0; 10])), libc::EAGAIN);
    assert_eq!(errno(c.take(100, libc::MSG_WAITALL)), libc::EAGAIN);
    c.arrive(&[700]);
    assert_eq!(c.take(1_000, libc::MSG_WAITALL).unwrap(), 700);
}

pub(super) fn rcvtimeo_ends_a_recv(ctx: &mut Ctx) {
    let mut c = ctx.tcp();
    sock::set_timeout(&c, WAIT);
    let start = Instant::now();
    assert_eq!(errno(c.take(100, 0)), libc::EAGAIN);
    assert!((WAIT..10 * WAIT).contains(&start.elapsed()), "{:?}", start.elapsed());
    assert_eq!(errno(sock::read(&c, &mut [0; 10])), libc::EAGAIN);
    c.write_when_asleep(&[10]);
    sock::set_timeout(&c, Duration::from_secs(10));
    assert_eq!(c.take(100, 0).unwrap(), 10);
}

/// A read of less than the mark must find what it wants: `tcp_data_ready` wakes nobody below the mark.
pub(super) fn rcvlowat_holds_a_recv(ctx: &mut Ctx) {
    let mut c = ctx.tcp();
    sock::set(&c, libc::SOL_SOCKET, libc::SO_RCVLOWAT, 5_000).unwrap();
    c.write_slowly(&[1_000; 6], 3_000);
    let got = c.take(10_000, 0).unwrap();
    assert!((5_000..=6_000).contains(&got), "{got} is below the mark");
    c.finish();
    c.arrive(&[1_000]);
    assert_eq!(c.take(500, 0).unwrap(), 500);
    sock::set(&c, libc::SOL_SOCKET, libc::SO_RCVLOWAT, 1).unwrap();
    c.exact(6_500 - got);
    assert_eq!(sock::get(&c, libc::SOL_SOCKET, libc::SO_RCVLOWAT).unwrap(), 1);
}

pub(super) fn rcvlowat_holds_poll(ctx: &mut Ctx) {
    let mut c = ctx.tcp();
    sock::set(&c, libc::SOL_SOCKET, libc::SO_RCVLOWAT, 5_000).unwrap();
    c.arrive(&[4_999]);
    assert_eq!(sock::events(&c, libc::POLLIN, 50), 0);
    c.arrive(&[1]);
    sock::wait_readable(&c);
    assert_eq!(c.take(4_000, 0).unwrap(), 4_000);
    assert_eq!(sock::events(&c, libc::POLLIN, 50), 0);
    c.arrive(&[4_000]);
    sock::wait_readable(&c);
    c.exact(5_000);
}

pub(super) fn fionread_tells_everything_queued(ctx: &mut Ctx) {
    let mut c = ctx.tcp();
    assert_eq!(sock::fionread(&c).unwrap(), 0);
    for sizes in [&[5][..], &[10_000, 1], &[1, 1, 1, 50_000]] {
        c.arrive(sizes);
        let total: usize = sizes.iter().sum();
        assert_eq!(sock::fionread(&c).unwrap(), total);
        c.take(total / 3, 0).unwrap();
        assert_eq!(sock::fionread(&c).unwrap(), total - total / 3);
        c.take(100, PEEK).unwrap();
        assert_eq!(sock::fionread(&c).unwrap(), total - total / 3);
        c.exact(total - total / 3);
        assert_eq!(sock::fionread(&c).unwrap(), 0);
    }
}

/// `tcp_inq` does not count the FIN.
pub(super) fn fionread_at_the_end(ctx: &mut Ctx) {
    let mut c = ctx.tcp();
    c.arrive(&[1_000]);
    c.order(Do::ShutdownWrite);
    c.order(Do::Arrived);
    assert_eq!(sock::fionread(&c).unwrap(), 1_000);
    c.exact(1_000);
    c.assert_end();
    assert_eq!(sock::fionread(&c).unwrap(), 0);
}

/// tcp_info.tcpi_bytes_received.
fn bytes_received(s: &impl AsRawFd) -> u64 {
    const AT: usize = 128;
    let (mut info, mut len) = ([0u8; 256], 256u32);
    let (level, to) = (libc::IPPROTO_TCP, info.as_mut_ptr().cast());
    // SAFETY: pointer and length describe a local.
    check(unsafe { libc::getsockopt(s.as_raw_fd(), level, libc::TCP_INFO, to, &mut len) }).unwrap();
    u64::from_ne_bytes(info[AT..AT + 8].try_into().unwrap())
}

pub(super) fn tcp_info_counts_bytes(ctx: &mut Ctx) {
    let mut c = ctx.tcp();
    assert_eq!(bytes_received(&c), c.at);
    c.arrive(&[10_000, 100, 1]);
    assert_eq!(bytes_received(&c), c.at + 10_101);
    c.exact(10_101);
    assert_eq!(bytes_received(&c), c.at);
}

/// `TCP_INQ`: a control message says how much is left.
pub(super) fn tcp_inq_tells_what_is_left(ctx: &mut Ctx) {
    const TCP_INQ: i32 = 36;
    let mut c = ctx.tcp();
    sock::set(&c, libc::IPPROTO_TCP, TCP_INQ, 1).unwrap();
    c.arrive(&[5_000]);
    let mut buffer = [0; 2_000];
    for left in [3_000, 1_000, 0] {
        let m = sock::recv_msg(&c, &mut [&mut buffer], 64, 0).unwrap();
        c.advance(&buffer[..m.len]);
        assert_eq!(m.value::<i32>(libc::IPPROTO_TCP, TCP_INQ), left);
    }
}

/// struct tcp_zerocopy_receive.
#[repr(C)]
struct Zerocopy {
    address: u64,
    length: u32,
    recv_skip_hint: u32,
    inq: u32,
    err: i32,
    copybuf_address: u64,
    copybuf_len: i32,
    flags: u32,
    msg_control: u64,
    msg_controllen: u64,
    msg_flags: u32,
    reserved: u32,
}

/// `TCP_ZEROCOPY_RECEIVE` maps what it can and copies the rest: what is not served by it is read as ever.
pub(super) fn zerocopy_receive_never_shows_wrong_bytes(ctx: &mut Ctx) {
    const TCP_ZEROCOPY_RECEIVE: i32 = 35;
    const ROOM: usize = 1 << 20;
    let mut c = ctx.tcp();
    let fd = c.as_raw_fd();
    // SAFETY: a new mapping of the socket at an address the kernel chooses.
    let area = unsafe { libc::mmap(null_mut(), ROOM, libc::PROT_READ, libc::MAP_SHARED, fd, 0) };
    assert_ne!(area, libc::MAP_FAILED, "{}", std::io::Error::last_os_error());
    c.arrive(&[9_000, 100, 40_000]);
    let mut left = 49_100;
    while left > 0 {
        let mut copy = [0u8; 5_000];
        // SAFETY: plain old data for which all-zero is valid.
        let mut zc: Zerocopy = unsafe { zeroed() };
        (zc.address, zc.length) = (area as u64, ROOM as u32);
        (zc.copybuf_address, zc.copybuf_len) = (copy.as_mut_ptr() as u64, copy.len() as i32);
        let mut len = size_of::<Zerocopy>() as u32;
        // SAFETY: pointers and lengths describe locals and the mapping.
        let result = unsafe {
            libc::getsockopt(fd, libc::IPPROTO_TCP, TCP_ZEROCOPY_RECEIVE, (&raw mut zc).cast(), &mut len)
        };
        let (mapped, copied) = if result == 0 { (zc.length, zc.copybuf_len.max(0)) } else { (0, 0) };
        // SAFETY: the kernel has mapped so much.
        c.advance(unsafe { std::slice::from_raw_parts(area.cast::<u8>(), mapped as usize) });
        c.advance(&copy[..copied as usize]);
        left -= mapped as usize + copied as usize;
        if left > 0 {
            left -= c.take(700, libc::MSG_DONTWAIT).unwrap();
        }
    }
    c.assert_empty();
    // SAFETY: the mapping of above, no longer used.
    unsafe { libc::munmap(area, ROOM) };
}

pub(super) fn recv_is_interrupted(ctx: &mut Ctx) {
    let mut c = ctx.tcp();
    count_signals(libc::SIGUSR1, 0);
    assert_eq!(errno(interrupted(|| c.take(100, 0))), libc::EINTR);
    assert_eq!(errno(interrupted(|| sock::read(&c, &mut [0; 10]))), libc::EINTR);
    assert_eq!(errno(interrupted(|| sock::recv_msg(&c, &mut [&mut [0; 10]], 0, 0))), libc::EINTR);
    c.write_when_asleep(&[50]);
    c.exact(50);
}

pub(super) fn recv_goes_on_with_sa_restart(ctx: &mut Ctx) {
    let mut c = ctx.tcp();
    count_signals(libc::SIGUSR1, libc::SA_RESTART);
    let this = Thread::this();
    let mut other = Conn::of(sock::dup(&c).unwrap(), c.number(), 0);
    scope(|scope| {
        scope.spawn(move || {
            for _ in 0..5 {
                this.until_asleep();
                this.interrupt();
            }
            this.until_asleep();
            other.write(&[40]);
        });
        assert_eq!(c.take(100, 0).unwrap(), 40);
    });
    sock::set_timeout(&c, Duration::from_secs(30)); // signal(7): with a timeout it is never restarted
    assert_eq!(errno(interrupted(|| c.take(100, 0))), libc::EINTR);
}

pub(super) fn a_storm_of_signals_loses_nothing(ctx: &mut Ctx) {
    let mut c = ctx.tcp();
    count_signals(libc::SIGUSR1, libc::SA_RESTART);
    c.write_slowly(&[3_000; 300], 200);
    interrupted(|| c.exact(900_000));
    c.finish();
}

pub(super) fn a_smaller_receive_buffer_holds_less(ctx: &mut Ctx) {
    let mut c = ctx.tcp();
    sock::set(&c, libc::SOL_SOCKET, libc::SO_RCVBUF, 8_192).unwrap();
    c.write_later(&[2_000; 500]);
    c.exact(1_000_000);
    c.finish();
    c.assert_empty();
}

/// Nobody reads: the peer's writes stop when both buffers are full, and nothing is lost.
pub(super) fn an_unread_connection_closes_its_window(ctx: &mut Ctx) {
    const TOTAL: usize = 20_000_000;
    let mut c = ctx.tcp();
    sock::set(&c, libc::SOL_SOCKET, libc::SO_RCVBUF, 100_000).unwrap();
    c.write_later(&[50_000; TOTAL / 50_000]);
    let mut before = 0;
    loop {
        sock::poll(&mut [], 300).unwrap(); // long enough for the peer to fill what is open
        let now = sock::fionread(&c).unwrap();
        if now == before {
            break;
        }
        before = now;
    }
    assert!((10_000..TOTAL / 2).contains(&before), "{before} queued");
    c.exact(TOTAL);
    c.finish();
    c.assert_empty();
}
