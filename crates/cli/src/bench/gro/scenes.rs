//! What is tried: traffic, and the room and the hash that engines have.

use super::{
    play::Way,
    traffic::{Hosts, Traffic},
};
use crate::bench::document::Point;
use hoist_packet::gro::{
    Limits, MAX_FLOWS,
    lab::{Hash, Order, Setup},
};

/// Zipf's exponent where traffic is skewed.
pub(super) const ZIPF: f64 = 1.1;

/// How many flows are tried.
pub(crate) const FLOWS: [u64; 7] = [1, 4, 8, 16, 64, 1_000, 10_000];

/// Traffic, and what engines are given.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scene {
    pub(super) traffic: Traffic,
    /// The device hashes. Without, all that the kernel holds is in one bucket.
    pub(super) is_hashed: bool,
    pub(super) buckets: usize,
    pub(super) held: usize,
    /// Packets that Hoist's engine holds.
    pub(super) flows_of_hoist: usize,
    /// Segments after which all is given out. A poll is 64 (`NAPI_POLL_WEIGHT`); below HZ 1000 each ends so.
    pub(super) poll: usize,
}

/// A scene and its place in the tables.
#[derive(Clone, Debug)]
pub(super) struct Case {
    pub(super) point: Point,
    pub(super) scene: Scene,
}

impl Scene {
    pub(super) const BASE: Self = Self {
        traffic: Traffic::BASE,
        is_hashed: false,
        buckets: Setup::BUCKETS,
        held: Setup::HELD,
        flows_of_hoist: MAX_FLOWS,
        poll: 64,
    };

    /// The sides. The first four have equal room, so that they differ in nothing but the order.
    pub(super) fn ways(&self) -> impl Iterator<Item = (&'static str, Way)> {
        let (hash, computed, buckets) = match self.is_hashed {
            true => (Hash::Device, Hash::Device, self.buckets),
            false => (Hash::None, Hash::Computed, 1),
        };
        let lab = |order, hash, buckets| Way::Lab(Setup { order, hash, buckets, held: self.held });
        [
            ("kernel", lab(Order::Kernel, hash, buckets)),
            ("l3-first", lab(Order::L3First, hash, buckets)),
            ("l4-first", lab(Order::L4First, hash, buckets)),
            ("hash-first", lab(Order::HashFirst, computed, buckets)),
            ("own-hash", lab(Order::HashFirst, Hash::Computed, self.buckets)),
            ("hoist", Way::Hoist(Limits { flows: self.flows_of_hoist, ..Limits::default() })),
        ]
        .into_iter()
    }
}

const ONE: &str = "flows of one host, no device hash";
const MANY: &str = "flows of many hosts, no device hash";
const ONE_HASHED: &str = "flows of one host, device hash";
const MANY_HASHED: &str = "flows of many hosts, device hash";

pub(super) const BUCKETS: &str = "buckets of 8 packets, device hash";

/// Points whose CPU time the picture has.
pub(super) const COST_PLOTTED: [&str; 3] = [ONE, MANY, ONE_HASHED];

pub(super) fn all(quick: bool) -> Vec<Case> {
    let mut cases = Vec::new();
    by_flows(&mut cases, quick);
    if !quick {
        by_traffic(&mut cases);
    }
    by_room(&mut cases, quick);
    cases
}

fn by_flows(cases: &mut Vec<Case>, quick: bool) {
    let base = Scene::BASE;
    let with = |hosts| Scene { traffic: Traffic { hosts, ..Traffic::BASE }, ..base };
    let (one, many) = (base, with(Hosts::Many));
    let zipf = Scene { traffic: Traffic { exponent: ZIPF, ..Traffic::BASE }, ..base };
    let hashed = |scene| Scene { is_hashed: true, ..scene };
    let mut named = vec![(ONE, one), (MANY, many), (ONE_HASHED, hashed(one)), (MANY_HASHED, hashed(many))];
    if !quick {
        named.extend([
            ("flows of many hosts with equal ports, no device hash", with(Hosts::ManyWithEqualPorts)),
            ("flows of one host by Zipf, no device hash", zipf),
            ("flows of one host by Zipf, device hash", hashed(zipf)),
            (
                "flows of one host over IPv6, no device hash",
                Scene { traffic: Traffic { v6: true, ..Traffic::BASE }, ..base },
            ),
        ]);
    }
    let flows: &[u64] = if quick { &[1, 100, 10_000] } else { &FLOWS };
    for (name, scene) in named {
        cases.extend(flows.iter().map(|&flows| Case {
            point: Point::of(name, flows as f64, "flows"),
            scene: Scene { traffic: Traffic { flows, ..scene.traffic }, ..scene },
        }));
    }
}

/// A thousand flows of one host.
fn by_traffic(cases: &mut Vec<Case>) {
    let mut add = |name: &str, value: f64, unit: &str, traffic| {
        for (end, is_hashed) in [("no device hash", false), ("device hash", true)] {
            let point = Point::of(&format!("{name}, {end}"), value, unit);
            cases.push(Case { point, scene: Scene { traffic, is_hashed, ..Scene::BASE } });
        }
    };
    for train in [1, 4, 16, 64] {
        add("train of a flow", train.into(), "segments", Traffic { train, ..Traffic::BASE });
    }
    for train in [4, 16] {
        let traffic = Traffic { train, pushes: true, ..Traffic::BASE };
        add("train of a flow that ends with PSH", train.into(), "segments", traffic);
    }
    for at_once in [1, 4, 16, 64] {
        let traffic = Traffic { at_once, train: 16, ..Traffic::BASE };
        add("trains of 16 at once", at_once as f64, "trains", traffic);
    }
}

/// Room of other sizes than the kernel's, for 64 trains of 16 at once.
fn by_room(cases: &mut Vec<Case>, quick: bool) {
    let traffic = Traffic { at_once: 64, train: 16, ..Traffic::BASE };
    let base = Scene { traffic, poll: 1024, ..Scene::BASE };
    let mut add = |name: &str, value: usize, unit: &str, scene| {
        cases.push(Case { point: Point::of(name, value as f64, unit), scene });
    };
    let held: &[usize] = if quick { &[8, 64] } else { &[1, 2, 4, 8, 16, 32, 64] };
    for &held in held {
        let scene = Scene { held, buckets: 1, flows_of_hoist: held, ..base };
        add("held in one bucket, no device hash", held, "packets", scene);
    }
    let buckets: &[usize] = if quick { &[8, 64] } else { &[1, 2, 4, 8, 16, 32, 64, 128] };
    for &buckets in buckets {
        add(BUCKETS, buckets, "buckets", Scene { buckets, is_hashed: true, ..base });
    }
    for poll in [64, 256, 1024, 4096] {
        add("poll of so many, device hash", poll, "segments", Scene { poll, is_hashed: true, ..base });
    }
}
