//! `hoist doctor`: what this machine and its devices mean for Hoist, and how to mend what is in the way.
//!
//! `facts` reads (and changes nothing), `judge` turns facts into findings, `render` prints them. Only `facts` does
//! I/O; `netlink`, `netdev` and `netfilter` are the formats it reads, `sys` the calls.

mod facts;
mod judge;
mod netdev;
mod netfilter;
mod netlink;
mod render;
mod sys;

use anyhow::Result;
use judge::Severity;
use std::io::Write;
use std::process::ExitCode;

/// Say what stands between this machine and Hoist, and how to mend it.
///
/// Changes nothing. Works as an ordinary user, and says what it could not see and why. Exit code 1 if Hoist cannot
/// run. Each finding has a section in docs/tuning.md.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Look at this device only, even if it is down (default: every device).
    #[arg(value_name = "DEV")]
    device: Option<String>,
    /// Print the findings as JSON.
    #[arg(long)]
    json: bool,
}

pub(crate) fn main(args: Args) -> Result<ExitCode> {
    let facts = facts::gather(args.device.as_deref())?;
    let findings = judge::judge(&facts);
    let report = if args.json { render::json(&findings)? } else { render::terminal(&findings) };
    print(&report)?;
    let runs = findings.iter().all(|finding| finding.severity < Severity::Bad);
    Ok(if runs { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// A reader that has seen enough (`hoist doctor | head`) is no error.
fn print(report: &str) -> Result<()> {
    match std::io::stdout().write_all(report.as_bytes()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => Ok(other?),
    }
}
