//! Signals while a thread waits, and handlers that read.

use super::Ctx;
use crate::{
    peer::{is_asleep, number_of, until_asleep},
    sock::{self, DEADLINE_MS, check, epoll, epoll_add, epoll_wait, errno, pollfd},
};
use std::{
    mem::zeroed,
    os::fd::{AsRawFd, RawFd},
    ptr::null_mut,
    sync::atomic::{
        AtomicBool, AtomicI32, AtomicU32,
        Ordering::{Relaxed, SeqCst},
    },
    thread::{scope, yield_now},
    time::Duration,
};

static SEEN: AtomicU32 = AtomicU32::new(0);

extern "C" fn count(_: i32) {
    SEEN.fetch_add(1, SeqCst);
}

/// How often the handler of [`count_signals`] ran.
pub(super) fn signals_seen() -> u32 {
    SEEN.load(SeqCst)
}

/// Counts a signal from now on; `flags` is 0 or `SA_RESTART`.
pub(super) fn count_signals(signal: i32, flags: i32) {
    handle(signal, flags, count);
}

fn handle(signal: i32, flags: i32, handler: extern "C" fn(i32)) {
    // SAFETY: sigaction is plain old data for which all-zero is valid.
    let mut action: libc::sigaction = unsafe { zeroed() };
    action.sa_sigaction = handler as *const () as usize;
    action.sa_flags = flags;
    // SAFETY: the handlers of this file touch atomics and make system calls only.
    check(unsafe { libc::sigaction(signal, &action, null_mut()) }).unwrap();
}

/// Sends a signal to this thread.
pub(super) fn raise(signal: i32) {
    // SAFETY: no pointers.
    assert_eq!(unsafe { libc::raise(signal) }, 0);
}

/// The empty signal mask.
pub(super) fn none_blocked() -> libc::sigset_t {
    // SAFETY: sigemptyset fills in the set.
    unsafe {
        let mut set = zeroed();
        libc::sigemptyset(&mut set);
        set
    }
}

/// Keeps a signal blocked in this thread until dropped.
pub(super) struct Blocked(libc::sigset_t);

/// Blocks a signal in this thread.
pub(super) fn blocked(signal: i32) -> Blocked {
    let (mut set, mut old) = (none_blocked(), none_blocked());
    // SAFETY: both sets are locals.
    unsafe {
        libc::sigaddset(&mut set, signal);
        libc::pthread_sigmask(libc::SIG_BLOCK, &set, &mut old);
    }
    Blocked(old)
}

impl Drop for Blocked {
    fn drop(&mut self) {
        // SAFETY: the set was filled in by the kernel.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &self.0, null_mut()) };
    }
}

/// A thread, as others see it.
#[derive(Clone, Copy)]
pub(super) struct Thread {
    tid: i32,
}

impl Thread {
    /// The calling one.
    pub(super) fn this() -> Self {
        // SAFETY: no arguments.
        Self { tid: unsafe { libc::gettid() } }
    }

    /// Waits until it sleeps in a system call.
    pub(super) fn until_asleep(self) {
        until_asleep(self.tid).unwrap();
    }

    fn asleep(self) -> bool {
        is_asleep(self.tid).unwrap()
    }

    /// Its number.
    pub(super) fn tid(self) -> i32 {
        self.tid
    }

    /// Sends it a signal.
    pub(super) fn signal(self, signal: i32) {
        // SAFETY: no pointers.
        check(unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), self.tid, signal) }).unwrap();
    }

    /// Sends SIGUSR1 and waits until it was handled.
    pub(super) fn interrupt(self) {
        let before = signals_seen();
        self.signal(libc::SIGUSR1);
        while signals_seen() == before {
            yield_now();
        }
    }
}

/// Makes `call` while another thread interrupts this one whenever it sleeps.
pub(super) fn interrupted<T>(call: impl FnOnce() -> T) -> T {
    let (this, over) = (Thread::this(), AtomicBool::new(false));
    scope(|scope| {
        scope.spawn(|| {
            while !over.load(SeqCst) {
                if this.asleep() {
                    this.interrupt();
                }
                yield_now();
            }
        });
        let result = call();
        over.store(true, SeqCst);
        result
    })
}

/// A socket through which one datagram has come.
fn used(ctx: &mut Ctx) -> (std::os::fd::OwnedFd, std::net::SocketAddr) {
    let (s, at) = ctx.bound4();
    ctx.send(at, &[b"first"]);
    assert_eq!(sock::take(&s, 100, 0).unwrap(), b"first");
    (s, at)
}

