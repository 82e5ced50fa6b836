//! A report as text, at most 80 columns wide unless a count needs more. Pure.

use super::rates::{CpuRates, DeviceRates, NapiRates, Report};
use std::fmt::Write;

const CPU_HEADER: &str = "cpu    packets dropped squeeze     rps flimit  in-q proc-q hi% si%   rx/s ipi/s";

/// What is wrong comes first, so that a small screen has it.
pub(super) fn text(report: &Report) -> String {
    let mut out = String::new();
    write(&mut out, report).unwrap_or_default(); // a String takes everything
    out
}

fn write(out: &mut String, report: &Report) -> std::fmt::Result {
    writeln!(out, "hoist top: rates over {:.1} s", report.interval_s)?;
    report.findings.iter().try_for_each(|finding| writeln!(out, "! {finding}"))?;
    writeln!(out, "{CPU_HEADER}")?;
    report.cpus.iter().try_for_each(|cpu| write_cpu(out, cpu))?;
    let polled: Vec<_> = report.cpus.iter().filter_map(|cpu| Some((cpu.cpu, cpu.napi.as_ref()?))).collect();
    if !polled.is_empty() {
        writeln!(out, "{:<16} {:>12} {:>14} {:>10}", "napi on cpu", "polls/s", "packets/poll", "full/s")?;
    }
    polled.iter().try_for_each(|(cpu, napi)| write_napi(out, *cpu, napi))?;
    writeln!(out, "{:<16} {:>12} {:>14} {:>10}", "device", "packets/s", "bytes/s", "dropped/s")?;
    report.devices.iter().try_for_each(|device| write_device(out, device))
}

fn write_cpu(out: &mut String, c: &CpuRates) -> std::fmt::Result {
    write!(out, "{:>3} {:>10} {:>7} {:>7} ", c.cpu, c.processed, c.dropped, c.time_squeeze)?;
    write!(out, "{:>7} {:>6} ", c.received_rps, c.flow_limit_count)?;
    write!(out, "{:>5} {:>6} ", shown(c.input_qlen), shown(c.process_qlen))?;
    write!(out, "{:>3} {:>3} ", c.irq_percent, c.softirq_percent)?;
    writeln!(out, "{:>6} {:>5}", shown(c.net_rx), shown(c.function_call_ipis))
}

fn write_napi(out: &mut String, cpu: u32, napi: &NapiRates) -> std::fmt::Result {
    writeln!(out, "{cpu:<16} {:>12} {:>14.1} {:>10}", napi.polls, napi.work_per_poll, napi.full)
}

fn write_device(out: &mut String, d: &DeviceRates) -> std::fmt::Result {
    writeln!(out, "{:<16} {:>12} {:>14} {:>10}", d.name, d.packets, d.bytes, d.dropped)
}

/// `-` for what the kernel does not show.
fn shown<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(|| "-".into(), |value| value.to_string())
}
