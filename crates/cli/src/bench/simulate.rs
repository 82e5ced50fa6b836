//! `steering --simulate`: traffic and rings that exist in memory only, up to 128 rings and ten million flows.

use super::{
    document::{Disturbed, Document, Metric, Point, Rows, SCHEMA},
    host::{self, Host},
    kinds::Kind,
};
use anyhow::Result;
use hoist_steering::{
    BUCKETS, Placed, RingCounters, Rule,
    rival::{Fixed, Hoist, RssPlusPlus, TwoChoices},
    world::{self, Flow, Scene, Steering},
};
use std::{
    io::{IsTerminal, stderr},
    time::{Duration, Instant},
};

const BUSIEST: Metric = Metric::less("busiest ring", "of the least possible");
const DELAY: Metric = Metric::less("delay that 1 in 100 exceeds", "ms");
const LOST: Metric = Metric::less("lost for want of room", "%");
const SETTLED: Metric = Metric::part("settled after", "ms");
const MOVES: Metric = Metric::part("moves", "moves/s");
const REORDERED: Metric = Metric::part("could be overtaken", "packets");
const TICK: Metric = Metric::part("decisions", "ns/tick");

/// Makes a way of steering over so many rings.
type Make = fn(usize) -> Box<dyn Steering>;

const SIDES: [(&str, Make); 6] = [
    ("hash", |rings| Box::new(Fixed::table(rings))),
    ("rfs", |rings| Box::new(Fixed::readers(rings))),
    ("two-choices", |rings| Box::new(TwoChoices::over(rings))),
    ("rss++", |rings| Box::new(RssPlusPlus::over(rings))),
    ("hoist-wait", |rings| Box::new(Hoist::with(Rule::Wait, rings))),
    ("hoist", |rings| Box::new(Hoist::over(rings))),
];

/// What a side is, in words.
pub(super) fn side(side: &str) -> &'static str {
    match side {
        "hash" => "bucket = hash, a table that never changes (RSS, RPS)",
        "rfs" => "each flow where its reader runs; readers are spread blindly",
        "two-choices" => "a new flow takes the less loaded of two rings and stays; a table of all flows",
        "rss++" => "buckets move to the emptiest ring every 10 ms, and wait as RFS's flows do",
        "hoist-wait" => "Hoist's policy every ms, and buckets wait as RFS's flows do",
        "hoist" => "Hoist's policy every ms, and readers hold what must wait",
        _ => "",
    }
}

/// The run, with `repeats` seeds.
pub(super) fn steering(quick: bool, repeats: usize) -> Result<Document> {
    let base = Scene { ticks: if quick { 600 } else { 2_000 }, ..Scene::default() };
    let mut rows = Rows::default();
    for (point, scene) in scenes(&base, quick) {
        for seed in 1..=repeats as u64 {
            for (side, make) in SIDES {
                show(&format!("{} {}, {side}, {seed} of {repeats}", point.name, point.value));
                play(&mut rows, side, &point, &Scene { seed, ..scene }, make(scene.rings));
            }
        }
    }
    if stderr().is_terminal() {
        tell!("\r\x1b[K");
    }
    Ok(document(&base, repeats, &rows))
}

fn document(base: &Scene, repeats: usize, rows: &Rows) -> Document {
    Document {
        schema: SCHEMA,
        name: Kind::Steering.name().into(),
        command: host::command(),
        commit: host::COMMIT.into(),
        host: Host::here(0),
        settings: serde_json::json!({
            "simulated": true, "repeats": repeats, "ticks_ms": base.ticks, "rings": base.rings,
            "flows": base.flows, "zipf": base.exponent, "load": base.load, "buckets": BUCKETS,
            "ring_packets_per_ms": world::POWER, "ring_room_packets": world::ROOM,
        }),
        rows: rows.as_slice().to_vec(),
        disturbed: Disturbed::default(),
        notes: vec!["simulated: no packet was sent; only the policy's own time was measured".into()],
    }
}

