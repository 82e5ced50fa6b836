//! Who else used the host's CPU during a trial.
//!
//! A foreign task that runs for one slice (3 ms) keeps NAPI from emptying a ring of 256 entries, whatever its nice value, and
//! the loss looks like the receiver's. So does what the machine below takes from the CPU (steal time). Such trials are taken again.

use super::plan::Plan;
use serde::Serialize;
use std::{collections::HashMap, fs};

/// What was taken from the host's CPU, in nanoseconds.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct Taken {
    /// By other processes.
    pub(crate) foreign_ns: u64,
    /// By the machine below, where it tells (in steps of 10 ms).
    pub(crate) stolen_ns: u64,
}

impl Taken {
    /// For longer than `plan` tolerates: what was measured meanwhile is disturbed.
    pub(crate) fn is_too_much(&self, plan: &Plan) -> bool {
        self.foreign_ns > plan.tolerated_foreign_ns || self.stolen_ns > plan.tolerated_stolen_ns
    }
}

/// What one attempt gave, and what was taken from it meanwhile.
pub(crate) trait Watched {
    fn taken(&self) -> Taken;
}

/// The CPU time of every thread of every ordinary process, and whether it last ran on the CPU in question.
pub(crate) struct Census {
    threads: HashMap<i32, Thread>,
}

struct Thread {
    process: i32,
    ns: u64,
    here: bool,
}

impl Census {
    pub(crate) fn take(cpu: usize) -> Self {
        let mut threads = HashMap::new();
        for process in numbers("/proc") {
            for thread in numbers(&format!("/proc/{process}/task")) {
                if let Some((ns, here)) = ns_and_place(process, thread, cpu) {
                    threads.insert(thread, Thread { process, ns, here });
                }
            }
        }
        Self { threads }
    }

    /// What processes other than `ours` have used since `before`, in nanoseconds, by the threads that last ran here. A thread
    /// that came from another CPU meanwhile counts with what it used there too.
    pub(crate) fn foreign_since(&self, before: &Self, ours: &[i32]) -> u64 {
        let foreign =
            self.threads.iter().filter(|(_, thread)| thread.here && !ours.contains(&thread.process));
        foreign
            .map(|(id, thread)| thread.ns.saturating_sub(before.threads.get(id).map_or(0, |old| old.ns)))
            .sum()
    }
}

/// The time that the machine below has taken from one CPU, where it tells.
pub(crate) struct Stolen {
    ticks: u64,
}

impl Stolen {
    pub(crate) fn read(cpu: usize) -> Self {
        let text = fs::read_to_string("/proc/stat").unwrap_or_default();
        Self { ticks: steal_ticks(&text, cpu).unwrap_or(0) }
    }

    /// In nanoseconds; ticks of USER_HZ, which is 100 on every architecture that Hoist runs on.
    pub(crate) fn since(&self, before: &Self) -> u64 {
        self.ticks.saturating_sub(before.ticks) * 10_000_000
    }
}

/// proc_stat(5): user, nice, system, idle, iowait, irq, softirq, steal.
fn steal_ticks(stat: &str, cpu: usize) -> Option<u64> {
    let name = format!("cpu{cpu}");
    let line = stat.lines().find(|line| line.split(' ').next() == Some(&name))?;
    line.split_whitespace().nth(8)?.parse().ok()
}

fn numbers(directory: &str) -> Vec<i32> {
    let entries = fs::read_dir(directory).into_iter().flatten();
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect()
}

/// The CPU time of a thread, and whether it last ran on `cpu`. None for kernel threads.
fn ns_and_place(process: i32, thread: i32, cpu: usize) -> Option<(u64, bool)> {
    let task = format!("/proc/{process}/task/{thread}");
    let last = last_cpu(&fs::read_to_string(format!("{task}/stat")).ok()?)?;
    let ns = fs::read_to_string(format!("{task}/schedstat")).ok()?.split(' ').next()?.parse().ok()?;
    Some((ns, last == cpu))
}

/// None for kernel threads.
fn last_cpu(stat: &str) -> Option<usize> {
    const PF_KTHREAD: u64 = 0x0020_0000;
    // proc_pid_stat(5): the name is in parentheses and may hold any character; flags are field 9, the CPU field 39.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let flags: u64 = fields.get(9 - 3)?.parse().ok()?;
    let on: usize = fields.get(39 - 3)?.parse().ok()?;
    (flags & PF_KTHREAD == 0).then_some(on)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn census(threads: &[(i32, i32, u64, bool)]) -> Census {
        let thread = |&(id, process, ns, here): &_| (id, Thread { process, ns, here });
        Census { threads: threads.iter().map(thread).collect() }
    }

    #[test]
    fn only_what_others_added_counts() {
        let before = census(&[(1, 1, 100, true), (2, 2, 50, true)]);
        let after = census(&[(1, 1, 900, true), (2, 2, 70, true), (3, 3, 5, true)]);
        assert_eq!(after.foreign_since(&before, &[1]), 25);
    }

    #[test]
    fn a_thread_that_moves_here_does_not_bring_its_past() {
        let before = census(&[(2, 2, 1_000_000, false), (3, 3, 7, true)]);
        let after = census(&[(2, 2, 1_000_030, true), (3, 3, 900, false)]);
        assert_eq!(after.foreign_since(&before, &[]), 30);
    }

    #[test]
    fn stolen_time_is_that_of_one_cpu() {
        let stat =
            "cpu  9 9 9 9 9 9 9 99 9 9\ncpu1 1 2 3 4 5 6 7 8 9 0\ncpu11 1 2 3 4 5 6 7 80 9 0\ncpu2 1\n";
        assert_eq!(steal_ticks(stat, 1), Some(8));
        assert_eq!(steal_ticks(stat, 2), None);
        assert_eq!(Stolen { ticks: 8 }.since(&Stolen { ticks: 6 }), 20_000_000);
    }

    #[test]
    fn names_with_parentheses_and_spaces_do_not_shift_the_fields() {
        let tail = |flags: u64, cpu: usize| {
            format!(
                "S 1 1 1 0 -1 {flags} 0 0 0 0 0 0 0 0 20 0 1 0 5 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 17 {cpu} 0 0"
            )
        };
        assert_eq!(last_cpu(&format!("7 (a) b) {}", tail(0, 1))), Some(1));
        assert_eq!(last_cpu(&format!("7 (x) {}", tail(0, 0))), Some(0));
        assert_eq!(last_cpu(&format!("7 (x) {}", tail(0x0020_0000, 1))), None);
        assert_eq!(last_cpu("7 (x) S"), None);
    }
}
