//! Every verdict of `steer`, one packet at a time (BPF_PROG_TEST_RUN). Needs root.
#![allow(clippy::unwrap_used, reason = "a test ends where it fails")]

#[path = "rig/one_packet.rs"]
mod one_packet;

use aya::maps::{HashMap, Map, MapData};
use hoist_broker::{
    MAX_FRAME, Pins,
    abi::Verdict,
    device::Device,
    rules::{Change, Key, Shares},
    steer::Steer,
};
use hoist_ipc::tcp::{PortCounts, Slots, Steering};
use hoist_packet::{
    SocketAddrRaw,
    ethernet::Header,
    udp::{Template, fill_checksums},
};
use hoist_xsk::{ChunkSize, Socket, Umem};
use std::{
    net::{IpAddr, SocketAddr},
    os::fd::AsFd,
    sync::atomic::Ordering::Relaxed,
};

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const PEER: [u8; 6] = [2, 0, 0, 0, 0, 2];
const PORT: u16 = 5000;
const XDP_PASS: u32 = 2;
const XDP_REDIRECT: u32 = 4;
const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const PSH: u8 = 8;
const ACK: u8 = 16;
const URG: u8 = 32;
/// Behind Ethernet.
const IP: usize = 14;

fn device() -> Device {
    Device {
        ifindex: 1,
        name: "test".into(),
        kind: String::new(),
        mac: MAC,
        mtu: 1500,
        max_rx_queues: 4,
        up: true,
        foreign: false,
        master: None,
        xdp_program: None,
        addresses: Vec::new(),
    }
}

fn root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("skipped: needs root to load BPF programs");
    }
    root
}

/// steer with a ring behind queue 0, and rules for two addresses and a group.
struct Bench {
    steer: Steer,
    _socket: Socket,
    _umem: Umem,
}

impl Bench {
    fn new(admit_flow: bool, generic: bool) -> Option<Self> {
        root().then(|| Self::load(admit_flow, generic, None))
    }

    fn load(admit_flow: bool, generic: bool, pins: Option<&Pins>) -> Self {
        let mut steer = Steer::load(&device(), admit_flow, MAX_FRAME, generic, pins).unwrap();
        let umem = Umem::create(64, ChunkSize::K2, false).unwrap();
        let socket = Socket::open().unwrap();
        socket.register_umem(&umem, 0).unwrap();
        socket.set_umem_rings(64, 64).unwrap();
        socket.set_rings(64, 0).unwrap();
        steer.set_ring(0, 0, socket.as_fd()).unwrap();
        for address in ["10.0.0.1", "fd00::1", "239.1.1.1"] {
            let key = Key::unicast(address.parse().unwrap(), PORT);
            steer.apply(key, Change::Rule { timestamp: false, shares: Shares::only(0) }).unwrap();
            steer.apply(key, Change::Port).unwrap();
        }
        Self { steer, _socket: socket, _umem: umem }
    }

    /// Runs one packet; returns the one verdict that was counted, what XDP said, and the packet as it came out.
    #[track_caller]
    fn run(&self, packet: &[u8]) -> (Verdict, u32, Vec<u8>) {
        let before = self.steer.counters().unwrap();
        let (result, out) = one_packet::run(self.steer.program().unwrap(), packet);
        let after = self.steer.counters().unwrap();
        let changed: Vec<_> = before.iter().zip(&after).filter(|(b, a)| a.1.packets != b.1.packets).collect();
        assert_eq!(changed.len(), 1, "one verdict a packet");
        let ((verdict, b), (_, a)) = (changed[0].0, changed[0].1);
        assert_eq!(a.packets, b.packets + 1);
        let bytes = if *verdict == Verdict::Lift { packet.len() as u64 } else { 0 };
        assert_eq!(a.bytes, b.bytes + bytes);
        (*verdict, result, out)
    }

    #[track_caller]
    fn expect(&self, packet: &[u8], expected: Verdict) {
        let (verdict, result, _) = self.run(packet);
        assert_eq!(verdict, expected);
        assert_eq!(result, if expected == Verdict::Lift { XDP_REDIRECT } else { XDP_PASS });
    }
}

fn address(ip: &str, port: u16) -> SocketAddrRaw {
    SocketAddr::new(ip.parse::<IpAddr>().unwrap(), port).into()
}

/// steer with a ring behind queue 0 and two connections to [`PORT`], one in each family, in slots 0 and 1.
struct Streams {
    bench: Bench,
    slots: Slots,
    ports: PortCounts,
    flows: HashMap<MapData, [u8; 36], [u64; 2]>,
}

