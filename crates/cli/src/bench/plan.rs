//! What `hoist bench udp` measures, and how often.

use serde::Serialize;
use std::time::Duration;

/// The settings of one run; stored with its samples.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Plan {
    /// Each figure is taken so often, sides in turn.
    pub(crate) repeats: usize,
    /// One trial sends for so long.
    pub(crate) trial_ms: u64,
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
    /// SO_RCVBUF of the receiver.
    pub(crate) rcvbuf: u32,
    /// A trial during which others used the host's CPU for longer is taken again.
    pub(crate) tolerated_foreign_ns: u64,
    /// So often at most.
    pub(crate) attempts: usize,
    /// The generator.
    pub(crate) wire_cpu: usize,
    /// NAPI of vb and the receiver.
    pub(crate) host_cpu: usize,
}

impl Plan {
    /// Every figure five times or more often.
    pub(crate) fn full() -> Self {
        Self {
            repeats: 5,
            trial_ms: 1000,
            frame_len: 64,
            flows: 1,
            checksum: true,
            tolerated_loss: 1e-3,
            resolution: 0.03,
            doubts: 2,
            most_pps: 4e6,
            overload_pps: vec![0.5e6, 0.77e6, 1.0e6, 1.4e6, 1.75e6, 2.2e6],
            pass_pps: 300e3,
            rcvbuf: 4 << 20,
            tolerated_foreign_ns: 500_000,
            attempts: 5,
            wire_cpu: 0,
            host_cpu: 1,
        }
    }

    /// Three times and coarser: to look, not to quote.
    pub(crate) fn quick() -> Self {
        Self {
            repeats: 3,
            trial_ms: 400,
            attempts: 3,
            resolution: 0.06,
            overload_pps: vec![0.77e6, 1.75e6],
            ..Self::full()
        }
    }

    pub(crate) fn trial(&self) -> Duration {
        Duration::from_millis(self.trial_ms)
    }
}
