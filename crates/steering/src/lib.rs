//! Which ring the packets of a flow go to: software RPS that sees the load and never reorders a flow. No I/O, no clock.
//!
//! A flow's hash names one of [`BUCKETS`] buckets, and each bucket belongs to a ring.
//!
//! | module | owns |
//! |---|---|
//! | [`table`] | the rules by which a bucket changes its ring and no packet overtakes another |
//! | [`policy`] | which buckets should change, from the counters of buckets and rings |
//! | [`world`] | traffic and rings that a policy can be tried on, 2 to 128 of them |
//! | [`rival`] | what else is done about it: a fixed hash, RFS, two choices, RSS++ |

#![deny(unsafe_code)]

pub mod policy;
pub mod random;
pub mod rival;
pub mod table;
pub mod world;

pub use policy::{Move, Policy, RingCounters, Settings};
pub use table::{After, Placed, Rule, Table};

/// Buckets of a table: a power of two, so that a hash needs no division.
pub const BUCKETS: usize = 1024;
