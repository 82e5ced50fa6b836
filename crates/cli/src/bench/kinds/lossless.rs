//! `udp-lossless`: a search for each side in each round.

use super::Bench;
use crate::bench::{
    document::Metric,
    search::{self, Found, Guess},
    side::Side,
    stage::Stage,
};
use anyhow::Result;
use std::collections::HashMap;

const RATE: Metric = Metric::more("loss-free rate", "packets/s");

pub(super) fn prepare(_: &mut Stage) -> Result<Box<dyn Bench>> {
    Ok(Box::new(Lossless::default()))
}

/// The answers of the last round: where the next one's searches begin.
#[derive(Default)]
struct Lossless {
    last: HashMap<&'static str, f64>,
}

impl Bench for Lossless {
    fn round(&mut self, stage: &mut Stage) -> Result<()> {
        for side in stage.receivers() {
            let near = |last: &f64| Guess::near(*last, stage.round());
            let guess = self.last.get(side.name()).map_or_else(|| first_guess(side), near);
            let Found { pps, wire_limited } = search::run(stage, side, guess)?;
            stage.record(side.name(), None, RATE, pps);
            self.last.insert(side.name(), pps);
            if side == Side::Kernel {
                stage.learn_breaking(pps);
            }
            if wire_limited {
                stage.note(format!(
                    "the wire, not the receiver, was the limit of a search of {}",
                    side.name()
                ));
            }
        }
        Ok(())
    }
}

/// It saves trials where it is near, and changes no answer.
fn first_guess(side: Side) -> Guess {
    Guess::rough(match side {
        Side::Kernel => 0.3e6,
        Side::Hoist | Side::Limit => 1.4e6,
        Side::KernelTuned | Side::Peer(_) => 0.8e6,
    })
}
