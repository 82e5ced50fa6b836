//! `poll` and `select` over sets that hold lifted sockets.

use crate::{
    control,
    driver::{self, Spun},
    engine, epoll, next,
    socket::Socket,
    sys,
    table::{EPOLLS, SOCKETS, STREAMS},
    tcp::{self, Stream},
    wait::{Deadline, PollSet, Waiting, timespec},
};
use core::sync::atomic::{
    AtomicU32,
    Ordering::{Relaxed, SeqCst},
};
use hoist_sys::Errno;
use libc::{POLLIN, POLLRDNORM, c_int, fd_set, pollfd, sigset_t};

type Result<T> = core::result::Result<T, Errno>;

/// What lifted data makes readable.
const READABLE: i16 = POLLIN | POLLRDNORM;

/// Polls answered from lifted data alone between two looks at the kernel.
const KERNEL_TURN: u32 = 16;

static SINCE_KERNEL: AtomicU32 = AtomicU32::new(0);

/// The lifted sockets that `fds` wait to read from.
fn lifted(fds: &[pollfd]) -> impl Iterator<Item = &'static Socket> + Clone + '_ {
    fds.iter()
        .filter(|entry| entry.events & READABLE != 0)
        .filter_map(|entry| SOCKETS.of(entry.fd).filter(|socket| socket.lifted()))
}

/// Whether a set needs the shim at all. Notes epoll instances in it, whose state then must be visible from outside.
pub(crate) fn concerns(fds: &[pollfd]) -> bool {
    let mut concerned = false;
    for entry in fds {
        alone_no_longer(entry.fd);
        concerned |= entry.events & READABLE != 0 && SOCKETS.of(entry.fd).is_some_and(Socket::lifted);
        concerned |= STREAMS.of(entry.fd).is_some_and(Stream::involved);
        if EPOLLS.of(entry.fd).is_some() {
            epoll::watched_from_outside(entry.fd);
        }
    }
    concerned
}

fn alone_no_longer(fd: c_int) {
    if driver::spins()
        && let Some(socket) = SOCKETS.of(fd)
    {
        control::no_longer_alone(socket, fd);
    }
}

/// `ppoll` on a set for which [`concerns`] holds. `look`: the timeout is zero.
pub(crate) fn poll(
    fds: &mut [pollfd],
    deadline: Deadline,
    look: bool,
    mask: *const sigset_t,
) -> Result<usize> {
    loop {
        engine::pump();
        tcp::before_wait();
        if lifted(fds).any(|socket| !socket.is_empty()) {
            match answer(fds)? {
                0 if !look => {} // another thread was faster
                count => return Ok(count),
            }
        }
        if look {
            let count = sys::poll_look(fds.as_mut_ptr(), fds.len())?;
            engine::pump();
            return Ok(count + mark(fds));
        }
        if tcp::involved() {
            let count = sys::poll_look(fds.as_mut_ptr(), fds.len())?;
            if count > 0 {
                return Ok(count + mark(fds));
            }
        }
        match driver::spin(deadline, mask, || lifted(fds).any(|socket| !socket.is_empty())) {
            Spun::Lifted => continue,
            Spun::Signal { .. } => return Err(Errno(libc::EINTR)),
            Spun::Nothing => {}
        }
        if let Some(count) = sleep(fds, deadline, mask)? {
            return Ok(count);
        }
    }
}

/// Some socket has lifted data: nothing is waited for, and the kernel is asked only if it could know more.
fn answer(fds: &mut [pollfd]) -> Result<usize> {
    let all_ours = fds.iter().all(|entry| {
        entry.fd < 0 || entry.events & !READABLE == 0 && SOCKETS.of(entry.fd).is_some_and(Socket::lifted)
    });
    if all_ours && SINCE_KERNEL.fetch_add(1, Relaxed) < KERNEL_TURN {
        fds.iter_mut().for_each(|entry| entry.revents = 0);
        return Ok(mark(fds));
    }
    SINCE_KERNEL.store(0, Relaxed);
    let count = sys::poll_look(fds.as_mut_ptr(), fds.len())?;
    Ok(count + mark(fds))
}

/// Marks readable sockets; returns how many entries got their first event by it.
fn mark(fds: &mut [pollfd]) -> usize {
    let mut fresh = 0;
    for entry in fds {
        let wants = entry.events & READABLE;
        if wants == 0 || !SOCKETS.of(entry.fd).is_some_and(|socket| socket.lifted() && !socket.is_empty()) {
            continue;
        }
        fresh += usize::from(entry.revents == 0);
        entry.revents |= wants;
    }
    fresh
}

