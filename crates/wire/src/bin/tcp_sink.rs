//! `hoist-tcp-sink`: the program under test, a blocking recv loop a connection that knows nothing of Hoist.
//!
//! `hoist-tcp-sink ADDRESS:PORT [options]` prints `ready`, accepts, receives, and ends when every connection has
//! ended, when nothing has come for the idle time after a first byte, after N seconds, or on SIGTERM. Then it prints
//! one line of JSON: bytes, recv calls, what the stream tells, its CPU time from the first byte on.

#![deny(unsafe_code)]

#[path = "../check.rs"]
mod check;

use check::Check;
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    time::{ClockId, clock_gettime},
};
use std::{
    env,
    io::{self, ErrorKind, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::AsFd,
    process::ExitCode,
    sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("hoist-tcp-sink: {why}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), String> {
    let options = Options::parse(env::args().skip(1))?;
    let address = options.address;
    let listener = TcpListener::bind(address).map_err(|e| format!("bind {address}: {e}"))?;
    if options.rcvbuf > 0 {
        sys::set_receive_buffer(&listener, options.rcvbuf)
            .map_err(|e| format!("setsockopt SO_RCVBUF: {e}"))?;
    }
    sys::stop_on_sigterm();
    say("ready")?;
    let tally = if options.connections == 1 { alone(&listener, &options) } else { many(&listener, &options) };
    let tally = tally.map_err(|e| format!("receiving: {e}"))?;
    say(&tally.json(options.connections))
}

const USAGE: &str =
    "usage: hoist-tcp-sink ADDRESS:PORT [--connections N] [--seconds N] [--idle-ms N] [--buffer BYTES]
  [--rcvbuf BYTES] [--rcvlowat BYTES] [--busy-poll US] [--verify [--segment BYTES]]";

struct Options {
    address: SocketAddr,
    connections: u32,
    seconds: Option<Duration>, // from the first byte on
    idle: Duration,
    buffer: usize,
    rcvbuf: i32, // 0: as it is
    rcvlowat: i32,
    busy_poll_us: i32,
    verify: bool,
    segment: usize,
}

impl Options {
    fn parse(mut args: impl Iterator<Item = String>) -> Result<Self, String> {
        let address = args.next().and_then(|address| address.parse().ok()).ok_or(USAGE)?;
        let mut options = Self::at(address);
        while let Some(name) = args.next() {
            if name == "--verify" {
                options.verify = true;
                continue;
            }
            let value = args.next().and_then(|value| value.parse().ok()).ok_or(USAGE)?;
            options.set(&name, value).ok_or(USAGE)?;
        }
        Ok(options)
    }

    fn at(address: SocketAddr) -> Self {
        Self {
            address,
            connections: 1,
            seconds: None,
            idle: Duration::from_secs(2),
            buffer: 65536,
            rcvbuf: 0,
            rcvlowat: 0,
            busy_poll_us: 0,
            verify: false,
            segment: 1448,
        }
    }

    fn set(&mut self, name: &str, value: i32) -> Option<()> {
        let positive = usize::try_from(value).ok().filter(|value| *value > 0)?;
        match name {
            "--connections" => self.connections = value as u32,
            "--seconds" => self.seconds = Some(Duration::from_secs(positive as u64)),
            "--idle-ms" => self.idle = Duration::from_millis(positive as u64),
            "--buffer" => self.buffer = positive,
            "--rcvbuf" => self.rcvbuf = value,
            "--rcvlowat" => self.rcvlowat = value,
            "--busy-poll" => self.busy_poll_us = value,
            "--segment" if positive > 8 => self.segment = positive,
            _ => return None,
        }
        Some(())
    }
}

static STOP: AtomicBool = AtomicBool::new(false);

fn alone(listener: &TcpListener, options: &Options) -> io::Result<Tally> {
    accept(listener)?.map_or_else(|| Ok(Tally::default()), |stream| receive(stream, options))
}

fn many(listener: &TcpListener, options: &Options) -> io::Result<Tally> {
    thread::scope(|scope| {
        let mut threads = Vec::new();
        for _ in 0..options.connections {
            let Some(stream) = accept(listener)? else { break };
            threads.push(scope.spawn(|| receive(stream, options)));
        }
        let tallies = threads.into_iter().map(|thread| match thread.join() {
            Ok(tally) => tally,
            Err(panic) => std::panic::resume_unwind(panic),
        });
        tallies.reduce(|sum, one| Ok(sum?.and(&one?))).unwrap_or_else(|| Ok(Tally::default()))
    })
}

/// None when told to stop: std's accept would go on waiting after a signal.
fn accept(listener: &TcpListener) -> io::Result<Option<TcpStream>> {
    while !STOP.load(Ordering::Relaxed) {
        match poll(&mut [PollFd::new(listener.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE) {
            Err(Errno::EINTR) => {}
            other => {
                other?;
                return Ok(Some(listener.accept()?.0));
            }
        }
    }
    Ok(None)
}

fn receive(mut stream: TcpStream, options: &Options) -> io::Result<Tally> {
    sys::prepare(&stream, options)?;
    stream.set_read_timeout(Some(LOOK_UP))?;
    let mut buffer = vec![0; options.buffer];
    let mut stream_check = options.verify.then(|| Check::of_segments(options.segment));
    let mut tally = Tally::default();
    tally.end = loop {
        match stream.read(&mut buffer) {
            Ok(0) => break End::Eof,
            Ok(length) => {
                tally.count(length);
                if let Some(check) = &mut stream_check {
                    check.take(&buffer[..length]);
                }
            }
            Err(e) if e.kind() == ErrorKind::ConnectionReset => break End::Reset,
            Err(e) if matches!(e.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock) => {
                tally.now = Instant::now();
            }
            Err(e) => return Err(e),
        }
        if tally.is_over(options) {
            break End::Stopped;
        }
    };
    tally.errors = stream_check.map_or(0, |check| check.errors);
    tally.out_of_order = sys::out_of_order(&stream)?.into();
    Ok(tally)
}

const LOOK_UP: Duration = Duration::from_millis(100);
const CLOCK_EVERY: u64 = 16; // calls: a clock read for each would be a cost of its own

#[derive(Clone, Copy, PartialEq)]
enum End {
    Eof,
    Reset,
    Stopped,
}

/// What has been received, of one connection or several.
struct Tally {
    bytes: u64,
    calls: u64,
    errors: u64,
    out_of_order: u64,
    eof: u32,
    reset: u32,
    end: End,
    now: Instant,
    last: Option<Instant>,
}

impl Default for Tally {
    fn default() -> Self {
        let now = Instant::now();
        Self {
            bytes: 0,
            calls: 0,
            errors: 0,
            out_of_order: 0,
            eof: 0,
            reset: 0,
            end: End::Stopped,
            now,
            last: None,
        }
    }
}

/// When the first byte of all came, and what CPU time the process had used by then.
static FIRST: OnceLock<(Instant, u64)> = OnceLock::new();

impl Tally {
    fn count(&mut self, length: usize) {
        if self.calls.is_multiple_of(CLOCK_EVERY) {
            self.now = Instant::now();
            self.last = Some(self.now);
            FIRST.get_or_init(|| (self.now, process_cpu_ns()));
        }
        self.calls += 1;
        self.bytes += length as u64;
    }

    fn is_over(&self, options: &Options) -> bool {
        let since = |then: &Instant| self.now.saturating_duration_since(*then);
        let late =
            || FIRST.get().zip(options.seconds).is_some_and(|((first, _), limit)| since(first) >= limit);
        let idle = || self.last.as_ref().is_some_and(|last| since(last) >= options.idle);
        STOP.load(Ordering::Relaxed) || late() || idle()
    }

    fn and(mut self, other: &Self) -> Self {
        self.bytes += other.bytes;
        self.calls += other.calls;
        self.errors += other.errors;
        self.out_of_order += other.out_of_order;
        self.eof = self.eofs() + other.eofs();
        self.reset = self.resets() + other.resets();
        self.end = End::Stopped;
        self.last = self.last.max(other.last);
        self
    }

    fn eofs(&self) -> u32 {
        self.eof + u32::from(self.end == End::Eof)
    }

    fn resets(&self) -> u32 {
        self.reset + u32::from(self.end == End::Reset)
    }

    fn json(&self, connections: u32) -> String {
        let (seconds, cpu_ns) = match (FIRST.get(), self.last) {
            (Some((first, cpu_ns)), Some(last)) => (
                last.saturating_duration_since(*first).as_secs_f64(),
                process_cpu_ns().saturating_sub(*cpu_ns),
            ),
            _ => (0.0, 0),
        };
        format!(
            r#"{{"bytes":{},"seconds":{seconds:.6},"cpu_ns":{cpu_ns},"calls":{},"errors":{},"out_of_order":{},"connections":{connections},"eof":{},"reset":{}}}"#,
            self.bytes,
            self.calls,
            self.errors,
            self.out_of_order,
            self.eofs(),
            self.resets()
        )
    }
}

/// Prints a line at once.
fn say(line: &str) -> Result<(), String> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush()).map_err(|e| format!("writing to standard output: {e}"))
}

/// CPU time of all threads in nanoseconds.
fn process_cpu_ns() -> u64 {
    clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).map_or(0, |time| Duration::from(time).as_nanos() as u64)
}

#[allow(unsafe_code)]
mod sys {
    use super::{Options, STOP};
    use std::{io, net::TcpStream, os::fd::AsRawFd, sync::atomic::Ordering};

    fn set(socket: &impl AsRawFd, option: i32, value: i32) -> io::Result<()> {
        // SAFETY: passes a pointer to an int that outlives the call, and its size.
        let result = unsafe {
            libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, option, (&raw const value).cast(), 4)
        };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Beyond net.core.rmem_max where that is allowed.
    pub(super) fn set_receive_buffer(socket: &impl AsRawFd, bytes: i32) -> io::Result<()> {
        set(socket, libc::SO_RCVBUFFORCE, bytes).or_else(|_| set(socket, libc::SO_RCVBUF, bytes))
    }

    pub(super) fn prepare(stream: &TcpStream, options: &Options) -> io::Result<()> {
        if options.rcvlowat > 0 {
            set(stream, libc::SO_RCVLOWAT, options.rcvlowat)?;
        }
        if options.busy_poll_us > 0 {
            set(stream, libc::SO_BUSY_POLL, options.busy_poll_us)?;
            set(stream, libc::SO_PREFER_BUSY_POLL, 1)?;
            set(stream, libc::SO_BUSY_POLL_BUDGET, 64)?;
        }
        Ok(())
    }

    /// Segments that came out of order: tcpi_rcv_ooopack, at byte 224 (Linux 5.4).
    pub(super) fn out_of_order(stream: &TcpStream) -> io::Result<u32> {
        let mut words = [0u32; 57];
        let mut length = size_of_val(&words) as u32;
        // SAFETY: the kernel writes at most `length` bytes to words of that length; any bytes make a valid u32.
        let result = unsafe {
            let to = words.as_mut_ptr().cast();
            libc::getsockopt(stream.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_INFO, to, &raw mut length)
        };
        if result == 0 { Ok(words[56]) } else { Err(io::Error::last_os_error()) }
    }

    /// Without SA_RESTART: recv returns and the loop sees the flag.
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
