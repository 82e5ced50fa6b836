//! Which buckets should change their ring.
//!
//! Every tick it sees what each bucket and each ring has counted so far. It does nothing while the rings are as even as chance
//! lets them be. Otherwise it moves the fewest and largest buckets that make them even, from the fullest ring to the emptiest:
//! never one that would only change places with the problem, and never one that has just moved.
//!
//! * **Elephants.** A bucket larger than a ring's fair share has its ring to itself, everything else leaves it: that is all that can be
//!   done without splitting a flow. It moves only out of a slow ring. The fair share of the others is counted without it.
//! * **Slow rings.** A ring whose backlog stays although it has no more than its share reads slower than the others (another
//!   program on its core, a smaller core): its share shrinks until it keeps up, and comes back slowly.
//! * **Noise.** Loads are smoothed over a few ticks, and a difference that chance explains (four standard deviations of that many
//!   packets) is none. So nothing swings.

/// How a policy behaves. The default is for ticks of a millisecond.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// A ring may have so much more than its share, as a fraction of it.
    pub tolerance: f64,
    /// Weight of the newest tick in a smoothed load, more than 0, at most 1.
    pub smoothing: f64,
    /// A bucket that has moved stays for so many ticks.
    pub rest: u32,
    /// Moves in one tick at most.
    pub most_moves: usize,
    /// Packets per tick and ring, on average, below which there is nothing to balance.
    pub quiet: f64,
}

impl Default for Settings {
    fn default() -> Self {
        Self { tolerance: 0.05, smoothing: 0.2, rest: 20, most_moves: 64, quiet: 4.0 }
    }
}

/// What a ring has counted since the beginning, packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RingCounters {
    /// Put in.
    pub given: u64,
    /// Taken out by its reader.
    pub read: u64,
}

/// A bucket that should go to another ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Move {
    /// Which.
    pub bucket: u16,
    /// Where to.
    pub ring: u16,
}

/// Ticks until a ring of which nothing could go is looked at again.
const PATIENCE: u64 = 5;
/// Speeds below and above which a ring is slow and fast to an elephant.
const SLOW: f64 = 0.6;
const FAST: f64 = 0.9;

/// What is known of a ring.
#[derive(Clone, Copy, Debug)]
struct Ring {
    seen: RingCounters,
    /// Smoothed packets per tick that its buckets bring.
    load: f64,
    /// Its share of the work beside a ring that keeps up, 0 to 1.
    speed: f64,
    /// Packets per tick that its reader takes out, smoothed over the time in which something waited.
    pace: f64,
    /// Ticks in a row with a backlog.
    behind: u32,
    /// Its largest bucket if that alone is more than a share.
    elephant: Option<u16>,
    /// Nothing in it could go: it is not looked at before this tick.
    barren_until: u64,
}

/// A backlog for so many ticks in a row is no burst. A longer look costs more than it tells: what waits holds its buckets back
/// ([`crate::Table`]).
const BEHIND: u32 = 3;
/// The least share of a slow ring: some packets must come, or nobody would see that it is well again.
const LEAST_SPEED: f64 = 0.02;

/// One table's.
#[derive(Clone, Debug)]
pub struct Policy {
    settings: Settings,
    rings: Vec<Ring>,
    place: Vec<u16>,
    seen: Vec<u64>,
    load: Vec<f64>,
    /// The tick until which a bucket stays.
    rests_until: Vec<u64>,
    tick: u64,
    moves: Vec<Move>,
    /// The buckets of each ring, while there is something to move.
    homes: Vec<Vec<u16>>,
}

impl Policy {
    /// For a table of `buckets` over `rings` in turn ([`crate::Table::new`]).
    ///
    /// # Panics
    /// Without rings.
    pub fn new(buckets: usize, rings: usize, settings: Settings) -> Self {
        let ring = Ring {
            seen: RingCounters::default(),
            load: 0.0,
            speed: 1.0,
            pace: 0.0,
            behind: 0,
            elephant: None,
            barren_until: 0,
        };
        Self {
            settings,
            rings: vec![ring; rings],
            place: (0..buckets).map(|bucket| (bucket % rings) as u16).collect(),
            seen: vec![0; buckets],
            load: vec![0.0; buckets],
            rests_until: vec![0; buckets],
            tick: 0,
            moves: Vec::new(),
            homes: vec![Vec::new(); rings],
        }
    }

