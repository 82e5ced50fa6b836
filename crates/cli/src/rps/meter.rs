//! What was counted, as rates and shares. Pure.

use hoist_broker::rps::{CpuCounters, VERDICTS};
use serde::Serialize;
use std::{collections::BTreeMap, fmt::Write};

/// Everything that is counted, since the beginning.
#[derive(Clone, Debug, Default)]
pub(super) struct Snapshot {
    pub(super) cpus: Vec<CpuCounters>,
    /// Packets of each bucket.
    pub(super) buckets: Vec<u64>,
    /// The CPU of each bucket, as a place in `cpus`.
    pub(super) places: Vec<u16>,
    pub(super) moves: u64,
    pub(super) waiting: usize,
    pub(super) verdicts: Vec<u64>,
}

/// What happened between two snapshots.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Window {
    pub(super) seconds: f64,
    /// Received, of flows that may be spread: packets.
    pub(super) packets: u64,
    pub(super) cpus: Vec<Share>,
    /// Packets of the busiest CPU as a multiple of the mean: by a hash alone.
    pub(super) busiest_by_hash: f64,
    /// And by the table.
    pub(super) busiest: f64,
    /// Buckets that changed their CPU.
    pub(super) moves: u64,
    /// Buckets that have yet to, at the end.
    pub(super) waiting: usize,
    pub(super) verdicts: BTreeMap<&'static str, u64>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Share {
    pub(super) cpu: u32,
    /// Meant for this CPU: packets.
    pub(super) packets: u64,
    pub(super) dropped: u64,
    /// In its FIFO, at the end.
    pub(super) backlog: u64,
    pub(super) sleeps: u64,
}

impl Window {
    /// `observe`: shares are those that the places would have given.
    pub(super) fn between(a: &Snapshot, b: &Snapshot, cpus: &[u32], seconds: f64, observe: bool) -> Self {
        let new: Vec<u64> = b.buckets.iter().zip(&a.buckets).map(|(b, a)| b.wrapping_sub(*a)).collect();
        let by_hash = sums(&new, |bucket| bucket % cpus.len(), cpus.len());
        let by_place = sums(&new, |bucket| usize::from(b.places[bucket]), cpus.len());
        let share = |(at, &cpu): (usize, &u32)| {
            let (a, b) = (a.cpus[at], b.cpus[at]);
            Share {
                cpu,
                packets: if observe { by_place[at] } else { b.given - a.given },
                dropped: b.dropped - a.dropped,
                backlog: b.given.saturating_sub(b.taken + b.dropped),
                sleeps: b.sleeps - a.sleeps,
            }
        };
        let shares: Vec<Share> = cpus.iter().enumerate().map(share).collect();
        let given: Vec<u64> = shares.iter().map(|share| share.packets).collect();
        let verdicts = VERDICTS.iter().zip(b.verdicts.iter().zip(&a.verdicts));
        Self {
            seconds,
            packets: new.iter().sum(),
            busiest_by_hash: busiest(&by_hash),
            busiest: busiest(&given),
            cpus: shares,
            moves: b.moves - a.moves,
            waiting: b.waiting,
            verdicts: verdicts.map(|((word, _), (b, a))| (*word, b - a)).filter(|(_, n)| *n > 0).collect(),
        }
    }

    /// One line of at most 80 columns for a few CPUs.
    pub(super) fn line(&self) -> String {
        let rate = |packets: u64| packets as f64 / self.seconds / 1e3;
        let mut line = format!("{:8.1} kpps", rate(self.packets));
        for share in self.cpus.iter().take(6) {
            let _ = write!(line, "  cpu{} {:.0}", share.cpu, rate(share.packets));
        }
        if self.cpus.len() > 6 {
            line.push_str(" \u{2026}");
        }
        let _ = write!(line, "  busiest {:.2} (hash {:.2})", self.busiest, self.busiest_by_hash);
        let dropped: u64 = self.cpus.iter().map(|share| share.dropped).sum();
        let _ = write!(line, "  moves {}", self.moves);
        if dropped > 0 {
            let _ = write!(line, "  DROPPED {dropped}");
        }
        line
    }

