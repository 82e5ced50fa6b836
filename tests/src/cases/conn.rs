//! A TCP connection of a case with the peer.

use super::{Ctx, signals::Thread};
use crate::{
    peer::{Answer, Order, Peer},
    remote::Do,
    sock,
    stream::{self, Draw},
};
use std::{
    io::Result,
    net::{Ipv6Addr, SocketAddr},
    os::fd::{AsRawFd, OwnedFd, RawFd},
};

/// What carries a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    V4,
    V6,
    /// IPv4 to an IPv6 socket.
    Mapped,
}

/// The case's end and, by a conversation of its own, the peer's.
pub(super) struct Conn {
    pub(super) s: OwnedFd,
    /// Of the next byte to be read.
    pub(super) at: u64,
    number: u64,
    sent: u64,
    peer: Peer,
}

impl AsRawFd for Conn {
    fn as_raw_fd(&self) -> RawFd {
        self.s.as_raw_fd()
    }
}

impl Ctx {
    /// An address to listen on and the one by which the peer reaches it.
    pub(super) fn addresses(&mut self, kind: Kind) -> (SocketAddr, SocketAddr) {
        let port = self.port();
        match kind {
            Kind::V4 => ((self.net.host4, port).into(), (self.net.host4, port).into()),
            Kind::V6 => ((self.net.host6, port).into(), (self.net.host6, port).into()),
            Kind::Mapped => ((Ipv6Addr::UNSPECIFIED, port).into(), (self.net.host4, port).into()),
        }
    }

    /// A connection that the peer has opened, fresh: nothing was read from it.
    pub(super) fn fresh(&mut self, kind: Kind) -> Conn {
        let (at, to) = self.addresses(kind);
        let listener = sock::listening(at);
        self.accepted(&listener, to)
    }

    /// One that is accepted from a listener, fresh.
    pub(super) fn accepted(&mut self, listener: &OwnedFd, to: SocketAddr) -> Conn {
        let pending = self.pending(to);
        pending.accept(listener)
    }

    /// The peer's end alone, with the connection established or in the accept queue.
    pub(super) fn pending(&mut self, to: SocketAddr) -> Pending {
        let number = self.number();
        let mut peer = Peer::connect();
        match peer.order(&Order::Tcp(number, Do::Connect(to, None))) {
            Answer::Opened(from) => Pending { number, peer, from },
            answer => panic!("{answer:?}"),
        }
    }

    /// A connection that the case has opened, fresh.
    pub(super) fn connected(&mut self, kind: Kind) -> Conn {
        let to = self.peer_listens(kind);
        let s = sock::tcp_for(to).unwrap();
        sock::connect(&s, to).unwrap();
        self.adopt(s, to)
    }

    /// Has the peer listen; the address to connect to.
    pub(super) fn peer_listens(&mut self, kind: Kind) -> SocketAddr {
        let port = self.port();
        let at = match kind {
            Kind::V6 => SocketAddr::from((self.net.wire6, port)),
            _ => SocketAddr::from((self.net.wire4, port)),
        };
        self.peer.order(&Order::Tcp(0, Do::Listen(at)));
        match kind {
            Kind::Mapped => (self.net.wire4.to_ipv6_mapped(), port).into(),
            _ => at,
        }
    }

    /// The connection that `s` has opened to the peer's listener at `to`.
    pub(super) fn adopt(&mut self, s: OwnedFd, to: SocketAddr) -> Conn {
        let number = self.number();
        let mut peer = Peer::connect();
        let at = SocketAddr::new(to.ip().to_canonical(), to.port());
        match peer.order(&Order::Tcp(number, Do::Accept(at))) {
            Answer::Opened(_) => Conn { s, at: 0, number, sent: 0, peer },
            answer => panic!("{answer:?}"),
        }
    }

    /// One over IPv4 that the case has read from, so that it is lifted.
    pub(super) fn tcp(&mut self) -> Conn {
        let mut c = self.fresh(Kind::V4);
        c.warm();
        c
    }

    fn number(&mut self) -> u64 {
        u64::from(std::process::id()) << 32 | u64::from(self.port())
    }
}

/// A connection of which the case has no descriptor yet.
pub(super) struct Pending {
    pub(super) number: u64,
    pub(super) peer: Peer,
    pub(super) from: SocketAddr,
}

impl Pending {
    pub(super) fn accept(self, listener: &OwnedFd) -> Conn {
        let (s, from) = sock::accept(listener).unwrap();
        assert_eq!(SocketAddr::new(from.ip().to_canonical(), from.port()), self.from);
        self.with(s)
    }

    pub(super) fn with(self, s: OwnedFd) -> Conn {
        Conn { s, at: 0, number: self.number, sent: 0, peer: self.peer }
    }

    pub(super) fn write(&mut self, sizes: &[usize]) {
        self.peer.order(&Order::Tcp(self.number, write(sizes, None)));
        self.peer.order(&Order::Tcp(self.number, Do::Arrived));
    }
}

fn write(sizes: &[usize], asleep: Option<i32>) -> Do {
    Do::Write { sizes: sizes.to_vec(), gap_us: 0, asleep }
}

