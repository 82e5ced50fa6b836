//! UDP frames at a stated rate, from one CPU, by BPF_PROG_TEST_RUN with live frames (bpf/wire.bpf.c).
//!
//! A frame that the host's end had no room for counts as sent: it is lost by the receiver, as by a NIC
//! whose ring is full. Frames from CPU n arrive on queue n modulo the queues of `vb` (veth_select_rxq).

use crate::{
    bpf::{program, take},
    draw::Popularity,
    egress::Egress,
    error::{During, Error, Result},
    frame::{Frame, Shape},
    link::Link,
    live::{LONGEST_FRAME, Live, LiveThread, limit_ns},
    order::Order,
    pace::Pace,
    pattern::{FIRST_PORT, Flows, Layout, Mixed, Pattern},
    random::Random,
    stamp::Stamp,
    testbed::Testbed,
};
use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, MapData, RingBuf},
    programs::Xdp,
};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::{
    net::SocketAddr,
    os::fd::{AsFd, BorrowedFd},
    time::Duration,
};

/// What to send.
#[derive(Clone, Debug)]
pub struct Spec {
    pub(crate) target: SocketAddr,
    size: Size,
    packets_per_second: f64,
    flows: Flows,
    popularity: Popularity,
    seed: u64,
    pub(crate) vlan: Option<u16>,
    checksum: bool,
    limit: Limit,
    cpu: usize,
    favoured: bool,
}

/// When to stop sending.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Limit {
    /// When told to.
    None,
    /// After so many frames, at least one.
    Packets(u64),
    /// After so long.
    Time(Duration),
}

#[derive(Clone, Copy, Debug)]
enum Size {
    Frame(usize),
    Payload(usize),
}

impl Spec {
    /// 64-byte frames (or the smallest that hold a stamp) to `target`, one flow, as fast as possible, from CPU 0.
    pub fn to(target: SocketAddr) -> Self {
        Self {
            target,
            size: Size::Payload(Stamp::LEN),
            packets_per_second: 0.0,
            flows: Flows::in_turn(1),
            popularity: Popularity::InTurn,
            seed: 0,
            vlan: None,
            checksum: true,
            limit: Limit::None,
            cpu: 0,
            favoured: false,
        }
    }

    /// Bytes of UDP payload, at least [`Stamp::LEN`].
    pub fn payload_len(mut self, bytes: usize) -> Self {
        self.size = Size::Payload(bytes);
        self
    }

    /// Bytes of the whole frame, without the frame check sequence that a veth does not have.
    pub fn frame_len(mut self, bytes: usize) -> Self {
        self.size = Size::Frame(bytes);
        self
    }

    /// Frames per second; 0 is as fast as possible.
    pub fn packets_per_second(mut self, rate: f64) -> Self {
        self.packets_per_second = rate;
        self
    }

    /// Flows to one port: they differ in source port, and from 16,384 on in source address too.
    pub fn flows(mut self, flows: u64) -> Self {
        self.flows = Flows::in_turn(flows);
        self
    }

    /// Flows from and to whom; takes the place of [`Spec::flows`].
    pub fn pattern(mut self, pattern: Pattern) -> Self {
        self.flows = Flows::of(pattern);
        self
    }

    /// How often each flow is sent; in turn unless told. A million (2^20) flows at most can be drawn at random.
    pub fn popularity(mut self, popularity: Popularity) -> Self {
        self.popularity = popularity;
        self
    }

    /// [`Popularity::Zipf`] of this exponent.
    pub fn zipf(self, s: f64) -> Self {
        self.popularity(Popularity::Zipf(s))
    }

    /// What random choices depend on: the same seed repeats them. 0 unless told.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Tags the frames.
    pub fn vlan(mut self, id: Option<u16>) -> Self {
        self.vlan = id;
        self
    }

    /// Whether UDP checksums are filled in; they are unless told. IPv6 needs them.
    pub fn checksum(mut self, on: bool) -> Self {
        self.checksum = on;
        self
    }

