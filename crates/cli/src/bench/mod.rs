//! `hoist bench`: what Hoist gains, measured against the kernel on the same core of this machine.

mod about;
mod compare;
mod date;
mod document;
mod draw;
mod figure;
mod grid;
mod gro;
mod host;
mod kinds;
mod losses;
#[cfg(test)]
mod made_up;
mod number;
mod others;
mod pace;
pub(crate) mod page;
mod peers;
pub(crate) mod plan;
mod program;
mod rates;
mod search;
pub(crate) mod session;
pub(crate) mod side;
mod simulate;
mod stage;
mod stats;
mod status;
mod table;
pub(crate) mod trial;

pub(crate) use session::{Favoured, Signals};

use anyhow::{Context, Result, bail};
use compare::Comparison;
use document::{Document, distinct};
use kinds::Kind;
use nix::unistd::{AccessFlags, access};
use plan::Plan;
use session::Interrupted;
use side::Side;
use stage::Stage;
use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

/// Measure Hoist against the kernel, side by side, on a testbed of its own
///
/// Needs root and two CPUs; makes network namespaces of its own and removes them.
#[derive(clap::Args)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    arg_required_else_help = true
)]
pub(crate) struct Args {
    #[command(subcommand)]
    kept: Option<Kept>,
    /// What to measure.
    #[arg(required = true, value_enum, value_name = "LIST")]
    list: Vec<Kind>,
    #[command(flatten)]
    how: How,
}

/// What is done with runs that were kept.
#[derive(clap::Subcommand)]
enum Kept {
    /// Which differences between two kept runs are larger than the noise.
    Compare {
        /// The run before: a file, or the directory of --save.
        first: PathBuf,
        /// The run after.
        second: PathBuf,
        /// One JSON object on standard output, and nothing else.
        #[arg(long)]
        json: bool,
    },
    /// Draw the pictures and the page of a kept run again.
    Report {
        /// The run: a file, or the directory of --save.
        run: PathBuf,
        /// Where they go.
        directory: PathBuf,
    },
}

#[derive(clap::Args)]
struct How {
    /// At most 40 seconds a bench, shorter trials and fewer repeats: to look, not to quote.
    #[arg(long)]
    quick: bool,
    /// Samples of each figure, 1 to 100; 5 unless told.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=100))]
    repeats: Option<u16>,
    /// Only these sides.
    #[arg(long, value_enum, value_delimiter = ',', value_name = "SIDES", default_values_t = Side::ALL)]
    sides: Vec<Side>,
    /// One JSON object with every sample on standard output, and nothing else.
    #[arg(long)]
    json: bool,
    /// Keep the run in a new directory: run.json (after each bench), one SVG a bench, and a page (index.html).
    #[arg(long, value_name = "DIR")]
    save: Option<PathBuf>,
    /// Bytes of a frame, 64 to 1514; udp-rr, tcp-rr, tcp-bulk and app have their own.
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u16).range(64..=1514))]
    size: Option<u16>,
    /// Flows in turn, 1 to 16777216; flows, sockets, udp-rr, tcp-rr, tcp-bulk and app have their own.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1 << 24))]
    flows: Option<u64>,
    /// SO_RCVBUF of kernel and hoist in bytes instead of the system's default; not in udp-rr, tcp-rr and app.
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(1..=1 << 30))]
    rcvbuf: Option<u32>,
    /// What may be lost in a trial that counts as loss-free: 0.001 is 0.1 %.
    #[arg(long, value_name = "FRACTION", value_parser = fraction)]
    tolerated_loss: Option<f64>,
    /// Offered rates of udp-overload, flows and sockets in packets per second (k, M and G are understood).
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = positive_rate)]
    rates: Option<Vec<f64>>,
    /// In memory, without root, a testbed or packets: steering only.
    #[arg(long, conflicts_with_all = ["sides", "size", "flows", "rcvbuf", "tolerated_loss", "rates", "peers"])]
    simulate: bool,
    /// Also the receivers of benches/peers that are built, in udp-lossless and udp-overload.
    #[arg(long)]
    peers: bool,
}

impl How {
    /// Something is asked for that only a testbed has.
    fn is_of_testbed(&self) -> bool {
        self.sides != Side::ALL
            || self.size.is_some()
            || self.flows.is_some()
            || self.rcvbuf.is_some()
            || self.tolerated_loss.is_some()
            || self.rates.is_some()
            || self.peers
    }
}

fn fraction(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(value) if (0.0..1.0).contains(&value) => Ok(value),
        _ => Err(format!("{text:?} is no fraction: 0 or more and less than 1")),
    }
}

fn positive_rate(text: &str) -> Result<f64, String> {
    match crate::wire::rate(text)? {
        rate if rate > 0.0 => Ok(rate),
        _ => Err("a rate is more than 0".into()),
    }
}

pub(crate) fn main(args: Args) -> Result<ExitCode> {
    match &args.kept {
        Some(Kept::Compare { first, second, json }) => compare(first, second, *json)?,
        Some(Kept::Report { run, directory }) => report(run, directory)?,
        None if args.how.simulate || args.list.contains(&Kind::Steering) => {
            simulated(&args.how, &kinds(&args.list))?;
        }
        None if args.list.contains(&Kind::GroWire) && distinct(args.list.iter().copied()).len() > 1 => {
            conflict("gro-wire sets up the testbed for itself: it goes with no other bench")
        }
        None if args.list.contains(&Kind::Gro) => matched(&args.how, &kinds(&args.list))?,
        None => return run(&args.how, &kinds(&args.list)),
    }
    Ok(ExitCode::SUCCESS)
}

