//! What the kernel's netdev family tells of a device: its NAPI instances, and what of XDP it can do
//! (Documentation/netlink/specs/netdev.yaml).

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_GENERIC};
use std::{fs, io};

/// A NAPI instance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Napi {
    /// Its id, as SO_INCOMING_NAPI_ID tells it.
    pub id: u32,
    /// Its kernel thread, if the device is in threaded mode.
    pub thread: Option<i32>,
}

impl Napi {
    /// The CPU time its kernel thread has used, in nanoseconds. None without a thread.
    pub fn cpu_ns(&self) -> Option<u64> {
        thread_cpu_ns(self.thread?)
    }
}

/// The CPU time a task has used in nanoseconds, from its schedstat.
fn thread_cpu_ns(pid: i32) -> Option<u64> {
    fs::read_to_string(format!("/proc/{pid}/schedstat")).ok()?.split(' ').next()?.parse().ok()
}

/// The NAPI instances of device `ifindex` in the calling thread's network namespace.
pub(crate) fn of_device(ifindex: u32) -> io::Result<Vec<Napi>> {
    let (socket, family) = open()?;
    let device = attribute(NAPI_IFINDEX, &ifindex.to_ne_bytes());
    let replies = talk(&socket, family, NETDEV_CMD_NAPI_GET, NLM_F_DUMP, &device)?;
    Ok(replies.iter().filter_map(|reply| parse(reply)).collect())
}

/// Whether frames of XDP programs can be sent from device `ifindex` (ndo_xdp_xmit).
pub(crate) fn sends_frames(ifindex: u32) -> io::Result<bool> {
    let (socket, family) = open()?;
    let device = attribute(DEV_IFINDEX, &ifindex.to_ne_bytes());
    let replies = talk(&socket, family, NETDEV_CMD_DEV_GET, 0, &device)?;
    let features = replies.iter().find_map(|reply| find(reply, DEV_XDP_FEATURES)?.try_into().ok());
    Ok(features.map_or(0, u64::from_ne_bytes) & NDO_XMIT != 0)
}

/// A connected socket, and the number of the netdev family.
fn open() -> io::Result<(Socket, u16)> {
    let mut socket = Socket::new(NETLINK_GENERIC)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let name = attribute(CTRL_ATTR_FAMILY_NAME, b"netdev\0");
    let family = talk(&socket, GENL_ID_CTRL, CTRL_CMD_GETFAMILY, 0, &name)?
        .iter()
        .find_map(|reply| find(reply, CTRL_ATTR_FAMILY_ID).and_then(|id| id.try_into().ok()))
        .map(u16::from_ne_bytes)
        .ok_or_else(|| unsupported("the netdev netlink family"))?;
    Ok((socket, family))
}

const GENL_ID_CTRL: u16 = 0x10;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;
const NETDEV_CMD_DEV_GET: u8 = 1;
const NETDEV_CMD_NAPI_GET: u8 = 11;
const DEV_IFINDEX: u16 = 1;
const DEV_XDP_FEATURES: u16 = 3;
const NDO_XMIT: u64 = 4;
const NAPI_IFINDEX: u16 = 1;
const NAPI_ID: u16 = 2;
const NAPI_PID: u16 = 4;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_DUMP: u16 = 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const HEADERS: usize = 20; // nlmsghdr, genlmsghdr

/// Sends one request; the attributes of every reply.
fn talk(
    socket: &Socket,
    family: u16,
    command: u8,
    flags: u16,
    attributes: &[u8],
) -> io::Result<Vec<Vec<u8>>> {
    socket.send(&request(family, command, flags, attributes), 0)?;
    let mut replies = Vec::new();
    loop {
        let (bytes, _) = socket.recv_from_full()?;
        let more = flags & NLM_F_DUMP != 0;
        if collect(&bytes, &mut replies)? || !more {
            return Ok(replies);
        }
    }
}

fn request(family: u16, command: u8, flags: u16, attributes: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADERS + attributes.len());
    bytes.extend(((HEADERS + attributes.len()) as u32).to_ne_bytes());
    bytes.extend(family.to_ne_bytes());
    bytes.extend((NLM_F_REQUEST | flags).to_ne_bytes());
    bytes.extend([0; 8]);
    bytes.extend([command, 1, 0, 0]);
    bytes.extend(attributes);
    bytes
}

/// Takes the messages of one datagram; true when the dump is complete.
fn collect(mut bytes: &[u8], replies: &mut Vec<Vec<u8>>) -> io::Result<bool> {
    while let Some((length, kind)) = header(bytes) {
        let message = bytes.get(..length).ok_or(io::ErrorKind::InvalidData)?;
        match kind {
            NLMSG_DONE => return Ok(true),
            NLMSG_ERROR => return error(message).map(|()| true),
            _ => replies.push(message.get(HEADERS..).unwrap_or_default().to_vec()),
        }
        bytes = bytes.get(aligned(length)..).unwrap_or_default();
    }
    Ok(false)
}

fn header(bytes: &[u8]) -> Option<(usize, u16)> {
    let length = u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?) as usize;
    let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
    (length >= 16).then_some((length, kind))
}

fn error(message: &[u8]) -> io::Result<()> {
    let code = message.get(16..20).and_then(|code| code.try_into().ok()).map_or(0, i32::from_ne_bytes);
    match code {
        0 => Ok(()),
        code if code == -libc::ENOENT || code == -libc::EOPNOTSUPP => Err(unsupported("NAPI over netlink")),
        code => Err(io::Error::from_raw_os_error(-code)),
    }
}

fn unsupported(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, format!("this kernel lacks {what}: Linux 6.8 or newer has it"))
}

fn parse(attributes: &[u8]) -> Option<Napi> {
    let word = |kind| Some(u32::from_ne_bytes(find(attributes, kind)?.try_into().ok()?));
    Some(Napi { id: word(NAPI_ID)?, thread: word(NAPI_PID).map(|pid| pid as i32) })
}

fn find(mut attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let length = u16::from_ne_bytes(attributes.get(..2)?.try_into().ok()?) as usize;
        let kind = u16::from_ne_bytes(attributes.get(2..4)?.try_into().ok()?);
        if kind == wanted {
            return attributes.get(4..length);
        }
        attributes = attributes.get(aligned(length).max(4)..)?;
    }
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = 4 + value.len();
    let mut bytes = Vec::with_capacity(aligned(length));
    bytes.extend((length as u16).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(aligned(length), 0);
    bytes
}

fn aligned(length: usize) -> usize {
    length.next_multiple_of(4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_found_behind_padded_ones() {
        let bytes = [attribute(9, b"odd"), attribute(NAPI_ID, &7u32.to_ne_bytes())].concat();
        assert_eq!(parse(&bytes), Some(Napi { id: 7, thread: None }));
    }

    #[test]
    fn truncated_attributes_are_no_napi() {
        let bytes = attribute(NAPI_ID, &7u32.to_ne_bytes());
        for end in 0..bytes.len() {
            assert_eq!(parse(&bytes[..end]), None, "{end} bytes");
        }
    }

    #[test]
    fn a_zero_length_attribute_does_not_loop() {
        assert_eq!(find(&[0; 64], 5), None);
    }
}
