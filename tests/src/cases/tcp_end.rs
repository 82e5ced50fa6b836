//! How connections end: FIN and RST from either side, urgent data on the way.

use super::{
    Ctx,
    conn::{Conn, Kind},
    process::{assert_child_succeeds, dual},
    signals::Thread,
};
use crate::{
    peer::Answer,
    remote::Do,
    sock::{self, DEADLINE_MS, check, errno},
    stream,
};
use std::{
    os::fd::{AsRawFd, IntoRawFd},
    thread::scope,
};

const RESET: i32 = libc::ECONNRESET;

pub(super) fn the_end_comes_after_everything(ctx: &mut Ctx) {
    let mut c = ctx.tcp();
    c.arrive(&[1, 5_000, 100]);
    c.order(Do::ShutdownWrite);
    c.exact(5_101);
    for _ in 0..3 {
        c.assert_end();
        assert_eq!(sock::read(&c, &mut [0; 10]).unwrap(), 0);
    }
    assert_eq!(c.close(), (0, 0));
}

pub(super) fn the_end_wakes_a_reader(ctx: &mut Ctx) {
    let mut c = ctx.tcp();
    let this = Thread::this();
    let mut other = Conn::of(sock::dup(&c).unwrap(), c.number(), 0);
    scope(|scope| {
        scope.spawn(move || {
            this.until_asleep();
            other.order(Do::ShutdownWrite);
        });
        c.assert_end();
    });
}

/// FIN in the segment of the last data: the peer corks it.
pub(super) fn the_end_in_the_last_segment(ctx: &mut Ctx) {
    let mut c = ctx.tcp();
    c.order(Do::Set(libc::IPPROTO_TCP, libc::TCP_CORK, 1));
    c.write(&[100]);
    c.order(Do::ShutdownWrite);
    c.exact(100);
    c.assert_end();
}

pub(super) fn an_ended_peer_is_still_written_to(ctx: &mut Ctx) {
    let mut c = ctx.tcp();
    c.arrive(&[2_000]);
    c.order(Do::ShutdownWrite);
    c.exact(2_000);
    c.assert_end();
    c.ask(300_000);
    assert_eq!(c.close(), (0, 0));
}

pub(super) fn shutdown_of_writing_leaves_reading(ctx: &mut Ctx) {
    let mut c = ctx.tcp();
    c.ask(1_000);
    sock::shutdown(&c, libc::SHUT_WR).unwrap();
    assert_eq!(c.peers_end(), (0, 0));
    c.write_later(&[100_000, 7]);
    c.exact(100_007);
    c.finish();
    c.order(Do::ShutdownWrite);
    c.assert_end();
}

/// What is queued, and what comes later, is still read: `tcp_recvmsg_locked` looks at the queue first.
pub(super) fn shutdown_of_reading_lets_queued_data_out(ctx: &mut Ctx) {
    let mut c = ctx.tcp();
    c.arrive(&[3_000]);
    sock::shutdown(&c, libc::SHUT_RD).unwrap();
    c.exact(3_000);
    c.assert_end();
    c.arrive(&[500]);
    c.exact(500);
    c.assert_end();
}

pub(super) fn shutdown_wakes_a_reader(ctx: &mut Ctx) {
    let mut c = ctx.tcp();
    let this = Thread::this();
    let s = sock::dup(&c).unwrap();
    scope(|scope| {
        scope.spawn(move || {
            this.until_asleep();
            sock::shutdown(&s, libc::SHUT_RD).unwrap();
        });
        c.assert_end();
    });
}

pub(super) fn shutdown_of_both(ctx: &mut Ctx) {
    let mut c = ctx.tcp();
    c.arrive(&[3_000]);
    sock::shutdown(&c, libc::SHUT_RDWR).unwrap();
    c.exact(3_000);
    c.assert_end();
    assert_eq!(c.close(), (0, 0));
}

