//! Random operations on every kind of ring, against queues, with a kernel end of this file's own.
#![expect(unsafe_code, reason = "the fake kernel works on the same raw memory")]

use super::shared::{ConsumerRing, Parts, ProducerRing};
use super::{CompletionRing, Desc, FillRing, RxRing, TxRing};
use proptest::collection::vec;
use proptest::prelude::*;
use std::collections::VecDeque;
use std::fmt::Debug;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

/// A ring on ordinary memory, seen from the kernel.
struct Fake<T> {
    words: Box<[AtomicU32; 3]>,
    slots: NonNull<T>,
    size: u32,
}

const PRODUCER: usize = 0;
const CONSUMER: usize = 1;
const FLAGS: usize = 2;

impl<T: Copy + Default> Fake<T> {
    fn new(size: u32, start: u32) -> Self {
        let slots = Box::leak(vec![T::default(); size as usize].into_boxed_slice());
        let words = Box::new([start, start, 0].map(AtomicU32::new));
        Self { words, slots: NonNull::from(slots).cast(), size }
    }

    fn parts(&self) -> Parts<T> {
        let [producer, consumer, flags] = [PRODUCER, CONSUMER, FLAGS].map(|i| NonNull::from(&self.words[i]));
        Parts { producer, consumer, flags, slots: self.slots }
    }

    fn load(&self, word: usize) -> u32 {
        self.words[word].load(Ordering::SeqCst)
    }

    fn store(&self, word: usize, value: u32) {
        self.words[word].store(value, Ordering::SeqCst);
    }

    /// What lies in the ring, by the shared words.
    fn len(&self) -> u32 {
        self.load(PRODUCER).wrapping_sub(self.load(CONSUMER))
    }

    fn produce(&self, value: T) {
        let at = self.load(PRODUCER);
        // SAFETY: the remainder is below size; the ring under test does not hold the slot.
        unsafe { self.slots.add((at % self.size) as usize).write(value) };
        self.store(PRODUCER, at.wrapping_add(1));
    }

    fn consume(&self) -> T {
        let at = self.load(CONSUMER);
        // SAFETY: the remainder is below size.
        let value = unsafe { self.slots.add((at % self.size) as usize).read() };
        self.store(CONSUMER, at.wrapping_add(1));
        value
    }
}

impl<T> Drop for Fake<T> {
    fn drop(&mut self) {
        let slots = std::ptr::slice_from_raw_parts_mut(self.slots.as_ptr(), self.size as usize);
        // SAFETY: leaked by new(); the rings over it are gone, each test drops them first.
        drop(unsafe { Box::from_raw(slots) });
    }
}

/// A value that tells which entry it is.
trait Entry: Copy + Default + PartialEq + Debug {
    fn nth(n: u64) -> Self;
}

impl Entry for u64 {
    fn nth(n: u64) -> Self {
        n << 11
    }
}

impl Entry for Desc {
    fn nth(n: u64) -> Self {
        Self { addr: n << 11, len: n as u32, options: n as u32 ^ 1 }
    }
}

/// The public face of the rings that are taken from.
trait Take<T> {
    fn over(fake: &Fake<T>) -> Self;
    fn available(&mut self) -> u32;
    fn peek(&self, i: u32) -> Option<T>;
    fn release(&mut self, n: u32);
    fn pending(&self) -> u32;
    fn corrupt(&self) -> u64;
}

/// The public face of the rings that are given to.
trait Give<T> {
    fn over(fake: &Fake<T>) -> Self;
    fn free(&mut self) -> u32;
    fn push(&mut self, value: T) -> bool;
    fn submit(&mut self);
    fn needs_wakeup(&self) -> bool;
    fn pending(&self) -> u32;
    fn corrupt(&self) -> u64;
}

macro_rules! take {
    ($ring:ident, $entry:ty) => {
        impl Take<$entry> for $ring {
            fn over(fake: &Fake<$entry>) -> Self {
                // SAFETY: the test keeps the fake for longer than the ring.
                Self(unsafe { ConsumerRing::over(fake.parts(), fake.size, None) }.expect("plausible cursors"))
            }
            fn available(&mut self) -> u32 {
                $ring::available(self)
            }
            fn peek(&self, i: u32) -> Option<$entry> {
                $ring::peek(self, i)
            }
            fn release(&mut self, n: u32) {
                $ring::release(self, n)
            }
            fn pending(&self) -> u32 {
                $ring::pending(self)
            }
            fn corrupt(&self) -> u64 {
                $ring::corrupt(self)
            }
        }
    };
}

