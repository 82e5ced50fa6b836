//! What the kernel shows in /proc, parsed. Pure.

use anyhow::{Context, Result, ensure};
use hoist_broker::napi::Polls;
use std::collections::BTreeMap;

/// Counts since boot, by CPU and by device.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Sample {
    pub(super) softnet: BTreeMap<u32, Softnet>,
    pub(super) times: BTreeMap<u32, Times>,
    pub(super) net_rx: BTreeMap<u32, u64>,
    pub(super) calls: BTreeMap<u32, u64>,
    pub(super) devices: BTreeMap<String, Device>,
    /// By CPU; none where it may not be counted.
    pub(super) napi: BTreeMap<u32, Polls>,
}

/// A line of `softnet_seq_show` (net/core/net-procfs.c). Counters wrap at 32 bits.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Softnet {
    pub(super) processed: u32,
    pub(super) dropped: u32,
    pub(super) time_squeeze: u32,
    pub(super) received_rps: u32,
    pub(super) flow_limit_count: u32,
    /// Lengths, not counters; older kernels do not show them.
    pub(super) input_qlen: Option<u32>,
    pub(super) process_qlen: Option<u32>,
}

/// Time spent, in ticks of a hundredth of a second (USER_HZ).
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Times {
    pub(super) irq_ticks: u64,
    pub(super) softirq_ticks: u64,
}

/// A line of `dev_seq_printf_stats`.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Device {
    pub(super) bytes: u64,
    pub(super) packets: u64,
    /// rx_dropped and rx_missed_errors.
    pub(super) dropped: u64,
}

pub(super) fn softnet(text: &str) -> Result<BTreeMap<u32, Softnet>> {
    let rows = text
        .lines()
        .enumerate()
        .map(|(line, row)| softnet_row(line, row).with_context(|| format!("line {}: {row:?}", line + 1)));
    let rows = rows.collect::<Result<BTreeMap<_, _>>>()?;
    ensure!(!rows.is_empty(), "it is empty");
    Ok(rows)
}

fn softnet_row(line: usize, row: &str) -> Result<(u32, Softnet)> {
    let fields: Result<Vec<_>, _> = row.split_whitespace().map(|f| u32::from_str_radix(f, 16)).collect();
    let fields = fields.context("not hexadecimal")?;
    ensure!(fields.len() >= 11, "{} columns, wanted 11 or more", fields.len());
    let cpu = fields.get(12).copied().unwrap_or(u32::try_from(line)?);
    let softnet = Softnet {
        processed: fields[0],
        dropped: fields[1],
        time_squeeze: fields[2],
        received_rps: fields[9],
        flow_limit_count: fields[10],
        input_qlen: fields.get(13).copied(),
        process_qlen: fields.get(14).copied(),
    };
    Ok((cpu, softnet))
}

pub(super) fn times(text: &str) -> Result<BTreeMap<u32, Times>> {
    text.lines().filter_map(cpu_line).map(|(cpu, rest)| Ok((cpu, times_row(rest)?))).collect()
}

/// `cpu0 …`, and not the sum `cpu …`.
fn cpu_line(line: &str) -> Option<(u32, &str)> {
    let (name, rest) = line.split_once(' ')?;
    Some((name.strip_prefix("cpu")?.parse().ok()?, rest))
}

fn times_row(rest: &str) -> Result<Times> {
    let fields = numbers(rest)?;
    ensure!(fields.len() >= 7, "{} times of a CPU, wanted 7 or more", fields.len());
    Ok(Times { irq_ticks: fields[5], softirq_ticks: fields[6] })
}

/// The row `name` of a table whose header names CPUs; empty if this machine has no such row.
pub(super) fn per_cpu(text: &str, name: &str) -> Result<BTreeMap<u32, u64>> {
    let header = text.lines().next().context("it is empty")?;
    let cpus: Option<Vec<u32>> =
        header.split_whitespace().map(|f| f.strip_prefix("CPU")?.parse().ok()).collect();
    let cpus = cpus.with_context(|| format!("no CPUs in its header {header:?}"))?;
    let rows = text.lines().filter_map(|line| line.split_once(':'));
    let Some((_, row)) = rows.into_iter().find(|(found, _)| found.trim() == name) else {
        return Ok(BTreeMap::new());
    };
    let fields = row.split_whitespace().take(cpus.len()).collect::<Vec<_>>().join(" ");
    let counts = numbers(&fields)?;
    ensure!(counts.len() == cpus.len(), "{name}: {} counts for {} CPUs", counts.len(), cpus.len());
    Ok(cpus.into_iter().zip(counts).collect())
}

pub(super) fn devices(text: &str) -> Result<BTreeMap<String, Device>> {
    ensure!(text.lines().count() >= 2, "it has no header");
    text.lines().skip(2).map(device).collect()
}

fn device(line: &str) -> Result<(String, Device)> {
    let (name, rest) = line.rsplit_once(':').with_context(|| format!("no device in {line:?}"))?;
    let fields = numbers(rest)?;
    ensure!(fields.len() >= 16, "{name}: {} columns, wanted 16", fields.len());
    Ok((name.trim().into(), Device { bytes: fields[0], packets: fields[1], dropped: fields[3] }))
}

fn numbers(text: &str) -> Result<Vec<u64>> {
    let number = |field: &str| field.parse().with_context(|| format!("{field:?} is not a number"));
    text.split_whitespace().map(number).collect()
}
