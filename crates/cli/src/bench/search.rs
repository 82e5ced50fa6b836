//! The highest rate that passes a test, by halving. [`Search`] is pure: it is told how each trial went and asks for the next.
//!
//! After RFC 2544, 26.1 (throughput), with two concessions to shared machines: a rate counts as failed only when it failed
//! `doubts` times, and what passes is said by the caller (see [`super::trial::Trial::is_loss_free`]).

use super::{
    document::Point,
    plan::Plan,
    side::Side,
    stage::Stage,
    trial::{Load, Trial},
};
use anyhow::Result;

/// Where a search begins.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Guess {
    pub(crate) pps: f64,
    /// Its first step from there is this factor; further ones the same way grow up to [`LONGEST_STEP`].
    pub(crate) step: f64,
}

const LONGEST_STEP: f64 = 1.2;

impl Guess {
    /// It may be far off.
    pub(crate) const fn rough(pps: f64) -> Self {
        Self { pps, step: LONGEST_STEP }
    }

    /// Near the answer of the last round; a few per cent off it, or every round would try the same rates.
    pub(crate) fn near(pps: f64, round: usize) -> Self {
        const OFF: [f64; 5] = [-0.02, 0.01, -0.01, 0.02, 0.0];
        Self { pps: pps * (1.0 + OFF[round % OFF.len()]), step: 1.05 }
    }
}

/// What a search for the highest loss-free rate found.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Found {
    /// Frames per second.
    pub(crate) pps: f64,
    /// True when the wire, not the receiver, ended the search.
    pub(crate) wire_limited: bool,
}

/// Looks for the highest rate that `side` takes without loss.
pub(crate) fn run(stage: &mut Stage, side: Side, guess: Guess) -> Result<Found> {
    let plan = stage.plan.clone();
    let mut search = Search::new(plan.most_pps, plan.resolution, plan.doubts).from(guess);
    let (mut wire_limited, mut excuses) = (false, plan.excuses);
    while let Some(rate) = search.next().filter(|rate| *rate > LEAST_PPS) {
        stage.show(side.name(), Some(&Point::of("offered", rate, "packets/s")));
        let trial = stage.trial(side, &Load { time: plan.search_time(), ..Load::at(rate, &plan) })?;
        if excuses > 0 && is_excused(&trial, &plan) {
            excuses -= 1;
            continue;
        }
        wire_limited |= judge(&mut search, &trial, plan.tolerated_loss);
    }
    Ok(Found { pps: search.answer(), wire_limited })
}

const LEAST_PPS: f64 = 10e3;

/// It failed while others used the host's CPU, which tells nothing of the receiver.
fn is_excused(trial: &Trial, plan: &Plan) -> bool {
    trial.taken.is_too_much(plan) && !trial.is_loss_free(plan.tolerated_loss)
}

/// Tells the search how a trial went; true when it found the end of the wire.
fn judge(search: &mut Search, trial: &Trial, tolerated: f64) -> bool {
    let loss_free = trial.is_loss_free(tolerated);
    match trial.wire_fell_short() {
        true if loss_free => {
            search.passed(trial.sent_pps);
            search.wire_fell_short(trial.sent_pps)
        }
        true => search.wire_fell_short(trial.sent_pps),
        false if loss_free => {
            search.passed(trial.asked_pps.min(trial.sent_pps));
            false
        }
        false => {
            search.failed(trial.asked_pps);
            false
        }
    }
}

/// A search that goes on.
#[derive(Clone, Debug)]
pub(crate) struct Search {
    guess: Option<Guess>,
    most: f64,
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
        let (guess, passed, failed, doubts) = (None, 0.0, most, doubts.max(1));
        Self { guess, most, passed, failed, resolution, doubts, failures: 0, shortfalls: 0 }
    }

    /// The same, from a guess on and in steps until the answer is between two of them: fewer trials.
    pub(crate) fn from(self, guess: Guess) -> Self {
        Self { guess: Some(guess).filter(|guess| guess.pps > 0.0 && guess.pps < self.most), ..self }
    }

    /// The rate to try next; none when the answer is known.
    pub(crate) fn next(&self) -> Option<f64> {
        let open = self.failed - self.passed > self.failed * self.resolution;
        open.then(|| match (self.guess, self.passed > 0.0, self.failed < self.most) {
            (Some(guess), false, false) => guess.pps,
            (Some(guess), true, false) => (self.passed * guess.step).min(self.most),
            (Some(guess), false, true) => self.failed / guess.step,
            _ => (self.passed + self.failed) / 2.0,
        })
    }

    /// The trial at `rate` passed.
    pub(crate) fn passed(&mut self, rate: f64) {
        self.stride(rate > self.passed && self.passed > 0.0);
        self.passed = self.passed.max(rate);
        self.failed = self.failed.max(self.passed);
        self.failures = 0;
    }

    /// The trial at `rate` failed.
    pub(crate) fn failed(&mut self, rate: f64) {
        self.failures += 1;
        if self.failures >= self.doubts {
            self.stride(self.failed < self.most);
            self.failed = self.failed.min(rate);
            self.failures = 0;
        }
    }

    /// A second step the same way tells that the guess is far off.
    fn stride(&mut self, again: bool) {
        if let Some(guess) = self.guess.as_mut().filter(|_| again) {
            guess.step = (guess.step * guess.step).min(LONGEST_STEP);
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
    use crate::bench::others::Taken;

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
    fn a_disturbed_failure_is_excused_and_a_disturbed_success_counts() {
        let plan = Plan::full();
        let trial = |received, foreign_ns| {
            let taken = Taken { foreign_ns, stolen_ns: 0 };
            Trial { sent: 1000, received, taken, ..Trial::default() }
        };
        assert!(is_excused(&trial(900, u64::MAX), &plan));
        assert!(!is_excused(&trial(1000, u64::MAX), &plan));
        assert!(!is_excused(&trial(900, 0), &plan));
    }

    #[test]
    fn a_guess_saves_trials_and_changes_no_answer() {
        for limit in [0.3e6, 0.77e6, 1.75e6] {
            for guess in [0.5, 0.9, 1.0, 1.3].map(|factor| Guess::rough(factor * limit)) {
                let search = Search::new(4e6, 0.03, 1).from(guess);
                let (answer, trials) = run(search, |rate| rate <= limit);
                assert!(answer <= limit && answer >= limit * 0.969, "{limit} from {guess:?}: {answer}");
                assert!(trials <= 8, "{limit} from {guess:?}: {trials}");
            }
        }
        let (answer, _) = run(Search::new(4e6, 0.03, 1).from(Guess::rough(1e6)), |_| true);
        assert!(answer >= 4e6 * 0.97, "up to the end: {answer}");
    }

    #[test]
    fn the_last_rounds_answer_saves_most_and_no_two_rounds_try_the_same() {
        let tried = |round| {
            let mut tried = Vec::new();
            let search = Search::new(4e6, 0.03, 1).from(Guess::near(0.98e6, round));
            let (answer, trials) = run(search, |rate| {
                tried.push(rate);
                rate <= 1e6
            });
            assert!((0.97e6..=1e6).contains(&answer) && trials <= 4, "round {round}: {answer}, {trials}");
            tried
        };
        assert!((1..5).all(|round| tried(round) != tried(round - 1)));
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
