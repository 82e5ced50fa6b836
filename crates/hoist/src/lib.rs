//! Sockets as in [`std::net`], with one call more: `recv_chunk` hands out received bytes where they lie.
//!
//! Under `hoist run`, a [`Chunk`] of a lifted socket lies in the frame that the packet arrived in: nothing is copied, and the frame
//! goes back to the device when the chunk is dropped. Without `hoist run`, or where the kernel serves the socket, a
//! chunk is memory of its own that an ordinary receive call has filled. The program is the same, and need not ask.
//!
//! ```no_run
//! let listener = hoist::TcpListener::bind("0.0.0.0:7000")?;
//! for stream in listener.incoming() {
//!     let stream = stream?;
//!     let mut lines = 0;
//!     loop {
//!         let chunk = stream.recv_chunk(hoist::CHUNK_MAX)?;
//!         if chunk.is_empty() {
//!             break; // the peer has sent everything
//!         }
//!         lines += chunk.iter().filter(|&&byte| byte == b'\n').count();
//!     }
//!     println!("{}: {lines} lines", stream.peer_addr()?);
//! }
//! # Ok::<(), std::io::Error>(())
//! ```
//!
//! Datagrams come whole, with their sender:
//!
//! ```
//! let (here, there) = (hoist::UdpSocket::bind("127.0.0.1:0")?, hoist::UdpSocket::bind("127.0.0.1:0")?);
//! there.send_to(b"hello", here.local_addr()?)?;
//! let (chunk, sender) = here.recv_chunk()?;
//! assert_eq!((&chunk[..], sender), (&b"hello"[..], there.local_addr()?));
//! assert!(!chunk.is_borrowed()); // loopback is the kernel's
//! # Ok::<(), std::io::Error>(())
//! ```
//!
//! # Chunks and memory
//! A chunk is `Send`, borrows from no socket, and may be kept as long as it is needed: after the socket is closed, after the device is gone,
//! in a child after `fork`. As long as it is there, its frame receives nothing. When chunks and queued datagrams have more than a
//! quarter of a ring's frames, further chunks are copies, so that a program that keeps many costs itself a copy and
//! nobody a packet. [`Chunk::is_borrowed`] tells which it is.
//!
//! # Runtimes
//! Every type is a wrapper of its namesake in `std`, converts to and from it, and has [`AsFd`] and
//! [`AsRawFd`](std::os::fd::AsRawFd), for mio's `SourceFd` and tokio's `AsyncFd`. The other way round, [`recv_chunk`] and
//! [`recv_chunk_from`] read from any type that has a socket, a runtime's own among them:
//!
//! ```
//! # fn main() -> std::io::Result<()> {
//! # let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
//! # runtime.block_on(async {
//! use tokio::{io::Interest, net::UdpSocket};
//!
//! let socket = UdpSocket::bind("127.0.0.1:0").await?;
//! socket.send_to(b"to myself", socket.local_addr()?).await?;
//! let (chunk, _) = socket.async_io(Interest::READABLE, || hoist::recv_chunk_from(&socket)).await?;
//! assert_eq!(&chunk[..], b"to myself");
//! # Ok(()) }) }
//! ```
#![deny(unsafe_code)]

#[macro_use]
mod delegate;
mod chunk;
#[allow(unsafe_code)]
mod sys;
mod tcp;
mod udp;

pub use chunk::Chunk;
pub use tcp::{Incoming, TcpListener, TcpStream};
pub use udp::UdpSocket;

use std::{io, net::SocketAddr, os::fd::AsFd};

/// A good `max` for [`TcpStream::recv_chunk`]: what the kernel is asked for at most, bytes.
pub const CHUNK_MAX: usize = 64 * 1024;

/// Whether this process runs under `hoist run`, so that chunks can be borrowed.
#[must_use]
pub fn is_hoisted() -> bool {
    sys::shim().is_some()
}

/// [`TcpStream::recv_chunk`] of any type that has a stream's descriptor.
///
/// # Errors
/// As there.
#[inline]
pub fn recv_chunk(stream: impl AsFd, max: usize) -> io::Result<Chunk> {
    sys::recv(stream.as_fd(), max)
}

/// [`UdpSocket::recv_chunk`] of any type that has a UDP socket's descriptor.
///
/// # Errors
/// As there.
#[inline]
pub fn recv_chunk_from(socket: impl AsFd) -> io::Result<(Chunk, SocketAddr)> {
    sys::recv_from(socket.as_fd())
}