/// Sleeps in the kernel with the rings and a bell beside the program's descriptors. None: look again.
fn sleep(fds: &mut [pollfd], deadline: Deadline, mask: *const sigset_t) -> Result<Option<usize>> {
    let mut set = PollSet::new();
    fds.iter().for_each(|entry| set.push(entry.fd, entry.events));
    set.push_rings();
    let sockets: Vec<&Socket> = lifted(fds).collect();
    let waiting = Waiting::on(sockets.iter().copied());
    if let Some(bell) = waiting.bell() {
        set.push(bell, POLLIN);
    }
    if waiting.ready() {
        waiting.end();
        return Ok(None);
    }
    let time = waiting.limit(deadline.left()).map(timespec);
    let time = time.as_ref().map_or(core::ptr::null(), core::ptr::from_ref);
    let polled = set.as_mut_slice();
    let asleep = tcp::Asleep::new();
    // SAFETY: the array and the timespec are ours; the mask is the program's.
    let count = unsafe { next::ppoll(polled.as_mut_ptr(), polled.len() as u64, time, mask) };
    let interrupted = Errno(crate::errno());
    drop(asleep);
    waiting.end();
    if count < 0 {
        return Err(interrupted);
    }
    for (entry, polled) in fds.iter_mut().zip(polled.iter()) {
        entry.revents = polled.revents;
    }
    engine::pump();
    mark(fds);
    let ready = fds.iter().filter(|entry| entry.revents != 0).count();
    Ok((ready > 0 || deadline.over()).then_some(ready))
}

/// `fd_set`s of a select, null where the program passed none.
pub(crate) struct Sets {
    pub(crate) count: c_int,
    pub(crate) read: *mut fd_set,
    pub(crate) write: *mut fd_set,
    pub(crate) except: *mut fd_set,
}

/// As the kernel's POLLIN_SET and its kin (fs/select.c).
const READ_SET: i16 = POLLIN | POLLRDNORM | libc::POLLRDBAND | libc::POLLHUP | libc::POLLERR;
const WRITE_SET: i16 = libc::POLLOUT | libc::POLLWRNORM | libc::POLLWRBAND | libc::POLLERR;
const EXCEPT_SET: i16 = libc::POLLPRI;

impl Sets {
    /// Bit `fd` of a set.
    fn has(set: *const fd_set, fd: c_int) -> bool {
        // SAFETY: null was checked; the program's set has room for `count` bits, and fd < count.
        !set.is_null() && unsafe { *word(set.cast_mut(), fd) } >> (fd as usize % 64) & 1 == 1
    }

    fn clear(&self, set: *mut fd_set) {
        if set.is_null() {
            return;
        }
        for fd in 0..self.count {
            // SAFETY: as in `has`.
            unsafe { *word(set, fd) &= !(1 << (fd as usize % 64)) };
        }
    }

    fn put(set: *mut fd_set, fd: c_int) {
        // SAFETY: as in `has`; the program passed this set, for the bit was in it.
        unsafe { *word(set, fd) |= 1 << (fd as usize % 64) };
    }

    /// Whether a lifted socket or an epoll instance of ours is to be read.
    pub(crate) fn concern(&self) -> bool {
        let ours = |fd| {
            alone_no_longer(fd);
            SOCKETS.of(fd).is_some_and(Socket::lifted)
                || EPOLLS.of(fd).is_some()
                || STREAMS.of(fd).is_some_and(Stream::involved)
        };
        self.count > 0
            && !self.read.is_null()
            && (0..self.count).any(|fd| Self::has(self.read, fd) && ours(fd))
    }

    /// Runs libc's select on sets that do not concern the shim.
    pub(crate) fn pass(&self, select: impl FnOnce() -> c_int) -> c_int {
        if self.count <= 0 || self.read.is_null() || !crate::control::active() {
            return select();
        }
        let waits = KernelWait::new((0..self.count).filter(|&fd| Self::has(self.read, fd)));
        let result = select();
        waits.end();
        result
    }

