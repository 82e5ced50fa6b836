//! `recv` and its kin on a stream that is, or was, lifted.

use super::{
    PUMPED,
    payload::Held,
    stream::{Guard, Stream},
    wait,
};
use crate::{
    chunk::{self, Chunk},
    driver,
    engine::{self, Memory},
    message::plausible,
    sys,
    wait::{Deadline, Woken},
};
use core::sync::atomic::Ordering::Relaxed;
use hoist_stream::{Kernel, Sink};
use hoist_sys::Errno;
use libc::{c_int, iovec, msghdr, sockaddr, socklen_t};

type Result<T> = core::result::Result<T, Errno>;

/// Ghosts that may wait to be discarded while the program reads on, bytes. Discarding them all at once is cheaper; more of them
/// narrow the window.
const UNDRAINED: u64 = 128 << 10;

/// Where a read goes.
#[derive(Clone, Copy)]
pub(crate) enum Target {
    One {
        base: *mut u8,
        len: usize,
    },
    Many {
        vector: *const iovec,
        count: usize,
    },
    /// MSG_TRUNC: nowhere.
    Nowhere {
        len: usize,
    },
}

impl Target {
    fn len(&self) -> usize {
        match *self {
            Self::One { len, .. } | Self::Nowhere { len } => len,
            Self::Many { .. } => self.pieces().fold(0, |sum, (_, len)| sum.saturating_add(len)),
        }
    }

    /// The buffers of a vector.
    fn pieces(&self) -> impl Iterator<Item = (*mut u8, usize)> {
        let (vector, count) = match *self {
            Self::Many { vector, count } => (vector, count),
            _ => (core::ptr::null(), 0),
        };
        // SAFETY: the program passed `count` entries, which `checked` has looked at.
        (0..count).map(move |i| unsafe { ((*vector.add(i)).iov_base.cast(), (*vector.add(i)).iov_len) })
    }

    /// A vector's part from `at` on, `len` bytes long, for the kernel.
    fn part(&self, mut at: usize, mut len: usize) -> Vec<iovec> {
        let mut part = Vec::new();
        for (base, room) in self.pieces() {
            if at >= room {
                at -= room;
                continue;
            }
            let take = (room - at).min(len);
            part.push(iovec { iov_base: base.wrapping_add(at).cast(), iov_len: take });
            (at, len) = (0, len - take);
            if len == 0 {
                break;
            }
        }
        part
    }

    /// Whether all of it could be the program's memory.
    fn checked(self) -> Result<Self> {
        let bad = match self {
            Self::One { base, len } => len > 0 && !plausible(base),
            Self::Many { vector, count } => {
                count > 0 && !plausible(vector)
                    || self.pieces().any(|(base, len)| len > 0 && !plausible(base))
            }
            Self::Nowhere { .. } => false,
        };
        if bad { Err(Errno(libc::EFAULT)) } else { Ok(self) }
    }
}

impl Sink for Target {
    #[inline]
    fn put(&mut self, at: usize, bytes: &[u8]) {
        match *self {
            // SAFETY: the program vouches for its buffer by the call's contract; reads never put more than its length.
            Self::One { base, .. } => unsafe {
                core::ptr::copy_nonoverlapping(bytes.as_ptr(), base.add(at), bytes.len());
            },
            Self::Nowhere { .. } => {}
            Self::Many { .. } => {
                let mut rest = bytes;
                for piece in self.part(at, bytes.len()) {
                    let (now, later) = rest.split_at(piece.iov_len.min(rest.len()));
                    // SAFETY: as above.
                    unsafe { core::ptr::copy_nonoverlapping(now.as_ptr(), piece.iov_base.cast(), now.len()) };
                    rest = later;
                }
            }
        }
    }
}

/// The kernel's socket.
pub(crate) struct Socket {
    pub(crate) fd: c_int,
    pub(crate) target: Target,
    /// Whether this call has asked how much is queued.
    asked: bool,
}

