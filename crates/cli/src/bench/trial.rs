//! One trial: the wire sends to one side at one rate, and what became of it is counted on both ends.

use super::{
    Signals,
    others::{Census, Stolen},
    plan::Plan,
    program::Program,
    side::Side,
};
use anyhow::{Context, Result, bail};
use hoist_wire::{Generator, Limit, Napi, Pattern, Spec, Testbed, prefer_thread};
use serde::{Deserialize, Serialize};
use std::{
    cell::Cell,
    net::SocketAddr,
    time::{Duration, Instant},
};

/// What one trial gave.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct Trial {
    /// Frames per second asked for.
    pub(crate) asked_pps: f64,
    /// Frames per second that the wire sent.
    pub(crate) sent_pps: f64,
    /// Frames that the wire sent.
    pub(crate) sent: u64,
    /// Datagrams that the program received.
    pub(crate) received: u64,
    /// Of these, out of their flow's order.
    pub(crate) reordered: u64,
    /// Datagrams per second that the program received.
    pub(crate) goodput_pps: f64,
    /// CPU time of the program from its first datagram on.
    pub(crate) program_ns: u64,
    /// CPU time of the NAPI thread.
    pub(crate) napi_ns: u64,
    /// CPU time of `hoist run` beside its program.
    pub(crate) broker_ns: u64,
    /// CPU time that other processes took from the host's CPU meanwhile.
    pub(crate) foreign_ns: u64,
    /// Time that the machine below took from the host's CPU meanwhile, where it tells (in steps of 10 ms).
    pub(crate) stolen_ns: u64,
}

impl Trial {
    /// The fraction that was lost.
    pub(crate) fn loss(&self) -> f64 {
        self.sent.saturating_sub(self.received) as f64 / self.sent.max(1) as f64
    }

    pub(crate) fn is_loss_free(&self, tolerated: f64) -> bool {
        self.sent > 0 && self.loss() <= tolerated
    }

    /// The wire could not send what it was asked for.
    pub(crate) fn wire_fell_short(&self) -> bool {
        self.sent_pps < self.asked_pps * 0.93
    }

    /// CPU time of everything that receives, for a datagram received.
    pub(crate) fn ns_per_packet(&self) -> f64 {
        self.per_packet(self.program_ns + self.napi_ns + self.broker_ns)
    }

    pub(crate) fn per_packet(&self, ns: u64) -> f64 {
        ns as f64 / self.received.max(1) as f64
    }

    /// Others used the host's CPU for longer than `plan` tolerates.
    pub(crate) fn is_disturbed(&self, plan: &Plan) -> bool {
        self.foreign_ns > plan.tolerated_foreign_ns || self.stolen_ns > plan.tolerated_stolen_ns
    }
}

/// What the wire sends in a trial.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    /// Frames per second.
    pub(crate) pps: f64,
    /// Flows in turn.
    pub(crate) flows: u64,
    /// To so many sockets of one program in turn, in place of flows to one.
    pub(crate) sockets: Option<u32>,
    /// For so long.
    pub(crate) time: Duration,
}

impl Load {
    /// At `pps`, and otherwise as planned.
    pub(crate) fn at(pps: f64, plan: &Plan) -> Self {
        Self { pps, flows: plan.flows, sockets: None, time: Duration::from_millis(plan.trial_ms) }
    }

    fn spec(&self, testbed: &Testbed, plan: &Plan) -> Spec {
        let spec = Spec::to(SocketAddr::from((testbed.host().v4(), PORT)))
            .frame_len(plan.frame_len)
            .packets_per_second(self.pps)
            .flows(self.flows)
            .checksum(plan.checksum)
            .limit(Limit::Time(self.time))
            .cpu(plan.wire_cpu)
            .favoured(true);
        match self.sockets {
            Some(sockets) => spec.pattern(Pattern::Outcast(sockets)),
            None => spec,
        }
    }

    fn command(&self, side: Side, plan: &Plan) -> Result<Vec<String>> {
        let mut command = side.sink(plan, PORT)?;
        command.extend(self.sockets.iter().flat_map(|sockets| ["--sockets".into(), sockets.to_string()]));
        Ok(command)
    }
}

/// The port that the wire sends to.
pub(crate) const PORT: u16 = 9000;

/// Takes disturbed trials again, for as long as there is time for it.
pub(crate) struct Retakes {
    left: Cell<Duration>,
}

impl Retakes {
    pub(crate) fn of(plan: &Plan) -> Self {
        Self { left: Cell::new(Duration::from_millis(plan.retakes_ms)) }
    }

    /// A trial that nobody disturbed, or the last of several.
    pub(crate) fn trial(
        &self,
        stage: (&Testbed, &Signals),
        plan: &Plan,
        side: Side,
        load: &Load,
    ) -> Result<Trial> {
        let (testbed, signals) = stage;
        self.take(
            plan.attempts,
            |trial: &Trial| trial.is_disturbed(plan),
            || {
                signals.check()?;
                attempt(testbed, plan, side, load)
            },
        )
    }

