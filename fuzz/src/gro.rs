//! What must hold for any segments in any order through GRO; shared by the fuzz target and `crates/packet/tests/gro.rs`.
//!
//! The engine is held against the table of docs/gro.md, written out field by field over the views, and what it gives
//! out is segmented again as `tcp_gso_segment` and `inet_gso_segment` would.

use hoist_packet::{
    Ip, SocketAddrRaw, ethernet,
    flow::FlowKey,
    gro::{Counts, Gro, Limits, MAX_BYTES, Merged},
    ipv4, ipv6,
    tcp::{self, ChecksumTrust, Segment, Template},
};

const MSS: usize = 24;
const FLOWS: u8 = 6;

/// Runs the operations that `bytes` describe and gives what the engine counted.
///
/// # Panics
/// If the engine differs from the model, or loses, doubles, reorders or changes anything.
pub(crate) fn check(bytes: &[u8]) -> Counts {
    let mut input = Input(bytes);
    let limits = limits(&mut input);
    let mut run = Run::new(limits);
    while !input.0.is_empty() {
        step(&mut run, &mut input);
    }
    run.flush_all();
    assert!(run.gro.is_empty());
    run.given_in_full();
    run.gro.counts()
}

/// The bytes that are left; zeroes follow.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn next(&mut self) -> u8 {
        let (first, rest) = self.0.split_first().map_or((0, self.0), |(first, rest)| (*first, rest));
        self.0 = rest;
        first
    }
}

fn limits(input: &mut Input<'_>) -> Limits {
    let (flows, bytes, segments) = (input.next(), input.next(), input.next());
    Limits {
        flows: usize::from(flows % 5),
        bytes: if bytes & 1 == 0 { u32::MAX } else { u32::from(bytes) },
        segments: if segments & 1 == 0 { u32::MAX } else { u32::from(segments % 16) },
    }
}

fn step(run: &mut Run, input: &mut Input<'_>) {
    let (operation, flow) = (input.next(), input.next() % FLOWS);
    match operation {
        0..=3 => run.flush_all(),
        4..=15 => run.flush_flow(flow),
        16..=159 => run.send(flow, MSS, |_| {}),
        160..=175 => run.send(flow, usize::from(input.next()) % (2 * MSS), |_| {}),
        176..=191 => run.skip(flow, input.next()),
        192..=223 => {
            let (field, value) = (input.next(), input.next());
            run.send(flow, MSS, |sent| sent.vary(field, value));
        }
        _ => {
            let (field, value) = (input.next(), input.next());
            run.vary_for_good(flow, field, value);
        }
    }
}

/// The next segment of a flow.
#[derive(Clone)]
struct Sender {
    flow: u8,
    source_mac: u8,
    ttl: u8,
    tos: u8,
    flow_label: u32,
    fragment: u8,
    id: u16,
    id_step: u16,
    seq: u32,
    ack: u32,
    flags: u8,
    reserved: u8,
    window: u16,
    urgent: u16,
    options: Vec<u8>,
}

impl Sender {
    fn new(flow: u8) -> Self {
        Self {
            flow,
            source_mac: 1,
            ttl: 64,
            tos: 0,
            flow_label: 7,
            fragment: if flow == 2 { 0 } else { 0x40 },
            id: 0xfffe,
            id_step: u16::from(flow != 0),
            // Wraps after a few segments.
            seq: u32::MAX - 60,
            ack: 99,
            flags: tcp::ACK,
            reserved: 0,
            window: 500,
            urgent: 0,
            options: if flow & 1 == 0 { vec![] } else { vec![1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2] },
        }
    }

    fn vary(&mut self, field: u8, value: u8) {
        match field % 15 {
            0 => self.source_mac ^= value,
            1 => self.ttl ^= value,
            2 => self.tos ^= value,
            3 => self.flow_label ^= u32::from(value),
            4 => self.fragment ^= value & 0xc0,
            5 => self.id ^= u16::from(value),
            6 => self.ack ^= u32::from(value) << 16,
            7 => self.flags ^= value & (tcp::PSH | tcp::FIN),
            8 => self.flags ^= value,
            9 => self.reserved ^= value & 0x0f,
            10 => self.window ^= u16::from(value),
            11 => self.urgent ^= u16::from(value),
            12 => self.options = [1, 1, 8, 10, 0, 0, 0, value, 0, 0, 0, 2].to_vec(),
            13 => self.options = vec![1; usize::from(value % 11) * 4],
            _ => self.id_step ^= u16::from(value & 1),
        }
    }

