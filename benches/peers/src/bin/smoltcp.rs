//! `peer-smoltcp`: a UDP or TCP receiver on smoltcp's stack over its own raw socket (AF_PACKET).
//!
//! `peer-smoltcp DEVICE PORT [--seconds N] [--idle-ms N] [--rcvbuf BYTES] [--tcp 1]`. smoltcp has the MAC and IPv4
//! addresses of the device; the kernel's stack is shut for PORT. With `--tcp 1` it accepts one connection and reads what comes.

#![deny(unsafe_code)]

#[path = "../../../../crates/wire/src/tally.rs"]
#[allow(dead_code, reason = "no peer looks at delays")]
mod tally;

use hoist_peers::{
    options::Options,
    shut::Shut,
    stop,
    tap::{self, Protocol},
};
use nix::ifaddrs::getifaddrs;
use smoltcp::{
    iface::{Config, Interface, PollIngressSingleResult, SocketHandle, SocketSet},
    phy::{self, Medium, RawSocket},
    socket::{tcp, udp},
    time::{Duration, Instant},
    wire::{EthernetAddress, IpCidr, Ipv4Address},
};
use std::{env, error::Error, io, os::fd::AsRawFd, process::ExitCode};
use tally::{Tally, say};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("peer-smoltcp: {why}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let options = Options::parse(env::args().skip(1), &["--rcvbuf", "--tcp"])?;
    let protocol = if options.own("--tcp").unwrap_or(0) > 0 { Protocol::Tcp } else { Protocol::Udp };
    stop::on_sigterm();
    let _shut = Shut::to(&options.device, protocol, options.port)
        .map_err(|e| format!("shutting the stack for the port (tcx, bpf): {e}: needs root and Linux 6.6"))?;
    let mut stack = Stack::new(&options, protocol)?;
    say("ready")?;
    Ok(say(&stack.receive(&options)?.json())?)
}

const PREFIX: u8 = 16; // of the testbed's network
const QUEUE: usize = 4096; // datagrams
const QUEUE_BYTES: usize = 4 << 20;
/// Frames between two looks into the socket.
const BATCH: usize = 64;

struct Stack {
    device: RawSocket,
    interface: Interface,
    sockets: SocketSet<'static>,
    socket: SocketHandle,
    protocol: Protocol,
}

impl Stack {
    fn new(options: &Options, protocol: Protocol) -> Result<Self, Box<dyn Error>> {
        let mut device = raw_socket(options, protocol)?;
        let (mac, v4) = addresses_of(&options.device)?;
        let mut config = Config::new(mac.into());
        config.random_seed = std::process::id().into();
        let mut interface = Interface::new(config, &mut device, Instant::now());
        interface.update_ip_addrs(|all| {
            let _ = all.push(IpCidr::new(v4.into(), PREFIX)); // the list is empty, so there is room
        });
        let mut sockets = SocketSet::new(Vec::new());
        let socket = match protocol {
            Protocol::Udp => sockets.add(udp_socket(options.port)?),
            Protocol::Tcp => sockets.add(tcp_socket(options.port)?),
        };
        Ok(Self { device, interface, sockets, socket, protocol })
    }

    fn receive(&mut self, options: &Options) -> io::Result<Tally> {
        let (mut tally, start) = (Tally::default(), std::time::Instant::now());
        while !stop::asked() && start.elapsed().as_secs_f64() < options.seconds {
            let took = self.round();
            let read = self.read(&mut tally);
            if !took && !read && !self.wait(options.idle)? && tally.packets > 0 {
                break;
            }
        }
        tally.end();
        Ok(tally)
    }

    /// Gives the stack some frames and lets it answer; true when there were any.
    fn round(&mut self) -> bool {
        let now = Instant::now();
        let mut one = || self.interface.poll_ingress_single(now, &mut self.device, &mut self.sockets);
        let took = (0..BATCH).take_while(|_| one() != PollIngressSingleResult::None).count();
        self.interface.poll_egress(now, &mut self.device, &mut self.sockets);
        took > 0
    }

    /// Reads all that the socket holds, in place.
    fn read(&mut self, tally: &mut Tally) -> bool {
        let before = tally.packets;
        match self.protocol {
            Protocol::Udp => {
                let socket = self.sockets.get_mut::<udp::Socket>(self.socket);
                while let Ok((payload, _)) = socket.recv() {
                    tally.count(payload);
                }
            }
            Protocol::Tcp => {
                let socket = self.sockets.get_mut::<tcp::Socket>(self.socket);
                while socket.can_recv() && socket.recv(|bytes| (bytes.len(), tally.count(bytes))).is_ok() {}
            }
        }
        tally.packets > before
    }

    /// Sleeps until there is a frame or the stack has something to do; false when neither came in the idle time.
    fn wait(&mut self, idle: std::time::Duration) -> io::Result<bool> {
        let idle = Duration::from(idle);
        let own = self.interface.poll_delay(Instant::now(), &self.sockets);
        let (start, pause) = (Instant::now(), own.map_or(idle, |own| own.min(idle)));
        match phy::wait(self.device.as_raw_fd(), Some(pause)) {
            Err(e) if e.kind() != io::ErrorKind::Interrupted => Err(e),
            _ => Ok(Instant::now() - start < idle),
        }
    }
}

fn raw_socket(options: &Options, protocol: Protocol) -> Result<RawSocket, Box<dyn Error>> {
    let device = RawSocket::new(&options.device, Medium::Ethernet)
        .map_err(|e| format!("opening a raw socket on {}: {e}: needs CAP_NET_RAW", options.device))?;
    tap::narrow(&device, protocol, options.port)?;
    if let Some(bytes) = options.own("--rcvbuf") {
        tap::set(&device, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, &bytes)?;
    }
    Ok(device)
}

/// The MAC address of `device`, and its IPv4 address.
fn addresses_of(device: &str) -> Result<(EthernetAddress, Ipv4Address), String> {
    let all: Vec<_> = getifaddrs().map_err(|e| format!("reading addresses (getifaddrs): {e}"))?.collect();
    let mut own = all.iter().filter(|of| of.interface_name == device).filter_map(|of| of.address);
    let v4 = own.clone().find_map(|address| Some(address.as_sockaddr_in()?.ip()));
    let mac = own.find_map(|address| address.as_link_addr()?.addr());
    let (mac, v4) = mac.zip(v4).ok_or_else(|| format!("{device} has no MAC or no IPv4 address"))?;
    Ok((EthernetAddress(mac), v4))
}

fn udp_socket(port: u16) -> Result<udp::Socket<'static>, String> {
    let buffer =
        |queue, bytes| udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; queue], vec![0; bytes]);
    let mut socket = udp::Socket::new(buffer(QUEUE, QUEUE_BYTES), buffer(1, 64));
    socket.bind(port).map_err(|e| format!("binding to port {port}: {e:?}"))?;
    Ok(socket)
}

fn tcp_socket(port: u16) -> Result<tcp::Socket<'static>, String> {
    let buffer = |bytes| tcp::SocketBuffer::new(vec![0; bytes]);
    let mut socket = tcp::Socket::new(buffer(QUEUE_BYTES), buffer(4096));
    socket.listen(port).map_err(|e| format!("listening on port {port}: {e:?}"))?;
    Ok(socket)
}
