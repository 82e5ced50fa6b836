//! `tcp-bulk`: one kernel connection that the TCP wire fills as fast as it is read.

use super::{Bench, REORDERED};
use crate::bench::{
    document::{Metric, Point},
    others::{Taken, Watched},
    plan::Plan,
    program::{Program, sibling},
    side::Side,
    stage::Stage,
    trial::{PORT, Watch, cpu_ns, favoured_napis},
};
use anyhow::{Context, Result, ensure};
use hoist_wire::{TcpLimit, TcpSpec, TcpWire, Testbed};
use serde::Deserialize;
use std::{net::SocketAddr, time::Duration};

const GOODPUT: Metric = Metric::more("goodput", "bytes/s");
const CPU: Metric = Metric::less("CPU time", "ns/byte");
const CPU_NAPI: Metric = Metric::part("CPU time of NAPI", "ns/byte");
const CPU_PROGRAM: Metric = Metric::part("CPU time of the program", "ns/byte");
const CPU_BROKER: Metric = Metric::part("CPU time of hoist run", "ns/byte");
const GO_BACKS: Metric = Metric::part("sent again", "times");

pub(super) fn prepare(_: &mut Stage) -> Result<Box<dyn Bench>> {
    sibling("hoist-tcp-sink")?;
    Ok(Box::new(TcpBulk))
}

struct TcpBulk;

/// Raw AF_XDP has no TCP, so there is no limit.
const SIDES: [Side; 3] = [Side::Kernel, Side::KernelTuned, Side::Hoist];

impl Bench for TcpBulk {
    fn round(&mut self, stage: &mut Stage) -> Result<()> {
        for cold in [false, true] {
            let name =
                if cold { "connections with cold payload" } else { "connections with untouched payload" };
            let point = Point::of(name, 1.0, "connections");
            for side in stage.sides(&SIDES) {
                stage.show(side.name(), Some(&point));
                let bulk = stage.retaken(side, |testbed, plan| attempt(testbed, plan, side, cold))?;
                bulk.record(stage, side, &point);
            }
        }
        Ok(())
    }
}

struct Bulk {
    report: Report,
    napi_ns: u64,
    broker_ns: u64,
    go_backs: u64,
    taken: Taken,
}

impl Watched for Bulk {
    fn taken(&self) -> Taken {
        self.taken
    }
}

/// What the sink prints at its end.
#[derive(Deserialize)]
struct Report {
    bytes: u64,
    seconds: f64,
    cpu_ns: u64,
    out_of_order: u64,
}

impl Bulk {
    fn record(&self, stage: &mut Stage, side: Side, point: &Point) {
        let Report { bytes, seconds, cpu_ns, out_of_order } = self.report;
        let each = |ns: u64| ns as f64 / bytes.max(1) as f64;
        let samples = [
            (GOODPUT, bytes as f64 / seconds.max(1e-9)),
            (CPU, each(cpu_ns + self.napi_ns + self.broker_ns)),
            (CPU_NAPI, each(self.napi_ns)),
            (CPU_PROGRAM, each(cpu_ns)),
            (CPU_BROKER, each(self.broker_ns)),
            (GO_BACKS, self.go_backs as f64),
            (REORDERED, out_of_order as f64),
        ];
        for (metric, sample) in samples {
            stage.record(side.name(), Some(point), metric, sample);
        }
    }
}

fn attempt(testbed: &Testbed, plan: &Plan, side: Side, cold: bool) -> Result<Bulk> {
    let program = Program::ready(testbed.host(), plan.host_cpu, side, &sink(plan, side)?)?;
    let napis = favoured_napis(testbed, plan, side)?;
    let before = (cpu_ns(&napis)?, program.cpu_ns());
    let watch = Watch::start(plan.host_cpu, [&program]);
    let spec = TcpSpec::to(SocketAddr::from((testbed.host().v4(), PORT)))
        .cold(cold)
        .limit(TcpLimit::Time(Duration::from_millis(plan.trial_ms)))
        .cpu(plan.wire_cpu)
        .favoured(true);
    let sent = TcpWire::start(testbed, &spec)?.finish(PATIENCE)?;
    let taken = watch.end();
    let broker_ns = if side == Side::Hoist { program.cpu_ns().saturating_sub(before.1) } else { 0 };
    let report: Report = program.report().with_context(|| format!("side {}", side.name()))?;
    ensure!(report.bytes > 0, "side {}: nothing was received", side.name());
    Ok(Bulk {
        report,
        napi_ns: cpu_ns(&napis)?.saturating_sub(before.0),
        broker_ns,
        go_backs: sent.go_backs,
        taken,
    })
}

const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) const BUSY_POLL_US: u32 = 50;
/// 1 MiB costs twice as much a byte.
pub(crate) const BOUNDED_RCVBUF: u64 = 256 << 10;

/// The tuned one polls the device itself and bounds what waits for it, so that payload is copied while it is in the cache.
fn sink(plan: &Plan, side: Side) -> Result<Vec<String>> {
    let mut sink = vec![sibling("hoist-tcp-sink")?.display().to_string(), format!("0.0.0.0:{PORT}")];
    match (side, plan.rcvbuf) {
        (Side::KernelTuned, _) => {
            sink.extend(["--busy-poll".into(), BUSY_POLL_US.to_string()]);
            sink.extend(["--rcvbuf".into(), BOUNDED_RCVBUF.to_string()]);
        }
        (_, Some(bytes)) => sink.extend(["--rcvbuf".into(), bytes.to_string()]),
        _ => {}
    }
    side.wrap(plan, sink)
}
