//! The segment that all segments of a connection are made of, and the sum of what does not vary in it.

use super::connection::Standing;
use crate::frame::{sum, v4_header_summed};
use std::net::IpAddr;

/// A segment whose sequence number, timestamps, checksum and offset tag are still zero.
#[derive(Clone, Debug)]
pub(super) struct Segment {
    pub(super) bytes: Vec<u8>,
    /// Sum of pseudo header, TCP header and payload, in the machine's byte order, not folded.
    pub(super) sum: u32,
}

/// Payload behind the tag: its byte n of the payload has the value n modulo 256.
pub(super) fn filler(mss: u32) -> impl Iterator<Item = u8> {
    (TAG_LEN..mss).map(|n| n as u8)
}

impl Segment {
    /// Bytes before the payload.
    pub(super) fn headers_len(standing: &Standing) -> usize {
        let ip_len = if standing.peer.is_ipv4() { 20 } else { 40 };
        14 + ip_len + if standing.has_timestamps { 32 } else { 20 }
    }

    /// Of `mss` bytes of payload.
    pub(super) fn new(macs: [[u8; 6]; 2], standing: &Standing, mss: u32) -> Self {
        let mut bytes = Vec::from(macs.as_flattened());
        let tcp = tcp(standing, mss);
        match (standing.local.ip(), standing.peer.ip()) {
            (IpAddr::V4(local), IpAddr::V4(peer)) => v4(&mut bytes, tcp.len(), local.octets(), peer.octets()),
            (IpAddr::V6(local), IpAddr::V6(peer)) => v6(&mut bytes, tcp.len(), local.octets(), peer.octets()),
            _ => unreachable!("both ends of a connection have addresses of one family"),
        }
        let addresses = bytes.len() - if standing.peer.is_ipv4() { 8 } else { 32 };
        let sum =
            sum(&bytes[addresses..]) + sum(&[0, TCP]) + sum(&(tcp.len() as u16).to_be_bytes()) + sum(&tcp);
        bytes.extend(tcp);
        Self { bytes, sum }
    }
}

fn v4(bytes: &mut Vec<u8>, payload_len: usize, local: [u8; 4], peer: [u8; 4]) {
    bytes.extend([0x08, 0x00]);
    bytes.extend(v4_header_summed(TCP, payload_len, local, peer));
}

fn v6(bytes: &mut Vec<u8>, payload_len: usize, local: [u8; 16], peer: [u8; 16]) {
    bytes.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
    bytes.extend((payload_len as u16).to_be_bytes());
    bytes.extend([TCP, 64]);
    bytes.extend(local);
    bytes.extend(peer);
}

fn tcp(standing: &Standing, mss: u32) -> Vec<u8> {
    let words = if standing.has_timestamps { 8 } else { 5 };
    let mut bytes = Vec::new();
    bytes.extend(standing.local.port().to_be_bytes());
    bytes.extend(standing.peer.port().to_be_bytes());
    bytes.extend([0; 4]);
    bytes.extend(standing.expected.to_be_bytes());
    bytes.extend([words << 4, 0x10]); // ACK
    bytes.extend(WINDOW.to_be_bytes());
    bytes.extend([0; 4]);
    if standing.has_timestamps {
        bytes.extend([1, 1, 8, 10, 0, 0, 0, 0, 0, 0, 0, 0]);
    }
    bytes.extend([0; TAG_LEN as usize]);
    bytes.extend(filler(mss));
    bytes
}

const TCP: u8 = 6;
const WINDOW: u16 = 500;
const TAG_LEN: u32 = 8;
