//! Messages with file descriptors over a Unix socket (`SCM_RIGHTS`, unix(7)).

use crate::{Errno, check, raw};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// The most descriptors one message carries here (the kernel's own limit is `SCM_MAX_FD`, 253).
pub const MAX_FDS: usize = 8;

/// Room for one `SCM_RIGHTS` control message of [`MAX_FDS`] descriptors, aligned as `cmsghdr` wants.
#[repr(C, align(8))]
struct Control {
    header: libc::cmsghdr,
    fds: [i32; MAX_FDS],
}

fn control_len(fds: usize) -> usize {
    size_of::<libc::cmsghdr>() + fds * size_of::<i32>()
}

/// Sends one message. Never raises `SIGPIPE`.
///
/// # Errors
/// `EINVAL` for more than [`MAX_FDS`] descriptors, else what sendmsg(2) returns.
#[allow(unsafe_code)]
pub fn send_with_fds(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), Errno> {
    if fds.len() > MAX_FDS {
        return Err(Errno(libc::EINVAL));
    }
    let mut control = Control {
        header: libc::cmsghdr {
            cmsg_len: control_len(fds.len()) as _,
            cmsg_level: libc::SOL_SOCKET,
            cmsg_type: libc::SCM_RIGHTS,
        },
        fds: [-1; MAX_FDS],
    };
    for (slot, fd) in control.fds.iter_mut().zip(fds) {
        *slot = fd.as_raw_fd();
    }
    let mut iov = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let mut message = message(&mut iov);
    if !fds.is_empty() {
        message.msg_control = (&raw mut control).cast();
        message.msg_controllen = control_len(fds.len()) as _;
    }
    loop {
        let args =
            [socket.as_raw_fd() as usize, &raw const message as usize, libc::MSG_NOSIGNAL as usize, 0, 0, 0];
        // SAFETY: message, iov and control live across the call and describe memory that sendmsg only reads.
        match check(unsafe { raw::syscall(libc::SYS_sendmsg, args) }) {
            Err(Errno(libc::EINTR)) => {}
            Err(errno) => return Err(errno),
            Ok(_) => return Ok(()),
        }
    }
}

/// Receives one message into `bytes`; returns its length (0: the peer is gone) and the descriptors, close-on-exec.
///
/// `flags` is 0 or `MSG_DONTWAIT`.
///
/// # Errors
/// `EMSGSIZE` if the message did not fit, else what recvmsg(2) returns. Descriptors of a refused message are closed.
#[allow(unsafe_code)]
pub fn recv_with_fds(
    socket: BorrowedFd<'_>,
    bytes: &mut [u8],
    flags: i32,
) -> Result<(usize, [Option<OwnedFd>; MAX_FDS]), Errno> {
    let mut control = Control {
        header: libc::cmsghdr { cmsg_len: 0 as _, cmsg_level: 0, cmsg_type: 0 },
        fds: [-1; MAX_FDS],
    };
    let mut iov = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    let mut message = message(&mut iov);
    message.msg_control = (&raw mut control).cast();
    message.msg_controllen = size_of::<Control>() as _;
    let flags = flags | libc::MSG_CMSG_CLOEXEC;
    let len = loop {
        let args = [socket.as_raw_fd() as usize, &raw mut message as usize, flags as usize, 0, 0, 0];
        // SAFETY: message, iov and control live across the call; the kernel writes within the lengths given.
        match check(unsafe { raw::syscall(libc::SYS_recvmsg, args) }) {
            Err(Errno(libc::EINTR)) => {}
            Err(errno) => return Err(errno),
            Ok(len) => break len,
        }
    };
    let fds = take_fds(&control, message.msg_controllen as usize);
    if message.msg_flags & libc::MSG_TRUNC != 0 {
        return Err(Errno(libc::EMSGSIZE));
    }
    Ok((len, fds))
}

#[allow(unsafe_code)]
fn take_fds(control: &Control, len: usize) -> [Option<OwnedFd>; MAX_FDS] {
    let mut fds = [const { None }; MAX_FDS];
    let rights =
        control.header.cmsg_level == libc::SOL_SOCKET && control.header.cmsg_type == libc::SCM_RIGHTS;
    if len < size_of::<libc::cmsghdr>() || !rights {
        return fds;
    }
    let bytes = (control.header.cmsg_len as usize).saturating_sub(size_of::<libc::cmsghdr>());
    let count = (bytes / size_of::<i32>()).min(MAX_FDS);
    for (slot, &fd) in fds.iter_mut().zip(&control.fds[..count]) {
        // SAFETY: the kernel has just installed this descriptor for us and nobody else knows it.
        *slot = (fd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(fd) });
    }
    fds
}

#[allow(unsafe_code)]
fn message(iov: &mut libc::iovec) -> libc::msghdr {
    // SAFETY: msghdr is plain old data for which all-zero is valid.
    let mut message: libc::msghdr = unsafe { core::mem::zeroed() };
    message.msg_iov = iov;
    message.msg_iovlen = 1;
    message
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{io::Read, os::fd::AsFd, os::unix::net::UnixDatagram};

    #[test]
    fn a_message_carries_its_descriptors() {
        let (a, b) = UnixDatagram::pair().unwrap();
        let file = std::fs::File::open("/proc/self/comm").unwrap();
        send_with_fds(a.as_fd(), b"hello", &[file.as_fd()]).unwrap();
        let mut bytes = [0; 16];
        let (len, mut fds) = recv_with_fds(b.as_fd(), &mut bytes, 0).unwrap();
        assert_eq!(&bytes[..len], b"hello");
        let mut text = String::new();
        std::fs::File::from(fds[0].take().unwrap()).read_to_string(&mut text).unwrap();
        assert!(!text.is_empty());
        assert!(fds.iter().all(Option::is_none));
    }

    #[test]
    fn a_message_too_long_for_the_buffer_is_refused() {
        let (a, b) = UnixDatagram::pair().unwrap();
        send_with_fds(a.as_fd(), &[7; 64], &[]).unwrap();
        assert_eq!(recv_with_fds(b.as_fd(), &mut [0; 16], 0).unwrap_err(), Errno(libc::EMSGSIZE));
    }
}
