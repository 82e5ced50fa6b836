//! Samples, what they come to, and how that is shown.

use super::{
    plan::Plan,
    side::{Side, Trial},
};
use serde::Serialize;
use std::fs;

/// Everything a run found out, as stored.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) machine: Machine,
    pub(crate) plan: Plan,
    pub(crate) lossless: Vec<Lossless>,
    pub(crate) overload: Vec<Overload>,
    pub(crate) pass_cost: Vec<PassPair>,
    pub(crate) summary: Summary,
}

impl Report {
    /// Trials that others disturbed although they were taken again, and all trials.
    fn disturbed(&self) -> (usize, usize) {
        let pairs = self.pass_cost.iter().flat_map(|pair| [&pair.without, &pair.with]);
        let searched = self.lossless.iter().flat_map(|search| &search.trials);
        let all: Vec<_> = searched.chain(self.overload.iter().map(|one| &one.trial)).chain(pairs).collect();
        let tolerated = self.plan.tolerated_foreign_ns;
        (all.iter().filter(|trial| trial.foreign_ns > tolerated).count(), all.len())
    }
}

/// One search for the highest loss-free rate.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Lossless {
    pub(crate) side: Side,
    pub(crate) pps: f64,
    /// True when the wire, not the receiver, ended the search.
    pub(crate) wire_limited: bool,
    pub(crate) trials: Vec<Trial>,
}

/// One trial at a stated offered rate.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Overload {
    pub(crate) side: Side,
    pub(crate) trial: Trial,
}

/// The same load on a port nobody lifts, without and with Hoist on the device.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct PassPair {
    pub(crate) without: Trial,
    pub(crate) with: Trial,
}

impl PassPair {
    fn ratio(&self) -> f64 {
        self.with.ns_per_packet() / self.without.ns_per_packet()
    }
}

/// Where the figures come from.
#[derive(Debug, Serialize)]
pub(crate) struct Machine {
    command: String,
    commit: String,
    kernel: String,
    cpu: String,
    cpus: usize,
    unix_time: u64,
}

impl Machine {
    pub(crate) fn here() -> Self {
        let args: Vec<_> = std::env::args().collect();
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        Self {
            command: args.join(" "),
            commit: commit(),
            kernel: read("/proc/sys/kernel/osrelease"),
            cpu: cpu_model(),
            cpus: read("/proc/cpuinfo").lines().filter(|line| line.starts_with("processor")).count(),
            unix_time: since.map_or(0, |since| since.as_secs()),
        }
    }

    fn line(&self) -> String {
        format!("Linux {}, {} x {}, commit {}", self.kernel, self.cpus, self.cpu, self.commit)
    }
}

fn read(path: &str) -> String {
    fs::read_to_string(path).map_or_else(|_| "unknown".into(), |text| text.trim().into())
}

fn cpu_model() -> String {
    let info = read("/proc/cpuinfo");
    let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    model.map_or_else(|| "unknown".into(), |(_, model)| model.into())
}

fn commit() -> String {
    let output = std::process::Command::new("git").args(["describe", "--always", "--dirty"]).output();
    match output {
        Ok(output) if output.status.success() => String::from_utf8_lossy(&output.stdout).trim().into(),
        _ => "unknown".into(),
    }
}

/// Median, least and most.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

impl Spread {
    /// None of no samples.
    pub(crate) fn of(samples: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut sorted: Vec<f64> = samples.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let (&min, &max) = (sorted.first()?, sorted.last()?);
        let middle = sorted.len() / 2;
        let median =
            if sorted.len() % 2 == 1 { sorted[middle] } else { (sorted[middle - 1] + sorted[middle]) / 2.0 };
        Some(Self { median, min, max })
    }

    fn show(&self, unit: f64) -> String {
        format!("{:6.3} ({:.3} to {:.3})", self.median / unit, self.min / unit, self.max / unit)
    }
}

/// What the samples come to.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Summary {
    lossless_pps: Vec<(Side, Spread)>,
    overload_pps: Vec<(f64, Side, Spread)>,
    pass_ns_without: Option<Spread>,
    pass_ns_with: Option<Spread>,
    pass_ratio: Option<Spread>,
}

impl Summary {
    pub(crate) fn of(lossless: &[Lossless], overload: &[Overload], pairs: &[PassPair]) -> Self {
        let found = |side| lossless.iter().filter(move |one| one.side == side).map(|one| one.pps);
        let mut rates: Vec<f64> = overload.iter().map(|one| one.trial.asked_pps).collect();
        rates.sort_by(f64::total_cmp);
        rates.dedup();
        let goodput = |rate: f64, side| {
            let those = overload.iter().filter(move |one| one.side == side && one.trial.asked_pps == rate);
            Some((rate, side, Spread::of(those.map(|one| one.trial.goodput_pps))?))
        };
        Self {
            lossless_pps: Side::ALL
                .iter()
                .filter_map(|side| Some((*side, Spread::of(found(*side))?)))
                .collect(),
            overload_pps: rates
                .iter()
                .flat_map(|rate| Side::ALL.iter().filter_map(move |side| goodput(*rate, *side)))
                .collect(),
            pass_ns_without: Spread::of(pairs.iter().map(|pair| pair.without.ns_per_packet())),
            pass_ns_with: Spread::of(pairs.iter().map(|pair| pair.with.ns_per_packet())),
            pass_ratio: Spread::of(pairs.iter().map(PassPair::ratio)),
        }
    }

