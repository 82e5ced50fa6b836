//! `hoist run` as a wrapper: statuses, signals, users, what cannot be lifted. None of these programs is lifted.

#![allow(clippy::unwrap_used, reason = "a test ends where it fails")]

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    os::unix::{fs::PermissionsExt, process::ExitStatusExt},
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
};

/// Stands in for the shim: any library that is loaded anyway.
fn some_library() -> String {
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let libc =
        maps.lines().filter_map(|line| line.split_whitespace().nth(5)).find(|path| path.contains("libc.so"));
    libc.unwrap().to_owned()
}

fn hoist(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hoist"));
    command.env("HOIST_SHIM", some_library()).args(arguments);
    command
}

fn run(arguments: &[&str]) -> Output {
    hoist(&[&["run"], arguments].concat()).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn is_root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("skipped: needs root");
    }
    root
}

#[test]
fn the_exit_status_is_the_programs() {
    assert_eq!(run(&["--", "true"]).status.code(), Some(0));
    assert_eq!(run(&["--", "sh", "-c", "exit 7"]).status.code(), Some(7));
    assert_eq!(run(&["--", "sh", "-c", "kill -9 $$"]).status.code(), Some(128 + 9));
}

#[test]
fn programs_that_cannot_start_end_as_under_env() {
    let missing = run(&["--", "no-such-program-here"]);
    assert_eq!(missing.status.code(), Some(127));
    assert!(text(&missing.stderr).contains("no-such-program-here: no such program"));
    let unexecutable = run(&["--", "/etc/passwd"]);
    assert_eq!(unexecutable.status.code(), Some(126));
    assert_eq!(run(&[]).status.code(), Some(2), "usage");
}

