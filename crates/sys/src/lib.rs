//! Raw system calls: the one way in which the shim talks to the kernel.
//!
//! The shim exports `recv`, `poll`, `close`… to the program, so inside it those names mean the hooks. Going past libc
//! also keeps `errno` untouched until the shim decides to set it, and is safe in a signal handler.
#![deny(unsafe_code)]
#![allow(clippy::missing_safety_doc)] // every call documents its contract by naming the system call

mod fds;
#[allow(unsafe_code)]
mod raw;

pub use fds::{MAX_FDS, recv_each_fd, recv_with_fds, send_with_fds, try_send_with_fds};
pub use raw::syscall;

/// An `errno` value, always positive.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Errno(pub i32);

impl std::fmt::Display for Errno {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::io::Error::from_raw_os_error(self.0).fmt(f)
    }
}

impl std::error::Error for Errno {}

impl From<Errno> for std::io::Error {
    fn from(errno: Errno) -> Self {
        Self::from_raw_os_error(errno.0)
    }
}

/// Turns a raw return value into a result: -4095..=-1 are errors (`IS_ERR_VALUE`).
pub fn check(value: isize) -> Result<usize, Errno> {
    if (-4095..0).contains(&value) { Err(Errno(-value as i32)) } else { Ok(value as usize) }
}
