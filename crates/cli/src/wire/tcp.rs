//! `hoist wire tcp`: TCP connections to a receiver on the host end, filled as fast as it takes them.

use super::exit_code;
use crate::ends::{Ends, Event, LOOK_MS};
use anyhow::Result;
use hoist_wire::{Error, TcpLimit, TcpRunning, TcpSent, TcpSpec, TcpWire, Testbed};
use std::{
    io::{IsTerminal, Write},
    net::{IpAddr, SocketAddr},
    process::ExitCode,
    time::Duration,
};

/// Open TCP connections to a receiver on the host end and fill them as fast as it takes them.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The testbed.
    #[arg(long, value_name = "NAME", default_value = "demo")]
    testbed: String,
    /// To the host end's IPv6 address.
    #[arg(long)]
    ipv6: bool,
    /// The port that the receiver listens on.
    #[arg(long, default_value_t = 9000)]
    port: u16,
    /// Connections, filled in turn.
    #[arg(long, default_value_t = 1)]
    connections: u32,
    /// Gbit/s of payload over all connections; 0 is as fast as possible.
    #[arg(long, default_value_t = 0.0)]
    gbit: f64,
    /// How long to send.
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// Send so many bytes on each connection instead.
    #[arg(long, conflicts_with = "seconds")]
    bytes: Option<u64>,
    /// Bytes of payload a segment; what the handshake agreed on unless told.
    #[arg(long, value_name = "BYTES")]
    mss: Option<u32>,
    /// The most bytes in flight on a connection.
    #[arg(long, value_name = "BYTES", default_value_t = 4 << 20)]
    cap: u64,
    /// Write every payload anew, so that the receiver finds none of it in its caches.
    #[arg(long)]
    cold: bool,
    /// Segments handed over at once: 16, 32, 64 or 128.
    #[arg(long, default_value_t = 64)]
    batch: u32,
    /// The CPU that sends.
    #[arg(long, default_value_t = 0)]
    cpu: usize,
    /// One JSON object at the end, and no live line.
    #[arg(long)]
    json: bool,
}

pub(crate) fn main(args: &Args) -> Result<ExitCode> {
    let testbed = Testbed::open(&args.testbed)?;
    let spec = spec(args, &testbed)?;
    let ends = Ends::block()?;
    let running = TcpWire::start(&testbed, &spec)?;
    let live = !args.json && std::io::stderr().is_terminal();
    let event = watch(&running, &ends, live)?;
    if live {
        tell!("\r\x1b[K");
    }
    report(args, &end(running, event)?);
    if event == Event::Time {
        tell_line!("hoist: gave up: the receiver has acknowledged nothing for {PATIENCE_SECONDS} s");
        return Ok(ExitCode::FAILURE);
    }
    Ok(exit_code(event))
}

/// [`Event::Time`] when the receiver takes nothing any more.
fn watch(running: &TcpRunning, ends: &Ends, live: bool) -> Result<Event> {
    let mut quiet = 0;
    let mut before = running.sent()?;
    while quiet < PATIENCE_SECONDS * 1000 / u32::from(LOOK_MS) {
        let event = ends.wait(&running.ended())?;
        if event != Event::Time {
            return Ok(event);
        }
        let sent = running.sent()?;
        quiet = if sent.acked_bytes > before.acked_bytes { 0 } else { quiet + 1 };
        if live {
            print_live(&before, &sent)?;
        }
        before = sent;
    }
    Ok(Event::Time)
}

/// After Ctrl-C the receiver gets what is under way, and the end of the stream behind it.
fn end(mut running: TcpRunning, event: Event) -> Result<TcpSent> {
    if !matches!(event, Event::Signal(_)) {
        return Ok(running.stop()?);
    }
    running.drain()?;
    Ok(running.finish(LAST_ACKS)?)
}

const PATIENCE_SECONDS: u32 = 10; // with a receiver that takes nothing
const LAST_ACKS: Duration = Duration::from_secs(1);

fn spec(args: &Args, testbed: &Testbed) -> Result<TcpSpec> {
    if !(args.seconds > 0.0 && args.seconds <= 1e6) {
        let why = "must be more than 0 and at most a million";
        return Err(Error::Spec(format!("--seconds {}: {why}", args.seconds)).into());
    }
    let limit = match args.bytes {
        Some(bytes) => TcpLimit::Bytes(bytes),
        None => TcpLimit::Time(Duration::from_secs_f64(args.seconds)),
    };
    let host = testbed.host();
    let address: IpAddr = if args.ipv6 { host.v6().into() } else { host.v4().into() };
    let spec = TcpSpec::to(SocketAddr::new(address, args.port))
        .connections(args.connections)
        .gbit_per_second(args.gbit)
        .cap_bytes(args.cap)
        .cold(args.cold)
        .batch(args.batch)
        .limit(limit)
        .cpu(args.cpu);
    Ok(match args.mss {
        Some(bytes) => spec.mss(bytes),
        None => spec,
    })
}

fn print_live(before: &TcpSent, sent: &TcpSent) -> Result<()> {
    let gbit =
        (sent.acked_bytes - before.acked_bytes) as f64 * 8e-9 / (sent.seconds - before.seconds).max(1e-3);
    tell!("\r\x1b[K{:>6.1} s  {gbit:.2} Gbit/s  {}", sent.seconds, waits(sent));
    std::io::stderr().flush()?;
    Ok(())
}

fn waits(sent: &TcpSent) -> String {
    let shares = [("NAPI", sent.blocked.ring), ("window", sent.blocked.window), ("pace", sent.blocked.pace)];
    let shares = shares.map(|(what, share)| format!("{what} {:.0} %", share * 100.0));
    format!("waiting for {}", shares.join(", "))
}

fn report(args: &Args, sent: &TcpSent) {
    let gbit = sent.gbit_per_second();
    if !args.json {
        let TcpSent { acked_bytes, seconds, go_backs, .. } = *sent;
        println!("{acked_bytes} bytes acknowledged in {seconds:.3} s: {gbit:.2} Gbit/s, {}", waits(sent));
        if go_backs > 0 {
            println!("sent again from the last acknowledged byte on: {go_backs} times");
        }
        if sent.closed > 0 {
            println!("ended by the receiver: {} connections", sent.closed);
        }
        return;
    }
    println!(
        "{}",
        serde_json::json!({
            "acked_bytes": sent.acked_bytes,
            "seconds": sent.seconds,
            "gbit_per_second": gbit,
            "segments": sent.segments,
            "acks": sent.acks,
            "go_backs": sent.go_backs,
            "dropped": sent.dropped,
            "closed": sent.closed,
            "blocked": { "ring": sent.blocked.ring, "window": sent.blocked.window, "pace": sent.blocked.pace },
        })
    );
}
