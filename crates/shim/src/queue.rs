//! The queue of frames that wait on one socket: one producer at a time (the pump), any number of readers, no lock.
//!
//! A reader may be a signal handler that interrupted another reader, so nothing here waits for anyone.

use core::sync::atomic::{
    AtomicU32,
    Ordering::{AcqRel, Acquire, Relaxed, Release},
};

/// Frame numbers in order of arrival. Capacity is a power of two, fixed when made.
pub(crate) struct Queue {
    slots: Box<[AtomicU32]>,
    head: AtomicU32,
    tail: AtomicU32,
}

impl Queue {
    /// A queue for `capacity` frames, rounded up to a power of two.
    pub(crate) fn new(capacity: u32) -> Self {
        let slots = (0..capacity.next_power_of_two()).map(|_| AtomicU32::new(0)).collect();
        Self { slots, head: AtomicU32::new(0), tail: AtomicU32::new(0) }
    }

    pub(crate) fn capacity(&self) -> u32 {
        self.slots.len() as u32
    }

    #[inline]
    fn slot(&self, position: u32) -> &AtomicU32 {
        &self.slots[position as usize & (self.slots.len() - 1)]
    }

    /// Frames waiting.
    #[inline]
    pub(crate) fn len(&self) -> u32 {
        let head = self.head.load(Acquire);
        self.tail.load(Acquire).wrapping_sub(head).min(self.slots.len() as u32)
    }

    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.head.load(Acquire) == self.tail.load(Acquire)
    }

    /// Appends a frame; false if the queue is full. Only the holder of the pump lock calls this.
    #[inline]
    pub(crate) fn push(&self, frame: u32) -> bool {
        let tail = self.tail.load(Relaxed);
        if tail.wrapping_sub(self.head.load(Acquire)) >= self.slots.len() as u32 {
            return false;
        }
        self.slot(tail).store(frame, Relaxed);
        self.tail.store(tail.wrapping_add(1), Release);
        true
    }

    /// Takes the oldest frame, which is the caller's from then on.
    #[inline]
    pub(crate) fn pop(&self) -> Option<u32> {
        let mut head = self.head.load(Acquire);
        loop {
            if head == self.tail.load(Acquire) {
                return None;
            }
            let frame = self.slot(head).load(Relaxed);
            match self.head.compare_exchange_weak(head, head.wrapping_add(1), AcqRel, Acquire) {
                Ok(_) => return Some(frame),
                Err(current) => head = current,
            }
        }
    }

    /// The oldest frame without taking it, and its ticket for [`Queue::still_first`].
    #[inline]
    pub(crate) fn peek(&self) -> Option<(u32, u32)> {
        let head = self.head.load(Acquire);
        (head != self.tail.load(Acquire)).then(|| (self.slot(head).load(Relaxed), head))
    }

    /// Whether nobody has taken the frame that [`Queue::peek`] showed: what was read from it is sound.
    #[inline]
    pub(crate) fn still_first(&self, ticket: u32) -> bool {
        core::sync::atomic::fence(Acquire);
        self.head.load(Acquire) == ticket
    }
}

#[cfg(test)]
mod tests {
    use super::Queue;
    use proptest::prelude::*;
    use std::collections::VecDeque;
    use std::sync::{Mutex, atomic::AtomicBool, atomic::Ordering};

    proptest! {
        #[test]
        fn behaves_as_a_bounded_fifo(start in any::<u32>(), operations in prop::collection::vec(any::<Option<u32>>(), 0..200)) {
            let queue = Queue::new(8);
            queue.head.store(start, Ordering::Relaxed);
            queue.tail.store(start, Ordering::Relaxed);
            let mut oracle = VecDeque::new();
            for operation in operations {
                match operation {
                    Some(frame) => {
                        prop_assert_eq!(queue.push(frame), oracle.len() < 8);
                        if oracle.len() < 8 { oracle.push_back(frame) }
                    }
                    None => {
                        prop_assert_eq!(queue.peek().map(|(frame, _)| frame), oracle.front().copied());
                        prop_assert_eq!(queue.pop(), oracle.pop_front());
                    }
                }
                prop_assert_eq!(queue.len() as usize, oracle.len());
                prop_assert_eq!(queue.is_empty(), oracle.is_empty());
            }
        }
    }

    #[test]
    fn two_readers_take_each_frame_once() {
        const FRAMES: u32 = 200_000;
        let (queue, done, taken) = (Queue::new(64), AtomicBool::new(false), Mutex::new(Vec::new()));
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    let mut mine = Vec::new();
                    loop {
                        match queue.pop() {
                            Some(frame) => mine.push(frame),
                            None if done.load(Ordering::Acquire) && queue.is_empty() => break,
                            None => std::hint::spin_loop(),
                        }
                    }
                    assert!(mine.is_sorted(), "a reader saw frames out of order");
                    taken.lock().unwrap().extend(mine);
                });
            }
            for frame in 0..FRAMES {
                while !queue.push(frame) {
                    std::thread::yield_now();
                }
            }
            done.store(true, Ordering::Release);
        });
        let mut taken = taken.into_inner().unwrap();
        taken.sort_unstable();
        assert!(taken.iter().copied().eq(0..FRAMES));
    }
}
