//! The stats page: memory that one process's shim writes and the broker reads.
//!
//! Counters only, each a relaxed atomic: the broker shows what it finds and trusts none of it.

use crate::VERSION;
use hoist_sys::Errno;
use std::{
    os::fd::{AsRawFd, BorrowedFd},
    ptr::NonNull,
    sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
};

/// Rings a process can hold: devices times queues.
pub const RINGS: usize = 256;
/// Sockets a process can have counted at once.
pub const SOCKETS: usize = 16_384;

/// Counters of one socket. Packets are datagrams; bytes are UDP payload.
#[repr(C, align(128))]
#[derive(Default)]
pub struct SocketStats {
    /// Datagrams the program has taken from rings.
    pub lifted_packets: AtomicU64,
    /// Their payload bytes.
    pub lifted_bytes: AtomicU64,
    /// Datagrams the program has taken from the kernel socket.
    pub passed_packets: AtomicU64,
    /// Their payload bytes.
    pub passed_bytes: AtomicU64,
    /// Lifted datagrams dropped because SO_RCVBUF was used up (Linux: RcvbufErrors).
    pub dropped_rcvbuf: AtomicU64,
    /// Lifted datagrams given back to the kernel (demoted, or closed with data queued).
    pub rode: AtomicU64,
    /// Datagrams queued and not yet read.
    pub queued: AtomicU64,
    /// [`crate::Reason`] as the shim sees it (0: lifted). Set by the shim when it demotes on its own account.
    pub reason: AtomicU32,
    /// The socket option that demoted it (level << 16 | name), 0: none.
    pub option: AtomicU32,
}

/// Counters of one ring.
#[repr(C, align(128))]
#[derive(Default)]
pub struct RingStats {
    /// Frames taken from the rx ring.
    pub received: AtomicU64,
    /// UDP checksum wrong: dropped (Linux: InCsumErrors).
    pub bad_checksum: AtomicU64,
    /// Lengths or IP checksum wrong: dropped as Linux would (InHdrErrors, InErrors).
    pub bad_header: AtomicU64,
    /// No socket of the process wanted it: given to the stack.
    pub rode: AtomicU64,
    /// Could not be given to the stack (the TAP refused it): lost.
    pub ride_failed: AtomicU64,
    /// Descriptors that pointed outside the UMEM: the frame is not used again.
    pub bad_descriptor: AtomicU64,
    /// Frames queued on sockets.
    pub queued: AtomicU64,
    /// Frames the shim holds for refilling.
    pub free: AtomicU64,
    /// System calls that woke the driver because it asked (need_wakeup).
    pub wakeups: AtomicU64,
}

/// The page.
#[repr(C)]
pub struct StatsPage {
    /// [`VERSION`].
    pub version: AtomicU32,
    /// Sockets that are not registered because they are young.
    pub young_sockets: AtomicU32,
    /// Datagrams read from sockets that have no slot.
    pub unregistered_packets: AtomicU64,
    /// Their payload bytes.
    pub unregistered_bytes: AtomicU64,
    /// Times a thread slept waiting for packets.
    pub sleeps: AtomicU64,
    /// Passes over the rings.
    pub pumps: AtomicU64,
    /// The process has ended by itself and `queued` and `free` of its rings are exact.
    pub accounted: AtomicU64,
    _pad: [u64; 10],
    /// Rings by number.
    pub rings: [RingStats; RINGS],
    /// Sockets by slot.
    pub sockets: [SocketStats; SOCKETS],
}

impl StatsPage {
    /// Its size in bytes, for ftruncate.
    pub const LEN: usize = size_of::<Self>();
}

/// What may lie in memory that others write, too.
///
/// # Safety
/// Atomics only, for which any bytes are valid.
pub unsafe trait Shared {}

// SAFETY: atomics only.
unsafe impl Shared for StatsPage {}

/// A mapping of a [`StatsPage`] or [`Hub`](crate::hub::Hub); unmapped on drop.
pub struct Mapped<T: Shared = StatsPage>(NonNull<T>);

// SAFETY: the page holds atomics only, and the mapping stays until the last owner drops it.
unsafe impl<T: Shared> Send for Mapped<T> {}
// SAFETY: as above.
unsafe impl<T: Shared> Sync for Mapped<T> {}

impl<T: Shared> Mapped<T> {
    /// Maps what is behind `memfd`, which must be long enough for a `T` and sealed against shrinking.
    ///
    /// # Errors
    /// errno of fstat(2) or mmap(2); `EINVAL` for a short file.
    pub fn new(memfd: BorrowedFd<'_>) -> Result<Self, Errno> {
        if len_of(memfd)? < size_of::<T>() {
            return Err(Errno(libc::EINVAL));
        }
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let args =
            [0, size_of::<T>(), prot as usize, libc::MAP_SHARED as usize, memfd.as_raw_fd() as usize, 0];
        // SAFETY: a new mapping at an address the kernel chooses; nothing else refers to it.
        let address = hoist_sys::check(unsafe { hoist_sys::syscall(libc::SYS_mmap, args) })?;
        NonNull::new(address as *mut T).map(Self).ok_or(Errno(libc::ENOMEM))
    }

    /// A reference that outlives everything: the page is never unmapped.
    pub fn leak(self) -> &'static T {
        let page = self.0;
        core::mem::forget(self);
        // SAFETY: the mapping is whole, aligned (mmap) and never removed; all fields are atomics.
        unsafe { page.as_ref() }
    }
}

impl Mapped<StatsPage> {
    /// Marks a fresh page as made by this version.
    pub fn stamp(&self) {
        self.version.store(VERSION, Relaxed);
    }
}

impl<T: Shared> core::ops::Deref for Mapped<T> {
    type Target = T;
    fn deref(&self) -> &T {
        // SAFETY: the mapping is whole and lives as long as self; all fields are atomics.
        unsafe { self.0.as_ref() }
    }
}

impl<T: Shared> Drop for Mapped<T> {
    fn drop(&mut self) {
        // SAFETY: our own mapping, and no reference outlives self.
        unsafe {
            hoist_sys::syscall(libc::SYS_munmap, [self.0.as_ptr() as usize, size_of::<T>(), 0, 0, 0, 0])
        };
    }
}

fn len_of(fd: BorrowedFd<'_>) -> Result<usize, Errno> {
    // SAFETY: lseek takes no pointers.
    hoist_sys::check(unsafe {
        hoist_sys::syscall(libc::SYS_lseek, [fd.as_raw_fd() as usize, 0, libc::SEEK_END as usize, 0, 0, 0])
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn two_mappings_see_the_same_counters_and_a_short_file_is_refused() {
        let name = format!("hoist-page-test-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        let file = std::fs::File::options().create_new(true).read(true).write(true).open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert!(matches!(Mapped::<StatsPage>::new(file.as_fd()), Err(Errno(libc::EINVAL))));
        file.set_len(StatsPage::LEN as u64).unwrap();
        let [a, b] = [(); 2].map(|()| Mapped::<StatsPage>::new(file.as_fd()).unwrap());
        a.sockets[SOCKETS - 1].lifted_packets.store(7, Relaxed);
        assert_eq!(b.sockets[SOCKETS - 1].lifted_packets.load(Relaxed), 7);
    }
}
