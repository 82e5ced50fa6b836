//! The few rtnetlink requests a testbed is made of.

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressHeaderFlags, AddressMessage, AddressScope},
    link::{InfoData, InfoKind, InfoVeth, InfoVlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage},
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState},
    route::{RouteAddress, RouteAttribute},
    tc::{TcAttribute, TcHandle, TcMessage},
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::sys::{
    socket::{setsockopt, sockopt::ReceiveTimeout},
    time::{TimeVal, TimeValLike},
};
use std::{
    io,
    net::{IpAddr, Ipv6Addr},
    os::fd::RawFd,
};

/// An rtnetlink socket in the network namespace of the thread that opened it.
pub(crate) struct Route {
    socket: Socket,
}

/// One end of a veth pair to be.
pub(crate) struct End<'a> {
    pub(crate) device: &'a str,
    pub(crate) mac: [u8; 6],
    pub(crate) queues: u32,
    pub(crate) mtu: u32,
}

impl Route {
    pub(crate) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self { socket })
    }

    /// Makes a veth pair: `near` here, `far` in the network namespace behind `far_net`.
    pub(crate) fn add_veth(&self, near: &End<'_>, far: &End<'_>, far_net: RawFd) -> io::Result<()> {
        let mut peer = LinkMessage::default();
        peer.attributes = end_attributes(far);
        peer.attributes.push(LinkAttribute::NetNsFd(far_net));
        let mut link = LinkMessage::default();
        link.attributes = end_attributes(near);
        link.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
        ]));
        self.create(RouteNetlinkMessage::NewLink(link))
    }

    /// Makes the VLAN device `name` on top of `lower`.
    pub(crate) fn add_vlan(&self, lower: u32, name: &str, id: u16) -> io::Result<()> {
        let mut link = LinkMessage::default();
        link.attributes = vec![
            LinkAttribute::IfName(name.into()),
            LinkAttribute::Link(lower),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Vlan),
                LinkInfo::Data(InfoData::Vlan(vec![InfoVlan::Id(id)])),
            ]),
        ];
        self.create(RouteNetlinkMessage::NewLink(link))
    }

    pub(crate) fn delete_link(&self, index: u32) -> io::Result<()> {
        let mut link = LinkMessage::default();
        link.header.index = index;
        self.request(RouteNetlinkMessage::DelLink(link), 0)
    }

    /// The device of this name.
    pub(crate) fn link(&self, name: &str) -> io::Result<LinkMessage> {
        let mut link = LinkMessage::default();
        link.attributes = vec![LinkAttribute::IfName(name.into())];
        match self.answer(RouteNetlinkMessage::GetLink(link), 0)? {
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) => Ok(link),
            NetlinkPayload::Error(error) if error.code.is_some() => Err(error.to_io()),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    pub(crate) fn set_up(&self, index: u32, up: bool) -> io::Result<()> {
        let mut link = LinkMessage::default();
        link.header.index = index;
        link.header.change_mask = LinkFlags::Up;
        link.header.flags = if up { LinkFlags::Up } else { LinkFlags::empty() };
        self.request(RouteNetlinkMessage::SetLink(link), 0)
    }

    pub(crate) fn set_mtu(&self, index: u32, mtu: u32) -> io::Result<()> {
        let mut link = LinkMessage::default();
        link.header.index = index;
        link.attributes = vec![LinkAttribute::Mtu(mtu)];
        self.request(RouteNetlinkMessage::SetLink(link), 0)
    }

    /// How many packets the device's queue has room for.
    pub(crate) fn set_queue_len(&self, index: u32, packets: u32) -> io::Result<()> {
        let mut link = LinkMessage::default();
        link.header.index = index;
        link.attributes = vec![LinkAttribute::TxQueueLen(packets)];
        self.request(RouteNetlinkMessage::SetLink(link), 0)
    }

    /// Adds an address that is usable at once: no duplicate address detection.
    pub(crate) fn add_address(&self, index: u32, address: IpAddr, prefix_len: u8) -> io::Result<()> {
        let mut message = AddressMessage::default();
        message.header.family = family(address);
        message.header.prefix_len = prefix_len;
        message.header.flags = AddressHeaderFlags::Nodad;
        message.header.scope = AddressScope::Universe;
        message.header.index = index;
        message.attributes = vec![AddressAttribute::Local(address), AddressAttribute::Address(address)];
        if let IpAddr::V4(v4) = address {
            let broadcast = u32::from(v4) | (u32::MAX >> prefix_len);
            message.attributes.push(AddressAttribute::Broadcast(broadcast.into()));
        }
        self.create(RouteNetlinkMessage::NewAddress(message))
    }

    /// A neighbour that is never asked for.
    pub(crate) fn add_neighbour(&self, index: u32, address: IpAddr, mac: [u8; 6]) -> io::Result<()> {
        let mut message = NeighbourMessage::default();
        message.header.family = family(address);
        message.header.ifindex = index;
        message.header.state = NeighbourState::Permanent;
        let destination = match address {
            IpAddr::V4(v4) => NeighbourAddress::Inet(v4),
            IpAddr::V6(v6) => NeighbourAddress::Inet6(v6),
        };
        message.attributes = vec![
            NeighbourAttribute::Destination(destination),
            NeighbourAttribute::LinkLayerAddress(mac.to_vec()),
        ];
        self.create(RouteNetlinkMessage::NewNeighbour(message))
    }

    /// Puts a queue before the device: a veth by itself drops what its ring of 256 entries cannot take.
    pub(crate) fn add_pfifo(&self, index: u32) -> io::Result<()> {
        let mut message = TcMessage::with_index(index as i32);
        message.header.parent = TcHandle::ROOT;
        message.header.handle = TcHandle { major: 1, minor: 0 };
        message.attributes = vec![TcAttribute::Kind("pfifo".into())];
        self.request(RouteNetlinkMessage::NewQueueDiscipline(message), NLM_F_CREATE | NLM_F_REPLACE)
    }

    fn create(&self, message: RouteNetlinkMessage) -> io::Result<()> {
        self.request(message, NLM_F_CREATE | NLM_F_EXCL)
    }

    fn request(&self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        match self.answer(message, NLM_F_ACK | flags)? {
            NetlinkPayload::Error(error) if error.code.is_some() => Err(error.to_io()),
            _ => Ok(()),
        }
    }

    fn answer(
        &self,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> io::Result<NetlinkPayload<RouteNetlinkMessage>> {
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::from(message));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;
        let reply = NetlinkMessage::deserialize(&self.socket.recv_from_full()?.0);
        Ok(reply.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?.payload)
    }
}

