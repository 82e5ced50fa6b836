//! How fast the wire sends, and how many frames at once (bpf/pace.h waits).

/// A rate in frames per second; 0 is as fast as possible.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Pace(pub(crate) f64);

const MOST_BATCH: u32 = 64;
const LONGEST_GAP: u64 = 1 << 62; // more than half a year: added to the clock, it does not wrap
const BATCH_SECONDS: f64 = 32e-6;

impl Pace {
    /// Between frames, in 1/256 ns.
    pub(crate) fn gap(self) -> u64 {
        if self.0 > 0.0 { ((256e9 / self.0) as u64).min(LONGEST_GAP) } else { 0 }
    }

    /// Frames handed over at once, a power of two: as many as come in some microseconds, as a NIC moderates its interrupts.
    pub(crate) fn batch(self) -> u32 {
        match self.0 {
            0.0 => MOST_BATCH,
            rate => 1 << ((rate * BATCH_SECONDS) as u32).clamp(1, MOST_BATCH).ilog2(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slow_frames_go_one_by_one_and_fast_ones_in_batches() {
        let batches = [0.0, 1.0, 50e3, 250e3, 1e6, 3e6, 1e9].map(|rate| Pace(rate).batch());
        assert_eq!(batches, [64, 1, 1, 8, 32, 64, 64]);
    }

    #[test]
    fn a_second_holds_as_many_gaps_as_frames() {
        assert_eq!(Pace(1e6).gap(), 256_000);
        assert_eq!(Pace(0.0).gap(), 0);
        assert_eq!(Pace(1e-12).gap(), LONGEST_GAP);
    }
}