impl Socket {
    pub(crate) fn of(fd: c_int) -> Self {
        Self::with(fd, Target::Nowhere { len: 0 })
    }

    fn with(fd: c_int, target: Target) -> Self {
        Self { fd, target, asked: false }
    }
}

impl Kernel for Socket {
    type Error = Errno;

    #[inline]
    fn queued(&mut self) -> Result<u64> {
        self.asked = true;
        sys::queued(self.fd)
    }

    fn discard(&mut self, len: u64) -> Result<u64> {
        let (nobody, flags) = (core::ptr::null_mut(), libc::MSG_TRUNC | libc::MSG_DONTWAIT);
        let len = len.min(1 << 30) as usize;
        match sys::recvfrom(self.fd, core::ptr::null_mut(), len, flags, nobody, core::ptr::null_mut()) {
            Ok(len) => Ok(len as u64),
            Err(Errno(libc::EAGAIN)) => Ok(0),
            Err(errno) => Err(errno),
        }
    }

    fn read(&mut self, at: usize, len: usize, peek: bool) -> Result<usize> {
        let flags = libc::MSG_DONTWAIT | if peek { libc::MSG_PEEK } else { 0 };
        let nobody = core::ptr::null_mut();
        match self.target {
            Target::One { base, .. } => {
                sys::recvfrom(self.fd, base.wrapping_add(at), len, flags, nobody, core::ptr::null_mut())
            }
            Target::Nowhere { .. } => {
                let flags = flags | libc::MSG_TRUNC;
                sys::recvfrom(self.fd, core::ptr::null_mut(), len, flags, nobody, core::ptr::null_mut())
            }
            Target::Many { .. } => {
                let mut part = self.target.part(at, len);
                // SAFETY: msghdr is plain data for which zero is valid.
                let mut header: msghdr = unsafe { core::mem::zeroed() };
                (header.msg_iov, header.msg_iovlen) = (part.as_mut_ptr(), part.len() as _);
                sys::recvmsg(self.fd, &raw mut header, flags)
            }
        }
    }
}

/// What looking once has come to.
enum Look {
    /// Enough was read, or the end or an error reached after something was read.
    Done,
    /// Wait for more.
    More,
}

/// One call.
struct Call {
    stream: &'static Stream,
    socket: Socket,
    flags: c_int,
    len: usize,
    done: usize,
    /// Bytes with which a call that waits is content (`sock_rcvlowat`).
    enough: usize,
}

/// A read of an involved stream.
///
/// # Errors
/// As recv(2).
pub(crate) fn read(stream: &'static Stream, fd: c_int, target: Target, flags: c_int) -> Result<usize> {
    let target = if flags & libc::MSG_TRUNC != 0 {
        Target::Nowhere { len: target.len() }
    } else {
        target.checked()?
    };
    let len = target.len().min(i32::MAX as usize & !4095); // MAX_RW_COUNT
    let enough = if flags & libc::MSG_WAITALL != 0 { len } else { len.min(lowat(stream, fd)).max(1) };
    Call { stream, socket: Socket::with(fd, target), flags, len, done: 0, enough }.run()
}

fn lowat(stream: &Stream, fd: c_int) -> usize {
    let known = stream.lowat.load(Relaxed);
    if known != 0 {
        return known as usize;
    }
    let asked = sys::option::<c_int>(fd, libc::SOL_SOCKET, libc::SO_RCVLOWAT).unwrap_or(1).max(1);
    stream.lowat.store(asked as u32, Relaxed);
    asked as usize
}

