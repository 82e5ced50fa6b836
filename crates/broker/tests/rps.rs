//! Every verdict of `rps`, one packet at a time (BPF_PROG_TEST_RUN). Needs root.
#![allow(clippy::unwrap_used, reason = "a test ends where it fails")]

#[path = "rig/one_packet.rs"]
mod one_packet;

use hoist_broker::rps::{BUCKETS, Rps, Settings, VERDICTS};
use hoist_packet::{SocketAddrRaw, ethernet::Header, udp::Template};
use std::net::{IpAddr, SocketAddr};

/// Behind Ethernet.
const IP: usize = 14;
const UDP: usize = IP + 20;

fn settings() -> Settings {
    Settings {
        queues: 1,
        cpus: vec![0],
        frames: 64,
        observe: false,
        symmetric: false,
        unfilled: false,
        heedless: false,
    }
}

fn load(settings: Settings) -> Option<Rps> {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("skipped: needs root to load BPF programs");
    }
    root.then(|| Rps::load(settings).unwrap())
}

/// The verdict's word and the bucket of a packet.
#[track_caller]
fn run(rps: &Rps, packet: &[u8]) -> (&'static str, Option<usize>) {
    let look = || {
        let mut buckets = vec![0; BUCKETS];
        rps.packets(&mut buckets);
        (rps.verdicts().unwrap(), buckets)
    };
    let before = look();
    one_packet::run(rps.program().unwrap(), packet);
    let after = look();
    let changed = |before: &[u64], after: &[u64]| {
        let mut at = before.iter().zip(after).enumerate().filter(|(_, (b, a))| a != b).map(|(at, _)| at);
        let first = at.next();
        assert_eq!(at.next(), None, "one of them");
        first
    };
    (VERDICTS[changed(&before.0, &after.0).unwrap()].0, changed(&before.1, &after.1))
}

fn address(ip: &str, port: u16) -> SocketAddrRaw {
    SocketAddr::new(ip.parse::<IpAddr>().unwrap(), port).into()
}

fn datagram(source: (&str, u16), destination: (&str, u16), payload: &[u8]) -> Vec<u8> {
    let template = Template {
        link: Header { destination: [2, 0, 0, 0, 0, 1], source: [2, 0, 0, 0, 0, 2], vlan: None },
        source: address(source.0, source.1),
        destination: address(destination.0, destination.1),
        ttl: 64,
        tos: 0,
        flow_label: 0,
        payload,
    };
    let mut out = vec![0; 9200];
    let len = template.write(&mut out).unwrap();
    out.truncate(len);
    out
}

const A: (&str, u16) = ("10.0.0.9", 1234);
const B: (&str, u16) = ("10.0.0.1", 5000);

fn sum(bytes: &[u8]) -> u32 {
    let words =
        bytes.chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], *word.get(1).unwrap_or(&0)])));
    words.fold(0, |sum, word| {
        let sum = sum + word;
        (sum & 0xffff) + (sum >> 16)
    })
}

/// The sum of the pseudo-header of an IPv4 datagram.
fn pseudo(packet: &[u8]) -> u16 {
    let len = (packet.len() - UDP) as u32;
    let addresses = sum(&packet[IP + 12..IP + 20]);
    sum(&[&addresses.to_be_bytes()[..], &(17 + len).to_be_bytes()].concat()) as u16
}

/// A datagram whose checksum was left to the device.
fn left_open(payload: &[u8]) -> Vec<u8> {
    let mut packet = datagram(A, B, payload);
    let sum = pseudo(&packet);
    packet[UDP + 6..UDP + 8].copy_from_slice(&sum.to_be_bytes());
    packet
}

/// A datagram whose checksum is right, and by chance the sum of its pseudo-header.
fn right_by_chance(len: usize) -> Vec<u8> {
    let mut packet = left_open(&vec![7; len]);
    packet[UDP + 8..UDP + 10].fill(0);
    let all = sum(&packet[UDP..]) + u32::from(pseudo(&packet));
    let missing = !(((all & 0xffff) + (all >> 16)) as u16);
    packet[UDP + 8..UDP + 10].copy_from_slice(&missing.to_be_bytes());
    let check = sum(&packet[UDP..]) + u32::from(pseudo(&packet));
    assert_eq!((check & 0xffff) + (check >> 16), 0xffff, "right");
    packet
}

