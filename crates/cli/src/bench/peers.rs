//! What else receives: programs named `peer-NAME` that take `DEVICE PORT` and speak as the sinks do (benches/peers).

use anyhow::{Context, Result, bail};
use serde::{Serialize, Serializer};
use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

/// One of them. Its name and path last as long as the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Peer {
    pub(crate) name: &'static str,
    pub(crate) path: &'static str,
}

impl Peer {
    /// What it is asked for beyond what every peer is: each at its best.
    pub(crate) fn options(self) -> &'static [&'static str] {
        match self.name {
            "io-uring" => &["--rcvbuf", "4194304"],
            _ => &[],
        }
    }

    /// It never sleeps, so NAPI beside it needs precedence.
    pub(crate) fn favours_napi(self) -> bool {
        self.name == "testpmd"
    }
}

impl Serialize for Peer {
    /// A kept run names it, and not where it was.
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name)
    }
}

/// Those that are built, beside this program or where benches/peers is built.
pub(crate) fn find() -> Result<Vec<Peer>> {
    let own = std::env::current_exe().context("finding this program (/proc/self/exe)")?;
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../benches/peers/target/release");
    let found = found_in(&[own.parent().unwrap_or(&own), &built]);
    match found.is_empty() {
        true => bail!("--peers: none is built: `cargo build --release` in benches/peers makes them"),
        false => Ok(found),
    }
}

/// Each once: the first directory that has it counts.
fn found_in(directories: &[&Path]) -> Vec<Peer> {
    let all = directories.iter().flat_map(|directory| peers_in(directory));
    all.fold(Vec::new(), |mut found: Vec<Peer>, peer| {
        if found.iter().all(|other| other.name != peer.name) {
            found.push(peer);
        }
        found
    })
}

/// In the order of their names. `peer-bench` is no receiver but runs them.
fn peers_in(directory: &Path) -> Vec<Peer> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(|path| is_program(path)).collect();
    paths.sort();
    paths.iter().filter_map(|path| peer(path)).filter(|peer| peer.name != "bench").collect()
}

fn is_program(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|facts| facts.is_file() && facts.permissions().mode() & 0o111 != 0)
}

fn peer(path: &Path) -> Option<Peer> {
    let name = path.file_name()?.to_str()?.strip_prefix("peer-")?;
    Some(Peer { name: kept(name), path: kept(path.to_str()?) })
}

fn kept(text: &str) -> &'static str {
    Box::leak(text.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_are_programs_of_that_name_and_each_counts_once() {
        let directory = std::env::temp_dir().join(format!("hoist-peers-{}", std::process::id()));
        fs::create_dir(&directory).unwrap();
        for (name, mode) in [
            ("peer-b", 0o755),
            ("peer-a", 0o755),
            ("peer-a.d", 0o644),
            ("peer-bench", 0o755),
            ("sink", 0o755),
        ] {
            fs::write(directory.join(name), "").unwrap();
            fs::set_permissions(directory.join(name), fs::Permissions::from_mode(mode)).unwrap();
        }
        let names: Vec<_> = found_in(&[&directory, &directory]).iter().map(|peer| peer.name).collect();
        fs::remove_dir_all(&directory).unwrap();
        assert_eq!(names, ["a", "b"]);
    }
}
