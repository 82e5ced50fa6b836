//! The system calls that neither nix nor aya offers.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
    sync::atomic::AtomicU64,
};

/// `bpf_attach_type` of a sock_ops program on a cgroup.
pub(crate) const BPF_CGROUP_SOCK_OPS: u32 = 3;
/// `bpf_attach_type` of an XDP program on a device.
pub(crate) const BPF_XDP: u32 = 37;
/// `bpf_attach_type` of a tcx program on what a device receives (Linux 6.6).
pub(crate) const BPF_TCX_INGRESS: u32 = 46;
/// Native mode only.
pub(crate) const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;
/// Generic mode.
pub(crate) const XDP_FLAGS_SKB_MODE: u32 = 1 << 1;

const BPF_PROG_ATTACH: usize = 8;
const BPF_LINK_CREATE: usize = 28;
/// Bytes of a `virtio_net_hdr` (the form without num_buffers).
pub(crate) const VNET_HEADER: usize = 10;
const SIOCETHTOOL: libc::c_ulong = 0x8946;
const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
const TUNSETPERSIST: libc::c_ulong = 0x4004_54cb;
const TUNSETOFFLOAD: libc::c_ulong = 0x4004_54d0;
const TUNSETVNETHDRSZ: libc::c_ulong = 0x4004_54d8;

fn check(value: libc::c_long) -> io::Result<i32> {
    if value < 0 { Err(io::Error::last_os_error()) } else { Ok(value as i32) }
}

