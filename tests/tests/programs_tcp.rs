//! Programs that know nothing of Hoist and speak TCP, natively and under `hoist run --tcp lift`: what they were sent is
//! compared byte by byte.

use anyhow::{Context, Result, ensure};
use hoist_tests::{
    lab::{LIMIT, Lab, Mode, Program, Running, may_run},
    stream,
};
use serde_json::Value;
use std::{
    fs::{self, File},
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::Command,
};

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
    iperf3_receives,
    iperf3_receives_eight_streams,
    iperf3_sends,
    iperf3_both_ways,
    iperf3_as_a_client,
    nginx_takes_uploads_and_serves_them,
    nginx_under_load,
    redis_keeps_what_it_is_given,
    socat_receives_a_file,
    socat_echoes,
    a_python_server_takes_uploads,
    curl_downloads,
    rsync_copies_a_directory,
    scp_copies_a_directory,
}

fn run(mode: Mode, program: fn(&Lab, Mode) -> Result<()>) {
    if may_run() {
        let run = || {
            Lab::up().and_then(|mut lab| {
                lab.options = vec!["--tcp".into(), "lift".into()];
                program(&lab, mode)
            })
        };
        let ran = match run() {
            // natively it is not Hoist that is judged, and a busy machine may be too slow once
            Err(_) if mode == Mode::Native => run(),
            ran => ran,
        };
        ran.unwrap_or_else(|error| panic!("{error:#}"));
    }
}

const PORT: u16 = 7_000;
const FILE: usize = 12_000_000;

/// At least so many bytes were lifted, and no frame is missing. A program that a busy machine keeps from reading is parked, and what
/// comes meanwhile passes: so much is little.
fn lifted(program: &Running, mode: Mode, least: u64) -> Result<()> {
    if mode == Mode::Native {
        return Ok(());
    }
    let report = program.report()?;
    ensure!(report.leaked_frames == 0, program.fail("frames leaked"));
    ensure!(report.stream_bytes().0 >= least, program.fail(&format!("fewer than {least} bytes were lifted")));
    Ok(())
}

fn text(path: PathBuf) -> String {
    path.to_string_lossy().into_owned()
}

/// A file with bytes of its own.
fn file(lab: &Lab, name: &str, seed: u64, len: usize) -> Result<PathBuf> {
    let path = lab.path(name);
    fs::write(&path, stream::bytes(seed, 0, len)).with_context(|| format!("write {}", path.display()))?;
    Ok(path)
}

fn same(a: &Path, b: &Path) -> Result<()> {
    let [left, right] = [a, b].map(|path| fs::read(path).with_context(|| format!("read {}", path.display())));
    let (left, right) = (left?, right?);
    let differ = left.iter().zip(&right).position(|(a, b)| a != b);
    ensure!(differ.is_none(), "{} and {} differ at byte {differ:?}", a.display(), b.display());
    ensure!(left.len() == right.len(), "{} has {} bytes instead of {}", b.display(), right.len(), left.len());
    Ok(())
}

/// Runs a program of the other side to its end.
fn ask<S: AsRef<std::ffi::OsStr>>(lab: &Lab, argv: &[S]) -> Result<Running> {
    finish(lab.wire_program(argv)?)
}

fn finish(program: Program) -> Result<Running> {
    let mut running = program.start()?;
    running.succeed(LIMIT)?;
    Ok(running)
}

const IPERF: u16 = 5_201;

/// A server for one test, and the client's view of it.
fn iperf3(lab: &Lab, mode: Mode, options: &[&str]) -> Result<(Running, Value)> {
    let host = lab.testbed.host().v4().to_string();
    let mut server = lab.program(mode, &["iperf3", "-s", "-1", "-B", &host])?.start()?;
    server.until_listening(IPERF)?;
    let client = ask(lab, &[&["iperf3", "-J", "-n", "60M", "-c", host.as_str()][..], options].concat())?;
    server.succeed(LIMIT)?;
    let seen = json(&client)?;
    Ok((server, seen))
}

