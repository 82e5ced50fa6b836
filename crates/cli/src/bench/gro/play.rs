//! Segments through engines: timed, and looked at.

use super::traffic::Arrival;
use crate::bench::stats::Spread;
use hoist_packet::gro::{
    Counts, Gro, Limits, Merged,
    lab::{Lab, Setup, Walks, Watch},
};
use nix::time::{ClockId, clock_gettime};
use std::{hint::black_box, time::Duration};

/// Most packets that a lab holds.
const PLACES: usize = 1024;

/// What takes segments and gives packets.
pub(super) trait Matcher {
    /// Takes them, and gives all out after every `poll` of them. Gives how many packets came out.
    fn play(&mut self, stream: &[Arrival], poll: usize) -> u64;
}

/// A way to find a segment's flow.
#[derive(Clone, Copy, Debug)]
pub(super) enum Way {
    Lab(Setup),
    Hoist(Limits),
}

/// What came of it.
pub(super) struct Outcome {
    pub(super) counts: Counts,
    packets: u64,
    segments: u64,
    /// Of ways in a lab.
    pub(super) walks: Option<Walks>,
}

impl Outcome {
    pub(super) fn merge_ratio(&self) -> f64 {
        self.segments as f64 / self.packets.max(1) as f64
    }

    /// Of the packets given out, per cent.
    pub(super) fn share(&self, count: u64) -> f64 {
        100.0 * count as f64 / self.packets.max(1) as f64
    }
}

impl Way {
    /// An engine whose steps nobody counts.
    pub(super) fn matcher(self) -> Box<dyn Matcher> {
        match self {
            Self::Lab(setup) => Box::new(Lab::<PLACES>::new(setup, ())),
            Self::Hoist(limits) => Box::new(<Gro>::new(limits)),
        }
    }

    /// The same segments once more, with every step counted.
    pub(super) fn look(self, stream: &[Arrival], poll: usize) -> Outcome {
        let segments = stream.len() as u64;
        match self {
            Self::Lab(setup) => {
                let mut lab = Box::new(Lab::<PLACES, Walks>::new(setup, Walks::default()));
                let packets = lab.play(stream, poll);
                Outcome { counts: lab.counts(), packets, segments, walks: Some(*lab.watch()) }
            }
            Self::Hoist(limits) => {
                let mut gro = <Gro>::new(limits);
                let packets = gro.play(stream, poll);
                Outcome { counts: gro.counts(), packets, segments, walks: None }
            }
        }
    }
}

impl<W: Watch> Matcher for Lab<PLACES, W> {
    fn play(&mut self, stream: &[Arrival], poll: usize) -> u64 {
        let mut packets = 0;
        let out = &mut |merged: &Merged| packets += given(merged);
        for poll in stream.chunks(poll) {
            for arrival in poll {
                self.receive(&arrival.headers, &arrival.segment, arrival.hash, out);
            }
            self.flush_all(out);
        }
        packets
    }
}

impl Matcher for Gro {
    fn play(&mut self, stream: &[Arrival], poll: usize) -> u64 {
        let mut packets = 0;
        let out = &mut |merged: &Merged| packets += given(merged);
        for poll in stream.chunks(poll) {
            for arrival in poll {
                self.receive(&arrival.headers, &arrival.segment, out);
            }
            self.flush_all(out);
        }
        packets
    }
}

/// A packet that somebody could read.
fn given(merged: &Merged) -> u64 {
    black_box(merged);
    1
}

/// ns a segment of each: the median of `plays`. They play by turns, and every time another begins, so that no side always finds the
/// caches as the same other left them.
pub(super) fn timed(
    players: &mut [(&str, Box<dyn Matcher>)],
    stream: &[Arrival],
    poll: usize,
    plays: usize,
    first: usize,
) -> Vec<f64> {
    let mut samples = vec![Vec::new(); players.len()];
    for play in 0..=plays {
        for turn in 0..players.len() {
            let at = (first + play + turn) % players.len();
            let begin = cpu_time();
            black_box(players[at].1.play(black_box(stream), poll));
            samples[at].push((cpu_time() - begin).as_nanos() as f64 / stream.len() as f64);
        }
    }
    // the first play finds everything cold
    samples.iter().map(|all| Spread::of(&all[1..]).map_or(0.0, |spread| spread.median)).collect()
}

/// Of this thread: it stands still while others run.
fn cpu_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

#[cfg(test)]
mod tests {
    use super::{super::traffic::Traffic, *};
    use hoist_packet::gro::lab::{Hash, Order};

    #[test]
    fn a_single_flow_makes_one_packet_of_each_poll_and_a_list_of_one() {
        let stream = Traffic { flows: 1, ..Traffic::BASE }.stream(1, 640).unwrap();
        let outcome = Way::Lab(Setup::of(Order::L4First, Hash::None)).look(&stream, 32);
        assert_eq!((outcome.packets, outcome.counts.asked, outcome.merge_ratio()), (20, 20, 32.0));
        assert_eq!(outcome.walks.unwrap().visited, 640 - 20);
        assert_eq!(outcome.share(outcome.counts.asked), 100.0);
        let hoist = Way::Hoist(Limits::default()).look(&stream, 32);
        assert_eq!((hoist.counts, hoist.packets), (outcome.counts, 20));
    }

    #[test]
    fn every_player_is_timed_and_none_looks() {
        let stream = Traffic::BASE.stream(1, 2_000).unwrap();
        let way = Way::Lab(Setup::of(Order::Kernel, Hash::Device));
        let mut players = [("a", way.matcher()), ("b", Way::Hoist(Limits::default()).matcher())];
        let times = timed(&mut players, &stream, 64, 3, 1);
        assert!(times.len() == 2 && times.iter().all(|ns| *ns > 0.0), "{times:?}");
    }
}
