//! What can go wrong in the broker.

use std::io;

/// An operation of the broker that failed, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A system call or file operation.
    #[error("{operation}: {cause}{}", hint(.cause))]
    Sys {
        /// The call, and what for.
        operation: String,
        /// errno.
        cause: io::Error,
    },
    /// Loading a BPF program or using a map.
    #[error("{operation}: {cause}; {}", BPF_HINT)]
    Bpf {
        /// What was attempted.
        operation: String,
        /// The loader's words, the verifier's included.
        cause: String,
    },
    /// Making the UMEM or an AF_XDP socket.
    #[error("{operation}: {cause}")]
    Xsk {
        /// What was attempted.
        operation: String,
        /// The cause.
        cause: hoist_xsk::Error,
    },
    /// Something else that stands in the way.
    #[error("{0}")]
    Other(String),
}

const BPF_HINT: &str =
    "needs Linux 6.6 with BPF and CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON: run as root, or see hoist doctor";

fn hint(cause: &io::Error) -> &'static str {
    match cause.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => " (needs CAP_NET_ADMIN, CAP_NET_RAW and CAP_BPF: run as root)",
        Some(libc::EMFILE | libc::ENFILE) => " (raise the limit of open files: ulimit -n)",
        _ => "",
    }
}

/// Names the operation that failed.
pub(crate) trait Context<T> {
    fn context(self, operation: impl Into<String>) -> Result<T, Error>;
}

impl<T, E: Into<io::Error>> Context<T> for Result<T, E> {
    fn context(self, operation: impl Into<String>) -> Result<T, Error> {
        self.map_err(|cause| Error::Sys { operation: operation.into(), cause: cause.into() })
    }
}

/// An error of aya with the whole chain of its causes, but of the verifier's log only what it ends with.
pub(crate) fn bpf(operation: &str, error: &dyn std::error::Error) -> Error {
    let mut cause = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        cause += ": ";
        cause += &error.to_string();
        source = error.source();
    }
    Error::Bpf { operation: operation.into(), cause: shortened(&cause) }
}

/// Lines of a verifier's log that say what is wrong, and what follows them.
const LAST_LINES: usize = 8;

fn shortened(cause: &str) -> String {
    let lines: Vec<&str> = cause.lines().collect();
    match lines.len().checked_sub(LAST_LINES + 1) {
        None | Some(0) => cause.into(),
        Some(skip) => format!("{} …\n{}", lines[0], lines[1 + skip..].join("\n")),
    }
}

#[cfg(test)]
mod tests {
    use super::shortened;

    #[test]
    fn of_a_long_log_the_first_line_and_the_last_ones_are_kept() {
        let lines: Vec<String> = (0..100).map(|n| n.to_string()).collect();
        assert_eq!(shortened(&lines.join("\n")), "0 …\n92\n93\n94\n95\n96\n97\n98\n99");
        assert_eq!(shortened(&lines[..9].join("\n")), lines[..9].join("\n"));
    }
}
