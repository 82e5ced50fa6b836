//! The peer: a process in the wire namespace that does what a case tells it over a Unix stream, one JSON line each way.
//!
//! A reply means that the kernel has taken the packets, not that they have arrived: the case waits for those.

use crate::sock;
use serde::{Deserialize, Serialize};
use std::{
    collections::HashMap,
    ffi::CString,
    io::{BufRead, BufReader, Error, ErrorKind, Result, Write},
    net::{IpAddr, SocketAddr, UdpSocket},
    os::{
        fd::AsRawFd,
        unix::net::{UnixListener, UnixStream},
    },
    path::Path,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

/// Environment variable with the path of the peer's socket.
pub const ENV_PEER: &str = "HOIST_TEST_PEER";

/// The device of the wire namespace.
const DEVICE: &str = "va";

/// How long the peer waits for what it is told to wait for.
const DEADLINE: Duration = Duration::from_secs(10);

/// What the peer is told.
#[derive(Serialize, Deserialize, Debug)]
pub enum Order {
    /// Send datagrams.
    Send(Shot),
    /// Send Ethernet frames as they are, the whole list `rounds` times.
    Frames {
        /// The frames.
        frames: Vec<Vec<u8>>,
        /// How often.
        rounds: u32,
    },
    /// Bind a socket, if it is not.
    Open(SocketAddr),
    /// Close that socket.
    Close(SocketAddr),
    /// Receive so many datagrams.
    Receive {
        /// Bound address; opened if it is not.
        at: SocketAddr,
        /// How many.
        count: usize,
    },
}

/// Datagrams from one socket to one address.
#[derive(Serialize, Deserialize, Debug, Clone)]
pub struct Shot {
    /// Address of the peer; its socket stays bound.
    pub from: SocketAddr,
    /// Destination: unicast, multicast or broadcast.
    pub to: SocketAddr,
    /// What to send.
    pub payloads: Payloads,
    /// `IP_TTL` or `IPV6_UNICAST_HOPS`.
    pub ttl: Option<i32>,
    /// `IP_TOS` or `IPV6_TCLASS`.
    pub tos: Option<i32>,
    /// Pause between datagrams, µs.
    pub gap_us: u64,
    /// Wait until this thread sleeps in a system call, so that what it does is blocked when the datagram comes.
    pub asleep: Option<i32>,
    /// `UDP_SEGMENT`: each payload leaves as datagrams of so many bytes.
    pub segment: Option<u16>,
}

/// A list of payloads.
#[derive(Serialize, Deserialize, Debug, Clone)]
pub enum Payloads {
    /// These.
    List(Vec<Vec<u8>>),
    /// [`numbered`] ones.
    Numbered {
        /// Number of the first.
        first: u32,
        /// How many.
        count: u32,
        /// Bytes of each.
        len: usize,
    },
}

/// Payload number `i` of `len` bytes, at least four: the number in network order, then its lowest byte over and over.
pub fn numbered(i: u32, len: usize) -> Vec<u8> {
    let mut bytes = vec![i as u8; len];
    bytes[..4].copy_from_slice(&i.to_be_bytes());
    bytes
}

/// The number of a [`numbered`] payload; panics if a byte is wrong.
#[track_caller]
pub fn number_of(bytes: &[u8]) -> u32 {
    let i = u32::from_be_bytes(*bytes.first_chunk().expect("at least four bytes"));
    assert!(bytes[4..].iter().all(|&b| b == i as u8), "datagram {i} is damaged");
    i
}

/// What the peer answers.
#[derive(Serialize, Deserialize, Debug)]
pub enum Answer {
    /// Done.
    Done,
    /// Datagrams received, with where they came from.
    Received(Vec<(Vec<u8>, SocketAddr)>),
    /// It went wrong.
    Failed(String),
}

/// A case's connection to the peer.
pub struct Peer {
    stream: BufReader<UnixStream>,
}

impl Peer {
    /// Connects to the peer that [`ENV_PEER`] names.
    pub fn connect() -> Self {
        let path = std::env::var_os(ENV_PEER).expect("HOIST_TEST_PEER names the peer's socket");
        Self::at(path.as_ref())
    }

    /// Connects to the peer that listens at `path`.
    pub fn at(path: &Path) -> Self {
        Self { stream: BufReader::new(UnixStream::connect(path).expect("the peer listens")) }
    }

    /// Tells the peer to do something and does not wait for it.
    pub fn tell(&mut self, order: &Order) {
        let mut line = serde_json::to_vec(order).unwrap();
        line.push(b'\n');
        self.stream.get_mut().write_all(&line).expect("the peer reads");
    }

    /// The answer to the oldest order not answered; panics if it failed.
    #[track_caller]
    pub fn answer(&mut self) -> Answer {
        let mut line = String::new();
        self.stream.read_line(&mut line).expect("the peer answers");
        match serde_json::from_str(&line).expect("an answer of the peer") {
            Answer::Failed(why) => panic!("peer: {why}"),
            answer => answer,
        }
    }

    /// Tells and waits.
    #[track_caller]
    pub fn order(&mut self, order: &Order) -> Answer {
        self.tell(order);
        self.answer()
    }
}

type Sockets = Arc<Mutex<HashMap<SocketAddr, Arc<UdpSocket>>>>;

/// Serves connections, each in a thread, until the process is ended.
pub fn serve(listener: &UnixListener) -> Result<()> {
    let sockets = Sockets::default();
    for stream in listener.incoming() {
        let (stream, sockets) = (stream?, sockets.clone());
        std::thread::spawn(move || converse(stream, &sockets));
    }
    Ok(())
}

/// Ends when the case goes away, which is no error.
fn converse(mut stream: UnixStream, sockets: &Sockets) -> Result<()> {
    let lines = BufReader::new(stream.try_clone()?).lines();
    for line in lines {
        let answer = carry_out(&line?, sockets).unwrap_or_else(|error| Answer::Failed(error.to_string()));
        let mut line = serde_json::to_vec(&answer)?;
        line.push(b'\n');
        stream.write_all(&line)?;
    }
    Ok(())
}

fn carry_out(line: &str, sockets: &Sockets) -> Result<Answer> {
    match serde_json::from_str(line)? {
        Order::Send(shot) => send(&shot, open(shot.from, sockets)?.as_ref())?,
        Order::Frames { frames, rounds } => send_frames(&frames, rounds)?,
        Order::Open(at) => drop(open(at, sockets)?),
        Order::Close(at) => drop(sockets.lock().unwrap().remove(&at)),
        Order::Receive { at, count } => return receive(&*open(at, sockets)?, count),
    }
    Ok(Answer::Done)
}

fn open(at: SocketAddr, sockets: &Sockets) -> Result<Arc<UdpSocket>> {
    let mut sockets = sockets.lock().unwrap();
    if let Some(socket) = sockets.get(&at) {
        return Ok(socket.clone());
    }
    let socket = UdpSocket::bind(at).map_err(|e| Error::new(e.kind(), format!("bind {at}: {e}")))?;
    socket.set_broadcast(true)?;
    socket.set_read_timeout(Some(DEADLINE))?;
    set_multicast_device(&socket, at)?;
    let socket = Arc::new(socket);
    sockets.insert(at, socket.clone());
    Ok(socket)
}

fn set_multicast_device(socket: &UdpSocket, at: SocketAddr) -> Result<()> {
    match at.ip() {
        IpAddr::V4(ip) => {
            let address = libc::in_addr { s_addr: u32::from(ip).to_be() };
            sock::set(socket, libc::IPPROTO_IP, libc::IP_MULTICAST_IF, address)
        }
        IpAddr::V6(_) => sock::set(socket, libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_IF, ifindex(DEVICE)?),
    }
}

/// The index of a device of this namespace.
pub fn ifindex(device: &str) -> Result<u32> {
    let name = CString::new(device)?;
    // SAFETY: a C string.
    match unsafe { libc::if_nametoindex(name.as_ptr()) } {
        0 => Err(Error::last_os_error()),
        index => Ok(index),
    }
}

fn send(shot: &Shot, socket: &UdpSocket) -> Result<()> {
    set_header_fields(shot, socket)?;
    if let Some(tid) = shot.asleep {
        until_asleep(tid)?;
    }
    match &shot.payloads {
        Payloads::List(list) => list.iter().try_for_each(|payload| send_one(shot, socket, payload)),
        Payloads::Numbered { first, count, len } => {
            (*first..first + count).try_for_each(|i| send_one(shot, socket, &numbered(i, *len)))
        }
    }
}

fn set_header_fields(shot: &Shot, socket: &UdpSocket) -> Result<()> {
    let (level, ttl, tos) = if shot.from.is_ipv4() {
        (libc::IPPROTO_IP, libc::IP_TTL, libc::IP_TOS)
    } else {
        (libc::IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS, libc::IPV6_TCLASS)
    };
    sock::set(socket, level, ttl, shot.ttl.unwrap_or(-1))?; // -1: the default
    sock::set(socket, level, tos, shot.tos.unwrap_or(0))?;
    sock::set(socket, libc::IPPROTO_UDP, libc::UDP_SEGMENT, i32::from(shot.segment.unwrap_or(0)))
}

fn send_one(shot: &Shot, socket: &UdpSocket, payload: &[u8]) -> Result<()> {
    socket.send_to(payload, shot.to)?;
    if shot.gap_us > 0 {
        std::thread::sleep(Duration::from_micros(shot.gap_us));
    }
    Ok(())
}

/// Waits until the thread is in an interruptible sleep (proc(5), stat field 3).
pub fn until_asleep(tid: i32) -> Result<()> {
    let start = Instant::now();
    while start.elapsed() < DEADLINE {
        if is_asleep(tid)? {
            return Ok(());
        }
        std::thread::yield_now();
    }
    Err(Error::new(ErrorKind::TimedOut, format!("thread {tid} never slept")))
}

/// Whether the thread is in an interruptible sleep.
pub fn is_asleep(tid: i32) -> Result<bool> {
    let stat = std::fs::read_to_string(format!("/proc/{tid}/stat"))?;
    Ok(stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('S')))
}