pub(super) fn close_with_everything_read_is_a_fin(ctx: &mut Ctx) {
    for size in [1, 1_448, 100_000] {
        let mut c = ctx.tcp();
        c.arrive(&[size]);
        c.exact(size);
        assert_eq!(c.close(), (0, 0));
    }
}

/// The same at once behind the last read, while data may still be on its way through the stack.
pub(super) fn close_behind_the_last_read_is_a_fin(ctx: &mut Ctx) {
    for round in 0..20 {
        let mut c = ctx.tcp();
        c.write_later(&[30_000 + round]);
        c.exact(30_000 + round);
        c.finish();
        assert_eq!(c.close(), (0, 0), "round {round}");
    }
}

pub(super) fn close_with_data_unread_is_a_rst(ctx: &mut Ctx) {
    for (size, read) in [(1, 0), (5_000, 0), (5_000, 4_999), (20_000, 1)] {
        let mut c = ctx.tcp();
        c.arrive(&[size]);
        c.exact(read);
        assert_eq!(c.close(), (0, RESET), "{read} of {size} read");
    }
}

pub(super) fn close_after_a_peek_is_a_rst(ctx: &mut Ctx) {
    let mut c = ctx.tcp();
    c.arrive(&[500]);
    assert_eq!(c.take(500, libc::MSG_PEEK).unwrap(), 500);
    assert_eq!(c.close(), (0, RESET));
}

/// What comes after the close is answered with a RST, as there is nobody to read it.
pub(super) fn data_after_close_is_a_rst(ctx: &mut Ctx) {
    let mut c = ctx.tcp();
    drop(std::mem::replace(&mut c.s, sock::pipe().0));
    c.write(&[100]);
    let (_, errno) = c.peers_end();
    assert!(errno == 0 || errno == RESET, "{errno}"); // the FIN comes first
}

pub(super) fn linger_zero_is_a_rst(ctx: &mut Ctx) {
    let mut c = ctx.tcp();
    c.arrive(&[500]);
    c.exact(500);
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    sock::set(&c, libc::SOL_SOCKET, libc::SO_LINGER, linger).unwrap();
    assert_eq!(c.close(), (0, RESET));
}

pub(super) fn linger_waits_for_what_was_sent(ctx: &mut Ctx) {
    let mut c = ctx.tcp();
    let linger = libc::linger { l_onoff: 1, l_linger: 10 };
    sock::set(&c, libc::SOL_SOCKET, libc::SO_LINGER, linger).unwrap();
    c.send(100_000);
    assert_eq!(c.close(), (100_000, 0));
}

/// The peer's reset leaves what it had sent to be read; then the error, once.
pub(super) fn a_reset_comes_after_what_was_sent(ctx: &mut Ctx) {
    let mut c = ctx.tcp();
    c.arrive(&[5_000, 100]);
    c.order(Do::Reset(None));
    sock::events(&c, 0, DEADLINE_MS); // POLLERR, POLLHUP
    c.exact(5_100);
    assert_eq!(errno(c.take(100, 0)), RESET);
    c.assert_end();
}

pub(super) fn a_reset_wakes_a_reader(ctx: &mut Ctx) {
    let mut c = ctx.tcp();
    c.tell(Do::Reset(Some(Thread::this().tid())));
    assert_eq!(errno(c.take(100, 0)), RESET);
    c.finish();
    c.assert_end();
}

pub(super) fn a_reset_ends_a_waitall(ctx: &mut Ctx) {
    let mut c = ctx.tcp();
    c.arrive(&[700]);
    c.tell(Do::Reset(Some(Thread::this().tid())));
    assert_eq!(c.take(10_000, libc::MSG_WAITALL).unwrap(), 700);
    assert_eq!(errno(c.take(10_000, libc::MSG_WAITALL)), RESET);
}