impl Call {
    fn run(&mut self) -> Result<usize> {
        PUMPED.store(PUMPED.load(Relaxed).wrapping_add(1), Relaxed);
        if self.len == 0 {
            return self.socket.read(0, 0, false);
        }
        if self.flags & libc::MSG_PEEK == 0 && self.take()? && self.done >= self.enough {
            return Ok(self.done);
        }
        let mut deadline = None;
        if self.spins() {
            engine::pump_on();
            if self.take()? && self.done >= self.enough {
                return Ok(self.done);
            }
            if let Some(Woken::Interrupted) = wait::spin(self.stream, self.socket.fd) {
                return self.nothing(libc::EINTR);
            }
        }
        loop {
            engine::pump();
            if let Look::Done = self.look()? {
                return Ok(self.done);
            }
            if self.nonblocking() {
                return self.nothing(libc::EAGAIN);
            }
            let fd = self.socket.fd;
            let deadline = *deadline.get_or_insert_with(|| timeout(fd));
            // data that was peeked at stays, and would end every wait at once
            let nap = self.flags & libc::MSG_PEEK != 0 && self.done > 0;
            match wait::for_stream(self.stream, fd, deadline, nap) {
                Woken::Timeout => return self.nothing(libc::EAGAIN),
                Woken::Interrupted => return self.nothing(libc::EINTR),
                _ if deadline.over() => return self.nothing(libc::EAGAIN),
                _ => {}
            }
        }
    }

    /// Whether the thread runs the driver before it asks the kernel for data: more is likely to come than is there.
    fn spins(&self) -> bool {
        driver::spins()
            && self.stream.lifting.load(Relaxed)
            && self.flags & libc::MSG_PEEK == 0
            && !self.nonblocking()
    }

    /// A partial result, or `errno`.
    fn nothing(&self, errno: c_int) -> Result<usize> {
        if self.done > 0 { Ok(self.done) } else { Err(Errno(errno)) }
    }

    /// A signal handler interrupted a read of the very stream: it cannot read.
    fn guard(&self) -> Result<Guard> {
        self.stream.lock().ok_or(Errno(if self.nonblocking() { libc::EAGAIN } else { libc::EINTR }))
    }

    /// From frames alone; true if anything was.
    #[inline]
    fn take(&mut self) -> Result<bool> {
        let Some(memory) = engine::memory() else { return Ok(false) };
        let mut guard = self.guard()?;
        let (reader, work) = guard.parts();
        let free = |held: Held| held.free(memory);
        let (mut target, at, max) = (self.socket.target, self.done, self.len - self.done);
        let taken = reader.take(&mut work.worker.index, &mut self.socket, &mut target, at, max, free)?;
        if taken == 0 {
            return Ok(false);
        }
        self.done += taken;
        count_lifted(self.stream, taken);
        // an edge-triggered program takes a short read to mean that there is no more
        let short = self.done < self.len;
        let more = match self.socket.asked {
            true => reader.knows_more(),
            false => short && reader.has_more(&mut self.socket)?,
        };
        if short && more {
            self.read_on(&mut guard);
            return Ok(true);
        }
        if reader.undrained() >= UNDRAINED {
            let _ = reader.drain(&mut self.socket); // tried again
        }
        Ok(true)
    }

    /// What the kernel has behind what was taken, under the same lock: a read is one piece of the stream.
    fn read_on(&mut self, guard: &mut Guard) {
        let Some(memory) = engine::memory() else { return };
        let (reader, work) = guard.parts();
        let (mut target, at) = (self.socket.target, self.done);
        let (index, max, free) = (&mut work.worker.index, self.len - at, |held: Held| held.free(memory));
        let taken = reader.through(index, &mut self.socket, &mut target, at, max, false, free);
        if let Ok(Some(taken)) = taken {
            self.done += taken.bytes;
            count_lifted(self.stream, taken.lifted);
            count_passed(self.stream, taken.bytes - taken.lifted);
            guard.retire();
        }
    }

