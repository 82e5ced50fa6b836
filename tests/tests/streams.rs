//! Streams of seeded bytes from kernel TCP over good and bad links, and from peers that lie: every byte is compared,
//! natively and under `hoist run --tcp lift`.

use anyhow::{Context, Result, ensure};
use hoist_tests::{
    lab::{LIMIT, Lab, Mode, Running, bin, may_run},
    liar::{End, Liar, MSS, Segment},
    remote::connect,
    report::Report,
    sink::Style,
    sock,
    stream::{self, Draw},
};
use hoist_wire::{Direction, End as Side, Impairment, Link, LinkCounts, Offload, Testbed};
use std::{
    collections::BTreeMap,
    fs,
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

const PORT: u16 = 7_000;

/// What is sent over what, and how it is read.
#[derive(Clone)]
struct Scenario {
    v6: bool,
    queues: u32,
    mtu: u32,
    impairment: Option<(Direction, Impairment)>,
    connections: usize,
    /// Senders at a time; each opens its share of the connections in turn.
    threads: usize,
    bytes: usize,
    largest_write: usize,
    style: Style,
    receive_buffer: i32,
    /// SO_SNDBUF of the senders together; 0 leaves it.
    send_buffer: i32,
    sysctls: &'static [(&'static str, &'static str)],
    first_sequence: Option<u32>,
    checksum_offload: bool,
    options: &'static [&'static str],
    /// Of the bytes sent so many in a hundred must be lifted.
    lifted: u64,
}

impl Default for Scenario {
    fn default() -> Self {
        Self {
            v6: false,
            queues: 1,
            mtu: 1_500,
            impairment: None,
            connections: 1,
            threads: 1,
            bytes: 16_000_000,
            largest_write: 200_000,
            style: Style::Mixed,
            receive_buffer: 0,
            send_buffer: 0,
            sysctls: &[],
            first_sequence: None,
            checksum_offload: false,
            options: &[],
            lifted: 10,
        }
    }
}

/// What a run has shown.
struct Outcome {
    retransmitted: u64,
    out_of_order: u64,
    link: Option<LinkCounts>,
    report: Option<Report>,
}

impl Scenario {
    /// Natively and hoisted; what both have shown.
    fn run(&self) -> Option<[Outcome; 2]> {
        may_run().then(|| {
            [Mode::Native, Mode::Hoisted]
                .map(|mode| self.run_in(mode).unwrap_or_else(|error| panic!("{mode:?}: {error:#}")))
        })
    }

    fn run_in(&self, mode: Mode) -> Result<Outcome> {
        let lab = self.lab()?;
        let start = Instant::now();
        let mut sink = self.sink(&lab, mode)?;
        let ends = [lab.testbed.host(), lab.testbed.wire()];
        let before = [counters(ends[0])?, counters(ends[1])?];
        let link = match &self.impairment {
            Some((direction, impairment)) => Some(Link::start(&lab.testbed, *direction, impairment)?),
            None => None,
        };
        self.send_all(&lab).map_err(|why| sink.fail(&format!("{why:#}")))?;
        sink.succeed(LIMIT)?;
        let [host, wire] = [0, 1].map(|i| Ok::<_, anyhow::Error>(grown(&before[i], &counters(ends[i])?)));
        let (host, wire) = (host?, wire?);
        let link = link.map(Link::stop).transpose()?;
        let count = |counters: &Counters, name| counters.get(name).copied().unwrap_or(0);
        let retransmitted = count(&wire, "Tcp:RetransSegs");
        eprintln!("{mode:?}: {:?}, retransmitted {retransmitted}, {link:?}\n{host:?}", start.elapsed());
        let report = (mode == Mode::Hoisted).then(|| self.judge(&sink)).transpose()?;
        Ok(Outcome { retransmitted, out_of_order: count(&host, "TcpExt:TCPOFOQueue"), link, report })
    }

