//! The four rings of an AF_XDP socket, mapped from its file descriptor.
//!
//! Rx and completion are taken from, fill and tx are given to. Each value is one end of a ring: let one process use an end at
//! a time, and within it one thread, or several under a lock. A mapping made later goes on where the shared cursors stand.

#[cfg(all(test, not(loom)))]
mod oracle;
mod shared;

use crate::{Error, sys};
use shared::{ConsumerRing, Place, ProducerRing};
use std::mem::size_of;
use std::os::fd::BorrowedFd;

/// A packet in the UMEM: `struct xdp_desc`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Desc {
    /// UMEM address of the first byte.
    pub addr: u64,
    /// Length in bytes.
    pub len: u32,
    /// `XDP_PKT_CONTD` and `XDP_TX_METADATA`; 0 for what this crate binds.
    pub options: u32,
}

const _: () = assert!(size_of::<Desc>() == size_of::<libc::xdp_desc>());
const _: () = assert!(align_of::<Desc>() == align_of::<libc::xdp_desc>());

/// Packets the kernel received.
#[derive(Debug)]
pub struct RxRing(ConsumerRing<Desc>);

impl RxRing {
    /// Maps the rx ring of an AF_XDP socket; `size` is what [`Socket::set_rings`](crate::Socket::set_rings) was given.
    /// A bound socket's rings can be mapped since Linux 6.4.
    ///
    /// # Errors
    /// Not an AF_XDP socket, no such ring or a smaller one, or impossible cursors in it.
    pub fn map(fd: BorrowedFd<'_>, size: u32) -> Result<Self, Error> {
        let (offsets, at) = (sys::mmap_offsets(fd)?.rx, libc::XDP_PGOFF_RX_RING);
        Place { ring: "rx", fd, at, offsets, size }.take_end().map(Self)
    }

    /// Number of entries.
    #[must_use]
    #[inline]
    pub fn size(&self) -> u32 {
        self.0.size()
    }

    /// Packets that can be peeked at. Looks at the kernel's cursor only when those of the last look are released.
    #[inline]
    pub fn available(&mut self) -> u32 {
        self.0.available()
    }

    /// The `i`th available packet; `None` unless `i` is below what [`available`](Self::available) said.
    #[must_use]
    #[inline]
    pub fn peek(&self, i: u32) -> Option<Desc> {
        self.0.peek(i)
    }

    /// Gives the slots of the first `n` available packets back, at most all of them. Their frames stay the caller's until
    /// pushed to the fill ring.
    #[inline]
    pub fn release(&mut self, n: u32) {
        self.0.release(n);
    }

    /// Packets not yet released, as the shared cursors stand; 0 when they are impossible. Right from any mapping.
    #[must_use]
    #[inline]
    pub fn pending(&self) -> u32 {
        self.0.pending()
    }

    /// How often an impossible kernel cursor was ignored. Anything but 0 means that the ring's memory was overwritten.
    #[must_use]
    #[inline]
    pub fn corrupt(&self) -> u64 {
        self.0.corrupt()
    }
}

/// Frames handed to the kernel to receive into.
#[derive(Debug)]
pub struct FillRing(ProducerRing<u64>);

impl FillRing {
    /// Maps the fill ring of an AF_XDP socket; `size` is what
    /// [`Socket::set_umem_rings`](crate::Socket::set_umem_rings) was given.
    /// Sockets that share a queue share this ring: map it from any of them once bound, and give to it under one lock.
    ///
    /// # Errors
    /// Not an AF_XDP socket, no such ring or a smaller one, or impossible cursors in it.
    pub fn map(fd: BorrowedFd<'_>, size: u32) -> Result<Self, Error> {
        let (offsets, at) = (sys::mmap_offsets(fd)?.fr, libc::XDP_UMEM_PGOFF_FILL_RING as i64);
        Place { ring: "fill", fd, at, offsets, size }.give_end().map(Self)
    }

    /// Number of entries.
    #[must_use]
    #[inline]
    pub fn size(&self) -> u32 {
        self.0.size()
    }

    /// Room for frames. Looks at the kernel's cursor; [`push`](Self::push) alone does so only when it must.
    #[inline]
    pub fn free(&mut self) -> u32 {
        self.0.free()
    }

    /// Goes on where other producers of this ring have stopped, which have mapped it too: under one lock with all of them. What was pushed
    /// here and not submitted is given up. The producer's cursor.
    #[inline]
    pub fn take_over(&mut self) -> u32 {
        self.0.take_over()
    }

    /// The address that some producer has written at cursor `at`. Right until the cursor is `size` further.
    #[must_use]
    pub fn entry(&self, at: u32) -> u64 {
        self.0.entry(at)
    }

    /// Adds a frame by its UMEM address; false when the ring is full. The kernel sees it after [`submit`](Self::submit).
    /// A ring of as many entries as there are frames is never full, however late the kernel moves its cursor: it does so
    /// when it delivers a packet, not when it drops one (`xsk_flush`).
    #[inline]
    pub fn push(&mut self, addr: u64) -> bool {
        self.0.push(addr)
    }

    /// Hands every pushed frame to the kernel.
    #[inline]
    pub fn submit(&mut self) {
        self.0.submit();
    }