#[test]
fn a_bucket_without_an_aim_stays() {
    let Some(rps) = load(settings()) else { return };
    let (verdict, bucket) = run(&rps, &datagram(A, B, b"hello"));
    assert_eq!(verdict, "home");
    assert!(bucket.is_some());
}

#[test]
fn the_packets_of_a_flow_share_a_bucket_and_flows_do_not() {
    let Some(rps) = load(settings()) else { return };
    let bucket = |source, len| run(&rps, &datagram(source, B, &vec![1; len])).1.unwrap();
    assert_eq!(bucket(A, 10), bucket(A, 900));
    let others: std::collections::BTreeSet<usize> =
        (0..100).map(|port| bucket((A.0, 2000 + port), 9)).collect();
    assert!(others.len() > 85, "{} buckets of 100 flows", others.len());
    let v6 = |port| run(&rps, &datagram(("fd00::9", port), ("fd00::1", 5), b"x")).1.unwrap();
    assert_ne!(v6(1), v6(2));
}

#[test]
fn with_symmetric_both_directions_share_a_bucket() {
    let Some(one_way) = load(settings()) else { return };
    let both = load(Settings { symmetric: true, ..settings() }).unwrap();
    let there = |rps: &Rps, port| run(rps, &datagram((A.0, port), B, b"x")).1;
    let back = |rps: &Rps, port| run(rps, &datagram(B, (A.0, port), b"x")).1;
    for port in 1000..1020 {
        assert_eq!(there(&both, port), back(&both, port));
    }
    assert!((1000..1020).any(|port| there(&one_way, port) != back(&one_way, port)));
}

/// A fragment of datagram `id`: `place` as in the header (IP_MF, offset in 8 bytes).
fn fragment(source: (&str, u16), id: u16, place: u16) -> Vec<u8> {
    let mut packet = datagram(source, B, &[1; 64]);
    packet[IP + 4..IP + 6].copy_from_slice(&id.to_be_bytes());
    packet[IP + 6..IP + 8].copy_from_slice(&place.to_be_bytes());
    if place & 0x1fff > 0 {
        packet[UDP..UDP + 4].fill(9); // no ports there
    }
    packet
}

/// A fragment behind an IPv6 fragment header.
fn fragment_v6(port: u16, id: u32, offset: u16) -> Vec<u8> {
    let mut packet = datagram(("fd00::9", port), ("fd00::1", 5000), &[1; 64]);
    let [high, low] = (offset | 1).to_be_bytes();
    let header = [&[17, 0, high, low][..], &id.to_be_bytes()].concat();
    packet[IP + 6] = 44;
    let total = 64 + 8 + 8_u16;
    packet[IP + 4..IP + 6].copy_from_slice(&total.to_be_bytes());
    packet.splice(IP + 40..IP + 40, header);
    packet
}

const MORE: u16 = 0x2000;

#[test]
fn fragments_go_with_the_whole_datagrams_of_their_flow() {
    let Some(rps) = load(settings()) else { return };
    for port in 2000..2020 {
        let bucket = |packet: &[u8]| run(&rps, packet).1.unwrap();
        let whole = bucket(&datagram((A.0, port), B, b"whole"));
        assert_eq!(bucket(&fragment((A.0, port), port, MORE)), whole);
        assert_eq!(bucket(&fragment((A.0, port), port, MORE | 9)), whole);
        assert_eq!(bucket(&fragment((A.0, port), port, 18)), whole);
        let whole = bucket(&datagram(("fd00::9", port), ("fd00::1", 5000), b"whole"));
        assert_eq!(bucket(&fragment_v6(port, 7 << 16 | u32::from(port), 0)), whole);
        assert_eq!(bucket(&fragment_v6(9, 7 << 16 | u32::from(port), 72)), whole);
    }
}

#[test]
fn a_fragment_before_its_first_goes_by_addresses() {
    let Some(rps) = load(settings()) else { return };
    let bucket = |packet: &[u8]| run(&rps, packet).1.unwrap();
    let lone = bucket(&fragment(A, 77, 9));
    assert_eq!(lone, bucket(&fragment((A.0, 99), 78, 18)));
    assert_ne!(lone, bucket(&fragment(("10.0.0.8", 99), 77, 18)));
    let short = &fragment(A, 79, MORE)[..UDP + 3];
    assert_eq!(run(&rps, short), ("truncated", None));
    assert_eq!(run(&rps, &fragment_v6(1, 1, 0)[..IP + 44]), ("truncated", None));
}

