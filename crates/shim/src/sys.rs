//! The system calls the shim makes, past libc: typed, without `errno`.

use hoist_sys::{Errno, check, syscall};
use libc::c_int;

type Result<T> = core::result::Result<T, Errno>;

/// Every wrapper below that takes a pointer hands it to the kernel, which checks it: a bad one is `EFAULT`.
fn call(number: libc::c_long, args: [usize; 6]) -> Result<usize> {
    // SAFETY: each caller in this file passes the arguments its system call defines. Memory the kernel writes is
    // either ours for the length given, or the program's own buffer that the program asked to be written.
    check(unsafe { syscall(number, args) })
}

pub(crate) fn getpid() -> i32 {
    call(libc::SYS_getpid, [0; 6]).unwrap_or(0) as i32
}

pub(crate) fn close(fd: c_int) {
    let _ = call(libc::SYS_close, [fd as usize, 0, 0, 0, 0, 0]);
}

/// Moves `fd` to the lowest free number from `floor` on, close-on-exec; the old number is closed either way.
pub(crate) fn raise_fd(fd: c_int, floor: c_int) -> Result<c_int> {
    let args = [fd as usize, libc::F_DUPFD_CLOEXEC as usize, floor as usize, 0, 0, 0];
    let raised = call(libc::SYS_fcntl, args).map(|fd| fd as c_int);
    close(fd);
    raised
}

pub(crate) fn status_flags(fd: c_int) -> Result<c_int> {
    call(libc::SYS_fcntl, [fd as usize, libc::F_GETFL as usize, 0, 0, 0, 0]).map(|flags| flags as c_int)
}

pub(crate) fn descriptor_flags(fd: c_int) -> Result<c_int> {
    call(libc::SYS_fcntl, [fd as usize, libc::F_GETFD as usize, 0, 0, 0, 0]).map(|flags| flags as c_int)
}

pub(crate) fn nofile_limit() -> u64 {
    let mut limit = libc::rlimit64 { rlim_cur: 1024, rlim_max: 1024 };
    let args = [0, libc::RLIMIT_NOFILE as usize, 0, &raw mut limit as usize, 0, 0];
    let _ = call(libc::SYS_prlimit64, args);
    limit.rlim_cur
}

pub(crate) fn option<T: Copy + Default>(fd: c_int, level: c_int, name: c_int) -> Result<T> {
    let mut value = T::default();
    let mut len = size_of::<T>() as libc::socklen_t;
    let args =
        [fd as usize, level as usize, name as usize, &raw mut value as usize, &raw mut len as usize, 0];
    call(libc::SYS_getsockopt, args).map(|_| value)
}

/// `getsockname` or `getpeername`, by system call number.
pub(crate) fn name(fd: c_int, number: libc::c_long) -> Result<libc::sockaddr_in6> {
    let mut name = libc::sockaddr_in6 {
        sin6_family: 0,
        sin6_port: 0,
        sin6_flowinfo: 0,
        sin6_addr: libc::in6_addr { s6_addr: [0; 16] },
        sin6_scope_id: 0,
    };
    let mut len = size_of_val(&name) as libc::socklen_t;
    call(number, [fd as usize, &raw mut name as usize, &raw mut len as usize, 0, 0, 0]).map(|_| name)
}

pub(crate) fn recvmsg(fd: c_int, message: *mut libc::msghdr, flags: c_int) -> Result<usize> {
    call(libc::SYS_recvmsg, [fd as usize, message as usize, flags as usize, 0, 0, 0])
}

pub(crate) fn recvfrom(
    fd: c_int,
    buffer: *mut u8,
    len: usize,
    flags: c_int,
    name: *mut libc::sockaddr,
    name_len: *mut libc::socklen_t,
) -> Result<usize> {
    call(
        libc::SYS_recvfrom,
        [fd as usize, buffer as usize, len, flags as usize, name as usize, name_len as usize],
    )
}

pub(crate) fn socketpair_seqpacket() -> Result<[c_int; 2]> {
    let mut pair = [-1; 2];
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC;
    let args = [libc::AF_UNIX as usize, kind as usize, 0, pair.as_mut_ptr() as usize, 0, 0];
    call(libc::SYS_socketpair, args).map(|_| pair)
}

pub(crate) fn write(fd: c_int, bytes: &[u8]) -> Result<usize> {
    call(libc::SYS_write, [fd as usize, bytes.as_ptr() as usize, bytes.len(), 0, 0, 0])
}

