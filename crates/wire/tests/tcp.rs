//! The TCP wire against an ordinary receiver. Needs root; says so and skips without.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../src/check.rs"]
mod check;

use aya::programs::{SchedClassifier, TcAttachType};
use check::Check;
use hoist_wire::{TcpLimit, TcpRunning, TcpSent, TcpSpec, TcpWire, Testbed};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{
    io::{BufRead, BufReader, ErrorKind, Read},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    os::fd::AsRawFd,
    process::{Child, ChildStdout, Command, Stdio},
    thread::JoinHandle,
    time::{Duration, Instant},
};

const PORT: u16 = 9100;
const PATIENCE: Duration = Duration::from_secs(60);

fn testbed() -> Option<Testbed> {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: the TCP wire needs root");
        return None;
    }
    Some(Testbed::builder().up().unwrap())
}

struct Sink {
    child: Child,
    output: BufReader<ChildStdout>,
    address: SocketAddr,
}

impl Sink {
    fn start(testbed: &Testbed, address: IpAddr, options: &[&str]) -> Self {
        let address = SocketAddr::new(address, PORT);
        let mut command = testbed.host().command(env!("CARGO_BIN_EXE_hoist-tcp-sink"));
        command.arg(address.to_string()).args(options).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        Self { child, output, address }
    }

    fn v4(testbed: &Testbed, options: &[&str]) -> Self {
        Self::start(testbed, testbed.host().v4().into(), options)
    }

