//! Frames as they are, from memory onto the cable: what generators that build frames in BPF cannot send.

use crate::{
    error::{During, Result},
    sys,
    testbed::End,
};
use std::{
    io::{self, IoSlice},
    os::fd::{AsFd, OwnedFd},
};

/// A packet socket on the device of one end. Frames skip the queueing discipline.
pub struct RawSender {
    socket: OwnedFd,
}

impl RawSender {
    /// Most frames that one system call sends.
    pub const BATCH: usize = 64;

    /// Opens it.
    ///
    /// # Errors
    /// CAP_NET_RAW in the namespace is needed.
    pub fn open(end: &End) -> Result<Self> {
        let index = end.ifindex();
        let socket = end
            .enter(|| sys::packet_socket(index))?
            .during(|| format!("opening a packet socket on {} (socket, bind)", end.device()))?;
        Ok(Self { socket })
    }

    /// Sends all frames in their order, each with its Ethernet header. While the device has no room it asks again.
    ///
    /// # Errors
    /// Whatever sendmmsg(2) says but ENOBUFS and EAGAIN.
    pub fn send(&mut self, mut frames: &[IoSlice<'_>]) -> Result<()> {
        while !frames.is_empty() {
            let batch = &frames[..frames.len().min(Self::BATCH)];
            match sys::send_frames(self.socket.as_fd(), batch) {
                Ok(sent) => frames = &frames[sent..],
                Err(error) if has_no_room(&error) => std::hint::spin_loop(),
                Err(error) => return Err(error).during(|| "sending frames (sendmmsg)".into()),
            }
        }
        Ok(())
    }
}

fn has_no_room(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOBUFS | libc::EAGAIN | libc::EINTR))
}
