//! `rps` on one device: flows that pass are spread over CPUs by CPUMAP, and no packet overtakes another of its bucket.
//!
//! Who decides where a bucket goes is the caller ([`Rps::aim`]); when it goes is decided in XDP (bpf/rps.bpf.c).

use crate::{
    error::{Context, Error, bpf},
    loaders::bare,
    object::{array, missing},
    steer::why_not_native,
    sys::{self, Words},
};
use aya::{
    Btf, Ebpf,
    maps::{Array, CpuMap, Map, PerCpuArray},
    programs::{RawTracePoint, Xdp},
};
use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    unistd::Pid,
};
use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::atomic::{
        AtomicU64,
        Ordering::{Acquire, Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

/// Buckets of the table: RPS_BUCKETS.
pub const BUCKETS: usize = 1024;
/// Packets that may wait for a CPU at most (cpu_map_update_elem).
pub const MOST_FRAMES: u32 = 16384;

const HISTORY: u32 = 4096;
/// Words of a `struct rps_bucket` and `struct rps_ring`, and what stands where.
const BUCKET: usize = 5;
const LAST: usize = 0;
const PACKETS: usize = 1;
const RING: usize = 2;
const MOVES: usize = 3;
const KINDS: usize = 4;
const CPU: usize = 7;
const TAKEN: usize = 0;
const SLEEPS: usize = 3;
const DROPPED: usize = 4;
/// RPS_EITHER: some packets of the bucket stay home, so all do.
const MIXED: u64 = 3;

/// What becomes of a packet: `enum rps_verdict`.
pub const VERDICTS: [(&str, &str); 7] = [
    ("spread", "given to the CPU of its bucket"),
    ("home", "received where the driver ran: their bucket is there, or only watched"),
    ("not-ip", "neither IPv4 nor IPv6"),
    ("truncated", "shorter than its headers say"),
    ("new-queue", "from a receive queue that did not exist at the start"),
    (
        "unfilled-checksum",
        "the sender may leave checksums of its bucket to the device, which CPUMAP would forget",
    ),
    ("no-metadata", "the driver leaves no room for a number in front of it"),
];

/// How to spread.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Receive queues of the device.
    pub queues: u32,
    /// CPUs that packets may be given to.
    pub cpus: Vec<u32>,
    /// Packets that may wait for one of them, up to [`MOST_FRAMES`].
    pub frames: u32,
    /// Count only: every packet stays where it is.
    pub observe: bool,
    /// Both directions of a flow in one bucket.
    pub symmetric: bool,
    /// Packets may come without a checksum (veth).
    pub unfilled: bool,
    /// Buckets move at once, which reorders: to show that a test would see it.
    pub heedless: bool,
}

/// What a CPU has counted since the beginning, packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuCounters {
    /// Meant for it.
    pub given: u64,
    /// It has taken.
    pub taken: u64,
    /// Lost: too many waited.
    pub dropped: u64,
    /// Times its thread slept, or gave the CPU away.
    pub sleeps: u64,
}

/// The programs, attached for as long as it lives.
pub struct Rps {
    settings: Settings,
    ebpf: Ebpf,
    aims: Words,
    buckets: Words,
    given: Words,
    done: Words,
    rings: Words,
    link: Option<OwnedFd>,
}

impl Rps {
    /// Attaches to the device with this index, until it is dropped or leaves. Buckets begin where they are aimed.
    ///
    /// # Errors
    /// The driver has no native XDP (generic XDP carries no metadata to CPUMAP); a program is attached already.
    pub fn attach(&mut self, ifindex: u32) -> Result<(), Error> {
        let link = sys::link_create(self.program()?, ifindex, sys::BPF_XDP, sys::XDP_FLAGS_DRV_MODE);
        let link = link.map_err(|cause| Error::Sys {
            operation: format!("attach rps in native mode, which it needs{}", why_not_native(&cause)),
            cause,
        })?;
        self.link = Some(link);
        Ok(())
    }

