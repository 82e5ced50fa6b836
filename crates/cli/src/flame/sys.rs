//! perf_event_open(2), its ring, pidfd_open(2): the system calls of the sampler.
#![allow(unsafe_code)]

use std::{
    ffi::{c_long, c_void},
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
    ptr::{self, NonNull},
    sync::atomic::{
        AtomicU64,
        Ordering::{Acquire, Release},
    },
};

/// Pages of a ring's data, a power of two: a second of deep stacks.
const PAGES: usize = 128;
const PAGE: usize = 4096;
/// Where `struct perf_event_mmap_page` has data_head and data_tail.
const HEAD: usize = 1024;
const TAIL: usize = 1032;

const SOFTWARE: u32 = 1;
const CPU_CLOCK: u64 = 0;
/// IP, TID, TIME, CALLCHAIN, CPU.
const SAMPLE: u64 = 1 | 1 << 1 | 1 << 2 | 1 << 5 | 1 << 7;
const INHERIT: u64 = 1 << 1;
const EXCLUDE_KERNEL: u64 = 1 << 5;
const MMAP: u64 = 1 << 8;
const COMM: u64 = 1 << 9;
const FREQ: u64 = 1 << 10;
const WATERMARK: u64 = 1 << 14;
const MMAP2: u64 = 1 << 23;
const COMM_EXEC: u64 = 1 << 24;
const CLOEXEC: u64 = 1 << 3;
/// PERF_ATTR_SIZE_VER3.
const SIZE: u32 = 96;

/// What is sampled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    /// Every CPU: programs, kernel, softirqs.
    Everything,
    /// User code of one process and what it starts.
    UserCodeOf(u32),
}

/// The ring of one CPU.
pub(super) struct Ring {
    fd: OwnedFd,
    base: NonNull<u8>,
}

// SAFETY: the mapping belongs to the process, not to a thread.
unsafe impl Send for Ring {}

impl Ring {
    /// Samples a CPU so often a second, from now on.
    ///
    /// # Errors
    /// perf_event_open(2)'s: EACCES and EPERM without CAP_PERFMON (perf_event_paranoid), ENODEV for a CPU that is offline.
    pub(super) fn open(cpu: u32, hz: u64, scope: Scope) -> io::Result<Self> {
        let (pid, flags) = match scope {
            Scope::Everything => (-1, 0),
            Scope::UserCodeOf(pid) => (pid as c_long, INHERIT | EXCLUDE_KERNEL),
        };
        let flags = flags | MMAP | COMM | FREQ | WATERMARK | MMAP2 | COMM_EXEC;
        let half = (PAGES * PAGE / 2) as u64;
        let type_and_size = u64::from(SOFTWARE) | u64::from(SIZE) << 32;
        let mut attributes = [0_u64; SIZE as usize / 8];
        attributes[..7].copy_from_slice(&[type_and_size, CPU_CLOCK, hz, SAMPLE, 0, flags, half]);
        // SAFETY: a perf_event_attr of the size it says, alive over the call.
        let fd = unsafe {
            libc::syscall(libc::SYS_perf_event_open, attributes.as_ptr(), pid, cpu as c_long, -1_i64, CLOEXEC)
        };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a descriptor that the kernel has just made for us.
        let fd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping, where the kernel likes it.
        let base = unsafe {
            libc::mmap(ptr::null_mut(), (PAGES + 1) * PAGE, access, libc::MAP_SHARED, fd.as_raw_fd(), 0)
        };
        match NonNull::new(base.cast()) {
            Some(base) if base.as_ptr() as *mut c_void != libc::MAP_FAILED => Ok(Self { fd, base }),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// What has come since the last call.
    pub(super) fn take(&mut self) -> Vec<u8> {
        let (head, tail) = (self.word(HEAD).load(Acquire), self.word(TAIL).load(Acquire));
        let size = (PAGES * PAGE) as u64;
        let len = head.wrapping_sub(tail).min(size) as usize;
        let mut bytes = vec![0; len];
        let from = (tail % size) as usize;
        let first = len.min(size as usize - from);
        // SAFETY: both parts lie within the data pages; the kernel writes behind `head` only until `tail` is moved.
        unsafe {
            let data = self.base.as_ptr().add(PAGE);
            ptr::copy_nonoverlapping(data.add(from), bytes.as_mut_ptr(), first);
            ptr::copy_nonoverlapping(data, bytes.as_mut_ptr().add(first), len - first);
        }
        self.word(TAIL).store(head, Release);
        bytes
    }

    fn word(&self, at: usize) -> &AtomicU64 {
        // SAFETY: in the first page, aligned, and shared with the kernel as an atomic.
        unsafe { &*self.base.as_ptr().add(at).cast() }
    }
}

impl AsFd for Ring {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: mapped by `open` with this length; no reference outlives self.
        unsafe { libc::munmap(self.base.as_ptr().cast(), (PAGES + 1) * PAGE) };
    }
}

/// Readable when the process has ended.
pub(super) fn pidfd(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: no pointers.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a descriptor that the kernel has just made for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}