    fn lab(&self) -> Result<Lab> {
        let mut lab = Lab::on(Testbed::builder().queues(self.queues).mtu(self.mtu).up()?)?;
        lab.options = ["--tcp", "lift"].iter().chain(self.options).map(Into::into).collect();
        for end in [lab.testbed.host(), lab.testbed.wire()] {
            // What is sent again for want of an answer in time says nothing but that the machine is busy.
            end.netns().sysctl("net.ipv4.tcp_early_retrans", "0")?;
            if self.send_buffer > 0 {
                let _ = end.netns().sysctl("net.ipv4.tcp_rto_min_us", "5000000"); // Linux 6.11
            }
            self.sysctls.iter().try_for_each(|(key, value)| end.netns().sysctl(key, value))?;
        }
        lab.testbed.wire().set_offload(Offload::TxChecksum, self.checksum_offload)?;
        Ok(lab)
    }

    fn at(&self, lab: &Lab) -> SocketAddr {
        let host = lab.testbed.host();
        if self.v6 { (host.v6(), PORT).into() } else { (host.v4(), PORT).into() }
    }

    fn sink(&self, lab: &Lab, mode: Mode) -> Result<Running> {
        let argv = [
            bin("stream-sink")?.to_string_lossy().into_owned(),
            self.at(lab).to_string(),
            self.connections.to_string(),
            self.style.word().into(),
            self.receive_buffer.to_string(),
        ];
        let mut sink = lab.program(mode, &argv)?.start()?;
        sink.until_listening(PORT)?;
        Ok(sink)
    }

    fn send_all(&self, lab: &Lab) -> Result<()> {
        let at = self.at(lab);
        let send = || {
            thread::scope(|scope| {
                let senders: Vec<_> =
                    (0..self.threads).map(|i| scope.spawn(move || self.send_share(at, i))).collect();
                senders.into_iter().try_for_each(|sender| sender.join().expect("a sender does not panic"))
            })
        };
        lab.testbed.wire().enter(send)?
    }

    /// The connections of one sender, in turn.
    fn send_share(&self, at: SocketAddr, first: usize) -> Result<()> {
        for i in (first..self.connections).step_by(self.threads) {
            self.send_one(at, i as u64).with_context(|| format!("connection {i}"))?;
        }
        Ok(())
    }

    fn send_one(&self, at: SocketAddr, seed: u64) -> Result<()> {
        let mut stream = connect(at, self.first_sequence)?;
        stream.set_nodelay(true)?;
        if self.send_buffer > 0 {
            sock::set(&stream, libc::SOL_SOCKET, libc::SO_SNDBUF, self.send_buffer / self.threads as i32)?;
        }
        stream.set_write_timeout(Some(LIMIT))?;
        stream.set_read_timeout(Some(LIMIT))?;
        stream.write_all(&header(seed, self.bytes))?;
        let mut done = 0;
        for size in Draw::new(seed).sizes(self.bytes, self.largest_write) {
            stream.write_all(&stream::bytes(seed, done, size))?;
            done += size as u64;
        }
        stream.shutdown(Shutdown::Write)?;
        answered(&mut stream, self.bytes)
    }

    fn judge(&self, sink: &Running) -> Result<Report> {
        let report = sink.report()?;
        let (lifted, passed) = report.stream_bytes();
        let total = (self.connections * self.bytes) as u64;
        eprintln!("lifted {lifted}, passed {passed} of {total}");
        ensure!(report.leaked_frames == 0, sink.fail("frames leaked"));
        ensure!(lifted * 100 >= total * self.lifted, sink.fail("too little was lifted"));
        Ok(report)
    }
}

fn header(seed: u64, len: usize) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    bytes[8..].copy_from_slice(&(len as u64).to_le_bytes());
    bytes
}

/// The reader's count of right bytes, and its FIN.
fn answered(stream: &mut TcpStream, bytes: usize) -> Result<()> {
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).context("no answer")?;
    ensure!(answer == (bytes as u64).to_le_bytes(), "the answer is {answer:?}");
    Ok(())
}