fn json(client: &Running) -> Result<Value> {
    let output = client.output();
    let json = &output[output.find('{').context("iperf3 prints JSON")?..];
    Ok(serde_json::Deserializer::from_str(json).into_iter().next().context("JSON")??)
}

fn received(seen: &Value) -> u64 {
    seen["end"]["sum_received"]["bytes"].as_u64().unwrap_or(0)
}

fn iperf3_receives(lab: &Lab, mode: Mode) -> Result<()> {
    let (server, seen) = iperf3(lab, mode, &[])?;
    ensure!(received(&seen) > 10_000_000, "{seen}");
    lifted(&server, mode, received(&seen) / 20)
}

fn iperf3_receives_eight_streams(lab: &Lab, mode: Mode) -> Result<()> {
    let (server, seen) = iperf3(lab, mode, &["-P", "8"])?;
    ensure!(received(&seen) > 10_000_000, "{seen}");
    lifted(&server, mode, received(&seen) / 20)
}

fn iperf3_sends(lab: &Lab, mode: Mode) -> Result<()> {
    let (server, seen) = iperf3(lab, mode, &["-R"])?;
    ensure!(received(&seen) > 10_000_000, "{seen}");
    lifted(&server, mode, 0)
}

fn iperf3_both_ways(lab: &Lab, mode: Mode) -> Result<()> {
    let (server, seen) = iperf3(lab, mode, &["--bidir", "-P", "2"])?;
    let back = seen["end"]["sum_received_bidir_reverse"]["bytes"].as_u64().unwrap_or(0);
    ensure!(received(&seen) > 5_000_000 && back > 5_000_000, "{seen}");
    lifted(&server, mode, 1)
}

fn iperf3_as_a_client(lab: &Lab, mode: Mode) -> Result<()> {
    let wire = lab.testbed.wire().v4().to_string();
    let mut server = lab.wire_program(&["iperf3", "-s", "-1", "-B", wire.as_str()])?.start()?;
    server.until_listening(IPERF)?;
    let client =
        finish(lab.program(mode, &["iperf3", "-J", "-R", "-n", "60M", "-P", "2", "-c", wire.as_str()])?)?;
    let seen = json(&client)?;
    ensure!(received(&seen) > 10_000_000, "{seen}");
    lifted(&client, mode, received(&seen) / 20)
}

fn nginx(lab: &Lab, mode: Mode) -> Result<Running> {
    let (dir, address) = (text(lab.path("")), lab.testbed.host().v4());
    let conf = format!(
        "daemon off; user root; worker_processes 1; pid {dir}nginx.pid; error_log stderr;\n\
         events {{ worker_connections 512; }}\n\
         http {{ access_log off; client_max_body_size 0; client_body_temp_path {dir}body;\n\
         proxy_temp_path {dir}p; fastcgi_temp_path {dir}f; uwsgi_temp_path {dir}u; scgi_temp_path {dir}s;\n\
         server {{ listen {address}:{PORT}; root {dir}www; dav_methods PUT; }} }}\n"
    );
    fs::create_dir_all(lab.path("www"))?;
    fs::write(lab.path("nginx.conf"), conf)?;
    let mut nginx = lab.program(mode, &["nginx", "-c", &text(lab.path("nginx.conf"))])?.start()?;
    nginx.until_listening(PORT)?;
    Ok(nginx)
}

