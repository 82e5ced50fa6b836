//! The sides that are compared.
//!
//! One CPU is the wire, the other is the host: NAPI of `vb` and the program share it, so nothing of what
//! receiving costs escapes. Both run as any server does: at nice 0, the program in a session of its own and with the socket
//! options it asks for, which are none. Only the generator is favoured, on its own CPU. The side kernel-tuned differs, and only it:
//! there NAPI and program have precedence (nice -20), and the program is changed: recvmmsg(2) and a large SO_RCVBUF, which is the
//! best that was found for the kernel (SO_BUSY_POLL with NAPI's interrupts deferred gave up to 9 % more goodput beyond twice the
//! rate it can take, as much below it, and a core that never sleeps).

use super::{peers::Peer, plan::Plan, program::sibling};
use anyhow::{Context, Result};
use hoist_wire::Precedence;
use serde::Serialize;

/// Whether rows of this name are Hoist's: as is, or run in another way.
pub(crate) fn is_hoist(name: &str) -> bool {
    name == Side::Hoist.name() || name.starts_with("hoist-")
}

/// Who receives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Side {
    /// An unmodified program as is.
    Kernel,
    /// A program tuned to the kernel: recvmmsg(2), a large SO_RCVBUF, it and NAPI at nice -20.
    KernelTuned,
    /// The unmodified program as is, under `hoist run`.
    Hoist,
    /// A raw AF_XDP sink: what the wire and AF_XDP give.
    Limit,
    /// What else receives, on request.
    #[value(skip)]
    #[serde(untagged)]
    Peer(Peer),
}

impl Side {
    pub(crate) const ALL: [Self; 4] = [Self::Kernel, Self::KernelTuned, Self::Hoist, Self::Limit];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::KernelTuned => "kernel-tuned",
            Self::Hoist => "hoist",
            Self::Limit => "limit",
            Self::Peer(peer) => peer.name,
        }
    }

    /// `command` as this side starts it: under `hoist run`, or as it is.
    pub(crate) fn wrap(self, plan: &Plan, command: Vec<String>) -> Result<Vec<String>> {
        self.wrap_with(plan, &[], command)
    }

    /// The same, with further options of `hoist run`.
    pub(crate) fn wrap_with(
        self,
        plan: &Plan,
        options: &[&str],
        command: Vec<String>,
    ) -> Result<Vec<String>> {
        if self != Self::Hoist {
            return Ok(command);
        }
        let hoist = std::env::current_exe().context("finding this program (/proc/self/exe)")?;
        let run = [&hoist.display().to_string(), "run", "--dev", "vb", "--require"].map(String::from);
        let status = plan.status.iter().flat_map(|path| ["--json".into(), path.display().to_string()]);
        let options = options.iter().map(|option| (*option).to_owned());
        Ok(run.into_iter().chain(status).chain(options).chain(["--".into()]).chain(command).collect())
    }

    /// The sink that receives on `port`, as this side starts it.
    pub(crate) fn sink(self, plan: &Plan, port: u16) -> Result<Vec<String>> {
        let mut sink = match self {
            Self::Limit => vec![beside("hoist-raw-sink")?, "vb".into(), port.to_string()],
            Self::Peer(peer) => vec![peer.path.into(), "vb".into(), port.to_string()],
            _ => vec![beside("hoist-sink")?, format!("0.0.0.0:{port}")],
        };
        if let Some(bytes) = self.rcvbuf(plan) {
            sink.extend(["--rcvbuf".into(), bytes.to_string()]);
        }
        if self == Self::KernelTuned {
            sink.extend(["--batch".into(), plan.tuned_batch.to_string()]);
        }
        if let Self::Peer(peer) = self {
            sink.extend(peer.options().iter().map(|word| (*word).to_owned()));
        }
        sink.extend(["--seconds", "20"].map(String::from));
        self.wrap(plan, sink)
    }

    /// What its program is to set as SO_RCVBUF.
    pub(crate) fn rcvbuf(self, plan: &Plan) -> Option<u32> {
        match self {
            Self::Kernel | Self::Hoist => plan.rcvbuf,
            Self::KernelTuned => Some(plan.tuned_rcvbuf),
            Self::Limit | Self::Peer(_) => None,
        }
    }

    /// Of the program.
    pub(crate) fn precedence(self) -> Precedence {
        if self == Self::KernelTuned { Precedence::Favoured } else { Precedence::AsIs }
    }

    /// Of the NAPI thread.
    pub(crate) fn napi_precedence(self) -> Precedence {
        match self {
            Self::Peer(peer) if peer.favours_napi() => Precedence::Favoured,
            _ => self.precedence(),
        }
    }
}

fn beside(name: &str) -> Result<String> {
    Ok(sibling(name)?.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_kernel_tuned_is_tuned() {
        let plan = Plan::full();
        let tuned =
            |side: &Side| side.rcvbuf(&plan).is_some() || side.napi_precedence() == Precedence::Favoured;
        let found: Vec<_> = Side::ALL.into_iter().filter(tuned).collect();
        assert_eq!(found, [Side::KernelTuned]);
    }

    #[test]
    fn only_hoist_runs_its_program_under_hoist_run() {
        let plan = Plan::full();
        for side in Side::ALL {
            let command = side.wrap(&plan, vec!["server".into()]).unwrap();
            assert_eq!(command.len() > 1, side == Side::Hoist, "{command:?}");
            assert_eq!(command.last().unwrap(), "server");
        }
    }
}
