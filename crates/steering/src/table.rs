//! The rule of a move, which keeps every flow in order.
//!
//! RFS has one (`get_rps_cpu`, `last_qtail`): a flow goes to another CPU with the first packet that comes once everything of it that
//! was put in the old queue has been taken out. Until then its packets follow the others into the old queue. That is
//! [`Rule::Wait`], the only one that readers need not know of. But a bucket whose packets come faster than a backlog goes never moves:
//! a ring that is overloaded keeps its load ([`crate::world`] shows it).
//!
//! [`Rule::Hold`] moves at once and lets the new ring's reader wait instead: what it takes out of the ring it must not hand out before the
//! old ring has been drained past the bucket's last packet there ([`After`]); it sets it aside and goes on with other buckets. A packet
//! that is set aside counts as drained only when it is handed out. Every packet waits only for packets that came before it, so this
//! comes to an end.

/// How a bucket changes its ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// It stays until the old ring has been drained past its last packet.
    Wait,
    /// It goes at once, and its packets are held until then.
    Hold,
}

/// A packet of the bucket must not be handed out before `ring` has been drained of its first `packets` packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct After {
    /// The old ring.
    pub ring: u16,
    /// Packets that it had been given when the bucket's last one was in.
    pub packets: u64,
}

/// Where a packet goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placed {
    /// Its ring.
    pub ring: u16,
    /// What its reader has to wait for.
    pub after: Option<After>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Bucket {
    ring: u16,
    target: u16,
    /// What its ring had been given when the bucket's last packet was in.
    last: u64,
    after: Option<After>,
}

/// Buckets and what each ring has been given.
#[derive(Clone, Debug)]
pub struct Table {
    rule: Rule,
    buckets: Vec<Bucket>,
    given: Vec<u64>,
}

impl Table {
    /// `buckets` over `rings` in turn.
    ///
    /// # Panics
    /// Without rings.
    pub fn new(rule: Rule, buckets: usize, rings: usize) -> Self {
        let at = |bucket: usize| (bucket % rings) as u16;
        let bucket = |bucket| Bucket { ring: at(bucket), target: at(bucket), last: 0, after: None };
        Self { rule, buckets: (0..buckets).map(bucket).collect(), given: vec![0; rings] }
    }

    /// Wants `bucket` in `ring` from the next packet on that the rule lets go there. The last word counts.
    pub fn aim(&mut self, bucket: u16, ring: u16) {
        self.buckets[usize::from(bucket)].target = ring;
    }

    /// Where the next packet of `bucket` goes. `drained` says of a ring how many of its packets, from the first on, have all been
    /// handed out.
    pub fn place(&mut self, bucket: u16, drained: impl Fn(u16) -> u64) -> Placed {
        let bucket = &mut self.buckets[usize::from(bucket)];
        bucket.after = bucket.after.filter(|after| drained(after.ring) < after.packets);
        if bucket.target != bucket.ring && bucket.after.is_none() {
            let left = After { ring: bucket.ring, packets: bucket.last };
            let is_empty = drained(left.ring) >= left.packets;
            if is_empty || self.rule == Rule::Hold {
                bucket.ring = bucket.target;
                bucket.after = (!is_empty).then_some(left);
            }
        }
        let given = &mut self.given[usize::from(bucket.ring)];
        *given += 1;
        bucket.last = *given;
        Placed { ring: bucket.ring, after: bucket.after }
    }

