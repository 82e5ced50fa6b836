//! A testbed with a peer in it, and programs run there, natively or hoisted, within a time limit.

use crate::{
    cases::{Case, ENV_NET, Net},
    peer::{Answer, ENV_PEER, Order, Payloads, Peer, Shot, numbered},
    report::Report,
    sock,
};
use anyhow::{Context, Result, bail, ensure};
use hoist_wire::{End, Testbed};
use std::{
    ffi::{OsStr, OsString},
    fs::{self, File, Permissions},
    net::SocketAddr,
    os::{
        fd::OwnedFd,
        unix::{fs::PermissionsExt, net::UnixListener},
    },
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus},
    sync::atomic::{AtomicU32, Ordering::Relaxed},
    time::{Duration, Instant},
};

/// How long one case may take.
pub const LIMIT: Duration = Duration::from_secs(60);

/// How long a program may take to be ready.
const START: Duration = Duration::from_secs(20);

/// How a program is run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// By itself.
    Native,
    /// Under `hoist run`.
    Hoisted,
}

/// Whether this process may make testbeds; if not, says so.
pub fn may_run() -> bool {
    // SAFETY: no arguments.
    let root = unsafe { libc::geteuid() } == 0;
    if !root {
        eprintln!("skipped: makes network namespaces, which needs root");
    }
    root
}

/// A testbed, a peer in its wire namespace, and a directory for files.
pub struct Lab {
    /// The testbed.
    pub testbed: Testbed,
    /// Options of `hoist run` beyond those of every run.
    pub options: Vec<OsString>,
    peer: Child,
    dir: PathBuf,
    runs: AtomicU32,
}

impl Lab {
    /// A testbed of two queues.
    pub fn up() -> Result<Self> {
        Self::on(Testbed::builder().queues(2).up()?)
    }

    /// Starts a peer on this testbed.
    pub fn on(testbed: Testbed) -> Result<Self> {
        let dir = std::env::temp_dir().join(format!("hoist-lab-{}", testbed.name()));
        fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
        let listener = UnixListener::bind(dir.join("peer")).context("bind the peer's socket")?;
        fs::set_permissions(dir.join("peer"), Permissions::from_mode(0o777))?; // programs of other users tell it too
        let mut command = testbed.wire().command(bin("peer")?);
        let peer = command.stdin(OwnedFd::from(listener)).spawn().context("start the peer")?;
        Ok(Self { testbed, options: Vec::new(), peer, dir, runs: AtomicU32::new(0) })
    }

    /// A path in the lab's directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Addresses for cases.
    pub fn net(&self) -> Net {
        let (host, wire) = (self.testbed.host(), self.testbed.wire());
        Net {
            device: host.device().into(),
            host4: host.v4(),
            wire4: wire.v4(),
            host6: host.v6(),
            wire6: wire.v6(),
            host_mac: host.mac(),
            wire_mac: wire.mac(),
        }
    }

    /// A port on the host's IPv4 address.
    pub fn host4(&self, port: u16) -> SocketAddr {
        (self.testbed.host().v4(), port).into()
    }

    /// A program in the host namespace, not started.
    pub fn program<S: AsRef<OsStr>>(&self, mode: Mode, argv: &[S]) -> Result<Program> {
        self.program_on(self.testbed.host(), mode, argv)
    }

    /// A program in the wire namespace, not started.
    pub fn wire_program<S: AsRef<OsStr>>(&self, argv: &[S]) -> Result<Program> {
        self.program_on(self.testbed.wire(), Mode::Native, argv)
    }

    fn program_on<S: AsRef<OsStr>>(&self, end: &End, mode: Mode, argv: &[S]) -> Result<Program> {
        let run = self.runs.fetch_add(1, Relaxed);
        let (status, output) = (self.path(&format!("status-{run}")), self.path(&format!("output-{run}")));
        let mut argv: Vec<OsString> = argv.iter().map(|a| a.as_ref().to_owned()).collect();
        if mode == Mode::Hoisted {
            argv.splice(0..0, self.hoist_run(&status)?);
        }
        let mut command = end.command(&argv[0]);
        command.args(&argv[1..]).env(ENV_PEER, self.path("peer"));
        command.env(ENV_NET, serde_json::to_string(&self.net())?);
        Ok(Program { command, mode, status, output })
    }

    fn hoist_run(&self, status: &Path) -> Result<Vec<OsString>> {
        let mut argv: Vec<OsString> = vec![hoist()?.into(), "run".into(), "--json".into(), status.into()];
        argv.extend(self.options.iter().cloned());
        argv.push("--".into());
        Ok(argv)
    }

