//! `app`: a DNS server (Knot DNS, one UDP worker) that is asked by the DNS wire, which no client limits, and by dnsperf.

use super::{
    Bench,
    serving::{Cost, Serving, pin_threads},
};
use crate::{
    bench::{
        document::{Metric, Point},
        number,
        others::{Taken, Watched},
        plan::Plan,
        program::Program,
        rates,
        side::Side,
        stage::Stage,
    },
    demo::{Directory, tools::Tools},
};
use anyhow::{Context, Result, bail, ensure};
use hoist_wire::{Answers, Queries, Testbed};
use std::{
    fs,
    net::{SocketAddr, UdpSocket},
    time::Duration,
};

const ANSWERED: Metric = Metric::more("right answers", "queries/s");
const LOSS: Metric = Metric::less("loss", "%");
const CPU: Metric = Metric::less("CPU time", "ns/answer");
const CPU_NAPI: Metric = Metric::part("CPU time of NAPI", "ns/answer");
const CPU_PROGRAM: Metric = Metric::part("CPU time of the program", "ns/answer");
const MOST: Metric = Metric::more("right answers at the best offered rate", "queries/s");
const DNSPERF: Metric = Metric::more("answers to dnsperf", "queries/s");
const DNSPERF_LOSS: Metric = Metric::less("loss of dnsperf", "%");
const DNSPERF_LATENCY: Metric = Metric::less("average latency of dnsperf", "us");

const SIDES: [Side; 3] = [Side::Kernel, Side::KernelTuned, Side::Hoist];
const PORT: u16 = 5300;
const FLOWS: u16 = 64;
/// The breaking point is between these.
const BREAKS: (f64, f64) = (20e3, 1.5e6);
const BREAK_RESOLUTION: f64 = 1.1;
/// A server that loses more is broken.
const TOLERATED: f64 = 0.01;

pub(super) fn prepare(stage: &mut Stage) -> Result<Box<dyn Bench>> {
    let dns = Dns::set_up(&stage.testbed)?;
    stage.note(
        "Knot DNS with one UDP worker; an answer counts when its question, rcode and address are right; dnsperf, on the \
         wire's CPU, is itself a limit"
            .into(),
    );
    let breaking = dns.breaking_rate(stage)?;
    stage.note(format!("the kernel's server breaks at {}", number::with_unit(breaking, "queries/s")));
    let rates = rates::of_queries(breaking, stage.plan.quick);
    Ok(Box::new(App { dns, rates }))
}

struct App {
    dns: Dns,
    rates: Vec<f64>,
}

impl Bench for App {
    fn round(&mut self, stage: &mut Stage) -> Result<()> {
        let sides = stage.sides(&SIDES);
        let mut most = vec![0f64; sides.len()];
        for rate in self.rates.clone() {
            for (side, most) in sides.iter().zip(&mut most) {
                *most = most.max(self.offered(stage, *side, rate)?);
            }
        }
        for (side, most) in sides.into_iter().zip(most) {
            stage.record(side.name(), None, MOST, most);
            self.dnsperf(stage, side)?;
        }
        Ok(())
    }
}

impl App {
    fn offered(&self, stage: &mut Stage, side: Side, rate: f64) -> Result<f64> {
        let point = Point::of("offered", rate, "queries/s");
        stage.show(side.name(), Some(&point));
        let found =
            stage.retaken(side, |testbed, plan| self.dns.trial(testbed, plan, side, rate, plan.trial_ms))?;
        for (metric, sample) in found.samples() {
            stage.record(side.name(), Some(&point), metric, sample);
        }
        Ok(found.answers.per_second())
    }

    fn dnsperf(&self, stage: &mut Stage, side: Side) -> Result<()> {
        stage.show(&format!("{} and dnsperf", side.name()), None);
        let Asked { summary, .. } =
            stage.retaken(side, |testbed, plan| self.dns.dnsperf(testbed, plan, side))?;
        stage.record(side.name(), None, DNSPERF, summary.queries_per_second);
        stage.record(side.name(), None, DNSPERF_LOSS, 100.0 * summary.lost / summary.sent.max(1.0));
        stage.record(side.name(), None, DNSPERF_LATENCY, summary.latency_s * 1e6);
        Ok(())
    }
}

/// What one run of the DNS wire gave.
#[derive(Clone, Copy, Debug)]
struct Found {
    answers: Answers,
    cost: Cost,
}

impl Watched for Found {
    fn taken(&self) -> Taken {
        self.cost.taken
    }
}

/// What one run of dnsperf gave.
struct Asked {
    summary: Summary,
    cost: Cost,
}

impl Watched for Asked {
    fn taken(&self) -> Taken {
        self.cost.taken
    }
}

impl Found {
    fn samples(&self) -> [(Metric, f64); 5] {
        let (answers, cost) = (&self.answers, &self.cost);
        let count = answers.right + answers.late;
        let each = |ns: u64| ns as f64 / count.max(1) as f64;
        [
            (ANSWERED, answers.per_second()),
            (LOSS, answers.loss() * 100.0),
            (CPU, cost.per(count)),
            (CPU_NAPI, each(cost.napi_ns)),
            (CPU_PROGRAM, each(cost.program_ns)),
        ]
    }
}

