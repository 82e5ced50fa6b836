//! `udp-overload`: goodput against offered rate.

use super::{Bench, record_trial};
use crate::bench::{document::Point, side::Side, stage::Stage, trial::Load};
use anyhow::Result;

pub(super) fn prepare(stage: &mut Stage) -> Result<Box<dyn Bench>> {
    let rates = match stage.plan.rates.clone() {
        Some(rates) => rates,
        None => {
            let (breaking, quick) = (stage.breaking_pps()?, stage.plan.quick);
            stage.note(format!("the kernel's breaking point was found at {:.0} packets/s", breaking));
            rates_around(breaking, quick)
        }
    };
    Ok(Box::new(Overload { rates }))
}

struct Overload {
    rates: Vec<f64>,
}

impl Bench for Overload {
    fn round(&mut self, stage: &mut Stage) -> Result<()> {
        for rate in &self.rates {
            let point = Point::of("offered", *rate, "packets/s");
            for side in stage.sides(&Side::ALL) {
                stage.show(side.name(), Some(&point));
                let load = Load::at(*rate, &stage.plan);
                let trial = stage.trial(side, &load)?;
                record_trial(stage, side.name(), Some(&point), &trial);
            }
        }
        Ok(())
    }
}

/// From a quarter of the breaking point to twice it, and in any case to 1.75 Mpps, which SPEC.md quotes. On a fixed grid (half
/// octaves; octaves when quick), so that two runs measure at the same rates although each finds a point of its own.
fn rates_around(breaking_pps: f64, quick: bool) -> Vec<f64> {
    let most = (2.0 * breaking_pps).max(QUOTED_PPS);
    let steps = (-16..=4).filter(|step| !quick || step % 2 == 0);
    let grid = steps.map(|step| round(QUOTED_PPS * 2f64.powf(f64::from(step) / 2.0)));
    grid.filter(|rate| (0.25 * breaking_pps..=most * 1.01).contains(rate)).collect()
}

const QUOTED_PPS: f64 = 1.75e6;

/// To three digits.
fn round(rate: f64) -> f64 {
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
                let rates = rates_around(breaking, quick);
                assert!(rates.contains(&1.75e6), "{rates:?}");
                let (least, most) = (rates[0], *rates.last().unwrap());
                assert!(least >= 0.25 * breaking && least <= 0.5 * breaking, "{breaking}: {rates:?}");
                assert!(most >= 1.4 * breaking, "{breaking}: {rates:?}");
            }
        }
    }

    #[test]
    fn breaking_points_that_are_near_give_the_same_rates() {
        assert_eq!(rates_around(0.55e6, false), rates_around(0.6e6, false));
        assert_eq!(rates_around(0.55e6, true), [219e3, 438e3, 875e3, 1.75e6]);
    }
}