#[test]
fn a_fragment_alone_does_not_tell_whether_its_sender_leaves_checksums_open() {
    let Some(rps) = load(Settings { unfilled: true, ..settings() }) else { return };
    assert_eq!(run(&rps, &fragment(A, 1, MORE)).0, "unfilled-checksum");
    assert_eq!(run(&rps, &datagram(A, B, b"filled")).0, "home");
    assert_eq!(run(&rps, &fragment(A, 1, MORE)).0, "home");
}

#[test]
fn what_stays_for_its_checksum_is_no_load() {
    let Some(rps) = load(Settings { unfilled: true, ..settings() }) else { return };
    rps.aim(0, Some(0));
    assert_eq!(run(&rps, &left_open(&[7; 50])), ("unfilled-checksum", None));
    assert_eq!(run(&rps, &datagram(A, B, b"mixed now")), ("unfilled-checksum", None));
    assert_eq!(rps.waiting(), 0);
}

#[test]
fn tags_are_looked_behind() {
    let Some(rps) = load(settings()) else { return };
    let plain = datagram(A, B, b"hello");
    let tag =
        |packet: &[u8], kind: u16| [&packet[..12], &kind.to_be_bytes(), &[0, 5], &packet[12..]].concat();
    let once = tag(&plain, 0x8100);
    assert_eq!(run(&rps, &once), run(&rps, &plain));
    assert_eq!(run(&rps, &tag(&once, 0x88a8)), run(&rps, &plain));
    assert_eq!(run(&rps, &tag(&tag(&once, 0x8100), 0x8100)).0, "not-ip", "three are too many");
}

#[test]
fn what_is_no_flow_stays_and_is_counted() {
    let Some(rps) = load(settings()) else { return };
    let packet = datagram(A, B, b"hello");
    let mut arp = packet.clone();
    arp[12..14].copy_from_slice(&[8, 6]);
    assert_eq!(run(&rps, &arp), ("not-ip", None));
    assert_eq!(run(&rps, &packet[..UDP + 2]), ("truncated", None));
    assert_eq!(run(&rps, &packet[..IP + 8]), ("truncated", None));
    let mut short = packet;
    short[IP + 3] = 19;
    assert_eq!(run(&rps, &short), ("truncated", None));
}

#[test]
fn a_checksum_that_is_left_to_the_device_is_seen_on_a_veth_only() {
    let Some(veth) = load(Settings { unfilled: true, ..settings() }) else { return };
    let nic = load(settings()).unwrap();
    for len in [2, 3, 100, 127, 128, 129, 1400, 1472, 8000] {
        let payload = vec![9; len];
        assert_eq!(run(&veth, &left_open(&payload)).0, "unfilled-checksum", "{len}");
        assert_eq!(run(&nic, &left_open(&payload)).0, "home", "{len}");
    }
}

#[test]
fn a_right_checksum_that_looks_left_open_is_not_taken_for_one() {
    let lens = [2, 3, 100, 119, 120, 121, 1400, 1472, 8000];
    for len in lens {
        let Some(rps) = load(Settings { unfilled: true, ..settings() }) else { return };
        assert_eq!(run(&rps, &datagram(A, B, &vec![7; len])).0, "home", "{len}");
        assert_eq!(run(&rps, &right_by_chance(len)).0, "home", "{len}");
    }
}

#[test]
fn what_may_be_either_goes_where_its_bucket_goes() {
    let Some(rps) = load(Settings { unfilled: true, ..settings() }) else { return };
    assert_eq!(run(&rps, &left_open(&[7; 50])).0, "unfilled-checksum");
    assert_eq!(run(&rps, &right_by_chance(50)).0, "unfilled-checksum");
}

#[test]
fn zero_is_a_checksum_to_tcp() {
    let Some(rps) = load(Settings { unfilled: true, ..settings() }) else { return };
    let mut packet = datagram(A, B, &[7; 100]);
    packet[IP + 9] = 6;
    packet[UDP + 16..UDP + 18].fill(0);
    assert_eq!(run(&rps, &packet).0, "home");
}

#[test]
fn datagrams_without_a_checksum_stay_on_a_veth() {
    let Some(rps) = load(Settings { unfilled: true, ..settings() }) else { return };
    let mut packet = datagram(A, B, b"a tunnel may be in it");
    packet[UDP + 6..UDP + 8].fill(0);
    assert_eq!(run(&rps, &packet).0, "unfilled-checksum");
}
