//! What `hoist run` says of a trial, by a file in memory: nothing is left behind whatever way the bench ends.

use anyhow::{Context, Result};
use hoist_broker::status::{Status, Traffic};
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::{
    fs,
    os::fd::{AsRawFd, OwnedFd},
    path::PathBuf,
};

/// Where `hoist run --json` writes.
pub(crate) struct StatusFile {
    pub(crate) path: PathBuf,
    _memory: OwnedFd,
}

/// What became of a trial's datagrams or stream.
#[derive(Debug, PartialEq)]
pub(crate) struct Lifted {
    /// Of all datagrams that the programs read.
    pub(crate) percent: f64,
    /// Of all bytes of TCP that they read; 0 when none is known of.
    pub(crate) stream_percent: f64,
    /// 0 is right.
    pub(crate) leaked_frames: i64,
    /// `native, copy` for instance.
    pub(crate) mode: Option<String>,
}

impl StatusFile {
    pub(crate) fn make() -> Result<Self> {
        let memory = memfd_create("status", MFdFlags::MFD_CLOEXEC)
            .context("making a file in memory (memfd_create)")?;
        let path = format!("/proc/{}/fd/{}", std::process::id(), memory.as_raw_fd()).into();
        Ok(Self { path, _memory: memory })
    }

    /// Before a trial, so that none is judged by what was said of another.
    pub(crate) fn clear(&self) -> Result<()> {
        fs::write(&self.path, "").context("clearing what hoist run said of the last trial")
    }

    /// What the last `hoist run` wrote.
    pub(crate) fn read(&self) -> Result<Lifted> {
        let text = fs::read_to_string(&self.path).context("reading what hoist run says of a trial")?;
        Ok(Lifted::of(
            &serde_json::from_str(&text).context("hoist run said nothing of a trial that is a status")?,
        ))
    }
}

impl Lifted {
    fn of(status: &Status) -> Self {
        let mut traffic = Traffic::default();
        status.sockets.iter().for_each(|socket| traffic.add(&socket.traffic));
        status.closed.iter().for_each(|closed| traffic.add(&closed.traffic));
        let unlisted: u64 = status.processes.iter().map(|process| process.unregistered_packets).sum();
        let all = traffic.lifted_packets + traffic.passed_packets + unlisted;
        let mut stream =
            (status.closed_connections.traffic.lifted_bytes, status.closed_connections.traffic.passed_bytes);
        for connection in &status.connections {
            stream.0 += connection.traffic.lifted_bytes;
            stream.1 += connection.traffic.passed_bytes;
        }
        let mode = status.devices.first().map(|device| format!("{}, {}", device.xdp, device.mode));
        Self {
            percent: percent(traffic.lifted_packets, all).unwrap_or(100.0),
            stream_percent: percent(stream.0, stream.0 + stream.1).unwrap_or(0.0),
            leaked_frames: status.leaked_frames,
            mode,
        }
    }
}

fn percent(part: u64, all: u64) -> Option<f64> {
    (all > 0).then(|| 100.0 * part as f64 / all as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_written_by_its_path_can_be_read_again_and_again() {
        let file = StatusFile::make().unwrap();
        for lifted_packets in [3, 1] {
            let mut status = Status::default();
            status.closed.push(Default::default());
            status.closed[0].traffic = Traffic { lifted_packets, passed_packets: 1, ..Traffic::default() };
            fs::write(&file.path, serde_json::to_string(&status).unwrap()).unwrap();
            let percent = 100.0 * lifted_packets as f64 / (lifted_packets + 1) as f64;
            let expected = Lifted { percent, stream_percent: 0.0, leaked_frames: 0, mode: None };
            assert_eq!(file.read().unwrap(), expected);
        }
    }

    #[test]
    fn a_stream_counts_open_and_closed_connections() {
        let mut status = Status::default();
        status.connections.push(Default::default());
        (status.connections[0].traffic.lifted_bytes, status.closed_connections.traffic.passed_bytes) = (1, 3);
        assert_eq!(Lifted::of(&status).stream_percent, 25.0);
    }

    #[test]
    fn nothing_received_is_nothing_passed_but_no_stream_that_was_lifted() {
        let lifted = Lifted::of(&Status::default());
        assert_eq!((lifted.percent, lifted.stream_percent), (100.0, 0.0));
    }
}
