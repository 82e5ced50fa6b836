//! `hoist rps`: the Linux stack spread over CPUs, for programs that do not run under Hoist.
//!
//! `judge` says whether a device can, `meter` what was counted; both pure. XDP and CPUMAP are `hoist_broker::rps`, the
//! policy is `hoist_steering::Policy`, and this file runs the one on the other.

mod judge;
mod meter;

use crate::{
    cpus::Cpus,
    doctor,
    ends::{Ends, Event},
    out::{Lines, Offer},
};
use anyhow::{Context, Result, bail};

use hoist_broker::rps::{self, Rps};
use hoist_steering::{BUCKETS, Policy, RingCounters, random::Random};
use meter::{Snapshot, Window};
use nix::net::if_::if_nametoindex;
use serde_json::json;
use std::{
    io::IsTerminal,
    process::ExitCode,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

/// Spread the Linux stack's work on a device's packets over CPUs by load.
///
/// Flows hash to 1,024 buckets for each receive queue. Every millisecond the fewest buckets move that make the CPUs even; a bucket changes
/// its CPU only when the old one is done with the last of its packets, so a flow keeps its order. Runs until Ctrl-C or
/// --seconds; then every bucket goes home (is received where its queue's interrupt is) and the device is as it was. The kernel's own
/// RPS settings are not touched. docs/steering.md says how it works, what it costs, and where order is not promised.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The device.
    #[arg(value_name = "DEV")]
    device: String,
    /// CPUs to use, for example 0-3,8; unless told, all that are online and not set apart (isolcpus=, nohz_full=).
    #[arg(long, value_name = "LIST")]
    cpus: Option<Cpus>,
    /// Move nothing: show how uneven a hash is on this traffic, and what the table would make of it.
    #[arg(long)]
    observe: bool,
    /// Both directions of a flow to one CPU.
    #[arg(long)]
    symmetric: bool,
    /// Packets that may wait for each CPU; those beyond are dropped, and counted.
    #[arg(long, value_name = "N", default_value_t = 8192, value_parser = clap::value_parser!(u32).range(64..=i64::from(rps::MOST_FRAMES)))]
    frames: u32,
    /// End after so many seconds.
    #[arg(long, value_name = "S", value_parser = clap::value_parser!(u32).range(1..))]
    seconds: Option<u32>,
    /// One JSON object a line every half second (later if nobody reads it), and one of the whole run at the end.
    #[arg(long)]
    json: bool,
    /// For tests: instead of balancing, move some bucket every so many microseconds.
    #[arg(long, value_name = "US", hide = true)]
    shuffle_us: Option<u64>,
    /// For tests: buckets move at once, which reorders.
    #[arg(long, hide = true)]
    heedless: bool,
}

/// CPUs that do not exist.
#[derive(Debug, thiserror::Error)]
#[error("--cpus: CPU {0} is not online (/sys/devices/system/cpu/online)")]
pub(crate) struct Unusable(u32);

pub(crate) fn main(args: &Args) -> Result<ExitCode> {
    let online = Cpus::online()?;
    let cpus = args.cpus.clone().unwrap_or_else(|| online.for_everybody());
    if let Some(cpu) = cpus.missing_in(&online) {
        bail!(Unusable(cpu));
    }
    let device = doctor::receiver(&args.device)?;
    if let Some(why) = judge::refusal(&args.device, &device, args.observe).or_else(real_time) {
        bail!("rps: {why}");
    }
    if let Some(warning) = judge::warning(&args.device, &device) {
        tell_line!("hoist: {warning}");
    }
    let ends = Ends::block()?;
    let settings = rps::Settings {
        queues: device.queues,
        cpus: cpus.0.clone(),
        frames: args.frames,
        observe: args.observe,
        symmetric: args.symmetric,
        unfilled: device.kind == "veth",
        heedless: args.heedless,
    };
    let ifindex =
        if_nametoindex(args.device.as_str()).with_context(|| format!("rps: no device '{}'", args.device))?;
    let rps = Rps::load(settings).with_context(|| format!("rps: {}", args.device))?;
    Session { args, ifindex, cpus: &cpus.0, rps }.run(&ends)
}

/// Bottom halves can be preempted there, and what a CPU is done with could not be told.
fn real_time() -> Option<String> {
    let real_time = std::fs::read_to_string("/sys/kernel/realtime").is_ok_and(|text| text.trim() == "1");
    real_time.then(|| "a PREEMPT_RT kernel: when a CPU is done with a packet cannot be told there".into())
}

struct Session<'a> {
    args: &'a Args,
    ifindex: u32,
    cpus: &'a [u32],
    rps: Rps,
}

