//! Sleeping until something can be read: the kernel's queue, the rings, or a bell that another thread rings.

use crate::{
    bells,
    driver::{self, Spun},
    engine, next,
    signals::{self, Handlers, Held},
    socket::Socket,
    sys,
};
use core::sync::atomic::{
    AtomicPtr,
    Ordering::{Relaxed, SeqCst},
    fence,
};
use hoist_sys::Errno;
use libc::{POLLHUP, POLLIN, POLLRDHUP, c_int, pollfd};

/// Descriptors watched without an allocation.
const INLINE: usize = 64;

/// A thread that found no place for its bell looks again after so long, ns.
const BELLLESS_NS: u64 = 5_000_000;

/// glibc's flag that the process has never had a second thread; null if this libc has none.
pub(crate) static SINGLE_THREADED: AtomicPtr<libc::c_char> = AtomicPtr::new(core::ptr::null_mut());

pub(crate) fn single_threaded() -> bool {
    let flag = SINGLE_THREADED.load(Relaxed);
    // SAFETY: dlsym found the variable in libc, which stays loaded; glibc documents it as readable at any time.
    !flag.is_null() && unsafe { flag.read_volatile() } != 0
}

/// A point in time after which a wait is over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Deadline(Option<u64>);

impl Deadline {
    pub(crate) const NEVER: Self = Self(None);

    /// `ns` from now; None: never.
    pub(crate) fn after(ns: Option<u64>) -> Self {
        Self(ns.map(|ns| sys::clock_ns(libc::CLOCK_MONOTONIC).saturating_add(ns)))
    }

    pub(crate) fn is_never(self) -> bool {
        self.0.is_none()
    }

    /// Nanoseconds left, 0 when over; None: no end.
    pub(crate) fn left(self) -> Option<u64> {
        self.0.map(|at| at.saturating_sub(sys::clock_ns(libc::CLOCK_MONOTONIC)))
    }

    pub(crate) fn over(self) -> bool {
        self.left() == Some(0)
    }
}

pub(crate) fn timespec(ns: u64) -> libc::timespec {
    libc::timespec { tv_sec: (ns / 1_000_000_000) as i64, tv_nsec: (ns % 1_000_000_000) as i64 }
}

/// A small array of pollfds that grows onto the heap only for many descriptors.
pub(crate) struct PollSet {
    inline: [pollfd; INLINE],
    heap: Vec<pollfd>,
    len: usize,
}

const NOTHING: pollfd = pollfd { fd: -1, events: 0, revents: 0 };

impl PollSet {
    pub(crate) fn new() -> Self {
        Self { inline: [NOTHING; INLINE], heap: Vec::new(), len: 0 }
    }

    #[inline]
    pub(crate) fn push(&mut self, fd: c_int, events: i16) {
        let entry = pollfd { fd, events, revents: 0 };
        if self.len < INLINE {
            self.inline[self.len] = entry;
        } else {
            if self.heap.is_empty() {
                self.heap.extend_from_slice(&self.inline);
            }
            self.heap.push(entry);
        }
        self.len += 1;
    }

    pub(crate) fn push_rings(&mut self) {
        engine::ring_fds().for_each(|fd| self.push(fd, POLLIN));
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [pollfd] {
        if self.heap.is_empty() { &mut self.inline[..self.len] } else { &mut self.heap }
    }
}

/// Hangs a bell on sockets for the time of a wait, and takes it down again.
pub(crate) struct Waiting<'a, S: Iterator<Item = &'a Socket> + Clone> {
    sockets: S,
    bell: Option<i32>,
    /// Some socket had no place for the bell.
    homeless: bool,
}

impl<'a, S: Iterator<Item = &'a Socket> + Clone> Waiting<'a, S> {
    pub(crate) fn on(sockets: S) -> Self {
        let alone = single_threaded();
        let bell = if alone { None } else { bells::borrow() };
        let mut homeless = !alone && bell.is_none();
        for socket in sockets.clone() {
            if let Some(bell) = bell {
                homeless |= !socket.hang_bell(bell);
            }
            socket.sleepers.fetch_add(1, SeqCst);
        }
        fence(SeqCst); // pairs with `State::finish`: either we see the data or the pump sees the sleeper
        if let Some(page) = engine::page() {
            page.sleeps.store(page.sleeps.load(Relaxed) + 1, Relaxed);
        }
        Self { sockets, bell, homeless }
    }

    pub(crate) fn bell(&self) -> Option<i32> {
        self.bell
    }

