//! A run that never was, for tests of what is made of runs.

use super::{
    document::{Disturbed, Document, Metric, Point, Row, Rows, SCHEMA},
    host::Host,
    stats::Spread,
};

const SIDES: [(&str, f64); 4] = [("kernel", 1.0), ("kernel-tuned", 1.5), ("hoist", 2.5), ("limit", 2.75)];

/// Every kind of row: without a point, along a line, along decades, a distribution.
pub(crate) fn document() -> Document {
    let mut rows = Rows::default();
    for sample in 0..5 {
        for (index, (side, factor)) in SIDES.into_iter().enumerate() {
            let wobble = 1.0 + 0.01 * f64::from((sample * 3 + index as i32) % 5);
            lossless(&mut rows, side, factor * wobble);
            overload(&mut rows, side, factor, wobble);
            flows(&mut rows, side, factor, wobble);
            round_trips(&mut rows, side, factor, wobble);
        }
    }
    document_of(rows)
}

fn document_of(rows: Rows) -> Document {
    let (kernel, cpu, driver) = ("6.18.0".into(), "Some <CPU>".into(), "veth".into());
    let (unix_time, virtualised, mode) = (1_795_375_708, Some(true), Some("native, copy".into()));
    Document {
        schema: SCHEMA,
        name: "udp-lossless udp-overload flows udp-rr".into(),
        command: "hoist bench udp-lossless udp-overload flows udp-rr".into(),
        commit: "abc1234".into(),
        host: Host { kernel, cpu, cpus: 2, virtualised, governor: None, unix_time, driver, mode },
        settings: serde_json::json!({
            "repeats": 5, "frame_len": 64, "tolerated_loss": 0.001, "rcvbuf": null, "tuned_rcvbuf": 4 << 20, "tuned_batch": 32
        }),
        rows: rows.as_slice().to_vec(),
        disturbed: Disturbed { trials: 2, of: 400 },
        notes: vec!["udp-overload: the kernel's breaking point was found at 546000 packets/s".into()],
    }
}

fn lossless(rows: &mut Rows, side: &str, factor: f64) {
    rows.add("udp-lossless", side, None, Metric::more("loss-free rate", "packets/s"), 0.55e6 * factor);
}

fn overload(rows: &mut Rows, side: &str, factor: f64, wobble: f64) {
    for offered in [219e3, 438e3, 875e3, 1.75e6] {
        let point = Some(Point::of("offered", offered, "packets/s"));
        let goodput = if offered > 0.6e6 * factor { 0.5e6 * factor * wobble } else { offered };
        let cost = 1400.0 / factor * wobble;
        let mut add = |metric, sample| rows.add("udp-overload", side, point.clone(), metric, sample);
        add(Metric::more("goodput", "packets/s"), goodput);
        add(Metric::less("loss", "%"), 100.0 * (1.0 - goodput / offered));
        add(
            Metric::less("CPU time", "ns/packet"),
            if offered < 300e3 && side == "hoist" { 1500.0 * wobble } else { cost },
        );
        add(Metric::part("CPU time of NAPI", "ns/packet"), cost / 2.0);
        add(Metric::less("reordered", "packets"), 0.0);
    }
}

fn flows(rows: &mut Rows, side: &str, factor: f64, wobble: f64) {
    for name in ["flows at 438 k packets/s", "flows at 875 k packets/s"] {
        for flows in [1.0, 100.0, 10e3, 1e6] {
            let point = Some(Point::of(name, flows, "flows"));
            let cost = (1200.0 + 100.0 * f64::log10(flows)) / factor * wobble;
            rows.add("flows", side, point, Metric::less("CPU time", "ns/packet"), cost);
        }
    }
}

fn round_trips(rows: &mut Rows, side: &str, factor: f64, wobble: f64) {
    if side == "limit" {
        return;
    }
    for spin in [0.0, 50.0] {
        let quick = if spin > 0.0 { 0.3 } else { 1.0 };
        for (name, us) in [("p50", 40.0), ("p90", 55.0), ("p99", 120.0), ("p99.9", 900.0)] {
            let metric = match name {
                "p50" => Metric::less("round trip p50", "us"),
                "p90" => Metric::less("round trip p90", "us"),
                "p99" => Metric::less("round trip p99", "us"),
                _ => Metric::less("round trip p99.9", "us"),
            };
            let point = Some(Point::of("spin", spin, "us"));
            rows.add("udp-rr", side, point, metric, us * quick / factor.sqrt() * wobble);
        }
    }
}

/// As if every sample had been so many times as large.
pub(crate) fn times(row: &mut Row, factor: f64) {
    row.samples.iter_mut().for_each(|sample| *sample *= factor);
    let Spread { median, min, max } = Spread::of(&row.samples).unwrap();
    (row.median, row.min, row.max) = (median, min, max);
}

/// Line by line, and says which differs.
pub(crate) fn assert_same(made: &str, kept: &str) {
    if let (Ok(directory), true) = (std::env::var("KEEP_GOLDEN"), made.trim_end() != kept.trim_end()) {
        let name = if made.starts_with('<') { "udp-overload.svg" } else { "table.txt" };
        std::fs::write(format!("{directory}/{name}"), format!("{}\n", made.trim_end())).unwrap();
    }
    for (number, (made, kept)) in made.lines().zip(kept.lines()).enumerate() {
        assert_eq!(made, kept, "line {}", number + 1);
    }
    assert_eq!(made.lines().count(), kept.lines().count(), "lines");
}
