//! Headers of received packets: views, checksums, the flow key.
//!
//! * [`ethernet`], [`ipv4`], [`ipv6`], [`udp`], [`tcp`]: a file per protocol, each with its field offsets, a view that
//!   reads a header in place, and a typed form that writes one. [`udp::parse`] is the whole way from frame to datagram,
//!   [`tcp::parse`] from frame to segment.
//! * [`gro`]: segments of a flow that become one packet.
//! * [`checksum`]: the internet checksum.
//! * [`flow`]: what makes two packets one flow, and its hash.
//!
//! Frames are input from strangers: nothing here panics, allocates or reads a clock, whatever the bytes.
#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

mod address;
pub mod checksum;
pub mod ethernet;
pub mod flow;
pub mod gro;
pub mod ipv4;
pub mod ipv6;
mod network;
mod refused;
pub mod tcp;
pub mod udp;

pub use address::{Ip, SocketAddrRaw};
pub use refused::Refused;

/// The number of UDP in IPv4's protocol and IPv6's next header field.
pub const PROTOCOL_UDP: u8 = 17;

/// The number of TCP in IPv4's protocol and IPv6's next header field.
pub const PROTOCOL_TCP: u8 = 6;

/// Big-endian `u16` at a constant offset of a header: the bounds check folds away.
#[inline(always)]
fn be16<const N: usize>(header: &[u8; N], at: usize) -> u16 {
    u16::from_be_bytes([header[at], header[at + 1]])
}

/// Big-endian `u32` at a constant offset of a header.
#[inline(always)]
fn be32<const N: usize>(header: &[u8; N], at: usize) -> u32 {
    u32::from_be_bytes(array(header, at))
}

/// `LEN` bytes at a constant offset of a header that holds them.
#[inline(always)]
fn array<const LEN: usize, const N: usize>(header: &[u8; N], at: usize) -> [u8; LEN] {
    debug_assert!(at + LEN <= N);
    header.get(at..).and_then(<[u8]>::first_chunk).copied().unwrap_or([0; LEN])
}
