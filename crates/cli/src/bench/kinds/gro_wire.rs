//! `gro-wire`: segments of the lab's traffic to the kernel's own GRO. They end at the host's routing, which knows no way for them.

use super::{Bench, LOSS};
use crate::bench::{
    document::{Metric, Point},
    gro::{self, Arrival, CPU, FLOWS, Hosts, MERGED, MSS, Traffic},
    others::{Taken, Watched},
    plan::Plan,
    side::Side,
    stage::Stage,
    trial::{Watch, cpu_ns, favoured_napis},
};
use anyhow::{Context, Result};
use hoist_packet::gro::MAX_HEADERS;
use hoist_wire::{Offload, RawSender, Testbed};
use shares::Shares;
use std::{
    fs,
    io::IoSlice,
    time::{Duration, Instant},
};

mod shares;

/// The kernel's functions whose part of the NAPI thread's CPU time is told, each without what it calls.
const FUNCTIONS: [Metric; 4] = [
    Metric::part("dev_gro_receive", "%"),
    Metric::part("inet_gro_receive", "%"),
    Metric::part("tcp_gro_receive", "%"),
    Metric::part("csum_partial", "%"),
];

/// The device waits so long for more before it is polled again, so that polls are full; ns, and how often.
const HELD_BACK: [(&str, &str); 2] = [("gro_flush_timeout", "200000"), ("napi_defer_hard_irqs", "100")];
/// Segments that one stream has; it is sent again and again.
const SEGMENTS: usize = 1 << 16;

/// A metric that explains others and belongs into the tables all the same.
pub(super) fn is_told(metric: &str) -> bool {
    FUNCTIONS.iter().any(|told| told.name == metric)
}

pub(super) fn prepare(stage: &mut Stage) -> Result<Box<dyn Bench>> {
    // veth gives to GRO only what comes from a device without segmentation (veth_skb_is_eligible_for_gro)
    [Offload::Tso, Offload::Gso].iter().try_for_each(|off| stage.testbed.wire().set_offload(*off, false))?;
    hold_back(&stage.testbed)?;
    if !shares::can_tell() {
        stage.note("perf(1) is not there or may not sample: no shares of the kernel's functions".into());
    }
    Ok(Box::new(GroWire))
}

fn hold_back(testbed: &Testbed) -> Result<()> {
    let device = testbed.host().device();
    let write = |(setting, value): &(&str, &str)| {
        let path = format!("/sys/class/net/{device}/{setting}");
        fs::write(&path, value).with_context(|| format!("writing {value} to {path}"))
    };
    testbed.host().netns().enter_with_sysfs(|| HELD_BACK.iter().try_for_each(write))?
}

struct GroWire;

impl Bench for GroWire {
    fn round(&mut self, stage: &mut Stage) -> Result<()> {
        let all: &[u64] = if stage.plan.quick { &[1, 1_000] } else { &FLOWS };
        for (name, hosts) in [("flows of one host", Hosts::One), ("flows of many hosts", Hosts::Many)] {
            for &flows in all {
                let traffic = Traffic { flows, hosts, ..Traffic::BASE };
                one(stage, &Point::of(name, flows as f64, "flows"), &traffic)?;
            }
        }
        Ok(())
    }
}

fn one(stage: &mut Stage, point: &Point, traffic: &Traffic) -> Result<()> {
    stage.show("kernel", Some(point));
    let stream = traffic.stream(stage.round() as u64, SEGMENTS)?;
    let found = stage.retaken(Side::Kernel, |testbed, plan| trial(testbed, plan, &stream))?;
    let Counters { packets, segments } = found.came;
    stage.record("kernel", Some(point), MERGED, segments as f64 / packets.max(1) as f64);
    stage.record("kernel", Some(point), CPU, found.napi_ns as f64 / segments.max(1) as f64);
    stage.record("kernel", Some(point), LOSS, 100.0 * found.lost());
    for metric in FUNCTIONS {
        if let Some(share) = found.shares.of(metric.name) {
            stage.record("kernel", Some(point), metric, share);
        }
    }
    stage.record("lab", Some(point), MERGED, gro::predicted(&stream));
    Ok(())
}

/// What came of one trial.
struct Found {
    sent: u64,
    came: Counters,
    napi_ns: u64,
    shares: Shares,
    taken: Taken,
}

impl Found {
    fn lost(&self) -> f64 {
        1.0 - (self.came.segments as f64 / self.sent.max(1) as f64).min(1.0)
    }
}

impl Watched for Found {
    fn taken(&self) -> Taken {
        self.taken
    }
}

