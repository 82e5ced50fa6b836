//! AF_XDP: the UMEM, its rings and the socket that owns them.
//!
//! The broker creates a [`Umem`] and binds [`Socket`]s; whoever receives the file descriptors maps the same memory with
//! [`Umem::map`] and the rings with [`RxRing::map`] and its siblings. A ring has two ends, the kernel and one process at a
//! time; its words and descriptors are shared memory and therefore input: every index is checked in release builds too.
#![deny(unsafe_code)]

mod cursor;
mod error;
mod ring;
mod socket;
#[expect(unsafe_code, reason = "the one place that makes system calls")]
mod sys;
#[expect(unsafe_code, reason = "frames are shared memory behind a raw pointer")]
mod umem;

pub use error::Error;
pub use ring::{CompletionRing, Desc, FillRing, RxRing, TxRing};
pub use socket::{Bound, Mode, Socket, Statistics};
pub use umem::{ChunkSize, Umem};
