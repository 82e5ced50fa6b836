//! Patterns and popularity as ordinary sockets receive them, against what the pure functions say. Needs root; says so and
//! skips without.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use hoist_wire::{Generator, Limit, Mixed, Pattern, Popularity, Spec, Stamp, Testbed};
use nix::sys::socket::{setsockopt, sockopt::RcvBufForce};
use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr, UdpSocket},
    time::Duration,
};

fn root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("skipped: the generator needs root");
    }
    root
}

/// A datagram as it arrived: its stamp, payload length, source and destination.
type Arrival = (Stamp, usize, (SocketAddr, SocketAddr));

/// Receivers on `count` ports in a row.
fn sockets(testbed: &Testbed, address: IpAddr, count: u16) -> Vec<UdpSocket> {
    let bind = || (0..count).map(|i| UdpSocket::bind((address, 9000 + i)).unwrap()).collect::<Vec<_>>();
    let sockets = testbed.host().enter(bind).unwrap();
    for socket in &sockets {
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        // Room for all of a test's datagrams: a receiver that the machine runs late loses nothing.
        setsockopt(socket, RcvBufForce, &(64 << 20)).unwrap();
    }
    sockets
}

/// Sends `packets` and returns what arrived, each socket's in its order.
fn received(testbed: &Testbed, sockets: &[UdpSocket], spec: &Spec, packets: u64) -> Vec<Arrival> {
    let ports: Vec<_> = sockets.iter().map(|socket| socket.local_addr().unwrap()).collect();
    let mut expected = vec![0; sockets.len()];
    for flow in spec.order().take(packets as usize) {
        let (_, to) = Generator::ends(testbed, spec, flow);
        expected[ports.iter().position(|port| *port == to).unwrap()] += 1;
    }
    let spec = spec.clone().packets_per_second(20e3).limit(Limit::Packets(packets));
    let running = Generator::start(testbed, &spec).unwrap();
    let mut buffer = [0; 4096];
    let mut all = Vec::new();
    for ((socket, to), expected) in sockets.iter().zip(&ports).zip(expected) {
        for _ in 0..expected {
            let (length, from) = socket.recv_from(&mut buffer).unwrap();
            all.push((Stamp::parse(&buffer[..length]).unwrap(), length, (from, *to)));
        }
    }
    assert_eq!(running.wait().unwrap().packets, packets);
    all
}

#[test]
fn every_pattern_comes_from_and_goes_to_where_it_says() {
    if !root() {
        return;
    }
    let testbed = Testbed::builder().up().unwrap();
    for address in [IpAddr::from(testbed.host().v4()), testbed.host().v6().into()] {
        let sockets = sockets(&testbed, address, 12);
        for (pattern, receivers, flows) in [
            (Pattern::Single, 1, 1),
            (Pattern::OneToOne(12), 12, 12),
            (Pattern::Incast(300), 1, 300),
            (Pattern::Outcast(12), 12, 12),
            (Pattern::AllToAll(12), 12, 144),
        ] {
            let spec = Spec::to((address, 9000).into()).pattern(pattern);
            let all = received(&testbed, &sockets[..receivers], &spec, 600);
            let mut next = BTreeMap::new();
            for (stamp, _, ends) in &all {
                let flow = u64::from(stamp.flow);
                assert_eq!(*ends, Generator::ends(&testbed, &spec, flow), "{pattern:?}");
                let seq = next.entry(flow).or_insert(0);
                assert_eq!(stamp.seq, *seq, "{pattern:?}");
                *seq += 1;
            }
            assert_eq!(next.len(), flows, "{pattern:?}");
        }
    }
}

#[test]
fn short_frames_among_long_ones_are_whole_and_as_many_as_asked() {
    if !root() {
        return;
    }
    let testbed = Testbed::builder().up().unwrap();
    let mixed = Mixed { long: 2, short: 5, short_share: 0.3, short_payload_len: 51 };
    for address in [IpAddr::from(testbed.host().v4()), testbed.host().v6().into()] {
        let sockets = sockets(&testbed, address, 1);
        let spec = Spec::to((address, 9000).into()).payload_len(1400).pattern(Pattern::Mixed(mixed));
        let all = received(&testbed, &sockets, &spec, 1000);
        let order: Vec<_> = all.iter().map(|(stamp, ..)| u64::from(stamp.flow)).collect();
        assert_eq!(order, spec.order().take(1000).collect::<Vec<_>>(), "{address}");
        assert!(all.iter().all(|(stamp, length, _)| *length == if stamp.flow < 2 { 1400 } else { 51 }));
        let short = order.iter().filter(|flow| **flow >= 2).count();
        assert!((299..=300).contains(&short), "{short}");
    }
}

#[test]
fn drawn_flows_are_those_that_the_seed_says_and_count_on_their_own() {
    if !root() {
        return;
    }
    let testbed = Testbed::builder().up().unwrap();
    let address = testbed.host().v4().into();
    let sockets = sockets(&testbed, address, 1);
    for (popularity, flows, seed) in
        [(Popularity::Zipf(1.1), 50_000, 3), (Popularity::Uniform, 100, 4), (Popularity::Uniform, 100, 5)]
    {
        let spec = Spec::to((address, 9000).into()).flows(flows).popularity(popularity).seed(seed);
        let all = received(&testbed, &sockets, &spec, 2000);
        let order: Vec<_> = all.iter().map(|(stamp, ..)| u64::from(stamp.flow)).collect();
        assert_eq!(order, spec.order().take(2000).collect::<Vec<_>>(), "{popularity:?}");
        let mut next = BTreeMap::new();
        for (stamp, ..) in &all {
            let seq = next.entry(stamp.flow).or_insert(0);
            assert_eq!(stamp.seq, *seq, "{popularity:?}");
            *seq += 1;
        }
    }
}

#[test]
fn what_cannot_be_sent_is_refused_before_anything_is() {
    if !root() {
        return;
    }
    let testbed = Testbed::builder().up().unwrap();
    let to = || Spec::to((testbed.host().v4(), 9000).into());
    for (spec, why) in [
        (to().flows(2 << 20).zipf(1.0), "1048576 flows at most"),
        (to().zipf(f64::NAN), "s is 0 to 100"),
        (to().pattern(Pattern::Mixed(Mixed::default())).zipf(1.0), "their own shares"),
        (to().pattern(Pattern::Mixed(Mixed { short_payload_len: 23, ..Mixed::default() })), "short frames"),
        (to().pattern(Pattern::Outcast(60_000)), "ports"),
    ] {
        let refused = Generator::start(&testbed, &spec).err().unwrap().to_string();
        assert!(refused.contains(why), "{refused}");
    }
}
