//! A real DNS server, loaded by dnsperf.

use super::{Counted, Stage, server::Followed, show, tools::Tools};
use anyhow::{Context, Result, bail};
use serde::Serialize;
use std::{fs, process::Command};

/// Both sides once.
#[derive(Serialize)]
pub(crate) struct Round {
    pub(crate) plain: Answered,
    pub(crate) hoisted: Answered,
}

/// What dnsperf saw, and under `hoist run` what was counted there.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Answered {
    pub(crate) queries_per_second: f64,
    pub(crate) sent: u64,
    pub(crate) lost: u64,
    pub(crate) counted: Option<Counted>,
}

impl Answered {
    pub(crate) fn counted(&self) -> Option<&Counted> {
        self.counted.as_ref()
    }
}

pub(crate) const ROUNDS: usize = 3;
const SECONDS: &str = "2";
const PORT: u16 = 5300;
const NAMES: usize = 100;

pub(super) fn run(stage: &Stage, tools: &Tools) -> Result<Vec<Round>> {
    write_files(stage)?;
    stage.say(show::DNS_HEAD);
    let mut rounds = Vec::new();
    for number in 1..=ROUNDS {
        stage.progress(&format!("DNS, round {number} of {ROUNDS}"));
        let round = Round { plain: answered(stage, tools, false)?, hoisted: answered(stage, tools, true)? };
        stage.say(&show::dns_row(number, &round));
        rounds.push(round);
    }
    Ok(rounds)
}

fn answered(stage: &Stage, tools: &Tools, hoisted: bool) -> Result<Answered> {
    let status = stage.directory.path("dns.json");
    let mut server = Followed::start(knotd(stage, tools, hoisted)?, &stage.signals)?;
    server.until_printed(&["server started", "loaded, serial"])?;
    let output = Followed::start(dnsperf(stage, tools), &stage.signals)?.until_ended()?;
    server.stop()?;
    let counted = if hoisted { Some(Counted::read(&status)?) } else { None };
    parse(&output).map(|answered| Answered { counted, ..answered })
}

fn knotd(stage: &Stage, tools: &Tools, hoisted: bool) -> Result<Command> {
    let host = stage.testbed.host();
    let mut command = match hoisted {
        false => host.command(&tools.knotd),
        true => {
            let hoist = std::env::current_exe().context("finding this program (/proc/self/exe)")?;
            let mut command = host.command(hoist);
            command.args(["run", "--dev", host.device(), "--require", "--json"]);
            command.arg(stage.directory.path("dns.json")).arg("--").arg(&tools.knotd);
            command
        }
    };
    command.arg("-c").arg(stage.directory.path("knot.conf"));
    Ok(command)
}

fn dnsperf(stage: &Stage, tools: &Tools) -> Command {
    let mut command = stage.testbed.wire().command(&tools.dnsperf);
    let (host, port) = (stage.testbed.host().v4().to_string(), PORT.to_string());
    command.args(["-s", &host, "-p", &port, "-l", SECONDS, "-c", "8", "-q", "100", "-t", "1", "-d"]);
    command.arg(stage.directory.path("queries"));
    command
}

fn write_files(stage: &Stage) -> Result<()> {
    let directory = stage.directory.path("").display().to_string();
    let address = stage.testbed.host().v4();
    let conf = format!(
        "server:\n  rundir: {directory}\n  listen: {address}@{PORT}\n  udp-workers: 2\n  tcp-workers: 1\n  \
         background-workers: 1\n  pidfile: {directory}knot.pid\n\
         control:\n  listen: {directory}knot.sock\n\
         database:\n  storage: {directory}db\n\
         log:\n  - target: stderr\n    any: info\n\
         zone:\n  - domain: example.test\n    file: {directory}zone\n"
    );
    let hosts: String = (0..NAMES).map(|i| format!("host{i} A 192.0.2.{i}\n")).collect();
    let zone = format!(
        "$ORIGIN example.test.\n$TTL 300\n@ SOA ns.example.test. admin.example.test. 1 300 300 300 300\n\
         @ NS ns\nns A {address}\n{hosts}"
    );
    let queries: String = (0..NAMES).map(|i| format!("host{i}.example.test A\n")).collect();
    for (name, text) in [("knot.conf", conf), ("zone", zone), ("queries", queries)] {
        let path = stage.directory.path(name);
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}

/// dnsperf's summary.
fn parse(output: &str) -> Result<Answered> {
    let number = |name: &str| {
        let line = output.lines().find_map(|line| line.trim().strip_prefix(name));
        line.and_then(|rest| rest.split_whitespace().next()?.parse::<f64>().ok())
    };
    let found = (number("Queries sent:"), number("Queries lost:"), number("Queries per second:"));
    let (Some(sent), Some(lost), Some(queries_per_second)) = found else {
        bail!("dnsperf printed no summary: {}", output.trim().replace('\n', " | "));
    };
    Ok(Answered { queries_per_second, sent: sent as u64, lost: lost as u64, counted: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dnsperfs_summary_is_understood() {
        let output = "Statistics:\n\n  Queries sent:         181010\n  Queries completed:    181000 (99.99%)\n  \
                      Queries lost:         10 (0.01%)\n\n  Queries per second:   90421.251\n";
        let expected = Answered { queries_per_second: 90421.251, sent: 181_010, lost: 10, counted: None };
        assert_eq!(parse(output).unwrap(), expected);
    }

    #[test]
    fn no_summary_is_an_error_that_shows_the_output() {
        let error = parse("Error: unable to connect").unwrap_err();
        assert!(error.to_string().contains("unable to connect"), "{error}");
    }
}
