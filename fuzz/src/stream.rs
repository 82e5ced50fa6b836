//! What must hold for index and reader under any segments, reads and failures; shared by the fuzz target `stream` and
//! `crates/stream/tests`.
//!
//! The stream's bytes are known by position and never zero; ghosts are zeroes. So a ghost, a lost byte, a doubled or a
//! foreign one shows in what is read.

use hoist_stream::{Insert, Kernel, Payload, Reader, Sink, StreamIndex, position};
use std::{cell::Cell, collections::BTreeMap, rc::Rc};

/// Where the stream begins: sequence numbers and the lower half of positions wrap within the first segments.
const BASE: u32 = 0xffff_fff0;
const START: u64 = (1 << 32) - 37;
/// The receive buffer: what lies further ahead of the kernel's reader is refused.
const WINDOW: u64 = 48;
const MAX_LEN: u64 = 15;

/// Runs the operations that `bytes` describe.
///
/// # Panics
/// If the stream is not read as it was sent.
pub(crate) fn check(bytes: &[u8]) -> Seen {
    let mut input = Input(bytes);
    let mut world = World::new(START);
    while !input.0.is_empty() {
        step(&mut world, &mut input);
        world.holds();
    }
    world.read_to_the_end();
    world.seen
}

/// What was met, so that a caller can see that its operations reach every part.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Seen {
    pub(crate) kept: u64,
    pub(crate) covered: u64,
    pub(crate) scattered: u64,
    pub(crate) taken: u64,
    pub(crate) chunks: u64,
    pub(crate) overlaid: u64,
    pub(crate) plain: u64,
    pub(crate) peeked: u64,
    pub(crate) failed: u64,
    pub(crate) ahead: u64,
    pub(crate) pruned: u64,
}

struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn next(&mut self) -> u8 {
        let (first, rest) = self.0.split_first().map_or((0, self.0), |(first, rest)| (*first, rest));
        self.0 = rest;
        first
    }
}

fn step(world: &mut World, input: &mut Input<'_>) {
    let operation = input.next();
    match operation % 16 {
        0..=6 => {
            let (from, len) = world.stretch(input.next(), input.next());
            world.segment(from, len, Way::of(operation >> 4), operation & 8 == 0);
        }
        7 => world.in_order(1 + u64::from(input.next()) % MAX_LEN, Way::of(operation >> 4)),
        8 => world.take(input.next().into()),
        9 => world.chunk(input.next().into()),
        10 => world.through(usize::from(input.next()) % 24, false),
        11 => world.through(usize::from(input.next()) % 24, true),
        12 => world.drain(),
        13 => world.kernel.failing = input.next() % 8,
        14 => world.copy_out(),
        _ => world.prune(),
    }
}

/// How a segment fares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Way {
    /// Held, and its ghost rides.
    Lifted,
    /// Held, and its ghost is lost on the way.
    LiftedAndLost,
    /// It rides with its bytes, or passed.
    Real,
}

impl Way {
    fn of(selector: u8) -> Self {
        match selector % 8 {
            0..=3 => Self::Lifted,
            4 => Self::LiftedAndLost,
            _ => Self::Real,
        }
    }
}

/// The byte at a position; never zero.
pub(crate) fn byte(position: u64) -> u8 {
    (position.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 57) as u8 + 1
}

fn bytes(from: u64, len: u64) -> Vec<u8> {
    (from..from + len).map(byte).collect()
}

/// Payload that counts how much of it there is.
#[derive(Debug)]
pub(crate) struct Frame {
    bytes: Vec<u8>,
    live: Rc<Cell<usize>>,
}

impl Frame {
    fn new(bytes: Vec<u8>, live: &Rc<Cell<usize>>) -> Self {
        live.set(live.get() + 1);
        Self { bytes, live: live.clone() }
    }
}

impl Drop for Frame {
    fn drop(&mut self) {
        self.live.set(self.live.get() - 1);
    }
}

