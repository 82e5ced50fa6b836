//! `peer-testpmd`: DPDK's testpmd on its af_xdp driver, as a sink that reports as hoist-sink does.
//!
//! `peer-testpmd DEVICE PORT [--seconds N] [--idle-ms N] [--busy-budget N]`. testpmd counts all that arrives on DEVICE's first
//! queue and looks at nothing: PORT is not used, and every datagram counts as unstamped. Its statistics are asked for
//! every 20 ms, so the times are that exact.

#![deny(unsafe_code)]

use hoist_peers::{options::Options, stop};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sched::{CpuSet, sched_getaffinity},
    sys::signal::Signal,
    unistd::Pid,
};
use std::{
    env,
    io::{self, Read, Write},
    os::{fd::AsFd, unix::process::CommandExt},
    process::{Child, ChildStdin, ChildStdout, Command, ExitCode, Stdio},
    thread,
    time::{Duration, Instant},
};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("peer-testpmd: {why}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), String> {
    let options = Options::parse(env::args().skip(1), &["--busy-budget"])?;
    stop::on_sigterm();
    let mut testpmd = Testpmd::start(&options)?;
    testpmd.say("set promisc 0 off\nstart\n")?;
    let before = testpmd.ask()?; // answered in order: it receives
    println!("ready");
    let report = watch(&mut testpmd, &options, before)?;
    testpmd.end();
    println!("{}", report.json());
    Ok(())
}

const ASK_EVERY: Duration = Duration::from_millis(20);
/// Neighbour discovery and the like count too: fewer frames than these are no start.
const STRAYS: u64 = 32;

fn watch(testpmd: &mut Testpmd, options: &Options, before: Statistics) -> Result<Report, String> {
    let (start, mut watch) = (Instant::now(), Watch::from(before));
    loop {
        let (now, cpu_ns) = (start.elapsed(), testpmd.cpu_ns());
        let silent = watch.see(testpmd.ask()?, now, cpu_ns) >= options.idle;
        if silent || stop::asked() || now.as_secs_f64() >= options.seconds {
            return Ok(watch.report());
        }
        thread::sleep(ASK_EVERY);
    }
}

/// What statistics tell over time.
struct Watch {
    before: Statistics,
    latest: Statistics,
    first: Option<(Duration, u64)>,
    last: (Duration, u64),
}

impl Watch {
    fn from(before: Statistics) -> Self {
        Self { before, latest: before, first: None, last: (Duration::ZERO, 0) }
    }

    /// Takes statistics and what the clocks showed before they were asked for. For how long nothing has come.
    fn see(&mut self, statistics: Statistics, now: Duration, cpu_ns: u64) -> Duration {
        let news = statistics.packets > self.latest.packets;
        self.latest = statistics;
        if statistics.packets < self.before.packets + STRAYS {
            return Duration::ZERO;
        }
        self.first.get_or_insert((now, cpu_ns));
        if news {
            self.last = (now, cpu_ns);
        }
        now - self.last.0
    }

    fn report(&self) -> Report {
        let packets = self.latest.packets - self.before.packets;
        let (first, first_cpu_ns) = self.first.unwrap_or(self.last);
        Report {
            packets,
            bytes: (self.latest.bytes - self.before.bytes).saturating_sub(packets * UDP_HEADERS),
            seconds: (self.last.0 - first).as_secs_f64(),
            cpu_ns: self.last.1 - first_cpu_ns,
        }
    }
}

const UDP_HEADERS: u64 = hoist_peers::tap::UDP_HEADERS as u64;

#[derive(Debug, PartialEq)]
struct Report {
    packets: u64,
    bytes: u64,
    seconds: f64,
    cpu_ns: u64,
}