/// Tells when the kernel accepts datagrams for a new IPv6 address: it adds the local route from a work queue
/// (addrconf_dad_work), after the request has been acknowledged and without duplicate address detection too.
pub(crate) struct LocalRoutes {
    socket: Socket,
}

impl LocalRoutes {
    /// Watches the thread's network namespace; to be opened before the address is added.
    pub(crate) fn watch() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.add_membership(RTNLGRP_IPV6_ROUTE)?;
        setsockopt(&socket, ReceiveTimeout, &TimeVal::seconds(5))?;
        Ok(Self { socket })
    }

    /// Waits for the local route of `address`.
    pub(crate) fn wait_for(&self, address: Ipv6Addr) -> io::Result<()> {
        while !announces(&self.socket.recv_from_full()?.0, address) {}
        Ok(())
    }
}

const RTNLGRP_IPV6_ROUTE: u32 = 11;
const RT_TABLE_LOCAL: u8 = 255;

fn announces(bytes: &[u8], address: Ipv6Addr) -> bool {
    let Ok(message) = NetlinkMessage::<RouteNetlinkMessage>::deserialize(bytes) else { return false };
    let NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewRoute(route)) = message.payload else {
        return false;
    };
    let destination = RouteAttribute::Destination(RouteAddress::Inet6(address));
    route.header.table == RT_TABLE_LOCAL && route.attributes.contains(&destination)
}

fn end_attributes(end: &End<'_>) -> Vec<LinkAttribute> {
    vec![
        LinkAttribute::IfName(end.device.into()),
        LinkAttribute::Address(end.mac.to_vec()),
        LinkAttribute::Mtu(end.mtu),
        LinkAttribute::NumTxQueues(end.queues),
        LinkAttribute::NumRxQueues(end.queues),
    ]
}

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}