/// The counters of proc_net(5) of one end: `Tcp:RetransSegs` and so on.
type Counters = BTreeMap<String, u64>;

fn counters(end: &Side) -> Result<Counters> {
    let mut all = Counters::new();
    for file in ["snmp", "netstat"] {
        let text = end.enter(|| fs::read_to_string(format!("/proc/thread-self/net/{file}")))??;
        let lines: Vec<_> = text.lines().collect();
        for pair in lines.chunks_exact(2) {
            let [names, values] = [pair[0], pair[1]].map(|line| line.split_whitespace());
            let protocol = pair[0].split(' ').next().unwrap_or_default();
            let named = names.zip(values).skip(1);
            all.extend(
                named.filter_map(|(name, value)| Some((format!("{protocol}{name}"), value.parse().ok()?))),
            );
        }
    }
    Ok(all)
}

fn grown(before: &Counters, after: &Counters) -> Counters {
    let growth = |(name, value): (&String, &u64)| Some((name.clone(), value.checked_sub(before[name])?));
    after.iter().filter_map(growth).filter(|(_, growth)| *growth > 0).collect()
}

/// Less in flight than the 256 frames that a veth queue holds (`VETH_RING_SIZE`): nothing is lost on the way.
fn clean() -> Scenario {
    Scenario { send_buffer: 100_000, lifted: 20, ..Scenario::default() }
}

fn impaired(impairment: Impairment) -> Option<(Direction, Impairment)> {
    Some((Direction::ToHost, Impairment { seed: 1, ..impairment }))
}

/// What a clean link makes TCP do, hoisted, is no more than natively.
fn assert_as_clean(outcomes: Option<[Outcome; 2]>) {
    if let Some([native, hoisted]) = outcomes {
        assert!(hoisted.retransmitted <= native.retransmitted, "{} retransmitted", hoisted.retransmitted);
        assert!(hoisted.out_of_order <= native.out_of_order, "{} out of order", hoisted.out_of_order);
    }
}

#[test]
fn a_clean_link() {
    assert_as_clean(clean().run());
}

#[test]
fn a_clean_link_read_plainly() {
    assert_as_clean(Scenario { style: Style::Plain, bytes: 60_000_000, ..clean() }.run());
}

#[test]
fn ipv6_and_two_queues() {
    assert_as_clean(
        Scenario { v6: true, queues: 2, connections: 4, threads: 4, bytes: 4_000_000, ..clean() }.run(),
    );
}

#[test]
fn spinning_readers() {
    assert_as_clean(Scenario { options: &["--spin-us", "50"], ..clean() }.run());
}

#[test]
fn loss_of_one_in_a_thousand() {
    let impairment = impaired(Impairment { loss: 0.001, ..Impairment::default() });
    let outcomes = Scenario { impairment, ..Scenario::default() }.run();
    outcomes.iter().flatten().for_each(|outcome| assert!(outcome.link.unwrap().lost > 0));
}

#[test]
fn loss_of_one_in_a_hundred() {
    let impairment = impaired(Impairment { loss: 0.01, ..Impairment::default() });
    Scenario { impairment, bytes: 4_000_000, connections: 2, threads: 2, ..Scenario::default() }.run();
}

#[test]
fn loss_of_acknowledgements() {
    let impairment = Some((Direction::ToWire, Impairment { loss: 0.05, seed: 2, ..Impairment::default() }));
    Scenario { impairment, bytes: 8_000_000, ..Scenario::default() }.run();
}

#[test]
fn reordering() {
    let impairment = impaired(Impairment { reorder: 0.02, ..Impairment::default() });
    let outcomes = Scenario { impairment, bytes: 8_000_000, ..Scenario::default() }.run();
    outcomes.iter().flatten().for_each(|outcome| assert!(outcome.out_of_order > 0));
}

