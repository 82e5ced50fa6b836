//! A network namespace with a name under /run/netns, where `ip netns` and nsenter find it.

use crate::{
    error::{During, Error, Result},
    sys,
};
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns, unshare},
};
use std::{
    ffi::OsStr,
    fs::{self, File},
    io,
    os::fd::{AsRawFd, RawFd},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    thread,
};

const DIRECTORY: &str = "/run/netns";

/// A named network namespace. Dropping it leaves the namespace as it is.
#[derive(Clone, Debug)]
pub struct Netns {
    name: String,
    file: Arc<File>,
}

impl Netns {
    pub(crate) fn create(name: &str) -> Result<Self> {
        share_directory().during(|| format!("preparing {DIRECTORY}"))?;
        let path = path(name);
        File::create_new(&path).during(|| format!("making {}", path.display()))?;
        let made = on_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET)?;
            mount(Some("/proc/thread-self/ns/net"), &path, NONE, MsFlags::MS_BIND, NONE)?;
            Ok::<_, Errno>(())
        });
        if let Err(errno) = made {
            let _ = fs::remove_file(&path);
            return Err(Error::sys(format!("making the network namespace {name} (unshare, mount)"), errno));
        }
        Self::open(name)
    }

    pub(crate) fn open(name: &str) -> Result<Self> {
        let file = File::open(path(name)).during(|| format!("opening {DIRECTORY}/{name}"))?;
        Ok(Self { name: name.into(), file: Arc::new(file) })
    }

    /// Its name under /run/netns.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What the kernel calls it (net.ns.inum).
    pub(crate) fn inode(&self) -> Result<u32> {
        let metadata = self.file.metadata();
        Ok(metadata.during(|| format!("stat of namespace {}", self.name))?.ino() as u32)
    }

    pub(crate) fn raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// Runs `work` on a thread of its own that is in the namespace. Sockets it opens stay in it.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        on_thread(|| {
            setns(&*self.file, CloneFlags::CLONE_NEWNET)
                .during(|| format!("entering network namespace {} (setns)", self.name))?;
            Ok(work())
        })
    }

    /// Like [`Netns::enter`], with a /sys that shows the devices of the namespace.
    pub fn enter_with_sysfs<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        self.enter(|| {
            private_sysfs().during(|| format!("mounting the sysfs of {}", self.name))?;
            Ok(work())
        })?
    }

    /// Moves the whole process into the namespace: for a process of one thread, before exec.
    pub fn join(&self) -> Result<()> {
        setns(&*self.file, CloneFlags::CLONE_NEWNET)
            .during(|| format!("entering network namespace {} (setns)", self.name))
    }

    /// A command that starts in the namespace and sees every mount of the machine (`ip netns exec` would
    /// hide the cgroup mounts).
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        sys::command_in(Arc::clone(&self.file), program.as_ref())
    }

    /// Writes a setting under /proc/sys/net, as in `net.ipv4.tcp_no_metrics_save`.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        let path = format!("/proc/sys/{}", key.replace('.', "/"));
        self.enter(|| {
            fs::write(&path, value).during(|| format!("writing {value} to {path} in {}", self.name))
        })?
    }

    /// The processes whose main thread is in the namespace.
    pub fn processes(&self) -> Result<Vec<i32>> {
        let inode = self.file.metadata().during(|| format!("stat of namespace {}", self.name))?.ino();
        let entries = fs::read_dir("/proc").during(|| "reading /proc".into())?;
        let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        Ok(pids.filter(|pid| net_inode(*pid) == Some(inode)).collect())
    }

    /// Ends what runs in the namespace and removes its name.
    pub(crate) fn remove(self) -> Result<()> {
        let own = std::process::id() as i32;
        for pid in self.processes()?.into_iter().filter(|pid| *pid != own) {
            self.kill(pid).during(|| format!("ending process {pid} in {}", self.name))?;
        }
        remove_name(&self.name)
    }

    fn kill(&self, pid: i32) -> io::Result<()> {
        let Ok(pidfd) = sys::pidfd_open(pid) else { return Ok(()) };
        // The number may have been reused between the look and the open.
        if net_inode(pid) != Some(self.file.metadata()?.ino()) {
            return Ok(());
        }
        match sys::pidfd_kill(&pidfd) {
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Ok(()),
            other => other?,
        }
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        use std::os::fd::AsFd;
        poll(&mut [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)], PollTimeout::from(5000u16))?;
        Ok(())
    }
}

/// Removes the name `/run/netns/NAME`, if there is one.
pub(crate) fn remove_name(name: &str) -> Result<()> {
    let path = path(name);
    match umount2(&path, MntFlags::MNT_DETACH) {
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
        Err(errno) => return Err(Error::sys(format!("unmounting {}", path.display()), errno)),
    }
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::sys(format!("removing {}", path.display()), error))
        }
        _ => Ok(()),
    }
}

const NONE: Option<&str> = None;

fn path(name: &str) -> PathBuf {
    Path::new(DIRECTORY).join(name)
}

fn net_inode(pid: i32) -> Option<u64> {
    fs::metadata(format!("/proc/{pid}/ns/net")).ok().map(|file| file.ino())
}

fn on_thread<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    match thread::scope(|scope| scope.spawn(work).join()) {
        Ok(value) => value,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// Makes /run/netns a shared mount point as iproute2 does (ip/ipnetns.c, netns_add), under its lock: were
/// it bound over itself later, the names made before could no longer be unmounted.
fn share_directory() -> io::Result<()> {
    fs::create_dir_all(DIRECTORY)?;
    let _lock = Flock::lock(File::open(DIRECTORY)?, FlockArg::LockExclusive).map_err(|(_, errno)| errno)?;
    let share = || mount(NONE, DIRECTORY, NONE, MsFlags::MS_SHARED | MsFlags::MS_REC, NONE);
    if share() == Err(Errno::EINVAL) {
        mount(Some(DIRECTORY), DIRECTORY, NONE, MsFlags::MS_BIND | MsFlags::MS_REC, NONE)?;
        share()?;
    }
    Ok(())
}

/// A mount namespace of the calling thread's own, whose /sys is that of its network namespace.
fn private_sysfs() -> std::result::Result<(), Errno> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE)?;
    mount(Some("sysfs"), "/sys", Some("sysfs"), MsFlags::empty(), NONE)
}
