//! What the demo prints: pure.

use super::{
    Found,
    dns::{Answered, Round},
    flood::{OFFERED_PPS, Row},
};
use crate::bench::trial::Trial;

pub(super) const HEAD: &str = "\
Two network namespaces joined by a veth pair: one is the wire, the other the host. The same program runs
plain and under `hoist run`; nothing in it is changed. This takes about a minute.";

pub(super) const FLOOD_HEAD: &str = "
1. A UDP receiver: one thread in a blocking recvfrom loop, on one CPU with its device's NAPI
   received, Mpps, and lost, of what is offered

    offered   plain                                  under hoist run";

pub(super) const DNS_HEAD: &str = "
2. A DNS server: knotd, loaded by dnsperf for 2 s each

    round     plain                                  under hoist run";

pub(super) fn flood_row(row: &Row) -> String {
    let offered = row.offered_pps / 1e6;
    format!("  {offered:5.2} Mpps  {}   {}", flood_side(&row.plain), flood_side(&row.hoisted))
}

fn flood_side(trial: &Trial) -> String {
    let most = OFFERED_PPS.iter().copied().fold(0.0, f64::max);
    let lost = format!("{:.1} %", trial.loss() * 100.0);
    format!("{:5.2} {lost:>7} {}", trial.goodput_pps / 1e6, bar(trial.goodput_pps / most))
}

const BAR: usize = 22;

/// Of a fraction.
fn bar(fraction: f64) -> String {
    let full = (fraction.clamp(0.0, 1.0) * BAR as f64).round() as usize;
    "█".repeat(full) + &"·".repeat(BAR - full)
}

pub(super) fn dns_row(number: usize, round: &Round) -> String {
    format!("  {number:5}       {:37}  {}", dns_side(&round.plain), dns_side(&round.hoisted))
}

fn dns_side(answered: &Answered) -> String {
    let lifted = answered.counted().map(|counted| format!(", {:.1} % lifted", counted.share_lifted()));
    let per_second = answered.queries_per_second;
    format!("{per_second:7.0} answers/s, {} lost{}", answered.lost, lifted.unwrap_or_default())
}

/// What it comes to, and where to read on.
pub(super) fn end(found: &Found) -> String {
    let counted = &found.hoisted;
    [
        dns_verdict(&found.dns),
        "   dnsperf and the server share two CPUs here, so this is no capacity; and each query of a kernel sender on veth".into(),
        "   is copied once more before native XDP sees it, which a network card does not do.".into(),
        String::new(),
        flood_verdict(&found.udp),
        format!(
            "Under hoist run, {} datagrams were lifted and {} passed through the kernel ({:.2} % lifted), {} frames \
             leaked; XDP {}, {} mode.",
            grouped(counted.lifted),
            grouped(counted.passed),
            counted.share_lifted(),
            counted.leaked_frames,
            counted.xdp,
            counted.mode
        ),
        String::new(),
        format!("Figures and two flame graphs, where the receiving CPU's time goes plain and hoisted: {}", page(found)),
        String::new(),
        "Next:  hoist doctor            what this machine can do, and what would mend the rest".into(),
        "       hoist bench             the same question measured with care, against a tuned kernel too".into(),
        "       hoist run -- PROGRAM    your own server".into(),
        "       SPEC.md                 what holds, with figures and their commands".into(),
    ]
    .join("\n")
}

fn page(found: &Found) -> String {
    found.report.as_ref().map(|path| path.display().to_string()).unwrap_or_default()
}

fn flood_verdict(rows: &[Row]) -> String {
    let Some(row) = rows.last() else { return String::new() };
    let (plain, hoisted) = (row.plain.goodput_pps, row.hoisted.goodput_pps);
    format!(
        "At {:.2} Mpps offered the plain receiver got {:.2} Mpps, the hoisted one {:.2}: {:.1} times.",
        row.offered_pps / 1e6,
        plain / 1e6,
        hoisted / 1e6,
        hoisted / plain.max(1.0)
    )
}

/// Says who won, and that nobody did when the difference is within a twentieth.
fn dns_verdict(rounds: &[Round]) -> String {
    let ratio =
        median(rounds.iter().map(|round| round.hoisted.queries_per_second / round.plain.queries_per_second));
    let who = match ratio {
        ratio if ratio > 1.05 => "hoisted answers more",
        ratio if ratio < 0.95 => "plain answers more",
        _ => "no difference worth the name",
    };
    format!("   hoisted : plain = {ratio:.2} (median of the rounds): {who}.")
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut sorted: Vec<f64> = values.collect();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

/// With a comma every three digits.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let groups: Vec<_> = digits.as_bytes().rchunks(3).rev().map(String::from_utf8_lossy).collect();
    groups.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_is_as_full_as_its_fraction_and_always_as_long() {
        let full = |fraction| bar(fraction).chars().filter(|c| *c == '█').count();
        assert_eq!([full(0.0), full(0.5), full(1.0), full(7.0)], [0, BAR / 2, BAR, BAR]);
        assert_eq!(bar(0.3).chars().count(), BAR);
    }

    fn rounds(hoisted: f64) -> Vec<Round> {
        let side = |queries_per_second| Answered { queries_per_second, sent: 1, lost: 0, counted: None };
        vec![Round { plain: side(100.0), hoisted: side(hoisted) }]
    }

    #[test]
    fn the_verdict_names_the_plain_server_when_it_wins() {
        assert!(dns_verdict(&rounds(80.0)).contains("plain answers more"));
        assert!(dns_verdict(&rounds(120.0)).contains("hoisted answers more"));
        assert!(dns_verdict(&rounds(103.0)).contains("no difference"));
    }

    #[test]
    fn numbers_are_grouped_by_three_digits() {
        assert_eq!(
            [grouped(0), grouped(999), grouped(1000), grouped(12_345_678)],
            ["0", "999", "1,000", "12,345,678"]
        );
    }
}
