//! Standard output, whose reader may leave.

use anyhow::{Context, Result};
use std::io::{ErrorKind, Write, stdout};

/// Prints `text`. False: the reader has seen enough (`hoist doctor | head`), which is no error.
pub(crate) fn print(text: &str) -> Result<bool> {
    let mut out = stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        other => other.map(|()| true).context("printing (standard output)"),
    }
}