impl Session<'_> {
    /// Whatever happens in between, buckets go home and what was counted is told.
    fn run(mut self, ends: &Ends) -> Result<ExitCode> {
        let mut lines = Lines::new()?;
        (0..BUCKETS as u16).for_each(|bucket| self.aim(bucket, bucket % self.cpus.len() as u16));
        self.rps.attach(self.ifindex).with_context(|| format!("rps: {}", self.args.device))?;
        let begin = Instant::now();
        let first = self.snapshot()?;
        self.announce();
        let over = AtomicBool::new(false);
        let watched = thread::scope(|scope| {
            scope.spawn(|| self.steer(&over));
            let result = self.watch(ends, &mut lines, &first, begin);
            over.store(true, Relaxed);
            result
        });
        let all = self.snapshot().map(|last| self.window(&first, &last, begin.elapsed()));
        let Self { args, rps, .. } = self;
        let cut_off = rps.leave(PATIENCE).context("rps: leaving");
        let told = finish(args, &all?, cut_off?).and_then(|report| lines.last(report, ends, PATIENCE));
        watched.and(told).map(|()| ExitCode::SUCCESS)
    }

    /// Who only watches aims too: nothing follows.
    fn aim(&self, bucket: u16, place: u16) {
        self.rps.aim(bucket, Some(self.cpus[usize::from(place)]));
    }

    /// The CPU that a bucket is aimed at, as a place in `cpus`.
    fn place(&self, bucket: u16) -> u16 {
        let aim = self.rps.aimed(bucket);
        self.cpus.iter().position(|cpu| Some(*cpu) == aim).unwrap_or_default() as u16
    }

    fn announce(&self) {
        let what = if self.args.observe { "watching" } else { "spreading" };
        let cpus: Vec<String> = self.cpus.iter().map(u32::to_string).collect();
        tell_line!("{what} {} over CPUs {} until it ends", self.args.device, cpus.join(","));
    }

    /// Decides, until it is over.
    fn steer(&self, over: &AtomicBool) {
        let mut pilot = Pilot::new(self.cpus.len(), self.args.shuffle_us);
        let mut packets = vec![0; BUCKETS];
        while !over.load(Relaxed) {
            thread::sleep(pilot.pause);
            self.rps.packets(&mut packets);
            let cpus: Vec<RingCounters> = self.cpus.iter().map(|cpu| self.ring(*cpu)).collect();
            for (bucket, place) in pilot.look(&packets, (!self.args.observe).then_some(&cpus)) {
                self.aim(bucket, place);
            }
        }
    }

    fn ring(&self, cpu: u32) -> RingCounters {
        let counters = self.rps.cpu(cpu);
        RingCounters { given: counters.given.wrapping_sub(counters.dropped), read: counters.taken }
    }

    fn watch(&self, ends: &Ends, lines: &mut Lines, first: &Snapshot, begin: Instant) -> Result<()> {
        let live = !self.args.json && std::io::stderr().is_terminal();
        let (mut before, mut at, mut warned) = (first.clone(), begin, false);
        while ends.wait(&[])? == Event::Time {
            let (now, time) = (self.snapshot()?, Instant::now());
            let window = self.window(&before, &now, time - at);
            warned = warned || self.warn(&window);
            let offer = match (self.args.json, live) {
                (true, _) => lines.offer(format!("{}\n", serde_json::to_string(&window)?))?,
                (false, live) => {
                    if live {
                        tell!("\r\x1b[K{}", window.line());
                    }
                    Offer::Taken
                }
            };
            match offer {
                Offer::Taken => (before, at) = (now, time),
                Offer::Busy => {}
                Offer::Gone => break,
            }
            self.is_as_it_was()?;
            if self.args.seconds.is_some_and(|seconds| begin.elapsed() >= Duration::from_secs(seconds.into()))
            {
                break;
            }
        }
        if live {
            tell!("\r\x1b[K");
        }
        Ok(())
    }

    fn warn(&self, window: &Window) -> bool {
        let all: u64 = window.verdicts.values().sum();
        let unfilled = window.verdicts.get("unfilled-checksum").copied().unwrap_or(0);
        let warning = judge::mostly_unfilled(&self.args.device, unfilled, all);
        warning.inspect(|why| tell_line!("hoist: {why}")).is_some()
    }

    /// The device is there, and nobody came to need its tags.
    fn is_as_it_was(&self) -> Result<()> {
        let name = &self.args.device;
        if if_nametoindex(name.as_str()) != Ok(self.ifindex) {
            bail!("rps: {name} is gone, or has another name: nothing is spread any more");
        }
        match judge::lost_tags(name, &doctor::receiver(name)?).filter(|_| !self.args.observe) {
            Some(why) => bail!("rps: {why}; nothing is spread any more"),
            None => Ok(()),
        }
    }

    fn snapshot(&self) -> Result<Snapshot> {
        let mut buckets = vec![0; BUCKETS];
        self.rps.packets(&mut buckets);
        let observe = self.args.observe;
        Ok(Snapshot {
            cpus: self.cpus.iter().map(|cpu| self.rps.cpu(*cpu)).collect(),
            buckets,
            places: (0..BUCKETS as u16).map(|bucket| self.place(bucket)).collect(),
            moves: self.rps.moves(),
            waiting: if observe { 0 } else { self.rps.waiting() },
            verdicts: self.rps.verdicts().context("rps")?,
        })
    }

    fn window(&self, a: &Snapshot, b: &Snapshot, time: Duration) -> Window {
        Window::between(a, b, self.cpus, time.as_secs_f64(), self.args.observe)
    }
}

