//! The devices of this network namespace and the addresses that are reached through them. Pure but for [`Inventory::load`].

use crate::{error::Error, netlink::Route, sys};
use netlink_packet_route::{
    address::{AddressAttribute, AddressMessage},
    link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage, LinkXdp},
};
use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
};

/// An address at which a device receives.
#[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd, Ord)]
pub struct Address {
    /// Unicast or broadcast.
    pub ip: IpAddr,
    /// A broadcast address.
    pub broadcast: bool,
}

/// One device.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Device {
    /// Interface index.
    pub ifindex: u32,
    /// Name.
    pub name: String,
    /// rtnl_link_ops kind (`veth`, `vlan`…), empty for hardware.
    pub kind: String,
    /// Ethernet address.
    pub mac: [u8; 6],
    /// Bytes above the Ethernet header.
    pub mtu: u32,
    /// Receive queues it may ever have.
    pub max_rx_queues: u32,
    /// Administratively up.
    pub up: bool,
    /// It is a loopback, or not Ethernet.
    pub foreign: bool,
    /// Index of the bridge, bond or other master that takes its packets.
    pub master: Option<u32>,
    /// Id of the XDP program attached.
    pub xdp_program: Option<u32>,
    /// Its addresses.
    pub addresses: Vec<Address>,
}

impl Device {
    /// Why packets cannot be lifted from this device, if so.
    pub fn unfit(&self) -> Option<String> {
        const VIRTUAL: [&str; 7] = ["tun", "bridge", "bond", "team", "vrf", "dummy", "vlan"];
        if self.foreign {
            return Some("not an Ethernet device".into());
        }
        if VIRTUAL.contains(&self.kind.as_str()) {
            return Some(format!("a {} device has no receive ring", self.kind));
        }
        if let Some(master) = self.master {
            return Some(format!("its packets belong to the bridge or bond above it (interface {master})"));
        }
        (!self.up).then(|| "it is down".into())
    }
}

/// All devices.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Inventory(pub BTreeMap<u32, Device>);

impl Inventory {
    /// Asks the kernel.
    ///
    /// # Errors
    /// netlink's.
    pub(crate) fn load(route: &Route) -> Result<Self, Error> {
        Ok(Self::of(&route.links()?, &route.addresses()?))
    }

    fn of(links: &[LinkMessage], addresses: &[AddressMessage]) -> Self {
        let mut devices: BTreeMap<u32, Device> =
            links.iter().map(|link| (link.header.index, device(link))).collect();
        for message in addresses {
            if let Some(device) = devices.get_mut(&message.header.index) {
                device.addresses.extend(ips(message).map(|(ip, broadcast)| Address { ip, broadcast }));
            }
        }
        for device in devices.values_mut() {
            device.addresses.extend(limited_broadcasts(&device.addresses));
            device.addresses.sort();
            device.addresses.dedup();
        }
        Self(devices)
    }

    /// Devices from which packets may be lifted: all that are fit, or those of `only` that are.
    pub fn candidates<'a>(&'a self, only: &'a [String]) -> impl Iterator<Item = &'a Device> {
        let chosen = move |device: &&Device| only.is_empty() || only.contains(&device.name);
        self.0.values().filter(|device| device.unfit().is_none()).filter(chosen)
    }

    /// Device by name.
    pub fn named(&self, name: &str) -> Option<&Device> {
        self.0.values().find(|device| device.name == name)
    }
}

/// 255.255.255.255 wherever there is an IPv4 address.
fn limited_broadcasts(addresses: &[Address]) -> Vec<Address> {
    let v4 = addresses.iter().filter(|a| a.ip.is_ipv4());
    v4.map(|_| Address { ip: Ipv4Addr::BROADCAST.into(), broadcast: true }).collect()
}

fn ips(message: &AddressMessage) -> impl Iterator<Item = (IpAddr, bool)> + '_ {
    // On a point-to-point link IFA_ADDRESS is the peer's; IFA_LOCAL, if there, is ours.
    let local = message.attributes.iter().find_map(|a| match a {
        AddressAttribute::Local(ip) => Some(*ip),
        _ => None,
    });
    let address = message.attributes.iter().find_map(|a| match a {
        AddressAttribute::Address(ip) => Some(*ip),
        _ => None,
    });
    let broadcast = message.attributes.iter().find_map(|a| match a {
        AddressAttribute::Broadcast(ip) => Some((IpAddr::V4(*ip), true)),
        _ => None,
    });
    local.or(address).map(|ip| (ip, false)).into_iter().chain(broadcast)
}

