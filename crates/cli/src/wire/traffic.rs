//! What to send: the flags that describe traffic, and what they come to.

use super::rate;
use hoist_wire::{Error, Limit, Mixed, Pattern, Popularity, Result, Spec};
use std::{net::SocketAddr, time::Duration};

#[derive(clap::Args)]
#[command(next_help_heading = "Traffic")]
pub(crate) struct Traffic {
    /// Frames per second (k, M and G are understood); 0 is as fast as possible.
    #[arg(long, default_value = "0", value_parser = rate)]
    pub(crate) rate: f64,
    /// Bytes of the whole frame; the smallest that holds the stamp unless told.
    #[arg(long, value_name = "BYTES")]
    size: Option<usize>,
    /// How long to send.
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// Send so many frames instead.
    #[arg(long, value_name = "FRAMES", conflicts_with = "seconds")]
    count: Option<u64>,
    /// Flows to one port, by source port and address; with mixed: the long ones.
    #[arg(long, default_value_t = 1)]
    flows: u64,
    /// Who sends to whom.
    #[arg(long, value_enum, value_name = "PATTERN")]
    pattern: Option<Name>,
    /// Senders, receivers or both of a pattern.
    #[arg(long, value_name = "N", default_value_t = 24, requires = "pattern")]
    peers: u32,
    /// With mixed: short flows; 16 unless told.
    #[arg(long, value_name = "N", requires = "pattern")]
    short_flows: Option<u32>,
    /// With mixed: which part of the frames is short, between 0 and 1; 0.5 unless told.
    #[arg(long, value_name = "SHARE", requires = "pattern")]
    short_share: Option<f64>,
    /// With mixed: bytes of UDP payload of a short frame; as many as the stamp has unless told.
    #[arg(long, value_name = "BYTES", requires = "pattern")]
    short_payload: Option<usize>,
    /// Draw flows at random, flow k (from 1 on) in proportion to 1 / k^S, instead of in turn.
    #[arg(long, value_name = "S")]
    zipf: Option<f64>,
    /// Draw flows at random, all alike.
    #[arg(long, conflicts_with = "zipf")]
    uniform: bool,
    /// Random choices, those of the link too, are the same for the same seed.
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
    /// Tag the frames; on a testbed, to the host end's VLAN address.
    #[arg(long, value_name = "ID", value_parser = clap::value_parser!(u16).range(1..=4094))]
    pub(crate) vlan: Option<u16>,
    /// Leave the UDP checksum zero (IPv4 only).
    #[arg(long)]
    no_checksum: bool,
    /// The CPU that sends.
    #[arg(long, default_value_t = 0)]
    cpu: usize,
}

/// A source address is a sender, a destination port a receiver: they count up from the first.
#[derive(Clone, Copy, PartialEq, clap::ValueEnum)]
enum Name {
    /// One sender to one receiver.
    Single,
    /// Sender i to receiver i.
    OneToOne,
    /// Many senders to one receiver.
    Incast,
    /// One sender to many receivers.
    Outcast,
    /// Each sender to each receiver.
    AllToAll,
    /// Long flows of large frames and short flows of small ones, to one receiver.
    Mixed,
}

impl Traffic {
    pub(crate) fn spec(&self, target: SocketAddr) -> Result<Spec> {
        let mut spec = Spec::to(target)
            .packets_per_second(self.rate)
            .flows(self.flows)
            .popularity(self.popularity())
            .seed(self.seed)
            .vlan(self.vlan)
            .checksum(!self.no_checksum)
            .limit(self.limit()?)
            .cpu(self.cpu);
        if let Some(bytes) = self.size {
            spec = spec.frame_len(bytes);
        }
        match self.pattern {
            Some(name) => Ok(spec.pattern(self.pattern(name)?)),
            None => Ok(spec),
        }
    }

    fn pattern(&self, name: Name) -> Result<Pattern> {
        if self.flows != 1 && name != Name::Mixed {
            let why = "with this pattern, --peers says how many flows there are";
            return Err(Error::Spec(format!("--flows {}: {why}", self.flows)));
        }
        if self.shortens() && name != Name::Mixed {
            return Err(Error::Spec("--short-flows and the like are for --pattern mixed only".into()));
        }
        Ok(match name {
            Name::Single => Pattern::Single,
            Name::OneToOne => Pattern::OneToOne(self.peers),
            Name::Incast => Pattern::Incast(self.peers),
            Name::Outcast => Pattern::Outcast(self.peers),
            Name::AllToAll => Pattern::AllToAll(self.peers),
            Name::Mixed => Pattern::Mixed(self.mixed()),
        })
    }

    fn shortens(&self) -> bool {
        self.short_flows.is_some() || self.short_share.is_some() || self.short_payload.is_some()
    }

    fn mixed(&self) -> Mixed {
        let usual = Mixed::default();
        Mixed {
            long: u32::try_from(self.flows).unwrap_or(u32::MAX), // which is refused
            short: self.short_flows.unwrap_or(usual.short),
            short_share: self.short_share.unwrap_or(usual.short_share),
            short_payload_len: self.short_payload.unwrap_or(usual.short_payload_len),
        }
    }

    fn popularity(&self) -> Popularity {
        match (self.zipf, self.uniform) {
            (Some(s), _) => Popularity::Zipf(s),
            (None, true) => Popularity::Uniform,
            (None, false) => Popularity::InTurn,
        }
    }

    fn limit(&self) -> Result<Limit> {
        if !(self.seconds > 0.0 && self.seconds <= 1e6) {
            let why = "must be more than 0 and at most a million";
            return Err(Error::Spec(format!("--seconds {}: {why}", self.seconds)));
        }
        Ok(match self.count {
            Some(frames) => Limit::Packets(frames),
            None => Limit::Time(Duration::from_secs_f64(self.seconds)),
        })
    }
}