    /// What `attempt` gives, again while it `is_disturbed`: at most `attempts` times.
    pub(crate) fn take<T>(
        &self,
        attempts: usize,
        is_disturbed: impl Fn(&T) -> bool,
        mut attempt: impl FnMut() -> Result<T>,
    ) -> Result<T> {
        let mut taken = attempt()?;
        for _ in 1..attempts {
            if !is_disturbed(&taken) || self.left.get().is_zero() {
                break;
            }
            let start = Instant::now();
            taken = attempt()?;
            self.left.set(self.left.get().saturating_sub(start.elapsed()));
        }
        Ok(taken)
    }
}

/// What a sink prints at its end.
#[derive(Deserialize)]
struct Report {
    packets: u64,
    reordered: u64,
    seconds: f64,
    cpu_ns: u64,
}

/// Sends to `side` and reports what became of it.
pub(crate) fn attempt(testbed: &Testbed, plan: &Plan, side: Side, load: &Load) -> Result<Trial> {
    let program = Program::ready(testbed.host(), plan.host_cpu, side, &load.command(side, plan)?)?;
    let napis = favoured_napis(testbed, plan, side)?;
    let before = (cpu_ns(&napis)?, program.cpu_ns());
    let watch = Watch::start(plan.host_cpu, &program);
    let sent = Generator::start(testbed, &load.spec(testbed, plan))?.wait()?;
    let (foreign_ns, stolen_ns) = watch.end();
    let broker_ns = if side == Side::Hoist { program.cpu_ns().saturating_sub(before.1) } else { 0 };
    let report: Report = program.report().with_context(|| format!("side {}", side.name()))?;
    if report.packets > sent.packets {
        bail!("side {}: {} datagrams received of {} sent", side.name(), report.packets, sent.packets);
    }
    Ok(Trial {
        asked_pps: load.pps,
        sent_pps: sent.rate(),
        sent: sent.packets,
        received: report.packets,
        reordered: report.reordered,
        goodput_pps: report.packets as f64 / sent.seconds.max(report.seconds).max(1e-9),
        program_ns: report.cpu_ns,
        napi_ns: cpu_ns(&napis)?.saturating_sub(before.0),
        broker_ns,
        foreign_ns,
        stolen_ns,
    })
}

/// The NAPI threads of `vb` on the host's CPU, with the precedence of `side`.
///
/// To be called once the program is ready: attaching XDP makes them anew.
pub(crate) fn favoured_napis(testbed: &Testbed, plan: &Plan, side: Side) -> Result<Vec<Napi>> {
    let napis = testbed.threaded_napi(plan.host_cpu)?;
    let mut threads = napis.iter().filter_map(|napi| napi.thread);
    threads.try_for_each(|thread| prefer_thread(thread, side.precedence()))?;
    Ok(napis)
}

/// The CPU time of NAPI threads in nanoseconds.
pub(crate) fn cpu_ns(napis: &[Napi]) -> Result<u64> {
    napis.iter().map(|napi| napi.cpu_ns().context("the NAPI thread of vb is gone")).sum()
}

/// Who else uses the host's CPU from now on.
pub(crate) struct Watch {
    cpu: usize,
    ours: Vec<i32>,
    census: Census,
    stolen: Stolen,
}

impl Watch {
    pub(crate) fn start(cpu: usize, program: &Program) -> Self {
        Self { cpu, ours: program.processes(), census: Census::take(cpu), stolen: Stolen::read(cpu) }
    }

    /// What other processes used, and what the machine below took, in nanoseconds.
    pub(crate) fn end(self) -> (u64, u64) {
        let stolen_ns = Stolen::read(self.cpu).since(&self.stolen);
        (Census::take(self.cpu).foreign_since(&self.census, &self.ours), stolen_ns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disturbed(foreign_ns: u64) -> Trial {
        Trial { sent: 1000, received: 900, foreign_ns, ..Trial::default() }
    }

    fn take(plan: &Plan, attempt: impl FnMut() -> Result<Trial>) -> Trial {
        Retakes::of(plan).take(plan.attempts, |trial: &Trial| trial.is_disturbed(plan), attempt).unwrap()
    }

    #[test]
    fn a_disturbed_trial_is_taken_again_until_one_is_quiet() {
        let mut foreign = [u64::MAX, u64::MAX, 7, 8].into_iter();
        let trial = take(&Plan::full(), || Ok(disturbed(foreign.next().unwrap())));
        assert_eq!(trial.foreign_ns, 7);
    }

    #[test]
    fn without_time_for_retakes_each_trial_is_taken_once() {
        let mut taken = 0;
        take(&Plan { retakes_ms: 0, ..Plan::full() }, || {
            taken += 1;
            Ok(disturbed(u64::MAX))
        });
        assert_eq!(taken, 1);
    }

    #[test]
    fn stolen_time_disturbs_as_others_do() {
        let plan = Plan::full();
        assert!(!disturbed(plan.tolerated_foreign_ns).is_disturbed(&plan));
        assert!(Trial { stolen_ns: 10_000_000, ..disturbed(0) }.is_disturbed(&plan));
    }

    #[test]
    fn loss_is_a_fraction_of_what_was_sent() {
        assert!((disturbed(0).loss() - 0.1).abs() < 1e-9);
        assert_eq!(Trial::default().loss(), 0.0);
    }

    #[test]
    fn a_packets_cost_counts_every_thread_that_receives() {
        let trial = Trial { received: 2, program_ns: 10, napi_ns: 20, broker_ns: 30, ..Trial::default() };
        assert_eq!(trial.ns_per_packet(), 30.0);
    }
}
