//! Dual runs: the same socket programs natively and under `hoist run`, with the same assertions.
//!
//! * [`cases`]: what is asserted, one function a behaviour. The binary `dual CASE` runs one of them in a process of its own.
//! * [`peer`]: the other end, a process in the wire namespace that sends and receives what a case tells it to.
//! * [`frame`]: Ethernet frames that a UDP socket would never send.
//! * [`lab`]: a testbed with a peer in it, and programs run there, natively or hoisted, within a time limit.
//! * [`report`]: what `hoist run` counted, held against what a case expects to be lifted.
//! * [`sock`]: libc's socket calls with Rust types; each function is one call.
//! * [`tally`]: what was received of a stream, to be compared.
#![allow(unsafe_code)] // the calls under test are libc's own, made the way a C program makes them
#![allow(clippy::unwrap_used)] // a case fails by panicking

#[allow(clippy::missing_panics_doc)]
pub mod cases;
pub mod frame;
pub mod lab;
pub mod peer;
pub mod report;
pub mod sock;
pub mod tally;
