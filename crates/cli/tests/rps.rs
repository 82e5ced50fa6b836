//! `hoist rps` as a command, on testbeds of its own: order, refusals, what is left behind.

#![allow(clippy::unwrap_used, reason = "a test ends where it fails")]

mod rig;

use hoist_wire::Testbed;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use rig::testbed;
use serde_json::Value;
use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream, UdpSocket},
    process::{Child, ChildStdout, Command, Output, Stdio},
    thread,
    time::Duration,
};

fn hoist(testbed: &Testbed, arguments: &[&str]) -> Command {
    let mut command = testbed.host().command(env!("CARGO_BIN_EXE_hoist"));
    command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// `hoist rps` on the host end, once it says that it is there.
struct Rps {
    child: Child,
    out: BufReader<ChildStdout>,
}

impl Rps {
    fn start(testbed: &Testbed, arguments: &[&str]) -> Self {
        let device = testbed.host().device();
        let mut child = hoist(testbed, &[&["rps", device, "--json"], arguments].concat()).spawn().unwrap();
        let mut line = String::new();
        BufReader::with_capacity(1, child.stderr.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert!(line.contains(" over CPUs "), "{line}");
        let out = BufReader::new(child.stdout.take().unwrap());
        Self { child, out }
    }

    /// What it says next.
    fn line(&mut self) -> Value {
        let mut line = String::new();
        assert!(self.out.read_line(&mut line).unwrap() > 0, "hoist rps ended");
        serde_json::from_str(&line).unwrap()
    }

    /// Waits until nothing came for half a second and nothing waits for a CPU, which may take long on a busy machine.
    fn until_still(&mut self) {
        let waits = |cpu: &Value| number(cpu, "backlog") > 0;
        let busy = |window: Value| {
            number(&window, "packets") > 8 || window["cpus"].as_array().unwrap().iter().any(waits)
        };
        self.line();
        assert!((0..60).any(|_| !busy(self.line())), "something waits for half a minute");
    }

    /// What it says at the end of all.
    fn stop(mut self) -> Value {
        kill(Pid::from_raw(self.child.id() as i32), Signal::SIGINT).unwrap();
        let mut said = String::new();
        self.out.read_to_string(&mut said).unwrap();
        let output = self.child.wait_with_output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let all: Value = serde_json::from_str(said.lines().last().unwrap()).unwrap();
        assert_eq!(all["cut_off"], 0, "{all}");
        all["all"].clone()
    }
}

/// Datagrams from the wire, received by one socket.
struct Load {
    sent: u64,
    received: Value,
    /// Datagrams that found the socket full.
    refused: u64,
}

impl Load {
    fn received(&self) -> u64 {
        number(&self.received, "packets")
    }
}

/// `Udp: RcvbufErrors` of the host end.
fn refused_by_sockets(testbed: &Testbed) -> u64 {
    let text =
        testbed.host().enter(|| std::fs::read_to_string("/proc/thread-self/net/snmp").unwrap()).unwrap();
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("Udp: "));
    let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
    let at = names.split(' ').position(|name| name == "RcvbufErrors").unwrap();
    values.split(' ').nth(at).unwrap().parse().unwrap()
}

fn dropped(all: &Value) -> u64 {
    all["cpus"].as_array().unwrap().iter().map(|cpu| number(cpu, "dropped")).sum()
}

fn load(testbed: &Testbed, rps: &mut Rps, wire: &[&str]) -> Load {
    let sink = std::path::Path::new(env!("CARGO_BIN_EXE_hoist")).with_file_name("hoist-sink");
    let mut command = testbed.host().command(sink);
    command.args(["0.0.0.0:9000", "--idle-ms", "10000", "--rcvbuf", "16000000"]).stdout(Stdio::piped());
    let mut sink = command.spawn().unwrap();
    let mut out = BufReader::new(sink.stdout.take().unwrap());
    out.read_line(&mut String::new()).unwrap();
    let common = ["wire", "--testbed", testbed.name(), "--json"];
    let sent = Command::new(env!("CARGO_BIN_EXE_hoist")).args(common).args(wire).output().unwrap();
    assert!(sent.status.success(), "{sent:?}");
    let sent: Value = serde_json::from_slice(&sent.stdout).unwrap();
    rps.until_still();
    until_read(testbed);
    kill(Pid::from_raw(sink.id() as i32), Signal::SIGTERM).unwrap();
    let mut received = String::new();
    out.read_to_string(&mut received).unwrap();
    sink.wait().unwrap();
    let refused = refused_by_sockets(testbed);
    Load {
        sent: sent["packets"].as_u64().unwrap(),
        received: serde_json::from_str(&received).unwrap(),
        refused,
    }
}

/// Nothing waits in a socket any more.
fn until_read(testbed: &Testbed) {
    let queued = || {
        let table =
            testbed.host().enter(|| std::fs::read_to_string("/proc/thread-self/net/udp").unwrap()).unwrap();
        let queue =
            |line: &str| line.split_whitespace().nth(4).and_then(|q| q.split(':').nth(1).map(str::to_owned));
        table.lines().skip(1).filter_map(queue).any(|queue| queue != "00000000")
    };
    let mut looks = 0;
    while looks < 5 {
        thread::sleep(Duration::from_millis(10));
        looks = if queued() { 0 } else { looks + 1 };
    }
}

fn number(value: &Value, name: &str) -> u64 {
    value[name].as_u64().unwrap_or_else(|| panic!("no {name} in {value}"))
}

const SKEWED: [&str; 8] = ["--flows", "200", "--zipf", "1.1", "--rate", "100k", "--seconds", "3"];

#[test]
fn no_packet_is_overtaken_or_lost_whatever_moves() {
    let Some(testbed) = testbed() else { return };
    let mut rps = Rps::start(&testbed, &["--shuffle-us", "200"]);
    let load = load(&testbed, &mut rps, &SKEWED);
    let all = rps.stop();
    assert!(number(&all, "moves") > 100, "{all}");
    assert!(number(&all["verdicts"], "spread") >= load.sent, "{all}");
    assert_eq!(number(&load.received, "reordered"), 0, "{}", load.received);
    assert_eq!(load.received() + load.refused + dropped(&all), load.sent, "{} {all}", load.received);
    let both = all["cpus"].as_array().unwrap().iter().filter(|cpu| number(cpu, "packets") > 1000);
    assert_eq!(both.count(), all["cpus"].as_array().unwrap().len(), "each CPU had its part: {all}");
}

#[test]
fn what_finds_no_room_is_counted_and_the_rest_keeps_its_order() {
    let Some(testbed) = testbed() else { return };
    let mut rps = Rps::start(&testbed, &["--shuffle-us", "200", "--frames", "64"]);
    let load = load(&testbed, &mut rps, &["--flows", "200", "--zipf", "1.1", "--count", "500000"]);
    let all = rps.stop();
    assert!(dropped(&all) > 0, "as fast as possible, and room for 64: {all}");
    let seen = number(&all["verdicts"], "spread"); // a veth whose poll is late loses some before XDP
    assert_eq!(load.received() + load.refused + dropped(&all), seen, "{} {all}", load.received);
    assert_eq!(number(&load.received, "reordered"), 0, "{}", load.received);
    assert_eq!(all["verdicts"].get("no-metadata"), None, "{all}");
}

/// The control: the same traffic and moves without the rule.
#[test]
fn moves_that_heed_nothing_are_seen_to_reorder() {
    let Some(testbed) = testbed() else { return };
    if nproc() < 2 {
        return eprintln!("skipped: needs two CPUs");
    }
    let mut rps = Rps::start(&testbed, &["--shuffle-us", "100", "--heedless"]);
    let found = (0..5).any(|_| number(&load(&testbed, &mut rps, &SKEWED).received, "reordered") > 0);
    rps.stop();
    assert!(found, "a test of order that cannot fail");
}

fn nproc() -> usize {
    thread::available_parallelism().unwrap().get()
}

#[test]
fn who_watches_moves_nothing_and_says_what_a_hash_does() {
    let Some(testbed) = testbed() else { return };
    let mut rps = Rps::start(&testbed, &["--observe"]);
    let load = load(&testbed, &mut rps, &["--flows", "3", "--rate", "20k", "--seconds", "1"]);
    let all = rps.stop();
    assert_eq!(number(&all, "moves"), 0);
    assert!(number(&all["verdicts"], "home") >= load.sent, "{all}");
    assert!(all["busiest_by_hash"].as_f64().unwrap() > 1.2, "three flows on an even number of CPUs: {all}");
    assert_eq!(load.received() + load.refused, load.sent);
}

/// Byte `at` of a connection's stream.
fn byte(connection: u64, at: u64) -> u8 {
    ((at ^ connection << 40).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8
}

#[test]
fn linux_tcp_arrives_whole_over_several_cpus() {
    const BYTES: u64 = 16 << 20;
    let Some(testbed) = testbed() else { return };
    let rps = Rps::start(&testbed, &["--shuffle-us", "1000"]);
    let (host, wire) = (testbed.host(), testbed.wire());
    let listener = host.enter(|| TcpListener::bind((host.v4(), 9000))).unwrap().unwrap();
    thread::scope(|scope| {
        for connection in 0..4 {
            let mut stream = wire.enter(|| TcpStream::connect((host.v4(), 9000))).unwrap().unwrap();
            let (mut receiver, _) = listener.accept().unwrap();
            scope.spawn(move || {
                let bytes: Vec<u8> = (0..BYTES).map(|at| byte(connection, at)).collect();
                stream.write_all(&bytes).unwrap();
            });
            scope.spawn(move || {
                let mut bytes = Vec::new();
                receiver.read_to_end(&mut bytes).unwrap();
                assert_eq!(bytes.len() as u64, BYTES);
                let wrong = (0..BYTES).zip(&bytes).find(|(at, got)| byte(connection, *at) != **got);
                assert_eq!(wrong, None, "connection {connection}");
            });
        }
    });
    let all = rps.stop();
    assert!(number(&all["verdicts"], "spread") > 40_000, "{all}");
}

#[test]
fn nothing_is_left_behind_not_even_by_kill_9() {
    let Some(testbed) = testbed() else { return };
    let attached = || {
        let links = testbed.host().command("ip").args(["-details", "link", "show", "vb"]).output().unwrap();
        String::from_utf8(links.stdout).unwrap().contains("xdp")
    };
    let mut rps = Rps::start(&testbed, &[]);
    assert!(attached());
    rps.child.kill().unwrap();
    rps.child.wait().unwrap();
    let gone = (0..100).any(|_| {
        thread::sleep(Duration::from_millis(10));
        !attached()
    });
    assert!(gone, "the program stayed");
    let mut rps = Rps::start(&testbed, &[]);
    let load = load(&testbed, &mut rps, &["--rate", "10k", "--count", "1000"]);
    assert_eq!(load.received() + load.refused, load.sent, "the next one works as ever");
    rps.stop();
    assert!(!attached());
}

#[test]
fn an_idle_device_gives_its_buckets_back_at_once() {
    let Some(testbed) = testbed() else { return };
    let rps = Rps::start(&testbed, &[]);
    let host = testbed.host();
    let socket = host.enter(|| UdpSocket::bind((host.v4(), 9000))).unwrap().unwrap();
    let ping = || {
        let arguments = ["wire", "--testbed", testbed.name(), "--json", "--count", "64"];
        assert!(Command::new(env!("CARGO_BIN_EXE_hoist")).args(arguments).status().unwrap().success());
    };
    ping();
    socket.recv(&mut [0; 64]).unwrap();
    rps.stop(); // cut_off is 0: the last packets of a CPU without more are known to be done
}

#[test]
fn a_device_that_goes_away_ends_it_with_an_error() {
    let Some(testbed) = testbed() else { return };
    let rps = Rps::start(&testbed, &[]);
    testbed.host().delete_device().unwrap();
    let output = rps.child.wait_with_output().unwrap();
    refused(&output, 1, "vb is gone");
}

#[test]
fn a_reader_that_has_seen_enough_ends_it() {
    let Some(testbed) = testbed() else { return };
    let mut rps = Rps::start(&testbed, &[]);
    rps.line();
    drop(rps.out);
    let output = rps.child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stderr.len()), (Some(0), 0), "{output:?}");
}

