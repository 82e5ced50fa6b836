//! `udp-overload`: goodput against offered rate.

use super::{Bench, record_trial};
use crate::bench::{document::Point, rates, stage::Stage, trial::Load};
use anyhow::Result;

pub(super) fn prepare(stage: &mut Stage) -> Result<Box<dyn Bench>> {
    let rates = match stage.plan.rates.clone() {
        Some(rates) => rates,
        None => rates::around(stage.breaking_pps()?, stage.plan.quick),
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
            for side in stage.receivers() {
                stage.show(side.name(), Some(&point));
                let load = Load::at(*rate, &stage.plan);
                let trial = stage.trial(side, &load)?;
                record_trial(stage, side.name(), Some(&point), &trial);
            }
        }
        Ok(())
    }
}