const COOKIE: u64 = 77;

impl Streams {
    fn new() -> Option<Self> {
        let pins = root().then(|| Pins::new().unwrap())?;
        let bench = Bench::load(false, false, Some(&pins));
        let map = |name| MapData::from_pin(pins.path(name)).unwrap();
        let slots = Slots::map(map("tcp_slots").fd().as_fd()).unwrap();
        let ports = PortCounts::map(map("tcp_ports").fd().as_fd()).unwrap();
        let mut flows = HashMap::try_from(Map::HashMap(map("tcp_flows"))).unwrap();
        for (index, packet) in [&V4, &V6].into_iter().enumerate() {
            flows.insert(packet.flow(), [COOKIE, index as u64], 0).unwrap();
        }
        let streams = Self { bench, slots, ports, flows };
        streams.set(COOKIE, Steering::Lift);
        streams.ports.of(PORT).store(2, Relaxed);
        Some(streams)
    }

    fn set(&self, cookie: u64, steering: Steering) {
        self.slots.iter().take(2).for_each(|slot| slot.word.store(cookie << 2 | steering as u64, Relaxed));
    }
}

struct Packet {
    link: Header,
    source: &'static str,
    destination: &'static str,
    port: u16,
    len: usize,
}

const V4: Packet = Packet {
    link: Header { destination: MAC, source: PEER, vlan: None },
    source: "10.0.0.9",
    destination: "10.0.0.1",
    port: PORT,
    len: 32,
};
const V6: Packet = Packet { source: "fd00::9", destination: "fd00::1", ..V4 };

impl Packet {
    fn bytes(&self) -> Vec<u8> {
        let payload = vec![7; self.len];
        let template = Template {
            link: self.link,
            source: address(self.source, 1234),
            destination: address(self.destination, self.port),
            ttl: 64,
            tos: 0,
            flow_label: 0,
            payload: &payload,
        };
        let mut out = vec![0; 9000];
        let len = template.write(&mut out).unwrap();
        out.truncate(len);
        out
    }

    /// A TCP segment with these flags, without options.
    fn tcp(&self, flags: u8) -> Vec<u8> {
        let mut bytes = self.bytes();
        let (protocol, at) = if self.is_v6() { (IP + 6, IP + 40) } else { (IP + 9, IP + 20) };
        bytes[protocol] = 6;
        let header = [0, 0, 0, 1, 0, 0, 0, 1, 0x50, flags, 1, 0, 0, 0, 0, 0];
        bytes.splice(at + 4..at + 8, header);
        let len = (bytes.len() - at) as u16;
        match self.is_v6() {
            true => bytes[IP + 4..IP + 6].copy_from_slice(&len.to_be_bytes()),
            false => bytes[IP + 2..IP + 4].copy_from_slice(&(len + 20).to_be_bytes()),
        }
        bytes
    }

    /// One with data, and a byte of it behind Ethernet replaced.
    fn tcp_with(&self, at: usize, value: u8) -> Vec<u8> {
        let mut bytes = self.tcp(ACK);
        bytes[IP + at] = value;
        bytes
    }

    fn is_v6(&self) -> bool {
        self.source.contains(':')
    }

    /// `struct flow_key`.
    fn flow(&self) -> [u8; 36] {
        let mapped = |ip: &str| match ip.parse().unwrap() {
            IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
            IpAddr::V6(ip) => ip.octets(),
        };
        let ports = [1234_u16.to_be_bytes(), self.port.to_be_bytes()].concat();
        [&mapped(self.source)[..], &mapped(self.destination), &ports].concat().try_into().unwrap()
    }

    /// With one byte of the packet behind Ethernet replaced.
    fn with(&self, at: usize, value: u8) -> Vec<u8> {
        let mut bytes = self.bytes();
        bytes[IP + at] = value;
        bytes
    }
}

#[test]
fn datagrams_for_a_rule_are_lifted() {
    let Some(bench) = Bench::new(false, false) else { return };
    bench.expect(&V4.bytes(), Verdict::Lift);
    bench.expect(&V6.bytes(), Verdict::Lift);
    bench.expect(&Packet { len: 0, ..V4 }.bytes(), Verdict::Lift);
    let group = Header { destination: [1, 0, 0x5e, 1, 1, 1], ..V4.link };
    bench.expect(&Packet { link: group, destination: "239.1.1.1", ..V4 }.bytes(), Verdict::Lift);
    let mut padded = V4.bytes();
    padded.extend([0; 18]);
    bench.expect(&padded, Verdict::Lift);
}

