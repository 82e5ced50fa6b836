//! The peer's ends of TCP connections, each under a number that any conversation may name.
//!
//! What connection `n` sends is stream `n` of [`stream`], from position 0 on; what it gets is stream `!n`.

use crate::{
    peer::{Answer, DEADLINE, until_asleep},
    sock, stream,
};
use serde::{Deserialize, Serialize};
use std::{
    collections::HashMap,
    io::{Error, ErrorKind, Read, Result, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    os::fd::AsRawFd,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread::{sleep, yield_now},
    time::{Duration, Instant},
};

/// What a peer's end is told.
#[derive(Serialize, Deserialize, Debug)]
pub enum Do {
    /// Connect from anywhere; with an initial sequence number if one is given.
    Connect(SocketAddr, Option<u32>),
    /// Listen; no connection is meant.
    Listen(SocketAddr),
    /// Accept a connection from that listener.
    Accept(SocketAddr),
    /// Write the stream on, in writes of these sizes.
    Write {
        /// Each a call.
        sizes: Vec<usize>,
        /// Pause between the calls, µs.
        gap_us: u64,
        /// Wait until this thread sleeps in a system call.
        asleep: Option<i32>,
    },
    /// Write so much of the stream by `MSG_OOB`: its last byte is urgent.
    Urgent(usize),
    /// Wait until the other side has acknowledged everything.
    Arrived,
    /// Read so much and compare it with the stream that is expected.
    Read(usize),
    /// Read, and compare, until the end.
    End,
    /// `shutdown(2)` for writing.
    ShutdownWrite,
    /// Close.
    Close,
    /// Close with `SO_LINGER` 0: a RST. A thread that must be asleep first.
    Reset(Option<i32>),
    /// `setsockopt(2)` with an int.
    Set(i32, i32, i32),
}

/// The peer's ends.
#[derive(Default, Clone)]
pub struct Remotes {
    ends: Arc<Mutex<HashMap<u64, Arc<Remote>>>>,
    listeners: Arc<Mutex<HashMap<SocketAddr, Arc<TcpListener>>>>,
}

impl Remotes {
    pub(crate) fn carry_out(&self, number: u64, order: Do) -> Result<Answer> {
        match order {
            Do::Connect(to, isn) => return self.open(number, connect(to, isn)?),
            Do::Listen(at) => drop(self.listener(at)?),
            Do::Accept(at) => return self.open(number, accept(&*self.listener(at)?)?),
            Do::Close => drop(self.remove(number)?),
            Do::Reset(asleep) => {
                asleep.map_or(Ok(()), until_asleep)?;
                self.remove(number)?.reset()?;
            }
            other => return self.end(number)?.carry_out(other),
        }
        Ok(Answer::Done)
    }

    fn open(&self, number: u64, stream: TcpStream) -> Result<Answer> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(DEADLINE))?;
        stream.set_write_timeout(Some(DEADLINE))?;
        let local = stream.local_addr()?;
        let end = Remote { number, stream, written: AtomicU64::new(0), read: AtomicU64::new(0) };
        self.ends.lock().unwrap().insert(number, Arc::new(end));
        Ok(Answer::Opened(local))
    }

    fn listener(&self, at: SocketAddr) -> Result<Arc<TcpListener>> {
        let mut listeners = self.listeners.lock().unwrap();
        if let Some(listener) = listeners.get(&at) {
            return Ok(listener.clone());
        }
        let listener = Arc::new(TcpListener::bind(at)?);
        listeners.insert(at, listener.clone());
        Ok(listener)
    }

    fn end(&self, number: u64) -> Result<Arc<Remote>> {
        self.ends.lock().unwrap().get(&number).cloned().ok_or_else(|| unknown(number))
    }

    fn remove(&self, number: u64) -> Result<Arc<Remote>> {
        self.ends.lock().unwrap().remove(&number).ok_or_else(|| unknown(number))
    }
}

fn unknown(number: u64) -> Error {
    Error::new(ErrorKind::NotFound, format!("no connection {number}"))
}

struct Remote {
    number: u64,
    stream: TcpStream,
    written: AtomicU64,
    read: AtomicU64,
}

