//! Which testbeds exist: a file each under /run/hoist, locked by the owner for as long as it lives.
//!
//! A file that can be locked belongs to nobody: its testbed is either kept on purpose or was left by an
//! unclean end, and then the next `up` sweeps it.

use crate::{
    error::{During, Error, Result},
    netlink::Route,
    netns::{self, Netns},
    testbed::{HOST, WIRE, WIRE_DEVICE},
};
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    net::if_::if_nametoindex,
};
use serde::{Deserialize, Serialize};
use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

const DIRECTORY: &str = "/run/hoist";
const PREFIX: &str = "testbed-";

/// What a testbed was made with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// Receive and transmit queues of each end.
    pub queues: u32,
    /// MTU of each end in bytes.
    pub mtu: u32,
    /// The id of the VLAN on top, if there is one.
    pub vlan: Option<u16>,
}

/// Who a testbed belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// A process that runs: it goes with the process.
    Owned,
    /// Nobody: it stays until it is removed.
    Kept,
    /// Nobody, by an unclean end: the next testbed sweeps it.
    Stale,
}

/// A testbed that exists.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Listed {
    /// Its name.
    pub name: String,
    /// Who it belongs to.
    pub state: State,
    /// What it was made with, unless its making was cut short.
    pub facts: Option<Facts>,
}

/// Every testbed of this machine, by name.
pub fn list() -> Result<Vec<Listed>> {
    let mut all = Vec::new();
    for name in names()? {
        let Ok(file) = File::open(path(&name)) else { continue };
        let record = read_record(&file);
        let owned = Flock::lock(file, FlockArg::LockSharedNonblock).is_err();
        let state = match &record {
            _ if owned => State::Owned,
            Some(record) if record.kept => State::Kept,
            _ => State::Stale,
        };
        all.push(Listed { name, state, facts: record.map(|record| record.facts) });
    }
    all.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(all)
}

/// Removes the testbed `name`: ends the processes in it, its devices, namespaces and names.
///
/// # Errors
/// [`Error::Unknown`], and [`Error::InUse`] when its owner still runs.
pub fn remove(name: &str) -> Result<()> {
    match Hold::take(name, false)? {
        Some(hold) => hold.clear(),
        None => Err(Error::InUse(name.into())),
    }
}

/// Removes what unclean ends have left.
pub(crate) fn sweep() -> Result<()> {
    for name in names()? {
        match Hold::take(&name, false) {
            Ok(Some(hold)) if !hold.kept() => hold.clear()?,
            Ok(_) | Err(Error::Unknown(_)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

pub(crate) fn facts(name: &str) -> Result<Facts> {
    check(name)?;
    let file = File::open(path(name)).map_err(|_| Error::Unknown(name.into()))?;
    Ok(read_record(&file).ok_or_else(|| Error::Unknown(name.into()))?.facts)
}

/// The lock that makes a testbed one's own.
#[derive(Debug)]
pub(crate) struct Hold {
    name: String,
    file: Flock<File>,
}

#[derive(Serialize, Deserialize)]
struct Record {
    kept: bool,
    #[serde(flatten)]
    facts: Facts,
}

impl Hold {
    /// Makes the name `name` one's own.
    pub(crate) fn claim(name: &str) -> Result<Self> {
        check(name)?;
        fs::create_dir_all(DIRECTORY).during(|| format!("making {DIRECTORY}"))?;
        let hold = Self::take(name, true)?.ok_or_else(|| Error::Exists(name.into()))?;
        if hold.kept() {
            return Err(Error::Exists(name.into()));
        }
        hold.clear_namespaces()?;
        Ok(hold)
    }

    /// Locks the file of `name`; None when another process has it.
    fn take(name: &str, create: bool) -> Result<Option<Self>> {
        check(name)?;
        let path = path(name);
        loop {
            let file =
                match OpenOptions::new().read(true).write(true).create(create).truncate(false).open(&path) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {
                        return Err(Error::Unknown(name.into()));
                    }
                    other => other.during(|| format!("opening {}", path.display()))?,
                };
            let file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(file) => file,
                Err((_, Errno::EWOULDBLOCK)) => return Ok(None),
                Err((_, errno)) => return Err(Error::sys(format!("locking {}", path.display()), errno)),
            };
            // Whoever had the lock before may have unlinked the file: then it names nothing any more.
            if is_at(&file, &path) {
                return Ok(Some(Self { name: name.into(), file }));
            }
        }
    }

    pub(crate) fn write(&mut self, kept: bool, facts: Facts) -> Result<()> {
        let text = serde_json::to_string(&Record { kept, facts }).map_err(io::Error::from);
        let written = text.and_then(|text| {
            self.file.rewind()?;
            self.file.set_len(0)?;
            self.file.write_all(text.as_bytes())
        });
        written.during(|| format!("writing {}", path(&self.name).display()))
    }

    /// Removes the testbed and its name.
    pub(crate) fn clear(&self) -> Result<()> {
        self.clear_namespaces()?;
        fs::remove_file(path(&self.name)).during(|| format!("removing {}", path(&self.name).display()))
    }

    fn clear_namespaces(&self) -> Result<()> {
        for (end, name) in [WIRE, HOST].map(|end| (end, namespace(&self.name, end))) {
            match Netns::open(&name) {
                Ok(netns) => clear_namespace(end, netns)?,
                Err(_) => netns::remove_name(&name)?,
            }
        }
        Ok(())
    }

    fn kept(&self) -> bool {
        read_record(&self.file).is_some_and(|record| record.kept)
    }
}

/// The name of one of the two namespaces.
pub(crate) fn namespace(name: &str, end: &str) -> String {
    format!("hoist-{name}-{end}")
}

/// The devices go first and by name: an open descriptor may keep the namespace itself alive.
fn clear_namespace(end: &str, netns: Netns) -> Result<()> {
    if end == WIRE {
        // A file that was never mounted on is no namespace: then there is no device either.
        let _ = netns.enter(|| match if_nametoindex(WIRE_DEVICE) {
            Ok(index) => Route::open()?.delete_link(index),
            Err(_) => Ok(()),
        });
    }
    netns.remove()
}

fn names() -> Result<Vec<String>> {
    let entries = match fs::read_dir(DIRECTORY) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.during(|| format!("reading {DIRECTORY}"))?,
    };
    let files = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let names = files.filter_map(|file| file.strip_prefix(PREFIX).map(String::from));
    Ok(names.filter(|name| check(name).is_ok()).collect())
}

fn check(name: &str) -> Result<()> {
    let fits = (1..=24).contains(&name.len());
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if fits && name.bytes().all(allowed) { Ok(()) } else { Err(Error::BadName(name.into())) }
}

fn read_record(mut file: &File) -> Option<Record> {
    let mut text = String::new();
    file.rewind().ok()?;
    file.read_to_string(&mut text).ok()?;
    serde_json::from_str(&text).ok()
}

fn is_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), fs::metadata(path)) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        _ => false,
    }
}

fn path(name: &str) -> PathBuf {
    Path::new(DIRECTORY).join(format!("{PREFIX}{name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_leave_the_directory_are_refused() {
        for bad in ["", "../x", "a/b", "A", "a b", "abcdefghijklmnopqrstuvwxy"] {
            assert!(matches!(check(bad), Err(Error::BadName(_))), "{bad:?}");
        }
        assert!(check("demo-2").is_ok());
    }
}
