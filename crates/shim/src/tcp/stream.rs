//! A TCP socket of the program.

use super::{
    cell::{self, Cell, Locked},
    payload::Held,
};
use crate::engine::Memory;
use core::{
    cell::UnsafeCell,
    sync::atomic::{
        AtomicBool, AtomicI32, AtomicPtr, AtomicU32, AtomicU64,
        Ordering::{Acquire, Relaxed, Release, SeqCst},
    },
};
use hoist_ipc::{Reason, tcp::Slot};
use hoist_stream::{Reader, Worker};

/// What the lock of a stream guards, besides its positions.
pub(crate) struct Work {
    pub(crate) worker: Worker<Held>,
    /// TAP of the device that its segments come from.
    pub(crate) tap: i32,
    /// In the pump's list of streams to flush.
    pub(crate) listed: bool,
    /// A forked child shares the cell.
    pub(crate) shared: bool,
}

/// A TCP socket of the program: how far it has been read and what of it is held.
pub(crate) struct Stream {
    /// Descriptors of this process that mean it.
    pub(crate) descriptors: AtomicU32,
    /// One of them.
    pub(crate) fd: AtomicI32,
    /// Reads go through the index: something may be held, or is being lifted. Set and cleared with the lock held.
    involved: AtomicBool,
    /// `steer` was told to lift it.
    pub(crate) lifting: AtomicBool,
    /// Reads under way that go straight to the kernel: it must not become involved under them.
    kernel_reads: AtomicU32,
    /// Bytes of the stream that the program has read, while it is not involved.
    seen: AtomicU64,
    /// [`Reason`] for which it is not lifted any more, 0: none.
    kept: AtomicU32,
    /// It was read by `recv_chunk`.
    pub(crate) native: AtomicBool,
    /// In the epoll instance with which threads spin.
    pub(crate) watched: AtomicBool,
    /// SO_RCVLOWAT; 0: not asked yet.
    pub(crate) lowat: AtomicU32,
    /// SO_COOKIE, once asked.
    pub(crate) cookie: AtomicU64,
    slot: AtomicPtr<Slot>,
    cell: AtomicPtr<Cell>,
    work: UnsafeCell<Work>,
}

// SAFETY: `work` is reached only by the holder of the cell's lock.
unsafe impl Sync for Stream {}

impl Stream {
    pub(crate) fn new() -> Self {
        Self {
            descriptors: AtomicU32::new(0),
            fd: AtomicI32::new(-1),
            involved: AtomicBool::new(false),
            lifting: AtomicBool::new(false),
            kernel_reads: AtomicU32::new(0),
            seen: AtomicU64::new(0),
            kept: AtomicU32::new(0),
            native: AtomicBool::new(false),
            watched: AtomicBool::new(false),
            lowat: AtomicU32::new(0),
            cookie: AtomicU64::new(0),
            slot: AtomicPtr::new(core::ptr::null_mut()),
            cell: AtomicPtr::new(core::ptr::null_mut()),
            work: UnsafeCell::new(Work { worker: Worker::new(), tap: -1, listed: false, shared: false }),
        }
    }

    /// Makes a closed stream new again, for `fd`.
    pub(crate) fn renew(&self, fd: i32) {
        self.descriptors.store(1, Relaxed);
        self.fd.store(fd, Relaxed);
        self.reset();
    }

    /// A new connection on the same socket.
    pub(crate) fn reset(&self) {
        self.kernel_reads.store(0, Relaxed);
        self.seen.store(0, Relaxed);
        self.kept.store(0, Relaxed);
        self.native.store(false, Relaxed);
        self.watched.store(false, Relaxed);
        self.lowat.store(0, Relaxed);
        self.cookie.store(0, Relaxed);
        self.slot.store(core::ptr::null_mut(), Relaxed);
    }

    #[inline]
    pub(crate) fn involved(&self) -> bool {
        self.involved.load(Acquire)
    }

