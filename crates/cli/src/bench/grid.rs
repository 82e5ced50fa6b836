//! The rows of a run as tables: what the terminal and the page show alike.

use super::{
    document::{Better, Document, Point, Row, distinct},
    kinds, number,
};

/// One table: of one bench, and of points of one name.
#[derive(Debug, PartialEq)]
pub(crate) struct Grid {
    pub(crate) title: String,
    pub(crate) header: Vec<String>,
    pub(crate) lines: Vec<Vec<String>>,
    /// What is the same everywhere and so no column.
    pub(crate) remarks: Vec<String>,
}

/// The tables of a run, without metrics that only explain others.
pub(crate) fn of(document: &Document) -> Vec<Grid> {
    document.benches().iter().flat_map(|bench| of_bench(document, bench)).collect()
}

/// Those of one bench.
pub(crate) fn of_bench(document: &Document, bench: &str) -> Vec<Grid> {
    let rows: Vec<&Row> = document.rows.iter().filter(|row| row.bench == bench).collect();
    let named = |name: &str| rows.iter().copied().filter(|row| point_name(row) == name).collect::<Vec<_>>();
    distinct(rows.iter().map(|row| point_name(row))).into_iter().map(|name| grid(&named(name))).collect()
}

fn point_name(row: &Row) -> &str {
    row.point.as_ref().map_or("", |point| &point.name)
}

fn grid(rows: &[&Row]) -> Grid {
    let results: Vec<_> = rows.iter().copied().filter(|row| row.better != Better::Neither).collect();
    let metrics = distinct(results.iter().map(|row| row.metric.as_str()));
    let (columns, zeros): (Vec<_>, Vec<_>) = metrics
        .into_iter()
        .map(|metric| Column::of(metric, &results))
        .partition(|column| column.rows.iter().any(|row| row.max != 0.0));
    let places = places(&results);
    let name = point_name(rows[0]);
    let first = (!name.is_empty()).then(|| name.to_owned());
    let header = first.into_iter().chain(["side".into(), "n".into()]);
    Grid {
        title: title(rows),
        header: header.chain(columns.iter().flat_map(Column::header)).collect(),
        lines: lines(&places, &columns),
        remarks: zeros.iter().map(|column| format!("{}: 0 in every sample", column.metric)).collect(),
    }
}

/// Each point with every side, as far as there are rows.
fn places<'a>(rows: &[&'a Row]) -> Vec<(Option<&'a Point>, &'a str)> {
    let mut points = distinct(rows.iter().map(|row| row.point.as_ref()));
    let value = |point: &Option<&Point>| point.map_or(0.0, |point| point.value);
    points.sort_by(|a, b| value(a).total_cmp(&value(b)));
    let of = |point| rows.iter().filter(move |row| row.point.as_ref() == point).map(|row| row.side.as_str());
    points
        .into_iter()
        .flat_map(|point| distinct(of(point)).into_iter().map(move |side| (point, side)))
        .collect()
}

fn title(rows: &[&Row]) -> String {
    let bench = &rows[0].bench;
    kinds::title_of(bench).map_or_else(|| bench.clone(), |title| format!("{bench}: {title}"))
}

fn lines(places: &[(Option<&Point>, &str)], columns: &[Column]) -> Vec<Vec<String>> {
    let mut above = None;
    let mut lines = Vec::new();
    for (point, side) in places {
        let mut line = Vec::new();
        if let Some(point) = point {
            let is_new = above != Some(*point);
            line.push(if is_new { number::with_unit(point.value, &point.unit) } else { String::new() });
            above = Some(*point);
        }
        line.push((*side).to_owned());
        line.push(count(*point, side, columns));
        line.extend(columns.iter().flat_map(|column| column.cells(*point, side)));
        lines.push(line);
    }
    lines
}

/// How many samples the row has; the least, where metrics differ.
fn count(point: Option<&Point>, side: &str, columns: &[Column]) -> String {
    let counts = columns.iter().filter_map(|column| Some(column.row(point, side)?.samples.len()));
    counts.min().map_or_else(String::new, |count| count.to_string())
}

/// One metric, in one unit.
struct Column<'a> {
    metric: &'a str,
    unit: &'a str,
    factor: f64,
    prefix: &'static str,
    decimals: usize,
    rows: Vec<&'a Row>,
}

impl<'a> Column<'a> {
    fn of(metric: &'a str, rows: &[&'a Row]) -> Self {
        let rows: Vec<_> = rows.iter().copied().filter(|row| row.metric == metric).collect();
        let unit = rows[0].unit.as_str();
        let most = rows.iter().map(|row| row.median).fold(0.0, f64::max);
        let (factor, prefix) = number::scale(most, unit);
        // Rates of one table span a decade or more: a digit more than the largest needs.
        let decimals = number::decimals(most / factor) + usize::from(factor > 1.0);
        Self { metric, unit, factor, prefix, decimals: decimals.min(3), rows }
    }

    fn header(&self) -> [String; 2] {
        [format!("{}, {}{}", self.metric, self.prefix, self.unit), String::new()]
    }

    fn row(&self, point: Option<&Point>, side: &str) -> Option<&'a Row> {
        self.rows.iter().copied().find(|row| row.point.as_ref() == point && row.side == side)
    }

    /// The spread, and the ratio to the kernel's median.
    fn cells(&self, point: Option<&Point>, side: &str) -> [String; 2] {
        let Some(row) = self.row(point, side) else { return [String::new(), String::new()] };
        let show = |value: f64| format!("{:.*}", self.decimals, value / self.factor);
        let spread = format!("{} ({} to {})", show(row.median), show(row.min), show(row.max));
        let kernel = self.row(point, "kernel").filter(|kernel| kernel.median != 0.0);
        let is_told = side != "kernel" && self.unit != "%";
        let ratio = kernel.filter(|_| is_told).map(|kernel| format!("{:.2}x", row.median / kernel.median));
        [spread, ratio.unwrap_or_default()]
    }
}