    /// Where each bucket should be.
    pub fn places(&self) -> &[u16] {
        &self.place
    }

    /// Looks at the counters, packets per bucket and of each ring, and says what should move.
    ///
    /// # Panics
    /// Never with as many counters as there are buckets and rings.
    pub fn tick(&mut self, packets: &[u64], rings: &[RingCounters]) -> &[Move] {
        self.tick += 1;
        self.moves.clear();
        self.see_buckets(packets);
        self.see_rings(rings);
        let total: f64 = self.rings.iter().map(|ring| ring.load).sum();
        if self.rings.len() > 1 && total >= self.settings.quiet * self.rings.len() as f64 {
            let share = self.share(total);
            self.rehouse();
            self.even_out(share);
        }
        &self.moves
    }

    fn see_buckets(&mut self, packets: &[u64]) {
        let weight = self.settings.smoothing;
        self.rings.iter_mut().for_each(|ring| ring.load = 0.0);
        for (bucket, &count) in packets.iter().enumerate() {
            let new = count.wrapping_sub(self.seen[bucket]) as f64;
            self.seen[bucket] = count;
            self.load[bucket] += weight * (new - self.load[bucket]);
            self.rings[usize::from(self.place[bucket])].load += self.load[bucket];
        }
    }

    fn see_rings(&mut self, counters: &[RingCounters]) {
        let total: f64 = self.rings.iter().map(|ring| ring.load).sum();
        let speeds: f64 = self.rings.iter().map(|ring| ring.speed).sum();
        let (tolerance, weight) = (self.settings.tolerance, self.settings.smoothing);
        let quickest = self.rings.iter().map(|ring| ring.pace).fold(0.0, f64::max);
        for (ring, now) in self.rings.iter_mut().zip(counters) {
            let read = now.read.wrapping_sub(ring.seen.read);
            let backlog = now.given.wrapping_sub(now.read);
            ring.behind = if backlog > read / 2 && backlog > 8 { ring.behind.saturating_add(1) } else { 0 };
            ring.seen = *now;
            let weight = if ring.behind > 1 { weight } else { 1.0 };
            ring.pace += weight * (read as f64 - ring.pace);
            let fair = total * ring.speed / speeds;
            // behind with no more than a share, or behind and slower than another: not too much to do, but too slow
            let slow = ring.load <= fair + 2.0 * tolerance * total / speeds || ring.pace < SLOW * quickest;
            if ring.behind >= BEHIND && slow {
                // what it reads while something waits is what it can; a little less, so that the backlog goes
                let can = 0.9 * read as f64 * speeds / total.max(1.0);
                ring.speed = can.min(0.98 * ring.speed).max(LEAST_SPEED);
            } else if ring.behind == 0 {
                ring.speed = (ring.speed + 0.002).min(1.0);
            }
        }
        // when all are behind, none is slow
        let fastest = self.rings.iter().map(|ring| ring.speed).fold(LEAST_SPEED, f64::max);
        self.rings.iter_mut().for_each(|ring| ring.speed /= fastest);
    }

    /// The fair share of a ring that keeps up, packets per tick: elephants and their rings apart.
    fn share(&mut self, total: f64) -> f64 {
        let mut largest: Vec<(f64, u16)> = vec![(0.0, 0); self.rings.len()];
        for (bucket, &load) in self.load.iter().enumerate() {
            let largest = &mut largest[usize::from(self.place[bucket])];
            if load > largest.0 {
                *largest = (load, bucket as u16);
            }
        }
        self.rings.iter_mut().for_each(|ring| ring.elephant = None);
        let mut order: Vec<usize> = (0..self.rings.len()).collect();
        order.sort_unstable_by(|&a, &b| largest[b].0.total_cmp(&largest[a].0));
        let (mut load, mut speed) = (total, self.rings.iter().map(|ring| ring.speed).sum::<f64>());
        for (at, (elephant, bucket)) in order.into_iter().map(|at| (at, largest[at])) {
            let left = speed - self.rings[at].speed;
            // the last ring has what is left, whatever it is
            if elephant <= load / speed || elephant >= load || left <= 0.5 * LEAST_SPEED {
                break;
            }
            self.rings[at].elephant = Some(bucket);
            (load, speed) = (load - elephant, left);
        }
        load / speed
    }

