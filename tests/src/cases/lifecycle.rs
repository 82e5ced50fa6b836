//! dup, close, shutdown.

use super::{Ctx, assert_empty};
use crate::{
    cases::signals::Thread,
    sock::{self, check, errno, own},
};
use std::{
    ffi::CString,
    net::SocketAddr,
    os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd},
};

/// A number no descriptor has.
const FREE: RawFd = 500;

/// One datagram read by the original, one waiting when it is closed, one that comes later: the copy reads both.
fn copy_reads_on(ctx: &mut Ctx, copy: impl FnOnce(RawFd) -> OwnedFd) {
    let (s, at) = ctx.bound4();
    ctx.send(at, &[b"one", b"two"]);
    assert_eq!(sock::take(&s, 100, 0).unwrap(), b"one");
    sock::wait_readable(&s);
    let copy = copy(s.as_raw_fd());
    drop(s);
    assert_eq!(sock::take(&copy, 100, libc::MSG_DONTWAIT).unwrap(), b"two");
    ctx.send_when_asleep(at, &[b"three"]);
    assert_eq!(sock::take(&copy, 100, 0).unwrap(), b"three");
}

pub(super) fn dup_reads_on(ctx: &mut Ctx) {
    copy_reads_on(ctx, |fd| sock::dup(&fd).unwrap());
}

pub(super) fn dup2_reads_on(ctx: &mut Ctx) {
    // SAFETY: no pointers; nobody owns descriptor FREE.
    copy_reads_on(ctx, |fd| own(unsafe { libc::dup2(fd, FREE) }).unwrap());
}

pub(super) fn dup3_reads_on(ctx: &mut Ctx) {
    // SAFETY: no pointers; nobody owns descriptor FREE.
    copy_reads_on(ctx, |fd| own(unsafe { libc::dup3(fd, FREE, libc::O_CLOEXEC) }).unwrap());
}

pub(super) fn f_dupfd_reads_on(ctx: &mut Ctx) {
    for command in [libc::F_DUPFD, libc::F_DUPFD_CLOEXEC] {
        copy_reads_on(ctx, |fd| own(sock::fcntl(&fd, command, FREE).unwrap()).unwrap());
    }
}

pub(super) fn dup2_over_a_socket_replaces_it(ctx: &mut Ctx) {
    let (s, at) = ctx.bound4();
    ctx.send(at, &[b"one", b"two"]);
    assert_eq!(sock::take(&s, 100, 0).unwrap(), b"one");
    sock::wait_readable(&s);
    let (reader, writer) = sock::pipe();
    // SAFETY: no pointers; `s` goes on owning the number, which means the pipe from here on.
    check(unsafe { libc::dup2(reader.as_raw_fd(), s.as_raw_fd()) }).unwrap();
    sock::write(&writer, b"from the pipe").unwrap();
    let mut buffer = [0; 100];
    assert_eq!(sock::read(&s, &mut buffer).unwrap(), 13);
    assert_eq!(errno(sock::take(&s, 100, 0)), libc::ENOTSOCK);
    let again = sock::bound(at);
    ctx.send(at, &[b"three"]);
    assert_eq!(sock::take(&again, 100, 0).unwrap(), b"three");
}

pub(super) fn close_frees_the_port(ctx: &mut Ctx) {
    let at = ctx.address4();
    for round in 0..50u8 {
        let s = sock::bound(at);
        ctx.send(at, &[&[round]]);
        assert_eq!(sock::take(&s, 100, 0).unwrap(), [round]);
    }
}

pub(super) fn close_with_data_queued(ctx: &mut Ctx) {
    let at = ctx.address4();
    let old = sock::bound(at);
    ctx.send(at, &[&b"old"[..]; 20]);
    ctx.fence();
    drop(old);
    let new = sock::bound(at);
    assert_empty(&new);
    ctx.send(at, &[b"new"]);
    assert_eq!(sock::take(&new, 100, 0).unwrap(), b"new");
}

pub(super) fn close_one_keeps_the_other(ctx: &mut Ctx) {
    let (a, a_at) = ctx.bound4();
    let (b, b_at) = ctx.bound4();
    ctx.send(a_at, &[b"a"]);
    ctx.send(b_at, &[b"b"]);
    sock::wait_readable(&b);
    drop(a);
    assert_eq!(sock::take(&b, 100, libc::MSG_DONTWAIT).unwrap(), b"b");
    ctx.send_when_asleep(b_at, &[b"again"]);
    assert_eq!(sock::take(&b, 100, 0).unwrap(), b"again");
}

