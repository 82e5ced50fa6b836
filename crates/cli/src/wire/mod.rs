//! `hoist wire`: UDP load on a testbed at a stated rate.

mod tcp;

use anyhow::{Result, bail};
use hoist_wire::{Generator, Limit, Running, Sent, Spec, Testbed};
use std::{
    io::{IsTerminal, Write},
    net::{IpAddr, SocketAddr},
    process::ExitCode,
    time::Duration,
};

/// Send UDP datagrams to the host end of a testbed at a stated rate.
#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
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
    /// The destination port.
    #[arg(long, default_value_t = 9000)]
    port: u16,
    /// Frames per second (k, M and G are understood); 0 is as fast as possible.
    #[arg(long, default_value = "0", value_parser = rate)]
    rate: f64,
    /// Bytes of the whole frame; the smallest that holds the stamp unless told.
    #[arg(long, value_name = "BYTES")]
    size: Option<usize>,
    /// How long to send.
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// Send so many frames instead.
    #[arg(long, value_name = "FRAMES", conflicts_with = "seconds")]
    count: Option<u64>,
    /// Flows in turn, by source port and address.
    #[arg(long, default_value_t = 1)]
    flows: u64,
    /// Tag the frames, to the host end's VLAN address.
    #[arg(long, value_name = "ID")]
    vlan: Option<u16>,
    /// Leave the UDP checksum zero (IPv4 only).
    #[arg(long)]
    no_checksum: bool,
    /// The CPU that sends.
    #[arg(long, default_value_t = 0)]
    cpu: usize,
    /// One JSON object at the end, and no live line.
    #[arg(long)]
    json: bool,
}

#[derive(clap::Subcommand)]
enum Other {
    Tcp(tcp::Args),
}

pub(crate) fn main(args: Args) -> Result<ExitCode> {
    if let Some(Other::Tcp(args)) = &args.other {
        return tcp::main(args);
    }
    let testbed = Testbed::open(&args.testbed)?;
    let running = Generator::start(&testbed, &spec(&args, &testbed)?)?;
    let live = !args.json && std::io::stderr().is_terminal();
    while !running.wait_for(Duration::from_millis(500))? {
        if live {
            print_live(&running)?;
        }
    }
    if live {
        eprint!("\r\x1b[K");
    }
    report(&args, running.stop()?);
    Ok(ExitCode::SUCCESS)
}

fn spec(args: &Args, testbed: &Testbed) -> Result<Spec> {
    if !(args.seconds > 0.0 && args.seconds <= 1e6) {
        bail!("--seconds {}: must be more than 0 and at most a million", args.seconds);
    }
    let limit = match args.count {
        Some(frames) => Limit::Packets(frames),
        None => Limit::Time(Duration::from_secs_f64(args.seconds)),
    };
    let mut spec = Spec::to(target(args, testbed))
        .packets_per_second(args.rate)
        .flows(args.flows)
        .vlan(args.vlan)
        .checksum(!args.no_checksum)
        .limit(limit)
        .cpu(args.cpu);
    if let Some(bytes) = args.size {
        spec = spec.frame_len(bytes);
    }
    Ok(spec)
}

fn target(args: &Args, testbed: &Testbed) -> SocketAddr {
    let host = testbed.host();
    let own = match (args.ipv6, args.vlan.is_some()) {
        (false, false) => host.v4().into(),
        (false, true) => host.vlan_v4().into(),
        (true, false) => host.v6().into(),
        (true, true) => host.vlan_v6().into(),
    };
    SocketAddr::new(args.to.unwrap_or(own), args.port)
}

fn print_live(running: &Running) -> Result<()> {
    let sent = running.sent()?;
    eprint!("\r\x1b[K{:>6.1} s  {:.3} Mpps  {} frames", sent.seconds, sent.rate() / 1e6, sent.packets);
    std::io::stderr().flush()?;
    Ok(())
}

fn report(args: &Args, sent: Sent) {
    let Sent { packets, seconds } = sent;
    let pps = sent.rate();
    if args.json {
        println!(
            "{}",
            serde_json::json!({ "packets": packets, "seconds": seconds, "pps": pps, "asked_pps": args.rate })
        );
    } else {
        println!("sent {packets} frames in {seconds:.3} s: {:.3} Mpps", pps / 1e6);
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
    use super::rate;

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
