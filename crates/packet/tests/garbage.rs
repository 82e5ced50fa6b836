//! The fuzz targets of `fuzz/` over seeded garbage and mutated valid input: a smoke test for every `cargo test`.
//!
//! The seed is fixed, so a failure repeats. `cargo fuzz run udp_parse` looks further.

#[path = "../../../fuzz/src/ipc_decode.rs"]
mod ipc_decode;
#[path = "../../../fuzz/src/tcp_parse.rs"]
mod tcp_parse;
#[path = "../../../fuzz/src/udp_parse.rs"]
mod udp_parse;

use hoist_ipc::{Reply, Request, RingInfo};
use hoist_packet::{
    Ip, PROTOCOL_TCP, PROTOCOL_UDP, Refused, SocketAddrRaw,
    checksum::{pseudo_header_v4, pseudo_header_v6},
    ethernet, tcp,
    udp::{self, Template},
};
use std::{collections::HashSet, net::SocketAddr};

const FRAMES: usize = 300_000;
const MESSAGES: usize = 300_000;

#[test]
fn mutated_frames_never_break_a_promise_and_meet_every_refusal() {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let (mut refused, mut accepted, mut partial, mut filled) = (HashSet::new(), 0, 0, 0);
    for _ in 0..FRAMES {
        let mut frame = valid(&mut random);
        random.mutate(&mut frame);
        let seen = udp_parse::check(&frame);
        match seen.verify {
            Ok(()) => accepted += 1,
            Err(reason) => _ = refused.insert(reason),
        }
        partial += usize::from(seen.partial);
        filled += usize::from(seen.filled);
    }
    let all = [
        Refused::Short,
        Refused::NotIp,
        Refused::NotUdp,
        Refused::HeaderChecksum,
        Refused::Length,
        Refused::Checksum,
        Refused::Fragment,
        Refused::Options,
        Refused::Extension,
        Refused::Martian,
    ];
    assert_eq!(refused, HashSet::from(all));
    assert!(accepted > FRAMES / 100 && partial > FRAMES / 100 && filled > FRAMES / 10);
    assert!(accepted < filled, "mutations break checksums more often than structure");
}

#[test]
fn mutated_segments_never_break_a_promise_and_meet_every_refusal() {
    let mut random = Random(0x6a09_e667_f3bc_c909);
    let (mut refused, mut accepted, mut partial, mut filled) = (HashSet::new(), 0, 0, 0);
    for _ in 0..FRAMES {
        let mut frame = valid_segment(&mut random);
        random.mutate(&mut frame);
        let seen = tcp_parse::check(&frame);
        match seen.verify {
            Ok(()) => accepted += 1,
            Err(reason) => _ = refused.insert(reason),
        }
        partial += usize::from(seen.partial);
        filled += usize::from(seen.filled);
    }
    let all = [
        Refused::Short,
        Refused::NotIp,
        Refused::NotTcp,
        Refused::Vlan,
        Refused::Group,
        Refused::HeaderChecksum,
        Refused::Length,
        Refused::Checksum,
        Refused::Fragment,
        Refused::Options,
        Refused::Extension,
        Refused::Martian,
    ];
    assert_eq!(refused, HashSet::from(all));
    assert!(accepted > FRAMES / 100 && partial > FRAMES / 100 && filled > FRAMES / 10);
    assert!(accepted < filled, "mutations break checksums more often than structure");
}

#[test]
fn garbage_frames_never_break_a_promise() {
    let mut random = Random(0xd1b5_4a32_d192_ed03);
    for _ in 0..FRAMES {
        let len = random.below(200);
        let mut frame = random.bytes(len);
        // Half of them get past the EtherType.
        if random.flip() && frame.len() > 14 {
            let (kind, first) = if random.flip() { ([0x08, 0x00], 0x45) } else { ([0x86, 0xdd], 0x60) };
            frame[12..14].copy_from_slice(&kind);
            frame[14] = first;
        }
        udp_parse::check(&frame);
        tcp_parse::check(&frame);
    }
}

#[test]
fn every_prefix_and_every_bit_flip_of_valid_frames_keeps_the_promises() {
    let mut random = Random(0x2545_f491_4f6c_dd1d);
    for _ in 0..40 {
        let frame = valid(&mut random);
        for len in 0..frame.len() {
            assert!(udp_parse::check(&frame[..len]).verify.is_err(), "{len} of {}", frame.len());
        }
        for bit in 0..frame.len() * 8 {
            let mut flipped = frame.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            udp_parse::check(&flipped);
        }
        let frame = valid_segment(&mut random);
        for len in 0..frame.len() {
            assert!(tcp_parse::check(&frame[..len]).verify.is_err(), "{len} of {}", frame.len());
        }
        for bit in 0..frame.len() * 8 {
            let mut flipped = frame.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            tcp_parse::check(&flipped);
        }
    }
}

#[test]
fn mutated_messages_are_refused_or_survive_a_round_trip() {
    let mut random = Random(0x853c_49e6_748f_ea9b);
    let valid = messages();
    let mut understood = 0;
    for _ in 0..MESSAGES {
        let mut message = valid[random.below(valid.len())].clone();
        random.mutate(&mut message);
        understood += usize::from(ipc_decode::check(&message));
        let len = random.below(160);
        ipc_decode::check(&random.bytes(len));
    }
    assert!((MESSAGES / 20..MESSAGES).contains(&understood), "{understood}");
}

fn ends(random: &mut Random) -> (SocketAddrRaw, SocketAddrRaw) {
    let v6 = random.flip();
    let mut end = |last: u8| {
        let ip = if v6 {
            Ip::V6([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last])
        } else {
            Ip::V4([10, 0, 0, last])
        };
        SocketAddrRaw { ip, port: random.next() as u16 }
    };
    (end(1), end(2))
}