#[test]
fn duplication() {
    let impairment = impaired(Impairment { duplicate: 0.05, ..Impairment::default() });
    let outcomes = Scenario { impairment, bytes: 8_000_000, v6: true, ..Scenario::default() }.run();
    outcomes.iter().flatten().for_each(|outcome| assert!(outcome.link.unwrap().duplicated > 0));
}

/// Each corrupted segment is refused: the reader has compared every byte.
#[test]
fn corruption() {
    let impairment = impaired(Impairment { corrupt: 0.01, ..Impairment::default() });
    let outcomes = Scenario { impairment, bytes: 4_000_000, ..Scenario::default() }.run();
    let Some([_, hoisted]) = outcomes else { return };
    assert!(hoisted.link.unwrap().corrupted > 20);
    assert!(hoisted.report.unwrap().bad_checksums() > 0, "corrupted segments are counted");
}

#[test]
fn everything_at_once() {
    let bad =
        Impairment { loss: 0.005, reorder: 0.01, corrupt: 0.005, duplicate: 0.02, ..Impairment::default() };
    let impairment =
        impaired(Impairment { delay: Duration::from_micros(500), jitter: Duration::from_micros(200), ..bad });
    Scenario { impairment, connections: 4, threads: 4, bytes: 1_500_000, queues: 2, ..Scenario::default() }
        .run();
}

#[test]
fn tiny_writes() {
    Scenario { largest_write: 8, bytes: 300_000, lifted: 0, ..Scenario::default() }.run();
}

#[test]
fn readers_that_stall() {
    let scenario = Scenario {
        style: Style::Stalling,
        connections: 3,
        threads: 3,
        bytes: 3_000_000,
        ..Scenario::default()
    };
    Scenario { lifted: 5, ..scenario }.run();
}

/// Between parking and lifting, to and fro.
#[test]
fn readers_that_doze() {
    let scenario = Scenario { style: Style::Dozing, bytes: 8_000_000, lifted: 0, ..clean() };
    scenario.run();
    Scenario { connections: 4, threads: 4, queues: 2, bytes: 2_000_000, ..scenario }.run();
}

#[test]
fn readers_that_doze_over_a_bad_link() {
    let impairment =
        impaired(Impairment { loss: 0.003, reorder: 0.01, duplicate: 0.01, ..Impairment::default() });
    Scenario { impairment, style: Style::Dozing, bytes: 4_000_000, lifted: 0, ..Scenario::default() }.run();
}

/// Some stall while others, in the same process, go on: threads of one share the rings.
#[test]
fn a_small_receive_buffer() {
    Scenario { receive_buffer: 65_536, bytes: 8_000_000, ..Scenario::default() }.run();
}

#[test]
fn a_tiny_receive_buffer() {
    Scenario { receive_buffer: 16_384, bytes: 2_000_000, ..Scenario::default() }.run();
}

#[test]
fn the_smallest_mtu() {
    assert_as_clean(Scenario { mtu: 1_280, v6: true, ..clean() }.run());
}

#[test]
fn a_larger_mtu() {
    assert_as_clean(Scenario { mtu: 3_000, lifted: 0, ..clean() }.run()); // longer than a frame: `jumbo`
}

/// veth runs generic XDP there, behind GRO: nothing is lifted, and everything arrives.
#[test]
fn jumbo_frames_pass() {
    Scenario { mtu: 9_000, lifted: 0, ..Scenario::default() }.run();
}

#[test]
fn without_timestamps() {
    assert_as_clean(Scenario { sysctls: &[("net.ipv4.tcp_timestamps", "0")], ..clean() }.run());
}

#[test]
fn without_sack_over_a_bad_link() {
    let impairment = impaired(Impairment { loss: 0.003, ..Impairment::default() });
    let sysctls = &[("net.ipv4.tcp_sack", "0"), ("net.ipv4.tcp_timestamps", "0")];
    Scenario { impairment, sysctls, bytes: 3_000_000, ..Scenario::default() }.run();
}

