//! Ways of steering that a [`world`](crate::world) can be played with: Hoist's, and what else is done.

use crate::{
    BUCKETS, Placed, Policy, RingCounters, Rule, Settings, Table,
    random::mix,
    world::{Flow, Steering},
};
use std::collections::HashMap;

fn fixed(ring: u16) -> Placed {
    Placed { ring, after: None }
}

fn bucket(flow: Flow) -> u16 {
    (flow.hash % BUCKETS as u64) as u16
}

/// Table, rule and policy of this crate.
#[derive(Debug)]
pub struct Hoist {
    table: Table,
    policy: Policy,
    packets: Vec<u64>,
    moves: u64,
}

impl Hoist {
    /// Over so many rings, whose readers hold what must wait.
    pub fn over(rings: usize) -> Self {
        Self::with(Rule::Hold, rings)
    }

    /// Over so many rings, with a rule.
    pub fn with(rule: Rule, rings: usize) -> Self {
        Self {
            table: Table::new(rule, BUCKETS, rings),
            policy: Policy::new(BUCKETS, rings, Settings::default()),
            packets: vec![0; BUCKETS],
            moves: 0,
        }
    }
}

impl Steering for Hoist {
    fn place(&mut self, flow: Flow, rings: &[RingCounters]) -> Placed {
        let bucket = bucket(flow);
        self.packets[usize::from(bucket)] += 1;
        self.table.place(bucket, |ring| rings[usize::from(ring)].read)
    }

    fn tick(&mut self, rings: &[RingCounters]) {
        for moving in self.policy.tick(&self.packets, rings) {
            self.table.aim(moving.bucket, moving.ring);
            self.moves += 1;
        }
    }

    fn moves(&self) -> u64 {
        self.moves
    }
}

/// What a hash alone decides, whatever the load.
#[derive(Debug)]
pub struct Fixed {
    rings: u64,
    number: fn(Flow) -> u64,
}

impl Fixed {
    /// RSS and RPS: a table that never changes (`skb_get_hash`, `get_rps_cpu`).
    pub fn table(rings: usize) -> Self {
        Self { rings: rings as u64, number: |flow| bucket(flow).into() }
    }

    /// RFS: each flow goes where its reader runs, and readers are spread without looking at the load.
    pub fn readers(rings: usize) -> Self {
        Self { rings: rings as u64, number: |flow| mix(flow.hash) }
    }
}

impl Steering for Fixed {
    fn place(&mut self, flow: Flow, _: &[RingCounters]) -> Placed {
        fixed(((self.number)(flow) % self.rings) as u16)
    }

    fn tick(&mut self, _: &[RingCounters]) {}

    fn moves(&self) -> u64 {
        0
    }
}

/// The power of two choices (Mitzenmacher 2001): a new flow takes the ring with less load of two, and stays. Needs memory for each
/// flow.
#[derive(Debug)]
pub struct TwoChoices {
    rings: u64,
    flows: HashMap<u64, u16>,
    /// Packets in this tick.
    now: Vec<u32>,
    /// Smoothed packets per tick.
    load: Vec<f64>,
}

impl TwoChoices {
    /// Over so many rings.
    pub fn over(rings: usize) -> Self {
        Self { rings: rings as u64, flows: HashMap::new(), now: vec![0; rings], load: vec![0.0; rings] }
    }

    fn load(&self, ring: u64) -> f64 {
        self.load[ring as usize] + f64::from(self.now[ring as usize])
    }

    fn choose(&mut self, flow: Flow) -> u16 {
        let (one, other) = (flow.hash % self.rings, mix(flow.hash) % self.rings);
        let ring = if self.load(other) < self.load(one) { other } else { one };
        self.flows.insert(flow.hash, ring as u16);
        ring as u16
    }
}

impl Steering for TwoChoices {
    fn place(&mut self, flow: Flow, _: &[RingCounters]) -> Placed {
        let known = self.flows.get(&flow.hash).copied();
        let ring = known.unwrap_or_else(|| self.choose(flow));
        self.now[usize::from(ring)] += 1;
        fixed(ring)
    }

    fn tick(&mut self, _: &[RingCounters]) {
        for (load, now) in self.load.iter_mut().zip(&mut self.now) {
            *load = 0.8 * *load + 0.2 * f64::from(core::mem::take(now));
        }
    }

    fn moves(&self) -> u64 {
        0
    }
}

/// As RSS++ (Barbette et al., CoNEXT 2019): at a fixed interval, buckets go from rings above the mean to rings below it, those that
/// fit best first. It takes every difference for one.
#[derive(Debug)]
pub struct RssPlusPlus {
    table: Table,
    packets: Vec<u64>,
    ticks: u32,
    moves: u64,
}

/// Ticks between two looks.
const INTERVAL: u32 = 10;

impl RssPlusPlus {
    /// Over so many rings.
    pub fn over(rings: usize) -> Self {
        Self { table: Table::new(Rule::Wait, BUCKETS, rings), packets: vec![0; BUCKETS], ticks: 0, moves: 0 }
    }

    fn even_out(&mut self, rings: usize) {
        let mut place: Vec<usize> =
            (0..BUCKETS).map(|bucket| usize::from(self.table.ring(bucket as u16))).collect();
        let mut load = vec![0_u64; rings];
        place.iter().zip(&self.packets).for_each(|(&ring, packets)| load[ring] += packets);
        let mean = load.iter().sum::<u64>() / rings as u64;
        let mut order: Vec<usize> = (0..BUCKETS).collect();
        order.sort_by_key(|&bucket| core::cmp::Reverse(self.packets[bucket]));
        for bucket in order {
            let (from, packets) = (place[bucket], self.packets[bucket]);
            let Some(to) = (0..rings).min_by_key(|&ring| load[ring]) else { return };
            if packets > 0 && load[from] >= mean + packets && load[to] + packets <= mean {
                load[from] -= packets;
                load[to] += packets;
                place[bucket] = to;
                self.table.aim(bucket as u16, to as u16);
                self.moves += 1;
            }
        }
    }
}

impl Steering for RssPlusPlus {
    fn place(&mut self, flow: Flow, rings: &[RingCounters]) -> Placed {
        let bucket = bucket(flow);
        self.packets[usize::from(bucket)] += 1;
        self.table.place(bucket, |ring| rings[usize::from(ring)].read)
    }

    fn tick(&mut self, rings: &[RingCounters]) {
        self.ticks += 1;
        if self.ticks.is_multiple_of(INTERVAL) {
            self.even_out(rings.len());
            self.packets.fill(0);
        }
    }

    fn moves(&self) -> u64 {
        self.moves
    }
}