    fn address(&self, host: u8) -> Ip {
        match self.flow {
            // Two flows share everything but one port.
            0..=2 => Ip::V4([10, 0, 0, host]),
            _ => Ip::V6([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, self.flow / 5, host]),
        }
    }

    fn key(&self) -> FlowKey {
        FlowKey {
            source: SocketAddrRaw { ip: self.address(1), port: 4000 + u16::from(self.flow) },
            destination: SocketAddrRaw { ip: self.address(2), port: 80 },
        }
    }

    fn frame(&self, len: usize) -> Vec<u8> {
        let FlowKey { source, destination } = self.key();
        let template = Template {
            link: ethernet::Header {
                destination: [2, 0, 0, 0, 0, 2],
                source: [2, 0, 0, 0, 0, self.source_mac],
                vlan: None,
            },
            source,
            destination,
            ttl: self.ttl,
            tos: self.tos,
            flow_label: self.flow_label,
            seq: self.seq,
            ack: self.ack,
            flags: self.flags,
            window: self.window,
            urgent: self.urgent,
            options: &self.options,
            payload: &vec![0x5a; len],
        };
        let mut out = vec![0; 256];
        let len = template.write(&mut out).expect("room for every frame");
        out.truncate(len);
        if self.flow <= 2 {
            out[18..20].copy_from_slice(&self.id.to_be_bytes());
            out[20] = self.fragment;
        }
        out[if self.flow <= 2 { 46 } else { 66 }] |= self.reserved;
        tcp::fill_checksums(&mut out).expect("a sound frame");
        out
    }
}

/// A segment that went in.
#[derive(Clone)]
struct Sent {
    frame: Vec<u8>,
    segment: Segment,
}

impl Sent {
    fn headers(&self) -> Vec<u8> {
        without_checksum(&self.frame[..self.segment.payload.start as usize], &self.segment)
    }

    fn is_v4(&self) -> bool {
        self.segment.transport_at == 34
    }
}

fn without_checksum(headers: &[u8], segment: &Segment) -> Vec<u8> {
    let mut headers = headers.to_vec();
    headers[segment.transport_at as usize + 16..][..2].fill(0);
    headers
}

/// Engine and model side by side.
struct Run {
    gro: Gro,
    limits: Limits,
    senders: Vec<Sender>,
    sent: Vec<Sent>,
    /// What the model holds, oldest first: indices of segments.
    held: Vec<Vec<usize>>,
    given: usize,
}

impl Run {
    fn new(limits: Limits) -> Self {
        let flows = limits.flows.clamp(1, 64);
        Self {
            gro: Gro::new(limits),
            limits: Limits { flows, bytes: limits.bytes.min(MAX_BYTES), ..limits },
            senders: (0..FLOWS).map(Sender::new).collect(),
            sent: Vec::new(),
            held: Vec::new(),
            given: 0,
        }
    }

    fn skip(&mut self, flow: u8, by: u8) {
        let sender = &mut self.senders[usize::from(flow)];
        sender.seq = sender.seq.wrapping_add(u32::from(by)).wrapping_sub(100);
    }

    fn vary_for_good(&mut self, flow: u8, field: u8, value: u8) {
        self.senders[usize::from(flow)].vary(field, value);
    }

    /// Sends one segment, varied for this once.
    fn send(&mut self, flow: u8, len: usize, vary: impl FnOnce(&mut Sender)) {
        let sender = &mut self.senders[usize::from(flow)];
        let mut once = sender.clone();
        vary(&mut once);
        sender.seq = sender.seq.wrapping_add(len as u32);
        sender.id = sender.id.wrapping_add(sender.id_step);
        let frame = once.frame(len);
        let segment = tcp::parse(&frame, ChecksumTrust::Verify).expect("a sound frame");
        self.sent.push(Sent { frame, segment });
        self.receive(self.sent.len() - 1);
    }

    fn receive(&mut self, index: usize) {
        let expected = self.model_receive(index);
        let Sent { frame, segment } = &self.sent[index];
        let mut given = Vec::new();
        // Of the frame only the headers are there.
        self.gro.receive(&frame[..segment.payload.start as usize], segment, &mut |merged| {
            given.push(merged.clone())
        });
        self.compare(&given, &expected);
    }

    fn flush_flow(&mut self, flow: u8) {
        let key = self.senders[usize::from(flow)].key();
        let expected = self.model_take(&key).into_iter().collect::<Vec<_>>();
        let mut given = Vec::new();
        self.gro.flush_flow(&key, &mut |merged| given.push(merged.clone()));
        self.compare(&given, &expected);
    }

