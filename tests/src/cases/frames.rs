//! Frames that a UDP socket would not send: wrong, odd, or in fragments.

use super::{Ctx, assert_empty};
use crate::{
    frame::{Checksum, Frame},
    peer::{Shot, number_of, numbered},
    sock,
};
use std::net::{Ipv4Addr, SocketAddr};

/// Where the UDP header of an untagged frame begins.
const UDP4: usize = 34;
const MAX_UDP4: usize = 65_507;

/// The bad frames are not delivered; a good datagram after them is, and nothing else.
fn dropped(ctx: &mut Ctx, make: impl Fn(Frame) -> Vec<Vec<u8>>) {
    let (s, at) = ctx.bound4();
    dropped_on(ctx, &s, at, make);
}

fn dropped_on(ctx: &mut Ctx, s: &std::os::fd::OwnedFd, at: SocketAddr, make: impl Fn(Frame) -> Vec<Vec<u8>>) {
    ctx.send_frames(make(ctx.frame(at, b"bad bad bad")));
    ctx.send(at, &[b"good"]);
    assert_eq!(sock::take(s, 100, 0).unwrap(), b"good");
    ctx.fence();
    assert_empty(s);
}

fn patched(frame: &Frame, patch: impl Fn(&mut Vec<u8>)) -> Vec<Vec<u8>> {
    let mut bytes = frame.bytes();
    patch(&mut bytes);
    vec![bytes]
}

pub(super) fn a_bad_checksum_is_dropped(ctx: &mut Ctx) {
    dropped(ctx, |frame| vec![Frame { checksum: Checksum::Wrong, ..frame }.bytes()]);
}

pub(super) fn a_bad_checksum6_is_dropped(ctx: &mut Ctx) {
    let (s, at) = ctx.bound6();
    dropped_on(ctx, &s, at, |frame| vec![Frame { checksum: Checksum::Wrong, ..frame }.bytes()]);
}

pub(super) fn no_checksum_is_accepted_on_ipv4(ctx: &mut Ctx) {
    let (s, at) = ctx.bound4();
    ctx.send_frames(vec![Frame { checksum: Checksum::Zero, ..ctx.frame(at, b"unsummed") }.bytes()]);
    assert_eq!(sock::take(&s, 100, 0).unwrap(), b"unsummed");
}

pub(super) fn no_checksum_is_dropped_on_ipv6(ctx: &mut Ctx) {
    let (s, at) = ctx.bound6();
    dropped_on(ctx, &s, at, |frame| vec![Frame { checksum: Checksum::Zero, ..frame }.bytes()]);
}

/// Ethernet pads short frames to 60 bytes.
pub(super) fn padding_is_not_payload(ctx: &mut Ctx) {
    let (s, at) = ctx.bound4();
    let mut bytes = ctx.frame(at, b"x").bytes();
    bytes.resize(60, 0xee);
    ctx.send_frames(vec![bytes]);
    assert_eq!(sock::take(&s, 100, 0).unwrap(), b"x");
}

/// `udp4_rcv`: a UDP length shorter than the packet cuts the datagram.
pub(super) fn a_short_udp_length_cuts(ctx: &mut Ctx) {
    let (s, at) = ctx.bound4();
    let frame = Frame { checksum: Checksum::Zero, ..ctx.frame(at, b"hello world") };
    ctx.send_frames(patched(&frame, |b| b[UDP4 + 4..UDP4 + 6].copy_from_slice(&13u16.to_be_bytes())));
    assert_eq!(sock::take(&s, 100, 0).unwrap(), b"hello");
}

pub(super) fn a_long_udp_length_is_dropped(ctx: &mut Ctx) {
    dropped(ctx, |frame| {
        let frame = Frame { checksum: Checksum::Zero, ..frame };
        [7u16, 20, 9000]
            .iter()
            .flat_map(|len| patched(&frame, |b| b[UDP4 + 4..UDP4 + 6].copy_from_slice(&len.to_be_bytes())))
            .collect()
    });
}

pub(super) fn a_bad_ip_checksum_is_dropped(ctx: &mut Ctx) {
    dropped(ctx, |frame| patched(&frame, |bytes| bytes[24] ^= 0x55));
}

pub(super) fn cut_frames_are_dropped(ctx: &mut Ctx) {
    dropped(ctx, |frame| {
        let bytes = frame.bytes();
        (14..bytes.len()).map(|len| bytes[..len].to_vec()).collect()
    });
}

/// Every byte of the headers takes odd values in turn.
pub(super) fn garbage_is_survived(ctx: &mut Ctx) {
    let (s, at) = ctx.bound4();
    let good = ctx.frame(at, b"bad bad bad").bytes();
    let mangled = (12..UDP4 + 8).flat_map(|i| [0x00, 0x0f, 0x45, 0x60, 0x80, 0xff].map(|value| (i, value)));
    let frames = mangled.map(|(i, value)| {
        let mut bytes = good.clone();
        bytes[i] = value;
        bytes
    });
    ctx.send_frames(frames.collect());
    ctx.fence();
    super::drain(&s); // some bytes do not matter, such as TOS, or were that value
    ctx.send(at, &[b"good"]);
    assert_eq!(sock::take(&s, 100, 0).unwrap(), b"good");
}

