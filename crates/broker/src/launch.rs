//! Starting the program: the shim preloaded, the broker's socket inherited, privilege given up.

use crate::{
    RUN_DIR,
    error::{Context, Error},
    sys,
};
use hoist_ipc::ENV_FD;
use nix::{
    sys::{
        resource::{Resource, getrlimit, setrlimit},
        signal::SigSet,
    },
    unistd::{Uid, User, getgrouplist},
};
use std::{
    env,
    ffi::{CString, OsString},
    fs, io,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt},
    },
    path::{Path, PathBuf},
    process::{Child, Command},
};

/// File name of the shim.
pub const SHIM: &str = "libhoist_shim.so";
/// Names the shim instead of looking for it.
pub const SHIM_ENV: &str = "HOIST_SHIM";
/// Programs use low numbers and close what they find there.
const HIGH_FD: i32 = 200;

/// Where the shim is: `$HOIST_SHIM`, next to this executable, or in `../lib`.
///
/// # Errors
/// In none of these places.
pub fn find_shim() -> Result<PathBuf, Error> {
    if let Some(path) = env::var_os(SHIM_ENV).map(PathBuf::from) {
        return path.canonicalize().context(format!("${SHIM_ENV} ({})", path.display()));
    }
    let executable = env::current_exe().context("find this executable (/proc/self/exe)")?;
    let directory = executable.parent().unwrap_or(Path::new("/"));
    let places = [
        directory.join(SHIM),
        directory.join("../lib").join(SHIM),
        directory.join("../lib/hoist").join(SHIM),
    ];
    places.iter().find_map(|path| path.canonicalize().ok()).ok_or_else(|| {
        Error::Other(format!(
            "{SHIM} is neither next to {} nor in ../lib: set {SHIM_ENV} to its path",
            executable.display()
        ))
    })
}

/// The program to start.
pub struct Launch {
    /// Path of the program.
    pub program: PathBuf,
    /// Its name for itself, then its arguments.
    pub arguments: Vec<OsString>,
    /// The shim; None: run without.
    pub shim: Option<PathBuf>,
    /// Who it is to be; None: who we are.
    pub user: Option<User>,
    /// The signal mask it starts with.
    pub mask: SigSet,
    /// `cgroup.procs` of the cgroup it is to be in.
    pub cgroup: Option<OwnedFd>,
}

/// A user by name or number.
///
/// # Errors
/// There is none.
pub fn user(name: &str) -> Result<User, Error> {
    let found = match name.parse() {
        Ok(uid) => User::from_uid(Uid::from_raw(uid)),
        Err(_) => User::from_name(name),
    };
    found.context("look up a user")?.ok_or_else(|| Error::Other(format!("--user {name}: no such user")))
}

/// The running program and what must outlive it.
pub struct Launched {
    /// The process.
    pub child: Child,
    /// Removed when dropped.
    _copy: Option<ShimCopy>,
}

impl Launch {
    /// Starts the program with `broker` inherited.
    ///
    /// # Errors
    /// fork's or exec's, a shim the user cannot read, a user we may not become.
    pub fn spawn(self, broker: OwnedFd) -> Result<Launched, Error> {
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).context("getrlimit(RLIMIT_NOFILE)")?;
        let mut command = Command::new(&self.program);
        if let [name, arguments @ ..] = &self.arguments[..] {
            use std::os::unix::process::CommandExt;
            command.arg0(name).args(arguments);
        }
        let mut copy = None;
        let inherited = match &self.shim {
            None => None,
            Some(shim) => {
                copy = self
                    .user
                    .as_ref()
                    .and_then(|_| (!world_readable(shim)).then(|| ShimCopy::make(shim)))
                    .transpose()?;
                let shim = copy.as_ref().map_or(shim, |copy| &copy.file);
                command.env("LD_PRELOAD", preload(shim, env::var_os("LD_PRELOAD")));
                let inherited =
                    sys::copy_high(broker.as_fd(), HIGH_FD).context("inherit the broker's socket")?;
                command.env(ENV_FD, inherited.as_raw_fd().to_string());
                Some(inherited)
            }
        };
        let user = self.user.as_ref().map(|user| identity(&mut command, user)).transpose()?;
        sys::Child { cgroup: self.cgroup, mask: self.mask, open_files: (soft, hard), user }
            .prepare(&mut command);
        // For many processes' channels; the program keeps the limit it had.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
        let child = command.spawn().context(format!("start {}", self.program.display()))?;
        drop(inherited);
        Ok(Launched { child, _copy: copy })
    }
}