    /// Anything to read already?
    pub(crate) fn ready(&self) -> bool {
        self.sockets.clone().any(|socket| !socket.is_empty())
    }

    /// How long a sleep may last, ns.
    pub(crate) fn limit(&self, left: Option<u64>) -> Option<u64> {
        if self.homeless { Some(left.unwrap_or(u64::MAX).min(BELLLESS_NS)) } else { left }
    }

    /// Takes the bell down. Not a destructor: a cancelled thread leaves it hanging, which costs a needless wake-up.
    pub(crate) fn end(self) {
        for socket in self.sockets {
            socket.sleepers.fetch_sub(1, SeqCst);
            if let Some(bell) = self.bell {
                socket.take_bell_down(bell);
            }
        }
        if let Some(bell) = self.bell {
            bells::put_back(bell);
        }
    }
}

/// Why a wait for one socket ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Woken {
    /// The kernel's queue may have something (or an error).
    Kernel,
    /// The socket is shut down for reading: a blocking read of the kernel's returns at once.
    Shutdown,
    /// Look at the rings and the queue.
    Look,
    /// The time is over.
    Timeout,
    /// A signal: the call ends with EINTR.
    Interrupted,
}

/// Sleeps until a read of `socket` is worth another try.
pub(crate) fn for_socket(socket: &Socket, fd: c_int, deadline: Deadline) -> Woken {
    let waiting = Waiting::on(core::iter::once(socket));
    match driver::spin(deadline, core::ptr::null(), || waiting.ready()) {
        // with a timeout, Linux never restarts (sock_intr_errno)
        Spun::Signal { restarts } if !(restarts && deadline.is_never()) => {
            waiting.end();
            return Woken::Interrupted;
        }
        Spun::Lifted | Spun::Signal { .. } | Spun::Nothing => {}
    }
    if waiting.ready() {
        waiting.end();
        return Woken::Look;
    }
    let mut set = PollSet::new();
    set.push(fd, POLLIN | POLLRDHUP);
    set.push_rings();
    if let Some(bell) = waiting.bell() {
        set.push(bell, POLLIN);
    }
    let limit = waiting.limit(deadline.left());
    let woken = sleep(&mut set, limit, deadline);
    waiting.end();
    woken
}

/// Sleeps on a set of the shim's making, the first entry being the program's socket.
pub(crate) fn for_set(set: &mut PollSet, limit: Option<u64>, deadline: Deadline) -> Woken {
    sleep(set, limit, deadline)
}

fn sleep(set: &mut PollSet, limit: Option<u64>, deadline: Deadline) -> Woken {
    // with a timeout, Linux never restarts (sock_intr_errno)
    if deadline.is_never() && signals::handlers() == Handlers::Mixed {
        return sleep_watching_signals(set, limit);
    }
    match poll(set, limit) {
        Ok(0) if deadline.over() => Woken::Timeout,
        Ok(_) => verdict(set),
        // without a handler it was a stop that a continue ended
        Err(Errno(libc::EINTR))
            if deadline.is_never() && matches!(signals::handlers(), Handlers::Restart | Handlers::None) =>
        {
            Woken::Look
        }
        Err(_) => Woken::Interrupted,
    }
}

fn sleep_watching_signals(set: &mut PollSet, limit: Option<u64>) -> Woken {
    let Some(held) = Held::new() else {
        return if poll(set, limit).is_ok() { verdict(set) } else { Woken::Interrupted };
    };
    set.push(held.fd, POLLIN);
    let _ = poll(set, limit);
    match held.release() {
        Some(false) => Woken::Interrupted,
        _ => verdict(set),
    }
}

fn verdict(set: &mut PollSet) -> Woken {
    match set.as_mut_slice().first().map_or(0, |entry| entry.revents) {
        0 => Woken::Look,
        events if events & (POLLRDHUP | POLLHUP) != 0 => Woken::Shutdown,
        _ => Woken::Kernel,
    }
}

/// Through libc, so that the wait is a cancellation point.
fn poll(set: &mut PollSet, limit: Option<u64>) -> Result<usize, Errno> {
    let time = limit.map(timespec);
    let time = time.as_ref().map_or(core::ptr::null(), core::ptr::from_ref);
    let fds = set.as_mut_slice();
    // SAFETY: the array and the timespec are ours and live across the call.
    let count = unsafe { next::ppoll(fds.as_mut_ptr(), fds.len() as u64, time, core::ptr::null()) };
    if count < 0 { Err(Errno(crate::errno())) } else { Ok(count as usize) }
}