/// Datagrams of two sizes in turn, the larger in fragments, from one socket to one: how many came, and how many after a later one.
fn sizes_in_turn(testbed: &Testbed, datagrams: u32) -> (u32, u32) {
    let (host, wire) = (testbed.host(), testbed.wire());
    let receiver = host.enter(|| UdpSocket::bind((host.v4(), 9000))).unwrap().unwrap();
    receiver.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    let sender = wire.enter(|| UdpSocket::bind((wire.v4(), 9001))).unwrap().unwrap();
    sender.connect((host.v4(), 9000)).unwrap();
    let (mut came, mut late, mut latest) = (0, 0, 0);
    thread::scope(|scope| {
        scope.spawn(|| {
            for number in 1..=datagrams {
                let mut datagram = vec![0; if number % 2 == 0 { 3004 } else { 64 }];
                datagram[..4].copy_from_slice(&number.to_be_bytes());
                sender.send(&datagram).unwrap();
                if number % 32 == 0 {
                    thread::sleep(Duration::from_millis(1)); // 100 KB, half of what a socket holds
                }
            }
        });
        let mut datagram = [0; 4096];
        while came < datagrams && receiver.recv(&mut datagram).is_ok() {
            let number = u32::from_be_bytes(datagram[..4].try_into().unwrap());
            came += 1;
            late += u32::from(number < latest);
            latest = latest.max(number);
        }
    });
    (came, late)
}