fn preload(shim: &Path, others: Option<OsString>) -> OsString {
    let mut value = OsString::from(shim);
    if let Some(others) = others.filter(|others| !others.is_empty()) {
        value.push(":");
        value.push(others);
    }
    value
}

type Identity = (Vec<libc::gid_t>, libc::gid_t, libc::uid_t);

fn identity(command: &mut Command, user: &User) -> Result<Identity, Error> {
    command.env("HOME", &user.dir).env("USER", &user.name).env("LOGNAME", &user.name);
    let name = CString::new(user.name.clone()).map_err(io::Error::other).context("read a user's name")?;
    let groups = getgrouplist(&name, user.gid).context("look up a user's groups")?;
    Ok((groups.into_iter().map(|group| group.as_raw()).collect(), user.gid.as_raw(), user.uid.as_raw()))
}

/// Whether any user may read `path`, as far as permission bits say.
fn world_readable(path: &Path) -> bool {
    let allows = |path: &Path, bits: u32| path.metadata().is_ok_and(|meta| meta.mode() & bits == bits);
    allows(path, 0o4) && path.ancestors().skip(1).all(|directory| allows(directory, 0o1))
}

/// A copy of the shim that any user may read.
struct ShimCopy {
    directory: PathBuf,
    file: PathBuf,
}

/// Places to try: the first that exists and is not mounted noexec.
const COPY_PLACES: [&str; 3] = [RUN_DIR, "/var/tmp", "/tmp"];

impl ShimCopy {
    fn make(shim: &Path) -> Result<Self, Error> {
        let executable = |place: &&&str| {
            nix::sys::statvfs::statvfs(**place)
                .is_ok_and(|s| !s.flags().contains(nix::sys::statvfs::FsFlags::ST_NOEXEC))
        };
        let place = COPY_PLACES.iter().find(executable).ok_or_else(|| {
            Error::Other(format!("{}: not readable for the user, and nowhere to copy it to", shim.display()))
        })?;
        let directory = Path::new(place).join(format!("hoist-shim-{}", std::process::id()));
        // Made anew and by us alone: a directory that is there already may be another user's.
        fs::DirBuilder::new()
            .mode(0o755)
            .create(&directory)
            .context(format!("make {}", directory.display()))?;
        let copy = Self { file: directory.join(SHIM), directory };
        fs::set_permissions(&copy.directory, fs::Permissions::from_mode(0o755))
            .context("open a directory to all")?;
        fs::copy(shim, &copy.file).context(format!("copy the shim to {}", copy.file.display()))?;
        fs::set_permissions(&copy.file, fs::Permissions::from_mode(0o644))
            .context("open the shim's copy to all")?;
        Ok(copy)
    }
}

impl Drop for ShimCopy {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.file);
        let _ = fs::remove_dir(&self.directory);
    }
}

/// Removes copies whose makers are gone. One with this process's own pid was left by another that had it before.
pub(crate) fn sweep_copies() {
    let own = nix::unistd::geteuid().as_raw();
    for entry in COPY_PLACES.iter().filter_map(|place| fs::read_dir(place).ok()).flatten().flatten() {
        let name = entry.file_name();
        let pid = name
            .to_str()
            .and_then(|name| name.strip_prefix("hoist-shim-"))
            .and_then(|pid| pid.parse::<u32>().ok());
        let Some(pid) = pid else { continue };
        let ours = entry.metadata().is_ok_and(|meta| meta.is_dir() && meta.uid() == own);
        if ours && (pid == std::process::id() || !Path::new(&format!("/proc/{pid}")).exists()) {
            let _ = fs::remove_file(entry.path().join(SHIM));
            let _ = fs::remove_dir(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shim_comes_before_other_preloads() {
        assert_eq!(preload(Path::new("/s.so"), None), "/s.so");
        assert_eq!(preload(Path::new("/s.so"), Some("".into())), "/s.so");
        assert_eq!(preload(Path::new("/s.so"), Some("/a.so".into())), "/s.so:/a.so");
    }

    #[test]
    fn a_file_behind_a_closed_directory_is_not_world_readable() {
        let directory = env::temp_dir().join(format!("hoist-closed-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let file = directory.join("f");
        fs::write(&file, "x").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o755)).unwrap();
        let open = world_readable(&file);
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o700)).unwrap();
        assert!(!world_readable(&file));
        fs::remove_dir_all(&directory).unwrap();
        assert_eq!(open, world_readable(&env::temp_dir().join(".")) || open);
    }
}