#[test]
fn input_output_and_arguments_are_passed_through() {
    let mut child = hoist(&["run", "--", "sh", "-c", "cat; echo \"$0|$1\"", "a b", "c"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"in\n").unwrap();
    let out = child.wait_with_output().unwrap();
    assert_eq!(text(&out.stdout), "in\na b|c\n");
}

#[test]
fn the_brokers_socket_is_inherited_on_a_high_number_and_nothing_else_is() {
    let out = run(&["--", "sh", "-c", "echo $HOIST_BROKER_FD; ls /proc/self/fd"]);
    let numbers: Vec<u32> = text(&out.stdout).lines().filter_map(|line| line.parse().ok()).collect();
    let (broker, open) = numbers.split_first().unwrap();
    assert!(*broker >= 200 && open.contains(broker), "{numbers:?}");
    // Three standard ones, the directory that ls reads, the broker's, and what the harness left open for everybody.
    let plain = Command::new("sh").args(["-c", "ls /proc/self/fd"]).output().unwrap();
    assert_eq!(open.len(), text(&plain.stdout).lines().count() + 1);
}

/// A program that exits with 7, by system call alone.
#[cfg(target_arch = "x86_64")]
fn static_program(name: &str) -> PathBuf {
    let code = [0xbf, 7, 0, 0, 0, 0xb8, 60, 0, 0, 0, 0x0f, 0x05];
    let mut elf = vec![0_u8; 120];
    elf[..8].copy_from_slice(b"\x7fELF\x02\x01\x01\0");
    let words: [(usize, u64, usize); 14] = [
        (16, 2, 2),
        (18, 62, 2),
        (20, 1, 4),
        (24, 0x40_0078, 8),
        (32, 64, 8),
        (52, 64, 2),
        (54, 56, 2),
        (56, 1, 2),
        (64, 1, 4),
        (68, 5, 4),
        (80, 0x40_0000, 8),
        (96, 132, 8),
        (104, 132, 8),
        (112, 0x1000, 8),
    ];
    for (at, value, len) in words {
        elf[at..at + len].copy_from_slice(&value.to_le_bytes()[..len]);
    }
    elf.extend(code);
    let path = std::env::temp_dir().join(format!("hoist-{name}-{}", std::process::id()));
    fs::write(&path, elf).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

#[cfg(target_arch = "x86_64")]
#[test]
fn a_static_program_runs_with_a_warning_and_not_at_all_with_require() {
    let program = static_program("static");
    let path = program.to_str().unwrap();
    let out = run(&["--", path]);
    let required = run(&["--require", "--", path]);
    fs::remove_file(&program).unwrap();
    assert_eq!(out.status.code(), Some(7));
    assert_eq!(text(&out.stderr), format!("hoist: nothing of {path} is lifted: it is statically linked\n"));
    assert_eq!(required.status.code(), Some(1));
    assert!(text(&required.stderr).contains("--require"));
}

#[cfg(target_arch = "x86_64")]
#[test]
fn a_static_program_whose_connections_are_to_be_lifted_is_refused() {
    let program = static_program("static-tcp");
    let path = program.to_str().unwrap();
    let refused = ["lift", "80,443"].map(|tcp| run(&["--tcp", tcp, "--", path]));
    let off = run(&["--tcp", "off", "--", path]);
    fs::remove_file(&program).unwrap();
    for out in refused {
        assert_eq!(out.status.code(), Some(1));
        let error = text(&out.stderr);
        assert!(error.contains("no connection of") && error.contains("it is statically linked"), "{error}");
        assert!(error.contains("--tcp off"), "{error}");
    }
    assert_eq!(off.status.code(), Some(7));
}

#[test]
fn io_uring_is_not_there() {
    let script = "import ctypes; libc=ctypes.CDLL(None,use_errno=True); libc.syscall(425,1,None); print(ctypes.get_errno())";
    let out = run(&["--", "python3", "-c", script]);
    assert_eq!(text(&out.stdout).trim(), "38", "ENOSYS; {}", text(&out.stderr));
}

/// A shell that says "ready", then waits for its standard input to end.
fn waiting(options: &[&str], script: &str) -> (Child, BufReader<std::process::ChildStdout>) {
    // A shell looks for signals between commands: a read that has just begun would keep it from them.
    let idle = "idle() { echo ready; while :; do sleep 0.05; done; }";
    let script = format!("{idle}; {script}; echo ready; read -r line; echo read $line");
    let mut child = hoist(&[&["run"], options, &["--", "sh", "-c", &script]].concat())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    out.read_line(&mut line).unwrap();
    assert!(line.starts_with("ready"), "{line:?}");
    (child, out)
}

fn signal(pid: u32, signal: nix::sys::signal::Signal) {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid as i32), signal).unwrap();
}

#[test]
fn signals_are_passed_on() {
    use nix::sys::signal::Signal;
    for (number, code) in
        [(Signal::SIGTERM, 41), (Signal::SIGHUP, 42), (Signal::SIGUSR2, 43), (Signal::SIGQUIT, 44)]
    {
        let name = number.as_str().trim_start_matches("SIG");
        let (mut child, _out) = waiting(&[], &format!("trap 'exit {code}' {name}; idle"));
        signal(child.id(), number);
        // wait() would close it first, and so let the program end by itself.
        let _input = child.stdin.take();
        assert_eq!(child.wait().unwrap().code(), Some(code), "{name}");
    }
    let (mut child, _out) = waiting(&[], ":");
    signal(child.id(), Signal::SIGINT);
    let _input = child.stdin.take();
    assert_eq!(child.wait().unwrap().code(), Some(128 + 2));
}

#[test]
fn sigusr1_prints_the_status_and_is_not_passed_on() {
    let (mut child, mut out) = waiting(&[], "trap 'exit 9' USR1");
    signal(child.id(), nix::sys::signal::Signal::SIGUSR1);
    let expected = format!("run {}: sh -c", child.id());
    let mut errors = BufReader::new(child.stderr.take().unwrap());
    let found = errors.by_ref().lines().map_while(Result::ok).any(|line| line.starts_with(&expected));
    assert!(found);
    child.stdin.take().unwrap().write_all(b"on\n").unwrap();
    let mut line = String::new();
    out.read_line(&mut line).unwrap();
    assert_eq!((line.as_str(), child.wait().unwrap().code()), ("read on\n", Some(0)));
}