pub(super) fn a_reset_shows_in_poll(ctx: &mut Ctx) {
    let c = &mut ctx.tcp();
    c.tell(Do::Reset(Some(Thread::this().tid())));
    let events = sock::events(c, libc::POLLIN | libc::POLLRDHUP, DEADLINE_MS);
    assert_eq!(events, libc::POLLIN | libc::POLLRDHUP | libc::POLLERR | libc::POLLHUP);
    assert_eq!(sock::get(c, libc::SOL_SOCKET, libc::SO_ERROR).unwrap(), RESET);
    assert_eq!(c.take(100, 0).unwrap(), 0, "the error was taken");
}

pub(super) fn a_write_after_a_reset_is_epipe(ctx: &mut Ctx) {
    let mut c = ctx.tcp();
    c.order(Do::Reset(None));
    sock::events(&c, 0, DEADLINE_MS);
    assert_eq!(errno(c.take(100, 0)), RESET);
    // SAFETY: a buffer of one byte.
    let sent = unsafe { libc::send(c.as_raw_fd(), [0u8].as_ptr().cast(), 1, libc::MSG_NOSIGNAL) };
    assert_eq!((sent, std::io::Error::last_os_error().raw_os_error()), (-1, Some(libc::EPIPE)));
}

pub(super) fn both_end_at_once(ctx: &mut Ctx) {
    for _ in 0..10 {
        let mut c = ctx.tcp();
        c.write_later(&[1_000]);
        c.tell(Do::ShutdownWrite);
        c.exact(1_000);
        sock::shutdown(&c, libc::SHUT_WR).unwrap();
        c.assert_end();
        c.finish();
        c.finish();
        assert_eq!(c.close(), (0, 0));
    }
}

/// How the process of `child::tcp_ends` goes.
const WAYS: [&str; 5] = ["return", "exit", "_exit", "exec", "exit-with-thread"];

/// The kernel closes what a process leaves open: everything was read, so the peer gets a FIN.
pub(super) fn a_process_that_ends_leaves_a_fin(ctx: &mut Ctx) {
    for way in WAYS {
        assert_eq!(child_ends(ctx, way, 30_000), (0, 0), "{way}");
    }
}

pub(super) fn a_process_that_ends_with_data_unread_leaves_a_rst(ctx: &mut Ctx) {
    for way in WAYS {
        assert_eq!(child_ends(ctx, way, 29_999), (0, RESET), "{way}");
    }
}

pub(super) fn a_killed_process_leaves_a_fin(ctx: &mut Ctx) {
    assert_eq!(child_ends(ctx, "kill", 30_000), (0, 0));
}

/// Starts `child::tcp_ends PORT:WAY:BYTES:NUMBER`; how its connection ends for the peer.
fn child_ends(ctx: &mut Ctx, way: &str, read: usize) -> (u64, i32) {
    let (at, to) = ctx.addresses(Kind::V4);
    let listener = sock::listening(at);
    let pending = ctx.pending(to);
    sock::fcntl(&listener, libc::F_SETFD, 0).unwrap();
    let argument = format!("{}:{way}:{read}:{}", listener.as_raw_fd(), pending.number);
    let mut child = dual("child::tcp_ends", &argument).spawn().unwrap();
    let status = child.wait().unwrap();
    assert!(status.success() || way == "kill", "{way}: {status}");
    pending.with(listener).peers_end()
}

/// `child::tcp_ends LISTENER:WAY:BYTES:NUMBER`: accepts, reads so much of 30,000 bytes, and ends.
pub(super) fn child(ctx: &mut Ctx) {
    let argument = ctx.args[0].clone();
    let words: Vec<_> = argument.split(':').collect();
    let listener = super::lifecycle::adopt(words[0].parse().unwrap());
    let read: usize = words[2].parse().unwrap();
    let mut c =
        Conn::of(sock::accept4(&listener, libc::SOCK_CLOEXEC).unwrap().0, words[3].parse().unwrap(), 0);
    c.write(&[1]);
    c.exact(1);
    c.arrive(&[10_000, 19_999]);
    c.exact(read - 1);
    let _kept = c.s.into_raw_fd();
    go(words[1]);
}

