//! `pass-cost`: the load goes to a program that Hoist has nothing to do with; Hoist runs another beside it.

use super::{Bench, record_trial};
use crate::bench::{
    document::{Metric, Point},
    program::Program,
    side::Side,
    stage::Stage,
    trial::{Load, PORT},
};
use anyhow::Result;

/// CPU time with Hoist on the device over that without, of two trials one after the other.
const RATIO: Metric = Metric::less("ratio of pairs", "x");

pub(super) fn prepare(_: &mut Stage) -> Result<Box<dyn Bench>> {
    Ok(Box::new(PassCost))
}

struct PassCost;

impl Bench for PassCost {
    fn round(&mut self, stage: &mut Stage) -> Result<()> {
        let point = Point::of("offered", stage.plan.pass_pps, "packets/s");
        let load = Load::at(stage.plan.pass_pps, &stage.plan);
        stage.show("kernel", Some(&point));
        let without = stage.trial(Side::Kernel, &load)?;
        stage.show("hoist beside it", Some(&point));
        let bystander = bystander(stage)?;
        let with = stage.trial_beside(Side::Kernel, &load, Some(&bystander))?;
        drop(bystander);
        record_trial(stage, "kernel", Some(&point), &without);
        record_trial(stage, "hoist", Some(&point), &with);
        let ratio = with.ns_per_packet() / without.ns_per_packet();
        stage.record("hoist", Some(&point), RATIO, ratio);
        Ok(())
    }
}

/// A program of another port under `hoist run`.
fn bystander(stage: &Stage) -> Result<Program> {
    let command = Side::Hoist.sink(&stage.plan, PORT + 1)?;
    Program::ready(stage.testbed.host(), stage.plan.host_cpu, Side::Hoist, &command)
}