    fn fill(&self, testbed: &Testbed, spec: impl FnOnce(TcpSpec) -> TcpSpec) -> TcpRunning {
        TcpWire::start(testbed, &spec(TcpSpec::to(self.address))).unwrap()
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    fn report(mut self) -> serde_json::Value {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        assert!(self.child.wait().unwrap().success(), "{line}");
        serde_json::from_str(&line).unwrap()
    }
}

/// Everything arrived, every byte is right, and the stream ended in order.
fn assert_whole(report: &serde_json::Value, sent: &TcpSent, connections: u32) {
    assert_eq!(report["bytes"], sent.acked_bytes, "{report} {sent:?}");
    assert_eq!(report["errors"], 0, "{report}");
    assert_eq!(report["eof"], connections, "{report}");
}

#[test]
fn a_gibibyte_arrives_whole_and_in_order() {
    let Some(testbed) = testbed() else { return };
    let sink = Sink::v4(&testbed, &["--verify"]);
    let running = sink.fill(&testbed, |spec| spec.limit(TcpLimit::Bytes(1 << 30)));
    let sent = running.finish(PATIENCE).unwrap();
    let report = sink.report();
    assert_whole(&report, &sent, 1);
    assert!(sent.acked_bytes >= 1 << 30, "{sent:?}");
    assert_eq!(report["out_of_order"], 0, "{report}");
}

#[test]
fn ipv6_arrives_whole() {
    let Some(testbed) = testbed() else { return };
    let sink = Sink::start(&testbed, testbed.host().v6().into(), &["--verify", "--segment", "1428"]);
    let sent = sink.fill(&testbed, |spec| spec.limit(TcpLimit::Bytes(100 << 20))).finish(PATIENCE).unwrap();
    assert_whole(&sink.report(), &sent, 1);
    assert_eq!(sent.acked_bytes % 1428, 0, "{sent:?}");
}

#[test]
fn without_timestamps_segments_are_larger_and_arrive_whole() {
    let Some(testbed) = testbed() else { return };
    testbed.host().netns().sysctl("net.ipv4.tcp_timestamps", "0").unwrap();
    let sink = Sink::v4(&testbed, &["--verify", "--segment", "1460"]);
    let sent = sink.fill(&testbed, |spec| spec.limit(TcpLimit::Bytes(100 << 20))).finish(PATIENCE).unwrap();
    assert_whole(&sink.report(), &sent, 1);
    assert_eq!(sent.acked_bytes % 1460, 0, "{sent:?}");
}

#[test]
fn payload_written_anew_arrives_whole_in_segments_of_any_size() {
    let Some(testbed) = testbed() else { return };
    for mss in [64, 536, 1448] {
        let sink = Sink::v4(&testbed, &["--verify", "--segment", &mss.to_string()]);
        let limit = TcpLimit::Bytes(u64::from(mss) * 50_000);
        let sent =
            sink.fill(&testbed, |spec| spec.mss(mss).cold(true).limit(limit)).finish(PATIENCE).unwrap();
        assert_whole(&sink.report(), &sent, 1);
    }
}

#[test]
fn a_small_window_is_kept() {
    let Some(testbed) = testbed() else { return };
    let sink = Sink::v4(&testbed, &["--verify", "--rcvbuf", "65536"]);
    let sent = sink.fill(&testbed, |spec| spec.limit(TcpLimit::Bytes(200 << 20))).finish(PATIENCE).unwrap();
    let report = sink.report();
    assert_whole(&report, &sent, 1);
    assert_eq!(report["out_of_order"], 0, "{report}");
    assert!(sent.blocked.window > 0.0, "{sent:?}");
}

#[test]
fn a_receiver_that_polls_by_epoll_gets_every_byte() {
    let Some(testbed) = testbed() else { return };
    for buffer in ["1000", "65536"] {
        let sink = Sink::v4(&testbed, &["--verify", "--epoll-busy-poll", "50", "--buffer", buffer]);
        let limit = TcpLimit::Bytes(50 << 20);
        let sent = sink.fill(&testbed, |spec| spec.limit(limit)).finish(PATIENCE).unwrap();
        assert_whole(&sink.report(), &sent, 1);
    }
}

#[test]
fn chunks_are_refused_at_once_where_nobody_hands_them_out() {
    let sink = Command::new(env!("CARGO_BIN_EXE_hoist-tcp-sink")).args(["127.0.0.1:0", "--chunks"]).output();
    let sink = sink.unwrap();
    assert!(!sink.status.success() && sink.stdout.is_empty(), "{sink:?}");
    assert!(String::from_utf8_lossy(&sink.stderr).contains("hoist_recv_chunk"), "{sink:?}");
}

#[test]
fn a_receiver_that_stalls_goes_on_where_it_stopped() {
    let Some(testbed) = testbed() else { return };
    let sink = Sink::v4(&testbed, &["--verify"]);
    let mut running = sink.fill(&testbed, |spec| spec.limit(TcpLimit::None));
    sink.signal(Signal::SIGSTOP);
    let full = until_still(&running);
    assert!(!running.wait_for(Duration::from_millis(200)).unwrap());
    assert_eq!(running.sent().unwrap().acked_bytes, full, "sent into a closed window");
    sink.signal(Signal::SIGCONT);
    until(|| running.sent().unwrap().acked_bytes > full + (100 << 20));
    running.drain().unwrap();
    let sent = running.finish(PATIENCE).unwrap();
    assert_whole(&sink.report(), &sent, 1);
}

#[test]
fn connections_are_filled_in_turn() {
    let Some(testbed) = testbed() else { return };
    let sink = Sink::v4(&testbed, &["--verify", "--connections", "16"]);
    let limit = TcpLimit::Bytes(1448 * 20_000);
    let sent = sink.fill(&testbed, |spec| spec.connections(16).limit(limit)).finish(PATIENCE).unwrap();
    assert_whole(&sink.report(), &sent, 16);
    assert_eq!(sent.acked_bytes, 16 * 1448 * 20_000, "{sent:?}");
}

#[test]
fn a_time_limit_ends_with_everything_acknowledged() {
    let Some(testbed) = testbed() else { return };
    let sink = Sink::v4(&testbed, &["--verify"]);
    let limit = TcpLimit::Time(Duration::from_millis(300));
    let sent = sink.fill(&testbed, |spec| spec.limit(limit)).finish(PATIENCE).unwrap();
    assert_whole(&sink.report(), &sent, 1);
    assert!(sent.acked_bytes > 0 && sent.seconds >= 0.3, "{sent:?}");
}

#[test]
fn a_paced_wire_keeps_its_rate() {
    let Some(testbed) = testbed() else { return };
    let sink = Sink::v4(&testbed, &[]);
    let limit = TcpLimit::Time(Duration::from_secs(1));
    let sent = sink.fill(&testbed, |spec| spec.gbit_per_second(0.5).limit(limit)).finish(PATIENCE).unwrap();
    assert_whole(&sink.report(), &sent, 1);
    assert!(sent.gbit_per_second() < 0.55 && sent.blocked.pace > 0.1, "{sent:?}");
}

#[test]
fn a_receiver_that_closes_ends_its_connection() {
    let Some(testbed) = testbed() else { return };
    let sink = Sink::v4(&testbed, &["--seconds", "1"]);
    let running = sink.fill(&testbed, |spec| spec.limit(TcpLimit::None));
    assert!(running.wait_for(PATIENCE).unwrap());
    assert_eq!(running.stop().unwrap().closed, 1);
    assert_eq!(sink.report()["errors"], 0);
}

#[test]
fn stopping_breaks_off_what_is_under_way() {
    let Some(testbed) = testbed() else { return };
    let (address, receiver) = receiver(&testbed, |stream, bytes| {
        if (10 << 20..11 << 20).contains(&bytes) {
            keep_if(stream, LENGTH, [0, u32::MAX], 100); // a reset still passes
        }
    });
    let running = TcpWire::start(&testbed, &TcpSpec::to(address)).unwrap();
    until(|| running.sent().unwrap().acked_bytes >= 10 << 20);
    until_still(&running);
    running.stop().unwrap();
    let (bytes, errors, end) = receiver.join().unwrap();
    assert!(bytes >= 10 << 20 && errors == 0, "{bytes} bytes, {errors} errors");
    assert_eq!(end.unwrap_err().kind(), ErrorKind::ConnectionReset);
}

/// Every packet that reaches the socket is lost with probability 1/50, merged ones whole.
#[test]
fn what_the_receiver_loses_is_sent_again() {
    let Some(testbed) = testbed() else { return };
    let (address, receiver) = receiver(&testbed, |stream, bytes| {
        if bytes == 0 {
            keep_if(stream, RANDOM, [u32::MAX, 0], u32::MAX / 50);
        }
    });
    let spec = TcpSpec::to(address).cap_bytes(400_000).limit(TcpLimit::Bytes(20 << 20));
    let sent = TcpWire::start(&testbed, &spec).unwrap().finish(PATIENCE).unwrap();
    let (bytes, errors, end) = receiver.join().unwrap();
    assert_eq!((bytes, errors), (sent.acked_bytes, 0), "{sent:?}");
    assert!(sent.go_backs > 0, "nothing was lost: {sent:?}");
    end.unwrap();
}

type Received = (u64, u64, std::io::Result<()>);

/// A receiver in this process: `before` is called with the bytes so far before each read. It ends with the bytes, the
/// errors in them, and how the stream ended.
fn receiver(
    testbed: &Testbed,
    before: impl Fn(&TcpStream, u64) + Send + 'static,
) -> (SocketAddr, JoinHandle<Received>) {
    let address = SocketAddr::new(testbed.host().v4().into(), PORT);
    let listener = testbed.host().enter(|| TcpListener::bind(address)).unwrap().unwrap();
    let receive = move || {
        let mut stream = listener.accept().unwrap().0;
        let mut check = Check::of_segments(1448);
        let mut buffer = vec![0; 65536];
        let end = loop {
            before(&stream, check.position);
            match stream.read(&mut buffer) {
                Ok(0) => break Ok(()),
                Ok(length) => check.take(&buffer[..length]),
                Err(error) => break Err(error),
            }
        };
        (check.position, check.errors, end)
    };
    (address, std::thread::spawn(receive))
}

#[test]
fn a_link_that_goes_down_and_up_loses_nothing_for_good() {
    let Some(testbed) = testbed() else { return };
    let sink = Sink::v4(&testbed, &["--verify", "--idle-ms", "30000"]);
    let mut running = sink.fill(&testbed, |spec| spec.limit(TcpLimit::None));
    for n in 1..4 {
        until(|| running.sent().unwrap().acked_bytes > n * (50 << 20));
        testbed.host().set_up(false).unwrap();
        testbed.host().set_up(true).unwrap();
        assert!(testbed.host().settle().unwrap() && testbed.wire().settle().unwrap());
    }
    running.drain().unwrap();
    let sent = running.finish(PATIENCE).unwrap();
    assert_whole(&sink.report(), &sent, 1);
}

#[test]
fn a_wire_that_is_killed_leaves_nothing_attached() {
    let Some(testbed) = testbed() else { return };
    let sink = Sink::v4(&testbed, &["--verify"]);
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "wire_of_a_child", "--ignored", "--nocapture"]);
    command.env("HOIST_TEST_WIRE", format!("{} {}", testbed.name(), sink.address)).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().ends_with("sending")), "the child ended");
    assert_eq!(absorbers(&testbed), 1);
    child.kill().unwrap();
    child.wait().unwrap();
    until(|| absorbers(&testbed) == 0);
    assert_eq!(sink.report()["errors"], 0);
    let sink = Sink::v4(&testbed, &["--verify"]);
    let sent = sink.fill(&testbed, |spec| spec.limit(TcpLimit::Bytes(1 << 20))).finish(PATIENCE).unwrap();
    assert_whole(&sink.report(), &sent, 1);
}

