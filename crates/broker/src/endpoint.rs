//! A socket that a process asks to be lifted, as the kernel describes it.

use crate::{rules::Want, sock_diag::Entry, sys};
use nix::sys::socket::{SockaddrStorage, getpeername, getsockname};
use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsRawFd, BorrowedFd},
};

/// What kind of socket it must be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Protocol {
    Udp,
    Tcp,
}

impl Protocol {
    /// SO_TYPE and SO_PROTOCOL.
    fn numbers(self) -> (i32, i32) {
        match self {
            Self::Udp => (libc::SOCK_DGRAM, libc::IPPROTO_UDP),
            Self::Tcp => (libc::SOCK_STREAM, libc::IPPROTO_TCP),
        }
    }
}

/// An AF_INET or AF_INET6 socket.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Endpoint {
    /// SO_COOKIE.
    pub(crate) cookie: u64,
    /// Local address; IPv4-mapped ones as IPv4.
    pub(crate) local: SocketAddr,
    /// Peer, if connected.
    pub(crate) peer: Option<SocketAddr>,
    /// An IPv6 socket that takes IPv4 too.
    pub(crate) dual: bool,
    /// Device it is bound to, or the scope of its link-local address; 0: any.
    pub(crate) ifindex: u32,
    /// SO_REUSEPORT.
    pub(crate) reuseport: bool,
}

impl Endpoint {
    /// Asks the kernel about `fd`.
    ///
    /// # Errors
    /// `ENOTSOCK` or `EPROTONOSUPPORT` for anything but a socket of `protocol` in this network namespace.
    pub(crate) fn examine(
        fd: BorrowedFd<'_>,
        protocol: Protocol,
        netns_cookie: Option<u64>,
    ) -> io::Result<Self> {
        let option = |name| sys::option_i32(fd, libc::SOL_SOCKET, name);
        let domain = option(libc::SO_DOMAIN)?;
        let kind = (option(libc::SO_TYPE)?, option(libc::SO_PROTOCOL)?);
        if kind != protocol.numbers()
            || !matches!(domain, libc::AF_INET | libc::AF_INET6)
            || netns(fd) != netns_cookie
        {
            return Err(io::Error::from_raw_os_error(libc::EPROTONOSUPPORT));
        }
        let address = getsockname::<SockaddrStorage>(fd.as_raw_fd())?;
        let (local, scope) =
            socket_address(&address).ok_or(io::Error::from_raw_os_error(libc::EAFNOSUPPORT))?;
        let peer = getpeername::<SockaddrStorage>(fd.as_raw_fd()).ok();
        let v6only =
            domain == libc::AF_INET6 && sys::option_i32(fd, libc::IPPROTO_IPV6, libc::IPV6_V6ONLY)? != 0;
        let device = option(libc::SO_BINDTOIFINDEX)? as u32;
        Ok(Self {
            cookie: sys::option_u64(fd, libc::SOL_SOCKET, libc::SO_COOKIE)?,
            dual: domain == libc::AF_INET6 && !v6only,
            ifindex: if device == 0 { scope } else { device },
            peer: peer.as_ref().and_then(socket_address).map(|(peer, _)| peer),
            local,
            reuseport: option(libc::SO_REUSEPORT)? != 0,
        })
    }

    /// Whether Linux spreads flows over the two (`reuseport_add_sock`: same address, port, family, device and user; users are the
    /// pool's matter).
    pub(crate) fn is_mate_of(&self, other: &Self) -> bool {
        let name = |e: &Self| (e.local, e.dual, e.ifindex);
        let open = |e: &Self| e.reuseport && e.peer.is_none();
        name(self) == name(other) && open(self) && open(other)
    }

    /// The same of one that is known by sock_diag only, which does not tell whether it has SO_REUSEPORT: Linux lets two have the same
    /// name only if both have.
    pub(crate) fn could_be_mate_of(&self, entry: &Entry) -> bool {
        let dual = self.dual && self.local.ip().is_unspecified();
        let named_alike = self.local == SocketAddr::new(entry.local, entry.port) && dual == entry.dual;
        self.reuseport && self.peer.is_none() && named_alike && !entry.connected
    }

    /// What rules need to know.
    pub(crate) fn want(&self) -> Want {
        let local = self.local.ip();
        let dual = self.dual && local.is_ipv6();
        Want { local, dual, port: self.local.port(), ifindex: self.ifindex, groups: Vec::new() }
    }
}

/// SO_NETNS_COOKIE (Linux 5.14).
pub(crate) fn netns(fd: BorrowedFd<'_>) -> Option<u64> {
    const SO_NETNS_COOKIE: i32 = 71;
    sys::option_u64(fd, libc::SOL_SOCKET, SO_NETNS_COOKIE).ok()
}

fn socket_address(address: &SockaddrStorage) -> Option<(SocketAddr, u32)> {
    if let Some(v4) = address.as_sockaddr_in() {
        return Some((SocketAddr::new(IpAddr::V4(v4.ip()), v4.port()), 0));
    }
    let v6 = address.as_sockaddr_in6()?;
    Some((SocketAddr::new(IpAddr::V6(v6.ip()).to_canonical(), v6.port()), v6.scope_id()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        net::{TcpListener, TcpStream, UdpSocket},
        os::fd::AsFd,
    };

    fn examine(fd: &impl AsFd, protocol: Protocol) -> Result<Endpoint, Option<i32>> {
        let here = netns(UdpSocket::bind("127.0.0.1:0").unwrap().as_fd());
        Endpoint::examine(fd.as_fd(), protocol, here).map_err(|error| error.raw_os_error())
    }

    #[test]
    fn a_socket_is_described_as_the_kernel_sees_it() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let endpoint = examine(&socket, Protocol::Udp).unwrap();
        assert_eq!(endpoint.local, socket.local_addr().unwrap());
        assert_eq!((endpoint.peer, endpoint.dual, endpoint.ifindex), (None, false, 0));
        socket.connect("127.0.0.1:9").unwrap();
        assert_eq!(examine(&socket, Protocol::Udp).unwrap().peer, Some("127.0.0.1:9".parse().unwrap()));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        assert_eq!(examine(&listener, Protocol::Tcp).unwrap().peer, None);
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let endpoint = examine(&stream, Protocol::Tcp).unwrap();
        assert_eq!(
            (endpoint.local, endpoint.peer),
            (stream.local_addr().unwrap(), listener.local_addr().ok())
        );
    }

    #[test]
    fn what_is_no_such_socket_of_this_namespace_is_refused() {
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let file = std::fs::File::open("/proc/self/comm").unwrap();
        assert_eq!(examine(&file, Protocol::Udp), Err(Some(libc::ENOTSOCK)));
        assert_eq!(examine(&tcp, Protocol::Udp), Err(Some(libc::EPROTONOSUPPORT)));
        assert_eq!(examine(&udp, Protocol::Tcp), Err(Some(libc::EPROTONOSUPPORT)));
        let elsewhere = netns(udp.as_fd()).map(|cookie| cookie + 1);
        let refused = Endpoint::examine(udp.as_fd(), Protocol::Udp, elsewhere).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EPROTONOSUPPORT));
    }
}