#[track_caller]
fn assert_works(ctx: &mut Ctx, s: &impl AsRawFd, at: std::net::SocketAddr) {
    ctx.send(at, &[b"last"]);
    sock::wait_readable(s);
    assert_eq!(sock::take(s, 100, libc::MSG_DONTWAIT).unwrap(), b"last");
}

pub(super) fn recv_is_interrupted(ctx: &mut Ctx) {
    let (s, at) = used(ctx);
    count_signals(libc::SIGUSR1, 0);
    assert_eq!(errno(interrupted(|| sock::take(&s, 100, 0))), libc::EINTR);
    assert_eq!(errno(interrupted(|| sock::read(&s, &mut [0; 10]))), libc::EINTR);
    let call = || sock::recv_msg(&s, &mut [&mut [0; 10]], 0, 0);
    assert_eq!(errno(interrupted(call)), libc::EINTR);
    assert_works(ctx, &s, at);
}

pub(super) fn recv_goes_on_with_sa_restart(ctx: &mut Ctx) {
    let (s, at) = used(ctx);
    count_signals(libc::SIGUSR1, libc::SA_RESTART);
    let this = Thread::this();
    scope(|scope| {
        scope.spawn(|| {
            for _ in 0..5 {
                this.until_asleep();
                this.interrupt();
            }
            this.until_asleep();
            ctx.send(at, &[b"after"]);
        });
        assert_eq!(sock::take(&s, 100, 0).unwrap(), b"after");
    });
    assert_eq!(signals_seen(), 5);
}

/// signal(7): a receive timeout makes the call fail with EINTR even with SA_RESTART.
pub(super) fn a_timeout_is_always_interrupted(ctx: &mut Ctx) {
    let (s, at) = used(ctx);
    count_signals(libc::SIGUSR1, libc::SA_RESTART);
    sock::set_timeout(&s, Duration::from_secs(30));
    assert_eq!(errno(interrupted(|| sock::take(&s, 100, 0))), libc::EINTR);
    assert_works(ctx, &s, at);
}

pub(super) fn recvmmsg_is_interrupted(ctx: &mut Ctx) {
    let (s, at) = used(ctx);
    count_signals(libc::SIGUSR1, 0);
    assert_eq!(errno(interrupted(|| sock::recv_mmsg(&s, 4, 100, 0, None))), libc::EINTR);
    ctx.send(at, &[b"one"]);
    sock::wait_readable(&s);
    let list = interrupted(|| sock::recv_mmsg(&s, 4, 100, 0, None)).unwrap();
    assert_eq!(list.len(), 1, "what was read is not lost to the signal");
    sock::get(&s, libc::SOL_SOCKET, libc::SO_ERROR).unwrap(); // `do_recvmmsg` leaves the interruption there
    assert_works(ctx, &s, at);
}

pub(super) fn poll_is_always_interrupted(ctx: &mut Ctx) {
    let (s, at) = used(ctx);
    count_signals(libc::SIGUSR1, libc::SA_RESTART);
    for timeout in [-1, DEADLINE_MS] {
        let call = || sock::poll(&mut [pollfd(&s, libc::POLLIN)], timeout);
        assert_eq!(errno(interrupted(call)), libc::EINTR);
    }
    assert_works(ctx, &s, at);
}

pub(super) fn select_is_always_interrupted(ctx: &mut Ctx) {
    let (s, at) = used(ctx);
    count_signals(libc::SIGUSR1, libc::SA_RESTART);
    let call = || {
        let mut set = sock::fd_set(&[s.as_raw_fd()]);
        // SAFETY: the set is a local.
        check(unsafe { libc::select(s.as_raw_fd() + 1, &mut set, null_mut(), null_mut(), null_mut()) })
    };
    assert_eq!(errno(interrupted(call)), libc::EINTR);
    assert_works(ctx, &s, at);
}

pub(super) fn epoll_is_always_interrupted(ctx: &mut Ctx) {
    let (s, at) = used(ctx);
    count_signals(libc::SIGUSR1, libc::SA_RESTART);
    let ep = epoll();
    epoll_add(&ep, &s, libc::EPOLLIN, 7);
    for timeout in [-1, DEADLINE_MS] {
        assert_eq!(errno(interrupted(|| epoll_wait(&ep, 4, timeout))), libc::EINTR);
    }
    assert_works(ctx, &s, at);
}

