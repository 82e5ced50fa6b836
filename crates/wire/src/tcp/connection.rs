//! A connection that the kernel opens and closes, and that somebody else sends on in between.
//!
//! TCP_REPAIR (tcp(7), CRIU) tells where the kernel stands after the handshake and silences its socket. At
//! the end a second socket takes over at the position that was reached, so that the kernel ends the
//! connection as it ends any: with a FIN that it sends again until it is acknowledged.

use super::sys;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, setsockopt, socket, sockopt,
};
use std::{
    io,
    net::{SocketAddr, TcpStream},
    os::fd::{AsRawFd, OwnedFd},
    time::Duration,
};

/// Where a connection stands when the sender takes it over.
#[derive(Clone, Copy, Debug)]
pub(super) struct Standing {
    pub(super) local: SocketAddr,
    pub(super) peer: SocketAddr,
    /// The sequence number of the first byte to be sent.
    pub(super) sequence: u32,
    /// The next sequence number expected from the peer.
    pub(super) expected: u32,
    /// Bytes of payload a segment has, options deducted.
    pub(super) mss: u32,
    pub(super) has_timestamps: bool,
    /// The kernel's timestamp clock, in milliseconds, at CLOCK_MONOTONIC 0.
    pub(super) timestamp_base: u32,
    /// Of the windows that the peer announces.
    pub(super) window_scale: u32,
    own_window_scale: u32,
    has_sack: bool,
    window: [u32; 5], // struct tcp_repair_window: snd_wl1, snd_wnd, max_window, rcv_wnd, rcv_wup
}

impl Standing {
    /// Bytes that the peer has room for.
    pub(super) fn window(&self) -> u32 {
        self.window[1]
    }
}

/// The kernel's socket, silenced: closing it tells the peer nothing.
#[derive(Debug)]
pub(super) struct Silent {
    socket: TcpStream,
    pub(super) standing: Standing,
}

impl Silent {
    /// Opens a connection in the calling thread's network namespace.
    pub(super) fn connect(peer: SocketAddr) -> io::Result<Self> {
        let socket = TcpStream::connect_timeout(&peer, CONNECT_TIMEOUT)?;
        sys::set(&socket, libc::TCP_REPAIR, [ON])?;
        let standing = standing(&socket)?;
        Ok(Self { socket, standing })
    }

    /// A kernel socket that stands `sent` bytes further, still silent.
    pub(super) fn advance(self, sent: u64) -> io::Result<Silent> {
        let standing = self.standing;
        drop(self.socket);
        let socket = restore(&standing, sent)?;
        Ok(Self { socket, standing })
    }

    /// Lets the kernel end the connection in order.
    pub(super) fn close(self) -> io::Result<()> {
        sys::set(&self.socket, libc::TCP_REPAIR, [OFF])
    }

    /// Lets the kernel break the connection off.
    pub(super) fn reset(self) -> io::Result<()> {
        sys::set(&self.socket, libc::TCP_REPAIR, [OFF])?;
        let linger = libc::linger { l_onoff: 1, l_linger: 0 };
        Ok(setsockopt(&self.socket, sockopt::Linger, &linger)?)
    }
}

fn standing(socket: &TcpStream) -> io::Result<Standing> {
    let [sequence, expected] = [SEND_QUEUE, RECEIVE_QUEUE].map(|queue| queue_position(socket, queue));
    // struct tcp_info: tcpi_options is byte 5, the two scales share byte 6, tcpi_snd_mss is word 4.
    let info = sys::get::<5>(socket, libc::TCP_INFO)?;
    let (flags, scales) = (info[1] >> 8 & 0xff, info[1] >> 16 & 0xff);
    let has_timestamps = flags & OPTION_TIMESTAMPS != 0;
    Ok(Standing {
        local: socket.local_addr()?,
        peer: socket.peer_addr()?,
        sequence: sequence?,
        expected: expected?,
        mss: info[4],
        has_timestamps,
        timestamp_base: sys::get::<1>(socket, libc::TCP_TIMESTAMP)?[0].wrapping_sub(monotonic_ms()?),
        window_scale: if flags & OPTION_WINDOW_SCALE != 0 { scales & 15 } else { 0 },
        own_window_scale: scales >> 4,
        has_sack: flags & OPTION_SACK != 0,
        window: sys::get(socket, TCP_REPAIR_WINDOW)?,
    })
}

fn queue_position(socket: &TcpStream, queue: u32) -> io::Result<u32> {
    sys::set(socket, libc::TCP_REPAIR_QUEUE, [queue])?;
    Ok(sys::get::<1>(socket, libc::TCP_QUEUE_SEQ)?[0])
}

/// The timestamp clock counts CLOCK_MONOTONIC's milliseconds (tcp_clock_ms), from a base of each connection.
fn monotonic_ms() -> io::Result<u32> {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)?;
    Ok((Duration::from(now).as_millis()) as u32)
}

/// In the order of CRIU's libsoccr: positions while closed, options once connected (which sends nothing).
fn restore(standing: &Standing, sent: u64) -> io::Result<TcpStream> {
    let family = if standing.peer.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let socket: OwnedFd = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    bind(socket.as_raw_fd(), &SockaddrStorage::from(standing.local))?;
    sys::set(&socket, libc::TCP_REPAIR, [ON])?;
    let position = standing.sequence.wrapping_add(sent as u32);
    for (queue, position) in [(SEND_QUEUE, position), (RECEIVE_QUEUE, standing.expected)] {
        sys::set(&socket, libc::TCP_REPAIR_QUEUE, [queue])?;
        sys::set(&socket, libc::TCP_QUEUE_SEQ, [position])?;
    }
    connect(socket.as_raw_fd(), &SockaddrStorage::from(standing.peer))?;
    let socket = TcpStream::from(socket);
    for [code, value] in options(standing) {
        sys::set(&socket, libc::TCP_REPAIR_OPTIONS, [code, value])?;
    }
    if standing.has_timestamps {
        let clock = standing.timestamp_base.wrapping_add(monotonic_ms()?);
        sys::set(&socket, libc::TCP_TIMESTAMP, [clock])?;
    }
    sys::set(&socket, TCP_REPAIR_WINDOW, standing.window)?;
    Ok(socket)
}

/// struct tcp_repair_opt, by TCP option kind.
fn options(standing: &Standing) -> impl Iterator<Item = [u32; 2]> {
    let scales = standing.window_scale | standing.own_window_scale << 16;
    let all = [
        (true, [2, standing.mss]),
        (standing.window_scale > 0 || standing.own_window_scale > 0, [3, scales]),
        (standing.has_sack, [4, 0]),
        (standing.has_timestamps, [8, 0]),
    ];
    all.into_iter().filter_map(|(agreed, option)| agreed.then_some(option))
}

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const ON: u32 = 1;
const OFF: u32 = 0;
const RECEIVE_QUEUE: u32 = 1;
const SEND_QUEUE: u32 = 2;
const TCP_REPAIR_WINDOW: i32 = 29; // Linux 4.8
const OPTION_TIMESTAMPS: u32 = 1;
const OPTION_SACK: u32 = 2;
const OPTION_WINDOW_SCALE: u32 = 4;
