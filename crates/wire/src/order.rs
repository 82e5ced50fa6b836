//! Which flow each frame belongs to, as bpf/wire.h decides it: what a receiver without loss sees.

use crate::{draw::Table, pattern::Flows, random::Random};

/// The flows of the frames of a run, one after the other, without end.
#[derive(Clone, Debug)]
pub struct Order {
    flows: Flows,
    drawn: Option<(Table, Random)>,
    short_due: u64,
    long_next: u64,
    short_next: u64,
}

impl Order {
    pub(crate) fn new(flows: Flows, drawn: Option<(Table, Random)>) -> Self {
        Self { flows, drawn, short_due: 0, long_next: 0, short_next: 0 }
    }

    /// True when a short frame's time has come.
    fn short(&mut self) -> bool {
        self.short_due += self.flows.mixed.map_or(0, |mixed| mixed.share_bits());
        let due = self.short_due >> 32 != 0;
        self.short_due &= 0xffff_ffff;
        due
    }
}

impl Iterator for Order {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        if let Some((table, random)) = &mut self.drawn {
            return Some(table.draw(random).into());
        }
        let (next, first, count) = match self.short() {
            true => (&mut self.short_next, self.flows.long, self.flows.count() - self.flows.long),
            false => (&mut self.long_next, 0, self.flows.long),
        };
        let flow = first + *next;
        *next = (*next + 1) % count;
        Some(flow)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pattern::{Mixed, Pattern};

    #[test]
    fn short_frames_come_at_even_distances() {
        let mixed = Mixed { long: 2, short: 3, short_share: 0.25, ..Mixed::default() };
        let order = Order::new(Flows::of(Pattern::Mixed(mixed)), None);
        let first: Vec<_> = order.take(16).collect();
        assert_eq!(first, [0, 1, 0, 2, 1, 0, 1, 3, 0, 1, 0, 4, 1, 0, 1, 2]);
    }
}
