//! SIGTERM ends a peer as silence does: with its report.
#![allow(unsafe_code)]

use std::sync::atomic::{AtomicBool, Ordering};

static STOP: AtomicBool = AtomicBool::new(false);

/// True once SIGTERM has come.
pub fn asked() -> bool {
    STOP.load(Ordering::Relaxed)
}

/// To be called once. Without SA_RESTART: a blocking call returns and the loop sees the flag.
pub fn on_sigterm() {
    extern "C" fn stop(_: libc::c_int) {
        STOP.store(true, Ordering::Relaxed);
    }
    // SAFETY: an all-zero sigaction is a valid one; the handler only stores to an atomic.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = stop as extern "C" fn(libc::c_int) as usize;
        libc::sigaction(libc::SIGTERM, &raw const action, std::ptr::null_mut());
    }
}
