//! A socket that a process asks to be lifted, as the kernel describes it.

use crate::{rules::Want, sys};
use nix::sys::socket::{SockaddrStorage, getpeername, getsockname};
use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsRawFd, BorrowedFd},
};

/// An AF_INET or AF_INET6 UDP socket.
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
}

impl Endpoint {
    /// Asks the kernel about `fd`.
    ///
    /// # Errors
    /// `ENOTSOCK` or `EPROTONOSUPPORT` for anything but a UDP socket of this network namespace.
    pub(crate) fn examine(fd: BorrowedFd<'_>, netns_cookie: Option<u64>) -> io::Result<Self> {
        let option = |name| sys::option_i32(fd, libc::SOL_SOCKET, name);
        let domain = option(libc::SO_DOMAIN)?;
        let udp =
            option(libc::SO_TYPE)? == libc::SOCK_DGRAM && option(libc::SO_PROTOCOL)? == libc::IPPROTO_UDP;
        if !udp || !matches!(domain, libc::AF_INET | libc::AF_INET6) || netns(fd) != netns_cookie {
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
        })
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
    use std::{net::UdpSocket, os::fd::AsFd};

    #[test]
    fn a_socket_is_described_as_the_kernel_sees_it() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let endpoint = Endpoint::examine(socket.as_fd(), netns(socket.as_fd())).unwrap();
        assert_eq!(endpoint.local, socket.local_addr().unwrap());
        assert_eq!((endpoint.peer, endpoint.dual, endpoint.ifindex), (None, false, 0));
        socket.connect("127.0.0.1:9").unwrap();
        let endpoint = Endpoint::examine(socket.as_fd(), netns(socket.as_fd())).unwrap();
        assert_eq!(endpoint.peer, Some("127.0.0.1:9".parse().unwrap()));
    }

    #[test]
    fn what_is_no_udp_socket_of_this_namespace_is_refused() {
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let here = netns(udp.as_fd());
        let file = std::fs::File::open("/proc/self/comm").unwrap();
        let errno = |result: io::Result<Endpoint>| result.unwrap_err().raw_os_error();
        assert_eq!(errno(Endpoint::examine(file.as_fd(), here)), Some(libc::ENOTSOCK));
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        assert_eq!(errno(Endpoint::examine(tcp.as_fd(), here)), Some(libc::EPROTONOSUPPORT));
        let elsewhere = here.map(|cookie| cookie + 1);
        assert_eq!(errno(Endpoint::examine(udp.as_fd(), elsewhere)), Some(libc::EPROTONOSUPPORT));
    }
}
