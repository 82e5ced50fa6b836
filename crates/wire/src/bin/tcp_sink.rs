//! `hoist-tcp-sink`: the program under test, a blocking recv loop a connection that knows nothing of Hoist.
//!
//! `hoist-tcp-sink ADDRESS:PORT [options]` prints `ready`, accepts, receives, and ends when every connection has
//! ended, when nothing has come for the idle time after a first byte, after N seconds, or on SIGTERM. Then it prints
//! one line of JSON: bytes, recv calls, what the stream tells, its CPU time from the first byte on.
//!
//! What a program can do for itself: `--rcvbuf`, `--rcvlowat`; `--busy-poll US` has reads run the driver, `--epoll-busy-poll US`
//! has epoll_wait do so (EPIOCSPARAMS). `--chunks` takes the payload where it lies, by Hoist's hoist_recv_chunk, or fails where that is
//! not loaded.

#![deny(unsafe_code)]

#[path = "../check.rs"]
mod check;

use check::Check;
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
        resource::{UsageWho, getrusage},
        time::TimeValLike,
    },
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
    if options.chunks {
        sys::Chunks::find(options.buffer).map_err(|e| e.to_string())?;
    }
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
  [--rcvbuf BYTES] [--rcvlowat BYTES] [--busy-poll US | --epoll-busy-poll US] [--chunks] [--verify [--segment BYTES]]";

struct Options {
    address: SocketAddr,
    connections: u32,
    seconds: Option<Duration>, // from the first byte on
    idle: Duration,
    buffer: usize,
    rcvbuf: i32, // 0: as it is
    rcvlowat: i32,
    busy_poll_us: i32,
    epoll_busy_poll_us: i32,
    chunks: bool,
    verify: bool,
    segment: usize,
}

