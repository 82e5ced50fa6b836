//! The sides that are compared, and one trial of one of them.
//!
//! One CPU is the wire, the other is the host: NAPI of `vb` and the receiver share it, so nothing of what
//! receiving costs escapes. Generator, NAPI thread and receiver all run at nice -20: what else the machine does hardly
//! disturbs them, and between them the scheduler is as fair as ever.

use super::{others::Census, plan::Plan};
use anyhow::{Context, Result, bail};
use hoist_wire::{Generator, Limit, Napi, Spec, Testbed, favour_thread, pinned_and_favoured};
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde::{Deserialize, Serialize};
use std::{
    fs::File,
    io::{BufRead, BufReader, Read, Seek},
    net::SocketAddr,
    os::fd::AsFd,
    path::PathBuf,
    process::{Child, ChildStdout, Command, Stdio},
};

/// Who receives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Side {
    /// An unmodified blocking recvfrom loop.
    Kernel,
    /// The same program under `hoist run`.
    Hoist,
    /// A raw AF_XDP sink: what the wire and AF_XDP give.
    Limit,
}

impl Side {
    pub(crate) const ALL: [Self; 3] = [Self::Kernel, Self::Hoist, Self::Limit];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
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
            Self::Kernel => plain()?,
            Self::Hoist => {
                let hoist = std::env::current_exe().context("finding this program (/proc/self/exe)")?;
                let run = ["run", "--dev", &device, "--require", "--"].map(String::from);
                [vec![hoist.display().to_string()], run.to_vec(), plain()?].concat()
            }
            Self::Limit => vec![sink("hoist-raw-sink")?, device, port.to_string()],
        };
        if self != Self::Limit {
            command.extend(["--rcvbuf".into(), plan.rcvbuf.to_string()]);
        }
        command.extend(["--seconds", "20"].map(String::from));
        Ok(command)
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
    pub(crate) fn is_loss_free(&self, tolerated: f64) -> bool {
        let lost = self.sent.saturating_sub(self.received);
        self.sent > 0 && lost as f64 <= self.sent as f64 * tolerated
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

/// A trial that nobody disturbed, or the last of several.
pub(crate) fn trial(testbed: &Testbed, plan: &Plan, side: Side, pps: f64) -> Result<Trial> {
    let mut trial = attempt(testbed, plan, side, pps)?;
    for _ in 1..plan.attempts {
        if trial.foreign_ns <= plan.tolerated_foreign_ns {
            break;
        }
        trial = attempt(testbed, plan, side, pps)?;
    }
    Ok(trial)
}

/// Sends to `side` at `pps` and reports what became of it.
fn attempt(testbed: &Testbed, plan: &Plan, side: Side, pps: f64) -> Result<Trial> {
    let receiver = Receiver::start(testbed, plan, side, PORT)?;
    let napis = testbed.threaded_napi(plan.host_cpu)?;
    napis.iter().filter_map(|napi| napi.thread).try_for_each(favour_thread)?;
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
        let mut command: Command = pinned_and_favoured(testbed.host().command(program), plan.host_cpu);
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
fn sibling(name: &str) -> Result<PathBuf> {
    let path = std::env::current_exe().context("finding this program (/proc/self/exe)")?.with_file_name(name);
    if !path.exists() {
        bail!("{} is missing: `cargo build --release -p hoist-wire` makes it", path.display());
    }
    Ok(path)
}
