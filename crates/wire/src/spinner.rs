//! Running the driver from the thread that reads. Shared source of the raw AF_XDP programs.

use hoist_xsk::Socket;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use std::{error::Error, net::UdpSocket, time::Instant};

const BUSY_POLL_US: u32 = 50;

/// Waits for packets by running the NAPI instance of the queue.
///
/// While epoll looks for events it owns the instance (ep_busy_loop, napi_busy_loop): no packet wakes the NAPI thread, no timer
/// is set, and the first packet in the AF_XDP ring ends the wait. A receive that does not block gives the instance up each time.
pub(crate) struct Spinner {
    epoll: Epoll,
    helper: UdpSocket,
}

impl Spinner {
    pub(crate) fn new(socket: &Socket, helper: UdpSocket) -> Result<Self, Box<dyn Error>> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        sys::busy_poll(&epoll, BUSY_POLL_US)?;
        epoll.add(&helper, EpollEvent::new(EpollFlags::empty(), 0))?; // its NAPI instance is the epoll's from here on
        epoll.add(socket, EpollEvent::new(EpollFlags::EPOLLIN, 1))?;
        Ok(Self { epoll, helper })
    }

    /// Until a packet comes, or the thread has slept for `idle`: then false.
    pub(crate) fn wait(&self, idle: EpollTimeout) -> Result<bool, Box<dyn Error>> {
        let start = Instant::now();
        let ready = match self.epoll.wait(&mut [EpollEvent::empty()], idle) {
            Err(nix::errno::Errno::EINTR) => true,
            other => other? > 0,
        };
        if start.elapsed().as_micros() >= BUSY_POLL_US.into() {
            self.resume()?;
        }
        Ok(ready)
    }

    /// An epoll that went to sleep has forgotten the instance (ep_busy_loop).
    fn resume(&self) -> nix::Result<()> {
        self.epoll.delete(&self.helper)?;
        self.epoll.add(&self.helper, EpollEvent::new(EpollFlags::empty(), 0))
    }
}

#[allow(unsafe_code)]
mod sys {
    use nix::sys::epoll::Epoll;
    use std::{io, os::fd::AsRawFd};

    /// Makes `epoll` run the NAPI instance of its sockets for `us` before it sleeps (EPIOCSPARAMS, Linux 6.9).
    pub(super) fn busy_poll(epoll: &Epoll, us: u32) -> io::Result<()> {
        #[repr(C)]
        struct Params {
            busy_poll_usecs: u32,
            busy_poll_budget: u16,
            prefer_busy_poll: u8,
            pad: u8,
        }
        const EPIOCSPARAMS: u64 = 0x4008_8a01;
        let params = Params { busy_poll_usecs: us, busy_poll_budget: 64, prefer_busy_poll: 1, pad: 0 };
        // SAFETY: reads a struct epoll_params, which outlives the call.
        match unsafe { libc::ioctl(epoll.0.as_raw_fd(), EPIOCSPARAMS as _, &raw const params) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}
