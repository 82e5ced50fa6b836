//! `hoist wire link`: a testbed's cable, made bad for whatever crosses it.

use crate::ends::{Ends, Event};
use anyhow::Result;
use hoist_wire::{Direction, Impairment, Link, LinkCounts, Testbed};
use std::{
    io::{IsTerminal, Write},
    process::ExitCode,
    time::Duration,
};

/// Impair the cable of a testbed until Ctrl-C, for whatever crosses it: kernel TCP and UDP too.
///
/// Neighbour discovery and group management pass untouched.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The testbed.
    #[arg(long, value_name = "NAME", default_value = "demo")]
    testbed: String,
    /// Which packets.
    #[arg(long, value_enum, default_value = "to-host")]
    direction: Which,
    #[command(flatten)]
    impair: Impair,
    /// Random choices are the same for the same seed; they differ between the two directions.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// One JSON object a direction at the end, and no live line.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Which {
    /// From the wire to the host: a peer's data.
    ToHost,
    /// From the host to the wire: its acknowledgements and answers.
    ToWire,
    /// Both, each on its own.
    Both,
}

#[derive(clap::Args)]
#[command(next_help_heading = "Link")]
pub(crate) struct Impair {
    /// Probability that a packet is lost.
    #[arg(long, value_name = "P", default_value_t = 0.0)]
    loss: f64,
    /// Microseconds that every packet takes.
    #[arg(long, value_name = "US", default_value_t = 0)]
    delay_us: u64,
    /// Up to so many microseconds longer or shorter; packets do not overtake each other by it.
    #[arg(long, value_name = "US", default_value_t = 0)]
    jitter_us: u64,
    /// Probability that a packet is held back until the next three have passed it (or 20 ms).
    #[arg(long, value_name = "P", default_value_t = 0.0)]
    reorder: f64,
    /// Probability that a bit is flipped that a checksum of the transport covers.
    #[arg(long, value_name = "P", default_value_t = 0.0)]
    corrupt: f64,
    /// Probability that a packet arrives twice.
    #[arg(long, value_name = "P", default_value_t = 0.0)]
    duplicate: f64,
}

impl Impair {
    pub(crate) fn impairment(&self, seed: u64) -> Impairment {
        Impairment {
            loss: self.loss,
            delay: Duration::from_micros(self.delay_us),
            jitter: Duration::from_micros(self.jitter_us),
            reorder: self.reorder,
            corrupt: self.corrupt,
            duplicate: self.duplicate,
            seed,
        }
    }

    /// None for a perfect link.
    pub(crate) fn if_any(&self, seed: u64) -> Option<Impairment> {
        let impairment = self.impairment(seed);
        (impairment != Impairment { seed, ..Impairment::default() }).then_some(impairment)
    }
}

pub(crate) fn main(args: &Args) -> Result<ExitCode> {
    let testbed = Testbed::open(&args.testbed)?;
    let ends = Ends::block()?;
    let start = |direction: Direction| {
        Link::start(&testbed, direction, &args.impair.impairment(seed_of(direction, args.seed)))
    };
    let links: Vec<_> =
        args.directions().iter().map(|direction| start(*direction)).collect::<Result<_, _>>()?;
    let live = !args.json && std::io::stderr().is_terminal();
    if !args.json {
        tell_line!("the link of {} is impaired until Ctrl-C", args.testbed);
    }
    while ends.wait(&[])? == Event::Time {
        if live {
            print_live(&links)?;
        }
    }
    if live {
        tell!("\r\x1b[K");
    }
    for (direction, link) in args.directions().iter().zip(links) {
        report(args, *direction, &link.stop()?)?;
    }
    Ok(ExitCode::SUCCESS)
}

impl Args {
    fn directions(&self) -> &'static [Direction] {
        match self.direction {
            Which::ToHost => &[Direction::ToHost],
            Which::ToWire => &[Direction::ToWire],
            Which::Both => &[Direction::ToHost, Direction::ToWire],
        }
    }
}

/// Of its own for each direction, half a period of the generator (2^63 numbers) apart.
fn seed_of(direction: Direction, seed: u64) -> u64 {
    match direction {
        Direction::ToHost => seed,
        Direction::ToWire => seed ^ 1 << 63,
    }
}

fn print_live(links: &[Link]) -> Result<()> {
    let counts = links.iter().map(|link| Ok(line(&link.counts()?))).collect::<Result<Vec<_>>>()?;
    tell!("\r\x1b[K{}", counts.join("  |  "));
    std::io::stderr().flush()?;
    Ok(())
}

/// What a link has done, in one line.
pub(crate) fn line(counts: &LinkCounts) -> String {
    let LinkCounts { seen, lost, duplicated, held_back, corrupted, passed, overrun } = counts;
    let overrun = if *overrun > 0 { format!(", {overrun} too many for the link") } else { String::new() };
    format!(
        "link: {seen} packets, {lost} lost, {duplicated} duplicated, {held_back} held back, {corrupted} corrupted, {passed} passed{overrun}"
    )
}

fn report(args: &Args, direction: Direction, counts: &LinkCounts) -> Result<()> {
    let name = if direction == Direction::ToHost { "to-host" } else { "to-wire" };
    if args.json {
        println!("{}", serde_json::json!({ "direction": name, "link": counts }));
    } else {
        println!("{name}  {}", line(counts));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use hoist_wire::Fates;

    #[test]
    fn the_two_directions_have_different_fates() {
        let fates = |direction| {
            let impairment = Impairment { loss: 0.5, seed: seed_of(direction, 7), ..Impairment::default() };
            let mut fates = Fates::new(impairment);
            (0..64).map(|_| fates.fate().lost).collect::<Vec<_>>()
        };
        assert_ne!(fates(Direction::ToHost), fates(Direction::ToWire));
    }

    #[test]
    fn a_perfect_link_is_none() {
        let mut impair =
            Impair { loss: 0.0, delay_us: 0, jitter_us: 0, reorder: 0.0, corrupt: 0.0, duplicate: 0.0 };
        assert_eq!(impair.if_any(3), None);
        impair.delay_us = 1;
        assert_eq!(impair.if_any(3).unwrap().delay, Duration::from_micros(1));
    }
}