#[test]
fn with_ecn() {
    assert_as_clean(Scenario { sysctls: &[("net.ipv4.tcp_ecn", "1")], ..clean() }.run());
}

/// A peer on the same machine leaves its checksums to a device that has none.
#[test]
fn checksums_that_are_left_to_the_device() {
    Scenario { checksum_offload: true, ..Scenario::default() }.run();
}

#[test]
fn sequence_numbers_that_wrap() {
    for behind in [1, 5_000, 1_000_000, 6_000_000] {
        let first_sequence = Some(u32::MAX - behind);
        Scenario { first_sequence, bytes: 8_000_000, v6: behind == 5_000, ..Scenario::default() }.run();
    }
}

#[test]
fn sequence_numbers_that_wrap_over_a_bad_link() {
    let impairment =
        impaired(Impairment { loss: 0.005, reorder: 0.01, duplicate: 0.01, ..Impairment::default() });
    Scenario {
        impairment,
        first_sequence: Some(u32::MAX - 1_000_000),
        bytes: 3_000_000,
        ..Scenario::default()
    }
    .run();
}

#[test]
fn thousands_of_short_connections() {
    let scenario =
        Scenario { connections: 3_000, threads: 8, bytes: 5_000, lifted: 0, ..Scenario::default() };
    Scenario { style: Style::Epoll, queues: 2, ..scenario.clone() }.run();
    Scenario { style: Style::Mixed, connections: 300, ..scenario }.run();
}

#[test]
fn a_thousand_connections_at_once() {
    let scenario = Scenario { connections: 1_000, threads: 1_000, bytes: 20_000, ..Scenario::default() };
    // most have come whole before they are read for the first time
    Scenario { style: Style::Epoll, queues: 2, lifted: 0, ..scenario.clone() }.run();
    Scenario { style: Style::Level, largest_write: 3_000, lifted: 0, ..scenario }.run();
}

#[test]
fn a_hundred_connections_read_by_threads() {
    Scenario { connections: 100, threads: 100, bytes: 200_000, queues: 2, lifted: 5, ..Scenario::default() }
        .run();
}

/// Times that a lie is told: whether one falls where Linux refuses it depends on how fast the reader is, natively too.
const TELLINGS: usize = 3;

/// A peer that lies to a reader of one connection, natively and hoisted. A lie that Linux itself has fallen for each time proves
/// nothing.
fn lie(timestamps: bool, lies: impl Fn(&mut Liar, &mut Truth) -> Result<()>) {
    for v6 in [false, true] {
        holds(|mode| tell(mode, v6, timestamps, &lies));
    }
}

/// Whether natively and hoisted the stream is what the honest peer sent.
fn holds(telling: impl Fn(Mode) -> Result<()>) {
    if !may_run() {
        return;
    }
    let told = |mode| {
        (0..TELLINGS).map(|_| telling(mode)).try_fold(None, |_, told| match told {
            Ok(()) => Err(()),
            Err(why) => Ok(Some(why)),
        })
    };
    if let Ok(why) = told(Mode::Native) {
        return eprintln!("SKIPPED: Linux fell for it {TELLINGS} times, the last: {why:?}");
    }
    if let Ok(why) = told(Mode::Hoisted) {
        panic!("hoisted: {why:?}");
    }
}

