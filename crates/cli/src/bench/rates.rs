//! Offered rates: on a grid that is the same in every run, so that two runs can be compared although each finds a breaking
//! point of its own.

/// From a quarter of the kernel's breaking point to twice it, and in any case to the step beyond [`QUOTED_PPS`]; every other
/// one when quick.
pub(crate) fn around(breaking_pps: f64, quick: bool) -> Vec<f64> {
    let most = (2.0 * breaking_pps).max(at(1));
    let steps = STEPS.filter(|step| !quick || step % 2 == 0).map(at);
    steps.filter(|rate| (0.25 * breaking_pps..=most * 1.01).contains(rate)).collect()
}

/// One that the kernel takes without loss, at most nine tenths of what it can, and one of twice that, [`QUOTED_PPS`] at least.
pub(crate) fn below_and_above(breaking_pps: f64) -> [f64; 2] {
    let below = STEPS.rev().find(|step| at(*step) <= 0.9 * breaking_pps).unwrap_or(*STEPS.start());
    [at(below), at((below + 2).max(0))]
}

/// From half of where a DNS server breaks to twice it, and in any case to [`MOST_QUERIES`].
pub(crate) fn of_queries(breaking: f64, quick: bool) -> Vec<f64> {
    let steps = STEPS.filter(|step| !quick || step % 2 == 0).map(|step| on_grid(QUERIES, step));
    steps.filter(|rate| (0.5 * breaking..=(2.0 * breaking).max(MOST_QUERIES) * 1.01).contains(rate)).collect()
}

/// The rate at which SPEC.md quotes goodput.
const QUOTED_PPS: f64 = 1.75e6;
/// Half octaves from there.
const STEPS: std::ops::RangeInclusive<i32> = -16..=4;

/// One step of the grid of queries per second.
const QUERIES: f64 = 400e3;
/// Where every server is overloaded by then.
const MOST_QUERIES: f64 = 1.13e6;

fn at(step: i32) -> f64 {
    on_grid(QUOTED_PPS, step)
}

/// Three significant digits.
fn on_grid(base: f64, step: i32) -> f64 {
    let rate = base * 2f64.powf(f64::from(step) / 2.0);
    let digits = 10f64.powf(rate.log10().floor() - 2.0);
    (rate / digits).round() * digits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_go_from_a_quarter_to_beyond_twice_the_breaking_point() {
        for breaking in [0.3e6, 0.55e6, 0.77e6, 1.2e6] {
            for quick in [false, true] {
                let rates = around(breaking, quick);
                assert!(rates.contains(&1.75e6), "{rates:?}");
                let (least, most) = (rates[0], *rates.last().unwrap());
                assert!(least >= 0.25 * breaking && least <= 0.5 * breaking, "{breaking}: {rates:?}");
                assert!(most >= 1.4 * breaking, "{breaking}: {rates:?}");
            }
        }
    }

    #[test]
    fn breaking_points_that_are_near_give_the_same_rates() {
        assert_eq!(around(0.55e6, false), around(0.6e6, false));
        assert_eq!(around(0.55e6, true), [219e3, 438e3, 875e3, 1.75e6]);
        assert_eq!(below_and_above(0.55e6), below_and_above(0.6e6));
    }

    #[test]
    fn servers_that_break_at_nearly_the_same_rate_are_asked_at_the_same_rates() {
        let rates = [141e3, 200e3, 283e3, 400e3, 566e3, 800e3, 1.13e6];
        assert_eq!(of_queries(240e3, false), rates);
        assert_eq!(of_queries(260e3, false), rates);
        for breaking in [21e3, 100e3, 150e3, 700e3] {
            assert!(of_queries(breaking, true).len() >= 2, "{breaking}");
            assert!(of_queries(breaking, false).len() >= 4, "{breaking}");
        }
    }

    #[test]
    fn one_rate_is_below_the_breaking_point_and_one_above() {
        for breaking in [0.2e6, 0.55e6, 0.77e6, 1.5e6] {
            let [below, above] = below_and_above(breaking);
            assert!(below <= 0.9 * breaking && below > 0.6 * breaking, "{breaking}: {below}");
            assert!(above > 1.2 * breaking, "{breaking}: {above}");
        }
    }
}