#[test]
fn fragments_and_whole_datagrams_of_a_flow_keep_their_order() {
    let Some(testbed) = testbed() else { return };
    for checksums in ["off", "on"] {
        let mut ethtool = testbed.wire().command("ethtool");
        assert!(ethtool.args(["-K", testbed.wire().device(), "tx", checksums]).status().unwrap().success());
        let rps = Rps::start(&testbed, &["--shuffle-us", "200"]);
        let (came, late) = sizes_in_turn(&testbed, 20_000);
        let all = rps.stop();
        assert!(came > 5_000, "{came} of 20,000 with tx {checksums}"); // a slow reader loses some
        assert_eq!(late, 0, "after a later one, of {came} with tx {checksums}: {all}");
        let verdict = if checksums == "off" { "spread" } else { "unfilled-checksum" };
        assert!(number(&all["verdicts"], verdict) > 19_000, "{all}");
    }
}

/// `voluntary_ctxt_switches` of the threads of CPUMAP entries of this CPU, the most.
fn slept(cpu: u64) -> u64 {
    let of = |entry: std::fs::DirEntry| {
        let text = std::fs::read_to_string(entry.path().join("status")).ok()?;
        let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        let ours = field("Name:")?.starts_with(&format!("cpumap/{cpu}/map:"));
        field("voluntary_ctxt_switches:").filter(|_| ours)?.parse().ok()
    };
    std::fs::read_dir("/proc").unwrap().flatten().filter_map(of).max().unwrap()
}

