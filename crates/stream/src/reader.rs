//! How a read puts together what is held and what only the kernel has.
//!
//! Three positions, never out of order:
//! ```text
//!   drained   the kernel's own (tcp_sock.copied_seq): ghosts before it are gone
//!   read      the program's: the kernel still holds ghosts for drained..read
//!   accepted  the kernel's rcv_nxt, as last asked: segments before it have passed all of its checks
//! ```
//! Payload is given to the program only once the kernel has accepted the ghost for it: what a sequence, window, timestamp or
//! acknowledgement check of Linux refuses (`tcp_validate_incoming`, `tcp_ack`) must not be read either.

use crate::index::{Payload, StreamIndex};

/// The kernel's socket. None of these waits.
pub trait Kernel {
    /// What can go wrong.
    type Error;

    /// Bytes that can be read in order (SIOCINQ).
    ///
    /// # Errors
    /// ioctl(2)'s.
    fn queued(&mut self) -> Result<u64, Self::Error>;

    /// Drops up to `len` bytes without looking at them (MSG_TRUNC); how many.
    ///
    /// # Errors
    /// recv(2)'s.
    fn discard(&mut self, len: u64) -> Result<u64, Self::Error>;

    /// Reads up to `len` bytes to the program's buffer from `at` on; `peek`: and leaves them. 0: the end.
    ///
    /// # Errors
    /// recv(2)'s.
    fn read(&mut self, at: usize, len: usize, peek: bool) -> Result<usize, Self::Error>;
}

/// The program's buffer.
pub trait Sink {
    /// Puts bytes at offset `at`.
    fn put(&mut self, at: usize, bytes: &[u8]);
}

/// The positions of a stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Reader {
    read: u64,
    drained: u64,
    accepted: u64,
}

/// What a read took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// Bytes in all.
    pub bytes: usize,
    /// Of these, from frames.
    pub lifted: usize,
}

impl Reader {
    /// A reader of a stream of which the kernel has given `position` bytes to the program.
    pub fn at(position: u64) -> Self {
        Self { read: position, drained: position, accepted: position }
    }

    /// The program's position.
    #[inline]
    pub fn position(&self) -> u64 {
        self.read
    }

    /// Ghost bytes that have been read and not yet drained.
    #[inline]
    pub fn undrained(&self) -> u64 {
        self.read - self.drained
    }

    /// How many bytes from the program's position on may be taken from `index`, at most `max`.
    ///
    /// # Errors
    /// The kernel's.
    #[inline]
    pub fn takeable<D, K: Kernel>(
        &mut self,
        index: &StreamIndex<D>,
        kernel: &mut K,
        max: u64,
    ) -> Result<u64, K::Error> {
        let held = index.covered(self.read, max);
        if held > 0 && self.read + held > self.accepted {
            self.accepted = (self.drained + kernel.queued()?).max(self.read);
        }
        Ok(held.min(self.accepted - self.read))
    }

    /// Whether the kernel has accepted more than was read, as last asked.
    #[inline]
    pub fn knows_more(&self) -> bool {
        self.accepted > self.read
    }

    /// The same, asked if it is not known.
    ///
    /// # Errors
    /// The kernel's.
    pub fn has_more<K: Kernel>(&mut self, kernel: &mut K) -> Result<bool, K::Error> {
        if !self.knows_more() {
            self.accepted = (self.drained + kernel.queued()?).max(self.read);
        }
        Ok(self.knows_more())
    }

    /// Moves the program's position past `len` bytes that were [takeable](Reader::takeable).
    #[inline]
    pub fn advance(&mut self, len: u64) {
        debug_assert!(self.read + len <= self.accepted);
        self.read += len;
    }

    /// Takes what the index holds at the program's position, at most `max` bytes, to `sink` from `at` on.
    ///
    /// # Errors
    /// The kernel's; nothing was taken then.
    #[inline]
    pub fn take<D: Payload, K: Kernel>(
        &mut self,
        index: &mut StreamIndex<D>,
        kernel: &mut K,
        sink: &mut impl Sink,
        at: usize,
        max: usize,
        free: impl FnMut(D),
    ) -> Result<usize, K::Error> {
        let len = self.takeable(index, kernel, max as u64)?;
        if len == 0 {
            return Ok(0);
        }
        let start = self.read;
        index.each(start, start + len, |position, bytes| sink.put(at + (position - start) as usize, bytes));
        self.read += len;
        index.release(self.read, free);
        Ok(len as usize)
    }

    /// Discards the ghosts of what has been read; false: some are left, try again.
    ///
    /// # Errors
    /// The kernel's; it can be tried again.
    pub fn drain<K: Kernel>(&mut self, kernel: &mut K) -> Result<bool, K::Error> {
        while self.drained < self.read {
            match kernel.discard(self.read - self.drained)? {
                0 => return Ok(false),
                len => self.drained += len,
            }
        }
        Ok(true)
    }

    /// A read of the kernel's socket, whose ghosts are then covered by what the index holds. Drains first; None: it could not,
    /// and nothing was read, for the kernel's bytes are not at the program's position.
    ///
    /// # Errors
    /// The kernel's; nothing was taken then.
    #[allow(clippy::too_many_arguments)]
    pub fn through<D: Payload, K: Kernel>(
        &mut self,
        index: &mut StreamIndex<D>,
        kernel: &mut K,
        sink: &mut impl Sink,
        at: usize,
        max: usize,
        peek: bool,
        free: impl FnMut(D),
    ) -> Result<Option<Taken>, K::Error> {
        if !self.drain(kernel)? {
            return Ok(None);
        }
        let bytes = kernel.read(at, max, peek)?;
        let (start, end) = (self.read, self.read + bytes as u64);
        let lifted =
            index.each(start, end, |position, bytes| sink.put(at + (position - start) as usize, bytes));
        if !peek {
            (self.read, self.drained) = (end, end);
            self.accepted = self.accepted.max(end);
            index.release(end, free);
        }
        Ok(Some(Taken { bytes, lifted: lifted as usize }))
    }

    /// The kernel has skipped a byte of the stream: an urgent one that is read out of band (`tcp_recvmsg_locked`). Only when
    /// nothing is undrained.
    pub fn skip(&mut self) {
        debug_assert_eq!(self.read, self.drained);
        self.read += 1;
        self.drained = self.read;
        self.accepted = self.accepted.max(self.read);
    }
}
