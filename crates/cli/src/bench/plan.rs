//! What `hoist bench udp` measures, and how often.

use anyhow::{Result, bail};
use serde::Serialize;
use std::{path::PathBuf, time::Duration};

/// The settings of one run; stored with its samples.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Plan {
    /// Each figure is taken so often, sides in turn.
    pub(crate) repeats: usize,
    /// One trial sends for so long.
    pub(crate) trial_ms: u64,
    /// One trial of a search for the loss-free rate sends for so long.
    pub(crate) search_ms: u64,
    /// A frame has so many bytes.
    pub(crate) frame_len: usize,
    /// Flows in turn.
    pub(crate) flows: u64,
    /// UDP checksums are filled in.
    pub(crate) checksum: bool,
    /// A trial is loss-free when at most this fraction is lost, the same for every side. Not zero: a veth holds 256 frames, so
    /// one millisecond that the machine below takes from the host's CPU is a loss at any rate that matters, and not the
    /// receiver's. A receiver that cannot keep up loses per cents. (FD.io's partial drop rate allows 0.5 %.)
    pub(crate) tolerated_loss: f64,
    /// The search ends when the rate is known to this fraction.
    pub(crate) resolution: f64,
    /// A rate has failed when it failed so often in a row.
    pub(crate) doubts: u32,
    /// The search starts between 0 and this rate.
    pub(crate) most_pps: f64,
    /// Offered rates of udp-overload.
    pub(crate) overload_pps: Vec<f64>,
    /// The rate at which pass-cost is taken: the kernel takes it without loss.
    pub(crate) pass_pps: f64,
    /// SO_RCVBUF of the receivers; none leaves the default.
    pub(crate) rcvbuf: Option<u32>,
    /// SO_RCVBUF of kernel-tuned.
    pub(crate) tuned_rcvbuf: u32,
    /// A trial during which others used the host's CPU for longer is taken again.
    pub(crate) tolerated_foreign_ns: u64,
    /// So often at most.
    pub(crate) attempts: usize,
    /// And only until all such retakes have taken so long.
    pub(crate) retakes_ms: u64,
    /// The generator.
    pub(crate) wire_cpu: usize,
    /// NAPI of vb and the receiver.
    pub(crate) host_cpu: usize,
    /// Where `hoist run` is to leave its status.
    #[serde(skip)]
    pub(crate) status: Option<PathBuf>,
}

impl Plan {
    /// Every figure five times or more often; about ten minutes.
    pub(crate) fn full() -> Self {
        Self {
            repeats: 5,
            trial_ms: 1000,
            search_ms: 500,
            frame_len: 64,
            flows: 1,
            checksum: true,
            tolerated_loss: 1e-3,
            resolution: 0.03,
            doubts: 2,
            most_pps: 4e6,
            overload_pps: vec![0.5e6, 0.77e6, 1.0e6, 1.4e6, 1.75e6, 2.2e6],
            pass_pps: 300e3,
            rcvbuf: None,
            tuned_rcvbuf: 4 << 20,
            tolerated_foreign_ns: 500_000,
            attempts: 5,
            retakes_ms: 180_000,
            wire_cpu: 0,
            host_cpu: 1,
            status: None,
        }
    }

    /// Three times and coarser, in about three minutes: to look, not to quote.
    pub(crate) fn quick() -> Self {
        Self {
            repeats: 3,
            trial_ms: 400,
            search_ms: 300,
            attempts: 3,
            retakes_ms: 60_000,
            resolution: 0.06,
            overload_pps: vec![0.77e6, 1.75e6],
            ..Self::full()
        }
    }

    /// Fails on a machine that cannot keep wire and host apart.
    pub(crate) fn check(&self) -> Result<()> {
        let cpus = std::thread::available_parallelism().map_or(1, Into::into);
        if cpus <= self.wire_cpu.max(self.host_cpu) {
            bail!("one CPU is the wire and another the host: this machine offers {cpus}");
        }
        Ok(())
    }

    /// The same with trials as long as a search's.
    pub(crate) fn searching(&self) -> Self {
        Self { trial_ms: self.search_ms, ..self.clone() }
    }

    pub(crate) fn trial(&self) -> Duration {
        Duration::from_millis(self.trial_ms)
    }
}
