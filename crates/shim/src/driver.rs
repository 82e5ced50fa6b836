//! `--spin-us`: a thread that finds nothing runs the driver itself before it sleeps.
//!
//! A busy poll (`napi_busy_loop`) starts from a socket that knows its NAPI instance: an AF_XDP socket, where the driver has
//! told its rx queue the instance's id, or else (veth tells 0) a UDP socket that has received a datagram from the kernel.
//! So a socket is lifted only after its first datagram when there is spinning. The broker has set the sockets' SO_BUSY_POLL
//! options and holds the device's interrupts back.

use crate::{control, engine, signals::Held, sys, wait::Deadline};
use core::sync::atomic::{
    AtomicU64,
    Ordering::{Acquire, Relaxed, Release},
};
use libc::c_int;

/// NAPI instances that can be run: id in the upper half, a descriptor to run it by in the lower; 0: none.
static RUNNERS: [AtomicU64; hoist_ipc::page::RINGS] = [const { AtomicU64::new(0) }; hoist_ipc::page::RINGS];

const SO_INCOMING_NAPI_ID: c_int = 56;

/// Whether threads spin at all.
#[inline]
pub(crate) fn spins() -> bool {
    control::SPIN_US.load(Relaxed) != 0
}

/// Remembers a descriptor, of a lifted UDP socket or a ring, if it knows a NAPI instance that none is known for.
pub(crate) fn learn(fd: c_int) {
    let id = sys::option::<u32>(fd, libc::SOL_SOCKET, SO_INCOMING_NAPI_ID).unwrap_or(0);
    if id == 0 || RUNNERS.iter().any(|runner| runner.load(Relaxed) >> 32 == u64::from(id)) {
        return;
    }
    let runner = u64::from(id) << 32 | fd as u64;
    let free = |slot: &&AtomicU64| slot.compare_exchange(0, runner, Release, Relaxed).is_ok();
    let _ = RUNNERS.iter().find(free);
}

/// The descriptor is about to be closed or its socket leaves the rings.
pub(crate) fn forget(fd: c_int) {
    for slot in &RUNNERS {
        let runner = slot.load(Relaxed);
        if runner != 0 && runner as u32 == fd as u32 {
            let _ = slot.compare_exchange(runner, 0, Release, Relaxed);
        }
    }
}

/// Runs every known NAPI instance once; true when the kernel has a datagram for `fd`. A peek runs the instance only if
/// nothing is there to be peeked at (`__skb_recv_udp`).
fn run(fd: c_int) -> bool {
    let mut found = false;
    for slot in &RUNNERS {
        let runner = slot.load(Acquire);
        if runner == 0 {
            break;
        }
        let by = runner as u32 as c_int;
        let (nowhere, nobody) = (core::ptr::null_mut(), core::ptr::null_mut());
        let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
        let there = sys::recvfrom(by, nowhere, 0, flags, nobody, core::ptr::null_mut()).is_ok();
        found |= there && by == fd;
    }
    found
}

/// How a spin ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Spun {
    /// What was waited for is in a queue.
    Lifted,
    /// The kernel has something for the descriptor.
    Kernel,
    /// A signal with a handler came meanwhile; the handler has run. `restarts`: it asked for calls to be restarted.
    Signal {
        /// SA_RESTART.
        restarts: bool,
    },
    /// Nothing came: sleep.
    Nothing,
}

/// Runs the driver and the rings until `ready`, for `--spin-us` at most. Signals are held back meanwhile, or one that came
/// just before the sleep would not end it.
pub(crate) fn spin(fd: c_int, deadline: Deadline, ready: impl FnMut() -> bool) -> Spun {
    if !spins() || engine::ring_count() == 0 {
        return Spun::Nothing;
    }
    let Some(held) = Held::blocking() else { return Spun::Nothing };
    let spun = spin_held(fd, deadline, ready);
    if spun == Spun::Nothing {
        engine::ring_fds().for_each(learn);
    }
    match held.release() {
        Some(restarts) if spun == Spun::Nothing => Spun::Signal { restarts },
        _ => spun,
    }
}

fn spin_held(fd: c_int, deadline: Deadline, mut ready: impl FnMut() -> bool) -> Spun {
    let limit = u64::from(control::SPIN_US.load(Relaxed)) * 1000;
    let end = Deadline::after(Some(deadline.left().map_or(limit, |left| left.min(limit))));
    loop {
        engine::pump();
        if ready() {
            return Spun::Lifted;
        }
        if run(fd) {
            return Spun::Kernel;
        }
        if end.over() {
            return Spun::Nothing;
        }
        core::hint::spin_loop();
    }
}
