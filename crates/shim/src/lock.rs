//! The pump lock: one thread at a time moves frames from rings to sockets.
//!
//! On the fast path it is only ever tried: a thread that finds it taken waits for packets as if the rings were empty,
//! because whoever holds it delivers to every socket. Control paths (bind, close, fork) wait for it.

use core::cell::UnsafeCell;
use core::ops::{Deref, DerefMut};
use core::sync::atomic::{
    AtomicUsize,
    Ordering::{Acquire, Relaxed, Release},
};

pub(crate) struct PumpLock<T> {
    /// Identity of the holding thread, 0: free.
    holder: AtomicUsize,
    state: UnsafeCell<T>,
}

// SAFETY: the state is reached only through a guard, of which one exists at a time.
unsafe impl<T: Send> Sync for PumpLock<T> {}

pub(crate) struct Guard<'a, T>(&'a PumpLock<T>);

/// A number that differs between live threads: the address of this thread's errno.
#[inline]
fn me() -> usize {
    // SAFETY: returns a pointer to thread-local storage; nothing is read.
    unsafe { libc::__errno_location() as usize }
}

impl<T> PumpLock<T> {
    pub(crate) const fn new(state: T) -> Self {
        Self { holder: AtomicUsize::new(0), state: UnsafeCell::new(state) }
    }

    #[inline]
    pub(crate) fn try_lock(&self) -> Option<Guard<'_, T>> {
        if self.holder.load(Relaxed) != 0 {
            return None;
        }
        self.holder.compare_exchange(0, me(), Acquire, Relaxed).ok().map(|_| Guard(self))
    }

    /// Waits for the lock. None if this very thread holds it: a signal handler interrupted the holder.
    pub(crate) fn lock(&self) -> Option<Guard<'_, T>> {
        loop {
            if let Some(guard) = self.try_lock() {
                return Some(guard);
            }
            if self.held_by_me() {
                return None;
            }
            crate::sys::yield_now();
        }
    }

    pub(crate) fn held_by_me(&self) -> bool {
        self.holder.load(Relaxed) == me()
    }

    /// Frees the lock whose guard this thread has forgotten across a fork.
    pub(crate) fn release_forgotten(&self) {
        if self.held_by_me() {
            self.holder.store(0, Release);
        }
    }
}

impl<T> Deref for Guard<'_, T> {
    type Target = T;
    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: this guard is the only one.
        unsafe { &*self.0.state.get() }
    }
}

impl<T> DerefMut for Guard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: this guard is the only one.
        unsafe { &mut *self.0.state.get() }
    }
}

impl<T> Drop for Guard<'_, T> {
    #[inline]
    fn drop(&mut self) {
        self.0.holder.store(0, Release);
    }
}

/// A value that belongs to the pump state but lives elsewhere: reached only with the state in hand.
pub(crate) struct Guarded<T>(UnsafeCell<T>);

// SAFETY: reached only through `with`, which takes the one state exclusively.
unsafe impl<T: Send> Sync for Guarded<T> {}

impl<T> Guarded<T> {
    pub(crate) const fn new(value: T) -> Self {
        Self(UnsafeCell::new(value))
    }

    /// The value. `_state` proves that the pump lock is held; there is one pump state in the process.
    #[inline]
    #[allow(clippy::mut_from_ref)]
    pub(crate) fn with<'a>(&'a self, _state: &'a mut crate::engine::State) -> &'a mut T {
        // SAFETY: the exclusive borrow of the one state lasts as long as the returned borrow.
        unsafe { &mut *self.0.get() }
    }
}

impl<T: Copy> Guarded<T> {
    /// A copy of the value.
    ///
    /// # Safety
    /// The caller holds the pump lock and no borrow from `with` is alive.
    #[inline]
    pub(crate) unsafe fn read(&self) -> T {
        // SAFETY: nobody else can reach the value while the caller holds the lock.
        unsafe { *self.0.get() }
    }
}

#[cfg(test)]
mod tests {
    use super::PumpLock;

    #[test]
    fn one_thread_at_a_time_and_no_wait_for_oneself() {
        let lock = PumpLock::new(0u64);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..10_000).for_each(|_| *lock.lock().expect("not held by this thread") += 1));
            }
        });
        let guard = lock.lock().unwrap();
        assert_eq!(*guard, 40_000);
        assert!(lock.lock().is_none(), "a thread must not wait for itself");
        assert!(lock.try_lock().is_none());
    }
}