    pub(crate) fn slot(&self) -> Option<&'static Slot> {
        // SAFETY: only `set_slot` stores here, references into a mapping that is never removed.
        unsafe { self.slot.load(Relaxed).as_ref() }
    }

    pub(crate) fn set_slot(&self, slot: &'static Slot) {
        self.slot.store(core::ptr::from_ref(slot).cast_mut(), Relaxed);
    }

    /// Why it is never lifted again, if so.
    #[inline]
    pub(crate) fn kept(&self) -> Option<Reason> {
        match self.kept.load(Relaxed) {
            0 => None,
            reason => Some(Reason::try_from(reason).unwrap_or(Reason::Refused)),
        }
    }

    /// Keeps the kernel serving it; the first reason stands. Shown, but for a slot that is another's by now.
    pub(crate) fn keep(&self, reason: Reason, option: u32) {
        if self.kept.compare_exchange(0, reason as u32, Relaxed, Relaxed).is_ok() {
            self.show(reason, option);
        }
    }

    /// Shows a reason in the slot.
    pub(crate) fn show(&self, reason: Reason, option: u32) {
        if let Some(slot) = self.own_slot() {
            slot.reason.store(reason as u32, Relaxed);
            slot.option.store(option, Relaxed);
        }
    }

    /// The slot, as long as it is this connection's.
    pub(crate) fn own_slot(&self) -> Option<&'static Slot> {
        let cookie = self.cookie.load(Relaxed);
        self.slot().filter(|slot| slot.occupant().is_some_and(|(owner, _)| owner == cookie))
    }

    /// Runs a read that goes straight to the kernel and returns how much of the stream it took. None: the stream is involved, or
    /// has become so, and nothing was read.
    #[inline]
    pub(crate) fn plainly<R>(&self, read: impl FnOnce() -> R, took: impl FnOnce(&R) -> u64) -> Option<R> {
        self.kernel_reads.fetch_add(1, SeqCst);
        if self.involved.load(SeqCst) {
            self.kernel_reads.fetch_sub(1, SeqCst);
            return None;
        }
        let result = read();
        self.seen.fetch_add(took(&result), Relaxed);
        self.kernel_reads.fetch_sub(1, SeqCst);
        Some(result)
    }

    #[inline]
    pub(crate) fn seen(&self) -> u64 {
        self.seen.load(Relaxed)
    }

    /// Makes reads go through the index from now on, unless one is under way in the kernel.
    pub(crate) fn involve(&self, guard: &mut Guard) -> bool {
        self.involved.store(true, SeqCst);
        if self.kernel_reads.load(SeqCst) != 0 {
            self.involved.store(false, SeqCst);
            return false;
        }
        *guard.reader() = Reader::at(self.seen());
        true
    }

    /// Takes the lock. None: this thread holds it already, or the stream was never lifted.
    #[inline]
    pub(crate) fn lock(&'static self) -> Option<Guard> {
        // SAFETY: only `with_cell` stores here, cells that live for ever.
        let cell = unsafe { self.cell.load(Acquire).as_ref() }?;
        Some(Guard { locked: cell.lock()?, stream: self })
    }

    /// Frames in which something is held.
    pub(crate) fn frames(&'static self) -> Vec<u32> {
        let Some(mut guard) = self.lock() else { return Vec::new() };
        let held = guard.work().worker.index.iter().filter_map(|entry| match entry.data {
            Held::Frame { frame, .. } => Some(frame),
            Held::Copy(_) => None,
        });
        held.collect()
    }

    /// Gives it a cell, if it has none. Only with the pump lock held.
    pub(crate) fn with_cell(&self) -> bool {
        if self.cell.load(Relaxed).is_null() {
            let Some(cell) = cell::make() else { return false };
            self.cell.store(core::ptr::from_ref(cell).cast_mut(), Release);
        }
        true
    }

    /// A child shares the cell: once the stream is closed, another connection must not use it.
    pub(crate) fn leave_cell(&self) {
        self.cell.store(core::ptr::null_mut(), Relaxed);
    }
}

/// A stream with its lock held.
pub(crate) struct Guard {
    locked: Locked,
    pub(crate) stream: &'static Stream,
}

impl Guard {
    #[inline]
    pub(crate) fn reader(&mut self) -> &mut Reader {
        self.locked.reader()
    }

    #[inline]
    pub(crate) fn work(&mut self) -> &mut Work {
        // SAFETY: the lock of the stream's cell is held, and the borrow is exclusive.
        unsafe { &mut *self.stream.work.get() }
    }

    #[inline]
    pub(crate) fn parts(&mut self) -> (&mut Reader, &mut Work) {
        // SAFETY: as in `work`; reader and work are different objects.
        (self.locked.reader(), unsafe { &mut *self.stream.work.get() })
    }

    /// Reads go straight to the kernel again, if nothing is held or lifted any more.
    #[inline]
    pub(crate) fn retire(&mut self) {
        let stream = self.stream;
        let (reader, work) = self.parts();
        if stream.lifting.load(Relaxed)
            || !work.worker.index.is_empty()
            || !work.worker.idle()
            || reader.undrained() > 0
        {
            return;
        }
        stream.seen.store(reader.position(), Relaxed);
        if stream.involved.swap(false, SeqCst) {
            super::INVOLVED.fetch_sub(1, Relaxed);
        }
    }

    /// Drops everything that is held: the socket is closed.
    pub(crate) fn empty(&mut self, memory: Option<&Memory>) {
        let (reader, work) = self.parts();
        work.worker.clear(|held: Held| {
            if let Some(memory) = memory {
                held.free(memory);
            }
        });
        *reader = Reader::default();
        if self.stream.involved.swap(false, SeqCst) {
            super::INVOLVED.fetch_sub(1, Relaxed);
        }
    }
}
