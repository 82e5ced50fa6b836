//! UDP frames at a stated rate, from one CPU, by BPF_PROG_TEST_RUN with live frames (bpf/wire.bpf.c).
//!
//! A frame that the host's end had no room for counts as sent: it is lost by the receiver, as by a NIC
//! whose ring is full. Frames from CPU n arrive on queue n modulo the queues of `vb` (veth_select_rxq).

use crate::{
    error::{During, Error, Result},
    frame::{Frame, Shape, mac_of},
    netns::Netns,
    stamp::Stamp,
    sys,
    testbed::Testbed,
};
use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, Map, MapData, RingBuf},
    programs::{ProgramError, TestRun, TestRunAttrs, TestRunOptions, Xdp},
};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::{
    io::{PipeReader, PipeWriter, pipe},
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd, BorrowedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

/// What to send.
#[derive(Clone, Debug)]
pub struct Spec {
    target: SocketAddr,
    size: Size,
    packets_per_second: f64,
    flows: u64,
    vlan: Option<u16>,
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
    /// After so many frames.
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
            flows: 1,
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

    /// Flows in turn: they differ in source port, and from 16,384 on in source address too.
    pub fn flows(mut self, flows: u64) -> Self {
        self.flows = flows;
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

    fn shape(&self, testbed: &Testbed) -> Result<Shape> {
        let wire = testbed.wire();
        let source: IpAddr = match (self.target.is_ipv4(), self.vlan.is_some()) {
            (true, false) => wire.v4().into(),
            (true, true) => wire.vlan_v4().into(),
            (false, false) => wire.v6().into(),
            (false, true) => wire.vlan_v6().into(),
        };
        let mut shape = Shape {
            source_mac: wire.mac(),
            target_mac: mac_of(self.target.ip(), testbed.host().mac()),
            vlan: self.vlan,
            source,
            target: self.target,
            payload_len: 0,
        };
        let headers = shape.headers_len();
        shape.payload_len = match self.size {
            Size::Payload(bytes) => bytes,
            Size::Frame(bytes) => bytes.saturating_sub(headers),
        };
        let most = testbed.facts().mtu as usize + shape.mtu_excluded() - headers;
        if !(Stamp::LEN..=most).contains(&shape.payload_len) {
            let (least, most) = (headers + Stamp::LEN, headers + most);
            return Err(Error::Spec(format!("a frame of this kind has {least} to {most} bytes here")));
        }
        Ok(shape)
    }

    fn check(&self) -> Result<()> {
        if !(self.packets_per_second >= 0.0 && self.packets_per_second <= 1e9) {
            return Err(Error::Spec(format!("{} frames per second is no rate", self.packets_per_second)));
        }
        if !(1..=MOST_FLOWS).contains(&self.flows) {
            return Err(Error::Spec(format!("1 to {MOST_FLOWS} flows, not {}", self.flows)));
        }
        Ok(())
    }

    /// Frames handed over at once, a power of two: as many as come in some microseconds, as a NIC moderates its interrupts.
    fn batch(&self) -> u32 {
        match self.packets_per_second {
            0.0 => MOST_BATCH,
            rate => 1 << ((rate * BATCH_SECONDS).max(1.0) as u32).min(MOST_BATCH).ilog2(),
        }
    }

    /// Between frames, in 1/256 ns.
    fn gap(&self) -> u64 {
        if self.packets_per_second > 0.0 { (256e9 / self.packets_per_second) as u64 } else { 0 }
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
        spec.check()?;
        let shape = spec.shape(testbed)?;
        let frame = shape.frame();
        let mut bpf = load(spec, &shape, &frame, testbed.wire().ifindex())?;
        let mut state = take(&mut bpf, "state", Array::try_from)?;
        let done = take(&mut bpf, "done", RingBuf::try_from)?;
        let mut initial = [0; STATE_WORDS];
        initial[HEADER..].copy_from_slice(&header_words(&frame.bytes));
        state.set(0, initial, 0).map_err(|error| Error::bpf("setting up the generator's map", &error))?;
        let (ended, alive) = pipe().during(|| "making a pipe".into())?;
        let stopping = Arc::new(AtomicBool::new(false));
        sys::allow_interrupts();
        let run = Run {
            wire: testbed.wire().netns().clone(),
            cpu: spec.cpu,
            favoured: spec.favoured,
            batch: spec.batch(),
            bpf,
            frame: frame.bytes,
            stopping: Arc::clone(&stopping),
            _alive: alive,
        };
        let thread = thread::Builder::new().name("wire".into()).spawn(move || run.run());
        let thread = thread.during(|| "starting the generator's thread".into())?;
        Ok(Running { state, done, ended, stopping, thread: Some(thread) })
    }
}

/// A generator that sends.
pub struct Running {
    state: Array<MapData, [u64; STATE_WORDS]>,
    done: RingBuf<MapData>,
    ended: PipeReader,
    stopping: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Running {
    /// What has been sent so far.
    pub fn sent(&self) -> Result<Sent> {
        let state =
            self.state.get(&0, 0).map_err(|error| Error::bpf("reading the generator's counters", &error))?;
        let seconds = state[LAST_NS].saturating_sub(state[FIRST_NS]) as f64 / 1e9;
        Ok(Sent { packets: state[SENT], seconds })
    }

    /// Waits until its limit is reached, but no longer than `timeout`; true when it was.
    pub fn wait_for(&self, timeout: Duration) -> Result<bool> {
        let timeout = PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX);
        Ok(readable(&[self.done.as_fd(), self.ended.as_fd()], timeout)? > 0)
    }

    /// Waits until its limit is reached.
    pub fn wait(self) -> Result<Sent> {
        readable(&[self.done.as_fd(), self.ended.as_fd()], PollTimeout::NONE)?;
        self.stop()
    }

    /// Stops it.
    pub fn stop(mut self) -> Result<Sent> {
        self.end()?;
        self.sent()
    }

    fn end(&mut self) -> Result<()> {
        let Some(thread) = self.thread.take() else { return Ok(()) };
        self.stopping.store(true, Ordering::Relaxed);
        // A signal that comes just before the thread enters the kernel is lost: repeat it.
        while {
            sys::interrupt(&thread);
            readable(&[self.ended.as_fd()], PollTimeout::from(2u8))? == 0
        } {}
        match thread.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}

impl std::fmt::Debug for Running {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Running").field("thread", &self.thread).finish_non_exhaustive()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.end();
    }
}

/// The thread that sends.
struct Run {
    wire: Netns,
    cpu: usize,
    favoured: bool,
    batch: u32,
    bpf: Ebpf,
    frame: Vec<u8>,
    stopping: Arc<AtomicBool>,
    _alive: PipeWriter, // closed when the thread ends, which wakes whoever waits
}

impl Run {
    fn run(self) -> Result<()> {
        self.wire.join()?;
        sys::pin_thread(self.cpu)?;
        if self.favoured {
            sys::prefer_thread(0, sys::Precedence::Favoured)?;
        }
        let program = xdp(&self.bpf)?;
        while !self.stopping.load(Ordering::Relaxed) {
            let mut options = TestRunOptions::new();
            options.data_in = Some(&self.frame);
            options.repeat = REPEAT;
            options.attrs = TestRunAttrs::new().xdp_live_frames(self.batch);
            match program.test_run(options) {
                Err(ProgramError::SyscallError(error))
                    if error.io_error.raw_os_error() == Some(libc::EINTR) => {}
                Err(error) => return Err(Error::bpf("sending (BPF_PROG_TEST_RUN)", &error)),
                Ok(_) => {}
            }
        }
        Ok(())
    }
}

const MOST_FLOWS: u64 = 1 << 28;
const MOST_BATCH: u32 = 64;
const BATCH_SECONDS: f64 = 32e-6;
const REPEAT: u32 = 1 << 31; // the kernel counts iterations in 32 bits
const FIRST_PORT: u16 = 20000;
const OTHER_LOW: u16 = 0x0100;

// struct wire_state, in words.
const SENT: usize = 1;
const FIRST_NS: usize = 4;
const LAST_NS: usize = 5;
const HEADER: usize = 9;
const HEADER_WORDS: usize = 9;
const STATE_WORDS: usize = HEADER + HEADER_WORDS;

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/wire.bpf.o"));

fn load(spec: &Spec, shape: &Shape, frame: &Frame, ifindex: u32) -> Result<Ebpf> {
    let (limit_packets, limit_ns) = match spec.limit {
        Limit::None => (0, 0),
        Limit::Packets(packets) => (packets, 0),
        Limit::Time(time) => (0, time.as_nanos() as u64),
    };
    let is_v6 = u32::from(shape.target.is_ipv6());
    let checksummed = u32::from(spec.checksum || is_v6 == 1);
    let mut bpf = EbpfLoader::new()
        .override_global("ifindex", &ifindex, true)
        .override_global("gap", &spec.gap(), true)
        .override_global("batch", &spec.batch(), true)
        .override_global("limit_packets", &limit_packets, true)
        .override_global("limit_ns", &limit_ns, true)
        .override_global("flows", &spec.flows, true)
        .override_global("header_words", &(shape.headers_len().div_ceil(8) as u32), true)
        .override_global("ip_at", &(frame.ip_at as u32), true)
        .override_global("is_v6", &is_v6, true)
        .override_global("checksummed", &checksummed, true)
        .override_global("ip_sum", &frame.ip_sum, true)
        .override_global("udp_sum", &frame.udp_sum, true)
        .override_global("first_port", &FIRST_PORT, true)
        .override_global("first_low", &shape.source_low(), true)
        .override_global("other_low", &OTHER_LOW, true)
        .load(OBJECT)
        .map_err(|error| Error::bpf("loading the generator (bpf)", &error))?;
    let program: &mut Xdp = bpf
        .program_mut("wire")
        .and_then(|program| program.try_into().ok())
        .ok_or_else(|| Error::Spec("the BPF object holds no program `wire`".into()))?;
    program.load().map_err(|error| Error::bpf("loading the generator (BPF_PROG_LOAD)", &error))?;
    Ok(bpf)
}

fn xdp(bpf: &Ebpf) -> Result<&Xdp> {
    bpf.program("wire")
        .and_then(|program| program.try_into().ok())
        .ok_or_else(|| Error::Spec("the BPF object holds no program `wire`".into()))
}

pub(crate) fn take<M, E: std::error::Error + 'static>(
    bpf: &mut Ebpf,
    name: &'static str,
    convert: impl FnOnce(Map) -> std::result::Result<M, E>,
) -> Result<M> {
    let map =
        bpf.take_map(name).ok_or_else(|| Error::Spec(format!("the BPF object holds no map `{name}`")))?;
    convert(map).map_err(|error| Error::bpf("taking a map of the generator", &error))
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
