//! `hoist demo`: real programs under load, plain and hoisted, on a testbed of its own.

mod dns;
mod flood;
mod report;
mod server;
mod show;
pub(crate) mod tools;

use crate::bench::{Favoured, Signals, plan::Plan, session};
use crate::flame::Drawn;
use anyhow::{Context, Result};
use hoist_broker::status::{Status, Traffic};
use hoist_wire::{Precedence, Testbed};
use serde::Serialize;
use std::{
    fs,
    io::{ErrorKind, IsTerminal, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

/// Watch a UDP receiver and a DNS server under load, plain and hoisted, side by side
///
/// Takes about a minute, needs root, makes network namespaces of its own and removes them.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// One JSON object at the end, and nothing before
    #[arg(long)]
    json: bool,
    /// Where the page with figures and flame graphs goes
    #[arg(long, value_name = "FILE", default_value = "hoist-demo.html")]
    report: PathBuf,
}

pub(crate) fn main(args: Args) -> Result<ExitCode> {
    let plan = Plan { trial_ms: 1500, attempts: 2, retakes_ms: 6_000, ..Plan::full() };
    plan.check()?;
    let tools = tools::Tools::find()?;
    if let Some(code) = session::apart()? {
        return Ok(code);
    }
    let signals = Signals::block()?;
    let testbed = Testbed::builder().up()?;
    let stage = Stage { directory: Directory::make(testbed.name())?, testbed, signals, quiet: args.json };
    stage.say(show::HEAD);
    let (flood, flames) = stage.flood(plan)?;
    let dns = dns::run(&stage, &tools)?;
    let mut found = Found::of(flood, dns);
    let page = report::html(&found, &flames);
    fs::write(&args.report, page).with_context(|| format!("writing {}", args.report.display()))?;
    found.report = Some(args.report);
    if args.json {
        println!("{}", serde_json::to_string_pretty(&found)?);
    } else {
        stage.say(&show::end(&found));
    }
    Ok(ExitCode::SUCCESS)
}

/// What both parts play on. The testbed goes last.
struct Stage {
    directory: Directory,
    signals: Signals,
    quiet: bool,
    testbed: Testbed,
}

impl Stage {
    /// While it lasts, the generator has its own CPU to itself.
    fn flood(&self, plan: Plan) -> Result<(Vec<flood::Row>, Vec<Drawn>)> {
        let _favoured = Favoured::session();
        Ok((flood::run(self, plan.clone())?, flood::flames(self, plan)?))
    }

    fn say(&self, text: &str) {
        if !self.quiet {
            self.clear();
            println!("{text}");
        }
    }

    /// One line that the next one replaces, on a terminal only.
    fn progress(&self, text: &str) {
        if !self.quiet && std::io::stderr().is_terminal() {
            tell!("\r\x1b[K  {text} …");
            let _ = std::io::stderr().flush();
        }
    }

    fn clear(&self) {
        if std::io::stderr().is_terminal() {
            tell!("\r\x1b[K");
        }
    }
}

/// A directory that goes when this does. What an unclean end has left is swept by the next one.
pub(crate) struct Directory(PathBuf);

impl Directory {
    /// Of a testbed that this process owns.
    pub(crate) fn make(testbed: &str) -> Result<Self> {
        let all: Vec<_> = hoist_wire::list()?.into_iter().map(|listed| listed.name).collect();
        Self::make_in(Path::new("/run/hoist"), testbed, &all)
    }

    fn make_in(parent: &Path, testbed: &str, testbeds: &[String]) -> Result<Self> {
        fs::create_dir_all(parent).with_context(|| format!("making {} (mkdir)", parent.display()))?;
        sweep(parent, |name| name != testbed && testbeds.iter().any(|other| other == name))?;
        let path = parent.join(format!("{PREFIX}{testbed}"));
        fs::create_dir(&path).with_context(|| format!("making {} (mkdir)", path.display()))?;
        Ok(Self(path))
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

const PREFIX: &str = "files-";

/// Removes the directories of testbeds that are no more.
fn sweep(parent: &Path, lives: impl Fn(&str) -> bool) -> Result<()> {
    let entries = fs::read_dir(parent).with_context(|| format!("reading {}", parent.display()))?;
    for entry in entries.flatten() {
        let name = entry.file_name();
        let testbed = name.to_str().and_then(|name| name.strip_prefix(PREFIX));
        if testbed.is_some_and(|testbed| !lives(testbed)) {
            let path = entry.path();
            gone(fs::remove_dir_all(&path)).with_context(|| format!("removing {}", path.display()))?;
        }
    }
    Ok(())
}

/// Two may sweep at a time.
fn gone(removed: std::io::Result<()>) -> std::io::Result<()> {
    removed.or_else(|error| if error.kind() == ErrorKind::NotFound { Ok(()) } else { Err(error) })
}

/// What the demo found out.
#[derive(Serialize)]
struct Found {
    udp: Vec<flood::Row>,
    dns: Vec<dns::Round>,
    /// Of every hoisted run together.
    hoisted: Counted,
    /// The page.
    report: Option<PathBuf>,
}

impl Found {
    fn of(udp: Vec<flood::Row>, dns: Vec<dns::Round>) -> Self {
        let runs =
            udp.iter().map(|row| &row.counted).chain(dns.iter().filter_map(|round| round.hoisted.counted()));
        let hoisted = runs.fold(Counted::default(), |sum, run| sum.plus(run));
        Self { udp, dns, hoisted, report: None }
    }
}

/// What programs under `hoist run` read.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
struct Counted {
    /// Datagrams from rings.
    lifted: u64,
    /// Datagrams from the kernel.
    passed: u64,
    /// Frames that were lost track of; 0 is right.
    leaked_frames: i64,
    /// `native` or `generic`.
    xdp: String,
    /// `zero-copy` or `copy`.
    mode: String,
}

impl Counted {
    /// From the file that `hoist run --json` wrote.
    fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        let status: Status =
            serde_json::from_str(&text).with_context(|| format!("{} is no status", path.display()))?;
        Ok(Self::of(&status))
    }

    fn of(status: &Status) -> Self {
        let mut traffic = Traffic::default();
        status.sockets.iter().for_each(|socket| traffic.add(&socket.traffic));
        status.closed.iter().for_each(|closed| traffic.add(&closed.traffic));
        let unlisted: u64 = status.processes.iter().map(|process| process.unregistered_packets).sum();
        let device = status.devices.first();
        Self {
            lifted: traffic.lifted_packets,
            passed: traffic.passed_packets + unlisted,
            leaked_frames: status.leaked_frames,
            xdp: device.map(|device| device.xdp.clone()).unwrap_or_default(),
            mode: device.map(|device| device.mode.clone()).unwrap_or_default(),
        }
    }

    fn plus(&self, other: &Self) -> Self {
        Self {
            lifted: self.lifted + other.lifted,
            passed: self.passed + other.passed,
            leaked_frames: self.leaked_frames + other.leaked_frames,
            ..other.clone()
        }
    }

    /// In per cent.
    fn share_lifted(&self) -> f64 {
        100.0 * self.lifted as f64 / (self.lifted + self.passed).max(1) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_closed_and_unlisted_sockets_all_count() {
        let traffic =
            |lifted_packets, passed_packets| Traffic { lifted_packets, passed_packets, ..Traffic::default() };
        let mut status = Status::default();
        status.sockets.push(Default::default());
        status.sockets[0].traffic = traffic(90, 1);
        status.closed.push(Default::default());
        status.closed[0].traffic = traffic(5, 2);
        status.processes.push(Default::default());
        status.processes[0].unregistered_packets = 2;
        let counted = Counted::of(&status);
        assert_eq!((counted.lifted, counted.passed), (95, 5));
        assert_eq!(counted.share_lifted(), 95.0);
    }

    #[test]
    fn a_directory_goes_with_what_is_in_it() {
        let parent = Parent::make("goes");
        let directory = Directory::make_in(&parent.0, "7-0", &[]).unwrap();
        let path = directory.path("file");
        fs::write(&path, "x").unwrap();
        drop(directory);
        assert!(!path.parent().unwrap().exists());
    }

    #[test]
    fn leftovers_are_swept_but_not_what_belongs_to_a_testbed_that_exists() {
        let parent = Parent::make("swept");
        for name in ["files-7-0", "files-8-0", "files-9-0", "testbed-9-0"] {
            fs::create_dir(parent.0.join(name)).unwrap();
            fs::write(parent.0.join(name).join("left"), "x").unwrap();
        }
        let directory = Directory::make_in(&parent.0, "7-0", &["7-0".into(), "8-0".into()]).unwrap();
        assert!(!directory.path("left").exists());
        let exists = |name: &str| parent.0.join(name).exists();
        assert_eq!(["files-8-0", "files-9-0", "testbed-9-0"].map(exists), [true, false, true]);
    }

    struct Parent(PathBuf);

    impl Parent {
        fn make(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("hoist-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&path); // of a process that had this one's id
            fs::create_dir(&path).unwrap();
            Self(path)
        }
    }

    impl Drop for Parent {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }
}
