//! The exported functions: what the program calls when it means libc.
//!
//! Each decides in a line whether the call concerns a socket of ours, and otherwise is libc's own.

use crate::{
    chunk::{self, Chunk},
    control, driver,
    epoll::Wait,
    message::plausible,
    next, options,
    options::{Effect, StreamEffect},
    poll::{self, KernelWait, Sets},
    receive::{self, to_libc},
    set_errno, signals,
    socket::{Socket, State},
    table::{EPOLLS, SOCKETS, STREAMS},
    tcp::{self, Stream},
    wait::Deadline,
};
use core::ffi::{CStr, c_void};
use core::sync::atomic::Ordering::{Relaxed, SeqCst};
use hoist_ipc::Reason;
use hoist_sys::Errno;
use libc::{
    EBADF, c_int, c_long, c_uint, c_ulong, epoll_event, fd_set, iovec, mmsghdr, msghdr, nfds_t, pollfd,
    sigset_t, size_t, sockaddr, socklen_t, ssize_t, timespec, timeval,
};

// ---- start and end ----

#[unsafe(link_section = ".init_array")]
#[used]
static START: extern "C" fn() = start;

#[unsafe(link_section = ".fini_array")]
#[used]
static END: extern "C" fn() = end;

extern "C" fn start() {
    // SAFETY: before main, no other thread changes the environment.
    let value = unsafe { libc::getenv(c"HOIST_BROKER_FD".as_ptr()) };
    if value.is_null() {
        return;
    }
    // SAFETY: getenv returned a C string.
    let Some(fd) = unsafe { CStr::from_ptr(value) }.to_str().ok().and_then(|text| text.parse().ok()) else {
        return;
    };
    control::start(fd);
    // SAFETY: the handlers are functions of this library, which is never unloaded; dlsym takes a C string.
    unsafe {
        libc::pthread_atfork(Some(before_fork), Some(after_fork_in_parent), Some(after_fork_in_child));
        let flag = libc::dlsym(libc::RTLD_DEFAULT, c"__libc_single_threaded".as_ptr());
        crate::wait::SINGLE_THREADED.store(flag.cast(), Relaxed);
    }
}

unsafe extern "C" fn before_fork() {
    control::before_fork();
}

unsafe extern "C" fn after_fork_in_parent() {
    control::after_fork_in_parent();
}

unsafe extern "C" fn after_fork_in_child() {
    control::after_fork_in_child();
}

extern "C" fn end() {
    control::at_exit();
}

// ---- which sockets concern us ----

/// The socket of `fd` if it is, or was, lifted and reads must look at its queue.
#[inline(always)]
fn lifted(fd: c_int) -> Option<&'static Socket> {
    let socket = SOCKETS.of(fd)?;
    if !socket.lifted() && driver::spins() {
        control::no_longer_alone(socket, fd);
    }
    (socket.lifted() && crate::engine::ours()).then_some(socket)
}

/// After a read that libc did on a UDP socket we follow.
#[inline]
fn after_kernel_read(fd: c_int, received: ssize_t) -> ssize_t {
    if received >= 0
        && let Some(socket) = SOCKETS.of(fd)
    {
        match socket.state() {
            State::Kernel => control::read_while_young(socket, fd, received as usize),
            _ => socket.count_passed(received as usize),
        }
    }
    received
}

/// A read of a descriptor that is no lifted UDP socket: of a TCP stream through its index if it has one, else libc's.
#[inline]
fn read_stream(
    fd: c_int,
    len: usize,
    flags: c_int,
    through: impl FnOnce(&'static Stream) -> Result<usize, Errno>,
    kernel: impl FnOnce() -> ssize_t,
) -> ssize_t {
    let Some(stream) = STREAMS.of(fd) else { return kernel_read(fd, kernel) };
    if len == 0 || !ordinary(flags) {
        return kernel();
    }
    if tcp::reading(fd).is_some() {
        return to_libc(through(stream));
    }
    match tcp::plain_read(stream, fd, flags, kernel) {
        Ok(Some(received)) => received,
        Ok(None) => to_libc(through(stream)),
        Err(errno) => to_libc(Err(errno)),
    }
}

/// Runs a read that may wait in the kernel, so that the socket does not become lifted under it.
#[inline]
fn kernel_read(fd: c_int, read: impl FnOnce() -> ssize_t) -> ssize_t {
    let Some(socket) = SOCKETS.of(fd) else { return read() };
    socket.kernel_waits.fetch_add(1, SeqCst);
    let received = read();
    socket.kernel_waits.fetch_sub(1, SeqCst);
    after_kernel_read(fd, received)
}

fn fail(errno: c_int) -> c_int {
    set_errno(Errno(errno));
    -1
}

fn to_int(result: Result<usize, Errno>) -> c_int {
    to_libc(result) as c_int
}

// Every function below is a stand-in for the libc function of its name.
//
// SAFETY of all of them: the program keeps the contract of the libc function; where its arguments are used here, they are
// used as that contract allows, and where they are passed on, they are passed on unchanged.

/// Exports stand-ins for libc functions.
macro_rules! hooks {
    ($(fn $name:ident($($arg:ident: $type:ty),* $(,)?) -> $ret:ty $body:block)+) => {$(
        /// Stand-in for the libc function of this name.
        ///
        /// # Safety
        /// As the libc function.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name($($arg: $type),*) -> $ret {
            // SAFETY: see the comment above the macro.
            #[allow(unused_unsafe)]
            unsafe { $body }
        }
    )+};
}