fn receive(socket: &UdpSocket, count: usize) -> Result<Answer> {
    let mut buffer = vec![0; 65_536];
    let one = |_| {
        let (len, from) = socket.recv_from(&mut buffer)?;
        Ok((buffer[..len].to_vec(), from))
    };
    (0..count).map(one).collect::<Result<_>>().map(Answer::Received)
}

fn send_frames(frames: &[Vec<u8>], rounds: u32) -> Result<()> {
    // SAFETY: no pointers.
    let socket = sock::own(unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW, 0) })?;
    // SAFETY: sockaddr_ll is plain old data for which all-zero is valid.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_ifindex = ifindex(DEVICE)? as i32;
    let pointer = (&raw const address).cast();
    // SAFETY: pointer and length describe `address`.
    sock::check(unsafe { libc::bind(socket.as_raw_fd(), pointer, size_of_val(&address) as u32) })?;
    (0..rounds).flat_map(|_| frames).try_for_each(|frame| send_frame(&socket, frame))
}

/// A device queue that is full is waited for; what a driver refuses is dropped, as on a wire.
fn send_frame(socket: &impl AsRawFd, frame: &[u8]) -> Result<()> {
    loop {
        match sock::send(socket, frame) {
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => std::thread::yield_now(),
            result => return result.map(drop),
        }
    }
}