    /// The peer sends `count` datagrams to an echo server and gets every one of them back, in order.
    pub fn exchange(&self, to: SocketAddr, count: u32) {
        const BATCH: u32 = 50;
        let mut peer = Peer::at(&self.path("peer"));
        let from = SocketAddr::from((self.testbed.wire().v4(), 45_000));
        for first in (0..count).step_by(BATCH as usize) {
            let payloads = Payloads::Numbered { first, count: BATCH.min(count - first), len: 200 };
            peer.order(&Order::Send(Shot {
                from,
                to,
                payloads,
                ttl: None,
                tos: None,
                gap_us: 0,
                asleep: None,
                segment: None,
            }));
            for i in first..count.min(first + BATCH) {
                match peer.order(&Order::Receive { at: from, count: 1 }) {
                    Answer::Received(list) => assert_eq!(list, [(numbered(i, 200), to)]),
                    answer => panic!("{answer:?}"),
                }
            }
        }
    }

    /// Runs one case and holds what was lifted against what it expects.
    pub fn run_case(&self, mode: Mode, case: &Case) -> Result<()> {
        let argv = [bin("dual")?.into_os_string(), case.name.into()];
        let mut running = self.program(mode, &argv)?.start()?;
        running.succeed(LIMIT)?;
        if mode == Mode::Hoisted {
            running.report()?.judge(case.expect).map_err(|why| running.fail(&why))?;
        }
        Ok(())
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = self.peer.kill();
        let _ = self.peer.wait();
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// The program `hoist`.
pub fn hoist() -> Result<PathBuf> {
    std::env::var_os("HOIST_BIN").map_or_else(|| bin("hoist"), |path| Ok(path.into()))
}

/// A program of this workspace, beside the running one.
pub fn bin(name: &str) -> Result<PathBuf> {
    let this = std::env::current_exe().context("find the running program")?;
    let dirs = this.ancestors().skip(1).take(2); // tests run from deps/, programs beside it
    let found = dirs.map(|dir| dir.join(name)).find(|path| path.is_file());
    found.with_context(|| format!("{name} is not built: run `cargo build --workspace` with the same profile"))
}

/// A program not started.
pub struct Program {
    /// Its command line.
    pub command: Command,
    mode: Mode,
    status: PathBuf,
    output: PathBuf,
}

impl Program {
    /// Starts it; its output goes to a file.
    pub fn start(mut self) -> Result<Running> {
        let output = File::create(&self.output).context("create a file for output")?;
        self.command.stdout(output.try_clone()?).stderr(output);
        let child = self.command.spawn().with_context(|| format!("start {:?}", self.command))?;
        let pidfd = pidfd(child.id()).context("pidfd_open of a child")?;
        Ok(Running { child, pidfd, mode: self.mode, status: None, report: self.status, output: self.output })
    }
}

fn pidfd(pid: u32) -> std::io::Result<OwnedFd> {
    // SAFETY: pidfd_open(2) takes a pid and flags.
    sock::own(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) } as i32)
}

/// A program that was started; killed when dropped.
pub struct Running {
    child: Child,
    pidfd: OwnedFd,
    mode: Mode,
    status: Option<ExitStatus>,
    report: PathBuf,
    output: PathBuf,
}