fn trial(testbed: &Testbed, plan: &Plan, stream: &[Arrival]) -> Result<Found> {
    let napis = favoured_napis(testbed, plan, Side::Kernel)?;
    let time = Duration::from_millis(plan.trial_ms);
    let sampler = shares::sample(&napis, time);
    let watch = Watch::start(plan.host_cpu, []);
    let (before, ns_before) = (Counters::read(testbed)?, cpu_ns(&napis)?);
    let sent = send(testbed, stream, time)?;
    let after = settled(testbed, &before, sent)?;
    let napi_ns = cpu_ns(&napis)?.saturating_sub(ns_before);
    let taken = watch.end();
    Ok(Found { sent, came: after.since(&before), napi_ns, shares: sampler.end(), taken })
}

/// Sends the stream over and over. How many segments went out.
fn send(testbed: &Testbed, stream: &[Arrival], time: Duration) -> Result<u64> {
    let mut sender = RawSender::open(testbed.wire())?;
    let mac = testbed.host().mac();
    let mut frames = vec![[0; MAX_HEADERS + MSS]; RawSender::BATCH];
    let (end, mut sent) = (Instant::now() + time, 0);
    for batch in stream.chunks_exact(RawSender::BATCH).cycle() {
        if Instant::now() >= end {
            break;
        }
        let written = frames.iter_mut().zip(batch).map(|(frame, arrival)| write(frame, arrival, mac));
        let slices: Vec<IoSlice> = written.map(IoSlice::new).collect();
        sender.send(&slices)?;
        sent += slices.len() as u64;
    }
    Ok(sent)
}

/// The payload is zeros, and stays so.
fn write<'a>(frame: &'a mut [u8], arrival: &Arrival, mac: [u8; 6]) -> &'a [u8] {
    let at = arrival.segment.payload.start as usize;
    frame[..at].copy_from_slice(&arrival.headers[..at]);
    frame[..mac.len()].copy_from_slice(&mac);
    &frame[..arrival.segment.payload.end as usize]
}

/// The counters once all that was sent has come up, or what did not come is lost.
fn settled(testbed: &Testbed, before: &Counters, sent: u64) -> Result<Counters> {
    let end = Instant::now() + Duration::from_millis(100);
    loop {
        let now = Counters::read(testbed)?;
        if now.since(before).segments >= sent || Instant::now() > end {
            return Ok(now);
        }
        std::thread::yield_now();
    }
}

/// What came up from the host's GRO: `ip_rcv_core` counts packets, and the segments in them.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Counters {
    packets: u64,
    segments: u64,
}

impl Counters {
    fn read(testbed: &Testbed) -> Result<Self> {
        // /proc/net would be that of the process's first thread
        let read = |file: &str| fs::read_to_string(format!("/proc/thread-self/net/{file}"));
        let both = testbed.host().enter(|| Ok::<_, std::io::Error>(read("snmp")? + &read("netstat")?))?;
        let text = both.context("reading the counters of IP (/proc/thread-self/net)")?;
        Self::parse(&text).context("/proc/net/snmp and netstat have no InReceives and InNoECTPkts")
    }

    fn parse(text: &str) -> Option<Self> {
        let number = |table: &str, name: &str| {
            let mut lines = text.lines().filter_map(|line| line.strip_prefix(table)?.strip_prefix(": "));
            let column = lines.next()?.split(' ').position(|column| column == name)?;
            lines.next()?.split(' ').nth(column)?.parse().ok()
        };
        Some(Self { packets: number("Ip", "InReceives")?, segments: number("IpExt", "InNoECTPkts")? })
    }

    fn since(&self, before: &Self) -> Self {
        Self { packets: self.packets - before.packets, segments: self.segments - before.segments }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_found_by_table_and_name() {
        let text = "Ip: Forwarding InReceives\nIp: 1 40\nIcmp: InMsgs\nIcmp: 9\n\
                    TcpExt: SyncookiesSent\nTcpExt: 3\nIpExt: InNoRoutes InNoECTPkts\nIpExt: 0 100\n";
        assert_eq!(Counters::parse(text), Some(Counters { packets: 40, segments: 100 }));
        assert_eq!(Counters::parse("Ip: Forwarding\nIp: 1\n"), None);
    }

    #[test]
    fn a_frame_is_the_segments_headers_to_the_hosts_address() {
        let stream = Traffic::BASE.stream(1, 1).unwrap();
        let mut frame = [0; MAX_HEADERS + MSS];
        let written = write(&mut frame, &stream[0], [2, 9, 9, 9, 9, 9]);
        assert_eq!(written[..6], [2, 9, 9, 9, 9, 9]);
        let trust = hoist_packet::tcp::ChecksumTrust::Verify;
        assert_eq!(hoist_packet::tcp::parse(written, trust), Ok(stream[0].segment.clone()));
    }
}
