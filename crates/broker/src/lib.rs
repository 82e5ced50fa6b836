//! The broker: the privileged part of a run. It loads and attaches `steer`, makes the UMEM and AF_XDP sockets, hands their
//! descriptors to the program's shim and takes everything back however the program ends.
//!
//! All that it attaches hangs on its descriptors: a broker that is killed leaves nothing behind.
#![deny(unsafe_code)]

#[expect(unsafe_code, reason = "mirrors of C structures are plain old data")]
pub mod abi;
pub mod account;
mod cgroup;
mod connections;
pub mod device;
mod disposal;
pub mod elf;
mod endpoint;
mod error;
pub mod launch;
mod lease;
mod loaders;
pub mod napi;
pub mod netfilter;
mod netlink;
mod object;
mod raised;
mod registry;
mod requests;
pub mod rps;
pub mod rules;
mod server;
mod sock_diag;
pub mod status;
mod status_socket;
pub mod steer;
mod streams;
#[expect(unsafe_code, reason = "the one place that makes system calls")]
mod sys;
mod tap;

pub use connections::Pins;
pub use error::Error;
pub use hoist_ipc::tcp::Policy;
pub use hoist_xsk::Mode;
pub use lease::{CHUNK, FILL_SIZE, FRAMES, MAX_FRAME, RX_SIZE};
pub use server::{Broker, Config, Ports, Tcp};
pub use status_socket::{RUN_DIR, sockets as status_sockets, sweep};
