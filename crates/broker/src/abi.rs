//! Rust mirror of `bpf/hoist.h`.

use crate::rules::Key;
use std::{
    mem::offset_of,
    net::{IpAddr, SocketAddr},
};

/// `lift_rule.flags`: stamp the packet.
pub(crate) const LIFT_TIMESTAMP: u32 = 1;
/// `lift_rule.flags`: only flows in `admitted`.
pub(crate) const LIFT_ADMIT_FLOW: u32 = 2;

/// `lift_rule.flags`: the part that a flow hashes to names the seat.
pub(crate) const LIFT_SPREAD: u32 = 4;
/// Parts that the flows of a rule hash to.
pub(crate) const LIFT_PARTS: usize = 256;

/// `struct lift_rule`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct LiftRule {
    pub(crate) flags: u32,
    pub(crate) seat: u32,
    pub(crate) seats: [u8; LIFT_PARTS],
}

/// `struct steer_counter`.
#[repr(C)]
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub struct Counter {
    /// Packets.
    pub packets: u64,
    /// Bytes, of lifted packets only.
    pub bytes: u64,
}

/// `struct tcp_closed`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(crate) struct TcpClosed {
    pub(crate) connections: u64,
    pub(crate) lifted_bytes: u64,
    pub(crate) passed_bytes: u64,
    pub(crate) lifts: u64,
    pub(crate) bad_checksum: u64,
    pub(crate) rode: u64,
    pub(crate) rode_real: u64,
}

/// `struct lift_key`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct LiftKey {
    address: [u8; 16],
    port: [u8; 2],
    zero: u16,
}

/// `struct flow_key`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct FlowKey {
    source: [u8; 16],
    destination: [u8; 16],
    source_port: [u8; 2],
    destination_port: [u8; 2],
}

/// `struct steer_device`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct SteerDevice {
    pub(crate) mac: [u8; 6],
    pub(crate) zero: u16,
    pub(crate) max_frame: u32,
}

const _: () = {
    assert!(size_of::<Counter>() == 16 && offset_of!(Counter, bytes) == 8);
    assert!(size_of::<LiftKey>() == 20 && offset_of!(LiftKey, port) == 16 && offset_of!(LiftKey, zero) == 18);
    assert!(size_of::<FlowKey>() == 36 && offset_of!(FlowKey, source_port) == 32);
    assert!(size_of::<TcpClosed>() == 56 && offset_of!(TcpClosed, rode_real) == 48);
    assert!(size_of::<LiftRule>() == 264 && offset_of!(LiftRule, seats) == 8);
    assert!(size_of::<SteerDevice>() == 12 && offset_of!(SteerDevice, max_frame) == 8);
};

// SAFETY: plain integers without padding.
unsafe impl aya::Pod for Counter {}
// SAFETY: plain integers without padding.
unsafe impl aya::Pod for LiftKey {}
// SAFETY: plain integers without padding.
unsafe impl aya::Pod for LiftRule {}
// SAFETY: plain integers without padding.
unsafe impl aya::Pod for FlowKey {}
// SAFETY: plain integers without padding.
unsafe impl aya::Pod for SteerDevice {}
// SAFETY: plain integers without padding.
unsafe impl aya::Pod for TcpClosed {}

impl From<Key> for LiftKey {
    fn from(Key { address, port, .. }: Key) -> Self {
        Self { address: mapped(address), port: port.to_be_bytes(), zero: 0 }
    }
}

impl FlowKey {
    pub(crate) fn new(source: SocketAddr, destination: SocketAddr) -> Self {
        Self {
            source: mapped(source.ip()),
            destination: mapped(destination.ip()),
            source_port: source.port().to_be_bytes(),
            destination_port: destination.port().to_be_bytes(),
        }
    }
}

fn mapped(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
        IpAddr::V6(ip) => ip.octets(),
    }
}

macro_rules! verdicts {
    ($($(#[doc = $doc:literal])+ $name:ident $word:literal;)+) => {
        /// `enum steer_verdict`: what became of a packet.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        #[repr(u32)]
        pub enum Verdict { $($(#[doc = $doc])+ $name,)+ }

        impl Verdict {
            /// Every verdict, in the order of hoist.h.
            pub const ALL: &[Self] = &[$(Self::$name,)+];

            /// Its name in status and JSON.
            pub fn word(self) -> &'static str { match self { $(Self::$name => $word,)+ } }
        }
    };
}

verdicts! {
    /// Redirected to a ring.
    Lift "lift";
    /// Neither IPv4 nor IPv6.
    NotIp "not-ip";
    /// IP, but not UDP.
    NotUdp "not-udp";
    /// A fragment of IPv4.
    Fragment "fragment";
    /// IPv4 with options.
    IpOptions "ip-options";
    /// IPv6 with extension headers, fragments among them.
    Ipv6Extension "ipv6-extension";
    /// Lengths that do not fit each other.
    Truncated "truncated";
    /// A port that nobody in the run has.
    Port "port";
    /// For another station: the device is promiscuous or bridged.
    OtherMac "other-mac";
    /// Longer than a frame of the UMEM.
    TooLong "too-long";
    /// From an address that no datagram may come from.
    Source "source";
    /// A VLAN tag.
    Vlan "vlan";
    /// For an address that no socket of the run has.
    Address "address";
    /// `--admit flow`, and the stack has not delivered a datagram of this flow yet.
    Unadmitted "unadmitted";
    /// Arrived on a queue without a ring.
    NoRing "no-ring";
    /// Given back to the stack and seen again (generic XDP only).
    Rode "rode";
    /// A TCP segment of a connection that is not lifted.
    TcpFlow "tcp-flow";
    /// A TCP segment that the stack needs no payload of: SYN, or an acknowledgement alone.
    TcpControl "tcp-control";
}

#[cfg(test)]
mod tests {
    use super::*;
    use hoist_ipc::hub::SEATS;

    #[test]
    fn numbers_are_those_of_the_header() {
        let header = include_str!("../../../bpf/hoist.h");
        for (name, value) in
            [("SEATS", SEATS), ("LIFT_PARTS", LIFT_PARTS), ("LIFT_SPREAD", LIFT_SPREAD as usize)]
        {
            assert!(header.contains(&format!("#define {name} {value}\n")), "{name}");
        }
    }

    #[test]
    fn verdicts_are_numbered_as_in_the_header() {
        let header = include_str!("../../../bpf/hoist.h");
        let body = header.split("enum steer_verdict {").nth(1).unwrap().split('}').next().unwrap();
        let names: Vec<_> = body.lines().filter_map(|l| l.trim().strip_prefix("STEER_")).collect();
        let expected: Vec<_> =
            Verdict::ALL.iter().map(|v| v.word().replace('-', "_").to_uppercase() + ",").collect();
        assert_eq!(names[..names.len() - 1], expected[..]);
        assert_eq!(names.last(), Some(&"VERDICTS,"));
    }
}
