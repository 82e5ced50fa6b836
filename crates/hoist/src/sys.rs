//! The shim's functions, found once, and the kernel's own in their place.

use crate::{CHUNK_MAX, Chunk};
use std::{
    ffi::{CStr, c_int, c_void},
    io,
    mem::{MaybeUninit, transmute},
    net::{Ipv6Addr, SocketAddr, SocketAddrV6},
    ops::Deref,
    os::fd::{AsRawFd, BorrowedFd},
    ptr::{NonNull, null},
    slice,
    sync::LazyLock,
};

/// `struct hoist_chunk` (docs/native.md).
#[repr(C)]
struct Raw {
    data: *const u8,
    len: usize,
    owner: [usize; 2],
}

type RecvChunk = unsafe extern "C" fn(c_int, *mut Raw, usize, c_int) -> isize;
type RecvChunkFrom =
    unsafe extern "C" fn(c_int, *mut Raw, c_int, *mut libc::sockaddr, *mut libc::socklen_t) -> isize;
type ReleaseChunk = unsafe extern "C" fn(*mut Raw);

/// The native API of the shim in this process.
pub(crate) struct Shim {
    recv_chunk: RecvChunk,
    recv_chunk_from: RecvChunkFrom,
    release_chunk: ReleaseChunk,
}

/// The shim, if this process runs under `hoist run`.
#[inline]
pub(crate) fn shim() -> Option<&'static Shim> {
    static SHIM: LazyLock<Option<Shim>> = LazyLock::new(Shim::find);
    SHIM.as_ref()
}

impl Shim {
    fn find() -> Option<Self> {
        let recv_chunk = symbol(c"hoist_recv_chunk")?;
        let recv_chunk_from = symbol(c"hoist_recv_chunk_from")?;
        let release_chunk = symbol(c"hoist_release_chunk")?;
        // SAFETY: the shim's functions of these names have these types.
        unsafe {
            Some(Self {
                recv_chunk: transmute::<*mut c_void, RecvChunk>(recv_chunk.as_ptr()),
                recv_chunk_from: transmute::<*mut c_void, RecvChunkFrom>(recv_chunk_from.as_ptr()),
                release_chunk: transmute::<*mut c_void, ReleaseChunk>(release_chunk.as_ptr()),
            })
        }
    }

    fn lent(&'static self, read: impl FnOnce(*mut Raw) -> isize) -> io::Result<Chunk> {
        let mut raw = Raw { data: null(), len: 0, owner: [0; 2] };
        if read(&raw mut raw) < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Chunk::lent(Lent { raw, shim: self }))
    }
}

fn symbol(name: &CStr) -> Option<NonNull<c_void>> {
    // SAFETY: the name is a C string; dlsym has no other requirement.
    NonNull::new(unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) })
}

/// A chunk of the shim's.
pub(crate) struct Lent {
    raw: Raw,
    shim: &'static Shim,
}

// SAFETY: nobody writes the bytes until the chunk is given back, which any thread may do.
unsafe impl Send for Lent {}
// SAFETY: as above; a shared reference only reads.
unsafe impl Sync for Lent {}

impl Lent {
    /// The owner's lowest bit tells what it owns.
    pub(crate) fn in_frame(&self) -> bool {
        self.raw.owner[0] != 0 && self.raw.owner[1] & 1 == 0
    }
}

impl Deref for Lent {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        if self.raw.len == 0 {
            return &[];
        }
        // SAFETY: the shim lent that many bytes at `data`, which stay as they are until `drop`.
        unsafe { slice::from_raw_parts(self.raw.data, self.raw.len) }
    }
}

impl Drop for Lent {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: lent by this shim, and given back once.
        unsafe { (self.shim.release_chunk)(&raw mut self.raw) }
    }
}

/// The next bytes of a stream, at most `max`.
#[inline]
pub(crate) fn recv(fd: BorrowedFd<'_>, max: usize) -> io::Result<Chunk> {
    let fd = fd.as_raw_fd();
    match shim() {
        // SAFETY: the place is a chunk to be filled.
        Some(shim) => shim.lent(|place| unsafe { (shim.recv_chunk)(fd, place, max, 0) }),
        // SAFETY: recv writes at most as many bytes as it is told there is room for.
        None => own(max, |room, len| unsafe { libc::recv(fd, room.cast(), len, 0) }),
    }
}

