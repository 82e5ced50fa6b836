//! `hoist wire`: UDP load at a stated rate, on a testbed or on a device, over a good link or a bad one.

mod device;
mod link;
mod tcp;
mod traffic;

use crate::ends::{Ends, Event};
use anyhow::Result;
use device::Device;
use hoist_wire::{Direction, Error, Generator, Link, LinkCounts, Running, Sent, Testbed};
use link::Impair;
use std::{
    io::{IsTerminal, Write},
    net::{IpAddr, SocketAddr},
    process::ExitCode,
    time::Instant,
};
use traffic::Traffic;

/// Send UDP datagrams to the host end of a testbed at a stated rate.
#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true, after_long_help = HELP)]
pub(crate) struct Args {
    #[command(subcommand)]
    other: Option<Other>,
    /// The testbed.
    #[arg(long, value_name = "NAME", default_value = "demo")]
    testbed: String,
    /// Where to: the host end's IPv4 address unless told; a group's address makes it multicast.
    #[arg(long, value_name = "ADDRESS")]
    to: Option<IpAddr>,
    /// To the host end's IPv6 address.
    #[arg(long, conflicts_with = "to")]
    ipv6: bool,
    /// The destination port; with patterns, that of the first receiver.
    #[arg(long, default_value_t = 9000)]
    port: u16,
    /// One JSON object at the end, and no live line.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    traffic: Box<Traffic>,
    #[command(flatten)]
    impair: Impair,
    #[command(flatten)]
    device: Device,
}

#[derive(clap::Subcommand)]
enum Other {
    Tcp(tcp::Args),
    Link(link::Args),
}

const HELP: &str = "\
Patterns (after 'Understanding Host Network Stack Overheads', SIGCOMM 2021). A source address is a sender, a destination
port a receiver; both count up from the first:
  single      [s0] ---> [port]
  one-to-one  [s0] ---> [port]      [s1] ---> [port + 1]      ...
  incast      [s0] [s1] [s2] ... ---> [port]
  outcast     [s0] ---> [port] [port + 1] [port + 2] ...
  all-to-all  each of [s0] [s1] ... ---> each of [port] [port + 1] ...
  mixed       [s0] ---> [port], long flows of --size frames between short flows of small ones

Every datagram carries flow, number and time, so that a receiver can tell loss, reordering, duplicates and delay.

Examples:
  hoist wire --rate 1M --flows 1000
  hoist wire --pattern all-to-all --peers 24 --size 1500
  hoist wire --flows 1000000 --zipf 1.1 --seed 7
  hoist wire --rate 50k --loss 0.01 --delay-us 200 --jitter-us 50 --reorder 0.01 --duplicate 0.01 --seed 7
  hoist wire link --loss 0.01 --direction both
  hoist wire --dev eth1 --dst-mac 02:00:5e:10:00:01 --src 192.0.2.1 --to 192.0.2.2 --rate 1M --i-own-this-link";

pub(crate) fn main(args: Args) -> Result<ExitCode> {
    match (&args.other, &args.device.dev) {
        (Some(Other::Tcp(args)), _) => tcp::main(args),
        (Some(Other::Link(link)), _) => link::main(link),
        (None, Some(dev)) => from_device(&args, dev),
        (None, None) => from_testbed(&args),
    }
}

fn from_testbed(args: &Args) -> Result<ExitCode> {
    let testbed = Testbed::open(&args.testbed)?;
    if let Some(id) = args.traffic.vlan {
        check_vlan(&args.testbed, testbed.facts().vlan, id)?;
    }
    let ends = Ends::block()?;
    let spec = args.traffic.spec(target(args, &testbed))?;
    let impairment = args.impair.if_any(args.traffic.seed);
    let link =
        impairment.map(|impairment| Link::start(&testbed, Direction::ToHost, &impairment)).transpose()?;
    let running = match &link {
        Some(link) => Generator::start_over(link, &testbed, &spec)?,
        None => Generator::start(&testbed, &spec)?,
    };
    watch(args, &ends, running, link)
}

fn check_vlan(testbed: &str, has: Option<u16>, id: u16) -> hoist_wire::Result<()> {
    if has == Some(id) {
        return Ok(());
    }
    let has = has.map_or("no VLAN".into(), |other| format!("VLAN {other} only"));
    Err(Error::Spec(format!(
        "--vlan {id}: testbed {testbed} has {has}: `hoist testbed down {testbed}` and \
         `hoist testbed up --name {testbed} --vlan {id}` make one that has it"
    )))
}

fn from_device(args: &Args, dev: &str) -> Result<ExitCode> {
    if args.impair.if_any(0).is_some() {
        return Ok(usage(
            "a device's link cannot be impaired, only a testbed's: leave out --dev, or --loss and the like",
        ));
    }
    let hop = match args.device.hop(dev, args.to, args.port) {
        Ok(hop) => hop,
        Err(why) => return Ok(usage(&why)),
    };
    let ends = Ends::block()?;
    let spec = args.traffic.spec(hop.target)?;
    watch(args, &ends, Generator::start_on(&hop.egress(dev)?, &spec)?, None)
}

