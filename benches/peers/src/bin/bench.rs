//! `peer-bench`: every peer, and hoist beside them, in turn on one testbed.
//!
//! `peer-bench [--bin DIRECTORY] [--repeats N] [--trial-ms N] [--json FILE]`. hoist, hoist-sink and hoist-raw-sink are taken from
//! DIRECTORY, the peers from where this program is. CPU 0 is the wire; NAPI of vb and the receiver share CPU 1. FILE keeps the
//! trials, and those that it holds already count too, so that a run may be made in parts.

#![deny(unsafe_code)]

#[path = "../../../../crates/cli/src/bench/others.rs"]
mod others;

use hoist_wire::{Generator, Limit, Precedence, Spec, Testbed, in_own_session, pin_thread, prefer_thread};
use nix::unistd::setsid;
use others::Census;
use serde::{Deserialize, Serialize};
use std::{
    collections::HashMap,
    env,
    error::Error,
    fs,
    io::{BufRead, BufReader},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, ExitCode, Stdio},
    time::Duration,
};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("peer-bench: {why}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let options = Options::parse(env::args().skip(1))?;
    // Autogroup weighs sessions: without precedence of its own the generator shares CPU 0 with whoever comes.
    let _ = setsid().map(|_| fs::write("/proc/self/autogroup", "-20"));
    pin_thread(WIRE_CPU)?;
    let testbed = Testbed::builder().up()?;
    let mut trials = options.kept()?;
    for _ in 0..options.repeats {
        for pps in RATES {
            for side in &SIDES {
                let trial = quiet_trial(&testbed, &options, side, pps);
                trials.push(trial.map_err(|e| format!("{}: {e}", side.name))?);
            }
        }
    }
    table(&trials);
    match &options.json {
        Some(path) => Ok(fs::write(path, serde_json::to_string_pretty(&trials)?)?),
        None => Ok(()),
    }
}

const RATES: [f64; 4] = [0.5e6, 1.0e6, 1.4e6, 1.75e6];
const PORT: u16 = 9000;
const WIRE_CPU: usize = 0;
const HOST_CPU: usize = 1;
/// A trial during which others used the host's CPU for longer, or in which the wire fell short, is taken again.
const TOLERATED_FOREIGN_NS: u64 = 500_000;
const ATTEMPTS: usize = 5;

struct Options {
    bin: PathBuf,
    own: PathBuf,
    repeats: usize,
    trial: Duration,
    json: Option<PathBuf>,
}

impl Options {
    fn parse(mut args: impl Iterator<Item = String>) -> Result<Self, Box<dyn Error>> {
        let own = env::current_exe()?.parent().ok_or("this program lies in no directory")?.to_path_buf();
        let mut options =
            Self { bin: own.clone(), own, repeats: 3, trial: Duration::from_millis(500), json: None };
        while let Some(name) = args.next() {
            let usage = "usage: peer-bench [--bin DIRECTORY] [--repeats N] [--trial-ms N] [--json FILE]";
            let value = args.next().ok_or(usage)?;
            match name.as_str() {
                "--bin" => options.bin = value.into(),
                "--repeats" => options.repeats = value.parse()?,
                "--trial-ms" => options.trial = Duration::from_millis(value.parse()?),
                "--json" => options.json = Some(value.into()),
                _ => return Err(usage.into()),
            }
        }
        Ok(options)
    }
}

impl Options {
    fn kept(&self) -> Result<Vec<Trial>, Box<dyn Error>> {
        match self.json.as_ref().map(fs::read) {
            Some(Ok(text)) => Ok(serde_json::from_slice(&text)?),
            _ => Ok(Vec::new()),
        }
    }
}

/// Who receives: the words of its command, the first one without its directory.
struct Side {
    name: &'static str,
    command: &'static str,
    napi: Precedence,
}

