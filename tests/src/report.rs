//! What `hoist run` counted, held against what a case expects.

use crate::cases::{Expect, FENCE_PORT};
use anyhow::Context;
use serde::Deserialize;

/// One socket's counters.
#[derive(Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct Socket {
    /// Local address, `address:port`.
    pub local: String,
    /// Lifted, or why not: the word of the reason.
    pub reason: String,
    /// Datagrams read from rings.
    pub lifted_packets: u64,
    /// Datagrams read from the kernel.
    pub passed_packets: u64,
}

#[derive(Deserialize)]
struct Report {
    sockets: Vec<Socket>,
}

/// The sockets of a report in JSON.
pub fn sockets(json: &str) -> anyhow::Result<Vec<Socket>> {
    let report: Report = serde_json::from_str(json).with_context(|| format!("not a report: {json}"))?;
    Ok(report.sockets)
}

/// Whether what was lifted is what was to be; the error says what was not.
pub fn judge(expect: Expect, sockets: &[Socket]) -> Result<(), String> {
    let counted: Vec<_> = sockets.iter().filter(|s| port(s) != Some(FENCE_PORT)).collect();
    let lifted: u64 = counted.iter().map(|s| s.lifted_packets).sum();
    let passed: u64 = counted.iter().map(|s| s.passed_packets).sum();
    match expect {
        Expect::Lifted if lifted == 0 => Err(format!("nothing was lifted: {counted:?}")),
        Expect::Lifted if passed > 0 => Err(format!("{passed} datagrams came by the kernel: {counted:?}")),
        Expect::Mixed if lifted == 0 => Err(format!("nothing was lifted: {counted:?}")),
        Expect::Passed(reason) if lifted == 0 && !counted.iter().any(|s| s.reason == reason) => {
            Err(format!("no socket has reason {reason}: {counted:?}"))
        }
        _ => Ok(()),
    }
}

fn port(socket: &Socket) -> Option<u16> {
    socket.local.rsplit_once(':')?.1.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn socket(port: u16, reason: &str, lifted_packets: u64, passed_packets: u64) -> Socket {
        Socket { local: format!("10.0.0.2:{port}"), reason: reason.into(), lifted_packets, passed_packets }
    }

    #[test]
    fn lifting_nothing_or_passing_something_is_found_out() {
        assert!(judge(Expect::Lifted, &[socket(1, "lifted", 0, 0)]).is_err());
        assert!(judge(Expect::Lifted, &[socket(1, "lifted", 5, 1)]).is_err());
        assert!(judge(Expect::Lifted, &[socket(1, "lifted", 5, 0)]).is_ok());
        assert!(judge(Expect::Mixed, &[socket(1, "forked", 0, 9)]).is_err());
        assert!(judge(Expect::Mixed, &[socket(1, "forked", 1, 9)]).is_ok());
    }

    #[test]
    fn the_fence_does_not_count() {
        let fence = socket(FENCE_PORT, "lifted", 16, 0);
        assert!(judge(Expect::Lifted, &[fence.clone()]).is_err());
        assert!(judge(Expect::Lifted, &[fence, socket(1, "lifted", 1, 0)]).is_ok());
    }

    #[test]
    fn passing_needs_its_reason() {
        assert!(judge(Expect::Passed("young"), &[socket(1, "young", 0, 3)]).is_ok());
        assert!(judge(Expect::Passed("young"), &[socket(1, "no-device", 0, 3)]).is_err());
    }
}
