//! `udp-rr` and `tcp-rr`: one request, one answer, and how long that takes.
//!
//! The client never sleeps and runs the NAPI instance of its own end of the wire: no interrupt of the wire's CPU is part of what
//! the server's sends cost, and what varies between sides is the server's.

use super::{
    Bench,
    serving::{Cost, Serving},
};
use crate::bench::{
    document::{Metric, Point},
    others::{Taken, Watched},
    plan::Plan,
    program::{Program, sibling},
    side::Side,
    stage::Stage,
};
use anyhow::{Context, Result, bail, ensure};
use hoist_wire::{End, Offload, Testbed};
use serde::Deserialize;

const P50: Metric = Metric::less("round trip p50", "us");
const P90: Metric = Metric::less("round trip p90", "us");
const P99: Metric = Metric::less("round trip p99", "us");
const P999: Metric = Metric::less("round trip p99.9", "us");
const RATE: Metric = Metric::more("transactions", "transactions/s");
const CPU: Metric = Metric::less("CPU time", "ns/transaction");
const CPU_NAPI: Metric = Metric::part("CPU time of NAPI", "ns/transaction");
const CPU_PROGRAM: Metric = Metric::part("CPU time of the program", "ns/transaction");
const LOST: Metric = Metric::less("lost", "requests");

const PORT: u16 = 9002;
pub(super) const SPIN_US: u32 = 50;

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Transport {
    Udp,
    Tcp,
}

/// The kernel's server that asks again and again.
const NONBLOCKING: &str = "kernel-nonblocking";
/// Under `hoist run --tcp lift`.
pub(super) const LIFTING: &str = "hoist-lift";

pub(super) fn prepare(stage: &mut Stage, transport: Transport) -> Result<Box<dyn Bench>> {
    sibling("hoist-rr")?;
    Ok(Box::new(Rr { transport, _polled: PolledWire::set(stage.testbed.wire())? }))
}

struct Rr {
    transport: Transport,
    _polled: PolledWire,
}

/// While it lasts the wire's end has a NAPI instance, which the client runs.
struct PolledWire(End);

impl PolledWire {
    fn set(wire: &End) -> Result<Self> {
        wire.set_offload(Offload::Gro, true)?;
        Ok(Self(wire.clone()))
    }
}

impl Drop for PolledWire {
    fn drop(&mut self) {
        let _ = self.0.set_offload(Offload::Gro, false);
    }
}

impl Bench for Rr {
    fn round(&mut self, stage: &mut Stage) -> Result<()> {
        for spin_us in [0, SPIN_US] {
            for side in stage.sides(self.sides()) {
                self.sample(stage, Server { side, name: side.name(), spin_us })?;
            }
            if self.transport == Transport::Tcp && stage.plan.sides.contains(&Side::Hoist) {
                self.sample(stage, Server { side: Side::Hoist, name: LIFTING, spin_us })?;
            }
        }
        if stage.plan.sides.contains(&Side::KernelTuned) {
            self.sample(stage, Server { side: Side::Kernel, name: NONBLOCKING, spin_us: SPIN_US })?;
        }
        Ok(())
    }
}

impl Rr {
    fn sides(&self) -> &'static [Side] {
        match self.transport {
            Transport::Udp => &Side::ALL,
            Transport::Tcp => &[Side::Kernel, Side::KernelTuned, Side::Hoist],
        }
    }

    fn sample(&self, stage: &mut Stage, server: Server) -> Result<()> {
        let point = Point::of("spin-us", server.spin_us.into(), "us");
        stage.show(server.name, Some(&point));
        let found =
            stage.retaken(server.side, |testbed, plan| attempt(testbed, plan, server, self.transport))?;
        for (metric, sample) in found.samples() {
            stage.record(server.name, Some(&point), metric, sample);
        }
        Ok(())
    }
}

/// Who answers, and how it waits.
#[derive(Clone, Copy, Debug)]
struct Server {
    side: Side,
    /// The side's, or that of a way to run it.
    name: &'static str,
    /// 0: it sleeps.
    spin_us: u32,
}

