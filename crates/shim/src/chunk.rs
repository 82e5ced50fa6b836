//! Chunks: received bytes handed out where they lie, until the program gives them back. The C side of the native API.
//!
//! A chunk lies in a frame of the UMEM, which stays out of the rings as long, or in memory of its own: what was read from
//! the kernel, and what would hold back a frame of a ring that runs short.
//! The UMEM is never unmapped, so a chunk is good after demotion and when the device is gone; [`before_fork`] sees to forks.

use crate::{
    engine::{self, Memory},
    message::{self, Received, plausible},
    receive::{self, Reader},
    set_errno,
    socket::Socket,
    sys,
};
use core::sync::atomic::{
    AtomicBool, AtomicPtr,
    Ordering::{AcqRel, Relaxed, Release},
};
use hoist_sys::Errno;
use libc::{c_int, sockaddr, socklen_t, ssize_t};

type Result<T> = core::result::Result<T, Errno>;

/// `struct hoist_chunk`.
#[repr(C)]
pub struct Chunk {
    data: *const u8,
    len: usize,
    /// An address, and a number with its kind in the lowest bit; zeros: nothing is to be given back.
    owner: [usize; 2],
}

/// The address is of [`Memory`], the number a frame's.
const FRAME: usize = 0;
/// The address is of an allocation, the number its capacity.
const HEAP: usize = 1;

/// The largest read from the kernel; no datagram is longer.
const ROOM: usize = 64 * 1024;

/// Some frame was handed out: `fork` has to look for chunks.
static HANDED_OUT: AtomicBool = AtomicBool::new(false);

impl Chunk {
    const EMPTY: Self = Self { data: core::ptr::null(), len: 0, owner: [0; 2] };

    /// Bytes in a frame that the caller leaves to the chunk.
    pub(crate) fn in_frame(memory: &'static Memory, frame: u32, bytes: *const [u8]) -> Self {
        memory.frames.hold(frame);
        if !HANDED_OUT.load(Relaxed) {
            HANDED_OUT.store(true, Relaxed);
        }
        let owner = [core::ptr::from_ref(memory).addr(), (frame as usize) << 1 | FRAME];
        Self { data: bytes.cast(), len: bytes.len(), owner }
    }

    /// A copy; None if memory is short.
    pub(crate) fn copy(bytes: &[u8]) -> Option<Self> {
        let mut copy = Vec::new();
        copy.try_reserve_exact(bytes.len()).ok()?;
        copy.extend_from_slice(bytes);
        Some(Self::of(copy))
    }

    fn of(bytes: Vec<u8>) -> Self {
        if bytes.is_empty() {
            return Self::EMPTY;
        }
        let mut bytes = core::mem::ManuallyDrop::new(bytes);
        let owner = [bytes.as_mut_ptr().addr(), bytes.capacity() << 1 | HEAP];
        Self { data: bytes.as_ptr(), len: bytes.len(), owner }
    }

    /// Gives back what the chunk lies in. In a child of the process that received it, a frame is not the child's to give.
    pub(crate) fn release(&mut self) {
        let [address, number] = core::mem::replace(self, Self::EMPTY).owner;
        match number & 1 {
            _ if address == 0 => {}
            // SAFETY: `of` took the allocation apart, and `self` was its only owner.
            HEAP => drop(unsafe {
                Vec::from_raw_parts(core::ptr::with_exposed_provenance_mut::<u8>(address), 0, number >> 1)
            }),
            _ => release_frame(address, (number >> 1) as u32),
        }
    }
}

fn release_frame(address: usize, frame: u32) {
    if let Some(memory) = engine::memory()
        && core::ptr::from_ref(memory).addr() == address
        && engine::ours()
        && memory.frames.let_go(frame)
    {
        engine::give_back(memory, frame);
    }
}

/// Where a chunk goes, empty for now; None, with errno, if the call asks for what a chunk cannot be.
pub(crate) fn place<'c>(chunk: *mut Chunk, flags: c_int) -> Option<&'c mut Chunk> {
    if !plausible(chunk) {
        set_errno(Errno(libc::EFAULT));
        return None;
    }
    // SAFETY: the program passed room for a chunk, and what it holds is plain data that is overwritten.
    let chunk = unsafe {
        chunk.write(Chunk::EMPTY);
        &mut *chunk
    };
    if flags & !libc::MSG_DONTWAIT != 0 {
        set_errno(Errno(libc::EINVAL));
        return None;
    }
    Some(chunk)
}

/// A read from the kernel of at most `max` bytes, by libc's rules: the length, or -1 and errno.
pub(crate) fn read(chunk: &mut Chunk, max: usize, read: impl FnOnce(*mut u8, usize) -> ssize_t) -> ssize_t {
    let Some(mut room) = room(max) else {
        set_errno(Errno(libc::ENOMEM));
        return -1;
    };
    let len = read(room.as_mut_ptr(), room.capacity().min(max));
    if len > 0 {
        *chunk = filled(room, len as usize);
    }
    len
}

