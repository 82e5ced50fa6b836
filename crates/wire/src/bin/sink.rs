//! `hoist-sink`: the program under test, a blocking recvfrom loop that knows nothing of Hoist.
//!
//! `hoist-sink ADDRESS:PORT [--seconds N] [--idle-ms N] [--rcvbuf BYTES]` prints `ready`, receives, and ends
//! after N seconds, or when nothing has come for the idle time after a first datagram, or on SIGTERM. Then it
//! prints one line of JSON: datagrams, bytes, what the stamps tell, its CPU time from the first datagram on.

#![deny(unsafe_code)]

#[path = "../tally.rs"]
mod tally;

use tally::{CLOCK_EVERY, Tally, say};

use std::{
    env,
    io::ErrorKind,
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
}
