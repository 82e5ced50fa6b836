//! An emulated link: what crosses it takes the way over a TAP, and a thread here decides what becomes of it.
//!
//! Everything hangs on descriptors: the TAP and the tcx programs end with the process, whatever way that ends.

use crate::{
    bpf::program,
    error::{During, Error, Result},
    impair::{Fates, Impairment, corrupt},
    line::Line,
    netlink::Route,
    netns::Netns,
    sys,
    testbed::Testbed,
};
use aya::{
    Ebpf, EbpfLoader,
    programs::{SchedClassifier, TcAttachType, tc::SchedClassifierLink},
};
use nix::{
    errno::Errno,
    net::if_::if_nametoindex,
    poll::{PollFd, PollFlags, ppoll},
    sys::time::{TimeSpec, TimeValLike},
};
use std::{
    fs,
    io::{PipeReader, PipeWriter, pipe},
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, Mutex, PoisonError},
    thread::{self, JoinHandle},
    time::Instant,
};

/// Which way the packets go that a link impairs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the wire to the host: a peer's data.
    ToHost,
    /// From the host to the wire: its acknowledgements and answers.
    ToWire,
}

/// What a link has done, in packets. What a receiver with checksums accepts is
/// `seen - lost + duplicated - corrupted`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct LinkCounts {
    /// Arrived at the link.
    pub seen: u64,
    /// Not let by.
    pub lost: u64,
    /// Let by twice.
    pub duplicated: u64,
    /// Held back so that others could pass.
    pub held_back: u64,
    /// Changed in one bit.
    pub corrupted: u64,
    /// Let by so far, both of a pair counted.
    pub passed: u64,
    /// Did not even arrive, because the link's thread was too slow: the load was too high for it.
    pub overrun: u64,
}

/// A link of a testbed that is impaired until this is dropped.
///
/// It concerns IPv4, IPv6 and tagged frames; neighbour discovery and group management pass untouched. Its thread
/// runs where the thread that starts it may run. Of two links in the same direction, one does nothing.
#[derive(Debug)]
pub struct Link {
    take: Option<SchedClassifierLink>,
    _give: SchedClassifierLink,
    tap: Tap,
    counts: Arc<Mutex<LinkCounts>>,
    stop: Option<PipeWriter>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Link {
    /// Impairs `testbed` from now on.
    pub fn start(testbed: &Testbed, direction: Direction, impairment: &Impairment) -> Result<Self> {
        impairment.check()?;
        let wire = testbed.wire();
        let tap = Tap::open(wire.netns())?;
        let [give, take] = attach(&tap, wire.device(), wire.ifindex(), direction)?;
        let (stopped, stop) = pipe().during(|| "making a pipe".into())?;
        let counts = Arc::new(Mutex::new(LinkCounts::default()));
        let crossing = Crossing {
            tap: tap.fd.try_clone().during(|| format!("duplicating the descriptor of {}", tap.name))?,
            fates: Fates::new(*impairment),
            line: Line::new(),
            start: Instant::now(),
            counted: LinkCounts::default(),
            counts: Arc::clone(&counts),
        };
        let thread = thread::Builder::new().name("link".into()).spawn(move || crossing.run(&stopped));
        let thread = thread.during(|| "starting the link's thread".into())?;
        Ok(Self { take: Some(take), _give: give, tap, counts, stop: Some(stop), thread: Some(thread) })
    }

    /// What it has done so far.
    pub fn counts(&self) -> Result<LinkCounts> {
        let counts = *self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(LinkCounts { overrun: self.tap.dropped()?, ..counts })
    }

    /// Ends the impairment. What was on its way arrives at once.
    pub fn stop(mut self) -> Result<LinkCounts> {
        self.end()?;
        self.counts()
    }

    /// The device that generated frames enter the link by.
    pub(crate) fn ifindex(&self) -> u32 {
        self.tap.ifindex
    }

    fn end(&mut self) -> Result<()> {
        drop(self.take.take()); // waits for packets that the program was looking at (tcx_link_release, synchronize_rcu)
        drop(self.stop.take());
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(result)) => result,
            Some(Err(panic)) => std::panic::resume_unwind(panic),
            None => Ok(()),
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        let _ = self.end();
    }
}

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/link.bpf.o"));

/// What gives packets back and what takes them, in force as long as the result is.
fn attach(tap: &Tap, device: &str, ifindex: u32, direction: Direction) -> Result<[SchedClassifierLink; 2]> {
    let (side, give_flags) = match direction {
        Direction::ToHost => (TcAttachType::Egress, 0u64),
        Direction::ToWire => (TcAttachType::Ingress, 1), // BPF_F_INGRESS
    };
    let mut bpf = EbpfLoader::new()
        .override_global("tap_ifindex", &tap.ifindex, true)
        .override_global("device_ifindex", &ifindex, true)
        .override_global("give_flags", &give_flags, true)
        .load(OBJECT)
        .map_err(|error| Error::bpf("loading the link (bpf)", &error))?;
    tap.netns.enter(|| {
        let give = attach_one(&mut bpf, "link_give", &tap.name, TcAttachType::Ingress)?;
        Ok([give, attach_one(&mut bpf, "link_take", device, side)?])
    })?
}

fn attach_one(bpf: &mut Ebpf, name: &str, device: &str, side: TcAttachType) -> Result<SchedClassifierLink> {
    let program: &mut SchedClassifier = program(bpf, name)?;
    program.load().map_err(|error| Error::bpf("loading the link (BPF_PROG_LOAD)", &error))?;
    let attached = program.attach(device, side).and_then(|id| program.take_link(id));
    attached.map_err(|error| Error::bpf("attaching the link (tcx)", &error))
}

