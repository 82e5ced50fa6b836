//! `hoist`: the command line. One folder a command; this file only parses and dispatches.
//!
//! Exit codes: 0 done, 1 ran and failed, 2 usage (clap's own). `hoist run` exits with its program's status.

#![deny(clippy::print_stderr, reason = "it panics where standard error cannot be written: tell!")]

#[macro_use]
mod out;

mod bench;
mod cpus;
mod demo;
mod doctor;
mod ends;
mod flame;
mod rps;
mod run;
mod status;
mod testbed;
mod top;
mod wire;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// AF_INET sockets that wrap AF_XDP, for programs that know nothing of it.
#[derive(Parser)]
#[command(name = "hoist", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Run(run::Args),
    Status(status::Args),
    Doctor(doctor::Args),
    Flame(flame::Args),
    Rps(rps::Args),
    Testbed(testbed::Args),
    Top(top::Args),
    Wire(wire::Args),
    Bench(bench::Args),
    Demo(demo::Args),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Run(args) => run::main(args),
        Command::Status(args) => status::main(args),
        Command::Doctor(args) => doctor::main(args),
        Command::Flame(args) => flame::main(&args),
        Command::Rps(args) => rps::main(&args),
        Command::Testbed(args) => testbed::main(args),
        Command::Top(args) => top::main(args),
        Command::Wire(args) => wire::main(args),
        Command::Bench(args) => bench::main(args),
        Command::Demo(args) => demo::main(args),
    };
    result.unwrap_or_else(|error| {
        tell_line!("hoist: {error:#}");
        if asks_too_much(&error) { ExitCode::from(USAGE) } else { ExitCode::FAILURE }
    })
}

/// Exit code of what cannot be asked for; clap's own.
pub(crate) const USAGE: u8 = 2;

/// Values that clap let through and the wire cannot carry out.
fn asks_too_much(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(hoist_wire::Error::Spec(_) | hoist_wire::Error::BadName(_)))
        || error.is::<rps::Unusable>()
}