    fn flush_all(&mut self) {
        let expected = std::mem::take(&mut self.held);
        let mut given = Vec::new();
        self.gro.flush_all(&mut |merged| given.push(merged.clone()));
        self.compare(&given, &expected);
    }

    fn model_take(&mut self, key: &FlowKey) -> Option<Vec<usize>> {
        let at = self.held.iter().position(|held| FlowKey::from(&self.sent[held[0]].segment) == *key)?;
        Some(self.held.remove(at))
    }

    /// The packets that a segment completes.
    fn model_receive(&mut self, index: usize) -> Vec<Vec<usize>> {
        let key = FlowKey::from(&self.sent[index].segment);
        let at = self.held.iter().position(|held| FlowKey::from(&self.sent[held[0]].segment) == key);
        if let Some(at) = at {
            let packet: Vec<&Sent> = self.held[at].iter().map(|&index| &self.sent[index]).collect();
            if merges(&packet, &self.sent[index], &self.limits) {
                self.held[at].push(index);
                let complete = closes(&self.sent[index]) || self.is_done(at, index);
                return if complete { vec![self.held.remove(at)] } else { vec![] };
            }
        }
        let mut out: Vec<_> = at.map(|at| self.held.remove(at)).into_iter().collect();
        let sent = &self.sent[index];
        let may_grow = sent.segment.payload_len() > 0
            && sent.segment.payload_len() <= self.limits.bytes
            && self.limits.segments > 1
            && !closes(sent)
            && !solitary(sent);
        if !may_grow {
            out.push(vec![index]);
            return out;
        }
        if self.held.len() == self.limits.flows {
            out.push(self.held.remove(0));
        }
        self.held.push(vec![index]);
        out
    }

    fn is_done(&self, at: usize, last: usize) -> bool {
        let first = &self.sent[self.held[at][0]].segment;
        self.sent[last].segment.payload_len() < first.payload_len()
            || self.held[at].len() >= self.limits.segments as usize
    }

    fn compare(&mut self, given: &[Merged], expected: &[Vec<usize>]) {
        let lens: Vec<_> = given.iter().map(|merged| merged.segments() as usize).collect();
        assert_eq!(lens, expected.iter().map(Vec::len).collect::<Vec<_>>());
        for (merged, indices) in given.iter().zip(expected) {
            let inputs: Vec<&Sent> = indices.iter().map(|&index| &self.sent[index]).collect();
            is_a_sound_packet(merged, &inputs);
            segments_again(merged, &inputs);
            self.given += inputs.len();
        }
    }

    fn given_in_full(&self) {
        assert_eq!(self.given, self.sent.len());
    }
}

/// The table of docs/gro.md.
fn merges(packet: &[&Sent], next: &Sent, limits: &Limits) -> bool {
    let (first, last) = (packet[0], packet[packet.len() - 1]);
    let held: u32 = packet.iter().map(|sent| sent.segment.payload_len()).sum();
    let len = next.segment.payload_len();
    let fits = len > 0 && len <= first.segment.payload_len() && held + len <= limits.bytes;
    let follows = next.segment.seq == last.segment.seq.wrapping_add(last.segment.payload_len());
    fits && follows
        && !solitary(next)
        && same_link(first, next)
        && same_network(packet, next)
        && same_tcp(first, next)
}

fn closes(sent: &Sent) -> bool {
    sent.segment.flags & (tcp::PSH | tcp::FIN) != 0
}

fn solitary(sent: &Sent) -> bool {
    let reserved = sent.is_v4() && sent.frame[20] & 0x80 != 0;
    sent.segment.flags & (tcp::SYN | tcp::RST | tcp::URG | tcp::CWR) != 0 || reserved
}

fn same_link(first: &Sent, next: &Sent) -> bool {
    let link = |sent: &Sent| {
        let (link, _) = ethernet::View::split(&sent.frame).expect("a header");
        (link.source(), link.destination())
    };
    link(first) == link(next)
}

fn same_network(packet: &[&Sent], next: &Sent) -> bool {
    let first = packet[0];
    if (first.segment.ttl, first.segment.tos) != (next.segment.ttl, next.segment.tos) {
        return false;
    }
    if !next.is_v4() {
        let label = |sent: &Sent| ipv6::View::split(&sent.frame[14..]).expect("a header").0.flow_label();
        return label(first) == label(next);
    }
    let id = |sent: &Sent| u16::from_be_bytes([sent.frame[18], sent.frame[19]]);
    let may_stand_still = first.frame[20] & 0x40 != 0 && packet.iter().all(|sent| id(sent) == id(first));
    let stands_still = may_stand_still && id(next) == id(first);
    let counted = packet.iter().enumerate().all(|(at, sent)| id(sent) == id(first).wrapping_add(at as u16));
    let counts = counted && id(next) == id(first).wrapping_add(packet.len() as u16);
    first.frame[20] == next.frame[20] && (stands_still || counts)
}

