//! The Unix socket behind `hoist status`: whoever connects gets the status as JSON. For root and the user of the run.

use crate::{
    error::{Context, Error},
    status::Status,
    sys,
};
use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};
use std::{
    fs,
    io::{self, Write},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::{
            fs::PermissionsExt,
            net::{UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
};

/// Where runs leave their sockets.
pub const RUN_DIR: &str = "/run/hoist";
const READERS: usize = 16;

/// The listening socket and those who are still reading.
pub(crate) struct StatusSocket {
    listener: UnixListener,
    path: PathBuf,
    readers: Vec<Reader>,
}

struct Reader {
    stream: UnixStream,
    rest: Vec<u8>,
}

impl StatusSocket {
    pub(crate) fn open() -> Result<Self, Error> {
        make_run_dir().context(format!("make {RUN_DIR}"))?;
        sweep();
        let path = Path::new(RUN_DIR).join(format!("run-{}.sock", std::process::id()));
        // Left by a run of the same pid that was killed.
        let _ = fs::remove_file(&path);
        let listener = UnixListener::bind(&path).context(format!("listen on {}", path.display()))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))
            .context("close the status socket to others")?;
        listener.set_nonblocking(true).context("set O_NONBLOCK")?;
        Ok(Self { listener, path, readers: Vec::new() })
    }

    /// Greets who is new and goes on writing to who is not done. `status` is what new ones get.
    pub(crate) fn serve(&mut self, poll: &Epoll, token: u64, status: &Status) {
        while let Ok((stream, _)) = self.listener.accept() {
            let Ok(text) = serde_json::to_vec(status) else { continue };
            if self.readers.len() < READERS && permitted(&stream) && stream.set_nonblocking(true).is_ok() {
                let _ = poll.add(&stream, EpollEvent::new(EpollFlags::EPOLLOUT, token));
                self.readers.push(Reader { stream, rest: text });
            }
        }
        self.readers.retain_mut(|reader| reader.write());
    }
}

impl Reader {
    /// Whether there is more to write.
    fn write(&mut self) -> bool {
        loop {
            match self.stream.write(&self.rest) {
                Ok(0) => return false,
                Ok(n) => drop(self.rest.drain(..n)),
                Err(e) => return e.kind() == io::ErrorKind::WouldBlock,
            }
        }
    }
}

fn permitted(stream: &UnixStream) -> bool {
    let own = nix::unistd::geteuid().as_raw();
    sys::peer(stream.as_fd()).is_ok_and(|(_, uid)| uid == 0 || uid == own)
}

impl AsFd for StatusSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

impl Drop for StatusSocket {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

fn make_run_dir() -> io::Result<()> {
    fs::create_dir_all(RUN_DIR)?;
    fs::set_permissions(RUN_DIR, fs::Permissions::from_mode(0o755))
}

/// Sockets of runs, with their pids, by pid.
pub fn sockets() -> Vec<(u32, PathBuf)> {
    let pid = |path: &PathBuf| {
        path.file_name()?.to_str()?.strip_prefix("run-")?.strip_suffix(".sock")?.parse().ok()
    };
    let entries = fs::read_dir(RUN_DIR).into_iter().flatten().flatten();
    let mut found: Vec<(u32, PathBuf)> =
        entries.map(|entry| entry.path()).filter_map(|path| Some((pid(&path)?, path))).collect();
    found.sort();
    found
}

/// Removes what runs that were killed left in [`RUN_DIR`]: sockets that refuse, and copies of the shim without an owner.
pub fn sweep() {
    for (_, path) in sockets() {
        if UnixStream::connect(&path).is_err_and(|e| e.kind() == io::ErrorKind::ConnectionRefused) {
            let _ = fs::remove_file(path);
        }
    }
    crate::launch::sweep_copies();
}
