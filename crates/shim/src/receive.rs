//! `recv` and its kin on a socket that is, or was, lifted.

use crate::{
    control, engine,
    engine::Memory,
    merge,
    message::{self, Buffers, Received, Taken},
    socket::{Socket, State, peeked},
    sys,
    wait::{self, Deadline, Woken},
};
use core::sync::atomic::Ordering::Relaxed;
use hoist_sys::Errno;
use libc::{c_int, c_uint, iovec, mmsghdr, msghdr, sockaddr, socklen_t, ssize_t, timespec};

type Result<T> = core::result::Result<T, Errno>;

/// What a read is to do with one datagram.
pub(crate) trait Reader {
    /// Takes a lifted datagram, and with it those from ticket `next` on that merge with it.
    fn lifted(&mut self, received: &Received<'_>, next: Option<u32>) -> Result<usize>;
    /// Takes from the kernel socket, without waiting.
    fn kernel(&mut self, flags: c_int) -> Result<usize>;
    /// Owns the frame of the datagram from here on.
    #[inline]
    fn keep(&mut self, memory: &'static Memory, frame: u32) {
        engine::give_back(memory, frame);
    }
}

/// A read of `socket`, and whether it waits.
struct Read<'s> {
    socket: &'static Socket,
    fd: c_int,
    flags: c_int,
    deadline: &'s mut Option<Deadline>,
}

impl Read<'_> {
    /// The fast path is the first two lines of the loop in [`Read::lifted`]; everything else is for when it is empty.
    #[inline]
    fn run(&mut self, reader: &mut impl Reader) -> Result<usize> {
        if !self.kernel_turn()
            && let Some(result) = self.lifted(reader)
        {
            return result;
        }
        self.slow(reader)
    }

    #[inline]
    fn kernel_turn(&self) -> bool {
        self.socket.kernel_goes_first()
    }

    /// From the queue, else from the rings through the queue.
    #[inline]
    fn lifted(&mut self, reader: &mut impl Reader) -> Option<Result<usize>> {
        if let Some(result) = self.queued(reader) {
            return Some(result);
        }
        engine::pump();
        self.queued(reader)
    }

    #[inline]
    fn queued(&mut self, reader: &mut impl Reader) -> Option<Result<usize>> {
        let memory = engine::memory()?;
        if self.flags & libc::MSG_PEEK != 0 {
            return self.peek(memory, reader);
        }
        let (frame, ticket) = self.socket.pop()?;
        self.socket.count_taken();
        let mut next = Some(ticket.wrapping_add(1));
        if self.socket.peeked.load(Relaxed) != peeked::NOTHING {
            self.socket.peeked.store(peeked::NOTHING, Relaxed);
            next = None; // a read takes what the peek before it showed
        }
        let result = reader.lifted(&Received::new(memory, memory.frames.arrival(frame)), next);
        reader.keep(memory, frame);
        Some(result)
    }

    /// Reads without taking; starts over if another thread took the datagram meanwhile.
    #[cold]
    fn peek(&mut self, memory: &Memory, reader: &mut impl Reader) -> Option<Result<usize>> {
        loop {
            let (frame, ticket) = self.socket.peek()?;
            let arrival = memory.frames.peek(frame);
            if !self.socket.still_first(ticket) {
                continue;
            }
            let result = reader.lifted(&Received::new(memory, &arrival), None);
            if self.socket.still_first(ticket) {
                self.socket.peeked.store(peeked::LIFTED, Relaxed);
                return Some(result);
            }
        }
    }

    #[cold]
    fn slow(&mut self, reader: &mut impl Reader) -> Result<usize> {
        let mut kernel_turn = self.kernel_turn();
        loop {
            if kernel_turn {
                match self.read_kernel(reader) {
                    Err(Errno(libc::EAGAIN)) => self.spilt_is_read(),
                    result => return result,
                }
            }
            if let Some(result) = self.lifted(reader) {
                return result;
            }
            if self.nonblocking() {
                return self.read_kernel(reader);
            }
            kernel_turn = match wait::for_socket(self.socket, self.fd, self.deadline()) {
                Woken::Kernel => true,
                Woken::Look => false,
                // without MSG_DONTWAIT, which would hide the shutdown behind EAGAIN (__skb_recv_datagram)
                Woken::Shutdown => return reader.kernel(self.flags),
                Woken::Timeout => return self.read_kernel(reader),
                Woken::Interrupted => return Err(Errno(libc::EINTR)),
            };
            if self.socket.state() == State::Closed {
                return Err(Errno(libc::EBADF));
            }
        }
    }

    fn read_kernel(&mut self, reader: &mut impl Reader) -> Result<usize> {
        let result = reader.kernel(self.flags | libc::MSG_DONTWAIT);
        match result {
            Ok(bytes) if self.flags & libc::MSG_PEEK == 0 => {
                self.socket.count_passed(bytes);
                self.socket.peeked.store(peeked::NOTHING, Relaxed);
                self.socket.kernel_had_turn();
            }
            Ok(_) => self.socket.peeked.store(peeked::KERNEL, Relaxed),
            Err(_) => {
                self.socket.kernel_first.store(false, Relaxed);
                self.socket.kernel_older.store(false, Relaxed);
                self.socket.peeked.store(peeked::NOTHING, Relaxed);
            }
        }
        result
    }

    /// The kernel's queue is empty: if nothing rode there meanwhile, new datagrams may wait here again.
    fn spilt_is_read(&self) {
        if self.socket.spills()
            && let Some(_state) = engine::ENGINE.try_lock()
            && self.socket.is_empty()
            && !kernel_has_data(self.fd)
        {
            self.socket.end_spill();
        }
    }

    fn nonblocking(&self) -> bool {
        self.flags & libc::MSG_DONTWAIT != 0
            || sys::status_flags(self.fd).is_ok_and(|flags| flags & libc::O_NONBLOCK != 0)
    }

    fn deadline(&mut self) -> Deadline {
        let socket = self.socket;
        *self.deadline.get_or_insert_with(|| match socket.timeout_us.load(Relaxed) {
            0 => Deadline::NEVER,
            us => Deadline::after(Some(us.saturating_mul(1000))),
        })
    }
}

