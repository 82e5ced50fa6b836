//! A TCP peer made of frames: it says what it likes. Its address is one that no kernel has, so nobody answers for it.

use crate::{lab::Lab, sock, stream};
use anyhow::{Context, Result, ensure};
use etherparse::{PacketBuilder, SlicedPacket, TcpOptionElement, TransportSlice};
use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsRawFd, OwnedFd},
    time::{Duration, Instant},
};

/// Bytes of payload a segment has at most.
pub const MSS: usize = 1_400;

const WINDOW: u16 = 60_000;
const DEADLINE: Duration = Duration::from_secs(10);

/// A segment to be sent. The default is a right one without payload.
#[derive(Clone, Debug)]
pub struct Segment {
    /// Sequence number.
    pub sequence: u32,
    /// Acknowledgement number; None: the flag is not set.
    pub acknowledgement: Option<u32>,
    /// Flags.
    pub syn: bool,
    /// As above.
    pub fin: bool,
    /// As above.
    pub rst: bool,
    /// Options as they are; a multiple of 4 bytes.
    pub options: Vec<u8>,
    /// Payload.
    pub payload: Vec<u8>,
    /// Whether a bit of the payload is flipped after the checksum was made.
    pub damaged: bool,
    /// Whether the frame is for another station.
    pub elsewhere: bool,
}

/// The liar's end of a connection.
pub struct Liar {
    socket: OwnedFd,
    link: ([u8; 6], [u8; 6]),
    /// Its address.
    pub local: SocketAddr,
    remote: SocketAddr,
    /// Sequence number of stream byte 0.
    pub base: u32,
    /// The next sequence number expected from the other side.
    pub expected: u32,
    /// What the other side has acknowledged.
    pub acknowledged: u32,
    /// The window it has told last, scaled.
    pub window: u32,
    /// The other side has sent a FIN or a RST.
    pub ended: Option<End>,
    /// Payload of the other side.
    pub answer: Vec<u8>,
    scale: u8,
    timestamps: bool,
    clock: u32,
    echo: u32,
}

/// How the other side has ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// With a FIN.
    Fin,
    /// With a RST.
    Rst,
}

impl Liar {
    /// Connects from a made-up address; the first byte of its stream has sequence number `base`.
    pub fn connect(lab: &Lab, remote: SocketAddr, port: u16, base: u32, timestamps: bool) -> Result<Self> {
        let local = made_up(lab, remote)?;
        let (wire, host) = (lab.testbed.wire(), lab.testbed.host());
        let socket = wire.enter(|| packet_socket(wire.ifindex()))??;
        let mut liar = Self {
            socket,
            link: (wire.mac(), host.mac()),
            local: SocketAddr::new(local, port),
            remote,
            base,
            expected: 0,
            acknowledged: base.wrapping_sub(1),
            window: 0,
            ended: None,
            answer: Vec::new(),
            scale: 0,
            timestamps,
            clock: 1_000,
            echo: 0,
        };
        let options = if timestamps {
            [&[2, 4, 5, 120, 3, 3, 7, 0][..], &liar.stamp(liar.clock)].concat() // MSS 1,400, window scale
        } else {
            vec![2, 4, 5, 120, 3, 3, 7, 0]
        };
        let syn = Segment {
            sequence: base.wrapping_sub(1),
            acknowledgement: None,
            syn: true,
            options,
            ..liar.segment(0, &[])
        };
        liar.send(&syn)?;
        liar.until(|liar| liar.expected != 0).context("no SYN-ACK")?;
        liar.send(&liar.segment(0, &[]))?;
        Ok(liar)
    }

    /// A right segment with payload for stream position `at`.
    pub fn segment(&self, at: u64, payload: &[u8]) -> Segment {
        Segment {
            sequence: self.base.wrapping_add(at as u32),
            acknowledgement: Some(self.expected),
            syn: false,
            fin: false,
            rst: false,
            options: if self.timestamps { self.stamp(self.clock) } else { Vec::new() },
            payload: payload.to_vec(),
            damaged: false,
            elsewhere: false,
        }
    }

    /// A right segment of stream `seed`, whose position 0 is position `from` of the connection.
    pub fn true_one(&self, seed: u64, from: u64, at: u64, len: usize) -> Segment {
        self.segment(from + at, &stream::bytes(seed, at, len))
    }

    /// The timestamp option with this clock.
    pub fn stamp(&self, clock: u32) -> Vec<u8> {
        [&[1, 1, 8, 10][..], &clock.to_be_bytes(), &self.echo.to_be_bytes()].concat()
    }

    /// What the clock says now.
    pub fn clock(&self) -> u32 {
        self.clock
    }

    /// Sends a segment.
    pub fn send(&self, segment: &Segment) -> Result<()> {
        let frame = self.frame(segment)?;
        loop {
            match sock::send(&self.socket, &frame) {
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => std::thread::yield_now(),
                result => return result.map(drop).context("send a frame"),
            }
        }
    }