#[test]
fn other_ports_and_addresses_pass() {
    let Some(mut bench) = Bench::new(false, false) else { return };
    bench.expect(&Packet { port: PORT + 1, ..V4 }.bytes(), Verdict::Port);
    bench.expect(&Packet { port: PORT + 1, ..V6 }.bytes(), Verdict::Port);
    bench.expect(&Packet { destination: "10.0.0.2", ..V4 }.bytes(), Verdict::Address);
    bench.expect(&Packet { destination: "fd00::2", ..V6 }.bytes(), Verdict::Address);
    bench.expect(&Packet { destination: "::ffff:10.0.0.1", ..V6 }.bytes(), Verdict::Address);
    let key = Key::unicast("10.0.0.1".parse().unwrap(), PORT);
    bench.steer.apply(key, Change::NoRule).unwrap();
    bench.expect(&V4.bytes(), Verdict::Address);
    bench.steer.apply(key, Change::NoPort).unwrap();
    bench.expect(&V4.bytes(), Verdict::Port);
    bench.steer.apply(key, Change::NoRule).unwrap();
}

#[test]
fn what_is_not_plain_udp_passes() {
    let Some(bench) = Bench::new(false, false) else { return };
    let mut arp = V4.bytes();
    arp[12..14].copy_from_slice(&[0x08, 0x06]);
    bench.expect(&arp, Verdict::NotIp);
    bench.expect(&V4.with(9, 6), Verdict::NotUdp);
    bench.expect(&V6.with(6, 6), Verdict::NotUdp);
    bench.expect(&V4.with(6, 0x20), Verdict::Fragment);
    bench.expect(&V4.with(7, 1), Verdict::Fragment);
    bench.expect(&V4.with(0, 0x46), Verdict::IpOptions);
    for next in [0, 43, 44, 50, 51, 60, 135] {
        bench.expect(&V6.with(6, next), Verdict::Ipv6Extension);
    }
    let mut dont_fragment = V4.with(6, 0x40);
    fill_checksums(&mut dont_fragment).unwrap();
    bench.expect(&dont_fragment, Verdict::Lift);
}

#[test]
fn lengths_that_do_not_fit_pass() {
    let Some(bench) = Bench::new(false, false) else { return };
    let bytes = V4.bytes();
    for len in 14..42 {
        let verdict = bench.run(&bytes[..len]).0;
        assert!(matches!(verdict, Verdict::Truncated | Verdict::NotUdp), "{len}: {verdict:?}");
    }
    bench.expect(&bytes[..bytes.len() - 1], Verdict::Truncated);
    bench.expect(&V4.with(3, 27), Verdict::Truncated);
    bench.expect(&V4.with(25, 7), Verdict::Truncated);
    bench.expect(&V4.with(25, 200), Verdict::Truncated);
    bench.expect(&V6.bytes()[..V6.bytes().len() - 1], Verdict::Truncated);
    bench.expect(&V6.with(5, 0), Verdict::Truncated);
    bench.expect(&V6.with(0, 0x40), Verdict::Truncated);
    bench.expect(&V6.with(45, 0xff), Verdict::Truncated);
    let room = MAX_FRAME as usize - 42;
    bench.expect(&Packet { len: room, ..V4 }.bytes(), Verdict::Lift);
    bench.expect(&Packet { len: room + 1, ..V4 }.bytes(), Verdict::TooLong);
}

#[test]
fn other_stations_and_impossible_sources_pass() {
    let Some(bench) = Bench::new(false, false) else { return };
    let other = Header { destination: PEER, ..V4.link };
    bench.expect(&Packet { link: other, ..V4 }.bytes(), Verdict::OtherMac);
    for source in ["0.0.0.1", "127.0.0.1", "224.0.0.1", "255.255.255.255"] {
        bench.expect(&Packet { source, ..V4 }.bytes(), Verdict::Source);
    }
    for source in ["::", "::1", "ff02::1", "::ffff:10.0.0.9"] {
        bench.expect(&Packet { source, ..V6 }.bytes(), Verdict::Source);
    }
}

#[test]
fn tagged_frames_pass() {
    let Some(bench) = Bench::new(false, false) else { return };
    let tagged = |id| Header { vlan: Some(id), ..V4.link };
    bench.expect(&Packet { link: tagged(7), ..V4 }.bytes(), Verdict::Vlan);
    bench.expect(&Packet { link: tagged(0), ..V6 }.bytes(), Verdict::Vlan);
    let mut twice = Packet { link: tagged(7), ..V4 }.bytes();
    twice.splice(12..12, [0x81, 0, 0, 7]);
    bench.expect(&twice, Verdict::Vlan);
    twice[12..14].copy_from_slice(&[0x88, 0xa8]);
    bench.expect(&twice, Verdict::Vlan);
}

