//! `hoist bench compare`: which differences between two runs are larger than the noise.

use super::{
    document::{Better, Document, Point, Row},
    number,
    stats::{RULE, Verdict, verdict},
};
use serde::Serialize;

/// What two runs have in common, and what differs.
#[derive(Debug, Serialize)]
pub(crate) struct Comparison {
    rule: &'static str,
    warnings: Vec<String>,
    rows: Vec<Pair>,
    only_a: Vec<String>,
    only_b: Vec<String>,
}

/// One row of both.
#[derive(Debug, PartialEq, Serialize)]
struct Pair {
    bench: String,
    side: String,
    point: Option<Point>,
    metric: String,
    unit: String,
    a: Side,
    b: Side,
    /// Of the medians; none from nothing.
    change_percent: Option<f64>,
    verdict: Change,
}

#[derive(Debug, PartialEq, Serialize)]
struct Side {
    median: f64,
    min: f64,
    max: f64,
    n: usize,
}

/// How the second run stands to the first.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Change {
    Better,
    Worse,
    /// It differs, in a metric that is no result of its own.
    Different,
    Noise,
    TooFew,
}

impl Change {
    fn of(a: &Row, b: &Row) -> Self {
        match (verdict(&a.samples, &b.samples), a.better) {
            (Verdict::TooFew, _) => Self::TooFew,
            (Verdict::Noise, _) => Self::Noise,
            (Verdict::Differ, Better::Neither) => Self::Different,
            (Verdict::Differ, Better::More) if b.median > a.median => Self::Better,
            (Verdict::Differ, Better::Less) if b.median < a.median => Self::Better,
            (Verdict::Differ, _) => Self::Worse,
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Better => "better",
            Self::Worse => "WORSE",
            Self::Different => "different",
            Self::Noise => "noise",
            Self::TooFew => "too few samples",
        }
    }
}

impl Side {
    fn of(row: &Row) -> Self {
        Self { median: row.median, min: row.min, max: row.max, n: row.samples.len() }
    }
}

impl Comparison {
    pub(crate) fn of(a: &Document, b: &Document) -> Self {
        let twin = |row: &Row| b.rows.iter().find(|other| other.is_same_as(row)).cloned();
        let pairs = a.rows.iter().filter_map(|row| Some(pair(row, &twin(row)?))).collect();
        let (rule, warnings) = (RULE, warnings(a, b));
        Self { rule, warnings, rows: pairs, only_a: missing(a, b), only_b: missing(b, a) }
    }

    /// For people.
    pub(crate) fn text(&self) -> String {
        let mut lines: Vec<String> =
            self.warnings.iter().map(|warning| format!("warning: {warning}")).collect();
        lines.push(format!("Rule: {}.", self.rule));
        lines.extend(aligned(self.rows.iter().map(cells)));
        lines.extend(self.only_a.iter().map(|row| format!("only in the first: {row}")));
        lines.extend(self.only_b.iter().map(|row| format!("only in the second: {row}")));
        lines.push(self.sum());
        lines.join("\n")
    }

    fn sum(&self) -> String {
        let count = |of| self.rows.iter().filter(|row| row.verdict == of).count();
        let tested = self.rows.len() - count(Change::TooFew);
        let [better, worse, different] = [Change::Better, Change::Worse, Change::Different].map(count);
        format!(
            "{} rows in both: {better} better, {worse} worse, {different} different in parts, {} noise, {} with too few samples. \
             By chance alone about one in twenty differs: {} of {tested}.",
            self.rows.len(),
            count(Change::Noise),
            count(Change::TooFew),
            tested.div_ceil(20)
        )
    }
}

fn pair(a: &Row, b: &Row) -> Pair {
    Pair {
        bench: a.bench.clone(),
        side: a.side.clone(),
        point: a.point.clone(),
        metric: a.metric.clone(),
        unit: a.unit.clone(),
        a: Side::of(a),
        b: Side::of(b),
        change_percent: (a.median != 0.0).then(|| (b.median / a.median - 1.0) * 100.0),
        verdict: Change::of(a, b),
    }
}

fn missing(from: &Document, of: &Document) -> Vec<String> {
    let rows = from.rows.iter().filter(|row| !of.rows.iter().any(|other| other.is_same_as(row)));
    rows.map(name).collect()
}