    /// From frames, then from the kernel.
    fn look(&mut self) -> Result<Look> {
        let peek = self.flags & libc::MSG_PEEK != 0;
        if !peek && self.take()? && self.done >= self.enough {
            return Ok(Look::Done);
        }
        let mut ended = false;
        loop {
            let at = if peek { 0 } else { self.done };
            if self.done > 0
                && let Some(look) = self.without_error()
            {
                return Ok(look);
            }
            match self.through(at, peek) {
                Ok(None) | Err(Errno(libc::EAGAIN)) => return Ok(Look::More),
                Ok(Some(0)) => return Ok(Look::Done),
                Ok(Some(bytes)) => self.done = at + bytes,
                Err(errno) => return Err(errno),
            }
            if self.done >= self.enough || self.done == self.len {
                return Ok(Look::Done);
            }
            if !peek {
                continue;
            }
            if ended {
                return Ok(Look::Done); // what came just before the end has been seen, too
            }
            ended = self.over();
            if !ended {
                return Ok(Look::More);
            }
        }
    }

    /// Whether nothing will come any more: an error, or the end (`sk_shutdown & RCV_SHUTDOWN`).
    fn over(&self) -> bool {
        let mut entry =
            libc::pollfd { fd: self.socket.fd, events: libc::POLLIN | libc::POLLRDHUP, revents: 0 };
        let _ = sys::poll_look(&raw mut entry, 1);
        entry.revents & (libc::POLLERR | libc::POLLHUP | libc::POLLRDHUP) != 0
    }

    /// After something was read: an error or the end is for the next call to report (`tcp_recvmsg_locked`), and asking the kernel
    /// would use it up (`sock_error`). None: there is data.
    fn without_error(&self) -> Option<Look> {
        let over = self.over();
        let undrained = self.guard().ok()?.reader().undrained();
        match sys::queued(self.socket.fd) {
            Ok(queued) if queued > undrained => None,
            _ if over => Some(Look::Done),
            _ => Some(Look::More),
        }
    }

    /// One read of the kernel's socket with what is held put in the place of ghosts. None: not now.
    fn through(&mut self, at: usize, peek: bool) -> Result<Option<usize>> {
        let memory = engine::memory();
        let mut guard = self.guard()?;
        let (reader, work) = guard.parts();
        let free = |held: Held| {
            if let Some(memory) = memory {
                held.free(memory);
            }
        };
        let mut target = self.socket.target;
        let len = self.len - at;
        let taken =
            reader.through(&mut work.worker.index, &mut self.socket, &mut target, at, len, peek, free)?;
        let Some(taken) = taken else { return Ok(None) };
        if !peek {
            count_lifted(self.stream, taken.lifted);
            count_passed(self.stream, taken.bytes - taken.lifted);
            guard.retire();
        }
        Ok(Some(taken.bytes))
    }

    fn nonblocking(&self) -> bool {
        nonblocking(self.socket.fd, self.flags)
    }
}

fn nonblocking(fd: c_int, flags: c_int) -> bool {
    flags & libc::MSG_DONTWAIT != 0 || sys::status_flags(fd).is_ok_and(|flags| flags & libc::O_NONBLOCK != 0)
}

/// SO_RCVTIMEO.
pub(crate) fn timeout(fd: c_int) -> Deadline {
    let time = sys::option::<[i64; 2]>(fd, libc::SOL_SOCKET, libc::SO_RCVTIMEO).unwrap_or_default();
    match time {
        [0, 0] => Deadline::NEVER,
        [seconds, us] => Deadline::after(Some(
            (seconds.max(0) as u64).saturating_mul(1_000_000_000).saturating_add(us.max(0) as u64 * 1000),
        )),
    }
}

#[inline]
pub(crate) fn count_lifted(stream: &Stream, bytes: usize) {
    if bytes > 0
        && let Some(slot) = stream.own_slot()
    {
        slot.lifted_bytes.store(slot.lifted_bytes.load(Relaxed) + bytes as u64, Relaxed); // one writer at a time
    }
}