fn nginx_takes_uploads_and_serves_them(lab: &Lab, mode: Mode) -> Result<()> {
    let mut nginx = nginx(lab, mode)?;
    for (i, len) in [FILE, 1, 100_000, 3_000_000].into_iter().enumerate() {
        let (sent, back) = (file(lab, "sent", i as u64, len)?, lab.path("back"));
        let url = format!("http://{}/file-{i}", lab.host4(PORT));
        ask(lab, &["curl", "-sSf", "-T", &text(sent.clone()), &url])?;
        same(&sent, &lab.path(&format!("www/file-{i}")))?;
        ask(lab, &["curl", "-sSf", "-o", &text(back.clone()), &url])?;
        same(&sent, &back)?;
    }
    nginx.stop(libc::SIGQUIT)?;
    lifted(&nginx, mode, FILE as u64 / 20)
}

/// wrk looks at every answer's status and at errors of the sockets.
fn nginx_under_load(lab: &Lab, mode: Mode) -> Result<()> {
    let mut nginx = nginx(lab, mode)?;
    fs::write(lab.path("www/page"), stream::bytes(1, 0, 5_000))?;
    let url = format!("http://{}/page", lab.host4(PORT));
    let load = ask(lab, &["wrk", "-t", "2", "-c", "50", "-d", "2s", &url])?;
    let output = load.output();
    ensure!(output.contains("requests in"), load.fail("wrk tells nothing"));
    ensure!(!output.contains("Socket errors") && !output.contains("Non-2xx"), load.fail("errors"));
    nginx.stop(libc::SIGQUIT)?;
    lifted(&nginx, mode, 0) // requests are small: they ride whole
}

fn redis_keeps_what_it_is_given(lab: &Lab, mode: Mode) -> Result<()> {
    let (host, port) = (lab.testbed.host().v4().to_string(), PORT.to_string());
    let dir = text(lab.path(""));
    let options = ["--save", "", "--appendonly", "no", "--protected-mode", "no", "--dir", &dir];
    let argv = [&["redis-server", "--port", &port, "--bind", &host][..], &options].concat();
    let mut redis = lab.program(mode, &argv)?.start()?;
    redis.until_listening(PORT)?;
    let at = ["-h", &host, "-p", &port];
    for (i, len) in [3_000_000, 1, 70_000].into_iter().enumerate() {
        let sent = file(lab, "value", 7 + i as u64, len)?;
        let mut set = lab.wire_program(&[&["redis-cli"][..], &at, &["-x", "set", "value"]].concat())?;
        set.command.stdin(File::open(&sent)?);
        finish(set)?;
        let get = ask(lab, &[&["redis-cli"][..], &at, &["--raw", "get", "value"]].concat())?;
        let back = lab.path("back");
        fs::write(&back, get.bytes().strip_suffix(b"\n").context("redis-cli ends with a newline")?)?;
        same(&sent, &back)?;
    }
    let load = ["-n", "20000", "-c", "50", "-d", "1000", "-t", "set,get,lpush", "-q", "-P", "4"];
    let load = ask(lab, &[&["redis-benchmark"][..], &at, &load].concat())?;
    ensure!(load.output().matches("requests per second").count() == 3, load.fail("not every load ran"));
    redis.stop(libc::SIGTERM)?;
    lifted(&redis, mode, 100_000)
}

fn socat_receives_a_file(lab: &Lab, mode: Mode) -> Result<()> {
    let (sent, got) = (file(lab, "sent", 3, FILE)?, lab.path("got"));
    let listen = format!("TCP-LISTEN:{PORT},bind={},reuseaddr", lab.testbed.host().v4());
    let mut socat =
        lab.program(mode, &["socat", "-u", &listen, &format!("CREATE:{}", got.display())])?.start()?;
    socat.until_listening(PORT)?;
    ask(lab, &["socat", "-u", &format!("OPEN:{}", sent.display()), &format!("TCP:{}", lab.host4(PORT))])?;
    socat.succeed(LIMIT)?;
    same(&sent, &got)?;
    lifted(&socat, mode, FILE as u64 / 20)
}

