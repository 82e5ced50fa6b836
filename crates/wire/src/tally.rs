//! What a sink has received. Shared source of the two sinks; it uses nothing of Hoist.

use std::{io::Write, time::Instant};

/// In datagrams: a clock read for each would be a cost of its own.
pub(crate) const CLOCK_EVERY: u64 = 64;

/// Counts datagrams, and what their stamps tell.
#[derive(Default)]
pub(crate) struct Tally {
    /// Datagrams so far.
    pub(crate) packets: u64,
    bytes: u64,
    unstamped: u64,
    reordered: u64,
    next: Vec<u64>, // by flow
    first: Option<(Instant, u64)>,
    last: Option<Instant>,
    cpu_ns: u64,
}

impl Tally {
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
            Some((flow, seq)) => self.order(flow as usize, seq),
            None => self.unstamped += 1,
        }
    }

    fn order(&mut self, flow: usize, seq: u64) {
        if flow >= self.next.len() {
            self.next.resize(flow + 1, 0);
        }
        if seq < self.next[flow] {
            self.reordered += 1;
        } else {
            self.next[flow] = seq + 1;
        }
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
        let flows = self.next.iter().filter(|next| **next > 0).count();
        format!(
            r#"{{"packets":{},"bytes":{},"unstamped":{},"reordered":{},"flows":{flows},"seconds":{seconds:.6},"cpu_ns":{}}}"#,
            self.packets, self.bytes, self.unstamped, self.reordered, self.cpu_ns
        )
    }
}

/// Flow and sequence number of a datagram of the generator: 22 bytes, little-endian.
fn stamp(payload: &[u8]) -> Option<(u32, u64)> {
    let bytes: &[u8; 22] = payload.get(..22)?.try_into().ok()?;
    let flow = u32::from_le_bytes([bytes[2], bytes[3], bytes[4], bytes[5]]);
    let seq = u64::from_le_bytes(bytes[6..14].try_into().ok()?);
    (bytes[..2] == [0x48, 0x77] && flow < 1 << 24).then_some((flow, seq))
}

/// Prints a line at once.
pub(crate) fn say(line: &str) -> Result<(), String> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush()).map_err(|e| format!("writing to standard output: {e}"))
}

/// CPU time of all threads in nanoseconds.
#[allow(unsafe_code)]
fn process_cpu_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes to a timespec that outlives the call.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}