// ---- reading ----

hooks! {
    fn recv(fd: c_int, buffer: *mut c_void, len: size_t, flags: c_int) -> ssize_t {
        match lifted(fd) {
            Some(socket) if ordinary(flags) => {
                let nobody = core::ptr::null_mut();
                to_libc(receive::recvfrom(socket, fd, buffer.cast(), len, flags, nobody, core::ptr::null_mut()))
            }
            _ => {
                let nobody = core::ptr::null_mut();
                let through = |stream| tcp::recvfrom(stream, fd, buffer.cast(), len, flags, nobody, core::ptr::null_mut());
                read_stream(fd, len, flags, through, || next::recv(fd, buffer, len, flags))
            }
        }
    }

    fn recvfrom(fd: c_int, buffer: *mut c_void, len: size_t, flags: c_int, name: *mut sockaddr, name_len: *mut socklen_t) -> ssize_t {
        match lifted(fd) {
            Some(socket) if ordinary(flags) => {
                to_libc(receive::recvfrom(socket, fd, buffer.cast(), len, flags, name, name_len))
            }
            _ => {
                let through = |stream| tcp::recvfrom(stream, fd, buffer.cast(), len, flags, name, name_len);
                read_stream(fd, len, flags, through, || next::recvfrom(fd, buffer, len, flags, name, name_len))
            }
        }
    }

    fn recvmsg(fd: c_int, message: *mut msghdr, flags: c_int) -> ssize_t {
        match lifted(fd) {
            Some(socket) if ordinary(flags) => to_libc(receive::recvmsg(socket, fd, message, flags)),
            _ => {
                let through = |stream| tcp::recvmsg(stream, fd, message, flags);
                read_stream(fd, 1, flags, through, || next::recvmsg(fd, message, flags))
            }
        }
    }

    fn recvmmsg(fd: c_int, messages: *mut mmsghdr, count: c_uint, flags: c_int, timeout: *mut timespec) -> c_int {
        match lifted(fd) {
            Some(socket) if ordinary(flags) => to_int(receive::recvmmsg(socket, fd, messages, count, flags, timeout)),
            _ if STREAMS.of(fd).is_some() => streams_recvmmsg(fd, messages, count, flags, timeout),
            _ => kernel_read(fd, || next::recvmmsg(fd, messages, count, flags, timeout) as ssize_t) as c_int,
        }
    }

    fn read(fd: c_int, buffer: *mut c_void, len: size_t) -> ssize_t {
        match lifted(fd) {
            Some(socket) if len > 0 => {
                let nobody = core::ptr::null_mut();
                to_libc(receive::recvfrom(socket, fd, buffer.cast(), len, 0, nobody, core::ptr::null_mut()))
            }
            _ if len == 0 => next::read(fd, buffer, len),
            _ => {
                let nobody = core::ptr::null_mut();
                let through = |stream| tcp::recvfrom(stream, fd, buffer.cast(), len, 0, nobody, core::ptr::null_mut());
                read_stream(fd, len, 0, through, || next::read(fd, buffer, len))
            }
        }
    }

    fn readv(fd: c_int, vector: *const iovec, count: c_int) -> ssize_t {
        match lifted(fd) {
            Some(socket) if plausible(vector) && !empty(vector, count) => to_libc(receive::readv(socket, fd, vector, count)),
            _ if empty(vector, count) => next::readv(fd, vector, count),
            _ => {
                let through = |stream| tcp::readv(stream, fd, vector, count);
                read_stream(fd, 1, 0, through, || next::readv(fd, vector, count))
            }
        }
    }

    fn preadv2(fd: c_int, vector: *const iovec, count: c_int, offset: i64, flags: c_int) -> ssize_t {
        if offset == -1 && flags == 0 && STREAMS.of(fd).is_some() {
            return readv(fd, vector, count);
        }
        next::preadv2(fd, vector, count, offset, flags)
    }

    fn splice(from: c_int, from_at: *mut i64, to: c_int, to_at: *mut i64, len: size_t, flags: c_uint) -> ssize_t {
        match STREAMS.of(from) {
            Some(stream) if !tcp::demote(stream, Reason::Spliced, 0) && from_at.is_null() && to_at.is_null() => {
                to_libc(tcp::splice(stream, from, to, len, flags))
            }
            _ => next::splice(from, from_at, to, to_at, len, flags),
        }
    }

    fn sendfile(to: c_int, from: c_int, at: *mut i64, len: size_t) -> ssize_t {
        match STREAMS.of(from) {
            // into anything else the kernel refuses it (splice_direct_to_actor)
            Some(stream) if !tcp::demote(stream, Reason::Spliced, 0) && at.is_null() && crate::sys::is_pipe(to) => {
                to_libc(tcp::splice(stream, from, to, len, 0))
            }
            _ => next::sendfile(to, from, at, len),
        }
    }

    fn sendfile64(to: c_int, from: c_int, at: *mut i64, len: size_t) -> ssize_t {
        sendfile(to, from, at, len)
    }

    fn __recv_chk(fd: c_int, buffer: *mut c_void, len: size_t, room: size_t, flags: c_int) -> ssize_t {
        check(len, room);
        recv(fd, buffer, len, flags)
    }

    fn __recvfrom_chk(fd: c_int, buffer: *mut c_void, len: size_t, room: size_t, flags: c_int, name: *mut sockaddr, name_len: *mut socklen_t) -> ssize_t {
        check(len, room);
        recvfrom(fd, buffer, len, flags, name, name_len)
    }

    fn __read_chk(fd: c_int, buffer: *mut c_void, len: size_t, room: size_t) -> ssize_t {
        check(len, room);
        read(fd, buffer, len)
    }
}