fn device(link: &LinkMessage) -> Device {
    let mut device = Device {
        ifindex: link.header.index,
        name: String::new(),
        kind: String::new(),
        mac: [0; 6],
        mtu: 0,
        max_rx_queues: 1,
        up: link.header.flags.contains(LinkFlags::Up),
        foreign: link.header.link_layer_type != LinkLayerType::Ether,
        master: None,
        xdp_program: None,
        addresses: Vec::new(),
    };
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::IfName(name) => device.name.clone_from(name),
            LinkAttribute::Address(mac) => device.mac = mac[..].try_into().unwrap_or_default(),
            LinkAttribute::Mtu(mtu) => device.mtu = *mtu,
            LinkAttribute::NumRxQueues(queues) => device.max_rx_queues = (*queues).max(1),
            LinkAttribute::Controller(master) => device.master = Some(*master),
            LinkAttribute::Xdp(xdp) => device.xdp_program = xdp.iter().find_map(program_id),
            LinkAttribute::LinkInfo(info) => {
                for info in info {
                    if let LinkInfo::Kind(kind) = info {
                        device.kind = kind_name(kind);
                    }
                }
            }
            _ => {}
        }
    }
    device
}

fn kind_name(kind: &InfoKind) -> String {
    match kind {
        InfoKind::Other(name) => name.clone(),
        known => known.to_string(),
    }
}

fn program_id(xdp: &LinkXdp) -> Option<u32> {
    match xdp {
        LinkXdp::ProgId(id) if *id != 0 => Some(*id),
        _ => None,
    }
}

/// Receive queues that can be bound.
pub(crate) fn rx_queues(device: &Device) -> u32 {
    sys::rx_queues(&device.name).unwrap_or(device.max_rx_queues).clamp(1, device.max_rx_queues)
}

#[cfg(test)]
mod tests {
    use super::*;
    use netlink_packet_route::address::AddressHeader;

    fn link(index: u32, name: &str, attributes: Vec<LinkAttribute>) -> LinkMessage {
        let mut link = LinkMessage::default();
        link.header.index = index;
        link.header.flags = LinkFlags::Up;
        link.header.link_layer_type = LinkLayerType::Ether;
        link.attributes = vec![LinkAttribute::IfName(name.into())];
        link.attributes.extend(attributes);
        link
    }

    fn address(index: u32, attributes: Vec<AddressAttribute>) -> AddressMessage {
        let mut message = AddressMessage::default();
        message.header = AddressHeader { index, ..AddressHeader::default() };
        message.attributes = attributes;
        message
    }

    fn vlan(lower: u32) -> Vec<LinkAttribute> {
        vec![LinkAttribute::Link(lower), LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Vlan)])]
    }

    #[test]
    fn addresses_of_a_vlan_device_are_its_own_and_it_is_no_candidate() {
        let links = [link(2, "eth0", vec![]), link(3, "eth0.7", vlan(2))];
        let ip: IpAddr = "10.0.0.1".parse().unwrap();
        let broadcast = AddressAttribute::Broadcast("10.0.0.255".parse().unwrap());
        let addresses = [address(3, vec![AddressAttribute::Local(ip), broadcast])];
        let inventory = Inventory::of(&links, &addresses);
        let found: Vec<_> = inventory.0[&3].addresses.iter().map(|a| a.ip.to_string()).collect();
        assert_eq!(found, ["10.0.0.1", "10.0.0.255", "255.255.255.255"]);
        assert!(inventory.0[&2].addresses.is_empty());
        assert!(inventory.0[&3].unfit().is_some_and(|why| why.contains("vlan")));
        let names = |only: &[String]| inventory.candidates(only).map(|d| d.name.clone()).collect::<Vec<_>>();
        assert_eq!(names(&[]), ["eth0"]);
        assert_eq!(names(&["eth0".into()]), ["eth0"]);
        assert!(names(&["eth0.7".into()]).is_empty());
    }

    #[test]
    fn slaves_tunnels_and_devices_that_are_down_are_unfit_for_a_stated_reason() {
        let mut down = link(2, "eth0", vec![]);
        down.header.flags = LinkFlags::empty();
        assert!(device(&down).unfit().is_some_and(|why| why.contains("down")));
        let slave = link(3, "eth1", vec![LinkAttribute::Controller(9)]);
        assert!(device(&slave).unfit().is_some_and(|why| why.contains("interface 9")));
        let tun = link(4, "tap0", vec![LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Tun)])]);
        assert!(device(&tun).unfit().is_some_and(|why| why.contains("tun")));
        assert_eq!(device(&link(5, "eth2", vec![])).unfit(), None);
    }

    #[test]
    fn the_local_end_of_a_point_to_point_link_is_the_address() {
        let (ours, peer) = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
        let message = address(2, vec![AddressAttribute::Address(peer), AddressAttribute::Local(ours)]);
        assert_eq!(ips(&message).collect::<Vec<_>>(), [(ours, false)]);
    }
}
