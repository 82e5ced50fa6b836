//! The sides that are compared, and one trial of one of them.
//!
//! One CPU is the wire, the other is the host: NAPI of `vb` and the receiver share it, so nothing of what
//! receiving costs escapes. Both run as any server does: at nice 0, the receiver in a session of its own and with the socket
//! options it asks for, which are none. Only the generator is favoured, on its own CPU. The side kernel-tuned differs, and only it:
//! there NAPI and receiver have precedence (nice -20) and a large SO_RCVBUF, which is the best that was found for the kernel.

use super::{Signals, others::Census, plan::Plan};
use anyhow::{Context, Result, bail};
use hoist_wire::{Generator, Limit, Napi, Precedence, Spec, Testbed, in_own_session, prefer_thread};
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde::{Deserialize, Serialize};
use std::{
    cell::Cell,
    fs::File,
    io::{BufRead, BufReader, Read, Seek},
    net::SocketAddr,
    os::fd::AsFd,
    path::PathBuf,
    process::{Child, ChildStdout, Command, Stdio},
    time::{Duration, Instant},
};

/// Who receives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Side {
    /// An unmodified blocking recvfrom loop.
    Kernel,
    /// The same program with what can be tuned from outside tuned.
    KernelTuned,
    /// The same program under `hoist run`.
    Hoist,
    /// A raw AF_XDP sink: what the wire and AF_XDP give.
    Limit,
}

impl Side {
    pub(crate) const ALL: [Self; 4] = [Self::Kernel, Self::KernelTuned, Self::Hoist, Self::Limit];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::KernelTuned => "kernel-tuned",
            Self::Hoist => "hoist",
            Self::Limit => "limit",
        }
    }

    /// The command that receives on `port`, without the namespace and the CPU.
    pub(crate) fn command(self, plan: &Plan, port: u16) -> Result<Vec<String>> {
        let device = "vb".to_string();
        let sink = |name| Ok::<_, anyhow::Error>(sibling(name)?.display().to_string());
        let plain = || Ok::<_, anyhow::Error>(vec![sink("hoist-sink")?, format!("0.0.0.0:{port}")]);
        let mut command = match self {
            Self::Kernel | Self::KernelTuned => plain()?,
            Self::Hoist => {
                let hoist = std::env::current_exe().context("finding this program (/proc/self/exe)")?;
                let run = ["run", "--dev", &device, "--require"].map(String::from);
                let status =
                    plan.status.iter().flat_map(|path| ["--json".into(), path.display().to_string()]);
                let run = run.into_iter().chain(status).chain(["--".into()]).collect();
                [vec![hoist.display().to_string()], run, plain()?].concat()
            }
            Self::Limit => vec![sink("hoist-raw-sink")?, device, port.to_string()],
        };
        if let Some(bytes) = self.rcvbuf(plan) {
            command.extend(["--rcvbuf".into(), bytes.to_string()]);
        }
        command.extend(["--seconds", "20"].map(String::from));
        Ok(command)
    }

    fn rcvbuf(self, plan: &Plan) -> Option<u32> {
        match self {
            Self::Kernel | Self::Hoist => plan.rcvbuf,
            Self::KernelTuned => Some(plan.tuned_rcvbuf),
            Self::Limit => None,
        }
    }

    /// Of NAPI and receiver alike.
    fn precedence(self) -> Precedence {
        if self == Self::KernelTuned { Precedence::Favoured } else { Precedence::AsIs }
    }
}

/// What one trial gave.
#[derive(Clone, Copy, Debug, Serialize)]
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
    /// CPU time that other processes took from the host's CPU meanwhile.
    pub(crate) foreign_ns: u64,
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

    /// CPU time of NAPI and program for a datagram received.
    pub(crate) fn ns_per_packet(&self) -> f64 {
        (self.program_ns + self.napi_ns) as f64 / self.received.max(1) as f64
    }
}

