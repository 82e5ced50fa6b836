//! Shares of stages and functions. Pure.

use super::{
    fold::Folded,
    stage::{self, KERNEL_MARK, Stage},
};
use serde::Serialize;
use std::{collections::BTreeMap, fmt::Write};

/// What else is known of the time in which samples were taken.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(super) struct Facts {
    pub(super) seconds: f64,
    /// Samples a second and CPU.
    pub(super) hz: u64,
    pub(super) cpus: usize,
    /// Samples of other programs' own code, left out.
    pub(super) elsewhere: u64,
    /// Records that found no room.
    pub(super) lost: u64,
    /// Times that the kernel took fewer samples.
    pub(super) throttled: u64,
    /// Received by devices meanwhile.
    pub(super) packets: u64,
    pub(super) bytes: u64,
    /// What could not be seen, and why.
    pub(super) notes: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Report {
    /// Idle ones left out.
    pub(super) samples: u64,
    pub(super) idle: u64,
    #[serde(flatten)]
    pub(super) facts: Facts,
    pub(super) stages: Vec<Share>,
    pub(super) functions: Vec<Function>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Share {
    pub(super) stage: Stage,
    pub(super) samples: u64,
    /// Of all that are not idle.
    pub(super) share: f64,
    /// CPU time for each packet received; none without packets or without a rate.
    pub(super) ns_per_packet: Option<f64>,
    pub(super) ns_per_byte: Option<f64>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Function {
    pub(super) name: String,
    pub(super) stage: Stage,
    /// In which it was innermost.
    pub(super) samples: u64,
    pub(super) share: f64,
}

/// Functions that are listed.
const FUNCTIONS: usize = 20;

/// Takes idle stacks out; how many samples they had.
pub(super) fn without_idle(folded: &mut Folded) -> u64 {
    let before = folded.samples();
    folded.0.retain(|stack, _| stage::of_stack(stack) != Stage::Idle);
    before - folded.samples()
}

pub(super) fn report(folded: &Folded, idle: u64, facts: Facts) -> Report {
    let samples = folded.samples();
    let (mut stages, mut functions) = (BTreeMap::<Stage, u64>::new(), BTreeMap::<(&str, Stage), u64>::new());
    for (stack, count) in &folded.0 {
        let stage = stage::of_stack(stack);
        *stages.entry(stage).or_default() += count;
        if let Some(innermost) = stack.last() {
            *functions.entry((innermost, stage)).or_default() += count;
        }
    }
    let share = |count: u64| count as f64 / samples.max(1) as f64;
    let each = |count: u64, of: u64| {
        (of > 0 && facts.hz > 0).then(|| count as f64 * 1e9 / facts.hz as f64 / of as f64)
    };
    let stages = Stage::ALL.into_iter().filter_map(|stage| Some((stage, *stages.get(&stage)?)));
    let stages = stages.map(|(stage, samples)| Share {
        stage,
        samples,
        share: share(samples),
        ns_per_packet: each(samples, facts.packets),
        ns_per_byte: each(samples, facts.bytes),
    });
    let stages = stages.collect();
    let mut functions: Vec<Function> = functions
        .into_iter()
        .map(|((name, stage), samples)| Function { name: name.into(), stage, samples, share: share(samples) })
        .collect();
    functions.sort_by(|a, b| b.samples.cmp(&a.samples).then_with(|| a.name.cmp(&b.name)));
    functions.truncate(FUNCTIONS);
    Report { samples, idle, facts, stages, functions }
}

impl Report {
    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        let Facts { seconds, hz, cpus, elsewhere, lost, throttled, packets, bytes, ref notes } = self.facts;
        let _ = write!(text, "{} samples", self.samples);
        if hz > 0 {
            let _ = write!(text, " in {seconds:.1} s on {cpus} CPUs, {hz} a second each");
        }
        if self.idle > 0 {
            let _ = write!(text, "; {} idle", self.idle);
        }
        if elsewhere > 0 {
            let _ = write!(text, ", {elsewhere} in other programs");
        }
        let _ = writeln!(
            text,
            "{}",
            if packets > 0 { format!("; {packets} packets, {bytes} bytes received") } else { String::new() }
        );
        if lost + throttled > 0 {
            let _ = writeln!(
                text,
                "{lost} lost for want of room, {throttled} times fewer were taken (throttled)"
            );
        }
        notes.iter().for_each(|note| {
            let _ = writeln!(text, "not shown: {note}");
        });
        let _ = writeln!(text, "\n{:<24}{:>9}{:>14}{:>12}", "stage", "share", "ns/packet", "ns/byte");
        for share in &self.stages {
            let number = |n: Option<f64>, places| n.map_or_else(|| "-".into(), |n| format!("{n:.places$}"));
            let (packet, byte) = (number(share.ns_per_packet, 0), number(share.ns_per_byte, 3));
            let _ = writeln!(
                text,
                "{:<24}{:>8.1}%{packet:>14}{byte:>12}",
                share.stage.name(),
                100.0 * share.share
            );
        }
        let _ = writeln!(text, "\n{:<44}{:<24}{:>9}", "function", "stage", "share");
        for function in &self.functions {
            let name = function.name.strip_suffix(KERNEL_MARK).unwrap_or(&function.name);
            let name: String = name.chars().take(42).collect();
            let _ = writeln!(text, "{name:<44}{:<24}{:>8.1}%", function.stage.name(), 100.0 * function.share);
        }
        text
    }
}

/// Shares of stages before and after.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Change {
    pub(super) stage: Stage,
    pub(super) before: f64,
    pub(super) after: f64,
}

