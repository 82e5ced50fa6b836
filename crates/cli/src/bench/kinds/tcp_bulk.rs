//! `tcp-bulk`: one kernel connection that the TCP wire fills as fast as it is read, or at a rate that every side keeps up with.

use super::{Bench, REORDERED, SPIN_US, rr::LIFTING};
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
const CPU_USER: Metric = Metric::part("CPU time of the program outside the kernel", "ns/byte");
const CPU_SYSTEM: Metric = Metric::part("CPU time of the program in the kernel", "ns/byte");
const CPU_BROKER: Metric = Metric::part("CPU time of hoist run", "ns/byte");
/// Of two trials of one round.
pub(super) const TO_KERNEL: Metric = Metric::less("CPU time to kernel", "x");
/// The same.
pub(super) const TO_TUNED: Metric = Metric::less("CPU time to kernel-tuned", "x");
/// Times that the wire went back for want of an ACK.
pub(super) const SENT_AGAIN: Metric = Metric::less("sent again", "times");

/// What a remark below the table tells: its columns have the sum.
pub(crate) const PARTS: [(&str, &str); 3] =
    [(CPU_NAPI.name, "NAPI"), (CPU_USER.name, "program"), (CPU_SYSTEM.name, "program in the kernel")];

pub(super) fn prepare(stage: &mut Stage) -> Result<Box<dyn Bench>> {
    sibling("hoist-tcp-sink")?;
    let sides = stage.sides(&SIDES);
    let mut receivers = Receiver::EACH.to_vec();
    receivers.retain(|receiver| sides.contains(&receiver.side()));
    if receivers.contains(&Receiver::Chunks)
        && let Err(error) = start(&stage.testbed, &stage.plan, Receiver::Chunks)
    {
        stage.note(format!("{} was left out: {error:#}", Receiver::Chunks.name()));
        receivers.retain(|receiver| *receiver != Receiver::Chunks);
    }
    Ok(Box::new(TcpBulk { receivers }))
}

struct TcpBulk {
    receivers: Vec<Receiver>,
}

/// Raw AF_XDP has no TCP, so there is no limit.
const SIDES: [Side; 3] = [Side::Kernel, Side::KernelTuned, Side::Hoist];

/// A side, and how it is run.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Receiver {
    Kernel,
    KernelTuned,
    /// As is: whether it lifts is up to `hoist run`.
    Hoist,
    /// Every connection is lifted, and reads spin.
    Lift,
    /// The same, with a program that takes payload where it lies.
    Chunks,
}

impl Receiver {
    const EACH: [Self; 5] = [Self::Kernel, Self::KernelTuned, Self::Hoist, Self::Lift, Self::Chunks];

    fn side(self) -> Side {
        match self {
            Self::Kernel => Side::Kernel,
            Self::KernelTuned => Side::KernelTuned,
            Self::Hoist | Self::Lift | Self::Chunks => Side::Hoist,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Lift => LIFTING,
            Self::Chunks => "hoist-chunks",
            _ => self.side().name(),
        }
    }

    fn command(self, plan: &Plan) -> Result<Vec<String>> {
        let mut sink = vec![sibling("hoist-tcp-sink")?.display().to_string(), format!("0.0.0.0:{PORT}")];
        sink.extend(self.sink_options(plan.rcvbuf));
        let spin_us = SPIN_US.to_string();
        let lifting = ["--tcp", "lift", "--spin-us", &spin_us];
        self.side().wrap_with(plan, if self.lifts() { &lifting } else { &[] }, sink)
    }

    fn lifts(self) -> bool {
        matches!(self, Self::Lift | Self::Chunks)
    }