fn owned(fd: i32) -> OwnedFd {
    // SAFETY: called with a descriptor the kernel has just made for us.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

fn bpf(command: usize, words: &[u32; 16]) -> io::Result<i32> {
    // SAFETY: the kernel reads the words given and nothing else: no command used here holds pointers.
    check(unsafe { libc::syscall(libc::SYS_bpf, command, words.as_ptr(), size_of_val(words)) })
}

/// Attaches a program to a device (its index) or a cgroup (its descriptor) by a link, which detaches it when closed. Unlike aya's, never falls back to netlink, which would
/// stay behind a killed broker and could replace a foreign program.
pub(crate) fn link_create(
    program: BorrowedFd<'_>,
    target: u32,
    kind: u32,
    flags: u32,
) -> io::Result<OwnedFd> {
    let mut words = [0; 16];
    words[..4].copy_from_slice(&[program.as_raw_fd() as u32, target, kind, flags]);
    bpf(BPF_LINK_CREATE, &words).map(owned)
}

/// The words of a BPF array that may be mapped (BPF_F_MMAPABLE), for as long as it lives.
pub(crate) struct Words {
    first: std::ptr::NonNull<AtomicU64>,
    len: usize,
}

// SAFETY: nothing but atomics is behind the pointer, and nothing of it belongs to a thread.
unsafe impl Send for Words {}
// SAFETY: as above.
unsafe impl Sync for Words {}

impl Words {
    /// # Errors
    /// mmap(2)'s: EINVAL if the array is shorter.
    pub(crate) fn map(array: BorrowedFd<'_>, len: usize) -> io::Result<Self> {
        let bytes = len * size_of::<u64>();
        let (access, shared) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
        // SAFETY: a new mapping, where the kernel likes it.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), bytes, access, shared, array.as_raw_fd(), 0) };
        match std::ptr::NonNull::new(at.cast()) {
            Some(first) if at != libc::MAP_FAILED => Ok(Self { first, len }),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl std::ops::Deref for Words {
    type Target = [AtomicU64];

    fn deref(&self) -> &[AtomicU64] {
        // SAFETY: the mapping has so many words, is aligned to pages, and ends with `self`.
        unsafe { std::slice::from_raw_parts(self.first.as_ptr(), self.len) }
    }
}

impl Drop for Words {
    fn drop(&mut self) {
        // SAFETY: mapped by `map` with this length; no reference outlives `self`.
        unsafe { libc::munmap(self.first.as_ptr().cast(), self.len * size_of::<u64>()) };
    }
}

/// Attaches a program for as long as the device exists.
pub(crate) fn attach(program: BorrowedFd<'_>, ifindex: u32, kind: u32) -> io::Result<()> {
    let mut words = [0; 16];
    words[..3].copy_from_slice(&[ifindex, program.as_raw_fd() as u32, kind]);
    bpf(BPF_PROG_ATTACH, &words).map(drop)
}

/// A BPF file system that is mounted nowhere: it and all that is pinned in it end with the descriptor.
pub(crate) fn detached_bpffs() -> io::Result<OwnedFd> {
    const FSCONFIG_CMD_CREATE: u32 = 6;
    const CLOEXEC: u32 = 1; // FSOPEN_CLOEXEC, FSMOUNT_CLOEXEC
    // SAFETY: a NUL-terminated name.
    let context = owned(check(unsafe { libc::syscall(libc::SYS_fsopen, c"bpf".as_ptr(), CLOEXEC) })?);
    let null = std::ptr::null::<u8>();
    // SAFETY: this command takes neither key nor value.
    check(unsafe {
        libc::syscall(libc::SYS_fsconfig, context.as_raw_fd(), FSCONFIG_CMD_CREATE, null, null, 0)
    })?;
    // SAFETY: no pointers.
    check(unsafe { libc::syscall(libc::SYS_fsmount, context.as_raw_fd(), CLOEXEC, 0) }).map(owned)
}

/// Waits until every packet that an XDP program was looking at has reached its ring (an RCU grace period: NAPI polls with
/// bottom halves off and flushes its redirects before it lets go).
pub(crate) fn grace_period() -> io::Result<()> {
    // SAFETY: no pointers.
    match check(unsafe { libc::syscall(libc::SYS_membarrier, libc::MEMBARRIER_CMD_GLOBAL, 0, 0) }) {
        Ok(_) => Ok(()),
        Err(_) => grace_period_by_packet_socket(),
    }
}

/// With nohz_full membarrier refuses; closing a packet socket waits as well (packet_release: synchronize_net).
fn grace_period_by_packet_socket() -> io::Result<()> {
    let protocol = i32::from((libc::ETH_P_ALL as u16).to_be());
    // SAFETY: no pointers.
    let fd = check(
        unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, protocol) }.into(),
    )?;
    drop(owned(fd));
    Ok(())
}

/// Makes a TAP whose name the kernel numbers from `pattern` (`hoist%d`); returns its descriptor and name. In front of each
/// frame stands a `virtio_net_hdr` of [`VNET_HEADER`] bytes.
pub(crate) fn open_tap(pattern: &str) -> io::Result<(OwnedFd, String)> {
    let flags = libc::O_RDWR | libc::O_NONBLOCK | libc::O_CLOEXEC;
    // SAFETY: a NUL-terminated path.
    let fd = owned(check(unsafe { libc::open(c"/dev/net/tun".as_ptr(), flags) }.into())?);
    let mut request = named(pattern);
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as i16;
    // SAFETY: an ifreq that lives across the call.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), TUNSETIFF, &raw mut request) }.into())?;
    let size = VNET_HEADER as i32;
    // SAFETY: an int that lives across the call.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), TUNSETVNETHDRSZ, &raw const size) }.into())?;
    const TUN_F_CSUM_TSO4_TSO6_ECN: libc::c_ulong = 1 | 2 | 4 | 8;
    // SAFETY: no pointers: the argument is a number.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), TUNSETOFFLOAD, TUN_F_CSUM_TSO4_TSO6_ECN) }.into())?;
    let name = request.ifr_name.iter().take_while(|&&c| c != 0).map(|&c| c as u8 as char).collect();
    Ok((fd, name))
}

/// Has a TAP end with its last descriptor.
pub(crate) fn forget_tap(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: no pointers: the argument is a number.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), TUNSETPERSIST, 0) }.into()).map(drop)
}

/// The driver's name, if the device tells (ETHTOOL_GDRVINFO).
pub(crate) fn driver(device: &str) -> Option<String> {
    const ETHTOOL_GDRVINFO: u32 = 3;
    let mut info = [0_u8; 196];
    info[..4].copy_from_slice(&ETHTOOL_GDRVINFO.to_ne_bytes());
    ethtool(device, &mut info).ok()?;
    let name = info[4..36].split(|&b| b == 0).next()?;
    Some(String::from_utf8_lossy(name).into_owned())
}

