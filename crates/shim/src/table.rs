//! What each file descriptor of the process is to the shim.
//!
//! Reading is one load; the objects behind are never unmapped, only recycled, so a reader that lost a race sees an old
//! object, not freed memory.

use crate::{epoll::Epoll, socket::Socket, tcp::Stream};
use core::sync::atomic::{AtomicPtr, Ordering};

/// Descriptors from here on are never lifted (the kernel's default `fs.nr_open`).
pub(crate) const FDS: usize = 1 << 20;

/// A table from descriptor to object.
pub(crate) struct Table<T: 'static>([AtomicPtr<T>; FDS]);

/// UDP sockets.
pub(crate) static SOCKETS: Table<Socket> = Table::new();
/// TCP sockets.
pub(crate) static STREAMS: Table<Stream> = Table::new();
/// epoll instances that watch a UDP socket.
pub(crate) static EPOLLS: Table<Epoll> = Table::new();

impl<T> Table<T> {
    const fn new() -> Self {
        Self([const { AtomicPtr::new(core::ptr::null_mut()) }; FDS])
    }

    /// The object of `fd`.
    #[inline]
    pub(crate) fn of(&self, fd: i32) -> Option<&'static T> {
        let object = self.0.get(fd as usize)?.load(Ordering::Acquire);
        // SAFETY: only `set` stores here, and it stores leaked references.
        unsafe { object.as_ref() }
    }

    /// Makes `fd` mean `object`; returns what it meant before.
    pub(crate) fn set(&self, fd: i32, object: Option<&'static T>) -> Option<&'static T> {
        let slot = self.0.get(fd as usize)?;
        let object = object.map_or(core::ptr::null_mut(), |object| core::ptr::from_ref(object).cast_mut());
        let old = slot.swap(object, Ordering::AcqRel);
        // SAFETY: as in `of`.
        unsafe { old.as_ref() }
    }

    /// Every known descriptor below `limit` and its object.
    pub(crate) fn iter(&'static self, limit: usize) -> impl Iterator<Item = (i32, &'static T)> {
        (0..limit.min(FDS) as i32).filter_map(|fd| self.of(fd).map(|object| (fd, object)))
    }
}
