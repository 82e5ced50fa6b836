//! A broker stepped by hand, and a program that the test plays.
#![allow(dead_code, reason = "each test program uses a part")]
#![allow(clippy::unwrap_used, reason = "a test ends where it fails")]

use hoist_broker::{Broker, Config, Mode, Policy, Ports, Tcp, status::Status};
use hoist_ipc::{
    MAX_MESSAGE, Reason, Reply, Request, RingInfo, VERSION,
    hub::Hub,
    page::Mapped,
    tcp::{PortCounts, Slots},
};
use hoist_packet::udp::{ChecksumTrust, complete_checksum, parse};
use hoist_sys::{recv_with_fds, send_with_fds};
use hoist_wire::Testbed;
use hoist_xsk::{ChunkSize, FillRing, RxRing, Umem};
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        socket::{AddressFamily, SockFlag, SockType, setsockopt, socketpair, sockopt},
        uio::writev,
    },
};
use std::{
    io::IoSlice,
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    time::{Duration, Instant},
};

pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) fn testbed(mtu: u32) -> Option<Testbed> {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: needs root for network namespaces and XDP");
        return None;
    }
    Some(Testbed::builder().queues(2).mtu(mtu).up().unwrap())
}

pub(crate) fn config() -> Config {
    Config {
        devices: Vec::new(),
        udp: Ports::All,
        tcp: Tcp { policy: Policy::Off, ports: Ports::Off },
        admit_flow: false,
        mode: Mode::Auto,
        spin_us: 0,
        command: vec!["test".into()],
    }
}

/// A broker without a program, stepped by hand.
pub(crate) struct Rig {
    pub(crate) broker: Broker,
    pub(crate) inherited: OwnedFd,
}

/// What a process knows of its rings.
pub(crate) struct Program {
    pub(crate) channel: OwnedFd,
    pub(crate) page: Mapped,
    pub(crate) seat: u32,
    pub(crate) hub: Option<Mapped<Hub>>,
    pub(crate) umem: Option<Umem>,
    pub(crate) tap: Option<(OwnedFd, bool)>,
    pub(crate) rings: Vec<(RingInfo, OwnedFd)>,
    pub(crate) slots: Option<Slots>,
    pub(crate) ports: Option<PortCounts>,
}

impl Rig {
    pub(crate) fn new(config: Config) -> Self {
        let (broker, inherited) = Broker::start(config).unwrap();
        Self { broker, inherited }
    }

    /// Dispatches until `done` says so.
    #[track_caller]
    pub(crate) fn until(&mut self, mut done: impl FnMut(&Broker) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !done(&self.broker) {
            assert!(
                Instant::now() < deadline,
                "in vain; the broker says {:?}",
                self.broker.status().messages
            );
            wait(self.broker.as_fd(), PollFlags::POLLIN, Duration::from_millis(200));
            self.broker.dispatch().unwrap();
        }
    }

    pub(crate) fn status(&mut self) -> Status {
        self.broker.dispatch().unwrap();
        self.broker.status()
    }

    #[track_caller]
    pub(crate) fn hello(&mut self) -> Program {
        let (ours, theirs) = pair();
        let hello = Request::Hello { version: VERSION }.encode();
        send_with_fds(self.inherited.as_fd(), hello.as_ref(), &[theirs.as_fd()]).unwrap();
        drop(theirs);
        let (reply, mut fds) = self.receive(ours.as_fd());
        assert!(matches!(reply, Reply::Welcome { version: VERSION, udp: true, .. }), "{reply:?}");
        let page = Mapped::new(fds.remove(0).as_fd()).unwrap();
        Program {
            channel: ours,
            page,
            seat: 0,
            hub: None,
            umem: None,
            tap: None,
            rings: Vec::new(),
            slots: None,
            ports: None,
        }
    }

    #[track_caller]
    pub(crate) fn receive(&mut self, channel: BorrowedFd<'_>) -> (Reply, Vec<OwnedFd>) {
        self.until(|_| wait(channel, PollFlags::POLLIN, Duration::ZERO));
        let mut bytes = [0; MAX_MESSAGE];
        let (len, fds) = recv_with_fds(channel, &mut bytes, 0).unwrap();
        assert!(len > 0, "the broker closed the channel: {:?}", self.broker.status().messages);
        (Reply::decode(&bytes[..len]).unwrap(), fds.into_iter().flatten().collect())
    }

