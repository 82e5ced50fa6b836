//! eventfds that wake threads of this process: borrowed for the time of a wait, kept for the next one.

use crate::{control, driver, sys};
use core::sync::atomic::{
    AtomicI32,
    Ordering::{AcqRel, Relaxed},
};

/// Bells kept when nobody needs them; more are closed.
const KEPT: usize = 64;

static FREE: [AtomicI32; KEPT] = [const { AtomicI32::new(-1) }; KEPT];

/// A bell, silent. None if the process has no descriptor left for it.
pub(crate) fn borrow() -> Option<i32> {
    let kept = FREE.iter().map(|slot| slot.swap(-1, AcqRel)).find(|&bell| bell >= 0);
    kept.or_else(make)
}

fn make() -> Option<i32> {
    let bell = sys::eventfd().ok().and_then(control::hide)?;
    driver::bell_made(bell);
    Some(bell)
}

/// Puts a bell back.
pub(crate) fn put_back(bell: i32) {
    sys::eventfd_clear(bell);
    if !FREE.iter().any(|slot| slot.compare_exchange(-1, bell, AcqRel, Relaxed).is_ok()) {
        control::discard(bell);
    }
}

/// In a forked child: its copies of the descriptors are closed.
pub(crate) fn forget() {
    for slot in &FREE {
        let bell = slot.swap(-1, AcqRel);
        if bell >= 0 {
            control::discard(bell);
        }
    }
}