    /// When to stop.
    pub fn limit(mut self, limit: Limit) -> Self {
        self.limit = limit;
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

    /// Which flow each frame belongs to: what a receiver that loses nothing sees.
    pub fn order(&self) -> Order {
        let table = self.popularity.table(self.flows.long as usize);
        Order::new(self.flows, table.map(|table| (table, Random::seeded(self.seed))))
    }

    /// Source and destination of a flow, as sent from `egress`.
    fn ends(&self, egress: &Egress, flow: u64) -> (SocketAddr, SocketAddr) {
        self.flows.ends(egress.source, self.target, flow)
    }

    fn shape(&self, egress: &Egress) -> Result<Shape> {
        if egress.source.first.is_ipv4() != self.target.is_ipv4() {
            let (from, to) = (egress.source.first, self.target.ip());
            return Err(Error::Spec(format!("{from} and {to} are of two families")));
        }
        let mut shape = Shape {
            source_mac: egress.source_mac,
            target_mac: egress.target_mac,
            vlan: self.vlan,
            source: egress.source.first,
            target: self.target,
            payload_len: 0,
        };
        let headers = shape.headers_len();
        shape.payload_len = match self.size {
            Size::Payload(bytes) => bytes,
            Size::Frame(bytes) => bytes.saturating_sub(headers),
        };
        let (least, most) = (headers + Stamp::LEN, egress.mtu as usize + shape.mtu_excluded());
        if !(least..=most.min(LONGEST_FRAME)).contains(&(headers + shape.payload_len)) {
            return Err(Error::Spec(bounds(least, most)));
        }
        Ok(shape)
    }

    /// The shape of short frames.
    fn short(&self, long: &Shape, mixed: Mixed) -> Result<Shape> {
        let (least, most) = (Stamp::LEN, long.payload_len);
        if !(least..=most).contains(&mixed.short_payload_len) {
            return Err(Error::Spec(format!(
                "short frames carry {least} bytes to as many as the long ones, {most}: not {}",
                mixed.short_payload_len
            )));
        }
        Ok(Shape { payload_len: mixed.short_payload_len, ..*long })
    }

    fn check(&self) -> Result<()> {
        let wrong = |why: String| Err(Error::Spec(why));
        if !(self.packets_per_second >= 0.0 && self.packets_per_second <= 1e9) {
            return wrong(format!("{} frames per second is no rate", self.packets_per_second));
        }
        if self.limit == Limit::Packets(0) {
            return wrong("0 frames are nothing to send".into());
        }
        if let Some(id) = self.vlan.filter(|id| !(1..=4094).contains(id)) {
            return wrong(format!("a VLAN id is 1 to 4094, not {id}"));
        }
        self.flows.check(self.target.port())?;
        match self.popularity {
            Popularity::InTurn => Ok(()),
            Popularity::Zipf(s) if !(0.0..=100.0).contains(&s) => wrong(format!("Zipf({s}): s is 0 to 100")),
            _ if self.flows.mixed.is_some() => {
                wrong("mixed flows have their own shares: none are drawn at random".into())
            }
            _ if self.flows.long > MOST_DRAWN => {
                wrong(format!("{MOST_DRAWN} flows at most are drawn at random, not {}", self.flows.long))
            }
            _ => Ok(()),
        }
    }

    fn pace(&self) -> Pace {
        Pace(self.packets_per_second)
    }
}

fn bounds(least: usize, most: usize) -> String {
    let page = "more would fit the MTU, but not the kernel's live frames, a page each";
    match most > LONGEST_FRAME {
        true => format!("a frame of this kind has {least} to {LONGEST_FRAME} bytes here ({page})"),
        false => format!("a frame of this kind has {least} to {most} bytes here"),
    }
}

impl Shape {
    /// Bytes of a frame that the MTU does not count.
    fn mtu_excluded(&self) -> usize {
        if self.vlan.is_some() { 18 } else { 14 }
    }
}

/// What has been sent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sent {
    /// Frames.
    pub packets: u64,
    /// From the first frame to the last.
    pub seconds: f64,
}

impl Sent {
    /// Frames per second.
    pub fn rate(&self) -> f64 {
        if self.seconds > 0.0 { self.packets as f64 / self.seconds } else { 0.0 }
    }
}

/// The generator.
#[derive(Debug)]
pub struct Generator;

impl Generator {
    /// Starts sending from `va` of `testbed`.
    pub fn start(testbed: &Testbed, spec: &Spec) -> Result<Running> {
        Self::start_on(&Egress::of(testbed, spec.target, spec.vlan), spec)
    }

