//! The system calls of this crate, each a function that returns an [`Error`] with its name.

use crate::Error;
use std::ffi::c_int;
use std::io;
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::{self, NonNull};

/// Memory mapped from a file descriptor, unmapped when dropped.
#[derive(Debug)]
pub(crate) struct Mapping {
    base: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the mapping belongs to the process, not to a thread; access through `base` is its user's business.
unsafe impl Send for Mapping {}
// SAFETY: as above; `&Mapping` gives out nothing but the address.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `bytes` bytes of `fd` from `offset`, shared, writable and populated.
    pub(crate) fn new(
        fd: BorrowedFd<'_>,
        offset: i64,
        bytes: usize,
        operation: &'static str,
    ) -> Result<Self, Error> {
        let (access, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_POPULATE);
        // SAFETY: without MAP_FIXED the kernel chooses free addresses; nothing mapped before is touched.
        let at = unsafe { libc::mmap64(ptr::null_mut(), bytes, access, flags, fd.as_raw_fd(), offset) };
        match NonNull::new(at.cast()) {
            Some(base) if at != libc::MAP_FAILED => Ok(Self { base, bytes }),
            _ => Err(Error::last(operation)),
        }
    }

    pub(crate) fn base(&self) -> NonNull<u8> {
        self.base
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: base and bytes are those of a mapping this value owns, and nothing borrows from it any more.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.bytes) };
    }
}

pub(crate) fn xdp_socket() -> Result<OwnedFd, Error> {
    // SAFETY: takes no pointers.
    let fd = unsafe { libc::socket(libc::AF_XDP, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    owned(fd, "socket(AF_XDP)")
}

/// `T` is the plain C structure or integer that `option` takes.
pub(crate) fn set_option<T: Copy>(
    fd: BorrowedFd<'_>,
    option: c_int,
    value: &T,
    operation: &'static str,
) -> Result<(), Error> {
    let length = size_of::<T>() as libc::socklen_t;
    // SAFETY: value is readable for length bytes; the kernel keeps no pointer to it.
    check(
        unsafe {
            libc::setsockopt(fd.as_raw_fd(), libc::SOL_XDP, option, ptr::from_ref(value).cast(), length)
        },
        operation,
    )
}

pub(crate) fn mmap_offsets(fd: BorrowedFd<'_>) -> Result<libc::xdp_mmap_offsets, Error> {
    // SAFETY: XDP_MMAP_OFFSETS fills an xdp_mmap_offsets, plain integers.
    unsafe { option(fd, libc::XDP_MMAP_OFFSETS, "getsockopt(XDP_MMAP_OFFSETS)") }
}

pub(crate) fn statistics(fd: BorrowedFd<'_>) -> Result<libc::xdp_statistics, Error> {
    // SAFETY: XDP_STATISTICS fills an xdp_statistics, plain integers.
    unsafe { option(fd, libc::XDP_STATISTICS, "getsockopt(XDP_STATISTICS)") }
}

pub(crate) fn options(fd: BorrowedFd<'_>) -> Result<libc::xdp_options, Error> {
    // SAFETY: XDP_OPTIONS fills an xdp_options, plain integers.
    unsafe { option(fd, libc::XDP_OPTIONS, "getsockopt(XDP_OPTIONS)") }
}

/// # Safety
/// Every bit pattern the kernel writes for `option` is a `T`.
unsafe fn option<T: Copy>(fd: BorrowedFd<'_>, option: c_int, operation: &'static str) -> Result<T, Error> {
    let mut value = MaybeUninit::<T>::zeroed();
    let mut length = size_of::<T>() as libc::socklen_t;
    // SAFETY: value is writable for length bytes.
    let result = unsafe {
        libc::getsockopt(fd.as_raw_fd(), libc::SOL_XDP, option, value.as_mut_ptr().cast(), &raw mut length)
    };
    check(result, operation)?;
    if length as usize != size_of::<T>() {
        return Err(Error::Sys { operation, cause: io::Error::from_raw_os_error(libc::ENOPROTOOPT) });
    }
    // SAFETY: zeroed before, filled by the kernel since; the caller vouches for T.
    Ok(unsafe { value.assume_init() })
}

pub(crate) fn bind(fd: BorrowedFd<'_>, address: &libc::sockaddr_xdp) -> io::Result<()> {
    let length = size_of::<libc::sockaddr_xdp>() as libc::socklen_t;
    // SAFETY: address is readable for length bytes.
    let result = unsafe { libc::bind(fd.as_raw_fd(), ptr::from_ref(address).cast(), length) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// An empty send: makes the kernel look at the tx ring. Returns the errno.
pub(crate) fn send_nothing(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: no buffer and no address.
    let sent = unsafe { libc::sendto(fd.as_raw_fd(), ptr::null(), 0, libc::MSG_DONTWAIT, ptr::null(), 0) };
    if sent >= 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// An empty receive: makes the kernel look at the fill ring, or busy-poll where that is on. Returns the errno.
pub(crate) fn receive_nothing(fd: BorrowedFd<'_>) -> io::Result<()> {
    let (buffer, from, length) = (ptr::null_mut(), ptr::null_mut(), ptr::null_mut());
    // SAFETY: no buffer and no address.
    let received = unsafe { libc::recvfrom(fd.as_raw_fd(), buffer, 0, libc::MSG_DONTWAIT, from, length) };
    if received >= 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A memfd of exactly `bytes` bytes that can never change its size.
pub(crate) fn memfd(bytes: u64, flags: libc::c_uint) -> Result<OwnedFd, Error> {
    let flags = flags | libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    // SAFETY: the name is a C string.
    let fd = owned(unsafe { libc::memfd_create(c"hoist-umem".as_ptr(), flags) }, "memfd_create(hoist-umem)")?;
    // SAFETY: takes no pointers.
    check(unsafe { libc::ftruncate64(fd.as_raw_fd(), bytes as i64) }, "ftruncate(hoist-umem)")?;
    let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
    // SAFETY: takes no pointers.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_ADD_SEALS, seals) }, "fcntl(F_ADD_SEALS)")?;
    Ok(fd)
}

/// Whether `fd` is a memfd that cannot shrink.
pub(crate) fn cannot_shrink(fd: BorrowedFd<'_>) -> bool {
    // SAFETY: takes no pointers. A descriptor that is not a memfd gives -1 (EINVAL).
    let seals = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GET_SEALS) };
    seals >= 0 && seals & libc::F_SEAL_SHRINK != 0
}

/// Size of a file and of its blocks, which for a hugetlbfs file are its pages, in bytes.
pub(crate) fn size_and_block(fd: BorrowedFd<'_>) -> Result<(u64, u64), Error> {
    let mut stat = MaybeUninit::<libc::stat64>::zeroed();
    // SAFETY: stat is writable for a stat64.
    check(unsafe { libc::fstat64(fd.as_raw_fd(), stat.as_mut_ptr()) }, "fstat(memfd)")?;
    // SAFETY: zeroed before, filled by the kernel since; plain integers.
    let stat = unsafe { stat.assume_init() };
    Ok((u64::try_from(stat.st_size).unwrap_or(0), u64::try_from(stat.st_blksize).unwrap_or(0)))
}

fn owned(fd: c_int, operation: &'static str) -> Result<OwnedFd, Error> {
    if fd < 0 {
        return Err(Error::last(operation));
    }
    // SAFETY: the kernel has just returned this descriptor; nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn check(result: c_int, operation: &'static str) -> Result<(), Error> {
    if result < 0 { Err(Error::last(operation)) } else { Ok(()) }
}
