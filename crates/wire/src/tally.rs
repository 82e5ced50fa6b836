//! What a sink has received. Shared source of the two sinks; it uses nothing of Hoist.
//!
//! Per flow, after RFC 4737: a datagram is *reordered* when its number is smaller than that of one that came before it and it
//! has not come before; it is *duplicated* when it has. A late one is told from a copy as long as it is among the last 64
//! of its flow; older ones count as reordered. *Lost* are the numbers below the largest that have not come at all.

use hdrhistogram::Histogram;
use std::{io::Write, time::Instant};

/// In datagrams: a clock read for each would be a cost of its own.
pub(crate) const CLOCK_EVERY: u64 = 64;

/// Counts datagrams, and what their stamps tell.
#[derive(Default)]
pub(crate) struct Tally {
    /// Datagrams so far.
    pub(crate) packets: u64,
    /// Calls that took them, where they are system calls.
    pub(crate) reads: u64,
    bytes: u64,
    unstamped: u64,
    reordered: u64,
    duplicated: u64,
    flows: Vec<Flow>,
    first: Option<(Instant, u64)>,
    last: Option<Instant>,
    cpu_ns: u64,
    delay: Option<Delay>,
}

impl Tally {
    /// One that also keeps the one-way delay, for one of `every` datagrams: each of them costs a clock read. 0: for none.
    ///
    /// Sender and receiver share CLOCK_MONOTONIC: on one machine only.
    pub(crate) fn with_delay(every: u32) -> Self {
        Self { delay: (every > 0).then(|| Delay::new(every)), ..Self::default() }
    }

    /// Takes one payload.
    pub(crate) fn count(&mut self, payload: &[u8]) {
        if self.packets.is_multiple_of(CLOCK_EVERY) {
            let now = Instant::now();
            self.first.get_or_insert_with(|| (now, process_cpu_ns()));
            self.last = Some(now);
        }
        self.packets += 1;
        self.bytes += payload.len() as u64;
        match stamp(payload) {
            Some((flow, seq, time_ns)) => {
                self.order(flow as usize, seq);
                if let Some(delay) = &mut self.delay {
                    delay.take(self.packets, time_ns);
                }
            }
            None => self.unstamped += 1,
        }
    }

    fn order(&mut self, flow: usize, seq: u64) {
        if flow >= self.flows.len() {
            self.flows.resize(flow + 1, Flow::default());
        }
        match self.flows[flow].take(seq) {
            Arrival::InOrder => {}
            Arrival::Late => self.reordered += 1,
            Arrival::Again => self.duplicated += 1,
        }
    }

    fn lost(&self) -> u64 {
        let numbers: u64 = self.flows.iter().map(|flow| flow.next).sum();
        numbers.saturating_sub(self.packets - self.unstamped - self.duplicated)
    }

    /// To be called once, after the last datagram.
    pub(crate) fn end(&mut self) {
        if let Some((_, before)) = self.first {
            self.cpu_ns = process_cpu_ns().saturating_sub(before);
        }
    }

    /// One line.
    pub(crate) fn json(&self) -> String {
        let seconds = match (self.first, self.last) {
            (Some((first, _)), Some(last)) => last.duration_since(first).as_secs_f64(),
            _ => 0.0,
        };
        let Self { packets, reads, bytes, unstamped, reordered, duplicated, cpu_ns, .. } = self;
        let lost = self.lost();
        let flows = self.flows.iter().filter(|flow| flow.next > 0).count();
        let delay = self.delay.as_ref().map_or(String::new(), Delay::json);
        format!(
            r#"{{"packets":{packets},"reads":{reads},"bytes":{bytes},"unstamped":{unstamped},"reordered":{reordered},"duplicated":{duplicated},"lost":{lost},"flows":{flows},"seconds":{seconds:.6},"cpu_ns":{cpu_ns}{delay}}}"#
        )
    }
}

/// What has come of one flow.
#[derive(Clone, Copy, Default)]
struct Flow {
    next: u64,
    /// Bit i: number `next - 1 - i` has come.
    recent: u64,
}

enum Arrival {
    InOrder,
    Late,
    Again,
}

impl Flow {
    fn take(&mut self, seq: u64) -> Arrival {
        if seq >= self.next {
            let skipped = u32::try_from(seq - self.next).unwrap_or(u32::MAX);
            self.recent = self.recent.checked_shl(skipped.saturating_add(1)).unwrap_or(0) | 1;
            self.next = seq + 1;
            return Arrival::InOrder;
        }
        let bit = u32::try_from(self.next - 1 - seq).ok().and_then(|age| 1u64.checked_shl(age)).unwrap_or(0);
        if self.recent & bit != 0 {
            return Arrival::Again;
        }
        self.recent |= bit;
        Arrival::Late
    }
}

/// How long datagrams took, in nanoseconds, to three digits.
struct Delay {
    every: u64,
    taken: Histogram<u64>,
}

impl Delay {
    fn new(every: u32) -> Self {
        let taken =
            Histogram::new_with_bounds(1, LONGEST_NS, 3).expect("the bounds are those of a histogram");
        Self { every: every.into(), taken }
    }

