//! `--spin-us`: a thread that finds nothing runs the driver itself before it sleeps.
//!
//! An epoll instance of our own, which the kernel lets poll busily (EPIOCSPARAMS, Linux 6.9): while a thread waits on it, it owns
//! the device's NAPI instance (`ep_busy_loop`, `napi_busy_loop`), and the first packet in a ring ends the wait. No interrupt, no
//! wake-up, no setting of the device. Reads that do not block would run the driver too, but give it up each time, and its
//! own thread then fights the spinning one for the CPU. One thread spins at a time; others sleep as ever.
//!
//! The instance is that of a socket in the epoll: an AF_XDP socket where the driver tells its queue the id, or else (veth tells 0)
//! a UDP socket that has received a datagram through the kernel: see `control::waits_for_a_datagram`.

use crate::{
    control, engine,
    signals::{self, Handlers, Held},
    socket::State,
    sys,
    table::SOCKETS,
    wait::Deadline,
};
use core::sync::atomic::{
    AtomicBool, AtomicI32,
    Ordering::{AcqRel, Acquire, Relaxed, Release},
};
use hoist_sys::Errno;
use libc::{c_int, sigset_t};

/// The epoll instance, -1 without spinning.
static EPOLL: AtomicI32 = AtomicI32::new(-1);
/// The program's socket through which the epoll knows the NAPI instance, -1: none.
static HELPER: AtomicI32 = AtomicI32::new(-1);
/// Some thread spins.
static SPINNING: AtomicBool = AtomicBool::new(false);

const SO_INCOMING_NAPI_ID: c_int = 56;
/// While it runs the driver, the kernel looks at no signal: not for longer than this at a time.
const SLICE_US: u32 = 50;

/// Whether threads spin at all.
#[inline]
pub(crate) fn spins() -> bool {
    EPOLL.load(Relaxed) >= 0
}

/// Gets ready to spin for `us` microseconds; does nothing on a kernel that cannot.
pub(crate) fn open(us: u32) {
    if us == 0 || spins() {
        return;
    }
    if let Some(epoll) = sys::busy_epoll(us.min(SLICE_US)).ok().and_then(control::hide) {
        EPOLL.store(epoll, Release);
    }
}

/// A UDP socket is lifted: it may know the NAPI instance.
pub(crate) fn learn(fd: c_int) {
    if !spins() || HELPER.load(Relaxed) >= 0 || !knows_napi(fd) {
        return;
    }
    if HELPER.compare_exchange(-1, fd, AcqRel, Relaxed).is_ok() {
        watch(fd, SILENT);
        if HELPER.load(Acquire) != fd {
            unwatch(fd); // forgotten meanwhile
        }
    }
}

/// An error of the helper is reported whatever events are asked for; once is enough.
const SILENT: c_int = libc::EPOLLET;

fn knows_napi(fd: c_int) -> bool {
    sys::option::<u32>(fd, libc::SOL_SOCKET, SO_INCOMING_NAPI_ID).is_ok_and(|id| id != 0)
}

/// A ring whose packets end a spin.
pub(crate) fn ring_added(fd: c_int) {
    watch(fd, libc::EPOLLIN);
}

/// A TCP socket whose data, which comes through the kernel, ends a spin. It tells the NAPI instance, too.
pub(crate) fn watch_stream(fd: c_int) {
    watch(fd, libc::EPOLLIN | libc::EPOLLRDHUP | libc::EPOLLET);
}

/// A bell that ends a spin: what it stands for may be what the spinning thread waits for.
pub(crate) fn bell_made(fd: c_int) {
    watch(fd, libc::EPOLLIN | libc::EPOLLET);
}

/// The NAPI instance of `fd`, if it knows one, is the epoll's from here on (`ep_set_busy_poll_napi_id`).
fn watch(fd: c_int, events: c_int) {
    if spins() {
        let mut event = libc::epoll_event { events: events as u32, u64: 0 };
        let _ = sys::epoll_ctl(EPOLL.load(Acquire), libc::EPOLL_CTL_ADD, fd, &raw mut event);
    }
}

