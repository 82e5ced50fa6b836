//! Sleeping until a stream has something: the kernel's socket, or the rings.

use super::{read, stream::Stream, ticker};
use crate::{
    driver::{self, Spun},
    engine, sys,
    wait::{self, Deadline, PollSet, Woken},
};
use hoist_sys::Errno;
use libc::{POLLIN, c_int};

/// A peek that waits for more than there is looks again after so long, ns.
const NAP_NS: u64 = 1_000_000;

/// Sleeps until a read of `stream` is worth another try.
pub(crate) fn for_stream(stream: &'static Stream, fd: c_int, deadline: Deadline, nap: bool) -> Woken {
    match spin(stream, fd, deadline) {
        Some(woken) => return woken,
        None if nap => {
            let mut nothing = PollSet::new();
            let left = deadline.left().unwrap_or(u64::MAX).min(NAP_NS);
            return wait::for_set(&mut nothing, Some(left), deadline);
        }
        None => {}
    }
    super::about_to_sleep(stream);
    let mut set = PollSet::new();
    set.push(fd, POLLIN);
    set.push_rings();
    let asleep = ticker::Asleep::new();
    let woken = wait::for_set(&mut set, deadline.left(), deadline);
    drop(asleep);
    woken
}

/// `--spin-us`.
fn spin(stream: &'static Stream, fd: c_int, deadline: Deadline) -> Option<Woken> {
    if !driver::spins() {
        return None;
    }
    driver::watch_stream(fd);
    let spun = driver::spin(deadline, core::ptr::null(), || {
        engine::pump();
        readable(stream, fd)
    });
    match spun {
        Spun::Lifted => Some(Woken::Look),
        // with a timeout, Linux never restarts (sock_intr_errno)
        Spun::Signal { restarts } if !(restarts && deadline.is_never()) => Some(Woken::Interrupted),
        Spun::Signal { .. } | Spun::Nothing => None,
    }
}

/// `--spin-us` for a stream that is not involved: its data comes through the kernel, and the spinning thread runs the driver.
pub(crate) fn before_plain_read(stream: &'static Stream, fd: c_int) -> Result<(), Errno> {
    let waits = sys::status_flags(fd).is_ok_and(|flags| flags & libc::O_NONBLOCK == 0);
    if !waits || readable(stream, fd) {
        return Ok(());
    }
    match spin(stream, fd, read::timeout(fd)) {
        Some(Woken::Interrupted) => Err(Errno(libc::EINTR)),
        _ => Ok(()),
    }
}

/// Whether a read would not wait.
fn readable(stream: &'static Stream, fd: c_int) -> bool {
    let undrained = stream.lock().map_or(0, |mut guard| guard.reader().undrained());
    if sys::queued(fd).is_ok_and(|queued| queued > undrained) {
        return true;
    }
    let mut entry = libc::pollfd { fd, events: POLLIN | libc::POLLRDHUP, revents: 0 };
    let over = libc::POLLERR | libc::POLLHUP | libc::POLLRDHUP;
    sys::poll_look(&raw mut entry, 1).is_ok() && entry.revents & over != 0
}