fn same_tcp(first: &Sent, next: &Sent) -> bool {
    let view = |sent: &Sent| {
        let tcp = tcp::View::split(&sent.frame[sent.segment.transport_at as usize..]).expect("a header");
        let flags = tcp.flags() & !(tcp::PSH | tcp::FIN);
        (tcp.ack(), flags, tcp.window(), tcp.urgent(), tcp.header_len())
    };
    let reserved = |sent: &Sent| sent.frame[sent.segment.transport_at as usize + 12];
    let options = |sent: &Sent| {
        sent.frame[sent.segment.transport_at as usize + 20..sent.segment.payload.start as usize].to_vec()
    };
    view(first) == view(next) && reserved(first) == reserved(next) && options(first) == options(next)
}

/// Linux would take it: lengths, IP checksum and a partial TCP checksum hold, and the virtio header tells the same.
fn is_a_sound_packet(merged: &Merged, inputs: &[&Sent]) {
    let mut frame = merged.headers().to_vec();
    frame.resize(frame.len() + merged.payload_len() as usize, 0xa5);
    let segment = tcp::parse(&frame, ChecksumTrust::PartialAllowed).expect("a sound packet");
    assert!(segment.partial);
    assert_eq!(segment.payload_len(), merged.payload_len());
    assert_eq!(segment.payload.start as usize, merged.headers().len());
    assert_eq!(FlowKey::from(&segment), merged.flow());
    assert_eq!(segment.seq, merged.seq());
    let header = merged.virtio_net_hdr();
    let field = |at: usize| u16::from_ne_bytes([header[at], header[at + 1]]);
    let several = if inputs[0].is_v4() { 1 } else { 4 };
    let gso = if inputs.len() > 1 { (several, merged.gso_size()) } else { (0, 0) };
    assert_eq!((header[0], header[1], field(4)), (1, gso.0, gso.1));
    assert_eq!(
        (field(2), field(6), field(8)),
        (segment.payload.start as u16, segment.transport_at as u16, 16)
    );
}

/// `skb_segment`, `tcp_gso_segment`, `inet_gso_segment`: `gso_size` bytes each, the rest in the last; PSH and FIN in the
/// last alone. The identification counts, or stands still (`SKB_GSO_TCP_FIXEDID`).
fn segments_again(merged: &Merged, inputs: &[&Sent]) {
    let mut left = merged.payload_len();
    for (at, input) in inputs.iter().enumerate() {
        let is_last = at + 1 == inputs.len();
        let len = if inputs.len() == 1 { left } else { left.min(merged.gso_size().into()) };
        left -= len;
        assert_eq!(input.segment.payload_len(), len);
        let seq = merged.seq().wrapping_add(at as u32 * u32::from(merged.gso_size()));
        let fixed = inputs.len() > 1 && inputs[0].frame[18..20] == inputs[1].frame[18..20];
        let id_offset = if fixed { 0 } else { at as u16 };
        assert_eq!(segment_headers(merged, input, seq, len, id_offset, is_last), input.headers());
    }
    assert_eq!(left, 0);
}

fn segment_headers(
    merged: &Merged,
    input: &Sent,
    seq: u32,
    len: u32,
    id_offset: u16,
    is_last: bool,
) -> Vec<u8> {
    let mut headers = without_checksum(merged.headers(), &input.segment);
    let at = input.segment.transport_at as usize;
    headers[at + 4..at + 8].copy_from_slice(&seq.to_be_bytes());
    if !is_last {
        headers[at + 13] &= !(tcp::PSH | tcp::FIN);
    }
    let tcp_len = (headers.len() - at) as u16 + len as u16;
    if !input.is_v4() {
        headers[18..20].copy_from_slice(&tcp_len.to_be_bytes());
        return headers;
    }
    let id = u16::from_be_bytes([headers[18], headers[19]]).wrapping_add(id_offset);
    headers[16..18].copy_from_slice(&(tcp_len + 20).to_be_bytes());
    headers[18..20].copy_from_slice(&id.to_be_bytes());
    ipv4::set_checksum(headers[14..].first_chunk_mut().expect("a header"));
    headers
}
