//! Round trips: every server answers every request with its own bytes. Needs root; says so and skips without.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use hoist_wire::{Testbed, in_own_session};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{
    io::{BufRead, BufReader},
    process::{Child, Stdio},
};

const RR: &str = env!("CARGO_BIN_EXE_hoist-rr");
const RAW_ECHO: &str = env!("CARGO_BIN_EXE_hoist-raw-echo");

struct Server(Child);

impl Server {
    fn start(testbed: &Testbed, program: &str, words: &str) -> Self {
        let mut command = testbed.host().command(program);
        command.args(words.split(' ')).stdout(Stdio::piped());
        let mut child = in_own_session(command, None, hoist_wire::Precedence::AsIs).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n", "{program} {words}");
        Self(child)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.0.id() as i32), Signal::SIGTERM);
        let _ = self.0.wait();
    }
}

fn asks_and_is_answered(testbed: &Testbed, words: &str) {
    let mut ping = testbed.wire().command(RR);
    let output = ping.args(format!("ping {words} --seconds 0.2").split(' ')).output().unwrap();
    assert!(output.status.success(), "{words}: {}", String::from_utf8_lossy(&output.stderr));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(report["transactions"].as_u64().unwrap() > 0, "{words}: {report}");
    assert_eq!(report["wrong"], 0, "{words}: {report}");
    let times: Vec<_> = ["min", "p50", "p90", "p99", "p999", "max"]
        .map(|name| report["rtt_ns"][name].as_u64().unwrap())
        .into();
    assert!(times[0] > 0 && times.is_sorted(), "{words}: {report}");
}

fn root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("skipped: round trips need root");
    }
    root
}

#[test]
fn echo_servers_answer_over_udp_and_tcp_however_they_wait() {
    if !root() {
        return;
    }
    let testbed = Testbed::builder().up().unwrap();
    for (address, transport) in [
        ("10.77.0.2:7000", ""),
        ("10.77.0.2:7000", " --tcp"),
        ("[fd77::2]:7000", ""),
        ("[fd77::2]:7000", " --tcp"),
    ] {
        for waiting in ["", " --spin", " --busy-poll 50"] {
            let _server = Server::start(&testbed, RR, &format!("serve {address}{transport}{waiting}"));
            asks_and_is_answered(&testbed, &format!("{address}{transport}"));
            asks_and_is_answered(&testbed, &format!("{address}{transport} --size 1200 --clients 5"));
        }
    }
}

#[test]
fn a_raw_echo_answers_whether_it_sleeps_or_runs_napi() {
    if !root() {
        return;
    }
    for waiting in ["", " --spin"] {
        let testbed = Testbed::builder().up().unwrap();
        let _server = Server::start(&testbed, RAW_ECHO, &format!("vb 10.77.0.2:7000{waiting}"));
        asks_and_is_answered(&testbed, "10.77.0.2:7000");
        asks_and_is_answered(&testbed, "10.77.0.2:7000 --size 1200 --clients 5");
    }
}

#[test]
fn a_server_that_nobody_started_answers_nothing() {
    if !root() {
        return;
    }
    let testbed = Testbed::builder().up().unwrap();
    let mut ping = testbed.wire().command(RR);
    let output = ping.args(["ping", "10.77.0.2:7000", "--tcp", "--seconds", "0.1"]).output().unwrap();
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("connect 10.77.0.2:7000"));
}