fn tell(
    mode: Mode,
    v6: bool,
    timestamps: bool,
    lies: &impl Fn(&mut Liar, &mut Truth) -> Result<()>,
) -> Result<()> {
    let scenario = Scenario { v6, style: Style::Plain, lifted: 0, bytes: TRUTH, ..Scenario::default() };
    let lab = scenario.lab()?;
    let mut sink = scenario.sink(&lab, mode)?;
    let base = u32::MAX - 20_000; // it wraps on the way, too
    let mut liar = Liar::connect(&lab, scenario.at(&lab), 40_000, base, timestamps)?;
    let told = Truth::begin(&mut liar).and_then(|mut truth| {
        lies(&mut liar, &mut truth)?;
        truth.end(&mut liar)
    });
    told.map_err(|why| sink.fail(&format!("{why:#}\n{liar:?}")))?;
    sink.succeed(LIMIT)?;
    if mode == Mode::Hoisted {
        scenario.judge(&sink)?;
    }
    Ok(())
}

/// Bytes of the stream that a liar tells, lies left out.
const TRUTH: usize = 200_000;
const SEED: u64 = 99;

/// The true stream, sent bit by bit.
struct Truth {
    at: usize,
}

impl Truth {
    /// Header and first bytes: from then on the reader is blocked in a read, and the connection lifted.
    fn begin(liar: &mut Liar) -> Result<Self> {
        liar.send(&liar.segment(0, &header(SEED, TRUTH)))?;
        let mut truth = Self { at: 0 };
        truth.go_on(liar, 20)?;
        Ok(truth)
    }

    fn segment(&self, liar: &Liar, at: usize, len: usize) -> Segment {
        liar.true_one(SEED, 16, at as u64, len)
    }

    /// The next segment, not sent.
    fn next(&self, liar: &Liar) -> Segment {
        self.segment(liar, self.at, MSS - 50)
    }

    fn sent(&mut self, segment: &Segment) {
        self.at += segment.payload.len();
    }

    /// Some true segments, until they are acknowledged.
    fn go_on(&mut self, liar: &mut Liar, count: usize) -> Result<()> {
        for _ in 0..count {
            let segment = self.next(liar);
            liar.send(&segment)?;
            self.sent(&segment);
        }
        self.confirmed(liar)
    }

    /// Everything that is true so far is acknowledged.
    fn confirmed(&self, liar: &mut Liar) -> Result<()> {
        liar.until_acknowledged(16 + self.at as u64)?;
        ensure!(liar.ended.is_none(), "ended: {liar:?}");
        Ok(())
    }

    /// The rest, the FIN, and the answer.
    fn end(mut self, liar: &mut Liar) -> Result<()> {
        while self.at < TRUTH {
            let len = (TRUTH - self.at).min(MSS - 50);
            let mut segment = self.segment(liar, self.at, len);
            self.sent(&segment);
            segment.fin = self.at == TRUTH;
            liar.send(&segment)?;
            if self.at.is_multiple_of(10) || segment.fin {
                liar.until_acknowledged((16 + self.at) as u64 + u64::from(segment.fin))?;
            }
        }
        liar.until(|liar| liar.ended.is_some())?;
        ensure!(liar.ended == Some(End::Fin), "no FIN: {liar:?}");
        ensure!(liar.answer == (TRUTH as u64).to_le_bytes(), "the answer is {:?}", liar.answer);
        Ok(())
    }
}

/// What is no byte of the stream.
fn rubbish(len: usize) -> Vec<u8> {
    vec![0xbd; len]
}

/// A segment the kernel refuses, with rubbish where the next true bytes belong, and then those. Often, since what is
/// told at once may be merged.
fn refused(timestamps: bool, spoil: impl Fn(&mut Segment, &Liar)) {
    lie(timestamps, |liar, truth| {
        for round in 0..30 {
            let good = truth.next(liar);
            let mut bad = Segment { payload: rubbish(good.payload.len()), ..good.clone() };
            spoil(&mut bad, liar);
            if round % 3 == 1 {
                let before = truth.next(liar);
                liar.send(&before)?;
                truth.sent(&before);
                let good = truth.next(liar);
                bad.sequence = good.sequence;
                bad.payload = rubbish(good.payload.len());
                liar.send(&bad)?;
                liar.send(&good)?;
                truth.sent(&good);
            } else {
                liar.send(&bad)?;
                if round % 3 == 2 {
                    liar.send(&bad)?;
                }
                liar.send(&good)?;
                truth.sent(&good);
            }
            truth.confirmed(liar)?;
            liar.tick();
        }
        Ok(())
    });
}

