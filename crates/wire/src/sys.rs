//! System calls that neither std nor nix offers in safe form.
#![allow(unsafe_code)]

use crate::error::{During, Result};
use nix::{
    errno::Errno,
    fcntl::{OFlag, open},
    sched::{CloneFlags, CpuSet, sched_setaffinity, setns},
    sys::{signal::SigSet, stat::Mode},
};
use std::{
    ffi::c_char,
    fs::File,
    io::{self, IoSlice},
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
    os::unix::process::CommandExt,
    process::Command,
    sync::{Arc, Once},
};

/// Binds the calling thread to one CPU.
pub fn pin_thread(cpu: usize) -> Result<()> {
    pin(0, cpu)
}

/// Lets the calling thread, and what it starts, run on every CPU that there is.
pub fn unpin_thread() -> Result<()> {
    let mut set = CpuSet::new();
    (0..CpuSet::count())
        .try_for_each(|cpu| set.set(cpu))
        .and_then(|()| sched_setaffinity(nix::unistd::Pid::from_raw(0), &set))
        .during(|| "letting this thread run on every CPU (sched_setaffinity)".into())
}

/// Binds the thread `tid` (0: the calling one) to one CPU.
pub(crate) fn pin(tid: i32, cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu)
        .and_then(|()| sched_setaffinity(nix::unistd::Pid::from_raw(tid), &set))
        .during(|| format!("binding thread {tid} to CPU {cpu} (sched_setaffinity)"))
}

/// How a task stands to whatever else the machine does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precedence {
    /// As any program's (nice 0).
    AsIs,
    /// Above (nice -20): what is measured then disturbs itself, and others hardly do.
    Favoured,
}

impl Precedence {
    fn nice(self) -> i32 {
        if self == Self::Favoured { -20 } else { 0 }
    }

    fn autogroup(self) -> &'static [u8] {
        if self == Self::Favoured { b"-20" } else { b"0" }
    }
}

/// Gives the thread `tid` (0: the calling one) a precedence. Needs CAP_SYS_NICE.
pub fn prefer_thread(tid: i32, precedence: Precedence) -> Result<()> {
    set_nice(tid, precedence).during(|| format!("setting the precedence of thread {tid} (setpriority)"))
}

