//! A program that a bench starts: it says `ready`, works, and prints one line of JSON at its end.

use super::side::Side;
use anyhow::{Context, Result, bail};
use hoist_wire::{End, in_own_session};
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::signal::{Signal, kill},
    time::{ClockId, clock_gettime},
    unistd::Pid,
};
use serde::de::DeserializeOwned;
use std::{
    fs::{self, File},
    io::{BufRead, BufReader, Read, Seek},
    os::fd::AsFd,
    path::PathBuf,
    process::{Child, ChildStdout, Command, Stdio},
};

/// A program that runs.
pub(crate) struct Program {
    name: String,
    child: Child,
    output: BufReader<ChildStdout>,
    errors: File,
}

impl Program {
    /// Starts `command` in the namespace of `end` on one CPU, with the precedence of `side`, in a session of its own.
    pub(crate) fn start(end: &End, cpu: usize, side: Side, command: &[String]) -> Result<Self> {
        let (program, arguments) = command.split_first().context("no command")?;
        let errors = memfd()?;
        let mut starting: Command = in_own_session(end.command(program), Some(cpu), side.precedence());
        starting.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped());
        starting.stderr(errors.try_clone().context("duplicating a descriptor")?);
        let mut child = starting.spawn().with_context(|| format!("starting {program}"))?;
        let output = BufReader::new(child.stdout.take().context("the program has no standard output")?);
        Ok(Self { name: command.join(" "), child, output, errors })
    }

    /// The same, and waits until it says that it is ready.
    pub(crate) fn ready(end: &End, cpu: usize, side: Side, command: &[String]) -> Result<Self> {
        let mut program = Self::start(end, cpu, side, command)?;
        match program.line()? {
            line if line.trim() == "ready" => Ok(program),
            _ => bail!("{} ended before it was ready: {}", program.name, program.complaint()),
        }
    }

    /// The process that was started: under `hoist run` that is Hoist's.
    pub(crate) fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// It and, under `hoist run`, its child; and this process.
    pub(crate) fn processes(&self) -> Vec<i32> {
        let id = self.pid();
        let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap_or_default();
        let children = children.split_whitespace().filter_map(|child| child.parse().ok());
        children.chain([id, std::process::id() as i32]).collect()
    }

    /// CPU time of every thread of the process that was started, in nanoseconds.
    pub(crate) fn cpu_ns(&self) -> u64 {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.pid())).into_iter().flatten().flatten();
        let times = tasks.filter_map(|task| fs::read_to_string(task.path().join("schedstat")).ok());
        times.filter_map(|text| text.split(' ').next()?.parse::<u64>().ok()).sum()
    }

    /// CPU time of it and, under `hoist run`, of its child, threads that have ended included, in nanoseconds.
    pub(crate) fn processes_ns(&self) -> Result<u64> {
        let own = std::process::id() as i32;
        self.processes().into_iter().filter(|id| *id != own).map(process_ns).sum()
    }

    /// An error if it has ended.
    pub(crate) fn check_alive(&mut self) -> Result<()> {
        match self.child.try_wait().context("asking for a program (waitpid)")? {
            Some(status) => bail!("{} ended while it was asked ({status}): {}", self.name, self.complaint()),
            None => Ok(()),
        }
    }

    /// Waits for its line of JSON and for its end.
    pub(crate) fn report<R: DeserializeOwned>(mut self) -> Result<R> {
        let line = self.line()?;
        let report = serde_json::from_str(&line).with_context(|| {
            format!("{} printed {line:?} instead of its report: {}", self.name, self.complaint())
        });
        self.child.wait().context("waiting for a program (waitpid)")?;
        report
    }

    /// Its next line; nothing at its end.
    pub(crate) fn line(&mut self) -> Result<String> {
        let timeout = PollTimeout::from(30_000u16);
        let mut fds = [PollFd::new(self.output.get_ref().as_fd(), PollFlags::POLLIN)];
        if self.output.buffer().is_empty()
            && poll(&mut fds, timeout).context("waiting for a program (poll)")? == 0
        {
            bail!("{} said nothing for 30 s: {}", self.name, self.complaint());
        }
        let mut line = String::new();
        self.output.read_line(&mut line).with_context(|| format!("reading from {}", self.name))?;
        Ok(line)
    }

    fn complaint(&self) -> String {
        let mut text = String::new();
        let mut errors = &self.errors;
        let read = errors.rewind().and_then(|()| errors.read_to_string(&mut text));
        match read {
            Ok(0) => "it printed nothing on standard error".into(),
            Ok(_) => text.trim().replace('\n', " | "),
            Err(error) => format!("its standard error cannot be read: {error}"),
        }
    }
}

impl Drop for Program {
    /// Asks it to end: `hoist run` passes the signal on and cleans up.
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            let _ = kill(Pid::from_raw(self.pid()), Signal::SIGTERM);
            let _ = self.child.wait();
        }
    }
}

pub(crate) fn process_ns(id: i32) -> Result<u64> {
    let clock = ClockId::pid_cpu_clock_id(Pid::from_raw(id));
    let time = clock.and_then(clock_gettime).context("reading a program's CPU time (clock_gettime)")?;
    Ok(time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64)
}

fn memfd() -> Result<File> {
    let fd = nix::sys::memfd::memfd_create("stderr", nix::sys::memfd::MFdFlags::MFD_CLOEXEC);
    Ok(fd.context("making a file in memory (memfd_create)")?.into())
}

/// A program that is installed beside this one.
pub(crate) fn sibling(name: &str) -> Result<PathBuf> {
    let path = std::env::current_exe().context("finding this program (/proc/self/exe)")?.with_file_name(name);
    if !path.exists() {
        bail!("{} is missing: `cargo build --release -p hoist-wire` makes it", path.display());
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_computes_uses_cpu_time() {
        let own = std::process::id() as i32;
        let before = process_ns(own).unwrap();
        let start = std::time::Instant::now();
        while start.elapsed().as_millis() < 20 {}
        assert!(process_ns(own).unwrap() > before);
    }
}