#[test]
fn a_truthful_peer_of_frames() {
    lie(false, |_, _| Ok(()));
    lie(true, |_, _| Ok(()));
}

#[test]
fn rubbish_with_a_wrong_checksum() {
    refused(false, |bad, _| bad.damaged = true);
}

#[test]
fn rubbish_without_an_acknowledgement() {
    refused(false, |bad, _| bad.acknowledgement = None);
}

/// `tcp_ack` refuses what acknowledges bytes that were never sent.
#[test]
fn rubbish_that_acknowledges_the_future() {
    refused(false, |bad, liar| bad.acknowledgement = Some(liar.expected.wrapping_add(100_000)));
}

/// `tcp_validate_incoming`: PAWS.
#[test]
fn rubbish_with_an_old_timestamp() {
    refused(true, |bad, liar| bad.options = liar.stamp(liar.clock().wrapping_sub(500)));
}

#[test]
fn rubbish_with_a_syn() {
    refused(false, |bad, _| bad.syn = true);
}

/// `tcp_inbound_hash` drops what is signed for a connection without keys.
#[test]
fn rubbish_with_a_signature() {
    refused(false, |bad, _| bad.options = [&[19, 18][..], &[7; 16], &[1, 1]].concat());
}

#[test]
fn rubbish_for_another_station() {
    refused(false, |bad, _| bad.elsewhere = true);
}

#[test]
fn rubbish_beyond_the_window() {
    refused(false, |bad, liar| {
        bad.sequence = bad.sequence.wrapping_add(liar.window + 3_000_000);
    });
}

/// A guess within the window that misses `rcv_nxt` is challenged (RFC 5961), whatever it carries.
#[test]
fn a_reset_that_is_guessed() {
    refused(false, |bad, _| {
        bad.rst = true;
        bad.sequence = bad.sequence.wrapping_add(777);
    });
}

#[test]
fn a_reset_from_the_past() {
    refused(false, |bad, _| {
        bad.rst = true;
        bad.sequence = bad.sequence.wrapping_sub(50_000);
    });
}

/// Rubbish in the place of bytes that were accepted: an old segment, an old part of a new one, and a keep-alive's byte.
#[test]
fn rubbish_in_the_place_of_what_was_accepted() {
    lie(false, |liar, truth| {
        for round in 0..40 {
            let good = truth.next(liar);
            liar.send(&good)?;
            truth.sent(&good);
            if round % 2 == 0 {
                truth.confirmed(liar)?;
            }
            let sequence = good.sequence;
            let old = Segment { payload: rubbish(good.payload.len()), ..good };
            liar.send(&old)?;
            liar.send(&Segment {
                sequence: sequence.wrapping_add(old.payload.len() as u32 - 1),
                payload: vec![0],
                ..old.clone()
            })?;
            let next = truth.segment(liar, truth.at, 700);
            let payload = [rubbish(500), next.payload.clone()].concat();
            liar.send(&Segment { sequence: next.sequence.wrapping_sub(500), payload, ..old })?;
            truth.sent(&next);
            truth.confirmed(liar)?;
        }
        Ok(())
    });
}

/// Pieces of any size from anywhere around the edge, in any order, many of them twice or thrice: the same bytes each time.
#[test]
fn overlapping_and_partial_retransmissions() {
    lie(false, |liar, truth| {
        let mut draw = Draw::new(7);
        for _ in 0..12 {
            let start = truth.at;
            for _ in 0..40 {
                let at = start + draw.below(8_000);
                liar.send(&truth.segment(liar, at, draw.size(1, MSS - 50)))?;
                let back = start.saturating_sub(draw.below(3_000));
                liar.send(&truth.segment(liar, back, draw.size(1, MSS - 50)))?;
            }
            for at in (start..start + 10_000).step_by(1_000) {
                liar.send(&truth.segment(liar, at, 1_000))?;
            }
            truth.at = start + 10_000;
            truth.confirmed(liar)?;
        }
        Ok(())
    });
}

