//! A ring in shared memory: cursors, flags and slots at the offsets the kernel names (`struct xdp_ring_offset`).
#![expect(unsafe_code, reason = "rings are shared memory behind raw pointers")]

use crate::Error;
use crate::cursor::{Consumer, Impossible, Producer, Word};
use crate::sys::Mapping;
use std::mem::size_of;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

/// Where a ring is mapped from.
pub(super) struct Place<'a> {
    pub(super) ring: &'static str,
    pub(super) fd: BorrowedFd<'a>,
    /// Offset to map at, which is how the kernel tells the rings of a socket apart.
    pub(super) at: i64,
    pub(super) offsets: libc::xdp_ring_offset,
    /// Entries.
    pub(super) size: u32,
}

impl Place<'_> {
    pub(super) fn take_end<T: Copy>(self) -> Result<ConsumerRing<T>, Error> {
        let (mapping, parts) = self.map::<T>()?;
        // SAFETY: map() has checked that the parts lie in the mapping, which the ring keeps.
        unsafe { ConsumerRing::over(parts, self.size, Some(mapping)) }.map_err(|wrong| self.corrupt(wrong))
    }

    pub(super) fn give_end<T: Copy>(self) -> Result<ProducerRing<T>, Error> {
        let (mapping, parts) = self.map::<T>()?;
        // SAFETY: map() has checked that the parts lie in the mapping, which the ring keeps.
        unsafe { ProducerRing::over(parts, self.size, Some(mapping)) }.map_err(|wrong| self.corrupt(wrong))
    }

    fn map<T>(&self) -> Result<(Mapping, Parts<T>), Error> {
        if !self.size.is_power_of_two() {
            return Err(Error::RingSize { size: self.size });
        }
        let slots = self.size as usize * size_of::<T>();
        let bytes = (self.offsets.desc as usize).saturating_add(slots);
        let mapping = Mapping::new(self.fd, self.at, bytes, "mmap(AF_XDP ring)")?;
        let parts = Parts::within(mapping.base(), bytes, &self.offsets).ok_or_else(|| Error::Sys {
            operation: "getsockopt(XDP_MMAP_OFFSETS)",
            cause: std::io::Error::from_raw_os_error(libc::EPROTO),
        })?;
        Ok((mapping, parts))
    }

    fn corrupt(&self, Impossible { producer, consumer }: Impossible) -> Error {
        Error::Corrupt { ring: self.ring, size: self.size, producer, consumer }
    }
}

/// Addresses of the parts of a ring whose slots hold `T`.
pub(super) struct Parts<T> {
    pub(super) producer: NonNull<AtomicU32>,
    pub(super) consumer: NonNull<AtomicU32>,
    pub(super) flags: NonNull<AtomicU32>,
    pub(super) slots: NonNull<T>,
}

impl<T> Parts<T> {
    /// `None` if a word lies outside `bytes` or off its alignment. The slots fill the rest, so only their start is checked.
    fn within(base: NonNull<u8>, bytes: usize, offsets: &libc::xdp_ring_offset) -> Option<Self> {
        let word = |offset: u64| part::<AtomicU32>(base, bytes, offset);
        Some(Self {
            producer: word(offsets.producer)?,
            consumer: word(offsets.consumer)?,
            flags: word(offsets.flags)?,
            slots: part(base, bytes, offsets.desc)?,
        })
    }
}

fn part<P>(base: NonNull<u8>, bytes: usize, offset: u64) -> Option<NonNull<P>> {
    let offset = usize::try_from(offset).ok()?;
    let fits = offset.checked_add(size_of::<P>())? <= bytes && offset.is_multiple_of(align_of::<P>());
    // SAFETY: offset lies within the bytes mapped at base.
    fits.then(|| unsafe { base.add(offset) }.cast())
}

/// The end of a ring that takes.
#[derive(Debug)]
pub(super) struct ConsumerRing<T> {
    cursor: Consumer<SharedWord>,
    slots: NonNull<T>,
    size: u32,
    _mapping: Option<Mapping>,
}

// SAFETY: the memory belongs to the process, not to a thread; `&mut self` orders what moves the cursor.
unsafe impl<T: Send> Send for ConsumerRing<T> {}

impl<T: Copy> ConsumerRing<T> {
    /// # Safety
    /// `parts` are valid for as long as the ring, with `size` slots, a power of two; every bit pattern is a `T`.
    pub(super) unsafe fn over(
        parts: Parts<T>,
        size: u32,
        mapping: Option<Mapping>,
    ) -> Result<Self, Impossible> {
        let cursor = Consumer::resume(SharedWord(parts.producer), SharedWord(parts.consumer), size)?;
        Ok(Self { cursor, slots: parts.slots, size, _mapping: mapping })
    }