/// A child for each connection sends everything back.
fn socat_echoes(lab: &Lab, mode: Mode) -> Result<()> {
    let listen = format!("TCP-LISTEN:{PORT},bind={},reuseaddr,fork", lab.testbed.host().v4());
    let mut socat = lab.program(mode, &["socat", &listen, "PIPE"])?.start()?;
    socat.until_listening(PORT)?;
    for seed in 0..3 {
        let (sent, got) = (file(lab, "sent", seed, 2_000_000)?, lab.path("got"));
        let mut client = lab.wire_program(&["socat", "-t10", "-", &format!("TCP:{}", lab.host4(PORT))])?;
        client.command.stdin(File::open(&sent)?);
        let client = finish(client)?;
        fs::write(&got, client.bytes())?;
        same(&sent, &got)?;
    }
    socat.stop(libc::SIGTERM)?;
    lifted(&socat, mode, 0)
}

const UPLOADS: &str = r#"
import http.server, socketserver, sys

class Uploads(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_PUT(self):
        left = int(self.headers["Content-Length"])
        with open(sys.argv[3] + self.path, "wb") as file:
            while left:
                data = self.rfile.read(min(left, 100_000))
                file.write(data)
                left -= len(data)
        self.send_response(201)
        self.send_header("Content-Length", "0")
        self.end_headers()

class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = True

Server((sys.argv[1], int(sys.argv[2])), Uploads).serve_forever()
"#;

fn a_python_server_takes_uploads(lab: &Lab, mode: Mode) -> Result<()> {
    let (address, dir) = (lab.testbed.host().v4().to_string(), text(lab.path("uploads")));
    fs::create_dir(&dir)?;
    let argv = ["/usr/bin/python3", "-c", UPLOADS, &address, &PORT.to_string(), &dir];
    let mut server = lab.program(mode, &argv)?.start()?;
    server.until_listening(PORT)?;
    for (i, len) in [FILE, 5, 1_000_000].into_iter().enumerate() {
        let sent = file(lab, "sent", 20 + i as u64, len)?;
        ask(lab, &["curl", "-sSf", "-T", &text(sent.clone()), &format!("http://{}/{i}", lab.host4(PORT))])?;
        same(&sent, &lab.path(&format!("uploads/{i}")))?;
    }
    server.stop(libc::SIGTERM)?;
    lifted(&server, mode, FILE as u64 / 20)
}

fn curl_downloads(lab: &Lab, mode: Mode) -> Result<()> {
    let (dir, wire) = (text(lab.path("")), lab.testbed.wire().v4().to_string());
    let argv = ["python3", "-m", "http.server", "--bind", &wire, "--directory", &dir, &PORT.to_string()];
    let mut server = lab.wire_program(&argv)?.start()?;
    server.until_listening(PORT)?;
    let (sent, got) = (file(lab, "sent", 30, FILE)?, lab.path("got"));
    let url = format!("http://{wire}:{PORT}/sent");
    let curl = finish(lab.program(mode, &["curl", "-sSf", "-o", &text(got.clone()), &url])?)?;
    same(&sent, &got)?;
    lifted(&curl, mode, FILE as u64 / 20)
}

/// Files of all sizes, a directory in a directory, and a link.
fn tree(lab: &Lab) -> Result<PathBuf> {
    let root = lab.path("tree");
    fs::create_dir_all(root.join("inner"))?;
    for (i, len) in [0, 1, 1_448, 100_000, 5_000_000].into_iter().enumerate() {
        for dir in ["", "inner/"] {
            file(lab, &format!("tree/{dir}file-{i}"), i as u64 + dir.len() as u64, len)?;
        }
    }
    symlink("file-1", root.join("link"))?;
    Ok(root)
}

fn same_tree(a: &Path, b: &Path) -> Result<()> {
    let names = |root: &Path| -> Result<Vec<_>> {
        let mut names: Vec<_> =
            fs::read_dir(root)?.map(|e| e.map(|e| e.file_name())).collect::<Result<_, _>>()?;
        names.sort();
        Ok(names)
    };
    let list = names(a)?;
    ensure!(list == names(b)?, "{} and {} hold other names", a.display(), b.display());
    for name in list {
        let (a, b) = (a.join(&name), b.join(&name));
        if a.is_dir() { same_tree(&a, &b)? } else { same(&a, &b)? }
    }
    Ok(())
}

/// The daemon forks for each connection.
fn rsync_copies_a_directory(lab: &Lab, mode: Mode) -> Result<()> {
    let (from, to, conf) = (tree(lab)?, lab.path("copied"), text(lab.path("rsyncd.conf")));
    fs::create_dir(&to)?;
    let settings = format!(
        "use chroot = no\nmunge symlinks = no\nuid = 0\ngid = 0\npid file = {}\nreverse lookup = no\n[copied]\npath = {}\nread only = no\n",
        text(lab.path("rsyncd.pid")),
        text(to.clone())
    );
    fs::write(&conf, settings)?;
    let (address, port) = (lab.testbed.host().v4().to_string(), PORT.to_string());
    let daemon = ["rsync", "--daemon", "--no-detach", "--address", &address, "--port", &port];
    let argv = [&daemon[..], &["--config", &conf]].concat();
    let mut rsync = lab.program(mode, &argv)?.start()?;
    rsync.until_listening(PORT)?;
    let (source, target) = (format!("{}/", from.display()), format!("rsync://{address}:{port}/copied/"));
    ask(lab, &["rsync", "-a", &source, &target])?;
    same_tree(&from, &to)?;
    let back = lab.path("back");
    ask(lab, &["rsync", "-a", &target, &text(back.clone())])?;
    same_tree(&from, &back)?;
    rsync.stop(libc::SIGTERM)?;
    lifted(&rsync, mode, 0)
}

/// sshd executes itself anew for each connection, which it hands over as a descriptor.
fn scp_copies_a_directory(lab: &Lab, mode: Mode) -> Result<()> {
    let (from, to) = (tree(lab)?, lab.path("copied"));
    let key = |name: &str| -> Result<String> {
        let path = text(lab.path(name));
        let made =
            Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f", &path]).status()?;
        ensure!(made.success(), "ssh-keygen failed");
        Ok(path)
    };
    let (host_key, own_key) = (key("host-key")?, key("own-key")?);
    let conf = text(lab.path("sshd.conf"));
    let settings = format!(
        "Port {PORT}\nListenAddress {}\nHostKey {host_key}\nAuthorizedKeysFile {own_key}.pub\nStrictModes no\n\
         PermitRootLogin yes\nUsePAM no\nUseDNS no\nPidFile none\nSubsystem sftp internal-sftp\n",
        lab.testbed.host().v4()
    );
    fs::write(&conf, settings)?;
    fs::create_dir_all("/run/sshd")?; // where sshd's unprivileged part lives
    fs::set_permissions("/run/sshd", fs::Permissions::from_mode(0o755))?;
    let mut sshd = lab.program(mode, &["/usr/sbin/sshd", "-D", "-e", "-f", &conf])?.start()?;
    sshd.until_listening(PORT)?;
    let options = ["-q", "-r", "-P", &PORT.to_string(), "-i", &own_key, "-o", "StrictHostKeyChecking=no"];
    let known = ["-o", "UserKnownHostsFile=/dev/null", "-o", "BatchMode=yes"];
    let remote = format!("root@{}:{}", lab.testbed.host().v4(), to.display());
    let source = text(from.clone());
    let argv = [&["scp"][..], &options, &known, &[&source, &remote]].concat();
    let sent = lab.wire_program(&argv)?.start().and_then(|mut scp| scp.succeed(LIMIT));
    sent.map_err(|why| sshd.fail(&format!("{why:#}")))?;
    same_tree(&from, &to)?;
    sshd.stop(libc::SIGTERM)?;
    lifted(&sshd, mode, 0)
}
