//! The TCP wire against an ordinary receiver. Needs root; says so and skips without.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use hoist_wire::{TcpLimit, TcpRunning, TcpSent, TcpSpec, TcpWire, Testbed};
use std::{
    io::{BufRead, BufReader},
    net::{IpAddr, SocketAddr},
    process::{Child, ChildStdout, Stdio},
    time::Duration,
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
    eprintln!("{sent:?} {:.1} Gbit/s", sent.gbit_per_second());
    let report = sink.report();
    eprintln!("{report}");
    assert_whole(&report, &sent, 1);
    assert!(sent.acked_bytes >= 1 << 30, "{sent:?}");
    assert_eq!(report["out_of_order"], 0, "{report}");
}
