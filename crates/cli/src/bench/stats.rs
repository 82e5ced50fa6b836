//! What samples come to, and when two sets of them differ by more than noise.

/// Median, least and most.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

impl Spread {
    /// None of no samples.
    pub(crate) fn of(samples: &[f64]) -> Option<Self> {
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (&min, &max) = (sorted.first()?, sorted.last()?);
        let middle = sorted.len() / 2;
        let median =
            if sorted.len() % 2 == 1 { sorted[middle] } else { (sorted[middle - 1] + sorted[middle]) / 2.0 };
        Some(Self { median, min, max })
    }
}

/// Whether two sets of samples differ by more than noise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// They do.
    Differ,
    /// They may be the same.
    Noise,
    /// Fewer than four samples in one of them tell nothing.
    TooFew,
}

/// The rule of every comparison, in words.
pub(crate) const RULE: &str = "two rows differ when a two-sided Mann-Whitney test gives p < 0.05 (5 samples or more each) \
                               or when their ranges do not overlap (4 samples: p = 0.03); fewer samples tell nothing";

/// By [`RULE`].
pub(crate) fn verdict(a: &[f64], b: &[f64]) -> Verdict {
    match a.len().min(b.len()) {
        0..4 => Verdict::TooFew,
        4 if overlap(a, b) => Verdict::Noise,
        4 => Verdict::Differ,
        _ if mann_whitney(a, b) < 0.05 => Verdict::Differ,
        _ => Verdict::Noise,
    }
}

fn overlap(a: &[f64], b: &[f64]) -> bool {
    match (Spread::of(a), Spread::of(b)) {
        (Some(a), Some(b)) => a.min <= b.max && b.min <= a.max,
        _ => true,
    }
}

/// The two-sided p-value, exact (also with ties): the share of all ways to deal the samples out whose rank sum is as far from
/// its mean as the one that was found.
fn mann_whitney(a: &[f64], b: &[f64]) -> f64 {
    let ranks = doubled_ranks(a, b);
    let total: usize = ranks.iter().sum();
    let found: usize = ranks[..a.len()].iter().sum();
    let ways = rank_sums(&ranks, a.len(), total);
    // Of a.len() of n ranks, times n: whole numbers.
    let distance = |sum: usize| (sum * ranks.len()).abs_diff(total * a.len());
    let extreme: f64 = (0..=total).filter(|sum| distance(*sum) >= distance(found)).map(|sum| ways[sum]).sum();
    extreme / ways.iter().sum::<f64>()
}

/// Twice the rank of every sample of `a`, then of `b`: ties share the mean, which is a multiple of one half.
fn doubled_ranks(a: &[f64], b: &[f64]) -> Vec<usize> {
    let all = || a.iter().chain(b);
    let rank = |sample: &f64| {
        let below = all().filter(|other| *other < sample).count();
        let equal = all().filter(|other| *other == sample).count();
        2 * below + equal + 1
    };
    all().map(rank).collect()
}

/// In how many ways `chosen` of `ranks` have each sum.
fn rank_sums(ranks: &[usize], chosen: usize, total: usize) -> Vec<f64> {
    let mut ways = vec![vec![0.0; total + 1]; chosen + 1];
    ways[0][0] = 1.0;
    for rank in ranks {
        for count in (1..=chosen).rev() {
            for sum in *rank..=total {
                ways[count][sum] += ways[count - 1][sum - rank];
            }
        }
    }
    ways.swap_remove(chosen)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_is_median_least_and_most_in_any_order() {
        assert_eq!(Spread::of(&[3.0, 1.0, 2.0]), Some(Spread { median: 2.0, min: 1.0, max: 3.0 }));
        assert_eq!(Spread::of(&[4.0, 1.0, 2.0, 3.0]), Some(Spread { median: 2.5, min: 1.0, max: 4.0 }));
        assert_eq!(Spread::of(&[]), None);
    }

    #[test]
    fn p_values_are_those_of_the_tables() {
        // Complete separation of 5 and 5: 2 of 252 ways. Three of the smallest p-values by hand.
        let low = [1.0, 2.0, 3.0, 4.0, 5.0];
        assert!((mann_whitney(&low, &[6.0, 7.0, 8.0, 9.0, 10.0]) - 2.0 / 252.0).abs() < 1e-12);
        assert!(
            (mann_whitney(&[1.0, 2.0, 3.0, 4.0, 6.0], &[5.0, 7.0, 8.0, 9.0, 10.0]) - 4.0 / 252.0).abs()
                < 1e-12
        );
        assert!((mann_whitney(&[1.0, 2.0], &[3.0, 4.0, 5.0]) - 0.2).abs() < 1e-12);
        assert_eq!(mann_whitney(&low, &low), 1.0);
        assert_eq!(mann_whitney(&[7.0; 5], &[7.0; 5]), 1.0, "nothing but ties");
    }

    #[test]
    fn five_samples_apart_differ_and_mixed_ones_are_noise() {
        assert_eq!(verdict(&[1.0, 1.1, 1.2, 0.9, 1.0], &[2.0, 2.1, 2.2, 1.9, 2.0]), Verdict::Differ);
        assert_eq!(verdict(&[1.0, 2.0, 3.0, 4.0, 5.0], &[1.5, 2.5, 3.5, 4.5, 0.5]), Verdict::Noise);
    }

    #[test]
    fn four_samples_differ_only_with_ranges_apart() {
        assert_eq!(verdict(&[1.0, 2.0, 3.0, 3.5], &[4.0, 5.0, 6.0, 7.0]), Verdict::Differ);
        assert_eq!(verdict(&[1.0, 2.0, 3.0, 4.0], &[4.0, 5.0, 6.0, 7.0, 8.0]), Verdict::Noise);
    }

    #[test]
    fn one_to_three_samples_tell_nothing() {
        assert_eq!(verdict(&[1.0, 2.0, 3.0], &[4.0, 5.0, 6.0]), Verdict::TooFew);
        assert_eq!(verdict(&[1.0], &[100.0]), Verdict::TooFew);
        assert_eq!(verdict(&[1.0, 1.0, 1.0, 1.0, 1.0], &[9.0, 9.0]), Verdict::TooFew);
        assert_eq!(verdict(&[], &[]), Verdict::TooFew);
    }
}