/// What the reading handler reads from, how often each number was read, and how many reads there were.
static HANDLER_SOCKET: AtomicI32 = AtomicI32::new(-1);
static TAKEN: [AtomicU32; TOTAL as usize] = [const { AtomicU32::new(0) }; TOTAL as usize];
static READS: AtomicU32 = AtomicU32::new(0);
const TOTAL: u32 = 3_000;
const BATCH: u32 = 50;

extern "C" fn read_one(_: i32) {
    let fd: RawFd = HANDLER_SOCKET.load(SeqCst);
    let mut buffer = [0u8; 16];
    // SAFETY: recv(2) into a local buffer; errno is put back as a handler must.
    let len = unsafe {
        let errno = *libc::__errno_location();
        let len = libc::recv(fd, buffer.as_mut_ptr().cast(), buffer.len(), libc::MSG_DONTWAIT);
        *libc::__errno_location() = errno;
        len
    };
    if len == 16 {
        mark(u32::from_be_bytes([buffer[0], buffer[1], buffer[2], buffer[3]]));
    }
    SEEN.fetch_add(1, SeqCst);
}

fn mark(number: u32) {
    TAKEN[number as usize % TAKEN.len()].fetch_add(1, Relaxed);
    READS.fetch_add(1, SeqCst);
}

pub(super) fn a_handler_reads_another_socket(ctx: &mut Ctx) {
    let (s, at) = used(ctx);
    let (other, other_at) = used(ctx);
    HANDLER_SOCKET.store(other.as_raw_fd(), SeqCst);
    handle(libc::SIGUSR1, libc::SA_RESTART, read_one);
    let this = Thread::this();
    scope(|scope| {
        scope.spawn(|| {
            for i in 0..20 {
                this.until_asleep();
                ctx.send_numbered(other_at, i, 1, 16);
                sock::wait_readable(&other);
                this.interrupt();
            }
            ctx.send(at, &[b"after"]);
        });
        assert_eq!(sock::take(&s, 100, 0).unwrap(), b"after");
    });
    assert!(TAKEN[..20].iter().all(|count| count.load(Relaxed) == 1));
}

pub(super) fn a_handler_reads_the_same_socket(ctx: &mut Ctx) {
    let (s, at) = used(ctx);
    HANDLER_SOCKET.store(s.as_raw_fd(), SeqCst);
    handle(libc::SIGUSR1, libc::SA_RESTART, read_one);
    ctx.send_numbered(at, 0, 2, 16);
    sock::wait_readable(&s);
    raise(libc::SIGUSR1);
    assert_eq!(TAKEN[0].load(Relaxed), 1);
    assert_eq!(number_of(&sock::take(&s, 100, 0).unwrap()), 1);
}

/// The handler may come in the middle of a recv of the same socket; both read, and nothing is read twice or lost.
pub(super) fn a_storm_of_signals_loses_nothing(ctx: &mut Ctx) {
    let (s, at) = used(ctx);
    HANDLER_SOCKET.store(s.as_raw_fd(), SeqCst);
    handle(libc::SIGALRM, libc::SA_RESTART, read_one);
    sock::set_timeout(&s, Duration::from_millis(20)); // the handler may take the last one
    alarm_every(Duration::from_micros(300));
    let reader = || {
        while READS.load(SeqCst) < TOTAL {
            if let Ok(bytes) = sock::take(&s, 100, 0) {
                mark(number_of(&bytes));
            }
        }
    };
    scope(|scope| {
        scope.spawn(|| send_without_signals(ctx, at));
        reader();
    });
    alarm_every(Duration::ZERO);
    assert!(TAKEN.iter().all(|count| count.load(Relaxed) == 1));
    assert!(signals_seen() > 0);
}

fn send_without_signals(ctx: &mut Ctx, at: std::net::SocketAddr) {
    let _guard = blocked(libc::SIGALRM);
    for first in (0..TOTAL).step_by(BATCH as usize) {
        ctx.send_numbered(at, first, BATCH, 16);
        while READS.load(SeqCst) + BATCH < first {
            yield_now();
        }
    }
}

fn alarm_every(d: Duration) {
    let time = libc::timeval { tv_sec: 0, tv_usec: d.subsec_micros() as _ };
    let timer = libc::itimerval { it_interval: time, it_value: time };
    // SAFETY: the new value is a local, the old one is not asked for.
    check(unsafe { libc::setitimer(libc::ITIMER_REAL, &timer, null_mut()) }).unwrap();
}
