//! What the broker and the shim say to each other, and the memory in which the shim counts.
//!
//! * [`message`]: requests and replies on a `SOCK_SEQPACKET` Unix socket, with descriptors by `SCM_RIGHTS`.
//! * [`page`]: the stats page, a memfd that the shim writes and the broker reads.
//! * [`hub`]: what the processes of a run share about frames, a memfd that all of them write.
//! * [`tcp`]: the slots in which TCP connections are published, maps of BPF that both sides read and write.
//! * [`reason`]: why a socket or a packet is not lifted; the one list that users see.
//!
//! # Course of a conversation
//! `hoist run` starts the program with [`ENV_FD`] naming an inherited `SOCK_SEQPACKET` socket that all processes of the
//! run share. A process that wants something makes a socketpair, sends [`Request::Hello`] with one end over the inherited
//! socket, and talks over its own end from then on: one request, then replies up to and including one for which
//! [`Reply::is_final`] holds. The broker learns the peer's pid from the kernel (`SO_PEERCRED`/`SCM_CREDENTIALS`), never
//! from a message. [`Reply::Umem`], [`Reply::Device`] and [`Reply::Ring`] may precede a final reply whenever the set of
//! rings grew.
#![deny(unsafe_code)]

#[allow(unsafe_code)]
pub mod hub;
pub mod message;
#[allow(unsafe_code)]
pub mod page;
pub mod reason;
#[allow(unsafe_code)]
pub mod tcp;

pub use message::{DecodeError, Reply, Request, RingInfo};
pub use reason::Reason;

/// Environment variable with the number of the inherited broker socket.
pub const ENV_FD: &str = "HOIST_BROKER_FD";

/// Bumped with every change of message or page layout: a shim and a broker of different versions refuse each other.
pub const VERSION: u32 = 3;

/// The longest encoded message, bytes.
pub const MAX_MESSAGE: usize = 128;
