//! TCP socket options that are plain integers, which neither std nor nix offers.
#![allow(unsafe_code)]

use std::{io, net::TcpStream, os::fd::AsRawFd};

/// Sets a TCP option from words of the machine's byte order.
pub(super) fn set<const N: usize>(socket: &impl AsRawFd, option: i32, words: [u32; N]) -> io::Result<()> {
    let length = size_of_val(&words) as u32;
    // SAFETY: passes a pointer to initialised words that outlive the call, and their length.
    let result = unsafe {
        libc::setsockopt(socket.as_raw_fd(), libc::IPPROTO_TCP, option, words.as_ptr().cast(), length)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Reads a TCP option as words of the machine's byte order; what the kernel does not fill in is zero.
pub(super) fn get<const N: usize>(socket: &TcpStream, option: i32) -> io::Result<[u32; N]> {
    let mut words = [0; N];
    let mut length = size_of_val(&words) as u32;
    // SAFETY: the kernel writes at most `length` bytes to words of that length; any bytes make a valid u32.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            option,
            words.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if result == 0 { Ok(words) } else { Err(io::Error::last_os_error()) }
}