/// recvmmsg on a stream: one recvmsg after another (`do_recvmmsg`), which waits for the first only with MSG_WAITFORONE.
unsafe fn streams_recvmmsg(
    fd: c_int,
    messages: *mut mmsghdr,
    count: c_uint,
    flags: c_int,
    timeout: *mut timespec,
) -> c_int {
    if tcp::reading(fd).is_none() || !plausible(messages) || !timeout.is_null() {
        let demoted = tcp::demote_fd(fd, Reason::Option, 0);
        if !demoted {
            return fail(tcp::HELD.0);
        }
        // SAFETY: the program's arguments, passed on.
        return unsafe { next::recvmmsg(fd, messages, count, flags, timeout) };
    }
    let mut done = 0;
    let mut flags_now = flags & !libc::MSG_WAITFORONE;
    while done < count.min(libc::UIO_MAXIOV as c_uint) {
        // SAFETY: within the program's array.
        let message = unsafe { &mut *messages.add(done as usize) };
        // SAFETY: the program's msghdr.
        let received = unsafe { recvmsg(fd, &raw mut message.msg_hdr, flags_now) };
        if received < 0 {
            return if done > 0 { done as c_int } else { -1 };
        }
        message.msg_len = received as c_uint;
        done += 1;
        if received == 0 {
            break;
        }
        if flags & libc::MSG_WAITFORONE != 0 {
            flags_now |= libc::MSG_DONTWAIT;
        }
    }
    done as c_int
}

// The native API (docs/native.md).
hooks! {
    fn hoist_recv_chunk(fd: c_int, chunk: *mut Chunk, max: size_t, flags: c_int) -> ssize_t {
        let Some(chunk) = chunk::place(chunk, flags) else { return -1 };
        match lifted(fd) {
            Some(socket) => to_libc(chunk::receive_at_most(socket, fd, chunk, max, flags)),
            None => stream_chunk(fd, chunk, max, flags),
        }
    }

    fn hoist_recv_chunk_from(fd: c_int, chunk: *mut Chunk, flags: c_int, name: *mut sockaddr, name_len: *mut socklen_t) -> ssize_t {
        let Some(chunk) = chunk::place(chunk, flags) else { return -1 };
        match lifted(fd) {
            Some(socket) => to_libc(chunk::receive(socket, fd, chunk, flags, (name, name_len))),
            None => chunk::read(chunk, usize::MAX, |base, len| {
                kernel_read(fd, || next::recvfrom(fd, base.cast(), len, flags, name, name_len))
            }),
        }
    }

    fn hoist_release_chunk(chunk: *mut Chunk) -> () {
        if plausible(chunk) {
            (*chunk).release();
        }
    }
}

/// A chunk of what is no lifted UDP socket.
unsafe fn stream_chunk(fd: c_int, chunk: &mut Chunk, max: usize, flags: c_int) -> ssize_t {
    if max > 0
        && let Some(stream) = STREAMS.of(fd)
    {
        stream.native.store(true, Relaxed);
        if tcp::reading(fd).is_some() {
            return to_libc(tcp::recv_chunk(stream, fd, chunk, max, flags));
        }
    }
    // SAFETY: the base is room of the chunk's own.
    chunk::read(chunk, max, |base, len| unsafe { recv(fd, base.cast(), len, flags) })
}

/// Flags that do not ask for another queue than the datagrams'.
#[inline]
fn ordinary(flags: c_int) -> bool {
    flags & (libc::MSG_ERRQUEUE | libc::MSG_OOB) == 0
}

/// A read of no bytes takes no datagram (`sock_read_iter`).
unsafe fn empty(vector: *const iovec, count: c_int) -> bool {
    if !plausible(vector) {
        return true; // for the kernel to refuse
    }
    // SAFETY: the program passed `count` entries.
    (0..count.clamp(0, libc::UIO_MAXIOV) as usize).all(|i| unsafe { (*vector.add(i)).iov_len } == 0)
}

/// `_FORTIFY_SOURCE`: a length beyond the buffer is a bug of the program that libc ends.
fn check(len: size_t, room: size_t) {
    if len > room {
        unsafe extern "C" {
            fn __chk_fail() -> !;
        }
        // SAFETY: glibc's handler for this very case; it does not return.
        unsafe { __chk_fail() }
    }
}

// ---- waiting ----