    /// Loads without attaching, every bucket aimed home.
    ///
    /// # Errors
    /// A CPU does not exist; the kernel does not show its types (BTF); bpf(2)'s.
    pub fn load(settings: Settings) -> Result<Self, Error> {
        let rings = settings.cpus.iter().max().map_or(1, |cpu| cpu + 1);
        let slots = rings * settings.queues;
        let mut ebpf = load(&settings, rings, slots)?;
        let rps: &mut Xdp = program(&mut ebpf, "rps")?;
        rps.load().map_err(|e| bpf("load rps", &e))?;
        if !settings.observe {
            open_cpus(&mut ebpf, &settings)?;
            trace(&mut ebpf, "turn", "xdp_cpumap_kthread")?;
            trace(&mut ebpf, "enqueue", "xdp_cpumap_enqueue")?;
        }
        let words =
            |name, len| Words::map(array(&ebpf, "rps", name)?, len).context(format!("map {name} of rps"));
        Ok(Self {
            aims: words("aims", BUCKETS)?,
            buckets: words("buckets", settings.queues as usize * BUCKETS * BUCKET)?,
            given: words("given", slots as usize)?,
            done: words("done", slots as usize)?,
            rings: words("rings", rings as usize * CPU)?,
            settings,
            ebpf,
            link: None,
        })
    }