fn simulated(how: &How, kinds: &[Kind]) -> Result<()> {
    if !how.simulate || kinds != [Kind::Steering] {
        conflict(
            "steering goes with --simulate, and --simulate with nothing else: hoist bench steering --simulate",
        );
    }
    in_memory(how, simulate::steering)
}

fn matched(how: &How, kinds: &[Kind]) -> Result<()> {
    if kinds != [Kind::Gro] || how.is_of_testbed() {
        conflict(
            "gro has no testbed: it goes with --quick, --repeats, --json and --save, and with no other bench",
        );
    }
    in_memory(how, gro::matching)
}

fn conflict(what: &str) -> ! {
    clap::Error::raw(clap::error::ErrorKind::ArgumentConflict, format!("{what}\n")).exit()
}

/// A bench without a testbed.
fn in_memory(how: &How, bench: fn(bool, usize) -> Result<Document>) -> Result<()> {
    how.save.as_deref().map_or(Ok(()), claim)?;
    let repeats = how.repeats.map_or(if how.quick { 2 } else { 5 }, usize::from);
    finish(how, &bench(how.quick, repeats)?)
}

/// Prints the run, and keeps it if it is to be kept.
fn finish(how: &How, document: &Document) -> Result<()> {
    match how.json {
        true => println!("{}", serde_json::to_string_pretty(document)?),
        false => println!("{}", table::of(document)),
    }
    let Some(directory) = how.save.as_deref() else { return Ok(()) };
    page::keep(document, directory)?;
    page::write(document, directory)
}

fn compare(first: &Path, second: &Path, json: bool) -> Result<()> {
    let comparison = Comparison::of(&Document::read(first)?, &Document::read(second)?);
    match json {
        true => println!("{}", serde_json::to_string_pretty(&comparison)?),
        false => println!("{}", comparison.text()),
    }
    Ok(())
}

fn report(run: &Path, directory: &Path) -> Result<()> {
    let document = Document::read(run)?;
    make(directory)?;
    page::copy(run, directory)?;
    page::write(&document, directory)
}

fn make(directory: &Path) -> Result<()> {
    fs::create_dir_all(directory).with_context(|| format!("making {} (mkdir)", directory.display()))
}

fn run(how: &How, kinds: &[Kind]) -> Result<ExitCode> {
    let plan = plan(how)?;
    if let Some(code) = session::apart()? {
        return Ok(code);
    }
    how.save.as_deref().map_or(Ok(()), claim)?;
    let (document, is_whole) = measure(plan, kinds, how.save.as_deref())?;
    finish(how, &document)?;
    Ok(if is_whole { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Before the run, so that no run is lost for want of a place, and none to another one.
fn claim(directory: &Path) -> Result<()> {
    make(directory)?;
    if directory.join(page::RUN).exists() {
        bail!("{} holds a run already: name another directory", directory.display());
    }
    access(directory, AccessFlags::W_OK)
        .with_context(|| format!("writing to {} (access)", directory.display()))
}

fn plan(how: &How) -> Result<Plan> {
    let mut plan = if how.quick { Plan::quick() } else { Plan::full() };
    plan.repeats = how.repeats.map_or(plan.repeats, Into::into);
    plan.sides = distinct(how.sides.iter().copied());
    plan.frame_len = how.size.map_or(plan.frame_len, Into::into);
    plan.tolerated_loss = how.tolerated_loss.unwrap_or(plan.tolerated_loss);
    plan.rcvbuf = how.rcvbuf.or(plan.rcvbuf);
    plan.flows = how.flows.unwrap_or(plan.flows);
    plan.rates = how.rates.clone();
    if how.peers {
        plan.sides.extend(peers::find()?.into_iter().map(Side::Peer));
    }
    plan.check()?;
    Ok(plan)
}

/// Each once; `all` stands for every one.
fn kinds(list: &[Kind]) -> Vec<Kind> {
    match list.contains(&Kind::All) {
        true => Kind::EACH.into(),
        false => distinct(list.iter().copied()),
    }
}

/// What was measured, and whether that is all that was asked for. What there is after each bench is kept at once.
fn measure(plan: Plan, kinds: &[Kind], save: Option<&Path>) -> Result<(Document, bool)> {
    let _favoured = Favoured::session();
    hoist_wire::pin_thread(plan.wire_cpu)?;
    let mut stage = Stage::up(plan)?;
    stage.try_peers();
    let name = kinds.iter().map(|kind| kind.name()).collect::<Vec<_>>().join(" ");
    let mut is_whole = true;
    for kind in kinds {
        let failure = stage.measure(*kind).err();
        failure.iter().for_each(|error| stage.fail(error));
        save.map_or(Ok(()), |directory| page::keep(&stage.document(&name)?, directory))?;
        is_whole &= failure.is_none();
        if failure.is_some_and(|error| error.is::<Interrupted>()) {
            break;
        }
    }
    stage.hush();
    Ok((stage.document(&name)?, is_whole))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fractions_are_finite_and_less_than_one() {
        assert_eq!(fraction("0.005"), Ok(0.005));
        assert_eq!(fraction("0"), Ok(0.0));
        for bad in ["1", "-0.1", "nan", "inf", "", "1%"] {
            assert!(fraction(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn all_stands_for_each_and_repeated_names_count_once() {
        assert_eq!(kinds(&[Kind::UdpOverload, Kind::All]), Kind::EACH);
        assert_eq!(
            kinds(&[Kind::PassCost, Kind::UdpOverload, Kind::PassCost]),
            [Kind::PassCost, Kind::UdpOverload]
        );
    }
}
