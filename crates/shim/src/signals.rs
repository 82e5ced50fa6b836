//! Whether an interrupted call starts again, as SA_RESTART says.
//!
//! `recv` restarts after a handler with SA_RESTART, `ppoll` never does, and a thread that sleeps in `ppoll` on behalf of
//! `recv` cannot see which handler ran. Most programs install all handlers one way, and then there is nothing to see;
//! for the others the wait keeps signals blocked and reads from signalfd(2) which one is about to be delivered.

use crate::sys;
use core::sync::atomic::{
    AtomicU8,
    Ordering::{Relaxed, SeqCst},
};

/// How the process's handlers were installed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum Handlers {
    /// Not looked at since the last change.
    Unknown = 0,
    /// There are none.
    None = 4,
    /// All with SA_RESTART.
    Restart = 1,
    /// All without.
    Interrupt = 2,
    /// Some with, some without.
    Mixed = 3,
}

static HANDLERS: AtomicU8 = AtomicU8::new(Handlers::Unknown as u8);

/// Signals that glibc uses for itself (cancellation, setxid): never held back.
const LIBC_SIGNALS: u64 = 0b11 << 31;

/// A handler was installed or removed.
pub(crate) fn changed() {
    HANDLERS.store(Handlers::Unknown as u8, SeqCst);
}

pub(crate) fn handlers() -> Handlers {
    match HANDLERS.load(Relaxed) {
        1 => Handlers::Restart,
        2 => Handlers::Interrupt,
        3 => Handlers::Mixed,
        4 => Handlers::None,
        _ => survey(),
    }
}

#[cold]
fn survey() -> Handlers {
    let found = combine((1..=64).filter_map(restarts));
    HANDLERS.store(found as u8, SeqCst);
    found
}

/// Whether the handler of `signal` restarts calls; None if there is none.
fn restarts(signal: i32) -> Option<bool> {
    let action = sys::sigaction_of(signal).ok()?;
    let handled = action.handler != libc::SIG_DFL && action.handler != libc::SIG_IGN;
    handled.then_some(action.flags & libc::SA_RESTART as u64 != 0)
}

fn combine(handlers: impl Iterator<Item = bool>) -> Handlers {
    let (mut with, mut without) = (false, false);
    for restarts in handlers {
        with |= restarts;
        without |= !restarts;
    }
    match (with, without) {
        (true, true) => Handlers::Mixed,
        (false, true) => Handlers::Interrupt,
        (true, false) => Handlers::Restart,
        (false, false) => Handlers::None,
    }
}

/// Signals held back for the time of a wait, with a descriptor that tells when one is pending.
pub(crate) struct Held {
    old: u64,
    pub(crate) fd: i32,
}

impl Held {
    /// Blocks signals in this thread. None if the process has no descriptor left.
    pub(crate) fn new() -> Option<Self> {
        let mut held = Self::blocking()?;
        match sys::signalfd(!(held.old | LIBC_SIGNALS)) {
            Ok(fd) => held.fd = fd,
            Err(_) => {
                let _ = sys::set_sigmask(held.old);
                return None;
            }
        }
        Some(held)
    }

    /// The same without the descriptor (-1).
    pub(crate) fn blocking() -> Option<Self> {
        let old = sys::set_sigmask(!LIBC_SIGNALS).ok()?;
        Some(Self { old, fd: -1 })
    }

    /// Lets signals through again. Some(true): what was pending restarts the call; Some(false): it interrupts.
    pub(crate) fn release(self) -> Option<bool> {
        let pending = sys::sigpending() & !self.old;
        let verdict = (1..=64).filter(|signal| pending >> (signal - 1) & 1 == 1).filter_map(restarts);
        let verdict = verdict.fold(None, |all, restarts| Some(all.unwrap_or(true) && restarts));
        if self.fd >= 0 {
            sys::close(self.fd);
        }
        let _ = sys::set_sigmask(self.old); // pending handlers run here
        verdict
    }
}

#[cfg(test)]
mod tests {
    use super::{Handlers, combine};

    #[test]
    fn handlers_of_one_kind_need_no_closer_look() {
        assert_eq!(combine([].into_iter()), Handlers::None);
        assert_eq!(combine([true, true].into_iter()), Handlers::Restart);
        assert_eq!(combine([false].into_iter()), Handlers::Interrupt);
        assert_eq!(combine([true, false].into_iter()), Handlers::Mixed);
    }
}