    /// The XDP program.
    ///
    /// # Errors
    /// Never, once loaded.
    pub fn program(&self) -> Result<BorrowedFd<'_>, Error> {
        let program: &Xdp = self
            .ebpf
            .program("rps")
            .ok_or_else(|| missing("rps", "rps"))?
            .try_into()
            .map_err(|e| bpf("rps", &e))?;
        Ok(program.fd().map_err(|e| bpf("rps", &e))?.as_fd())
    }

    /// Packets of each bucket that may go where it is aimed, since the beginning, summed over queues.
    pub fn packets(&self, sums: &mut [u64]) {
        sums.fill(0);
        for queue in self.buckets.chunks_exact(BUCKETS * BUCKET) {
            for (sum, bucket) in sums.iter_mut().zip(queue.chunks_exact(BUCKET)) {
                *sum += bucket[PACKETS].load(Relaxed);
            }
        }
    }

    /// Times that a bucket has followed its aim.
    pub fn moves(&self) -> u64 {
        self.buckets.chunks_exact(BUCKET).map(|bucket| bucket[MOVES].load(Relaxed)).sum()
    }

    /// Buckets with packets that have not, yet.
    pub fn waiting(&self) -> usize {
        let aims = self.aims.iter().cycle().map(|aim| aim.load(Relaxed));
        let elsewhere = |(bucket, aim): (&[AtomicU64], u64)| {
            let [ring, packets, kinds] = [RING, PACKETS, KINDS].map(|at| bucket[at].load(Relaxed));
            packets > 0 && ring != if kinds == MIXED { 0 } else { aim }
        };
        self.buckets.chunks_exact(BUCKET).zip(aims).filter(|&pair| elsewhere(pair)).count()
    }

    /// The counters of a CPU that was named at the start.
    ///
    /// # Panics
    /// For another CPU.
    pub fn cpu(&self, cpu: u32) -> CpuCounters {
        let ring = &self.rings[cpu as usize * CPU..][..CPU];
        // taken first: what is given later only makes the difference larger
        let [taken, dropped, sleeps] = [TAKEN, DROPPED, SLEEPS].map(|at| ring[at].load(Acquire));
        CpuCounters {
            given: self.given_to(cpu).iter().map(|n| n.load(Relaxed)).sum(),
            taken,
            dropped,
            sleeps,
        }
    }

    fn slots(&self, cpu: u32) -> std::ops::Range<usize> {
        let queues = self.settings.queues as usize;
        cpu as usize * queues..(cpu as usize + 1) * queues
    }

    fn given_to(&self, cpu: u32) -> &[AtomicU64] {
        &self.given[self.slots(cpu)]
    }

    /// Has a bucket go to a CPU, or home, as soon as none of its packets could be overtaken.
    ///
    /// # Panics
    /// For a bucket from [`BUCKETS`] on.
    pub fn aim(&self, bucket: u16, cpu: Option<u32>) {
        let aim = cpu.map_or(0, |cpu| u64::from(cpu) + 1);
        self.aims[usize::from(bucket)].store(aim, Relaxed);
    }

    /// Where it goes, or went: none is home.
    ///
    /// # Panics
    /// For a bucket from [`BUCKETS`] on.
    pub fn aimed(&self, bucket: u16) -> Option<u32> {
        let aim = self.aims[usize::from(bucket)].load(Relaxed);
        aim.checked_sub(1).map(|cpu| cpu as u32)
    }

    /// Packets of each of [`VERDICTS`].
    ///
    /// # Errors
    /// bpf(2)'s.
    pub fn verdicts(&self) -> Result<Vec<u64>, Error> {
        let map = self.ebpf.map("verdicts").ok_or_else(|| missing("rps", "verdicts"))?;
        let map = PerCpuArray::<_, u64>::try_from(map).map_err(|e| bpf("read the verdicts of rps", &e))?;
        let sum = |verdict| {
            let cpus = map.get(&verdict, 0).map_err(|e| bpf("read the verdicts of rps", &e))?;
            Ok(cpus.iter().sum())
        };
        (0..VERDICTS.len() as u32).map(sum).collect()
    }

    /// Sends every bucket home and detaches when all are there, or after `patience`. Says how many were not.
    ///
    /// # Errors
    /// That of waiting for packets that a CPU is looking at; it is detached nevertheless.
    pub fn leave(mut self, patience: Duration) -> Result<usize, Error> {
        (0..BUCKETS as u16).for_each(|bucket| self.aim(bucket, None));
        // no packet goes by an older aim after this
        sys::grace_period().context("wait for packets under way (membarrier)")?;
        let until = Instant::now() + patience;
        let mut left = self.unsettled();
        while left > 0 && Instant::now() < until {
            self.fence();
            left = self.unsettled();
            if left > 0 {
                thread::sleep(Duration::from_millis(1));
            }
        }
        drop(self.link.take());
        Ok(left)
    }

    /// Buckets with packets that their CPU may not be done with.
    fn unsettled(&self) -> usize {
        let queues = self.settings.queues as usize;
        let unsettled = |(at, bucket): (usize, &[AtomicU64])| {
            let (ring, last) = (bucket[RING].load(Relaxed) as usize, bucket[LAST].load(Relaxed));
            ring > 0 && self.done[(ring - 1) * queues + at / BUCKETS].load(Relaxed) < last
        };
        self.buckets.chunks_exact(BUCKET).enumerate().filter(|&bucket| unsettled(bucket)).count()
    }

    /// Finds out which CPUs are done with all they were given. The thread of a CPUMAP entry holds packets with bottom halves off
    /// only (cpu_map_kthread_run): when this thread runs there and the FIFO is empty, it holds none. Of a CPU where this thread may not run
    /// (offline, a cpuset) nothing is found out.
    fn fence(&self) {
        let me = Pid::from_raw(0);
        let Ok(before) = sched_getaffinity(me) else { return };
        for &cpu in &self.settings.cpus {
            let mut only = CpuSet::new();
            if only.set(cpu as usize).and_then(|()| sched_setaffinity(me, &only)).is_ok() {
                self.look_at(cpu);
            }
        }
        // fails only where all those CPUs are gone, and then the kernel has chosen others
        let _ = sched_setaffinity(me, &before);
    }

    /// From the CPU itself.
    fn look_at(&self, cpu: u32) {
        let look = || -> Vec<u64> { self.given_to(cpu).iter().map(|n| n.load(Acquire)).collect() };
        let (given, now, still) = (look(), self.cpu(cpu), look());
        if given == still && now.taken + now.dropped == given.iter().sum::<u64>() {
            self.done[self.slots(cpu)].iter().zip(given).for_each(|(done, given)| done.store(given, Relaxed));
        }
    }
}