fn valid(random: &mut Random) -> Vec<u8> {
    let (source, destination) = ends(random);
    let vlan = random.flip().then(|| random.below(4095) as u16);
    let len = random.below(80);
    let template = Template {
        link: ethernet::Header { destination: [2, 0, 0, 0, 0, 2], source: [2, 0, 0, 0, 0, 1], vlan },
        source,
        destination,
        ttl: random.next() as u8,
        tos: random.next() as u8,
        flow_label: random.next() as u32,
        payload: &random.bytes(len),
    };
    let mut out = vec![0; 256];
    let len = template.write(&mut out).expect("room for every frame");
    out.truncate(len);
    out
}

/// Half of them with the options that every segment of Linux has, one in eight in a VLAN.
fn valid_segment(random: &mut Random) -> Vec<u8> {
    let (source, destination) = ends(random);
    let len = random.below(80);
    let template = tcp::Template {
        link: ethernet::Header {
            destination: [2, 0, 0, 0, 0, 2],
            source: [2, 0, 0, 0, 0, 1],
            vlan: (random.below(8) == 0).then_some(7),
        },
        source,
        destination,
        ttl: random.next() as u8,
        tos: random.next() as u8,
        flow_label: random.next() as u32,
        seq: random.next() as u32,
        ack: random.next() as u32,
        flags: random.next() as u8,
        window: random.next() as u16,
        urgent: 0,
        options: if random.flip() { &[1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2] } else { &[] },
        payload: &random.bytes(len),
    };
    let mut out = vec![0; 256];
    let len = template.write(&mut out).expect("room for every frame");
    out.truncate(len);
    out
}

/// One message of every kind.
fn messages() -> Vec<Vec<u8>> {
    let v4: SocketAddr = "10.0.0.1:53".parse().expect("an address");
    let v6: SocketAddr = "[fd00::1]:53".parse().expect("an address");
    let reason = hoist_ipc::Reason::Forked;
    let requests = [
        Request::Hello { version: 1 },
        Request::Register { cookie: 7, timestamps: true },
        Request::Unregister { cookie: 7 },
        Request::Demote { cookie: 7, reason },
        Request::Group { cookie: 7, join: true, group: v6.ip(), ifindex: 2 },
        Request::Admit { cookie: 7, from: v4, to: v6 },
        Request::Stream { cookie: 7 },
    ];
    let ring = RingInfo {
        ring: 1,
        ifindex: 2,
        queue: 3,
        rx_size: 2048,
        fill_size: 4096,
        first_frame: 0,
        frames: 4096,
        prefilled: 2048,
        own: 2048,
        zero_copy: false,
    };
    let replies = [
        Reply::Welcome {
            version: 1,
            spin_us: 0,
            young: 8,
            admit_flow: false,
            udp: true,
            tcp: hoist_ipc::tcp::Policy::Auto,
        },
        Reply::Umem { frames: 4096, chunk: 2048 },
        Reply::Device { ifindex: 2, partial_checksum: true },
        Reply::Ring(ring),
        Reply::Connections { ports: true },
        Reply::Registered { slot: 1, reason },
        Reply::Done,
        Reply::Refused { errno: 1 },
    ];
    let requests = requests.iter().map(|request| request.encode().as_ref().to_vec());
    requests.chain(replies.iter().map(|reply| reply.encode().as_ref().to_vec())).collect()
}

/// splitmix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    fn flip(&mut self) -> bool {
        self.next() & 1 == 1
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next() as u8).collect()
    }

    /// Up to three changes; the first bytes, where headers are, change as often as all the rest.
    fn mutate(&mut self, bytes: &mut Vec<u8>) {
        for _ in 0..self.below(4) {
            let area = if self.flip() { bytes.len().min(62) } else { bytes.len() };
            let at = self.below(area.max(1));
            match self.below(6) {
                0 => bytes.truncate(at),
                1 => bytes.insert(at.min(bytes.len()), self.next() as u8),
                2 => bytes.extend([0; 18]),
                3 => leave_partial(bytes),
                4 => set(bytes, at, self.next() as u8),
                _ => flip(bytes, at, self.below(8)),
            }
        }
    }
}

fn set(bytes: &mut [u8], at: usize, value: u8) {
    if let Some(byte) = bytes.get_mut(at) {
        *byte = value;
    }
}

fn flip(bytes: &mut [u8], at: usize, bit: usize) {
    if let Some(byte) = bytes.get_mut(at) {
        *byte ^= 1 << bit;
    }
}

/// What a sender on the same host leaves in the checksum field.
fn leave_partial(frame: &mut [u8]) {
    let (source, destination, field, protocol, len) =
        if let Ok(datagram) = udp::parse(frame, udp::ChecksumTrust::Verify) {
            let start = datagram.payload.start;
            (
                datagram.source.ip,
                datagram.destination.ip,
                start - 2,
                PROTOCOL_UDP,
                datagram.payload.end + 8 - start,
            )
        } else if let Ok(segment) = tcp::parse(frame, tcp::ChecksumTrust::Verify) {
            let at = segment.transport_at;
            (segment.source.ip, segment.destination.ip, at + 16, PROTOCOL_TCP, segment.payload.end - at)
        } else {
            return;
        };
    let sum = match (source, destination) {
        (Ip::V4(source), Ip::V4(destination)) => pseudo_header_v4(source, destination, protocol, len as u16),
        (Ip::V6(source), Ip::V6(destination)) => pseudo_header_v6(&source, &destination, protocol, len),
        _ => unreachable!("one packet, one family"),
    };
    frame[field as usize..][..2].copy_from_slice(&sum.fold().to_be_bytes());
}