pub(crate) fn writev(fd: c_int, pieces: &[std::io::IoSlice<'_>]) -> Result<usize> {
    call(libc::SYS_writev, [fd as usize, pieces.as_ptr() as usize, pieces.len(), 0, 0, 0])
}

/// Bytes of a TCP socket that can be read in order (SIOCINQ).
#[inline]
pub(crate) fn queued(fd: c_int) -> Result<u64> {
    let mut bytes: c_int = 0;
    call(libc::SYS_ioctl, [fd as usize, libc::FIONREAD as usize, &raw mut bytes as usize, 0, 0, 0])?;
    Ok(bytes.max(0) as u64)
}

/// Whether it is a pipe or FIFO.
pub(crate) fn is_pipe(fd: c_int) -> bool {
    // SAFETY: stat is plain data for which zero is valid.
    let mut stat: libc::stat = unsafe { core::mem::zeroed() };
    let read = call(libc::SYS_fstat, [fd as usize, &raw mut stat as usize, 0, 0, 0, 0]);
    read.is_ok() && stat.st_mode & libc::S_IFMT == libc::S_IFIFO
}

/// Memory that forked children share.
pub(crate) fn shared_memory(len: usize) -> Result<*mut u8> {
    let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS);
    call(libc::SYS_mmap, [0, len, prot as usize, flags as usize, usize::MAX, 0])
        .map(|address| address as *mut u8)
}

pub(crate) fn process_exists(pid: i32) -> bool {
    !matches!(call(libc::SYS_kill, [pid as usize, 0, 0, 0, 0, 0]), Err(Errno(libc::ESRCH)))
}

pub(crate) fn set_cloexec(fd: c_int) {
    let _ = call(libc::SYS_fcntl, [fd as usize, libc::F_SETFD as usize, libc::FD_CLOEXEC as usize, 0, 0, 0]);
}

pub(crate) fn timerfd() -> Result<c_int> {
    let args = [libc::CLOCK_MONOTONIC as usize, libc::TFD_CLOEXEC as usize, 0, 0, 0, 0];
    call(libc::SYS_timerfd_create, args).map(|fd| fd as c_int)
}

/// Lets `timer` expire once, `ns` from now.
pub(crate) fn timerfd_arm(timer: c_int, ns: u64) {
    let zero = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    let value = libc::timespec { tv_sec: (ns / 1_000_000_000) as i64, tv_nsec: (ns % 1_000_000_000) as i64 };
    let spec = libc::itimerspec { it_interval: zero, it_value: value };
    let _ = call(libc::SYS_timerfd_settime, [timer as usize, 0, &raw const spec as usize, 0, 0, 0]);
}

/// Waits until `timer` has expired; false: it is no timer any more.
pub(crate) fn timerfd_wait(timer: c_int) -> bool {
    let mut count = [0u8; 8];
    let read = call(libc::SYS_read, [timer as usize, count.as_mut_ptr() as usize, 8, 0, 0, 0]);
    matches!(read, Ok(8) | Err(Errno(libc::EINTR)))
}

pub(crate) fn eventfd() -> Result<c_int> {
    let flags = libc::EFD_CLOEXEC | libc::EFD_NONBLOCK;
    call(libc::SYS_eventfd2, [0, flags as usize, 0, 0, 0, 0]).map(|fd| fd as c_int)
}

pub(crate) fn eventfd_ring(fd: c_int) {
    let _ = write(fd, &1u64.to_ne_bytes());
}

pub(crate) fn eventfd_clear(fd: c_int) {
    let mut count = [0u8; 8];
    let _ = call(libc::SYS_read, [fd as usize, count.as_mut_ptr() as usize, 8, 0, 0, 0]);
}

pub(crate) fn epoll_ctl(epfd: c_int, op: c_int, fd: c_int, event: *mut libc::epoll_event) -> Result<()> {
    call(libc::SYS_epoll_ctl, [epfd as usize, op as usize, fd as usize, event as usize, 0, 0]).map(drop)
}

/// An epoll instance that runs the NAPI instance of its sockets for `us` microseconds before it sleeps (Linux 6.9).
pub(crate) fn busy_epoll(us: u32) -> Result<c_int> {
    #[repr(C)]
    struct Params {
        busy_poll_usecs: u32,
        busy_poll_budget: u16,
        prefer_busy_poll: u8,
        pad: u8,
    }
    const EPIOCSPARAMS: usize = 0x4008_8a01;
    const NAPI_POLL_WEIGHT: u16 = 64;
    let epoll = call(libc::SYS_epoll_create1, [libc::EPOLL_CLOEXEC as usize, 0, 0, 0, 0, 0])?;
    let params =
        Params { busy_poll_usecs: us, busy_poll_budget: NAPI_POLL_WEIGHT, prefer_busy_poll: 1, pad: 0 };
    match call(libc::SYS_ioctl, [epoll, EPIOCSPARAMS, &raw const params as usize, 0, 0, 0]) {
        Ok(_) => Ok(epoll as c_int),
        Err(errno) => {
            close(epoll as c_int);
            Err(errno)
        }
    }
}

/// Waits for as long as the instance polls busily: the timeout is over by then, but one of 0 would not poll at all (`ep_poll`).
pub(crate) fn epoll_spin(epfd: c_int) -> Result<usize> {
    let mut event = libc::epoll_event { events: 0, u64: 0 };
    let soon = libc::timespec { tv_sec: 0, tv_nsec: 1 };
    let args = [epfd as usize, &raw mut event as usize, 1, &raw const soon as usize, 0, 8];
    call(libc::SYS_epoll_pwait2, args)
}