    fn sink_options(self, rcvbuf: Option<u32>) -> Vec<String> {
        let with = |name: &str, value: u64| vec![name.to_owned(), value.to_string()];
        let rcvbuf = rcvbuf.map(|bytes| with("--rcvbuf", bytes.into())).unwrap_or_default();
        match self {
            Self::Kernel | Self::Hoist | Self::Lift => rcvbuf,
            Self::Chunks => [rcvbuf, vec!["--chunks".into()]].concat(),
            Self::KernelTuned => {
                [with("--busy-poll", BUSY_POLL_US.into()), with("--rcvbuf", BOUNDED_RCVBUF)].concat()
            }
        }
    }
}

pub(crate) const BUSY_POLL_US: u32 = 50;
/// 1 MiB costs twice as much a byte.
pub(crate) const BOUNDED_RCVBUF: u64 = 256 << 10;

/// What the wire sends.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Load {
    Untouched,
    Cold,
    Paced,
}

/// A rate that every side takes, 10^9 bits a second.
const PACED_GBIT: f64 = 8.0;

impl Load {
    const EACH: [Self; 3] = [Self::Untouched, Self::Cold, Self::Paced];

    fn point(self) -> Point {
        let name = match self {
            Self::Untouched => "connections with untouched payload".into(),
            Self::Cold => "connections with cold payload".into(),
            Self::Paced => format!("connections at {PACED_GBIT} Gbit/s"),
        };
        Point::of(&name, 1.0, "connections")
    }

    fn spec(self, testbed: &Testbed, plan: &Plan) -> TcpSpec {
        TcpSpec::to(SocketAddr::from((testbed.host().v4(), PORT)))
            .cold(self == Self::Cold)
            .gbit_per_second(if self == Self::Paced { PACED_GBIT } else { 0.0 })
            .limit(TcpLimit::Time(Duration::from_millis(plan.trial_ms)))
            .cpu(plan.wire_cpu)
            .favoured(true)
    }
}

impl Bench for TcpBulk {
    fn round(&mut self, stage: &mut Stage) -> Result<()> {
        for load in Load::EACH {
            let mut found = Vec::new();
            for receiver in &self.receivers {
                stage.show(receiver.name(), Some(&load.point()));
                let bulk = stage
                    .retaken(receiver.side(), |testbed, plan| attempt(testbed, plan, *receiver, load))?;
                bulk.record(stage, *receiver, &load.point());
                found.push((*receiver, bulk.ns_per_byte()));
            }
            for (receiver, metric, ratio) in ratios(&found) {
                stage.record(receiver.name(), Some(&load.point()), metric, ratio);
            }
        }
        Ok(())
    }
}

