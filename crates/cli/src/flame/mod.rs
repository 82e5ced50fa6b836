//! `hoist flame`: where CPU time goes, by stage of the receive path.
//!
//! `record`, `symbols`, `stage`, `fold`, `table` and `graph` are pure but for the files that hold symbols; `sys` is the ring of the kernel,
//! `sampler` turns it into folded stacks, and this file decides what is sampled and written.

mod fold;
mod graph;
mod record;
mod sampler;
mod stage;
mod symbols;
mod sys;
mod table;

use crate::{
    ends::{Ends, Event},
    out, top,
};
use anyhow::{Context, Result, bail};
use fold::Folded;
use sampler::{Sampler, Target};
use serde_json::json;
use std::{
    ffi::OsString,
    fs,
    os::{fd::AsFd, unix::process::ExitStatusExt},
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, ExitStatus},
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};
use table::{Facts, Report};

/// Sample all CPUs and draw where time goes: a flame graph by stages of the receive path, and a table.
///
/// Kernel and user stacks, softirqs and kernel threads included. Samples a command while it runs, a process, or the machine until
/// Ctrl-C or --seconds. Needs CAP_PERFMON for the kernel; without it only the user code of a command or process is shown.
/// docs/flame.md says what the stages are and what cannot be seen.
#[derive(clap::Args)]
#[command(group = clap::ArgGroup::new("what").required(true).args(["all", "pid", "from", "diff", "command"]))]
pub(crate) struct Args {
    /// The whole machine.
    #[arg(long)]
    all: bool,
    /// One process, and softirqs that run on top of it.
    #[arg(long, value_name = "PID", value_parser = clap::value_parser!(u32).range(1..))]
    pid: Option<u32>,
    /// Folded stacks that were saved (FRAME;FRAME;… SAMPLES a line).
    #[arg(long, value_name = "FILE")]
    from: Option<PathBuf>,
    /// Two files of folded stacks: draw what changed.
    #[arg(long, num_args = 2, value_names = ["BEFORE", "AFTER"])]
    diff: Vec<PathBuf>,
    /// End after so many seconds.
    #[arg(long, value_name = "S", value_parser = clap::value_parser!(u32).range(1..=86400))]
    seconds: Option<u32>,
    /// Samples a second on each CPU.
    #[arg(long, default_value_t = HZ, value_parser = clap::value_parser!(u64).range(1..=20000))]
    hz: u64,
    /// Where the graph goes.
    #[arg(long, value_name = "FILE", default_value = "flame.svg")]
    out: PathBuf,
    /// Save the folded stacks, too.
    #[arg(long, value_name = "FILE")]
    folded: Option<PathBuf>,
    /// Count packets of this device only, for the time of each packet.
    #[arg(long, value_name = "DEV")]
    dev: Option<String>,
    /// Show idle time as well.
    #[arg(long)]
    idle: bool,
    /// The table as one JSON object.
    #[arg(long)]
    json: bool,
    /// A command to sample as long as it runs.
    #[arg(last = true, value_name = "CMD")]
    command: Vec<OsString>,
}

pub(crate) fn main(args: &Args) -> Result<ExitCode> {
    if let [before, after] = &args.diff[..] {
        return compare(args, before, after);
    }
    if let Some(file) = &args.from {
        show(args, &read(file)?, Facts::default(), &file.display().to_string())?;
        return Ok(ExitCode::SUCCESS);
    }
    sample(args)
}

/// A flame graph for who has a page of his own.
pub(crate) struct Drawn {
    pub(crate) title: String,
    pub(crate) svg: String,
    pub(crate) table: String,
}

/// Samples one CPU while `run` does something by programs that it starts; `received`: packets and bytes that it brought.
pub(crate) fn during<T>(
    title: &str,
    cpu: u32,
    run: impl FnOnce() -> Result<T>,
    received: impl FnOnce(&T) -> (u64, u64),
) -> Result<(T, Drawn)> {
    let mut sampler = Sampler::on(vec![cpu], Target::Command(std::process::id()), HZ)?;
    let (over, begin) = (AtomicBool::new(false), Instant::now());
    let result = thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Relaxed) {
                thread::sleep(Duration::from_millis(100));
                sampler.take();
            }
        });
        let result = run();
        over.store(true, Relaxed);
        result
    })?;
    let (mut folded, mut facts) = sampler.finish();
    facts.seconds = begin.elapsed().as_secs_f64();
    (facts.packets, facts.bytes) = received(&result);
    let idle = table::without_idle(&mut folded);
    let report = table::report(&folded, idle, facts);
    let parts = report.stages.iter().map(|share| (share.stage, share.share)).collect();
    let (title, svg) = (title.to_owned(), graph::svg(title, &folded, &parts));
    Ok((result, Drawn { title, svg, table: report.text() }))
}

const HZ: u64 = 997;

fn read(file: &Path) -> Result<Folded> {
    let bytes = fs::read(file).with_context(|| format!("flame: reading {}", file.display()))?;
    let text =
        String::from_utf8(bytes).ok().with_context(|| format!("flame: {} is no text", file.display()))?;
    Folded::parse(&text).with_context(|| format!("flame: {}", file.display()))
}

