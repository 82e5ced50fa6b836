//! `hoist top`: rates of the receive path.
//!
//! `sample` parses what the kernel shows, `rates` makes rates and findings of two samples, `render` makes text of
//! them. Only this file does I/O.

mod rates;
mod render;
mod sample;

use crate::out;
use anyhow::{Context, Result, ensure};
use hoist_broker::napi::Napi;
use sample::Sample;
use std::io::{self, IsTerminal};
use std::process::ExitCode;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Show the receive path as it runs: CPUs, devices, what is wrong.
///
/// Needs no run of Hoist, and root only to count NAPI polls. Columns: docs/top.md.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Time between two samples, in milliseconds.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(10..=3_600_000))]
    interval_ms: u64,
    /// Stop after this many intervals (default: go on).
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// The same as --count 1.
    #[arg(long, conflicts_with = "count")]
    once: bool,
    /// One JSON object a line for each interval.
    #[arg(long)]
    json: bool,
}

pub(crate) fn main(args: Args) -> Result<ExitCode> {
    let count = if args.once { 1 } else { args.count.unwrap_or(u64::MAX) };
    let screen = !args.json && count > 1 && io::stdout().is_terminal();
    let napi = Napi::watch();
    if let Err(why) = &napi {
        tell_line!("hoist: NAPI polls are not shown (CAP_BPF and CAP_PERFMON, or root): {why}");
    }
    let napi = napi.ok();
    let (mut before, mut taken) = (read(napi.as_ref())?, Instant::now());
    for _ in 0..count {
        sleep(Duration::from_millis(args.interval_ms));
        let (after, seconds) = (read(napi.as_ref())?, taken.elapsed().as_secs_f64());
        taken = Instant::now();
        let report = rates::report(&before, &after, seconds);
        let text = if args.json { serde_json::to_string(&report)? + "\n" } else { render::text(&report) };
        if !out::print(&if screen { on_screen(&text) } else { text })? {
            break;
        }
        before = after;
    }
    Ok(ExitCode::SUCCESS)
}

/// As much as fits, drawn over what was there; no mode of the terminal is changed, so none has to be restored.
fn on_screen(text: &str) -> String {
    let rows = terminal_size::terminal_size().map_or(24, |(_, height)| usize::from(height.0));
    let fitting: Vec<_> = text.lines().take(rows.saturating_sub(1)).collect();
    format!("\x1b[H{}\x1b[K\n\x1b[J", fitting.join("\x1b[K\n"))
}

fn read(napi: Option<&Napi>) -> Result<Sample> {
    let polls = napi.map(Napi::counts).transpose().context("top")?.unwrap_or_default();
    Ok(Sample {
        napi: (0..).zip(polls).collect(),
        softnet: parsed("/proc/net/softnet_stat", sample::softnet)?,
        times: parsed("/proc/stat", sample::times)?,
        net_rx: parsed("/proc/softirqs", |text| sample::per_cpu(text, "NET_RX"))?,
        calls: parsed("/proc/interrupts", |text| sample::per_cpu(text, "CAL"))?,
        devices: parsed("/proc/net/dev", sample::devices)?,
    })
}

/// Packets and bytes that a device, or all but the loopback, has received so far.
pub(crate) fn received(device: Option<&str>) -> Result<(u64, u64)> {
    let devices = parsed("/proc/self/net/dev", sample::devices)?;
    let wanted = |name: &str| device.map_or(name != "lo", |device| device == name);
    let chosen: Vec<_> = devices.iter().filter(|(name, _)| wanted(name)).map(|(_, device)| device).collect();
    ensure!(device.is_none() || !chosen.is_empty(), "no device '{}'", device.unwrap_or_default());
    Ok((chosen.iter().map(|device| device.packets).sum(), chosen.iter().map(|device| device.bytes).sum()))
}

fn parsed<T>(path: &str, parse: impl FnOnce(&str) -> Result<T>) -> Result<T> {
    let text = std::fs::read_to_string(path).with_context(|| format!("read {path}: is /proc mounted?"))?;
    parse(&text).with_context(|| format!("{path} is not as this version of hoist knows it"))
}