/// `--admit flow`: tells the broker which flow the kernel has just delivered.
fn admit(socket: &'static Socket, fd: c_int, from: &libc::sockaddr_in6) {
    if control::ADMIT_FLOW.load(Relaxed) {
        crate::admit::delivered(socket, fd, from);
    }
}

struct Plain {
    socket: &'static Socket,
    fd: c_int,
    base: *mut u8,
    len: usize,
    flags: c_int,
    name: *mut sockaddr,
    name_len: *mut socklen_t,
}

impl Reader for Plain {
    #[inline]
    fn lifted(&mut self, received: &Received<'_>, _next: Option<u32>) -> Result<usize> {
        let copied = Buffers::One { base: self.base, len: self.len }.fill(0, received.payload())?;
        if !self.name.is_null() {
            message::write_name(self.socket.v6.load(Relaxed), received, self.name, self.name_len)?;
        }
        Ok(Taken::one(copied, received).outcome(self.flags))
    }

    fn kernel(&mut self, flags: c_int) -> Result<usize> {
        if control::ADMIT_FLOW.load(Relaxed) {
            return self.kernel_with_sender(flags);
        }
        sys::recvfrom(self.fd, self.base, self.len, flags, self.name, self.name_len)
    }
}

impl Plain {
    fn kernel_with_sender(&mut self, flags: c_int) -> Result<usize> {
        let mut name = crate::admit::no_name();
        let mut len = size_of_val(&name) as socklen_t;
        let from = (&raw mut name).cast::<sockaddr>();
        let received = sys::recvfrom(self.fd, self.base, self.len, flags, from, &raw mut len)?;
        admit(self.socket, self.fd, &name);
        if !self.name.is_null() && !self.name_len.is_null() {
            // SAFETY: the program passed both; the kernel's own name is at most as long as ours.
            unsafe {
                let room = (*self.name_len).min(len) as usize;
                core::ptr::copy_nonoverlapping(from.cast::<u8>(), self.name.cast(), room);
                *self.name_len = len;
            }
        }
        Ok(received)
    }
}