impl Report {
    /// As that of hoist-sink.
    fn json(&self) -> String {
        format!(
            r#"{{"packets":{},"bytes":{},"unstamped":{},"reordered":0,"flows":0,"seconds":{:.6},"cpu_ns":{}}}"#,
            self.packets, self.bytes, self.packets, self.seconds, self.cpu_ns
        )
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Statistics {
    packets: u64,
    bytes: u64,
}

/// The answer to `show port xstats`, once its lines are all there, and how many bytes it and what precedes it take.
fn statistics(text: &str) -> Option<(Statistics, usize)> {
    let field = |name: &str| {
        let at = text.find(name)? + name.len();
        let (digits, _) = text[at..].split_once('\n')?; // else the line may be half a line
        Some((digits.trim().parse().ok()?, at + digits.len() + 1))
    };
    let (packets, _) = field("rx_good_packets: ")?;
    let (bytes, used) = field("rx_good_bytes: ")?;
    Some((Statistics { packets, bytes }, used))
}

/// A testpmd that ends with this process.
struct Testpmd {
    child: Child,
    input: Option<ChildStdin>,
    output: ChildStdout,
    unread: String,
    seen: String, // what it said before its first statistics
}

impl Testpmd {
    fn start(options: &Options) -> Result<Self, String> {
        let cpu = cpu().map_err(|e| format!("sched_getaffinity: {e}"))?;
        let mut command = Command::new("stdbuf");
        command.args(arguments(options, cpu)).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = ends_with_us(command)
            .spawn()
            .map_err(|e| format!("starting stdbuf (coreutils) with dpdk-testpmd: {e}"))?;
        let input = child.stdin.take();
        let output = child.stdout.take().ok_or("testpmd has no standard output")?;
        Ok(Self { child, input, output, unread: String::new(), seen: String::new() })
    }

    fn say(&mut self, line: &str) -> Result<(), String> {
        let input = self.input.as_mut().ok_or("testpmd has been ended")?;
        input.write_all(line.as_bytes()).map_err(|e| self.complaint(&format!("writing to testpmd: {e}")))
    }

    /// Its statistics as they are.
    fn ask(&mut self) -> Result<Statistics, String> {
        self.say("show port xstats 0\n")?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some((statistics, used)) = statistics(&self.unread) {
                self.unread.drain(..used);
                return Ok(statistics);
            }
            let read = self.read(deadline).map_err(|e| format!("reading from testpmd: {e}"))?;
            if read == 0 {
                return Err(self.complaint("testpmd ended, or was silent for 20 s"));
            }
        }
    }

    /// Reads what there is: 0 when it has ended or the deadline has passed.
    fn read(&mut self, deadline: Instant) -> io::Result<usize> {
        let left = deadline.saturating_duration_since(Instant::now()).as_millis() as u16;
        let mut fds = [PollFd::new(self.output.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::from(left)) {
            Err(Errno::EINTR) => return Ok(usize::MAX),
            other if other? == 0 => return Ok(0),
            _ => {}
        }
        let mut buffer = [0; 16384];
        let length = self.output.read(&mut buffer)?;
        let text = String::from_utf8_lossy(&buffer[..length]);
        self.unread.push_str(&text);
        if self.seen.len() < 1 << 16 {
            self.seen.push_str(&text);
        }
        Ok(length)
    }

    /// User and system time of all its threads.
    fn cpu_ns(&self) -> u64 {
        process_cpu_ns(self.child.id())
    }

    /// Lets it detach its XDP program, but not for ever.
    fn end(&mut self) {
        let said = self.say("stop\nquit\n");
        self.input = None;
        let deadline = Instant::now() + PATIENCE;
        while said.is_ok() && matches!(self.read(deadline), Ok(1..)) {}
        if said.is_err() || Instant::now() >= deadline {
            let _ = self.child.kill();
        }
        let _ = self.child.wait();
    }

    fn complaint(&self, what: &str) -> String {
        format!("{what}. It said: {}", self.seen.trim().replace('\n', " | "))
    }
}

impl Drop for Testpmd {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            self.end();
        }
    }
}

const PATIENCE: Duration = Duration::from_secs(20);