/// What each side costs of what the kernel's sides cost, in one round.
fn ratios(found: &[(Receiver, f64)]) -> Vec<(Receiver, Metric, f64)> {
    let cost = |of| found.iter().find(|(receiver, _)| *receiver == of).map(|(_, ns)| *ns);
    let mut ratios = Vec::new();
    for (base, metric) in [(Receiver::Kernel, TO_KERNEL), (Receiver::KernelTuned, TO_TUNED)] {
        let others = found.iter().filter(|(receiver, _)| *receiver != base);
        let Some(base) = cost(base).filter(|ns| *ns > 0.0) else { continue };
        ratios.extend(others.map(|(receiver, ns)| (*receiver, metric, ns / base)));
    }
    ratios
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
#[derive(Clone, Copy, Deserialize)]
struct Report {
    bytes: u64,
    seconds: f64,
    cpu_ns: u64,
    user_ns: u64,
    system_ns: u64,
    out_of_order: u64,
}

impl Bulk {
    fn each(&self, ns: u64) -> f64 {
        ns as f64 / self.report.bytes.max(1) as f64
    }

    /// Of everything that receives.
    fn ns_per_byte(&self) -> f64 {
        self.each(self.report.cpu_ns + self.napi_ns + self.broker_ns)
    }

    fn record(&self, stage: &mut Stage, receiver: Receiver, point: &Point) {
        let Report { bytes, seconds, cpu_ns, user_ns, system_ns, out_of_order } = self.report;
        let samples = [
            (GOODPUT, bytes as f64 / seconds.max(1e-9)),
            (CPU, self.ns_per_byte()),
            (CPU_NAPI, self.each(self.napi_ns)),
            (CPU_PROGRAM, self.each(cpu_ns)),
            (CPU_USER, self.each(user_ns)),
            (CPU_SYSTEM, self.each(system_ns)),
            (CPU_BROKER, self.each(self.broker_ns)),
            (SENT_AGAIN, self.go_backs as f64),
            (REORDERED, out_of_order as f64),
        ];
        for (metric, sample) in samples {
            stage.record(receiver.name(), Some(point), metric, sample);
        }
    }
}

fn start(testbed: &Testbed, plan: &Plan, receiver: Receiver) -> Result<Program> {
    Program::ready(testbed.host(), plan.host_cpu, receiver.side(), &receiver.command(plan)?)
}

fn attempt(testbed: &Testbed, plan: &Plan, receiver: Receiver, load: Load) -> Result<Bulk> {
    let program = start(testbed, plan, receiver)?;
    let napis = favoured_napis(testbed, plan, receiver.side())?;
    let before = (cpu_ns(&napis)?, program.cpu_ns());
    let watch = Watch::start(plan.host_cpu, [&program]);
    let sent = TcpWire::start(testbed, &load.spec(testbed, plan))?.finish(PATIENCE)?;
    let taken = watch.end();
    let is_hoist = receiver.side() == Side::Hoist;
    let broker_ns = if is_hoist { program.cpu_ns().saturating_sub(before.1) } else { 0 };
    let report: Report = program.report().with_context(|| format!("side {}", receiver.name()))?;
    ensure!(report.bytes > 0, "side {}: nothing was received", receiver.name());
    Ok(Bulk {
        report,
        napi_ns: cpu_ns(&napis)?.saturating_sub(before.0),
        broker_ns,
        go_backs: sent.go_backs,
        taken,
    })
}

const PATIENCE: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::side::is_hoist;

    #[test]
    fn ratios_are_to_each_of_the_kernels_sides_that_was_measured() {
        let found = [(Receiver::Kernel, 0.6), (Receiver::KernelTuned, 0.2), (Receiver::Lift, 0.15)];
        let of = |found: &[_]| -> Vec<(String, f64)> {
            let name = |receiver: Receiver, metric: Metric| format!("{}: {}", receiver.name(), metric.name);
            ratios(found).into_iter().map(|(receiver, metric, x)| (name(receiver, metric), x)).collect()
        };
        let close =
            |(name, x): &(String, f64), (expected, y): (&str, f64)| name == expected && (x - y).abs() < 1e-9;
        let all = of(&found);
        for expected in [
            ("kernel-tuned: CPU time to kernel", 1.0 / 3.0),
            ("hoist-lift: CPU time to kernel", 0.25),
            ("kernel: CPU time to kernel-tuned", 3.0),
            ("hoist-lift: CPU time to kernel-tuned", 0.75),
        ] {
            assert!(all.iter().any(|found| close(found, expected)), "{expected:?} is not in {all:?}");
        }
        assert_eq!(of(&found[..1]), []);
    }

    #[test]
    fn a_buffer_that_was_asked_for_is_that_of_all_but_the_tuned() {
        for receiver in Receiver::EACH {
            let options = receiver.sink_options(Some(77)).join(" ");
            assert_eq!(options.contains("--rcvbuf 77"), receiver != Receiver::KernelTuned, "{options}");
            assert_eq!(options.ends_with("--chunks"), receiver == Receiver::Chunks, "{options}");
        }
    }

    #[test]
    fn each_way_to_run_a_side_has_a_name_that_says_whose_it_is() {
        for receiver in Receiver::EACH {
            assert_eq!(is_hoist(receiver.name()), receiver.side() == Side::Hoist, "{receiver:?}");
        }
    }
}