impl Payload for Frame {
    fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// Linux's receiving half: `tcp_data_queue`, `tcp_data_queue_ofo`, `tcp_recvmsg_locked`, as far as bytes go. 0 is a ghost.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Receiver {
    pub(crate) copied: u64,
    /// What follows `copied` in order.
    pub(crate) queue: Vec<u8>,
    /// What came out of order.
    pub(crate) later: BTreeMap<u64, u8>,
    pub(crate) window: u64,
    /// What fails next: the low bit discarding, then looking, then reading.
    pub(crate) failing: u8,
    /// Where reading went last.
    pub(crate) buffer: Vec<u8>,
}

impl Receiver {
    pub(crate) fn new(copied: u64, window: u64) -> Self {
        Self { copied, queue: vec![], later: BTreeMap::new(), window, failing: 0, buffer: vec![] }
    }

    pub(crate) fn next(&self) -> u64 {
        self.copied + self.queue.len() as u64
    }

    /// A segment arrives. Of what is out of order, either copy may stay.
    pub(crate) fn receive(&mut self, from: u64, bytes: &[u8], newest_stays: bool) {
        let room = (self.copied + self.window).saturating_sub(from).min(bytes.len() as u64) as usize;
        let old = self.next().saturating_sub(from).min(room as u64) as usize;
        let (from, bytes) = (from + old as u64, &bytes[old..room]);
        if from == self.next() && self.later.is_empty() {
            return self.queue.extend(bytes);
        }
        for (position, byte) in (from..).zip(bytes) {
            let known = self.later.entry(position).or_insert(*byte);
            if newest_stays {
                *known = *byte;
            }
        }
        while let Some(byte) = self.later.remove(&self.next()) {
            self.queue.push(byte);
        }
    }

    /// Every ghost, by position.
    fn ghosts(&self) -> impl Iterator<Item = u64> {
        let queued = (self.copied..).zip(&self.queue);
        let later = self.later.iter().map(|(position, byte)| (*position, byte));
        queued.chain(later).filter(|(_, byte)| **byte == 0).map(|(position, _)| position)
    }

    fn fails(&mut self, bit: u8) -> Result<(), ()> {
        let fails = self.failing & bit != 0;
        self.failing &= !bit;
        if fails { Err(()) } else { Ok(()) }
    }
}

impl Kernel for Receiver {
    type Error = ();

    fn queued(&mut self) -> Result<u64, ()> {
        self.fails(2)?;
        Ok(self.queue.len() as u64)
    }

    fn discard(&mut self, len: u64) -> Result<u64, ()> {
        self.fails(1)?;
        // As `tcp_recvmsg_locked` may, it stops early now and then.
        let len = len.min(1 + self.queue.len() as u64 / 2).min(self.queue.len() as u64);
        self.queue.drain(..len as usize);
        self.copied += len;
        Ok(len)
    }

    fn read(&mut self, at: usize, len: usize, peek: bool) -> Result<usize, ()> {
        self.fails(4)?;
        let len = len.min(self.queue.len());
        self.buffer.truncate(at);
        self.buffer.resize(at, 0xee);
        self.buffer.extend(&self.queue[..len]);
        if !peek {
            self.queue.drain(..len);
            self.copied += len as u64;
        }
        Ok(len)
    }
}

/// The program's buffer as the reader sees it.
#[derive(Default)]
struct Buffer(Vec<(usize, Vec<u8>)>);

impl Sink for Buffer {
    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.0.push((at, bytes.to_vec()));
    }
}

impl Buffer {
    /// What is in it in the end, where `kernel` was there first.
    fn over(self, kernel: &[u8]) -> Vec<u8> {
        let mut out = kernel.to_vec();
        for (at, bytes) in self.0 {
            out.resize(out.len().max(at + bytes.len()), 0);
            out[at..at + bytes.len()].copy_from_slice(&bytes);
        }
        out
    }
}

/// Peer, kernel, index and program of one stream.
pub(crate) struct World {
    pub(crate) kernel: Receiver,
    pub(crate) index: StreamIndex<Frame>,
    pub(crate) reader: Reader,
    live: Rc<Cell<usize>>,
    pub(crate) seen: Seen,
}

