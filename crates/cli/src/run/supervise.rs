//! Waiting for the program while the broker serves it.

use super::{print, say};
use crate::status::render;
use anyhow::{Context, Result};
use hoist_broker::{Broker, launch::Launched};
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        signal::{SigSet, SigmaskHow, Signal, kill, pthread_sigmask},
        signalfd::{SfdFlags, SignalFd, siginfo},
    },
    unistd::Pid,
};
use std::{
    os::{fd::AsFd, unix::process::ExitStatusExt},
    process::{ExitCode, ExitStatus},
};

const FORWARDED: [Signal; 6] =
    [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGUSR2, Signal::SIGWINCH];
/// `si_code` of a signal that the kernel sent to a whole process group: the program has it already.
const SI_KERNEL: i32 = 0x80;

/// Takes signals by descriptor from now on; returns the mask the program is to start with.
pub(super) fn block_signals() -> Result<SigSet> {
    let mut old = SigSet::empty();
    pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&handled()), Some(&mut old)).context("block signals")?;
    Ok(old)
}

fn handled() -> SigSet {
    [Signal::SIGCHLD, Signal::SIGUSR1].into_iter().chain(FORWARDED).collect()
}

/// What has been seen of the program.
struct Program {
    launched: Launched,
    ended: Option<ExitStatus>,
    /// --require ended it.
    denied: bool,
    /// A signal came for us after it had ended.
    dismissed: bool,
}

/// Serves until the program has ended and no descendant holds rings.
pub(super) fn supervise(broker: &mut Broker, launched: Launched, require: bool) -> Result<ExitCode> {
    let signals = SignalFd::with_flags(&handled(), SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        .context("take signals by descriptor (signalfd)")?;
    let mut program = Program { launched, ended: None, denied: false, dismissed: false };
    let mut staying = false;
    loop {
        print_messages(broker);
        wait(broker, &signals)?;
        broker.dispatch()?;
        while let Some(signal) = signals.read_signal().context("read a signal")? {
            program.on_signal(broker, &signal)?;
        }
        program.enforce(broker, require);
        let Some(status) = program.ended else { continue };
        // What the program's end did to its descriptors is ready by now: see it before judging who is left.
        broker.dispatch()?;
        match broker.holds_rings() {
            Some(pid) if !program.dismissed => {
                if !staying {
                    say(&format!(
                        "the program has ended; its descendant {pid} goes on with the rings, and hoist with it"
                    ));
                    staying = true;
                }
            }
            _ => return Ok(exit_code(status, program.denied)),
        }
    }
}

fn wait(broker: &Broker, signals: &SignalFd) -> Result<()> {
    let mut fds =
        [PollFd::new(broker.as_fd(), PollFlags::POLLIN), PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
    match poll(&mut fds, PollTimeout::NONE) {
        Err(nix::Error::EINTR) | Ok(_) => Ok(()),
        Err(errno) => Err(errno).context("poll"),
    }
}

impl Program {
    fn on_signal(&mut self, broker: &Broker, info: &siginfo) -> Result<()> {
        let Ok(signal) = Signal::try_from(info.ssi_signo as i32) else { return Ok(()) };
        match signal {
            Signal::SIGCHLD => {
                self.ended = self.ended.or(self.launched.child.try_wait().context("wait for the program")?)
            }
            Signal::SIGUSR1 => print(&render::text(&broker.status())),
            _ if self.ended.is_some() => self.dismissed |= signal != Signal::SIGWINCH,
            _ if info.ssi_code == SI_KERNEL => {}
            _ => self.send(signal),
        }
        Ok(())
    }

    fn enforce(&mut self, broker: &Broker, require: bool) {
        let Some(why) = broker.denied().filter(|_| require && !self.denied) else { return };
        say(&format!("--require: {why}"));
        self.denied = true;
        if self.ended.is_none() {
            self.send(Signal::SIGTERM);
        }
    }

    fn send(&self, signal: Signal) {
        // Not reaped yet, so the pid is still the program's.
        let _ = kill(Pid::from_raw(self.launched.child.id() as i32), signal);
    }
}

fn exit_code(status: ExitStatus, denied: bool) -> ExitCode {
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    if denied { ExitCode::FAILURE } else { ExitCode::from(code as u8) }
}

/// Shows what the broker has to say.
pub(super) fn print_messages(broker: &mut Broker) {
    broker.take_messages().iter().for_each(|text| say(text));
}
