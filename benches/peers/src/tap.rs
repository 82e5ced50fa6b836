//! AF_PACKET sockets: which frames they take, and where from.
#![allow(unsafe_code)]

use nix::net::if_::if_nametoindex;
use std::{
    io, mem,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

/// Bytes of Ethernet, IPv4 and UDP headers. The filter lets no IPv4 options through.
pub const UDP_HEADERS: usize = 42;

/// What goes over IPv4.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// UDP.
    Udp,
    /// TCP.
    Tcp,
}

impl Protocol {
    pub(crate) fn number(self) -> u8 {
        match self {
            Self::Udp => 17,
            Self::Tcp => 6,
        }
    }
}

/// Opens a socket that takes whole frames and is bound to nothing yet.
pub fn open() -> io::Result<OwnedFd> {
    // SAFETY: takes three integers.
    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just returned this descriptor, and nobody else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Takes all frames of a device from here on.
pub fn bind(socket: &impl AsRawFd, device: &str) -> io::Result<()> {
    // SAFETY: an all-zero sockaddr_ll is a valid one.
    let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
    address.sll_ifindex = if_nametoindex(device)? as i32;
    let length = mem::size_of_val(&address) as u32;
    // SAFETY: passes a sockaddr_ll that outlives the call, and its size.
    match unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Lets through only what arrives by `protocol` for `port`, and ARP.
pub fn narrow(socket: &impl AsRawFd, protocol: Protocol, port: u16) -> io::Result<()> {
    let filter = filter(protocol, port);
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_ptr().cast_mut() };
    set(socket, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program)?;
    set(socket, libc::SOL_PACKET, PACKET_IGNORE_OUTGOING, &1i32)
}

const PACKET_IGNORE_OUTGOING: i32 = 23; // Linux 4.20

/// setsockopt. `value` is what the option takes.
pub fn set<T>(socket: &impl AsRawFd, level: i32, option: i32, value: &T) -> io::Result<()> {
    let length = mem::size_of_val(value) as u32;
    // SAFETY: passes a value that outlives the call, and its size.
    match unsafe {
        libc::setsockopt(socket.as_raw_fd(), level, option, std::ptr::from_ref(value).cast(), length)
    } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Classic BPF (Documentation/networking/filter.rst).
fn filter(protocol: Protocol, port: u16) -> [libc::sock_filter; 11] {
    let op = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    [
        op(LOAD_HALF, 0, 0, 12), // the EtherType
        op(JUMP_EQUAL, 7, 0, 0x0806),
        op(JUMP_EQUAL, 0, 7, 0x0800),
        op(LOAD_BYTE, 0, 0, 14), // IPv4's version and header length
        op(JUMP_EQUAL, 0, 5, 0x45),
        op(LOAD_BYTE, 0, 0, 23), // its protocol
        op(JUMP_EQUAL, 0, 3, protocol.number().into()),
        op(LOAD_HALF, 0, 0, 36), // the destination port
        op(JUMP_EQUAL, 0, 1, port.into()),
        op(RETURN, 0, 0, u32::MAX),
        op(RETURN, 0, 0, 0),
    ]
}

const LOAD_HALF: u16 = 0x28;
const LOAD_BYTE: u16 = 0x30;
const JUMP_EQUAL: u16 = 0x15;
const RETURN: u16 = 0x06;

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel would do, for the four instructions in use.
    fn verdict(filter: &[libc::sock_filter], frame: &[u8]) -> u32 {
        let (mut at, mut accumulator) = (0, 0);
        loop {
            let op = &filter[at];
            let k = op.k as usize;
            at += 1;
            match op.code {
                LOAD_HALF => accumulator = u16::from_be_bytes([frame[k], frame[k + 1]]).into(),
                LOAD_BYTE => accumulator = frame[k].into(),
                JUMP_EQUAL => at += usize::from(if accumulator == op.k { op.jt } else { op.jf }),
                RETURN => return op.k,
                other => panic!("{other:#x}"),
            }
        }
    }

    fn frame(ethertype: u16, version: u8, protocol: u8, port: u16) -> [u8; 64] {
        let mut frame = [0; 64];
        frame[12..14].copy_from_slice(&ethertype.to_be_bytes());
        (frame[14], frame[23]) = (version, protocol);
        frame[36..38].copy_from_slice(&port.to_be_bytes());
        frame
    }

    #[test]
    fn the_filter_takes_the_port_and_arp_and_nothing_else() {
        let udp = filter(Protocol::Udp, 9000);
        assert_eq!(verdict(&udp, &frame(0x0800, 0x45, 17, 9000)), u32::MAX);
        assert_eq!(verdict(&udp, &frame(0x0806, 0, 0, 0)), u32::MAX);
        for other in [
            frame(0x0800, 0x45, 17, 9001),
            frame(0x0800, 0x45, 6, 9000),
            frame(0x0800, 0x46, 17, 9000),
            frame(0x86dd, 0x45, 17, 9000),
        ] {
            assert_eq!(verdict(&udp, &other), 0);
        }
    }
}
