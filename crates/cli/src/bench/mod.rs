//! `hoist bench`.

use anyhow::{Result, bail};
use std::process::ExitCode;

/// Placeholder.
#[derive(clap::Args)]
pub(crate) struct Args {}

pub(crate) fn main(_args: Args) -> Result<ExitCode> {
    bail!("bench: not built yet")
}
