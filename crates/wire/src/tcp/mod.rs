//! The TCP wire: connections that kernel TCP opens and an XDP program fills (bpf/tcpwire.bpf.c).
//!
//! The sender keeps within the window that the receiver's ACKs give and within the room that the veth ring has, so the
//! receiver is what limits it, and nothing is lost between the two. Each segment's payload starts with its
//! offset in the stream (8 bytes, little-endian); byte n of the rest is n modulo 256.
//!
//! It is a source only: what the receiver writes is neither read nor acknowledged.

mod connection;
mod segment;
mod sys;

use crate::{
    bpf::{program, take},
    error::{During, Error, Result},
    generator::readable,
    live::{LONGEST_FRAME, Live, LiveThread, limit_ns},
    testbed::{End, Testbed},
};
use aya::{
    Btf, Ebpf, EbpfLoader,
    maps::{Array, MapData, RingBuf},
    programs::{BtfTracePoint, LinkOrder, SchedClassifier, TcAttachType, Xdp, tc::TcAttachOptions},
};
use connection::{Silent, Standing};
use nix::poll::PollTimeout;
use segment::{Segment, filler};
use std::{
    io,
    net::SocketAddr,
    os::fd::{AsFd, BorrowedFd},
    time::Duration,
};

/// What to send.
#[derive(Clone, Debug)]
pub struct TcpSpec {
    target: SocketAddr,
    connections: u32,
    mss: Option<u32>,
    cap_bytes: u64,
    gbit_per_second: f64,
    cold: bool,
    limit: TcpLimit,
    batch: u32,
    cpu: usize,
    favoured: bool,
}

/// When to stop sending.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum TcpLimit {
    /// When told to.
    None,
    /// After so many bytes on each connection, rounded up to whole segments.
    Bytes(u64),
    /// After so long.
    Time(Duration),
}

impl TcpSpec {
    /// One connection to `target`, as fast as its receiver takes it, from CPU 0, until told to stop.
    pub fn to(target: SocketAddr) -> Self {
        Self {
            target,
            connections: 1,
            mss: None,
            cap_bytes: 4 << 20,
            gbit_per_second: 0.0,
            cold: false,
            limit: TcpLimit::None,
            batch: 64,
            cpu: 0,
            favoured: false,
        }
    }

    /// Connections in turn, 1 to 256.
    pub fn connections(mut self, connections: u32) -> Self {
        self.connections = connections;
        self
    }

    /// Bytes of payload a segment; what the handshake agreed on unless told.
    pub fn mss(mut self, bytes: u32) -> Self {
        self.mss = Some(bytes);
        self
    }

    /// The most bytes of a connection in flight, however large its window; 4 MiB unless told.
    pub fn cap_bytes(mut self, bytes: u64) -> Self {
        self.cap_bytes = bytes;
        self
    }

    /// Payload of all connections together, in 10^9 bits a second; 0 is as fast as possible.
    pub fn gbit_per_second(mut self, rate: f64) -> Self {
        self.gbit_per_second = rate;
        self
    }

    /// Writes every payload anew, so that the receiver finds none of it in its own caches.
    pub fn cold(mut self, on: bool) -> Self {
        self.cold = on;
        self
    }

    /// When to stop.
    pub fn limit(mut self, limit: TcpLimit) -> Self {
        self.limit = limit;
        self
    }

    /// Segments handed over at once: 16, 32, 64 or 128; 64 unless told.
    pub fn batch(mut self, segments: u32) -> Self {
        self.batch = segments;
        self
    }

    /// The CPU that sends.
    pub fn cpu(mut self, cpu: usize) -> Self {
        self.cpu = cpu;
        self
    }

    /// Whether the sending thread has precedence over whatever else the machine does.
    pub fn favoured(mut self, on: bool) -> Self {
        self.favoured = on;
        self
    }

