//! Closing descriptors that a process sent and nobody asked for.
//!
//! The last close of a file may block for as long as its owner likes (SO_LINGER, FUSE): not the broker's loop.

use std::{
    os::fd::OwnedFd,
    sync::mpsc::{SyncSender, TrySendError, sync_channel},
    thread,
};

/// Descriptors that may wait to be closed.
const QUEUE: usize = 1024;

/// A thread that closes; started by the first descriptor.
#[derive(Default)]
pub(crate) struct Disposal(Option<SyncSender<OwnedFd>>);

impl Disposal {
    /// Closes `fd` some time. Beyond [`QUEUE`] it stays open: whoever sent so many pays with the broker's descriptors, and
    /// is then answered that there are none.
    pub(crate) fn close(&mut self, fd: OwnedFd) {
        let sender = self.0.get_or_insert_with(start);
        if let Err(TrySendError::Full(fd) | TrySendError::Disconnected(fd)) = sender.try_send(fd) {
            std::mem::forget(fd);
        }
    }
}

fn start() -> SyncSender<OwnedFd> {
    let (sender, receiver) = sync_channel::<OwnedFd>(QUEUE);
    thread::spawn(move || receiver.into_iter().for_each(drop));
    sender
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{io::Read, os::unix::net::UnixStream, time::Duration};

    #[test]
    fn a_descriptor_is_closed() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        Disposal::default().close(theirs.into());
        ours.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        assert_eq!(ours.read(&mut [0]).unwrap(), 0);
    }
}
