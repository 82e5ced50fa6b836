//! A server on the host's CPU, and what answering costs there.

use crate::bench::{
    others::Taken,
    plan::Plan,
    program::Program,
    side::Side,
    trial::{Watch, cpu_ns, favoured_napis},
};
use anyhow::{Context, Result};
use hoist_wire::{Napi, Testbed};
use nix::{
    errno::Errno,
    sched::{CpuSet, sched_setaffinity},
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
    /// Of the host's CPU meanwhile.
    pub(super) taken: Taken,
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
            program_ns: program.processes_ns()?,
            watch: Watch::start(plan.host_cpu, [&program]),
            napis,
            program,
        })
    }

    /// Ends the server too; an error if it has ended before.
    pub(super) fn end(mut self) -> Result<Cost> {
        let taken = self.watch.end();
        self.program.check_alive()?;
        Ok(Cost {
            napi_ns: cpu_ns(&self.napis)?.saturating_sub(self.napi_ns),
            program_ns: self.program.processes_ns()?.saturating_sub(self.program_ns),
            taken,
        })
    }
}

/// Binds every thread of a server to one CPU, for servers that have bound their threads themselves (Knot DNS does).
pub(super) fn pin_threads(program: &Program, cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu).context("naming a CPU")?;
    for thread in program_processes(program).flat_map(threads) {
        match sched_setaffinity(Pid::from_raw(thread), &set) {
            Ok(()) | Err(Errno::ESRCH) => {} // it has ended
            Err(errno) => return Err(errno).context("binding a server's thread (sched_setaffinity)"),
        }
    }
    Ok(())
}

fn threads(process: i32) -> Vec<i32> {
    let tasks = std::fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
    tasks.filter_map(|task| task.file_name().to_str()?.parse().ok()).collect()
}

/// The server and, under `hoist run`, its parent.
fn program_processes(program: &Program) -> impl Iterator<Item = i32> {
    let own = std::process::id() as i32;
    program.processes().into_iter().filter(move |id| *id != own)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cost_of_an_answer_counts_napi_and_program() {
        let cost = Cost { napi_ns: 600, program_ns: 400, taken: Taken::default() };
        assert_eq!(cost.per(10), 100.0);
        assert_eq!(cost.per(0), 1000.0);
    }
}
