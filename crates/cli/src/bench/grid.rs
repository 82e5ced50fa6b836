//! The rows of a run as tables: what the terminal and the page show alike.

use super::{
    about,
    document::{Better, Document, Point, Row, distinct},
    kinds::{self, SENT},
    number,
    trial::AS_ASKED,
};

/// One table: of one bench, and of points of one name.
#[derive(Debug, PartialEq)]
pub(crate) struct Grid {
    pub(crate) title: String,
    /// What the sides are: with the first table of a bench.
    pub(crate) sides: Vec<String>,
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
    let names = distinct(rows.iter().map(|row| point_name(row)));
    let title = format!("{bench}: {}", about::title(document, bench));
    let mut grids: Vec<_> = names.into_iter().map(|name| grid(&title, &named(name))).collect();
    if let Some(first) = grids.first_mut() {
        first.sides = about::sides(document, bench);
    }
    grids
}

/// What the CPU time consists of, where the bench takes it apart so: medians.
fn parts(rows: &[&Row], places: &[(Option<&Point>, &str)]) -> Option<String> {
    let of_side = |&(point, side): &(Option<&Point>, &str)| {
        let median = |metric: &str| {
            let is_it = |row: &&&Row| row.point.as_ref() == point && row.side == side && row.metric == metric;
            rows.iter().find(is_it).map(|row| format!("{:.3}", row.median))
        };
        let medians: Option<Vec<_>> = kinds::BULK_PARTS.iter().map(|(name, _)| median(name)).collect();
        Some(format!("{side} {}", medians?.join(" + ")))
    };
    let sides: Vec<_> = places.iter().filter_map(of_side).collect();
    let names = kinds::BULK_PARTS.map(|(_, name)| name).join(" + ");
    (!sides.is_empty()).then(|| format!("of CPU time, {names}: {}", sides.join(", ")))
}

fn point_name(row: &Row) -> &str {
    row.point.as_ref().map_or("", |point| &point.name)
}

fn grid(title: &str, rows: &[&Row]) -> Grid {
    let tells_sent = rows.iter().any(|row| is_short(row));
    let is_told =
        |row: &Row| tells_sent && row.metric == SENT.name || kinds::is_told(&row.bench, &row.metric);
    let is_shown = |row: &&Row| row.better != Better::Neither || is_told(row);
    let results: Vec<_> = rows.iter().copied().filter(is_shown).collect();
    let metrics = distinct(results.iter().map(|row| row.metric.as_str()));
    let (columns, zeros): (Vec<_>, Vec<_>) = metrics
        .into_iter()
        .map(|metric| Column::of(metric, &results))
        .partition(|column| column.rows.iter().any(|row| row.max != 0.0));
    let places = places(&results);
    let zeros = zeros.iter().map(|column| format!("{}: 0 in every sample", column.metric));
    let name = point_name(rows[0]);
    let first = (!name.is_empty()).then(|| name.to_owned());
    let header = first.into_iter().chain(["side".into(), "n".into()]);
    Grid {
        title: title.into(),
        sides: Vec::new(),
        header: header.chain(columns.iter().flat_map(Column::header)).collect(),
        lines: lines(&places, &columns),
        remarks: zeros.chain(parts(rows, &places)).collect(),
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

/// The wire sent less than the point says: what it sent belongs beside what was received.
fn is_short(row: &Row) -> bool {
    let offered = row.point.as_ref().and_then(kinds::offered);
    row.metric == SENT.name && offered.is_some_and(|offered| row.median < offered * AS_ASKED)
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
        let is_told = side != "kernel" && !["%", "x"].contains(&self.unit) && self.metric != SENT.name;
        let ratio = kernel.filter(|_| is_told).map(|kernel| format!("{:.2}x", row.median / kernel.median));
        [spread, ratio.unwrap_or_default()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::made_up;

    #[test]
    fn what_the_wire_sent_is_a_column_where_it_is_less_than_the_point_says() {
        let mut run = made_up::document();
        let goodput = run.rows.iter().find(|row| row.metric == "goodput").unwrap().clone();
        for (share, is_told) in [(0.985, false), (0.97, true)] {
            let median = share * goodput.point.as_ref().unwrap().value;
            let sent = Row { metric: SENT.name.into(), better: Better::Neither, median, ..goodput.clone() };
            run.rows.push(sent);
            let grids = of_bench(&run, "udp-overload");
            let has = grids[0].header.iter().any(|name| name.starts_with("sent"));
            assert_eq!(has, is_told, "{share}");
            run.rows.pop();
        }
    }

    #[test]
    fn what_cpu_time_consists_of_is_a_remark() {
        let mut run = made_up::document();
        let row = run.rows.iter().find(|row| row.metric == "goodput").unwrap().clone();
        run.rows.retain(|row| row.metric != kinds::BULK_PARTS[0].0);
        for (index, (metric, _)) in kinds::BULK_PARTS.into_iter().enumerate() {
            let median = 0.1 * (index + 1) as f64;
            run.rows.push(Row { metric: metric.into(), better: Better::Neither, median, ..row.clone() });
        }
        let remarks = of_bench(&run, "udp-overload").remove(0).remarks;
        let expected = "of CPU time, NAPI + program + program in the kernel: kernel 0.100 + 0.200 + 0.300";
        assert_eq!(remarks.last().unwrap(), expected);
    }

    #[test]
    fn a_points_name_tells_its_rate_too() {
        assert_eq!(kinds::offered(&Point::of("flows at 438 k packets/s", 10.0, "flows")), Some(438e3));
        assert_eq!(kinds::offered(&Point::of("offered", 7.0, "packets/s")), Some(7.0));
        assert_eq!(kinds::offered(&Point::of("spin-us", 50.0, "us")), None);
    }
}