/// recv, recvfrom and read. The socket is lifted, or has lifted data left.
#[inline]
pub(crate) fn recvfrom(
    socket: &'static Socket,
    fd: c_int,
    base: *mut u8,
    len: usize,
    flags: c_int,
    name: *mut sockaddr,
    name_len: *mut socklen_t,
) -> Result<usize> {
    let mut plain = Plain { socket, fd, base, len, flags, name, name_len };
    read_with(socket, fd, flags, &mut plain)
}

/// A read of another kind. `flags` is without MSG_PEEK if the reader keeps frames.
#[inline]
pub(crate) fn read_with(
    socket: &'static Socket,
    fd: c_int,
    flags: c_int,
    reader: &mut impl Reader,
) -> Result<usize> {
    Read { socket, fd, flags, deadline: &mut None }.run(reader)
}

/// From the kernel socket of a lifted one, as recvfrom(2).
pub(crate) fn from_kernel(
    socket: &'static Socket,
    fd: c_int,
    (base, len): (*mut u8, usize),
    flags: c_int,
    (name, name_len): (*mut sockaddr, *mut socklen_t),
) -> Result<usize> {
    Plain { socket, fd, base, len, flags, name, name_len }.kernel(flags)
}

struct Header {
    socket: &'static Socket,
    fd: c_int,
    header: *mut msghdr,
    flags: c_int,
}

impl Reader for Header {
    fn lifted(&mut self, received: &Received<'_>, next: Option<u32>) -> Result<usize> {
        // SAFETY: the program passed a msghdr that it owns.
        let header = unsafe { &*self.header };
        let buffers = Buffers::Many { vector: header.msg_iov, count: header.msg_iovlen };
        let mut taken = Taken::one(buffers.fill(0, received.payload())?, received);
        if let Some(next) = next
            && message::tells_segments(self.socket.wants.load(Relaxed), header)
        {
            taken = merge::followers(self.socket, received, next, buffers, taken)?;
        }
        // SAFETY: as above.
        unsafe { message::write_header(self.socket, self.fd, received, self.header, &taken)? };
        Ok(taken.outcome(self.flags))
    }

    fn kernel(&mut self, flags: c_int) -> Result<usize> {
        // SAFETY: as above.
        let mut copy = unsafe { *self.header };
        let mut name = crate::admit::no_name();
        let admits = control::ADMIT_FLOW.load(Relaxed) && copy.msg_name.is_null();
        if admits {
            copy.msg_name = (&raw mut name).cast();
            copy.msg_namelen = size_of_val(&name) as socklen_t;
        }
        let received = sys::recvmsg(self.fd, &raw mut copy, flags)?;
        if control::ADMIT_FLOW.load(Relaxed) {
            // SAFETY: msg_name is ours, or the program's with at least msg_namelen bytes written by the kernel.
            let from = unsafe { crate::admit::name_at(copy.msg_name.cast(), copy.msg_namelen) };
            admit(self.socket, self.fd, &from);
        }
        if admits {
            (copy.msg_name, copy.msg_namelen) = (core::ptr::null_mut(), 0);
        }
        // SAFETY: the program's msghdr, filled as the kernel would have.
        unsafe { *self.header = copy };
        Ok(received)
    }
}

/// recvmsg.
///
/// # Safety
/// `header` is the program's, as in recvmsg(2).
pub(crate) unsafe fn recvmsg(
    socket: &'static Socket,
    fd: c_int,
    header: *mut msghdr,
    flags: c_int,
) -> Result<usize> {
    if !message::plausible(header) {
        return Err(Errno(libc::EFAULT));
    }
    // SAFETY: by contract.
    unsafe { message::check_vector((*header).msg_iov, (*header).msg_iovlen)? };
    let mut reader = Header { socket, fd, header, flags };
    Read { socket, fd, flags, deadline: &mut None }.run(&mut reader)
}

