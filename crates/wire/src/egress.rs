//! Where generated frames leave, and what they say of themselves there.

use crate::{frame::mac_of, netns::Netns, pattern::Source, testbed::Testbed};
use std::net::{IpAddr, SocketAddr};

/// The device that generated frames leave by.
#[derive(Clone, Debug)]
pub struct Egress {
    /// Its network namespace; none is that of the thread that starts the generator.
    pub(crate) netns: Option<Netns>,
    pub(crate) ifindex: u32,
    pub(crate) mtu: u32,
    pub(crate) source_mac: [u8; 6],
    pub(crate) target_mac: [u8; 6],
    pub(crate) source: Source,
}

impl Egress {
    /// `va` of a testbed, towards its host.
    pub(crate) fn of(testbed: &Testbed, target: SocketAddr, vlan: Option<u16>) -> Self {
        let wire = testbed.wire();
        let first: IpAddr = match (target.is_ipv4(), vlan.is_some()) {
            (true, false) => wire.v4().into(),
            (true, true) => wire.vlan_v4().into(),
            (false, false) => wire.v6().into(),
            (false, true) => wire.vlan_v6().into(),
        };
        Self {
            netns: Some(wire.netns().clone()),
            ifindex: wire.ifindex(),
            mtu: testbed.facts().mtu,
            source_mac: wire.mac(),
            target_mac: mac_of(target.ip(), testbed.host().mac()),
            source: Source { first, other_low: OTHER_LOW },
        }
    }
}

/// Senders but the first have addresses from x.y.1.1 on: none is the host's.
const OTHER_LOW: u16 = 0x0100;
