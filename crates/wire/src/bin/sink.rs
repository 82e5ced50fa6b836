//! `hoist-sink`: the program under test, a blocking recvfrom loop that knows nothing of Hoist.
//!
//! `hoist-sink ADDRESS:PORT [OPTIONS]` prints `ready`, receives, and ends after `--seconds N`, or when nothing has come for
//! `--idle-ms N` after a first datagram, or on SIGTERM. Then it prints one line of JSON: datagrams, bytes, what the stamps
//! tell, its CPU time from the first datagram on. `--delay N` takes the one-way delay of one datagram in N.
//!
//! What a program can do for itself: `--rcvbuf BYTES`; `--batch N` receives by recvmmsg(2); `--gro` asks for merged datagrams; `--busy-poll US` has reads run the
//! driver. `--sockets N` receives on N ports from PORT on, by epoll; `--epoll` has one socket read so too.

#![deny(unsafe_code)]

#[path = "../tally.rs"]
mod tally;

use tally::{CLOCK_EVERY, Tally, say};

use nix::sys::{
    epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
    resource::{Resource, getrlimit, setrlimit},
};
use std::{
    env,
    io::{self, ErrorKind},
    net::{SocketAddr, UdpSocket},
    process::ExitCode,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("hoist-sink: {why}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), String> {
    let options = Options::parse(env::args().skip(1))?;
    sys::stop_on_sigterm();
    let sockets = (0..options.sockets).map(|i| open(&options, i)).collect::<Result<Vec<_>, _>>()?;
    let mut sink = Sink::new(&options);
    let receive = if options.by_epoll() { Sink::receive_by_epoll } else { Sink::receive_on };
    let epoll = watch(&sockets).map_err(|e| format!("epoll: {e}"))?;
    say("ready")?;
    receive(&mut sink, &sockets, &epoll).map_err(|e| format!("receiving: {e}"))?;
    sink.tally.end();
    say(&sink.tally.json())
}

const USAGE: &str = "usage: hoist-sink ADDRESS:PORT [--seconds N] [--idle-ms N] [--rcvbuf BYTES] [--batch N] \
                     [--gro] [--busy-poll US] [--sockets N] [--epoll] [--delay N]";

struct Options {
    address: SocketAddr,
    seconds: f64,
    idle: Duration,
    rcvbuf: Option<i32>,
    batch: usize,
    gro: bool,
    busy_poll_us: Option<i32>,
    sockets: u16,
    epoll: bool,
    delay_every: u32,
}

impl Options {
    fn parse(mut args: impl Iterator<Item = String>) -> Result<Self, String> {
        let address = args.next().and_then(|address| address.parse().ok()).ok_or(USAGE)?;
        let mut options = Self {
            address,
            seconds: f64::INFINITY,
            idle: Duration::from_millis(200),
            rcvbuf: None,
            batch: 1,
            gro: false,
            busy_poll_us: None,
            sockets: 1,
            epoll: false,
            delay_every: 0,
        };
        while let Some(name) = args.next() {
            match name.as_str() {
                "--epoll" => options.epoll = true,
                "--gro" => options.gro = true,
                _ => options.set(&name, args.next())?,
            }
        }
        Ok(options)
    }

    fn set(&mut self, name: &str, value: Option<String>) -> Result<(), String> {
        let value: u32 = value.and_then(|value| value.parse().ok()).ok_or(USAGE)?;
        match name {
            "--seconds" => self.seconds = value.into(),
            "--idle-ms" => self.idle = Duration::from_millis(value.max(1).into()),
            "--rcvbuf" => self.rcvbuf = Some(value as i32),
            "--batch" => self.batch = value.clamp(1, 1024) as usize,
            "--busy-poll" => self.busy_poll_us = Some(value as i32),
            "--sockets" => self.sockets = value.clamp(1, 60_000) as u16,
            "--delay" => self.delay_every = value,
            _ => return Err(USAGE.into()),
        }
        Ok(())
    }

    fn by_epoll(&self) -> bool {
        self.epoll || self.sockets > 1
    }
}

/// The socket on the `i`th port.
fn open(options: &Options, i: u16) -> Result<UdpSocket, String> {
    let mut address = options.address;
    let port = address.port().checked_add(i).ok_or("more sockets than there are ports")?;
    address.set_port(port);
    if i == 0 && options.sockets > 512 {
        raise_file_limit().map_err(|e| format!("setrlimit RLIMIT_NOFILE: {e}"))?;
    }
    let socket = UdpSocket::bind(address).map_err(|e| format!("bind {address}: {e}"))?;
    if let Some(bytes) = options.rcvbuf {
        sys::set_receive_buffer(&socket, bytes).map_err(|e| format!("setsockopt SO_RCVBUF {bytes}: {e}"))?;
    }
    if let Some(us) = options.busy_poll_us {
        sys::set_busy_poll(&socket, us).map_err(|e| format!("setsockopt SO_BUSY_POLL {us}: {e}"))?;
    }
    if options.gro {
        sys::set_gro(&socket).map_err(|e| format!("setsockopt UDP_GRO: {e}"))?;
    }
    socket.set_read_timeout(Some(options.idle)).map_err(|e| format!("setsockopt SO_RCVTIMEO: {e}"))?;
    socket.set_nonblocking(options.by_epoll()).map_err(|e| format!("fcntl O_NONBLOCK: {e}"))?;
    Ok(socket)
}

fn raise_file_limit() -> nix::Result<()> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)
}

