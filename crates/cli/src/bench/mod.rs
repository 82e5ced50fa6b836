//! `hoist bench`: what Hoist gains, measured against the kernel on the same core of this machine.

mod compare;
mod document;
mod draw;
mod figure;
mod grid;
mod host;
mod kinds;
mod losses;
#[cfg(test)]
mod made_up;
mod number;
mod others;
mod pace;
mod page;
mod peers;
pub(crate) mod plan;
mod program;
mod rates;
mod search;
pub(crate) mod session;
pub(crate) mod side;
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
use plan::Plan;
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
    /// Samples of each figure; 5 unless told.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    repeats: Option<u16>,
    /// Only these sides.
    #[arg(long, value_enum, value_delimiter = ',', value_name = "SIDES", default_values = ["kernel", "kernel-tuned", "hoist", "limit"])]
    sides: Vec<Side>,
    /// One JSON object with every sample on standard output, and nothing else.
    #[arg(long)]
    json: bool,
    /// Keep the run in a new directory: run.json, one SVG a bench, and a page (index.html).
    #[arg(long, value_name = "DIR")]
    save: Option<PathBuf>,
    /// Bytes of a frame.
    #[arg(long, value_name = "BYTES")]
    size: Option<usize>,
    /// Flows in turn.
    #[arg(long, value_name = "N")]
    flows: Option<u64>,
    /// SO_RCVBUF of kernel and hoist in bytes instead of the system's default.
    #[arg(long, value_name = "BYTES")]
    rcvbuf: Option<u32>,
    /// What may be lost in a trial that counts as loss-free.
    #[arg(long, value_name = "FRACTION")]
    tolerated_loss: Option<f64>,
    /// Offered rates of udp-overload in packets per second (k, M and G are understood).
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = crate::wire::rate)]
    rates: Option<Vec<f64>>,
    /// Also the receivers of benches/peers that are built, in udp-lossless and udp-overload.
    #[arg(long)]
    peers: bool,
}

pub(crate) fn main(args: Args) -> Result<ExitCode> {
    match &args.kept {
        Some(Kept::Compare { first, second, json }) => compare(first, second, *json)?,
        Some(Kept::Report { run, directory }) => report(run, directory)?,
        None => return run(&args.how, &kinds(&args.list)),
    }
    Ok(ExitCode::SUCCESS)
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
    let document = measure(plan, kinds)?;
    keep(&document, how)?;
    match how.json {
        true => println!("{}", serde_json::to_string_pretty(&document)?),
        false => println!("{}", table::of(&document)),
    }
    Ok(ExitCode::SUCCESS)
}

/// Before the run, so that no run is lost for want of a place, and none to another one.
fn claim(directory: &Path) -> Result<()> {
    make(directory)?;
    if directory.join(RUN).exists() {
        bail!("{} holds a run already: name another directory", directory.display());
    }
    page::store(&directory.join("index.html"), "the run goes on\n")
}

const RUN: &str = "run.json";

fn keep(document: &Document, how: &How) -> Result<()> {
    let Some(directory) = &how.save else { return Ok(()) };
    page::store(&directory.join(RUN), &serde_json::to_string_pretty(document)?)?;
    page::write(document, directory)
}

fn plan(how: &How) -> Result<Plan> {
    let mut plan = if how.quick { Plan::quick() } else { Plan::full() };
    plan.repeats = how.repeats.map_or(plan.repeats, Into::into);
    plan.sides = distinct(how.sides.iter().copied());
    plan.frame_len = how.size.unwrap_or(plan.frame_len);
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

fn measure(plan: Plan, kinds: &[Kind]) -> Result<Document> {
    let _favoured = Favoured::session();
    hoist_wire::pin_thread(plan.wire_cpu)?;
    let mut stage = Stage::up(plan)?;
    stage.try_peers();
    kinds.iter().try_for_each(|kind| stage.measure(*kind))?;
    let names: Vec<_> = kinds.iter().map(|kind| kind.name()).collect();
    stage.end(names.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_stands_for_each_and_repeated_names_count_once() {
        assert_eq!(kinds(&[Kind::UdpOverload, Kind::All]), Kind::EACH);
        assert_eq!(
            kinds(&[Kind::PassCost, Kind::UdpOverload, Kind::PassCost]),
            [Kind::PassCost, Kind::UdpOverload]
        );
    }
}