    /// Where the bucket's packets went last.
    pub fn ring(&self, bucket: u16) -> u16 {
        self.buckets[usize::from(bucket)].ring
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;

    /// What can happen next. Two buckets and two rings are enough to overtake.
    #[derive(Clone, Copy, Debug)]
    enum Event {
        Packet(u16),
        Take(u16),
        Aim(u16, u16),
    }

    const EVENTS: [Event; 8] = [
        Event::Packet(0),
        Event::Packet(1),
        Event::Take(0),
        Event::Take(1),
        Event::Aim(0, 0),
        Event::Aim(0, 1),
        Event::Aim(1, 0),
        Event::Aim(1, 1),
    ];

    #[derive(Clone, Copy)]
    struct Packet {
        bucket: u16,
        /// In its bucket, from 0.
        number: u32,
        /// In its ring, from 1.
        position: u64,
        after: Option<After>,
    }

    /// A ring and its reader.
    #[derive(Clone, Default)]
    struct Ring {
        waiting: VecDeque<Packet>,
        aside: Vec<Packet>,
        taken: u64,
    }

    impl Ring {
        fn drained(&self) -> u64 {
            self.aside.iter().map(|packet| packet.position - 1).min().unwrap_or(self.taken)
        }
    }

    #[derive(Clone)]
    struct World {
        table: Table,
        rings: [Ring; 2],
        given: [u64; 2],
        sent: [u32; 2],
        next: [u32; 2],
        /// Whether anybody heeds what has been drained.
        careful: bool,
    }

    impl World {
        fn new(rule: Rule, careful: bool) -> Self {
            Self {
                table: Table::new(rule, 2, 2),
                rings: Default::default(),
                given: [0; 2],
                sent: [0; 2],
                next: [0; 2],
                careful,
            }
        }

        fn drained(&self) -> [u64; 2] {
            if self.careful { [0, 1].map(|ring: usize| self.rings[ring].drained()) } else { [u64::MAX; 2] }
        }

        /// False: a packet was handed out before one of its bucket that had come earlier.
        fn happens(&mut self, event: Event) -> bool {
            match event {
                Event::Packet(bucket) => self.comes(bucket),
                Event::Take(ring) => return self.take(usize::from(ring)),
                Event::Aim(bucket, ring) => self.table.aim(bucket, ring),
            }
            true
        }

        fn comes(&mut self, bucket: u16) {
            let drained = self.drained();
            let Placed { ring, after } = self.table.place(bucket, |ring| drained[usize::from(ring)]);
            let (ring, number) = (usize::from(ring), &mut self.sent[usize::from(bucket)]);
            self.given[ring] += 1;
            let packet = Packet { bucket, number: *number, position: self.given[ring], after };
            self.rings[ring].waiting.push_back(packet);
            *number += 1;
        }

        /// A reader looks: what is set aside first, then the next in the ring.
        fn take(&mut self, ring: usize) -> bool {
            let mut right = self.release(ring);
            if let Some(packet) = self.rings[ring].waiting.pop_front() {
                self.rings[ring].taken += 1;
                self.rings[ring].aside.push(packet);
                right &= self.release(ring);
            }
            right
        }

        fn release(&mut self, ring: usize) -> bool {
            let mut right = true;
            let mut held = [false; 2];
            for packet in core::mem::take(&mut self.rings[ring].aside) {
                // of what this pass has taken aside, nothing counts as handed out
                let drained = self.drained();
                let waits =
                    packet.after.is_some_and(|after| drained[usize::from(after.ring)] < after.packets);
                if waits || held[usize::from(packet.bucket)] {
                    held[usize::from(packet.bucket)] = true;
                    self.rings[ring].aside.push(packet);
                    continue;
                }
                let next = &mut self.next[usize::from(packet.bucket)];
                right &= packet.number == *next;
                *next += 1;
            }
            right
        }

        /// Whether everything comes out when the readers go on and nothing new comes.
        fn ends(mut self) -> bool {
            let right = (0..64).all(|look| self.take(look % 2));
            right && self.next == self.sent
        }

        /// Whether every sequence of `depth` events keeps the order, and ends.
        fn keeps_order(&self, depth: u32) -> bool {
            let all = || {
                EVENTS.iter().all(|event| {
                    let mut after = self.clone();
                    after.happens(*event) && after.keeps_order(depth - 1)
                })
            };
            self.clone().ends() && (depth == 0 || all())
        }
    }

    #[test]
    fn no_sequence_of_six_events_reorders_a_bucket() {
        for rule in [Rule::Wait, Rule::Hold] {
            assert!(World::new(rule, true).keeps_order(6), "{rule:?}");
        }
    }

    #[test]
    fn no_long_sequence_does_either() {
        let mut random = crate::random::Random::seeded(11);
        for rule in [Rule::Wait, Rule::Hold] {
            for _ in 0..20_000 {
                let mut world = World::new(rule, true);
                let right =
                    (0..200).all(|_| world.happens(EVENTS[random.below(EVENTS.len() as u64) as usize]));
                assert!(right, "{rule:?}");
                (0..400).for_each(|look| assert!(world.take(look % 2), "{rule:?}"));
                assert_eq!(world.next, world.sent, "{rule:?}");
            }
        }
    }

    #[test]
    fn a_move_that_heeds_nothing_reorders() {
        assert!(!World::new(Rule::Wait, false).keeps_order(5));
    }

    #[test]
    fn a_bucket_that_waits_follows_its_packets_until_they_are_gone() {
        let mut table = Table::new(Rule::Wait, 4, 2);
        let mut place = |drained: u64| table.place(0, |_| drained).ring;
        assert_eq!(place(0), 0);
        table.aim(0, 1);
        let mut place = |drained: u64| table.place(0, |_| drained).ring;
        assert_eq!(place(0), 0, "one waits");
        assert_eq!(place(1), 0, "two were given");
        assert_eq!(place(3), 1);
    }

    #[test]
    fn a_bucket_that_is_held_goes_at_once_and_names_what_it_waits_for() {
        let mut table = Table::new(Rule::Hold, 4, 2);
        table.place(0, |_| 0);
        table.aim(0, 1);
        let after = Some(After { ring: 0, packets: 1 });
        assert_eq!(table.place(0, |_| 0), Placed { ring: 1, after });
        assert_eq!(table.place(0, |_| 0), Placed { ring: 1, after }, "it still waits");
        table.aim(0, 0);
        assert_eq!(table.place(0, |_| 0).ring, 1, "one thing to wait for is enough");
        let drained = |ring: u16| if ring == 0 { 1 } else { 3 };
        assert_eq!(table.place(0, drained), Placed { ring: 0, after: None });
    }
}