    /// Starts sending over an emulated link of `testbed` to its host.
    pub fn start_over(link: &Link, testbed: &Testbed, spec: &Spec) -> Result<Running> {
        let ifindex = link.ifindex();
        Self::start_on(&Egress { ifindex, ..Egress::of(testbed, spec.target, spec.vlan) }, spec)
    }

    /// Starts sending from a device: in the network namespace of the calling thread.
    pub fn start_on(egress: &Egress, spec: &Spec) -> Result<Running> {
        spec.check()?;
        let shape = spec.shape(egress)?;
        let short = spec.flows.mixed.map_or(Ok(shape), |mixed| spec.short(&shape, mixed))?;
        let [frame, short] = [shape.frame(), short.frame()];
        let mut bpf = load(spec, &shape, [&frame, &short], egress)?;
        set_slots(&mut bpf, spec)?;
        let state = initial_state(&mut bpf, spec, [&frame, &short])?;
        let done = take(&mut bpf, "done", RingBuf::try_from)?;
        let live = Live {
            netns: egress.netns.clone(),
            cpu: spec.cpu,
            favoured: spec.favoured,
            bpf,
            program: "wire",
            frame: frame.bytes,
            batch: spec.pace().batch(),
        };
        Ok(Running { state, done, thread: live.start()? })
    }

    /// Source and destination of flow number `flow`, which its [`Stamp`] carries.
    pub fn ends(testbed: &Testbed, spec: &Spec, flow: u64) -> (SocketAddr, SocketAddr) {
        spec.ends(&Egress::of(testbed, spec.target, spec.vlan), flow)
    }
}

/// A generator that sends.
pub struct Running {
    state: Array<MapData, [u64; STATE_WORDS]>,
    done: RingBuf<MapData>,
    thread: LiveThread,
}

impl Running {
    /// What has been sent so far.
    pub fn sent(&self) -> Result<Sent> {
        let state =
            self.state.get(&0, 0).map_err(|error| Error::bpf("reading the generator's counters", &error))?;
        let seconds = state[LAST_NS].saturating_sub(state[FIRST_NS]) as f64 / 1e9;
        Ok(Sent { packets: state[SENT], seconds })
    }

    /// One of them is readable when its limit is reached, or when it has failed.
    pub fn ended(&self) -> [BorrowedFd<'_>; 2] {
        [self.done.as_fd(), self.thread.ended()]
    }

    /// Waits until its limit is reached, but no longer than `timeout`; true when it was.
    pub fn wait_for(&self, timeout: Duration) -> Result<bool> {
        let timeout = PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX);
        Ok(readable(&self.ended(), timeout)? > 0)
    }

    /// Waits until its limit is reached.
    pub fn wait(self) -> Result<Sent> {
        readable(&self.ended(), PollTimeout::NONE)?;
        self.stop()
    }

    /// Stops it.
    pub fn stop(mut self) -> Result<Sent> {
        self.thread.end()?;
        self.sent()
    }
}

impl std::fmt::Debug for Running {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Running").finish_non_exhaustive()
    }
}

const MOST_DRAWN: u64 = 1 << 20; // 16 bytes of memory each

// struct wire_state, in words.
const SENT: usize = 3;
const FIRST_NS: usize = 6;
const LAST_NS: usize = 7;
const RANDOM: usize = 9;
const HEADERS: [usize; 2] = [13, 13 + HEADER_WORDS];
const HEADER_WORDS: usize = 9;
const STATE_WORDS: usize = 13 + 2 * HEADER_WORDS;

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/wire.bpf.o"));

