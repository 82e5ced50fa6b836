//! The devices of this network namespace and the addresses that are reached through them. Pure but for [`Inventory::load`].

use crate::{error::Error, netlink::Route, sys};
use netlink_packet_route::{
    address::{AddressAttribute, AddressMessage},
    link::{
        InfoData, InfoKind, InfoVlan, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage, LinkXdp,
    },
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
    /// Tag that packets to it carry; 0: none.
    pub vlan: u16,
    /// The device that owns it: this one, or a VLAN device above it.
    pub owner: u32,
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
    /// For a VLAN device: the device below and the 802.1Q id.
    pub vlan: Option<(u32, u16)>,
    /// Id of the XDP program attached.
    pub xdp_program: Option<u32>,
    /// Addresses reached through it, VLAN devices above included.
    pub addresses: Vec<Address>,
}

impl Device {
    /// Why packets cannot be lifted from this device, if so.
    pub fn unfit(&self) -> Option<String> {
        const VIRTUAL: [&str; 6] = ["tun", "bridge", "bond", "team", "vrf", "dummy"];
        if self.foreign {
            return Some("not an Ethernet device".into());
        }
        if VIRTUAL.contains(&self.kind.as_str()) {
            return Some(format!("a {} device has no receive ring", self.kind));
        }
        if self.vlan.is_some() {
            return Some("a VLAN device: its packets are lifted from the device below".into());
        }
        if let Some(master) = self.master {
            return Some(format!("its packets belong to the bridge or bond above it (interface {master})"));
        }
        (!self.up).then(|| "it is down".into())
    }

    /// Whether this is device `ifindex` or a VLAN device above it is.
    pub fn carries(&self, ifindex: u32, inventory: &Inventory) -> bool {
        self.ifindex == ifindex || inventory.vlan_of(ifindex).is_some_and(|(lower, _)| lower == self.ifindex)
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
            let owner = message.header.index;
            let (lower, vlan) = devices.get(&owner).and_then(|d| d.vlan).unwrap_or((owner, 0));
            if let Some(device) = devices.get_mut(&lower) {
                device.addresses.extend(ips(message).map(|(ip, broadcast)| Address {
                    ip,
                    vlan,
                    owner,
                    broadcast,
                }));
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
        let chosen = move |device: &&Device| {
            only.is_empty() || only.iter().any(|name| self.below(name) == Some(device.ifindex))
        };
        self.0.values().filter(|device| device.unfit().is_none()).filter(chosen)
    }

    /// Index of the device `name`, or of the one below if it is a VLAN device.
    fn below(&self, name: &str) -> Option<u32> {
        let device = self.0.values().find(|device| device.name == name)?;
        Some(device.vlan.map_or(device.ifindex, |(lower, _)| lower))
    }

    /// Device by name.
    pub fn named(&self, name: &str) -> Option<&Device> {
        self.0.values().find(|device| device.name == name)
    }

    fn vlan_of(&self, ifindex: u32) -> Option<(u32, u16)> {
        self.0.get(&ifindex)?.vlan
    }

    /// The tag of packets that arrive on `ifindex`, 0 for none.
    pub fn tag_of(&self, ifindex: u32) -> u16 {
        self.vlan_of(ifindex).map_or(0, |(_, id)| id)
    }
}

/// 255.255.255.255 wherever there is an IPv4 address.
fn limited_broadcasts(addresses: &[Address]) -> Vec<Address> {
    let v4 = addresses.iter().filter(|a| a.ip.is_ipv4());
    v4.map(|a| Address { ip: Ipv4Addr::BROADCAST.into(), broadcast: true, ..*a }).collect()
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
        vlan: None,
        xdp_program: None,
        addresses: Vec::new(),
    };
    let (mut lower, mut id) = (None, None);
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::IfName(name) => device.name.clone_from(name),
            LinkAttribute::Address(mac) => device.mac = mac[..].try_into().unwrap_or_default(),
            LinkAttribute::Mtu(mtu) => device.mtu = *mtu,
            LinkAttribute::NumRxQueues(queues) => device.max_rx_queues = (*queues).max(1),
            LinkAttribute::Controller(master) => device.master = Some(*master),
            LinkAttribute::Link(index) => lower = Some(*index),
            LinkAttribute::Xdp(xdp) => device.xdp_program = xdp.iter().find_map(program_id),
            LinkAttribute::LinkInfo(info) => {
                for info in info {
                    match info {
                        LinkInfo::Kind(kind) => device.kind = kind_name(kind),
                        LinkInfo::Data(InfoData::Vlan(vlan)) => id = vlan.iter().find_map(vlan_id),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    device.vlan = lower.zip(id);
    device
}

fn kind_name(kind: &InfoKind) -> String {
    match kind {
        InfoKind::Other(name) => name.clone(),
        known => known.to_string(),
    }
}

fn vlan_id(info: &InfoVlan) -> Option<u16> {
    match info {
        InfoVlan::Id(id) => Some(*id),
        _ => None,
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

    fn vlan(lower: u32, id: u16) -> Vec<LinkAttribute> {
        let info =
            vec![LinkInfo::Kind(InfoKind::Vlan), LinkInfo::Data(InfoData::Vlan(vec![InfoVlan::Id(id)]))];
        vec![LinkAttribute::Link(lower), LinkAttribute::LinkInfo(info)]
    }

    #[test]
    fn addresses_of_a_vlan_device_belong_to_the_device_below_with_their_tag() {
        let links = [link(2, "eth0", vec![]), link(3, "eth0.7", vlan(2, 7))];
        let ip: IpAddr = "10.0.0.1".parse().unwrap();
        let broadcast = AddressAttribute::Broadcast("10.0.0.255".parse().unwrap());
        let addresses = [address(3, vec![AddressAttribute::Local(ip), broadcast])];
        let inventory = Inventory::of(&links, &addresses);
        let found: Vec<_> =
            inventory.0[&2].addresses.iter().map(|a| (a.ip.to_string(), a.vlan, a.owner)).collect();
        let expected = ["10.0.0.1", "10.0.0.255", "255.255.255.255"].map(|ip| (ip.to_string(), 7, 3));
        assert_eq!(found, expected);
        assert!(inventory.0[&2].carries(3, &inventory));
        let names = |only: &[String]| inventory.candidates(only).map(|d| d.name.clone()).collect::<Vec<_>>();
        assert_eq!(names(&[]), ["eth0"]);
        assert_eq!(names(&["eth0.7".into()]), ["eth0"]);
        assert!(names(&["eth1".into()]).is_empty());
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