    /// An elephant in a slow ring takes a fast one.
    fn rehouse(&mut self) {
        for from in 0..self.rings.len() {
            let Some(bucket) = self.rings[from].elephant.filter(|_| self.rings[from].speed < SLOW) else {
                continue;
            };
            let fast = (0..self.rings.len())
                .filter(|&at| self.rings[at].elephant.is_none() && self.rings[at].speed > FAST);
            let to = fast.min_by(|&a, &b| self.rings[a].load.total_cmp(&self.rings[b].load));
            if let Some(to) = to.filter(|_| self.rests_until[usize::from(bucket)] <= self.tick) {
                self.go(bucket, from, to);
                (self.rings[from].elephant, self.rings[to].elephant) = (None, Some(bucket));
            }
        }
    }

    fn even_out(&mut self, share: f64) {
        // packets that a smoothed load stands for
        let memory = 2.0 / self.settings.smoothing - 1.0;
        let noise = 4.0 / (share * memory).max(1.0).sqrt();
        let tolerance = self.settings.tolerance.max(noise);
        let mut full: Vec<(f64, usize)> = (0..self.rings.len())
            .map(|at| (self.excess(at, share), at))
            .filter(|&(excess, at)| {
                excess > self.bearable(at, share, tolerance) && self.rings[at].barren_until <= self.tick
            })
            .collect();
        if full.is_empty() {
            return;
        }
        full.sort_by(|a, b| b.0.total_cmp(&a.0));
        self.find_homes();
        let mut emptiest = self.emptiest(share);
        for (_, from) in full {
            while let Some((to, room)) = emptiest.filter(|&(to, _)| to != from) {
                let excess = self.excess(from, share);
                if excess <= self.bearable(from, share, tolerance)
                    || self.moves.len() >= self.settings.most_moves
                {
                    break;
                }
                let Some(bucket) = self.candidate(from, excess, room, tolerance * share) else {
                    self.rings[from].barren_until = self.tick + PATIENCE;
                    break;
                };
                self.go(bucket, from, to);
                emptiest = self.emptiest(share);
            }
        }
    }

    fn find_homes(&mut self) {
        self.homes.iter_mut().for_each(Vec::clear);
        for (bucket, &ring) in self.place.iter().enumerate() {
            self.homes[usize::from(ring)].push(bucket as u16);
        }
    }

    /// The ring with most room, and how much, packets per tick. None: each has an elephant.
    fn emptiest(&self, share: f64) -> Option<(usize, f64)> {
        let without = self.rings.iter().enumerate().filter(|(_, ring)| ring.elephant.is_none());
        without.map(|(at, ring)| (at, share * ring.speed - ring.load)).max_by(|a, b| a.1.total_cmp(&b.1))
    }

    /// What a ring may have too much. Beside an elephant that is next to nothing.
    fn bearable(&self, at: usize, share: f64, tolerance: f64) -> f64 {
        if self.rings[at].elephant.is_some() { 0.002 * share } else { tolerance * share }
    }

    /// What a ring has too much, packets per tick.
    fn excess(&self, at: usize, share: f64) -> f64 {
        let ring = &self.rings[at];
        match ring.elephant {
            Some(bucket) => ring.load - self.load[usize::from(bucket)],
            None => ring.load - share * ring.speed,
        }
    }

    /// The largest bucket of ring `from` that leaves neither ring worse than the other was: it fits into the room, or overfills the
    /// ring by less than it relieves this one.
    fn candidate(&self, from: usize, excess: f64, room: f64, slack: f64) -> Option<u16> {
        let elephant = self.rings[from].elephant;
        let fits = room.max(0.0).min(excess) + slack / 2.0;
        let may_go = |&&bucket: &&u16| {
            let (load, until) = (self.load[usize::from(bucket)], self.rests_until[usize::from(bucket)]);
            load > 0.0 && load <= fits && until <= self.tick && elephant != Some(bucket)
        };
        let load = |bucket: &&u16| self.load[usize::from(**bucket)];
        self.homes[from].iter().filter(may_go).max_by(|a, b| load(a).total_cmp(&load(b))).copied()
    }

