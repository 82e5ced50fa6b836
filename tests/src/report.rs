//! What `hoist run` counted, held against what a case expects.

use crate::cases::{Expect, FENCE_PORT};
use anyhow::Context;
use serde::Deserialize;

/// The part of a run's status (docs/status.md) that tests look at.
#[derive(Deserialize, Debug, Default, Clone)]
pub struct Report {
    /// Processes of the run.
    pub processes: Vec<Process>,
    /// Open sockets.
    pub sockets: Vec<Socket>,
    /// Closed ones, by local address.
    pub closed: Vec<Socket>,
    /// Open TCP connections.
    #[serde(default)]
    pub connections: Vec<Connection>,
    /// Closed ones, summed.
    #[serde(default)]
    pub closed_connections: Connection,
    /// Rings.
    pub rings: Vec<Ring>,
    /// Frames that were neither here nor there at the end of a lease.
    pub leaked_frames: i64,
    /// What the broker had to say.
    pub messages: Vec<String>,
}

/// One process.
#[derive(Deserialize, Debug, Default, Clone)]
pub struct Process {
    /// It has rings.
    #[serde(default)]
    pub holds_rings: bool,
    /// Sockets not registered because they are young.
    pub young_sockets: u32,
    /// Datagrams read from sockets that are not listed.
    pub unregistered_packets: u64,
}

/// Counters of a socket, or of all closed ones on one address.
#[derive(Deserialize, Debug, Clone)]
pub struct Socket {
    /// Process; 0: sums of several.
    #[serde(default)]
    pub pid: i32,
    /// Local address, `address:port`.
    pub local: String,
    /// Lifted, or why not: the word of the reason.
    pub reason: String,
    /// Datagrams read from rings.
    pub lifted_packets: u64,
    /// Datagrams read from the kernel.
    pub passed_packets: u64,
}

/// Counters of a connection, or of all closed ones of a process.
#[derive(Deserialize, Debug, Default, Clone)]
#[serde(default)]
pub struct Connection {
    /// Local address, `address:port`.
    pub local: String,
    /// Lifted, or why not: the word of the reason.
    pub reason: String,
    /// Payload that the program took from frames.
    pub lifted_bytes: u64,
    /// Payload that it took from the kernel.
    pub passed_bytes: u64,
    /// Segments dropped for their checksum.
    pub bad_checksum: u64,
    /// Headers that rode.
    pub rode: u64,
    /// Segments that rode with their payload.
    pub rode_real: u64,
}

/// Counters of a ring.
#[derive(Deserialize, Debug, Clone)]
pub struct Ring {
    /// Frames the program took from it.
    pub received: u64,
    /// Descriptors outside the UMEM.
    pub bad_descriptor: u64,
    /// Dropped by the kernel: rx ring full.
    pub ring_full: u64,
    /// Dropped by the kernel: no frame, or too long for one.
    pub rx_dropped: u64,
    /// Given to the stack: no socket wanted them.
    pub rode: u64,
    /// Dropped: the checksum is wrong.
    #[serde(default)]
    pub bad_checksum: u64,
}

impl Report {
    /// From JSON.
    pub fn parse(json: &str) -> anyhow::Result<Self> {
        serde_json::from_str(json).with_context(|| format!("not a status: {json}"))
    }

    /// Whether an open socket on this port is lifted.
    pub fn lifts(&self, local: u16) -> bool {
        self.sockets.iter().any(|s| port(s) == Some(local) && s.reason == "lifted")
    }

    /// Open sockets on this port that are lifted.
    pub fn lifted_on(&self, local: u16) -> Vec<&Socket> {
        self.sockets.iter().filter(|s| port(s) == Some(local) && s.reason == "lifted").collect()
    }

    /// Datagrams that programs took from rings and from the kernel, fences left out.
    pub fn packets(&self) -> (u64, u64) {
        let counted = || self.counted();
        (counted().map(|s| s.lifted_packets).sum(), counted().map(|s| s.passed_packets).sum())
    }

