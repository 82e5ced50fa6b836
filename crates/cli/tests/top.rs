//! `hoist top` from outside, on this machine's own traffic.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use serde_json::Value;
use std::process::{Command, Output};

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
