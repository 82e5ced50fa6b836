//! Where generated frames leave, and what they say of themselves there.

use crate::{
    error::{During, Error, Result},
    frame::mac_of,
    netlink::Route,
    netns::Netns,
    pattern::Source,
    testbed::Testbed,
};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
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
    /// A device of the calling thread's network namespace, towards the neighbour with this MAC address, from `source` and,
    /// with patterns and flows of many senders, from the addresses that follow it.
    ///
    /// Nothing asks whose link it is or spares what else uses it: that is up to the caller.
    ///
    /// # Errors
    /// No such device, the loopback device, one that is down, or one whose driver cannot send frames of XDP programs.
    pub fn device(name: &str, target_mac: [u8; 6], source: IpAddr) -> Result<Self> {
        let link = Route::open()
            .and_then(|route| route.link(name))
            .during(|| format!("looking for the device {name} (RTM_GETLINK)"))?;
        let sends = crate::napi::sends_frames(link.header.index)
            .during(|| format!("asking what of XDP {name} can do (netdev)"))?;
        judge(name, link.header.flags, sends)?;
        let (mtu, source_mac) =
            facts(&link).ok_or_else(|| Error::Spec(format!("{name} is no Ethernet device")))?;
        let source = Source { first: source, other_low: Source { first: source, other_low: 0 }.low(0) };
        Ok(Self { netns: None, ifindex: link.header.index, mtu, source_mac, target_mac, source })
    }

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

fn judge(name: &str, flags: LinkFlags, sends_frames: bool) -> Result<()> {
    let refused = |why: &str| Err(Error::Spec(format!("{name} {why}")));
    if flags.contains(LinkFlags::Loopback) {
        return refused("is the loopback device: it leads to no link (a testbed is what to try things on)");
    }
    if !flags.contains(LinkFlags::Up) {
        return refused("is down: set it up first");
    }
    match sends_frames {
        true => Ok(()),
        false => refused(
            "cannot send frames of XDP programs (its driver has no ndo_xdp_xmit, or, as on some, only while an XDP program is \
             attached; on a veth, while the other end has GRO on or a program): take another device",
        ),
    }
}

fn facts(link: &LinkMessage) -> Option<(u32, [u8; 6])> {
    let mtu = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Mtu(mtu) => Some(*mtu),
        _ => None,
    });
    let mac = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Address(mac) => mac.as_slice().try_into().ok(),
        _ => None,
    });
    mtu.zip(mac)
}

/// Senders but the first have addresses from x.y.1.1 on: none is the host's.
const OTHER_LOW: u16 = 0x0100;