hooks! {
    fn poll(fds: *mut pollfd, count: nfds_t, timeout: c_int) -> c_int {
        let Some(set) = ours(fds, count) else { return passed_poll(fds, count, || next::poll(fds, count, timeout)) };
        let deadline = Deadline::after(milliseconds(timeout));
        to_int(poll::poll(set, deadline, timeout == 0, core::ptr::null()))
    }

    fn ppoll(fds: *mut pollfd, count: nfds_t, timeout: *const timespec, mask: *const sigset_t) -> c_int {
        let limit = timeout.as_ref().map(nanoseconds);
        match (ours(fds, count), limit) {
            (Some(set), None) => to_int(poll::poll(set, Deadline::NEVER, false, mask)),
            (Some(set), Some(Some(ns))) => to_int(poll::poll(set, Deadline::after(Some(ns)), ns == 0, mask)),
            _ => passed_poll(fds, count, || next::ppoll(fds, count, timeout, mask)),
        }
    }

    fn __poll_chk(fds: *mut pollfd, count: nfds_t, timeout: c_int, room: size_t) -> c_int {
        check(count as usize, room / size_of::<pollfd>());
        poll(fds, count, timeout)
    }

    fn __ppoll_chk(fds: *mut pollfd, count: nfds_t, timeout: *const timespec, mask: *const sigset_t, room: size_t) -> c_int {
        check(count as usize, room / size_of::<pollfd>());
        ppoll(fds, count, timeout, mask)
    }

    fn select(count: c_int, read: *mut fd_set, write: *mut fd_set, except: *mut fd_set, timeout: *mut timeval) -> c_int {
        let sets = Sets { count, read, write, except };
        let limit = timeout.as_ref().map(microseconds);
        if !sets.concern() || limit == Some(None) {
            return sets.pass(|| next::select(count, read, write, except, timeout));
        }
        let limit = limit.flatten();
        let deadline = Deadline::after(limit);
        let result = poll::select(&sets, deadline, limit == Some(0), core::ptr::null());
        if let (Some(left), false) = (deadline.left(), timeout.is_null()) {
            // Linux writes what is left of the time
            *timeout = timeval { tv_sec: (left / 1_000_000_000) as i64, tv_usec: (left % 1_000_000_000 / 1000) as i64 };
        }
        to_int(result)
    }

    fn pselect(count: c_int, read: *mut fd_set, write: *mut fd_set, except: *mut fd_set, timeout: *const timespec, mask: *const sigset_t) -> c_int {
        let sets = Sets { count, read, write, except };
        let limit = timeout.as_ref().map(nanoseconds);
        if !sets.concern() || limit == Some(None) {
            return sets.pass(|| next::pselect(count, read, write, except, timeout, mask));
        }
        let limit = limit.flatten();
        to_int(poll::select(&sets, Deadline::after(limit), limit == Some(0), mask))
    }

    fn epoll_create(size: c_int) -> c_int {
        after_epoll_create(next::epoll_create(size))
    }

    fn epoll_create1(flags: c_int) -> c_int {
        after_epoll_create(next::epoll_create1(flags))
    }

    fn epoll_ctl(epfd: c_int, op: c_int, fd: c_int, event: *mut epoll_event) -> c_int {
        tcp::before_asking(fd); // adding and changing look whether there is something
        let result = next::epoll_ctl(epfd, op, fd, event);
        if result == 0 && control::active() && (SOCKETS.of(fd).is_some() || EPOLLS.of(fd).is_some()) {
            crate::epoll::controlled(epfd, op, fd, event);
        }
        result
    }

    fn epoll_wait(epfd: c_int, events: *mut epoll_event, max: c_int, timeout: c_int) -> c_int {
        epoll_pwait(epfd, events, max, timeout, core::ptr::null())
    }

    fn epoll_pwait(epfd: c_int, events: *mut epoll_event, max: c_int, timeout: c_int, mask: *const sigset_t) -> c_int {
        let plainly = || next::epoll_pwait(epfd, events, max, timeout, mask);
        let Some(epoll) = EPOLLS.of(epfd).filter(|_| max > 0 && plausible(events)) else { return plainly() };
        let deadline = Deadline::after(milliseconds(timeout));
        if !((epoll.watches() || tcp::involved()) && crate::engine::ring_count() > 0)
            && let Some(count) = crate::epoll::wait_plainly(epoll, events, plainly)
        {
            return count;
        }
        to_int(Wait { epfd, events, max, deadline, look: timeout == 0, mask }.run(epoll))
    }

    fn epoll_pwait2(epfd: c_int, events: *mut epoll_event, max: c_int, timeout: *const timespec, mask: *const sigset_t) -> c_int {
        let limit = timeout.as_ref().map(nanoseconds);
        let plainly = || next::epoll_pwait2(epfd, events, max, timeout, mask);
        let usable = max > 0 && plausible(events) && limit != Some(None);
        let Some(epoll) = EPOLLS.of(epfd).filter(|_| usable) else { return plainly() };
        let limit = limit.flatten();
        let deadline = Deadline::after(limit);
        if !((epoll.watches() || tcp::involved()) && crate::engine::ring_count() > 0)
            && let Some(count) = crate::epoll::wait_plainly(epoll, events, plainly)
        {
            return count;
        }
        to_int(Wait { epfd, events, max, deadline, look: limit == Some(0), mask }.run(epoll))
    }
}