macro_rules! give {
    ($ring:ident, $entry:ty) => {
        impl Give<$entry> for $ring {
            fn over(fake: &Fake<$entry>) -> Self {
                // SAFETY: the test keeps the fake for longer than the ring.
                Self(unsafe { ProducerRing::over(fake.parts(), fake.size, None) }.expect("plausible cursors"))
            }
            fn free(&mut self) -> u32 {
                $ring::free(self)
            }
            fn push(&mut self, value: $entry) -> bool {
                $ring::push(self, value)
            }
            fn submit(&mut self) {
                $ring::submit(self)
            }
            fn needs_wakeup(&self) -> bool {
                $ring::needs_wakeup(self)
            }
            fn pending(&self) -> u32 {
                $ring::pending(self)
            }
            fn corrupt(&self) -> u64 {
                $ring::corrupt(self)
            }
        }
    };
}

take!(RxRing, Desc);
take!(CompletionRing, u64);
give!(FillRing, u64);
give!(TxRing, Desc);

#[derive(Clone, Debug)]
enum Op {
    /// The kernel gives, or takes, up to so many entries.
    Kernel(u32),
    /// Ask how much can be taken, or given.
    Ask,
    Peek(u32),
    Push(u32),
    Release(u32),
    Submit,
    /// Another process maps the ring and goes on; what was not published is lost.
    Remap,
    /// The kernel's cursor is moved so far, looked at, and put right again.
    Garbage(u32),
    Wakeup(bool),
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let few = || prop_oneof![8 => 0..20u32, 1 => any::<u32>()];
    let op = prop_oneof![
        3 => few().prop_map(Op::Kernel),
        3 => Just(Op::Ask),
        3 => few().prop_map(Op::Peek),
        3 => (0..20u32).prop_map(Op::Push),
        3 => few().prop_map(Op::Release),
        3 => Just(Op::Submit),
        1 => Just(Op::Remap),
        // Mostly just beyond what is possible, on either side.
        2 => prop_oneof![0..40u32, (u32::MAX - 40)..=u32::MAX, any::<u32>()].prop_map(Op::Garbage),
        1 => any::<bool>().prop_map(Op::Wakeup),
    ];
    vec(op, 1..200)
}

/// Half of the runs wrap within a few entries.
fn start() -> impl Strategy<Value = u32> {
    prop_oneof![any::<u32>(), (u32::MAX - 40)..=u32::MAX]
}

fn size() -> impl Strategy<Value = u32> {
    (0..6u32).prop_map(|shift| 1 << shift)
}

/// What a ring that is taken from must do: `queue` is what the kernel gave, `seen` how much of it a look has shown.
fn check_taking<T: Entry, R: Take<T>>(size: u32, start: u32, ops: Vec<Op>) {
    let fake = Fake::<T>::new(size, start);
    let mut ring = R::over(&fake);
    let (mut queue, mut seen, mut given, mut corrupt) = (VecDeque::new(), 0, 0, 0);
    for op in ops {
        match op {
            Op::Kernel(n) => {
                for _ in 0..n.min(size - fake.len()) {
                    fake.produce(T::nth(given));
                    queue.push_back(T::nth(given));
                    given += 1;
                }
            }
            Op::Peek(i) => assert_eq!(ring.peek(i), queue.get(i as usize).copied().filter(|_| i < seen)),
            Op::Release(n) => {
                ring.release(n);
                queue.drain(..n.min(seen) as usize);
                seen -= n.min(seen);
            }
            Op::Remap => {
                ring = R::over(&fake);
                (seen, corrupt) = (0, 0);
            }
            Op::Garbage(by) => {
                let truth = fake.load(PRODUCER);
                let word = truth.wrapping_add(by);
                fake.store(PRODUCER, word);
                let impossible = word.wrapping_sub(fake.load(CONSUMER)) > size;
                if impossible {
                    assert_eq!(ring.pending(), 0);
                    assert_eq!(ring.available(), seen);
                    corrupt += u64::from(seen == 0);
                }
                fake.store(PRODUCER, truth);
            }
            Op::Ask | Op::Push(_) | Op::Submit | Op::Wakeup(_) => {
                seen = if seen == 0 { queue.len() as u32 } else { seen };
                assert_eq!(ring.available(), seen);
            }
        }
        assert_eq!((ring.pending(), fake.len()), (queue.len() as u32, queue.len() as u32));
        assert_eq!(ring.corrupt(), corrupt);
    }
}

