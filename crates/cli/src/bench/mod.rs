//! `hoist bench`: what Hoist gains, measured against the kernel on the same core of this machine.

mod document;
mod grid;
mod host;
mod kinds;
mod losses;
mod number;
mod others;
mod pace;
pub(crate) mod plan;
mod program;
mod search;
pub(crate) mod session;
pub(crate) mod side;
mod stage;
mod stats;
mod table;
pub(crate) mod trial;

pub(crate) use session::{Favoured, Signals};

use anyhow::Result;
use document::{Document, distinct};
use kinds::Kind;
use plan::Plan;
use side::Side;
use stage::Stage;
use std::process::ExitCode;

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
    /// What to measure.
    #[arg(required = true, value_enum, value_name = "LIST")]
    list: Vec<Kind>,
    #[command(flatten)]
    how: How,
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
}

pub(crate) fn main(args: Args) -> Result<ExitCode> {
    let plan = plan(&args.how)?;
    if let Some(code) = session::apart()? {
        return Ok(code);
    }
    let document = measure(plan, &kinds(&args.list))?;
    show(&document, &args.how)?;
    Ok(ExitCode::SUCCESS)
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
    kinds.iter().try_for_each(|kind| stage.measure(*kind))?;
    let names: Vec<_> = kinds.iter().map(|kind| kind.name()).collect();
    stage.end(names.join(" "))
}

fn show(document: &Document, how: &How) -> Result<()> {
    match how.json {
        true => println!("{}", serde_json::to_string_pretty(document)?),
        false => println!("{}", table::of(document)),
    }
    Ok(())
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