fn after_epoll_create(epfd: c_int) -> c_int {
    if epfd >= 0 && control::active() && control::own_process() {
        control::track_epoll(epfd);
    }
    epfd
}

/// The program's poll set, if it holds a lifted socket.
unsafe fn ours(fds: *mut pollfd, count: nfds_t) -> Option<&'static mut [pollfd]> {
    if fds.is_null() || count == 0 || !control::active() {
        return None;
    }
    // SAFETY: the program passed `count` entries.
    let set = unsafe { core::slice::from_raw_parts_mut(fds, count as usize) };
    poll::concerns(set).then_some(set)
}

unsafe fn passed_poll(fds: *mut pollfd, count: nfds_t, poll: impl FnOnce() -> c_int) -> c_int {
    if fds.is_null() || count == 0 || !control::active() {
        return poll();
    }
    // SAFETY: the program passed `count` entries.
    let set = unsafe { core::slice::from_raw_parts(fds, count as usize) };
    let waits = KernelWait::new(set.iter().map(|entry| entry.fd));
    let result = poll();
    waits.end();
    result
}

/// A poll timeout in nanoseconds; negative: no end.
fn milliseconds(timeout: c_int) -> Option<u64> {
    u64::try_from(timeout).ok().map(|ms| ms * 1_000_000)
}

/// None: not a valid time, for the kernel to refuse.
fn nanoseconds(time: &timespec) -> Option<u64> {
    let valid = time.tv_sec >= 0 && (0..1_000_000_000).contains(&time.tv_nsec);
    valid.then(|| (time.tv_sec as u64).saturating_mul(1_000_000_000).saturating_add(time.tv_nsec as u64))
}

fn microseconds(time: &timeval) -> Option<u64> {
    let valid = time.tv_sec >= 0 && time.tv_usec >= 0;
    valid.then(|| {
        (time.tv_sec as u64).saturating_mul(1_000_000_000).saturating_add(time.tv_usec as u64 * 1000)
    })
}

// ---- the life of sockets ----

