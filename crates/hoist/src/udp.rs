//! UDP.

use crate::{Chunk, sys};
use std::{
    io,
    net::{self, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs},
    os::fd::AsFd,
    time::Duration,
};

/// A UDP socket; [`std::net::UdpSocket`] with [`recv_chunk`](Self::recv_chunk).
#[derive(Debug)]
pub struct UdpSocket(net::UdpSocket);

wraps! { UdpSocket }

impl UdpSocket {
    /// Binds, as [`std::net::UdpSocket::bind`].
    ///
    /// # Errors
    /// Those of the `std` function.
    pub fn bind(at: impl ToSocketAddrs) -> io::Result<Self> {
        net::UdpSocket::bind(at).map(Self)
    }

    /// Chooses the only peer, as [`std::net::UdpSocket::connect`].
    ///
    /// # Errors
    /// Those of the `std` function.
    pub fn connect(&self, to: impl ToSocketAddrs) -> io::Result<()> {
        self.0.connect(to)
    }

    /// Sends a datagram, as [`std::net::UdpSocket::send_to`].
    ///
    /// # Errors
    /// Those of the `std` function.
    pub fn send_to(&self, bytes: &[u8], to: impl ToSocketAddrs) -> io::Result<usize> {
        self.0.send_to(bytes, to)
    }

    /// Takes the next datagram, all of it, and tells its sender. Waits as `recv_from` does.
    ///
    /// # Errors
    /// Those of recvfrom(2): [`WouldBlock`](io::ErrorKind::WouldBlock) when nonblocking or after
    /// [`set_read_timeout`](Self::set_read_timeout), [`Interrupted`](io::ErrorKind::Interrupted) by a signal.
    pub fn recv_chunk(&self) -> io::Result<(Chunk, SocketAddr)> {
        sys::recv_from(self.as_fd())
    }

    delegate! { UdpSocket:
        fn recv_from(buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)>;
        fn recv(buffer: &mut [u8]) -> io::Result<usize>;
        fn peek_from(buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)>;
        fn peek(buffer: &mut [u8]) -> io::Result<usize>;
        fn send(bytes: &[u8]) -> io::Result<usize>;
        fn peer_addr() -> io::Result<SocketAddr>;
        fn local_addr() -> io::Result<SocketAddr>;
        fn set_nonblocking(on: bool) -> io::Result<()>;
        fn set_read_timeout(limit: Option<Duration>) -> io::Result<()>;
        fn read_timeout() -> io::Result<Option<Duration>>;
        fn set_write_timeout(limit: Option<Duration>) -> io::Result<()>;
        fn write_timeout() -> io::Result<Option<Duration>>;
        fn set_broadcast(on: bool) -> io::Result<()>;
        fn broadcast() -> io::Result<bool>;
        fn set_ttl(ttl: u32) -> io::Result<()>;
        fn ttl() -> io::Result<u32>;
        fn set_multicast_loop_v4(on: bool) -> io::Result<()>;
        fn set_multicast_ttl_v4(ttl: u32) -> io::Result<()>;
        fn set_multicast_loop_v6(on: bool) -> io::Result<()>;
        fn join_multicast_v4(group: &Ipv4Addr, interface: &Ipv4Addr) -> io::Result<()>;
        fn leave_multicast_v4(group: &Ipv4Addr, interface: &Ipv4Addr) -> io::Result<()>;
        fn join_multicast_v6(group: &Ipv6Addr, interface: u32) -> io::Result<()>;
        fn leave_multicast_v6(group: &Ipv6Addr, interface: u32) -> io::Result<()>;
        fn take_error() -> io::Result<Option<io::Error>>;
    }
}