/// `eth_type_trans` marks such a frame PACKET_OTHERHOST, and `ip_rcv` drops it.
pub(super) fn another_mac_is_not_ours(ctx: &mut Ctx) {
    dropped(ctx, |mut frame| {
        frame.link.1[5] ^= 0x80;
        vec![frame.bytes()]
    });
}

/// `ip_route_input_slow` drops what cannot be a sender.
pub(super) fn a_martian_source_is_dropped(ctx: &mut Ctx) {
    dropped(ctx, |frame| {
        let sources =
            [Ipv4Addr::BROADCAST, Ipv4Addr::LOCALHOST, Ipv4Addr::new(239, 1, 1, 1), Ipv4Addr::UNSPECIFIED];
        let from = |ip: &Ipv4Addr| Frame { from: (*ip, 1234).into(), ..frame.clone() }.bytes();
        sources.iter().map(from).collect()
    });
}

/// A frame that must pass, between two that are lifted.
fn passes(ctx: &mut Ctx, s: &std::os::fd::OwnedFd, at: SocketAddr, options: Vec<u8>) {
    ctx.send(at, &[b"plain"]);
    assert_eq!(sock::take(s, 100, 0).unwrap(), b"plain");
    let from = (ctx.from(at).ip(), 1234).into();
    ctx.send_frames(vec![Frame { options, from, ..ctx.frame(at, b"odd") }.bytes()]);
    let mut buffer = [0; 100];
    assert_eq!(sock::recv_from(s, &mut buffer, 0).unwrap(), (3, from));
    ctx.send(at, &[b"plain"]);
    assert_eq!(sock::take(s, 100, 0).unwrap(), b"plain");
}

pub(super) fn options_pass(ctx: &mut Ctx) {
    let (s, at) = ctx.bound4();
    passes(ctx, &s, at, vec![1, 1, 1, 0]); // no-operation, end of list
}

pub(super) fn extension_headers_pass(ctx: &mut Ctx) {
    let (s, at) = ctx.bound6();
    passes(ctx, &s, at, vec![0, 0, 1, 4, 0, 0, 0, 0]); // destination options: PadN of 6 bytes
}

fn fragments_arrive(ctx: &mut Ctx, s: &std::os::fd::OwnedFd, at: SocketAddr) {
    let payload = numbered(7, 3000);
    ctx.send(at, &[b"plain"]);
    assert_eq!(sock::take(s, 100, 0).unwrap(), b"plain");
    ctx.send_frames(ctx.frame(at, &payload).fragments(1200));
    assert_eq!(sock::take(s, 4000, 0).unwrap(), payload);
    let mut backwards = ctx.frame(at, &payload).fragments(800);
    backwards.reverse();
    ctx.send_frames(backwards);
    sock::wait_readable(s);
    assert_eq!(sock::take(s, 4000, libc::MSG_DONTWAIT).unwrap(), payload);
    ctx.send(at, &[b"plain"]);
    assert_eq!(sock::take(s, 100, 0).unwrap(), b"plain");
}

pub(super) fn fragments_pass(ctx: &mut Ctx) {
    let (s, at) = ctx.bound4();
    fragments_arrive(ctx, &s, at);
}

pub(super) fn fragments6_pass(ctx: &mut Ctx) {
    let (s, at) = ctx.bound6();
    fragments_arrive(ctx, &s, at);
}

pub(super) fn the_largest_datagram_arrives(ctx: &mut Ctx) {
    let (s, at) = ctx.bound4();
    for len in [MAX_UDP4, 1473, 30_000] {
        ctx.send(at, &[b"small"]);
        assert_eq!(sock::take(&s, 70_000, 0).unwrap(), b"small");
        ctx.send(at, &[&numbered(len as u32, len)]);
        assert_eq!(sock::take(&s, 70_000, 0).unwrap(), numbered(len as u32, len));
    }
}

/// What is in fragments and what is not may overtake each other; neither overtakes itself, and nothing is lost.
pub(super) fn lifted_and_fragmented_keep_their_own_order(ctx: &mut Ctx) {
    let (s, at) = ctx.bound4();
    let payloads: Vec<_> = (0..40).map(|i| numbered(i, if i % 2 == 0 { 100 } else { 2000 })).collect();
    let list: Vec<_> = payloads.iter().map(Vec::as_slice).collect();
    let shot: Shot = ctx.shot(at, &list);
    ctx.shoot(shot);
    let mut seen = [Vec::new(), Vec::new()];
    for _ in 0..40 {
        let bytes = sock::take(&s, 3000, 0).unwrap();
        seen[usize::from(bytes.len() > 100)].push(number_of(&bytes));
    }
    assert_eq!(seen[0], (0..40).step_by(2).collect::<Vec<_>>());
    assert_eq!(seen[1], (1..40).step_by(2).collect::<Vec<_>>());
}