#[test]
fn the_program_can_be_another_user_without_any_privilege() {
    if !is_root() {
        return;
    }
    let script = "id -u; id -G; echo $USER; grep CapEff /proc/self/status; cat \"$LD_PRELOAD\" | wc -c";
    let out = run(&["--user", "nobody", "--", "sh", "-c", script]);
    let lines: Vec<String> = text(&out.stdout).lines().map(str::to_owned).collect();
    let nobody = nix::unistd::User::from_name("nobody").unwrap().unwrap();
    assert_eq!(lines[0], nobody.uid.to_string(), "{}", text(&out.stderr));
    assert_eq!(lines[1], nobody.gid.to_string());
    assert_eq!(lines[2], "nobody");
    assert!(lines[3].ends_with("0000000000000000"));
    assert_ne!(lines[4].trim(), "0");
    let unknown = run(&["--user", "no-such-user", "--", "true"]);
    assert_eq!(unknown.status.code(), Some(1));
    assert!(text(&unknown.stderr).contains("no such user"));
}

#[test]
fn a_shim_that_the_user_cannot_reach_is_copied_and_the_copy_removed() {
    if !is_root() {
        return;
    }
    let closed = std::env::temp_dir().join(format!("hoist-closed-shim-{}", std::process::id()));
    fs::create_dir_all(&closed).unwrap();
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).unwrap();
    let shim = closed.join("libhoist_shim.so");
    fs::copy(some_library(), &shim).unwrap();
    let script = "echo $LD_PRELOAD; test -r \"$LD_PRELOAD\"";
    let out = hoist(&["run", "--user", "nobody", "--", "sh", "-c", script])
        .env("HOIST_SHIM", &shim)
        .output()
        .unwrap();
    fs::remove_dir_all(&closed).unwrap();
    assert_eq!(out.status.code(), Some(0), "{}", text(&out.stderr));
    let copy = PathBuf::from(text(&out.stdout).trim());
    assert_ne!(copy, shim);
    assert!(!copy.exists() && !copy.parent().unwrap().exists());
}

#[test]
fn status_finds_the_run_and_a_killed_one_leaves_nothing_for_the_next() {
    if !is_root() {
        return;
    }
    let (mut child, _out) = waiting(&[], ":");
    let pid = child.id().to_string();
    let json = hoist(&["status", "--json", &pid]).output().unwrap();
    let runs: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(runs[0]["pid"], child.id());
    assert_eq!(runs[0]["command"][0], "sh");
    let people = hoist(&["status", &pid]).output().unwrap();
    assert!(text(&people.stdout).starts_with(&format!("run {pid}: sh -c")));

    let socket = PathBuf::from(format!("/run/hoist/run-{pid}.sock"));
    assert!(socket.exists());
    signal(child.id(), nix::sys::signal::Signal::SIGKILL);
    assert_eq!(child.wait().unwrap().signal(), Some(9));
    assert_eq!(run(&["--", "true"]).status.code(), Some(0));
    assert!(!socket.exists());
    let gone = hoist(&["status", &pid]).output().unwrap();
    assert_eq!(gone.status.code(), Some(1));
    assert!(text(&gone.stderr).contains("no run has pid"));
}

#[test]
fn statistics_are_written_at_exit_where_they_are_asked_for() {
    let path = std::env::temp_dir().join(format!("hoist-stats-{}.json", std::process::id()));
    let out = run(&["--stats", "--json", path.to_str().unwrap(), "--", "true"]);
    let json: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    fs::remove_file(&path).unwrap();
    assert_eq!(json["leaked_frames"], 0);
    assert!(text(&out.stderr).contains("run "));
}

/// The program's cgroup v2, on its standard output.
const OWN_CGROUP: &str = "grep ^0:: /proc/self/cgroup | cut -d: -f3-";

/// Where cgroup v2 shows `path`.
fn cgroup(path: &str) -> PathBuf {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mount = mounts.lines().find(|line| line.contains(" - cgroup2 ")).unwrap();
    PathBuf::from(mount.split(' ').nth(4).unwrap()).join(path.trim().trim_start_matches('/'))
}

