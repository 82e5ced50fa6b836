//! Programs that know nothing of Hoist, natively and under `hoist run`.

use anyhow::{Context, Result, ensure};
use hoist_tests::{
    lab::{LIMIT, Lab, Mode, Running, bin, may_run},
    peer::{Answer, Order, Payloads, Peer, Shot},
};
use serde_json::Value;
use std::{fs, path::PathBuf, process::Command};

macro_rules! programs {
    ($($name:ident,)*) => {
        mod native {
            $(#[test] fn $name() { crate::run(crate::Mode::Native, crate::$name); })*
        }
        mod hoisted {
            $(#[test] fn $name() { crate::run(crate::Mode::Hoisted, crate::$name); })*
        }
    };
}
programs! {
    std_net_echo,
    tokio_echo,
    python_asyncio_echo,
    socat_receives,
    socat_forks_for_each_sender,
    iperf3_server,
    iperf3_client,
    a_dns_server_answers_everything,
    fortify_aliases,
    line_count,
}

fn run(mode: Mode, program: fn(&Lab, Mode) -> Result<()>) {
    if may_run() {
        Lab::up().and_then(|lab| program(&lab, mode)).unwrap_or_else(|error| panic!("{error:#}"));
    }
}

const PORT: u16 = 7_000;

fn std_net_echo(lab: &Lab, mode: Mode) -> Result<()> {
    echoes(lab, mode, &[text(bin("echo-std")?), lab.host4(PORT).to_string()])
}

fn tokio_echo(lab: &Lab, mode: Mode) -> Result<()> {
    echoes(lab, mode, &[text(bin("echo-tokio")?), lab.host4(PORT).to_string()])
}

const ASYNCIO: &str = r#"
import asyncio, sys

class Echo(asyncio.DatagramProtocol):
    def connection_made(self, transport):
        self.transport = transport
    def datagram_received(self, data, sender):
        self.transport.sendto(data, sender)

async def main():
    loop = asyncio.get_running_loop()
    await loop.create_datagram_endpoint(Echo, local_addr=(sys.argv[1], int(sys.argv[2])))
    await asyncio.Event().wait()

asyncio.run(main())
"#;

fn python_asyncio_echo(lab: &Lab, mode: Mode) -> Result<()> {
    let address = lab.testbed.host().v4().to_string();
    echoes(lab, mode, &["/usr/bin/python3".into(), "-c".into(), ASYNCIO.into(), address, PORT.to_string()])
}

fn text(path: PathBuf) -> String {
    path.to_string_lossy().into_owned()
}

/// Starts an echo server on `PORT`, sends it 2,000 datagrams and wants them back.
fn echoes(lab: &Lab, mode: Mode, argv: &[String]) -> Result<()> {
    let mut server = lab.program(mode, argv)?.start()?;
    server.until_ready(PORT)?;
    lab.exchange(lab.host4(PORT), 2_000);
    server.stop(libc::SIGTERM)?;
    lifted(&server, mode, 2_000, 99)
}

/// Of at least `least` datagrams read, at least so many in a hundred were lifted.
fn lifted(program: &Running, mode: Mode, least: u64, per_cent: u64) -> Result<()> {
    if mode == Mode::Native {
        return Ok(());
    }
    let report = program.report()?;
    let (lifted, passed) = report.packets();
    ensure!(report.leaked_frames == 0, program.fail("frames leaked"));
    ensure!(lifted + passed >= least, program.fail(&format!("fewer than {least} counted")));
    ensure!(lifted * 100 >= (lifted + passed) * per_cent, program.fail("too few lifted"));
    Ok(())
}

fn shot(lab: &Lab, payloads: Payloads) -> Shot {
    let from = (lab.testbed.wire().v4(), 30_000).into();
    Shot { from, to: lab.host4(PORT), payloads, ttl: None, tos: None, gap_us: 0, asleep: None, segment: None }
}

fn socat_receives(lab: &Lab, mode: Mode) -> Result<()> {
    let address = format!("UDP-RECV:{PORT},bind={}", lab.testbed.host().v4());
    let mut socat = lab.program(mode, &["socat", "-u", &address, "STDOUT"])?.start()?;
    socat.until_ready(PORT)?;
    let lines: Vec<_> = (0..100).map(|i| format!("line {i:03}\n")).collect();
    let list = lines.iter().map(|line| line.clone().into_bytes()).collect();
    Peer::at(&lab.path("peer")).order(&Order::Send(shot(lab, Payloads::List(list))));
    socat.until_output(lines.last().expect("a hundred lines"), LIMIT)?;
    ensure!(socat.output().contains(&lines.concat()), socat.fail("lines are missing or out of order"));
    socat.stop(libc::SIGTERM)?;
    lifted(&socat, mode, 100, 99)
}

/// Each sender gets a child with a connected socket of its own, which goes on through the kernel.
fn socat_forks_for_each_sender(lab: &Lab, mode: Mode) -> Result<()> {
    let address = format!("UDP-LISTEN:{PORT},bind={},reuseaddr,fork", lab.testbed.host().v4());
    let mut socat = lab.program(mode, &["socat", &address, "PIPE"])?.start()?;
    let mut peer = Peer::at(&lab.path("peer"));
    for port in 30_000..30_003 {
        socat.until_bound(PORT)?;
        let from = (lab.testbed.wire().v4(), port).into();
        for i in 0..20 {
            let payload = format!("{port} {i}").into_bytes();
            peer.order(&Order::Send(Shot { from, ..shot(lab, Payloads::List(vec![payload.clone()])) }));
            match peer.order(&Order::Receive { at: from, count: 1 }) {
                Answer::Received(list) => ensure!(list[0].0 == payload, "{list:?} is not {payload:?}"),
                answer => panic!("{answer:?}"),
            }
        }
    }
    socat.stop(libc::SIGTERM)?;
    if mode == Mode::Hoisted {
        ensure!(socat.report()?.leaked_frames == 0, socat.fail("frames leaked"));
    }
    Ok(())
}

const IPERF: u16 = 5_201;
/// 1,000 datagrams a second: a queue of SO_RCVBUF's default bridges a tenth of a second without the processor.
const LOAD: [&str; 7] = ["-u", "-b", "8M", "-l", "1000", "-t", "3"];

fn iperf3_server(lab: &Lab, mode: Mode) -> Result<()> {
    let host = lab.testbed.host().v4().to_string();
    let mut server = lab.program(mode, &["iperf3", "-s", "-1", "-B", &host])?.start()?;
    server.until_listening(IPERF)?;
    let mut client =
        lab.wire_program(&[&["iperf3", "-J", "-c", host.as_str()][..], &LOAD].concat())?.start()?;
    client.succeed(LIMIT)?;
    server.succeed(LIMIT)?;
    received_everything(&client)?;
    lifted(&server, mode, 2_900, 99)
}

/// The client's socket is bound by the kernel: it is lifted once it is known to be busy.
fn iperf3_client(lab: &Lab, mode: Mode) -> Result<()> {
    let wire = lab.testbed.wire().v4().to_string();
    let mut server = lab.wire_program(&["iperf3", "-s", "-1", "-B", wire.as_str()])?.start()?;
    server.until_listening(IPERF)?;
    let argv = [&["iperf3", "-J", "-R", "-c", wire.as_str()][..], &LOAD].concat();
    let mut client = lab.program(mode, &argv)?.start()?;
    client.succeed(LIMIT)?;
    received_everything(&client)?;
    lifted(&client, mode, 2_900, 90)
}

/// iperf3's own verdict. A busy machine may lose a few, natively too; something that does not work loses most.
fn received_everything(client: &Running) -> Result<()> {
    let output = client.output();
    let json = &output[output.find('{').context("iperf3 prints JSON")?..];
    let end: Value = serde_json::Deserializer::from_str(json).into_iter().next().context("JSON")??;
    let sum = &end["end"]["sum"];
    let (packets, lost) =
        (sum["packets"].as_u64().unwrap_or(0), sum["lost_packets"].as_u64().unwrap_or(u64::MAX));
    ensure!(packets > 2_900 && lost <= packets / 50, client.fail(&format!("{lost} of {packets} lost")));
    Ok(())
}

const DNS: u16 = 5_300;
const QUERIES: usize = 50_000;

fn a_dns_server_answers_everything(lab: &Lab, mode: Mode) -> Result<()> {
    write_dns_files(lab)?;
    let mut server = lab.program(mode, &["knotd", "-c", &text(lab.path("knot.conf"))])?.start()?;
    server.until_output("server started", LIMIT)?;
    server.until_output("loaded, serial", LIMIT)?;
    let (host, port) = (lab.testbed.host().v4().to_string(), DNS.to_string());
    let queries = text(lab.path("queries"));
    let argv = ["dnsperf", "-s", &host, "-p", &port, "-d", &queries, "-n", "1", "-c", "8", "-q", "100"];
    let mut client = lab.wire_program(&argv)?.start()?;
    client.succeed(LIMIT)?;
    let output = client.output();
    let answered = output.contains(&format!("Queries completed:    {QUERIES} (100.00%)"));
    ensure!(answered && output.contains("NOERROR"), client.fail("not every query was answered"));
    server.stop(libc::SIGTERM)?;
    lifted(&server, mode, QUERIES as u64, 99)
}

fn write_dns_files(lab: &Lab) -> Result<()> {
    let dir = text(lab.path(""));
    let address = lab.testbed.host().v4();
    let conf = format!(
        "server:\n  rundir: {dir}\n  listen: {address}@{DNS}\n  udp-workers: 2\n  tcp-workers: 1\n  \
         background-workers: 1\n  pidfile: {dir}knot.pid\ncontrol:\n  listen: {dir}knot.sock\n\
         database:\n  storage: {dir}db\nlog:\n  - target: stderr\n    any: info\n\
         zone:\n  - domain: example.test\n    file: {dir}zone\n"
    );
    let names = (0..100).map(|i| format!("host{i} A 192.0.2.{i}\n")).collect::<String>();
    let zone = format!(
        "$ORIGIN example.test.\n$TTL 300\n@ SOA ns.example.test. admin.example.test. 1 300 300 300 300\n\
         @ NS ns\nns A {address}\n{names}"
    );
    let queries = (0..QUERIES).map(|i| format!("host{}.example.test A\n", i % 100)).collect::<String>();
    for (name, content) in [("knot.conf", conf), ("zone", zone), ("queries", queries)] {
        fs::write(lab.path(name), content).with_context(|| format!("write {name}"))?;
    }
    Ok(())
}

/// Compiled here, because what calls the aliases is what the compiler makes of ordinary calls.
fn fortify_aliases(lab: &Lab, mode: Mode) -> Result<()> {
    let (source, program) = (lab.path("fortify.c"), lab.path("fortify"));
    fs::write(&source, include_str!("../src/fortify.c"))?;
    let mut cc = Command::new("cc");
    cc.args(["-O2", "-D_FORTIFY_SOURCE=2", "-D_GNU_SOURCE", "-o"]).args([&program, &source]);
    ensure!(cc.status().context("start cc (Debian: gcc, libc6-dev)")?.success(), "{cc:?} failed");
    let symbols = fs::read(&program)?;
    for alias in ["__recv_chk", "__recvfrom_chk", "__read_chk", "__poll_chk", "__ppoll_chk"] {
        let found = symbols.windows(alias.len()).any(|bytes| bytes == alias.as_bytes());
        ensure!(found, "the compiler did not use {alias}");
    }
    let order = Order::Send(shot(lab, Payloads::List(vec![b"fortified".to_vec(); 5])));
    let address = lab.testbed.host().v4().to_string();
    let argv = [text(program), address, PORT.to_string(), serde_json::to_string(&order)?];
    let mut running = lab.program(mode, &argv)?.start()?;
    running.succeed(LIMIT)?;
    lifted(&running, mode, 5, 100)
}

/// The example of the native API: lines and bytes of each connection, whichever way they come.
fn line_count(lab: &Lab, mode: Mode) -> Result<()> {
    let argv = [text(bin("examples/line_count")?), lab.host4(PORT).to_string()];
    let mut server = lab.program(mode, &argv)?.start()?;
    server.until_listening(PORT)?;
    let long = (0..200_000).map(|i| format!("line {i}\n")).collect::<String>();
    for (name, content, lines) in [("long", &*long, 200_000), ("unfinished", "one\ntwo", 2), ("empty", "", 0)]
    {
        fs::write(lab.path(name), content)?;
        let to = format!("TCP:{}", lab.host4(PORT));
        let mut client = lab.wire_program(&["socat", "-u", &text(lab.path(name)), &to])?.start()?;
        client.succeed(LIMIT)?;
        server.until_output(&format!(": {lines} lines, {} bytes in ", content.len()), LIMIT)?;
    }
    server.stop(libc::SIGTERM)?;
    Ok(())
}