const SIDES: [Side; 9] = [
    side("kernel", "hoist-sink 0.0.0.0:9000"),
    side("hoist", "hoist run --dev vb --require -- hoist-sink 0.0.0.0:9000"),
    side("limit", "hoist-raw-sink vb 9000"),
    side("testpmd", "peer-testpmd vb 9000"),
    Side { napi: Precedence::Favoured, ..side("testpmd, NAPI at nice -20", "peer-testpmd vb 9000") },
    side("smoltcp", "peer-smoltcp vb 9000"),
    side("packet-mmap", "peer-packet-mmap vb 9000"),
    side("io-uring", "peer-io-uring vb 9000"),
    side("io-uring, 4 MiB", "peer-io-uring vb 9000 --rcvbuf 4194304"),
];

const fn side(name: &'static str, command: &'static str) -> Side {
    Side { name, command, napi: Precedence::AsIs }
}

impl Side {
    fn command(&self, options: &Options) -> Vec<PathBuf> {
        let place = |word: &str| match word {
            "hoist" | "hoist-sink" | "hoist-raw-sink" => options.bin.join(word),
            peer if peer.starts_with("peer-") => options.own.join(peer),
            other => Path::new(other).into(),
        };
        self.command.split(' ').map(place).collect()
    }
}

#[derive(Serialize, Deserialize)]
struct Trial {
    side: String,
    asked_pps: f64,
    sent_pps: f64,
    sent: u64,
    received: u64,
    reordered: u64,
    goodput_pps: f64,
    program_ns: u64,
    napi_ns: u64,
    foreign_ns: u64,
}

impl Trial {
    fn is_disturbed(&self) -> bool {
        self.foreign_ns > TOLERATED_FOREIGN_NS || self.sent_pps < self.asked_pps * 0.93
    }
}

/// What a receiver prints at its end.
#[derive(Deserialize)]
struct Report {
    packets: u64,
    reordered: u64,
    seconds: f64,
    cpu_ns: u64,
}

/// A trial that nobody disturbed, or the last of several.
fn quiet_trial(testbed: &Testbed, options: &Options, side: &Side, pps: f64) -> Result<Trial, Box<dyn Error>> {
    let mut found = trial(testbed, options, side, pps)?;
    for _ in 1..ATTEMPTS {
        if found.is_disturbed() {
            found = trial(testbed, options, side, pps)?;
        }
    }
    Ok(found)
}

fn trial(testbed: &Testbed, options: &Options, side: &Side, pps: f64) -> Result<Trial, Box<dyn Error>> {
    let receiver = Receiver::start(testbed, &side.command(options))?;
    let napis = testbed.threaded_napi(HOST_CPU)?;
    let mut threads = napis.iter().filter_map(|napi| napi.thread);
    threads.try_for_each(|thread| prefer_thread(thread, side.napi))?;
    let cpu = || napis.iter().filter_map(|napi| napi.cpu_ns()).sum::<u64>();
    let (before, ours, census) = (cpu(), receiver.processes(), Census::take(HOST_CPU));
    let target = SocketAddr::from((testbed.host().v4(), PORT));
    let spec = Spec::to(target).frame_len(64).packets_per_second(pps).limit(Limit::Time(options.trial));
    let sent = Generator::start(testbed, &spec.cpu(WIRE_CPU).favoured(true))?.wait()?;
    let foreign_ns = Census::take(HOST_CPU).foreign_since(&census, &ours);
    let report = receiver.finish()?;
    Ok(Trial {
        side: side.name.into(),
        asked_pps: pps,
        sent_pps: sent.rate(),
        sent: sent.packets,
        received: report.packets,
        reordered: report.reordered,
        goodput_pps: report.packets as f64 / sent.seconds.max(report.seconds).max(1e-9),
        program_ns: report.cpu_ns,
        napi_ns: cpu().saturating_sub(before),
        foreign_ns,
    })
}

