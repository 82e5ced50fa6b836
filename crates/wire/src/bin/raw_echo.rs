//! `hoist-raw-echo`: the limit of a round trip, an AF_XDP socket that sends every frame back where it came from.
//!
//! `hoist-raw-echo DEVICE ADDRESS:PORT [--spin] [--queue N]` attaches an XDP program that lifts UDP over IPv4 to PORT and prints
//! `ready`. The first datagram is left to a kernel socket and answered from it: that socket then knows the NAPI instance of
//! the queue, and `--spin` (Linux 6.9) runs it through epoll. Without, poll sleeps.

#![deny(unsafe_code)]

#[path = "../spinner.rs"]
mod spinner;

use aya::{
    EbpfLoader,
    maps::XskMap,
    programs::{Xdp, xdp::XdpMode},
};
use hoist_xsk::{ChunkSize, CompletionRing, Desc, FillRing, Mode, RxRing, Socket, TxRing, Umem};
use nix::{
    net::if_::if_nametoindex,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::epoll::EpollTimeout,
};
use spinner::Spinner;
use std::{
    env,
    error::Error,
    io::Write,
    net::{SocketAddr, UdpSocket},
    os::fd::{AsFd, AsRawFd},
    process::ExitCode,
};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("hoist-raw-echo: {why}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let options = Options::parse(env::args().skip(1))?;
    let mut echo = Echo::bind(&options)?;
    let helper = UdpSocket::bind(options.address)?;
    let mut bpf = EbpfLoader::new().override_global("port", &options.address.port(), true).load(OBJECT)?;
    let program: &mut Xdp = bpf.program_mut("sink").ok_or("no program `sink`")?.try_into()?;
    program.load()?;
    program.attach(&options.device, XdpMode::Driver)?;
    writeln!(std::io::stdout(), "ready")?;
    answer_first(&helper)?;
    let mut rings = XskMap::try_from(bpf.map_mut("rings").ok_or("no map `rings`")?)?;
    rings.set(options.queue, echo.socket.as_fd().as_raw_fd(), 0)?;
    let spinner = options.spin.then(|| Spinner::new(&echo.socket, helper)).transpose()?;
    loop {
        match (echo.rx.available().min(BATCH), &spinner) {
            (0, Some(spinner)) => drop(spinner.wait(EpollTimeout::NONE)?),
            (0, None) => echo.sleep()?,
            (packets, _) => echo.answer(packets)?,
        }
    }
}

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/sink.bpf.o"));
const FRAMES: u32 = 256; // few, so that they stay in the cache
const RING: u32 = 256;
const BATCH: u32 = 64;

struct Options {
    device: String,
    address: SocketAddr,
    queue: u32,
    spin: bool,
}

impl Options {
    fn parse(mut words: impl Iterator<Item = String>) -> Result<Self, &'static str> {
        let usage = "usage: hoist-raw-echo DEVICE ADDRESS:PORT [--spin] [--queue N]";
        let device = words.next().ok_or(usage)?;
        let address = words.next().and_then(|word| word.parse().ok()).ok_or(usage)?;
        let mut options = Self { device, address, queue: 0, spin: false };
        while let Some(name) = words.next() {
            match name.as_str() {
                "--spin" => options.spin = true,
                "--queue" => options.queue = words.next().and_then(|word| word.parse().ok()).ok_or(usage)?,
                _ => return Err(usage),
            }
        }
        Ok(options)
    }
}

/// The datagram from which the helper learns its NAPI instance.
fn answer_first(helper: &UdpSocket) -> Result<(), Box<dyn Error>> {
    let mut buffer = [0; 65536];
    let (length, from) = helper.recv_from(&mut buffer)?;
    helper.send_to(&buffer[..length], from)?;
    Ok(())
}

struct Echo {
    umem: Umem,
    socket: Socket,
    rx: RxRing,
    fill: FillRing,
    tx: TxRing,
    completion: CompletionRing,
}

