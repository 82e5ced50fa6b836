//! The wire: what tests and benchmarks run on, and what people try Hoist on.
//!
//! * [`Testbed`]: two network namespaces joined by a veth pair, made and removed by netlink.
//! * [`Generator`]: UDP frames at a stated rate from one core, handed to the host's end by pointer.
//! * [`TcpWire`]: TCP connections that the kernel opens and a sender on live frames fills.
//! * [`Stamp`]: what every generated datagram carries, so that a receiver can tell loss and reordering.

#![deny(unsafe_code)]

mod error;
mod frame;
mod generator;
mod live;
mod netlink;
mod netns;
mod registry;
mod stamp;
mod sys;
mod tcp;
mod testbed;

pub use error::{Error, Result};
pub use generator::{Generator, Limit, Running, Sent, Spec};
pub use hoist_napi::Napi;
pub use netns::Netns;
pub use registry::{Facts, Listed, State, list, remove};
pub use stamp::Stamp;
pub use sys::{Offload, Precedence, in_own_session, pin_thread, prefer_thread, unpin_thread};
pub use tcp::{Blocked, TcpLimit, TcpRunning, TcpSent, TcpSpec, TcpWire};
pub use testbed::{Builder, Deferral, End, Testbed};