fn unwatch(fd: c_int) {
    let _ = sys::epoll_ctl(EPOLL.load(Acquire), libc::EPOLL_CTL_DEL, fd, core::ptr::null_mut());
}

/// `fd` means no lifted socket any more: another takes its part.
pub(crate) fn forget(fd: c_int) {
    if !spins() || !control::own_process() || HELPER.compare_exchange(fd, -1, AcqRel, Relaxed).is_err() {
        return;
    }
    unwatch(fd);
    let lifted = SOCKETS.iter(control::highest()).filter(|(_, socket)| socket.state() == State::Lifted);
    lifted.for_each(|(other, _)| learn(other as c_int));
}

/// In a forked child, which has no rings.
pub(crate) fn forget_all() {
    let epoll = EPOLL.swap(-1, AcqRel);
    HELPER.store(-1, Relaxed);
    SPINNING.store(false, Relaxed);
    if epoll >= 0 {
        control::discard(epoll);
    }
}

/// How a spin ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Spun {
    /// What was waited for is in a queue.
    Lifted,
    /// A handler of a signal has run; `restarts`: it was installed with SA_RESTART.
    Signal {
        /// SA_RESTART.
        restarts: bool,
    },
    /// Nothing came, or nothing may be waited for here: sleep.
    Nothing,
}

/// Runs the driver and the rings until `ready`, for about `--spin-us`. `mask` is what the program's wait is to have.
///
/// Signals with handlers are held back meanwhile: one that came just before the sleep would not end it.
pub(crate) fn spin(deadline: Deadline, mask: *const sigset_t, ready: impl FnMut() -> bool) -> Spun {
    let nothing = engine::ring_count() == 0 && !crate::tcp::active();
    if !spins() || nothing || !engine::ours() || !is_long(deadline) || is_pending(mask) {
        return Spun::Nothing;
    }
    if SPINNING.swap(true, Acquire) {
        return Spun::Nothing;
    }
    let spun = match signals::handlers() {
        Handlers::None => run(ready),
        _ => run_held(ready),
    };
    SPINNING.store(false, Release);
    spun
}

/// A wait that is to end soon is left to the kernel's clock.
fn is_long(deadline: Deadline) -> bool {
    let limit = u64::from(control::SPIN_US.load(Relaxed)) * 1000;
    deadline.left().is_none_or(|left| left >= 2 * limit)
}

/// A signal that only the wait's own mask lets through.
fn is_pending(mask: *const sigset_t) -> bool {
    // SAFETY: null was checked; the program's mask, of which the kernel too reads the first 64 signals.
    !mask.is_null() && sys::sigpending() & !unsafe { *mask.cast::<u64>() } != 0
}

fn run_held(ready: impl FnMut() -> bool) -> Spun {
    let Some(held) = Held::blocking() else { return Spun::Nothing };
    let spun = run(ready);
    match held.release() {
        Some(restarts) if spun == Spun::Nothing => Spun::Signal { restarts },
        _ => spun,
    }
}

fn run(mut ready: impl FnMut() -> bool) -> Spun {
    let epoll = EPOLL.load(Acquire);
    let end = Deadline::after(Some(u64::from(control::SPIN_US.load(Relaxed)) * 1000));
    engine::pump_on();
    loop {
        if ready() {
            return Spun::Lifted;
        }
        if end.over() {
            return Spun::Nothing;
        }
        match sys::epoll_spin(epoll) {
            Ok(0) => resume(),
            Ok(_) | Err(Errno(libc::EINTR)) => {} // stopped and continued: no handler can have run
            Err(_) => return Spun::Nothing,
        }
        if !engine::pump_on() {
            engine::pump(); // nothing more comes to merge with
        }
    }
}

/// An epoll that found nothing has forgotten the instance (`ep_busy_loop`).
#[cold]
fn resume() {
    let helper = HELPER.load(Acquire);
    if helper >= 0 {
        unwatch(helper);
        watch(helper, SILENT);
    }
}
