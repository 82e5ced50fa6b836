//! Where held payload is: in its frame, or copied out.

use crate::engine::{self, Memory};
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use hoist_stream::Payload;
use hoist_xsk::Desc;

/// Bytes of payload in ordinary memory, in all.
pub(crate) static COPIED_OUT: AtomicU64 = AtomicU64::new(0);

/// Payload of one segment.
pub(crate) enum Held {
    /// In a frame, which is the holder's until it gives it back.
    Frame {
        /// UMEM address of the first byte.
        address: u64,
        /// Bytes.
        len: u32,
        /// Its frame.
        frame: u32,
    },
    /// In ordinary memory.
    Copy(Box<[u8]>),
}

impl Payload for Held {
    #[inline]
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Frame { address, len, .. } => {
                let desc = Desc { addr: *address, len: *len, options: 0 };
                engine::memory().and_then(|memory| memory.umem.packet(desc)).unwrap_or_default()
            }
            Self::Copy(bytes) => bytes,
        }
    }
}

impl Held {
    /// A copy in ordinary memory.
    pub(crate) fn copy_of(bytes: &[u8]) -> Self {
        COPIED_OUT.fetch_add(bytes.len() as u64, Relaxed);
        Self::Copy(bytes.into())
    }

    /// Gives back what it takes up.
    #[inline]
    pub(crate) fn free(self, memory: &Memory) {
        match self {
            Self::Frame { frame, .. } => engine::give_back(memory, frame),
            Self::Copy(bytes) => {
                COPIED_OUT.fetch_sub(bytes.len() as u64, Relaxed);
            }
        }
    }

    /// Moves the bytes out of the frame, which is given back.
    pub(crate) fn copy_out(&mut self, memory: &Memory) {
        if let Self::Frame { .. } = self {
            let copy = Self::copy_of(self.bytes());
            core::mem::replace(self, copy).free(memory);
        }
    }
}
