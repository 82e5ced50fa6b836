//! `hoist-raw-sink`: the limit of the wire, an AF_XDP socket read in place and nothing else.
//!
//! `hoist-raw-sink DEVICE PORT [--queue N] [--frames N] [--idle-ms N] [--delay N] [--spin 1]` attaches an XDP program that
//! lifts UDP over IPv4 to PORT, sleeps in poll when the ring is empty, hands frames back most-recently-used first, and reports as
//! hoist-sink does. With `--spin` it runs the driver itself (Linux 6.9): the first datagrams then go to a kernel socket, which so
//! learns the NAPI instance.

#![deny(unsafe_code)]

#[path = "../spinner.rs"]
mod spinner;
#[path = "../tally.rs"]
mod tally;

use aya::{
    Ebpf, EbpfLoader,
    maps::XskMap,
    programs::{Xdp, xdp::XdpMode},
};
use hoist_xsk::{ChunkSize, FillRing, Mode, RxRing, Socket, Umem};
use nix::{
    net::if_::if_nametoindex,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::epoll::EpollTimeout,
};
use spinner::Spinner;
use std::{
    env,
    error::Error,
    net::UdpSocket,
    os::fd::{AsFd, AsRawFd},
    process::ExitCode,
    time::Instant,
};
use tally::{Tally, say};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("hoist-raw-sink: {why}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let options = Options::parse(env::args().skip(1))?;
    let mut ring = Ring::bind(&options)?;
    let mut bpf = EbpfLoader::new().override_global("port", &options.port, true).load(OBJECT)?;
    if !options.spin {
        lift(&mut bpf, &options, &ring)?;
    }
    let program: &mut Xdp = bpf.program_mut("sink").ok_or("no program `sink`")?.try_into()?;
    program.load()?;
    program.attach(&options.device, XdpMode::Driver)?;
    let helper = options.spin.then(|| UdpSocket::bind(("0.0.0.0", options.port))).transpose()?;
    say("ready")?;
    let mut tally = Tally::with_delay(options.delay_every);
    if let Some(helper) = helper {
        let mut buffer = [0; 65536];
        let length = helper.recv(&mut buffer)?;
        lift(&mut bpf, &options, &ring)?;
        tally.count(&buffer[..length]);
        drain(&helper, &mut tally)?;
        ring.spinner = Some(Spinner::new(&ring.socket, helper)?);
    }
    ring.receive(&options, &mut tally)?;
    Ok(say(&tally.json())?)
}

fn lift(bpf: &mut Ebpf, options: &Options, ring: &Ring) -> Result<(), Box<dyn Error>> {
    let mut rings = XskMap::try_from(bpf.map_mut("rings").ok_or("no map `rings`")?)?;
    Ok(rings.set(options.queue, ring.socket.as_fd().as_raw_fd(), 0)?)
}

/// What went to the kernel socket until packets were lifted.
fn drain(helper: &UdpSocket, tally: &mut Tally) -> std::io::Result<()> {
    helper.set_nonblocking(true)?;
    let mut buffer = [0; 65536];
    while let Ok(length) = helper.recv(&mut buffer) {
        tally.count(&buffer[..length]);
    }
    Ok(())
}

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/sink.bpf.o"));
const RING: u32 = 4096;
const BATCH: u32 = 64;
const HEADERS: usize = 42; // Ethernet, IPv4, UDP: all that the program lifts has them

struct Options {
    device: String,
    port: u16,
    queue: u32,
    frames: u32,
    idle_ms: u16,
    seconds: f64,
    delay_every: u32,
    spin: bool,
}

impl Options {
    fn parse(mut args: impl Iterator<Item = String>) -> Result<Self, &'static str> {
        let usage = "usage: hoist-raw-sink DEVICE PORT [--queue N] [--frames N] [--idle-ms N] [--seconds N] [--delay N] [--spin 1]";
        let device = args.next().ok_or(usage)?;
        let port = args.next().and_then(|port| port.parse().ok()).ok_or(usage)?;
        let mut options = Self {
            device,
            port,
            queue: 0,
            frames: RING,
            idle_ms: 200,
            seconds: f64::INFINITY,
            delay_every: 0,
            spin: false,
        };
        while let Some(name) = args.next() {
            let value: u32 = args.next().and_then(|value| value.parse().ok()).ok_or(usage)?;
            match name.as_str() {
                "--queue" => options.queue = value,
                "--frames" => options.frames = value.clamp(1, RING),
                "--idle-ms" => options.idle_ms = value.clamp(1, 60_000) as u16,
                "--seconds" => options.seconds = value.into(),
                "--delay" => options.delay_every = value,
                "--spin" => options.spin = value != 0,
                _ => return Err(usage),
            }
        }
        Ok(options)
    }
}

struct Ring {
    umem: Umem,
    socket: Socket,
    rx: RxRing,
    fill: FillRing,
    spinner: Option<Spinner>,
}

impl Ring {
    fn bind(options: &Options) -> Result<Self, Box<dyn Error>> {
        let umem = Umem::create(options.frames, ChunkSize::K2, false)?;
        let socket = Socket::open()?;
        socket.register_umem(&umem, 0)?;
        socket.set_umem_rings(RING, BATCH)?;
        socket.set_rings(RING, 0)?;
        let rx = RxRing::map(socket.as_fd(), RING)?;
        let mut fill = FillRing::map(socket.as_fd(), RING)?;
        for frame in 0..options.frames {
            fill.push(umem.addr_of(frame));
        }
        fill.submit();
        socket.bind(if_nametoindex(options.device.as_str())?, options.queue, Mode::Auto, None)?;
        Ok(Self { umem, socket, rx, fill, spinner: None })
    }

    fn receive(&mut self, options: &Options, tally: &mut Tally) -> Result<(), Box<dyn Error>> {
        let start = Instant::now();
        loop {
            match self.rx.available().min(BATCH) {
                0 if self.sleep(options.idle_ms)? => {}
                0 if tally.packets > 0 || start.elapsed().as_secs_f64() > options.seconds => break,
                0 => {}
                packets => self.take(packets, tally),
            }
        }
        tally.end();
        Ok(())
    }

    /// Reads payloads in place and gives the frames back, the last one first.
    fn take(&mut self, packets: u32, tally: &mut Tally) {
        for i in 0..packets {
            let payload = self
                .rx
                .peek(i)
                .and_then(|desc| self.umem.packet(desc))
                .and_then(|packet| packet.get(HEADERS..));
            tally.count(payload.unwrap_or_default());
        }
        for i in (0..packets).rev() {
            if let Some(frame) = self.rx.peek(i).and_then(|desc| self.umem.frame_of(desc.addr)) {
                self.fill.push(self.umem.addr_of(frame));
            }
        }
        self.rx.release(packets);
        self.fill.submit();
    }

    /// Waits for packets; false when none has come for the idle time.
    fn sleep(&self, idle_ms: u16) -> Result<bool, Box<dyn Error>> {
        if let Some(spinner) = &self.spinner {
            return spinner.wait(EpollTimeout::from(idle_ms));
        }
        let mut fds = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::from(idle_ms)) {
            Err(nix::errno::Errno::EINTR) => Ok(true),
            other => Ok(other? > 0),
        }
    }
}
