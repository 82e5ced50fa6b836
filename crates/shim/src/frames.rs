//! What the shim knows of each frame, and the way frames go back.
//!
//! A frame has one owner at a time: the kernel (fill and rx ring), the pump, a socket's queue, or the reader that
//! popped it, who may leave it to the chunks he made of it. Readers hand frames back on a stack without a lock; the pump takes the whole stack at once, newest first,
//! so the warmest frame is the next that the kernel writes.

use core::cell::UnsafeCell;
use core::sync::atomic::{
    AtomicU32,
    Ordering::{AcqRel, Acquire, Relaxed, Release},
};

/// End of a chain of frames.
const NONE: u32 = u32::MAX;

/// What the pump found out about the datagram in a frame. Addresses, TTL and TOS are read from the packet when asked for:
/// so that this fits a cache line with the slot's link.
#[derive(Clone, Copy, Default)]
pub(crate) struct Arrival {
    /// Address of the packet in the UMEM.
    pub(crate) address: u64,
    /// All that was charged to the socket before it.
    pub(crate) charged_before: u64,
    /// Arrival time, ns since the epoch (CLOCK_REALTIME); 0 if nobody asked.
    pub(crate) time_ns: u64,
    /// Interface it arrived on.
    pub(crate) ifindex: u32,
    /// `sk_drops` when it was queued.
    pub(crate) drops: u32,
    /// Length of the packet: at most a chunk.
    pub(crate) len: u16,
    /// Where the payload lies in the packet, and its length, bytes.
    pub(crate) payload_at: u16,
    pub(crate) payload_len: u16,
    /// Ring it came from: index in the engine.
    pub(crate) ring: u16,
    /// IPv6.
    pub(crate) v6: bool,
    /// Sent to a group or broadcast.
    pub(crate) group: bool,
}

const _: () = assert!(size_of::<Slot>() == 64);

#[repr(align(64))]
struct Slot {
    next: AtomicU32,
    /// Chunks of the program that lie in the frame.
    chunks: AtomicU32,
    arrival: UnsafeCell<Arrival>,
}

/// One slot for each frame of the UMEM.
pub(crate) struct Frames {
    slots: Box<[Slot]>,
}

// SAFETY: a slot's arrival is written by the pump, which owns the frame then, and read by whoever owns it next; the
// queue's release/acquire pair orders the two. `peek` is the exception and says how it copes.
unsafe impl Sync for Frames {}
// SAFETY: nothing here belongs to a thread.
unsafe impl Send for Frames {}

impl Frames {
    pub(crate) fn new(count: u32) -> Self {
        let slot = |_| Slot {
            next: AtomicU32::new(NONE),
            chunks: AtomicU32::new(0),
            arrival: UnsafeCell::new(Arrival::default()),
        };
        Self { slots: (0..count).map(slot).collect() }
    }

    /// Records an arrival. Only the holder of the pump lock calls this, for a frame that is in no queue.
    #[inline]
    pub(crate) fn record(&self, frame: u32, arrival: Arrival) {
        if let Some(slot) = self.slots.get(frame as usize) {
            // SAFETY: the frame came from a ring and is in no queue: nobody reads the slot.
            unsafe { *slot.arrival.get() = arrival }
        }
    }

    /// The arrival of a frame that the caller owns (popped, or under the pump lock).
    #[inline]
    pub(crate) fn arrival(&self, frame: u32) -> &Arrival {
        // SAFETY: the caller owns the frame, so nobody writes the slot until it is given back.
        unsafe { &*self.slots[frame as usize].arrival.get() }
    }

    /// A copy of the arrival of a frame that somebody else may take meanwhile: sound only if the queue still has the
    /// frame first afterwards.
    pub(crate) fn peek(&self, frame: u32) -> Arrival {
        // SAFETY: the slot is in bounds (indexing checks) and holds plain integers, for which any bytes are valid; the
        // volatile read keeps the compiler from assuming that it is stable.
        unsafe { core::ptr::read_volatile(self.slots[frame as usize].arrival.get()) }
    }
}

impl Frames {
    /// One chunk more lies in a frame that the caller owns.
    #[inline]
    pub(crate) fn hold(&self, frame: u32) {
        if let Some(slot) = self.slots.get(frame as usize) {
            slot.chunks.fetch_add(1, Relaxed);
        }
    }

