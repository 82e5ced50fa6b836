//! What can go wrong, with the operation, the errno and what to do about it.

use std::io;

/// A result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// An error of the testbed or the generator.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A system call or netlink request failed.
    #[error("{operation}: {source}{}", hint(source))]
    Sys {
        /// What was being done, with its object.
        operation: String,
        /// The errno.
        source: io::Error,
    },
    /// No testbed has this name.
    #[error(
        "no testbed is called {0:?}: `hoist testbed list` shows those there are, `hoist testbed up --name {0}` makes it"
    )]
    Unknown(String),
    /// The name is taken.
    #[error(
        "a testbed called {0:?} exists already: `hoist testbed down {0}` removes it, another --name avoids it"
    )]
    Exists(String),
    /// The testbed belongs to a process that runs.
    #[error("testbed {0:?} belongs to a process that still runs: it goes when that process ends")]
    InUse(String),
    /// The name cannot be part of a namespace's name.
    #[error("{0:?} is no name for a testbed: 1 to 24 of a-z, 0-9 and -")]
    BadName(String),
    /// What was asked for is not possible.
    #[error("{0}")]
    Spec(String),
    /// The BPF program was refused.
    #[error("{operation}: {why}: the wire needs CAP_BPF, CAP_NET_ADMIN and Linux 6.6 or newer")]
    Bpf {
        /// What was being done.
        operation: &'static str,
        /// aya's chain of causes.
        why: String,
    },
}

impl Error {
    pub(crate) fn sys(operation: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self::Sys { operation: operation.into(), source: source.into() }
    }

    pub(crate) fn bpf(operation: &'static str, error: &dyn std::error::Error) -> Self {
        let mut why = error.to_string();
        let mut cause = error.source();
        while let Some(inner) = cause {
            why = format!("{why}: {inner}");
            cause = inner.source();
        }
        Self::Bpf { operation, why }
    }
}

/// Names the operation that a failed call belongs to.
pub(crate) trait During<T> {
    fn during(self, operation: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: Into<io::Error>> During<T> for std::result::Result<T, E> {
    fn during(self, operation: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|error| Error::sys(operation(), error))
    }
}

fn hint(source: &io::Error) -> &'static str {
    match source.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => ": this needs root (or CAP_SYS_ADMIN and CAP_NET_ADMIN)",
        _ => "",
    }
}