#[test]
#[ignore = "the child of the test above, which sends until it is killed"]
fn wire_of_a_child() {
    let told = std::env::var("HOIST_TEST_WIRE").unwrap();
    let (name, address) = told.split_once(' ').unwrap();
    let testbed = Testbed::open(name).unwrap();
    let running = TcpWire::start(&testbed, &TcpSpec::to(address.parse().unwrap())).unwrap();
    until(|| running.sent().unwrap().acked_bytes > 1 << 20);
    println!("sending");
    running.wait_for(PATIENCE).unwrap();
}

#[test]
fn what_cannot_be_sent_is_refused() {
    let Some(testbed) = testbed() else { return };
    let sink = Sink::v4(&testbed, &["--connections", "2"]);
    let spec = || TcpSpec::to(sink.address);
    for bad in
        [spec().connections(0), spec().connections(257), spec().batch(100), spec().mss(1450), spec().mss(63)]
    {
        assert!(TcpWire::start(&testbed, &bad).is_err(), "{bad:?}");
    }
    sink.signal(Signal::SIGTERM);
    sink.report();
}

fn absorbers(testbed: &Testbed) -> usize {
    let device = testbed.host().device();
    let query = || SchedClassifier::query_tcx(device, TcAttachType::Egress).unwrap().1.len();
    testbed.host().enter(query).unwrap()
}

