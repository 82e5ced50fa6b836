//! How often each flow is sent, and an alias table that draws flows so in constant time (bpf/wire.h draws the same).

use crate::random::Random;

/// How often each flow is sent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Popularity {
    /// One after the other.
    InTurn,
    /// At random, all alike.
    Uniform,
    /// At random: flow `k`, counted from 1, is sent in proportion to `1 / k^s`.
    Zipf(f64),
}

impl Popularity {
    /// The share of each flow, not normalised. None when flows are not drawn.
    fn weights(self, flows: usize) -> Option<Vec<f64>> {
        match self {
            Self::InTurn => None,
            Self::Uniform => Some(vec![1.0; flows]),
            Self::Zipf(s) => Some((1..=flows).map(|rank| (rank as f64).powf(-s)).collect()),
        }
    }

    pub(crate) fn table(self, flows: usize) -> Option<Table> {
        self.weights(flows).map(|weights| Table::of(&weights))
    }
}

/// One slot: itself when a 32-bit random number is below the threshold, otherwise its alias.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Slot {
    pub(crate) threshold: u32,
    pub(crate) alias: u32,
}

/// An alias table (Walker 1977, in the form of Vose 1991): two random numbers draw from any distribution.
#[derive(Clone, Debug)]
pub(crate) struct Table(Vec<Slot>);

impl Table {
    pub(crate) fn of(weights: &[f64]) -> Self {
        let mean = weights.iter().sum::<f64>() / weights.len() as f64;
        let mut scaled: Vec<f64> = weights.iter().map(|weight| weight / mean).collect();
        let full = |at: usize| Slot { threshold: u32::MAX, alias: at as u32 };
        let mut slots: Vec<Slot> = (0..weights.len()).map(full).collect();
        let (mut small, mut large): (Vec<usize>, Vec<usize>) =
            (0..weights.len()).partition(|at| scaled[*at] < 1.0);
        while let (Some(poor), Some(rich)) = (small.pop(), large.last().copied()) {
            slots[poor] = Slot { threshold: threshold(scaled[poor]), alias: rich as u32 };
            scaled[rich] -= 1.0 - scaled[poor];
            if scaled[rich] < 1.0 {
                large.pop();
                small.push(rich);
            }
        }
        Self(slots)
    }

    pub(crate) fn slots(&self) -> &[Slot] {
        &self.0
    }

    /// The next flow.
    pub(crate) fn draw(&self, random: &mut Random) -> u32 {
        let word = random.word();
        let at = ((word >> 32) * self.0.len() as u64) >> 32;
        let slot = self.0[at as usize];
        if (word as u32) < slot.threshold { at as u32 } else { slot.alias }
    }
}

fn threshold(probability: f64) -> u32 {
    (probability * (1u64 << 32) as f64) as u32 // saturates
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a table draws, exactly: each slot is hit alike.
    fn distribution(table: &Table) -> Vec<f64> {
        let slots = table.slots();
        let mut shares = vec![0.0; slots.len()];
        for (at, slot) in slots.iter().enumerate() {
            let own = f64::from(slot.threshold) / (1u64 << 32) as f64;
            shares[at] += own / slots.len() as f64;
            shares[slot.alias as usize] += (1.0 - own) / slots.len() as f64;
        }
        shares
    }

    #[test]
    fn tables_draw_the_exact_distribution() {
        for popularity in
            [Popularity::Uniform, Popularity::Zipf(0.5), Popularity::Zipf(1.1), Popularity::Zipf(3.0)]
        {
            for flows in [1, 2, 3, 1000, 1 << 17] {
                let weights = popularity.weights(flows).unwrap();
                let total: f64 = weights.iter().sum();
                let shares = distribution(&popularity.table(flows).unwrap());
                for (share, weight) in shares.iter().zip(&weights) {
                    assert!((share - weight / total).abs() < 1e-9, "{popularity:?} of {flows}");
                }
            }
        }
    }

    #[test]
    fn draws_follow_the_distribution_and_the_seed_repeats_them() {
        let table = Popularity::Zipf(1.0).table(100).unwrap();
        let draws = |seed| {
            let mut random = Random::seeded(seed);
            (0..100_000).map(|_| table.draw(&mut random)).collect::<Vec<_>>()
        };
        let all = draws(7);
        let first = all.iter().filter(|flow| **flow == 0).count() as f64 / 1e5;
        let exact = 1.0 / (1..=100).map(|k| 1.0 / f64::from(k)).sum::<f64>();
        assert!((first - exact).abs() < 0.01, "{first} {exact}");
        assert_eq!(all, draws(7));
        assert_ne!(all, draws(8));
    }
}
