//! Which of the kernel's functions a thread spends its CPU time in, by perf(1).

use hoist_wire::{Napi, unpin_thread};
use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// Per cent of the samples, by function.
#[derive(Debug, Default)]
pub(super) struct Shares(HashMap<String, f64>);

impl Shares {
    pub(super) fn of(&self, function: &str) -> Option<f64> {
        (!self.0.is_empty()).then(|| self.0.get(function).copied().unwrap_or(0.0))
    }

    /// A report's lines: `12.34%  [k] function.suffix`. What the compiler split off counts with its function.
    fn parse(report: &str) -> Self {
        let mut shares = HashMap::new();
        for line in report.lines() {
            let mut words = line.split_whitespace();
            let share = words.next().and_then(|word| word.strip_suffix('%')?.parse::<f64>().ok());
            let name = words.nth(1).and_then(|name| name.split('.').next());
            if let (Some(share), Some(name)) = (share, name) {
                *shares.entry(name.to_owned()).or_default() += share;
            }
        }
        Self(shares)
    }
}

/// Whether perf is there and may sample.
pub(super) fn can_tell() -> bool {
    let test = ["stat", "-e", "cpu-clock", "-x,", "true"];
    perf(&test).status().is_ok_and(|status| status.success())
}

/// perf, while it samples.
pub(super) struct Sampler {
    running: Option<(Child, PathBuf)>,
}

/// Samples the threads from now on, for so long.
pub(super) fn sample(napis: &[Napi], time: Duration) -> Sampler {
    let threads: Vec<String> =
        napis.iter().filter_map(|napi| napi.thread).map(|thread| thread.to_string()).collect();
    let file = std::env::temp_dir().join(format!("hoist-gro-wire-{}", std::process::id()));
    let (path, seconds) = (file.display().to_string(), time.as_secs_f64().to_string());
    let threads = threads.join(",");
    let options = ["record", "-q", "-e", "cpu-clock", "-F", "4999", "-t", &threads, "-o", &path, "--"];
    let _ = fs::remove_file(&file);
    let mut command = perf(&options);
    let running = anywhere(command.args(["sleep", &seconds])).map(|mut child| {
        await_beginning(&mut child, &file);
        (child, file)
    });
    Sampler { running }
}

/// Starts it free of the wire's CPU, which has no time left for others.
fn anywhere(command: &mut Command) -> Option<Child> {
    let start = || {
        unpin_thread().ok()?;
        command.spawn().ok()
    };
    std::thread::scope(|scope| scope.spawn(start).join().ok()?)
}

/// perf makes its file right before it begins.
fn await_beginning(child: &mut Child, file: &Path) {
    let end = Instant::now() + Duration::from_secs(2);
    while !file.exists() && matches!(child.try_wait(), Ok(None)) && Instant::now() < end {
        std::thread::yield_now();
    }
}

impl Sampler {
    /// Nothing where perf could not sample.
    pub(super) fn end(self) -> Shares {
        let Some((mut child, file)) = self.running else { return Shares::default() };
        let is_done = child.wait().is_ok_and(|status| status.success());
        let path = file.display().to_string();
        let options = ["report", "--no-children", "--stdio", "-q", "-F", "overhead,sym", "-i", &path];
        let report = perf(&options).stdout(Stdio::piped()).output();
        let _ = fs::remove_file(&file);
        report
            .ok()
            .filter(|_| is_done)
            .map_or_else(Shares::default, |report| Shares::parse(&String::from_utf8_lossy(&report.stdout)))
    }
}

fn perf(arguments: &[&str]) -> Command {
    let mut command = Command::new("perf");
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_shares_by_function() {
        let shares =
            Shares::parse("\n    12.50%  [k] dev_gro_receive\n     2.00%  [k] dev_gro_receive.part.0\n");
        assert_eq!(shares.of("dev_gro_receive"), Some(14.5));
        assert_eq!(shares.of("tcp_gro_receive"), Some(0.0), "not one sample");
        assert_eq!(Shares::parse("").of("dev_gro_receive"), None, "no report");
    }
}