pub(super) fn changes(before: &Report, after: &Report) -> Vec<Change> {
    let share =
        |report: &Report, stage| report.stages.iter().find(|s| s.stage == stage).map_or(0.0, |s| s.share);
    let change = |stage| Change { stage, before: share(before, stage), after: share(after, stage) };
    Stage::ALL.into_iter().map(change).filter(|change| change.before + change.after > 0.0).collect()
}

pub(super) fn text_of(changes: &[Change]) -> String {
    let mut text = format!("{:<24}{:>9}{:>9}{:>9}\n", "stage", "before", "after", "change");
    for Change { stage, before, after } in changes {
        let percent = |share: f64| format!("{:.1}%", 100.0 * share);
        let _ = writeln!(
            text,
            "{:<24}{:>9}{:>9}{:>+8.1}%",
            stage.name(),
            percent(*before),
            percent(*after),
            100.0 * (after - before)
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampled() -> Report {
        let text = "a;main;net_rx_action_[k];ip_rcv_[k] 60\na;main 30\nsw;do_idle_[k] 100\na;main;recv_[k];udp_recvmsg_[k];_copy_to_iter_[k] 10\n";
        let mut folded = Folded::parse(text).unwrap();
        let idle = without_idle(&mut folded);
        let facts =
            Facts { seconds: 1.0, hz: 1000, cpus: 2, packets: 10_000, bytes: 1_000_000, ..Facts::default() };
        report(&folded, idle, facts)
    }

    #[test]
    fn shares_and_times_are_exact() {
        let report = sampled();
        assert_eq!((report.samples, report.idle), (100, 100));
        let rows: Vec<_> = report.stages.iter().map(|s| (s.stage, s.samples, s.ns_per_packet)).collect();
        let expected = [
            (Stage::Ip, 60, Some(6000.0)),
            (Stage::Copy, 10, Some(1000.0)),
            (Stage::Program, 30, Some(3000.0)),
        ];
        assert_eq!(rows, expected);
        assert_eq!(report.functions[0].name, "ip_rcv_[k]");
        assert_eq!(report.stages[0].ns_per_byte, Some(60.0));
    }

    #[test]
    fn the_table_is_as_it_is() {
        let text = sampled().text();
        let expected = [
            "100 samples in 1.0 s on 2 CPUs, 1000 a second each; 100 idle; 10000 packets, 1000000 bytes received",
            "",
            "stage                       share     ns/packet     ns/byte",
            "IP                          60.0%          6000      60.000",
            "copy                        10.0%          1000      10.000",
            "program                     30.0%          3000      30.000",
        ];
        let expected = expected.join("\n");
        assert!(text.starts_with(&expected), "{text}");
    }

    #[test]
    fn two_reports_are_compared_stage_by_stage() {
        let (before, mut after) = (sampled(), sampled());
        after.stages.remove(1);
        let changes = changes(&before, &after);
        assert_eq!(changes[1], Change { stage: Stage::Copy, before: 0.1, after: 0.0 });
        assert!(
            text_of(&changes).contains("copy                        10.0%     0.0%   -10.0%"),
            "{}",
            text_of(&changes)
        );
    }
}
