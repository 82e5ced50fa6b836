//! The cgroup of a run: what the program and its descendants are in, so that `conns` sees their connections and no others.

use crate::error::{Context, Error};
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use std::{
    fs, io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

const PREFIX: &str = "hoist-";
/// Names to try: runs of one pid, the earlier ones killed and survived by what they had started.
const ATTEMPTS: u32 = 64;

/// A cgroup v2 directory below this process's own. Removed when dropped, if nothing is left in it.
pub(crate) struct Cgroup {
    path: PathBuf,
    directory: OwnedFd,
    procs: OwnedFd,
}

impl Cgroup {
    /// Makes one, after sweeping what killed runs left.
    ///
    /// # Errors
    /// No cgroup v2 is mounted, no permission, or its type lets no process in.
    pub(crate) fn make() -> Result<Self, Error> {
        let own = own_directory().ok_or_else(|| {
            Error::Other(
                "no cgroup v2 is mounted where hoist sees it: mount -t cgroup2 none /sys/fs/cgroup/unified"
                    .into(),
            )
        })?;
        sweep(&own);
        let path = make_directory(&own).context(format!("make a cgroup in {}", own.display()))?;
        let made = Self::open(path.clone());
        if made.is_err() {
            let _ = fs::remove_dir(path);
        }
        made
    }

    fn open(path: PathBuf) -> Result<Self, Error> {
        let kind = fs::read_to_string(path.join("cgroup.type")).unwrap_or_default();
        if !["domain", "domain threaded"].contains(&kind.trim()) {
            return Err(Error::Other(format!(
                "{}: its cgroup.type is {:?}, which takes no process: start hoist in a cgroup of type domain",
                path.display(),
                kind.trim()
            )));
        }
        let file = |path: &Path, flags| {
            open(path, flags | OFlag::O_CLOEXEC, Mode::empty()).context(format!("open {}", path.display()))
        };
        let directory = file(&path, OFlag::O_RDONLY | OFlag::O_DIRECTORY)?;
        let procs = file(&path.join("cgroup.procs"), OFlag::O_WRONLY)?;
        Ok(Self { path, directory, procs })
    }

    /// Its `cgroup.procs`: a process that writes "0" there is in it.
    pub(crate) fn procs(&self) -> BorrowedFd<'_> {
        self.procs.as_fd()
    }

    /// Whether process `pid` is in it.
    pub(crate) fn holds(&self, pid: u32) -> bool {
        self.pids().contains(&pid)
    }

    /// The processes in it.
    pub(crate) fn pids(&self) -> Vec<u32> {
        let pids = fs::read_to_string(self.path.join("cgroup.procs")).unwrap_or_default();
        pids.lines().filter_map(|line| line.parse().ok()).collect()
    }
}

impl AsFd for Cgroup {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Descendants that go on keep it; a later run sweeps it.
        let _ = fs::remove_dir(&self.path);
    }
}

fn make_directory(own: &Path) -> io::Result<PathBuf> {
    let pid = std::process::id();
    let mut result = Err(io::ErrorKind::AlreadyExists.into());
    for attempt in 0..ATTEMPTS {
        let path = own.join(format!("{PREFIX}{pid}.{attempt}"));
        result = fs::create_dir(&path).map(|()| path);
        if !result.as_ref().is_err_and(|e| e.kind() == io::ErrorKind::AlreadyExists) {
            break;
        }
    }
    result
}

/// Removes empty cgroups of runs whose `hoist run` is gone, those of runs within runs first.
fn sweep(directory: &Path) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_name().to_str().and_then(maker).is_some_and(is_gone) {
            sweep(&entry.path());
            let _ = fs::remove_dir(entry.path()); // fails while anybody is in it
        }
    }
}

fn maker(name: &str) -> Option<u32> {
    name.strip_prefix(PREFIX)?.split('.').next()?.parse().ok()
}

