//! What can go wrong, which operation it was, and what to do about it.

use crate::Mode;
use std::io;

/// An error of this crate. Each names the operation, the errno where there is one, and a remedy where one is known.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A system call failed.
    #[error("{operation}: {cause}{}", hint(operation, cause))]
    Sys {
        /// The call and its object, such as `setsockopt(XDP_RX_RING)`.
        operation: &'static str,
        /// The errno.
        cause: io::Error,
    },
    /// The kernel refused to bind the socket to the queue.
    #[error("bind(AF_XDP, ifindex {ifindex}, queue {queue}, {mode:?}): {cause}{}", hint("bind", cause))]
    Bind {
        /// Index of the device.
        ifindex: u32,
        /// Receive queue of the device.
        queue: u32,
        /// What was asked for.
        mode: Mode,
        /// The errno; of the copy-mode attempt when the mode is [`Mode::Auto`].
        cause: io::Error,
    },
    /// A ring size that is not a power of two, or zero where a ring is needed.
    #[error("ring of {size} entries: choose a power of two")]
    RingSize {
        /// The size asked for, in entries.
        size: u32,
    },
    /// A UMEM without frames, or with more than this machine can address.
    #[error("UMEM of {frames} frames: choose at least one, and no more than memory holds")]
    UmemSize {
        /// The number of frames asked for.
        frames: u32,
    },
    /// The memfd is smaller than the UMEM it should hold.
    #[error(
        "memfd holds {have} bytes, the UMEM needs {need}: both sides must agree on frames and chunk size"
    )]
    ShortMemfd {
        /// Size of the memfd, in bytes.
        have: u64,
        /// Size of the UMEM, in bytes.
        need: u64,
    },
    /// The memfd can still shrink, which would make reading a frame fatal (SIGBUS).
    #[error("memfd is not sealed with F_SEAL_SHRINK: pass the fd of a UMEM made by Umem::create")]
    Unsealed,
    /// There are not enough huge pages for the UMEM.
    #[error(
        "mmap(UMEM): {cause}: needs {pages} free huge pages of 2 MiB: sysctl -w vm.nr_hugepages={pages} or more, \
         or go without huge pages"
    )]
    HugePages {
        /// Huge pages that the UMEM takes.
        pages: u64,
        /// The errno.
        cause: io::Error,
    },
    /// The shared cursors of a ring are further apart than the ring is long.
    #[error(
        "{ring} ring of {size} entries has producer {producer} and consumer {consumer}: its memory was overwritten; \
         close the socket and make a new one"
    )]
    Corrupt {
        /// Which ring.
        ring: &'static str,
        /// Size of the ring, in entries.
        size: u32,
        /// The producer's cursor.
        producer: u32,
        /// The consumer's cursor.
        consumer: u32,
    },
}

impl Error {
    /// The errno behind this error, if a system call failed.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Sys { cause, .. } | Self::Bind { cause, .. } | Self::HugePages { cause, .. } => {
                cause.raw_os_error()
            }
            _ => None,
        }
    }

    pub(crate) fn last(operation: &'static str) -> Self {
        Self::Sys { operation, cause: io::Error::last_os_error() }
    }
}

fn hint(operation: &str, cause: &io::Error) -> &'static str {
    match (operation, cause.raw_os_error().unwrap_or(0)) {
        ("socket(AF_XDP)", libc::EPERM) => ": needs CAP_NET_RAW: run as root or grant it",
        ("socket(AF_XDP)", libc::EAFNOSUPPORT) => ": the kernel lacks CONFIG_XDP_SOCKETS",
        ("bind", libc::EPERM) => ": needs CAP_NET_RAW: run as root or grant it",
        ("bind", libc::EBUSY) => {
            ": another AF_XDP socket holds this queue: find it with ss --xdp, or choose another"
        }
        ("bind", libc::EINVAL) => ": check that the queue exists and that the socket has rings and a UMEM",
        ("bind", libc::EOPNOTSUPP) => ": the driver has no zero-copy AF_XDP: use copy mode",
        ("bind", libc::ENODEV) => ": there is no such device in this network namespace",
        ("bind", libc::ENETDOWN) => ": set the device up",
        ("bind", libc::EBADF) => ": the socket to share with is not bound",
        (_, libc::ENOBUFS) => ": RLIMIT_MEMLOCK is too low: raise it (ulimit -l) or grant CAP_IPC_LOCK",
        (_, libc::ENOMEM) => ": not enough memory: use fewer frames or smaller rings",
        (_, libc::ENETDOWN) => ": set the device up",
        (_, libc::EMFILE) => ": too many open files: raise RLIMIT_NOFILE",
        (_, libc::ENOPROTOOPT | libc::EOPNOTSUPP | libc::ENOTSOCK) => {
            ": the descriptor is not an AF_XDP socket"
        }
        _ => "",
    }
}
