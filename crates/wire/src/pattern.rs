//! Who sends to whom, after 'Understanding Host Network Stack Overheads' (SIGCOMM 2021): a source address is a sender, a
//! destination port is a receiver. Pure: bpf/wire.h says the same, and a test compares them.

use crate::{
    error::{Error, Result},
    stamp::Stamp,
};
use std::net::{IpAddr, SocketAddr};

/// Who sends to whom. Receiver `i` is the target's port plus `i`; sender 0 has the wire's own address.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pattern {
    /// One sender, one receiver.
    Single,
    /// Sender `i` to receiver `i`, for so many of them.
    OneToOne(u32),
    /// So many senders to one receiver.
    Incast(u32),
    /// One sender to so many receivers.
    Outcast(u32),
    /// So many senders, each to as many receivers.
    AllToAll(u32),
    /// Long flows of large frames and short flows of small ones, from one sender to one receiver.
    Mixed(Mixed),
}

/// Flows of two kinds. The long ones come first by number; both kinds differ in source port.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mixed {
    /// Flows of the frame size that the [`Spec`](crate::Spec) has.
    pub long: u32,
    /// Flows of short frames.
    pub short: u32,
    /// Which part of all frames is short, more than 0 and less than 1. They come at even distances.
    pub short_share: f64,
    /// Bytes of UDP payload of a short frame, at least [`Stamp::LEN`].
    pub short_payload_len: usize,
}

impl Default for Mixed {
    /// One long flow, 16 short ones with half of the frames, as short as they can be.
    fn default() -> Self {
        Self { long: 1, short: 16, short_share: 0.5, short_payload_len: Stamp::LEN }
    }
}

impl Mixed {
    /// In 2^-32.
    pub(crate) fn share_bits(&self) -> u64 {
        (self.short_share * (1u64 << 32) as f64) as u64
    }
}

/// How flows are laid over senders, source ports and receivers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Layout {
    /// A sender's flows differ in source port.
    Ports,
    /// Sender `i` has one flow, to receiver `i`.
    Diagonal,
    /// Each sender has one flow to each of so many receivers.
    Wide(u32),
}

/// Where a flow belongs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Place {
    sender: u32,
    port: u16,
    receiver: u16,
}

/// The flows of a run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Flows {
    pub(crate) layout: Layout,
    pub(crate) long: u64,
    pub(crate) mixed: Option<Mixed>,
}

impl Flows {
    /// So many from one sender (or more where its source ports do not suffice) to one receiver.
    pub(crate) fn in_turn(flows: u64) -> Self {
        Self { layout: Layout::Ports, long: flows, mixed: None }
    }

    pub(crate) fn of(pattern: Pattern) -> Self {
        let laid = |layout, flows: u64| Self { layout, long: flows, mixed: None };
        match pattern {
            Pattern::Single => laid(Layout::Wide(1), 1),
            Pattern::OneToOne(n) => laid(Layout::Diagonal, n.into()),
            Pattern::Incast(n) => laid(Layout::Wide(1), n.into()),
            Pattern::Outcast(n) => laid(Layout::Wide(n), n.into()),
            Pattern::AllToAll(n) => laid(Layout::Wide(n), u64::from(n) * u64::from(n)),
            Pattern::Mixed(mixed) => {
                Self { layout: Layout::Ports, long: mixed.long.into(), mixed: Some(mixed) }
            }
        }
    }

    /// Long and short ones.
    pub(crate) fn count(&self) -> u64 {
        self.long + self.mixed.map_or(0, |mixed| mixed.short.into())
    }

    fn place(&self, flow: u64) -> Place {
        match self.layout {
            Layout::Ports => {
                Place { sender: (flow / PORTS) as u32, port: (flow % PORTS) as u16, receiver: 0 }
            }
            Layout::Diagonal => Place { sender: flow as u32, port: 0, receiver: flow as u16 },
            Layout::Wide(n) => {
                let n = u64::from(n);
                Place { sender: (flow / n) as u32, port: 0, receiver: (flow % n) as u16 }
            }
        }
    }

    /// Source and destination of a flow.
    pub(crate) fn ends(&self, source: Source, target: SocketAddr, flow: u64) -> (SocketAddr, SocketAddr) {
        let place = self.place(flow);
        let from = SocketAddr::new(source.address(place.sender), FIRST_PORT + place.port);
        (from, SocketAddr::new(target.ip(), target.port() + place.receiver))
    }

    /// Fails on what cannot be sent to a target of this port.
    pub(crate) fn check(&self, target_port: u16) -> Result<()> {
        let wrong = |why: String| Err(Error::Spec(why));
        if !(1..=MOST_FLOWS).contains(&self.long) || self.count() > MOST_FLOWS {
            return wrong(format!("1 to {MOST_FLOWS} flows, not {}", self.count()));
        }
        let last = self.last();
        if last.sender > MOST_SENDERS {
            return wrong(format!("at most {} senders, not {}", MOST_SENDERS + 1, last.sender + 1));
        }
        let ports = u32::from(u16::MAX - target_port) + 1;
        if self.receivers() > ports {
            return wrong(format!(
                "from port {target_port} on there are {ports} ports, not {}",
                self.receivers()
            ));
        }
        self.mixed.map_or(Ok(()), check_mixed)
    }