fn load(settings: &Settings, rings: u32, slots: u32) -> Result<Ebpf, Error> {
    let flag = u32::from;
    let (observe, symmetric) = (flag(settings.observe), flag(settings.symmetric));
    let (unfilled, heedless) = (flag(settings.unfilled), flag(settings.heedless));
    let types = Btf::from_sys_fs()
        .map_err(|e| bpf("read the kernel's types (/sys/kernel/btf/vmlinux, CONFIG_DEBUG_INFO_BTF)", &e))?;
    let mut loader = bare();
    loader
        .btf(Some(&types))
        .override_global("queues", &settings.queues, true)
        .override_global("observe", &observe, true)
        .override_global("symmetric", &symmetric, true)
        .override_global("unfilled", &unfilled, true)
        .override_global("heedless", &heedless, true)
        .map_max_entries("cpus", rings)
        .map_max_entries("rings", rings)
        .map_max_entries("history", rings * HISTORY)
        .map_max_entries("buckets", settings.queues * BUCKETS as u32)
        .map_max_entries("given", slots)
        .map_max_entries("done", slots);
    let object = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/rps.bpf.o"));
    loader.load(object).map_err(|e| bpf("load rps", &e))
}

/// An entry for each CPU, with `arrive` on it.
fn open_cpus(ebpf: &mut Ebpf, settings: &Settings) -> Result<(), Error> {
    let arrive: &mut Xdp = program(ebpf, "arrive")?;
    arrive.load().map_err(|e| bpf("load arrive of rps", &e))?;
    let arrive = arrive
        .fd()
        .and_then(|fd| fd.try_clone().map_err(Into::into))
        .map_err(|e| bpf("load arrive of rps", &e))?;
    let map = ebpf.map_mut("cpus").ok_or_else(|| missing("rps", "cpus"))?;
    let mut map = CpuMap::try_from(map).map_err(|e| bpf("cpus of rps", &e))?;
    for &cpu in &settings.cpus {
        let what = format!("make room for {} packets at CPU {cpu} (CPUMAP)", settings.frames);
        map.set(cpu, settings.frames, Some(&arrive), 0).map_err(|e| bpf(&what, &e))?;
    }
    let Some(Map::CpuMap(map)) = ebpf.map("cpus") else { return Err(missing("rps", "cpus")) };
    let id = map.info().map_err(|e| bpf("look at cpus of rps", &e))?.id();
    let identity = ebpf.map_mut("identity").ok_or_else(|| missing("rps", "identity"))?;
    let mut identity: Array<_, u32> = identity.try_into().map_err(|e| bpf("identity of rps", &e))?;
    identity.set(0, id, 0).map_err(|e| bpf("tell rps its map", &e))
}

fn trace(ebpf: &mut Ebpf, name: &'static str, tracepoint: &str) -> Result<(), Error> {
    let what = format!("follow CPUMAP (tracepoint xdp:{tracepoint})");
    let program: &mut RawTracePoint = program(ebpf, name)?;
    program.load().map_err(|e| bpf(&what, &e))?;
    program.attach(tracepoint).map_err(|e| bpf(&what, &e)).map(drop)
}

fn program<'a, P>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut P, Error>
where
    &'a mut P: TryFrom<&'a mut aya::programs::Program, Error = aya::programs::ProgramError>,
{
    let program = ebpf.program_mut(name).ok_or_else(|| missing("rps", name))?;
    program.try_into().map_err(|e| bpf(name, &e))
}