    fn go(&mut self, bucket: u16, from: usize, to: usize) {
        let at = usize::from(bucket);
        self.place[at] = to as u16;
        self.rests_until[at] = self.tick + u64::from(self.settings.rest);
        self.rings[from].load -= self.load[at];
        self.rings[to].load += self.load[at];
        self.homes[from].retain(|&other| other != bucket);
        self.homes[to].push(bucket);
        self.moves.push(Move { bucket, ring: to as u16 });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Ticks in which bucket `b` brings `loads[b]` packets each, all read at once.
    fn run(policy: &mut Policy, loads: &[u64], ticks: u64, from: u64) -> Vec<Vec<Move>> {
        (from + 1..=from + ticks)
            .map(|tick| {
                let packets: Vec<u64> = loads.iter().map(|load| load * tick).collect();
                let rings = vec![RingCounters { given: tick, read: tick }; policy.rings.len()];
                policy.tick(&packets, &rings).to_vec()
            })
            .collect()
    }

    fn ring_loads(policy: &Policy, loads: &[u64]) -> Vec<u64> {
        let mut rings = vec![0; policy.rings.len()];
        loads.iter().zip(policy.places()).for_each(|(load, &ring)| rings[usize::from(ring)] += load);
        rings
    }

    #[test]
    fn even_rings_are_left_alone() {
        let mut policy = Policy::new(64, 4, Settings::default());
        let moves = run(&mut policy, &[100; 64], 200, 0);
        assert!(moves.iter().all(Vec::is_empty), "{moves:?}");
    }

    #[test]
    fn it_goes_on_for_years() {
        let mut policy = Policy::new(64, 2, Settings::default());
        policy.tick = u64::from(u32::MAX) - 50;
        policy.rings.iter_mut().for_each(|ring| ring.behind = u32::MAX);
        let loads: Vec<u64> = (0..64).map(|bucket| if bucket % 2 == 0 { 190 } else { 10 }).collect();
        let behind = [RingCounters { given: 1_000_000, read: 0 }; 2];
        policy.tick(&[0; 64], &behind);
        let moves = run(&mut policy, &loads, 100, 0);
        assert!(moves.iter().flatten().count() > 4, "49 days of milliseconds are past");
    }

    #[test]
    fn next_to_no_traffic_is_left_alone() {
        let mut policy = Policy::new(64, 4, Settings::default());
        let mut loads = [0; 64];
        loads[0] = 6;
        loads[4] = 6;
        assert!(run(&mut policy, &loads, 200, 0).iter().all(Vec::is_empty));
    }

    #[test]
    fn skew_is_gone_within_milliseconds_and_few_moves() {
        let mut policy = Policy::new(64, 2, Settings::default());
        let loads: Vec<u64> = (0..64).map(|bucket| if bucket % 2 == 0 { 190 } else { 10 }).collect();
        let moves = run(&mut policy, &loads, 10, 0);
        let rings = ring_loads(&policy, &loads);
        assert!(rings[0].abs_diff(rings[1]) <= 3_200 / 10, "{rings:?}");
        assert!(moves.concat().len() <= 18, "{}", moves.concat().len());
        let later = run(&mut policy, &loads, 500, 10);
        assert!(later.concat().len() <= 4, "it does not swing: {:?}", later.concat());
    }

    #[test]
    fn an_elephant_has_its_ring_to_itself() {
        let mut policy = Policy::new(64, 4, Settings::default());
        let mut loads = [20; 64];
        loads[5] = 5_000;
        run(&mut policy, &loads, 50, 0);
        let home = policy.places()[5];
        assert_eq!(home, 1, "the elephant stays");
        let others = (0..64).filter(|&bucket| bucket != 5 && policy.places()[bucket] == home).count();
        assert_eq!(others, 0);
        let rings = ring_loads(&policy, &loads);
        let rest: Vec<u64> = (0..4).filter(|&ring| ring != 1).map(|ring| rings[ring]).collect();
        assert!(rest.iter().all(|load| load.abs_diff(420) <= 42), "{rings:?}");
    }

    #[test]
    fn an_elephant_leaves_a_ring_that_slows_down() {
        let mut policy = Policy::new(64, 4, Settings::default());
        let mut loads = [20_u64; 64];
        loads[5] = 800;
        let (mut packets, mut rings) = (vec![0_u64; 64], vec![RingCounters::default(); 4]);
        let mut home = Vec::new();
        for tick in 0..600 {
            packets.iter_mut().zip(&loads).for_each(|(packets, load)| *packets += load);
            let given = ring_loads(&policy, &loads);
            for (at, ring) in rings.iter_mut().enumerate() {
                ring.given += given[at];
                let power = if at == 1 && tick >= 100 { 200 } else { 1_000 };
                ring.read += (ring.given - ring.read).min(power);
            }
            policy.tick(&packets, &rings);
            home.push(policy.places()[5]);
        }
        assert!(home[..100].iter().all(|&ring| ring == 1));
        assert!(home[150..].iter().all(|&ring| ring != 1), "{home:?}");
        let changes = home.windows(2).filter(|pair| pair[0] != pair[1]).count();
        assert_eq!(changes, 1, "it does not wander");
    }

    #[test]
    fn a_lone_elephant_moves_nothing() {
        let mut policy = Policy::new(64, 4, Settings::default());
        let mut loads = [0; 64];
        loads[5] = 5_000;
        assert!(run(&mut policy, &loads, 200, 0).concat().is_empty());
    }

    #[test]
    fn a_ring_that_slows_down_gets_less_and_then_its_share_again() {
        let mut policy = Policy::new(256, 4, Settings::default());
        let loads = [10_u64; 256];
        let (mut packets, mut rings) = (vec![0_u64; 256], vec![RingCounters::default(); 4]);
        let mut least = u64::MAX;
        for tick in 0..3_000 {
            packets.iter_mut().zip(&loads).for_each(|(packets, load)| *packets += load);
            let given = ring_loads(&policy, &loads);
            for (at, ring) in rings.iter_mut().enumerate() {
                ring.given += given[at];
                let power = if at == 2 && (500..1_500).contains(&tick) { 300 } else { 1_200 };
                ring.read += (ring.given - ring.read).min(power);
            }
            policy.tick(&packets, &rings);
            if (1_000..1_500).contains(&tick) {
                least = least.min(given[2]);
            }
        }
        assert!(least <= 300, "{least} packets a tick for a ring that can do 300");
        let rings = ring_loads(&policy, &loads);
        assert!(rings[2] >= 500 && rings.iter().all(|&load| load <= 672), "{rings:?}: a share is 640");
    }

    proptest! {
        /// Whatever the counters, moves name buckets and rings that are there, and nothing moves twice in its rest.
        #[test]
        fn moves_are_valid_and_rare(
            ticks in prop::collection::vec(prop::collection::vec(0_u64..2_000, 32), 1..60), rings in 1_usize..9,
        ) {
            let settings = Settings::default();
            let mut policy = Policy::new(32, rings, settings);
            let mut packets = vec![0; 32];
            let mut moved = vec![None::<usize>; 32];
            for (at, tick) in ticks.iter().enumerate() {
                packets.iter_mut().zip(tick).for_each(|(packets, new)| *packets += new);
                let counters = vec![RingCounters::default(); rings];
                for moving in policy.tick(&packets, &counters).to_vec() {
                    prop_assert!(usize::from(moving.ring) < rings);
                    let last = moved[usize::from(moving.bucket)].replace(at);
                    prop_assert!(last.is_none_or(|last| at - last >= settings.rest as usize));
                }
            }
        }

        /// A steady load comes to rest: as even as its buckets allow, and then nothing moves.
        #[test]
        fn a_steady_load_comes_to_rest(loads in prop::collection::vec(1_u64..300, 128), rings in 2_usize..9) {
            let mut policy = Policy::new(128, rings, Settings::default());
            run(&mut policy, &loads, 300, 0);
            let later = run(&mut policy, &loads, 200, 300);
            prop_assert!(later.concat().is_empty(), "{:?}", later.concat());
            let full = ring_loads(&policy, &loads);
            let mean = loads.iter().sum::<u64>() as f64 / rings as f64;
            prop_assert!(full.iter().all(|&load| load as f64 <= mean * 1.15 + 4.0), "{full:?}, mean {mean}");
        }
    }
}
