//! The highest rate that passes a test, by halving: pure, it is told how each trial went and asks for the next.
//!
//! After RFC 2544, 26.1 (throughput), with two concessions to shared machines: a rate counts as failed only when it failed
//! `doubts` times, and what passes is said by the caller (see [`super::side::Trial::is_loss_free`]).

/// A search that goes on.
#[derive(Clone, Debug)]
pub(crate) struct Search {
    passed: f64,
    failed: f64,
    resolution: f64,
    doubts: u32,
    failures: u32,
    shortfalls: u32,
}

impl Search {
    /// Between 0 and `most`, until the answer is known to a `resolution` (a fraction of it).
    pub(crate) fn new(most: f64, resolution: f64, doubts: u32) -> Self {
        Self { passed: 0.0, failed: most, resolution, doubts: doubts.max(1), failures: 0, shortfalls: 0 }
    }

    /// The rate to try next; none when the answer is known.
    pub(crate) fn next(&self) -> Option<f64> {
        let open = self.failed - self.passed > self.failed * self.resolution;
        open.then_some((self.passed + self.failed) / 2.0)
    }

    /// The trial at `rate` passed.
    pub(crate) fn passed(&mut self, rate: f64) {
        self.passed = self.passed.max(rate);
        self.failed = self.failed.max(self.passed);
        self.failures = 0;
    }

    /// The trial at `rate` failed.
    pub(crate) fn failed(&mut self, rate: f64) {
        self.failures += 1;
        if self.failures >= self.doubts {
            self.failed = self.failed.min(rate);
            self.failures = 0;
        }
    }

    /// The wire sent only `rate` of what was asked. True when it did so too often: then it ends there, and nothing above can be tried.
    pub(crate) fn wire_fell_short(&mut self, rate: f64) -> bool {
        self.shortfalls += 1;
        let ended = self.shortfalls > self.doubts;
        if ended {
            self.failed = self.failed.min(rate.max(self.passed));
            self.shortfalls = 0;
        }
        ended
    }

    /// The highest rate that passed.
    pub(crate) fn answer(&self) -> f64 {
        self.passed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a search against a receiver; the answer and the number of trials.
    fn run(mut search: Search, mut loss_free: impl FnMut(f64) -> bool) -> (f64, u32) {
        let mut trials = 0;
        while let Some(rate) = search.next() {
            trials += 1;
            assert!(trials < 1000, "does not end: {search:?}");
            if loss_free(rate) { search.passed(rate) } else { search.failed(rate) }
        }
        (search.answer(), trials)
    }

    #[test]
    fn finds_a_receivers_limit_to_the_resolution() {
        for limit in [0.02e6, 0.3e6, 0.77e6, 1.75e6, 2.9e6] {
            let (answer, trials) = run(Search::new(3e6, 0.02, 1), |rate| rate <= limit);
            assert!(answer <= limit && answer >= limit * 0.979, "{limit}: {answer}");
            assert!(trials < 16, "{limit}: {trials}");
        }
    }

    #[test]
    fn one_disturbed_trial_does_not_move_the_answer() {
        for disturbed in 1..12 {
            let mut trial = 0;
            let (answer, _) = run(Search::new(3e6, 0.02, 2), |rate| {
                trial += 1;
                trial != disturbed && rate <= 1e6
            });
            assert!((0.979e6..=1e6).contains(&answer), "trial {disturbed}: {answer}");
        }
    }

    #[test]
    fn a_receiver_that_never_loses_is_as_fast_as_the_wire() {
        let mut search = Search::new(4e6, 0.02, 2);
        while let Some(rate) = search.next() {
            search.passed(rate.min(2.5e6));
            if rate > 2.5e6 {
                search.wire_fell_short(2.5e6);
            }
        }
        assert_eq!(search.answer(), 2.5e6);
    }

    #[test]
    fn one_late_wire_does_not_end_the_search() {
        let mut search = Search::new(4e6, 0.02, 2);
        assert!(!search.wire_fell_short(0.1e6));
        let (answer, _) = run(search, |rate| rate <= 1e6);
        assert!(answer > 0.979e6, "{answer}");
    }

    #[test]
    fn a_receiver_that_always_loses_ends_at_nothing() {
        let mut search = Search::new(3e6, 0.02, 2);
        let mut trials = 0;
        while let Some(rate) = search.next().filter(|rate| *rate > 1e3) {
            search.failed(rate);
            trials += 1;
        }
        assert_eq!(search.answer(), 0.0);
        assert!(trials < 30, "{trials}");
    }
}