impl Running {
    /// Its process.
    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// What it wrote.
    pub fn output(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.output).unwrap_or_default()).into_owned()
    }

    /// The same as bytes.
    pub fn bytes(&self) -> Vec<u8> {
        fs::read(&self.output).unwrap_or_default()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: i32) -> Result<()> {
        // SAFETY: our own child, not waited for yet.
        sock::check(unsafe { libc::kill(self.pid(), signal) }).context("kill a child")?;
        Ok(())
    }

    /// Waits for its end.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        if let Some(status) = self.status {
            return Ok(status);
        }
        if sock::events(&self.pidfd, libc::POLLIN, limit.as_millis() as i32) == 0 {
            let stuck = self.where_stuck();
            bail!(self.fail(&format!("did not end within {limit:?}\n{stuck}")));
        }
        Ok(*self.status.insert(self.child.wait()?))
    }

    /// Waits for its end, which must be success.
    pub fn succeed(&mut self, limit: Duration) -> Result<()> {
        let status = self.wait(limit)?;
        ensure!(status.success(), self.fail(&status.to_string()));
        Ok(())
    }

    /// Sends a signal and waits for the end.
    pub fn stop(&mut self, signal: i32) -> Result<ExitStatus> {
        self.signal(signal)?;
        self.wait(LIMIT)
    }

    /// Waits until it, or a process in its namespace, has bound the UDP port.
    pub fn until_bound(&mut self, port: u16) -> Result<()> {
        self.until_listed("udp", port, "07")
    }

    /// The same, and if it is hoisted, until the port is lifted.
    pub fn until_ready(&mut self, port: u16) -> Result<()> {
        self.until_bound(port)?;
        match self.mode {
            Mode::Native => Ok(()),
            Mode::Hoisted => self.until(START, &format!("port {port} is not lifted"), |running| {
                Ok(running.status()?.is_some_and(|report| report.lifts(port)))
            }),
        }
    }

    /// What `hoist status` says of the run; None before the run can be asked.
    pub fn status(&self) -> Result<Option<Report>> {
        let mut command = Command::new(hoist()?);
        let output = command.args(["status", "--json", &self.pid().to_string()]).output()?;
        if !output.status.success() {
            return Ok(None);
        }
        let text = String::from_utf8_lossy(&output.stdout);
        let runs: Vec<Report> =
            serde_json::from_str(&text).with_context(|| format!("not a status: {text}"))?;
        Ok(runs.into_iter().next())
    }

    /// Waits until a process in its namespace listens on the TCP port.
    pub fn until_listening(&mut self, port: u16) -> Result<()> {
        self.until_listed("tcp", port, "0A")
    }

    /// proc_net(5): the local address in hexadecimal is the second column, the state the fourth.
    fn until_listed(&mut self, protocol: &str, port: u16, state: &str) -> Result<()> {
        let port = format!(":{port:04X}");
        let listed = |line: &str| {
            let columns: Vec<_> = line.split_whitespace().take(4).collect();
            columns.len() == 4 && columns[1].ends_with(&port) && columns[3] == state
        };
        self.until(START, &format!("no {protocol} socket on port {port}"), |running| {
            let tables = [protocol.to_owned(), format!("{protocol}6")];
            let read = |table| fs::read_to_string(format!("/proc/{}/net/{table}", running.pid()));
            Ok(tables.iter().any(|table| read(table).unwrap_or_default().lines().any(listed)))
        })
    }

    /// Waits until its output holds `text`.
    pub fn until_output(&mut self, text: &str, limit: Duration) -> Result<()> {
        self.until(limit, &format!("no {text:?} in its output"), |running| {
            Ok(running.output().contains(text))
        })
    }

    /// Waits until its output holds `text` so many times, or it has ended.
    pub fn until_output_count(&mut self, text: &str, count: usize) -> Result<()> {
        let start = Instant::now();
        while self.output().matches(text).count() < count {
            ensure!(start.elapsed() < LIMIT, self.fail(&format!("not {count} times {text:?} in its output")));
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Looks again and again until something holds that only procfs or a file can tell; fails if the program ends first.
    pub fn until(
        &mut self,
        limit: Duration,
        what: &str,
        mut holds: impl FnMut(&Self) -> Result<bool>,
    ) -> Result<()> {
        let start = Instant::now();
        while !holds(self)? {
            ensure!(start.elapsed() < limit, self.fail(&format!("{what} within {limit:?}")));
            // A look every 5 ms, or the end of the program, whichever comes first.
            ensure!(sock::events(&self.pidfd, libc::POLLIN, 5) == 0, self.fail(&format!("ended: {what}")));
        }
        Ok(())
    }

    /// What `hoist run` counted, known once it has ended.
    pub fn report(&self) -> Result<Report> {
        let text = fs::read_to_string(&self.report)
            .with_context(|| format!("hoist run wrote no {}\n{}", self.report.display(), self.output()))?;
        Report::parse(&text)
    }

    /// An error with what the program wrote.
    pub fn fail(&self, why: &str) -> anyhow::Error {
        let report = self.report.is_file().then(|| self.report());
        let report = report.and_then(Result::ok).map(|report| format!("{report:?}\n")).unwrap_or_default();
        anyhow::anyhow!("{why}\n{report}--- output ---\n{}", self.output())
    }

    fn where_stuck(&self) -> String {
        descendants(self.pid()).into_iter().map(describe).collect()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.status.is_none() && self.child.try_wait().ok().flatten().is_none() {
            descendants(self.pid()).into_iter().for_each(|pid| kill(pid, libc::SIGKILL));
            let _ = self.child.wait();
        }
    }
}

/// The process and everything it has started, itself first.
pub fn descendants(pid: i32) -> Vec<i32> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let children = tasks.flat_map(|task| {
        let list = fs::read_to_string(task.path().join("children")).unwrap_or_default();
        list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<i32>>()
    });
    std::iter::once(pid).chain(children.collect::<Vec<_>>().into_iter().flat_map(descendants)).collect()
}

fn describe(pid: i32) -> String {
    let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
    format!("pid {pid} {}: wchan {} syscall {}", read("comm").trim(), read("wchan"), read("syscall"))
}

/// Sends a signal to a process that a program of the lab has started.
pub fn kill(pid: i32, signal: i32) {
    // SAFETY: a descendant of this process, so its number is not used again before its parent has waited for it.
    let _ = unsafe { libc::kill(pid, signal) }; // it may have ended by itself
}