fn set_nice(tid: i32, precedence: Precedence) -> io::Result<()> {
    // SAFETY: takes three integers.
    match unsafe { libc::setpriority(libc::PRIO_PROCESS, tid as libc::id_t, precedence.nice()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Makes `command` start in a session of its own with no signal blocked, on one CPU if told. It gets SIGTERM when the
/// thread that starts it ends.
///
/// A session is what autogroup schedules (kernel/sched/autogroup.c): there, nice weighs threads within a session only, and a
/// NAPI thread at nice -20 would starve a program whose session has the ordinary weight.
pub fn in_own_session(mut command: Command, cpu: Option<usize>, precedence: Precedence) -> Command {
    let set = move || {
        if let Some(cpu) = cpu {
            let mut set = CpuSet::new();
            set.set(cpu)?;
            sched_setaffinity(nix::unistd::Pid::from_raw(0), &set)?;
        }
        nix::unistd::setsid()?;
        // std leaves the mask as it is (Rust 1.66), and a blocked SIGTERM would end nothing.
        SigSet::empty().thread_set_mask()?;
        nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGTERM)?; // no terminal ends it any more
        set_nice(0, precedence)?;
        match open(c"/proc/self/autogroup", OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty()) {
            Ok(file) => nix::unistd::write(file, precedence.autogroup()).map(drop).map_err(io::Error::from),
            Err(Errno::ENOENT) => Ok(()), // without autogroup nice is all there is
            Err(errno) => Err(errno.into()),
        }
    };
    // SAFETY: between fork and exec the closure makes system calls with data on its own stack and constants: no
    // allocation and no lock, so it is async-signal-safe.
    unsafe { command.pre_exec(set) };
    command
}

/// Makes `command` start in the network namespace `net`.
pub(crate) fn command_in(net: Arc<File>, program: &std::ffi::OsStr) -> Command {
    let mut command = Command::new(program);
    let enter = move || Ok(setns(&*net, CloneFlags::CLONE_NEWNET)?);
    // SAFETY: between fork and exec the closure makes one system call on a descriptor that it owns: no
    // allocation and no lock, so it is async-signal-safe.
    unsafe { command.pre_exec(enter) };
    command
}

/// A socket that sends frames on a device of the calling thread's network namespace, past its queueing discipline.
pub(crate) fn packet_socket(ifindex: u32) -> io::Result<OwnedFd> {
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
    // SAFETY: no pointers; protocol 0 receives nothing.
    let fd = Errno::result(unsafe { libc::socket(libc::AF_PACKET, kind, 0) })?;
    // SAFETY: a descriptor that nobody else has.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let on: libc::c_int = 1;
    let length = size_of_val(&on) as libc::socklen_t;
    // SAFETY: the value is an int that outlives the call.
    Errno::result(unsafe {
        libc::setsockopt(fd, libc::SOL_PACKET, libc::PACKET_QDISC_BYPASS, (&raw const on).cast(), length)
    })?;
    // SAFETY: all zeros is a sockaddr_ll.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_ifindex = ifindex as i32;
    let length = size_of_val(&address) as libc::socklen_t;
    // SAFETY: a sockaddr_ll of that length, which outlives the call.
    Errno::result(unsafe { libc::bind(fd, (&raw const address).cast(), length) })?;
    Ok(socket)
}

/// Sends frames, at most as many as a batch has; how many were sent.
pub(crate) fn send_frames(socket: BorrowedFd<'_>, frames: &[IoSlice<'_>]) -> io::Result<usize> {
    let message = |frame: &IoSlice<'_>| {
        // SAFETY: all zeros is an mmsghdr.
        let mut message: libc::mmsghdr = unsafe { std::mem::zeroed() };
        message.msg_hdr.msg_iov = std::ptr::from_ref(frame).cast_mut().cast();
        message.msg_hdr.msg_iovlen = 1;
        message
    };
    let mut messages: Vec<libc::mmsghdr> = frames.iter().map(message).collect();
    // SAFETY: as many messages as named, each with one IoSlice, which has the layout of iovec; both outlive the call, which
    // writes to the messages only.
    let sent = unsafe {
        libc::sendmmsg(socket.as_raw_fd(), messages.as_mut_ptr(), messages.len() as libc::c_uint, 0)
    };
    Ok(Errno::result(sent)? as usize)
}

/// A feature of a device that the ethtool ioctl switches (include/uapi/linux/ethtool.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offload {
    /// Transmit checksums (`ethtool -K tx`): off means that frames carry complete checksums.
    TxChecksum,
    /// TCP segmentation (`tso`).
    Tso,
    /// Generic segmentation (`gso`).
    Gso,
    /// Generic receive offload (`gro`). On a veth it is also what turns NAPI on (Linux 5.13).
    Gro,
}

impl Offload {
    fn set_command(self) -> u32 {
        match self {
            Self::TxChecksum => 0x17,
            Self::Tso => 0x1f,
            Self::Gso => 0x24,
            Self::Gro => 0x2c,
        }
    }
}

/// Switches a feature of a device of the calling thread's network namespace.
pub(crate) fn set_offload(device: &str, offload: Offload, on: bool) -> io::Result<()> {
    ethtool(device, offload.set_command(), on.into()).map(drop)
}

/// Whether a device of the calling thread's network namespace has a link.
///
/// Asking also completes a change that linkwatch still holds back (ethtool_op_get_link): until then the
/// queue of the end that came up first swallows what it is given.
pub(crate) fn has_link(device: &str) -> io::Result<bool> {
    const ETHTOOL_GLINK: u32 = 0x0a;
    Ok(ethtool(device, ETHTOOL_GLINK, 0)? != 0)
}

/// Makes a TAP in the calling thread's network namespace whose name the kernel numbers from `pattern` (`link%d`);
/// returns its descriptor, with which it ends, and its name.
pub(crate) fn open_tap(pattern: &str) -> io::Result<(OwnedFd, String)> {
    let flags = OFlag::O_RDWR | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let fd = open(c"/dev/net/tun", flags, Mode::empty())?;
    let mut request = named(pattern);
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI) as i16;
    // SAFETY: TUNSETIFF reads and writes an ifreq, which outlives the call.
    if unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let name = request.ifr_name.iter().take_while(|c| **c != 0).map(|c| *c as u8 as char).collect();
    Ok((fd, name))
}

