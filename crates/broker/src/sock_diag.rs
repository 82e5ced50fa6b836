//! Which UDP sockets there are, whoever owns them (NETLINK_SOCK_DIAG, sock_diag(7)).

use crate::{
    error::{Context, Error},
    netlink,
    rules::Want,
};
use netlink_sys::{Socket, protocols::NETLINK_SOCK_DIAG};
use std::{
    io,
    net::{IpAddr, Ipv6Addr},
};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const INET_DIAG_SKV6ONLY: u16 = 11;
const REQUEST: usize = 16 + 56;
/// nlmsghdr and inet_diag_msg, before the attributes.
const MESSAGE: usize = 16 + 72;

/// One UDP socket of this network namespace.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Entry {
    pub(crate) local: IpAddr,
    pub(crate) port: u16,
    /// Takes IPv4 although it is an IPv6 wildcard.
    pub(crate) dual: bool,
    pub(crate) cookie: u64,
    pub(crate) inode: u32,
}

impl Entry {
    /// Whether Linux could deliver a packet meant for `want` to this socket.
    pub(crate) fn meets(&self, want: &Want) -> bool {
        let own =
            Want { local: self.local, dual: self.dual, port: self.port, ifindex: 0, groups: Vec::new() };
        let both_any = self.local.is_unspecified() && want.local.is_unspecified();
        let families_meet = self.local.is_ipv4() == want.local.is_ipv4() || self.dual || want.dual;
        self.port == want.port
            && (own.takes(want.local) || want.takes(self.local) || (both_any && families_meet))
    }
}

/// A socket to ask with.
pub(crate) struct SockDiag(Socket);

impl SockDiag {
    pub(crate) fn open() -> Result<Self, Error> {
        netlink::open(NETLINK_SOCK_DIAG).context("open a sock_diag socket").map(Self)
    }

    /// UDP sockets bound to `port`; all that are bound if None.
    pub(crate) fn udp(&self, port: Option<u16>) -> Result<Vec<Entry>, Error> {
        let mut entries = Vec::new();
        for family in [libc::AF_INET, libc::AF_INET6] {
            let list = self
                .0
                .send(&request(family as u8, port.unwrap_or(0)), 0)
                .and_then(|_| self.collect(&mut entries));
            list.context("list the UDP sockets (sock_diag)")?;
        }
        Ok(entries)
    }

    fn collect(&self, entries: &mut Vec<Entry>) -> io::Result<()> {
        while parse(&self.0.recv_from_full()?.0, entries)? {}
        Ok(())
    }
}