impl Options {
    fn parse(mut args: impl Iterator<Item = String>) -> Result<Self, String> {
        let address = args.next().and_then(|address| address.parse().ok()).ok_or(USAGE)?;
        let mut options = Self::at(address);
        while let Some(name) = args.next() {
            match name.as_str() {
                "--verify" => options.verify = true,
                "--chunks" => options.chunks = true,
                _ => {
                    let value = args.next().and_then(|value| value.parse().ok()).ok_or(USAGE)?;
                    options.set(&name, value).ok_or(USAGE)?;
                }
            }
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
            epoll_busy_poll_us: 0,
            chunks: false,
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
            "--epoll-busy-poll" => self.epoll_busy_poll_us = value,
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

/// How a stream is read: one call a piece.
struct Reader {
    stream: TcpStream,
    into: Target,
    waits: Option<Epoll>,
    is_drained: bool,
}

/// Where a piece goes.
enum Target {
    Buffer(Vec<u8>),
    Nowhere(sys::Chunks),
}

impl Reader {
    fn new(stream: TcpStream, options: &Options) -> io::Result<Self> {
        sys::prepare(&stream, options)?;
        stream.set_read_timeout(Some(LOOK_UP))?;
        let into = match options.chunks {
            true => Target::Nowhere(sys::Chunks::find(options.buffer)?),
            false => Target::Buffer(vec![0; options.buffer]),
        };
        let waits = (options.epoll_busy_poll_us > 0)
            .then(|| polling(&stream, options.epoll_busy_poll_us as u32))
            .transpose()?;
        Ok(Self { stream, into, waits, is_drained: true })
    }

    /// Hands over the next piece and tells its length; 0 is the end of the stream.
    fn read(&mut self, piece: impl FnOnce(&[u8])) -> io::Result<usize> {
        if let Some(epoll) = self.waits.as_ref().filter(|_| self.is_drained) {
            let timeout = EpollTimeout::try_from(LOOK_UP).unwrap_or(EpollTimeout::MAX);
            if epoll.wait(&mut [EpollEvent::empty()], timeout)? == 0 {
                return Err(ErrorKind::WouldBlock.into());
            }
        }
        match &mut self.into {
            Target::Nowhere(chunks) => chunks.read(&self.stream, piece),
            Target::Buffer(buffer) => {
                let length = self.stream.read(buffer)?;
                self.is_drained = length < buffer.len();
                piece(&buffer[..length]);
                Ok(length)
            }
        }
    }
}

/// An epoll instance on the stream whose epoll_wait runs the driver.
fn polling(stream: &TcpStream, us: u32) -> io::Result<Epoll> {
    stream.set_nonblocking(true)?;
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    epoll.add(stream, EpollEvent::new(EpollFlags::EPOLLIN, 0))?;
    sys::set_epoll_busy_poll(&epoll.0, us)?;
    Ok(epoll)
}

fn receive(stream: TcpStream, options: &Options) -> io::Result<Tally> {
    let mut reader = Reader::new(stream, options)?;
    let mut stream_check = options.verify.then(|| Check::of_segments(options.segment));
    let mut tally = Tally::default();
    tally.end = loop {
        let check = |bytes: &[u8]| stream_check.iter_mut().for_each(|check| check.take(bytes));
        match reader.read(check) {
            Ok(0) => break End::Eof,
            Ok(length) => tally.count(length),
            Err(e) if e.kind() == ErrorKind::ConnectionReset => break End::Reset,
            Err(e) if matches!(e.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock) => {
                tally.now = Instant::now();
                reader.is_drained = true;
            }
            Err(e) => return Err(e),
        }
        if tally.is_over(options) {
            break End::Stopped;
        }
    };
    tally.errors = stream_check.map_or(0, |check| check.errors);
    tally.out_of_order = sys::out_of_order(&reader.stream)?.into();
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
static FIRST: OnceLock<(Instant, Cpu)> = OnceLock::new();

impl Tally {
    fn count(&mut self, length: usize) {
        if self.calls.is_multiple_of(CLOCK_EVERY) {
            self.now = Instant::now();
            self.last = Some(self.now);
            FIRST.get_or_init(|| (self.now, Cpu::now()));
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
        let (seconds, cpu) = match (FIRST.get(), self.last) {
            (Some((first, cpu)), Some(last)) => {
                (last.saturating_duration_since(*first).as_secs_f64(), Cpu::now().since(cpu))
            }
            _ => (0.0, Cpu::default()),
        };
        let Cpu { all_ns, user_ns } = cpu;
        let system_ns = all_ns.saturating_sub(user_ns);
        format!(
            r#"{{"bytes":{},"seconds":{seconds:.6},"cpu_ns":{all_ns},"user_ns":{user_ns},"system_ns":{system_ns},"calls":{},"errors":{},"out_of_order":{},"connections":{connections},"eof":{},"reset":{}}}"#,
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
#[derive(Clone, Copy, Default)]
struct Cpu {
    all_ns: u64,
    /// Of it outside the kernel, as far as its ticks tell (`cputime_adjust`).
    user_ns: u64,
}

impl Cpu {
    fn now() -> Self {
        let all = clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID);
        let user = getrusage(UsageWho::RUSAGE_SELF).map(|usage| usage.user_time());
        Self {
            all_ns: all.map_or(0, |time| Duration::from(time).as_nanos() as u64),
            user_ns: user.map_or(0, |time| time.num_microseconds() as u64 * 1000),
        }
    }

    fn since(self, then: &Self) -> Self {
        Self {
            all_ns: self.all_ns.saturating_sub(then.all_ns),
            user_ns: self.user_ns.saturating_sub(then.user_ns),
        }
    }
}

#[allow(unsafe_code)]
mod sys {
    use super::{Options, STOP};
    use std::{
        ffi::{CStr, c_int, c_void},
        io,
        net::TcpStream,
        os::fd::{AsFd, AsRawFd},
        sync::atomic::Ordering,
    };

    /// `struct hoist_chunk`: received bytes where they lie.
    #[repr(C)]
    struct Chunk {
        data: *const u8,
        len: usize,
        owner: [usize; 2],
    }

    type Receive = unsafe extern "C" fn(c_int, *mut Chunk, usize, c_int) -> isize;
    type Release = unsafe extern "C" fn(*mut Chunk);

    /// Hoist's own calls, found in the process.
    pub(super) struct Chunks {
        receive: Receive,
        release: Release,
        most: usize,
    }

    impl Chunks {
        /// Chunks of `most` bytes at most.
        pub(super) fn find(most: usize) -> io::Result<Self> {
            let (receive, release) = (symbol(c"hoist_recv_chunk")?, symbol(c"hoist_release_chunk")?);
            // SAFETY: the two symbols are functions of these types.
            unsafe {
                Ok(Self {
                    receive: std::mem::transmute::<*mut c_void, Receive>(receive),
                    release: std::mem::transmute::<*mut c_void, Release>(release),
                    most,
                })
            }
        }

        /// As a blocking read, but the piece is given back once it has been looked at.
        pub(super) fn read(&self, stream: &TcpStream, piece: impl FnOnce(&[u8])) -> io::Result<usize> {
            let mut chunk = Chunk { data: std::ptr::null(), len: 0, owner: [0; 2] };
            // SAFETY: the call fills a chunk of ours.
            let length = unsafe { (self.receive)(stream.as_raw_fd(), &raw mut chunk, self.most, 0) };
            let length = usize::try_from(length).map_err(|_| io::Error::last_os_error())?;
            if length > 0 {
                // SAFETY: until it is released the chunk is `len` bytes at `data`, and it is released once.
                unsafe {
                    piece(std::slice::from_raw_parts(chunk.data, chunk.len));
                    (self.release)(&raw mut chunk);
                }
            }
            Ok(length)
        }
    }

    fn symbol(name: &CStr) -> io::Result<*mut c_void> {
        // SAFETY: a C string.
        let symbol = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
        if symbol.is_null() {
            let why = format!("no {} in this process, as there is under hoist run", name.to_string_lossy());
            return Err(io::Error::new(io::ErrorKind::NotFound, why));
        }
        Ok(symbol)
    }

    /// epoll_wait runs the driver for so long, in preference to its interrupts (Linux 6.9, `ep_eventpoll_bp_ioctl`).
    pub(super) fn set_epoll_busy_poll(epoll: &impl AsFd, us: u32) -> io::Result<()> {
        /// `struct epoll_params`.
        #[repr(C)]
        struct Params {
            busy_poll_usecs: u32,
            busy_poll_budget: u16,
            prefer_busy_poll: u8,
            pad: u8,
        }
        const EPIOCSPARAMS: libc::c_ulong = 0x4008_8a01;
        let params = Params { busy_poll_usecs: us, busy_poll_budget: 64, prefer_busy_poll: 1, pad: 0 };
        // SAFETY: passes a pointer to an epoll_params that outlives the call.
        let result = unsafe { libc::ioctl(epoll.as_fd().as_raw_fd(), EPIOCSPARAMS as _, &raw const params) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

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