impl World {
    fn new(start: u64) -> Self {
        Self {
            kernel: Receiver::new(start, WINDOW),
            index: StreamIndex::new(),
            reader: Reader::at(start),
            live: Rc::default(),
            seen: Seen::default(),
        }
    }

    /// A world in the middle of something.
    #[allow(dead_code)] // the fuzz target starts at the beginning
    pub(crate) fn restored(kernel: Receiver, reader: Reader, entries: &[(u64, u32)]) -> Self {
        let (mut world, live) = (Self::new(0), Rc::default());
        for &(start, len) in entries {
            let frame = Frame::new(bytes(start, len.into()), &live);
            assert!(matches!(world.index.insert(0, start, len, frame), Insert::Kept));
        }
        (world.kernel, world.reader, world.live) = (kernel, reader, live);
        world
    }

    /// A stretch around the program's and the kernel's positions, from the beginning of the stream at the earliest.
    fn stretch(&self, place: u8, len: u8) -> (u64, u64) {
        let near = if place & 1 == 0 { self.kernel.next() } else { self.reader.position() };
        ((near + u64::from(place >> 1) % 60).saturating_sub(20), 1 + u64::from(len) % MAX_LEN)
    }

    fn in_order(&mut self, len: u64, way: Way) {
        self.segment(self.kernel.next(), len, way, true);
    }

    pub(crate) fn segment(&mut self, from: u64, len: u64, way: Way, newest_stays: bool) {
        // As the wire tells it.
        let seq = BASE.wrapping_add(from as u32);
        assert_eq!(position(BASE, self.reader.position(), seq), Some(from));
        let held = way != Way::Real && self.insert(from, len);
        if way == Way::LiftedAndLost {
            return;
        }
        let bytes = if held { vec![0; len as usize] } else { bytes(from, len) };
        self.kernel.receive(from, &bytes, newest_stays);
    }

    /// Whether a ghost may stand for it.
    fn insert(&mut self, from: u64, len: u64) -> bool {
        let frame = Frame::new(bytes(from, len), &self.live);
        match self.index.insert(self.reader.position(), from, len as u32, frame) {
            Insert::Kept => self.seen.kept += 1,
            Insert::Covered(_) => self.seen.covered += 1,
            Insert::Scattered(_) => {
                self.seen.scattered += 1;
                return false;
            }
        }
        true
    }

    /// What the program got is the stream, from `from` on, and no more than the kernel has.
    fn given(&mut self, from: u64, got: &[u8]) {
        assert_eq!(got, bytes(from, got.len() as u64), "at {from}");
        assert!(from + got.len() as u64 <= self.kernel.next());
    }

    pub(crate) fn take(&mut self, max: usize) {
        let (mut buffer, from) = (Buffer::default(), self.reader.position());
        let available = self.index.covered(from, max as u64).min(self.kernel.next() - from);
        let failing = self.kernel.failing;
        let taken = self.reader.take(&mut self.index, &mut self.kernel, &mut buffer, 7, max, drop);
        let Ok(taken) = taken else {
            assert!(failing & 2 != 0 && buffer.0.is_empty() && self.reader.position() == from);
            self.seen.failed += 1;
            return;
        };
        let got = buffer.over(&[0; 7]).split_off(7);
        assert_eq!((got.len(), self.reader.position()), (taken, from + taken as u64));
        // Without asking the kernel it may know of less.
        assert!(taken as u64 <= available && (taken > 0) == (available > 0));
        self.given(from, &got);
        self.seen.taken += taken as u64;
        self.seen.ahead += u64::from(self.reader.undrained() > 0);
    }

