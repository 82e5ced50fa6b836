//! `hoist bench`: what Hoist gains, measured against the kernel on the same core of this machine.

mod others;
pub(crate) mod plan;
mod report;
mod search;
pub(crate) mod side;

use anyhow::{Context, Result, bail};
use hoist_wire::Testbed;
use nix::sys::{
    signal::{SigSet, Signal},
    signalfd::{SfdFlags, SignalFd},
};
use plan::Plan;
use report::{Lossless, Machine, Overload, PassPair, Report, Summary};
use search::Search;
use side::{PORT, Receiver, Retakes, Side, Trial};
use std::{
    io::{IsTerminal, Write},
    os::fd::{AsFd, BorrowedFd},
    path::PathBuf,
    process::ExitCode,
};

/// Measure on a testbed of its own.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    /// Loss-free rate, goodput under overload and the cost of what passes, for UDP.
    Udp(Udp),
}

#[derive(clap::Args)]
struct Udp {
    /// Three repeats of short trials, about three minutes instead of ten: to look, not to quote.
    #[arg(long)]
    quick: bool,
    /// Store all samples and where they come from.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Only these sides.
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["kernel", "kernel-tuned", "hoist", "limit"])]
    sides: Vec<SideName>,
    /// Only these measurements.
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["lossless", "overload", "pass-cost"])]
    only: Vec<Measurement>,
    /// Repeats of each figure.
    #[arg(long)]
    repeats: Option<usize>,
    /// Bytes of a frame.
    #[arg(long)]
    size: Option<usize>,
    /// Flows in turn.
    #[arg(long)]
    flows: Option<u64>,
    /// What may be lost in a trial that counts as loss-free.
    #[arg(long, value_name = "FRACTION")]
    tolerated_loss: Option<f64>,
    /// SO_RCVBUF of the receivers in bytes instead of the system's default.
    #[arg(long)]
    rcvbuf: Option<u32>,
}

#[derive(Clone, Copy, PartialEq, clap::ValueEnum)]
enum SideName {
    /// An unmodified program as is.
    Kernel,
    /// The same with a large SO_RCVBUF, it and NAPI at nice -20.
    KernelTuned,
    /// The unmodified program as is, under `hoist run`.
    Hoist,
    /// A raw AF_XDP sink.
    Limit,
}

#[derive(Clone, Copy, PartialEq, clap::ValueEnum)]
enum Measurement {
    Lossless,
    Overload,
    PassCost,
}

pub(crate) fn main(args: Args) -> Result<ExitCode> {
    let What::Udp(args) = args.what;
    let plan = plan(&args)?;
    let _favoured = Favoured::session();
    hoist_wire::pin_thread(plan.wire_cpu)?;
    let testbed = Testbed::builder().up()?;
    let (retakes, signals) = (Retakes::of(&plan), Signals::block()?);
    let bench = Bench { testbed, plan, sides: sides(&args), retakes, progress: Progress, signals };
    let report = bench.run(&args.only)?;
    println!("{}", report::table(&report));
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&report)?;
        std::fs::write(path, text).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn plan(args: &Udp) -> Result<Plan> {
    let mut plan = if args.quick { Plan::quick() } else { Plan::full() };
    plan.repeats = args.repeats.unwrap_or(plan.repeats).max(1);
    plan.frame_len = args.size.unwrap_or(plan.frame_len);
    plan.tolerated_loss = args.tolerated_loss.unwrap_or(plan.tolerated_loss);
    plan.rcvbuf = args.rcvbuf.or(plan.rcvbuf);
    plan.flows = args.flows.unwrap_or(plan.flows);
    plan.check()?;
    Ok(plan)
}

fn sides(args: &Udp) -> Vec<Side> {
    let chosen = |name: &SideName| match name {
        SideName::Kernel => Side::Kernel,
        SideName::KernelTuned => Side::KernelTuned,
        SideName::Hoist => Side::Hoist,
        SideName::Limit => Side::Limit,
    };
    args.sides.iter().map(chosen).collect()
}

/// This session, and so the generator, has precedence until dropped: what [`side`] says of nice is true of sessions where
/// autogroup is on.
pub(crate) struct Favoured {
    before: Option<String>,
}

impl Favoured {
    pub(crate) fn session() -> Self {
        let text = std::fs::read_to_string(AUTOGROUP).unwrap_or_default();
        let nice = text.trim().rsplit(' ').next().map(String::from);
        Self { before: nice.filter(|_| std::fs::write(AUTOGROUP, "-20").is_ok()) }
    }
}

impl Drop for Favoured {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            let _ = std::fs::write(AUTOGROUP, before);
        }
    }
}

const AUTOGROUP: &str = "/proc/self/autogroup";

struct Bench {
    testbed: Testbed,
    plan: Plan,
    sides: Vec<Side>,
    retakes: Retakes,
    progress: Progress,
    signals: Signals,
}