    fn check(&self) -> Result<()> {
        let wrong = |why: String| Err(Error::Spec(why));
        if !(1..=MOST_CONNECTIONS).contains(&self.connections) {
            return wrong(format!("1 to {MOST_CONNECTIONS} connections, not {}", self.connections));
        }
        if !(self.gbit_per_second >= 0.0 && self.gbit_per_second <= 1e4) {
            return wrong(format!("{} Gbit/s is no rate", self.gbit_per_second));
        }
        if ![16, 32, 64, 128].contains(&self.batch) {
            return wrong(format!("a batch is 16, 32, 64 or 128 segments, not {}", self.batch));
        }
        Ok(())
    }

    fn segment_bytes(&self, agreed: u32, headers_len: usize) -> Result<u32> {
        let most = agreed.min((LONGEST_FRAME - headers_len) as u32) & !1;
        let bytes = self.mss.unwrap_or(most);
        if !(LEAST_PAYLOAD..=most).contains(&bytes) || !bytes.is_multiple_of(2) {
            return Err(Error::Spec(format!(
                "a segment has an even number of bytes, {LEAST_PAYLOAD} to {most} here, not {bytes}"
            )));
        }
        Ok(bytes)
    }

    /// Between segments, in 1/256 ns.
    fn gap(&self, mss: u32) -> u64 {
        if self.gbit_per_second > 0.0 {
            (256.0 * f64::from(mss) * 8.0 / self.gbit_per_second) as u64
        } else {
            0
        }
    }

    /// Without an ACK, before a connection is sent again. The ACK of a socket that its reader holds waits until that
    /// reader has had its turn among the others (sk_add_backlog).
    fn patience_ns(&self) -> u64 {
        (u64::from(self.connections) * 20_000_000).min(200_000_000) // TCP_RTO_MIN
    }

    /// Segments sent at once: of a paced wire no more than come in 50 µs.
    fn most_burst(&self, mss: u32) -> u32 {
        match self.gap(mss) {
            0 => self.batch,
            gap => (50_000 * 256 / gap).clamp(1, self.batch.into()) as u32,
        }
    }
}

/// What has been sent.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct TcpSent {
    /// Bytes of payload that the receiver has acknowledged.
    pub acked_bytes: u64,
    /// From the first segment on.
    pub seconds: f64,
    /// Segments sent, those sent again included.
    pub segments: u64,
    /// ACKs that the receiver sent.
    pub acks: u64,
    /// Times that a connection was sent again from the last acknowledged byte on, for want of ACKs.
    pub go_backs: u64,
    /// Segments that found the veth ring full.
    pub dropped: u64,
    /// Connections that the receiver ended.
    pub closed: u32,
    /// What the sender waited for.
    pub blocked: Blocked,
}

/// Shares of the time that the sender waited.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Blocked {
    /// For room in the veth ring: for NAPI.
    pub ring: f64,
    /// For room in the receive windows: for the program.
    pub window: f64,
    /// For the next slot of a paced wire.
    pub pace: f64,
}

impl TcpSent {
    /// Acknowledged payload in 10^9 bits a second.
    pub fn gbit_per_second(&self) -> f64 {
        if self.seconds > 0.0 { self.acked_bytes as f64 * 8e-9 / self.seconds } else { 0.0 }
    }
}

/// The TCP wire.
#[derive(Debug)]
pub struct TcpWire;

impl TcpWire {
    /// Opens the connections from `va` of `testbed` and starts sending. The receiver must be listening.
    ///
    /// Congestion control and SACK play no part; a receiver that loses segments gets everything again from the first
    /// one that is missing, after 20 ms (more with several connections, 200 ms at most).
    pub fn start(testbed: &Testbed, spec: &TcpSpec) -> Result<TcpRunning> {
        spec.check()?;
        let silent = connect(testbed, spec)?;
        let first = silent[0].standing;
        let mss = spec.segment_bytes(first.mss, Segment::headers_len(&first))?;
        let macs = [testbed.host().mac(), testbed.wire().mac()];
        let segments: Vec<_> =
            silent.iter().map(|silent| Segment::new(macs, &silent.standing, mss)).collect();
        let mut bpf = load(testbed, spec, &first, mss)?;
        let mut maps = Maps::take(&mut bpf)?;
        maps.prepare(&silent, &segments, mss)?;
        attach(&mut bpf, testbed.host())?;
        let live = Live {
            netns: Some(testbed.wire().netns().clone()),
            cpu: spec.cpu,
            favoured: spec.favoured,
            bpf,
            program: "tcpwire",
            frame: segments[0].bytes.clone(),
            batch: spec.batch,
        };
        Ok(TcpRunning { maps, silent, thread: live.start()?, wire: testbed.wire().clone() })
    }
}