/// The server's files and where its programs are.
struct Dns {
    directory: Directory,
    tools: Tools,
}

impl Dns {
    fn set_up(testbed: &Testbed) -> Result<Self> {
        let dns = Self { tools: Tools::find()?, directory: Directory::make(testbed.name())? };
        let directory = dns.directory.path("").display().to_string();
        let conf = configuration(&directory, &testbed.host().v4().to_string());
        let queries: String = Queries::names().map(|(name, _)| format!("{name} A\n")).collect();
        for (name, text) in [("knot.conf", conf), ("zone", zone()), ("queries", queries)] {
            let path = dns.directory.path(name);
            fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
        }
        Ok(dns)
    }

    /// The rate above which the kernel's server loses queries.
    fn breaking_rate(&self, stage: &mut Stage) -> Result<f64> {
        let (mut low, mut high) = BREAKS;
        let mut excuses = stage.plan.excuses;
        while high / low > BREAK_RESOLUTION {
            let rate = (low * high).sqrt();
            stage.show("kernel", Some(&Point::of("offered", rate, "queries/s")));
            let found = stage.retaken(Side::Kernel, |testbed, plan| {
                self.trial(testbed, plan, Side::Kernel, rate, plan.search_ms)
            })?;
            match found.answers.loss() > TOLERATED {
                true if excuses > 0 && found.cost.taken.is_too_much(&stage.plan) => excuses -= 1,
                true => high = rate,
                false => low = rate,
            }
        }
        Ok(low)
    }

    fn trial(&self, testbed: &Testbed, plan: &Plan, side: Side, rate: f64, ms: u64) -> Result<Found> {
        let serving = self.serve(testbed, plan, side)?;
        let time = Duration::from_millis(ms);
        let queries = Queries { port: PORT, per_second: rate, time, flows: FLOWS, cpu: plan.wire_cpu };
        let answers = queries.run(testbed)?;
        let cost = serving.end().with_context(|| format!("side {}", side.name()))?;
        ensure!(answers.wrong == 0, "side {}: {} answers were wrong", side.name(), answers.wrong);
        ensure!(answers.right > 0, "side {}: nothing was answered", side.name());
        Ok(Found { answers, cost })
    }

    fn dnsperf(&self, testbed: &Testbed, plan: &Plan, side: Side) -> Result<Asked> {
        let serving = self.serve(testbed, plan, side)?;
        let (dnsperf, queries) = (&self.tools.dnsperf, self.directory.path("queries"));
        let host = testbed.host().v4();
        let command = format!("{} -s {host} -p {PORT} -l 1 -c 8 -q 100 -t 1 -d", dnsperf.display());
        let mut command: Vec<String> = command.split(' ').map(String::from).collect();
        command.push(queries.display().to_string());
        let client = Program::start(testbed.wire(), plan.wire_cpu, Side::Kernel, &command)?;
        let summary = Summary::parse(&everything(client)?)?;
        let cost = serving.end().with_context(|| format!("side {}", side.name()))?;
        ensure!(summary.queries_per_second > 0.0, "side {}: dnsperf got no answer", side.name());
        Ok(Asked { summary, cost })
    }

    /// A server that answers.
    fn serve(&self, testbed: &Testbed, plan: &Plan, side: Side) -> Result<Serving> {
        let knotd = self.tools.knotd.display().to_string();
        let conf = self.directory.path("knot.conf").display().to_string();
        let command = side.wrap(plan, vec![knotd, "-c".into(), conf])?;
        let mut program = Program::start(testbed.host(), plan.host_cpu, side, &command)?;
        let mut awaited = vec!["server started", "loaded, serial"];
        while !awaited.is_empty() {
            let line = program.line()?;
            if line.is_empty() {
                bail!("side {}: knotd ended before it was ready", side.name());
            }
            awaited.retain(|word| !line.contains(word));
        }
        let server = (testbed.host().v4(), PORT).into();
        testbed.wire().enter(|| ask_once(server))?.with_context(|| format!("side {}", side.name()))?;
        // Knot DNS binds its first UDP worker to CPU 0 when that starts; one that has answered has done so.
        pin_threads(&program, plan.host_cpu)?;
        Serving::watch(testbed, plan, side, program)
    }
}

/// Waits until the server has given a right answer.
fn ask_once(server: SocketAddr) -> Result<()> {
    const NUMBER: u8 = 42;
    let socket = UdpSocket::bind("0.0.0.0:0").context("bind")?;
    socket.connect(server).context("connect")?;
    socket.set_read_timeout(Some(Duration::from_secs(5))).context("setsockopt SO_RCVTIMEO")?;
    socket.send(&Queries::message(NUMBER)).context("asking the server (send)")?;
    let mut answer = [0; 512];
    let length = socket.recv(&mut answer).context("waiting for the server's first answer (recv)")?;
    ensure!(is_right(&answer[..length], NUMBER), "the first answer is wrong: {:02x?}", &answer[..length]);
    Ok(())
}

