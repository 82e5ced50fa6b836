//! What the plots of a bench show: pure, from rows to panels whose axes are laid out.
//!
//! Positions on an axis are numbers on a line; a logarithmic axis has the logarithms, and the names of its ticks say so.

use super::{
    about,
    document::{Better, Document, Point, Row, distinct},
    kinds, number,
};

/// One plot: a sentence and one or more panels that share a legend.
#[derive(Debug, PartialEq)]
pub(crate) struct Figure {
    pub(crate) title: String,
    pub(crate) sides: Vec<String>,
    pub(crate) panels: Vec<Panel>,
}

/// One pair of axes.
#[derive(Debug, PartialEq)]
pub(crate) struct Panel {
    pub(crate) title: String,
    pub(crate) x: Axis,
    pub(crate) y: Axis,
    pub(crate) shape: Shape,
    pub(crate) series: Vec<Series>,
    /// From one place to another: what would be if nothing were lost.
    pub(crate) guide: Option<[(f64, f64); 2]>,
}

/// How the marks of a side are joined.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Shape {
    Lines,
    Bars,
}

/// The marks of one side.
#[derive(Debug, PartialEq)]
pub(crate) struct Series {
    pub(crate) side: String,
    pub(crate) marks: Vec<Mark>,
}

/// A median and its range.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Mark {
    pub(crate) x: f64,
    pub(crate) y: f64,
    pub(crate) low: f64,
    pub(crate) high: f64,
    pub(crate) text: String,
}

/// One axis.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Axis {
    pub(crate) label: String,
    pub(crate) from: f64,
    pub(crate) to: f64,
    pub(crate) ticks: Vec<(f64, String)>,
}

/// The plot of one bench; none of a bench without rows to show.
pub(crate) fn of(document: &Document, bench: &str) -> Option<Figure> {
    let shown = |row: &&Row| row.bench == bench && row.better != Better::Neither;
    let rows: Vec<&Row> = document.rows.iter().filter(shown).collect();
    let names = distinct(rows.iter().map(|row| point_name(row)));
    let panels: Vec<Panel> = names
        .iter()
        .flat_map(|name| {
            panels(&rows.iter().copied().filter(|row| point_name(row) == *name).collect::<Vec<_>>())
        })
        .collect();
    let sides = distinct(rows.iter().map(|row| row.side.clone()));
    let title = about::title(document, bench);
    (!panels.is_empty()).then_some(Figure { title, sides, panels })
}

fn point_name(row: &Row) -> &str {
    row.point.as_ref().map_or("", |point| &point.name)
}

/// The panels of rows whose points have one name: one for each metric, and one for all percentiles of each point.
fn panels(rows: &[&Row]) -> Vec<Panel> {
    let is_shown = |metric: &&str| kinds::is_plotted(&rows[0].bench, point_name(rows[0]), metric);
    let (percentiles, others): (Vec<&Row>, Vec<&Row>) =
        rows.iter().copied().partition(|row| percentile(&row.metric).is_some());
    let metrics = distinct(others.iter().map(|row| row.metric.as_str()));
    let of = |metric: &str| others.iter().copied().filter(|row| row.metric == metric).collect::<Vec<_>>();
    let plain = metrics.into_iter().filter(is_shown).map(of).filter(|rows| has_amounts(rows));
    let points = distinct(percentiles.iter().map(|row| row.point.as_ref()));
    let at =
        |point| percentiles.iter().copied().filter(|row| row.point.as_ref() == point).collect::<Vec<_>>();
    plain
        .map(|rows| plain_panel(&rows))
        .chain(points.into_iter().map(at).filter(|rows| has_amounts(rows)).map(|rows| distribution(&rows)))
        .collect()
}

/// Nothing but zeros has no axis.
fn has_amounts(rows: &[&Row]) -> bool {
    rows.iter().any(|row| row.max > 0.0)
}

/// The percentile that a metric such as `round trip p99.9` is.
fn percentile(metric: &str) -> Option<f64> {
    metric.rsplit_once(" p")?.1.parse().ok()
}

