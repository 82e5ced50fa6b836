//! The programs of others that the demo needs.

use anyhow::{Context, Result};
use hoist_broker::elf;
use std::{
    ffi::{OsStr, OsString},
    path::PathBuf,
};

/// Where they are.
pub(crate) struct Tools {
    pub(crate) knotd: PathBuf,
    pub(crate) dnsperf: PathBuf,
}

impl Tools {
    pub(crate) fn find() -> Result<Self> {
        Ok(Self { knotd: find("knotd", "knot")?, dnsperf: find("dnsperf", "dnsperf")? })
    }
}

fn find(name: &str, package: &str) -> Result<PathBuf> {
    let path = with_sbin(std::env::var_os("PATH"));
    elf::find(OsStr::new(name), Some(&path))
        .with_context(|| format!("{name} is missing: `apt-get install {package}` installs it"))
}

/// Servers are in /usr/sbin, which not every PATH has.
fn with_sbin(path: Option<OsString>) -> OsString {
    let mut path = path.unwrap_or_default();
    path.push(if path.is_empty() { "" } else { ":" });
    path.push("/usr/sbin:/usr/bin");
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_program_names_its_package() {
        let error = format!("{:#}", find("no-such-program-anywhere", "the-package").unwrap_err());
        assert!(error.contains("apt-get install the-package"), "{error}");
    }
}
