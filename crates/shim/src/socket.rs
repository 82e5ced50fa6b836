//! A UDP socket of the program: what is queued for it and how it wants to be served.

use crate::{demux::Endpoint, epoll::Epoll, frames::Frames, lock::Guarded, queue::Queue};
use core::sync::atomic::{
    AtomicBool, AtomicI32, AtomicPtr, AtomicU8, AtomicU32, AtomicU64,
    Ordering::{AcqRel, Acquire, Relaxed, Release},
};
use hoist_ipc::page::SocketStats;

/// Where a socket stands. Numbers order the life of a socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum State {
    /// The kernel serves it and the broker has not been asked.
    Kernel = 0,
    /// Datagrams may be in its queue.
    Lifted = 1,
    /// The broker said no, or it was demoted: the kernel serves it. What is still queued is read first.
    Passing = 2,
    /// Closed; the object waits to be used again.
    Closed = 3,
}

/// Ancillary data the program asked for: one bit each.
pub(crate) mod want {
    pub(crate) const PKTINFO: u32 = 1;
    pub(crate) const TTL: u32 = 1 << 1;
    pub(crate) const TOS: u32 = 1 << 2;
    pub(crate) const PKTINFO6: u32 = 1 << 3;
    pub(crate) const HOPLIMIT: u32 = 1 << 4;
    pub(crate) const TCLASS: u32 = 1 << 5;
    pub(crate) const TIMESTAMP: u32 = 1 << 6;
    pub(crate) const TIMESTAMPNS: u32 = 1 << 7;
    pub(crate) const OVERFLOW: u32 = 1 << 8;
    /// The `*_NEW` forms of the two timestamps: the same layout on 64-bit, another type number.
    pub(crate) const TIME_NEW: u32 = 1 << 9;
    /// UDP_GRO: neighbours in the queue may be read as one.
    pub(crate) const GRO: u32 = 1 << 10;
    /// Any arrival time.
    pub(crate) const TIME: u32 = TIMESTAMP | TIMESTAMPNS;
}

/// Which queue the last MSG_PEEK or FIONREAD looked at, so that the next read takes the same datagram.
pub(crate) mod peeked {
    pub(crate) const NOTHING: u8 = 0;
    pub(crate) const LIFTED: u8 = 1;
    pub(crate) const KERNEL: u8 = 2;
}

/// Lifted datagrams taken in a row before the kernel's queue gets a look.
const KERNEL_TURN: u32 = 64;

/// Threads that can wait on one socket with a bell each; further ones wake up every few milliseconds instead.
const BELLS: usize = 8;

pub(crate) struct Socket {
    state: AtomicU8,
    /// `SO_COOKIE`.
    pub(crate) cookie: AtomicU64,
    /// AF_INET6.
    pub(crate) v6: AtomicBool,
    /// Descriptors of this process that mean this socket.
    pub(crate) descriptors: AtomicU32,
    /// One of them.
    pub(crate) fd: AtomicI32,
    pub(crate) wants: AtomicU32,
    /// SO_RCVTIMEO in microseconds, 0: none.
    pub(crate) timeout_us: AtomicU64,
    /// `sk->sk_rcvbuf`.
    pub(crate) rcvbuf: AtomicU32,
    /// Datagrams dropped because rcvbuf was used up, in all.
    pub(crate) drops: AtomicU32,
    /// Of these, the kernel's own at the last lift (`sk_drops`).
    pub(crate) kernel_drops: AtomicU32,
    /// The port was named by the program, not chosen by the kernel.
    pub(crate) named_port: AtomicBool,
    /// Counted as young in the stats page.
    pub(crate) young: AtomicBool,
    /// Datagrams read from the kernel while unregistered.
    pub(crate) young_reads: AtomicU32,
    /// Reason (as u32) for which the shim itself keeps the socket from being lifted, 0: none; and the option.
    pub(crate) kept: AtomicU32,
    pub(crate) kept_option: AtomicU32,
    /// A read without lifted data is the kernel's turn.
    pub(crate) kernel_first: AtomicBool,
    /// The kernel's queue may hold datagrams older than the first lifted one: it goes first until it is empty.
    pub(crate) kernel_older: AtomicBool,
    /// New datagrams ride to the kernel's queue, for this one holds too many frames.
    spills: AtomicBool,
    in_a_row: AtomicU32,
    pub(crate) peeked: AtomicU8,
    queue: AtomicPtr<Queue>,
    stats: AtomicPtr<SocketStats>,
    /// Threads that sleep until something is queued here.
    pub(crate) sleepers: AtomicU32,
    bells: [AtomicI32; BELLS],
    /// Calls that wait in the kernel for this socket alone; it must not become lifted under them.
    pub(crate) kernel_waits: AtomicU32,
    pub(crate) lock_held: Producer,
}

