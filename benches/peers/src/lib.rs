//! What the peers share: their command line, SIGTERM, and a way to receive beside the kernel's stack.

#![deny(unsafe_code)]

pub mod options;
pub mod shut;
pub mod stop;
pub mod tap;
