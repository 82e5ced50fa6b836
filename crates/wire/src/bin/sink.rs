//! `hoist-sink`: the program under test, a blocking recvfrom loop that knows nothing of Hoist.
//!
//! `hoist-sink ADDRESS:PORT [--seconds N] [--idle-ms N] [--rcvbuf BYTES]` prints `ready`, receives, and ends
//! after N seconds, or when nothing has come for the idle time after a first datagram, or on SIGTERM. Then it
//! prints one line of JSON: datagrams, bytes, what the stamps tell, its CPU time from the first datagram on.

#![deny(unsafe_code)]

use std::{
    env,
    io::{ErrorKind, Write},
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
    let socket = UdpSocket::bind(options.address).map_err(|e| format!("bind {}: {e}", options.address))?;
    if let Some(bytes) = options.rcvbuf {
        sys::set_receive_buffer(&socket, bytes).map_err(|e| format!("setsockopt SO_RCVBUF {bytes}: {e}"))?;
    }
    socket.set_read_timeout(Some(options.idle)).map_err(|e| format!("setsockopt SO_RCVTIMEO: {e}"))?;
    sys::stop_on_sigterm();
    say("ready")?;
    let tally = receive(&socket, &options).map_err(|e| format!("recvfrom: {e}"))?;
    say(&tally.json())
}

struct Options {
    address: SocketAddr,
    seconds: f64,
    idle: Duration,
    rcvbuf: Option<i32>,
}

impl Options {
    fn parse(mut args: impl Iterator<Item = String>) -> Result<Self, String> {
        let usage = "usage: hoist-sink ADDRESS:PORT [--seconds N] [--idle-ms N] [--rcvbuf BYTES]";
        let address = args.next().and_then(|address| address.parse().ok()).ok_or(usage)?;
        let mut options =
            Self { address, seconds: f64::INFINITY, idle: Duration::from_millis(200), rcvbuf: None };
        while let Some(name) = args.next() {
            let value: u32 = args.next().and_then(|value| value.parse().ok()).ok_or(usage)?;
            match name.as_str() {
                "--seconds" => options.seconds = value.into(),
                "--idle-ms" => options.idle = Duration::from_millis(value.max(1).into()),
                "--rcvbuf" => options.rcvbuf = Some(value as i32),
                _ => return Err(usage.into()),
            }
        }
        Ok(options)
    }
}

static STOP: AtomicBool = AtomicBool::new(false);

fn receive(socket: &UdpSocket, options: &Options) -> std::io::Result<Tally> {
    let mut buffer = [0; 65536];
    let mut tally = Tally::default();
    let start = Instant::now();
    while !STOP.load(Ordering::Relaxed) {
        match socket.recv_from(&mut buffer) {
            Ok((length, _)) => tally.count(&buffer[..length]),
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) if e.kind() == ErrorKind::WouldBlock && tally.packets > 0 => break,
            Err(e) if e.kind() == ErrorKind::WouldBlock => {}
            Err(e) => return Err(e),
        }
        if tally.packets.is_multiple_of(CLOCK_EVERY) && start.elapsed().as_secs_f64() >= options.seconds {
            break;
        }
    }
    tally.end();
    Ok(tally)
}

const CLOCK_EVERY: u64 = 64; // datagrams: a clock read for each would be a cost of its own

#[derive(Default)]
struct Tally {
    packets: u64,
    bytes: u64,
    unstamped: u64,
    reordered: u64,
    next: Vec<u64>, // by flow
    first: Option<(Instant, u64)>,
    last: Option<Instant>,
    cpu_ns: u64,
}

impl Tally {
    fn count(&mut self, payload: &[u8]) {
        if self.packets.is_multiple_of(CLOCK_EVERY) {
            let now = Instant::now();
            self.first.get_or_insert_with(|| (now, sys::process_cpu_ns()));
            self.last = Some(now);
        }
        self.packets += 1;
        self.bytes += payload.len() as u64;
        match stamp(payload) {
            Some((flow, seq)) => self.order(flow as usize, seq),
            None => self.unstamped += 1,
        }
    }

    fn order(&mut self, flow: usize, seq: u64) {
        if flow >= self.next.len() {
            self.next.resize(flow + 1, 0);
        }
        if seq < self.next[flow] {
            self.reordered += 1;
        } else {
            self.next[flow] = seq + 1;
        }
    }

    fn end(&mut self) {
        if let Some((_, before)) = self.first {
            self.cpu_ns = sys::process_cpu_ns().saturating_sub(before);
        }
    }

    fn json(&self) -> String {
        let seconds = match (self.first, self.last) {
            (Some((first, _)), Some(last)) => last.duration_since(first).as_secs_f64(),
            _ => 0.0,
        };
        let flows = self.next.iter().filter(|next| **next > 0).count();
        format!(
            r#"{{"packets":{},"bytes":{},"unstamped":{},"reordered":{},"flows":{flows},"seconds":{seconds:.6},"cpu_ns":{}}}"#,
            self.packets, self.bytes, self.unstamped, self.reordered, self.cpu_ns
        )
    }
}

/// Flow and sequence number of a datagram of the generator: 22 bytes, little-endian.
fn stamp(payload: &[u8]) -> Option<(u32, u64)> {
    let bytes: &[u8; 22] = payload.get(..22)?.try_into().ok()?;
    let flow = u32::from_le_bytes([bytes[2], bytes[3], bytes[4], bytes[5]]);
    let seq = u64::from_le_bytes(bytes[6..14].try_into().ok()?);
    (bytes[..2] == [0x48, 0x77] && flow < 1 << 24).then_some((flow, seq))
}

fn say(line: &str) -> Result<(), String> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush()).map_err(|e| format!("writing to standard output: {e}"))
}

#[allow(unsafe_code)]
mod sys {
    use super::{STOP, UdpSocket};
    use std::{io, os::fd::AsRawFd, sync::atomic::Ordering};

    /// Beyond net.core.rmem_max where that is allowed.
    pub(super) fn set_receive_buffer(socket: &UdpSocket, bytes: i32) -> io::Result<()> {
        let set = |option| {
            // SAFETY: passes a pointer to an int that outlives the call, and its size.
            let result = unsafe {
                libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, option, (&raw const bytes).cast(), 4)
            };
            if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
        };
        set(libc::SO_RCVBUFFORCE).or_else(|_| set(libc::SO_RCVBUF))
    }

    /// Without SA_RESTART: recvfrom returns and the loop sees the flag.
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

    /// CPU time of all threads in nanoseconds.
    pub(super) fn process_cpu_ns() -> u64 {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: writes to a timespec that outlives the call.
        unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) };
        time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
    }
}