fn watch(sockets: &[UdpSocket]) -> nix::Result<Epoll> {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    for (i, socket) in sockets.iter().enumerate() {
        epoll.add(socket, EpollEvent::new(EpollFlags::EPOLLIN, i as u64))?;
    }
    Ok(epoll)
}

static STOP: AtomicBool = AtomicBool::new(false);

struct Sink {
    tally: Tally,
    batch: sys::Batch,
    start: Instant,
    seconds: f64,
    idle: Duration,
}

impl Sink {
    fn new(options: &Options) -> Self {
        Self {
            tally: Tally::with_delay(options.delay_every),
            batch: sys::Batch::new(options.batch, options.gro),
            start: Instant::now(),
            seconds: options.seconds,
            idle: options.idle,
        }
    }

    /// Blocking reads.
    fn receive_on(&mut self, sockets: &[UdpSocket], _: &Epoll) -> io::Result<()> {
        while !self.over() {
            match self.take(&sockets[0]) {
                Err(e) if e.kind() == ErrorKind::WouldBlock && self.tally.packets > 0 => break,
                Err(e) if e.kind() == ErrorKind::WouldBlock => {} // nothing has come yet
                other => other?,
            }
        }
        Ok(())
    }

    /// Reads of whatever is ready, one each.
    fn receive_by_epoll(&mut self, sockets: &[UdpSocket], epoll: &Epoll) -> io::Result<()> {
        let mut events = [EpollEvent::empty(); 256];
        let timeout = EpollTimeout::try_from(self.idle).unwrap_or(EpollTimeout::MAX);
        while !self.over() {
            let ready = match epoll.wait(&mut events, timeout) {
                Ok(0) if self.tally.packets > 0 => break,
                Err(nix::Error::EINTR) => 0,
                other => other?,
            };
            for event in &events[..ready] {
                match self.take(&sockets[event.data() as usize]) {
                    Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                    other => other?,
                }
            }
        }
        Ok(())
    }

    fn take(&mut self, socket: &UdpSocket) -> io::Result<()> {
        match self.batch.receive(socket, |payload| self.tally.count(payload)) {
            Err(e) if e.kind() == ErrorKind::Interrupted => Ok(()),
            other => other.map(|()| self.tally.reads += 1),
        }
    }

    fn over(&self) -> bool {
        STOP.load(Ordering::Relaxed)
            || self.tally.packets.is_multiple_of(CLOCK_EVERY)
                && self.start.elapsed().as_secs_f64() >= self.seconds
    }
}

#[allow(unsafe_code)]
mod sys {
    use super::{STOP, UdpSocket};
    use std::{io, os::fd::AsRawFd, sync::atomic::Ordering};

    const LONGEST: usize = 65536;

    /// Of one control message, as aligned as a cmsghdr.
    type Control = [u64; 3];

    /// Room for what one call takes.
    pub(super) struct Batch {
        buffers: Vec<u8>,
        headers: Vec<libc::mmsghdr>,
        controls: Vec<Control>,
        _vectors: Vec<libc::iovec>, // the headers point to them
    }