/// What only the pump's lock holder touches.
pub(crate) struct Producer {
    pub(crate) endpoint: Guarded<Endpoint>,
    /// Next socket on the same local port.
    pub(crate) next_on_port: Guarded<Option<&'static Socket>>,
    /// Everything ever charged to the socket, bytes.
    pub(crate) charged: AtomicU64,
    pub(crate) watchers: Guarded<Vec<(&'static Epoll, u32)>>,
}

impl Socket {
    pub(crate) fn new() -> Self {
        Self {
            state: AtomicU8::new(State::Kernel as u8),
            cookie: AtomicU64::new(0),
            v6: AtomicBool::new(false),
            descriptors: AtomicU32::new(0),
            fd: AtomicI32::new(-1),
            wants: AtomicU32::new(0),
            timeout_us: AtomicU64::new(0),
            rcvbuf: AtomicU32::new(0),
            drops: AtomicU32::new(0),
            kernel_drops: AtomicU32::new(0),
            named_port: AtomicBool::new(false),
            young: AtomicBool::new(false),
            young_reads: AtomicU32::new(0),
            kept: AtomicU32::new(0),
            kept_option: AtomicU32::new(0),
            kernel_first: AtomicBool::new(false),
            kernel_older: AtomicBool::new(false),
            spills: AtomicBool::new(false),
            in_a_row: AtomicU32::new(0),
            peeked: AtomicU8::new(peeked::NOTHING),
            queue: AtomicPtr::new(core::ptr::null_mut()),
            stats: AtomicPtr::new(core::ptr::null_mut()),
            sleepers: AtomicU32::new(0),
            bells: [const { AtomicI32::new(-1) }; BELLS],
            kernel_waits: AtomicU32::new(0),
            lock_held: Producer {
                endpoint: Guarded::new(Endpoint::UNBOUND),
                next_on_port: Guarded::new(None),
                charged: AtomicU64::new(0),
                watchers: Guarded::new(Vec::new()),
            },
        }
    }

    /// Makes a closed socket new again, for `fd`. Its empty queue stays.
    pub(crate) fn renew(&self, fd: i32, cookie: u64, v6: bool, rcvbuf: u32) {
        self.cookie.store(cookie, Relaxed);
        self.v6.store(v6, Relaxed);
        self.descriptors.store(1, Relaxed);
        self.fd.store(fd, Relaxed);
        self.rcvbuf.store(rcvbuf, Relaxed);
        for word in [
            &self.wants,
            &self.drops,
            &self.kernel_drops,
            &self.young_reads,
            &self.kept,
            &self.kept_option,
            &self.in_a_row,
        ] {
            word.store(0, Relaxed);
        }
        self.timeout_us.store(0, Relaxed);
        self.named_port.store(false, Relaxed);
        self.young.store(false, Relaxed);
        self.kernel_first.store(false, Relaxed);
        self.kernel_older.store(false, Relaxed);
        self.spills.store(false, Relaxed);
        self.peeked.store(peeked::NOTHING, Relaxed);
        self.stats.store(core::ptr::null_mut(), Relaxed);
        self.sleepers.store(0, Relaxed);
        self.kernel_waits.store(0, Relaxed);
        self.lock_held.charged.store(0, Relaxed);
        self.set_state(State::Kernel);
    }

