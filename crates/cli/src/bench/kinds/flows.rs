//! `flows`: one receiver, from one flow to a million, at a rate that the kernel takes and at one beyond.

use super::{Bench, record_trial};
use crate::bench::{document::Point, number, rates, side::Side, stage::Stage, trial::Load};
use anyhow::Result;

pub(super) fn prepare(stage: &mut Stage) -> Result<Box<dyn Bench>> {
    let rates = match stage.plan.rates.clone() {
        Some(rates) => rates,
        None => rates::below_and_above(stage.breaking_pps()?).into(),
    };
    let flows: &[u64] = if stage.plan.quick { &[1, 1_000, 1_000_000] } else { &ALL };
    Ok(Box::new(Flows { rates, flows }))
}

const ALL: [u64; 7] = [1, 10, 100, 1_000, 10_000, 100_000, 1_000_000];

struct Flows {
    rates: Vec<f64>,
    flows: &'static [u64],
}

impl Bench for Flows {
    fn round(&mut self, stage: &mut Stage) -> Result<()> {
        for rate in &self.rates {
            for flows in self.flows {
                measure(stage, *rate, *flows)?;
            }
        }
        Ok(())
    }
}

fn measure(stage: &mut Stage, rate: f64, flows: u64) -> Result<()> {
    let name = format!("flows at {}", number::with_unit(rate, "packets/s"));
    let point = Point::of(&name, flows as f64, "flows");
    for side in stage.sides(&Side::ALL) {
        stage.show(side.name(), Some(&point));
        let load = Load { flows, ..Load::at(rate, &stage.plan) };
        let trial = stage.trial(side, &load)?;
        record_trial(stage, side.name(), Some(&point), &trial);
    }
    Ok(())
}
