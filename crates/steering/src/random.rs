//! Random numbers that the same seed repeats.

/// SplitMix64 (Steele et al., 'Fast splittable pseudorandom number generators', OOPSLA 2014).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The numbers of `seed`.
    pub fn seeded(seed: u64) -> Self {
        Self(seed)
    }

    /// 64 random bits.
    pub fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// 0 to less than 1.
    pub fn unit(&mut self) -> f64 {
        (self.word() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// 0 to less than `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.word()) * u128::from(bound)) >> 64) as u64
    }

    /// A number of events of which `mean` are expected: its normal approximation, exact enough from 10 on.
    pub fn count(&mut self, mean: f64) -> u64 {
        let (radius, angle) = ((-2.0 * (1.0 - self.unit()).ln()).sqrt(), std::f64::consts::TAU * self.unit());
        (mean + mean.sqrt() * radius * angle.cos()).round().max(0.0) as u64
    }
}

/// A hash of 64 bits (the finalizer of SplitMix64).
pub fn mix(word: u64) -> u64 {
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// Ranks drawn so that rank `k` of 1 to `ranks` comes in proportion to `1 / k^exponent`, without a table: rejection-inversion
/// (Hörmann and Derflinger, 'Rejection-inversion to generate variates from monotone discrete distributions', 1996).
#[derive(Clone, Debug)]
pub struct Zipf {
    ranks: f64,
    exponent: f64,
    first: f64,
    last: f64,
    shortcut: f64,
}

impl Zipf {
    /// An exponent of 0 draws all ranks alike.
    pub fn new(ranks: u64, exponent: f64) -> Self {
        let area = |x| integral(x, exponent);
        let ranks = ranks as f64;
        let shortcut = 2.0 - inverse(area(2.5) - 2_f64.powf(-exponent), exponent);
        Self { ranks, exponent, first: area(1.5) - 1.0, last: area(ranks + 0.5), shortcut }
    }

    /// A rank, counted from 0.
    pub fn draw(&self, random: &mut Random) -> u64 {
        loop {
            let at = self.last + random.unit() * (self.first - self.last);
            let x = inverse(at, self.exponent);
            let rank = x.round().clamp(1.0, self.ranks);
            if rank - x <= self.shortcut
                || at >= integral(rank + 0.5, self.exponent) - rank.powf(-self.exponent)
            {
                return rank as u64 - 1;
            }
        }
    }
}

/// The integral of `x^-exponent`.
fn integral(x: f64, exponent: f64) -> f64 {
    if exponent == 1.0 { x.ln() } else { (x.powf(1.0 - exponent) - 1.0) / (1.0 - exponent) }
}

fn inverse(area: f64, exponent: f64) -> f64 {
    if exponent == 1.0 {
        area.exp()
    } else {
        (1.0 + area * (1.0 - exponent)).max(0.0).powf(1.0 / (1.0 - exponent))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_numbers_are_those_of_the_reference() {
        let mut random = Random::seeded(1_234_567);
        assert_eq!([random.word(), random.word()], [6_457_827_717_110_365_317, 3_203_168_211_198_807_973]);
    }

    #[test]
    fn ranks_come_as_often_as_they_should() {
        for exponent in [0.0, 0.8, 1.0, 1.1, 2.0] {
            let (ranks, draws) = (50, 200_000);
            let zipf = Zipf::new(ranks, exponent);
            let mut random = Random::seeded(7);
            let mut seen = vec![0_f64; ranks as usize];
            (0..draws).for_each(|_| seen[zipf.draw(&mut random) as usize] += 1.0);
            let weight = |rank: usize| ((rank + 1) as f64).powf(-exponent);
            let all: f64 = (0..50).map(weight).sum();
            for (rank, seen) in seen.iter().enumerate() {
                let wanted = f64::from(draws) * weight(rank) / all;
                assert!(
                    (seen - wanted).abs() < 5.0 * wanted.sqrt() + 2.0,
                    "{exponent} {rank}: {seen} {wanted}"
                );
            }
        }
    }

    #[test]
    fn counts_have_the_mean_and_the_variance_of_independent_events() {
        let mut random = Random::seeded(1);
        let counts: Vec<f64> = (0..20_000).map(|_| random.count(100.0) as f64).collect();
        let mean = counts.iter().sum::<f64>() / 2e4;
        let variance = counts.iter().map(|count| (count - mean).powi(2)).sum::<f64>() / 2e4;
        assert!((mean - 100.0).abs() < 0.5 && (variance - 100.0).abs() < 5.0, "{mean} {variance}");
    }
}
