//! Which UDP sockets there are, whoever owns them, and what TCP has sent (NETLINK_SOCK_DIAG, sock_diag(7)).

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
const INET_DIAG_INFO: u16 = 2;
const INET_DIAG_SKV6ONLY: u16 = 11;
/// TCP sockets that have something to send: not TCP_TIME_WAIT, TCP_LISTEN, TCP_NEW_SYN_RECV.
const STATES: u32 = !(1 << 6 | 1 << 10 | 1 << 12);
/// Where `tcp_info` has tcpi_bytes_sent; tcpi_bytes_retrans follows (Linux 4.19).
const BYTES_SENT: usize = 200;
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
    /// It has a peer.
    pub(crate) connected: bool,
    pub(crate) cookie: u64,
    pub(crate) inode: u32,
}

impl Entry {
    /// Whether Linux could deliver a packet meant for `want` to this socket.
    pub(crate) fn meets(&self, want: &Want) -> bool {
        let own =
            Want { local: self.local, dual: self.dual, port: self.port, ifindex: 0, groups: Vec::new() };
        self.port == want.port && own.meets(want)
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
        let query = Query { protocol: libc::IPPROTO_UDP, states: u32::MAX, attribute: None };
        self.list(&query, port.unwrap_or(0), entry).context("list the UDP sockets (sock_diag)")
    }

    /// For each TCP connection, by cookie, how many bytes it has sent, retransmissions left out.
    pub(crate) fn tcp_sent(&self) -> Result<Vec<(u64, u64)>, Error> {
        let query = Query { protocol: libc::IPPROTO_TCP, states: STATES, attribute: Some(INET_DIAG_INFO) };
        self.list(&query, 0, sent).context("list the TCP sockets (sock_diag)")
    }

    fn list<T>(&self, query: &Query, port: u16, read: fn(&[u8]) -> Option<T>) -> io::Result<Vec<T>> {
        let mut found = Vec::new();
        for family in [libc::AF_INET, libc::AF_INET6] {
            self.0.send(&query.request(family as u8, port), 0)?;
            while parse(&self.0.recv_from_full()?.0, read, &mut found)? {}
        }
        Ok(found)
    }
}

/// What is asked for.
struct Query {
    protocol: i32,
    /// One bit for each TCP state.
    states: u32,
    /// To come along.
    attribute: Option<u16>,
}

impl Query {
    /// nlmsghdr, then inet_diag_req_v2: family, protocol, extensions, pad, states, sockid.
    fn request(&self, family: u8, port: u16) -> [u8; REQUEST] {
        let mut bytes = [0; REQUEST];
        let flags = (libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16;
        bytes[..4].copy_from_slice(&(REQUEST as u32).to_ne_bytes());
        bytes[4..6].copy_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
        bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        bytes[16] = family;
        bytes[17] = self.protocol as u8;
        bytes[18] = self.attribute.map_or(0, |attribute| 1 << (attribute - 1));
        bytes[20..24].copy_from_slice(&self.states.to_ne_bytes());
        bytes[24..26].copy_from_slice(&port.to_be_bytes());
        bytes
    }
}

/// Reads one datagram of a dump; false: it was the last.
fn parse<T>(mut bytes: &[u8], read: fn(&[u8]) -> Option<T>, found: &mut Vec<T>) -> io::Result<bool> {
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
            SOCK_DIAG_BY_FAMILY => found.extend(read(message)),
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
        connected: fixed[22..24] != [0, 0],
        cookie: cookie(fixed),
        inode: u32_at(fixed, 84),
    })
}

fn cookie(fixed: &[u8]) -> u64 {
    u64::from(u32_at(fixed, 60)) | u64::from(u32_at(fixed, 64)) << 32
}

/// Cookie and bytes sent.
fn sent(message: &[u8]) -> Option<(u64, u64)> {
    let (fixed, attributes) = message.split_at_checked(MESSAGE)?;
    let info = attribute(attributes, INET_DIAG_INFO)?;
    let counter = |at: usize| Some(u64::from_ne_bytes(info.get(at..at + 8)?.try_into().ok()?));
    Some((cookie(fixed), counter(BYTES_SENT)?.saturating_sub(counter(BYTES_SENT + 8)?)))
}

/// The attribute is there for IPv6 sockets (inet_diag_msg_attrs_fill).
fn v6only(attributes: &[u8]) -> bool {
    attribute(attributes, INET_DIAG_SKV6ONLY).and_then(<[u8]>::first).is_some_and(|&only| only != 0)
}

/// What stands in the attribute `kind`.
fn attribute(mut attributes: &[u8], kind: u16) -> Option<&[u8]> {
    while attributes.len() >= 4 {
        let len = usize::from(u16::from_ne_bytes([attributes[0], attributes[1]])).max(4);
        if u16::from_ne_bytes([attributes[2], attributes[3]]) == kind {
            return attributes.get(4..len);
        }
        attributes = attributes.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    None
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        io::Write,
        net::{TcpListener, TcpStream, UdpSocket},
        os::fd::AsFd,
    };

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
    fn what_a_connection_has_sent_is_told() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        stream.write_all(&[7; 1000]).unwrap();
        let cookie = crate::sys::option_u64(stream.as_fd(), libc::SOL_SOCKET, libc::SO_COOKIE).unwrap();
        let sent = SockDiag::open().unwrap().tcp_sent().unwrap();
        assert!(sent.contains(&(cookie, 1000)));
    }

    #[test]
    fn sockets_meet_when_a_packet_could_go_to_either() {
        let entry = |local: &str, dual| Entry {
            local: local.parse().unwrap(),
            port: 53,
            dual,
            connected: false,
            cookie: 1,
            inode: 1,
        };
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
            let _ = parse(&bytes, entry, &mut Vec::new());
            let _ = parse(&bytes, sent, &mut Vec::new());
            bytes.iter_mut().for_each(|b| *b = len as u8);
            let _ = parse(&bytes, entry, &mut Vec::new());
            let _ = parse(&bytes, sent, &mut Vec::new());
        }
        assert!(entry(&[0; MESSAGE - 1]).is_none());
    }
}
