//! Two samples to rates, and rates to findings. Pure.

use super::sample::{Device, Sample, Softnet};
use hoist_broker::napi::Polls;
use serde::Serialize;

/// What happened in an interval.
#[derive(Debug, PartialEq, Serialize)]
pub(super) struct Report {
    pub(super) interval_s: f64,
    pub(super) cpus: Vec<CpuRates>,
    pub(super) devices: Vec<DeviceRates>,
    pub(super) findings: Vec<String>,
}

/// A CPU: events a second, lengths at the end of the interval, share of the interval in percent.
#[derive(Debug, PartialEq, Serialize)]
pub(super) struct CpuRates {
    pub(super) cpu: u32,
    pub(super) processed: u64,
    pub(super) dropped: u64,
    pub(super) time_squeeze: u64,
    pub(super) received_rps: u64,
    pub(super) flow_limit_count: u64,
    pub(super) input_qlen: Option<u32>,
    pub(super) process_qlen: Option<u32>,
    pub(super) irq_percent: u64,
    pub(super) softirq_percent: u64,
    pub(super) net_rx: Option<u64>,
    pub(super) function_call_ipis: Option<u64>,
    pub(super) napi: Option<NapiRates>,
}

/// NAPI polls of a CPU, events a second.
#[derive(Debug, PartialEq, Serialize)]
pub(super) struct NapiRates {
    pub(super) polls: u64,
    /// Packets of a poll, mean.
    pub(super) work_per_poll: f64,
    /// Polls that used up their budget.
    pub(super) full: u64,
}

/// A device: events a second.
#[derive(Debug, PartialEq, Serialize)]
pub(super) struct DeviceRates {
    pub(super) name: String,
    pub(super) packets: u64,
    pub(super) bytes: u64,
    pub(super) dropped: u64,
}

/// CPUs and devices of both samples; what came meanwhile has no rate yet.
pub(super) fn report(before: &Sample, after: &Sample, seconds: f64) -> Report {
    let both = |(cpu, new): (&u32, &Softnet)| {
        Some(cpu_rates(*cpu, before.softnet.get(cpu)?, new, before, after, seconds))
    };
    let cpus: Vec<_> = after.softnet.iter().filter_map(both).collect();
    let both =
        |(name, new): (&String, &Device)| Some(device_rates(name, before.devices.get(name)?, new, seconds));
    let devices: Vec<_> = after.devices.iter().filter_map(both).collect();
    let findings =
        cpus.iter().flat_map(cpu_findings).chain(devices.iter().filter_map(device_finding)).collect();
    Report { interval_s: (seconds * 1000.0).round() / 1000.0, cpus, devices, findings }
}

fn cpu_rates(
    cpu: u32,
    old: &Softnet,
    new: &Softnet,
    before: &Sample,
    after: &Sample,
    seconds: f64,
) -> CpuRates {
    let wrapped = |old: u32, new: u32| rate(u64::from(new.wrapping_sub(old)), seconds);
    let counted = |old: Option<&u64>, new: Option<&u64>| Some(rate(new?.saturating_sub(*old?), seconds));
    let (was, is) = (before.times.get(&cpu), after.times.get(&cpu));
    // A tick is a hundredth of a second: ticks a second are percent.
    let percent = |old: Option<u64>, new: Option<u64>| match (old, new) {
        (Some(old), Some(new)) => rate(new.saturating_sub(old), seconds),
        _ => 0,
    };
    CpuRates {
        cpu,
        processed: wrapped(old.processed, new.processed),
        dropped: wrapped(old.dropped, new.dropped),
        time_squeeze: wrapped(old.time_squeeze, new.time_squeeze),
        received_rps: wrapped(old.received_rps, new.received_rps),
        flow_limit_count: wrapped(old.flow_limit_count, new.flow_limit_count),
        input_qlen: new.input_qlen,
        process_qlen: new.process_qlen,
        irq_percent: percent(was.map(|t| t.irq_ticks), is.map(|t| t.irq_ticks)),
        softirq_percent: percent(was.map(|t| t.softirq_ticks), is.map(|t| t.softirq_ticks)),
        net_rx: counted(before.net_rx.get(&cpu), after.net_rx.get(&cpu)),
        function_call_ipis: counted(before.calls.get(&cpu), after.calls.get(&cpu)),
        napi: napi_rates(before.napi.get(&cpu), after.napi.get(&cpu), seconds),
    }
}

