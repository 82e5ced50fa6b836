//! A thread of the shim's that looks after lifted connections while no thread of the program does.
//!
//! It sleeps on a timer that is armed when lifting begins and when a thread comes back from waiting. If a tick passes without a
//! read, what is in the rings rides, so that the peer gets its acknowledgements, and the connections are parked: they pass, and
//! cost nothing, until the program reads again. Nothing ticks while nothing is lifted or all threads wait.

use super::{LIFTING, PUMPED};
use crate::{control, sys};
use core::sync::atomic::{
    AtomicBool, AtomicI32, AtomicU32,
    Ordering::{AcqRel, Acquire, Relaxed, SeqCst},
};

/// A connection that nobody has read for this long, up to twice, is parked, ns.
const TICK_NS: u64 = 4_000_000;

static TIMER: AtomicI32 = AtomicI32::new(-1);
static ARMED: AtomicBool = AtomicBool::new(false);
/// Threads that wait with the rings in their set.
static ASLEEP: AtomicU32 = AtomicU32::new(0);

/// Lifting has begun: somebody must look after it.
pub(crate) fn need() {
    if TIMER.load(Acquire) < 0 {
        start();
    }
    arm();
}

#[cold]
fn start() {
    let Some(timer) = sys::timerfd().ok().and_then(control::hide) else { return };
    if TIMER.compare_exchange(-1, timer, AcqRel, Acquire).is_err() {
        return control::discard(timer);
    }
    // The program's handlers run on its own threads: this one takes no signals.
    let Ok(mask) = sys::set_sigmask(!0) else { return };
    let started =
        std::thread::Builder::new().name("hoist".into()).stack_size(256 << 10).spawn(move || run(timer));
    let _ = sys::set_sigmask(mask);
    if started.is_err() {
        TIMER.store(-1, Relaxed);
        control::discard(timer);
    }
}

/// Whether the thread exists: without it nothing is lifted.
pub(crate) fn runs() -> bool {
    TIMER.load(Acquire) >= 0
}

fn arm() {
    if !ARMED.swap(true, SeqCst) {
        sys::timerfd_arm(TIMER.load(Acquire), TICK_NS);
    }
}

fn run(timer: i32) {
    let mut last = 0;
    while sys::timerfd_wait(timer) {
        ARMED.store(false, SeqCst);
        if ASLEEP.load(SeqCst) > 0 {
            continue;
        }
        if LIFTING.load(SeqCst) == 0 {
            super::sweep(); // what was being redirected when the last connection was parked
            continue;
        }
        let pumped = PUMPED.load(Relaxed);
        if pumped == last {
            super::park_all();
        }
        last = pumped;
        arm();
    }
}

/// In a forked child, which has no such thread.
pub(crate) fn forget() {
    let timer = TIMER.swap(-1, AcqRel);
    if timer >= 0 {
        control::discard(timer);
    }
    ARMED.store(false, Relaxed);
    ASLEEP.store(0, Relaxed);
}

/// While it lives, a thread waits with the rings in its set.
pub(crate) struct Asleep(());

impl Asleep {
    pub(crate) fn new() -> Self {
        ASLEEP.fetch_add(1, SeqCst);
        Self(())
    }
}

impl Drop for Asleep {
    fn drop(&mut self) {
        ASLEEP.fetch_sub(1, SeqCst);
        if LIFTING.load(SeqCst) > 0 {
            PUMPED.store(PUMPED.load(Relaxed).wrapping_add(1), Relaxed);
            arm();
        }
    }
}