    impl Batch {
        /// With `gro` one read may be several datagrams, and is told how long they are.
        pub(super) fn new(datagrams: usize, gro: bool) -> Self {
            let mut buffers = vec![0; datagrams * LONGEST];
            let vector =
                |buffer: &mut [u8]| libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: LONGEST };
            let mut vectors: Vec<_> = buffers.chunks_mut(LONGEST).map(vector).collect();
            let header = |vector: &mut libc::iovec| {
                // SAFETY: an all-zero mmsghdr is a valid one: integers and null pointers.
                let mut header: libc::mmsghdr = unsafe { std::mem::zeroed() };
                (header.msg_hdr.msg_iov, header.msg_hdr.msg_iovlen) = (vector, 1);
                header
            };
            let headers = vectors.iter_mut().map(header).collect();
            let controls = vec![Control::default(); if gro { datagrams } else { 0 }];
            Self { buffers, headers, controls, _vectors: vectors }
        }

        /// One recvfrom for one datagram, else one recvmmsg that waits for the first only.
        pub(super) fn receive(&mut self, socket: &UdpSocket, mut each: impl FnMut(&[u8])) -> io::Result<()> {
            if self.headers.len() == 1 && self.controls.is_empty() {
                let (length, _) = socket.recv_from(&mut self.buffers)?;
                each(&self.buffers[..length]);
                return Ok(());
            }
            for (header, control) in self.headers.iter_mut().zip(&mut self.controls) {
                header.msg_hdr.msg_control = control.as_mut_ptr().cast();
                header.msg_hdr.msg_controllen = size_of::<Control>();
            }
            let (headers, count) = (self.headers.as_mut_ptr(), self.headers.len() as u32);
            let (flags, forever) = (libc::MSG_WAITFORONE, std::ptr::null_mut());
            // SAFETY: the headers and what they point to are ours and live across the call; no timespec.
            let count = unsafe { libc::recvmmsg(socket.as_raw_fd(), headers, count, flags, forever) };
            let count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
            for (buffer, header) in self.buffers.chunks(LONGEST).zip(&self.headers[..count]) {
                let bytes = &buffer[..header.msg_len as usize];
                match segment(&header.msg_hdr) {
                    None => each(bytes),
                    Some(length) => bytes.chunks(length).for_each(&mut each),
                }
            }
            Ok(())
        }
    }

    /// How long each of several merged datagrams is but the last (`udp_cmsg_recv`).
    fn segment(header: &libc::msghdr) -> Option<usize> {
        // SAFETY: control and its length are what the kernel left; the message is an int when it is of this type.
        unsafe {
            let message = libc::CMSG_FIRSTHDR(header).as_ref()?;
            let found = (message.cmsg_level, message.cmsg_type) == (libc::SOL_UDP, libc::UDP_GRO);
            let length = found.then(|| libc::CMSG_DATA(message).cast::<i32>().read_unaligned())?;
            usize::try_from(length).ok().filter(|length| *length > 0)
        }
    }

    pub(super) fn set_gro(socket: &UdpSocket) -> io::Result<()> {
        set_at(socket, libc::SOL_UDP, libc::UDP_GRO, 1)
    }

    /// Beyond net.core.rmem_max where that is allowed.
    pub(super) fn set_receive_buffer(socket: &UdpSocket, bytes: i32) -> io::Result<()> {
        set(socket, libc::SO_RCVBUFFORCE, bytes).or_else(|_| set(socket, libc::SO_RCVBUF, bytes))
    }

    /// Reads run the driver, in preference to its interrupts.
    pub(super) fn set_busy_poll(socket: &UdpSocket, us: i32) -> io::Result<()> {
        const NAPI_POLL_WEIGHT: i32 = 64;
        set(socket, libc::SO_PREFER_BUSY_POLL, 1)?;
        set(socket, libc::SO_BUSY_POLL_BUDGET, NAPI_POLL_WEIGHT)?;
        set(socket, libc::SO_BUSY_POLL, us)
    }

    fn set(socket: &UdpSocket, option: i32, value: i32) -> io::Result<()> {
        set_at(socket, libc::SOL_SOCKET, option, value)
    }

    fn set_at(socket: &UdpSocket, level: i32, option: i32, value: i32) -> io::Result<()> {
        // SAFETY: passes a pointer to an int that outlives the call, and its size.
        let result =
            unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const value).cast(), 4) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Without SA_RESTART: a blocking call returns and the loop sees the flag.
    pub(super) fn stop_on_sigterm() {
        extern "C" fn stop(_: libc::c_int) {
            STOP.store(true, Ordering::Relaxed);
        }
        // SAFETY: an all-zero sigaction is a valid one; the handler only stores to an atomic.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = stop as extern "C" fn(libc::c_int) as usize;
            libc::sigaction(libc::SIGTERM, &raw const action, std::ptr::null_mut());
        }
    }
}