    fn to_poll(&self) -> Vec<pollfd> {
        let entry = |fd| {
            let mut events = 0;
            for (set, bits) in
                [(self.read, POLLIN | POLLRDNORM), (self.write, libc::POLLOUT), (self.except, libc::POLLPRI)]
            {
                events |= if Self::has(set, fd) { bits } else { 0 };
            }
            pollfd { fd, events, revents: 0 }
        };
        (0..self.count).map(entry).filter(|entry| entry.events != 0).collect()
    }

    /// Writes the result; the number of bits set.
    fn take(&self, fds: &[pollfd]) -> usize {
        let asked: Vec<[bool; 3]> = fds
            .iter()
            .map(|entry| [self.read, self.write, self.except].map(|set| Self::has(set, entry.fd)))
            .collect();
        [self.read, self.write, self.except].into_iter().for_each(|set| self.clear(set));
        let mut bits = 0;
        for (entry, asked) in fds.iter().zip(asked) {
            let sets = [(self.read, READ_SET), (self.write, WRITE_SET), (self.except, EXCEPT_SET)];
            for ((set, mask), asked) in sets.into_iter().zip(asked) {
                if asked && entry.revents & mask != 0 {
                    Self::put(set, entry.fd);
                    bits += 1;
                }
            }
        }
        bits
    }
}

/// The word of a set that holds bit `fd`.
///
/// # Safety
/// The set has more than `fd` bits.
unsafe fn word(set: *mut fd_set, fd: c_int) -> *mut u64 {
    // SAFETY: by contract; fd_set is an array of longs.
    unsafe { set.cast::<u64>().add(fd as usize / 64) }
}

/// `pselect` on sets for which [`Sets::concern`] holds.
pub(crate) fn select(sets: &Sets, deadline: Deadline, look: bool, mask: *const sigset_t) -> Result<usize> {
    let mut fds = sets.to_poll();
    let _ = concerns(&fds);
    loop {
        poll(&mut fds, deadline, look, mask)?;
        if fds.iter().any(|entry| entry.revents & libc::POLLNVAL != 0) {
            return Err(Errno(libc::EBADF));
        }
        // a hang-up alone is no bit of a write or except set: as in Linux, the wait goes on
        let bits = sets_would_take(sets, &fds);
        if bits || look || deadline.over() {
            return Ok(sets.take(&fds));
        }
    }
}

fn sets_would_take(sets: &Sets, fds: &[pollfd]) -> bool {
    fds.iter().any(|entry| {
        [(sets.read, READ_SET), (sets.write, WRITE_SET), (sets.except, EXCEPT_SET)]
            .into_iter()
            .any(|(set, mask)| Sets::has(set, entry.fd) && entry.revents & mask != 0)
    })
}

/// Counts a wait that goes to the kernel as it is, so that none of its sockets becomes lifted under it.
pub(crate) struct KernelWait(Vec<&'static Socket>);

impl KernelWait {
    pub(crate) fn new(fds: impl Iterator<Item = c_int>) -> Self {
        // an empty Vec allocates nothing: most sets hold no UDP socket
        let sockets: Vec<_> = fds.filter_map(|fd| SOCKETS.of(fd)).collect();
        for socket in &sockets {
            socket.kernel_waits.fetch_add(1, SeqCst);
        }
        Self(sockets)
    }

    pub(crate) fn end(self) {
        for socket in self.0 {
            socket.kernel_waits.fetch_sub(1, SeqCst);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(fds: &[c_int]) -> fd_set {
        // SAFETY: an fd_set of zeros is the empty set.
        let mut set: fd_set = unsafe { core::mem::zeroed() };
        fds.iter().for_each(|&fd| Sets::put(&raw mut set, fd));
        set
    }

    #[test]
    fn sets_become_poll_entries_and_back() {
        let (mut read, mut write) = (set(&[3, 70]), set(&[70]));
        let sets =
            Sets { count: 71, read: &raw mut read, write: &raw mut write, except: core::ptr::null_mut() };
        let mut fds = sets.to_poll();
        assert_eq!(
            fds.iter().map(|entry| (entry.fd, entry.events)).collect::<Vec<_>>(),
            [(3, POLLIN | POLLRDNORM), (70, POLLIN | POLLRDNORM | libc::POLLOUT)]
        );
        fds[1].revents = libc::POLLERR;
        assert!(sets_would_take(&sets, &fds));
        assert_eq!(sets.take(&fds), 2);
        assert!(!Sets::has(sets.read, 3) && Sets::has(sets.read, 70) && Sets::has(sets.write, 70));
    }
}