/// nlmsghdr, then inet_diag_req_v2: family, protocol, extensions, pad, states, sockid.
fn request(family: u8, port: u16) -> [u8; REQUEST] {
    let mut bytes = [0; REQUEST];
    let flags = (libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16;
    bytes[..4].copy_from_slice(&(REQUEST as u32).to_ne_bytes());
    bytes[4..6].copy_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
    bytes[16] = family;
    bytes[17] = libc::IPPROTO_UDP as u8;
    bytes[20..24].copy_from_slice(&u32::MAX.to_ne_bytes());
    bytes[24..26].copy_from_slice(&port.to_be_bytes());
    bytes
}

/// Reads one datagram of a dump; false: it was the last.
fn parse(mut bytes: &[u8], entries: &mut Vec<Entry>) -> io::Result<bool> {
    while bytes.len() >= 16 {
        let len = u32_at(bytes, 0) as usize;
        let message = bytes.get(..len).filter(|m| m.len() >= 16).ok_or(io::ErrorKind::InvalidData)?;
        match u16::from_ne_bytes([bytes[4], bytes[5]]) {
            3 => return Ok(false),
            2 => {
                return Err(io::Error::from_raw_os_error(
                    -(u32_at(message.get(..20).ok_or(io::ErrorKind::InvalidData)?, 16) as i32),
                ));
            }
            SOCK_DIAG_BY_FAMILY => entries.extend(entry(message)),
            _ => {}
        }
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(true)
}

fn entry(message: &[u8]) -> Option<Entry> {
    let (fixed, attributes) = message.split_at_checked(MESSAGE)?;
    let v6 = i32::from(fixed[16]) == libc::AF_INET6;
    let address: [u8; 16] = fixed[24..40].try_into().ok()?;
    let local = if v6 {
        IpAddr::V6(Ipv6Addr::from(address)).to_canonical()
    } else {
        IpAddr::from([address[0], address[1], address[2], address[3]])
    };
    Some(Entry {
        local,
        port: u16::from_be_bytes([fixed[20], fixed[21]]),
        dual: v6 && local == IpAddr::V6(Ipv6Addr::UNSPECIFIED) && !v6only(attributes),
        cookie: u64::from(u32_at(fixed, 60)) | u64::from(u32_at(fixed, 64)) << 32,
        inode: u32_at(fixed, 84),
    })
}

/// The attribute is there for IPv6 sockets (inet_diag_msg_attrs_fill).
fn v6only(mut attributes: &[u8]) -> bool {
    while attributes.len() >= 5 {
        let len = usize::from(u16::from_ne_bytes([attributes[0], attributes[1]]));
        let kind = u16::from_ne_bytes([attributes[2], attributes[3]]);
        if kind == INET_DIAG_SKV6ONLY {
            return attributes[4] != 0;
        }
        attributes = attributes.get(len.max(4).next_multiple_of(4)..).unwrap_or_default();
    }
    false
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;

    #[test]
    fn a_socket_of_this_process_is_found_with_its_address() {
        let v4 = UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = v4.local_addr().unwrap().port();
        let v6 = UdpSocket::bind(("::1", port)).unwrap();
        let found = SockDiag::open().unwrap().udp(Some(port)).unwrap();
        let locals: Vec<_> = found.iter().map(|e| (e.local, e.port, e.dual)).collect();
        assert_eq!(
            locals,
            [(v4.local_addr().unwrap().ip(), port, false), (v6.local_addr().unwrap().ip(), port, false)]
        );
        assert!(found.iter().all(|e| e.cookie != 0 && e.inode != 0));
    }

    #[test]
    fn an_ipv6_wildcard_is_dual_unless_v6only() {
        let dual = UdpSocket::bind("[::]:0").unwrap();
        let port = dual.local_addr().unwrap().port();
        let found = SockDiag::open().unwrap().udp(Some(port)).unwrap();
        assert!(found.iter().any(|e| e.dual && e.port == port));
    }

    #[test]
    fn sockets_meet_when_a_packet_could_go_to_either() {
        let entry =
            |local: &str, dual| Entry { local: local.parse().unwrap(), port: 53, dual, cookie: 1, inode: 1 };
        let want = |local: &str, dual| Want {
            local: local.parse().unwrap(),
            dual,
            port: 53,
            ifindex: 0,
            groups: vec![],
        };
        assert!(entry("0.0.0.0", false).meets(&want("10.0.0.1", false)));
        assert!(entry("10.0.0.1", false).meets(&want("0.0.0.0", false)));
        assert!(entry("10.0.0.1", false).meets(&want("::", true)));
        assert!(entry("::", true).meets(&want("0.0.0.0", false)));
        assert!(entry("0.0.0.0", false).meets(&want("0.0.0.0", false)));
        assert!(!entry("10.0.0.2", false).meets(&want("10.0.0.1", false)));
        assert!(!entry("::", false).meets(&want("0.0.0.0", false)));
        assert!(!entry("10.0.0.1", false).meets(&Want { port: 54, ..want("10.0.0.1", false) }));
    }

    #[test]
    fn garbage_from_the_kernel_is_an_error_or_ignored_never_a_panic() {
        for len in 0..200_usize {
            let mut bytes = vec![0xff; len];
            let _ = parse(&bytes, &mut Vec::new());
            bytes.iter_mut().for_each(|b| *b = len as u8);
            let _ = parse(&bytes, &mut Vec::new());
        }
        assert!(entry(&[0; MESSAGE - 1]).is_none());
    }
}
