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

    /// Takes the oldest frame, which is the caller's from then on, and tells its ticket: the next frame's is one more.
    #[inline]
    pub(crate) fn pop(&self) -> Option<(u32, u32)> {
        let mut head = self.head.load(Acquire);
        loop {
            if head == self.tail.load(Acquire) {
                return None;
            }
            let frame = self.slot(head).load(Relaxed);
            match self.head.compare_exchange_weak(head, head.wrapping_add(1), AcqRel, Acquire) {
                Ok(_) => return Some((frame, head)),
                Err(current) => head = current,
            }
        }
    }

    /// Takes the oldest frame if it has this ticket and `accept` wants it. `accept` may look at a frame that somebody else
    /// takes meanwhile: then its answer does not count.
    #[inline]
    pub(crate) fn pop_if(&self, ticket: u32, accept: impl FnOnce(u32) -> bool) -> Option<u32> {
        if self.head.load(Acquire) != ticket || self.tail.load(Acquire) == ticket {
            return None;
        }
        let frame = self.slot(ticket).load(Relaxed);
        let taken = accept(frame)
            && self.head.compare_exchange(ticket, ticket.wrapping_add(1), AcqRel, Relaxed).is_ok();
        taken.then_some(frame)
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
                        prop_assert_eq!(queue.pop().map(|(frame, _)| frame), oracle.pop_front());
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
                            Some((frame, _)) => mine.push(frame),
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

    #[test]
    fn only_the_next_frame_is_taken_and_only_if_wanted() {
        let queue = Queue::new(4);
        queue.head.store(u32::MAX, Ordering::Relaxed);
        queue.tail.store(u32::MAX, Ordering::Relaxed);
        [7, 8, 9].iter().for_each(|&frame| assert!(queue.push(frame)));
        assert_eq!(queue.pop(), Some((7, u32::MAX)));
        assert_eq!(queue.pop_if(1, |_| true), None, "another ticket");
        assert_eq!(queue.pop_if(0, |frame| frame != 8), None, "not wanted");
        assert_eq!(queue.pop_if(0, |frame| frame == 8), Some(8));
        assert_eq!(queue.pop_if(0, |_| true), None, "taken already");
        assert_eq!(queue.pop(), Some((9, 1)));
        assert_eq!(queue.pop_if(2, |_| true), None, "empty");
    }

    #[test]
    fn a_frame_that_another_reader_takes_meanwhile_is_not_taken() {
        let queue = Queue::new(4);
        [1, 2].iter().for_each(|&frame| assert!(queue.push(frame)));
        assert_eq!(queue.pop_if(0, |_| queue.pop() == Some((1, 0))), None);
        assert_eq!(queue.pop(), Some((2, 1)));
    }

    /// Readers take runs of neighbours: every frame once, and nobody's run has a gap.
    #[test]
    fn runs_taken_by_two_readers_have_no_gaps() {
        const FRAMES: u32 = 200_000;
        let (queue, done, taken) = (Queue::new(64), AtomicBool::new(false), Mutex::new(Vec::new()));
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    let mut mine = Vec::new();
                    loop {
                        match queue.pop() {
                            Some((frame, ticket)) => {
                                assert_eq!(frame, ticket);
                                mine.push(frame);
                                let next = |i| queue.pop_if(ticket + i, |frame| frame == ticket + i);
                                mine.extend((1..8).map_while(next));
                            }
                            None if done.load(Ordering::Acquire) && queue.is_empty() => break,
                            None => std::hint::spin_loop(),
                        }
                    }
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