    #[inline]
    pub(crate) fn state(&self) -> State {
        match self.state.load(Acquire) {
            0 => State::Kernel,
            1 => State::Lifted,
            2 => State::Passing,
            _ => State::Closed,
        }
    }

    pub(crate) fn set_state(&self, state: State) {
        self.state.store(state as u8, Release);
    }

    /// Whether reads must look at the queue: it is lifted, or was and has datagrams left.
    #[inline]
    pub(crate) fn lifted(&self) -> bool {
        match self.state() {
            State::Lifted => true,
            State::Passing => !self.is_empty(),
            _ => false,
        }
    }

    #[inline]
    fn queue(&self) -> Option<&'static Queue> {
        // SAFETY: only `set_queue` stores here, leaked queues.
        unsafe { self.queue.load(Acquire).as_ref() }
    }

    /// Gives the socket a queue of at least `capacity` frames. Only while it is not lifted and the queue is empty.
    pub(crate) fn set_queue(&self, capacity: u32) {
        if self.queue().is_none_or(|queue| queue.capacity() < capacity) {
            self.queue.store(Box::into_raw(Box::new(Queue::new(capacity))), Release);
        }
    }

    #[inline]
    pub(crate) fn stats(&self) -> Option<&'static SocketStats> {
        // SAFETY: only `set_stats` stores here, references into the page that is never unmapped.
        unsafe { self.stats.load(Relaxed).as_ref() }
    }

    pub(crate) fn set_stats(&self, stats: &'static SocketStats) {
        self.stats.store(core::ptr::from_ref(stats).cast_mut(), Relaxed);
    }

    /// Appends a frame; false: the queue has no room.
    #[inline]
    pub(crate) fn push(&self, frame: u32) -> bool {
        self.queue().is_some_and(|queue| queue.push(frame))
    }

    #[inline]
    pub(crate) fn pop(&self) -> Option<(u32, u32)> {
        self.queue()?.pop()
    }

    #[inline]
    pub(crate) fn pop_if(&self, ticket: u32, accept: impl FnOnce(u32) -> bool) -> Option<u32> {
        self.queue()?.pop_if(ticket, accept)
    }

    #[inline]
    pub(crate) fn peek(&self) -> Option<(u32, u32)> {
        self.queue()?.peek()
    }

    #[inline]
    pub(crate) fn still_first(&self, ticket: u32) -> bool {
        self.queue().is_some_and(|queue| queue.still_first(ticket))
    }

    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.queue().is_none_or(Queue::is_empty)
    }

    #[inline]
    pub(crate) fn queued(&self) -> u32 {
        self.queue().map_or(0, Queue::len)
    }

    /// Bytes charged and not yet read, as `sk_rmem_alloc`. For the holder of the pump lock, who alone rewrites the
    /// arrivals it compares.
    #[inline]
    pub(crate) fn charged(&self, frames: &Frames) -> u64 {
        match self.peek() {
            None => 0,
            Some((frame, _)) => {
                self.lock_held.charged.load(Relaxed).saturating_sub(frames.peek_charged_before(frame))
            }
        }
    }

    /// Counts a lifted datagram taken; every so often the kernel's queue is due for a look.
    #[inline]
    pub(crate) fn count_taken(&self) {
        if self.kernel_due() {
            self.kernel_first.store(true, Relaxed);
        }
    }

    #[inline]
    fn kernel_due(&self) -> bool {
        let row = self.in_a_row.load(Relaxed) + 1;
        self.in_a_row.store(if row >= KERNEL_TURN { 0 } else { row }, Relaxed);
        row >= KERNEL_TURN
    }

    /// After a datagram from the kernel's queue: the next one is the oldest lifted, then the kernel again.
    pub(crate) fn kernel_had_turn(&self) {
        self.kernel_first.store(self.kernel_older.load(Relaxed), Relaxed);
        self.in_a_row.store(KERNEL_TURN - 1, Relaxed);
    }

    #[inline]
    pub(crate) fn spills(&self) -> bool {
        self.spills.load(Relaxed)
    }

    pub(crate) fn begin_spill(&self) {
        self.spills.store(true, Release);
    }

    pub(crate) fn end_spill(&self) {
        self.spills.store(false, Release);
    }

    /// Whether a read looks at the kernel's queue first. While it spills, the kernel's datagrams are the younger ones.
    #[inline]
    pub(crate) fn kernel_goes_first(&self) -> bool {
        if self.spills() {
            return self.is_empty();
        }
        match self.peeked.load(Relaxed) {
            peeked::NOTHING => self.kernel_first.load(Relaxed),
            peeked => peeked == peeked::KERNEL,
        }
    }

    /// Hangs a thread's bell on the socket; false if there is no place left.
    pub(crate) fn hang_bell(&self, bell: i32) -> bool {
        self.bells.iter().any(|slot| slot.compare_exchange(-1, bell, AcqRel, Relaxed).is_ok())
    }

    pub(crate) fn take_bell_down(&self, bell: i32) {
        for slot in &self.bells {
            let _ = slot.compare_exchange(bell, -1, AcqRel, Relaxed);
        }
    }

    /// Wakes every thread that sleeps on the socket.
    #[cold]
    pub(crate) fn ring_bells(&self) {
        for slot in &self.bells {
            let bell = slot.load(Acquire);
            if bell >= 0 {
                crate::sys::eventfd_ring(bell);
            }
        }
    }

    /// Counts a datagram that came from the kernel.
    pub(crate) fn count_passed(&self, bytes: usize) {
        if let Some(stats) = self.stats() {
            stats.passed_packets.fetch_add(1, Relaxed);
            stats.passed_bytes.fetch_add(bytes as u64, Relaxed);
        }
    }
}

