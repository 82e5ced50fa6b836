//! `hoist doctor`: what this machine and its devices mean for Hoist, and how to mend what is in the way.
//!
//! `facts` reads (and changes nothing), `judge` turns facts into findings, `render` prints them. Only `facts` does
//! I/O; `netlink`, `netdev` and `netfilter` are the formats it reads, `sys` the calls.

mod facts;
mod judge;
mod netdev;
mod netfilter;
mod netlink;
mod render;
mod sys;

use crate::out;
use anyhow::{Context, Result};
use judge::Severity;
use std::process::ExitCode;

/// Say what stands between this machine and Hoist, and how to mend it.
///
/// Changes nothing. Works as an ordinary user, and says what it could not see and why. Exit code 1 if Hoist cannot
/// run. Each finding has a section in docs/tuning.md.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Look at this device only, even if it is down (default: every device).
    #[arg(value_name = "DEV")]
    device: Option<String>,
    /// Print the findings as JSON.
    #[arg(long)]
    json: bool,
}

pub(crate) fn main(args: Args) -> Result<ExitCode> {
    let facts = facts::gather(args.device.as_deref())?;
    let findings = judge::judge(&facts);
    let report = if args.json { render::json(&findings)? } else { render::terminal(&findings) };
    out::print(&report)?;
    let runs = findings.iter().all(|finding| finding.severity < Severity::Bad);
    Ok(if runs { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What a device offers to whoever takes packets from its driver; None: it cannot be seen.
pub(crate) struct Receiver {
    pub(crate) kind: String,
    pub(crate) up: bool,
    pub(crate) loopback: bool,
    /// Native XDP that can redirect.
    pub(crate) redirects: Option<bool>,
    /// Id of the XDP program attached.
    pub(crate) attached: Option<u32>,
    pub(crate) queues: u32,
    /// Queues for which the kernel's RPS names CPUs.
    pub(crate) kernel_rps: usize,
    /// VLAN devices on top.
    pub(crate) vlans: Vec<String>,
    /// The bridge above it that goes by VLAN tags.
    pub(crate) tags_for: Option<String>,
    /// The device takes the tags off.
    pub(crate) strips_tags: Option<bool>,
}

/// Looks at one device. Fails if there is none of that name.
pub(crate) fn receiver(name: &str) -> Result<Receiver> {
    let device = facts::devices(Some(name))?.into_iter().next().context("doctor: no device")?;
    let rps = device.rps.as_ref().map(|rps| (rps.queues, rps.steered)).unwrap_or((1, 0));
    let needs = netdev::XdpSupport::BASIC | netdev::XdpSupport::REDIRECT;
    Ok(Receiver {
        kind: device.kind.or_else(|| device.driver.clone().ok()).unwrap_or_default(),
        up: device.up,
        loopback: device.loopback,
        redirects: device.xdp.ok().map(|xdp| xdp.has(needs)),
        attached: device.attached.map(|program| program.id),
        queues: rps.0.max(1) as u32,
        kernel_rps: rps.1,
        vlans: device.vlans,
        tags_for: device.tags_for,
        strips_tags: device.features.ok().map(|features| features.active.contains("rx-vlan-hw-parse")),
    })
}
