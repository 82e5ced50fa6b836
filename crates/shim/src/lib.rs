//! The shim: loaded into a program by `LD_PRELOAD`, it stands in for the calls that receive datagrams or wait for them.
//!
//! Start-up, in order, each step falling back to "as if the shim were not there":
//! 1. the constructor reads [`hoist_ipc::ENV_FD`]; without a broker nothing is followed;
//! 2. `socket` makes a [`socket::Socket`] for each UDP descriptor;
//! 3. `bind` to a named port, or enough datagrams on an ephemeral one, asks the broker ([`control`]); rings and UMEM
//!    arrive with the first answer that needs them;
//! 4. from then on a read looks at the socket's queue, then at the rings ([`engine`]), then at the kernel ([`receive`]).
//!
//! | file | owns |
//! |---|---|
//! | `hooks` | the exported functions, one line each |
//! | `control` | the broker, and the life of sockets |
//! | `engine` | rings to sockets |
//! | `receive`, `message` | reads, and datagrams in the program's terms |
//! | `chunk` | received bytes handed out where they lie: the native API's side |
//! | `wait`, `poll`, `epoll`, `bells`, `signals` | readiness |
//! | `driver` | busy polling |
//! | `tcp` | connections |
//! | `demux`, `merge`, `options`, `queue`, `frames` | pure cores |
//!
//! Nothing here panics on what a program or a packet can do, allocates for a datagram, or waits for a lock on the way of
//! one. The exceptions to Linux's behaviour are listed in docs/limitations.md.
#![deny(unsafe_code)]
#![cfg_attr(test, allow(dead_code))] // the hooks, which use most of it, are not in the test program
#![allow(unreachable_pub)] // the hooks are exported by name

#[allow(unsafe_code)]
mod admit;
mod bells;
#[allow(unsafe_code)]
mod chunk;
#[allow(unsafe_code)]
mod control;
mod demux;
#[allow(unsafe_code)]
mod driver;
#[allow(unsafe_code)]
mod engine;
#[allow(unsafe_code)]
mod epoll;
#[allow(unsafe_code)]
mod frames;
#[cfg(not(test))]
#[allow(unsafe_code)]
mod hooks;
#[allow(unsafe_code)]
mod lock;
mod merge;
#[allow(unsafe_code)]
mod message;
#[allow(unsafe_code)]
mod next;
mod options;
#[allow(unsafe_code)]
mod poll;
mod queue;
#[allow(unsafe_code)]
mod receive;
mod signals;
#[allow(unsafe_code)]
mod socket;
#[allow(unsafe_code)]
mod sys;
#[allow(unsafe_code)]
mod table;
#[allow(unsafe_code)]
mod tcp;
#[allow(unsafe_code)]
mod wait;

/// The calling thread's errno.
#[allow(unsafe_code)]
fn errno() -> i32 {
    // SAFETY: points to this thread's errno.
    unsafe { *libc::__errno_location() }
}

#[allow(unsafe_code)]
fn set_errno(errno: hoist_sys::Errno) {
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = errno.0 }
}