/// readv.
///
/// # Safety
/// `vector` has `count` entries, as in readv(2).
pub(crate) unsafe fn readv(
    socket: &'static Socket,
    fd: c_int,
    vector: *const iovec,
    count: c_int,
) -> Result<usize> {
    if !(0..=libc::UIO_MAXIOV).contains(&count) {
        return Err(Errno(libc::EINVAL));
    }
    // SAFETY: by contract.
    unsafe { message::check_vector(vector, count as usize)? };
    // SAFETY: msghdr is plain data for which zero is valid.
    let mut header: msghdr = unsafe { core::mem::zeroed() };
    header.msg_iov = vector.cast_mut();
    header.msg_iovlen = count as _;
    let mut reader = Header { socket, fd, header: &raw mut header, flags: 0 };
    Read { socket, fd, flags: 0, deadline: &mut None }.run(&mut reader)
}

/// recvmmsg: after the first datagram MSG_WAITFORONE stops waiting; the timeout is looked at after each datagram only,
/// as `do_recvmmsg` does.
///
/// # Safety
/// `messages` has `count` entries, as in recvmmsg(2).
pub(crate) unsafe fn recvmmsg(
    socket: &'static Socket,
    fd: c_int,
    messages: *mut mmsghdr,
    count: c_uint,
    flags: c_int,
    timeout: *mut timespec,
) -> Result<usize> {
    if !(timeout.is_null() || message::plausible(timeout)) {
        return Err(Errno(libc::EFAULT));
    }
    // SAFETY: the program passed a timespec or null.
    let limit = unsafe { timeout.as_ref() };
    if limit.is_some_and(|limit| limit.tv_sec < 0 || !(0..1_000_000_000).contains(&limit.tv_nsec)) {
        return Err(Errno(libc::EINVAL));
    }
    let end =
        limit.map(|limit| Deadline::after(Some(limit.tv_sec as u64 * 1_000_000_000 + limit.tv_nsec as u64)));
    if count > 0 && !message::plausible(messages) {
        return Err(Errno(libc::EFAULT));
    }
    let mut flags_now = flags & !libc::MSG_WAITFORONE;
    let mut done = 0;
    while done < count.min(libc::UIO_MAXIOV as c_uint) as usize {
        // SAFETY: within the program's array.
        let message = unsafe { &mut *messages.add(done) };
        // SAFETY: the program's msghdr.
        match unsafe { recvmsg(socket, fd, &raw mut message.msg_hdr, flags_now) } {
            Ok(len) => message.msg_len = len as c_uint,
            Err(errno) if done == 0 => return Err(errno),
            Err(_) => break,
        }
        done += 1;
        if flags & libc::MSG_WAITFORONE != 0 {
            flags_now |= libc::MSG_DONTWAIT;
        }
        if end.is_some_and(Deadline::over) {
            break;
        }
    }
    if let Some(left) = end.and_then(Deadline::left) {
        // SAFETY: the timespec of above; Linux writes what is left.
        unsafe { *timeout = wait::timespec(left) };
    }
    Ok(done)
}

fn kernel_has_data(fd: c_int) -> bool {
    let nobody = core::ptr::null_mut();
    let flags = libc::MSG_PEEK | libc::MSG_TRUNC | libc::MSG_DONTWAIT;
    sys::recvfrom(fd, core::ptr::null_mut(), 0, flags, nobody, core::ptr::null_mut()).is_ok()
}

/// FIONREAD: payload bytes of the datagram that the next read takes; 0 if there is none.
pub(crate) fn next_len(socket: &'static Socket, fd: c_int) -> Option<u32> {
    let memory = engine::memory()?;
    if socket.kernel_goes_first() && kernel_has_data(fd) {
        socket.peeked.store(peeked::KERNEL, Relaxed);
        return None;
    }
    if socket.is_empty() {
        engine::pump();
    }
    loop {
        let (frame, ticket) = socket.peek()?;
        let len = memory.frames.peek(frame).payload_len.into();
        if socket.still_first(ticket) {
            socket.peeked.store(peeked::LIFTED, Relaxed);
            return Some(len);
        }
    }
}

/// A result as libc returns it.
pub(crate) fn to_libc(result: Result<usize>) -> ssize_t {
    match result {
        Ok(count) => count as ssize_t,
        Err(errno) => {
            crate::set_errno(errno);
            -1
        }
    }
}