/// Id, response bit, rcode 0, one answer, and the address at its end.
fn is_right(answer: &[u8], number: u8) -> bool {
    answer.len() > 12
        && answer[..2] == [0, number]
        && answer[2] & 0x80 != 0
        && answer[3] & 0x0f == 0
        && answer[6..8] == [0, 1]
        && answer.ends_with(&[192, 0, 2, number])
}

fn configuration(directory: &str, address: &str) -> String {
    format!(
        "server:\n  rundir: {directory}\n  listen: {address}@{PORT}\n  udp-workers: 1\n  tcp-workers: 1\n  \
         background-workers: 1\n  pidfile: {directory}knot.pid\n\
         control:\n  listen: {directory}knot.sock\n\
         database:\n  storage: {directory}db\n\
         log:\n  - target: stdout\n    any: info\n\
         zone:\n  - domain: {}\n    file: {directory}zone\n",
        Queries::ZONE
    )
}

fn zone() -> String {
    let records: String = Queries::names().map(|(name, address)| format!("{name}. A {address}\n")).collect();
    let zone = Queries::ZONE;
    format!(
        "$TTL 300\n{zone}. SOA ns.{zone}. admin.{zone}. 1 300 300 300 300\n{zone}. NS ns.invalid.\n{records}"
    )
}

/// What a program prints until its end.
fn everything(mut program: Program) -> Result<String> {
    let mut output = String::new();
    loop {
        match program.line()? {
            line if line.is_empty() => return Ok(output),
            line => output.push_str(&line),
        }
    }
}

/// dnsperf's figures.
#[derive(Debug, PartialEq)]
struct Summary {
    sent: f64,
    lost: f64,
    queries_per_second: f64,
    latency_s: f64,
}

impl Summary {
    /// An error if there are none, or an answer was not NOERROR.
    fn parse(output: &str) -> Result<Self> {
        let after = |name: &str| output.lines().find_map(|line| line.trim().strip_prefix(name));
        let number = |name: &str| after(name)?.split_whitespace().next()?.parse().ok();
        let all = || {
            Some(Self {
                sent: number("Queries sent:")?,
                lost: number("Queries lost:")?,
                queries_per_second: number("Queries per second:")?,
                latency_s: number("Average Latency (s):")?,
            })
        };
        let summary = all().with_context(|| format!("dnsperf printed no summary: {}", output.trim()))?;
        let codes = after("Response codes:").unwrap_or_default().trim();
        ensure!(codes.starts_with("NOERROR") && !codes.contains(','), "dnsperf got wrong answers: {codes}");
        Ok(summary)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: &str = "Statistics:\n\n  Queries sent:         181010\n  Queries completed:    181000 (99.99%)\n  \
        Queries lost:         10 (0.01%)\n\n  Response codes:       NOERROR 181000 (100.00%)\n  \
        Queries per second:   90421.251\n\n  Average Latency (s):  0.000912 (min 0.000015, max 0.01)\n";

    #[test]
    fn dnsperfs_summary_is_understood() {
        let summary =
            Summary { sent: 181_010.0, lost: 10.0, queries_per_second: 90421.251, latency_s: 0.000912 };
        assert_eq!(Summary::parse(OUTPUT).unwrap(), summary);
    }

    #[test]
    fn wrong_answers_and_missing_figures_are_errors() {
        let refused = OUTPUT.replace("NOERROR 181000 (100.00%)", "NOERROR 9 (90.00%), REFUSED 1 (10.00%)");
        assert!(Summary::parse(&refused).unwrap_err().to_string().contains("REFUSED"));
        assert!(Summary::parse("unable to connect").unwrap_err().to_string().contains("unable"));
    }

    #[test]
    fn only_a_response_with_the_right_address_is_right() {
        let mut answer = Queries::message(42);
        answer[2] = 0x84;
        answer[7] = 1;
        answer.extend([0xc0, 0x0c, 0, 1, 0, 1, 0, 0, 1, 44, 0, 4, 192, 0, 2, 42]);
        assert!(is_right(&answer, 42));
        assert!(!is_right(&answer, 43), "another question");
        for (at, value) in [(1, 0), (2, 0), (3, 2), (7, 0), (answer.len() - 1, 41)] {
            let mut wrong = answer.clone();
            wrong[at] = value;
            assert!(!is_right(&wrong, 42), "byte {at}");
        }
        assert!(!is_right(&[], 42));
    }

    #[test]
    fn the_zone_holds_every_name_that_is_asked_for() {
        let zone = zone();
        assert!(zone.contains("\nhosts00.example.test. A 192.0.2.0\n"));
        assert_eq!(zone.matches(" A 192.0.2.").count(), Queries::names().count());
    }

    #[test]
    fn late_answers_have_cost_but_are_no_rate() {
        let answers = Answers { sent: 100, seconds: 1.0, right: 50, late: 50, wrong: 0 };
        let cost = Cost { napi_ns: 1000, program_ns: 3000, taken: Taken::default() };
        let samples = Found { answers, cost }.samples().map(|(metric, sample)| (metric.name, sample));
        assert_eq!(&samples[..3], [("right answers", 50.0), ("loss", 0.0), ("CPU time", 40.0)]);
    }
}
