//! The kinds of bench, one file each.
//!
//! A kind is a struct with [`Bench`]: `prepare` makes it (and may measure what its rounds need), every `round` takes one sample
//! of each side at each of its points and records it with [`Stage::record`]. [`Stage::measure`] decides how many rounds there are.

mod app;
mod flows;
mod gro_wire;
mod lossless;
mod overload;
mod pass_cost;
mod rr;
mod serving;
mod sockets;
mod tcp_bulk;

use super::{
    document::{Metric, Point},
    gro,
    stage::Stage,
    trial::Trial,
};
use anyhow::Result;

/// What `hoist bench` measures.
#[derive(Clone, Copy, Debug, Eq, PartialEq, clap::ValueEnum)]
pub(crate) enum Kind {
    /// The highest rate of UDP datagrams that is received without loss.
    UdpLossless,
    /// Goodput and cost from a quarter of the kernel's breaking point to beyond twice it.
    UdpOverload,
    /// Goodput and cost from one flow to a million.
    Flows,
    /// Goodput and cost from one socket of a program to ten thousand.
    Sockets,
    /// Goodput and cost of one TCP connection: as fast as it can be read, and paced.
    TcpBulk,
    /// Round trips over UDP: server blocking and spinning.
    UdpRr,
    /// The same over TCP.
    TcpRr,
    /// A DNS server, asked from below to twice the rate at which it breaks.
    App,
    /// What an attached Hoist costs traffic that it does not lift.
    PassCost,
    /// Rings that share flows: Hoist's steering against others'. With --simulate only.
    Steering,
    /// Ways to find a segment's flow in GRO, in memory: the kernel's order and others.
    Gro,
    /// The kernel's own GRO, by what it merges and takes for it. Not part of all.
    GroWire,
    /// Every one of them that is measured on a testbed.
    All,
}

/// A bench that goes on.
pub(crate) trait Bench {
    /// Takes one sample of each side at each point.
    fn round(&mut self, stage: &mut Stage) -> Result<()>;
}

impl Kind {
    pub(crate) const EACH: [Self; 9] = [
        Self::UdpLossless,
        Self::UdpOverload,
        Self::Flows,
        Self::Sockets,
        Self::TcpBulk,
        Self::UdpRr,
        Self::TcpRr,
        Self::App,
        Self::PassCost,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::UdpLossless => "udp-lossless",
            Self::UdpOverload => "udp-overload",
            Self::Flows => "flows",
            Self::Sockets => "sockets",
            Self::TcpBulk => "tcp-bulk",
            Self::UdpRr => "udp-rr",
            Self::TcpRr => "tcp-rr",
            Self::App => "app",
            Self::PassCost => "pass-cost",
            Self::Steering => "steering",
            Self::Gro => "gro",
            Self::GroWire => "gro-wire",
            Self::All => "all",
        }
    }

    /// What its figures show, in a sentence.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::UdpLossless => "The highest rate of UDP datagrams received without loss",
            Self::UdpOverload => "What is received of UDP datagrams offered at rising rates",
            Self::Flows => "What is received of UDP datagrams of one flow to a million",
            Self::Sockets => "What is received by a program of one socket to ten thousand",
            Self::TcpBulk => "What is received of one TCP connection that the wire fills",
            Self::UdpRr => "Round trips over UDP, the server blocking and spinning",
            Self::TcpRr => "Round trips over TCP, the server blocking and spinning",
            Self::App => "What a DNS server answers of queries offered at rising rates",
            Self::PassCost => {
                "What traffic costs that Hoist does not lift, without and with Hoist on the device"
            }
            Self::Steering => "How evenly rings share flows, and what packets wait for",
            Self::Gro => "What GRO takes for a segment, by the order in which it matches",
            Self::GroWire => "What the kernel's own GRO merges, beside what the lab says of it",
            Self::All => "",
        }
    }

    /// Hoist lifts what this bench sends to the program.
    pub(crate) fn is_lifted(self) -> bool {
        !matches!(self, Self::TcpBulk | Self::TcpRr)
    }

    pub(crate) fn prepare(self, stage: &mut Stage) -> Result<Box<dyn Bench>> {
        match self {
            Self::UdpLossless => lossless::prepare(stage),
            Self::UdpOverload => overload::prepare(stage),
            Self::Flows => flows::prepare(stage),
            Self::Sockets => sockets::prepare(stage),
            Self::TcpBulk => tcp_bulk::prepare(stage),
            Self::UdpRr => rr::prepare(stage, rr::Transport::Udp),
            Self::TcpRr => rr::prepare(stage, rr::Transport::Tcp),
            Self::App => app::prepare(stage),
            Self::PassCost => pass_cost::prepare(stage),
            Self::GroWire => gro_wire::prepare(stage),
            Self::Steering | Self::Gro => anyhow::bail!("`{}` is in memory: it has no testbed", self.name()),
            Self::All => anyhow::bail!("`all` stands for every bench and is none"),
        }
    }
}

