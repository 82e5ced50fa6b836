//! `peer`: serves the peer's orders on the listening Unix socket that is its standard input.

#![allow(unsafe_code)] // standard input is adopted as a listener

use std::os::{fd::FromRawFd, unix::net::UnixListener};

fn main() -> std::io::Result<()> {
    // SAFETY: the lab starts this program with a listener as descriptor 0, and nothing here uses standard input.
    let listener = unsafe { UnixListener::from_raw_fd(0) };
    hoist_tests::peer::serve(&listener)
}
