//! An unmodified receiver at rising offered rates.

use super::{Counted, Stage, show};
use crate::bench::{
    plan::Plan,
    side::Side,
    trial::{self, Load, Retakes, Trial},
};
use crate::flame::{self, Drawn};
use anyhow::Result;
use serde::Serialize;

/// One offered rate, both sides.
#[derive(Serialize)]
pub(crate) struct Row {
    pub(crate) offered_pps: f64,
    pub(crate) plain: Trial,
    pub(crate) hoisted: Trial,
    pub(crate) counted: Counted,
}

pub(crate) const OFFERED_PPS: [f64; 5] = [0.3e6, 0.7e6, 1.0e6, 1.4e6, 1.75e6];

/// What is offered while flame graphs are taken: more than the plain receiver can take.
const FLAMES_PPS: f64 = 0.5e6;
const FRAME_BYTES: u64 = 64;

/// Where the receiving CPU's time goes, on either side.
pub(super) fn flames(stage: &Stage, plan: Plan) -> Result<Vec<Drawn>> {
    hoist_wire::pin_thread(plan.wire_cpu)?;
    let mut drawn = Vec::new();
    for (side, name) in [(Side::Kernel, "plain"), (Side::Hoist, "under hoist run")] {
        stage.progress(&format!("flame graph, {name}"));
        stage.signals.check()?;
        let title = format!("{name}: the receiving CPU at {:.1} Mpps offered", FLAMES_PPS / 1e6);
        let load = Load::at(FLAMES_PPS, &plan);
        let trial = || trial::attempt(&stage.testbed, &plan, side, &load, None);
        let received = |trial: &Trial| (trial.received, trial.received * FRAME_BYTES);
        let (_, flame) = flame::during(&title, plan.host_cpu as u32, trial, received)?;
        drawn.push(flame);
    }
    hoist_wire::unpin_thread()?;
    Ok(drawn)
}

pub(super) fn run(stage: &Stage, plan: Plan) -> Result<Vec<Row>> {
    hoist_wire::pin_thread(plan.wire_cpu)?;
    let status = stage.directory.path("flood.json");
    let plan = Plan { status: Some(status.clone()), ..plan };
    let mut retakes = Retakes::of(&plan);
    let mut trial = |side: Side, pps: f64| {
        stage.progress(&format!("{} at {:.2} Mpps", side.name(), pps / 1e6));
        retakes.take(&plan, || {
            stage.signals.check()?;
            trial::attempt(&stage.testbed, &plan, side, &Load::at(pps, &plan), None)
        })
    };
    stage.say(show::FLOOD_HEAD);
    let mut rows = Vec::new();
    for offered_pps in OFFERED_PPS {
        let (plain, hoisted) = (trial(Side::Kernel, offered_pps)?, trial(Side::Hoist, offered_pps)?);
        let row = Row { offered_pps, plain, hoisted, counted: Counted::read(&status)? };
        stage.say(&show::flood_row(&row));
        rows.push(row);
    }
    hoist_wire::unpin_thread()?;
    Ok(rows)
}
