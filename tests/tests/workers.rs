//! Several processes of one run, each with rings of its own on the same queues.

use anyhow::{Context, Result, ensure};
use hoist_tests::{
    lab::{LIMIT, Lab, Mode, Running, kill, may_run},
    report::Report,
    stream,
};
use std::{collections::BTreeSet, fs, io::ErrorKind, net::UdpSocket, time::Duration};

const PORT: u16 = 7_000;
const WORKERS: usize = 4;
const FLOWS: usize = 48;

fn run(test: fn(&mut Lab) -> Result<()>) {
    if may_run() {
        Lab::up().and_then(|mut lab| test(&mut lab)).unwrap_or_else(|error| panic!("{error:#}"));
    }
}

/// Processes that are forked first and then bind a socket each, SO_REUSEPORT; the parent waits, and ends them.
const ECHO: &str = r#"
import os, signal, socket, sys

def work():
    own = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    own.bind((sys.argv[1], int(sys.argv[2])))
    while True:
        data, sender = own.recvfrom(65536)
        own.sendto(data, sender)

workers = []
for _ in range(int(sys.argv[3])):
    workers.append(os.fork())
    if workers[-1] == 0:
        work()

def end(*_):
    for worker in workers:
        os.kill(worker, signal.SIGKILL)
        os.waitpid(worker, 0)
    sys.exit()

signal.signal(signal.SIGTERM, end)
while True:
    signal.pause()
"#;

fn workers(lab: &Lab) -> Result<Running> {
    let (host, port, count) = (lab.testbed.host().v4().to_string(), PORT.to_string(), WORKERS.to_string());
    let argv = ["python3", "-c", ECHO, &host, &port, &count];
    let mut run = lab.program(Mode::Hoisted, &argv)?.start()?;
    run.until(LIMIT, "every worker has its socket lifted", |run| {
        Ok(status(run)?.lifted_on(PORT).len() == WORKERS)
    })?;
    Ok(run)
}

fn status(run: &Running) -> Result<Report> {
    Ok(run.status()?.unwrap_or_default())
}

/// Clients, each a flow.
fn flows(lab: &Lab) -> Result<Vec<UdpSocket>> {
    let (wire, to) = (lab.testbed.wire(), lab.host4(PORT));
    let flow = || {
        let socket = wire.enter(|| UdpSocket::bind((wire.v4(), 0)))??;
        socket.connect(to)?;
        Ok(socket)
    };
    (0..FLOWS).map(|_| flow()).collect()
}