    /// Asks, takes what comes along, and returns the final reply.
    #[track_caller]
    pub(crate) fn ask(&mut self, program: &mut Program, request: Request, fds: &[BorrowedFd<'_>]) -> Reply {
        send_with_fds(program.channel.as_fd(), request.encode().as_ref(), fds).unwrap();
        loop {
            let (reply, mut fds) = self.receive(program.channel.as_fd());
            match reply {
                Reply::Hub { seat } => {
                    program.hub = Some(Mapped::new(fds.remove(0).as_fd()).unwrap());
                    program.seat = seat;
                }
                Reply::Umem { frames, chunk: 2048 } => {
                    program.umem = Some(Umem::map(fds.remove(0), frames, ChunkSize::K2).unwrap());
                }
                Reply::Device { partial_checksum, .. } => {
                    program.tap = Some((fds.remove(0), partial_checksum))
                }
                Reply::Ring(info) => program.rings.push((info, fds.remove(0))),
                Reply::Connections { ports: true } => {
                    program.ports = Some(PortCounts::map(fds.remove(0).as_fd()).unwrap());
                }
                Reply::Connections { ports: false } => {
                    program.slots = Some(Slots::map(fds.remove(0).as_fd()).unwrap());
                }
                last => return last,
            }
        }
    }

    #[track_caller]
    pub(crate) fn register(&mut self, program: &mut Program, socket: &UdpSocket) -> Reason {
        let request = Request::Register { cookie: cookie(socket), timestamps: false };
        match self.ask(program, request, &[socket.as_fd()]) {
            Reply::Registered { reason, .. } => reason,
            other => panic!("{other:?}"),
        }
    }

    #[track_caller]
    pub(crate) fn done(&mut self, program: &mut Program, request: Request) {
        assert_eq!(self.ask(program, request, &[]), Reply::Done);
    }
}

impl Program {
    /// Takes the next lifted frame, whichever ring it is in, and refills the ring.
    #[track_caller]
    pub(crate) fn frame(&self) -> Vec<u8> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            for (info, fd) in &self.rings {
                let mut rx = RxRing::map(fd.as_fd(), info.rx_size).unwrap();
                if rx.available() > 0 {
                    return self.take(*info, fd, &mut rx);
                }
            }
            assert!(Instant::now() < deadline, "nothing was lifted");
            let mut fds: Vec<_> =
                self.rings.iter().map(|(_, fd)| PollFd::new(fd.as_fd(), PollFlags::POLLIN)).collect();
            poll(&mut fds, PollTimeout::from(200_u16)).unwrap();
        }
    }

    pub(crate) fn take(&self, info: RingInfo, fd: &OwnedFd, rx: &mut RxRing) -> Vec<u8> {
        let umem = self.umem.as_ref().unwrap();
        let desc = rx.peek(0).unwrap();
        let frame = umem.packet(desc).unwrap().to_vec();
        rx.release(1);
        let mut fill = FillRing::map(fd.as_fd(), info.fill_size).unwrap();
        assert!(fill.push(umem.addr_of(umem.frame_of(desc.addr).unwrap())));
        fill.submit();
        frame
    }

    /// Payload and destination of the next lifted datagram.
    #[track_caller]
    pub(crate) fn datagram(&self) -> (Vec<u8>, SocketAddr) {
        let frame = self.frame();
        let datagram = parse(&frame, ChecksumTrust::PartialAllowed).unwrap();
        (datagram.payload_in(&frame).unwrap().to_vec(), datagram.destination.into())
    }

    pub(crate) fn nothing_lifted(&self) -> bool {
        self.rings.iter().all(|(info, fd)| RxRing::map(fd.as_fd(), info.rx_size).unwrap().available() == 0)
    }

    pub(crate) fn give_back(&self, mut frame: Vec<u8>) {
        complete_checksum(&mut frame).unwrap();
        let (tap, _) = self.tap.as_ref().unwrap();
        write_tap(tap, &frame);
    }
}

/// Behind a `virtio_net_hdr` that says nothing.
pub(crate) fn write_tap(tap: &OwnedFd, frame: &[u8]) {
    let written = writev(tap, &[IoSlice::new(&[0; 10]), IoSlice::new(frame)]).unwrap();
    assert_eq!(written, 10 + frame.len());
}

pub(crate) fn pair() -> (OwnedFd, OwnedFd) {
    socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap()
}

pub(crate) fn wait(fd: BorrowedFd<'_>, events: PollFlags, time: Duration) -> bool {
    let mut fds = [PollFd::new(fd, events)];
    poll(&mut fds, PollTimeout::try_from(time).unwrap()).unwrap() > 0
}

#[expect(unsafe_code, reason = "nix has no SO_COOKIE")]
pub(crate) fn cookie(socket: &impl AsFd) -> u64 {
    let (mut cookie, mut len) = (0_u64, 8);
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: a value of the length given.
    let done = unsafe {
        libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_COOKIE, (&raw mut cookie).cast(), &raw mut len)
    };
    assert_eq!(done, 0);
    cookie
}

pub(crate) fn bound(address: impl Into<IpAddr>, port: u16) -> UdpSocket {
    let socket = UdpSocket::bind((address.into(), port)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// Sends from the wire.
pub(crate) fn send(tb: &Testbed, to: impl Into<IpAddr>, port: u16, payload: &[u8]) {
    let to = SocketAddr::new(to.into(), port);
    let any: IpAddr =
        if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { std::net::Ipv6Addr::UNSPECIFIED.into() };
    let sent = tb.wire().enter(|| {
        let socket = UdpSocket::bind((any, 0)).unwrap();
        setsockopt(&socket, sockopt::Broadcast, &true).unwrap();
        socket.send_to(payload, to).unwrap()
    });
    assert_eq!(sent.unwrap(), payload.len());
}

pub(crate) fn receive(socket: &UdpSocket) -> Vec<u8> {
    let mut bytes = [0; 2000];
    let len = socket.recv(&mut bytes).unwrap();
    bytes[..len].to_vec()
}

/// Runs a test in the host's namespace.
pub(crate) fn on_host(mtu: u32, test: impl FnOnce(&Testbed) + Send) {
    if let Some(tb) = testbed(mtu) {
        tb.host().enter(|| test(&tb)).unwrap();
    }
}