fn load(spec: &Spec, shape: &Shape, [frame, short]: [&Frame; 2], egress: &Egress) -> Result<Ebpf> {
    let (limit_packets, limit_ns) = match spec.limit {
        Limit::None => (0, 0),
        Limit::Packets(packets) => (packets, 0),
        Limit::Time(time) => (0, limit_ns(time)),
    };
    let is_v6 = u32::from(shape.target.is_ipv6());
    let checksummed = u32::from(spec.checksum || is_v6 == 1);
    let drawn = u32::from(spec.popularity != Popularity::InTurn);
    let (wide, diagonal) = match spec.flows.layout {
        Layout::Ports => (0, 0),
        Layout::Wide(receivers) => (receivers, 0),
        Layout::Diagonal => (0, 1),
    };
    let mixed = spec.flows.mixed.unwrap_or(Mixed { short: 0, short_share: 0.0, ..Mixed::default() });
    let mut bpf = EbpfLoader::new()
        .override_global("ifindex", &egress.ifindex, true)
        .override_global("gap", &spec.pace().gap(), true)
        .override_global("batch", &spec.pace().batch(), true)
        .override_global("limit_packets", &limit_packets, true)
        .override_global("limit_ns", &limit_ns, true)
        .override_global("flows", &spec.flows.long, true)
        .override_global("drawn", &drawn, true)
        .override_global("wide", &wide, true)
        .override_global("diagonal", &diagonal, true)
        .override_global("short_flows", &u64::from(mixed.short), true)
        .override_global("short_share", &mixed.share_bits(), true)
        .override_global("shrink", &((frame.bytes.len() - short.bytes.len()) as u32), true)
        .override_global("header_words", &(shape.headers_len().div_ceil(8) as u32), true)
        .override_global("ip_at", &(frame.ip_at as u32), true)
        .override_global("is_v6", &is_v6, true)
        .override_global("checksummed", &checksummed, true)
        .override_global("ip_sum", &frame.ip_sum, true)
        .override_global("udp_sum", &frame.udp_sum, true)
        .override_global("short_ip_sum", &short.ip_sum, true)
        .override_global("short_udp_sum", &short.udp_sum, true)
        .override_global("first_port", &FIRST_PORT, true)
        .override_global("target_port", &spec.target.port(), true)
        .override_global("first_low", &egress.source.low(0), true)
        .override_global("other_low", &egress.source.other_low, true)
        .map_max_entries("slots", if drawn == 1 { spec.flows.long as u32 } else { 1 })
        .load(OBJECT)
        .map_err(|error| Error::bpf("loading the generator (bpf)", &error))?;
    program::<Xdp>(&mut bpf, "wire")?
        .load()
        .map_err(|error| Error::bpf("loading the generator (BPF_PROG_LOAD)", &error))?;
    Ok(bpf)
}

fn set_slots(bpf: &mut Ebpf, spec: &Spec) -> Result<()> {
    let Some(table) = spec.popularity.table(spec.flows.long as usize) else { return Ok(()) };
    let mut slots: Array<_, [u32; 4]> = take(bpf, "slots", Array::try_from)?;
    for (at, slot) in table.slots().iter().enumerate() {
        slots
            .set(at as u32, [slot.threshold, slot.alias, 0, 0], 0)
            .map_err(|error| Error::bpf("setting up the popularity of flows", &error))?;
    }
    Ok(())
}

fn initial_state(
    bpf: &mut Ebpf,
    spec: &Spec,
    frames: [&Frame; 2],
) -> Result<Array<MapData, [u64; STATE_WORDS]>> {
    let mut initial = [0; STATE_WORDS];
    initial[RANDOM] = spec.seed;
    for (at, frame) in HEADERS.into_iter().zip(frames) {
        initial[at..at + HEADER_WORDS].copy_from_slice(&header_words(&frame.bytes));
    }
    let mut state = take(bpf, "state", Array::try_from)?;
    state.set(0, initial, 0).map_err(|error| Error::bpf("setting up the generator's map", &error))?;
    Ok(state)
}

fn header_words(frame: &[u8]) -> [u64; HEADER_WORDS] {
    let mut words = [0; HEADER_WORDS];
    for (word, bytes) in words.iter_mut().zip(frame.chunks_exact(8)) {
        *word = u64::from_ne_bytes(bytes.try_into().unwrap_or_default());
    }
    words
}

pub(crate) fn readable(fds: &[BorrowedFd<'_>], timeout: PollTimeout) -> Result<i32> {
    let mut fds: Vec<_> = fds.iter().map(|fd| PollFd::new(*fd, PollFlags::POLLIN)).collect();
    loop {
        match poll(&mut fds, timeout) {
            Err(nix::errno::Errno::EINTR) => {}
            other => return other.during(|| "waiting for the generator (poll)".into()),
        }
    }
}