#[test]
fn the_program_and_what_it_starts_are_in_a_cgroup_of_the_run_that_goes_with_it() {
    if !is_root() {
        return;
    }
    let out = run(&["--", "sh", "-c", &format!("{OWN_CGROUP}; ({OWN_CGROUP})")]);
    let places: Vec<_> = text(&out.stdout).lines().map(str::to_owned).collect();
    assert!(places.len() == 2 && places[0] == places[1], "{places:?} {}", text(&out.stderr));
    assert!(places[0].contains("/hoist-"), "{places:?}");
    assert!(cgroup("").exists() && !cgroup(&places[0]).exists());
    let without = run(&["--tcp", "off", "--", "sh", "-c", OWN_CGROUP]);
    assert!(!text(&without.stdout).contains("hoist-"));
    let as_user = run(&["--user", "nobody", "--", "sh", "-c", OWN_CGROUP]);
    assert!(text(&as_user.stdout).contains("/hoist-"), "{}", text(&as_user.stderr));
}

#[test]
fn a_run_within_a_run_has_a_cgroup_below_it() {
    if !is_root() {
        return;
    }
    let out = hoist(&["run", "--", env!("CARGO_BIN_EXE_hoist"), "run", "--", "sh", "-c", OWN_CGROUP]);
    let out = { out }.output().unwrap();
    let place = text(&out.stdout);
    assert_eq!(place.matches("/hoist-").count(), 2, "{place} {}", text(&out.stderr));
    let outer = place.trim().rsplit_once('/').unwrap().0;
    assert!(!cgroup(outer).exists());
}

#[test]
fn the_cgroup_of_a_killed_run_is_removed_by_the_next_when_nobody_is_left_in_it() {
    if !is_root() {
        return;
    }
    let (mut child, mut out) = waiting(&[], &format!("echo ready; {OWN_CGROUP}"));
    // What the shell printed after "ready": its cgroup.
    let mut place = String::new();
    let directory = loop {
        place.clear();
        out.read_line(&mut place).unwrap();
        if place.contains("hoist-") {
            break cgroup(&place);
        }
    };
    let input = child.stdin.take(); // wait() would close it, and so end the program
    signal(child.id(), nix::sys::signal::Signal::SIGKILL);
    child.wait().unwrap();
    assert_eq!(run(&["--", "true"]).status.code(), Some(0));
    assert!(directory.exists(), "the program goes on");
    drop(input);
    out.read_to_string(&mut String::new()).unwrap();
    let empty =
        || fs::read_to_string(directory.join("cgroup.events")).is_ok_and(|e| e.contains("populated 0"));
    while !empty() {
        std::thread::yield_now();
    }
    assert_eq!(run(&["--", "true"]).status.code(), Some(0));
    assert!(!directory.exists());
}

/// In a mount namespace of its own; the test's mounts go on showing cgroups.
#[test]
fn a_run_whose_mounts_hide_the_cgroups_finds_them_all_the_same() {
    if !is_root() {
        return;
    }
    let script = "umount -l /sys && \"$@\"";
    let program = ["run", "--", "sh", "-c", OWN_CGROUP];
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-c", script, "sh", env!("CARGO_BIN_EXE_hoist")]).args(program);
    let out = command.env("HOIST_SHIM", some_library()).output().unwrap();
    assert!(text(&out.stdout).contains("/hoist-"), "{}", text(&out.stderr));
}

#[test]
fn a_device_that_does_not_exist_is_named_with_those_that_do() {
    let out = run(&["--dev", "no-such-device", "--", "true"]);
    assert_eq!(out.status.code(), Some(1));
    let error = text(&out.stderr);
    assert!(error.contains("no-such-device: no such device") && error.contains("lo"), "{error}");
}

#[test]
fn bad_ports_are_a_usage_error() {
    let out = run(&["--udp", "70000", "--", "true"]);
    assert_eq!(out.status.code(), Some(2));
    assert!(text(&out.stderr).contains("no port"));
}
