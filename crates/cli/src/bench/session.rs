//! A session of its own, precedence in it, and signals by descriptor.

use anyhow::{Context, Result};
use hoist_wire::{Precedence, in_own_session};
use nix::{
    sys::{
        signal::{SigSet, Signal, kill},
        signalfd::{SfdFlags, SignalFd},
    },
    unistd::{Pid, getpid, getsid},
};
use std::{
    fmt,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::process::ExitStatusExt,
    },
    process::{Child, Command, ExitCode},
};

/// Runs this program once more in a session of its own and waits for it; none when this is that one.
///
/// What [`Favoured`] changes belongs to a session and stays when it is killed: here the session ends with it.
pub(crate) fn apart() -> Result<Option<ExitCode>> {
    if getsid(None).context("asking for the session (getsid)")? == getpid() {
        return Ok(None);
    }
    let signals: SigSet = FORWARDED.into_iter().chain([Signal::SIGCHLD]).collect();
    signals.thread_block().context("blocking signals (pthread_sigmask)")?;
    let own = std::env::current_exe().context("finding this program (/proc/self/exe)")?;
    let mut command = Command::new(own);
    command.args(std::env::args_os().skip(1));
    let mut child = in_own_session(command, None, Precedence::AsIs)
        .spawn()
        .context("starting in a session of its own")?;
    wait(&mut child, &signals).map(Some)
}

const FORWARDED: [Signal; 3] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP];

fn wait(child: &mut Child, signals: &SigSet) -> Result<ExitCode> {
    loop {
        if let Some(status) = child.try_wait().context("waiting for a session of its own (waitpid)")? {
            let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
            return Ok(ExitCode::from(code as u8));
        }
        match signals.wait().context("waiting for signals (sigwait)")? {
            Signal::SIGCHLD => {}
            // Not reaped yet, so the pid is still the child's. It takes SIGHUP for no more than SIGTERM.
            Signal::SIGINT => drop(kill(Pid::from_raw(child.id() as i32), Signal::SIGINT)),
            _ => drop(kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM)),
        }
    }
}

/// This session, and so the generator, has precedence until dropped: what [`super::side`] says of nice is true of sessions where
/// autogroup is on.
pub(crate) struct Favoured {
    before: Option<String>,
}

impl Favoured {
    pub(crate) fn session() -> Self {
        let text = std::fs::read_to_string(AUTOGROUP).unwrap_or_default();
        let nice = text.trim().rsplit(' ').next().map(String::from);
        Self { before: nice.filter(|_| std::fs::write(AUTOGROUP, "-20").is_ok()) }
    }
}

impl Drop for Favoured {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            let _ = std::fs::write(AUTOGROUP, before);
        }
    }
}

const AUTOGROUP: &str = "/proc/self/autogroup";

/// SIGINT and SIGTERM end the run between two trials, so that the testbed is removed.
pub(crate) struct Signals(SignalFd);

impl Signals {
    pub(crate) fn block() -> Result<Self> {
        let set: SigSet = [Signal::SIGINT, Signal::SIGTERM].into_iter().collect();
        set.thread_block().context("blocking signals (pthread_sigmask)")?;
        let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        Ok(Self(SignalFd::with_flags(&set, flags).context("making a signalfd")?))
    }

    /// [`Interrupted`] once a signal has come.
    pub(crate) fn check(&self) -> Result<()> {
        match self.0.read_signal().context("reading the signalfd")? {
            Some(_) => Err(Interrupted.into()),
            None => Ok(()),
        }
    }
}

/// The user ended the run.
#[derive(Debug)]
pub(crate) struct Interrupted;

impl fmt::Display for Interrupted {
    fn fmt(&self, text: &mut fmt::Formatter<'_>) -> fmt::Result {
        text.write_str("interrupted")
    }
}

impl std::error::Error for Interrupted {}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