fn connect(testbed: &Testbed, spec: &TcpSpec) -> Result<Vec<Silent>> {
    let connect = || (0..spec.connections).map(|_| Silent::connect(spec.target)).collect::<io::Result<_>>();
    testbed.wire().enter(connect)?.during(|| format!("connecting to {} (connect, TCP_REPAIR)", spec.target))
}

/// A TCP wire that sends.
pub struct TcpRunning {
    maps: Maps,
    silent: Vec<Silent>,
    thread: LiveThread,
    wire: End,
}

impl TcpRunning {
    /// What has been sent so far.
    pub fn sent(&self) -> Result<TcpSent> {
        self.maps.sent(self.silent.len() as u32)
    }

    /// One of them is readable when its limit is reached and all is acknowledged, or when it has failed.
    pub fn ended(&self) -> [BorrowedFd<'_>; 2] {
        [self.maps.done.as_fd(), self.thread.ended()]
    }

    /// Waits until its limit is reached and all is acknowledged, but no longer than `timeout`; true when it was.
    pub fn wait_for(&self, timeout: Duration) -> Result<bool> {
        let timeout = PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX);
        Ok(readable(&self.ended(), timeout)? > 0)
    }

    /// Sends nothing new from here on: [`TcpRunning::wait_for`] tells when all is acknowledged.
    pub fn drain(&mut self) -> Result<()> {
        self.maps.stop.set(0, 1, 0).map_err(|error| Error::bpf("telling the TCP wire to drain", &error))
    }

    /// Waits for `patience` at most until the limit is reached and all is acknowledged, and ends the connections: in
    /// order (the receiver reads to the end of the stream) where all was acknowledged, by a reset elsewhere.
    pub fn finish(mut self, patience: Duration) -> Result<TcpSent> {
        self.wait_for(patience)?;
        self.end()
    }

    /// Stops at once and breaks off the connections that have bytes under way.
    pub fn stop(mut self) -> Result<TcpSent> {
        self.end()
    }

    fn end(&mut self) -> Result<TcpSent> {
        let Some(attached) = self.thread.end()? else { return self.sent() };
        let sent = self.sent()?;
        let silent = std::mem::take(&mut self.silent);
        let maps = &mut self.maps;
        self.wire.enter(|| {
            silent
                .into_iter()
                .enumerate()
                .try_for_each(|(index, silent)| maps.hand_back(index as u32, silent))
        })??;
        drop(attached);
        Ok(sent)
    }
}

impl std::fmt::Debug for TcpRunning {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TcpRunning").field("silent", &self.silent).finish_non_exhaustive()
    }
}

impl Drop for TcpRunning {
    fn drop(&mut self) {
        let _ = self.end();
    }
}

struct Maps {
    connections: Array<MapData, [u64; CONNECTION_WORDS]>,
    ports: Array<MapData, u32>,
    sender: Array<MapData, [u64; SENDER_WORDS]>,
    ring: Array<MapData, [u64; RING_WORDS]>,
    stop: Array<MapData, u32>,
    payload: Array<MapData, [u8; MOST_PAYLOAD as usize]>,
    done: RingBuf<MapData>,
}

impl Maps {
    fn take(bpf: &mut Ebpf) -> Result<Self> {
        Ok(Self {
            connections: take(bpf, "connections", Array::try_from)?,
            ports: take(bpf, "ports", Array::try_from)?,
            sender: take(bpf, "sender", Array::try_from)?,
            ring: take(bpf, "ring", Array::try_from)?,
            stop: take(bpf, "stop", Array::try_from)?,
            payload: take(bpf, "payload", Array::try_from)?,
            done: take(bpf, "done", RingBuf::try_from)?,
        })
    }

