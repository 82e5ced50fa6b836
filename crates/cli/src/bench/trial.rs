//! One trial: the wire sends to one side at one rate, and what became of it is counted on both ends.

use super::{
    others::{Census, Stolen, Taken, Watched},
    plan::Plan,
    program::Program,
    side::Side,
};
use anyhow::{Context, Result, bail};
use hoist_wire::{Generator, Limit, Napi, Pattern, Spec, Testbed, prefer_thread};
use serde::{Deserialize, Serialize};
use std::{
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
    /// Datagrams that a peer counted beyond what the wire sent: they do not count.
    pub(crate) uncalled: u64,
    /// Of those received, out of their flow's order.
    pub(crate) reordered: u64,
    /// Datagrams per second that the program received.
    pub(crate) goodput_pps: f64,
    /// CPU time of the program from its first datagram on.
    pub(crate) program_ns: u64,
    /// CPU time of the NAPI thread.
    pub(crate) napi_ns: u64,
    /// CPU time of `hoist run` beside its program.
    pub(crate) broker_ns: u64,
    /// Of the host's CPU meanwhile.
    #[serde(flatten)]
    pub(crate) taken: Taken,
}

impl Watched for Trial {
    fn taken(&self) -> Taken {
        self.taken
    }
}

impl Trial {
    /// The fraction that was lost.
    pub(crate) fn loss(&self) -> f64 {
        self.sent.saturating_sub(self.received) as f64 / self.sent.max(1) as f64
    }

    pub(crate) fn is_loss_free(&self, tolerated: f64) -> bool {
        self.sent > 0 && self.loss() <= tolerated
    }

    /// The wire could not send what it was asked for: so much less that a search ends there.
    pub(crate) fn wire_fell_short(&self) -> bool {
        self.sent_pps < self.asked_pps * 0.93
    }

    /// The wire sent so much less than it was asked for that readers must know.
    pub(crate) fn is_short(&self) -> bool {
        self.sent_pps < self.asked_pps * AS_ASKED
    }

    /// CPU time of everything that receives, for a datagram received.
    pub(crate) fn ns_per_packet(&self) -> f64 {
        self.per_packet(self.program_ns + self.napi_ns + self.broker_ns)
    }

    pub(crate) fn per_packet(&self, ns: u64) -> f64 {
        ns as f64 / self.received.max(1) as f64
    }
}

/// What the wire sends is what it was asked for when it differs by no more.
pub(crate) const AS_ASKED: f64 = 0.98;

/// What the wire sends in a trial.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    /// Frames per second.
    pub(crate) pps: f64,
    /// Flows in turn.
    pub(crate) flows: u64,
    /// To so many sockets of one program in turn, which it reads by epoll, in place of flows to one.
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
        if let Some(sockets) = self.sockets {
            command.extend(["--epoll".into(), "--sockets".into(), sockets.to_string()]);
        }
        Ok(command)
    }
}

/// The port that the wire sends to.
pub(crate) const PORT: u16 = 9000;

/// Takes disturbed trials again, for as long as there is time for it.
pub(crate) struct Retakes {
    left: Duration,
}

impl Retakes {
    pub(crate) fn of(plan: &Plan) -> Self {
        Self { left: Duration::from_millis(plan.retakes_ms) }
    }