/// GRO holds nothing when the thread sleeps, but may when it only gives its CPU away.
#[test]
fn a_thread_that_gives_its_cpu_away_is_not_taken_for_one_that_sleeps() {
    let Some(testbed) = testbed() else { return };
    let mut rps = Rps::start(&testbed, &["--shuffle-us", "200"]);
    let done = std::sync::atomic::AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..nproc() {
            scope.spawn(|| {
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    std::hint::spin_loop()
                }
            });
        }
        load(&testbed, &mut rps, &SKEWED);
        done.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    let window = rps.line();
    assert_eq!(number(&window, "packets") / 100, 0, "still");
    let slept: Vec<u64> =
        window["cpus"].as_array().unwrap().iter().map(|cpu| slept(number(cpu, "cpu"))).collect();
    let all = rps.stop();
    for (cpu, slept) in all["cpus"].as_array().unwrap().iter().zip(slept) {
        let sleeps = number(cpu, "sleeps");
        assert!(sleeps > 100 && sleeps <= slept, "{sleeps} seen, {slept} by the scheduler: {all}");
    }
}

#[test]
fn what_cannot_be_printed_is_an_error_and_nothing_stays() {
    let Some(testbed) = testbed() else { return };
    let full = || std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let device = testbed.host().device();
    let output = hoist(&testbed, &["rps", device, "--json"]).stdout(full()).output().unwrap();
    refused(&output, 1, "printing (standard output)");
    let unheard = hoist(&testbed, &["rps", device, "--seconds", "1"]).stderr(full()).output().unwrap();
    assert_eq!(unheard.status.code(), Some(0), "{unheard:?}");
    assert!(String::from_utf8_lossy(&unheard.stdout).contains("share"), "{unheard:?}");
}

