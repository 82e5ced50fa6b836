//! The run as it is kept: one JSON object with every sample, and where the figures come from.

use super::{host::Host, stats::Spread};
use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// The version of the document's form that this program writes and reads.
pub(crate) const SCHEMA: u64 = 1;

/// One run.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Document {
    pub(crate) schema: u64,
    /// The benches of the run, in order.
    pub(crate) name: String,
    pub(crate) command: String,
    pub(crate) commit: String,
    pub(crate) host: Host,
    pub(crate) settings: serde_json::Value,
    pub(crate) rows: Vec<Row>,
    pub(crate) disturbed: Disturbed,
    pub(crate) notes: Vec<String>,
}

/// All samples of one metric of one side at one point of a bench.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(crate) struct Row {
    pub(crate) bench: String,
    pub(crate) side: String,
    /// What was varied; none where nothing was.
    pub(crate) point: Option<Point>,
    pub(crate) metric: String,
    pub(crate) unit: String,
    pub(crate) better: Better,
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
    pub(crate) samples: Vec<f64>,
}

/// What was varied, and its value in this row. What else distinguishes the point is part of its name
/// ("flows at 440 k packets/s"): rows of one name are one line of a plot.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(crate) struct Point {
    pub(crate) name: String,
    pub(crate) value: f64,
    pub(crate) unit: String,
}

impl Point {
    pub(crate) fn of(name: &str, value: f64, unit: &str) -> Self {
        Self { name: name.into(), value, unit: unit.into() }
    }
}

/// Which way of a metric is better.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Better {
    More,
    Less,
    /// It explains another and is no result of its own.
    Neither,
}

/// Trials that others disturbed although they were taken again, of all.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Serialize)]
pub(crate) struct Disturbed {
    pub(crate) trials: usize,
    pub(crate) of: usize,
}

/// What can be measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Metric {
    pub(crate) name: &'static str,
    pub(crate) unit: &'static str,
    pub(crate) better: Better,
}

impl Metric {
    /// More of it is better.
    pub(crate) const fn more(name: &'static str, unit: &'static str) -> Self {
        Self { name, unit, better: Better::More }
    }

    /// Less of it is better.
    pub(crate) const fn less(name: &'static str, unit: &'static str) -> Self {
        Self { name, unit, better: Better::Less }
    }

    /// It explains another.
    pub(crate) const fn part(name: &'static str, unit: &'static str) -> Self {
        Self { name, unit, better: Better::Neither }
    }
}

impl Row {
    fn new(bench: &str, side: &str, point: Option<Point>, metric: Metric) -> Self {
        let (bench, side, metric_name) = (bench.into(), side.into(), metric.name.into());
        let (unit, better) = (metric.unit.into(), metric.better);
        let (median, min, max) = (0.0, 0.0, 0.0);
        Self { bench, side, point, metric: metric_name, unit, better, median, min, max, samples: Vec::new() }
    }

    fn add(&mut self, sample: f64) {
        self.samples.push(sample);
        if let Some(spread) = Spread::of(&self.samples) {
            (self.median, self.min, self.max) = (spread.median, spread.min, spread.max);
        }
    }

    /// The same measurement, of whatever run.
    pub(crate) fn is_same_as(&self, other: &Self) -> bool {
        self.is_of(&other.bench, &other.side, other.point.as_ref(), &other.metric)
    }

    pub(crate) fn is_of(&self, bench: &str, side: &str, point: Option<&Point>, metric: &str) -> bool {
        self.bench == bench && self.side == side && self.metric == metric && self.point.as_ref() == point
    }

    /// True when this row's median is worse than that of `than`, by more than the wire's own rate varies.
    pub(crate) fn is_worse(&self, than: &Self) -> bool {
        let more = |a: f64, b: f64| a > b * (1.0 + SAME);
        match self.better {
            Better::More => more(than.median, self.median),
            Better::Less => more(self.median, than.median),
            Better::Neither => false,
        }
    }
}

/// Medians that differ by no more than this fraction are the same.
const SAME: f64 = 0.005;

/// Rows that samples are added to, in the order of their first ones.
#[derive(Debug, Default)]
pub(crate) struct Rows(Vec<Row>);

impl Rows {
    pub(crate) fn add(&mut self, bench: &str, side: &str, point: Option<Point>, metric: Metric, sample: f64) {
        let found = self.0.iter().position(|row| row.is_of(bench, side, point.as_ref(), metric.name));
        let index = found.unwrap_or_else(|| {
            self.0.push(Row::new(bench, side, point, metric));
            self.0.len() - 1
        });
        self.0[index].add(sample);
    }

    pub(crate) fn as_slice(&self) -> &[Row] {
        &self.0
    }
}