    fn take(&mut self, packets: u64, time_ns: u64) {
        if packets.is_multiple_of(self.every) {
            self.taken.saturating_record(clock_ns(libc::CLOCK_MONOTONIC).saturating_sub(time_ns));
        }
    }

    fn json(&self) -> String {
        let [p50, p90, p99, p999] =
            [0.5, 0.9, 0.99, 0.999].map(|quantile| self.taken.value_at_quantile(quantile));
        let max = self.taken.max();
        format!(r#","delay_ns":{{"p50":{p50},"p90":{p90},"p99":{p99},"p999":{p999},"max":{max}}}"#)
    }
}

const LONGEST_NS: u64 = 60_000_000_000;

/// Flow, sequence number and time of a datagram of the generator: 22 bytes, little-endian.
fn stamp(payload: &[u8]) -> Option<(u32, u64, u64)> {
    let bytes: &[u8; 22] = payload.get(..22)?.try_into().ok()?;
    let flow = u32::from_le_bytes([bytes[2], bytes[3], bytes[4], bytes[5]]);
    let seq = u64::from_le_bytes(bytes[6..14].try_into().ok()?);
    let time_ns = u64::from_le_bytes(bytes[14..22].try_into().ok()?);
    (bytes[..2] == [0x48, 0x77] && flow < 1 << 24 && seq < 1 << 48).then_some((flow, seq, time_ns))
}

/// Prints a line at once.
pub(crate) fn say(line: &str) -> Result<(), String> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush()).map_err(|e| format!("writing to standard output: {e}"))
}

/// CPU time of all threads in nanoseconds.
fn process_cpu_ns() -> u64 {
    clock_ns(libc::CLOCK_PROCESS_CPUTIME_ID)
}

#[allow(unsafe_code)]
fn clock_ns(clock: libc::clockid_t) -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes to a timespec that outlives the call.
    unsafe { libc::clock_gettime(clock, &raw mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(flow: u32, seq: u64, time_ns: u64) -> Vec<u8> {
        [&[0x48, 0x77][..], &flow.to_le_bytes(), &seq.to_le_bytes(), &time_ns.to_le_bytes(), &[0; 8]].concat()
    }

    /// Reordered, duplicated, lost.
    fn judged(numbers: impl IntoIterator<Item = u64>) -> [u64; 3] {
        let mut tally = Tally::default();
        numbers.into_iter().for_each(|seq| tally.count(&payload(3, seq, 0)));
        [tally.reordered, tally.duplicated, tally.lost()]
    }

    #[test]
    fn late_copied_and_missing_datagrams_are_told_apart() {
        assert_eq!(judged([0, 1, 2, 3]), [0, 0, 0]);
        assert_eq!(judged([2, 3]), [0, 0, 2]);
        assert_eq!(judged([0, 2, 3, 1]), [1, 0, 0]);
        assert_eq!(judged([0, 1, 1, 2, 0]), [0, 2, 0]);
        assert_eq!(judged([0, 3, 1, 1]), [1, 1, 1]);
    }

    #[test]
    fn copies_are_known_among_the_last_64_of_a_flow() {
        assert_eq!(judged((0..64).chain([0])), [0, 1, 0]);
        assert_eq!(judged((0..65).chain([0])), [1, 0, 0]);
        assert_eq!(judged([0, 1 << 40, 1]), [1, 0, (1 << 40) - 2]);
    }

    #[test]
    fn flows_are_judged_on_their_own() {
        let mut tally = Tally::default();
        for (flow, seq) in [(0, 0), (5, 1), (0, 1), (5, 0)] {
            tally.count(&payload(flow, seq, 0));
        }
        assert_eq!([tally.reordered, tally.duplicated, tally.lost()], [1, 0, 0]);
    }

    #[test]
    fn one_of_so_many_datagrams_tells_how_long_it_took() {
        let mut tally = Tally::with_delay(4);
        let sent = clock_ns(libc::CLOCK_MONOTONIC) - 1_000_000;
        (0..40).for_each(|seq| tally.count(&payload(0, seq, sent)));
        assert_eq!(tally.delay.as_ref().unwrap().taken.len(), 10);
        let json: serde_json::Value = serde_json::from_str(&tally.json()).unwrap();
        let at = |name: &str| json["delay_ns"][name].as_u64().unwrap();
        assert!(at("p50") >= 999_000 && at("p50") <= at("p90") && at("p999") <= at("max"));
    }

    #[test]
    fn the_line_is_json_and_without_delay_unless_asked_for() {
        for mut tally in [Tally::default(), Tally::with_delay(0)] {
            tally.count(&payload(0, 0, 0));
            tally.count(b"no stamp");
            tally.end();
            let json: serde_json::Value = serde_json::from_str(&tally.json()).unwrap();
            assert_eq!(
                (&json["packets"], &json["unstamped"], &json["lost"]),
                (&2.into(), &1.into(), &0.into())
            );
            assert!(json.get("delay_ns").is_none());
        }
    }
}