fn is_gone(pid: u32) -> bool {
    !Path::new(&format!("/proc/{pid}")).exists()
}

/// This process's own directory in cgroup v2, as its own mounts show it or those of a process that it descends from:
/// `ip netns exec` hides it under a fresh sysfs.
fn own_directory() -> Option<PathBuf> {
    let own = own_path(&fs::read_to_string("/proc/self/cgroup").ok()?)?;
    ancestors().find_map(|pid| {
        let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo")).ok()?;
        let seen = |place| PathBuf::from(format!("/proc/{pid}/root{place}"));
        directories(&mounts, &own).into_iter().map(seen).find(|place| place.join("cgroup.procs").exists())
    })
}

/// This process, its parent, and so on.
fn ancestors() -> impl Iterator<Item = u32> {
    std::iter::successors(Some(std::process::id()), |pid| {
        parent(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?).filter(|&pid| pid > 0)
    })
}

/// The field behind the name and the state (proc_pid_stat(5)); the name may hold anything.
fn parent(stat: &str) -> Option<u32> {
    stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()
}

/// Its path within the hierarchy (cgroups(7), `0::PATH`).
fn own_path(cgroups: &str) -> Option<String> {
    cgroups.lines().find_map(|line| line.strip_prefix("0::")).map(str::to_owned)
}

/// Where the mounts of cgroup v2 show `own` (proc_pid_mountinfo(5): root and mount point are the 4th and 5th column, the
/// type follows a lone dash).
fn directories(mountinfo: &str, own: &str) -> Vec<String> {
    let place = |line: &str| {
        let (mount, kind) = line.split_once(" - ")?;
        let mut columns = mount.split(' ').skip(3);
        let (root, point) = (columns.next()?, columns.next()?);
        let below = own.strip_prefix(root.trim_end_matches('/'))?;
        let inside = below.is_empty() || below.starts_with('/');
        (kind.starts_with("cgroup2 ") && inside).then(|| format!("{}{below}", unescape(point)))
    };
    mountinfo.lines().filter_map(place).collect()
}

/// Blanks and backslashes in a path are written in octal.
fn unescape(path: &str) -> String {
    ["\\040", "\\011", "\\012", "\\134"]
        .iter()
        .zip([" ", "\t", "\n", "\\"])
        .fold(path.to_owned(), |path, (code, plain)| path.replace(code, plain))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
        40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd\n\
        41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:7 - cgroup2 cgroup2 rw\n";

    #[test]
    fn the_own_cgroup_is_found_wherever_version_2_is_mounted() {
        assert_eq!(directories(HYBRID, "/a/b"), ["/sys/fs/cgroup/unified/a/b"]);
        assert_eq!(directories(HYBRID, "/"), ["/sys/fs/cgroup/unified/"]);
        let container = "9 1 0:38 /docker/x /sys/fs/cgroup\\040v2 ro - cgroup2 none rw";
        assert_eq!(directories(container, "/docker/x/y"), ["/sys/fs/cgroup v2/y"]);
        assert!(directories(container, "/docker/xy").is_empty());
        assert!(directories("garbage - cgroup2 \n- \n", "/").is_empty());
        assert_eq!(own_path("1:cpu:/c\n0::/a\n"), Some("/a".into()));
        assert_eq!(own_path("1:cpu:/c\n"), None);
    }

    #[test]
    fn a_parent_is_found_whatever_the_name_of_its_child() {
        assert_eq!(parent("7 (a) b (c)) S 42 7 7 0"), Some(42));
        assert_eq!((parent("7 (a"), parent("")), (None, None));
        assert_eq!(ancestors().nth(1), Some(std::os::unix::process::parent_id()));
    }

    #[test]
    fn the_maker_of_a_cgroup_is_known_by_its_name() {
        assert_eq!((maker("hoist-12.3"), maker("hoist-x"), maker("host-1")), (Some(12), None, None));
    }
}
