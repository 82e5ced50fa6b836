//! The wire: what tests and benchmarks run on, and what people try Hoist on.
//!
//! * [`Testbed`]: two network namespaces joined by a veth pair, made and removed by netlink.
//! * [`Generator`]: UDP frames at a stated rate from one core, handed to the host's end by pointer.
//! * [`TcpWire`]: TCP connections that the kernel opens and a sender on live frames fills.
//! * [`Pattern`], [`Popularity`]: who sends to whom, and how often.
//! * [`RawSender`]: frames that somebody else built.
//! * [`Link`]: loss, delay, reordering, corruption and duplication for whatever crosses the cable, from a seed.
//! * [`Queries`]: DNS queries, made and delivered likewise, and their answers, counted when right.
//! * [`Stamp`]: what every generated datagram carries, so that a receiver can tell loss and reordering.

#![deny(unsafe_code)]

mod bpf;
mod dns;
mod draw;
mod egress;
mod error;
mod frame;
mod generator;
mod impair;
mod line;
mod link;
mod live;
mod napi;
mod netlink;
mod netns;
mod order;
mod pace;
mod pattern;
mod random;
mod raw;
mod registry;
mod stamp;
mod sys;
mod tcp;
mod testbed;

pub use dns::{Answers, Queries};
pub use draw::Popularity;
pub use egress::Egress;
pub use error::{Error, Result};
pub use generator::{Generator, Limit, Running, Sent, Spec};
pub use impair::{Fate, Fates, Impairment};
pub use link::{Direction, Link, LinkCounts};
pub use napi::Napi;
pub use netns::Netns;
pub use order::Order;
pub use pattern::{Mixed, Pattern};
pub use raw::RawSender;
pub use registry::{Facts, Listed, State, list, remove};
pub use stamp::Stamp;
pub use sys::{Offload, Precedence, in_own_session, pin_thread, prefer_thread, unpin_thread};
pub use tcp::{Blocked, TcpLimit, TcpRunning, TcpSent, TcpSpec, TcpWire};
pub use testbed::{Builder, End, Testbed};