/// The FIN comes before the bytes in front of it.
#[test]
fn a_fin_that_comes_too_early() {
    lie(false, |liar, truth| {
        truth.go_on(liar, 10)?;
        let fin = Segment { fin: true, ..truth.segment(liar, TRUTH - 500, 500) };
        liar.send(&fin)?;
        liar.send(&fin)?;
        truth.go_on(liar, 10)
    });
}

/// Data behind the FIN belongs to no stream.
#[test]
fn rubbish_behind_the_fin() {
    lie(false, |liar, truth| {
        let fin = Segment { fin: true, ..truth.segment(liar, TRUTH - 500, 500) };
        truth.go_on(liar, 10)?;
        liar.send(&fin)?;
        liar.send(&liar.segment(16 + TRUTH as u64 + 1, &rubbish(700)))?;
        truth.go_on(liar, 10)
    });
}

/// The window is closed: what comes all the same is refused, and what comes later counts.
#[test]
fn rubbish_into_a_closed_window() {
    holds(into_a_closed_window);
}

fn into_a_closed_window(mode: Mode) -> Result<()> {
    const TOTAL: usize = 1_000_000;
    let scenario = Scenario {
        style: Style::Stalling,
        receive_buffer: 20_000,
        bytes: TOTAL,
        lifted: 0,
        ..Scenario::default()
    };
    let lab = scenario.lab()?;
    let mut sink = scenario.sink(&lab, mode)?;
    let mut liar = Liar::connect(&lab, scenario.at(&lab), 40_000, 1_000_000, false)?;
    liar.send(&liar.segment(0, &header(SEED, TOTAL)))?;
    liar.until_acknowledged(16)?;
    let mut closed = 0;
    loop {
        let at = u64::from(liar.acknowledged.wrapping_sub(liar.base)) - 16;
        let left = TOTAL - at as usize;
        if left == 0 {
            break;
        }
        let len = left.min(MSS - 50).min(liar.window as usize);
        let sent = liar.true_one(SEED, 16, at, len);
        if len == 0 {
            closed += 1;
            (0..3).try_for_each(|_| liar.send(&liar.segment(16 + at, &rubbish(left.min(1_000)))))?;
            let (window, edge) = (liar.window, liar.acknowledged);
            let probe = Segment { payload: vec![0], ..liar.segment(16 + at - 1, &[]) };
            liar.until(|liar| {
                let _ = liar.send(&probe);
                liar.window != window || liar.acknowledged != edge
            })?;
            continue;
        }
        liar.send(&sent)?;
        let mut tries = 0;
        liar.until(|liar| {
            tries += 1;
            let _ = (tries % 2 == 0).then(|| liar.send(&sent)); // it may have been dropped for want of memory
            u64::from(liar.acknowledged.wrapping_sub(liar.base)) - 16 > at || liar.window == 0
        })?;
    }
    ensure!(closed > 0, "the window never closed");
    liar.send(&Segment { fin: true, ..liar.segment(16 + TOTAL as u64, &[]) })?;
    liar.until(|liar| liar.ended.is_some())?;
    ensure!(liar.answer == (TOTAL as u64).to_le_bytes(), "the answer is {:?}", liar.answer);
    sink.succeed(LIMIT)
}

/// Both sides send a FIN at the same time, and each acknowledges the other's.
#[test]
fn a_simultaneous_close() {
    lie(false, |liar, truth| {
        truth.go_on(liar, 5)?;
        // The rest but the last byte, in which the FIN is; the reader's answer and FIN cross it nowhere: `end` sees to that.
        liar.catch_up()
    });
}
