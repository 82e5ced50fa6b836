//! While threads of the program run the driver themselves (`--spin-us`), its interrupts are held back: `napi_defer_hard_irqs`
//! and `gro_flush_timeout` of the device's NAPI instances, which no descriptor undoes when this process is killed.
//!
//! So a child process, the guard, keeps the values of before and writes them back when its standard input ends.

use crate::error::{Context, Error};
use hoist_napi::{Deferral, Napi};
use std::{
    io::{Read, Write},
    os::unix::process::CommandExt,
    process::{Child, Command, ExitCode, Stdio},
};

/// The hidden command of `hoist` that is the guard: `hoist napi-guard ID:HARD_IRQS:TIMEOUT_NS …`.
pub const GUARD: &str = "napi-guard";

/// A spinning thread comes back to the driver within tens of microseconds; one that sleeps is woken by the timer.
const SPINNING: Deferral = Deferral { hard_irqs: 2, timeout_ns: 100_000 };

/// The interrupts of one device, held back until dropped.
#[derive(Debug)]
pub(crate) struct Held {
    guard: Child,
}

impl Held {
    /// Of a device in this thread's network namespace.
    pub(crate) fn of(ifindex: u32) -> Result<Self, Error> {
        let napis = hoist_napi::of_device(ifindex).context("list NAPI instances (netdev napi-get)")?;
        let held = Self { guard: guard_of(&napis)? };
        for napi in &napis {
            let failed = format!("hold back the interrupts of NAPI {} (netdev napi-set)", napi.id);
            hoist_napi::set_deferral(napi.id, SPINNING).context(failed)?;
        }
        Ok(held)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        drop(self.guard.stdin.take());
        let _ = self.guard.wait();
    }
}

/// Starts the guard and waits until it has read what it is to restore.
fn guard_of(napis: &[Napi]) -> Result<Child, Error> {
    let program = std::env::current_exe().context("find this program (/proc/self/exe)")?;
    let mut command = Command::new(program);
    command.arg(GUARD).args(napis.iter().map(word));
    // Ctrl-C is for the program, not for the guard.
    command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut guard = command.spawn().context("start the guard of the NAPI settings")?;
    let mut ready = [0];
    let told = guard.stdout.take().map(|mut output| output.read_exact(&mut ready));
    match told {
        Some(Ok(())) => Ok(guard),
        _ => Err(Error::Other("the guard of the NAPI settings did not start".into())),
    }
}

fn word(napi: &Napi) -> String {
    format!("{}:{}:{}", napi.id, napi.deferral.hard_irqs, napi.deferral.timeout_ns)
}

fn parse(word: &str) -> Option<(u32, Deferral)> {
    let mut numbers = word.split(':');
    let (id, hard_irqs) = (numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?);
    let timeout_ns = numbers.next()?.parse().ok()?;
    numbers.next().is_none().then_some((id, Deferral { hard_irqs, timeout_ns }))
}

/// The guard's life.
pub fn guard(words: impl Iterator<Item = String>) -> ExitCode {
    let Some(before) = words.map(|word| parse(&word)).collect::<Option<Vec<_>>>() else {
        return ExitCode::from(2);
    };
    let _ = std::io::stdout().write_all(b"r").and_then(|()| std::io::stdout().flush());
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
    for (id, deferral) in before {
        // An instance that is gone has taken its settings along.
        let _ = hoist_napi::set_deferral(id, deferral);
    }
    ExitCode::SUCCESS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_guard_is_told_it_understands() {
        let napi = Napi { id: 8193, thread: None, deferral: Deferral { hard_irqs: 2, timeout_ns: 1 << 40 } };
        assert_eq!(parse(&word(&napi)), Some((8193, napi.deferral)));
        for bad in ["", "1", "1:2", "1:2:3:4", "a:2:3", "1:-2:3"] {
            assert_eq!(parse(bad), None, "{bad:?}");
        }
    }
}