#[test]
fn a_queue_without_a_ring_passes() {
    let Some(mut bench) = Bench::new(false, false) else { return };
    bench.steer.unset_ring(0, 0).unwrap();
    bench.expect(&V4.bytes(), Verdict::NoRing);
    bench.steer.unset_ring(0, 0).unwrap();
}

#[test]
fn with_admit_flow_only_admitted_flows_are_lifted() {
    let Some(mut bench) = Bench::new(true, false) else { return };
    bench.expect(&V4.bytes(), Verdict::Unadmitted);
    bench.steer.admit("10.0.0.9:1234".parse().unwrap(), "10.0.0.1:5000".parse().unwrap()).unwrap();
    bench.expect(&V4.bytes(), Verdict::Lift);
    bench.expect(&V6.bytes(), Verdict::Unadmitted);
    bench.steer.admit("[fd00::9]:1234".parse().unwrap(), "[fd00::1]:5000".parse().unwrap()).unwrap();
    bench.expect(&V6.bytes(), Verdict::Lift);
}

#[test]
fn a_timestamp_stands_directly_in_front_of_the_packet() {
    let Some(mut bench) = Bench::new(false, false) else { return };
    let key = Key::unicast("10.0.0.1".parse().unwrap(), PORT);
    bench.steer.apply(key, Change::Rule { timestamp: true, shares: Shares::only(0) }).unwrap();
    let packet = V4.bytes();
    let before = monotonic_ns();
    let (verdict, _, out) = bench.run(&packet);
    let (meta, rest) = out.split_at(16);
    assert_eq!((verdict, rest), (Verdict::Lift, &packet[..]));
    assert_eq!(&meta[..8], b"hoisttim");
    let time = u64::from_ne_bytes(meta[8..].try_into().unwrap());
    assert!((before..=monotonic_ns()).contains(&time));
}

fn monotonic_ns() -> u64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).unwrap();
    now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64
}

#[test]
fn in_generic_mode_a_frame_that_rides_is_let_by_and_restored() {
    let Some(bench) = Bench::new(false, true) else { return };
    bench.expect(&V4.bytes(), Verdict::Lift);
    let mut riding = V4.bytes();
    riding[6] |= 1;
    let (verdict, result, out) = bench.run(&riding);
    assert_eq!((verdict, result), (Verdict::Rode, XDP_PASS));
    assert_eq!(out, V4.bytes());
    let Some(native) = Bench::new(false, false) else { return };
    native.expect(&riding, Verdict::Lift);
}

#[test]
fn what_a_lifted_connection_carries_is_lifted_and_bare_control_passes() {
    let Some(streams) = Streams::new() else { return };
    for packet in [V4, V6] {
        let empty = Packet { len: 0, ..packet };
        let one = Packet { len: 1, ..packet };
        for flags in [ACK, ACK | PSH, ACK | FIN, ACK | RST, ACK | URG, 0, ACK | 0xc0] {
            streams.bench.expect(&packet.tcp(flags), Verdict::Lift);
            streams.bench.expect(&one.tcp(flags), Verdict::Lift);
        }
        for flags in [ACK | FIN, RST, ACK | RST, ACK | URG, FIN] {
            streams.bench.expect(&empty.tcp(flags), Verdict::Lift);
        }
        for flags in [ACK, ACK | PSH, 0, ACK | 0xc0, SYN, SYN | ACK, SYN | FIN, SYN | RST] {
            streams.bench.expect(&empty.tcp(flags), Verdict::TcpControl);
        }
        streams.bench.expect(&packet.tcp(SYN | ACK), Verdict::TcpControl);
        let mut padded = empty.tcp(ACK);
        padded.extend([0; 6]);
        streams.bench.expect(&padded, Verdict::TcpControl);
        // Twelve bytes of options and one of data; then options alone.
        let options = Packet { len: 13, ..packet };
        let at = if packet.is_v6() { 40 } else { 20 } + 12;
        streams.bench.expect(&options.tcp_with(at, 0x80), Verdict::Lift);
        streams.bench.expect(&Packet { len: 12, ..packet }.tcp_with(at, 0x80), Verdict::TcpControl);
    }
}