impl Remote {
    fn carry_out(&self, order: Do) -> Result<Answer> {
        match order {
            Do::Write { sizes, gap_us, asleep } => {
                asleep.map_or(Ok(()), until_asleep)?;
                sizes.iter().try_for_each(|&size| self.write(size, gap_us))?;
            }
            Do::Urgent(size) => self.urgent(size)?,
            Do::Arrived => self.until_arrived()?,
            Do::Read(len) => self.read(len)?,
            Do::End => return self.read_to_end(),
            Do::ShutdownWrite => self.stream.shutdown(Shutdown::Write)?,
            Do::Set(level, name, value) => sock::set(&self.stream, level, name, value)?,
            other => return Err(Error::new(ErrorKind::InvalidInput, format!("{other:?}"))),
        }
        Ok(Answer::Done)
    }

    fn next(&self, size: usize) -> Vec<u8> {
        stream::bytes(self.number, self.written.fetch_add(size as u64, Relaxed), size)
    }

    fn write(&self, size: usize, gap_us: u64) -> Result<()> {
        (&self.stream).write_all(&self.next(size))?;
        if gap_us > 0 {
            sleep(Duration::from_micros(gap_us));
        }
        Ok(())
    }

    fn urgent(&self, size: usize) -> Result<()> {
        let bytes = self.next(size);
        // SAFETY: pointer and length describe `bytes`.
        let sent = unsafe {
            let (fd, from) = (self.stream.as_raw_fd(), bytes.as_ptr().cast());
            libc::send(fd, from, bytes.len(), libc::MSG_OOB)
        };
        if sent == size as isize { Ok(()) } else { Err(Error::last_os_error()) }
    }

    fn until_arrived(&self) -> Result<()> {
        let start = Instant::now();
        while outq(&self.stream)? != 0 {
            if start.elapsed() > DEADLINE {
                return Err(Error::new(ErrorKind::TimedOut, "not acknowledged"));
            }
            yield_now();
        }
        Ok(())
    }

    fn read(&self, len: usize) -> Result<()> {
        let mut buffer = vec![0; len];
        (&self.stream).read_exact(&mut buffer)?;
        self.judge(&buffer)
    }

    fn judge(&self, bytes: &[u8]) -> Result<()> {
        let at = self.read.fetch_add(bytes.len() as u64, Relaxed);
        stream::judge(!self.number, at, bytes).map_err(Error::other)
    }

    fn read_to_end(&self) -> Result<Answer> {
        let (mut buffer, before) = (vec![0; 65_536], self.read.load(Relaxed));
        let errno = loop {
            match (&self.stream).read(&mut buffer) {
                Ok(0) => break 0,
                Ok(len) => self.judge(&buffer[..len])?,
                Err(error) => break error.raw_os_error().unwrap_or(-1),
            }
        };
        Ok(Answer::Ended { bytes: self.read.load(Relaxed) - before, errno })
    }

    fn reset(&self) -> Result<()> {
        let linger = libc::linger { l_onoff: 1, l_linger: 0 };
        sock::set(&self.stream, libc::SOL_SOCKET, libc::SO_LINGER, linger)
    }
}

/// Bytes written and not acknowledged (`SIOCOUTQ`).
fn outq(s: &impl AsRawFd) -> Result<i32> {
    let mut value = 0i32;
    // SAFETY: the request writes one int.
    sock::check(unsafe { libc::ioctl(s.as_raw_fd(), libc::TIOCOUTQ, &raw mut value) })?;
    Ok(value)
}

/// Connects; the initial sequence number is one that TCP_REPAIR has set before (`tcp_v4_connect` keeps `write_seq`).
pub fn connect(to: SocketAddr, isn: Option<u32>) -> Result<TcpStream> {
    let socket = sock::tcp_for(to)?;
    if let Some(isn) = isn {
        sock::set(&socket, libc::IPPROTO_TCP, libc::TCP_REPAIR, 1)?;
        sock::set(&socket, libc::IPPROTO_TCP, libc::TCP_REPAIR_QUEUE, 2)?; // TCP_SEND_QUEUE
        sock::set(&socket, libc::IPPROTO_TCP, libc::TCP_QUEUE_SEQ, isn)?;
        sock::set(&socket, libc::IPPROTO_TCP, libc::TCP_REPAIR, 0)?;
    }
    sock::connect(&socket, to).map_err(|e| Error::new(e.kind(), format!("connect {to}: {e}")))?;
    Ok(socket.into())
}

fn accept(listener: &TcpListener) -> Result<TcpStream> {
    if sock::events(listener, libc::POLLIN, DEADLINE.as_millis() as i32) == 0 {
        return Err(Error::new(ErrorKind::TimedOut, "nobody connects"));
    }
    Ok(listener.accept()?.0)
}