/// Receive queues in use (ETHTOOL_GCHANNELS: rx and combined), if the device tells.
pub(crate) fn rx_queues(device: &str) -> Option<u32> {
    const ETHTOOL_GCHANNELS: u32 = 0x3c;
    let mut channels = [0_u8; 36];
    channels[..4].copy_from_slice(&ETHTOOL_GCHANNELS.to_ne_bytes());
    ethtool(device, &mut channels).ok()?;
    let word = |i: usize| u32::from_ne_bytes([0, 1, 2, 3].map(|j| channels[i * 4 + j]));
    let (rx, combined) = (word(5), word(8));
    Some(rx + combined).filter(|&queues| queues > 0)
}

fn ethtool(device: &str, buffer: &mut [u8]) -> io::Result<()> {
    // SAFETY: no pointers.
    let fd = check(unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) }.into())?;
    let fd = owned(fd);
    let mut request = named(device);
    request.ifr_ifru.ifru_data = buffer.as_mut_ptr().cast();
    // SAFETY: the buffer is as long as the structure of its command and lives across the call.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), SIOCETHTOOL, &raw mut request) }.into()).map(drop)
}

fn named(device: &str) -> libc::ifreq {
    // SAFETY: ifreq is plain old data for which all-zero is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name[..libc::IFNAMSIZ - 1].iter_mut().zip(device.bytes()) {
        *to = from as libc::c_char;
    }
    request
}

/// getsockopt(2) of a plain value.
fn option<T: Copy>(fd: BorrowedFd<'_>, level: i32, name: i32, zero: T) -> io::Result<T> {
    let mut value = zero;
    let mut len = size_of::<T>() as libc::socklen_t;
    // SAFETY: value has room for len bytes; integers take any bit pattern.
    let result =
        unsafe { libc::getsockopt(fd.as_raw_fd(), level, name, (&raw mut value).cast(), &raw mut len) };
    check(result.into()).map(|_| value)
}

/// getsockopt(2) of an int.
pub(crate) fn option_i32(fd: BorrowedFd<'_>, level: i32, name: i32) -> io::Result<i32> {
    option(fd, level, name, 0_i32)
}

/// getsockopt(2) of a 64-bit number.
pub(crate) fn option_u64(fd: BorrowedFd<'_>, level: i32, name: i32) -> io::Result<u64> {
    option(fd, level, name, 0_u64)
}

/// SO_RCVBUF will read `bytes`, whatever rmem_max says (SO_RCVBUFFORCE, which the kernel doubles).
pub(crate) fn force_receive_buffer(fd: BorrowedFd<'_>, bytes: i32) -> io::Result<()> {
    let half = bytes / 2;
    let (name, len) = (libc::SO_RCVBUFFORCE, size_of_val(&half) as libc::socklen_t);
    // SAFETY: an int that lives across the call.
    check(unsafe {
        libc::setsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, name, (&raw const half).cast(), len).into()
    })
    .map(drop)
}

/// Process that made the socketpair, and its user (SO_PEERCRED).
pub(crate) fn peer(fd: BorrowedFd<'_>) -> io::Result<(u32, u32)> {
    let words: [u32; 3] = option(fd, libc::SOL_SOCKET, libc::SO_PEERCRED, [0; 3])?;
    Ok((words[0], words[1]))
}

/// Whether poll(2) shows one of `events` now. nix does not know POLLRDHUP.
pub(crate) fn shows(fd: BorrowedFd<'_>, events: i16) -> bool {
    let mut poll = libc::pollfd { fd: fd.as_raw_fd(), events, revents: 0 };
    // SAFETY: one entry that lives across the call.
    unsafe { libc::poll(&raw mut poll, 1, 0) > 0 && poll.revents & events != 0 }
}

/// A descriptor that becomes readable when the process ends.
pub(crate) fn pidfd(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: no pointers.
    check(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) }).map(owned)
}

/// A sealed memfd of `len` bytes.
pub(crate) fn sealed_memfd(name: &std::ffi::CStr, len: usize) -> io::Result<OwnedFd> {
    // SAFETY: a NUL-terminated name.
    let fd = owned(check(
        unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING) }.into(),
    )?);
    // SAFETY: no pointers.
    check(unsafe { libc::ftruncate(fd.as_raw_fd(), len as libc::off_t) }.into())?;
    let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
    // SAFETY: no pointers.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_ADD_SEALS, seals) }.into())?;
    Ok(fd)
}

