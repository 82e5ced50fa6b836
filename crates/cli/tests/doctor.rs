//! `hoist doctor` on real devices: in namespaces of its own (needs root; says so and skips without), and as an
//! ordinary user.
#![allow(unsafe_code)] // bpf(2) and getsockopt(2) as a stranger's program would call them
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use hoist_wire::Testbed;
use hoist_xsk::{ChunkSize, Mode, Socket, Umem};
use netlink_sys::SocketAddr;
use serde_json::Value;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Output};

const HOIST: &str = env!("CARGO_BIN_EXE_hoist");
const NOBODY: u32 = 65_534;

/// False, with the reason on the terminal, when the test cannot run.
fn root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("skipped: a testbed needs root");
    }
    root
}

fn json(output: &Output) -> Value {
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}{errors}"))
}

/// What doctor says of the host's end, and its exit code.
fn examine(testbed: &Testbed, arguments: &[&str]) -> (Value, i32) {
    let output = testbed.host().command(HOIST).args(["doctor", "--json"]).args(arguments).output().unwrap();
    (json(&output), output.status.code().unwrap())
}

fn finding<'a>(report: &'a Value, device: Option<&str>, topic: &str) -> &'a Value {
    let findings = report["findings"].as_array().unwrap();
    let wanted = |finding: &&Value| finding["topic"] == topic && finding["device"].as_str() == device;
    findings.iter().find(wanted).unwrap_or_else(|| panic!("no finding {topic} of {device:?}: {report:#}"))
}

fn of_vb(report: &Value, topic: &str) -> (String, String) {
    let finding = finding(report, Some("vb"), topic);
    let text = |field: &str| finding[field].as_str().unwrap().to_owned();
    (text("severity"), text("found"))
}

fn pair(severity: &str, found: &str) -> (String, String) {
    (severity.to_owned(), found.to_owned())
}

#[test]
fn a_veth_in_a_namespace_is_seen_as_it_is() {
    if !root() {
        return;
    }
    let testbed = Testbed::builder().queues(3).mtu(3_000).up().unwrap();
    let (report, _) = examine(&testbed, &[]);
    assert_eq!(of_vb(&report, "driver"), pair("ok", "veth"));
    assert_eq!(of_vb(&report, "native-xdp").0, "ok");
    assert_eq!(of_vb(&report, "zero-copy").0, "note");
    assert_eq!(of_vb(&report, "xdp-attached"), pair("ok", "no XDP program"));
    assert!(of_vb(&report, "queues").1.starts_with("3 receive queues (most 3)"));
    assert_eq!(of_vb(&report, "mtu"), pair("note", "3000 bytes"));
    assert_eq!(of_vb(&report, "veth"), pair("note", "peer in another namespace"));
    assert_eq!(of_vb(&report, "irq-affinity"), pair("ok", "no receive interrupts"));
}

/// /sys of the test process shows the first namespace's devices; vb is not among them.
#[test]
fn settings_in_sysfs_are_those_of_the_callers_namespace() {
    if !root() {
        return;
    }
    let testbed = Testbed::builder().queues(2).up().unwrap();
    let settings =
        [("napi_defer_hard_irqs", "2"), ("gro_flush_timeout", "70000"), ("queues/rx-1/rps_cpus", "1")];
    let set = || {
        settings.iter().try_for_each(|(file, value)| fs::write(format!("/sys/class/net/vb/{file}"), value))
    };
    testbed.host().netns().enter_with_sysfs(set).unwrap().unwrap();
    let (report, _) = examine(&testbed, &["vb"]);
    assert_eq!(
        of_vb(&report, "busy-poll"),
        pair("note", "napi_defer_hard_irqs 2, gro_flush_timeout 70000 ns")
    );
    assert_eq!(of_vb(&report, "rps"), pair("ok", "on for 1 of 2 queues"));
}

#[test]
fn source_checks_are_read_where_they_apply() {
    if !root() {
        return;
    }
    let testbed = Testbed::builder().up().unwrap();
    let strictness = |mode| {
        testbed.host().netns().sysctl("net.ipv4.conf.vb.rp_filter", mode).unwrap();
        of_vb(&examine(&testbed, &["vb"]).0, "rp-filter")
    };
    assert_eq!(strictness("0"), pair("ok", "off"));
    assert_eq!(strictness("1"), pair("warn", "strict"));
    assert_eq!(strictness("2"), pair("note", "loose"));
}

#[test]
fn another_xdp_program_is_named_and_fails_the_doctor() {
    if !root() {
        return;
    }
    let testbed = Testbed::builder().up().unwrap();
    let index = testbed.host().ifindex();
    let (program, link) = testbed.host().enter(|| attach_pass(b"somebodys_xdp", index)).unwrap().unwrap();
    let (report, code) = examine(&testbed, &["vb"]);
    let (severity, found) = of_vb(&report, "xdp-attached");
    assert_eq!((severity.as_str(), code, &report["runs"]), ("bad", 1, &Value::Bool(false)));
    assert!(found.ends_with("(somebodys_xdp)"), "{found}");
    drop((program, link));
    assert_eq!(of_vb(&examine(&testbed, &["vb"]).0, "xdp-attached").0, "ok");
}

