//! An unmodified receiver at rising offered rates.

use super::{Counted, Stage, show};
use crate::bench::{
    plan::Plan,
    side::Side,
    trial::{self, Load, Retakes, Trial},
};
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