/// Takes disturbed trials again, for as long as the plan has time for it.
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
        pps: f64,
    ) -> Result<Trial> {
        let (testbed, signals) = stage;
        self.take(plan, || {
            signals.check()?;
            attempt(testbed, plan, side, pps)
        })
    }

    fn take(&self, plan: &Plan, mut attempt: impl FnMut() -> Result<Trial>) -> Result<Trial> {
        let mut trial = attempt()?;
        for _ in 1..plan.attempts {
            if trial.foreign_ns <= plan.tolerated_foreign_ns || self.left.get().is_zero() {
                break;
            }
            let start = Instant::now();
            trial = attempt()?;
            self.left.set(self.left.get().saturating_sub(start.elapsed()));
        }
        Ok(trial)
    }
}

/// Sends to `side` at `pps` and reports what became of it.
fn attempt(testbed: &Testbed, plan: &Plan, side: Side, pps: f64) -> Result<Trial> {
    let receiver = Receiver::start(testbed, plan, side, PORT)?;
    let napis = testbed.threaded_napi(plan.host_cpu)?;
    let mut threads = napis.iter().filter_map(|napi| napi.thread);
    threads.try_for_each(|thread| prefer_thread(thread, side.precedence()))?;
    let before = cpu_ns(&napis)?;
    let census = Census::take(plan.host_cpu);
    let ours = receiver.processes();
    let spec = Spec::to(SocketAddr::from((testbed.host().v4(), PORT)))
        .frame_len(plan.frame_len)
        .packets_per_second(pps)
        .flows(plan.flows)
        .checksum(plan.checksum)
        .limit(Limit::Time(plan.trial()))
        .cpu(plan.wire_cpu)
        .favoured(true);
    let sent = Generator::start(testbed, &spec)?.wait()?;
    let foreign_ns = Census::take(plan.host_cpu).foreign_since(&census, &ours);
    let report = receiver.finish().with_context(|| format!("side {}", side.name()))?;
    if report.packets > sent.packets {
        bail!("side {}: {} datagrams received of {} sent", side.name(), report.packets, sent.packets);
    }
    Ok(Trial {
        asked_pps: pps,
        sent_pps: sent.rate(),
        sent: sent.packets,
        received: report.packets,
        reordered: report.reordered,
        goodput_pps: report.packets as f64 / sent.seconds.max(report.seconds).max(1e-9),
        program_ns: report.cpu_ns,
        napi_ns: cpu_ns(&napis)?.saturating_sub(before),
        foreign_ns,
    })
}

pub(crate) const PORT: u16 = 9000;

/// A receiver that is ready.
pub(crate) struct Receiver {
    child: Child,
    output: BufReader<ChildStdout>,
    errors: File,
}

/// What a sink prints at its end.
#[derive(Deserialize)]
struct Report {
    packets: u64,
    reordered: u64,
    seconds: f64,
    cpu_ns: u64,
}

impl Receiver {
    /// Starts it on the host's CPU and waits until it says that it is ready.
    pub(crate) fn start(testbed: &Testbed, plan: &Plan, side: Side, port: u16) -> Result<Self> {
        let arguments = side.command(plan, port)?;
        let (program, rest) = arguments.split_first().context("no command")?;
        let errors = memfd()?;
        let mut command: Command =
            in_own_session(testbed.host().command(program), Some(plan.host_cpu), side.precedence());
        command.args(rest).stdin(Stdio::null()).stdout(Stdio::piped());
        command.stderr(errors.try_clone().context("duplicating a descriptor")?);
        let mut child = command.spawn().with_context(|| format!("starting {program}"))?;
        let output = BufReader::new(child.stdout.take().context("the receiver has no standard output")?);
        let mut receiver = Self { child, output, errors };
        match receiver.line()? {
            line if line.trim() == "ready" => Ok(receiver),
            _ => bail!("{} ended before it was ready: {}", arguments.join(" "), receiver.complaint()),
        }
    }

    /// It and, under `hoist run`, its child; and this process.
    fn processes(&self) -> Vec<i32> {
        let id = self.child.id() as i32;
        let children = std::fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap_or_default();
        let children = children.split_whitespace().filter_map(|child| child.parse().ok());
        children.chain([id, std::process::id() as i32]).collect()
    }

