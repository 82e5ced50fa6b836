//! Ways of matching: what each looks at on small streams, and that none of them changes what comes out.

#![allow(clippy::unwrap_used)] // helpers of tests: a panic is the failure

use hoist_packet::{
    Ip, SocketAddrRaw, ethernet,
    flow::FlowKey,
    gro::{
        Counts, Gro, Limits, Merged,
        lab::{Hash, Lab, Order, Setup, Walks},
    },
    tcp::{self, ChecksumTrust, Segment, Template},
};
use proptest::prelude::*;
use std::collections::HashMap;

const ORDERS: [Order; 4] = [Order::Kernel, Order::L3First, Order::L4First, Order::HashFirst];
const HASHES: [Hash; 3] = [Hash::None, Hash::Device, Hash::Computed];
const MSS: usize = 100;

/// The next segment of a flow.
#[derive(Clone, Copy, Debug)]
struct Next {
    v6: bool,
    host: u8,
    port: u16,
    at: u32,
    len: usize,
    flags: u8,
    hash: u32,
}

/// A full segment. Hashes are multiples of eight: of 8 buckets, all are in the first.
fn next(host: u8, port: u16, at: u32) -> Next {
    Next { v6: false, host, port, at, len: MSS, flags: tcp::ACK, hash: u32::from(port) * 8 }
}

impl Next {
    fn end(&self, host: u8, port: u16) -> SocketAddrRaw {
        let v6 = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, host];
        let ip = if self.v6 { Ip::V6(v6) } else { Ip::V4([10, 0, 0, host]) };
        SocketAddrRaw { ip, port }
    }

    fn key(&self) -> FlowKey {
        FlowKey { source: self.end(self.host, self.port), destination: self.end(200, 80) }
    }

    fn frame(&self) -> (Vec<u8>, Segment) {
        let FlowKey { source, destination } = self.key();
        let link =
            ethernet::Header { destination: [2, 0, 0, 0, 0, 2], source: [2, 0, 0, 0, 0, 1], vlan: None };
        let template = Template {
            link,
            source,
            destination,
            ttl: 64,
            tos: 0,
            flow_label: 0,
            seq: self.at * MSS as u32,
            ack: 1,
            flags: self.flags,
            window: 500,
            urgent: 0,
            options: &[],
            payload: &[0x5a; MSS][..self.len],
        };
        let mut frame = vec![0; 256];
        let len = template.write(&mut frame).unwrap();
        frame.truncate(len);
        let segment = tcp::parse(&frame, ChecksumTrust::Verify).unwrap();
        (frame, segment)
    }
}

/// What came out of an engine that was flushed at the end.
struct Outcome {
    out: Vec<Merged>,
    counts: Counts,
    walks: Walks,
}

fn through(setup: Setup, stream: &[Next]) -> Outcome {
    let mut lab = Lab::<64, Walks>::new(setup, Walks::default());
    let mut out = Vec::new();
    for next in stream {
        let (frame, segment) = next.frame();
        lab.receive(&frame, &segment, next.hash, &mut |merged| out.push(merged.clone()));
    }
    lab.flush_all(&mut |merged| out.push(merged.clone()));
    Outcome { out, counts: lab.counts(), walks: *lab.watch() }
}

fn walks(order: Order, hash: Hash, stream: &[Next]) -> [u64; 4] {
    let Walks { visited, hashes, l3, l4, .. } = through(Setup::of(order, hash), stream).walks;
    [visited, hashes, l3, l4]
}

/// Three flows, and the first one again: the list is 0, 1, 2 and 3 long, and the flow is its last.
fn three(host: impl Fn(u8) -> u8, port: impl Fn(u16) -> u16) -> Vec<Next> {
    [(0, 0), (1, 0), (2, 0), (0, 1)]
        .map(|(flow, at)| Next { hash: 8 * (u32::from(flow) + 1), ..next(host(flow), port(flow.into()), at) })
        .into()
}

#[test]
fn of_one_host_addresses_rule_nothing_out_and_ports_do() {
    let stream = three(|_| 1, |flow| 4000 + flow);
    assert_eq!(walks(Order::L3First, Hash::None, &stream), [6, 0, 6, 6]);
    assert_eq!(walks(Order::L4First, Hash::None, &stream), [6, 0, 1, 6]);
    assert_eq!(walks(Order::Kernel, Hash::None, &stream), [18, 6, 6, 6]);
}

