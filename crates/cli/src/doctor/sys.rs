//! The system calls of the doctor that no safe wrapper offers. Each only reads.
#![allow(unsafe_code)]

use super::netlink::{text_of, u32_at};
use std::ffi::{c_int, c_void};
use std::io;
use std::mem::zeroed;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// struct ethtool_drvinfo: cmd, then driver[32] and fields the doctor does not need.
const DRVINFO_BYTES: usize = 196;
const ETHTOOL_GDRVINFO: u32 = 3;
const BPF_PROG_GET_FD_BY_ID: c_int = 13;
const BPF_OBJ_GET_INFO_BY_FD: c_int = 15;
/// Up to and with `name` in struct bpf_prog_info (Linux 4.15).
const PROG_INFO_BYTES: usize = 80;
const PROG_INFO_NAME: usize = 64;
const IPT_SO_GET_INFO: c_int = 64;
const IPT_SO_GET_ENTRIES: c_int = 65;
const IPT_INFO_BYTES: usize = 84;
const IPT_INFO_SIZE: usize = 80;
const IPT_ENTRIES_HEADER: usize = 40;
/// A ruleset larger than this is not read.
const IPT_LARGEST_BYTES: usize = 64 << 20;
const FSCONFIG_CMD_CREATE: c_int = 6;

/// The driver's name, by ETHTOOL_GDRVINFO.
pub(super) fn driver(device: &str) -> io::Result<String> {
    let mut info = [0u32; DRVINFO_BYTES / 4];
    info[0] = ETHTOOL_GDRVINFO;
    // SAFETY: ifreq is plain data for which zero is a valid value.
    let mut request: libc::ifreq = unsafe { zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(device.bytes().take(libc::IFNAMSIZ - 1)) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_data = info.as_mut_ptr().cast();
    let socket = socket(libc::AF_INET, libc::SOCK_DGRAM)?;
    // SAFETY: `request` names a buffer of the size ETHTOOL_GDRVINFO writes, alive over the call.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &mut request) })?;
    let bytes: Vec<u8> = info[1..9].iter().flat_map(|word| word.to_ne_bytes()).collect();
    Ok(text_of(&bytes))
}

/// Whether the kernel makes AF_XDP sockets.
pub(super) fn af_xdp() -> io::Result<()> {
    socket(libc::AF_XDP, libc::SOCK_RAW).map(drop)
}

/// A sysfs of the caller's own network namespace, mounted nowhere; alive as long as the descriptor.
/// /sys shows the namespace it was mounted in (sysfs_init_fs_context), which may be another.
pub(super) fn own_sysfs() -> io::Result<OwnedFd> {
    let context = descriptor(call(libc::SYS_fsopen, [c"sysfs".as_ptr() as usize, 1, 0, 0, 0]))?;
    let create = [context.as_raw_fd() as usize, FSCONFIG_CMD_CREATE as usize, 0, 0, 0];
    check(call(libc::SYS_fsconfig, create) as c_int)?;
    descriptor(call(libc::SYS_fsmount, [context.as_raw_fd() as usize, 1, 0, 0, 0]))
}

/// The name of a loaded BPF program.
pub(super) fn program_name(id: u32) -> io::Result<String> {
    let mut by_id = [0u8; 12];
    by_id[..4].copy_from_slice(&id.to_ne_bytes());
    let program = descriptor(bpf(BPF_PROG_GET_FD_BY_ID, &by_id))?;
    let mut info = [0u8; PROG_INFO_BYTES];
    let mut by_fd = [0u8; 16];
    by_fd[..4].copy_from_slice(&program.as_raw_fd().to_ne_bytes());
    by_fd[4..8].copy_from_slice(&(PROG_INFO_BYTES as u32).to_ne_bytes());
    by_fd[8..].copy_from_slice(&(info.as_mut_ptr() as u64).to_ne_bytes());
    check(bpf(BPF_OBJ_GET_INFO_BY_FD, &by_fd) as c_int)?;
    Ok(text_of(&info[PROG_INFO_NAME..]))
}

/// A table of legacy iptables: struct ipt_getinfo and the entries. `level` is IPPROTO_IP or IPPROTO_IPV6.
pub(super) fn legacy_table(level: c_int, table: &str) -> io::Result<(Vec<u8>, Vec<u8>)> {
    let family = if level == libc::IPPROTO_IP { libc::AF_INET } else { libc::AF_INET6 };
    let socket = socket(family, libc::SOCK_DGRAM)?;
    let mut info = vec![0u8; IPT_INFO_BYTES];
    name_into(&mut info, table);
    socket_option(&socket, level, IPT_SO_GET_INFO, &mut info)?;
    let size = u32_at(&info, IPT_INFO_SIZE).map_or(0, |size| size as usize);
    if size > IPT_LARGEST_BYTES {
        return Err(io::Error::from_raw_os_error(libc::EFBIG));
    }
    let mut entries = vec![0u8; IPT_ENTRIES_HEADER + size];
    name_into(&mut entries, table);
    entries[32..36].copy_from_slice(&(size as u32).to_ne_bytes());
    socket_option(&socket, level, IPT_SO_GET_ENTRIES, &mut entries)?;
    Ok((info, entries.split_off(IPT_ENTRIES_HEADER)))
}

fn name_into(bytes: &mut [u8], name: &str) {
    for (to, from) in bytes.iter_mut().take(31).zip(name.bytes()) {
        *to = from;
    }
}

fn socket_option(socket: &OwnedFd, level: c_int, name: c_int, value: &mut [u8]) -> io::Result<()> {
    let mut length = value.len() as libc::socklen_t;
    let pointer = value.as_mut_ptr().cast::<c_void>();
    // SAFETY: `pointer` is writable for `length` bytes, and the kernel writes no more than that.
    check(unsafe { libc::getsockopt(socket.as_raw_fd(), level, name, pointer, &mut length) })
}

fn socket(family: c_int, kind: c_int) -> io::Result<OwnedFd> {
    // SAFETY: no memory is passed.
    descriptor(unsafe { libc::socket(family, kind | libc::SOCK_CLOEXEC, 0) }.into())
}

fn bpf(command: c_int, attributes: &[u8]) -> i64 {
    call(libc::SYS_bpf, [command as usize, attributes.as_ptr() as usize, attributes.len(), 0, 0])
}

/// Pointers among the arguments must be valid for what the call does with them.
fn call(number: libc::c_long, arguments: [usize; 5]) -> i64 {
    let [a, b, c, d, e] = arguments;
    // SAFETY: every caller in this file passes numbers, NUL-terminated literals, or pointers to live buffers of
    // the length it states (bpf: its attributes; the info buffer named in them has PROG_INFO_BYTES).
    unsafe { libc::syscall(number, a, b, c, d, e) }
}

fn descriptor(result: i64) -> io::Result<OwnedFd> {
    check(result as c_int)?;
    // SAFETY: the kernel has just made this descriptor for us; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(result as c_int) })
}

fn check(result: c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