/// [`read`] by one of the shim's own functions.
pub(crate) fn read_into(
    chunk: &mut Chunk,
    max: usize,
    read: impl FnOnce(*mut u8, usize) -> Result<usize>,
) -> Result<usize> {
    let mut room = room(max).ok_or(Errno(libc::ENOMEM))?;
    let len = read(room.as_mut_ptr(), room.capacity().min(max))?;
    *chunk = filled(room, len);
    Ok(len)
}

fn room(max: usize) -> Option<Vec<u8>> {
    let mut room = Vec::new();
    room.try_reserve_exact(max.min(ROOM)).ok()?;
    Some(room)
}

/// The chunk of the first `len` bytes, which were just written. What is not needed of the room goes back at once.
fn filled(mut room: Vec<u8>, len: usize) -> Chunk {
    // SAFETY: the kernel has written that many bytes, and no more than there was room for.
    unsafe { room.set_len(len.min(room.capacity())) };
    if len < room.capacity() / 2 {
        room.shrink_to_fit();
    }
    Chunk::of(room)
}

struct Whole<'c> {
    socket: &'static Socket,
    fd: c_int,
    chunk: &'c mut Chunk,
    name: (*mut sockaddr, *mut socklen_t),
    /// Payload of the frame that is about to be handed out.
    lent: Option<*const [u8]>,
}

impl Whole<'_> {
    /// Copied where frames are few, else lent; a frame with nothing in it is not worth keeping.
    #[inline]
    fn lend(&mut self, payload: &[u8], ring: u16) {
        let short = engine::memory().is_none_or(|memory| engine::runs_short(memory, ring));
        match short.then(|| Chunk::copy(payload)).flatten() {
            Some(copy) => *self.chunk = copy,
            None => self.lent = (!payload.is_empty()).then_some(core::ptr::from_ref(payload)),
        }
    }
}

impl Reader for Whole<'_> {
    #[inline]
    fn lifted(&mut self, received: &Received<'_>, _next: Option<u32>) -> Result<usize> {
        let (name, name_len) = self.name;
        if !name.is_null() {
            message::write_name(self.socket.v6.load(Relaxed), received, name, name_len)?;
        }
        let payload = received.payload();
        self.lend(payload, received.arrival.ring);
        Ok(payload.len())
    }

    fn kernel(&mut self, flags: c_int) -> Result<usize> {
        let mut room = room(ROOM).ok_or(Errno(libc::ENOMEM))?;
        let len = receive::from_kernel(self.socket, self.fd, (room.as_mut_ptr(), ROOM), flags, self.name)?;
        *self.chunk = filled(room, len);
        Ok(len)
    }

    #[inline]
    fn keep(&mut self, memory: &'static Memory, frame: u32) {
        match self.lent.take() {
            Some(payload) => *self.chunk = Chunk::in_frame(memory, frame, payload),
            None => engine::give_back(memory, frame),
        }
    }
}

/// A whole datagram of a socket that is lifted, or has lifted data left.
pub(crate) fn receive(
    socket: &'static Socket,
    fd: c_int,
    chunk: &mut Chunk,
    flags: c_int,
    name: (*mut sockaddr, *mut socklen_t),
) -> Result<usize> {
    receive::read_with(socket, fd, flags, &mut Whole { socket, fd, chunk, name, lent: None })
}

/// The same, cut to `max` bytes.
pub(crate) fn receive_at_most(
    socket: &'static Socket,
    fd: c_int,
    chunk: &mut Chunk,
    max: usize,
    flags: c_int,
) -> Result<usize> {
    receive(socket, fd, chunk, flags, (core::ptr::null_mut(), core::ptr::null_mut()))?;
    chunk.len = chunk.len.min(max);
    if max == 0 {
        chunk.release(); // who got nothing gives nothing back
    }
    Ok(chunk.len)
}

/// Pages of the UMEM that chunks lie in, as they were at the fork.
struct Copies {
    page_bytes: usize,
    /// Page and copy, addresses.
    pages: Vec<(usize, usize)>,
}

static COPIES: AtomicPtr<Copies> = AtomicPtr::new(core::ptr::null_mut());

/// Under the pump lock, before fork: the UMEM is shared with the child, where a chunk must not change when the parent gives its frame back.
/// So the child finds copies of these pages in their place. A frame that could not be copied is never used again.
pub(crate) fn before_fork() {
    let Some(memory) = engine::memory().filter(|_| HANDED_OUT.load(Relaxed)) else { return };
    let page_bytes = memory.umem.page_bytes();
    let mut pages: Vec<(usize, usize)> = Vec::new();
    for frame in memory.frames.held() {
        let page = (memory.umem.base().addr() + memory.umem.addr_of(frame) as usize) & !(page_bytes - 1);
        if pages.last().is_some_and(|&(last, _)| last == page) {
            continue;
        }
        match sys::map_private(page_bytes) {
            Ok(copy) => pages.push((page, copy)),
            Err(_) => memory.frames.hold(frame),
        }
    }
    for &(page, copy) in &pages {
        // SAFETY: a page of the UMEM's mapping, which consists of whole ones, and one just mapped. Frames next to those of chunks may be
        // written meanwhile by the kernel: what is copied of them nobody reads.
        unsafe { core::ptr::copy_nonoverlapping(page as *const u8, copy as *mut u8, page_bytes) };
    }
    COPIES.store(Box::into_raw(Box::new(Copies { page_bytes, pages })), Release);
}