    fn prepare(&mut self, silent: &[Silent], segments: &[Segment], mss: u32) -> Result<()> {
        let mut payload = [0; MOST_PAYLOAD as usize];
        payload.iter_mut().zip(filler(mss)).for_each(|(to, from)| *to = from);
        let failed = |error: aya::maps::MapError| Error::bpf("setting up the TCP wire's maps", &error);
        self.payload.set(0, payload, 0).map_err(failed)?;
        for (index, (silent, segment)) in (0u32..).zip(silent.iter().zip(segments)) {
            let words = initial(&silent.standing, segment);
            self.connections.set(index, words, 0).map_err(failed)?;
            self.ports.set(silent.standing.local.port().into(), index + 1, 0).map_err(failed)?;
        }
        Ok(())
    }

    /// Puts a kernel socket where the stream has got to, and lets it end the connection.
    fn hand_back(&mut self, index: u32, silent: Silent) -> Result<()> {
        let mut words = self.connection(index)?;
        let local = silent.standing.local;
        let ending = || format!("ending the connection from {local} (TCP_REPAIR)");
        let successor = silent.advance(words[ACKED]).during(ending)?;
        let in_order = words[STATE] as u32 == FILLING && words[FURTHEST] <= words[ACKED];
        words[STATE] = words[STATE] >> 32 << 32 | u64::from(KERNELS);
        self.connections.set(index, words, 0).map_err(|error| Error::bpf("ending a connection", &error))?;
        if in_order { successor.close().during(ending) } else { successor.reset().during(ending) }
    }

    fn connection(&self, index: u32) -> Result<[u64; CONNECTION_WORDS]> {
        let words = self.connections.get(&index, 0);
        words.map_err(|error| Error::bpf("reading a connection of the TCP wire", &error))
    }

    fn sent(&self, connections: u32) -> Result<TcpSent> {
        let failed = |error: aya::maps::MapError| Error::bpf("reading the TCP wire's counters", &error);
        let sender = self.sender.get(&0, 0).map_err(failed)?;
        let elapsed_ns = sender[LAST_NS].saturating_sub(sender[FIRST_NS]);
        let share = |reason: usize| sender[BLOCKED_NS + reason] as f64 / elapsed_ns.max(1) as f64;
        let mut sent = TcpSent {
            seconds: elapsed_ns as f64 / 1e9,
            segments: sender[SEGMENTS],
            go_backs: sender[GO_BACKS],
            dropped: self.ring.get(&0, 0).map_err(failed)?[DROPPED],
            blocked: Blocked { ring: share(1), window: share(2), pace: share(3) },
            ..TcpSent::default()
        };
        for index in 0..connections {
            let words = self.connection(index)?;
            sent.acked_bytes += words[ACKED];
            sent.acks += words[ACKS];
            sent.closed += u32::from(words[STATE] as u32 == CLOSED);
        }
        Ok(sent)
    }
}

const MOST_CONNECTIONS: u32 = 256;
const MOST_PAYLOAD: u32 = 4096; // bpf/tcpwire.bpf.c; LONGEST_FRAME allows less
const LEAST_PAYLOAD: u32 = 64;

// struct connection, in words.
const ACKED: usize = 0;
const EDGE: usize = 1;
const ACKS: usize = 2;
const ACK: usize = 3; // and echo
const STATE: usize = 4; // and window_scale
const FURTHEST: usize = 9;
const SEQUENCE: usize = 12; // and sum
const TIMESTAMP_BASE: usize = 13;
const HEADER: usize = 15;
const HEADER_WORDS: usize = 11;
const CONNECTION_WORDS: usize = 32;
const FILLING: u32 = 0;
const CLOSED: u32 = 1;
const KERNELS: u32 = 2;

// struct sender, in words.
const SEGMENTS: usize = 2;
const GO_BACKS: usize = 3;
const FIRST_NS: usize = 4;
const LAST_NS: usize = 5;
const BLOCKED_NS: usize = 9;
const SENDER_WORDS: usize = 17;

// struct ring, in words.
const DROPPED: usize = 8;
const RING_WORDS: usize = 9;

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/tcpwire.bpf.o"));

