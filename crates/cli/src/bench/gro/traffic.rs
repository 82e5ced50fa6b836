//! Segments of many flows, in the order in which one queue would get them.

use anyhow::{Context, Result};
use hoist_packet::{
    Ip, SocketAddrRaw, ethernet,
    flow::FlowKey,
    gro::MAX_HEADERS,
    tcp::{self, ChecksumTrust, Segment, Template},
};
use hoist_steering::random::{Random, Zipf, mix};

/// Payload bytes of a segment.
pub(crate) const MSS: usize = 1448;
/// A segment's bytes in its frame, at most.
const FRAME: usize = MAX_HEADERS + MSS;
/// No-operation twice, then timestamps (RFC 7323).
const OPTIONS: [u8; 12] = [1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2];

/// Who sends, and how.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Traffic {
    pub(crate) flows: u64,
    /// Zipf's exponent: 0 is all alike.
    pub(crate) exponent: f64,
    pub(crate) hosts: Hosts,
    pub(crate) v6: bool,
    /// Segments that a flow sends before it is another's turn.
    pub(crate) train: u32,
    /// Trains that come at the same time: their segments mix.
    pub(crate) at_once: usize,
    /// The last segment of a train has PSH.
    pub(crate) pushes: bool,
}

/// Who the flows are of.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Hosts {
    /// One host with a port for each flow.
    One,
    /// A host for each flow, with a port that it chose by itself.
    Many,
    /// A host for each flow, all with the same port.
    ManyWithEqualPorts,
}

/// A segment without its payload.
#[derive(Clone, Debug)]
pub(crate) struct Arrival {
    pub(crate) headers: [u8; MAX_HEADERS],
    pub(crate) segment: Segment,
    /// The device's hash.
    pub(crate) hash: u32,
}

impl Traffic {
    pub(crate) const BASE: Self = Self {
        flows: 1_000,
        exponent: 0.0,
        hosts: Hosts::One,
        v6: false,
        train: 4,
        at_once: 16,
        pushes: false,
    };

    /// So many segments. The same seed gives the same.
    pub(crate) fn stream(&self, seed: u64, segments: usize) -> Result<Vec<Arrival>> {
        let mut sent = vec![0u32; self.flows as usize];
        let mut frame = vec![0; FRAME];
        let turns = self.turns(seed, segments).into_iter();
        let arrivals = turns.map(|turn| {
            let seq = sent[turn.flow as usize].wrapping_mul(MSS as u32);
            sent[turn.flow as usize] += 1;
            self.arrival(&turn, seq, &mut frame).context("a segment that cannot be written")
        });
        arrivals.collect()
    }

    /// Whose segment comes when.
    fn turns(&self, seed: u64, segments: usize) -> Vec<Turn> {
        let mut random = Random::seeded(mix(seed));
        let zipf = Zipf::new(self.flows, self.exponent);
        // the first trains are somewhere in their middle, or all would end at the same time
        let mut trains: Vec<(u64, u32)> = (0..self.at_once.max(1))
            .map(|_| (zipf.draw(&mut random), random.below(self.train.into()) as u32))
            .collect();
        let mut turn = || {
            let at = random.below(trains.len() as u64) as usize;
            if trains[at].1 == 0 {
                trains[at] = (zipf.draw(&mut random), self.train);
            }
            trains[at].1 -= 1;
            Turn { flow: trains[at].0, is_last: trains[at].1 == 0 }
        };
        (0..segments).map(|_| turn()).collect()
    }

    fn arrival(&self, turn: &Turn, seq: u32, frame: &mut [u8]) -> Option<Arrival> {
        let key = self.key(turn.flow);
        let pushed = if self.pushes && turn.is_last { tcp::PSH } else { 0 };
        let template = Template {
            link: ethernet::Header {
                destination: [2, 0, 0, 0, 0, 2],
                source: [2, 0, 0, 0, 0, 1],
                vlan: None,
            },
            source: key.source,
            destination: key.destination,
            ttl: 64,
            tos: 0,
            flow_label: 0,
            seq,
            ack: 1,
            flags: tcp::ACK | pushed,
            window: 500,
            urgent: 0,
            options: &OPTIONS,
            payload: &[0; MSS],
        };
        let len = template.write(frame)?;
        let segment = tcp::parse(frame.get(..len)?, ChecksumTrust::Verify).ok()?;
        let headers = *frame.first_chunk()?;
        Some(Arrival { headers, segment, hash: key.hash(0) })
    }

    fn key(&self, flow: u64) -> FlowKey {
        let (host, port) = match self.hosts {
            Hosts::One => (1, 1024 + flow as u16),
            Hosts::Many => (1 + flow as u16, 32_768 + mix(flow) as u16 % 28_232),
            Hosts::ManyWithEqualPorts => (1 + flow as u16, 32_768),
        };
        FlowKey { source: self.end(1, host, port), destination: self.end(2, 1, 443) }
    }

    fn end(&self, net: u8, host: u16, port: u16) -> SocketAddrRaw {
        let [high, low] = host.to_be_bytes();
        let v6 = [0xfd, 0, 0, 0, 0, 0, 0, net, 0, 0, 0, 0, 0, 0, high, low];
        let ip = if self.v6 { Ip::V6(v6) } else { Ip::V4([10, net, high, low]) };
        SocketAddrRaw { ip, port }
    }
}

/// A segment's flow.
struct Turn {
    flow: u64,
    is_last: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::{HashMap, HashSet};

    const SOME: Traffic = Traffic { flows: 50, ..Traffic::BASE };

    fn stream(traffic: &Traffic) -> Vec<Arrival> {
        traffic.stream(3, 2_000).unwrap()
    }

    #[test]
    fn the_same_seed_brings_the_same_and_every_flow_is_in_order() {
        let hashes = |seed| SOME.stream(seed, 500).unwrap().iter().map(|a| a.hash).collect::<Vec<_>>();
        assert_eq!(hashes(1), hashes(1));
        assert_ne!(hashes(1), hashes(2));
        let mut expected: HashMap<FlowKey, u32> = HashMap::new();
        for arrival in stream(&SOME) {
            let next = expected.entry(FlowKey::from(&arrival.segment)).or_default();
            assert_eq!(arrival.segment.seq, *next);
            *next += MSS as u32;
        }
        assert_eq!(expected.len(), 50);
    }

    #[test]
    fn hosts_differ_in_what_they_should() {
        for (hosts, addresses, ports) in
            [(Hosts::One, 1, 50), (Hosts::Many, 50, 50), (Hosts::ManyWithEqualPorts, 50, 1)]
        {
            for v6 in [false, true] {
                let stream = stream(&Traffic { hosts, v6, ..SOME });
                let of = |arrival: &Arrival| arrival.segment.source;
                let found: HashSet<Ip> = stream.iter().map(|arrival| of(arrival).ip).collect();
                assert_eq!(found.len(), addresses, "{hosts:?}");
                let found: HashSet<u16> = stream.iter().map(|arrival| of(arrival).port).collect();
                assert_eq!(found.len(), ports, "{hosts:?}");
            }
        }
    }

    #[test]
    fn one_train_at_once_is_a_row_that_ends_with_psh() {
        let stream = stream(&Traffic { at_once: 1, train: 4, pushes: true, ..SOME });
        let pushed: Vec<usize> =
            (0..stream.len()).filter(|&at| stream[at].segment.flags & tcp::PSH != 0).collect();
        assert!(pushed.windows(2).all(|pair| pair[1] == pair[0] + 4));
        assert!(stream.iter().all(|arrival| arrival.segment.payload_len() == MSS as u32));
    }
}
