//! What the kernel's netdev family tells of a device: its NAPI instances, and what of XDP it can do
//! (Documentation/netlink/specs/netdev.yaml).

#![deny(unsafe_code)]

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_GENERIC};
use std::{
    fs, io,
    os::fd::{AsRawFd, BorrowedFd},
};

/// A NAPI instance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Napi {
    /// Its id, as SO_INCOMING_NAPI_ID tells it.
    pub id: u32,
    /// Its kernel thread, if the device is in threaded mode.
    pub thread: Option<i32>,
    /// How it holds interrupts back (Linux 6.13; before, 0 whatever the device's setting).
    pub deferral: Deferral,
}

/// When NAPI leaves interrupts off although it found its ring empty (`napi_complete_done`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Deferral {
    /// Empty polls in a row after which interrupts are on again; 0: at once.
    pub hard_irqs: u32,
    /// Nanoseconds from one such poll to the next.
    pub timeout_ns: u64,
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
///
/// # Errors
/// netlink's; a kernel before 6.8 does not tell.
pub fn of_device(ifindex: u32) -> io::Result<Vec<Napi>> {
    let (socket, family) = open()?;
    let device = attribute(NAPI_IFINDEX, &ifindex.to_ne_bytes());
    let replies = talk(&socket, family, NETDEV_CMD_NAPI_GET, NLM_F_DUMP, &device)?;
    Ok(replies.iter().filter_map(|reply| parse(reply)).collect())
}

/// Sets how a NAPI instance of the calling thread's network namespace holds interrupts back.
///
/// # Errors
/// No CAP_NET_ADMIN, no such instance, or a kernel before 6.13.
pub fn set_deferral(id: u32, deferral: Deferral) -> io::Result<()> {
    let (socket, family) = open()?;
    let attributes = [
        attribute(NAPI_ID, &id.to_ne_bytes()),
        attribute(NAPI_DEFER_HARD_IRQS, &deferral.hard_irqs.to_ne_bytes()),
        attribute(NAPI_GRO_FLUSH_TIMEOUT, &deferral.timeout_ns.to_ne_bytes()),
    ];
    talk(&socket, family, NETDEV_CMD_NAPI_SET, NLM_F_ACK, &attributes.concat()).map(drop)
}

/// Lets reads of a socket run its NAPI instance for `us` microseconds, up to `budget` packets a round, in preference to
/// interrupts (`napi_busy_loop`; Linux 5.11). The socket knows its instance once it has received a packet from it.
///
/// # Errors
/// No CAP_NET_ADMIN.
pub fn busy_poll(socket: BorrowedFd<'_>, us: u32, budget: u32) -> io::Result<()> {
    set_option(socket, libc::SO_PREFER_BUSY_POLL, 1)?;
    set_option(socket, libc::SO_BUSY_POLL_BUDGET, budget as i32)?;
    set_option(socket, libc::SO_BUSY_POLL, us.min(i32::MAX as u32) as i32)
}

#[expect(unsafe_code, reason = "nix has no name for these options")]
fn set_option(socket: BorrowedFd<'_>, option: i32, value: i32) -> io::Result<()> {
    let len = size_of::<i32>() as libc::socklen_t;
    // SAFETY: value is readable for len bytes; the kernel keeps no pointer to it.
    let result = unsafe {
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, option, (&raw const value).cast(), len)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Whether frames of XDP programs can be sent from device `ifindex` (ndo_xdp_xmit).
///
/// # Errors
/// netlink's; a kernel before 6.3 does not tell.
pub fn sends_frames(ifindex: u32) -> io::Result<bool> {
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
const NETDEV_CMD_NAPI_SET: u8 = 14;
const DEV_IFINDEX: u16 = 1;
const DEV_XDP_FEATURES: u16 = 3;
const NDO_XMIT: u64 = 4;
const NAPI_IFINDEX: u16 = 1;
const NAPI_ID: u16 = 2;
const NAPI_PID: u16 = 4;
const NAPI_DEFER_HARD_IRQS: u16 = 5;
const NAPI_GRO_FLUSH_TIMEOUT: u16 = 6;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
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
    let word = |kind| number(find(attributes, kind)?);
    let deferral = Deferral {
        hard_irqs: word(NAPI_DEFER_HARD_IRQS).unwrap_or(0) as u32,
        timeout_ns: word(NAPI_GRO_FLUSH_TIMEOUT).unwrap_or(0),
    };
    Some(Napi { id: word(NAPI_ID)? as u32, thread: word(NAPI_PID).map(|pid| pid as i32), deferral })
}

/// Of 32 or 64 bits: netlink's `uint` is as short as its value allows.
fn number(bytes: &[u8]) -> Option<u64> {
    match *bytes {
        [a, b, c, d] => Some(u32::from_ne_bytes([a, b, c, d]).into()),
        _ => bytes.try_into().ok().map(u64::from_ne_bytes),
    }
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
        assert_eq!(parse(&bytes), Some(Napi { id: 7, ..Napi::default() }));
    }

    #[test]
    fn a_deferral_is_read_in_either_width() {
        let short = attribute(NAPI_GRO_FLUSH_TIMEOUT, &50_000u32.to_ne_bytes());
        let long = attribute(NAPI_GRO_FLUSH_TIMEOUT, &50_000u64.to_ne_bytes());
        let head =
            [attribute(NAPI_ID, &7u32.to_ne_bytes()), attribute(NAPI_DEFER_HARD_IRQS, &2u32.to_ne_bytes())];
        for timeout in [short, long] {
            let napi = parse(&[head.concat(), timeout].concat()).unwrap();
            assert_eq!(napi.deferral, Deferral { hard_irqs: 2, timeout_ns: 50_000 });
        }
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
