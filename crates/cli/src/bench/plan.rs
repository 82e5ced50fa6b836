//! How `hoist bench` measures, and how often.

use super::side::Side;
use anyhow::{Result, bail};
use serde::Serialize;
use std::{path::PathBuf, time::Duration};

/// The settings of one run; stored with its samples.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Plan {
    /// Short trials and bounded time: to look, not to quote.
    pub(crate) quick: bool,
    /// Who is measured.
    pub(crate) sides: Vec<Side>,
    /// Each figure is taken so often, sides in turn.
    pub(crate) repeats: usize,
    /// No round of a bench starts that would end later than this; none lets all repeats be taken.
    pub(crate) bench_ms: Option<u64>,
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
    /// Disturbed failures of one search that do not count: without an end to it, a busy machine would search for ever.
    pub(crate) excuses: usize,
    /// The search starts between 0 and this rate.
    pub(crate) most_pps: f64,
    /// Offered rates of udp-overload; none derives them from where the kernel breaks.
    pub(crate) rates: Option<Vec<f64>>,
    /// The rate at which pass-cost is taken: the kernel takes it without loss.
    pub(crate) pass_pps: f64,
    /// SO_RCVBUF of the receivers; none leaves the default.
    pub(crate) rcvbuf: Option<u32>,
    /// SO_RCVBUF of kernel-tuned.
    pub(crate) tuned_rcvbuf: u32,
    /// Datagrams of a recvmmsg(2) of kernel-tuned.
    pub(crate) tuned_batch: u32,
    /// A trial during which others used the host's CPU for longer is taken again.
    pub(crate) tolerated_foreign_ns: u64,
    /// And one during which the machine below took the host's CPU for longer.
    pub(crate) tolerated_stolen_ns: u64,
    /// So often at most.
    pub(crate) attempts: usize,
    /// And only until all such retakes of one bench have taken so long.
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
    /// Every figure five times.
    pub(crate) fn full() -> Self {
        Self {
            quick: false,
            sides: Side::ALL.to_vec(),
            repeats: 5,
            bench_ms: None,
            trial_ms: 1000,
            search_ms: 400,
            frame_len: 64,
            flows: 1,
            checksum: true,
            tolerated_loss: 1e-3,
            resolution: 0.03,
            doubts: 4,
            excuses: 6,
            most_pps: 4e6,
            rates: None,
            pass_pps: 300e3,
            rcvbuf: None,
            tuned_rcvbuf: 4 << 20,
            tuned_batch: 32,
            tolerated_foreign_ns: 2_000_000,
            tolerated_stolen_ns: 0,
            attempts: 5,
            retakes_ms: 60_000,
            wire_cpu: 0,
            host_cpu: 1,
            status: None,
        }
    }

    /// Shorter and coarser, and as often as 40 seconds a bench allow: to look, not to quote.
    pub(crate) fn quick() -> Self {
        Self {
            quick: true,
            bench_ms: Some(40_000),
            trial_ms: 300,
            search_ms: 200,
            attempts: 2,
            retakes_ms: 5_000,
            resolution: 0.1,
            doubts: 2,
            excuses: 1,
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

    /// The time of one trial of a search.
    pub(crate) fn search_time(&self) -> Duration {
        Duration::from_millis(self.search_ms)
    }

    /// The time of one bench, where it is bounded.
    pub(crate) fn bench_time(&self) -> Option<Duration> {
        self.bench_ms.map(Duration::from_millis)
    }
}