/// The TAP of a link, in the wire's namespace.
#[derive(Debug)]
struct Tap {
    fd: OwnedFd,
    name: String,
    ifindex: u32,
    netns: Netns,
}

impl Tap {
    fn open(netns: &Netns) -> Result<Self> {
        let (fd, name) =
            netns.enter(|| sys::open_tap("link%d"))?.during(|| "making a TAP (/dev/net/tun)".into())?;
        // IPv6 would send packets of its own.
        netns.sysctl(&format!("net.ipv6.conf.{name}.disable_ipv6"), "1")?;
        let ifindex = netns.enter(|| {
            let index = if_nametoindex(name.as_str())?;
            let route = Route::open()?;
            route.set_queue_len(index, QUEUE)?;
            route.set_mtu(index, MTU)?;
            route.set_up(index, true)?;
            Ok::<_, std::io::Error>(index)
        })?;
        let ifindex = ifindex.during(|| format!("setting {name} up (RTM_SETLINK)"))?;
        Ok(Self { fd, name, ifindex, netns: netns.clone() })
    }

    /// Packets that its queue had no room for.
    fn dropped(&self) -> Result<u64> {
        let all = self.netns.enter(|| fs::read_to_string("/proc/thread-self/net/dev"))?;
        let all = all.during(|| "reading /proc/thread-self/net/dev".into())?;
        let line = all.lines().find_map(|line| line.trim_start().strip_prefix(&self.name)?.strip_prefix(':'));
        let dropped = line.and_then(|line| line.split_whitespace().nth(11)?.parse().ok());
        dropped
            .ok_or_else(|| Error::Spec(format!("/proc/thread-self/net/dev tells nothing of {}", self.name)))
    }
}

const QUEUE: u32 = 16_384; // packets
const MTU: u32 = 65_521; // the most that a TAP has: no packet is too long for it
const BATCH: u32 = 256; // packets read before others are let by
const LONGEST: usize = 65_535;

/// The thread that packets cross the link by.
struct Crossing {
    tap: OwnedFd,
    fates: Fates,
    line: Line<Vec<u8>>,
    start: Instant,
    counted: LinkCounts,
    counts: Arc<Mutex<LinkCounts>>,
}

impl Crossing {
    fn run(mut self, stopped: &PipeReader) -> Result<()> {
        let mut buffer = vec![0; LONGEST];
        while !self.wait(stopped)? {
            self.read(&mut buffer)?;
            self.write(self.now_ns())?;
            self.publish();
        }
        while self.read(&mut buffer)? {}
        self.write(u64::MAX)?;
        self.publish();
        Ok(())
    }

    /// Until a packet comes, one has to leave, or all is over: then true.
    fn wait(&self, stopped: &PipeReader) -> Result<bool> {
        let mut fds = [
            PollFd::new(self.tap.as_fd(), PollFlags::POLLIN),
            PollFd::new(stopped.as_fd(), PollFlags::POLLIN),
        ];
        let left_ns = self.line.next_due_ns().map(|due_ns| due_ns.saturating_sub(self.now_ns()));
        match ppoll(&mut fds, left_ns.map(|ns| TimeSpec::nanoseconds(ns as i64)), None) {
            Ok(_) => Ok(fds[1].revents().is_some_and(|events| !events.is_empty())),
            Err(Errno::EINTR) => Ok(false),
            Err(errno) => Err(Error::sys("waiting for packets on the link (ppoll)", errno)),
        }
    }

    /// Takes what has come; true when there may be more.
    fn read(&mut self, buffer: &mut [u8]) -> Result<bool> {
        for _ in 0..BATCH {
            match nix::unistd::read(&self.tap, buffer) {
                Ok(length) => self.judge(&buffer[..length]),
                Err(Errno::EAGAIN) => return Ok(false),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(Error::sys("reading from the link's TAP (read)", errno)),
            }
        }
        Ok(true)
    }

    fn judge(&mut self, frame: &[u8]) {
        let fate = self.fates.fate();
        self.counted.seen += 1;
        if fate.lost {
            self.counted.lost += 1;
            return;
        }
        let mut changed = frame.to_vec();
        self.counted.corrupted += u64::from(fate.corrupted.is_some_and(|bit| corrupt(&mut changed, bit)));
        self.counted.held_back += u64::from(fate.held_back);
        self.counted.duplicated += u64::from(fate.duplicated);
        let copy = fate.duplicated.then(|| frame.to_vec());
        let now_ns = self.now_ns();
        for frame in std::iter::once(changed).chain(copy) {
            match fate.held_back {
                true => self.line.hold(now_ns, fate.delay_ns, frame),
                false => self.line.push(now_ns, fate.delay_ns, frame),
            }
        }
    }

    /// Lets those by whose time has come.
    fn write(&mut self, now_ns: u64) -> Result<()> {
        while let Some(frame) = self.line.pop(now_ns) {
            while let Err(errno) = nix::unistd::write(&self.tap, &frame) {
                if errno != Errno::EINTR {
                    return Err(Error::sys("writing to the link's TAP (write)", errno));
                }
            }
            self.counted.passed += 1;
        }
        Ok(())
    }

    fn publish(&self) {
        *self.counts.lock().unwrap_or_else(PoisonError::into_inner) = self.counted;
    }

    fn now_ns(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }
}