#[test]
fn queues_that_a_socket_owns_are_listed() {
    if !root() {
        return;
    }
    let testbed = Testbed::builder().queues(2).up().unwrap();
    let umem = Umem::create(64, ChunkSize::K2, false).unwrap();
    let socket = testbed.host().enter(Socket::open).unwrap().unwrap();
    socket.register_umem(&umem, 0).unwrap();
    socket.set_umem_rings(64, 64).unwrap();
    socket.set_rings(64, 0).unwrap();
    socket.bind(testbed.host().ifindex(), 1, Mode::Copy, None).unwrap();
    let (report, code) = examine(&testbed, &["vb"]);
    if !kernel_tells_queue_owners() {
        eprintln!("skipped: the kernel does not tell who owns a queue before Linux 6.14");
        return;
    }
    assert_eq!((of_vb(&report, "queues-taken"), code), (pair("bad", "receive queue 1"), 1));
}

fn kernel_tells_queue_owners() -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut parts =
        release.split(|letter: char| !letter.is_ascii_digit()).map(|part| part.parse::<u32>().unwrap());
    (parts.next().unwrap(), parts.next().unwrap()) >= (6, 14)
}

#[test]
fn an_input_chain_that_drops_is_warned_of() {
    if !root() {
        return;
    }
    let testbed = Testbed::builder().up().unwrap();
    let netfilter = |report: &Value| finding(report, None, "netfilter").clone();
    assert_eq!(netfilter(&examine(&testbed, &["vb"]).0)["severity"], "ok", "a new namespace has no rules");
    testbed.host().enter(drop_everything_at_input).unwrap().unwrap();
    let found = netfilter(&examine(&testbed, &["vb"]).0);
    assert_eq!(found["severity"], "warn");
    assert_eq!(found["found"], "inet guard door (input: 0 rules, drops by default)");
}

#[test]
fn a_legacy_table_is_read_and_an_empty_one_is_no_firewall() {
    if !root() {
        return;
    }
    let testbed = Testbed::builder().up().unwrap();
    if let Err(error) = testbed.host().enter(make_legacy_filter).unwrap() {
        eprintln!("skipped: this kernel has no legacy iptables: {error}");
        return;
    }
    let names = testbed
        .host()
        .enter(|| fs::read_to_string("/proc/thread-self/net/ip_tables_names"))
        .unwrap()
        .unwrap();
    assert_eq!(names.trim(), "filter");
    let (report, _) = examine(&testbed, &["vb"]);
    assert_eq!(finding(&report, None, "netfilter")["severity"], "ok", "{report:#}");
}

#[test]
fn a_device_that_is_down_is_judged_when_asked_for() {
    if !root() {
        return;
    }
    let testbed = Testbed::builder().up().unwrap();
    testbed.host().set_up(false).unwrap();
    let (all, _) = examine(&testbed, &[]);
    let of_vb_alone = |report: &Value| {
        report["findings"].as_array().unwrap().iter().filter(|f| f["device"] == "vb").count()
    };
    assert_eq!((of_vb(&all, "link"), of_vb_alone(&all)), (pair("note", "down"), 1));
    let (asked, _) = examine(&testbed, &["vb"]);
    assert!(of_vb_alone(&asked) > 10);
}

#[test]
fn an_unknown_device_is_an_error_that_lists_those_there_are() {
    let output = Command::new(HOIST).args(["doctor", "nosuchdevice0"]).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(errors.contains("no device 'nosuchdevice0'") && errors.contains("lo"), "{errors}");
    assert!(output.stdout.is_empty());
}