/// Closed by number, then the port and perhaps the number are used again.
fn closed_by(ctx: &mut Ctx, close: impl FnOnce(RawFd)) {
    let (s, at): (OwnedFd, SocketAddr) = ctx.bound4();
    ctx.send(at, &[b"old", b"old"]);
    assert_eq!(sock::take(&s, 100, 0).unwrap(), b"old");
    ctx.fence();
    let fd = s.into_raw_fd();
    close(fd);
    assert_eq!(errno(sock::take(&fd, 100, libc::MSG_DONTWAIT)), libc::EBADF);
    let again = sock::bound(at);
    assert_empty(&again);
    ctx.send(at, &[b"new"]);
    assert_eq!(sock::take(&again, 100, 0).unwrap(), b"new");
}

pub(super) fn close_range_closes(ctx: &mut Ctx) {
    closed_by(ctx, |fd| {
        // SAFETY: no pointers; the caller has given the descriptor up.
        check(unsafe { libc::close_range(fd as u32, fd as u32, 0) }).unwrap();
    });
}

pub(super) fn fclose_closes(ctx: &mut Ctx) {
    closed_by(ctx, |fd| {
        let mode = CString::new("r").unwrap();
        // SAFETY: the stream owns the descriptor that the caller has given up.
        unsafe {
            let file = libc::fdopen(fd, mode.as_ptr());
            assert!(!file.is_null());
            assert_eq!(libc::fclose(file), 0);
        }
    });
}

pub(super) fn many_sockets_in_turn(ctx: &mut Ctx) {
    let (kept, kept_at) = ctx.bound4();
    for round in 0..200u8 {
        let (s, at) = ctx.bound4();
        if round % 20 == 0 {
            ctx.send(at, &[&[round]]);
            ctx.send(kept_at, &[&[round]]);
            assert_eq!(sock::take(&s, 100, 0).unwrap(), [round]);
            assert_eq!(sock::take(&kept, 100, 0).unwrap(), [round]);
        }
    }
}

/// `inet_shutdown` says ENOTCONN for a socket that is not connected, and wakes readers all the same.
pub(super) fn shutdown_wakes_a_reader(ctx: &mut Ctx) {
    let (s, at) = ctx.bound4();
    ctx.send(at, &[b"one"]);
    assert_eq!(sock::take(&s, 100, 0).unwrap(), b"one");
    let reader = Thread::this();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            reader.until_asleep();
            assert_eq!(errno(sock::shutdown(&s, libc::SHUT_RD)), libc::ENOTCONN);
        });
        assert_eq!(sock::take(&s, 100, 0).unwrap(), b"");
    });
    assert_eq!(sock::take(&s, 100, 0).unwrap(), b"");
}

pub(super) fn shutdown_of_a_connected_socket(ctx: &mut Ctx) {
    let (s, at) = ctx.bound4();
    sock::connect(&s, ctx.from(at)).unwrap();
    ctx.send(at, &[b"one"]);
    assert_eq!(sock::take(&s, 100, 0).unwrap(), b"one");
    sock::shutdown(&s, libc::SHUT_RD).unwrap();
    assert_eq!(sock::take(&s, 100, 0).unwrap(), b"");
    let found = sock::events(&s, libc::POLLIN | libc::POLLRDHUP, 0);
    assert_eq!(found, libc::POLLIN | libc::POLLRDHUP);
}

pub(super) fn shutdown_lets_queued_data_out(ctx: &mut Ctx) {
    let (s, at) = ctx.bound4();
    sock::connect(&s, ctx.from(at)).unwrap();
    ctx.send(at, &[b"one", b"two"]);
    ctx.fence();
    sock::shutdown(&s, libc::SHUT_RD).unwrap();
    assert_eq!(sock::take(&s, 100, 0).unwrap(), b"one");
    assert_eq!(sock::take(&s, 100, 0).unwrap(), b"two");
    assert_eq!(sock::take(&s, 100, 0).unwrap(), b"");
}

/// A descriptor that somebody else opened for this process.
pub(super) fn adopt(fd: RawFd) -> OwnedFd {
    // SAFETY: the caller was handed this number and nobody else in the process uses it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}