/// The next datagram and its sender.
#[inline]
pub(crate) fn recv_from(fd: BorrowedFd<'_>) -> io::Result<(Chunk, SocketAddr)> {
    let fd = fd.as_raw_fd();
    let mut name = MaybeUninit::<libc::sockaddr_in6>::zeroed();
    let mut name_len = size_of_val(&name) as libc::socklen_t;
    let (from, from_len) = (name.as_mut_ptr().cast(), &raw mut name_len);
    let chunk = match shim() {
        Some(shim) => shim.lent(|place| {
            // SAFETY: the place is a chunk to be filled, and the name is room of the length given.
            unsafe { (shim.recv_chunk_from)(fd, place, 0, from, from_len) }
        }),
        None => own(CHUNK_MAX, |room, len| {
            // SAFETY: recvfrom writes at most as many bytes as it is told there is room for, here and for the name.
            unsafe { libc::recvfrom(fd, room.cast(), len, 0, from, from_len) }
        }),
    }?;
    // SAFETY: zeroed, and any bytes are a valid sockaddr_in6.
    Ok((chunk, address(&unsafe { name.assume_init() })?))
}

/// A read into memory of its own. What is not needed of it goes back at once.
fn own(max: usize, read: impl FnOnce(*mut u8, usize) -> isize) -> io::Result<Chunk> {
    let mut room = Vec::with_capacity(max.min(CHUNK_MAX));
    let len = room.capacity().min(max);
    let len = usize::try_from(read(room.as_mut_ptr(), len)).map_err(|_| io::Error::last_os_error())?;
    // SAFETY: the kernel has written that many bytes, and no more than there was room for.
    unsafe { room.set_len(len) };
    if len < room.capacity() / 2 {
        room.shrink_to_fit();
    }
    Ok(Chunk::own(room))
}

/// A `sockaddr_in` lies in a `sockaddr_in6` with the address in the place of the flow information.
fn address(name: &libc::sockaddr_in6) -> io::Result<SocketAddr> {
    let port = u16::from_be(name.sin6_port);
    match c_int::from(name.sin6_family) {
        libc::AF_INET => Ok((name.sin6_flowinfo.to_ne_bytes(), port).into()),
        libc::AF_INET6 => {
            let ip = Ipv6Addr::from(name.sin6_addr.s6_addr);
            Ok(SocketAddrV6::new(ip, port, name.sin6_flowinfo, name.sin6_scope_id).into())
        }
        family => {
            let text = format!("recvfrom: a sender of address family {family}");
            Err(io::Error::new(io::ErrorKind::InvalidData, text))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_addresses() {
        let mut name = libc::sockaddr_in6 {
            sin6_family: libc::AF_INET as u16,
            sin6_port: 53u16.to_be(),
            sin6_flowinfo: u32::from_ne_bytes([10, 0, 0, 2]),
            sin6_addr: libc::in6_addr { s6_addr: Ipv6Addr::LOCALHOST.octets() },
            sin6_scope_id: 3,
        };
        assert_eq!(address(&name).unwrap(), "10.0.0.2:53".parse().unwrap());
        name.sin6_family = libc::AF_INET6 as u16;
        name.sin6_flowinfo = 0;
        assert_eq!(address(&name).unwrap(), "[::1%3]:53".parse().unwrap());
        name.sin6_family = libc::AF_UNIX as u16;
        assert_eq!(address(&name).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn an_owned_chunk_keeps_no_room_it_does_not_need() {
        let chunk = own(CHUNK_MAX, |room, len| {
            assert_eq!(len, CHUNK_MAX);
            // SAFETY: one byte of the room.
            unsafe { room.write(7) };
            1
        });
        let bytes = chunk.unwrap().into_vec();
        assert_eq!(bytes, [7]);
        assert!(bytes.capacity() < CHUNK_MAX / 2, "{} bytes", bytes.capacity());
    }
}
