//! What `hoist status --json`, `--stats` and SIGUSR1 show: the one definition, described in docs/status.md.

use hoist_ipc::page::SocketStats;
use serde::{Deserialize, Serialize};
use std::sync::atomic::Ordering::Relaxed;

/// One run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Version of hoist.
    pub version: String,
    /// Pid of `hoist run`.
    pub pid: u32,
    /// The program and its arguments.
    pub command: Vec<String>,
    /// Devices that were asked for, lifted from or not.
    pub devices: Vec<DeviceStatus>,
    /// Processes that have talked to the broker, the last 64 ended ones included.
    pub processes: Vec<ProcessStatus>,
    /// Open sockets.
    pub sockets: Vec<SocketStatus>,
    /// Closed sockets, summed by local address.
    pub closed: Vec<ClosedStatus>,
    /// Open TCP connections.
    #[serde(default)]
    pub connections: Vec<ConnectionStatus>,
    /// Closed TCP connections, summed.
    #[serde(default)]
    pub closed_connections: ClosedConnections,
    /// Rings, summed over leases.
    pub rings: Vec<RingStatus>,
    /// Frames that were neither here nor there at the end of a lease; 0 is right.
    pub leaked_frames: i64,
    /// Leases that have ended.
    pub leases_ended: u64,
    /// What the broker had to say, oldest first, at most 100.
    pub messages: Vec<String>,
}

/// One device.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DeviceStatus {
    /// Name.
    pub name: String,
    /// Interface index.
    pub ifindex: u32,
    /// Driver.
    pub driver: String,
    /// `native`, `generic` or `none`.
    pub xdp: String,
    /// Why not native, or why not at all.
    pub xdp_reason: Option<String>,
    /// `zero-copy` or `copy`, as the last rings were bound; `none` before.
    pub mode: String,
    /// Why not zero-copy.
    pub mode_reason: Option<String>,
    /// Packets redirected to a ring.
    pub lifted_packets: u64,
    /// Their bytes, Ethernet header included.
    pub lifted_bytes: u64,
    /// Frames that the program wanted given back to the stack and that were refused: never lifted.
    #[serde(default)]
    pub ride_refused: u64,
    /// Packets left to the stack, by reason.
    pub passed: Vec<PassedStatus>,
}

/// Packets that passed for one reason.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PassedStatus {
    /// Why ([`crate::abi::Verdict::word`]).
    pub reason: String,
    /// How many.
    pub packets: u64,
}

/// One process.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ProcessStatus {
    /// Pid.
    pub pid: u32,
    /// Its name when it came.
    pub name: String,
    /// It has ended, or its channel has.
    pub ended: bool,
    /// It has the rings.
    pub holds_rings: bool,
    /// Sockets not registered because they are young.
    pub young_sockets: u32,
    /// Datagrams read from sockets that are not listed.
    pub unregistered_packets: u64,
    /// Their payload bytes.
    pub unregistered_bytes: u64,
    /// Times a thread slept waiting for packets.
    pub sleeps: u64,
    /// Passes over the rings.
    pub pumps: u64,
}

/// Datagrams and payload bytes of a socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traffic {
    /// Taken from rings.
    pub lifted_packets: u64,
    /// Their payload.
    pub lifted_bytes: u64,
    /// Taken from the kernel socket.
    pub passed_packets: u64,
    /// Their payload.
    pub passed_bytes: u64,
    /// Lifted, and dropped because SO_RCVBUF was used up.
    pub dropped: u64,
    /// Lifted, and given back to the kernel.
    pub rode: u64,
}

impl Traffic {
    /// What the shim has counted.
    pub(crate) fn read(stats: &SocketStats) -> Self {
        Self {
            lifted_packets: stats.lifted_packets.load(Relaxed),
            lifted_bytes: stats.lifted_bytes.load(Relaxed),
            passed_packets: stats.passed_packets.load(Relaxed),
            passed_bytes: stats.passed_bytes.load(Relaxed),
            dropped: stats.dropped_rcvbuf.load(Relaxed),
            rode: stats.rode.load(Relaxed),
        }
    }

    /// Adds another's counts.
    pub fn add(&mut self, other: &Self) {
        let fields = [
            (&mut self.lifted_packets, other.lifted_packets),
            (&mut self.lifted_bytes, other.lifted_bytes),
            (&mut self.passed_packets, other.passed_packets),
            (&mut self.passed_bytes, other.passed_bytes),
            (&mut self.dropped, other.dropped),
            (&mut self.rode, other.rode),
        ];
        for (sum, value) in fields {
            *sum = sum.saturating_add(value);
        }
    }
}