fn arguments(options: &Options, cpu: usize) -> Vec<String> {
    let lcores = format!("0@{cpu},1@{cpu}");
    let mut device = format!("net_af_xdp0,iface={},start_queue=0,queue_count=1,force_copy=1", options.device);
    if let Some(budget) = options.own("--busy-budget") {
        device.push_str(&format!(",busy_budget={budget}"));
    }
    let fixed = "--no-huge -m 256 --no-shconf --no-telemetry --no-pci";
    let of_testpmd = "-i --forward-mode=rxonly --total-num-mbufs=8192 --nb-cores=1 --no-mlockall";
    let eal = ["-oL", "dpdk-testpmd", "--lcores", &lcores, "--vdev", &device].map(String::from);
    let words = |line: &str| line.split(' ').map(String::from).collect::<Vec<_>>();
    [eal.to_vec(), words(fixed), vec!["--".into()], words(of_testpmd)].concat()
}

/// The last CPU that this process may run on: both of testpmd's threads go there.
fn cpu() -> nix::Result<usize> {
    let allowed = sched_getaffinity(Pid::from_raw(0))?;
    Ok((0..CpuSet::count()).rev().find(|cpu| allowed.is_set(*cpu).unwrap_or(false)).unwrap_or(0))
}

#[allow(unsafe_code)]
fn ends_with_us(mut command: Command) -> Command {
    let set = || Ok(nix::sys::prctl::set_pdeathsig(Signal::SIGTERM)?);
    // SAFETY: between fork and exec the closure makes one system call with constants: it is async-signal-safe.
    unsafe { command.pre_exec(set) };
    command
}

#[allow(unsafe_code)]
fn process_cpu_ns(pid: u32) -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    let mut clock = 0;
    // SAFETY: both calls write to values that outlive them; a process that is gone leaves zeros.
    unsafe {
        if libc::clock_getcpuclockid(pid as i32, &raw mut clock) == 0 {
            libc::clock_gettime(clock, &raw mut time);
        }
    }
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANSWER: &str = "testpmd> show port xstats 0\n###### NIC extended statistics for port 0 \n\
        rx_good_packets: 492026\ntx_good_packets: 0\nrx_good_bytes: 31489664\ntx_good_bytes: 0\n";

    #[test]
    fn statistics_are_found_in_what_testpmd_prints() {
        let (found, used) = statistics(ANSWER).unwrap();
        assert_eq!(found, Statistics { packets: 492_026, bytes: 31_489_664 });
        assert_eq!(&ANSWER[used..], "tx_good_bytes: 0\n");
    }

    #[test]
    fn half_an_answer_is_none() {
        let end = ANSWER.find("664\n").unwrap();
        for length in 0..end + 3 {
            assert_eq!(statistics(&ANSWER[..length]), None, "{length}");
        }
    }

    fn seen(samples: &[(u64, u64)]) -> (Watch, Duration) {
        let mut watch = Watch::from(Statistics { packets: 3, bytes: 200 });
        let mut silent = Duration::ZERO;
        for (ms, packets) in samples {
            let statistics = Statistics { packets: 3 + packets, bytes: 200 + packets * 64 };
            silent = watch.see(statistics, Duration::from_millis(*ms), ms * 1000);
        }
        (watch, silent)
    }

    #[test]
    fn the_report_spans_first_to_last_change() {
        let (watch, silent) = seen(&[(0, 0), (20, 1000), (40, 3000), (60, 3000), (240, 3000)]);
        assert_eq!(silent, Duration::from_millis(200));
        let expected = Report { packets: 3000, bytes: 3000 * 22, seconds: 0.02, cpu_ns: 20_000 };
        assert_eq!(watch.report(), expected);
    }

    #[test]
    fn strays_are_no_start() {
        let (watch, silent) = seen(&[(0, 0), (20, 2), (900, 2)]);
        assert_eq!((watch.report().packets, silent), (2, Duration::ZERO));
        assert_eq!(watch.report().seconds, 0.0);
    }
}