/// A look that does not wait.
pub(crate) fn epoll_look(epfd: c_int, events: *mut libc::epoll_event, max: c_int) -> Result<usize> {
    call(libc::SYS_epoll_pwait, [epfd as usize, events as usize, max as usize, 0, 0, 8])
}

/// A look that does not wait.
pub(crate) fn poll_look(fds: *mut libc::pollfd, count: usize) -> Result<usize> {
    let now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    call(libc::SYS_ppoll, [fds as usize, count, &raw const now as usize, 0, 8, 0])
}

pub(crate) fn getrandom_u64() -> u64 {
    let mut bytes = [0u8; 8];
    match call(libc::SYS_getrandom, [bytes.as_mut_ptr() as usize, 8, libc::GRND_NONBLOCK as usize, 0, 0, 0]) {
        Ok(8) => u64::from_ne_bytes(bytes),
        _ => clock_ns(libc::CLOCK_MONOTONIC) ^ (&raw const bytes as u64),
    }
}

/// Nanoseconds on `clock`, through the vDSO.
pub(crate) fn clock_ns(clock: libc::clockid_t) -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: now is ours; clock_gettime is not hooked and safe in signal handlers.
    unsafe { libc::clock_gettime(clock, &raw mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// A page that a forked child finds full of zeros.
pub(crate) fn page_wiped_on_fork() -> Option<*mut core::sync::atomic::AtomicU32> {
    let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    let page = call(libc::SYS_mmap, [0, 4096, prot as usize, flags as usize, usize::MAX, 0]).ok()?;
    call(libc::SYS_madvise, [page, 4096, libc::MADV_WIPEONFORK as usize, 0, 0, 0]).ok()?;
    Some(page as *mut _)
}

/// Fresh memory of `len` bytes, private to the process.
pub(crate) fn map_private(len: usize) -> Result<usize> {
    let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    call(libc::SYS_mmap, [0, len, prot as usize, flags as usize, usize::MAX, 0])
}

pub(crate) fn unmap(address: usize, len: usize) {
    let _ = call(libc::SYS_munmap, [address, len, 0, 0, 0, 0]);
}

/// Moves a mapping to where another one of the same length is, which goes.
pub(crate) fn map_over(from: usize, to: usize, len: usize) -> Result<()> {
    let flags = (libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED) as usize;
    call(libc::SYS_mremap, [from, len, len, flags, to, 0]).map(drop)
}

pub(crate) fn yield_now() {
    let _ = call(libc::SYS_sched_yield, [0; 6]);
}

/// The kernel's `struct sigaction`, whose layout differs from libc's.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(crate) struct KernelSigaction {
    pub(crate) handler: usize,
    pub(crate) flags: u64,
    pub(crate) restorer: usize,
    pub(crate) mask: u64,
}

pub(crate) fn sigaction_of(signal: c_int) -> Result<KernelSigaction> {
    let mut action = KernelSigaction::default();
    call(libc::SYS_rt_sigaction, [signal as usize, 0, &raw mut action as usize, 8, 0, 0]).map(|_| action)
}

/// Sets the thread's signal mask; returns the old one.
pub(crate) fn set_sigmask(mask: u64) -> Result<u64> {
    let mut old = 0u64;
    let how = libc::SIG_SETMASK as usize;
    call(libc::SYS_rt_sigprocmask, [how, &raw const mask as usize, &raw mut old as usize, 8, 0, 0])
        .map(|_| old)
}

pub(crate) fn sigpending() -> u64 {
    let mut pending = 0u64;
    let _ = call(libc::SYS_rt_sigpending, [&raw mut pending as usize, 8, 0, 0, 0, 0]);
    pending
}

pub(crate) fn signalfd(mask: u64) -> Result<c_int> {
    let flags = (libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) as usize;
    call(libc::SYS_signalfd4, [usize::MAX, &raw const mask as usize, 8, flags, 0, 0]).map(|fd| fd as c_int)
}

/// Address and name of interface `ifindex`, for IP_PKTINFO's `ipi_spec_dst` of multicast.
pub(crate) fn interface_address(fd: c_int, ifindex: u32) -> Option<[u8; 4]> {
    let mut request = IfReq { name: [0; 16], data: [0; 24] };
    request.data[..4].copy_from_slice(&ifindex.to_ne_bytes());
    let address = &raw mut request as usize;
    call(libc::SYS_ioctl, [fd as usize, SIOCGIFNAME, address, 0, 0, 0]).ok()?;
    request.data = [0; 24];
    call(libc::SYS_ioctl, [fd as usize, SIOCGIFADDR, address, 0, 0, 0]).ok()?;
    request.data[4..8].try_into().ok()
}

const SIOCGIFNAME: usize = 0x8910;
const SIOCGIFADDR: usize = 0x8915;

#[repr(C)]
struct IfReq {
    name: [u8; 16],
    data: [u8; 24],
}