#[inline]
pub(crate) fn count_passed(stream: &Stream, bytes: usize) {
    if bytes > 0
        && let Some(slot) = stream.own_slot()
    {
        slot.passed_bytes.fetch_add(bytes as u64, Relaxed);
    }
}

/// recv, recvfrom and read.
pub(crate) fn recvfrom(
    stream: &'static Stream,
    fd: c_int,
    base: *mut u8,
    len: usize,
    flags: c_int,
    name: *mut sockaddr,
    name_len: *mut socklen_t,
) -> Result<usize> {
    let read = read(stream, fd, Target::One { base, len }, flags)?;
    if !name.is_null() && plausible(name_len) {
        // SAFETY: the program passed it; a stream tells no name (inet_recvmsg).
        unsafe { *name_len = 0 };
    }
    Ok(read)
}

/// recvmsg.
///
/// # Safety
/// `header` is the program's, as in recvmsg(2).
pub(crate) unsafe fn recvmsg(
    stream: &'static Stream,
    fd: c_int,
    header: *mut msghdr,
    flags: c_int,
) -> Result<usize> {
    if !plausible(header) {
        return Err(Errno(libc::EFAULT));
    }
    // SAFETY: by contract.
    let (vector, count) = unsafe { ((*header).msg_iov, (*header).msg_iovlen) };
    if count > libc::UIO_MAXIOV as usize {
        return Err(Errno(libc::EMSGSIZE));
    }
    let read = read(stream, fd, Target::Many { vector, count }, flags)?;
    // SAFETY: by contract; a stream has neither name nor, without the options that demote it, ancillary data.
    unsafe {
        (*header).msg_namelen = 0;
        (*header).msg_controllen = 0;
        (*header).msg_flags = 0;
    }
    Ok(read)
}

/// readv.
///
/// # Safety
/// `vector` has `count` entries, as in readv(2).
pub(crate) unsafe fn readv(
    stream: &'static Stream,
    fd: c_int,
    vector: *const iovec,
    count: c_int,
) -> Result<usize> {
    if !(0..=libc::UIO_MAXIOV).contains(&count) {
        return Err(Errno(libc::EINVAL));
    }
    read(stream, fd, Target::Many { vector, count: count as usize }, 0)
}

/// A chunk of the stream, where it lies if it lies together.
///
/// # Errors
/// As recv(2).
pub(crate) fn recv_chunk(
    stream: &'static Stream,
    fd: c_int,
    chunk: &mut Chunk,
    max: usize,
    flags: c_int,
) -> Result<usize> {
    PUMPED.store(PUMPED.load(Relaxed).wrapping_add(1), Relaxed);
    let mut deadline = None;
    loop {
        if let Some(len) = lend(stream, fd, chunk, max)? {
            return Ok(len);
        }
        if let Some(len) = spin_for_chunk(stream, fd, chunk, max, flags)? {
            return Ok(len);
        }
        engine::pump();
        if let Some(len) = lend(stream, fd, chunk, max)? {
            return Ok(len);
        }
        match unheld(stream, fd, chunk, max) {
            Err(Errno(libc::EAGAIN)) if !nonblocking(fd, flags) => {}
            result => return result,
        }
        let deadline = *deadline.get_or_insert_with(|| timeout(fd));
        match wait::for_stream(stream, fd, deadline, false) {
            Woken::Timeout => return Err(Errno(libc::EAGAIN)),
            Woken::Interrupted => return Err(Errno(libc::EINTR)),
            _ => {}
        }
    }
}

/// Runs the driver until there is a chunk; None: there is none, or the thread does not spin.
fn spin_for_chunk(
    stream: &'static Stream,
    fd: c_int,
    chunk: &mut Chunk,
    max: usize,
    flags: c_int,
) -> Result<Option<usize>> {
    if !driver::spins() || !stream.lifting.load(Relaxed) || nonblocking(fd, flags) {
        return Ok(None);
    }
    engine::pump_on();
    if let Some(len) = lend(stream, fd, chunk, max)? {
        return Ok(Some(len));
    }
    match wait::spin(stream, fd) {
        Some(Woken::Interrupted) => Err(Errno(libc::EINTR)),
        _ => lend(stream, fd, chunk, max),
    }
}

