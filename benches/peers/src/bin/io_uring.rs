//! `peer-io-uring`: a UDP socket read by io_uring, multishot recvmsg into provided buffers.
//!
//! `peer-io-uring DEVICE PORT [--seconds N] [--idle-ms N] [--rcvbuf BYTES]`. The socket is an ordinary one on the wildcard address:
//! DEVICE is not used.

#![deny(unsafe_code)]

#[path = "../../../../crates/wire/src/tally.rs"]
#[allow(dead_code, reason = "no peer looks at delays")]
mod tally;

use hoist_peers::{options::Options, stop, tap};
use io_uring::{
    IoUring, cqueue, opcode,
    types::{CancelBuilder, Fd, RecvMsgOut, SubmitArgs, Timespec},
};
use pool::Pool;
use std::{
    env,
    error::Error,
    io,
    net::{Ipv4Addr, UdpSocket},
    os::fd::AsRawFd,
    process::ExitCode,
    time::Instant,
};
use tally::{Tally, say};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("peer-io-uring: {why}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let options = Options::parse(env::args().skip(1), &["--rcvbuf"])?;
    stop::on_sigterm();
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, options.port))
        .map_err(|e| format!("bind to port {}: {e}", options.port))?;
    if let Some(bytes) = options.own("--rcvbuf") {
        tap::set(&socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, &bytes)?;
    }
    let mut receiver = Receiver::new(socket).map_err(|e| format!("io_uring: {e}: needs Linux 6.1"))?;
    receiver.arm()?;
    receiver.ring.submit()?;
    say("ready")?;
    let tally = receiver.receive(&options)?;
    receiver.disarm(&options)?;
    Ok(say(&tally.json())?)
}

const GROUP: u16 = 0;
const COMPLETIONS: u32 = 4096;

struct Receiver {
    ring: IoUring,
    pool: Pool,
    socket: UdpSocket,
    message: Box<libc::msghdr>, // the kernel reads it while the request is armed
}

impl Receiver {
    fn new(socket: UdpSocket) -> io::Result<Self> {
        let mut builder = IoUring::builder();
        let ring = builder.setup_single_issuer().setup_defer_taskrun().setup_cqsize(COMPLETIONS).build(8)?;
        let pool = Pool::register(&ring, GROUP)?;
        Ok(Self { ring, pool, socket, message: pool::message_with_name() })
    }

    fn receive(&mut self, options: &Options) -> io::Result<Tally> {
        let (mut tally, start) = (Tally::default(), Instant::now());
        while !stop::asked() && start.elapsed().as_secs_f64() < options.seconds {
            let came = self.wait(options)?;
            if self.read(&mut tally)? {
                self.arm()?;
            }
            if !came && tally.packets > 0 {
                break;
            }
        }
        tally.end();
        Ok(tally)
    }

    /// Waits for a completion; false when none has come for the idle time.
    fn wait(&mut self, options: &Options) -> io::Result<bool> {
        let idle = Timespec::from(options.idle);
        let waited = self.ring.submitter().submit_with_args(1, &SubmitArgs::new().timespec(&idle));
        match waited.map_err(|e| (e.raw_os_error(), e)) {
            Err((Some(libc::ETIME), _)) => Ok(false),
            Err((Some(libc::EINTR | libc::EBUSY), _)) | Ok(_) => Ok(true),
            Err((_, error)) => Err(error),
        }
    }

    /// Counts what has completed; true when the request has ended and must be armed again.
    fn read(&mut self, tally: &mut Tally) -> io::Result<bool> {
        let mut ended = false;
        for completion in self.ring.completion() {
            ended |= !cqueue::more(completion.flags());
            let Some(buffer) = cqueue::buffer_select(completion.flags()) else {
                match completion.result() {
                    length if length >= 0 => continue,
                    error if -error == libc::ENOBUFS => continue, // armed again once they are back
                    error => return Err(io::Error::from_raw_os_error(-error)),
                }
            };
            let bytes = self.pool.buffer(buffer, completion.result() as usize);
            if let Ok(message) = RecvMsgOut::parse(bytes, &self.message) {
                tally.count(message.payload_data());
            }
            self.pool.give_back(buffer);
        }
        self.pool.publish();
        Ok(ended)
    }