/// Looks again every few milliseconds: the wire's counters have nothing to wait on.
fn until(condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "not within {PATIENCE:?}");
        std::thread::yield_now();
    }
}

/// Bytes acknowledged once the receiver has taken all it has room for.
fn until_still(running: &TcpRunning) -> u64 {
    let mut before = 0;
    loop {
        assert!(!running.wait_for(Duration::from_millis(50)).unwrap());
        let acked = running.sent().unwrap().acked_bytes;
        if acked == before && acked > 0 {
            return acked;
        }
        before = acked;
    }
}

const RANDOM: (u32, u32) =
    (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, (libc::SKF_AD_OFF + libc::SKF_AD_RANDOM) as u32);
const LENGTH: (u32, u32) = (libc::BPF_LD | libc::BPF_W | libc::BPF_LEN, 0);

/// A classic socket filter: keeps so many bytes of a packet for which `load` gives `threshold` or more, and of others.
#[allow(unsafe_code)]
fn keep_if(stream: &TcpStream, load: (u32, u32), [above, below]: [u32; 2], threshold: u32) {
    let line = |code: u32, jf, k| libc::sock_filter { code: code as u16, jt: 0, jf, k };
    let mut code = [
        line(load.0, 0, load.1),
        line(libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K, 1, threshold),
        line(libc::BPF_RET | libc::BPF_K, 0, above),
        line(libc::BPF_RET | libc::BPF_K, 0, below),
    ];
    let program = libc::sock_fprog { len: code.len() as u16, filter: code.as_mut_ptr() };
    // SAFETY: the program and the code it points to outlive the call, which copies them.
    let result = unsafe {
        let length = size_of_val(&program) as u32;
        let program = (&raw const program).cast();
        libc::setsockopt(stream.as_raw_fd(), libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, program, length)
    };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}