impl Echo {
    fn bind(options: &Options) -> Result<Self, Box<dyn Error>> {
        let umem = Umem::create(FRAMES, ChunkSize::K2, false)?;
        let socket = Socket::open()?;
        socket.register_umem(&umem, 0)?;
        socket.set_umem_rings(RING, RING)?;
        socket.set_rings(RING, RING)?;
        let rx = RxRing::map(socket.as_fd(), RING)?;
        let tx = TxRing::map(socket.as_fd(), RING)?;
        let completion = CompletionRing::map(socket.as_fd(), RING)?;
        let mut fill = FillRing::map(socket.as_fd(), RING)?;
        for frame in 0..FRAMES {
            fill.push(umem.addr_of(frame));
        }
        fill.submit();
        socket.bind(if_nametoindex(options.device.as_str())?, options.queue, Mode::Auto, None)?;
        Ok(Self { umem, socket, rx, fill, tx, completion })
    }

    /// Sends what came back from the frames it came in.
    fn answer(&mut self, packets: u32) -> Result<(), Box<dyn Error>> {
        for i in 0..packets {
            if let Some(desc) = self.rx.peek(i) {
                self.answer_one(desc);
            }
        }
        self.rx.release(packets);
        self.tx.submit();
        // Copy mode sends 32 packets a call.
        while self.tx.pending() > 0 {
            self.socket.wake_tx()?;
        }
        self.recycle();
        Ok(())
    }

    fn answer_one(&mut self, desc: Desc) {
        let turned = self.umem.packet_mut(desc).is_some_and(|frame| turn_round(sys::lent(frame)));
        let queued = turned && self.tx.push(desc);
        if let (false, Some(frame)) = (queued, self.umem.frame_of(desc.addr)) {
            self.fill.push(self.umem.addr_of(frame));
            self.fill.submit();
        }
    }

    fn recycle(&mut self) {
        let sent = self.completion.available();
        for i in (0..sent).rev() {
            if let Some(frame) = self.completion.peek(i).and_then(|addr| self.umem.frame_of(addr)) {
                self.fill.push(self.umem.addr_of(frame));
            }
        }
        self.completion.release(sent);
        self.fill.submit();
    }

    fn sleep(&self) -> Result<(), Box<dyn Error>> {
        let mut fds = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::NONE) {
            Err(nix::errno::Errno::EINTR) | Ok(_) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}

/// Makes a frame that came one that goes back; false if it is not UDP over IPv4 without options. Checksums stay right: the
/// sums are of the same words in another order.
fn turn_round(frame: &mut [u8]) -> bool {
    let is_udp = frame.len() >= 42 && frame[12..14] == [8, 0] && frame[14] == 0x45 && frame[23] == 17;
    if is_udp {
        swap(frame, 0, 6, 6);
        swap(frame, 26, 30, 4);
        swap(frame, 34, 36, 2);
    }
    is_udp
}

fn swap(frame: &mut [u8], one: usize, other: usize, length: usize) {
    for i in 0..length {
        frame.swap(one + i, other + i);
    }
}

#[allow(unsafe_code)]
mod sys {
    /// The bytes of a frame between its receipt and its return to a ring.
    pub(super) fn lent<'a>(frame: *mut [u8]) -> &'a mut [u8] {
        // SAFETY: the frame has been taken from the rx ring and is in no other ring until it is pushed, after the last use of
        // this slice; it lies within the mapped UMEM (Umem::packet_mut), which nobody else maps.
        unsafe { &mut *frame }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame() -> Vec<u8> {
        let mut frame: Vec<u8> = (0..50).collect();
        frame[12..15].copy_from_slice(&[8, 0, 0x45]);
        frame[23] = 17;
        frame
    }

    #[test]
    fn a_frame_turned_round_twice_is_the_same() {
        let mut turned = frame();
        assert!(turn_round(&mut turned));
        assert_eq!(
            (&turned[..6], &turned[26..30], &turned[34..36]),
            (&frame()[6..12], &frame()[30..34], &frame()[36..38])
        );
        assert!(turn_round(&mut turned));
        assert_eq!(turned, frame());
    }

    #[test]
    fn what_is_not_plain_udp_stays_as_it_is() {
        for (at, value) in [(12, 0x86), (14, 0x46), (23, 6)] {
            let mut other = frame();
            other[at] = value;
            let before = other.clone();
            assert!(!turn_round(&mut other));
            assert_eq!(other, before);
        }
        assert!(!turn_round(&mut frame()[..41]));
    }
}
