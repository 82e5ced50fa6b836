//! One test for each row of docs/gro.md.

use hoist_packet::{
    Ip, SocketAddrRaw, ethernet,
    flow::FlowKey,
    gro::{Counts, Gro, Limits, MAX_BYTES, Merged},
    tcp::{self, ChecksumTrust, Segment, Template},
};

const MSS: usize = 100;
const PAYLOAD: [u8; 2 * MSS] = [0x5a; 2 * MSS];
const TIMESTAMPS: [u8; 12] = [1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2];
const V4: bool = false;
const V6: bool = true;

fn end(v6: bool, host: u8, port: u16) -> SocketAddrRaw {
    let ip = if v6 {
        Ip::V6([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, host])
    } else {
        Ip::V4([10, 0, 0, host])
    };
    SocketAddrRaw { ip, port }
}

/// The `at`-th full segment of a flow.
fn nth(v6: bool, at: u32) -> Template<'static> {
    Template {
        link: ethernet::Header { destination: [2, 0, 0, 0, 0, 2], source: [2, 0, 0, 0, 0, 1], vlan: None },
        source: end(v6, 1, 4000),
        destination: end(v6, 2, 80),
        ttl: 64,
        tos: 0,
        flow_label: 7,
        seq: 1000 + at * MSS as u32,
        ack: 1,
        flags: tcp::ACK,
        window: 500,
        urgent: 0,
        options: &TIMESTAMPS,
        payload: &PAYLOAD[..MSS],
    }
}

fn frame(template: &Template<'_>) -> Vec<u8> {
    let mut out = vec![0; 512];
    let len = template.write(&mut out).unwrap();
    out.truncate(len);
    out
}

fn parsed(frame: &[u8]) -> Segment {
    tcp::parse(frame, ChecksumTrust::Verify).unwrap()
}

/// An engine with what came out of it.
struct Bench {
    gro: Gro,
    out: Vec<Merged>,
}

impl Bench {
    fn new(limits: Limits) -> Self {
        Self { gro: Gro::new(limits), out: Vec::new() }
    }

    fn frame(&mut self, frame: &[u8]) {
        self.gro.receive(frame, &parsed(frame), &mut |merged| self.out.push(merged.clone()));
    }

    fn frames(frames: &[Vec<u8>]) -> Self {
        let mut bench = Self::new(Limits::default());
        frames.iter().for_each(|frame| bench.frame(frame));
        bench
    }