    /// Ends the request, and with it the hold on the socket. Else the port stays taken until the kernel has torn the ring
    /// down, some time after the process has ended.
    fn disarm(&mut self, options: &Options) -> io::Result<()> {
        match self.ring.submitter().register_sync_cancel(None, CancelBuilder::any()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other?,
        }
        let ended =
            |ring: &mut IoUring| ring.completion().any(|completion| !cqueue::more(completion.flags()));
        while !ended(&mut self.ring) && self.wait(options)? {}
        Ok(())
    }

    #[allow(unsafe_code)]
    fn arm(&mut self) -> io::Result<()> {
        let request =
            opcode::RecvMsgMulti::new(Fd(self.socket.as_raw_fd()), &raw const *self.message, GROUP).build();
        // SAFETY: the socket and the boxed msghdr live as long as the ring does, and the msghdr has no pointers.
        unsafe { self.ring.submission().push(&request) }.map_err(io::Error::other)
    }
}

/// Buffers that the kernel picks from, and the ring that returns them (io_uring_register_buf_ring(3)).
#[allow(unsafe_code)]
mod pool {
    use io_uring::{IoUring, types::BufRingEntry};
    use std::{
        io, mem, ptr, slice,
        sync::atomic::{AtomicU16, Ordering},
    };

    const BUFFERS: u16 = 1024;
    const BUFFER_LEN: usize = 2048;

    pub(crate) struct Pool {
        entries: *mut BufRingEntry,
        buffers: *mut u8,
        tail: u16,
    }

    impl Pool {
        pub(crate) fn register(ring: &IoUring, group: u16) -> io::Result<Self> {
            let entries = map(usize::from(BUFFERS) * mem::size_of::<BufRingEntry>())?;
            let buffers = map(usize::from(BUFFERS) * BUFFER_LEN)?;
            // SAFETY: the entries are page-aligned, as many as told, and live until the process ends.
            unsafe { ring.submitter().register_buf_ring_with_flags(entries as u64, BUFFERS, group, 0)? };
            let mut pool = Self { entries: entries.cast(), buffers, tail: 0 };
            (0..BUFFERS).for_each(|buffer| pool.give_back(buffer));
            pool.publish();
            Ok(pool)
        }

        /// What the kernel wrote into a buffer that a completion named.
        pub(crate) fn buffer(&self, buffer: u16, length: usize) -> &[u8] {
            // SAFETY: the buffer lies in the mapping, and the kernel leaves it alone until it is given back, which
            // takes `self` mutably.
            unsafe { slice::from_raw_parts(self.place(buffer), length.min(BUFFER_LEN)) }
        }

        /// Offers a buffer again, from the next `publish` on.
        pub(crate) fn give_back(&mut self, buffer: u16) {
            let address = self.place(buffer) as u64;
            // SAFETY: the index is below the number of entries, and only this thread writes them. The tail, which shares
            // memory with the first entry, is not among the fields set.
            let entry = unsafe { &mut *self.entries.add(usize::from(self.tail % BUFFERS)) };
            entry.set_addr(address);
            entry.set_len(BUFFER_LEN as u32);
            entry.set_bid(buffer);
            self.tail = self.tail.wrapping_add(1);
        }

        fn place(&self, buffer: u16) -> *mut u8 {
            self.buffers.wrapping_add(usize::from(buffer % BUFFERS) * BUFFER_LEN)
        }

        /// Shows the kernel what was given back.
        pub(crate) fn publish(&self) {
            // SAFETY: the tail lies in the mapping and is aligned to its two bytes.
            let tail = unsafe { AtomicU16::from_ptr(BufRingEntry::tail(self.entries).cast_mut()) };
            tail.store(self.tail, Ordering::Release);
        }
    }

    /// Memory for as long as the process lives.
    fn map(length: usize) -> io::Result<*mut u8> {
        let (protection, flags) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: maps anew, where the kernel likes.
        match unsafe { libc::mmap(ptr::null_mut(), length, protection, flags, -1, 0) } {
            libc::MAP_FAILED => Err(io::Error::last_os_error()),
            memory => Ok(memory.cast()),
        }
    }

    /// A msghdr that asks for the sender's address, as recvfrom does.
    pub(crate) fn message_with_name() -> Box<libc::msghdr> {
        // SAFETY: an all-zero msghdr is a valid one.
        let mut message: libc::msghdr = unsafe { mem::zeroed() };
        message.msg_namelen = mem::size_of::<libc::sockaddr_in>() as u32;
        Box::new(message)
    }
}
