//! Every interleaving of two ends, and of two threads that share an end under a lock.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p hoist-xsk --release --lib` (a target directory of its own saves rebuilding)

use super::{Consumer, Producer, Word};
use loom::cell::UnsafeCell;
use loom::sync::atomic::{AtomicU32, Ordering};
use loom::sync::{Arc, Mutex};
use loom::thread;

const SIZE: u32 = 2;
/// The cursors wrap within every run.
const START: u32 = u32::MAX;

impl Word for Arc<AtomicU32> {
    fn relaxed(&self) -> u32 {
        self.load(Ordering::Relaxed)
    }
    fn acquire(&self) -> u32 {
        self.load(Ordering::Acquire)
    }
    fn release(&self, value: u32) {
        self.store(value, Ordering::Release);
    }
}

/// Slots that loom watches: an unordered read and write of one is a failure.
type Slots = Arc<Vec<UnsafeCell<u64>>>;
type Word32 = Arc<AtomicU32>;

fn ring() -> (Producer<Word32>, Consumer<Word32>, Slots) {
    let (producer, consumer) = (Arc::new(AtomicU32::new(START)), Arc::new(AtomicU32::new(START)));
    let slots = Arc::new((0..SIZE).map(|_| UnsafeCell::new(0)).collect());
    let give = Producer::resume(producer.clone(), consumer.clone(), SIZE).expect("cursors agree");
    let take = Consumer::resume(producer, consumer, SIZE).expect("cursors agree");
    (give, take, slots)
}

#[expect(unsafe_code, reason = "loom checks the access that the cursors allow")]
fn write(slots: &Slots, slot: u32, value: u64) {
    // SAFETY: loom fails the model when another thread accesses the slot at the same time.
    slots[slot as usize].with_mut(|cell| unsafe { *cell = value });
}

#[expect(unsafe_code, reason = "loom checks the access that the cursors allow")]
fn read(slots: &Slots, slot: u32) -> u64 {
    // SAFETY: loom fails the model when another thread writes the slot at the same time.
    slots[slot as usize].with(|cell| unsafe { *cell })
}

fn push(ring: &mut Producer<Word32>, slots: &Slots, value: u64) -> bool {
    let Some(slot) = ring.claim() else { return false };
    write(slots, slot, value);
    ring.submit();
    true
}

fn pop(ring: &mut Consumer<Word32>, slots: &Slots) -> Option<u64> {
    ring.available();
    let value = read(slots, ring.slot(0)?);
    ring.release(1);
    Some(value)
}

#[test]
fn entries_arrive_whole_and_in_order_through_a_ring_that_fills() {
    loom::model(|| {
        let (mut give, mut take, slots) = ring();
        let theirs = slots.clone();
        let giver = thread::spawn(move || {
            for value in 1..=3 {
                while !push(&mut give, &theirs, value) {
                    thread::yield_now();
                }
            }
            give.corrupt()
        });
        for expected in 1..=3 {
            let value = loop {
                if let Some(value) = pop(&mut take, &slots) {
                    break value;
                }
                thread::yield_now();
            };
            assert_eq!(value, expected);
        }
        assert_eq!((giver.join().unwrap(), take.corrupt(), take.available()), (0, 0, 0));
    });
}

#[test]
fn a_batch_is_published_by_one_submit() {
    loom::model(|| {
        let (mut give, mut take, slots) = ring();
        let theirs = slots.clone();
        let giver = thread::spawn(move || {
            for value in [7, 8] {
                write(&theirs, give.claim().expect("room"), value);
            }
            give.submit();
        });
        match take.available() {
            0 => {}
            2 => assert_eq!([0, 1].map(|i| read(&slots, take.slot(i).unwrap())), [7, 8]),
            n => panic!("{n} of a batch of 2 visible"),
        }
        giver.join().unwrap();
    });
}

#[test]
fn two_threads_under_a_lock_take_each_entry_once() {
    loom::model(|| {
        let (mut give, take, slots) = ring();
        let shared = Arc::new(Mutex::new(take));
        let takers = [(); 2].map(|()| {
            let (shared, slots) = (shared.clone(), slots.clone());
            thread::spawn(move || pop(&mut shared.lock().unwrap(), &slots))
        });
        assert!(push(&mut give, &slots, 1));
        assert!(push(&mut give, &slots, 2));
        let mut taken: Vec<u64> = takers.into_iter().filter_map(|taker| taker.join().unwrap()).collect();
        taken.extend(std::iter::from_fn(|| pop(&mut shared.lock().unwrap(), &slots)));
        taken.sort_unstable();
        assert_eq!(taken, [1, 2]);
    });
}

#[test]
fn two_threads_under_a_lock_give_each_entry_once() {
    loom::model(|| {
        let (give, mut take, slots) = ring();
        let shared = Arc::new(Mutex::new(give));
        let givers = [1, 2].map(|value| {
            let (shared, slots) = (shared.clone(), slots.clone());
            thread::spawn(move || assert!(push(&mut shared.lock().unwrap(), &slots, value)))
        });
        let mut taken: Vec<u64> = pop(&mut take, &slots).into_iter().collect();
        for giver in givers {
            giver.join().unwrap();
        }
        taken.extend(std::iter::from_fn(|| pop(&mut take, &slots)));
        taken.sort_unstable();
        assert_eq!(taken, [1, 2]);
    });
}
