//! Random numbers that the same seed repeats, in Rust and in BPF (bpf/wire.h).

/// SplitMix64 (Steele et al., 'Fast splittable pseudorandom number generators', OOPSLA 2014).
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn seeded(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// 0 to less than 1.
    pub(crate) fn unit(&mut self) -> f64 {
        (self.word() >> 11) as f64 / (1u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_numbers_are_those_of_the_reference() {
        let mut random = Random::seeded(1_234_567);
        let first = [random.word(), random.word(), random.word()];
        assert_eq!(first, [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]);
    }

    #[test]
    fn fractions_fill_the_unit_interval() {
        let mut random = Random::seeded(1);
        let all: Vec<_> = (0..10_000).map(|_| random.unit()).collect();
        assert!(all.iter().all(|x| (0.0..1.0).contains(x)));
        assert!((all.iter().sum::<f64>() / 1e4 - 0.5).abs() < 0.02);
    }
}