/// Ends this process.
fn go(way: &str) {
    // SAFETY: ends the process, replaces it, or sends it a signal.
    unsafe {
        match way {
            "exit" => libc::exit(0),
            "_exit" => libc::_exit(0),
            "kill" => drop(libc::raise(libc::SIGKILL)),
            "exec" => {
                let argv = [c"/bin/true".as_ptr(), std::ptr::null()];
                libc::execv(argv[0], argv.as_ptr());
            }
            "exit-with-thread" => {
                std::thread::spawn(|| sock::poll(&mut [], -1));
                libc::exit(0);
            }
            _ => {}
        }
    }
}

pub(super) fn a_killed_parent_leaves_the_childs_copy_open(ctx: &mut Ctx) {
    let mut c = ctx.tcp();
    let pid = super::process::fork(|| {
        c.exact(10);
    });
    c.write(&[10]);
    assert_child_succeeds(pid);
    c.at += 10;
    c.write(&[20]);
    c.exact(20);
    assert_eq!(c.close(), (0, 0));
}

pub(super) fn urgent_data_is_read_out_of_band(ctx: &mut Ctx) {
    let mut c = ctx.tcp();
    c.write(&[100]);
    c.order(Do::Urgent(11));
    c.order(Do::Arrived);
    assert_eq!(sock::events(&c, libc::POLLPRI, DEADLINE_MS), libc::POLLPRI);
    let byte = stream::bytes(c.number(), c.at + 110, 1);
    assert_eq!(sock::take(&c, 10, libc::MSG_OOB).unwrap(), byte);
    assert_eq!(errno(sock::take(&c, 10, libc::MSG_OOB)), libc::EINVAL);
    c.exact(110);
    c.at += 1; // is not in the stream
    c.arrive(&[50]);
    c.exact(50);
}

/// A read stops before the mark and goes on behind it.
pub(super) fn urgent_data_stops_a_read(ctx: &mut Ctx) {
    let mut c = ctx.tcp();
    c.write(&[100]);
    c.order(Do::Urgent(1));
    c.arrive(&[200]);
    assert!(!at_mark(&c));
    assert_eq!(c.take(1_000, 0).unwrap(), 100);
    assert!(at_mark(&c));
    c.at += 1;
    assert_eq!(c.take(1_000, 0).unwrap(), 200);
}

pub(super) fn urgent_data_in_line(ctx: &mut Ctx) {
    let mut c = ctx.tcp();
    sock::set(&c, libc::SOL_SOCKET, libc::SO_OOBINLINE, 1).unwrap();
    c.write(&[100]);
    c.order(Do::Urgent(10));
    c.arrive(&[200]);
    assert_eq!(c.take(1_000, 0).unwrap(), 109);
    assert!(at_mark(&c));
    assert_eq!(c.take(1_000, 0).unwrap(), 201);
    assert!(!at_mark(&c));
    assert_eq!(errno(sock::take(&c, 1, libc::MSG_OOB)), libc::EINVAL);
}

pub(super) fn urgent_data_again_and_again(ctx: &mut Ctx) {
    let mut c = ctx.tcp();
    for round in 1..20 {
        c.write(&[round * 70]);
        c.order(Do::Urgent(round));
        c.arrive(&[3_000]);
        c.exact(round * 71 - 1);
        let byte = stream::bytes(c.number(), c.at, 1);
        assert_eq!(sock::take(&c, 1, libc::MSG_OOB).unwrap(), byte);
        c.at += 1;
        c.exact(3_000);
    }
}

/// ioctl(2) `SIOCATMARK`.
fn at_mark(s: &impl AsRawFd) -> bool {
    const SIOCATMARK: libc::c_ulong = 0x8905;
    let mut value = 0i32;
    // SAFETY: the request writes one int.
    check(unsafe { libc::ioctl(s.as_raw_fd(), SIOCATMARK, &raw mut value) }).unwrap();
    value != 0
}

