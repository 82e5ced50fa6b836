//! Where Hoist loses: every row in which it is worse than another side. The limit is no rival, nor is Hoist run in another way.

use super::{
    document::{Document, Row},
    number,
    side::is_hoist,
    stats::{Verdict, verdict},
};

/// A heading and a line for each; one sentence when there is none.
pub(crate) fn of(document: &Document) -> Vec<String> {
    // ratios say again what other rows say
    let hoist = || document.rows.iter().filter(|row| is_hoist(&row.side) && row.unit != "x");
    let lost: Vec<String> = hoist().flat_map(|row| lines(document, row)).collect();
    match (hoist().count(), lost.is_empty()) {
        (0, _) => vec!["hoist was not measured in this run".into()],
        (_, true) => vec!["hoist loses nowhere in this run".into()],
        (_, false) => std::iter::once("hoist loses:".into()).chain(lost).collect(),
    }
}

fn lines(document: &Document, row: &Row) -> Vec<String> {
    let is_rival = |other: &&Row| {
        !is_hoist(&other.side)
            && other.side != "limit"
            && other.is_of(&row.bench, &other.side, row.point.as_ref(), &row.metric)
    };
    let better = document.rows.iter().filter(is_rival).filter(|rival| row.is_worse(rival));
    better.map(|rival| line(row, rival)).collect()
}

fn line(row: &Row, rival: &Row) -> String {
    let point = row
        .point
        .as_ref()
        .map(|point| format!(", {} {}", point.name, number::with_unit(point.value, &point.unit)));
    let doubt = match verdict(&row.samples, &rival.samples) {
        Verdict::Differ => "",
        Verdict::Noise => " (within the noise)",
        Verdict::TooFew => " (too few samples to be sure)",
    };
    let unit = |value| number::with_unit(value, &row.unit);
    let (hoist, other) = (unit(row.median), unit(rival.median));
    let point = point.unwrap_or_default();
    let who = if row.side == "hoist" { String::new() } else { format!(", {}", row.side) };
    format!("  {}{who}{point}, {}: {hoist} against {other} of {}{doubt}", row.bench, row.metric, rival.side)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::made_up;

    #[test]
    fn hoist_run_in_another_way_loses_to_others_but_is_no_rival() {
        let mut run = made_up::document();
        run.rows.retain(|row| row.bench == "udp-lossless");
        let is_tuned = |row: &&mut Row| row.side == "kernel-tuned";
        let mut slow = run.rows.iter().find(|row| row.side == "kernel").unwrap().clone();
        slow.side = "hoist-slow".into();
        run.rows.push(slow);
        run.rows.iter_mut().filter(is_tuned).for_each(|row| made_up::times(row, 1.01));
        let lines = of(&run);
        assert_eq!(lines.len(), 2, "{lines:?}");
        assert!(lines[1].contains("hoist-slow") && lines[1].contains("of kernel-tuned"), "{lines:?}");
    }

    #[test]
    fn a_peer_is_a_rival_and_the_limit_is_none() {
        let mut run = made_up::document();
        run.rows.retain(|row| row.bench == "udp-lossless");
        assert_eq!(of(&run), ["hoist loses nowhere in this run"]);
        run.rows.iter_mut().filter(|row| row.side == "limit").for_each(|row| row.side = "testpmd".into());
        let lines = of(&run);
        assert_eq!(lines.len(), 2);
        assert!(lines[1].contains("of testpmd"), "{lines:?}");
    }
}