/// Makes io_uring_setup fail with ENOSYS in this process and all it starts: io_uring reads do not pass the shim.
///
/// Async-signal-safe: called between fork and exec.
pub(crate) fn forbid_io_uring() -> io::Result<()> {
    use libc::{BPF_ABS, BPF_ALU, BPF_AND, BPF_JEQ, BPF_JMP, BPF_K, BPF_LD, BPF_RET, BPF_W};
    const X32_BIT: u32 = 0x4000_0000;
    const IO_URING_SETUP: u32 = 425; // the same on every architecture: numbers from 403 on are common
    let op = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
    let mut program = [
        op(BPF_LD | BPF_W | BPF_ABS, 0, 0, 0),
        op(BPF_ALU | BPF_AND | BPF_K, 0, 0, !X32_BIT),
        op(BPF_JMP | BPF_JEQ | BPF_K, 0, 1, IO_URING_SETUP),
        op(BPF_RET | BPF_K, 0, 0, libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32),
        op(BPF_RET | BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    let install = || {
        // SAFETY: filter and program live across the call.
        let result =
            unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const filter) };
        check(result)
    };
    if install().is_ok() {
        return Ok(());
    }
    // Without CAP_SYS_ADMIN a filter needs no_new_privs, which set-uid programs further down would notice.
    // SAFETY: no pointers.
    check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }.into())?;
    install().map(drop)
}

/// The descriptor of an owner that does not implement AsFd.
pub(crate) fn borrow<T>(fd: i32, _owner: &T) -> BorrowedFd<'_> {
    // SAFETY: the owner, borrowed for as long as the result, keeps the descriptor open.
    unsafe { BorrowedFd::borrow_raw(fd) }
}

/// Whether the file carries capabilities (security.capability).
pub(crate) fn has_capabilities(path: &std::path::Path) -> bool {
    use std::os::unix::ffi::OsStrExt;
    let Ok(path) = std::ffi::CString::new(path.as_os_str().as_bytes()) else { return false };
    // SAFETY: NUL-terminated strings, and a length of 0: nothing is written.
    let len =
        unsafe { libc::getxattr(path.as_ptr(), c"security.capability".as_ptr(), std::ptr::null_mut(), 0) };
    len > 0
}

/// Copies a descriptor to a number of at least `least`, not close-on-exec; or to the highest the limits allow.
pub(crate) fn copy_high(fd: BorrowedFd<'_>, least: i32) -> io::Result<OwnedFd> {
    let copy = |least: i32| {
        // SAFETY: no pointers.
        check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD, least) }.into()).map(owned)
    };
    [least, 64, 10].into_iter().find_map(|least| copy(least).ok()).map_or_else(|| copy(3), Ok)
}

/// What a child does between fork and exec.
pub(crate) struct Child {
    /// `cgroup.procs` of the cgroup to be in.
    pub(crate) cgroup: Option<OwnedFd>,
    /// Its signal mask.
    pub(crate) mask: nix::sys::signal::SigSet,
    /// Its limit of open files.
    pub(crate) open_files: (u64, u64),
    /// Who it is to be.
    pub(crate) user: Option<(Vec<libc::gid_t>, libc::gid_t, libc::uid_t)>,
}

impl Child {
    /// Has `command` do it.
    pub(crate) fn prepare(self, command: &mut std::process::Command) {
        use std::os::unix::process::CommandExt;
        // SAFETY: become makes system calls only: no allocation, no lock.
        unsafe { command.pre_exec(move || self.become_it()) };
    }

    fn become_it(&self) -> io::Result<()> {
        if let Some(procs) = &self.cgroup {
            // Whether it worked is seen from outside; TCP is no reason not to start.
            // SAFETY: one byte that lives across the call.
            unsafe { libc::write(procs.as_raw_fd(), c"0".as_ptr().cast(), 1) };
        }
        forbid_io_uring()?;
        let limit = libc::rlimit { rlim_cur: self.open_files.0, rlim_max: self.open_files.1 };
        // SAFETY: a limit that lives across the call.
        check(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) }.into())?;
        self.mask.thread_set_mask()?;
        let Some((groups, gid, uid)) = &self.user else { return Ok(()) };
        // SAFETY: as many groups as there are; the others take no pointers.
        unsafe {
            check(libc::setgroups(groups.len(), groups.as_ptr()).into())?;
            check(libc::setgid(*gid).into())?;
            check(libc::setuid(*uid).into())?;
        }
        Ok(())
    }
}