struct Receiver {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Receiver {
    /// Starts it on the host's CPU and waits until it says that it is ready.
    fn start(testbed: &Testbed, words: &[PathBuf]) -> Result<Self, Box<dyn Error>> {
        let (program, rest) = words.split_first().ok_or("no command")?;
        let mut command: Command =
            in_own_session(testbed.host().command(program), Some(HOST_CPU), Precedence::AsIs);
        command.args(rest).args(["--seconds", "20"]).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command
            .stderr(Stdio::null())
            .spawn()
            .map_err(|e| format!("starting {}: {e}", program.display()))?;
        let output = BufReader::new(child.stdout.take().ok_or("no standard output")?);
        let mut receiver = Self { child, output };
        match receiver.line()?.trim() {
            "ready" => Ok(receiver),
            other => Err(format!("it said {other:?} instead of ready: start it by hand to see why").into()),
        }
    }

    /// It and its children, and this process.
    fn processes(&self) -> Vec<i32> {
        let id = self.child.id() as i32;
        let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap_or_default();
        let children = children.split_whitespace().filter_map(|child| child.parse().ok());
        children.chain([id, std::process::id() as i32]).collect()
    }

    fn finish(mut self) -> Result<Report, Box<dyn Error>> {
        let report = serde_json::from_str(&self.line()?)?;
        self.child.wait()?;
        Ok(report)
    }

    fn line(&mut self) -> std::io::Result<String> {
        let mut line = String::new();
        self.output.read_line(&mut line).map(|_| line)
    }
}

fn table(trials: &[Trial]) {
    let mut cells: HashMap<(&str, u64), Vec<&Trial>> = HashMap::new();
    for trial in trials {
        cells.entry((trial.side.as_str(), trial.asked_pps as u64)).or_default().push(trial);
    }
    println!("goodput in Mpps, and CPU ns of NAPI and program for a datagram: median (min to max)");
    for side in &SIDES {
        println!("{}", side.name);
        for pps in RATES {
            let Some(cell) = cells.get(&(side.name, pps as u64)) else { continue };
            let column = |of: fn(&Trial) -> f64| spread(cell.iter().map(|trial| of(trial)).collect());
            let sent = column(|trial| trial.sent_pps / 1e6);
            let goodput = column(|trial| trial.goodput_pps / 1e6);
            let ns = |trial: &Trial| (trial.napi_ns + trial.program_ns) as f64 / trial.received.max(1) as f64;
            let disturbed = cell.iter().filter(|trial| trial.is_disturbed()).count();
            let of = format!("{disturbed} of {} disturbed", cell.len());
            println!("  {:.2} asked, {sent} sent: {goodput}, {} ns; {of}", pps / 1e6, column(ns));
        }
    }
}

fn spread(mut samples: Vec<f64>) -> String {
    samples.sort_by(f64::total_cmp);
    let show = |value: f64| if value < 10.0 { format!("{value:.3}") } else { format!("{value:.0}") };
    match samples.as_slice() {
        [] => "none".into(),
        [least, .., most] => {
            format!("{} ({} to {})", show(samples[samples.len() / 2]), show(*least), show(*most))
        }
        [only] => show(*only),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_is_median_least_and_most() {
        assert_eq!(spread(vec![3.0, 1.0, 20.0]), "3.000 (1.000 to 20)");
        assert_eq!(spread(vec![7.5]), "7.500");
    }

    #[test]
    fn a_command_finds_programs_where_they_are() {
        let (bin, own) = (PathBuf::from("/b"), PathBuf::from("/o"));
        let options = Options { bin, own, repeats: 1, trial: Duration::ZERO, json: None };
        let words = |side: &Side| side.command(&options);
        let [hoist, _, _, _, _, _, sink, ..] = &words(&SIDES[1])[..] else { panic!("too short") };
        assert_eq!((hoist.as_path(), sink.as_path()), (Path::new("/b/hoist"), Path::new("/b/hoist-sink")));
        assert_eq!(words(&SIDES[5])[0], Path::new("/o/peer-smoltcp"));
    }
}