fn write(file: &Path, text: &str) -> Result<()> {
    fs::write(file, text).with_context(|| format!("flame: writing {}", file.display()))
}

fn compare(args: &Args, before: &Path, after: &Path) -> Result<ExitCode> {
    let of = |file: &Path| -> Result<(Folded, Report)> {
        let folded = read(file)?;
        let (folded, report) = tabled(args, folded, Facts::default());
        Ok((folded, report))
    };
    let ((old, old_report), (new, new_report)) = (of(before)?, of(after)?);
    let title = format!("{} against {}", after.display(), before.display());
    write(&args.out, &graph::diff(&title, &old, &new))?;
    let changes = table::changes(&old_report, &new_report);
    let text = match args.json {
        true => format!("{}\n", json!({ "stages": changes })),
        false => format!("{}\nwritten to {}\n", table::text_of(&changes), args.out.display()),
    };
    out::print(&text)?;
    Ok(ExitCode::SUCCESS)
}

fn tabled(args: &Args, mut folded: Folded, facts: Facts) -> (Folded, Report) {
    let idle = if args.idle { 0 } else { table::without_idle(&mut folded) };
    let report = table::report(&folded, idle, facts);
    (folded, report)
}

fn show(args: &Args, folded: &Folded, facts: Facts, title: &str) -> Result<()> {
    if let Some(file) = &args.folded {
        write(file, &folded.write())?;
    }
    let (folded, report) = tabled(args, folded.clone(), facts);
    let parts = report.stages.iter().map(|share| (share.stage, share.share)).collect();
    write(&args.out, &graph::svg(title, &folded, &parts))?;
    let text = match args.json {
        true => serde_json::to_string(&report)? + "\n",
        false => format!("{}\nwritten to {}\n", report.text(), args.out.display()),
    };
    out::print(&text).map(drop)
}

fn sample(args: &Args) -> Result<ExitCode> {
    let child = start(&args.command)?;
    let target = match (&child, args.pid) {
        (Some(child), _) => Target::Command(child.id()),
        (None, Some(pid)) => Target::Process(pid),
        (None, None) => Target::Machine,
    };
    let mut child = child.map(Guard);
    let mut sampler = Sampler::start(target, args.hz)?;
    let before = top::received(args.dev.as_deref())?;
    let begin = Instant::now();
    let status = follow(args, &mut sampler, child.as_mut())?;
    let seconds = begin.elapsed().as_secs_f64();
    let after = top::received(args.dev.as_deref())?;
    let (folded, mut facts) = sampler.finish();
    facts.seconds = seconds;
    (facts.packets, facts.bytes) = (after.0.saturating_sub(before.0), after.1.saturating_sub(before.1));
    if folded.samples() == 0 {
        bail!("flame: no samples: nothing ran, or the process is gone");
    }
    show(args, &folded, facts, &title(args))?;
    Ok(status.map_or(ExitCode::SUCCESS, code))
}

fn title(args: &Args) -> String {
    let words: Vec<_> = args.command.iter().map(|word| word.to_string_lossy()).collect();
    match (words.is_empty(), args.pid) {
        (false, _) => words.join(" "),
        (true, Some(pid)) => format!("process {pid}"),
        (true, None) => "the whole machine".into(),
    }
}

fn start(command: &[OsString]) -> Result<Option<Child>> {
    let Some((program, arguments)) = command.split_first() else { return Ok(None) };
    let child = Command::new(program).args(arguments).spawn();
    child.with_context(|| format!("flame: starting {}", program.to_string_lossy())).map(Some)
}

/// Ends the command if sampling ends before it does.
struct Guard(Child);

impl Drop for Guard {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(None)) {
            let pid = nix::unistd::Pid::from_raw(self.0.id() as i32);
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
            let _ = self.0.wait();
        }
    }
}

/// As shells say it.
fn code(status: ExitStatus) -> ExitCode {
    ExitCode::from(status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)) as u8)
}

/// Samples until the command ends, the time is over, or a signal comes.
fn follow(args: &Args, sampler: &mut Sampler, child: Option<&mut Guard>) -> Result<Option<ExitStatus>> {
    let ends = Ends::block()?;
    let until = args.seconds.map(|seconds| Instant::now() + Duration::from_secs(seconds.into()));
    let watched = match (&child, args.pid) {
        (Some(child), _) => Some(child.0.id()),
        (None, pid) => pid,
    };
    let pidfd = watched
        .map(|pid| sys::pidfd(pid).with_context(|| format!("flame: process {pid} (pidfd_open)")))
        .transpose()?;
    loop {
        let rings: Vec<_> = pidfd.iter().map(AsFd::as_fd).chain(sampler.rings()).collect();
        let event = ends.wait(&rings)?;
        sampler.take();
        let over = pidfd.as_ref().is_some_and(readable) || until.is_some_and(|until| Instant::now() >= until);
        if over || matches!(event, Event::Signal(_)) {
            break;
        }
    }
    sampler.take();
    match child {
        Some(child) => child.0.try_wait().context("flame: waiting for the command"),
        None => Ok(None),
    }
}

fn readable(fd: &impl AsFd) -> bool {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    poll(&mut [PollFd::new(fd.as_fd(), PollFlags::POLLIN)], PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}