fn scenes(base: &Scene, quick: bool) -> Vec<(Point, Scene)> {
    let rings: &[usize] = if quick { &[2, 8, 32] } else { &[2, 4, 8, 16, 32, 64, 128] };
    let flows: &[u64] =
        if quick { &[10, 1_000, 100_000] } else { &[10, 100, 1_000, 10_000, 100_000, 10_000_000] };
    let over_rings =
        rings.iter().map(|&rings| (Point::of("rings", rings as f64, "rings"), Scene { rings, ..*base }));
    let over_flows = flows
        .iter()
        .map(|&flows| (Point::of("flows over 8 rings", flows as f64, "flows"), Scene { flows, ..*base }));
    let eight = |name: &str, scene| (Point::of(name, 8.0, "rings"), scene);
    let troubles = [
        eight("rings while flows live for a second", Scene { churn: 1.0, ..*base }),
        eight("rings while single flows burst", Scene { bursts: 0.3, ..*base }),
        eight("rings while one reader is four times slower", Scene { slowdown: 4.0, load: 0.6, ..*base }),
        eight("rings while all flows are alike", Scene { exponent: 0.0, ..*base }),
    ];
    over_rings.chain(over_flows).chain(troubles).collect()
}

fn play(rows: &mut Rows, side: &str, point: &Point, scene: &Scene, steering: Box<dyn Steering>) {
    let mut steering = Timed::of(steering);
    let outcome = world::play(scene, &mut steering, |_| {});
    let mut add = |metric, sample| rows.add(Kind::Steering.name(), side, Some(point.clone()), metric, sample);
    add(BUSIEST, outcome.busiest);
    add(DELAY, outcome.p99_ms);
    add(LOST, 100.0 * outcome.lost);
    add(MOVES, outcome.moves);
    add(REORDERED, outcome.reordered as f64);
    add(TICK, steering.ns_per_tick());
    if let Some(ms) = outcome.settled_ms {
        add(SETTLED, ms);
    }
}

/// A way of steering whose ticks are timed.
struct Timed {
    steering: Box<dyn Steering>,
    spent: Duration,
    ticks: u32,
}

impl Timed {
    fn of(steering: Box<dyn Steering>) -> Self {
        Self { steering, spent: Duration::ZERO, ticks: 0 }
    }

    fn ns_per_tick(&self) -> f64 {
        self.spent.as_nanos() as f64 / f64::from(self.ticks.max(1))
    }
}

impl Steering for Timed {
    fn place(&mut self, flow: Flow, rings: &[RingCounters]) -> Placed {
        self.steering.place(flow, rings)
    }

    fn tick(&mut self, rings: &[RingCounters]) {
        let begin = Instant::now();
        self.steering.tick(rings);
        self.spent += begin.elapsed();
        self.ticks += 1;
    }

    fn moves(&self) -> u64 {
        self.steering.moves()
    }
}

fn show(what: &str) {
    if stderr().is_terminal() {
        tell!("\r\x1b[Ksteering: {what}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_side_has_words_and_every_scene_its_rings() {
        assert!(SIDES.iter().all(|(name, _)| !side(name).is_empty()));
        let base = Scene::default();
        let scenes = scenes(&base, false);
        assert_eq!(scenes.iter().map(|(_, scene)| scene.rings).max(), Some(128));
        assert_eq!(scenes.iter().map(|(_, scene)| scene.flows).max(), Some(10_000_000));
    }

    #[test]
    fn hoist_is_more_even_than_a_hash_in_every_quick_scene_with_skew() {
        for (point, scene) in scenes(&Scene { ticks: 300, ..Scene::default() }, true) {
            let busiest = |steering: &mut dyn Steering| world::play(&scene, steering, |_| {}).busiest;
            let (hash, hoist) =
                (busiest(&mut Fixed::table(scene.rings)), busiest(&mut Hoist::over(scene.rings)));
            assert!(hoist <= hash * 1.02, "{point:?}: {hoist} against {hash}");
        }
    }
}