impl Server {
    fn command(self, plan: &Plan, address: &str, transport: Transport) -> Result<Vec<String>> {
        let mut command = match self.side {
            Side::Limit => words(&[&sibling("hoist-raw-echo")?.display().to_string(), "vb", address]),
            _ => words(&[&sibling("hoist-rr")?.display().to_string(), "serve", address]),
        };
        if transport == Transport::Tcp {
            command.push("--tcp".into());
        }
        let spin = self.spin_us.to_string();
        match self.side {
            Side::Limit if self.spin_us > 0 => command.push("--spin".into()),
            Side::Kernel if self.name == NONBLOCKING => command.push("--spin".into()),
            Side::KernelTuned if self.spin_us > 0 => command.extend(words(&["--busy-poll", &spin])),
            _ => {}
        }
        let lifting: &[&str] = if self.name == LIFTING { &["--tcp", "lift"] } else { &[] };
        self.side.wrap_with(plan, &[&["--spin-us", &spin], lifting].concat(), command)
    }
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// What one run of the client gave.
#[derive(Debug)]
struct Found {
    report: Report,
    cost: Cost,
}

impl Watched for Found {
    fn taken(&self) -> Taken {
        self.cost.taken
    }
}

/// What `hoist-rr ping` prints.
#[derive(Debug, Deserialize)]
struct Report {
    transactions: u64,
    seconds: f64,
    rtt_ns: Quantiles,
    lost: u64,
    wrong: u64,
}

#[derive(Debug, Deserialize)]
struct Quantiles {
    p50: u64,
    p90: u64,
    p99: u64,
    p999: u64,
}

impl Found {
    fn samples(&self) -> [(Metric, f64); 9] {
        let (report, cost) = (&self.report, &self.cost);
        let us = |ns: u64| ns as f64 / 1e3;
        let each = |ns: u64| ns as f64 / report.transactions.max(1) as f64;
        [
            (P50, us(report.rtt_ns.p50)),
            (P90, us(report.rtt_ns.p90)),
            (P99, us(report.rtt_ns.p99)),
            (P999, us(report.rtt_ns.p999)),
            (RATE, report.transactions as f64 / report.seconds.max(1e-9)),
            (CPU, cost.per(report.transactions)),
            (CPU_NAPI, each(cost.napi_ns)),
            (CPU_PROGRAM, each(cost.program_ns)),
            (LOST, report.lost as f64),
        ]
    }
}

fn attempt(testbed: &Testbed, plan: &Plan, server: Server, transport: Transport) -> Result<Found> {
    let address = format!("{}:{PORT}", testbed.host().v4());
    let command = server.command(plan, &address, transport)?;
    let program = Program::ready(testbed.host(), plan.host_cpu, server.side, &command)?;
    let serving = Serving::watch(testbed, plan, server.side, program)?;
    let client = client(plan, &address, transport)?;
    let report: Report = Program::start(testbed.wire(), plan.wire_cpu, Side::Kernel, &client)?.report()?;
    let name = server.name;
    let cost = serving.end().with_context(|| format!("side {name}"))?;
    ensure!(report.transactions > 0, "side {name}: nothing was answered");
    if report.wrong > 0 {
        bail!("side {name}: {} of {} answers were wrong", report.wrong, report.transactions);
    }
    Ok(Found { report, cost })
}

fn client(plan: &Plan, address: &str, transport: Transport) -> Result<Vec<String>> {
    let seconds = (plan.trial_ms as f64 / 1e3).to_string();
    let ping = sibling("hoist-rr")?.display().to_string();
    let mut client = words(&[&ping, "ping", address, "--busy-poll", "100", "--seconds", &seconds]);
    if transport == Transport::Tcp {
        client.push("--tcp".into());
    }
    Ok(client)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_becomes_samples_in_the_units_of_their_metrics() {
        let report = r#"{"transactions":1000,"seconds":0.5,"lost":1,"wrong":0,"late":0,
            "rtt_ns":{"min":1,"p50":3200,"p90":4000,"p99":25000,"p999":30000,"max":40000}}"#;
        let cost = Cost { napi_ns: 1_000_000, program_ns: 3_000_000, taken: Taken::default() };
        let found = Found { report: serde_json::from_str(report).unwrap(), cost };
        let samples = found.samples().map(|(metric, sample)| (metric.name, sample));
        for expected in [
            ("round trip p50", 3.2),
            ("round trip p99.9", 30.0),
            ("transactions", 2000.0),
            ("CPU time", 4000.0),
        ] {
            assert!(samples.contains(&expected), "{expected:?} is not in {samples:?}");
        }
    }
}