fn napi_rates(old: Option<&Polls>, new: Option<&Polls>, seconds: f64) -> Option<NapiRates> {
    let (old, new) = (old?, new?);
    let since = |of: fn(&Polls) -> u64| of(new).saturating_sub(of(old));
    let (polls, work) = (since(|p| p.polls), since(|p| p.work));
    let work_per_poll = (work as f64 / polls.max(1) as f64 * 10.0).round() / 10.0;
    Some(NapiRates { polls: rate(polls, seconds), work_per_poll, full: rate(since(|p| p.full), seconds) })
}

fn device_rates(name: &str, old: &Device, new: &Device, seconds: f64) -> DeviceRates {
    let since = |old: u64, new: u64| rate(new.saturating_sub(old), seconds);
    DeviceRates {
        name: name.into(),
        packets: since(old.packets, new.packets),
        bytes: since(old.bytes, new.bytes),
        dropped: since(old.dropped, new.dropped),
    }
}

/// Rounded up: what happened at all is never 0.
fn rate(events: u64, seconds: f64) -> u64 {
    (events as f64 / seconds).ceil() as u64
}

fn cpu_findings(cpu: &CpuRates) -> Vec<String> {
    let troubles = [
        (cpu.dropped, "dropped", "backlog full: raise net.core.netdev_max_backlog"),
        (cpu.time_squeeze, "time_squeeze", "budget used up: see net.core.netdev_budget{,_usecs}"),
        (cpu.flow_limit_count, "flow_limit", "one flow fills the backlog: spread it, or lift the limit"),
    ];
    let rising = troubles.into_iter().filter(|(rate, ..)| *rate > 0);
    rising.map(|(rate, name, why)| format!("cpu{} {name} {rate}/s: {why}", cpu.cpu)).collect()
}

fn device_finding(device: &DeviceRates) -> Option<String> {
    let DeviceRates { name, dropped, .. } = device;
    (*dropped > 0).then(|| format!("{name} dropped {dropped}/s: ring full, or nobody wants the protocol"))
}

#[cfg(test)]
mod tests {
    use super::super::{render, sample};
    use super::*;

    const ZEROS: &str = "00000000 00000000 00000000 00000000 00000000 00000000";

    fn line(processed: &str, squeeze: &str) -> String {
        format!(
            "{processed} 00000000 {squeeze} {ZEROS} 00000000 00000000 00000003 00000001 00000002 00000001\n"
        )
    }

    fn made_up(softnet: &str, packets: u64, ticks: u64) -> Sample {
        let device = format!("a\nb\n eth0: {0}00 {0} 0 0 0 0 0 0 0 0 0 0 0 0 0 0\n", packets);
        Sample {
            softnet: sample::softnet(softnet).unwrap(),
            times: sample::times(&format!("cpu 1 2\ncpu1 0 0 0 0 0 0 {ticks} 0 0 0\n")).unwrap(),
            net_rx: sample::per_cpu(&format!(" CPU1\nNET_RX: {packets}\n"), "NET_RX").unwrap(),
            calls: sample::per_cpu(" CPU1\nNET_RX: 1\n", "CAL").unwrap(),
            devices: sample::devices(&device).unwrap(),
            napi: [(1, Polls { polls: packets / 4, work: packets, full: ticks })].into(),
        }
    }

    fn golden() -> Report {
        let before = made_up(&line("ffffffff", "00000000"), 10, 100);
        report(&before, &made_up(&line("000007cf", "00000004"), 2010, 140), 2.0)
    }

    #[test]
    fn known_samples_give_exactly_this_text() {
        assert_eq!(render::text(&golden()), include_str!("golden.txt"));
    }

    #[test]
    fn known_samples_give_exactly_this_json() {
        assert_eq!(serde_json::to_string(&golden()).unwrap() + "\n", include_str!("golden.json"));
    }

    #[test]
    fn garbage_and_truncated_input_is_an_error() {
        assert!(sample::softnet("").is_err());
        assert!(sample::softnet("00000001 0000").is_err());
        assert!(sample::softnet(&line("xyz", "0")).is_err());
        assert!(sample::times("cpu0 1 2 3\n").is_err());
        assert!(sample::per_cpu("CPU0 CPU1\nCAL: 1\n", "CAL").is_err());
        assert!(sample::devices("a\nb\neth0: 1 2\n").is_err());
    }
}
