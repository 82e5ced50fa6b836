//! Where Hoist loses: every row in which it is worse than the kernel, as is or tuned.

use super::{
    document::{Document, Row},
    number,
    stats::{Verdict, verdict},
};

const RIVALS: [&str; 2] = ["kernel", "kernel-tuned"];

/// A heading and a line for each; one sentence when there is none.
pub(crate) fn of(document: &Document) -> Vec<String> {
    let hoist = || document.rows.iter().filter(|row| row.side == "hoist");
    let lost: Vec<String> = hoist().flat_map(|row| lines(document, row)).collect();
    match (hoist().count(), lost.is_empty()) {
        (0, _) => vec!["hoist was not measured in this run".into()],
        (_, true) => vec!["hoist loses nowhere in this run".into()],
        (_, false) => std::iter::once("hoist loses:".into()).chain(lost).collect(),
    }
}

fn lines(document: &Document, row: &Row) -> Vec<String> {
    let rival = |side: &&str| {
        let same = |other: &&Row| other.is_of(&row.bench, side, row.point.as_ref(), &row.metric);
        document.rows.iter().find(same).filter(|rival| row.is_worse(rival))
    };
    RIVALS.iter().filter_map(rival).map(|rival| line(row, rival)).collect()
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
    format!("  {}{point}, {}: {hoist} against {other} of {}{doubt}", row.bench, row.metric, rival.side)
}