#[test]
fn it_ends_in_time_when_nobody_reads() {
    let Some(testbed) = testbed() else { return };
    let (reader, mut writer) = std::io::pipe().unwrap();
    let size = nix::fcntl::fcntl(&reader, nix::fcntl::FcntlArg::F_SETPIPE_SZ(4096)).unwrap();
    writer.write_all(&vec![b'.'; size as usize - 8]).unwrap(); // no room for a line
    let device = testbed.host().device();
    let mut child = hoist(&testbed, &["rps", device, "--json"]).stdout(writer).spawn().unwrap();
    let mut err = BufReader::new(child.stderr.take().unwrap());
    err.read_line(&mut String::new()).unwrap();
    thread::sleep(Duration::from_secs(2)); // a line every half second
    kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM).unwrap();
    let begin = std::time::Instant::now();
    let status = child.wait().unwrap();
    assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
    drop(reader);
    let mut said = String::new();
    err.read_to_string(&mut said).unwrap();
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(said.contains("nobody reads it"), "{said}");
}

#[test]
fn a_vlan_device_that_comes_later_ends_it() {
    let Some(testbed) = testbed() else { return };
    let host = testbed.host();
    let run =
        |program: &str, arguments: &[&str]| host.command(program).args(arguments).status().unwrap().success();
    assert!(run("ethtool", &["-K", "vb", "rxvlan", "on"]));
    let rps = Rps::start(&testbed, &[]);
    if !run("ip", &["link", "add", "link", "vb", "name", "vb.9", "type", "vlan", "id", "9"]) {
        rps.stop();
        return eprintln!("skipped: this kernel has no VLAN devices");
    }
    let output = rps.child.wait_with_output().unwrap();
    refused(&output, 1, "rxvlan off");
}

fn refused(output: &Output, code: i32, words: &str) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{said}");
    assert!(said.contains(words), "{said}");
    assert!(said.lines().count() <= 3, "one sentence: {said}");
}

#[test]
fn what_cannot_be_is_refused_in_a_sentence() {
    let Some(testbed) = testbed() else { return };
    let run = |arguments: &[&str]| hoist(&testbed, arguments).output().unwrap();
    refused(&run(&["rps", "no-such-device"]), 1, "no device 'no-such-device'");
    refused(&run(&["rps", "lo"]), 1, "loopback");
    refused(&run(&["rps", "vb", "--cpus", "4095"]), 2, "not online");
    for bad in ["", "x", "3-1", "0,,1"] {
        assert_eq!(run(&["rps", "vb", "--cpus", bad]).status.code(), Some(2), "{bad}");
    }
    assert_eq!(run(&["rps", "vb", "--frames", "1"]).status.code(), Some(2));
    let first = Rps::start(&testbed, &[]);
    refused(&run(&["rps", "vb"]), 1, "replaces none");
    first.stop();
}

#[test]
fn tags_that_the_device_takes_off_are_a_reason_to_refuse() {
    if !nix::unistd::geteuid().is_root() {
        return eprintln!("skipped: needs root");
    }
    let testbed = match Testbed::builder().vlan(7).up() {
        Ok(testbed) => testbed,
        Err(why) => return eprintln!("skipped: {why}"),
    };
    let on = |feature: &str| {
        assert!(
            testbed
                .host()
                .command("ethtool")
                .args(["-K", "vb", "rxvlan", feature])
                .status()
                .unwrap()
                .success()
        );
    };
    on("on");
    refused(&hoist(&testbed, &["rps", "vb"]).output().unwrap(), 1, "rxvlan off");
    let tagged = testbed.host().vlan_device().unwrap();
    refused(&hoist(&testbed, &["rps", &tagged]).output().unwrap(), 1, "native XDP");
    on("off");
    Rps::start(&testbed, &[]).stop();
}