/// A chunk in memory of its own, of what only the kernel has: no further than the next byte that can be lent.
fn unheld(stream: &'static Stream, fd: c_int, chunk: &mut Chunk, max: usize) -> Result<usize> {
    let alone = stream.lock().and_then(|mut guard| {
        let (reader, work) = guard.parts();
        let at = reader.position();
        work.worker.index.piece_end(at).map(|end| (end - at) as usize)
    });
    let max = alone.map_or(max, |alone| max.min(alone));
    chunk::read_into(chunk, max, |base, len| read(stream, fd, Target::One { base, len }, libc::MSG_DONTWAIT))
}

/// The first of what is held. None: nothing is.
fn lend(stream: &'static Stream, fd: c_int, chunk: &mut Chunk, max: usize) -> Result<Option<usize>> {
    let (Some(memory), Some(mut guard)) = (engine::memory(), stream.lock()) else { return Ok(None) };
    let (reader, work) = guard.parts();
    let mut socket = Socket::of(fd);
    let at = reader.position();
    let Some(whole) = work.worker.index.at(at).map(|entry| entry.end() - at) else { return Ok(None) };
    let len = reader.takeable(&work.worker.index, &mut socket, whole.min(max as u64))?;
    let Some(entry) = work.worker.index.at(at).filter(|_| len > 0) else { return Ok(None) };
    let end = entry.end().min(at + len);
    let bytes: *const [u8] = entry.slice(at, end);
    let frame = match entry.data {
        Held::Frame { frame, .. } if end == entry.end() && !runs_short(memory, frame) => Some(frame),
        _ => None,
    };
    match frame {
        Some(frame) => {
            work.worker.index.pop_at(at); // the frame is the chunk's from here on
            *chunk = Chunk::in_frame(memory, frame, bytes);
            reader.advance(end - at);
        }
        None => {
            // SAFETY: the entry, and with it its bytes, stays until it is released below.
            *chunk = Chunk::copy(unsafe { &*bytes }).ok_or(Errno(libc::ENOMEM))?;
            reader.advance(end - at);
            work.worker.index.release(end, |held| held.free(memory));
        }
    }
    let taken = (end - at) as usize;
    if reader.undrained() >= UNDRAINED {
        let _ = reader.drain(&mut socket); // tried again
    }
    count_lifted(stream, taken);
    Ok(Some(taken))
}

/// Frames of its ring are few: they are copied, not lent.
fn runs_short(memory: &Memory, frame: u32) -> bool {
    engine::runs_short(memory, memory.frames.arrival(frame).ring)
}

/// splice(2) of held data to a pipe: what fits is written to it. The stream is demoted by now, so there is an end of it.
pub(crate) fn splice(
    stream: &'static Stream,
    fd: c_int,
    to: c_int,
    len: usize,
    flags: libc::c_uint,
) -> Result<usize> {
    let dontwait = if flags & libc::SPLICE_F_NONBLOCK != 0 { libc::MSG_DONTWAIT } else { 0 };
    let mut buffer = vec![0; len.min(64 << 10)];
    let target = Target::One { base: buffer.as_mut_ptr(), len: buffer.len() };
    let peeked = read(stream, fd, target, libc::MSG_PEEK | dontwait)?;
    let written = sys::write(to, &buffer[..peeked])?;
    read(stream, fd, Target::Nowhere { len: written }, libc::MSG_TRUNC | libc::MSG_WAITALL)
}

/// Discards the ghosts of what has been read, so that what the kernel says of the stream is so.
pub(crate) fn drain(guard: &mut Guard, fd: c_int) {
    let _ = guard.reader().drain(&mut Socket::of(fd));
}
