//! `hoist top` from outside, on this machine's own traffic.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod rig;

use serde_json::Value;
use std::process::{Command, Output, Stdio};

fn top(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_hoist")).arg("top").args(arguments).output().unwrap()
}

#[test]
fn json_is_one_object_a_line_for_each_interval() {
    let output = top(&["--json", "--count", "2", "--interval-ms", "20"]);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let reports: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(reports.len(), 2);
    assert!(reports.iter().all(|report| !report["cpus"].as_array().unwrap().is_empty()));
}

#[test]
fn into_a_pipe_goes_plain_text() {
    let output = top(&["--count", "2", "--interval-ms", "20"]);
    assert_eq!(output.status.code(), Some(0));
    assert!(!output.stdout.contains(&0x1b));
}

#[test]
fn an_interval_of_nothing_is_a_usage_error() {
    assert_eq!(top(&["--interval-ms", "0"]).status.code(), Some(2));
    assert_eq!(top(&["--once", "--count", "2"]).status.code(), Some(2));
}

#[test]
fn polls_of_napi_and_what_they_bring_are_counted() {
    let Some(testbed) = rig::testbed() else { return };
    let wire = ["wire", "--testbed", testbed.name(), "--rate", "50k", "--seconds", "2", "--json"];
    let wire = Command::new(env!("CARGO_BIN_EXE_hoist")).args(wire).stdout(Stdio::null()).spawn();
    let output = top(&["--json", "--count", "1", "--interval-ms", "1500"]);
    assert!(wire.unwrap().wait().unwrap().success());
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let napi: Vec<&Value> = report["cpus"].as_array().unwrap().iter().map(|cpu| &cpu["napi"]).collect();
    let packets: f64 =
        napi.iter().map(|n| n["polls"].as_f64().unwrap() * n["work_per_poll"].as_f64().unwrap()).sum();
    assert!(packets > 10_000.0, "50,000 a second were sent: {report}");
}

#[test]
fn who_may_not_count_polls_sees_the_rest_and_is_told() {
    use std::os::unix::process::CommandExt;
    if !nix::unistd::geteuid().is_root() {
        return eprintln!("skipped: becomes another user, which needs root");
    }
    let copy = std::env::temp_dir().join(format!("hoist-top-{}", std::process::id()));
    std::fs::copy(env!("CARGO_BIN_EXE_hoist"), &copy).unwrap();
    let output = Command::new(&copy).args(["top", "--json", "--once"]).uid(65534).gid(65534).output();
    std::fs::remove_file(&copy).unwrap();
    let output = output.unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(report["cpus"][0]["napi"].is_null() && report["cpus"][0]["processed"].is_u64(), "{report}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("CAP_BPF"), "{output:?}");
}