fn initial(standing: &Standing, segment: &Segment) -> [u64; CONNECTION_WORDS] {
    let mut words = [0; CONNECTION_WORDS];
    words[EDGE] = standing.window().into();
    words[ACK] = standing.sequence.into();
    words[STATE] = u64::from(standing.window_scale) << 32 | u64::from(FILLING);
    words[SEQUENCE] = u64::from(segment.sum) << 32 | u64::from(standing.sequence);
    words[TIMESTAMP_BASE] = standing.timestamp_base.into();
    let header = segment.bytes.chunks_exact(8).take(HEADER_WORDS);
    for (word, bytes) in words[HEADER..].iter_mut().zip(header) {
        *word = u64::from_ne_bytes(bytes.try_into().unwrap_or_default());
    }
    words
}

fn load(testbed: &Testbed, spec: &TcpSpec, standing: &Standing, mss: u32) -> Result<Ebpf> {
    let (wire, host) = (testbed.wire(), testbed.host());
    let (limit_bytes, limit_ns) = match spec.limit {
        TcpLimit::None => (0, 0),
        TcpLimit::Bytes(bytes) => (bytes.max(1).next_multiple_of(mss.into()), 0),
        TcpLimit::Time(time) => (0, limit_ns(time)),
    };
    let btf = Btf::from_sys_fs().map_err(|error| Error::bpf("reading /sys/kernel/btf/vmlinux", &error))?;
    let mut bpf = EbpfLoader::new()
        .btf(Some(&btf))
        .override_global("wire_ifindex", &wire.ifindex(), true)
        .override_global("wire_net", &wire.netns().inode()?, true)
        .override_global("host_ifindex", &host.ifindex(), true)
        .override_global("host_net", &host.netns().inode()?, true)
        .override_global("host_port", &spec.target.port().to_be(), true)
        .override_global("connections_used", &spec.connections, true)
        .override_global("is_v6", &u32::from(standing.peer.is_ipv6()), true)
        .override_global("has_timestamps", &u32::from(standing.has_timestamps), true)
        .override_global("mss", &mss, true)
        .override_global("batch", &spec.batch, true)
        .override_global("most_burst", &spec.most_burst(mss), true)
        .override_global("cold", &u32::from(spec.cold), true)
        .override_global("cap", &spec.cap_bytes.max(mss.into()), true)
        .override_global("gap", &spec.gap(mss), true)
        .override_global("limit_bytes", &limit_bytes, true)
        .override_global("limit_ns", &limit_ns, true)
        .override_global("patience_ns", &spec.patience_ns(), true)
        .load(OBJECT)
        .map_err(|error| Error::bpf("loading the TCP wire (bpf)", &error))?;
    let refused =
        |error: aya::programs::ProgramError| Error::bpf("loading the TCP wire (BPF_PROG_LOAD)", &error);
    program::<Xdp>(&mut bpf, "tcpwire")?.load().map_err(refused)?;
    program::<SchedClassifier>(&mut bpf, "absorb")?.load().map_err(refused)?;
    for (name, event) in TRACED {
        program::<BtfTracePoint>(&mut bpf, name)?.load(event, &btf).map_err(refused)?;
    }
    Ok(bpf)
}

/// Links that go when the process does, whatever way it ends.
fn attach(bpf: &mut Ebpf, host: &End) -> Result<()> {
    let refused = |error: aya::programs::ProgramError| Error::bpf("attaching the TCP wire (bpf)", &error);
    for (name, _) in TRACED {
        program::<BtfTracePoint>(bpf, name)?.attach().map_err(refused)?;
    }
    let absorb = program::<SchedClassifier>(bpf, "absorb")?;
    let first = TcAttachOptions::TcxOrder(LinkOrder::first());
    let device = host.device();
    host.enter(|| absorb.attach_with_options(device, TcAttachType::Egress, first))?.map_err(refused)?;
    Ok(())
}

const TRACED: [(&str, &str); 2] = [("consumed", "napi_poll"), ("dropped", "xdp_devmap_xmit")];
