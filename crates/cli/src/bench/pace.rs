//! How many rounds fit, and how long they will take: pure, it is told the time.

use std::time::Duration;

/// A bench's rounds.
#[derive(Clone, Debug)]
pub(crate) struct Pace {
    repeats: usize,
    limit: Option<Duration>,
    began: Duration,
    rounds: usize,
    longest: Duration,
}

impl Pace {
    /// `repeats` rounds, but none that would end later than `limit`; the first one in any case.
    pub(crate) fn new(repeats: usize, limit: Option<Duration>) -> Self {
        Self { repeats, limit, began: Duration::ZERO, rounds: 0, longest: Duration::ZERO }
    }

    /// Whether another round starts `now`, since the bench began.
    pub(crate) fn starts(&mut self, now: Duration) -> bool {
        if self.rounds > 0 {
            self.longest = self.longest.max(now.saturating_sub(self.began));
        }
        let fits = self.limit.is_none_or(|limit| now + self.longest <= limit);
        let starts = self.rounds < self.repeats && (self.rounds == 0 || fits);
        if starts {
            (self.began, self.rounds) = (now, self.rounds + 1);
        }
        starts
    }

    /// The round that goes on, from 1.
    pub(crate) fn round(&self) -> usize {
        self.rounds
    }

    pub(crate) fn repeats(&self) -> usize {
        self.repeats
    }

    /// How long the bench goes on, as far as that can be known.
    pub(crate) fn left(&self, now: Duration) -> Option<Duration> {
        let whole = match (self.longest.is_zero(), self.limit) {
            (true, limit) => limit?,
            (false, limit) => {
                let all = self.began + self.longest * (self.repeats - self.rounds + 1) as u32;
                limit.map_or(all, |limit| limit.min(all))
            }
        };
        Some(whole.saturating_sub(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// The rounds of a bench whose rounds take so long.
    fn rounds(mut pace: Pace, takes: &[u64]) -> usize {
        let mut now = s(0);
        let mut takes = takes.iter().cycle();
        while pace.starts(now) {
            now += s(*takes.next().unwrap());
        }
        pace.round()
    }

    #[test]
    fn without_a_limit_every_repeat_is_taken() {
        assert_eq!(rounds(Pace::new(5, None), &[1000]), 5);
    }

    #[test]
    fn no_round_starts_that_would_not_fit() {
        assert_eq!(rounds(Pace::new(5, Some(s(40))), &[12]), 3);
        assert_eq!(rounds(Pace::new(5, Some(s(40))), &[10]), 4);
        assert_eq!(rounds(Pace::new(5, Some(s(40))), &[1]), 5, "not more than asked for");
        assert_eq!(rounds(Pace::new(5, Some(s(40))), &[15, 5]), 3, "the longest round counts");
    }

    #[test]
    fn one_round_is_taken_however_long() {
        assert_eq!(rounds(Pace::new(5, Some(s(40))), &[100]), 1);
        let mut late = Pace::new(5, Some(s(40)));
        assert!(late.starts(s(50)), "after a long preparation");
    }

    #[test]
    fn what_is_left_is_the_limit_or_the_rounds_to_come() {
        let mut pace = Pace::new(3, None);
        assert!(pace.starts(s(2)));
        assert_eq!(pace.left(s(5)), None, "not known in the first round");
        assert!(pace.starts(s(12)));
        assert_eq!(pace.left(s(12)), Some(s(20)));
        let mut bounded = Pace::new(5, Some(s(40)));
        assert!(bounded.starts(s(0)));
        assert_eq!(bounded.left(s(3)), Some(s(37)));
    }
}
