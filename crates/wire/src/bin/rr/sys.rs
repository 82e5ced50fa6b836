//! The socket options that std does not have.
#![allow(unsafe_code)]

use std::{
    io,
    os::fd::{AsFd, AsRawFd},
};

/// Lets receives on this socket run the device's NAPI for `us` microseconds before they sleep, once if they never do
/// (SO_BUSY_POLL), and keeps interrupts away meanwhile (SO_PREFER_BUSY_POLL, Linux 5.11).
pub(super) fn busy_poll(socket: &impl AsFd, us: u32) -> io::Result<()> {
    set(socket, libc::SO_BUSY_POLL, us as i32)?;
    set(socket, libc::SO_PREFER_BUSY_POLL, 1)
}

fn set(socket: &impl AsFd, option: i32, value: i32) -> io::Result<()> {
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: passes a pointer to an int that outlives the call, and its size.
    match unsafe { libc::setsockopt(fd, libc::SOL_SOCKET, option, (&raw const value).cast(), 4) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