/// What Linux charges a socket for a packet of `len` bytes: `SKB_TRUESIZE` of a buffer with the usual headroom, on 64-bit:
/// 256 bytes of `sk_buff`, 320 of `skb_shared_info`, the data rounded up to cache lines (`__napi_alloc_skb`).
#[inline]
pub(crate) fn truesize(len: u32) -> u32 {
    256 + 320 + (len + 66).next_multiple_of(64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_gets_a_turn_every_so_often() {
        let socket = Socket::new();
        assert_eq!((0..200).filter(|_| socket.kernel_due()).count(), 3);
    }

    #[test]
    fn a_read_takes_from_the_queue_that_a_peek_has_shown() {
        let socket = Socket::new();
        for kernel_first in [true, false] {
            socket.kernel_first.store(kernel_first, Relaxed);
            for (seen, expected) in
                [(peeked::NOTHING, kernel_first), (peeked::LIFTED, false), (peeked::KERNEL, true)]
            {
                socket.peeked.store(seen, Relaxed);
                assert_eq!(socket.kernel_goes_first(), expected);
            }
        }
    }

    #[test]
    fn a_default_buffer_holds_as_many_small_datagrams_as_linux_lets_it() {
        // 64-byte frames: 768 bytes each on Linux, 277 fit in 212,992.
        assert_eq!(212_992 / truesize(64), 277);
    }

    #[test]
    fn bells_come_and_go() {
        let socket = Socket::new();
        assert!((0..8).all(|bell| socket.hang_bell(bell)));
        assert!(!socket.hang_bell(8));
        socket.take_bell_down(3);
        assert!(socket.hang_bell(9));
    }
}
