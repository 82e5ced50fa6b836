//! From the kernel's rings to folded stacks.

use super::{
    fold::Folded,
    record::{self, Record, Sample},
    stage,
    symbols::Symbols,
    sys::{Ring, Scope},
    table::Facts,
};
use crate::cpus::Cpus;
use anyhow::{Context, Result, anyhow};
use std::{
    collections::HashMap,
    fs, io,
    os::fd::{AsFd, BorrowedFd},
};

/// Whom it is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    Machine,
    Process(u32),
    /// With what it starts; the rest of the machine is shown, too.
    Command(u32),
}

/// A stack whose kernel part has no names yet: programs may be loaded into the kernel meanwhile.
#[derive(PartialEq, Eq, Hash)]
struct Raw {
    user: Vec<String>,
    kernel: Vec<u64>,
}

pub(super) struct Sampler {
    target: Target,
    rings: Vec<Ring>,
    symbols: Symbols,
    seen: HashMap<Raw, u64>,
    /// Of threads.
    names: HashMap<u32, String>,
    /// Whether processes descend from the command.
    family: HashMap<u32, bool>,
    facts: Facts,
    looks: u32,
}

impl Sampler {
    pub(super) fn start(target: Target, hz: u64) -> Result<Self> {
        Self::on(Cpus::online()?.0, target, hz)
    }

    /// On some CPUs only.
    pub(super) fn on(cpus: Vec<u32>, target: Target, hz: u64) -> Result<Self> {
        let mut facts = Facts { hz, cpus: cpus.len(), ..Facts::default() };
        let rings = match open(&cpus, hz, &[Scope::Everything]) {
            Err(error) if refused(&error) => user_code_only(target, &cpus, hz, &error, &mut facts)?,
            other => other.map_err(|error| anyhow!("flame: sampling (perf_event_open): {error}"))?,
        };
        let symbols = Symbols::new();
        if !symbols.sees_kernel() {
            facts.notes.push(
                "names of kernel functions (kernel.kptr_restrict): sysctl kernel.kptr_restrict=0, or root"
                    .into(),
            );
        }
        let (seen, names, family) = (HashMap::new(), HashMap::new(), HashMap::new());
        Ok(Self { target, rings, symbols, seen, names, family, facts, looks: 0 })
    }

    pub(super) fn rings(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.rings.iter().map(AsFd::as_fd)
    }

    /// Takes what has come.
    pub(super) fn take(&mut self) {
        let bytes: Vec<Vec<u8>> = self.rings.iter_mut().map(Ring::take).collect();
        for record in bytes.iter().flat_map(|bytes| record::parse(bytes)) {
            match record {
                Record::Sample(sample) => self.sample(&sample),
                Record::Mapped(mapping) => self.symbols.map(mapping),
                Record::Named { pid, tid, name, exec } => {
                    self.names.insert(tid, name);
                    if exec {
                        self.symbols.forget(pid);
                    }
                }
                Record::Lost(records) => self.facts.lost += records,
                Record::Throttled => self.facts.throttled += 1,
                Record::Unknown => {}
            }
        }
        self.looks += 1;
        if self.looks == 2 {
            self.symbols.refresh_kernel(); // what was loaded for the command
        }
    }

    fn sample(&mut self, sample: &Sample) {
        if matches!(self.target, Target::Process(pid) if pid != sample.pid) {
            return;
        }
        let stranger = !sample.user.is_empty() && !self.is_of_interest(sample.pid);
        if stranger && sample.kernel.is_empty() {
            self.facts.elsewhere += 1;
            return;
        }
        let mut user = vec![self.name(sample.pid, sample.tid)];
        if !stranger {
            user.extend(sample.user.iter().rev().map(|address| self.symbols.user(sample.pid, *address)));
            user.dedup_by(|a, b| a == b && a.starts_with('[')); // a walk without frame pointers leads nowhere
        } else {
            user.push(stage::STRANGER.into());
        }
        *self.seen.entry(Raw { user, kernel: sample.kernel.clone() }).or_default() += 1;
    }

    fn name(&mut self, pid: u32, tid: u32) -> String {
        if pid == 0 {
            return "swapper".into();
        }
        let read =
            || fs::read_to_string(format!("/proc/{pid}/task/{tid}/comm")).map(|name| name.trim().to_owned());
        let name = self.names.entry(tid).or_insert_with(|| read().unwrap_or_else(|_| format!("pid {pid}")));
        name.replace(';', ":")
    }

    /// Whether what the process itself runs is shown.
    fn is_of_interest(&mut self, pid: u32) -> bool {
        match self.target {
            Target::Machine | Target::Process(_) => true,
            Target::Command(root) => *self.family.entry(pid).or_insert_with(|| descends(pid, root)),
        }
    }

    /// Names of all that was seen.
    pub(super) fn finish(mut self) -> (Folded, Facts) {
        self.symbols.refresh_kernel();
        let mut folded = Folded::default();
        for (raw, samples) in &self.seen {
            let kernel = raw.kernel.iter().rev().map(|address| self.symbols.kernel(*address));
            folded.add(raw.user.iter().cloned().chain(kernel).collect(), *samples);
        }
        (folded, self.facts)
    }
}

fn open(cpus: &[u32], hz: u64, scopes: &[Scope]) -> io::Result<Vec<Ring>> {
    let all = cpus.iter().flat_map(|cpu| scopes.iter().map(move |scope| (*cpu, *scope)));
    all.map(|(cpu, scope)| Ring::open(cpu, hz, scope)).collect()
}

fn refused(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EACCES | libc::EPERM))
}

/// What an ordinary user may see.
fn user_code_only(
    target: Target,
    cpus: &[u32],
    hz: u64,
    error: &io::Error,
    facts: &mut Facts,
) -> Result<Vec<Ring>> {
    let paranoid = fs::read_to_string("/proc/sys/kernel/perf_event_paranoid").unwrap_or_default();
    let why = format!(
        "the kernel, softirqs and other programs ({error}; kernel.perf_event_paranoid is {}): run as root, or setcap cap_perfmon,cap_syslog+ep on \
         hoist, or sysctl kernel.perf_event_paranoid=-1",
        paranoid.trim()
    );
    let pid = match target {
        Target::Machine => return Err(anyhow!("flame: may not sample {why}")),
        Target::Process(pid) | Target::Command(pid) => pid,
    };
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let threads: Vec<Scope> =
        tasks.filter_map(|task| task.file_name().to_str()?.parse().ok()).map(Scope::UserCodeOf).collect();
    let rings = open(cpus, hz, &threads)
        .map_err(|error| anyhow!("flame: may not sample process {pid}: {error}; nor {why}"))?;
    facts.notes.push(why);
    Ok(rings)
}

fn descends(pid: u32, root: u32) -> bool {
    let mut at = pid;
    for _ in 0..64 {
        if at == root {
            return true;
        }
        match parent(at) {
            Ok(up) if up > 1 => at = up,
            _ => return false,
        }
    }
    false
}

fn parent(pid: u32) -> Result<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let rest = stat.rsplit_once(") ").context("no stat")?.1;
    rest.split(' ').nth(1).context("no parent")?.parse().context("no number")
}
