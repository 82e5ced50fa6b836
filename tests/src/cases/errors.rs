//! Calls that must fail, and leave everything as it was.

use super::Ctx;
use crate::sock::{self, errno};
use std::{
    io::{Error, Result},
    net::SocketAddr,
    os::fd::{AsRawFd, IntoRawFd, OwnedFd},
};

/// An address where nothing is mapped.
const NOWHERE: usize = 8;

fn result(value: isize) -> Result<usize> {
    usize::try_from(value).map_err(|_| Error::last_os_error())
}

fn ready(ctx: &mut Ctx) -> (OwnedFd, SocketAddr) {
    let (s, at) = ctx.bound4();
    ctx.send(at, &[b"hello"]);
    sock::wait_readable(&s);
    (s, at)
}

#[track_caller]
fn assert_works(ctx: &mut Ctx, s: &OwnedFd, at: SocketAddr) {
    super::drain(s);
    ctx.send(at, &[b"works"]);
    assert_eq!(sock::take(s, 100, 0).unwrap(), b"works");
}

pub(super) fn a_bad_buffer_is_efault(ctx: &mut Ctx) {
    let (s, at) = ready(ctx);
    // SAFETY: the kernel, or who stands in for it, must refuse the pointer, not follow it.
    let len = unsafe { libc::recv(s.as_raw_fd(), NOWHERE as *mut _, 100, 0) };
    assert_eq!(errno(result(len)), libc::EFAULT);
    // SAFETY: as above.
    let len = unsafe { libc::recvmsg(s.as_raw_fd(), NOWHERE as *mut _, 0) };
    assert_eq!(errno(result(len)), libc::EFAULT);
    assert_works(ctx, &s, at);
}

pub(super) fn a_bad_address_pointer_is_efault(ctx: &mut Ctx) {
    let (s, at) = ready(ctx);
    let mut buffer = [0u8; 100];
    let mut len = 16u32;
    // SAFETY: the buffer is a local; the address must be refused, not followed.
    let got = unsafe {
        libc::recvfrom(s.as_raw_fd(), buffer.as_mut_ptr().cast(), 100, 0, NOWHERE as *mut _, &mut len)
    };
    assert_eq!(errno(result(got)), libc::EFAULT);
    assert_works(ctx, &s, at);
}

pub(super) fn a_closed_descriptor_is_ebadf(ctx: &mut Ctx) {
    let (s, at) = ready(ctx);
    let closed = ctx.bound4().0.into_raw_fd();
    sock::close(closed).unwrap();
    for fd in [closed, -1, i32::MAX] {
        assert_eq!(errno(sock::take(&fd, 10, 0)), libc::EBADF);
        assert_eq!(errno(sock::read(&fd, &mut [0; 10])), libc::EBADF);
        assert_eq!(errno(sock::recv_mmsg(&fd, 1, 10, 0, None)), libc::EBADF);
        assert_eq!(errno(sock::dup(&fd)), libc::EBADF);
        assert_eq!(errno(sock::close(fd)), libc::EBADF);
    }
    assert_works(ctx, &s, at);
}

pub(super) fn a_pipe_is_enotsock(ctx: &mut Ctx) {
    let (s, at) = ready(ctx);
    let (reader, _writer) = sock::pipe();
    assert_eq!(errno(sock::take(&reader, 10, 0)), libc::ENOTSOCK);
    assert_eq!(errno(sock::recv_msg(&reader, &mut [], 0, 0)), libc::ENOTSOCK);
    assert_eq!(errno(sock::recv_mmsg(&reader, 1, 10, 0, None)), libc::ENOTSOCK);
    assert_works(ctx, &s, at);
}

pub(super) fn too_many_buffers_are_refused(ctx: &mut Ctx) {
    let (s, at) = ready(ctx);
    let mut bytes = vec![[0u8; 1]; 1025];
    let mut buffers: Vec<&mut [u8]> = bytes.iter_mut().map(|b| b.as_mut_slice()).collect();
    assert_eq!(errno(sock::readv(&s, &mut buffers)), libc::EINVAL);
    assert_eq!(errno(sock::recv_msg(&s, &mut buffers, 0, 0)), libc::EMSGSIZE);
    // SAFETY: a negative count must be refused before the list is read.
    let len = unsafe { libc::readv(s.as_raw_fd(), NOWHERE as *const _, -1) };
    assert_eq!(errno(result(len)), libc::EINVAL);
    assert_eq!(sock::take(&s, 100, 0).unwrap(), b"hello", "refused before anything was taken");
    assert_works(ctx, &s, at);
}

pub(super) fn a_negative_address_length_is_einval(ctx: &mut Ctx) {
    let (s, at) = ready(ctx);
    let mut address = sock::RawAddress::from(at);
    let mut buffer = [0u8; 100];
    let mut len = u32::MAX;
    let pointer = (&raw mut address).cast();
    // SAFETY: buffer, address and length are locals.
    let got = unsafe { libc::recvfrom(s.as_raw_fd(), buffer.as_mut_ptr().cast(), 100, 0, pointer, &mut len) };
    assert_eq!(errno(result(got)), libc::EINVAL);
    assert_works(ctx, &s, at);
}