/// What the figures of a bench show; none of one that this program does not know.
pub(crate) fn title_of(bench: &str) -> Option<&'static str> {
    let mut known = Kind::EACH.iter().chain(&[Kind::Steering, Kind::Gro, Kind::GroWire]);
    known.find(|kind| kind.name() == bench).map(|kind| kind.title())
}

/// Whether a metric that explains another is in the tables.
pub(crate) fn is_told(bench: &str, metric: &str) -> bool {
    bench == Kind::Gro.name() && gro::is_told(metric)
        || bench == Kind::GroWire.name() && gro_wire::is_told(metric)
}

/// Whether a metric is drawn at the points of a name: the tables have all of them.
pub(crate) fn is_plotted(bench: &str, point: &str, metric: &str) -> bool {
    if bench == Kind::Gro.name() {
        return gro::is_plotted(point, metric);
    }
    let hidden: &[&str] = match bench == Kind::PassCost.name() {
        true => &[GOODPUT.name, LOSS.name, REORDERED.name],
        false => &[
            LOSS.name,
            REORDERED.name,
            tcp_bulk::TO_KERNEL.name,
            tcp_bulk::TO_TUNED.name,
            tcp_bulk::SENT_AGAIN.name,
        ],
    };
    !hidden.contains(&metric)
}

/// How long servers spin where they do.
pub(crate) const SPIN_US: u32 = rr::SPIN_US;
/// Of kernel-tuned in tcp-bulk.
pub(crate) use tcp_bulk::{
    BOUNDED_RCVBUF as BULK_RCVBUF, BUSY_POLL_US as BULK_BUSY_POLL_US, PARTS as BULK_PARTS,
};

/// The rate that a point offers, as far as the point tells: its value, or what its name has after `at`.
pub(crate) fn offered(point: &Point) -> Option<f64> {
    match point.name.split_once(" at ") {
        Some((_, rate)) => crate::wire::rate(&rate.strip_suffix("packets/s")?.replace(' ', "")).ok(),
        None if point.name == "offered" => Some(point.value),
        None => None,
    }
}

const GOODPUT: Metric = Metric::more("goodput", "packets/s");
/// What the wire sent of what it was asked for.
pub(crate) const SENT: Metric = Metric::part("sent", "packets/s");
const LOSS: Metric = Metric::less("loss", "%");
const CPU: Metric = Metric::less("CPU time", "ns/packet");
const CPU_NAPI: Metric = Metric::part("CPU time of NAPI", "ns/packet");
const CPU_PROGRAM: Metric = Metric::part("CPU time of the program", "ns/packet");
const CPU_BROKER: Metric = Metric::part("CPU time of hoist run", "ns/packet");
/// Of the TCP bytes that the program read.
const LIFTED: Metric = Metric::part("lifted", "%");
const REORDERED: Metric = Metric::less("reordered", "packets");

/// What every UDP trial gives.
fn record_trial(stage: &mut Stage, side: &str, point: Option<&Point>, trial: &Trial) {
    let samples = [
        (GOODPUT, trial.goodput_pps),
        (SENT, trial.sent_pps),
        (LOSS, trial.loss() * 100.0),
        (CPU, trial.ns_per_packet()),
        (CPU_NAPI, trial.per_packet(trial.napi_ns)),
        (CPU_PROGRAM, trial.per_packet(trial.program_ns)),
        (CPU_BROKER, trial.per_packet(trial.broker_ns)),
        (REORDERED, trial.reordered as f64),
    ];
    if trial.is_short() {
        stage.note(
            "the wire sent less than 98 % of what it was asked for in some trials: `sent` says what; compare loss there, not \
             goodput"
                .into(),
        );
    }
    for (metric, sample) in samples {
        stage.record(side, point, metric, sample);
    }
}