/// Whether a datagram comes back in time.
fn answered(flow: &UdpSocket, number: u32, time: Duration) -> Result<bool> {
    flow.set_read_timeout(Some(time))?;
    flow.send(&number.to_be_bytes())?;
    let mut back = [0; 64];
    match flow.recv(&mut back) {
        Ok(len) => {
            ensure!(back[..len] == number.to_be_bytes(), "{:?} came back for {number}", &back[..len]);
            Ok(true)
        }
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn all_answered(flows: &[UdpSocket], rounds: u32) -> Result<()> {
    for number in 0..rounds {
        for flow in flows {
            ensure!(answered(flow, number, Duration::from_secs(5))?, "datagram {number} of {flow:?} is lost");
        }
    }
    Ok(())
}

/// No frame is missing although processes came and went.
fn end(mut run: Running) -> Result<()> {
    run.stop(libc::SIGTERM)?;
    let report = run.report()?;
    ensure!(report.leaked_frames == 0, run.fail("frames leaked"));
    Ok(())
}

#[test]
fn workers_that_share_a_port_are_all_busy_and_all_lifted() {
    run(|lab| {
        let run = workers(lab)?;
        all_answered(&flows(lab)?, 20)?;
        let report = status(&run)?;
        let lifted = report.lifted_on(PORT);
        let pids: BTreeSet<i32> = lifted.iter().map(|socket| socket.pid).collect();
        ensure!(pids.len() == WORKERS, run.fail(&format!("{pids:?}")));
        ensure!(lifted.iter().all(|s| s.lifted_packets >= 20), run.fail(&format!("one is idle: {lifted:?}")));
        let all: u64 = lifted.iter().map(|socket| socket.lifted_packets).sum();
        ensure!(all == 20 * FLOWS as u64, run.fail(&format!("{all} lifted")));
        end(run)
    });
}

#[test]
fn a_worker_that_is_killed_leaves_its_flows_and_frames_to_the_others() {
    run(|lab| {
        let mut run = workers(lab)?;
        let flows = flows(lab)?;
        all_answered(&flows, 2)?;
        for left in (1..WORKERS).rev() {
            let victim = status(&run)?.lifted_on(PORT)[0].pid;
            // In the middle of work: datagrams are in its ring and on its socket.
            kill(victim, libc::SIGSTOP);
            for flow in &flows {
                (0..40_u32).try_for_each(|_| flow.send(b"nobody asked").map(drop))?;
            }
            kill(victim, libc::SIGKILL);
            run.until(
                LIMIT,
                "the worker is forgotten",
                |run| Ok(status(run)?.lifted_on(PORT).len() == left),
            )?;
            flows.iter().try_for_each(drained)?;
            all_answered(&flows, 10)?;
        }
        end(run)
    });
}

/// Takes what comes until nothing does.
fn drained(flow: &UdpSocket) -> Result<()> {
    flow.set_read_timeout(Some(Duration::from_millis(50)))?;
    while flow.recv(&mut [0; 64]).is_ok() {}
    Ok(())
}

#[test]
fn a_worker_that_stops_reading_starves_nobody_else() {
    run(|lab| {
        let run = workers(lab)?;
        let flows = flows(lab)?;
        all_answered(&flows, 2)?;
        let victim = status(&run)?.lifted_on(PORT)[0].pid;
        kill(victim, libc::SIGSTOP);
        let mut silent = Vec::new();
        let mut others = Vec::new();
        for flow in flows {
            let list =
                if answered(&flow, 9, Duration::from_millis(300))? { &mut others } else { &mut silent };
            list.push(flow);
        }
        ensure!(!silent.is_empty() && others.len() > silent.len(), "{} silent", silent.len());
        // More than its ring holds, and than the queue has frames.
        for _ in 0..30_000 / silent.len() {
            silent.iter().try_for_each(|flow| flow.send(b"to one who does not read").map(drop))?;
        }
        all_answered(&others, 100)?;
        kill(victim, libc::SIGCONT);
        silent.iter().try_for_each(drained)?;
        all_answered(&silent, 3)?;
        end(run)
    });
}

#[test]
fn processes_with_ports_of_their_own_are_lifted_beside_each_other() {
    run(|lab| {
        let host = lab.testbed.host().v4().to_string();
        let both = format!("iperf3 -s -1 -B {host} -p 5201 & iperf3 -s -1 -B {host} -p 5202 & wait");
        let mut run = lab.program(Mode::Hoisted, &["sh", "-c", &both])?.start()?;
        run.until_listening(5201)?;
        run.until_listening(5202)?;
        let client = |port: &str| {
            let argv = ["iperf3", "-u", "-c", &host, "-p", port, "-b", "20M", "-l", "1000", "-t", "2"];
            lab.wire_program(&argv)?.start()
        };
        let mut clients = [client("5201")?, client("5202")?];
        clients.iter_mut().try_for_each(|client| client.succeed(LIMIT))?;
        run.succeed(LIMIT)?;
        let report = run.report()?;
        let lifted = |port: &str| {
            let closed = report.closed.iter().filter(|socket| socket.local.ends_with(port));
            closed.map(|socket| socket.lifted_packets).sum::<u64>()
        };
        ensure!(lifted(":5201") > 4_000 && lifted(":5202") > 4_000, run.fail("one was not lifted"));
        ensure!(report.leaked_frames == 0, run.fail("frames leaked"));
        Ok(())
    });
}

/// Processes that write what comes to a group; only the first joins it, and Linux gives both a copy (IP_MULTICAST_ALL).
const LISTEN: &str = r#"
import os, socket, sys

def say(line):  # in one write: print() makes several, and lines of two processes mix
    os.write(1, (line + "\n").encode())

for number in range(2):
    if os.fork() == 0:
        own = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        own.bind(("", int(sys.argv[2])))
        if number == 0:
            own.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, socket.inet_aton("239.1.2.3") + socket.inet_aton(sys.argv[1]))
        say("joined")
        while True:
            word = own.recv(64)
            say("got " + word.decode())
            if word == b"end":
                os._exit(0)
os.wait()
os.wait()
"#;

#[test]
fn each_of_several_processes_gets_its_copy_of_what_is_sent_to_a_group() {
    run(|lab| {
        let (host, port) = (lab.testbed.host().v4().to_string(), PORT.to_string());
        let mut run = lab.program(Mode::Hoisted, &["python3", "-c", LISTEN, &host, &port])?.start()?;
        run.until(LIMIT, "both have joined", |run| Ok(run.output().matches("joined").count() == 2))?;
        run.until(LIMIT, "both are lifted", |run| Ok(status(run)?.lifted_on(PORT).len() == 2))?;
        let wire = lab.testbed.wire();
        let sender = wire.enter(|| UdpSocket::bind((wire.v4(), 0)))??;
        for word in ["one", "two", "end"] {
            wire.enter(|| sender.send_to(word.as_bytes(), ("239.1.2.3", PORT)))??;
            run.until_output_count(&format!("got {word}"), 2)?;
        }
        run.succeed(LIMIT)
    });
}

/// Workers of one master that accept from one listening socket.
#[test]
fn connections_of_every_nginx_worker_are_lifted() {
    run(|lab| {
        lab.options = vec!["--tcp".into(), "lift".into()];
        let (dir, address) = (lab.path("").to_string_lossy().into_owned(), lab.testbed.host().v4());
        let conf = format!(
            "daemon off; user root; worker_processes {WORKERS}; pid {dir}nginx.pid; error_log stderr;\n\
             events {{ worker_connections 512; }}\n\
             http {{ access_log off; client_max_body_size 0; client_body_temp_path {dir}body;\n\
             proxy_temp_path {dir}p; fastcgi_temp_path {dir}f; uwsgi_temp_path {dir}u; scgi_temp_path {dir}s;\n\
             server {{ listen {address}:{PORT} reuseport; root {dir}www; dav_methods PUT; }} }}\n"
        );
        fs::create_dir_all(lab.path("www"))?;
        fs::write(lab.path("nginx.conf"), conf)?;
        let argv = ["nginx".into(), "-c".into(), lab.path("nginx.conf").to_string_lossy().into_owned()];
        let mut nginx = lab.program(Mode::Hoisted, &argv)?.start()?;
        nginx.until_listening(PORT)?;
        let bodies: Vec<_> = (0..12_u64).map(|i| (lab.path(&format!("body-{i}")), i)).collect();
        for (path, i) in &bodies {
            fs::write(path, stream::bytes(*i, 0, 2_000_000))?;
        }
        let upload = |(path, i): &(std::path::PathBuf, u64)| {
            let url = format!("http://{}/file-{i}", lab.host4(PORT));
            let program = lab.wire_program(&["curl", "-sSf", "-T", &path.to_string_lossy(), &url])?;
            program.start()
        };
        let mut uploads = bodies.iter().map(upload).collect::<Result<Vec<_>>>()?;
        uploads.iter_mut().try_for_each(|upload| upload.succeed(LIMIT))?;
        for (path, i) in &bodies {
            let got = fs::read(lab.path(&format!("www/file-{i}"))).context("what nginx stored")?;
            ensure!(got == fs::read(path)?, nginx.fail(&format!("file {i} differs")));
        }
        let holders = status(&nginx)?.processes.iter().filter(|process| process.holds_rings).count();
        ensure!(holders > 1, nginx.fail(&format!("{holders} workers have rings")));
        nginx.stop(libc::SIGQUIT)?;
        let report = nginx.report()?;
        ensure!(report.leaked_frames == 0, nginx.fail("frames leaked"));
        ensure!(report.stream_bytes().0 > 2_000_000, nginx.fail("next to nothing was lifted"));
        Ok(())
    });
}
