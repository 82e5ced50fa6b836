//! A network namespace with a veth pair in it, both gone when the thread that made them ends.

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use std::ffi::CString;
use std::io::{self, Write};
use std::panic;
use std::thread;

/// Packets longer than a frame of 2 KiB, and still short enough for native XDP on veth.
pub(crate) const MTU: u32 = 3000;

/// Runs `test` on a thread in a namespace of its own; without root says so and passes.
pub(crate) fn isolated(test: impl FnOnce() + Send + 'static) {
    let name = thread::current().name().unwrap_or("test").to_owned();
    let run = move || match enter() {
        Ok(()) => test(),
        // Straight to the descriptor: the harness keeps what passing tests print.
        Err(why) => {
            let _ = writeln!(io::stderr(), "{name}: skipped, needs root for a network namespace: {why}");
        }
    };
    if let Err(failure) = thread::spawn(run).join() {
        panic::resume_unwind(failure);
    }
}

/// Makes `va` and `vb` in this thread's namespace, up, with `queues` queues each; returns their indices.
pub(crate) fn veth(queues: u32) -> (u32, u32) {
    let mut va = device("va", queues);
    let peer = InfoData::Veth(InfoVeth::Peer(device("vb", queues)));
    va.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Veth), LinkInfo::Data(peer)]));
    ask(RouteNetlinkMessage::NewLink(va));
    set_up("va");
    set_up("vb");
    (index("va"), index("vb"))
}

/// Removes the device `name`, and its peer with it.
pub(crate) fn remove(name: &str) {
    let mut device = LinkMessage::default();
    device.attributes.push(LinkAttribute::IfName(name.into()));
    ask(RouteNetlinkMessage::DelLink(device));
}

fn enter() -> io::Result<()> {
    // SAFETY: takes no pointers; concerns this thread only.
    if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // Neighbour discovery would send packets of its own.
    match std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1") {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn device(name: &str, queues: u32) -> LinkMessage {
    let mut device = LinkMessage::default();
    let queues = [LinkAttribute::NumTxQueues(queues), LinkAttribute::NumRxQueues(queues)];
    device.attributes.push(LinkAttribute::IfName(name.into()));
    device.attributes.extend(queues);
    device.attributes.push(LinkAttribute::Mtu(MTU));
    device
}

/// One end cannot come up before the other exists (`veth_open`: ENOTCONN), so not while they are made.
fn set_up(name: &str) {
    let mut device = LinkMessage::default();
    (device.header.flags, device.header.change_mask) = (LinkFlags::Up, LinkFlags::Up);
    device.attributes.push(LinkAttribute::IfName(name.into()));
    ask(RouteNetlinkMessage::SetLink(device));
}

fn ask(message: RouteNetlinkMessage) {
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_ACK;
    if matches!(message, RouteNetlinkMessage::NewLink(_)) {
        header.flags |= NLM_F_CREATE | NLM_F_EXCL;
    }
    let mut request = NetlinkMessage::new(header, NetlinkPayload::from(message));
    request.finalize();
    let mut bytes = vec![0; request.buffer_len()];
    request.serialize(&mut bytes);
    match answer(&bytes).expect("netlink").payload {
        NetlinkPayload::Error(error) if error.code.is_none() => {}
        other => panic!("netlink refused: {other:?}"),
    }
}

fn answer(request: &[u8]) -> io::Result<NetlinkMessage<RouteNetlinkMessage>> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.send_to(request, &SocketAddr::new(0, 0), 0)?;
    let (answer, _) = socket.recv_from_full()?;
    NetlinkMessage::deserialize(&answer).map_err(io::Error::other)
}

fn index(name: &str) -> u32 {
    let name = CString::new(name).expect("no zero byte in a device name");
    // SAFETY: a C string.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    assert_ne!(index, 0, "{name:?} was not made");
    index
}