#[test]
fn a_connection_that_is_not_lifted_passes() {
    let Some(mut streams) = Streams::new() else { return };
    for packet in [V4, V6] {
        let other = |packet: Packet| packet.tcp(ACK);
        streams.bench.expect(&other(Packet { port: PORT + 1, ..packet }), Verdict::TcpFlow);
        let source = if packet.is_v6() { "fd00::8" } else { "10.0.0.8" };
        streams.bench.expect(&other(Packet { source, ..packet }), Verdict::TcpFlow);
        let destination = if packet.is_v6() { "fd00::2" } else { "10.0.0.2" };
        streams.bench.expect(&other(Packet { destination, ..packet }), Verdict::TcpFlow);
        streams.set(COOKIE, Steering::Pass);
        streams.bench.expect(&packet.tcp(ACK), Verdict::TcpFlow);
        streams.set(COOKIE + 1, Steering::Lift);
        streams.bench.expect(&packet.tcp(ACK), Verdict::TcpFlow);
        streams.set(COOKIE, Steering::Lift);
        streams.ports.of(PORT).store(0, Relaxed);
        streams.bench.expect(&packet.tcp(ACK), Verdict::TcpFlow);
        streams.ports.of(PORT).store(1, Relaxed);
        streams.bench.expect(&packet.tcp(ACK), Verdict::Lift);
        streams.flows.remove(&packet.flow()).unwrap();
        streams.bench.expect(&packet.tcp(ACK), Verdict::TcpFlow);
    }
}

#[test]
fn segments_that_only_the_stack_understands_pass() {
    let Some(mut streams) = Streams::new() else { return };
    let bench = &mut streams.bench;
    bench.expect(&V4.tcp_with(0, 0x46), Verdict::IpOptions);
    bench.expect(&V4.tcp_with(6, 0x20), Verdict::Fragment);
    bench.expect(&V4.tcp_with(7, 1), Verdict::Fragment);
    bench.expect(&V4.tcp_with(6, 0x40), Verdict::Lift);
    bench.expect(&V6.tcp_with(0, 0x40), Verdict::Truncated);
    bench.expect(&V6.tcp_with(6, 60), Verdict::Ipv6Extension);
    // IP's length, and TCP's.
    bench.expect(&V4.tcp_with(3, 39), Verdict::Truncated);
    bench.expect(&V4.tcp_with(3, 200), Verdict::Truncated);
    bench.expect(&V4.tcp_with(3, 10), Verdict::Truncated);
    bench.expect(&V6.tcp_with(5, 19), Verdict::Truncated);
    bench.expect(&V6.tcp_with(5, 200), Verdict::Truncated);
    for (packet, at) in [(V4, 32), (V6, 52)] {
        bench.expect(&packet.tcp_with(at, 0x40), Verdict::Truncated);
        bench.expect(&packet.tcp_with(at, 0xf0), Verdict::Truncated);
        let bytes = packet.tcp(ACK);
        bench.expect(&bytes[..bytes.len() - 1], Verdict::Truncated);
        bench.expect(&bytes[..IP + at + 7], Verdict::Truncated);
        let other = Header { destination: PEER, ..packet.link };
        bench.expect(&Packet { link: other, ..packet }.tcp(ACK), Verdict::OtherMac);
        let room = MAX_FRAME as usize - IP - at - 8;
        bench.expect(&Packet { len: room, ..packet }.tcp(ACK), Verdict::Lift);
        bench.expect(&Packet { len: room + 1, ..packet }.tcp(ACK), Verdict::TooLong);
        let tagged = Header { vlan: Some(7), ..packet.link };
        bench.expect(&Packet { link: tagged, ..packet }.with(20, 6), Verdict::Vlan);
    }
    for (source, destination) in [("::ffff:10.0.0.9", "fd00::1"), ("fd00::9", "::ffff:10.0.0.1")] {
        bench.expect(&Packet { source, destination, ..V6 }.tcp(ACK), Verdict::Source);
    }
    // Datagrams go on as ever.
    bench.expect(&V4.bytes(), Verdict::Lift);
    bench.steer.unset_ring(0, 0).unwrap();
    bench.expect(&V4.tcp(ACK), Verdict::NoRing);
}

#[test]
fn without_the_maps_of_connections_tcp_is_something_else() {
    let Some(bench) = Bench::new(false, false) else { return };
    bench.expect(&V4.tcp(ACK), Verdict::NotUdp);
    bench.expect(&V6.tcp(ACK), Verdict::NotUdp);
}
