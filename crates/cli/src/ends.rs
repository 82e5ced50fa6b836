//! What ends a run: SIGINT, SIGTERM and SIGHUP, read rather than delivered.

use anyhow::{Context, Result};
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        signal::{SigSet, Signal},
        signalfd::SignalFd,
    },
};
use std::{
    os::fd::{AsFd, BorrowedFd},
    process::ExitCode,
};

/// The signals, blocked: threads that start later inherit that. SIGHUP only if it is not ignored (nohup).
pub(crate) struct Ends(SignalFd);

/// What came first.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Event {
    /// Half a second.
    Time,
    /// What was waited for.
    Done,
    Signal(Interrupted),
}

/// Ended by a signal of this number.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Interrupted(u32);

impl Ends {
    pub(crate) fn block() -> Result<Self> {
        let mut ends = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM]);
        if !ignored(&std::fs::read_to_string("/proc/self/status").unwrap_or_default(), Signal::SIGHUP) {
            ends.add(Signal::SIGHUP);
        }
        ends.thread_block().context("blocking the signals that end it (pthread_sigmask)")?;
        Ok(Self(SignalFd::new(&ends).context("reading the signals that end it (signalfd)")?))
    }

    /// Waits half a second for a signal, or for one of `others` to be readable.
    pub(crate) fn wait(&self, others: &[BorrowedFd<'_>]) -> Result<Event> {
        let all = [self.0.as_fd()].into_iter().chain(others.iter().copied());
        let mut fds: Vec<_> = all.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        let ready = poll(&mut fds, PollTimeout::from(LOOK_MS)).context("waiting for Ctrl-C (poll)")?;
        let signalled = fds[0].any().unwrap_or(false);
        match (ready, signalled) {
            (0, _) => Ok(Event::Time),
            (_, false) => Ok(Event::Done),
            (_, true) => self.read(),
        }
    }

    fn read(&self) -> Result<Event> {
        let signal = self.0.read_signal().context("reading the signalfd")?;
        Ok(signal.map_or(Event::Time, |signal| Event::Signal(Interrupted(signal.ssi_signo))))
    }
}

pub(crate) const LOOK_MS: u16 = 500;

/// By `SigIgn` of proc(5).
fn ignored(status: &str, signal: Signal) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask >> (signal as u32 - 1) & 1 == 1)
}

impl Interrupted {
    /// As shells say it.
    pub(crate) fn code(self) -> ExitCode {
        ExitCode::from(128 + self.0 as u8)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::signal::raise;
    use std::io::{Write, pipe};

    #[test]
    fn what_is_ignored_stays_so() {
        let nohup = "SigBlk:\t0000000000000000\nSigIgn:\t0000000000001001\n";
        assert!(ignored(nohup, Signal::SIGHUP));
        assert!(!ignored(nohup, Signal::SIGINT));
        assert!(!ignored("", Signal::SIGHUP));
    }

    #[test]
    fn a_signal_and_what_is_waited_for_are_told_apart() {
        let ends = Ends::block().unwrap();
        let (over, mut tell) = pipe().unwrap();
        assert_eq!(ends.wait(&[over.as_fd()]).unwrap(), Event::Time);
        tell.write_all(b"x").unwrap();
        assert_eq!(ends.wait(&[over.as_fd()]).unwrap(), Event::Done);
        raise(Signal::SIGTERM).unwrap(); // to this thread
        let Event::Signal(how) = ends.wait(&[over.as_fd()]).unwrap() else { panic!("no signal") };
        assert_eq!(how, Interrupted(15));
    }
}