    /// A read that borrows the bytes, entry by entry.
    pub(crate) fn chunk(&mut self, max: u64) {
        let from = self.reader.position();
        let Ok(takeable) = self.reader.takeable(&self.index, &mut self.kernel, max) else { return };
        if takeable == 0 {
            return;
        }
        let entry = self.index.at(from).expect("takeable bytes are held");
        let (end, got) = (entry.end().min(from + takeable), entry.slice(from, from + takeable).to_vec());
        assert_eq!(got.len() as u64, end - from);
        let whole = end == entry.end();
        self.given(from, &got);
        self.reader.advance(end - from);
        if whole {
            let popped = self.index.pop_at(from).expect("the entry is there");
            assert_eq!(popped.end(), end);
        }
        self.seen.chunks += 1;
    }

    pub(crate) fn through(&mut self, max: usize, peek: bool) {
        let (mut buffer, from) = (Buffer::default(), self.reader.position());
        let (index, kernel) = (&mut self.index, &mut self.kernel);
        match self.reader.through(index, kernel, &mut buffer, 3, max, peek, drop) {
            Err(()) => {
                assert!(buffer.0.is_empty() && self.reader.position() == from);
                self.seen.failed += 1;
            }
            Ok(None) => panic!("the kernel has all that was read"),
            Ok(Some(taken)) => {
                let over: usize = buffer.0.iter().map(|(_, bytes)| bytes.len()).sum();
                assert_eq!(over, taken.lifted);
                let got = buffer.over(&self.kernel.buffer).split_off(3);
                assert_eq!(got.len(), taken.bytes);
                assert_eq!(self.reader.undrained(), 0);
                let moved = if peek { 0 } else { taken.bytes as u64 };
                assert_eq!(self.reader.position(), from + moved);
                assert_eq!(got, bytes(from, taken.bytes as u64), "at {from}");
                self.seen.overlaid += taken.lifted as u64;
                self.seen.plain += (taken.bytes - taken.lifted) as u64;
                self.seen.peeked += u64::from(peek && taken.bytes > 0);
            }
        }
    }

    pub(crate) fn drain(&mut self) {
        match self.reader.drain(&mut self.kernel) {
            Ok(all) => assert!(all && self.reader.undrained() == 0),
            Err(()) => self.seen.failed += 1,
        }
    }

    /// Held bytes move elsewhere.
    fn copy_out(&mut self) {
        for entry in self.index.iter_mut() {
            entry.data = Frame::new(entry.data.bytes.clone(), &self.live);
        }
    }

    /// `tcp_prune_ofo_queue`: out of memory, what came out of order is forgotten and will come again.
    pub(crate) fn prune(&mut self) {
        self.seen.pruned += u64::from(!self.kernel.later.is_empty());
        self.kernel.later.clear();
    }

    /// The rule that everything rests on, and the books.
    pub(crate) fn holds(&self) {
        let (reader, index) = (&self.reader, &self.index);
        assert_eq!(reader.position() - reader.undrained(), self.kernel.copied);
        assert!(reader.position() <= self.kernel.next());
        for ghost in self.kernel.ghosts().filter(|ghost| *ghost >= reader.position()) {
            let entry = index.at(ghost).unwrap_or_else(|| panic!("the ghost at {ghost} is not held"));
            assert_eq!(entry.slice(ghost, ghost + 1), [byte(ghost)]);
        }
        let mut end = 0;
        for entry in index.iter() {
            assert!(entry.start >= end && entry.len > 0 && entry.end() > reader.position());
            assert_eq!(entry.slice(0, u64::MAX), bytes(entry.start, entry.len.into()));
            end = entry.end();
        }
        assert_eq!(self.live.get(), index.len(), "every frame is held once or given back");
    }

    /// The peer sends everything again until it has been read.
    pub(crate) fn read_to_the_end(&mut self) {
        self.kernel.failing = 0;
        let end = self.index.iter().map(|entry| entry.end()).max().unwrap_or(0).max(self.kernel.next());
        while self.reader.position() < end {
            self.drain(); // undrained ghosts narrow the window
            let next = self.kernel.next();
            if next < end {
                self.segment(next, (end - next).min(MAX_LEN), Way::Real, false);
            }
            let before = self.reader.position();
            self.take(11);
            self.through(11, false);
            assert!(self.reader.position() > before, "no progress at {before}");
            self.holds();
        }
    }
}