impl Conn {
    /// The same peer's end with another descriptor of the case.
    pub(super) fn with(self, s: OwnedFd) -> Self {
        Self { s, ..self }
    }

    /// The end that another process has told the number and position of.
    pub(super) fn of(s: OwnedFd, number: u64, at: u64) -> Self {
        Self { s, at, number, sent: 0, peer: Peer::connect() }
    }

    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// Reads, then is blocked in a read when more comes: from then on the connection is lifted.
    pub(super) fn warm(&mut self) {
        self.write(&[1, 700]);
        self.exact(701);
        self.write_when_asleep(&[3_000]);
        self.exact(3_000);
        self.finish();
    }

    #[track_caller]
    pub(super) fn order(&mut self, order: Do) -> Answer {
        self.peer.order(&Order::Tcp(self.number, order))
    }

    pub(super) fn tell(&mut self, order: Do) {
        self.peer.tell(&Order::Tcp(self.number, order));
    }

    /// Has the peer write the stream on; it may still be on its way.
    #[track_caller]
    pub(super) fn write(&mut self, sizes: &[usize]) {
        self.order(write(sizes, None));
    }

    /// The same, and waits until the kernel has acknowledged all of it.
    #[track_caller]
    pub(super) fn arrive(&mut self, sizes: &[usize]) {
        self.write(sizes);
        self.order(Do::Arrived);
    }

    /// The same without waiting for the peer; [`Conn::finish`] takes the answer.
    pub(super) fn write_later(&mut self, sizes: &[usize]) {
        self.tell(write(sizes, None));
    }

    /// The same with a pause after each, µs.
    pub(super) fn write_slowly(&mut self, sizes: &[usize], gap_us: u64) {
        self.tell(Do::Write { sizes: sizes.to_vec(), gap_us, asleep: None });
    }

    /// The same as soon as the calling thread sleeps.
    pub(super) fn write_when_asleep(&mut self, sizes: &[usize]) {
        self.tell(write(sizes, Some(Thread::this().tid())));
    }

    /// Takes the answer to something told.
    #[track_caller]
    pub(super) fn finish(&mut self) {
        self.peer.answer();
    }

    /// Compares with the stream at the position reached.
    #[track_caller]
    pub(super) fn check(&self, bytes: &[u8]) {
        stream::check(self.number, self.at, bytes);
    }

    /// Compares and goes on behind.
    #[track_caller]
    pub(super) fn advance(&mut self, bytes: &[u8]) {
        self.check(bytes);
        self.at += bytes.len() as u64;
    }

    /// recv(2) of at most `size` bytes, compared.
    #[track_caller]
    pub(super) fn take(&mut self, size: usize, flags: i32) -> Result<usize> {
        let bytes = sock::take(&self.s, size, flags)?;
        match flags & libc::MSG_PEEK {
            0 => self.advance(&bytes),
            _ => self.check(&bytes),
        }
        Ok(bytes.len())
    }

    /// Reads so much, in as many calls as it takes.
    #[track_caller]
    pub(super) fn exact(&mut self, len: usize) {
        let mut left = len;
        while left > 0 {
            let got = self.take(left.min(65_536), 0).unwrap();
            assert_ne!(got, 0, "the stream ends {left} bytes early");
            left -= got;
        }
    }

    /// Reads so much in calls of all sizes.
    #[track_caller]
    pub(super) fn exact_mixed(&mut self, len: usize, draw: &mut Draw) {
        let mut left = len;
        while left > 0 {
            let got = self.take(draw.size(1, 100_000).min(left), 0).unwrap();
            assert_ne!(got, 0, "the stream ends {left} bytes early");
            left -= got;
        }
    }

    /// Asserts that nothing can be read now.
    #[track_caller]
    pub(super) fn assert_empty(&self) {
        assert_eq!(sock::errno(sock::take(&self.s, 2048, libc::MSG_DONTWAIT)), libc::EAGAIN);
    }

    /// Asserts that the stream ends here.
    #[track_caller]
    pub(super) fn assert_end(&mut self) {
        assert_eq!(self.take(100, 0).unwrap(), 0, "more comes instead of the end");
    }

    /// Sends the case's own stream on.
    #[track_caller]
    pub(super) fn send(&mut self, len: usize) {
        let mut bytes = &stream::bytes(!self.number, self.sent, len)[..];
        self.sent += len as u64;
        while !bytes.is_empty() {
            bytes = &bytes[sock::send(&self.s, bytes).unwrap()..];
        }
    }

    /// Sends, and has the peer read and compare it.
    #[track_caller]
    pub(super) fn ask(&mut self, len: usize) {
        self.send(len);
        self.order(Do::Read(len));
    }

    /// How the peer sees the connection end: bytes before, and errno.
    #[track_caller]
    pub(super) fn peers_end(&mut self) -> (u64, i32) {
        match self.order(Do::End) {
            Answer::Ended { bytes, errno } => (bytes, errno),
            answer => panic!("{answer:?}"),
        }
    }

    /// The same after the case has closed its own.
    #[track_caller]
    pub(super) fn close(mut self) -> (u64, i32) {
        drop(std::mem::replace(&mut self.s, sock::pipe().0));
        self.peers_end()
    }
}
