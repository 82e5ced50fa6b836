//! `--spin-us`: a thread that finds nothing runs the driver itself before it sleeps.
//!
//! An epoll instance of our own, which the kernel lets poll busily (EPIOCSPARAMS, Linux 6.9): while a thread waits on it, it owns
//! the device's NAPI instance (`ep_busy_loop`, `napi_busy_loop`), and the first packet in a ring ends the wait. No interrupt, no
//! wake-up, no setting of the device. Reads that do not block would run the driver too, but give it up each time, and its
//! own thread then fights the spinning one for the CPU.
//!
//! The instance is that of a socket in the epoll: an AF_XDP socket where the driver tells its queue the id, or else (veth tells 0)
//! a UDP socket that has received a datagram through the kernel. So with spinning a socket is lifted after its first datagram.

use crate::{
    control, engine,
    signals::{self, Handlers},
    socket::State,
    sys,
    table::SOCKETS,
    wait::Deadline,
};
use core::sync::atomic::{
    AtomicI32,
    Ordering::{AcqRel, Acquire, Relaxed, Release},
};
use hoist_sys::Errno;
use libc::c_int;

/// The epoll instance, -1 until there is something to spin on, and where the kernel is older than 6.9.
static EPOLL: AtomicI32 = AtomicI32::new(-1);
/// The program's socket through which the epoll knows the NAPI instance, -1: none.
static HELPER: AtomicI32 = AtomicI32::new(-1);

const SO_INCOMING_NAPI_ID: c_int = 56;

/// Whether threads spin at all.
#[inline]
pub(crate) fn spins() -> bool {
    control::SPIN_US.load(Relaxed) != 0
}

/// A UDP socket is lifted: it may know the NAPI instance.
pub(crate) fn learn(fd: c_int) {
    if !spins() || HELPER.load(Relaxed) >= 0 || !knows_napi(fd) {
        return;
    }
    if EPOLL.load(Relaxed) < 0 {
        open();
    }
    if HELPER.compare_exchange(-1, fd, AcqRel, Relaxed).is_ok() {
        watch(fd, 0);
    }
}

fn knows_napi(fd: c_int) -> bool {
    sys::option::<u32>(fd, libc::SOL_SOCKET, SO_INCOMING_NAPI_ID).is_ok_and(|id| id != 0)
}

fn open() {
    let Some(epoll) = sys::busy_epoll(control::SPIN_US.load(Relaxed)).ok().and_then(control::hide) else {
        return;
    };
    if EPOLL.compare_exchange(-1, epoll, Release, Relaxed).is_err() {
        return control::discard(epoll);
    }
    engine::ring_fds().for_each(ring_added);
}

/// A ring whose packets end a spin.
pub(crate) fn ring_added(fd: c_int) {
    watch(fd, libc::EPOLLIN as u32);
}

/// Its NAPI instance is the epoll's from here on (`ep_set_busy_poll_napi_id`).
fn watch(fd: c_int, events: u32) {
    let mut event = libc::epoll_event { events, u64: 0 };
    let _ = sys::epoll_ctl(EPOLL.load(Acquire), libc::EPOLL_CTL_ADD, fd, &raw mut event);
}

fn unwatch(fd: c_int) {
    let _ = sys::epoll_ctl(EPOLL.load(Acquire), libc::EPOLL_CTL_DEL, fd, core::ptr::null_mut());
}

/// `fd` is about to be closed: another lifted socket takes its part.
pub(crate) fn forget(fd: c_int) {
    if !spins() || HELPER.compare_exchange(fd, -1, AcqRel, Relaxed).is_err() {
        return;
    }
    unwatch(fd);
    let lifted = SOCKETS.iter(control::highest()).filter(|(_, socket)| socket.state() == State::Lifted);
    lifted.for_each(|(other, _)| {
        if other as c_int != fd {
            learn(other as c_int)
        }
    });
}

/// In a forked child, which has no rings.
pub(crate) fn forget_all() {
    let epoll = EPOLL.swap(-1, AcqRel);
    HELPER.store(-1, Relaxed);
    if epoll >= 0 {
        control::discard(epoll);
    }
}

/// How a spin ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Spun {
    /// What was waited for is in a queue.
    Lifted,
    /// A handler of a signal has run.
    Signal,
    /// Nothing came: sleep.
    Nothing,
}

/// Runs the driver and the rings until `ready`, for `--spin-us` at most.
pub(crate) fn spin(deadline: Deadline, mut ready: impl FnMut() -> bool) -> Spun {
    let epoll = EPOLL.load(Acquire);
    if epoll < 0 || engine::ring_count() == 0 || !engine::ours() {
        return Spun::Nothing;
    }
    let limit = u64::from(control::SPIN_US.load(Relaxed)) * 1000;
    // A wait that is to end sooner is left to the kernel's clock. Which handler ran cannot be told here.
    if deadline.left().is_some_and(|left| left < limit) || signals::handlers() == Handlers::Mixed {
        return Spun::Nothing;
    }
    let end = Deadline::after(Some(limit));
    loop {
        engine::pump();
        if ready() {
            return Spun::Lifted;
        }
        match sys::epoll_spin(epoll) {
            Err(Errno(libc::EINTR)) => return Spun::Signal,
            Ok(0) | Err(_) => return fruitless(&mut ready),
            Ok(_) if end.over() => return fruitless(&mut ready),
            Ok(_) => {}
        }
    }
}

/// An epoll that found nothing has forgotten the instance (`ep_busy_loop`).
#[cold]
fn fruitless(ready: &mut impl FnMut() -> bool) -> Spun {
    let helper = HELPER.load(Acquire);
    if helper >= 0 {
        unwatch(helper);
        watch(helper, 0);
    }
    engine::pump();
    if ready() { Spun::Lifted } else { Spun::Nothing }
}
