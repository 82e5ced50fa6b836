//! Sleeping until a stream has something: the kernel's socket, or the rings.

use super::{read, stream::Stream, ticker};
use crate::{
    driver::{self, Spun},
    sys,
    wait::{self, Deadline, PollSet, Woken},
};
use core::sync::atomic::Ordering::Relaxed;
use hoist_sys::Errno;
use libc::{POLLIN, c_int};

/// A peek that waits for more than there is looks again after so long, ns.
const NAP_NS: u64 = 1_000_000;

/// Sleeps until a read of `stream` is worth another try.
pub(crate) fn for_stream(stream: &'static Stream, fd: c_int, deadline: Deadline, nap: bool) -> Woken {
    match spin(stream, fd) {
        Some(woken) => return woken,
        None if nap => {
            let mut nothing = PollSet::new();
            let left = deadline.left().unwrap_or(u64::MAX).min(NAP_NS);
            return wait::for_set(&mut nothing, Some(left), deadline);
        }
        None => {}
    }
    // undrained ghosts close the window, and would end the sleep at once
    if let Some(mut guard) = stream.lock() {
        read::drain(&mut guard, fd);
    }
    let mut set = PollSet::new();
    set.push(fd, POLLIN);
    set.push_rings();
    let asleep = ticker::Asleep::new();
    let woken = wait::for_set(&mut set, deadline.left(), deadline);
    drop(asleep);
    woken
}

/// `--spin-us`: runs the driver until a read would not wait. None: sleep.
pub(crate) fn spin(stream: &'static Stream, fd: c_int) -> Option<Woken> {
    if !driver::spins() {
        return None;
    }
    if !stream.watched.swap(true, Relaxed) {
        driver::watch_stream(fd);
    }
    let ready = || holds(stream) || readable(stream, fd);
    match driver::spin(Deadline::NEVER, core::ptr::null(), ready) {
        Spun::Lifted => Some(Woken::Look),
        // with a timeout, Linux never restarts (sock_intr_errno)
        Spun::Signal { restarts } if !(restarts && read::timeout(fd).is_never()) => Some(Woken::Interrupted),
        Spun::Signal { .. } | Spun::Nothing => None,
    }
}

/// `--spin-us` for a stream that is not involved: its data comes through the kernel, and the spinning thread runs the driver.
pub(crate) fn before_plain_read(stream: &'static Stream, fd: c_int) -> Result<(), Errno> {
    let waits = sys::status_flags(fd).is_ok_and(|flags| flags & libc::O_NONBLOCK == 0);
    if !waits || readable(stream, fd) {
        return Ok(());
    }
    match spin(stream, fd) {
        Some(Woken::Interrupted) => Err(Errno(libc::EINTR)),
        _ => Ok(()),
    }
}

/// Whether something is held for the next read.
#[inline]
fn holds(stream: &'static Stream) -> bool {
    stream.involved()
        && stream.lock().is_some_and(|mut guard| {
            let (reader, work) = guard.parts();
            work.worker.index.covered(reader.position(), 1) > 0 && work.worker.rode(reader.position())
        })
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