hooks! {
    fn socket(domain: c_int, kind: c_int, protocol: c_int) -> c_int {
        let fd = next::socket(domain, kind, protocol);
        let inet = domain == libc::AF_INET || domain == libc::AF_INET6;
        let datagram = kind & !(libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC) == libc::SOCK_DGRAM;
        if fd >= 0 && inet && datagram && (protocol == 0 || protocol == libc::IPPROTO_UDP) && control::active() {
            control::track(fd, domain == libc::AF_INET6);
        }
        let stream = kind & !(libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC) == libc::SOCK_STREAM;
        if fd >= 0 && inet && stream && (protocol == 0 || protocol == libc::IPPROTO_TCP) {
            after_stream(fd);
        }
        fd
    }

    fn accept(fd: c_int, name: *mut sockaddr, len: *mut socklen_t) -> c_int {
        after_stream(next::accept(fd, name, len))
    }

    fn accept4(fd: c_int, name: *mut sockaddr, len: *mut socklen_t, flags: c_int) -> c_int {
        after_stream(next::accept4(fd, name, len, flags))
    }

    fn bind(fd: c_int, name: *const sockaddr, len: socklen_t) -> c_int {
        let result = next::bind(fd, name, len);
        if result == 0
            && let Some(socket) = SOCKETS.of(fd)
        {
            let port = if len >= 4 { u16::from_be(name.cast::<u16>().add(1).read_unaligned()) } else { 0 };
            control::bound(socket, fd, port);
        }
        result
    }

    fn connect(fd: c_int, name: *const sockaddr, len: socklen_t) -> c_int {
        if STREAMS.of(fd).is_some_and(Stream::involved) {
            tcp::reconnecting(fd);
        }
        let result = next::connect(fd, name, len);
        if result == 0
            && let Some(socket) = SOCKETS.of(fd)
        {
            control::connected(socket, fd);
        }
        result
    }

    fn shutdown(fd: c_int, how: c_int) -> c_int {
        tcp::before_asking(fd);
        let result = next::shutdown(fd, how);
        if let Some(socket) = SOCKETS.of(fd) {
            socket.kernel_first.store(true, Relaxed);
            socket.ring_bells();
        }
        result
    }

    fn getsockopt(fd: c_int, level: c_int, name: c_int, value: *mut c_void, len: *mut socklen_t) -> c_int {
        if level == libc::IPPROTO_TCP && STREAMS.of(fd).is_some_and(Stream::involved) {
            if name == options::TCP_ZEROCOPY_RECEIVE && !tcp::demote_fd(fd, Reason::Option, option_of(level, name)) {
                return fail(libc::EOPNOTSUPP);
            }
            tcp::before_asking(fd);
        }
        next::getsockopt(fd, level, name, value, len)
    }

    fn setsockopt(fd: c_int, level: c_int, name: c_int, value: *const c_void, len: socklen_t) -> c_int {
        if let Some(stream) = STREAMS.of(fd) {
            match options::stream_effect(level, name) {
                StreamEffect::None => {}
                StreamEffect::LowWater => stream.lowat.store(0, Relaxed),
                StreamEffect::Demote => {
                    tcp::demote(stream, Reason::Option, option_of(level, name));
                }
                StreamEffect::Takes if !tcp::demote(stream, Reason::Spliced, option_of(level, name)) => {
                    return fail(tcp::HELD.0);
                }
                StreamEffect::Takes => {}
            }
        }
        let result = next::setsockopt(fd, level, name, value, len);
        if result == 0
            && let Some(socket) = SOCKETS.of(fd)
        {
            let value = if value.is_null() { &[] } else { core::slice::from_raw_parts(value.cast::<u8>(), len as usize) };
            apply(socket, fd, options::effect(level, name, value), option_of(level, name));
        }
        result
    }

    fn close(fd: c_int) -> c_int {
        if control::hidden(fd) && control::own_process() {
            return fail(EBADF);
        }
        control::closing(fd);
        next::close(fd)
    }

    fn close_range(first: c_uint, last: c_uint, flags: c_int) -> c_int {
        if !control::active() || first > last || flags & libc::CLOSE_RANGE_CLOEXEC as c_int != 0 {
            return next::close_range(first, last, flags);
        }
        close_each(first, last, |first, last| next::close_range(first, last, flags))
    }

    fn posix_spawn_file_actions_adddup2(actions: *mut c_void, fd: c_int, to: c_int) -> c_int {
        if lifted(fd).is_some() {
            demote_passed(fd); // stays open in the child under another number
        }
        next::posix_spawn_file_actions_adddup2(actions, fd, to)
    }

    fn closefrom(first: c_int) -> () {
        let close = |first, last| next::close_range(first, last, 0);
        close_each(first.max(0) as c_uint, c_uint::MAX, close);
    }

    fn fclose(stream: *mut libc::FILE) -> c_int {
        if control::active() && !stream.is_null() {
            control::closing(libc::fileno(stream));
        }
        next::fclose(stream)
    }

    fn dup(fd: c_int) -> c_int {
        after_dup(fd, next::dup(fd))
    }

    fn dup2(fd: c_int, to: c_int) -> c_int {
        if fd == to {
            return next::dup2(fd, to);
        }
        if control::hidden(to) && control::own_process() {
            return fail(EBADF);
        }
        if !may_become(fd, to) {
            return fail(tcp::HELD.0);
        }
        before_replacing(fd, to);
        let new = next::dup2(fd, to);
        after_replacing(fd, new)
    }

    fn dup3(fd: c_int, to: c_int, flags: c_int) -> c_int {
        if control::hidden(to) && control::own_process() {
            return fail(EBADF);
        }
        if !may_become(fd, to) {
            return fail(tcp::HELD.0);
        }
        before_replacing(fd, to);
        let new = next::dup3(fd, to, flags);
        after_replacing(fd, new)
    }

    fn fcntl(fd: c_int, command: c_int, argument: c_ulong) -> c_int {
        let result = next::fcntl(fd, command, argument);
        if command == libc::F_SETFL && argument as c_int & libc::O_ASYNC != 0 {
            demote_for_signals(fd);
        }
        if command == libc::F_DUPFD || command == libc::F_DUPFD_CLOEXEC { after_dup(fd, result) } else { result }
    }

    fn fcntl64(fd: c_int, command: c_int, argument: c_ulong) -> c_int {
        fcntl(fd, command, argument)
    }

    fn ioctl(fd: c_int, request: c_ulong, argument: c_ulong) -> c_int {
        if request == libc::FIONREAD
            && let Some(len) = lifted(fd).and_then(|socket| receive::next_len(socket, fd))
        {
            let place = argument as *mut c_int;
            if place.is_null() {
                return fail(libc::EFAULT);
            }
            *place = len as c_int;
            return 0;
        }
        if request == libc::FIOASYNC {
            demote_for_signals(fd);
        }
        if request == libc::FIONREAD || request == options::SIOCATMARK {
            tcp::before_asking(fd);
        }
        next::ioctl(fd, request, argument)
    }

    fn fdopen(fd: c_int, mode: *const libc::c_char) -> *mut libc::FILE {
        if !tcp::demote_fd(fd, Reason::Stdio, 0) {
            set_errno(tcp::HELD);
            return core::ptr::null_mut();
        }
        next::fdopen(fd, mode)
    }

    fn _exit(status: c_int) -> ! {
        control::before_exit();
        next::_exit(status);
        libc::abort()
    }

    fn _Exit(status: c_int) -> ! {
        _exit(status)
    }

    fn quick_exit(status: c_int) -> ! {
        control::before_exit();
        next::quick_exit(status);
        libc::abort()
    }

    fn sendmsg(fd: c_int, message: *const msghdr, flags: c_int) -> ssize_t {
        if plausible(message) && !before_passing(&*message) {
            return fail(tcp::HELD.0) as ssize_t;
        }
        next::sendmsg(fd, message, flags)
    }

    fn sendmmsg(fd: c_int, messages: *mut mmsghdr, count: c_uint, flags: c_int) -> c_int {
        if plausible(messages) && !(0..count as usize).all(|i| before_passing(&(*messages.add(i)).msg_hdr)) {
            return fail(tcp::HELD.0);
        }
        next::sendmmsg(fd, messages, count, flags)
    }
}