    #[inline]
    pub(super) fn size(&self) -> u32 {
        self.size
    }

    #[inline]
    pub(super) fn available(&mut self) -> u32 {
        self.cursor.available()
    }

    #[inline]
    pub(super) fn peek(&self, i: u32) -> Option<T> {
        let slot = self.cursor.slot(i)?;
        // SAFETY: slot < size, and size slots are valid. Volatile: the other end may be hostile, one read is one value.
        Some(unsafe { self.slots.add(slot as usize).read_volatile() })
    }

    #[inline]
    pub(super) fn release(&mut self, n: u32) {
        self.cursor.release(n);
    }

    #[inline]
    pub(super) fn pending(&self) -> u32 {
        self.cursor.pending()
    }

    #[inline]
    pub(super) fn corrupt(&self) -> u64 {
        self.cursor.corrupt()
    }
}

/// The end of a ring that gives.
#[derive(Debug)]
pub(super) struct ProducerRing<T> {
    cursor: Producer<SharedWord>,
    slots: NonNull<T>,
    flags: SharedWord,
    size: u32,
    _mapping: Option<Mapping>,
}

// SAFETY: the memory belongs to the process, not to a thread; `&mut self` orders what moves the cursor.
unsafe impl<T: Send> Send for ProducerRing<T> {}

impl<T: Copy> ProducerRing<T> {
    /// # Safety
    /// `parts` are valid for as long as the ring, with `size` slots, a power of two.
    pub(super) unsafe fn over(
        parts: Parts<T>,
        size: u32,
        mapping: Option<Mapping>,
    ) -> Result<Self, Impossible> {
        let cursor = Producer::resume(SharedWord(parts.producer), SharedWord(parts.consumer), size)?;
        Ok(Self { cursor, slots: parts.slots, flags: SharedWord(parts.flags), size, _mapping: mapping })
    }

    #[inline]
    pub(super) fn size(&self) -> u32 {
        self.size
    }

    #[inline]
    pub(super) fn free(&mut self) -> u32 {
        self.cursor.free()
    }

    #[inline]
    pub(super) fn reserve(&mut self, n: u32) -> bool {
        self.cursor.reserve(n)
    }

    #[inline]
    pub(super) fn take_over(&mut self) -> u32 {
        self.cursor.take_over()
    }

    /// What was written at cursor `at`, whoever did.
    #[inline]
    pub(super) fn entry(&self, at: u32) -> T {
        let slot = at & self.size.wrapping_sub(1);
        // SAFETY: slot < size, and size slots are valid. Volatile: another producer may write it.
        unsafe { self.slots.add(slot as usize).read_volatile() }
    }

    #[inline]
    pub(super) fn push(&mut self, value: T) -> bool {
        let Some(slot) = self.cursor.claim() else { return false };
        // SAFETY: slot < size, and size slots are valid; the other end reads it only after submit().
        unsafe { self.slots.add(slot as usize).write_volatile(value) };
        true
    }

    #[inline]
    pub(super) fn submit(&mut self) {
        self.cursor.submit();
    }

    #[inline]
    pub(super) fn needs_wakeup(&self) -> bool {
        self.flags.relaxed() & libc::XDP_RING_NEED_WAKEUP != 0
    }

    #[inline]
    pub(super) fn pending(&self) -> u32 {
        self.cursor.pending()
    }

    #[inline]
    pub(super) fn corrupt(&self) -> u64 {
        self.cursor.corrupt()
    }
}

/// A word of a ring. Made by `over()` only, whose caller keeps it valid.
#[derive(Clone, Copy, Debug)]
struct SharedWord(NonNull<AtomicU32>);

impl SharedWord {
    #[inline]
    fn word(&self) -> &AtomicU32 {
        // SAFETY: valid for as long as the ring that holds it (type-level contract).
        unsafe { self.0.as_ref() }
    }
}

impl Word for SharedWord {
    #[inline]
    fn relaxed(&self) -> u32 {
        self.word().load(Ordering::Relaxed)
    }

    #[inline]
    fn acquire(&self) -> u32 {
        self.word().load(Ordering::Acquire)
    }

    #[inline]
    fn release(&self, value: u32) {
        self.word().store(value, Ordering::Release);
    }
}