impl Document {
    /// The run in a file, or in DIRECTORY/run.json.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let path = Self::file(path);
        let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        Self::parse(&text).with_context(|| path.display().to_string())
    }

    /// Where a run is that is named by its file or its directory.
    pub(crate) fn file(path: &Path) -> PathBuf {
        if path.is_dir() { path.join("run.json") } else { path.into() }
    }

    pub(crate) fn parse(text: &str) -> Result<Self> {
        let value: serde_json::Value = serde_json::from_str(text).map_err(|error| match error.is_eof() {
            true => anyhow::anyhow!("the JSON ends in the middle ({error}): was the file cut short?"),
            false => anyhow::anyhow!("no JSON ({error}): `hoist bench LIST --json` makes a run"),
        })?;
        match value.get("schema").map(|schema| schema.as_u64()) {
            Some(Some(SCHEMA)) => {}
            Some(_) => bail!("schema {} is not {SCHEMA}, the one this program reads", value["schema"]),
            None => bail!("no run of `hoist bench`: it has no \"schema\""),
        }
        let document: Self = serde_json::from_value(value).context("no run of `hoist bench`")?;
        document.check()?;
        Ok(document)
    }

    /// Medians are computed from samples, so a row without any is no row.
    fn check(&self) -> Result<()> {
        match self.rows.iter().find(|row| row.samples.is_empty()) {
            Some(row) => bail!("the row {} {} {} has no samples", row.bench, row.side, row.metric),
            None => Ok(()),
        }
    }

    /// The benches in their order.
    pub(crate) fn benches(&self) -> Vec<&str> {
        distinct(self.rows.iter().map(|row| row.bench.as_str()))
    }
}

/// Each once, in the order of their first.
pub(crate) fn distinct<T: PartialEq>(all: impl IntoIterator<Item = T>) -> Vec<T> {
    all.into_iter().fold(Vec::new(), |mut seen, one| {
        if !seen.contains(&one) {
            seen.push(one);
        }
        seen
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOODPUT: Metric = Metric::more("goodput", "packets/s");

    fn document() -> Document {
        let mut rows = Rows::default();
        for sample in [3.0, 1.0, 2.0] {
            let point = Point::of("offered", 1e6, "packets/s");
            rows.add("udp-overload", "hoist", Some(point), GOODPUT, sample);
        }
        rows.add("udp-overload", "kernel", None, GOODPUT, 5.0);
        Document {
            schema: SCHEMA,
            name: "udp-overload".into(),
            command: "hoist bench udp-overload".into(),
            commit: "abc".into(),
            host: Host::default(),
            settings: serde_json::json!({ "repeats": 3 }),
            rows: rows.as_slice().to_vec(),
            disturbed: Disturbed { trials: 1, of: 4 },
            notes: vec![],
        }
    }

    #[test]
    fn samples_of_one_measurement_make_one_row() {
        let rows = document().rows;
        assert_eq!(rows.len(), 2);
        assert_eq!((rows[0].median, rows[0].min, rows[0].max), (2.0, 1.0, 3.0));
        assert_eq!(rows[0].samples, [3.0, 1.0, 2.0], "in the order they were taken");
    }

    #[test]
    fn a_run_reads_as_it_was_written() {
        let text = serde_json::to_string(&document()).unwrap();
        let read = Document::parse(&text).unwrap();
        assert_eq!(serde_json::to_string(&read).unwrap(), text);
    }

    #[test]
    fn what_is_no_run_says_what_it_is() {
        let text = serde_json::to_string(&document()).unwrap();
        let why = |text: &str| format!("{:#}", Document::parse(text).unwrap_err());
        assert!(why(&text[..text.len() / 2]).contains("cut short"));
        assert!(why("hello").contains("no JSON"));
        assert!(why("{}").contains("no \"schema\""));
        assert!(why(r#"{"schema":1}"#).contains("missing field"));
        assert!(why(&text.replace("\"schema\":1", "\"schema\":2")).contains("schema 2 is not 1"));
        assert!(why(&text.replace("\"schema\":1", "\"schema\":\"x\"")).contains("is not 1"));
        assert!(why(&text.replace("[5.0]", "[]")).contains("no samples"));
    }

    #[test]
    fn worse_depends_on_the_metric() {
        let row = |better, median| Row { better, median, ..document().rows[0].clone() };
        for (better, worse) in [(Better::More, false), (Better::Less, true), (Better::Neither, false)] {
            assert_eq!(row(better, 2.0).is_worse(&row(better, 1.0)), worse, "{better:?}");
            assert!(!row(better, 1.004).is_worse(&row(better, 1.0)), "{better:?}: the same");
        }
        assert!(row(Better::More, 1.0).is_worse(&row(Better::More, 2.0)));
        assert!(row(Better::Less, 0.1).is_worse(&row(Better::Less, 0.0)), "than nothing");
    }
}
