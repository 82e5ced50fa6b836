//! A program in a namespace of the testbed, whose output is followed while signals are heard.

use super::{Precedence, Signals};
use anyhow::{Context, Result, bail};
use hoist_wire::in_own_session;
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{
    io::{PipeReader, Read},
    os::fd::AsFd,
    process::{Child, Command, ExitStatus, Stdio},
};

/// One that runs. It is asked to end when dropped.
pub(crate) struct Followed<'a> {
    name: String,
    child: Child,
    pipe: PipeReader,
    output: String,
    signals: &'a Signals,
}

impl<'a> Followed<'a> {
    pub(crate) fn start(command: Command, signals: &'a Signals) -> Result<Self> {
        let name = command.get_program().to_string_lossy().into_owned();
        let (pipe, writer) = std::io::pipe().context("making a pipe")?;
        let mut command = in_own_session(command, None, Precedence::AsIs);
        command
            .stdin(Stdio::null())
            .stdout(writer.try_clone().context("duplicating a descriptor")?)
            .stderr(writer);
        let child = command.spawn().with_context(|| format!("starting {name}"))?;
        Ok(Self { name, child, pipe, output: String::new(), signals })
    }

    /// Waits until it has printed all of `words`.
    pub(crate) fn until_printed(&mut self, words: &[&str]) -> Result<()> {
        while !words.iter().all(|word| self.output.contains(word)) {
            if !self.follow()? {
                bail!("{} ended before it was ready: {}", self.name, self.complaint());
            }
        }
        Ok(())
    }

    /// Waits for its end; what it printed.
    pub(crate) fn until_ended(mut self) -> Result<String> {
        while self.follow()? {}
        match self.child.wait().with_context(|| format!("waiting for {} (waitpid)", self.name))? {
            status if status.success() => Ok(std::mem::take(&mut self.output)),
            status => bail!("{}: {status}: {}", self.name, self.complaint()),
        }
    }

    /// Asks it to end and waits until it has.
    pub(crate) fn stop(mut self) -> Result<()> {
        let status: ExitStatus = self.end()?;
        if !status.success() {
            bail!("{}: {status}: {}", self.name, self.complaint());
        }
        Ok(())
    }

    fn end(&mut self) -> Result<ExitStatus> {
        if let Ok(None) = self.child.try_wait() {
            // Not reaped yet, so the pid is still its own.
            let _ = kill(Pid::from_raw(self.child.id() as i32), Signal::SIGTERM);
        }
        self.child.wait().with_context(|| format!("waiting for {} (waitpid)", self.name))
    }

    /// Takes what it prints next; false at the end.
    fn follow(&mut self) -> Result<bool> {
        const PATIENCE_MS: u16 = 30_000;
        let mut fds = [self.pipe.as_fd(), self.signals.as_fd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        match poll(&mut fds, PollTimeout::from(PATIENCE_MS)) {
            Err(Errno::EINTR) => return Ok(true),
            Ok(0) => bail!("{} said nothing for {} s: {}", self.name, PATIENCE_MS / 1000, self.complaint()),
            ready => ready.with_context(|| format!("waiting for {} (poll)", self.name))?,
        };
        let printed = fds[0].any().unwrap_or(false);
        self.signals.check()?;
        if !printed {
            return Ok(true);
        }
        let mut buffer = [0; 4096];
        let length = self.pipe.read(&mut buffer).with_context(|| format!("reading from {}", self.name))?;
        self.output.push_str(&String::from_utf8_lossy(&buffer[..length]));
        Ok(length > 0)
    }

    fn complaint(&self) -> String {
        match self.output.trim() {
            "" => "it printed nothing".into(),
            text => text.replace('\n', " | "),
        }
    }
}

impl Drop for Followed<'_> {
    fn drop(&mut self) {
        let _ = self.end();
    }
}