/// An option in the form in which it is shown.
fn option_of(level: c_int, name: c_int) -> u32 {
    (level as u32) << 16 | name as u32 & 0xffff
}

/// Follows what may be a TCP connection.
fn after_stream(fd: c_int) -> c_int {
    if fd >= 0 && control::follows_streams() && control::own_process() {
        control::track_stream(fd);
    }
    fd
}

/// Carries out what an option means.
fn apply(socket: &'static Socket, fd: c_int, effect: Effect, option: u32) {
    match effect {
        Effect::None => {}
        Effect::Want { bits, on } => {
            let before = if on {
                socket.wants.fetch_or(bits, Relaxed)
            } else {
                socket.wants.fetch_and(!bits, Relaxed)
            };
            if on && bits & crate::socket::want::TIME & !before != 0 {
                control::changed(socket, fd);
            }
        }
        Effect::ReceiveBuffer => control::rcvbuf_changed(socket, fd),
        Effect::Timeout(us) => socket.timeout_us.store(us, Relaxed),
        Effect::Endpoint => control::changed(socket, fd),
        Effect::Group { join, group, ifindex } => control::group(socket, join, group, ifindex),
        Effect::Demote(reason) => control::demote(socket, reason, option),
    }
}

/// Closes a range around the shim's own descriptors.
fn close_each(first: c_uint, last: c_uint, close: impl Fn(c_uint, c_uint) -> c_int) -> c_int {
    let known = (control::highest() as c_uint).min(last.saturating_add(1));
    (first..known).for_each(|fd| control::closing(fd as c_int));
    let mut from = first;
    let end = last.min(crate::table::FDS as c_uint - 1);
    for fd in first..=end {
        if control::hidden(fd as c_int) {
            if from < fd && close(from, fd - 1) != 0 {
                return -1;
            }
            from = fd + 1;
        }
    }
    if from <= last { close(from, last) } else { 0 }
}

fn after_dup(old: c_int, new: c_int) -> c_int {
    if !may_become(old, new) {
        crate::sys::close(new);
        return fail(tcp::HELD.0);
    }
    if new >= 0 && control::active() && control::own_process() {
        control::duplicated(old, new);
    }
    new
}

/// Standard input is read by stdio, past the shim: a stream that becomes it must hold nothing.
fn may_become(fd: c_int, to: c_int) -> bool {
    to != libc::STDIN_FILENO || tcp::demote_fd(fd, Reason::Stdio, 0)
}

/// dup2 and dup3 close what `to` was: a stream is drained before.
fn before_replacing(fd: c_int, to: c_int) {
    if fd != to && STREAMS.of(to).is_some() && crate::sys::descriptor_flags(fd).is_ok() {
        control::closing(to);
    }
}

/// dup2 and dup3 have closed what `new` was.
fn after_replacing(old: c_int, new: c_int) -> c_int {
    if new >= 0 && control::active() && control::own_process() {
        if SOCKETS.of(old).is_none() {
            control::closing(new);
        }
        control::duplicated(old, new);
    }
    new
}

/// A message may carry descriptors to another process: lifted sockets among them are demoted first. False: data of one is held,
/// which the other process could not read.
unsafe fn before_passing(message: &msghdr) -> bool {
    let (start, room) = (message.msg_control as usize, message.msg_controllen);
    if room <= size_of::<libc::cmsghdr>() || !plausible(message.msg_control) || !control::active() {
        return true;
    }
    let mut all = true;
    // SAFETY: the program's control buffer, walked as CMSG_NXTHDR bounds it.
    unsafe {
        let mut header = libc::CMSG_FIRSTHDR(message);
        while let Some(found) = header.as_ref() {
            if found.cmsg_level == libc::SOL_SOCKET && found.cmsg_type == libc::SCM_RIGHTS {
                // a length beyond the buffer is for the kernel to refuse
                let end = found.cmsg_len.min(start + room - header as usize);
                let bytes = end.saturating_sub(size_of::<libc::cmsghdr>());
                let fds = libc::CMSG_DATA(header).cast::<c_int>();
                for i in 0..bytes / size_of::<c_int>() {
                    let fd = fds.add(i).read_unaligned();
                    demote_passed(fd);
                    all &= tcp::demote_fd(fd, Reason::FdPassed, 0);
                }
            }
            header = libc::CMSG_NXTHDR(message, header);
        }
    }
    all
}

/// SIGIO is the kernel's to send, and it does not see lifted datagrams.
fn demote_for_signals(fd: c_int) {
    if let Some(socket) = SOCKETS.of(fd) {
        control::demote(socket, Reason::Option, 0);
    }
}

fn demote_passed(fd: c_int) {
    if let Some(socket) = SOCKETS.of(fd) {
        control::demote(socket, Reason::FdPassed, 0);
    }
}

// ---- signals ----