impl Bench {
    fn run(self, wanted: &[Measurement]) -> Result<Report> {
        let lossless = if wanted.contains(&Measurement::Lossless) { self.lossless()? } else { Vec::new() };
        let overload = if wanted.contains(&Measurement::Overload) { self.overload()? } else { Vec::new() };
        let pass = wanted.contains(&Measurement::PassCost) && self.sides.contains(&Side::Hoist);
        let pass_cost = if pass { self.pass_cost()? } else { Vec::new() };
        self.progress.clear();
        let summary = Summary::of(&lossless, &overload, &pass_cost);
        Ok(Report { machine: Machine::here(), plan: self.plan, lossless, overload, pass_cost, summary })
    }

    fn lossless(&self) -> Result<Vec<Lossless>> {
        let mut all = Vec::new();
        for repeat in 1..=self.plan.repeats {
            for side in &self.sides {
                all.push(self.search(*side, repeat)?);
            }
        }
        Ok(all)
    }

    fn search(&self, side: Side, repeat: usize) -> Result<Lossless> {
        let plan = self.plan.searching();
        let mut search = Search::new(self.plan.most_pps, self.plan.resolution, self.plan.doubts);
        let mut found = Lossless { side, pps: 0.0, wire_limited: false, trials: Vec::new() };
        while let Some(rate) = search.next().filter(|rate| *rate > LEAST_PPS) {
            self.progress.show("udp-lossless", side, repeat, self.plan.repeats, rate);
            let trial = self.trial(&plan, side, rate)?;
            found.wire_limited |= judge(&mut search, &trial, self.plan.tolerated_loss);
            found.trials.push(trial);
        }
        found.pps = search.answer();
        Ok(found)
    }

    fn overload(&self) -> Result<Vec<Overload>> {
        let mut all = Vec::new();
        for repeat in 1..=self.plan.repeats {
            for rate in &self.plan.overload_pps {
                for side in &self.sides {
                    self.progress.show("udp-overload", *side, repeat, self.plan.repeats, *rate);
                    let trial = self.trial(&self.plan, *side, *rate)?;
                    all.push(Overload { side: *side, trial });
                }
            }
        }
        Ok(all)
    }

    /// The load goes to a program that Hoist has nothing to do with; Hoist runs another beside it.
    fn pass_cost(&self) -> Result<Vec<PassPair>> {
        let kernel = || self.trial(&self.plan, Side::Kernel, self.plan.pass_pps);
        let mut all = Vec::new();
        for repeat in 1..=self.plan.repeats.max(PASS_PAIRS) {
            self.progress.show("pass-cost", Side::Kernel, repeat, PASS_PAIRS, self.plan.pass_pps);
            let without = kernel()?;
            let bystander = Receiver::start(&self.testbed, &self.plan, Side::Hoist, PORT + 1)?;
            let with = kernel()?;
            drop(bystander);
            all.push(PassPair { without, with });
        }
        Ok(all)
    }

    fn trial(&self, plan: &Plan, side: Side, pps: f64) -> Result<Trial> {
        self.retakes.trial((&self.testbed, &self.signals), plan, side, pps)
    }
}

/// SIGINT and SIGTERM end the run between two trials, so that the testbed is removed and the session's nice restored.
pub(crate) struct Signals(SignalFd);

impl Signals {
    pub(crate) fn block() -> Result<Self> {
        let mut set = SigSet::empty();
        set.add(Signal::SIGINT);
        set.add(Signal::SIGTERM);
        set.thread_block().context("blocking signals (pthread_sigmask)")?;
        let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        Ok(Self(SignalFd::with_flags(&set, flags).context("making a signalfd")?))
    }

    pub(crate) fn check(&self) -> Result<()> {
        match self.0.read_signal().context("reading the signalfd")? {
            Some(_) => bail!("interrupted"),
            None => Ok(()),
        }
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

const LEAST_PPS: f64 = 10e3;
const PASS_PAIRS: usize = 5;

/// Tells the search how a trial went; true when it found the end of the wire.
fn judge(search: &mut Search, trial: &Trial, tolerated: f64) -> bool {
    let loss_free = trial.is_loss_free(tolerated);
    match trial.wire_fell_short() {
        true if loss_free => {
            search.passed(trial.sent_pps);
            search.wire_fell_short(trial.sent_pps)
        }
        true => search.wire_fell_short(trial.sent_pps),
        false if loss_free => {
            search.passed(trial.asked_pps.min(trial.sent_pps));
            false
        }
        false => {
            search.failed(trial.asked_pps);
            false
        }
    }
}

/// One line that is written over, on a terminal only.
struct Progress;

impl Progress {
    fn show(&self, what: &str, side: Side, repeat: usize, repeats: usize, rate: f64) {
        if std::io::stderr().is_terminal() {
            eprint!("\r\x1b[K{what} {repeat}/{repeats} {} at {:.3} Mpps", side.name(), rate / 1e6);
            let _ = std::io::stderr().flush();
        }
    }

    fn clear(&self) {
        if std::io::stderr().is_terminal() {
            eprint!("\r\x1b[K");
        }
    }
}
