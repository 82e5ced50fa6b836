//! The hub: what the processes of a run and the broker must agree on to share frames. Processes on the same device queue have
//! rx rings of their own and one fill ring together (`xsk_bind`: one pool a queue).
//!
//! Whoever takes a frame out of an rx ring writes his seat beside it, and 0 when he pushes it to the fill ring. So if he dies the
//! broker knows which frames were his. The fill ring has a lock that survives its holder: what it guards is known from what stands in it.

use core::sync::atomic::{
    AtomicU8, AtomicU32,
    Ordering::{Acquire, Relaxed, Release},
};

/// Processes that can have rings at a time.
pub const SEATS: usize = 32;
/// Frames that can be followed: more than any UMEM of Hoist has.
pub const FRAMES: usize = 1 << 18;
/// Holder of a lock: the broker.
pub const BROKER: u32 = u32::MAX;

/// The memory itself.
#[repr(C)]
pub struct Hub {
    /// Processes that share the frames.
    pub seats: AtomicU32,
    fills: [Fill; crate::page::RINGS],
    owners: [AtomicU8; FRAMES],
}

// SAFETY: atomics only.
unsafe impl crate::page::Shared for Hub {}

/// The lock of one queue's fill ring.
#[repr(C, align(64))]
pub struct Fill {
    /// Seat + 1, or [`BROKER`]; 0: free.
    holder: AtomicU32,
    /// The producer's cursor when it was taken.
    start: AtomicU32,
    /// Frames written to the ring since, published or not.
    pushed: AtomicU32,
}

/// What the holder of a fill ring's lock had done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Held {
    /// The producer's cursor when it was taken.
    pub start: u32,
    /// Frames written to the ring since.
    pub pushed: u32,
}

impl Hub {
    /// Its size in bytes, for ftruncate.
    pub const LEN: usize = size_of::<Self>();

    /// One that nobody shares.
    pub fn alone() -> Box<Self> {
        let mut hub = Box::<Self>::new_uninit();
        // SAFETY: zero is a valid value of atomics, and all bytes are written.
        unsafe {
            hub.as_mut_ptr().write_bytes(0, 1);
            hub.assume_init()
        }
    }

    /// The lock of queue number `ring`.
    pub fn fill(&self, ring: u32) -> Option<&Fill> {
        self.fills.get(ring as usize)
    }

    /// Notes that the process at `seat` has taken a frame.
    #[inline]
    pub fn take(&self, frame: u32, seat: u8) {
        if let Some(owner) = self.owners.get(frame as usize) {
            owner.store(seat + 1, Relaxed);
        }
    }

    /// Notes that a frame is the kernel's. Before it is published.
    #[inline]
    pub fn give(&self, frame: u32) {
        if let Some(owner) = self.owners.get(frame as usize) {
            owner.store(0, Release);
        }
    }

    /// The seat of the process that has a frame; None: the kernel has it.
    pub fn owner(&self, frame: u32) -> Option<u8> {
        self.owners.get(frame as usize)?.load(Acquire).checked_sub(1)
    }
}

impl Fill {
    /// Takes the lock; `holder` is a seat + 1, or [`BROKER`]. Call [`begin`](Self::begin) next.
    #[inline]
    pub fn try_lock(&self, holder: u32) -> bool {
        self.holder.compare_exchange(0, holder, Acquire, Relaxed).is_ok()
    }

    /// Notes where the producer's cursor stands.
    #[inline]
    pub fn begin(&self, producer: u32) {
        self.pushed.store(0, Relaxed);
        self.start.store(producer, Release);
    }

    /// Notes that a frame was written to the ring.
    #[inline]
    pub fn pushed(&self) {
        self.pushed.store(self.pushed.load(Relaxed) + 1, Release);
    }

    /// Frees the lock.
    #[inline]
    pub fn unlock(&self) {
        self.holder.store(0, Release);
    }

    /// What `holder`, who is dead, had done with the lock; None: it was not his.
    pub fn left_by(&self, holder: u32) -> Option<Held> {
        let held = self.holder.load(Acquire) == holder;
        held.then(|| Held { start: self.start.load(Acquire), pushed: self.pushed.load(Acquire) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_his_who_took_it_until_he_gives_it() {
        let hub = Hub::alone();
        assert_eq!(hub.owner(7), None);
        hub.take(7, 0);
        hub.take(8, 31);
        assert_eq!((hub.owner(7), hub.owner(8)), (Some(0), Some(31)));
        hub.give(7);
        assert_eq!((hub.owner(7), hub.owner(8)), (None, Some(31)));
        hub.take(u32::MAX, 1);
        assert_eq!(hub.owner(u32::MAX), None, "no such frame");
    }

    #[test]
    fn what_a_dead_holder_did_is_known() {
        let hub = Hub::alone();
        let fill = hub.fill(3).unwrap();
        assert!(fill.try_lock(2) && !fill.try_lock(BROKER));
        fill.begin(40);
        fill.pushed();
        fill.pushed();
        assert_eq!(fill.left_by(1), None);
        assert_eq!(fill.left_by(2), Some(Held { start: 40, pushed: 2 }));
        fill.unlock();
        assert_eq!(fill.left_by(2), None);
        assert!(fill.try_lock(BROKER));
        assert!(hub.fill(u32::MAX).is_none());
    }
}
