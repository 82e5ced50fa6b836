//! `hoist wire` as a command: statuses, and what it says when it is cut short. On testbeds of its own.

#![allow(clippy::unwrap_used, reason = "a test ends where it fails")]

mod rig;

use hoist_wire::Testbed;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use rig::testbed;
use std::{
    io::Read,
    net::TcpListener,
    process::{Child, Command, Output, Stdio},
    thread,
};

fn wire(testbed: &Testbed, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hoist"));
    command.arg("wire").args(arguments).args(["--testbed", testbed.name(), "--json"]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn interrupt(child: Child) -> Output {
    kill(Pid::from_raw(child.id() as i32), Signal::SIGINT).unwrap();
    child.wait_with_output().unwrap()
}

fn json(output: &Output) -> serde_json::Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

#[test]
fn an_interrupted_run_tells_what_it_has_sent() {
    let Some(testbed) = testbed() else { return };
    let host = testbed.host();
    let socket = host.enter(|| std::net::UdpSocket::bind((host.v4(), 9000))).unwrap().unwrap();
    let child = wire(&testbed, &["--seconds", "60", "--rate", "10k"]).spawn().unwrap();
    for _ in 0..10 {
        socket.recv(&mut [0; 64]).unwrap();
    }
    let output = interrupt(child);
    assert_eq!(output.status.code(), Some(130), "{output:?}");
    assert!(json(&output)["packets"].as_u64().unwrap() >= 10);
}

#[test]
fn an_interrupted_tcp_wire_ends_its_connections_in_order() {
    let Some(testbed) = testbed() else { return };
    let host = testbed.host();
    let listener = host.enter(|| TcpListener::bind((host.v4(), 9000))).unwrap().unwrap();
    let child = wire(&testbed, &["tcp", "--seconds", "60", "--gbit", "0.1"]).spawn().unwrap();
    let (mut stream, _) = listener.accept().unwrap();
    stream.read_exact(&mut [0; 10_000]).unwrap();
    let rest = thread::spawn(move || stream.read_to_end(&mut Vec::new()));
    let output = interrupt(child);
    let rest = rest.join().unwrap().unwrap();
    assert_eq!(output.status.code(), Some(130), "{output:?}");
    assert_eq!(json(&output)["acked_bytes"], 10_000 + rest as u64);
}

#[test]
fn what_cannot_be_asked_for_is_a_usage_error() {
    let Some(testbed) = testbed() else { return };
    for (arguments, why) in [
        (&["--count", "0"][..], "nothing to send"),
        (&["--vlan", "0"], "1..=4094"),
        (&["--vlan", "100"], "hoist testbed up"),
        (&["--flows", "16777217"], "16777216 flows"),
        (&["--short-share", "0.1"], "--pattern"),
        (&["--short-share", "0.1", "--pattern", "incast"], "mixed only"),
        (&["--size", "4000"], "64 to 1514"),
    ] {
        let output = wire(&testbed, arguments).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!((output.status.code(), said.contains(why)), (Some(2), true), "{arguments:?}: {said}");
    }
}