    fn lossless(&self, side: Side) -> Option<Spread> {
        self.lossless_pps.iter().find(|(of, _)| *of == side).map(|(_, spread)| *spread)
    }

    fn overload(&self, rate: f64, side: Side) -> Option<Spread> {
        self.overload_pps.iter().find(|(at, of, _)| *at == rate && *of == side).map(|(_, _, spread)| *spread)
    }
}

/// The table for people: median (least to most), and the ratio to the kernel's median.
pub(crate) fn table(report: &Report) -> String {
    let Report { machine, plan, summary, .. } = report;
    let mut lines = vec![
        machine.line(),
        format!(
            "{}-byte frames, {} flow(s), {} x {} ms a trial, CPU {} sends, CPU {} receives; median (least to most)",
            plan.frame_len, plan.flows, plan.repeats, plan.trial_ms, plan.wire_cpu, plan.host_cpu
        ),
    ];
    lines.extend(SIDES.map(String::from));
    if !summary.lossless_pps.is_empty() {
        let lost = plan.tolerated_loss * 100.0;
        lines.extend([String::new(), format!("udp-lossless: highest rate with at most {lost} % lost, Mpps")]);
    }
    for (side, spread) in &summary.lossless_pps {
        lines.push(row(side.name(), spread, summary.lossless(Side::Kernel), 1e6));
    }
    if !summary.overload_pps.is_empty() {
        lines.extend([String::new(), "udp-overload: goodput at an offered rate, Mpps".into()]);
    }
    for (rate, side, spread) in &summary.overload_pps {
        let name = format!("{:.2} {}", rate / 1e6, side.name());
        lines.push(row(&name, spread, summary.overload(*rate, Side::Kernel), 1e6));
    }
    if let (Some(without), Some(with), Some(ratio)) =
        (&summary.pass_ns_without, &summary.pass_ns_with, &summary.pass_ratio)
    {
        lines.extend([
            String::new(),
            format!("pass-cost: CPU ns a datagram that passes, at {:.2} Mpps", plan.pass_pps / 1e6),
            format!("  {:18} {}", "without hoist", without.show(1.0)),
            format!("  {:18} {}", "with hoist", with.show(1.0)),
            format!("  {:18} {}", "ratio of pairs", ratio.show(1.0)),
        ]);
    }
    let (disturbed, all) = report.disturbed();
    if disturbed > 0 {
        lines.push(format!(
            "\n{disturbed} of {all} trials were disturbed by other programs: run it on a quiet machine"
        ));
    }
    lines.join("\n")
}

/// What the sides are, under the table's head.
const SIDES: [&str; 2] = [
    "kernel and hoist run the program as is: nice 0, default SO_RCVBUF. kernel-tuned gives it 4 MiB of SO_RCVBUF, and it",
    "and NAPI nice -20, the best found for the kernel. limit is a raw AF_XDP sink.",
];

fn row(name: &str, spread: &Spread, base: Option<Spread>, unit: f64) -> String {
    let ratio = base.map(|base| format!("{:6.2} x kernel", spread.median / base.median));
    format!("  {name:18} {:28} {}", spread.show(unit), ratio.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_is_median_least_and_most_in_any_order() {
        assert_eq!(Spread::of([3.0, 1.0, 2.0]), Some(Spread { median: 2.0, min: 1.0, max: 3.0 }));
        assert_eq!(Spread::of([4.0, 1.0, 2.0, 3.0]), Some(Spread { median: 2.5, min: 1.0, max: 4.0 }));
        assert_eq!(Spread::of([]), None);
    }

    fn trial(asked_pps: f64, goodput_pps: f64, ns: u64) -> Trial {
        let (sent, received) = (1000, 1000);
        Trial {
            asked_pps,
            sent_pps: asked_pps,
            sent,
            received,
            reordered: 0,
            goodput_pps,
            program_ns: ns * 600,
            napi_ns: ns * 400,
            foreign_ns: 0,
        }
    }

    #[test]
    fn the_ratio_of_pass_cost_is_taken_pair_by_pair() {
        let pairs = [(100, 104), (300, 309), (200, 210)]
            .map(|(a, b)| PassPair { without: trial(1.0, 1.0, a), with: trial(1.0, 1.0, b) });
        let summary = Summary::of(&[], &[], &pairs);
        let ratio = summary.pass_ratio.unwrap();
        assert!((ratio.median - 1.04).abs() < 1e-9 && (ratio.max - 1.05).abs() < 1e-9, "{ratio:?}");
    }

    #[test]
    fn goodput_is_kept_apart_by_rate_and_side() {
        let one = |side, rate, goodput| Overload { side, trial: trial(rate, goodput, 1) };
        let samples = [one(Side::Kernel, 2e6, 1e5), one(Side::Hoist, 2e6, 1e6), one(Side::Kernel, 1e6, 9e5)];
        let summary = Summary::of(&[], &samples, &[]);
        assert_eq!(summary.overload(2e6, Side::Hoist).unwrap().median, 1e6);
        assert_eq!(summary.overload(1e6, Side::Hoist), None);
        assert_eq!(summary.overload_pps.len(), 3);
    }
}
