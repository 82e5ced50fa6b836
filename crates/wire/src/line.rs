//! Packets on their way over an emulated link: first in, first out, but for those that are held back. Time is an argument.

use std::collections::VecDeque;

/// Packets on their way.
#[derive(Debug)]
pub(crate) struct Line<T> {
    queue: VecDeque<(u64, T)>, // by when they leave
    held: VecDeque<Held<T>>,
    last_due_ns: u64,
}

#[derive(Debug)]
struct Held<T> {
    packet: T,
    passed_by: u32,
    until_ns: u64,
}

/// So many packets pass one that is held back: what TCP takes for a loss (RFC 5681's three duplicates).
const PASSED_BY: u32 = 3;
/// As long as nobody passes.
const HELD_NS: u64 = 20_000_000;

impl<T> Line<T> {
    pub(crate) fn new() -> Self {
        Self { queue: VecDeque::new(), held: VecDeque::new(), last_due_ns: 0 }
    }

    /// Takes a packet that leaves after `delay_ns`, but not before those that came before it.
    pub(crate) fn push(&mut self, now_ns: u64, delay_ns: u64, packet: T) {
        self.append(now_ns + delay_ns, packet);
        for held in &mut self.held {
            held.passed_by += 1;
        }
        while self.held.front().is_some_and(|held| held.passed_by >= PASSED_BY) {
            self.let_go();
        }
    }

    /// Takes a packet that others pass.
    pub(crate) fn hold(&mut self, now_ns: u64, delay_ns: u64, packet: T) {
        let until_ns = now_ns + delay_ns + HELD_NS;
        self.held.push_back(Held { packet, passed_by: 0, until_ns });
    }

    /// The next one whose time has come.
    pub(crate) fn pop(&mut self, now_ns: u64) -> Option<T> {
        while self.held.front().is_some_and(|held| held.until_ns <= now_ns) {
            self.let_go();
        }
        match self.queue.front() {
            Some((due_ns, _)) if *due_ns <= now_ns => self.queue.pop_front().map(|(_, packet)| packet),
            _ => None,
        }
    }

    /// When to ask again.
    pub(crate) fn next_due_ns(&self) -> Option<u64> {
        let queued = self.queue.front().map(|(due_ns, _)| *due_ns);
        let held = self.held.front().map(|held| held.until_ns);
        queued.into_iter().chain(held).min()
    }

    fn let_go(&mut self) {
        if let Some(held) = self.held.pop_front() {
            self.append(0, held.packet);
        }
    }

    fn append(&mut self, due_ns: u64, packet: T) {
        self.last_due_ns = self.last_due_ns.max(due_ns);
        self.queue.push_back((self.last_due_ns, packet));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(line: &mut Line<u32>, now_ns: u64) -> Vec<u32> {
        std::iter::from_fn(|| line.pop(now_ns)).collect()
    }

    #[test]
    fn packets_leave_when_their_time_has_come() {
        let mut line = Line::new();
        line.push(1000, 500, 1);
        assert_eq!((line.pop(1499), line.next_due_ns()), (None, Some(1500)));
        assert_eq!((line.pop(1500), line.pop(u64::MAX), line.next_due_ns()), (Some(1), None, None));
    }

    #[test]
    fn a_shorter_delay_overtakes_nobody() {
        let mut line = Line::new();
        line.push(0, 500, 1);
        line.push(10, 100, 2);
        assert!(all(&mut line, 499).is_empty());
        assert_eq!(all(&mut line, 500), [1, 2]);
    }

    #[test]
    fn three_pass_one_that_is_held_back() {
        let mut line = Line::new();
        line.hold(0, 0, 0);
        for packet in 1..=4 {
            line.push(0, 0, packet);
        }
        assert_eq!(all(&mut line, 0), [1, 2, 3, 0, 4]);
    }

    #[test]
    fn several_that_are_held_back_keep_their_order() {
        let mut line = Line::new();
        line.hold(0, 0, 0);
        line.push(0, 0, 1);
        line.hold(0, 0, 2);
        for packet in 3..=6 {
            line.push(0, 0, packet);
        }
        assert_eq!(all(&mut line, 0), [1, 3, 4, 0, 5, 2, 6]);
    }

    #[test]
    fn one_that_nobody_passes_leaves_in_the_end() {
        let mut line = Line::new();
        line.hold(0, 7, 1);
        assert_eq!((line.pop(HELD_NS + 6), line.next_due_ns()), (None, Some(HELD_NS + 7)));
        assert_eq!(line.pop(HELD_NS + 7), Some(1));
    }
}