#[test]
fn of_many_hosts_addresses_rule_out_as_early_as_ports() {
    let stream = three(|flow| flow + 1, |flow| 4000 + flow);
    assert_eq!(walks(Order::L3First, Hash::None, &stream), [6, 0, 6, 1]);
    assert_eq!(walks(Order::L4First, Hash::None, &stream), [6, 0, 1, 6]);
    assert_eq!(walks(Order::Kernel, Hash::None, &stream), [18, 6, 6, 1]);
}

#[test]
fn where_all_ports_are_equal_ports_rule_nothing_out() {
    let stream = three(|flow| flow + 1, |_| 4000);
    assert_eq!(walks(Order::L3First, Hash::None, &stream), [6, 0, 6, 1]);
    assert_eq!(walks(Order::L4First, Hash::None, &stream), [6, 0, 6, 6]);
}

#[test]
fn a_hash_leaves_one_comparison_of_addresses_and_ports() {
    for stream in [three(|_| 1, |flow| 4000 + flow), three(|flow| flow + 1, |_| 4000)] {
        assert_eq!(walks(Order::HashFirst, Hash::Device, &stream), [6, 6, 1, 1]);
        assert_eq!(walks(Order::Kernel, Hash::Device, &stream), [18, 6, 1, 1]);
    }
}

#[test]
fn without_a_hash_hash_first_compares_zeros() {
    let stream = three(|_| 1, |flow| 4000 + flow);
    assert_eq!(walks(Order::HashFirst, Hash::None, &stream), [6, 6, 1, 6]);
}

#[test]
fn a_computed_hash_is_computed_once_a_segment_and_rules_out_as_the_devices() {
    let stream = three(|_| 1, |flow| 4000 + flow);
    let one = Setup { buckets: 1, ..Setup::of(Order::HashFirst, Hash::Computed) };
    let Walks { segments, hashed, visited, hashes, l3, l4 } = through(one, &stream).walks;
    assert_eq!((segments, hashed, [visited, hashes, l3, l4]), (4, 4, [6, 6, 1, 1]));
}

#[test]
fn one_flow_meets_a_list_of_one() {
    let stream: Vec<Next> = (0..10).map(|at| next(1, 4000, at)).collect();
    for order in ORDERS {
        let outcome = through(Setup::of(order, Hash::None), &stream);
        assert_eq!((outcome.out.len(), outcome.counts.merged, outcome.counts.asked), (1, 9, 1), "{order:?}");
        let passes = if order == Order::Kernel { 3 } else { 1 };
        assert_eq!(outcome.walks.visited, 9 * passes, "{order:?}");
    }
}

#[test]
fn the_ninth_flow_of_a_bucket_evicts_the_first() {
    let stream: Vec<Next> = (0..9).map(|flow| next(1, 4000 + flow, 0)).collect();
    for order in ORDERS {
        let outcome = through(Setup::of(order, Hash::None), &stream);
        assert_eq!((outcome.counts.evicted, outcome.counts.asked), (1, 8), "{order:?}");
        assert_eq!(outcome.out[0].flow(), stream[0].key(), "{order:?}");
    }
}

#[test]
fn a_device_hash_spreads_over_buckets_and_a_flush_goes_bucket_by_bucket() {
    let stream: Vec<Next> =
        (0..16).map(|flow| Next { hash: 15 - flow, ..next(1, 4000 + flow as u16, 0) }).collect();
    let outcome = through(Setup::of(Order::Kernel, Hash::Device), &stream);
    assert_eq!((outcome.counts.evicted, outcome.counts.asked), (0, 16));
    // each bucket has two, and the list of one is walked by its second: three passes
    assert_eq!(outcome.walks.visited, 8 * 3);
    let ports: Vec<u16> = outcome.out.iter().map(|merged| merged.flow().source.port - 4000).collect();
    assert_eq!(ports, [7, 15, 6, 14, 5, 13, 4, 12, 3, 11, 2, 10, 1, 9, 0, 8]);
}

#[test]
fn reasons_are_counted_and_a_packet_from_the_middle_leaves_the_list_whole() {
    let last = |flags, len| Next { flags, len, ..next(1, 4001, 1) };
    for (ending, pushed, short) in [(last(tcp::ACK | tcp::PSH, MSS), 1, 0), (last(tcp::ACK, 50), 0, 1)] {
        let stream = [next(1, 4000, 0), next(1, 4001, 0), next(1, 4002, 0), ending, next(1, 4000, 1)];
        let outcome = through(Setup::of(Order::Kernel, Hash::None), &stream);
        let Counts { merged, asked, .. } = outcome.counts;
        assert_eq!((outcome.counts.pushed, outcome.counts.short, merged, asked), (pushed, short, 2, 2));
        let ports: Vec<u16> = outcome.out.iter().map(|merged| merged.flow().source.port).collect();
        assert_eq!(ports, [4001, 4000, 4002]);
    }
    let gap = through(Setup::of(Order::L4First, Hash::None), &[next(1, 4000, 0), next(1, 4000, 2)]);
    assert_eq!((gap.counts.gap, gap.counts.asked, gap.counts.merged), (1, 1, 0));
}