/// A line along the points, or bars where there is only one.
fn plain_panel(rows: &[&Row]) -> Panel {
    let values = distinct(rows.iter().filter_map(|row| Some(row.point.as_ref()?.value)).map(f64::to_bits));
    if values.len() > 1 { lines(rows) } else { bars(rows) }
}

fn lines(rows: &[&Row]) -> Panel {
    let scale = Scale::of_points(rows);
    let (y, factor) = amount(rows);
    let place = |row: &Row| row.point.as_ref().map_or(0.0, |point| scale.place(point.value));
    let series = series(rows, |row| mark(row, place(row), factor));
    let guide = scale.guide(rows, factor, y.to);
    Panel { title: title(rows), x: scale.axis(), y, shape: Shape::Lines, series, guide }
}

fn bars(rows: &[&Row]) -> Panel {
    let sides = distinct(rows.iter().map(|row| row.side.as_str()));
    let place = |row: &Row| sides.iter().position(|side| *side == row.side).unwrap_or(0) as f64 + 0.5;
    let (y, factor) = amount(rows);
    let ticks = sides.iter().enumerate().map(|(index, side)| (index as f64 + 0.5, (*side).to_owned()));
    let x = Axis { label: point_text(rows[0]), from: 0.0, to: sides.len() as f64, ticks: ticks.collect() };
    let series = series(rows, |row| mark(row, place(row), factor));
    Panel { title: title(rows), x, y, shape: Shape::Bars, series, guide: None }
}

/// Percentiles on an axis that gives each further nine the same room.
fn distribution(rows: &[&Row]) -> Panel {
    let place = |row: &Row| percentile(&row.metric).map_or(0.0, nines);
    let mut shares = distinct(rows.iter().filter_map(|row| percentile(&row.metric)).map(f64::to_bits));
    shares.sort_unstable();
    let ticks: Vec<_> =
        shares.iter().map(|bits| f64::from_bits(*bits)).map(|p| (nines(p), format!("p{p}"))).collect();
    let ends = (ticks.first().map_or(0.0, |tick| tick.0), ticks.last().map_or(1.0, |tick| tick.0));
    let x = Axis { label: "percentile".into(), from: ends.0 - 0.1, to: ends.1 + 0.1, ticks };
    let scale = Scale::of_amounts(rows);
    let series = series(rows, |row| Mark {
        x: place(row),
        y: scale.place(row.median),
        low: scale.place(row.min),
        high: scale.place(row.max),
        text: String::new(),
    });
    let metric = rows[0].metric.rsplit_once(" p").map_or("", |(name, _)| name);
    let y = Axis { label: format!("{metric}, {}", rows[0].unit), ..scale.axis() };
    let title = [metric.to_owned(), point_text(rows[0])]
        .iter()
        .filter(|part| !part.is_empty())
        .cloned()
        .collect::<Vec<_>>();
    Panel { title: title.join(", "), x, y, shape: Shape::Lines, series, guide: None }
}

fn nines(percentile: f64) -> f64 {
    -(1.0 - percentile.min(99.9999) / 100.0).log10()
}

fn title(rows: &[&Row]) -> String {
    match point_name(rows[0]).split_once(' ') {
        Some((_, apart)) => format!("{} {apart}", rows[0].metric),
        None => rows[0].metric.clone(),
    }
}

fn point_text(row: &Row) -> String {
    let text = |point: &Point| format!("{} {}", point.name, number::with_unit(point.value, &point.unit));
    row.point.as_ref().map_or_else(String::new, text)
}

fn series(rows: &[&Row], mark: impl Fn(&Row) -> Mark) -> Vec<Series> {
    let of = |side: &str| {
        let mut marks: Vec<_> = rows.iter().filter(|row| row.side == side).map(|row| mark(row)).collect();
        marks.sort_by(|a, b| a.x.total_cmp(&b.x));
        Series { side: side.into(), marks }
    };
    distinct(rows.iter().map(|row| row.side.as_str())).into_iter().map(of).collect()
}

fn mark(row: &Row, x: f64, factor: f64) -> Mark {
    let text = number::short(row.median / factor);
    Mark { x, y: row.median / factor, low: row.min / factor, high: row.max / factor, text }
}