/// Before the pump lock is released.
pub(crate) fn after_fork(child: bool) {
    let copies = COPIES.swap(core::ptr::null_mut(), AcqRel);
    if copies.is_null() {
        return;
    }
    // SAFETY: `before_fork` stored it, and nobody else takes it.
    let copies = unsafe { Box::from_raw(copies) };
    for &(page, copy) in &copies.pages {
        if !child || sys::map_over(copy, page, copies.page_bytes).is_err() {
            sys::unmap(copy, copies.page_bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(chunk: &Chunk) -> &[u8] {
        // SAFETY: of a chunk that is not given back yet.
        unsafe { core::slice::from_raw_parts(chunk.data, chunk.len) }
    }

    #[test]
    fn what_the_kernel_wrote_is_in_a_chunk_of_its_own() {
        let mut chunk = Chunk::EMPTY;
        let write = |base: *mut u8, len: usize| {
            assert_eq!(len, ROOM);
            // SAFETY: five bytes of the room given.
            unsafe { core::ptr::copy_nonoverlapping(b"hello".as_ptr(), base, 5) };
            5
        };
        assert_eq!(read(&mut chunk, usize::MAX, write), 5);
        assert_eq!((bytes(&chunk), chunk.owner[1] & 1), (&b"hello"[..], HEAP));
        assert!(chunk.owner[1] >> 1 < ROOM / 2, "the room went back");
        chunk.release();
        assert_eq!((chunk.data, chunk.len, chunk.owner), (core::ptr::null(), 0, [0; 2]));
        chunk.release();
    }

    #[test]
    fn a_read_asks_for_no_more_than_was_wanted() {
        let mut chunk = Chunk::EMPTY;
        assert_eq!(read(&mut chunk, 3, |_, len| -(len as ssize_t)), -3);
        assert_eq!(chunk.len, 0);
        assert_eq!(read(&mut chunk, 0, |_, len| len as ssize_t), 0);
    }

    #[test]
    fn a_place_that_cannot_be_and_a_peek_are_refused() {
        assert!(place(core::ptr::null_mut(), 0).is_none());
        assert_eq!(crate::errno(), libc::EFAULT);
        let mut chunk = Chunk { len: 9, ..Chunk::EMPTY };
        assert!(place(&raw mut chunk, libc::MSG_PEEK).is_none());
        assert_eq!((crate::errno(), chunk.len), (libc::EINVAL, 0));
        assert!(place(&raw mut chunk, libc::MSG_DONTWAIT).is_some());
    }

    /// A UMEM, which the process gets only one of.
    fn memory() -> &'static Memory {
        let umem = hoist_xsk::Umem::create(4, hoist_xsk::ChunkSize::K2, false).unwrap();
        assert!(engine::ENGINE.lock().unwrap().set_memory(umem, Box::leak(hoist_ipc::hub::Hub::alone()), 0));
        engine::own();
        engine::memory().unwrap()
    }

    fn write(memory: &Memory, frame: u32, byte: u8) -> *const [u8] {
        let desc = hoist_xsk::Desc { addr: memory.umem.addr_of(frame), len: 100, options: 0 };
        let place = memory.umem.packet_mut(desc).unwrap();
        // SAFETY: in the UMEM, and no slice of it is alive.
        unsafe { (*place).fill(byte) };
        place
    }

    /// The child's answer about `chunk` once the parent has let the frame be written again.
    fn forked(chunk: &mut Chunk, overwrite: impl FnOnce(&mut Chunk)) -> i32 {
        let (mut tell, mut listen) = std::io::pipe().map(|(r, w)| (w, r)).unwrap();
        before_fork();
        // SAFETY: the child only reads, compares and ends.
        let pid = unsafe { libc::fork() };
        after_fork(pid == 0);
        if pid == 0 {
            let told = std::io::Read::read_exact(&mut listen, &mut [0]).is_ok();
            let same = bytes(chunk) == [7; 100];
            chunk.release();
            let kept = engine::memory().is_some_and(|memory| memory.frames.held().eq([1]));
            // SAFETY: ends the child without the harness's destructors.
            unsafe { libc::_exit(i32::from(!(told && same && kept))) }
        }
        overwrite(chunk);
        std::io::Write::write_all(&mut tell, &[1]).unwrap();
        let mut status = -1;
        // SAFETY: our own child.
        unsafe { libc::waitpid(pid, &raw mut status, 0) };
        status
    }

    #[test]
    fn a_forked_child_keeps_its_bytes_and_gives_nothing_back() {
        let memory = memory();
        let mut chunk = Chunk::in_frame(memory, 1, write(memory, 1, 7));
        assert!(memory.frames.held().eq([1]));
        let status = forked(&mut chunk, |chunk| {
            chunk.release();
            write(memory, 1, 9);
        });
        assert_eq!((status, memory.frames.held().count()), (0, 0));
    }
}
