//! select and pselect.

use super::Ctx;
use crate::{
    cases::signals::{blocked, count_signals, none_blocked, raise, signals_seen},
    sock::{self, check, errno, fd_set, is_set, timespec},
};
use std::{
    io::Result,
    os::fd::{AsRawFd, IntoRawFd, OwnedFd, RawFd},
    ptr::{null, null_mut},
    time::{Duration, Instant},
};

/// What select left behind.
struct Selected {
    count: i32,
    read: libc::fd_set,
    write: libc::fd_set,
    except: libc::fd_set,
    left: Duration,
}

/// select(2) on the same list for each set that has one.
fn select(read: &[RawFd], write: &[RawFd], except: &[RawFd], wait: Duration) -> Result<Selected> {
    let most = [read, write, except].concat().into_iter().max().unwrap_or(-1);
    let mut s = Selected {
        count: 0,
        read: fd_set(read),
        write: fd_set(write),
        except: fd_set(except),
        left: Duration::ZERO,
    };
    let mut time = libc::timeval { tv_sec: wait.as_secs() as _, tv_usec: wait.subsec_micros() as _ };
    // SAFETY: the sets and the time are locals.
    s.count = check(unsafe { libc::select(most + 1, &mut s.read, &mut s.write, &mut s.except, &mut time) })?;
    s.left = Duration::new(time.tv_sec as u64, time.tv_usec as u32 * 1000);
    Ok(s)
}

fn readable(fds: &[RawFd], wait: Duration) -> Result<Selected> {
    select(fds, &[], &[], wait)
}

fn pselect(s: &OwnedFd, wait: Option<Duration>, mask: *const libc::sigset_t) -> Result<i32> {
    let mut read = fd_set(&[s.as_raw_fd()]);
    let time = wait.map(timespec);
    let time = time.as_ref().map_or(null(), |t| t as *const _);
    // SAFETY: set and time are locals; the mask is null or the caller's.
    check(unsafe { libc::pselect(s.as_raw_fd() + 1, &mut read, null_mut(), null_mut(), time, mask) })
}

const LONG: Duration = Duration::from_secs(20);

pub(super) fn times_out_and_clears_the_sets(ctx: &mut Ctx) {
    let (s, at) = ctx.bound4();
    ctx.send(at, &[b"hello"]);
    assert_eq!(sock::take(&s, 100, 0).unwrap(), b"hello");
    let start = Instant::now();
    let wait = Duration::from_millis(100);
    let selected = readable(&[s.as_raw_fd()], wait).unwrap();
    assert_eq!((selected.count, is_set(&selected.read, &s), selected.left), (0, false, Duration::ZERO));
    assert!((wait..LONG).contains(&start.elapsed()), "{:?}", start.elapsed());
}

pub(super) fn sees_what_is_there_and_tells_the_time_left(ctx: &mut Ctx) {
    let (s, at) = ctx.bound4();
    ctx.send(at, &[b"hello"]);
    let selected = readable(&[s.as_raw_fd()], LONG).unwrap();
    assert_eq!((selected.count, is_set(&selected.read, &s)), (1, true));
    assert!(selected.left > Duration::from_secs(5) && selected.left <= LONG, "{:?}", selected.left);
    sock::take(&s, 100, 0).unwrap();
}

pub(super) fn wakes_up(ctx: &mut Ctx) {
    let sockets: Vec<_> = (0..8).map(|_| ctx.bound4()).collect();
    let fds: Vec<_> = sockets.iter().map(|(s, _)| s.as_raw_fd()).collect();
    for (s, at) in &sockets {
        ctx.send_when_asleep(*at, &[b"hello"]);
        let selected = readable(&fds, LONG).unwrap();
        assert_eq!(selected.count, 1);
        assert!(is_set(&selected.read, s));
        sock::take(s, 100, libc::MSG_DONTWAIT).unwrap();
        ctx.finish();
    }
}

pub(super) fn clears_when_drained(ctx: &mut Ctx) {
    let (s, at) = ctx.bound4();
    ctx.send(at, &[b"one", b"two"]);
    for _ in 0..2 {
        assert_eq!(readable(&[s.as_raw_fd()], LONG).unwrap().count, 1);
        sock::take(&s, 100, 0).unwrap();
    }
    assert_eq!(readable(&[s.as_raw_fd()], Duration::ZERO).unwrap().count, 0);
}

pub(super) fn mixes_with_pipes(ctx: &mut Ctx) {
    let (s, at) = ctx.bound4();
    let (reader, writer) = sock::pipe();
    let fds = [s.as_raw_fd(), reader.as_raw_fd()];
    ctx.send_when_asleep(at, &[b"hello"]);
    let selected = readable(&fds, LONG).unwrap();
    assert_eq!((is_set(&selected.read, &s), is_set(&selected.read, &reader)), (true, false));
    sock::write(&writer, b"x").unwrap();
    assert_eq!(readable(&fds, LONG).unwrap().count, 2);
    sock::take(&s, 100, 0).unwrap();
    let selected = readable(&fds, LONG).unwrap();
    assert_eq!((is_set(&selected.read, &s), is_set(&selected.read, &reader)), (false, true));
}

pub(super) fn writable_and_exceptional(ctx: &mut Ctx) {
    let (s, at) = ctx.bound4();
    ctx.send(at, &[b"hello"]);
    sock::wait_readable(&s);
    let fd = [s.as_raw_fd()];
    let selected = select(&fd, &fd, &fd, LONG).unwrap();
    assert_eq!(selected.count, 2);
    assert!(is_set(&selected.read, &s) && is_set(&selected.write, &s) && !is_set(&selected.except, &s));
    sock::take(&s, 100, 0).unwrap();
}

pub(super) fn a_closed_descriptor_is_ebadf(ctx: &mut Ctx) {
    let (s, at) = ctx.bound4();
    ctx.send(at, &[b"hello"]);
    let closed = ctx.bound4().0.into_raw_fd();
    sock::close(closed).unwrap();
    assert_eq!(errno(readable(&[s.as_raw_fd(), closed], LONG).map(|s| s.count)), libc::EBADF);
    sock::take(&s, 100, 0).unwrap();
}

pub(super) fn pselect_wakes_up(ctx: &mut Ctx) {
    let (s, at) = ctx.bound4();
    for wait in [None, Some(LONG)] {
        ctx.send_when_asleep(at, &[b"hello"]);
        assert_eq!(pselect(&s, wait, null()).unwrap(), 1);
        sock::take(&s, 100, 0).unwrap();
        ctx.finish();
    }
    assert_eq!(pselect(&s, Some(Duration::from_micros(500)), null()).unwrap(), 0);
}

pub(super) fn pselect_sets_the_mask(ctx: &mut Ctx) {
    let (s, at) = ctx.bound4();
    ctx.send(at, &[b"hello"]);
    assert_eq!(sock::take(&s, 100, 0).unwrap(), b"hello");
    count_signals(libc::SIGUSR1, 0);
    let _guard = blocked(libc::SIGUSR1);
    raise(libc::SIGUSR1);
    assert_eq!(errno(pselect(&s, Some(LONG), &none_blocked())), libc::EINTR);
    assert_eq!(signals_seen(), 1);
}