/// tcp(7): probes of an idle connection are answered, so it stays.
pub(super) fn keepalive_keeps_an_idle_connection(ctx: &mut Ctx) {
    let mut c = ctx.tcp();
    sock::set(&c, libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1).unwrap();
    for option in [libc::TCP_KEEPIDLE, libc::TCP_KEEPINTVL, libc::TCP_KEEPCNT] {
        sock::set(&c, libc::IPPROTO_TCP, option, 1).unwrap();
        c.order(Do::Set(libc::IPPROTO_TCP, option, 1));
    }
    c.order(Do::Set(libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1));
    sock::set_timeout(&c, std::time::Duration::from_secs(3));
    assert_eq!(errno(c.take(100, 0)), libc::EAGAIN);
    c.arrive(&[100]);
    c.exact(100);
    c.ask(100);
}

/// connect(2) with `AF_UNSPEC` ends a connection; the socket can open another one.
pub(super) fn a_socket_connects_again(ctx: &mut Ctx) {
    let first = ctx.peer_listens(Kind::V4);
    let second = ctx.peer_listens(Kind::V4);
    let s = sock::tcp_for(first).unwrap();
    sock::connect(&s, first).unwrap();
    let mut c = ctx.adopt(s, first);
    c.warm();
    c.arrive(&[5_000]);
    c.exact(1_000);
    sock::disconnect(&c).unwrap();
    assert_eq!(c.peers_end(), (0, RESET));
    assert_eq!(errno(c.take(100, libc::MSG_DONTWAIT)), RESET, "`tcp_disconnect` leaves it there");
    assert_eq!(errno(c.take(100, libc::MSG_DONTWAIT)), libc::ENOTCONN);
    sock::connect(&c, second).unwrap();
    let s = sock::dup(&c).unwrap();
    let mut again = ctx.adopt(s, second);
    again.warm();
    super::tcp_recv::mixed(&mut again);
}

/// The number of a closed connection's descriptor is the next one's.
pub(super) fn a_descriptor_number_is_used_again(ctx: &mut Ctx) {
    let (at, to) = ctx.addresses(Kind::V4);
    let listener = sock::listening(at);
    let mut number = -1;
    for round in 0..30 {
        let mut c = ctx.accepted(&listener, to);
        assert!(number == -1 || c.as_raw_fd() <= number + 1, "numbers are used again");
        number = c.as_raw_fd();
        c.warm();
        c.arrive(&[10_000]);
        c.exact(if round % 2 == 0 { 10_000 } else { 5_000 });
        let end = (0, if round % 2 == 0 { 0 } else { RESET });
        assert_eq!(c.close(), end);
    }
}

/// dup2(2) puts one connection in the place of another.
pub(super) fn dup2_over_a_connection_replaces_it(ctx: &mut Ctx) {
    let mut a = ctx.tcp();
    let mut b = ctx.tcp();
    a.arrive(&[2_000]);
    b.arrive(&[3_000]);
    a.exact(2_000);
    // SAFETY: no pointers; `a.s` goes on owning the number, which means the other connection from here on.
    check(unsafe { libc::dup2(b.as_raw_fd(), a.as_raw_fd()) }).unwrap();
    assert_eq!(a.peers_end(), (0, 0));
    drop(std::mem::replace(&mut b.s, a.s));
    b.exact(3_000);
    b.write_when_asleep(&[100]);
    b.exact(100);
    b.finish();
    assert_eq!(b.close(), (0, 0));
}

/// The order told before the call, so that the peer's answer cannot be mistaken.
pub(super) fn close_in_another_thread_leaves_a_reader_its_data(ctx: &mut Ctx) {
    let mut c = ctx.tcp();
    let this = Thread::this();
    let copy = sock::dup(&c).unwrap();
    let mut other = Conn::of(sock::dup(&c).unwrap(), c.number(), 0);
    scope(|scope| {
        scope.spawn(move || {
            this.until_asleep();
            drop(copy);
            other.write(&[100]);
        });
        c.exact(100);
    });
    let answer = c.order(Do::Arrived);
    assert!(matches!(answer, Answer::Done));
}