    /// A table with a row a CPU, and why packets were not spread. `observe`: what would have been.
    pub(super) fn table(&self, observe: bool) -> String {
        let mut text = String::from(if observe {
            "watched only: what the table would have given each CPU\n"
        } else {
            ""
        });
        let _ = writeln!(
            text,
            "{:>5} {:>14} {:>7} {:>12} {:>12}",
            "cpu", "packets", "share", "dropped", "sleeps"
        );
        let all: u64 = self.cpus.iter().map(|share| share.packets).sum();
        for share in &self.cpus {
            let part = 100.0 * share.packets as f64 / all.max(1) as f64;
            let Share { cpu, packets, dropped, sleeps, .. } = share;
            let _ = writeln!(text, "{cpu:>5} {packets:>14} {part:>6.1}% {dropped:>12} {sleeps:>12}");
        }
        let _ = writeln!(
            text,
            "busiest CPU {:.2} of the mean, by a hash alone {:.2}; {} moves",
            self.busiest, self.busiest_by_hash, self.moves
        );
        for (word, explain) in VERDICTS {
            if let Some(packets) = self.verdicts.get(word) {
                let _ = writeln!(text, "{word}: {packets} packets ({explain})");
            }
        }
        text
    }
}

fn sums(packets: &[u64], place: impl Fn(usize) -> usize, cpus: usize) -> Vec<u64> {
    let mut sums = vec![0; cpus];
    packets.iter().enumerate().for_each(|(bucket, packets)| sums[place(bucket)] += packets);
    sums
}

/// The largest as a multiple of the mean; 1 if there is nothing.
fn busiest(sums: &[u64]) -> f64 {
    let (largest, all) = (sums.iter().max().copied().unwrap_or(0), sums.iter().sum::<u64>());
    if all == 0 { 1.0 } else { largest as f64 * sums.len() as f64 / all as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshots() -> [Snapshot; 2] {
        let cpu = |given, taken, dropped| CpuCounters { given, taken, dropped, sleeps: 3 };
        let a = Snapshot {
            cpus: vec![cpu(100, 100, 0), cpu(50, 50, 0)],
            buckets: vec![100, 20, 30, 0],
            places: vec![0, 1, 0, 1],
            moves: 1,
            waiting: 0,
            verdicts: vec![150, 0, 2, 0, 0, 0, 0],
        };
        let b = Snapshot {
            cpus: vec![cpu(170, 160, 5), cpu(80, 80, 0)],
            buckets: vec![160, 30, 60, 0],
            places: vec![0, 1, 1, 1],
            moves: 2,
            waiting: 1,
            verdicts: vec![250, 0, 9, 0, 0, 0, 0],
        };
        [a, b]
    }

    #[test]
    fn a_window_is_the_difference_of_two_snapshots() {
        let [a, b] = snapshots();
        let window = Window::between(&a, &b, &[0, 2], 0.5, false);
        assert_eq!((window.packets, window.moves, window.waiting), (100, 1, 1));
        let first = Share { cpu: 0, packets: 70, dropped: 5, backlog: 5, sleeps: 0 };
        let second = Share { cpu: 2, packets: 30, dropped: 0, backlog: 0, sleeps: 0 };
        assert_eq!(window.cpus, [first, second]);
        assert_eq!((window.busiest, window.busiest_by_hash), (1.4, 1.8));
        assert_eq!(window.verdicts, BTreeMap::from([("spread", 100), ("not-ip", 7)]));
        assert_eq!(
            window.line(),
            "     0.2 kpps  cpu0 0  cpu2 0  busiest 1.40 (hash 1.80)  moves 1  DROPPED 5"
        );
    }

    #[test]
    fn who_only_watches_sees_what_the_table_would_give() {
        let [a, b] = snapshots();
        let window = Window::between(&a, &b, &[0, 2], 0.5, true);
        assert_eq!(window.cpus.iter().map(|share| share.packets).collect::<Vec<_>>(), [60, 40]);
    }

    #[test]
    fn without_packets_nothing_is_uneven() {
        let [a, _] = snapshots();
        let window = Window::between(&a, &a, &[0, 2], 1.0, false);
        assert_eq!((window.busiest, window.busiest_by_hash), (1.0, 1.0));
        assert!(window.verdicts.is_empty());
    }
}