    fn frame(&self, segment: &Segment) -> Result<Vec<u8>> {
        let to = if segment.elsewhere { [2, 9, 9, 9, 9, 9] } else { self.link.1 };
        let ethernet = PacketBuilder::ethernet2(self.link.0, to);
        let (from, port) = (self.local.port(), self.remote.port());
        let tcp = match (self.local.ip(), self.remote.ip()) {
            (IpAddr::V4(a), IpAddr::V4(b)) => {
                ethernet.ipv4(a.octets(), b.octets(), 64).tcp(from, port, segment.sequence, WINDOW)
            }
            (IpAddr::V6(a), IpAddr::V6(b)) => {
                ethernet.ipv6(a.octets(), b.octets(), 64).tcp(from, port, segment.sequence, WINDOW)
            }
            _ => unreachable!("both ends have addresses of one family"),
        };
        let mut tcp = tcp.options_raw(&segment.options)?;
        tcp = if let Some(ack) = segment.acknowledgement { tcp.ack(ack) } else { tcp };
        tcp = if segment.syn { tcp.syn() } else { tcp };
        tcp = if segment.fin { tcp.fin() } else { tcp };
        tcp = if segment.rst { tcp.rst() } else { tcp };
        let mut frame = Vec::new();
        tcp.write(&mut frame, &segment.payload)?;
        if segment.damaged {
            *frame.last_mut().context("a frame")? ^= 0x10;
        }
        Ok(frame)
    }

    /// Looks at what has come until something holds.
    pub fn until(&mut self, mut holds: impl FnMut(&Self) -> bool) -> Result<()> {
        let start = Instant::now();
        while !holds(self) {
            ensure!(start.elapsed() < DEADLINE, "nothing more came: {self:?}");
            if sock::events(&self.socket, libc::POLLIN, 100) != 0 {
                let frame = sock::take(&self.socket, 4_096, 0)?;
                self.look_at(&frame);
            }
        }
        Ok(())
    }

    /// Takes what has come already.
    pub fn catch_up(&mut self) -> Result<()> {
        while sock::events(&self.socket, libc::POLLIN, 0) != 0 {
            let frame = sock::take(&self.socket, 4_096, 0)?;
            self.look_at(&frame);
        }
        Ok(())
    }

    /// Waits until everything before stream position `at` is acknowledged.
    pub fn until_acknowledged(&mut self, at: u64) -> Result<()> {
        let target = self.base.wrapping_add(at as u32);
        self.until(|liar| target.wrapping_sub(liar.acknowledged) as i32 <= 0)
    }

    fn look_at(&mut self, frame: &[u8]) {
        let Ok(packet) = SlicedPacket::from_ethernet(frame) else { return };
        let Some(TransportSlice::Tcp(tcp)) = &packet.transport else { return };
        if (tcp.source_port(), tcp.destination_port()) != (self.remote.port(), self.local.port())
            || frame[..6] != self.link.0
        {
            return;
        }
        self.read_options(tcp.options_iterator().filter_map(Result::ok), tcp.syn());
        self.window = u32::from(tcp.window_size()) << if tcp.syn() { 0 } else { self.scale };
        if tcp.ack() && tcp.acknowledgment_number().wrapping_sub(self.acknowledged) as i32 > 0 {
            self.acknowledged = tcp.acknowledgment_number();
        }
        if tcp.rst() {
            self.ended = Some(End::Rst);
        } else if tcp.syn() {
            self.expected = tcp.sequence_number().wrapping_add(1);
        } else if tcp.sequence_number() == self.expected {
            self.take(tcp.payload(), tcp.fin());
        }
    }

    fn read_options(&mut self, options: impl Iterator<Item = TcpOptionElement>, syn: bool) {
        for option in options {
            match option {
                TcpOptionElement::WindowScale(scale) if syn => self.scale = scale,
                TcpOptionElement::Timestamp(clock, _) => self.echo = clock,
                _ => {}
            }
        }
    }

    fn take(&mut self, payload: &[u8], fin: bool) {
        self.answer.extend(payload);
        self.expected = self.expected.wrapping_add(payload.len() as u32 + u32::from(fin));
        if fin {
            self.ended = Some(End::Fin);
        }
        if fin || !payload.is_empty() {
            self.clock = self.clock.wrapping_add(1);
            let _ = self.send(&self.acknowledgement());
        }
    }

    fn acknowledgement(&self) -> Segment {
        Segment { sequence: self.acknowledged, ..self.segment(0, &[]) }
    }

    /// Advances the timestamp clock.
    pub fn tick(&mut self) {
        self.clock = self.clock.wrapping_add(1);
    }
}

impl std::fmt::Debug for Liar {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let acknowledged = self.acknowledged.wrapping_sub(self.base);
        write!(f, "{} acknowledged, window {}, ended {:?}", acknowledged, self.window, self.ended)
    }
}

/// An address in the wire's network that the host reaches by the wire's station, and that the wire does not have.
fn made_up(lab: &Lab, remote: SocketAddr) -> Result<IpAddr> {
    let address = match remote.ip() {
        IpAddr::V4(_) => IpAddr::from(Ipv4Addr::new(10, 77, 0, 99)),
        IpAddr::V6(_) => IpAddr::from(Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 0x99)),
    };
    let mac: Vec<_> = lab.testbed.wire().mac().iter().map(|byte| format!("{byte:02x}")).collect();
    let host = lab.testbed.host();
    let mut ip = host.command("ip");
    ip.args(["neigh", "replace", &address.to_string(), "lladdr", &mac.join(":"), "dev", host.device()]);
    ensure!(ip.status().context("start ip")?.success(), "{ip:?} failed");
    Ok(address)
}

/// A packet socket on a device of this namespace.
fn packet_socket(ifindex: u32) -> Result<OwnedFd> {
    let every = (libc::ETH_P_ALL as u16).to_be();
    // SAFETY: no pointers.
    let socket = sock::own(unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW, every.into()) })?;
    // SAFETY: sockaddr_ll is plain old data for which all-zero is valid.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = every;
    address.sll_ifindex = ifindex as i32;
    let pointer = (&raw const address).cast();
    // SAFETY: pointer and length describe `address`.
    sock::check(unsafe { libc::bind(socket.as_raw_fd(), pointer, size_of_val(&address) as u32) })?;
    Ok(socket)
}
