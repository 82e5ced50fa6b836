//! What a run of round trips gave.

use hdrhistogram::Histogram;

/// Round trips, their times, and what did not come back as it went.
#[derive(Debug)]
pub(super) struct Tally {
    times_ns: Histogram<u64>,
    pub(super) lost: u64,
    pub(super) wrong: u64,
    pub(super) late: u64,
    pub(super) seconds: f64,
}

const MOST_NS: u64 = 60_000_000_000;

impl Tally {
    pub(super) fn new() -> Self {
        let times_ns = Histogram::new_with_bounds(1, MOST_NS, 3).expect("bounds that hdrhistogram takes");
        Self { times_ns, lost: 0, wrong: 0, late: 0, seconds: 0.0 }
    }

    /// Counts a right answer.
    pub(super) fn answered(&mut self, ns: u64) {
        self.times_ns.saturating_record(ns);
    }

    /// One line.
    pub(super) fn json(&self) -> String {
        let at = |quantile| self.times_ns.value_at_quantile(quantile);
        format!(
            r#"{{"transactions":{},"seconds":{:.6},"rtt_ns":{{"min":{},"p50":{},"p90":{},"p99":{},"p999":{},"max":{}}},"lost":{},"wrong":{},"late":{}}}"#,
            self.times_ns.len(),
            self.seconds,
            self.times_ns.min(),
            at(0.5),
            at(0.9),
            at(0.99),
            at(0.999),
            self.times_ns.max(),
            self.lost,
            self.wrong,
            self.late
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_the_times_to_three_digits() {
        let mut tally = Tally::new();
        (1..=1000).for_each(|us| tally.answered(us * 1000));
        let json: serde_json::Value = serde_json::from_str(&tally.json()).unwrap();
        for (name, expected) in
            [("p50", 500e3), ("p90", 900e3), ("p99", 990e3), ("p999", 999e3), ("max", 1e6)]
        {
            let found = json["rtt_ns"][name].as_f64().unwrap();
            assert!((found / expected - 1.0).abs() < 2e-3, "{name}: {found} is not {expected}");
        }
        assert_eq!(json["transactions"], 1000);
    }

    #[test]
    fn a_run_without_answers_is_still_json() {
        let mut tally = Tally::new();
        tally.lost = 7;
        let json: serde_json::Value = serde_json::from_str(&tally.json()).unwrap();
        assert_eq!((json["transactions"].as_u64(), json["lost"].as_u64()), (Some(0), Some(7)));
    }

    #[test]
    fn a_time_beyond_the_histogram_counts_as_its_longest() {
        let mut tally = Tally::new();
        tally.answered(u64::MAX);
        assert_eq!(tally.times_ns.len(), 1);
    }
}