#[test]
fn wrong_usage_exits_with_2() {
    let output = Command::new(HOIST).args(["doctor", "--no-such-flag"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let (reader, writer) = io::pipe().unwrap();
    drop(reader);
    let output = Command::new(HOIST).args(["doctor", "lo"]).stdout(writer).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}

#[test]
fn an_ordinary_user_is_told_what_could_not_be_seen_and_why() {
    let folder = std::env::temp_dir().join(format!("hoist-doctor-{}", std::process::id()));
    let output = as_nobody(&folder).args(["doctor", "--json"]).output();
    let _ = fs::remove_dir_all(&folder);
    let output = output.unwrap();
    let report = json(&output);
    let capabilities = finding(&report, None, "capabilities");
    assert_eq!((&capabilities["severity"], output.status.code()), (&Value::from("bad"), Some(1)));
    assert_eq!(capabilities["found"], "missing CAP_NET_ADMIN, CAP_BPF, CAP_NET_RAW, CAP_PERFMON");
    let netfilter = finding(&report, None, "netfilter");
    assert_eq!(
        (&netfilter["severity"], &netfilter["mend"][0]),
        (&"note".into(), &"sudo hoist doctor".into())
    );
    let why = netfilter["found"].as_str().unwrap();
    assert!(why.starts_with("unknown: ") && why.contains("not permitted"), "{why}");
}

/// hoist as nobody. The build folder may be root's alone, so it runs from a copy in `folder`.
fn as_nobody(folder: &PathBuf) -> Command {
    if !nix::unistd::geteuid().is_root() {
        return Command::new(HOIST);
    }
    fs::create_dir(folder).unwrap();
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).unwrap();
    let copy = folder.join("hoist");
    fs::copy(HOIST, &copy).unwrap();
    let mut command = Command::new(copy);
    command.uid(NOBODY).gid(NOBODY).current_dir("/");
    command
}

/// Loads a program that passes everything and attaches it. Closing the link detaches it.
fn attach_pass(name: &[u8], ifindex: u32) -> io::Result<(OwnedFd, OwnedFd)> {
    const BPF_PROG_LOAD: i32 = 5;
    const BPF_LINK_CREATE: i32 = 28;
    const BPF_PROG_TYPE_XDP: u32 = 6;
    const BPF_XDP: u32 = 37;
    let pass: [u64; 2] = [0x0000_0002_0000_00b7, 0x95]; // r0 = XDP_PASS; exit
    let mut load = [0u8; 72];
    load[..4].copy_from_slice(&BPF_PROG_TYPE_XDP.to_ne_bytes());
    load[4..8].copy_from_slice(&(pass.len() as u32).to_ne_bytes());
    load[8..16].copy_from_slice(&(pass.as_ptr() as u64).to_ne_bytes());
    load[16..24].copy_from_slice(&(c"GPL".as_ptr() as u64).to_ne_bytes());
    load[48..48 + name.len()].copy_from_slice(name);
    load[68..72].copy_from_slice(&BPF_XDP.to_ne_bytes());
    let program = bpf(BPF_PROG_LOAD, &load)?;
    let words = [program.as_raw_fd() as u32, ifindex, BPF_XDP, 0];
    let link = bpf(BPF_LINK_CREATE, &words.map(u32::to_ne_bytes).concat())?;
    Ok((program, link))
}

fn bpf(command: i32, attributes: &[u8]) -> io::Result<OwnedFd> {
    // SAFETY: `attributes` and what it points to live over the call.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_ptr(), attributes.len()) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: both commands return a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// The kernel makes the table when it is first asked for.
fn make_legacy_filter() -> io::Result<()> {
    const IPT_SO_GET_INFO: i32 = 64;
    let socket =
        std::net::UdpSocket::bind("127.0.0.1:0").or_else(|_| std::net::UdpSocket::bind("0.0.0.0:0"))?;
    let mut info = [0u8; 84];
    info[..6].copy_from_slice(b"filter");
    let mut length = info.len() as libc::socklen_t;
    let pointer = info.as_mut_ptr().cast();
    // SAFETY: `info` is writable for `length` bytes.
    match unsafe { libc::getsockopt(socket.as_raw_fd(), 0, IPT_SO_GET_INFO, pointer, &mut length) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// nft 'add table inet guard; add chain inet guard door { type filter hook input priority 0; policy drop; }'
fn drop_everything_at_input() -> io::Result<()> {
    const BATCH_BEGIN: u16 = 0x10;
    const BATCH_END: u16 = 0x11;
    const NEWTABLE: u16 = 10 << 8;
    const NEWCHAIN: u16 = 10 << 8 | 3;
    const CREATE: u16 = (libc::NLM_F_CREATE | libc::NLM_F_ACK) as u16;
    let batch = [0, 0, 0, 10]; // nfgenmsg: the subsystem in network order
    let inet = [libc::NFPROTO_INET as u8, 0, 0, 0];
    let table = [&inet[..], &attribute(1, b"guard\0")].concat();
    let hook = [attribute(1, &1u32.to_be_bytes()), attribute(2, &0u32.to_be_bytes())].concat();
    let chain = [
        inet.to_vec(),
        attribute(1, b"guard\0"),
        attribute(3, b"door\0"),
        attribute(4 | 0x8000, &hook),
        attribute(5, &0u32.to_be_bytes()),
        attribute(7, b"filter\0"),
    ]
    .concat();
    let messages = [
        message(BATCH_BEGIN, 0, 1, &batch),
        message(NEWTABLE, CREATE, 2, &table),
        message(NEWCHAIN, CREATE, 3, &chain),
        message(BATCH_END, 0, 4, &batch),
    ]
    .concat();
    let mut socket = netlink_sys::Socket::new(libc::NETLINK_NETFILTER as isize)?;
    socket.bind_auto()?;
    socket.send_to(&messages, &SocketAddr::new(0, 0), 0)?;
    (0..2).try_for_each(|_| {
        let (answer, _) = socket.recv_from_full()?;
        match i32::from_ne_bytes(answer[16..20].try_into().unwrap()) {
            0 => Ok(()),
            errno => Err(io::Error::from_raw_os_error(-errno)),
        }
    })
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = ((4 + value.len()) as u16).to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn message(kind: u16, flags: u16, sequence: u32, body: &[u8]) -> Vec<u8> {
    let mut bytes = ((16 + body.len()) as u32).to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend((flags | libc::NLM_F_REQUEST as u16).to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    bytes.extend([0; 4]);
    bytes.extend(body);
    bytes
}
