//! A server on the host's CPU, and what answering costs there.

use crate::bench::{
    plan::Plan,
    program::Program,
    side::Side,
    trial::{Watch, cpu_ns, favoured_napis},
};
use anyhow::{Context, Result};
use hoist_wire::{Napi, Testbed};
use nix::{
    time::{ClockId, clock_gettime},
    unistd::Pid,
};

/// A server that is watched while it is asked.
pub(super) struct Serving {
    program: Program,
    napis: Vec<Napi>,
    napi_ns: u64,
    program_ns: u64,
    watch: Watch,
}

/// What the host's CPU spent meanwhile, in nanoseconds.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Cost {
    pub(super) napi_ns: u64,
    /// Under `hoist run` with Hoist's own.
    pub(super) program_ns: u64,
    pub(super) is_disturbed: bool,
}

impl Cost {
    pub(super) fn per(&self, count: u64) -> f64 {
        (self.napi_ns + self.program_ns) as f64 / count.max(1) as f64
    }
}

impl Serving {
    /// To be called once the server is ready.
    pub(super) fn watch(testbed: &Testbed, plan: &Plan, side: Side, program: Program) -> Result<Self> {
        let napis = favoured_napis(testbed, plan, side)?;
        Ok(Self {
            napi_ns: cpu_ns(&napis)?,
            program_ns: processes_ns(&program)?,
            watch: Watch::start(plan.host_cpu, &program),
            napis,
            program,
        })
    }

    /// Ends the server too.
    pub(super) fn end(self, plan: &Plan) -> Result<Cost> {
        let (foreign_ns, stolen_ns) = self.watch.end();
        Ok(Cost {
            napi_ns: cpu_ns(&self.napis)?.saturating_sub(self.napi_ns),
            program_ns: processes_ns(&self.program)?.saturating_sub(self.program_ns),
            is_disturbed: foreign_ns > plan.tolerated_foreign_ns || stolen_ns > plan.tolerated_stolen_ns,
        })
    }
}

/// CPU time of the server and of `hoist run` before it, threads that have ended included.
fn processes_ns(program: &Program) -> Result<u64> {
    let own = std::process::id() as i32;
    program.processes().into_iter().filter(|id| *id != own).map(process_ns).sum()
}

fn process_ns(id: i32) -> Result<u64> {
    let clock = ClockId::pid_cpu_clock_id(Pid::from_raw(id));
    let time = clock.and_then(clock_gettime).context("reading a server's CPU time (clock_gettime)")?;
    Ok(time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cost_of_an_answer_counts_napi_and_program() {
        let cost = Cost { napi_ns: 600, program_ns: 400, is_disturbed: false };
        assert_eq!(cost.per(10), 100.0);
        assert_eq!(cost.per(0), 1000.0);
    }

    #[test]
    fn a_process_that_computes_uses_cpu_time() {
        let own = std::process::id() as i32;
        let before = process_ns(own).unwrap();
        let start = std::time::Instant::now();
        while start.elapsed().as_millis() < 20 {}
        assert!(process_ns(own).unwrap() > before);
    }
}
