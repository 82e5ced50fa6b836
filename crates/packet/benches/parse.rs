//! Nanoseconds per parse and GB/s of the checksum: `cargo bench -p hoist-packet`. Prints, asserts nothing.

use hoist_packet::{
    Ip, SocketAddrRaw,
    checksum::Sum,
    ethernet,
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
    for len in [22, 64, 256, 1400, 1448, 8948] {
        let bytes = vec![0xa5; len];
        let ns = median(|| Sum::of(black_box(&bytes)).fold());
        println!("sum {len} B: {ns:.1} ns, {:.1} GB/s", len as f64 / ns);
    }
}

fn frame(v6: bool, payload: usize) -> Vec<u8> {
    let ip = |last| {
        let mut octets = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last];
        octets[1] = last;
        if v6 { Ip::V6(octets) } else { Ip::V4([10, 0, 0, last]) }
    };
    let mut out = vec![0; 2048];
    let template = Template {
        link: ethernet::Header { destination: [2, 0, 0, 0, 0, 2], source: [2, 0, 0, 0, 0, 1], vlan: None },
        source: SocketAddrRaw { ip: ip(1), port: 4000 },
        destination: SocketAddrRaw { ip: ip(2), port: 53 },
        ttl: 64,
        tos: 0,
        flow_label: 0,
        payload: &vec![0x5a; payload],
    };
    let len = template.write(&mut out).expect("room");
    out.truncate(len);
    out
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
