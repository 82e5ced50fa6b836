//! `hoist flame` as a command: on traffic of its own, on files, without privileges.

#![allow(clippy::unwrap_used, reason = "a test ends where it fails")]

mod rig;

use hoist_wire::{End, Testbed};
use rig::testbed;
use serde_json::Value;
use std::{
    fs,
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{Command, Output, Stdio},
    thread,
    time::Duration,
};

const HOIST: &str = env!("CARGO_BIN_EXE_hoist");

/// A directory of the test's own.
struct Dir(PathBuf);

impl Dir {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("hoist-flame-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn file(&self, name: &str, text: &[u8]) -> String {
        let path = self.0.join(name);
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().into()
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.0.join(name)).unwrap()
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn flame(dir: &Dir, arguments: &[&str]) -> Output {
    Command::new(HOIST).arg("flame").args(arguments).current_dir(&dir.0).output().unwrap()
}

fn flame_in(end: &End, dir: &Dir, arguments: &[&str]) -> Command {
    let mut command = end.command(HOIST);
    command.arg("flame").args(arguments).current_dir(&dir.0).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn load(testbed: &Testbed) -> std::process::Child {
    let arguments = ["wire", "--testbed", testbed.name(), "--rate", "100k", "--seconds", "3", "--json"];
    Command::new(HOIST).args(arguments).stdout(Stdio::null()).spawn().unwrap()
}

fn samples_of(report: &Value, stage: &str) -> u64 {
    let stages = report["stages"].as_array().unwrap();
    stages.iter().find(|s| s["stage"] == stage).map_or(0, |s| s["samples"].as_u64().unwrap())
}

#[test]
fn the_stages_of_received_datagrams_are_found() {
    let (Some(testbed), dir) = (testbed(), Dir::new("stages")) else { return };
    let sink = PathBuf::from(HOIST).with_file_name("hoist-sink");
    let arguments =
        ["--json", "--folded", "saved", "--", sink.to_str().unwrap(), "0.0.0.0:9000", "--idle-ms", "2000"];
    let sampled = flame_in(testbed.host(), &dir, &arguments).spawn().unwrap();
    thread::sleep(Duration::from_millis(500));
    assert!(load(&testbed).wait().unwrap().success());
    let output = sampled.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let report: Value =
        serde_json::from_str(text.lines().find(|line| line.contains("\"stages\"")).unwrap()).unwrap();
    for stage in ["driver", "ip", "transport", "socket", "copy"] {
        assert!(samples_of(&report, stage) > 0, "no {stage}: {report}");
    }
    assert!(report["packets"].as_u64().unwrap() > 100_000, "{report}");
    let sum: f64 = report["stages"].as_array().unwrap().iter().map(|s| s["share"].as_f64().unwrap()).sum();
    assert!((sum - 1.0).abs() < 1e-6, "{report}");
    let drawn = dir.read("flame.svg");
    assert!(drawn.contains("udp_recvmsg_[k]") && drawn.ends_with("</svg>\n"));
    // What was saved is the same again.
    let again = flame(&dir, &["--json", "--from", "saved", "--out", "again.svg"]);
    let again: Value = serde_json::from_slice(&again.stdout).unwrap();
    assert_eq!(again["samples"], report["samples"]);
    assert_eq!(samples_of(&again, "ip"), samples_of(&report, "ip"));
}

#[test]
fn a_process_is_sampled_alone_and_a_signal_ends_it_with_a_result() {
    let dir = Dir::new("process");
    if !nix::unistd::geteuid().is_root() {
        return eprintln!("skipped: needs root");
    }
    let mut busy = Command::new("sh").args(["-c", "while :; do :; done"]).spawn().unwrap();
    let pid = busy.id().to_string();
    let mut sampled = Command::new(HOIST);
    sampled.args(["flame", "--json", "--pid", &pid]).current_dir(&dir.0).stdout(Stdio::piped());
    let sampled = sampled.spawn().unwrap();
    thread::sleep(Duration::from_secs(2));
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(sampled.id() as i32), nix::sys::signal::Signal::SIGINT)
        .unwrap();
    let output = sampled.wait_with_output().unwrap();
    busy.kill().unwrap();
    busy.wait().unwrap();
    assert!(output.status.success(), "{output:?}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let (all, program) = (report["samples"].as_u64().unwrap(), samples_of(&report, "program"));
    assert!(all > 50 && program * 2 > all, "a loop in a shell: {report}");
}

#[test]
fn who_may_not_sees_his_own_code_and_is_told_what_is_missing() {
    if !nix::unistd::geteuid().is_root() {
        return eprintln!("skipped: becomes another user, which needs root");
    }
    if fs::read_to_string("/proc/sys/kernel/perf_event_paranoid").unwrap().trim().parse::<i32>().unwrap() < 1
    {
        return eprintln!("skipped: everybody may sample the kernel here");
    }
    let dir = Dir::new("nobody");
    let program = dir.file("hoist", &fs::read(HOIST).unwrap());
    fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    std::os::unix::fs::chown(&dir.0, Some(65534), Some(65534)).unwrap();
    let nobody = |arguments: &[&str]| {
        let mut command = Command::new(&program);
        command.arg("flame").args(arguments).current_dir(&dir.0).uid(65534).gid(65534).output().unwrap()
    };
    let refused = nobody(&["--all", "--seconds", "1"]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1), "{said}");
    assert!(said.contains("perf_event_paranoid") && said.contains("cap_perfmon"), "{said}");
    let own = nobody(&["--", "sh", "-c", "i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done"]);
    let text = String::from_utf8_lossy(&own.stdout).into_owned();
    assert!(own.status.success(), "{own:?}");
    assert!(text.contains("not shown: the kernel") && text.contains("program "), "{text}");
}

#[test]
fn files_that_are_no_folded_stacks_are_told() {
    let dir = Dir::new("files");
    let (good, bad) = (dir.file("good", b"a;f 3\na;g 1\n"), dir.file("bad", b"a;f 3\nnonsense"));
    let (cut, binary) = (dir.file("cut", b"a;f 3\na;g"), dir.file("binary", &[0xff, 0xfe, 0, 1]));
    let refused = |arguments: &[&str], words: &str| {
        let output = flame(&dir, arguments);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(words), "{said}");
    };
    refused(&["--from", &bad], "line 2");
    refused(&["--from", &cut], "line 2");
    refused(&["--from", &binary], "no text");
    refused(&["--from", "absent"], "absent");
    refused(&["--diff", &good, &bad], "line 2");
    refused(&["--from", &good, "--out", "no/such/dir.svg"], "no/such/dir.svg");
    let output = flame(&dir, &["--diff", &good, &dir.file("other", b"a;f 1\na;g 3\n"), "--json"]);
    let changes: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(changes["stages"][0]["stage"], "program");
    assert!(dir.read("flame.svg").contains("before"));
}

#[test]
fn what_cannot_be_asked_for_is_a_usage_error() {
    let dir = Dir::new("usage");
    for bad in [
        &[][..],
        &["--all", "--pid", "1"],
        &["--pid", "0"],
        &["--all", "--hz", "0"],
        &["--diff", "one"],
        &["--all", "--", "true"],
    ] {
        assert_eq!(flame(&dir, bad).status.code(), Some(2), "{bad:?}");
    }
    let missing = flame(&dir, &["--", "/no/such/program"]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&missing.stderr).contains("/no/such/program"));
}

#[test]
fn the_status_of_the_command_is_passed_on() {
    if !nix::unistd::geteuid().is_root() {
        return eprintln!("skipped: needs root");
    }
    let dir = Dir::new("status");
    let output =
        flame(&dir, &["--", "sh", "-c", "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done; exit 7"]);
    assert_eq!(output.status.code(), Some(7), "{output:?}");
}