fn name(row: &Row) -> String {
    let point = row.point.as_ref().map(|point| format!(" {}", place(point)));
    format!("{} {}{} {}", row.bench, row.side, point.unwrap_or_default(), row.metric)
}

fn place(point: &Point) -> String {
    format!("{} {}", point.name, number::with_unit(point.value, &point.unit))
}

fn cells(pair: &Pair) -> Vec<String> {
    let show = |side: &Side| {
        let unit = |value| number::with_unit(value, &pair.unit);
        format!("{} ({} to {})", unit(side.median), unit(side.min), unit(side.max))
    };
    vec![
        pair.bench.clone(),
        pair.side.clone(),
        pair.point.as_ref().map_or_else(String::new, place),
        pair.metric.clone(),
        show(&pair.a),
        show(&pair.b),
        pair.change_percent.map_or_else(String::new, |change| format!("{change:+.1} %")),
        pair.verdict.word().into(),
    ]
}

/// Columns of the widths that they need, under their names.
fn aligned(lines: impl Iterator<Item = Vec<String>>) -> Vec<String> {
    const HEADER: [&str; 8] = ["bench", "side", "point", "metric", "first", "second", "change", ""];
    let all: Vec<_> = std::iter::once(HEADER.map(String::from).to_vec()).chain(lines).collect();
    super::table::columns(&all)
}

/// What makes the two runs unlike apart from the code.
fn warnings(a: &Document, b: &Document) -> Vec<String> {
    let (host, other) = (&a.host, &b.host);
    let facts = [
        ("kernels", host.kernel.clone(), other.kernel.clone()),
        ("CPUs", format!("{} x {}", host.cpus, host.cpu), format!("{} x {}", other.cpus, other.cpu)),
        ("drivers", host.driver.clone(), other.driver.clone()),
        ("settings", differing(&a.settings, &b.settings), differing(&b.settings, &a.settings)),
    ];
    let unlike = facts.into_iter().filter(|(_, a, b)| a != b);
    unlike.map(|(what, a, b)| format!("the {what} differ: {a} and {b}")).collect()
}

/// The settings of `a` that are not the same in `b`.
fn differing(a: &serde_json::Value, b: &serde_json::Value) -> String {
    let fields = a.as_object().into_iter().flatten().filter(|(name, value)| b.get(name) != Some(value));
    fields.map(|(name, value)| format!("{name} {value}")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::made_up;

    #[test]
    fn a_run_compared_with_itself_is_all_noise() {
        let run = made_up::document();
        let comparison = Comparison::of(&run, &run);
        assert_eq!(comparison.rows.len(), run.rows.len());
        assert!(
            comparison
                .rows
                .iter()
                .all(|row| row.verdict == Change::Noise && row.change_percent.unwrap_or(0.0) == 0.0)
        );
        assert!(
            comparison.warnings.is_empty() && comparison.only_a.is_empty() && comparison.only_b.is_empty()
        );
    }

    #[test]
    fn what_is_better_depends_on_the_metric() {
        let a = made_up::document();
        let mut b = a.clone();
        b.rows.iter_mut().for_each(|row| made_up::times(row, 2.0));
        let comparison = Comparison::of(&a, &b);
        for row in comparison.rows.iter().filter(|row| row.a.median > 0.0) {
            let expected = match row.metric.as_str() {
                "goodput" | "loss-free rate" => Change::Better,
                "CPU time of NAPI" => Change::Different,
                _ => Change::Worse,
            };
            assert_eq!(row.verdict, expected, "{row:?}");
            assert_eq!(row.change_percent, Some(100.0));
        }
    }

    #[test]
    fn rows_of_one_run_and_unlike_settings_are_told() {
        let a = made_up::document();
        let mut b = a.clone();
        b.rows.remove(0);
        b.settings["repeats"] = 7.into();
        b.host.kernel = "7.0".into();
        let (there, back) = (Comparison::of(&a, &b), Comparison::of(&b, &a));
        assert_eq!((there.only_a.len(), there.only_b.len()), (1, 0));
        assert_eq!((back.only_a.len(), back.only_b.len()), (0, 1));
        assert_eq!(there.warnings[0], format!("the kernels differ: {} and 7.0", a.host.kernel));
        assert_eq!(there.warnings[1], "the settings differ: repeats 5 and repeats 7");
        assert!(there.text().contains("only in the first: udp-lossless kernel loss-free rate"));
    }
}