    /// Whether the driver waits for a system call before it takes frames: poll, or [`Socket::wake_rx`](crate::Socket::wake_rx).
    #[must_use]
    #[inline]
    pub fn needs_wakeup(&self) -> bool {
        self.0.needs_wakeup()
    }

    /// Frames the kernel has not taken, as the shared cursors stand; the size when they are impossible. Right from any mapping.
    #[must_use]
    #[inline]
    pub fn pending(&self) -> u32 {
        self.0.pending()
    }

    /// How often an impossible kernel cursor was ignored. Anything but 0 means that the ring's memory was overwritten.
    #[must_use]
    #[inline]
    pub fn corrupt(&self) -> u64 {
        self.0.corrupt()
    }
}

/// Packets for the kernel to send.
#[derive(Debug)]
pub struct TxRing(ProducerRing<Desc>);

impl TxRing {
    /// Maps the tx ring of an AF_XDP socket; `size` is what [`Socket::set_rings`](crate::Socket::set_rings) was given.
    ///
    /// # Errors
    /// Not an AF_XDP socket, no such ring or a smaller one, or impossible cursors in it.
    pub fn map(fd: BorrowedFd<'_>, size: u32) -> Result<Self, Error> {
        let (offsets, at) = (sys::mmap_offsets(fd)?.tx, libc::XDP_PGOFF_TX_RING);
        Place { ring: "tx", fd, at, offsets, size }.give_end().map(Self)
    }

    /// Number of entries.
    #[must_use]
    #[inline]
    pub fn size(&self) -> u32 {
        self.0.size()
    }

    /// Room for packets. Looks at the kernel's cursor.
    #[inline]
    pub fn free(&mut self) -> u32 {
        self.0.free()
    }

    /// Whether `n` packets can be pushed. Looks at the kernel's cursor only when it must.
    #[must_use]
    #[inline]
    pub fn reserve(&mut self, n: u32) -> bool {
        self.0.reserve(n)
    }

    /// Adds a packet; false when the ring is full. The kernel sees it after [`submit`](Self::submit), and gives its frame
    /// back through the completion ring.
    #[inline]
    pub fn push(&mut self, desc: Desc) -> bool {
        self.0.push(desc)
    }

    /// Hands every pushed packet to the kernel.
    #[inline]
    pub fn submit(&mut self) {
        self.0.submit();
    }

    /// Whether the kernel waits for [`Socket::wake_tx`](crate::Socket::wake_tx) before it sends; always so in copy mode.
    #[must_use]
    #[inline]
    pub fn needs_wakeup(&self) -> bool {
        self.0.needs_wakeup()
    }

    /// Packets the kernel has not taken, as the shared cursors stand; the size when they are impossible.
    #[must_use]
    #[inline]
    pub fn pending(&self) -> u32 {
        self.0.pending()
    }

    /// How often an impossible kernel cursor was ignored. Anything but 0 means that the ring's memory was overwritten.
    #[must_use]
    #[inline]
    pub fn corrupt(&self) -> u64 {
        self.0.corrupt()
    }
}

/// Frames whose packet the kernel has sent.
#[derive(Debug)]
pub struct CompletionRing(ConsumerRing<u64>);

impl CompletionRing {
    /// Maps the completion ring of an AF_XDP socket; `size` is what
    /// [`Socket::set_umem_rings`](crate::Socket::set_umem_rings) was given.
    ///
    /// # Errors
    /// Not an AF_XDP socket, no such ring or a smaller one, or impossible cursors in it.
    pub fn map(fd: BorrowedFd<'_>, size: u32) -> Result<Self, Error> {
        let (offsets, at) = (sys::mmap_offsets(fd)?.cr, libc::XDP_UMEM_PGOFF_COMPLETION_RING as i64);
        Place { ring: "completion", fd, at, offsets, size }.take_end().map(Self)
    }

    /// Number of entries.
    #[must_use]
    #[inline]
    pub fn size(&self) -> u32 {
        self.0.size()
    }

    /// Frames that can be peeked at. Looks at the kernel's cursor only when those of the last look are released.
    #[inline]
    pub fn available(&mut self) -> u32 {
        self.0.available()
    }

    /// UMEM address of the `i`th available frame, as it was pushed to the tx ring; `None` unless `i` is below what
    /// [`available`](Self::available) said. An address beyond the UMEM that was pushed comes back too (Linux 6.18).
    #[must_use]
    #[inline]
    pub fn peek(&self, i: u32) -> Option<u64> {
        self.0.peek(i)
    }

    /// Gives the slots of the first `n` available frames back, at most all of them.
    #[inline]
    pub fn release(&mut self, n: u32) {
        self.0.release(n);
    }

    /// Frames not yet released, as the shared cursors stand; 0 when they are impossible.
    #[must_use]
    #[inline]
    pub fn pending(&self) -> u32 {
        self.0.pending()
    }

    /// How often an impossible kernel cursor was ignored. Anything but 0 means that the ring's memory was overwritten.
    #[must_use]
    #[inline]
    pub fn corrupt(&self) -> u64 {
        self.0.corrupt()
    }
}