    fn templates(templates: &[Template<'_>]) -> Self {
        Self::frames(&templates.iter().map(frame).collect::<Vec<_>>())
    }

    /// Segments of each packet that came out.
    fn given(&self) -> Vec<u32> {
        self.out.iter().map(Merged::segments).collect()
    }

    /// The same after everything held came out too.
    fn all(mut self) -> (Vec<u32>, Counts) {
        self.gro.flush_all(&mut |merged| self.out.push(merged.clone()));
        (self.given(), self.gro.counts())
    }
}

/// Two segments go in, the second changed: whether one packet comes out.
fn merges(v6: bool, change: impl FnOnce(&mut Template<'static>)) -> bool {
    let mut second = nth(v6, 1);
    change(&mut second);
    merges_frames(&[frame(&nth(v6, 0)), frame(&second)])
}

/// For what a template does not have.
fn merges_edited(v6: bool, edit: impl Fn(usize, &mut [u8])) -> bool {
    let frames = [0, 1].map(|at| {
        let mut frame = frame(&nth(v6, at));
        edit(at as usize, &mut frame);
        tcp::fill_checksums(&mut frame).unwrap();
        frame
    });
    merges_frames(&frames)
}

fn merges_frames(frames: &[Vec<u8>]) -> bool {
    let (segments, _) = Bench::frames(frames).all();
    assert_eq!(segments.iter().sum::<u32>() as usize, frames.len(), "nothing is lost");
    segments.len() == 1
}

fn ids(ids: &[u16], fragment: u8) -> Vec<u32> {
    let frames: Vec<Vec<u8>> = (0..).zip(ids).map(|(at, id)| with_id(at, *id, fragment)).collect();
    Bench::frames(&frames).all().0
}

fn with_id(at: u32, id: u16, fragment: u8) -> Vec<u8> {
    let mut frame = frame(&nth(V4, at));
    frame[18..20].copy_from_slice(&id.to_be_bytes());
    frame[20] = fragment;
    tcp::fill_checksums(&mut frame).unwrap();
    frame
}

#[test]
fn segments_that_follow_each_other_merge() {
    for v6 in [V4, V6] {
        assert!(merges(v6, |_| {}));
    }
}

#[test]
fn another_address_or_port_is_another_flow_and_flushes_nothing() {
    for v6 in [V4, V6] {
        let strangers = [
            Template { source: end(v6, 9, 4000), ..nth(v6, 1) },
            Template { destination: end(v6, 9, 80), ..nth(v6, 1) },
            Template { source: end(v6, 1, 4001), ..nth(v6, 1) },
            Template { destination: end(v6, 2, 81), ..nth(v6, 1) },
            nth(!v6, 1),
        ];
        for stranger in strangers {
            let bench = Bench::templates(&[nth(v6, 0), stranger, nth(v6, 1)]);
            assert_eq!(bench.given(), []);
            assert_eq!(bench.all().0, [2, 1]);
        }
    }
}

#[test]
fn another_mac_address_flushes() {
    assert!(!merges(V4, |second| second.link.source = [2, 0, 0, 0, 0, 9]));
    assert!(!merges(V6, |second| second.link.destination = [2, 0, 0, 0, 0, 9]));
}

#[test]
fn another_ttl_or_hop_limit_flushes() {
    assert!(!merges(V4, |second| second.ttl = 63));
    assert!(!merges(V6, |second| second.ttl = 63));
}

#[test]
fn another_tos_or_traffic_class_flushes() {
    assert!(!merges(V4, |second| second.tos = 3));
    assert!(!merges(V6, |second| second.tos = 3));
}

#[test]
fn another_flow_label_flushes() {
    assert!(!merges(V6, |second| second.flow_label = 8));
}

#[test]
fn another_dont_fragment_bit_flushes() {
    assert!(!merges_edited(V4, |at, frame| frame[20] = if at == 0 { 0x40 } else { 0 }));
}

#[test]
fn the_reserved_fragment_bit_passes_alone() {
    assert!(!merges_edited(V4, |_, frame| frame[20] = 0xc0));
}

#[test]
fn an_identification_that_stands_still_merges_with_dont_fragment_only() {
    assert_eq!(ids(&[7, 7, 7], 0x40), [3]);
    assert_eq!(ids(&[7, 7, 7], 0), [1, 1, 1]);
}

#[test]
fn an_identification_that_counts_merges_across_its_wrap() {
    for fragment in [0, 0x40] {
        assert_eq!(ids(&[0xfffe, 0xffff, 0, 1], fragment), [4]);
    }
}

#[test]
fn an_identification_keeps_to_what_the_second_segment_did() {
    assert_eq!(ids(&[7, 7, 8], 0x40), [2, 1]);
    assert_eq!(ids(&[7, 8, 8], 0x40), [2, 1]);
    assert_eq!(ids(&[7, 9], 0x40), [1, 1]);
}

#[test]
fn a_gap_an_overlap_or_a_repetition_flushes() {
    for seq in [1000 + MSS as u32 + 1, 1000 + MSS as u32 - 1, 1000] {
        assert!(!merges(V4, |second| second.seq = seq));
    }
}

#[test]
fn sequence_numbers_merge_across_their_wrap() {
    let first = Template { seq: u32::MAX - 9, ..nth(V4, 0) };
    let second = Template { seq: MSS as u32 - 10, ..nth(V4, 1) };
    assert!(merges_frames(&[frame(&first), frame(&second)]));
}

#[test]
fn another_acknowledgement_flushes() {
    assert!(!merges(V4, |second| second.ack = 2));
}

#[test]
fn another_window_flushes() {
    assert!(!merges(V4, |second| second.window = 501));
}

#[test]
fn another_urgent_pointer_flushes() {
    assert!(!merges(V4, |second| second.urgent = 1));
}

#[test]
fn other_options_flush() {
    for options in
        [&[1, 1, 8, 10, 0, 0, 0, 2, 0, 0, 0, 2][..], &[1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 3], &[], &[1; 40]]
    {
        assert!(!merges(V4, |second| second.options = options));
        assert!(!merges(V6, |second| second.options = options));
    }
}

#[test]
fn another_ece_or_reserved_bit_flushes() {
    assert!(!merges(V4, |second| second.flags |= tcp::ECE));
    for v6 in [V4, V6] {
        let at = if v6 { 66 } else { 46 };
        assert!(!merges_edited(v6, |nth, frame| frame[at] |= nth as u8));
        assert!(merges_edited(v6, |_, frame| frame[at] |= 1), "AE of AccECN, equal in both");
    }
}

#[test]
fn ece_in_all_merges() {
    let ece = |at| Template { flags: tcp::ACK | tcp::ECE, ..nth(V4, at) };
    assert_eq!(Bench::templates(&[ece(0), ece(1)]).all().0, [2]);
}

#[test]
fn cwr_passes_alone_after_what_is_held() {
    let cwr = |at| Template { flags: tcp::ACK | tcp::CWR, ..nth(V4, at) };
    let bench = Bench::templates(&[nth(V4, 0), nth(V4, 1), cwr(2), cwr(3), nth(V4, 4)]);
    assert_eq!(bench.given(), [2, 1, 1]);
    assert_eq!(bench.all().0, [2, 1, 1, 1]);
}

#[test]
fn syn_rst_and_urg_pass_alone_after_what_is_held() {
    for flag in [tcp::SYN, tcp::RST, tcp::URG] {
        let lone = Template { flags: tcp::ACK | flag, ..nth(V6, 1) };
        let bench = Bench::templates(&[nth(V6, 0), lone, Template { seq: nth(V6, 2).seq, ..lone }]);
        assert_eq!(bench.given(), [1, 1, 1]);
        assert!(bench.gro.is_empty());
        assert_eq!((bench.gro.counts().overtaken, bench.gro.counts().alone), (1, 2));
    }
}

#[test]
fn a_segment_without_payload_passes_alone_after_what_is_held() {
    for flags in [tcp::ACK, tcp::ACK | tcp::FIN] {
        let bare = Template { flags, payload: &[], ..nth(V4, 1) };
        let bench = Bench::templates(&[nth(V4, 0), bare]);
        assert_eq!((bench.given(), bench.gro.is_empty()), (vec![1, 1], true));
        assert_eq!(bench.out[1].payload_len(), 0);
    }
}

#[test]
fn psh_or_fin_merges_completes_the_packet_and_stays_in_its_flags() {
    for flag in [tcp::PSH, tcp::FIN, tcp::PSH | tcp::FIN] {
        let last = Template { flags: tcp::ACK | flag, ..nth(V4, 1) };
        let bench = Bench::templates(&[nth(V4, 0), last]);
        assert_eq!((bench.given(), bench.gro.is_empty()), (vec![2], true));
        assert_eq!(bench.out[0].headers()[47], tcp::ACK | flag);
        assert_eq!(bench.gro.counts().pushed, 1);
    }
}

#[test]
fn psh_or_fin_in_the_first_segment_passes_alone() {
    for flag in [tcp::PSH, tcp::FIN] {
        let first = Template { flags: tcp::ACK | flag, ..nth(V4, 0) };
        assert_eq!(Bench::templates(&[first]).given(), [1]);
    }
}

#[test]
fn a_shorter_segment_merges_and_completes_the_packet() {
    let last = Template { payload: &PAYLOAD[..MSS - 1], ..nth(V6, 2) };
    let bench = Bench::templates(&[nth(V6, 0), nth(V6, 1), last]);
    assert_eq!((bench.given(), bench.gro.is_empty()), (vec![3], true));
    assert_eq!((bench.out[0].payload_len(), bench.out[0].gso_size()), (3 * MSS as u32 - 1, MSS as u16));
    assert_eq!(bench.gro.counts().short, 1);
}

#[test]
fn a_longer_segment_flushes() {
    assert!(!merges(V4, |second| second.payload = &PAYLOAD[..MSS + 1]));
}

#[test]
fn a_packet_never_exceeds_its_bytes() {
    let mut bench = Bench::new(Limits { bytes: 3 * MSS as u32 - 1, ..Limits::default() });
    (0..4).for_each(|at| bench.frame(&frame(&nth(V4, at))));
    assert_eq!(bench.given(), [2]);
    assert_eq!(bench.gro.counts().full, 1);
    bench.frame(&frame(&Template { payload: &PAYLOAD, ..nth(V4, 4) }));
    assert_eq!(bench.all().0, [2, 2, 1]);
}

#[test]
fn a_segment_beyond_the_bytes_of_a_packet_passes_alone() {
    let mut bench = Bench::new(Limits { bytes: MSS as u32 - 1, ..Limits::default() });
    bench.frame(&frame(&nth(V4, 0)));
    assert_eq!((bench.given(), bench.gro.counts().alone), (vec![1], 1));
}

#[test]
fn the_largest_packet_fits_the_length_fields() {
    for v6 in [V4, V6] {
        let mut bench = Bench::new(Limits { bytes: u32::MAX, ..Limits::default() });
        (0..700).for_each(|at| bench.frame(&frame(&nth(v6, at))));
        let merged = &bench.out[0];
        assert_eq!(merged.payload_len(), MAX_BYTES / MSS as u32 * MSS as u32);
        let len_at = if v6 { 18 } else { 16 };
        let len = u16::from_be_bytes([merged.headers()[len_at], merged.headers()[len_at + 1]]);
        let before = if v6 { 54 } else { 14 };
        assert_eq!(u32::from(len), merged.headers().len() as u32 - before + merged.payload_len());
    }
}

#[test]
fn a_packet_never_exceeds_its_segments() {
    for (segments, expected) in [(0, vec![1; 6]), (1, vec![1; 6]), (2, vec![2; 3]), (4, vec![4, 2])] {
        let mut bench = Bench::new(Limits { segments, ..Limits::default() });
        (0..6).for_each(|at| bench.frame(&frame(&nth(V4, at))));
        assert_eq!(bench.all().0, expected);
    }
}

#[test]
fn a_flow_too_many_evicts_what_was_begun_first() {
    let mut bench = Bench::new(Limits { flows: 2, ..Limits::default() });
    let of = |port, at| frame(&Template { source: end(V4, 1, port), ..nth(V4, at) });
    // That the first grows does not make it younger.
    [of(1, 0), of(2, 0), of(1, 1), of(3, 0)].iter().for_each(|frame| bench.frame(frame));
    assert_eq!((bench.given(), bench.out[0].flow().source.port), (vec![2], 1));
    assert_eq!(bench.gro.counts().evicted, 1);
}

#[test]
fn sixty_four_flows_are_held_and_flushed_in_their_order() {
    let mut bench = Bench::new(Limits { flows: 1000, ..Limits::default() });
    let of = |port, at| frame(&Template { source: end(V6, 1, port), ..nth(V6, at) });
    for at in 0..3 {
        (0..64).for_each(|port| bench.frame(&of(port, at)));
    }
    assert_eq!(bench.given(), []);
    bench.frame(&of(64, 0));
    bench.gro.flush_all(&mut |merged| bench.out.push(merged.clone()));
    let ports: Vec<u16> = bench.out.iter().map(|merged| merged.flow().source.port).collect();
    assert_eq!(ports, (0..=64).collect::<Vec<_>>());
    assert_eq!(bench.given(), [vec![3; 64], vec![1]].concat());
}

#[test]
fn an_engine_with_room_for_one_flow_holds_one() {
    let mut gro = Gro::<1>::new(Limits::default());
    let mut given = Vec::new();
    for (port, at) in [(1, 0), (1, 1), (2, 0), (1, 2)] {
        let frame = frame(&Template { source: end(V4, 1, port), ..nth(V4, at) });
        gro.receive(&frame, &parsed(&frame), &mut |merged| given.push(merged.segments()));
    }
    assert_eq!((given, gro.counts().evicted), (vec![2, 1], 2));
}

#[test]
fn flushing_a_flow_leaves_the_others() {
    for v6 in [V4, V6] {
        let other = Template { source: end(v6, 1, 1), ..nth(v6, 0) };
        let mut bench = Bench::templates(&[nth(v6, 0), nth(v6, 1), other]);
        let key = FlowKey::from(&parsed(&frame(&nth(v6, 0))));
        bench.gro.flush_flow(&key.reversed(), &mut |_| panic!("no such flow"));
        bench.gro.flush_flow(&FlowKey { source: end(!v6, 1, 4000), ..key }, &mut |_| panic!("no such flow"));
        bench.gro.flush_flow(&key, &mut |merged| bench.out.push(merged.clone()));
        assert_eq!((bench.given(), bench.out[0].flow()), (vec![2], key));
        bench.gro.flush_flow(&key, &mut |_| panic!("flushed twice"));
        assert!(!bench.gro.is_empty());
        assert_eq!(bench.all().0, [2, 1]);
    }
}

#[test]
fn padding_of_ethernet_does_not_count() {
    let mut padded = frame(&Template { payload: &PAYLOAD[..1], options: &[], ..nth(V4, 1) });
    padded.resize(60, 0);
    let first = frame(&Template { options: &[], ..nth(V4, 0) });
    let bench = Bench::frames(&[first, padded]);
    assert_eq!((bench.given(), bench.out[0].payload_len()), (vec![2], MSS as u32 + 1));
}

#[test]
fn a_segment_of_another_frame_is_ignored() {
    let (frame, mut bench) = (frame(&nth(V4, 0)), Bench::new(Limits::default()));
    let honest = parsed(&frame);
    let forged = [
        Segment { transport_at: 54, ..honest.clone() },
        Segment { transport_at: 14, ..honest.clone() },
        Segment { payload: 53..200, ..honest.clone() },
        Segment { payload: 95..195, ..honest.clone() },
        Segment { payload: 66..u32::MAX, ..honest.clone() },
        Segment { payload: u32::MAX..u32::MAX, ..honest },
    ];
    for segment in forged {
        bench.gro.receive(&frame, &segment, &mut |_| panic!("{segment:?}"));
        assert!(bench.gro.is_empty(), "{segment:?}");
    }
}