#[test]
fn numbers_out_of_range_are_brought_into_it() {
    let stream: Vec<Next> = (0..100).map(|flow| next(1, 4000 + flow, 0)).collect();
    let held = |buckets, held| {
        let setup = Setup { buckets, held, ..Setup::of(Order::L3First, Hash::None) };
        through(setup, &stream).counts.asked
    };
    assert_eq!((held(0, 0), held(3, 1000), held(1, 1000), held(1 << 40, 9)), (1, 16, 64, 1));
}

fn segment() -> impl Strategy<Value = (u8, u8, u8, u8)> {
    (0..24u8, any::<u8>(), any::<u8>(), any::<u8>())
}

/// Flows of two families, some of which share all but one port or one address, and now and then a gap, an end or a short one.
fn stream(choices: &[(u8, u8, u8, u8)]) -> Vec<Next> {
    let mut sent: HashMap<u8, u32> = HashMap::new();
    let of = |&(flow, gap, end, len): &(u8, u8, u8, u8)| {
        let at = sent.entry(flow).or_default();
        *at += 1 + u32::from(gap < 10);
        Next {
            v6: flow & 8 != 0,
            host: flow & 3,
            port: 4000 + u16::from(flow & 4) + u16::from(flow & 16),
            flags: if end < 20 { tcp::ACK | tcp::PSH } else { tcp::ACK },
            len: if len < 20 { 50 } else { MSS },
            hash: u32::from(flow).wrapping_mul(0x9e37_79b9) >> 27,
            ..next(0, 0, *at)
        }
    };
    choices.iter().map(of).collect()
}

fn shown(out: &[Merged]) -> Vec<(&[u8], u32, u32, u16)> {
    out.iter().map(|m| (m.headers(), m.payload_len(), m.segments(), m.gso_size())).collect()
}

/// Every flow's bytes, once and in the order in which they came.
fn assert_conserved(stream: &[Next], out: &[Merged]) {
    let mut sent: HashMap<FlowKey, Vec<(u32, u32)>> = HashMap::new();
    for next in stream {
        sent.entry(next.key()).or_default().push((next.at * MSS as u32, next.len as u32));
    }
    for merged in out {
        let of_flow = sent.get_mut(&merged.flow()).unwrap();
        let inside: Vec<_> = of_flow.drain(..merged.segments() as usize).collect();
        assert_eq!(merged.seq(), inside[0].0);
        assert_eq!(merged.payload_len(), inside.iter().map(|(_, len)| len).sum::<u32>());
        assert!(inside.windows(2).all(|pair| pair[0].0 + pair[0].1 == pair[1].0), "no gap in a packet");
    }
    assert!(sent.values().all(Vec::is_empty));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_order_gives_the_same_packets(
        choices in prop::collection::vec(segment(), 0..300),
        buckets in 0..4u32,
        held in 1..9usize,
    ) {
        let stream = stream(&choices);
        for hash in HASHES {
            let setup = Setup { order: Order::Kernel, hash, buckets: 1 << buckets, held };
            let kernel = through(setup, &stream);
            assert_conserved(&stream, &kernel.out);
            for order in ORDERS {
                let other = through(Setup { order, ..setup }, &stream);
                prop_assert_eq!(shown(&kernel.out), shown(&other.out));
                prop_assert_eq!(kernel.counts, other.counts);
            }
        }
    }

    #[test]
    fn one_bucket_gives_what_the_engine_that_ships_gives(
        choices in prop::collection::vec(segment(), 0..300),
        held in 1..33usize,
    ) {
        let stream = stream(&choices);
        let mut gro: Gro = Gro::new(Limits { flows: held, ..Limits::default() });
        let mut out = Vec::new();
        for next in &stream {
            let (frame, segment) = next.frame();
            gro.receive(&frame, &segment, &mut |merged| out.push(merged.clone()));
        }
        gro.flush_all(&mut |merged| out.push(merged.clone()));
        let setup = Setup { buckets: 1, held, ..Setup::of(Order::L4First, Hash::None) };
        let lab = through(setup, &stream);
        prop_assert_eq!(shown(&out), shown(&lab.out));
        prop_assert_eq!(gro.counts(), lab.counts);
    }
}