fn ethtool(device: &str, cmd: u32, data: u32) -> io::Result<u32> {
    #[repr(C)]
    struct Value {
        cmd: u32,
        data: u32,
    }
    let mut value = Value { cmd, data };
    let mut request = named(device);
    request.ifr_ifru.ifru_data = (&raw mut value).cast();
    let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
    // SAFETY: SIOCETHTOOL reads the zero-terminated name and reads and writes the ethtool_value that
    // ifru_data points to; both outlive the call.
    match unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL as _, &raw mut request) } {
        0 => Ok(value.data),
        _ => Err(io::Error::last_os_error()),
    }
}

fn named(device: &str) -> libc::ifreq {
    // SAFETY: an all-zero ifreq is a valid one: integers, bytes and a null pointer.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(device.bytes().take(libc::IFNAMSIZ - 1)) {
        *to = from as c_char;
    }
    request
}

/// A descriptor of process `pid`, which it still names when the number has been reused.
pub(crate) fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: takes two integers.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just returned this descriptor, and nobody else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Sends SIGKILL to the process behind a pidfd.
pub(crate) fn pidfd_kill(pidfd: &OwnedFd) -> io::Result<()> {
    let none = std::ptr::null_mut::<libc::siginfo_t>();
    // SAFETY: a null siginfo is allowed: the kernel fills it in as kill(2) would.
    match unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), libc::SIGKILL, none, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Makes [`interrupt`] end a blocking call of a thread with EINTR and do nothing else.
pub(crate) fn allow_interrupts() {
    static ONCE: Once = Once::new();
    extern "C" fn nothing(_: libc::c_int) {}
    ONCE.call_once(|| {
        // SAFETY: an all-zero sigaction is a valid one; the handler does nothing, so it is
        // async-signal-safe, and the signal is one that neither libc nor Rust uses.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = nothing as extern "C" fn(libc::c_int) as usize;
            libc::sigaction(interrupt_signal(), &raw const action, std::ptr::null_mut());
        }
    });
}

/// Interrupts the system call that `thread` is in.
pub(crate) fn interrupt<T>(thread: &std::thread::JoinHandle<T>) {
    use std::os::unix::thread::JoinHandleExt;
    // SAFETY: the handle has not been joined, so the pthread_t is valid even if the thread has ended.
    unsafe { libc::pthread_kill(thread.as_pthread_t(), interrupt_signal()) };
}

fn interrupt_signal() -> i32 {
    libc::SIGRTMAX() - 3
}

/// Attaches an XDP program that passes everything to the device of this namespace, and detaches it.
pub(crate) fn attach_xdp_for_a_moment(ifindex: u32) -> io::Result<()> {
    const PROG_LOAD: usize = 5;
    const LINK_CREATE: usize = 28;
    const TYPE_XDP: u64 = 6;
    const HAS_FRAGS: u64 = 1 << 5; // BPF_F_XDP_HAS_FRAGS: any MTU
    const XDP: u64 = 37; // BPF_XDP
    const DRV_MODE: u64 = 1 << 2; // XDP_FLAGS_DRV_MODE
    let pass = [0x0002_0000_00b7_u64, 0x95]; // r0 = XDP_PASS; exit
    let program = [
        TYPE_XDP | (pass.len() as u64) << 32,
        pass.as_ptr() as u64,
        c"Dual MIT/GPL".as_ptr() as u64,
        0,
        0,
        HAS_FRAGS << 32,
    ];
    let program = bpf(PROG_LOAD, &program)?;
    let link = [program.as_raw_fd() as u64 | u64::from(ifindex) << 32, XDP | DRV_MODE << 32];
    bpf(LINK_CREATE, &link).map(drop)
}

/// bpf(2), for commands that return a descriptor.
fn bpf(command: usize, words: &[u64]) -> io::Result<OwnedFd> {
    // SAFETY: the kernel reads the words given, and what they point to lives in the caller's frame.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, command, words.as_ptr(), size_of_val(words)) };
    // SAFETY: the kernel has just returned this descriptor; nothing else owns it.
    Errno::result(fd).map(|fd| unsafe { OwnedFd::from_raw_fd(fd as i32) }).map_err(io::Error::from)
}