const _: () = assert!(BUCKETS == rps::BUCKETS);

/// How long buckets have to go home.
const PATIENCE: Duration = Duration::from_secs(2);

/// What is said at the end.
fn finish(args: &Args, all: &Window, cut_off: usize) -> Result<String> {
    if cut_off > 0 {
        tell_line!(
            "hoist: {cut_off} buckets could not wait for their last packets: a few may be overtaken at the end"
        );
    }
    let whole = json!({ "device": args.device, "observe": args.observe, "all": all, "cut_off": cut_off });
    Ok(if args.json { format!("{whole}\n") } else { all.table(args.observe) })
}

/// When to look, and what to move.
struct Pilot {
    policy: Policy,
    pause: Duration,
    shuffle: Option<(Duration, Random)>,
    seen: Vec<u64>,
    imagined: Vec<RingCounters>,
}

const TICK: Duration = Duration::from_millis(1);
const IDLE: Duration = Duration::from_millis(10);

impl Pilot {
    fn new(rings: usize, shuffle_us: Option<u64>) -> Self {
        Self {
            policy: Policy::new(BUCKETS, rings, hoist_steering::Settings::default()),
            pause: TICK,
            shuffle: shuffle_us.map(|us| (Duration::from_micros(us), Random::seeded(1))),
            seen: vec![0; BUCKETS],
            imagined: vec![RingCounters::default(); rings],
        }
    }

    /// Buckets and their new places. Without counters of rings all that is given is read.
    fn look(&mut self, packets: &[u64], rings: Option<&Vec<RingCounters>>) -> Vec<(u16, u16)> {
        if let Some((pause, random)) = &mut self.shuffle {
            self.pause = *pause;
            return vec![(
                random.below(BUCKETS as u64) as u16,
                random.below(self.imagined.len() as u64) as u16,
            )];
        }
        let new = self.imagine(packets);
        self.pause = if new < self.imagined.len() as u64 { IDLE } else { TICK };
        let rings = rings.unwrap_or(&self.imagined);
        self.policy.tick(packets, rings).iter().map(|to| (to.bucket, to.ring)).collect()
    }

    /// Gives what is new to where it should be; how much that is.
    fn imagine(&mut self, packets: &[u64]) -> u64 {
        let mut all = 0;
        for ((count, seen), place) in packets.iter().zip(&mut self.seen).zip(self.policy.places()) {
            let new = count.wrapping_sub(*seen);
            *seen = *count;
            all += new;
            let ring = &mut self.imagined[usize::from(*place)];
            (ring.given, ring.read) = (ring.given + new, ring.read + new);
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_only_watched_is_balanced_in_thought() {
        let mut pilot = Pilot::new(2, None);
        let mut packets = vec![0_u64; BUCKETS];
        let mut moved = 0;
        for _ in 0..100 {
            (0..BUCKETS).step_by(2).for_each(|bucket| packets[bucket] += 3);
            moved += pilot.look(&packets, None).len();
        }
        assert!(moved >= BUCKETS / 8, "{moved} moves: every packet was the first CPU's");
        let [a, b] = pilot.imagined[..] else { panic!("two rings") };
        assert!(b.given > a.given / 3, "{} and {}", a.given, b.given);
    }

    #[test]
    fn without_traffic_it_looks_less_often() {
        let mut pilot = Pilot::new(2, None);
        pilot.look(&vec![0; BUCKETS], None);
        assert_eq!(pilot.pause, IDLE);
        pilot.look(&vec![1; BUCKETS], None);
        assert_eq!(pilot.pause, TICK);
    }
}