/// What a ring that is given to must do: the kernel finds `queue`, and after a submit also `pushed`.
fn check_giving<T: Entry, R: Give<T>>(size: u32, start: u32, ops: Vec<Op>) {
    let fake = Fake::<T>::new(size, start);
    let mut ring = R::over(&fake);
    let (mut queue, mut pushed, mut given, mut corrupt) = (VecDeque::new(), VecDeque::new(), 0, 0);
    for op in ops {
        match op {
            Op::Kernel(n) => {
                for _ in 0..n.min(fake.len()) {
                    assert_eq!(Some(fake.consume()), queue.pop_front());
                }
            }
            Op::Push(n) => {
                for _ in 0..n {
                    let room = queue.len() + pushed.len() < size as usize;
                    assert_eq!(ring.push(T::nth(given)), room);
                    if room {
                        pushed.push_back(T::nth(given));
                    }
                    given += 1;
                }
            }
            Op::Submit => {
                ring.submit();
                queue.append(&mut pushed);
            }
            Op::Remap => {
                ring = R::over(&fake);
                pushed.clear();
                corrupt = 0;
            }
            Op::Garbage(by) => {
                let truth = fake.load(CONSUMER);
                let before = ring.free();
                fake.store(CONSUMER, truth.wrapping_add(by));
                if by > queue.len() as u32 {
                    assert_eq!(ring.free(), before);
                    corrupt += 1;
                }
                fake.store(CONSUMER, truth);
            }
            Op::Wakeup(wanted) => {
                fake.store(FLAGS, u32::from(wanted) | 2);
                assert_eq!(ring.needs_wakeup(), wanted);
            }
            Op::Ask | Op::Peek(_) | Op::Release(_) => {
                assert_eq!(ring.free() as usize, size as usize - queue.len() - pushed.len());
            }
        }
        assert_eq!((ring.pending(), fake.len()), (queue.len() as u32, queue.len() as u32));
        assert_eq!(ring.corrupt(), corrupt);
    }
}

proptest! {
    #[test]
    fn the_rx_ring_is_a_queue(size in size(), start in start(), ops in ops()) {
        check_taking::<Desc, RxRing>(size, start, ops);
    }

    #[test]
    fn the_completion_ring_is_a_queue(size in size(), start in start(), ops in ops()) {
        check_taking::<u64, CompletionRing>(size, start, ops);
    }

    #[test]
    fn the_fill_ring_is_a_queue(size in size(), start in start(), ops in ops()) {
        check_giving::<u64, FillRing>(size, start, ops);
    }

    #[test]
    fn the_tx_ring_is_a_queue(size in size(), start in start(), ops in ops()) {
        check_giving::<Desc, TxRing>(size, start, ops);
    }

    #[test]
    fn a_hostile_kernel_end_never_leads_outside_the_ring(size in size(), words in vec(any::<(u32, u32)>(), 1..100)) {
        let (rx, fill) = (Fake::<Desc>::new(size, 0), Fake::<u64>::new(size, 0));
        let (mut take, mut give) = (RxRing::over(&rx), FillRing::over(&fill));
        for (producer, consumer) in words {
            for (word, value) in [(PRODUCER, producer), (CONSUMER, consumer)] {
                rx.store(word, value);
                fill.store(word, value);
            }
            let available = take.available();
            prop_assert!(available <= size && take.pending() <= size);
            prop_assert!((0..available).all(|i| take.peek(i) == Some(Desc::default())));
            prop_assert_eq!(take.peek(available), None);
            take.release(u32::MAX);
            prop_assert!(give.free() <= size && give.pending() <= size);
            prop_assert!((0..=size).filter(|_| give.push(0)).count() <= size as usize);
            give.submit();
        }
    }
}

#[test]
fn a_tx_ring_reserves_what_it_can_take() {
    let fake = Fake::<Desc>::new(4, u32::MAX);
    let mut ring = <TxRing as Give<Desc>>::over(&fake);
    assert!(ring.reserve(4) && !ring.reserve(5));
    assert!(ring.push(Desc::nth(1)) && ring.reserve(3) && !ring.reserve(4));
    ring.submit();
    assert_eq!(fake.consume(), Desc::nth(1));
    assert!(ring.reserve(4));
}

#[test]
fn cursors_that_are_impossible_from_the_start_are_refused() {
    let fake = Fake::<u64>::new(8, 0);
    for (producer, consumer, possible) in
        [(9, 0, false), (0, 1, false), (8, 0, true), (3, u32::MAX - 4, true)]
    {
        fake.store(PRODUCER, producer);
        fake.store(CONSUMER, consumer);
        // SAFETY: the fake outlives both rings.
        let take = unsafe { ConsumerRing::over(fake.parts(), 8, None) };
        // SAFETY: as above.
        let give = unsafe { ProducerRing::over(fake.parts(), 8, None) };
        assert_eq!((take.is_ok(), give.is_ok()), (possible, possible), "{producer} {consumer}");
    }
}

#[test]
fn rings_can_be_used_under_a_lock() {
    fn shared<T: Send + Sync>() {}
    shared::<std::sync::Mutex<RxRing>>();
    shared::<std::sync::Mutex<FillRing>>();
    shared::<std::sync::Mutex<TxRing>>();
    shared::<std::sync::Mutex<CompletionRing>>();
}
