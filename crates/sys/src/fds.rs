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

/// Room for whatever a peer can make the kernel attach: `SCM_MAX_FD` descriptors, credentials, a pidfd, a security label.
/// What does not fit, the kernel closes in the receiving thread (scm_destroy), which may block it.
const RECEIVED: usize = 4096;

#[repr(C, align(8))]
struct Received([u8; RECEIVED]);

/// Not in libc (Linux 6.5).
const SCM_PIDFD: i32 = 4;

/// Sends one message. Never raises `SIGPIPE`.
///
/// # Errors
/// `EINVAL` for more than [`MAX_FDS`] descriptors, else what sendmsg(2) returns.
pub fn send_with_fds(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), Errno> {
    send(socket, bytes, fds, libc::MSG_NOSIGNAL)
}

/// As [`send_with_fds`], and never waits, whatever `O_NONBLOCK` says: who else has the socket can change that.
///
/// # Errors
/// `EAGAIN` if it would have to wait, else as [`send_with_fds`].
pub fn try_send_with_fds(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), Errno> {
    send(socket, bytes, fds, libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT)
}

#[allow(unsafe_code)]
fn send(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>], flags: i32) -> Result<(), Errno> {
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
        let args = [socket.as_raw_fd() as usize, &raw const message as usize, flags as usize, 0, 0, 0];
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
/// `flags` is 0 or `MSG_DONTWAIT`. Descriptors beyond [`MAX_FDS`] and those of a refused message are closed.
///
/// # Errors
/// `EMSGSIZE` if the message did not fit, else what recvmsg(2) returns.
pub fn recv_with_fds(
    socket: BorrowedFd<'_>,
    bytes: &mut [u8],
    flags: i32,
) -> Result<(usize, [Option<OwnedFd>; MAX_FDS]), Errno> {
    let mut fds = [const { None }; MAX_FDS];
    let mut slots = fds.iter_mut();
    let len = recv_each_fd(socket, bytes, flags, |fd| {
        if let Some(slot) = slots.next() {
            *slot = Some(fd);
        }
    })?;
    Ok((len, fds))
}

/// As [`recv_with_fds`], and hands every descriptor to `each`, those of a message that is refused included: for a receiver
/// that must not close what others sent, because the last close of a file may block.
///
/// # Errors
/// As [`recv_with_fds`].
#[allow(unsafe_code)]
pub fn recv_each_fd(
    socket: BorrowedFd<'_>,
    bytes: &mut [u8],
    flags: i32,
    each: impl FnMut(OwnedFd),
) -> Result<usize, Errno> {
    let mut control = Received([0; RECEIVED]);
    let mut iov = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    let mut message = message(&mut iov);
    message.msg_control = (&raw mut control).cast();
    message.msg_controllen = RECEIVED as _;
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
    #[allow(clippy::unnecessary_cast, reason = "its type differs between C libraries")]
    let filled = (message.msg_controllen as usize).min(RECEIVED);
    take_fds(&control.0[..filled], each);
    match message.msg_flags & libc::MSG_TRUNC {
        0 => Ok(len),
        _ => Err(Errno(libc::EMSGSIZE)),
    }
}

/// Walks the control messages (cmsg(3)); a pidfd that the peer made the kernel attach (SO_PASSPIDFD) is closed.
#[allow(unsafe_code)]
fn take_fds(mut control: &[u8], mut each: impl FnMut(OwnedFd)) {
    const HEADER: usize = size_of::<libc::cmsghdr>();
    while control.len() >= HEADER {
        // SAFETY: as many bytes as a header has, of plain integers.
        let header = unsafe { control.as_ptr().cast::<libc::cmsghdr>().read_unaligned() };
        #[allow(clippy::unnecessary_cast, reason = "its type differs between C libraries")]
        let len = (header.cmsg_len as usize).clamp(HEADER, control.len());
        let fds = control[HEADER..len].chunks_exact(size_of::<i32>());
        let fds = fds.map(|fd| i32::from_ne_bytes([fd[0], fd[1], fd[2], fd[3]])).filter(|&fd| fd >= 0);
        // SAFETY: used on what the kernel has just installed for us, and nobody else knows.
        let own = |fd| unsafe { OwnedFd::from_raw_fd(fd) };
        match (header.cmsg_level, header.cmsg_type) {
            (libc::SOL_SOCKET, libc::SCM_RIGHTS) => fds.for_each(|fd| each(own(fd))),
            (libc::SOL_SOCKET, SCM_PIDFD) => fds.for_each(|fd| drop(own(fd))),
            _ => {}
        }
        let next = len.next_multiple_of(size_of::<usize>()).min(control.len());
        control = &control[next..];
    }
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
#[allow(unsafe_code)]
mod tests {
    use super::*;
    use std::{
        io::Read,
        os::{
            fd::{AsFd, IntoRawFd},
            unix::net::UnixDatagram,
        },
    };

    const SO_PASSPIDFD: i32 = 76;

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

    #[test]
    fn every_descriptor_is_handed_over_behind_other_control_messages_and_none_is_left_open() {
        let (a, b) = UnixDatagram::pair().unwrap();
        for option in [libc::SO_PASSCRED, SO_PASSPIDFD] {
            let (on, len) = (1_i32, size_of::<i32>() as u32);
            // SAFETY: an int that lives across the call.
            let set = unsafe {
                libc::setsockopt(b.as_raw_fd(), libc::SOL_SOCKET, option, (&raw const on).cast(), len)
            };
            // SO_PASSPIDFD is as old as Linux 6.5.
            assert!(set == 0 || option == SO_PASSPIDFD);
        }
        let (pipe, end) = std::io::pipe().unwrap();
        let mut fds = Vec::new();
        send_with_fds(a.as_fd(), &[7; 64], &[end.as_fd(); MAX_FDS]).unwrap();
        let refused = recv_each_fd(b.as_fd(), &mut [0; 16], 0, |fd| fds.push(fd));
        assert_eq!((refused, fds.len()), (Err(Errno(libc::EMSGSIZE)), MAX_FDS));
        send_with_fds(a.as_fd(), b"x", &[end.as_fd(); MAX_FDS]).unwrap();
        let (len, kept) = recv_with_fds(b.as_fd(), &mut [0; 16], 0).unwrap();
        assert_eq!((len, kept.iter().flatten().count()), (1, MAX_FDS));
        // Only when the last of them is closed does the pipe end.
        drop((fds, kept, end));
        assert_eq!({ pipe }.read(&mut [0]).unwrap(), 0);
    }

    #[test]
    fn a_message_may_carry_as_many_descriptors_as_the_kernel_allows() {
        let words = |len: usize, kind: i32| [len as u64, (libc::SOL_SOCKET as u64) | (kind as u64) << 32];
        let (mut read, write) = std::io::pipe().unwrap();
        let sent: Vec<i32> =
            (0..253).map(|_| OwnedFd::into_raw_fd(write.try_clone().unwrap().into())).collect();
        let mut control: Vec<u8> = words(16 + 12, 2).iter().flat_map(|word| word.to_ne_bytes()).collect();
        control.extend([0; 16]);
        control.extend(words(16 + 253 * 4, libc::SCM_RIGHTS).iter().flat_map(|word| word.to_ne_bytes()));
        control.extend(sent.iter().flat_map(|fd| fd.to_ne_bytes()));
        let mut taken = Vec::new();
        take_fds(&control, |fd| taken.push(fd));
        assert_eq!(taken.iter().map(AsRawFd::as_raw_fd).collect::<Vec<_>>(), sent);
        drop((taken, write));
        assert_eq!(read.read(&mut [0]).unwrap(), 0);
    }

    #[test]
    fn a_send_that_would_wait_fails_instead() {
        let (a, _b) = UnixDatagram::pair().unwrap();
        let sent = (0..100_000).find_map(|_| try_send_with_fds(a.as_fd(), b"x", &[]).err());
        assert_eq!(sent, Some(Errno(libc::EAGAIN)));
    }
}
