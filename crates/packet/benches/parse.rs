//! Nanoseconds per parse and per segment through GRO, and GB/s of the checksum: `cargo bench -p hoist-packet`. Prints, asserts nothing.

use hoist_packet::{
    Ip, SocketAddrRaw,
    checksum::Sum,
    ethernet,
    gro::{Gro, Limits},
    tcp::{self, Segment},
    udp::{self, ChecksumTrust, Template},
};
use std::{hint::black_box, time::Instant};

const ROUNDS: u32 = 2_000_000;
const REPEATS: u32 = 7;

fn main() {
    for (name, v6, payload) in
        [("IPv4  64 B", false, 22), ("IPv6  84 B", true, 22), ("IPv4 1.4 kB", false, 1358)]
    {
        let frame = frame(v6, payload);
        let ns = median(|| udp::parse(black_box(&frame), ChecksumTrust::Verify));
        println!("parse {name}: {ns:.1} ns");
    }
    for (name, v6) in [("IPv4", false), ("IPv6", true)] {
        let (frame, segment) = &run(v6, 1, 1)[0];
        let ns = median(|| tcp::parse(black_box(frame), ChecksumTrust::Verify));
        println!("parse TCP {name} {} B: {ns:.1} ns", segment.payload_len());
    }
    for (name, v6, flows) in [
        ("IPv4 1 flow", false, 1),
        ("IPv6 1 flow", true, 1),
        ("IPv4 8 flows by turns", false, 8),
        ("IPv4 64 flows by turns", false, 64),
    ] {
        println!("GRO {name}: {:.1} ns a segment", merge(&run(v6, flows, 32), flows));
    }
    for len in [22, 64, 256, 1400, 1448, 8948] {
        let bytes = vec![0xa5; len];
        let ns = median(|| Sum::of(black_box(&bytes)).fold());
        println!("sum {len} B: {ns:.1} ns, {:.1} GB/s", len as f64 / ns);
    }
}

fn ip(v6: bool, last: u8) -> Ip {
    let mut octets = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last];
    octets[1] = last;
    if v6 { Ip::V6(octets) } else { Ip::V4([10, 0, 0, last]) }
}

fn frame(v6: bool, payload: usize) -> Vec<u8> {
    let mut out = vec![0; 2048];
    let template = Template {
        link: ethernet::Header { destination: [2, 0, 0, 0, 0, 2], source: [2, 0, 0, 0, 0, 1], vlan: None },
        source: SocketAddrRaw { ip: ip(v6, 1), port: 4000 },
        destination: SocketAddrRaw { ip: ip(v6, 2), port: 53 },
        ttl: 64,
        tos: 0,
        flow_label: 0,
        payload: &vec![0x5a; payload],
    };
    let len = template.write(&mut out).expect("room");
    out.truncate(len);
    out
}

/// `len` segments of each flow, one of each by turns.
fn run(v6: bool, flows: u16, len: u32) -> Vec<(Vec<u8>, Segment)> {
    let turns = (0..len).flat_map(|turn| (0..flows).map(move |flow| (turn, flow)));
    turns.map(|(turn, flow)| segment(v6, 4000 + flow, turn * 1448)).collect()
}

fn segment(v6: bool, port: u16, seq: u32) -> (Vec<u8>, Segment) {
    let template = tcp::Template {
        link: ethernet::Header { destination: [2, 0, 0, 0, 0, 2], source: [2, 0, 0, 0, 0, 1], vlan: None },
        source: SocketAddrRaw { ip: ip(v6, 1), port },
        destination: SocketAddrRaw { ip: ip(v6, 2), port: 80 },
        ttl: 64,
        tos: 0,
        flow_label: 0,
        seq,
        ack: 1,
        flags: tcp::ACK,
        window: 500,
        urgent: 0,
        options: &[1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2],
        payload: &[0x5a; 1448],
    };
    let mut out = vec![0; 2048];
    let len = template.write(&mut out).expect("room");
    out.truncate(len);
    let segment = tcp::parse(&out, ChecksumTrust::Verify).expect("a sound frame");
    (out, segment)
}

/// Nanoseconds a segment, completing the packets included; frames cold to warm as the set is.
fn merge(run: &[(Vec<u8>, Segment)], flows: u16) -> f64 {
    let mut gro: Gro = Gro::new(Limits { flows: flows.into(), ..Limits::default() });
    let times = ROUNDS as usize / run.len();
    let mut samples: Vec<f64> = (0..REPEATS)
        .map(|_| {
            let start = Instant::now();
            for _ in 0..times {
                for (frame, segment) in run {
                    gro.receive(black_box(frame), black_box(segment), &mut |merged| _ = black_box(merged));
                }
                gro.flush_all(&mut |merged| _ = black_box(merged));
            }
            start.elapsed().as_nanos() as f64 / (times * run.len()) as f64
        })
        .collect();
    samples.sort_by(f64::total_cmp);
    assert_eq!(gro.counts().merged as usize, (run.len() - usize::from(flows)) * times * REPEATS as usize);
    samples[samples.len() / 2]
}

/// Nanoseconds a call, the median of the repeats.
fn median<T>(call: impl Fn() -> T) -> f64 {
    let mut samples: Vec<f64> = (0..REPEATS).map(|_| sample(&call)).collect();
    samples.sort_by(f64::total_cmp);
    samples[samples.len() / 2]
}

fn sample<T>(call: impl Fn() -> T) -> f64 {
    let start = Instant::now();
    for _ in 0..ROUNDS {
        black_box(call());
    }
    start.elapsed().as_nanos() as f64 / f64::from(ROUNDS)
}
