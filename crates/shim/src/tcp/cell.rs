//! The positions of a stream and the lock that guards it, in memory that a forked child shares: both processes then know how
//! far the one kernel socket has been read.

use crate::{control, sys};
use core::{
    cell::UnsafeCell,
    sync::atomic::{
        AtomicPtr, AtomicU64, AtomicUsize,
        Ordering::{Acquire, Relaxed, Release},
    },
};
use hoist_stream::Reader;

/// Failed tries after which a waiting thread looks whether the holder's process still lives.
const PATIENCE: u32 = 1000;

/// One stream's.
#[repr(align(64))]
pub(crate) struct Cell {
    /// Process and thread that hold the lock; 0: free.
    holder: AtomicU64,
    reader: UnsafeCell<Reader>,
}

// SAFETY: the reader is reached only by the holder of the lock.
unsafe impl Sync for Cell {}

/// The cells of this process, in pieces of a shared mapping; a child makes its own.
static PIECE: AtomicPtr<Cell> = AtomicPtr::new(core::ptr::null_mut());
static USED: AtomicUsize = AtomicUsize::new(CELLS);
const CELLS: usize = 1024;

/// A new cell, never freed: whoever has it may use it again, unless a child shares it.
pub(crate) fn make() -> Option<&'static Cell> {
    loop {
        let index = USED.fetch_add(1, Relaxed);
        if index < CELLS {
            // SAFETY: a piece has CELLS cells, zeroed by the kernel (free, positions 0), and each index is given out once: USED
            // is set to 0 after the new piece is stored.
            return unsafe { PIECE.load(Acquire).add(index).as_ref() };
        }
        let piece = sys::shared_memory(CELLS * size_of::<Cell>()).ok()?;
        PIECE.store(piece.cast(), Release);
        USED.store(0, Release);
    }
}

/// In a forked child: the rest of the piece is the parent's.
pub(crate) fn forget() {
    USED.store(CELLS, Relaxed);
}

/// Differs between live threads of all processes: pid, and the address of the thread's errno in units of 16 bytes.
#[inline]
fn me() -> u64 {
    // SAFETY: returns a pointer to thread-local storage; nothing is read.
    let thread = unsafe { libc::__errno_location() } as u64 >> 3;
    (control::pid() as u64) << 42 | thread & ((1 << 42) - 1)
}

impl Cell {
    /// Takes the lock. None: this very thread holds it, a signal handler interrupted it.
    #[inline]
    pub(crate) fn lock(&'static self) -> Option<Locked> {
        let me = me();
        match self.holder.compare_exchange(0, me, Acquire, Relaxed) {
            Ok(_) => Some(Locked(self)),
            Err(holder) => self.wait(me, holder),
        }
    }

    #[cold]
    fn wait(&'static self, me: u64, mut holder: u64) -> Option<Locked> {
        let mut tries = 0;
        loop {
            if holder == me {
                return None;
            }
            tries += 1;
            let dead = tries % PATIENCE == 0 && holder != 0 && !sys::process_exists((holder >> 42) as i32);
            let from = if dead { holder } else { 0 };
            match self.holder.compare_exchange_weak(from, me, Acquire, Relaxed) {
                Ok(_) => return Some(Locked(self)),
                Err(found) => holder = found,
            }
            sys::yield_now();
        }
    }
}

/// The lock, held.
pub(crate) struct Locked(&'static Cell);

impl Locked {
    #[inline]
    pub(crate) fn reader(&mut self) -> &mut Reader {
        // SAFETY: this is the one holder, and the borrow is exclusive.
        unsafe { &mut *self.0.reader.get() }
    }
}

impl Drop for Locked {
    #[inline]
    fn drop(&mut self) {
        self.0.holder.store(0, Release);
    }
}