/// One open socket.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SocketStatus {
    /// Owner.
    pub pid: u32,
    /// Local address and port.
    pub local: String,
    /// Peer, if connected.
    pub peer: Option<String>,
    /// `lifted` or `passed`.
    pub state: String,
    /// Why, in one word ([`hoist_ipc::Reason::word`]).
    pub reason: String,
    /// Why, in one sentence.
    pub explain: String,
    /// The socket option behind the reason `option`: level and name.
    pub option: Option<(u32, u32)>,
    /// Datagrams queued and not yet read.
    pub queued: u64,
    /// Counters.
    #[serde(flatten)]
    pub traffic: Traffic,
}

/// Closed sockets of one local address.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ClosedStatus {
    /// Local address and port, or `other` beyond the first 4,096.
    pub local: String,
    /// How many.
    pub sockets: u64,
    /// The reason of the last one.
    pub reason: String,
    /// Counters.
    #[serde(flatten)]
    pub traffic: Traffic,
}

/// What became of a TCP connection's received payload.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamTraffic {
    /// Bytes the program took from frames.
    pub lifted_bytes: u64,
    /// Bytes it took from the kernel socket.
    pub passed_bytes: u64,
    /// Times lifting began.
    pub lifts: u64,
    /// Segments dropped for their checksum.
    pub bad_checksum: u64,
    /// Headers that rode, merged ones once.
    pub rode: u64,
    /// Segments that rode with their payload.
    pub rode_real: u64,
}

/// One open TCP connection.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ConnectionStatus {
    /// Process that reads it; 0: none has yet, as far as the shim sees.
    pub pid: u32,
    /// Local address and port.
    pub local: String,
    /// The peer's.
    pub peer: String,
    /// `accepted` or `connected`.
    pub direction: String,
    /// `lifted`, `passed`, or `demoted`: lifted once and not any more.
    pub state: String,
    /// Why, in one word ([`hoist_ipc::Reason::word`]).
    pub reason: String,
    /// Why, in one sentence.
    pub explain: String,
    /// The socket option behind the reason `option`: level and name.
    pub option: Option<(u32, u32)>,
    /// Payload bytes sent, retransmissions left out; None: the kernel did not tell.
    pub sent_bytes: Option<u64>,
    /// Counters.
    #[serde(flatten)]
    pub traffic: StreamTraffic,
}

/// TCP connections that are closed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ClosedConnections {
    /// How many.
    pub connections: u64,
    /// Counters.
    #[serde(flatten)]
    pub traffic: StreamTraffic,
}

/// One ring.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RingStatus {
    /// Device.
    pub device: String,
    /// Queue.
    pub queue: u32,
    /// Frames that belong to it; 0 while no process has it.
    pub frames: u32,
    /// Frames the program took from it.
    pub received: u64,
    /// UDP checksum wrong.
    pub bad_checksum: u64,
    /// Lengths or IP checksum wrong.
    pub bad_header: u64,
    /// Given to the stack: no socket wanted them.
    pub rode: u64,
    /// Lost: the TAP refused them.
    pub ride_failed: u64,
    /// Descriptors outside the UMEM.
    pub bad_descriptor: u64,
    /// Dropped by the kernel: rx ring full.
    pub ring_full: u64,
    /// Times the fill ring was found empty.
    pub fill_empty: u64,
    /// Dropped by the kernel: no frame, or too long for one.
    pub rx_dropped: u64,
    /// Calls that woke the driver.
    pub wakeups: u64,
}

impl RingStatus {
    /// Adds another's counts.
    pub(crate) fn add(&mut self, other: &Self) {
        let fields = [
            (&mut self.received, other.received),
            (&mut self.bad_checksum, other.bad_checksum),
            (&mut self.bad_header, other.bad_header),
            (&mut self.rode, other.rode),
            (&mut self.ride_failed, other.ride_failed),
            (&mut self.bad_descriptor, other.bad_descriptor),
            (&mut self.ring_full, other.ring_full),
            (&mut self.fill_empty, other.fill_empty),
            (&mut self.rx_dropped, other.rx_dropped),
            (&mut self.wakeups, other.wakeups),
        ];
        for (sum, value) in fields {
            *sum = sum.saturating_add(value);
        }
    }
}