hooks! {
    fn sigaction(signal: c_int, action: *const libc::sigaction, old: *mut libc::sigaction) -> c_int {
        let result = next::sigaction(signal, action, old);
        signals::changed();
        result
    }

    fn signal(number: c_int, handler: libc::sighandler_t) -> libc::sighandler_t {
        let old = next::signal(number, handler);
        signals::changed();
        old
    }

    fn __sysv_signal(number: c_int, handler: libc::sighandler_t) -> libc::sighandler_t {
        let old = next::__sysv_signal(number, handler);
        signals::changed();
        old
    }

    fn siginterrupt(signal: c_int, flag: c_int) -> c_int {
        let result = next::siginterrupt(signal, flag);
        signals::changed();
        result
    }
}

// ---- direct system calls ----

hooks! {
    fn syscall(number: c_long, a: c_long, b: c_long, c: c_long, d: c_long, e: c_long, f: c_long) -> c_long {
        match number {
            libc::SYS_recvfrom => recvfrom(a as _, b as _, c as _, d as _, e as _, f as _) as c_long,
            libc::SYS_recvmsg => recvmsg(a as _, b as _, c as _) as c_long,
            libc::SYS_recvmmsg => recvmmsg(a as _, b as _, c as _, d as _, e as _).into(),
            libc::SYS_read => read(a as _, b as _, c as _) as c_long,
            libc::SYS_readv => readv(a as _, b as _, c as _) as c_long,
            libc::SYS_socket => socket(a as _, b as _, c as _).into(),
            libc::SYS_bind => bind(a as _, b as _, c as _).into(),
            libc::SYS_connect => connect(a as _, b as _, c as _).into(),
            libc::SYS_setsockopt => setsockopt(a as _, b as _, c as _, d as _, e as _).into(),
            libc::SYS_close => close(a as _).into(),
            libc::SYS_dup => dup(a as _).into(),
            libc::SYS_dup3 => dup3(a as _, b as _, c as _).into(),
            libc::SYS_epoll_ctl => epoll_ctl(a as _, b as _, c as _, d as _).into(),
            #[cfg(target_arch = "x86_64")]
            libc::SYS_poll => poll(a as _, b as _, c as _).into(),
            #[cfg(target_arch = "x86_64")]
            libc::SYS_dup2 => dup2(a as _, b as _).into(),
            #[cfg(target_arch = "x86_64")]
            libc::SYS_epoll_wait => epoll_wait(a as _, b as _, c as _, d as _).into(),
            libc::SYS_close_range => close_range(a as _, b as _, c as _).into(),
            libc::SYS_fcntl => fcntl(a as _, b as _, c as _).into(),
            libc::SYS_ioctl => ioctl(a as _, b as _, c as _).into(),
            libc::SYS_sendmsg => sendmsg(a as _, b as _, c as _) as c_long,
            libc::SYS_ppoll if d == 0 => ppoll(a as _, b as _, c as _, core::ptr::null()).into(),
            libc::SYS_epoll_pwait2 => epoll_pwait2(a as _, b as _, c as _, d as _, e as _).into(),
            libc::SYS_accept => accept(a as _, b as _, c as _).into(),
            libc::SYS_accept4 => accept4(a as _, b as _, c as _, d as _).into(),
            libc::SYS_shutdown => shutdown(a as _, b as _).into(),
            libc::SYS_getsockopt => getsockopt(a as _, b as _, c as _, d as _, e as _).into(),
            libc::SYS_splice => splice(a as _, b as _, c as _, d as _, e as _, f as _) as c_long,
            libc::SYS_sendfile => sendfile(a as _, b as _, c as _, d as _) as c_long,
            libc::SYS_exit_group => _exit(a as _),
            libc::SYS_epoll_pwait => epoll_pwait(a as _, b as _, c as _, d as _, e as _).into(),
            _ => next::syscall(number, a, b, c, d, e, f),
        }
    }
}

// ---- exec and spawn ----

/// Stands in for functions that start a program: prepares, then becomes the original with all its arguments, however many,
/// and its caller's stack frame (vfork).
macro_rules! start_program {
    ($prepare:path: $($name:ident)+) => {$(
        /// Stand-in for the libc function of this name.
        ///
        /// # Safety
        /// As the libc function.
        #[cfg(target_arch = "x86_64")]
        #[unsafe(no_mangle)]
        #[unsafe(naked)]
        pub unsafe extern "C" fn $name() {
            extern "C" fn target() -> *mut c_void {
                const NAME: &CStr = match CStr::from_bytes_with_nul(concat!(stringify!($name), "\0").as_bytes()) {
                    Ok(name) => name,
                    Err(_) => panic!("a name without a NUL"),
                };
                static NEXT: next::Next = next::Next::new(NAME);
                $prepare();
                NEXT.address()
            }
            // the six argument registers and rax (vector registers in use, for variadic calls) are kept
            core::arch::naked_asm!(
                "push rdi", "push rsi", "push rdx", "push rcx", "push r8", "push r9", "push rax",
                "call {target}",
                "mov r11, rax",
                "pop rax", "pop r9", "pop r8", "pop rcx", "pop rdx", "pop rsi", "pop rdi",
                "jmp r11",
                target = sym target,
            )
        }
    )+};
}

start_program! { control::before_exec: execve execv execvp execvpe fexecve execveat execl execlp execle }
start_program! { control::before_spawn: posix_spawn posix_spawnp vfork }
