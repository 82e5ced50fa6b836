//! rtnetlink: what devices and addresses there are, and the few settings of a TAP.

use crate::error::{Context, Error};
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader, NetlinkMessage,
    NetlinkPayload, NetlinkSerializable,
};
use netlink_packet_route::{
    RouteNetlinkMessage,
    address::AddressMessage,
    link::{AfSpecInet6, AfSpecUnspec, In6AddrGenMode, LinkAttribute, LinkFlags, LinkMessage},
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use std::io;

/// A socket for requests.
pub(crate) struct Route(Socket);

impl Route {
    pub(crate) fn open() -> Result<Self, Error> {
        open(NETLINK_ROUTE).context("open a netlink socket").map(Self)
    }

    pub(crate) fn links(&self) -> Result<Vec<LinkMessage>, Error> {
        let replies = dump(&self.0, RouteNetlinkMessage::GetLink(LinkMessage::default()), 0);
        let link = |message| match message {
            RouteNetlinkMessage::NewLink(link) => Some(link),
            _ => None,
        };
        Ok(replies.context("list the network devices (RTM_GETLINK)")?.into_iter().filter_map(link).collect())
    }

    pub(crate) fn addresses(&self) -> Result<Vec<AddressMessage>, Error> {
        let replies = dump(&self.0, RouteNetlinkMessage::GetAddress(AddressMessage::default()), 0);
        let address = |message| match message {
            RouteNetlinkMessage::NewAddress(address) => Some(address),
            _ => None,
        };
        Ok(replies.context("list the addresses (RTM_GETADDR)")?.into_iter().filter_map(address).collect())
    }

    /// Removes a device; one that is gone already is as good.
    pub(crate) fn remove(&self, ifindex: u32) -> Result<(), Error> {
        let mut link = LinkMessage::default();
        link.header.index = ifindex;
        match request(&self.0, RouteNetlinkMessage::DelLink(link)) {
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(()),
            other => other.context("remove a TAP that was left behind (RTM_DELLINK)"),
        }
    }

    /// Sets a device up that never speaks for itself: no IPv6 address, an MTU that takes any frame.
    pub(crate) fn set_up_silently(&self, ifindex: u32, mtu: u32, alias: &str) -> Result<(), Error> {
        let mut quiet = LinkMessage::default();
        quiet.header.index = ifindex;
        let no_address = AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)]);
        quiet.attributes = vec![LinkAttribute::Mtu(mtu), LinkAttribute::AfSpecUnspec(vec![no_address])];
        // A kernel booted with ipv6.disable=1 knows no address generation.
        let set = |message| request(&self.0, RouteNetlinkMessage::SetLink(message));
        if set(quiet).is_err() {
            let mut plain = LinkMessage::default();
            plain.header.index = ifindex;
            plain.attributes = vec![LinkAttribute::Mtu(mtu)];
            set(plain).context("set the MTU of a TAP (RTM_SETLINK)")?;
        }
        let mut up = LinkMessage::default();
        up.header.index = ifindex;
        up.attributes = vec![LinkAttribute::IfAlias(alias.into())];
        up.header.change_mask = LinkFlags::Up | LinkFlags::Noarp;
        up.header.flags = LinkFlags::Up | LinkFlags::Noarp;
        set(up).context("set a TAP up (RTM_SETLINK)")
    }
}

/// Opens a socket for requests of `protocol`.
pub(crate) fn open(protocol: isize) -> io::Result<Socket> {
    let mut socket = Socket::new(protocol)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    Ok(socket)
}

/// A socket that becomes readable when a device or an address changes.
pub(crate) fn monitor() -> Result<Socket, Error> {
    let groups = libc::RTMGRP_LINK | libc::RTMGRP_IPV4_IFADDR | libc::RTMGRP_IPV6_IFADDR;
    let open = || {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind(&SocketAddr::new(0, groups as u32))?;
        socket.set_non_blocking(true)?;
        Ok::<_, io::Error>(socket)
    };
    open().context("watch for changes of devices and addresses (netlink)")
}

/// Throws away what the monitor has to say: a change, or more of them than fit (ENOBUFS), means to look anew.
pub(crate) fn swallow(monitor: &Socket) {
    let mut buffer = vec![0_u8; 65_536];
    loop {
        match monitor.recv(&mut &mut buffer[..], 0) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
            Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) => {}
            Err(_) => return,
            Ok(_) => {}
        }
    }
}

fn request(socket: &Socket, message: RouteNetlinkMessage) -> io::Result<()> {
    send(socket, message, NLM_F_ACK)?;
    let bytes = socket.recv_from_full()?.0;
    match parse::<RouteNetlinkMessage>(&bytes)?.payload {
        NetlinkPayload::Error(error) if error.code.is_some() => Err(error.to_io()),
        _ => Ok(()),
    }
}

fn dump<M: NetlinkSerializable + NetlinkDeserializable>(
    socket: &Socket,
    message: M,
    flags: u16,
) -> io::Result<Vec<M>> {
    send(socket, message, NLM_F_DUMP | flags)?;
    let mut replies = Vec::new();
    loop {
        let bytes = socket.recv_from_full()?.0;
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let message = parse::<M>(rest)?;
            // Messages follow each other at multiples of four (NLMSG_ALIGN).
            let len = (message.header.length as usize).next_multiple_of(4).clamp(16, rest.len().max(16));
            rest = rest.get(len..).unwrap_or_default();
            match message.payload {
                NetlinkPayload::Done(_) => return Ok(replies),
                NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
                NetlinkPayload::InnerMessage(inner) => replies.push(inner),
                _ => {}
            }
        }
    }
}

fn send<M: NetlinkSerializable>(socket: &Socket, message: M, flags: u16) -> io::Result<()> {
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | flags;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    socket.send(&bytes, 0).map(drop)
}

fn parse<M: NetlinkDeserializable>(bytes: &[u8]) -> io::Result<NetlinkMessage<M>> {
    NetlinkMessage::<M>::deserialize(bytes)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))
}
