//! Everything that can happen to a very short stream.

use crate::model::{Receiver, Way, World};
use hoist_stream::{Insert, Payload, Reader, StreamIndex};
use std::collections::{HashSet, VecDeque};

/// Bytes of the stream.
const LEN: u64 = 4;
/// Smaller, so that the window refuses some.
const WINDOW: u64 = 3;

type Entries = Vec<(u64, u32)>;
type State = (Receiver, Reader, Entries);

#[derive(Clone, Copy, Debug)]
enum Step {
    Segment(u64, u64, Way, bool),
    Take(usize),
    Chunk(u64),
    Through(usize, bool),
    Drain,
    Prune,
}

fn stretches(len: u64) -> impl Iterator<Item = (u64, u64)> {
    (0..len).flat_map(move |from| (1..=len - from).map(move |len| (from, len)))
}

fn steps() -> Vec<(Step, u8)> {
    let segments = stretches(LEN).flat_map(|(from, len)| {
        let ways = [Way::Lifted, Way::LiftedAndLost, Way::Real];
        let segments = ways.map(|way| [false, true].map(|newest| Step::Segment(from, len, way, newest)));
        segments.into_iter().flatten()
    });
    let reads = [1, 2, LEN].into_iter().flat_map(|max| {
        let size = max as usize;
        [Step::Take(size), Step::Chunk(max), Step::Through(size, false), Step::Through(size, true)]
    });
    let fallible: Vec<Step> = reads.chain([Step::Drain]).collect();
    // Discarding, looking and reading fail in turn.
    let failing = fallible.iter().flat_map(|step| [0, 1, 2, 4].map(|failing| (*step, failing)));
    segments.chain([Step::Prune]).map(|step| (step, 0)).chain(failing).collect()
}

fn after(state: &State, step: Step, failing: u8) -> World {
    let (kernel, reader, entries) = state.clone();
    let mut world = World::restored(kernel, reader, &entries);
    world.kernel.failing = failing;
    match step {
        Step::Segment(from, len, way, newest) => world.segment(from, len, way, newest),
        Step::Take(max) => world.take(max),
        Step::Chunk(max) => world.chunk(max),
        Step::Through(max, peek) => world.through(max, peek),
        Step::Drain => world.drain(),
        Step::Prune => world.prune(),
    }
    world.holds();
    world
}

fn state(world: World) -> State {
    let mut kernel = world.kernel;
    (kernel.failing, kernel.buffer) = (0, vec![]);
    let entries = world.index.iter().map(|entry| (entry.start, entry.len)).collect();
    (kernel, world.reader, entries)
}

#[test]
fn every_state_of_a_short_stream_is_sound_and_can_be_read_to_the_end() {
    let first = (Receiver::new(0, WINDOW), Reader::at(0), Entries::new());
    let steps = steps();
    let mut seen = HashSet::from([first.clone()]);
    let mut left = VecDeque::from([first]);
    while let Some(now) = left.pop_front() {
        for &(step, failing) in &steps {
            let next = state(after(&now, step, failing));
            if seen.insert(next.clone()) {
                left.push_back(next);
            }
        }
        let (kernel, reader, entries) = now;
        World::restored(kernel, reader, &entries).read_to_the_end();
    }
    println!("{} states, {} steps from each", seen.len(), steps.len());
    assert!(seen.len() > 1000);
}

/// A byte of an entry tells its position.
struct Positions(Vec<u8>);

impl Payload for Positions {
    fn bytes(&self) -> &[u8] {
        &self.0
    }
}

const ROOM: u64 = 6;

/// What a plain array says of an insertion: how many stretches of it were missing.
fn missing(held: &[bool; ROOM as usize], floor: u64, from: u64, len: u64) -> usize {
    let is_new = |at: u64| at >= floor && !held[at as usize];
    (from..from + len).filter(|&at| is_new(at) && (at == from || !is_new(at - 1))).count()
}

fn insert_as_the_array(
    index: &mut StreamIndex<Positions>,
    held: &mut [bool; ROOM as usize],
    floor: u64,
    (from, len): (u64, u64),
) {
    let expected = missing(held, floor, from, len);
    let data = Positions((from..from + len).map(|at| at as u8).collect());
    match index.insert(floor, from, len as u32, data) {
        Insert::Covered(_) => assert_eq!(expected, 0),
        Insert::Scattered(_) => assert!(expected > 1),
        Insert::Kept => {
            assert_eq!(expected, 1);
            (from.max(floor)..from + len).for_each(|at| held[at as usize] = true);
        }
    }
}

fn answers_as_the_array(index: &StreamIndex<Positions>, held: &[bool; ROOM as usize]) {
    for at in 0..ROOM {
        assert_eq!(index.at(at).is_some(), held[at as usize]);
        let run = held[at as usize..].iter().take_while(|held| **held).count() as u64;
        for max in 0..=ROOM {
            assert_eq!(index.covered(at, max), run.min(max));
        }
        for to in at + 1..=ROOM {
            let mut got = Vec::new();
            let count = index.each(at, to, |position, bytes| {
                assert_eq!(bytes.first(), Some(&(position as u8)));
                got.extend_from_slice(bytes);
            });
            let expected: Vec<u8> = (at..to).filter(|at| held[*at as usize]).map(|at| at as u8).collect();
            assert_eq!((count, got), (expected.len() as u64, expected));
        }
    }
}

fn releases_as_the_array(mut index: StreamIndex<Positions>, held: &[bool; ROOM as usize], position: u64) {
    let (before, mut freed) = (index.len(), 0);
    index.release(position, |_| freed += 1);
    assert_eq!(index.len() + freed, before);
    assert!(index.iter().all(|entry| entry.end() > position));
    (position..ROOM).for_each(|at| assert_eq!(index.at(at).is_some(), held[at as usize]));
    let there = index.at(position).map(|entry| (entry.start, entry.end()));
    assert_eq!(index.pop_at(position).map(|entry| (entry.start, entry.end())), there);
    assert!(index.at(position).is_none());
}

#[test]
fn any_three_insertions_answer_as_an_array_of_bytes_does() {
    let all: Vec<(u64, u64)> = stretches(ROOM).collect();
    for floor in [0, 1, 3] {
        for &a in &all {
            for &b in &all {
                for &c in &all {
                    let (mut index, mut held) = (StreamIndex::new(), [false; ROOM as usize]);
                    for stretch in [a, b, c] {
                        insert_as_the_array(&mut index, &mut held, floor, stretch);
                    }
                    answers_as_the_array(&index, &held);
                    releases_as_the_array(index, &held, a.0);
                }
            }
        }
    }
}