    fn finish(mut self) -> Result<Report> {
        let line = self.line()?;
        let report = serde_json::from_str(&line).with_context(|| {
            format!("the receiver printed {line:?} instead of its report: {}", self.complaint())
        });
        self.child.wait().context("waiting for the receiver (waitpid)")?;
        report
    }

    fn line(&mut self) -> Result<String> {
        let timeout = PollTimeout::from(30_000u16);
        let mut fds = [PollFd::new(self.output.get_ref().as_fd(), PollFlags::POLLIN)];
        if self.output.buffer().is_empty()
            && poll(&mut fds, timeout).context("waiting for the receiver (poll)")? == 0
        {
            bail!("the receiver said nothing for 30 s: {}", self.complaint());
        }
        let mut line = String::new();
        self.output.read_line(&mut line).context("reading from the receiver")?;
        Ok(line)
    }

    fn complaint(&mut self) -> String {
        let mut text = String::new();
        let read = self.errors.rewind().and_then(|()| self.errors.read_to_string(&mut text));
        match read {
            Ok(0) => "it printed nothing on standard error".into(),
            Ok(_) => text.trim().replace('\n', " | "),
            Err(error) => format!("its standard error cannot be read: {error}"),
        }
    }
}

impl Drop for Receiver {
    /// Asks it to end: `hoist run` passes the signal on and cleans up.
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            let _ = kill(Pid::from_raw(self.child.id() as i32), Signal::SIGTERM);
            let _ = self.child.wait();
        }
    }
}

fn memfd() -> Result<File> {
    let fd = nix::sys::memfd::memfd_create("stderr", nix::sys::memfd::MFdFlags::MFD_CLOEXEC);
    Ok(fd.context("making a file in memory (memfd_create)")?.into())
}

fn cpu_ns(napis: &[Napi]) -> Result<u64> {
    napis.iter().map(|napi| napi.cpu_ns().context("the NAPI thread of vb is gone")).sum()
}

/// A program that is installed beside this one.
pub(crate) fn sibling(name: &str) -> Result<PathBuf> {
    let path = std::env::current_exe().context("finding this program (/proc/self/exe)")?.with_file_name(name);
    if !path.exists() {
        bail!("{} is missing: `cargo build --release -p hoist-wire` makes it", path.display());
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disturbed(foreign_ns: u64) -> Trial {
        let (asked_pps, sent_pps, goodput_pps) = (1e6, 1e6, 1e6);
        let (sent, received, reordered, program_ns, napi_ns) = (1000, 900, 0, 1, 1);
        Trial { asked_pps, sent_pps, sent, received, reordered, goodput_pps, program_ns, napi_ns, foreign_ns }
    }

    #[test]
    fn a_disturbed_trial_is_taken_again_until_one_is_quiet() {
        let plan = Plan::full();
        let mut foreign = [u64::MAX, u64::MAX, 7, 8].into_iter();
        let trial = Retakes::of(&plan).take(&plan, || Ok(disturbed(foreign.next().unwrap()))).unwrap();
        assert_eq!(trial.foreign_ns, 7);
    }

    #[test]
    fn without_time_for_retakes_each_trial_is_taken_once() {
        let plan = Plan { retakes_ms: 0, ..Plan::full() };
        let mut taken = 0;
        let attempt = || {
            taken += 1;
            Ok(disturbed(u64::MAX))
        };
        Retakes::of(&plan).take(&plan, attempt).unwrap();
        assert_eq!(taken, 1);
    }

    #[test]
    fn only_kernel_tuned_is_tuned() {
        let plan = Plan::full();
        let tuned = |side: &Side| side.rcvbuf(&plan).is_some() || side.precedence() == Precedence::Favoured;
        let found: Vec<_> = Side::ALL.into_iter().filter(tuned).collect();
        assert_eq!(found, [Side::KernelTuned]);
    }

    #[test]
    fn loss_is_a_fraction_of_what_was_sent() {
        assert!((disturbed(0).loss() - 0.1).abs() < 1e-9);
        assert_eq!(Trial { sent: 0, received: 0, ..disturbed(0) }.loss(), 0.0);
    }
}