    fn last(&self) -> Place {
        self.place(self.count() - 1)
    }

    fn receivers(&self) -> u32 {
        match self.layout {
            Layout::Ports => 1,
            Layout::Diagonal => self.long as u32,
            Layout::Wide(n) => n,
        }
    }
}

fn check_mixed(mixed: Mixed) -> Result<()> {
    if mixed.short == 0 || !(mixed.short_share > 0.0 && mixed.short_share < 1.0) {
        let Mixed { short, short_share, .. } = mixed;
        let why = format!(
            "mixed needs short flows with more than 0 and less than 1 of the frames, not {short} with {short_share}"
        );
        return Err(Error::Spec(why));
    }
    Ok(())
}

/// Where senders' addresses come from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Source {
    /// Of sender 0.
    pub(crate) first: IpAddr,
    /// What the number of any other sender is added to, to give the low 16 bits of its address.
    pub(crate) other_low: u16,
}

impl Source {
    pub(crate) fn low(self, sender: u32) -> u16 {
        match (sender, self.first) {
            (0, IpAddr::V4(v4)) => u32::from(v4) as u16,
            (0, IpAddr::V6(v6)) => v6.segments()[7],
            _ => self.other_low.wrapping_add(sender as u16),
        }
    }

    fn address(self, sender: u32) -> IpAddr {
        let low = self.low(sender);
        match self.first {
            IpAddr::V4(v4) => IpAddr::V4((u32::from(v4) & 0xffff_0000 | u32::from(low)).into()),
            IpAddr::V6(v6) => IpAddr::V6((u128::from(v6) & !0xffff | u128::from(low)).into()),
        }
    }
}

/// The first source port.
pub(crate) const FIRST_PORT: u16 = 20000;
const PORTS: u64 = 0x4000; // bpf/wire.h
const MOST_FLOWS: u64 = 1 << 24; // receivers take larger numbers for no stamp (tally.rs)
const MOST_SENDERS: u32 = 0xfe00; // above the base of 0x0100 and below the subnet's broadcast address

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn all(pattern: Pattern) -> Vec<(SocketAddr, SocketAddr)> {
        let flows = Flows::of(pattern);
        let source = Source { first: "10.77.0.1".parse().unwrap(), other_low: 0x100 };
        let target = "10.77.0.2:9000".parse().unwrap();
        (0..flows.count()).map(|flow| flows.ends(source, target, flow)).collect()
    }

    /// Different flows, source addresses, source ports, destination ports.
    fn counts(pattern: Pattern) -> [usize; 4] {
        let all = all(pattern);
        let count = |of: &dyn Fn(&(SocketAddr, SocketAddr)) -> String| {
            all.iter().map(of).collect::<BTreeSet<_>>().len()
        };
        [
            count(&|ends| format!("{ends:?}")),
            count(&|(from, _)| from.ip().to_string()),
            count(&|(from, _)| from.port().to_string()),
            count(&|(_, to)| to.port().to_string()),
        ]
    }

    #[test]
    fn patterns_have_the_senders_and_receivers_that_their_names_say() {
        assert_eq!(counts(Pattern::Single), [1, 1, 1, 1]);
        assert_eq!(counts(Pattern::OneToOne(24)), [24, 24, 1, 24]);
        assert_eq!(counts(Pattern::Incast(24)), [24, 24, 1, 1]);
        assert_eq!(counts(Pattern::Outcast(24)), [24, 1, 1, 24]);
        assert_eq!(counts(Pattern::AllToAll(24)), [576, 24, 1, 24]);
        assert_eq!(counts(Pattern::Mixed(Mixed { long: 2, short: 30, ..Mixed::default() })), [32, 1, 32, 1]);
    }

    #[test]
    fn the_first_sender_is_the_wire_itself_and_no_other_is_the_host() {
        let all = all(Pattern::Incast(60_000));
        assert_eq!(all[0].0.ip(), "10.77.0.1".parse::<IpAddr>().unwrap());
        assert_eq!(all[1].0.ip(), "10.77.1.1".parse::<IpAddr>().unwrap());
        assert!(all.iter().all(|(from, to)| from.ip() != to.ip()));
    }

    #[test]
    fn what_has_no_place_is_refused() {
        for (pattern, port) in [
            (Pattern::OneToOne(0), 9),
            (Pattern::OneToOne(10), 65_530),
            (Pattern::Outcast(60_000), 9000),
            (Pattern::Incast(70_000), 9),
            (Pattern::AllToAll(17_000), 9),
            (Pattern::Mixed(Mixed { short_share: 1.0, ..Mixed::default() }), 9),
            (Pattern::Mixed(Mixed { short: 0, ..Mixed::default() }), 9),
        ] {
            assert!(Flows::of(pattern).check(port).is_err(), "{pattern:?}");
        }
        assert!(Flows::of(Pattern::OneToOne(6)).check(65_530).is_ok());
        assert!(Flows::in_turn(MOST_FLOWS).check(9).is_ok());
        assert!(Flows::in_turn(MOST_FLOWS + 1).check(9).is_err());
    }
}