    /// What `attempt` gives, again while it is disturbed and `plan` allows it; the last one in any case.
    pub(crate) fn take<T: Watched>(
        &mut self,
        plan: &Plan,
        mut attempt: impl FnMut() -> Result<T>,
    ) -> Result<T> {
        let mut result = attempt()?;
        for _ in 1..plan.attempts {
            if !result.taken().is_too_much(plan) || self.left.is_zero() {
                break;
            }
            let start = Instant::now();
            result = attempt()?;
            self.left = self.left.saturating_sub(start.elapsed());
        }
        Ok(result)
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

/// Sends to `side` and reports what became of it. What runs `beside` it is part of the host's cost.
pub(crate) fn attempt(
    testbed: &Testbed,
    plan: &Plan,
    side: Side,
    load: &Load,
    beside: Option<&Program>,
) -> Result<Trial> {
    let program = Program::ready(testbed.host(), plan.host_cpu, side, &load.command(side, plan)?)?;
    let napis = favoured_napis(testbed, plan, side)?;
    let broker = || broker_ns(side, &program, beside);
    let before = (cpu_ns(&napis)?, broker()?);
    let ours = beside.into_iter().chain([&program]);
    let watch = Watch::start(plan.host_cpu, ours);
    let sent = Generator::start(testbed, &load.spec(testbed, plan))?.wait()?;
    let taken = watch.end();
    let broker_ns = broker()?.saturating_sub(before.1);
    let report: Report = program.report().with_context(|| format!("side {}", side.name()))?;
    let received = counted(side, report.packets, sent.packets)?;
    Ok(Trial {
        asked_pps: load.pps,
        sent_pps: sent.rate(),
        sent: sent.packets,
        received,
        uncalled: report.packets - received,
        reordered: report.reordered,
        goodput_pps: received as f64 / sent.seconds.max(report.seconds).max(1e-9),
        program_ns: report.cpu_ns,
        napi_ns: cpu_ns(&napis)?.saturating_sub(before.0),
        broker_ns,
        taken,
    })
}

/// CPU time of `hoist run`; with a program beside, of both of them.
fn broker_ns(side: Side, program: &Program, beside: Option<&Program>) -> Result<u64> {
    let own = if side == Side::Hoist { program.cpu_ns() } else { 0 };
    Ok(own + beside.map_or(Ok(0), Program::processes_ns)?)
}

/// Peers may count every frame of their queue, and so more than was sent to them. Nobody else may.
fn counted(side: Side, received: u64, sent: u64) -> Result<u64> {
    if received > sent && !matches!(side, Side::Peer(_)) {
        bail!("side {}: {received} datagrams received of {sent} sent", side.name());
    }
    Ok(received.min(sent))
}

/// The NAPI threads of `vb` on the host's CPU, with the precedence of `side`.
///
/// To be called once the program is ready: attaching XDP makes them anew.
pub(crate) fn favoured_napis(testbed: &Testbed, plan: &Plan, side: Side) -> Result<Vec<Napi>> {
    let napis = testbed.threaded_napi(plan.host_cpu)?;
    let mut threads = napis.iter().filter_map(|napi| napi.thread);
    threads.try_for_each(|thread| prefer_thread(thread, side.napi_precedence()))?;
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
    /// `ours` are no others.
    pub(crate) fn start<'a>(cpu: usize, ours: impl IntoIterator<Item = &'a Program>) -> Self {
        let ours = ours.into_iter().flat_map(Program::processes).collect();
        Self { cpu, ours, census: Census::take(cpu), stolen: Stolen::read(cpu) }
    }

    pub(crate) fn end(self) -> Taken {
        let stolen_ns = Stolen::read(self.cpu).since(&self.stolen);
        Taken { foreign_ns: Census::take(self.cpu).foreign_since(&self.census, &self.ours), stolen_ns }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disturbed(foreign_ns: u64) -> Trial {
        let taken = Taken { foreign_ns, stolen_ns: 0 };
        Trial { sent: 1000, received: 900, taken, ..Trial::default() }
    }

    fn take(plan: &Plan, attempt: impl FnMut() -> Result<Trial>) -> Trial {
        Retakes::of(plan).take(plan, attempt).unwrap()
    }

    #[test]
    fn a_disturbed_trial_is_taken_again_until_one_is_quiet() {
        let mut foreign = [u64::MAX, u64::MAX, 7, 8].into_iter();
        let trial = take(&Plan::full(), || Ok(disturbed(foreign.next().unwrap())));
        assert_eq!(trial.taken.foreign_ns, 7);
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
        let taken = |foreign_ns, stolen_ns| Taken { foreign_ns, stolen_ns };
        assert!(!taken(plan.tolerated_foreign_ns, 0).is_too_much(&plan));
        assert!(taken(plan.tolerated_foreign_ns + 1, 0).is_too_much(&plan));
        assert!(taken(0, 10_000_000).is_too_much(&plan));
    }

    #[test]
    fn only_a_peer_may_count_more_than_was_sent() {
        let peer = Side::Peer(crate::bench::peers::Peer { name: "testpmd", path: "peer-testpmd" });
        assert_eq!(counted(peer, 11, 10).unwrap(), 10);
        assert_eq!(counted(Side::Kernel, 9, 10).unwrap(), 9);
        assert!(counted(Side::Kernel, 11, 10).unwrap_err().to_string().contains("11 datagrams"));
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
