//! `sockets`: one program with one socket to ten thousand, by epoll, and a datagram to each in turn.

use super::{Bench, record_trial};
use crate::bench::{document::Point, number, rates, side::Side, stage::Stage, trial::Load};
use anyhow::Result;

/// The raw sink has one port, so there is no limit.
const SIDES: [Side; 3] = [Side::Kernel, Side::KernelTuned, Side::Hoist];
const ALL: [u32; 5] = [1, 10, 100, 1_000, 10_000];

pub(super) fn prepare(stage: &mut Stage) -> Result<Box<dyn Bench>> {
    let rates = match stage.plan.rates.clone() {
        Some(rates) => rates,
        None => vec![rates::below_and_above(stage.breaking_pps()?)[0]],
    };
    Ok(Box::new(Sockets { rates }))
}

struct Sockets {
    rates: Vec<f64>,
}

impl Bench for Sockets {
    fn round(&mut self, stage: &mut Stage) -> Result<()> {
        for rate in &self.rates {
            for sockets in ALL {
                measure(stage, *rate, sockets)?;
            }
        }
        Ok(())
    }
}

fn measure(stage: &mut Stage, rate: f64, sockets: u32) -> Result<()> {
    let name = format!("sockets at {}", number::with_unit(rate, "packets/s"));
    let point = Point::of(&name, sockets.into(), "sockets");
    for side in stage.sides(&SIDES) {
        stage.show(side.name(), Some(&point));
        let load = Load { sockets: Some(sockets), ..Load::at(rate, &stage.plan) };
        let trial = stage.trial(side, &load)?;
        record_trial(stage, side.name(), Some(&point), &trial);
    }
    Ok(())
}
