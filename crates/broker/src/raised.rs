//! Room for what arrives at a socket while its program waits for the broker.

use crate::sys;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Bytes: a tenth of a second at 70,000 datagrams a second.
const ROOM: i32 = 16 << 20;

/// A socket whose receive buffer is larger than its program made it, as long as this lives.
pub(crate) struct Raised {
    socket: OwnedFd,
    /// SO_RCVBUF as the program knows it.
    was: i32,
}

impl Raised {
    /// None if there is room enough, or the kernel refuses more (CAP_NET_ADMIN).
    pub(crate) fn raise(socket: OwnedFd) -> Option<Self> {
        let was = size(socket.as_fd()).filter(|&was| was < ROOM)?;
        sys::force_receive_buffer(socket.as_fd(), ROOM).ok()?;
        Some(Self { socket, was })
    }
}

impl Drop for Raised {
    /// What is queued stays; a size that the program set meanwhile does too.
    fn drop(&mut self) {
        if size(self.socket.as_fd()) == Some(ROOM) {
            let _ = sys::force_receive_buffer(self.socket.as_fd(), self.was);
        }
    }
}

fn size(socket: BorrowedFd<'_>) -> Option<i32> {
    sys::option_i32(socket, libc::SOL_SOCKET, libc::SO_RCVBUF).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;

    #[test]
    fn the_size_comes_back_unless_the_program_changed_it() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let size = || size(socket.as_fd()).unwrap();
        let (before, handed) = (size(), || socket.as_fd().try_clone_to_owned().unwrap());
        let Some(raised) = Raised::raise(handed()) else {
            assert_eq!(size(), before, "without CAP_NET_ADMIN");
            return;
        };
        assert_eq!(size(), ROOM);
        drop(raised);
        assert_eq!(size(), before);
        let raised = Raised::raise(handed());
        sys::force_receive_buffer(socket.as_fd(), 100_000).unwrap();
        drop(raised);
        assert_eq!(size(), 100_000);
    }
}
