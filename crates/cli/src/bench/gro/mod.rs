//! `gro`: ways to find a segment's flow among what is held, over traffic that exists in memory only.

mod play;
mod scenes;
mod traffic;

use super::{
    document::{Disturbed, Document, Metric, Point, Rows, SCHEMA},
    host::{self, Host},
    kinds::Kind,
};
pub(super) use scenes::FLOWS;
pub(super) use traffic::{Arrival, Hosts, MSS, Traffic};

use anyhow::Result;
use hoist_packet::gro::lab::{Hash, Order, Setup};
use play::{Matcher, Outcome, Way};
use scenes::{Case, Scene};
use std::io::{IsTerminal, stderr};

pub(super) const CPU: Metric = Metric::less("CPU time", "ns/segment");
const TO_KERNEL: Metric = Metric::less("CPU time to kernel", "x");
const VISITED: Metric = Metric::less("walked", "packets/segment");
const HASHES: Metric = Metric::part("compared hashes", "a segment");
const L3: Metric = Metric::part("compared addresses", "a segment");
const L4: Metric = Metric::part("compared ports", "a segment");
pub(super) const MERGED: Metric = Metric::more("merge ratio", "segments/packet");
const EVICTED: Metric = Metric::less("evicted", "%");
const POLLED: Metric = Metric::part("end of poll", "%");
const CLOSED: Metric = Metric::part("complete", "%");

/// Plays of a sample, in turn with those of the other sides; the sample is their median.
const PLAYS: usize = 7;

/// What a side is, in words.
pub(super) fn side(side: &str) -> &'static str {
    match side {
        "kernel" => {
            "dev_gro_receive: hashes of the whole list, then addresses, then ports until the flow is found"
        }
        "l3-first" => "one walk: addresses, then ports",
        "l4-first" => "one walk: ports, then addresses",
        "hash-first" => {
            "one walk: the hash, then ports and addresses; it computes the hash where the device gives none"
        }
        "own-hash" => "one walk, hash first, with buckets by a hash that it computes for every segment",
        "hoist" => {
            "Hoist's engine: the last flow first, then by a tag of addresses and ports; one table of 64"
        }
        _ => "",
    }
}

/// Metrics that explain others and belong into the tables all the same.
pub(super) fn is_told(metric: &str) -> bool {
    [POLLED, CLOSED].iter().any(|told| told.name == metric)
}

/// What the picture has; the tables have all.
pub(super) fn is_plotted(point: &str, metric: &str) -> bool {
    let is_of = |plotted: &Metric, points: &[&str]| metric == plotted.name && points.contains(&point);
    is_of(&CPU, &scenes::COST_PLOTTED) || is_of(&MERGED, &[scenes::BUCKETS])
}

/// The run, with `repeats` seeds.
pub(super) fn matching(quick: bool, repeats: usize) -> Result<Document> {
    let segments = if quick { 1 << 13 } else { 1 << 16 };
    let mut rows = Rows::default();
    let cases = scenes::all(quick);
    // a slow minute of the machine hits one sample of many cases, not all samples of one
    for seed in 1..=repeats as u64 {
        for case in &cases {
            show(&format!("{} {}, {seed} of {repeats}", case.point.name, case.point.value));
            sample(&mut rows, case, seed, segments)?;
        }
    }
    if stderr().is_terminal() {
        tell!("\r\x1b[K");
    }
    Ok(document(repeats, segments, &rows))
}

fn document(repeats: usize, segments: usize, rows: &Rows) -> Document {
    let Scene { traffic, poll, buckets, held, .. } = Scene::BASE;
    Document {
        schema: SCHEMA,
        name: Kind::Gro.name().into(),
        command: host::command(),
        commit: host::COMMIT.into(),
        host: Host::here(0),
        settings: serde_json::json!({
            "in_memory": true, "repeats": repeats, "plays": PLAYS, "segments": segments, "poll": poll,
            "buckets": buckets, "held_a_bucket": held, "train": traffic.train, "trains_at_once": traffic.at_once,
            "zipf": scenes::ZIPF, "payload_bytes": traffic::MSS,
        }),
        rows: rows.as_slice().to_vec(),
        disturbed: Disturbed::default(),
        notes: vec![
            "in memory: nothing was sent; CPU time is what finding, merging and giving out headers took"
                .into(),
            "no segment is lost and no header changes, so no packet ends for that".into(),
        ],
    }
}

/// What the kernel would merge of a stream without a hash, in full polls.
pub(super) fn predicted(stream: &[Arrival]) -> f64 {
    Way::Lab(Setup::of(Order::Kernel, Hash::None)).look(stream, Scene::BASE.poll).merge_ratio()
}

/// One sample of each side: all of them take the same segments.
fn sample(rows: &mut Rows, case: &Case, seed: u64, segments: usize) -> Result<()> {
    let Case { point, scene } = case;
    let stream = scene.traffic.stream(seed, segments)?;
    let mut players: Vec<(&str, Box<dyn Matcher>)> =
        scene.ways().map(|(side, way)| (side, way.matcher())).collect();
    let times = play::timed(&mut players, &stream, scene.poll, PLAYS, seed as usize);
    for ((side, way), ns) in scene.ways().zip(&times) {
        add(rows, side, point, CPU, *ns);
        if side != "kernel" {
            add(rows, side, point, TO_KERNEL, ns / times[0]);
        }
        record(rows, side, point, &way.look(&stream, scene.poll));
    }
    Ok(())
}

fn add(rows: &mut Rows, side: &str, point: &Point, metric: Metric, sample: f64) {
    // what lies behind the fourth decimal is no figure, and there are some ten thousand of them
    let sample = (sample * 1e4).round() / 1e4;
    rows.add(Kind::Gro.name(), side, Some(point.clone()), metric, sample);
}

fn record(rows: &mut Rows, side: &str, point: &Point, outcome: &Outcome) {
    let mut add = |metric, sample| add(rows, side, point, metric, sample);
    if let Some(walks) = outcome.walks {
        let each = |count: u64| count as f64 / walks.segments.max(1) as f64;
        add(VISITED, each(walks.visited));
        add(HASHES, each(walks.hashes));
        add(L3, each(walks.l3));
        add(L4, each(walks.l4));
    }
    add(MERGED, outcome.merge_ratio());
    let counts = &outcome.counts;
    add(EVICTED, outcome.share(counts.evicted));
    add(POLLED, outcome.share(counts.asked));
    add(CLOSED, outcome.share(counts.pushed + counts.short + counts.full + counts.alone));
}

fn show(what: &str) {
    if stderr().is_terminal() {
        tell!("\r\x1b[Kgro: {what}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_side_has_words_and_every_panel_its_points() {
        let cases = scenes::all(false);
        assert!(cases.iter().flat_map(|case| case.scene.ways()).all(|(name, _)| !side(name).is_empty()));
        for name in scenes::COST_PLOTTED.into_iter().chain([scenes::BUCKETS]) {
            assert!(cases.iter().filter(|case| case.point.name == name).count() > 1, "{name}");
        }
    }
}