/// The axis of amounts from nothing on, and what it divides them by.
fn amount(rows: &[&Row]) -> (Axis, f64) {
    let most = rows.iter().map(|row| row.max).fold(0.0, f64::max);
    let (factor, prefix) = number::scale(most, &rows[0].unit);
    let (to, ticks) = round_ticks(most / factor * 1.08);
    let label = format!("{}, {prefix}{}", rows[0].metric, rows[0].unit);
    (Axis { label, from: 0.0, to, ticks }, factor)
}

/// Four to eight round ticks from 0 to `most` or a little more.
fn round_ticks(most: f64) -> (f64, Vec<(f64, String)>) {
    let least = most / 8.0;
    let power = 10f64.powf(least.log10().floor());
    let step = [1.0, 2.0, 2.5, 5.0, 10.0].map(|digit| digit * power).into_iter().find(|step| *step >= least);
    let step = step.unwrap_or(power * 10.0);
    let count = (most / step).ceil() as usize;
    let ticks = (0..=count).map(|index| index as f64 * step);
    (count as f64 * step, ticks.map(|tick| (tick, number::short(tick))).collect())
}

/// How values lie on a line: evenly, or by their logarithms where they span decades.
struct Scale {
    label: String,
    unit: String,
    values: Vec<f64>,
    is_log: bool,
    factor: f64,
    prefix: &'static str,
}

impl Scale {
    fn of_points(rows: &[&Row]) -> Self {
        let points: Vec<&Point> = rows.iter().filter_map(|row| row.point.as_ref()).collect();
        let values = points.iter().map(|point| point.value);
        let (name, unit) = points.first().map_or(("", ""), |point| (&*point.name, &*point.unit));
        Self::of(name.split_once(" at ").map_or(name, |(name, _)| name), unit, values.collect())
    }

    fn of_amounts(rows: &[&Row]) -> Self {
        let values = rows.iter().flat_map(|row| [row.min, row.max]).filter(|value| *value > 0.0);
        Self { is_log: true, ..Self::of("", &rows[0].unit, values.collect()) }
    }

    fn of(label: &str, unit: &str, values: Vec<f64>) -> Self {
        let (least, most) = ends(&values);
        let is_log = least > 0.0 && most / least >= 20.0;
        let (factor, prefix) = if is_log { (1.0, "") } else { number::scale(most, unit) };
        Self { label: label.into(), unit: unit.into(), values, is_log, factor, prefix }
    }

    fn place(&self, value: f64) -> f64 {
        if self.is_log { value.max(ends(&self.values).0).log10() } else { value / self.factor }
    }

    fn axis(&self) -> Axis {
        let label = match self.label == self.unit {
            true => self.label.clone(),
            false => format!("{}, {}{}", self.label, self.prefix, self.unit),
        };
        let (least, most) = ends(&self.values);
        if !self.is_log {
            let (to, ticks) = round_ticks(most / self.factor * 1.02);
            return Axis { label, from: 0.0, to, ticks };
        }
        let (from, to) = (self.place(least) - 0.1, self.place(most) + 0.1);
        Axis { label, from, to, ticks: log_ticks(from, to, &self.unit) }
    }

    /// Where what is received equals what is offered.
    fn guide(&self, rows: &[&Row], factor: f64, top: f64) -> Option<[(f64, f64); 2]> {
        let is_alike = rows[0].unit == self.unit && !self.is_log;
        let most = (ends(&self.values).1 / factor).min(top);
        is_alike.then_some([(0.0, 0.0), (most * factor / self.factor, most)])
    }
}

fn ends(values: &[f64]) -> (f64, f64) {
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    (least, values.iter().copied().fold(0.0, f64::max))
}

/// Decades, and 2 and 5 between them where there are few.
fn log_ticks(from: f64, to: f64, unit: &str) -> Vec<(f64, String)> {
    let digits: &[f64] = if to - from > 3.0 { &[1.0] } else { &[1.0, 2.0, 5.0] };
    let decades = (from.floor() as i32..=to.ceil() as i32).map(|power| 10f64.powi(power));
    let values = decades.flat_map(|decade| digits.iter().map(move |digit| decade * digit));
    let within = values.filter(|value| (from..=to).contains(&value.log10()));
    within.map(|value| (value.log10(), tick(value, unit))).collect()
}