    /// Payload of streams that programs took from frames and from the kernel.
    pub fn stream_bytes(&self) -> (u64, u64) {
        let all = || self.connections.iter().chain([&self.closed_connections]);
        (all().map(|c| c.lifted_bytes).sum(), all().map(|c| c.passed_bytes).sum())
    }

    /// Segments of streams that were dropped for their checksum.
    pub fn bad_checksums(&self) -> u64 {
        self.rings.iter().map(|ring| ring.bad_checksum).sum()
    }

    fn counted(&self) -> impl Iterator<Item = &Socket> {
        self.sockets.iter().chain(&self.closed).filter(|s| port(s) != Some(FENCE_PORT))
    }

    fn gives_reason(&self, reason: &str) -> bool {
        let young = |p: &Process| p.young_sockets > 0 || p.unregistered_packets > 0;
        self.counted().any(|s| s.reason == reason) || reason == "young" && self.processes.iter().any(young)
    }

    /// Whether every frame is accounted for and what was lifted is what was to be; the error says what is not.
    pub fn judge(&self, expect: Expect) -> Result<(), String> {
        let bad = self.rings.iter().map(|ring| ring.bad_descriptor).sum::<u64>();
        if self.leaked_frames != 0 || bad != 0 {
            return Err(format!("{} frames leaked, {bad} bad descriptors", self.leaked_frames));
        }
        let (lifted, passed) = self.packets();
        match expect {
            Expect::Lifted | Expect::Mixed if lifted == 0 => Err(format!("nothing was lifted: {self:?}")),
            Expect::Lifted if passed > 0 => Err(format!("{passed} datagrams came by the kernel: {self:?}")),
            Expect::Streams if self.stream_bytes().0 == 0 => {
                Err(format!("nothing of a stream was lifted: {self:?}"))
            }
            Expect::Passed(reason) if !self.gives_reason(reason) => {
                Err(format!("no socket has reason {reason}: {self:?}"))
            }
            _ => Ok(()),
        }
    }
}

fn port(socket: &Socket) -> Option<u16> {
    socket.local.rsplit_once(':')?.1.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(port: u16, reason: &str, lifted_packets: u64, passed_packets: u64) -> Report {
        let local = format!("10.0.0.2:{port}");
        let socket = Socket { pid: 0, local, reason: reason.into(), lifted_packets, passed_packets };
        Report { sockets: vec![socket], ..Report::default() }
    }

    #[test]
    fn lifting_nothing_or_passing_something_is_found_out() {
        assert!(report(1, "lifted", 0, 0).judge(Expect::Lifted).is_err());
        assert!(report(1, "lifted", 5, 1).judge(Expect::Lifted).is_err());
        assert!(report(1, "lifted", 5, 0).judge(Expect::Lifted).is_ok());
        assert!(report(1, "forked", 0, 9).judge(Expect::Mixed).is_err());
        assert!(report(1, "forked", 1, 9).judge(Expect::Mixed).is_ok());
    }

    #[test]
    fn the_fence_does_not_count() {
        assert!(report(FENCE_PORT, "lifted", 16, 0).judge(Expect::Lifted).is_err());
    }

    #[test]
    fn passing_needs_its_reason() {
        assert!(report(1, "exec", 0, 3).judge(Expect::Passed("exec")).is_ok());
        assert!(report(1, "no-device", 0, 3).judge(Expect::Passed("exec")).is_err());
        let process = Process { holds_rings: false, young_sockets: 0, unregistered_packets: 1 };
        let young = Report { processes: vec![process], ..Report::default() };
        assert!(young.judge(Expect::Passed("young")).is_ok());
    }

    #[test]
    fn a_leaked_frame_spoils_everything() {
        let leaked = Report { leaked_frames: 1, ..report(1, "lifted", 5, 0) };
        assert!(leaked.judge(Expect::Lifted).is_err());
    }
}