    /// One chunk less: true for the last one, who owns the frame then. False too if there was none.
    #[inline]
    pub(crate) fn let_go(&self, frame: u32) -> bool {
        let Some(slot) = self.slots.get(frame as usize) else { return false };
        slot.chunks.fetch_update(AcqRel, Relaxed, |chunks| chunks.checked_sub(1)) == Ok(1)
    }

    /// Frames with chunks in them.
    pub(crate) fn held(&self) -> impl Iterator<Item = u32> + '_ {
        (0..).zip(&self.slots).filter(|(_, slot)| slot.chunks.load(Acquire) > 0).map(|(frame, _)| frame)
    }

    /// `charged_before` of a queued frame, for the holder of the pump lock.
    #[inline]
    pub(crate) fn peek_charged_before(&self, frame: u32) -> u64 {
        // SAFETY: only the holder of the pump lock writes slots, and that is the caller.
        unsafe { (*self.slots[frame as usize].arrival.get()).charged_before }
    }
}

/// Frames on their way back to one ring's pump.
pub(crate) struct Returned(AtomicU32);

impl Returned {
    pub(crate) const fn new() -> Self {
        Self(AtomicU32::new(NONE))
    }

    /// Gives a frame back. Any thread, any time.
    #[inline]
    pub(crate) fn push(&self, frames: &Frames, frame: u32) {
        let Some(slot) = frames.slots.get(frame as usize) else { return };
        let mut top = self.0.load(Relaxed);
        loop {
            slot.next.store(top, Relaxed);
            match self.0.compare_exchange_weak(top, frame, Release, Relaxed) {
                Ok(_) => return,
                Err(current) => top = current,
            }
        }
    }

    /// Takes all, newest first. Taking everything at once is what keeps the stack free of the ABA problem.
    #[inline]
    pub(crate) fn take<'f>(&self, frames: &'f Frames) -> Chain<'f> {
        if self.0.load(Relaxed) == NONE {
            return Chain { frames, next: NONE };
        }
        Chain { frames, next: self.0.swap(NONE, AcqRel) }
    }

    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.0.load(Acquire) == NONE
    }
}

/// Frames taken from [`Returned`].
pub(crate) struct Chain<'f> {
    frames: &'f Frames,
    next: u32,
}

impl Iterator for Chain<'_> {
    type Item = u32;

    #[inline]
    fn next(&mut self) -> Option<u32> {
        let frame = self.next;
        let slot = self.frames.slots.get(frame as usize)?;
        self.next = slot.next.load(Acquire);
        Some(frame)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};

    #[test]
    fn frames_come_back_newest_first() {
        let (frames, returned) = (Frames::new(4), Returned::new());
        [2, 0, 3].iter().for_each(|&frame| returned.push(&frames, frame));
        assert!(returned.take(&frames).eq([3, 0, 2]));
        assert!(returned.is_empty());
        returned.push(&frames, 99); // no such frame: not ours to give back
        assert_eq!(returned.take(&frames).count(), 0);
    }

    #[test]
    fn the_last_chunk_to_go_owns_the_frame() {
        let frames = Frames::new(4);
        frames.hold(2);
        frames.hold(2);
        assert!(frames.held().eq([2]));
        assert_eq!([frames.let_go(2), frames.let_go(2), frames.let_go(2)], [false, true, false]);
        assert_eq!(frames.held().count(), 0);
        frames.hold(99);
        assert!(!frames.let_go(99)); // no such frame
    }

    #[test]
    fn no_frame_is_lost_or_doubled_between_threads() {
        const COUNT: u32 = 1024;
        let (frames, returned, stop) = (Frames::new(COUNT), Returned::new(), AtomicBool::new(false));
        let mut seen = vec![0u32; COUNT as usize];
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..4u32)
                .map(|worker| {
                    let (frames, returned) = (&frames, &returned);
                    scope.spawn(move || {
                        (worker..COUNT).step_by(4).for_each(|frame| returned.push(frames, frame))
                    })
                })
                .collect();
            let (frames, returned, stop, seen) = (&frames, &returned, &stop, &mut seen);
            scope.spawn(move || {
                loop {
                    let last = stop.load(Ordering::Acquire);
                    returned.take(frames).for_each(|frame| seen[frame as usize] += 1);
                    if last {
                        break;
                    }
                }
            });
            workers.into_iter().for_each(|worker| worker.join().unwrap());
            stop.store(true, Ordering::Release);
        });
        assert!(seen.iter().all(|&times| times == 1));
    }
}
