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
    errno::Errno,
    sched::{CpuSet, sched_setaffinity},
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

/// CPU time of the server and of `hoist run` before it, threads that have ended included.
fn processes_ns(program: &Program) -> Result<u64> {
    program_processes(program).map(process_ns).sum()
}

/// The server and, under `hoist run`, its parent.
fn program_processes(program: &Program) -> impl Iterator<Item = i32> {
    let own = std::process::id() as i32;
    program.processes().into_iter().filter(move |id| *id != own)
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