fn usage(why: &str) -> ExitCode {
    tell_line!("hoist: {why}");
    ExitCode::from(crate::USAGE)
}

fn watch(args: &Args, ends: &Ends, running: Running, link: Option<Link>) -> Result<ExitCode> {
    let live = !args.json && std::io::stderr().is_terminal();
    let mut pace = Pace::new();
    let event = loop {
        match ends.wait(&running.ended())? {
            Event::Time if live => print_live(&mut pace, running.sent()?, link.as_ref())?,
            Event::Time => {}
            event => break event,
        }
    };
    if live {
        tell!("\r\x1b[K");
    }
    let sent = running.stop()?;
    report(args, sent, link.map(Link::stop).transpose()?);
    Ok(exit_code(event))
}

/// 130 after Ctrl-C: it sent less than it was asked to.
fn exit_code(event: Event) -> ExitCode {
    match event {
        Event::Signal(interrupted) => interrupted.code(),
        Event::Time | Event::Done => ExitCode::SUCCESS,
    }
}

fn target(args: &Args, testbed: &Testbed) -> SocketAddr {
    let host = testbed.host();
    let own = match (args.ipv6, args.traffic.vlan.is_some()) {
        (false, false) => host.v4().into(),
        (false, true) => host.vlan_v4().into(),
        (true, false) => host.v6().into(),
        (true, true) => host.vlan_v6().into(),
    };
    SocketAddr::new(args.to.unwrap_or(own), args.port)
}

/// The rate since the last look.
struct Pace {
    at: Instant,
    packets: u64,
}

impl Pace {
    fn new() -> Self {
        Self { at: Instant::now(), packets: 0 }
    }

    fn rate(&mut self, packets: u64) -> f64 {
        let rate = (packets - self.packets) as f64 / self.at.elapsed().as_secs_f64();
        *self = Self { at: Instant::now(), packets };
        rate
    }
}

fn print_live(pace: &mut Pace, sent: Sent, link: Option<&Link>) -> Result<()> {
    let mpps = pace.rate(sent.packets) / 1e6;
    let link = match link {
        Some(link) => format!("  {}", link::line(&link.counts()?)),
        None => String::new(),
    };
    tell!("\r\x1b[K{:>6.1} s  {mpps:.3} Mpps  {} frames{link}", sent.seconds, sent.packets);
    std::io::stderr().flush()?;
    Ok(())
}

impl Args {
    /// A device's transmit ring may refuse some of what it is offered; on a testbed, that is the receiver's loss.
    fn packets(&self) -> &'static str {
        if self.device.dev.is_some() { "offered_packets" } else { "packets" }
    }

    fn verb(&self) -> &'static str {
        if self.device.dev.is_some() { "offered" } else { "sent" }
    }
}

fn report(args: &Args, sent: Sent, link: Option<LinkCounts>) {
    let Sent { packets, seconds } = sent;
    let (pps, asked_pps) = (sent.rate(), args.traffic.rate);
    if args.json {
        let object = serde_json::json!({
            (args.packets()): packets, "seconds": seconds, "pps": pps, "asked_pps": asked_pps, "link": link
        });
        println!("{object}");
        return;
    }
    println!("{} {packets} frames in {seconds:.3} s: {:.3} Mpps", args.verb(), pps / 1e6);
    if let Some(counts) = link {
        println!("{}", link::line(&counts));
    }
}

/// A number with an optional k, M or G.
pub(crate) fn rate(text: &str) -> Result<f64, String> {
    let (number, factor) = match text.char_indices().last() {
        Some((at, 'k' | 'K')) => (&text[..at], 1e3),
        Some((at, 'M')) => (&text[..at], 1e6),
        Some((at, 'G')) => (&text[..at], 1e9),
        _ => (text, 1.0),
    };
    match number.parse::<f64>() {
        Ok(value) if value >= 0.0 && value.is_finite() => Ok(value * factor),
        _ => Err(format!("{text:?} is no rate: a number, with k, M or G if you like")),
    }
}

#[cfg(test)]
mod tests {
    use super::{check_vlan, rate};

    #[test]
    fn a_vlan_that_the_testbed_lacks_is_refused_with_the_way_to_make_it() {
        assert!(check_vlan("demo", Some(100), 100).is_ok());
        for has in [None, Some(7)] {
            let refused = check_vlan("demo", has, 100).unwrap_err().to_string();
            assert!(refused.contains("hoist testbed up --name demo --vlan 100"), "{refused}");
        }
    }

    #[test]
    fn rates_take_a_factor_and_nothing_else() {
        assert_eq!(rate("1.75M"), Ok(1.75e6));
        assert_eq!(rate("300k"), Ok(3e5));
        assert_eq!(rate("0"), Ok(0.0));
        for bad in ["", "M", "-1", "1.5X", "inf", "nan"] {
            assert!(rate(bad).is_err(), "{bad:?}");
        }
    }
}
