//! `hoist status`.

pub(crate) mod render;

use anyhow::{Context, Result, bail};
use hoist_broker::status::Status;
use std::{
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    process::ExitCode,
};

/// Show runs: what is lifted, what is not, and why
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Pid of `hoist run` [default: every run]
    pid: Option<u32>,
    /// An array of runs as JSON, described in docs/status.md
    #[arg(long)]
    json: bool,
}

pub(crate) fn main(args: Args) -> Result<ExitCode> {
    let mut runs = hoist_broker::status_sockets();
    if let Some(pid) = args.pid {
        runs.retain(|(run, _)| *run == pid);
        if runs.is_empty() {
            bail!("no run has pid {pid}: `hoist status` lists all");
        }
    }
    let mut found = Vec::new();
    for (pid, path) in &runs {
        match ask(path) {
            Ok(status) => found.push(status),
            // Ended meanwhile, or killed: the next run sweeps its socket.
            Err(error) if is_gone(&error) && args.pid.is_none() => {}
            Err(error) => return Err(error).with_context(|| format!("ask run {pid} ({})", path.display())),
        }
    }
    print(&found, args.json).context("print the status")?;
    Ok(ExitCode::SUCCESS)
}

fn ask(path: &Path) -> Result<Status> {
    let mut text = Vec::new();
    UnixStream::connect(path)?.read_to_end(&mut text)?;
    serde_json::from_slice(&text).context("the answer is not a status of this version of hoist")
}

fn is_gone(error: &anyhow::Error) -> bool {
    let kind = error.downcast_ref::<io::Error>().map(io::Error::kind);
    matches!(kind, Some(io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound))
}

fn print(runs: &[Status], json: bool) -> Result<()> {
    let text = match (json, runs) {
        (true, runs) => serde_json::to_string_pretty(runs)? + "\n",
        (false, []) => "no run\n".into(),
        (false, runs) => runs.iter().map(render::text).collect::<Vec<_>>().join("\n"),
    };
    io::stdout().write_all(text.as_bytes())?;
    Ok(())
}