fn tick(value: f64, unit: &str) -> String {
    let (factor, prefix) = number::scale(value, unit);
    format!("{} {prefix}", number::short(value / factor)).trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::made_up;

    fn figure(bench: &str) -> Figure {
        of(&made_up::document(), bench).unwrap()
    }

    fn names(axis: &Axis) -> Vec<&str> {
        axis.ticks.iter().map(|(_, name)| name.as_str()).collect()
    }

    #[test]
    fn points_in_a_line_are_joined_and_their_axes_have_units() {
        let figure = figure("udp-overload");
        let panel = &figure.panels[0];
        assert_eq!((panel.shape, figure.sides.len()), (Shape::Lines, 4));
        assert_eq!(panel.x.label, "offered, Mpackets/s");
        assert_eq!(panel.y.label, "goodput, Mpackets/s");
        assert_eq!(panel.series[2].marks.len(), 4);
        assert_eq!(
            panel.guide.unwrap()[1],
            (panel.y.to, panel.y.to),
            "all that is offered, as far as there is room"
        );
        assert!(figure.panels.iter().all(|panel| !panel.title.contains("NAPI")), "parts are not drawn");
    }

    #[test]
    fn decades_are_drawn_by_their_logarithms() {
        let figure = figure("flows");
        assert_eq!(figure.panels.len(), 2);
        assert_eq!(figure.panels[0].x.label, "flows");
        assert_eq!(figure.panels[0].title, "CPU time at 438 k packets/s");
        assert_eq!(names(&figure.panels[0].x), ["1", "10", "100", "1 k", "10 k", "100 k", "1 M"]);
        assert_eq!(figure.panels[0].series[0].marks[2].x, 4.0);
    }

    #[test]
    fn what_has_no_points_is_bars_of_the_sides() {
        let figure = figure("udp-lossless");
        let panel = &figure.panels[0];
        assert_eq!(panel.shape, Shape::Bars);
        assert_eq!(names(&panel.x), ["kernel", "kernel-tuned", "hoist", "limit"]);
        assert!(panel.series.iter().flat_map(|series| &series.marks).all(|mark| mark.high <= panel.y.to));
    }

    #[test]
    fn percentiles_make_a_distribution_for_each_point() {
        let figure = figure("udp-rr");
        assert_eq!(figure.panels.len(), 2);
        assert_eq!(figure.panels[1].title, "round trip, spin 50 us");
        assert_eq!(names(&figure.panels[0].x), ["p50", "p90", "p99", "p99.9"]);
        assert_eq!(figure.panels[0].y.label, "round trip, us");
        assert_eq!(figure.sides.len(), 3, "the limit was not measured");
    }

    #[test]
    fn ticks_are_round_and_reach_the_top() {
        for most in [0.003, 0.97, 1.0, 7.3, 99.0, 2400.0] {
            let (to, ticks) = round_ticks(most);
            assert!(to >= most && to <= most * 1.3, "{most}: {to}");
            assert!((4..=10).contains(&ticks.len()), "{most}: {ticks:?}");
        }
    }

    #[test]
    fn zeros_are_not_drawn_and_do_not_stop_what_is() {
        let mut run = made_up::document();
        let is_first = |row: &Row| row.point.as_ref().is_some_and(|point| point.value == 0.0);
        run.rows.iter_mut().filter(|row| row.bench == "udp-rr" && is_first(row)).for_each(|row| {
            made_up::times(row, 0.0);
        });
        assert_eq!(of(&run, "udp-rr").unwrap().panels.len(), 1);
        run.rows.iter_mut().filter(|row| row.side == "hoist").for_each(|row| made_up::times(row, 0.0));
        for panel in of(&run, "udp-rr").unwrap().panels {
            let marks = panel.series.iter().flat_map(|series| &series.marks);
            assert!(marks.into_iter().all(|mark| mark.low >= panel.y.from && mark.high <= panel.y.to));
        }
        run.rows.iter_mut().for_each(|row| made_up::times(row, 0.0));
        assert_eq!(of(&run, "udp-rr"), None);
    }

    #[test]
    fn a_bench_without_rows_has_no_figure() {
        assert_eq!(of(&made_up::document(), "sockets"), None);
    }
}
