//! The broker's state and its one loop: whatever becomes readable is dealt with, nothing blocks on a program.

use crate::{
    Error, MAX_FRAME, Pins,
    connections::Connections,
    device::{self, Device, Inventory},
    disposal::Disposal,
    endpoint,
    error::Context,
    lease::{Ended, Lease, Pool},
    netlink::{self, Route},
    registry::{Channel, Closed, Registered, is_pass},
    rules::{Change, Op, Place, Table, expand},
    sock_diag::{Entry, SockDiag},
    status::{ConnectionStatus, DeviceStatus, PassedStatus, ProcessStatus, RingStatus, Status},
    status_socket::StatusSocket,
    steer::Steer,
    sys,
    tap::{self, Tap},
};
use hoist_ipc::{Reason, tcp::Policy};
use hoist_xsk::{Mode, Statistics};
use nix::sys::{
    epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
    socket::{AddressFamily, SockFlag, SockType, socketpair},
    time::TimeSpec,
    timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags},
};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    ops::RangeInclusive,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    sync::atomic::Ordering::Relaxed,
    time::Duration,
};

/// Datagrams an ephemeral port must have received before the shim registers it.
pub(crate) const YOUNG: u32 = 16;
const CHANNELS: usize = 256;
const MESSAGES: usize = 100;
const SPOKEN: usize = 200;
const PAST_PROCESSES: usize = 64;
/// How often the sockets of other processes are looked at.
const WATCH: Duration = Duration::from_secs(1);

/// Ports to lift.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Ports {
    /// Every port.
    All,
    /// These.
    Some(Vec<RangeInclusive<u16>>),
    /// None.
    Off,
}

impl Ports {
    /// Whether `port` is among them.
    pub fn contain(&self, port: u16) -> bool {
        match self {
            Self::All => true,
            Self::Some(ranges) => ranges.iter().any(|range| range.contains(&port)),
            Self::Off => false,
        }
    }
}

/// TCP connections to lift.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Tcp {
    /// Which of the selected ones.
    pub policy: Policy,
    /// Ports of the serving side: the local port of an accepted connection, the peer's of one that was connected.
    pub ports: Ports,
}

/// What the user asked for.
#[derive(Clone, Debug)]
pub struct Config {
    /// Devices to lift from; none: all that can.
    pub devices: Vec<String>,
    /// UDP ports.
    pub udp: Ports,
    /// TCP connections.
    pub tcp: Tcp,
    /// Lift a flow only after the stack has delivered a datagram of it (`--admit flow`).
    pub admit_flow: bool,
    /// Zero-copy, copy, or what the driver can.
    pub mode: Mode,
    /// Microseconds to spin before sleeping.
    pub spin_us: u32,
    /// For status: the program and its arguments.
    pub command: Vec<String>,
}

/// A device that `steer` is attached to.
pub(crate) struct Steered {
    pub(crate) steer: Steer,
    pub(crate) tap: Tap,
    pub(crate) generic: Option<String>,
    pub(crate) partial_checksum: bool,
    pub(crate) driver: String,
    /// How its last rings were bound: zero-copy or not, and why not.
    pub(crate) bound: Option<(bool, Option<String>)>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Source {
    Inherited,
    Channel(u64),
    Process(u64),
    Monitor,
    Timer,
    Status,
}

impl Source {
    fn token(self) -> u64 {
        match self {
            Self::Inherited => 0,
            Self::Monitor => 1,
            Self::Timer => 2,
            Self::Status => 3,
            Self::Channel(id) => id << 3 | 4,
            Self::Process(id) => id << 3 | 5,
        }
    }

    fn of(token: u64) -> Option<Self> {
        Some(match (token & 7, token >> 3) {
            (0, _) => Self::Inherited,
            (1, _) => Self::Monitor,
            (2, _) => Self::Timer,
            (3, _) => Self::Status,
            (4, id) => Self::Channel(id),
            (5, id) => Self::Process(id),
            _ => return None,
        })
    }
}

/// The broker of one run.
pub struct Broker {
    pub(crate) config: Config,
    poll: Epoll,
    pub(crate) inherited: OwnedFd,
    route: Route,
    monitor: netlink_sys::Socket,
    timer: TimerFd,
    pub(crate) diag: SockDiag,
    status_socket: Option<StatusSocket>,
    pub(crate) netns: Option<u64>,
    pub(crate) inventory: Inventory,
    pub(crate) steered: BTreeMap<u32, Steered>,
    /// Devices on which steer or rings could not be set up, and why.
    pub(crate) broken: BTreeMap<u32, String>,
    /// TCP connections, if they are followed.
    pub(crate) connections: Option<Connections>,
    pub(crate) table: Table,
    /// Frames, while some process has rings.
    pub(crate) pool: Option<Pool>,
    /// Rings of processes, by channel.
    pub(crate) leases: BTreeMap<u64, Lease>,
    /// The process that `hoist run` started.
    pub(crate) program: Option<u32>,
    /// Those that do not listen any more and are not dead yet.
    deaf: BTreeMap<u64, (Lease, Channel)>,
    pub(crate) channels: BTreeMap<u64, Channel>,
    next_channel: u64,
    pub(crate) closed: Closed,
    past_processes: VecDeque<ProcessStatus>,
    past_rings: BTreeMap<(String, u32), RingStatus>,
    leaked_frames: i64,
    leases_ended: u64,
    messages: VecDeque<String>,
    unread: Vec<String>,
    pub(crate) denied: Option<String>,
    pub(crate) disposal: Disposal,
    /// Rules were removed since the last grace period.
    pub(crate) stale: bool,
    said: usize,
}

impl Broker {
    /// Starts a broker in the network namespace of this thread. The descriptor returned is for the program to inherit.
    ///
    /// # Errors
    /// No permission, an unknown device, or one of `--dev` that cannot be lifted from.
    pub fn start(config: Config) -> Result<(Self, OwnedFd), Error> {
        let (inherited, theirs) = socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        )
        .context("make the broker's socket")?;
        // The program's end blocks: it is shared by processes that expect it.
        set_blocking(theirs.as_fd())?;
        let route = Route::open()?;
        let monitor = netlink::monitor()?;
        let inventory = Inventory::load(&route)?;
        check_named(&inventory, &config.devices)?;
        let timer =
            TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK)
                .context("make a timer")?;
        let every = Expiration::Interval(TimeSpec::from(WATCH));
        timer.set(every, TimerSetTimeFlags::empty()).context("set a timer")?;
        let diag = SockDiag::open()?;
        let netns = endpoint::netns(inherited.as_fd());
        let poll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).context("make an epoll instance")?;
        let mut broker = Self {
            config,
            poll,
            inherited,
            route,
            monitor,
            timer,
            diag,
            status_socket: None,
            netns,
            inventory,
            steered: BTreeMap::new(),
            broken: BTreeMap::new(),
            connections: None,
            table: Table::default(),
            pool: None,
            leases: BTreeMap::new(),
            program: None,
            deaf: BTreeMap::new(),
            channels: BTreeMap::new(),
            next_channel: 1,
            closed: Closed::default(),
            past_processes: VecDeque::new(),
            past_rings: BTreeMap::new(),
            leaked_frames: 0,
            leases_ended: 0,
            messages: VecDeque::new(),
            unread: Vec::new(),
            denied: None,
            disposal: Disposal::default(),
            stale: false,
            said: 0,
        };
        broker.status_socket = match StatusSocket::open() {
            Ok(socket) => Some(socket),
            Err(error) => {
                broker.say(format!("no status socket, `hoist status` will not see this run: {error}"));
                None
            }
        };
        broker.follow_connections();
        if let Err(error) = tap::sweep(&broker.route) {
            broker.say(error.to_string());
        }
        broker.watch_all()?;
        Ok((broker, theirs))
    }

    /// Without cgroup v2, bpffs or the permission UDP goes on alone.
    fn follow_connections(&mut self) {
        if self.config.tcp.policy == Policy::Off {
            return;
        }
        match Connections::start(&self.config.tcp, self.netns) {
            Ok(connections) => self.connections = Some(connections),
            Err(error) => self.say(format!("TCP is not lifted (--tcp off keeps this quiet): {error}")),
        }
    }

    fn watch_all(&self) -> Result<(), Error> {
        self.watch(self.inherited.as_fd(), Source::Inherited)?;
        self.watch(self.timer.as_fd(), Source::Timer)?;
        let event = EpollEvent::new(EpollFlags::EPOLLIN, Source::Monitor.token());
        self.poll.add(borrowed(&self.monitor), event).context("watch devices")?;
        match &self.status_socket {
            Some(socket) => self.watch(socket.as_fd(), Source::Status),
            None => Ok(()),
        }
    }

    fn watch(&self, fd: BorrowedFd<'_>, source: Source) -> Result<(), Error> {
        self.poll
            .add(fd, EpollEvent::new(EpollFlags::EPOLLIN, source.token()))
            .context("watch a descriptor (epoll)")
    }

    /// Attaches to every device in question now, not when the first socket needs it, and says what stands in the way.
    ///
    /// # Errors
    /// No device can be lifted from.
    pub fn require(&mut self) -> Result<(), Error> {
        let devices: Vec<Device> = self.inventory.candidates(&self.config.devices).cloned().collect();
        for device in &devices {
            self.ensure_steered(device);
        }
        let why: Vec<_> = self.broken.values().cloned().collect();
        match self.steered.is_empty() {
            true if why.is_empty() => {
                Err(Error::Other("no device is up that packets can be lifted from".into()))
            }
            true => Err(Error::Other(why.join("; "))),
            false => Ok(()),
        }
    }

    /// Deals with everything that is ready; never blocks.
    ///
    /// # Errors
    /// epoll_wait(2)'s.
    pub fn dispatch(&mut self) -> Result<(), Error> {
        let mut events = [EpollEvent::empty(); 64];
        let ready = match self.poll.wait(&mut events, EpollTimeout::ZERO) {
            Err(nix::Error::EINTR) => 0,
            other => other.context("epoll_wait")?,
        };
        for event in &events[..ready] {
            match Source::of(event.data()) {
                Some(Source::Inherited) => self.accept(),
                Some(Source::Channel(id)) => self.serve(id),
                Some(Source::Process(id)) => self.close_channel(id),
                Some(Source::Monitor) => self.devices_changed(),
                Some(Source::Timer) => self.tick(),
                Some(Source::Status) => self.serve_status(),
                None => {}
            }
        }
        Ok(())
    }

    fn serve_status(&mut self) {
        let status = self.status();
        if let Some(socket) = &mut self.status_socket {
            socket.serve(&self.poll, Source::Status.token(), &status);
        }
    }

    fn tick(&mut self) {
        // A timer that cannot be read would only ring again.
        let _ = self.timer.wait();
        if let Some(pool) = &mut self.pool {
            pool.give_stranded();
        }
        self.look_for_strangers();
    }

    /// Nobody can say Hello any more.
    pub(crate) fn stop_accepting(&self) {
        let _ = self.poll.delete(&self.inherited);
    }

    /// Registers a new process.
    pub(crate) fn add_channel(&mut self, build: impl FnOnce(u64) -> Channel) -> Result<u64, Error> {
        if self.channels.len() >= CHANNELS {
            return Err(Error::Other(format!("more than {CHANNELS} processes talk to the broker")));
        }
        let id = self.next_channel;
        self.next_channel += 1;
        let channel = build(id);
        self.watch(channel.socket.as_fd(), Source::Channel(id))?;
        self.watch(channel.pidfd.as_fd(), Source::Process(id))?;
        self.channels.insert(id, channel);
        Ok(id)
    }

    /// The process is gone, or has closed its end.
    pub(crate) fn close_channel(&mut self, id: u64) {
        let cookies: Vec<u64> =
            self.channels.get(&id).map(|c| c.sockets.keys().copied().collect()).unwrap_or_default();
        for &cookie in &cookies {
            self.withdraw(id, cookie);
        }
        self.end_lease(id);
        let Some(channel) = self.channels.remove(&id) else { return self.bury(id) };
        for socket in channel.sockets.values() {
            self.closed.add(&channel.socket_status(socket));
        }
        let _ = self.poll.delete(&channel.socket);
        let past = ProcessStatus { ended: true, ..process_status(&channel, false) };
        self.past_processes.push_back(past);
        if self.past_processes.len() > PAST_PROCESSES {
            self.past_processes.pop_front();
        }
        match self.leases.remove(&id) {
            Some(lease) => {
                self.deaf.insert(id, (lease, channel)); // until its pidfd says that it is dead
            }
            None => self.dismiss(channel),
        }
    }

    fn dismiss(&mut self, channel: Channel) {
        let _ = self.poll.delete(&channel.pidfd);
        self.disposal.close(channel.socket); // with whatever descriptors wait in it
    }

    /// A process that did not listen any more is dead: nobody uses its frames.
    fn bury(&mut self, id: u64) {
        let Some((lease, channel)) = self.deaf.remove(&id) else { return };
        self.reclaim(&lease, &channel);
        self.dismiss(channel);
    }

    /// Takes the rings back from a process. It stays in `leases` if others have rings, too, and it may still use its own.
    pub(crate) fn end_lease(&mut self, id: u64) {
        let Some(lease) = self.leases.remove(&id) else { return };
        for ring in &lease.rings {
            if let Some(steered) = self.steered.get_mut(&ring.info.ifindex) {
                // A queue that stays in the map ends with its socket all the same.
                let _ = steered.steer.unset_ring(lease.seat, ring.info.queue);
            }
        }
        let last = self.leases.is_empty();
        if let Some(connections) = &self.connections {
            connections.pass_all(lease.seat, last);
        }
        self.stale = true; // the queues' rings
        if let Err(error) = self.settle() {
            self.say(format!("wait for packets on their way (membarrier): {error}"));
        }
        let Some(channel) = self.channels.remove(&id) else { return };
        if last {
            self.end_pool(&lease, &channel);
        } else if channel.has_left() {
            self.reclaim(&lease, &channel);
        } else {
            self.leases.insert(id, lease);
        }
        self.channels.insert(id, channel);
    }

    /// The last process is gone.
    fn end_pool(&mut self, lease: &Lease, channel: &Channel) {
        let Some(pool) = self.pool.take() else { return };
        let others = !self.deaf.is_empty();
        for (_, deaf) in std::mem::take(&mut self.deaf).into_values() {
            self.dismiss(deaf);
        }
        let taps = |ifindex| self.steered.get(&ifindex).map(|s| (&s.tap, s.partial_checksum));
        let ended = pool.end(lease, &channel.page, channel.alive(), others, taps);
        self.keep(ended, channel);
    }

    fn reclaim(&mut self, lease: &Lease, channel: &Channel) {
        let Some(pool) = &mut self.pool else { return };
        let taps = |ifindex| self.steered.get(&ifindex).map(|s| (&s.tap, s.partial_checksum));
        let ended = pool.reclaim(lease, &channel.page, taps);
        self.keep(ended, channel);
    }

    fn keep(&mut self, ended: Vec<Ended>, channel: &Channel) {
        self.leases_ended += 1;
        for ended in ended {
            let info = ended.info;
            let mut count =
                self.ring_status(&channel.page, info.ring, info.ifindex, info.queue, ended.statistics);
            count.rode = count.rode.saturating_add(ended.rode);
            self.keep_ring(&ended, &count);
        }
    }

    fn keep_ring(&mut self, ended: &Ended, count: &RingStatus) {
        let leaked = ended.frames.leaked();
        self.leaked_frames = self.leaked_frames.saturating_add(leaked);
        if leaked != 0 {
            let text = format!(
                "{} queue {}: {leaked} frames unaccounted for: {:?}",
                count.device, count.queue, ended.frames
            );
            self.say(text);
        }
        let sum = self.past_rings.entry((count.device.clone(), count.queue)).or_default();
        sum.device.clone_from(&count.device);
        sum.queue = count.queue;
        sum.add(count);
    }

    fn ring_status(
        &self,
        page: &hoist_ipc::page::StatsPage,
        ring: u32,
        ifindex: u32,
        queue: u32,
        kernel: Statistics,
    ) -> RingStatus {
        let stats = &page.rings[ring as usize];
        let device = self.inventory.0.get(&ifindex).map_or_else(|| ifindex.to_string(), |d| d.name.clone());
        RingStatus {
            device,
            queue,
            frames: 0,
            received: stats.received.load(Relaxed),
            bad_checksum: stats.bad_checksum.load(Relaxed),
            bad_header: stats.bad_header.load(Relaxed),
            rode: stats.rode.load(Relaxed),
            ride_failed: stats.ride_failed.load(Relaxed),
            bad_descriptor: stats.bad_descriptor.load(Relaxed),
            ring_full: kernel.rx_ring_full,
            fill_empty: kernel.rx_fill_ring_empty_descs,
            rx_dropped: kernel.rx_dropped,
            wakeups: stats.wakeups.load(Relaxed),
        }
    }

    /// Loads and attaches steer and makes the TAP, unless that is done or has failed.
    pub(crate) fn ensure_steered(&mut self, device: &Device) -> bool {
        if self.steered.contains_key(&device.ifindex) {
            return true;
        }
        if self.broken.contains_key(&device.ifindex) {
            return false;
        }
        let pins = self.connections.as_ref().map(|connections| &connections.pins);
        match steer_device(&self.route, &self.config, device, pins) {
            Ok(steered) => {
                self.steered.insert(device.ifindex, steered);
                true
            }
            Err(error) => {
                let text = format!("{}: {error}", device.name);
                self.say(text.clone());
                self.broken.insert(device.ifindex, text);
                false
            }
        }
    }

    /// Whether nobody but one process has rings: what is sent to many is lifted only then.
    pub(crate) fn one_has_rings(&self) -> bool {
        self.leases.len() <= 1
    }

    /// Devices on which a process has rings, for the rules.
    pub(crate) fn places(&self, id: u64) -> Vec<Place> {
        let Some(lease) = self.leases.get(&id) else { return Vec::new() };
        let held = self.inventory.0.values().filter(|d| lease.has(d.ifindex) && d.unfit().is_none());
        held.map(Place::of).collect()
    }

    pub(crate) fn apply(&mut self, ops: Vec<Op>) {
        for (ifindex, key, change) in ops {
            let Some(steered) = self.steered.get_mut(&ifindex) else { continue };
            self.stale |= change == Change::NoRule;
            let allowed = if change == Change::Port { steered.tap.allow(key.port) } else { Ok(()) };
            if let Err(error) = allowed.and_then(|()| steered.steer.apply(key, change)) {
                self.say(format!("port {}: {error}", key.port));
            }
        }
    }

    /// Waits until packets that met a removed rule are in their rings.
    pub(crate) fn settle(&mut self) -> std::io::Result<()> {
        if self.stale {
            sys::grace_period()?;
            self.stale = false;
        }
        Ok(())
    }

    /// Removes the rules of one socket.
    pub(crate) fn withdraw(&mut self, id: u64, cookie: u64) {
        let Some(socket) = self.channels.get_mut(&id).and_then(|c| c.sockets.get_mut(&cookie)) else {
            return;
        };
        let (keys, timestamps, seat) = (std::mem::take(&mut socket.keys), socket.timestamps, socket.seat);
        let ops = self.table.remove(&keys, timestamps, seat);
        self.apply(ops);
    }

    /// Brings the rules of all lifted sockets up to date.
    pub(crate) fn refresh_rules(&mut self) {
        let owners: Vec<u64> = self.leases.keys().copied().collect();
        owners.into_iter().for_each(|owner| self.refresh_rules_of(owner));
    }

    fn refresh_rules_of(&mut self, owner: u64) {
        let (places, alone) = (self.places(owner), self.one_has_rings());
        let Some(channel) = self.channels.get_mut(&owner) else { return };
        let mut changes = Vec::new();
        let lifted: Vec<u64> = channel
            .sockets
            .iter()
            .filter(|(_, s)| s.verdict == Reason::Lifted)
            .map(|(cookie, _)| *cookie)
            .collect();
        for cookie in lifted {
            let Some(endpoint) = channel.sockets.get(&cookie).map(|s| s.endpoint.clone()) else { continue };
            let keys = expand(&channel.want(&endpoint), &places, alone);
            let Some(socket) = channel.sockets.get_mut(&cookie) else { continue };
            if keys != socket.keys {
                let old = std::mem::replace(&mut socket.keys, keys.clone());
                changes.push((old, keys, socket.timestamps, socket.seat));
            }
        }
        for (old, new, timestamps, seat) in changes {
            let ops = self.table.add(&new, timestamps, seat);
            self.apply(ops);
            let ops = self.table.remove(&old, timestamps, seat);
            self.apply(ops);
        }
    }

    fn devices_changed(&mut self) {
        netlink::swallow(&self.monitor);
        let inventory = match Inventory::load(&self.route) {
            Ok(inventory) => inventory,
            Err(error) => return self.say(error.to_string()),
        };
        if inventory == self.inventory {
            return;
        }
        self.inventory = inventory;
        let gone: Vec<u32> =
            self.steered.iter().filter(|(index, s)| !self.still_ours(**index, s)).map(|(i, _)| *i).collect();
        for ifindex in gone {
            self.lose_device(ifindex);
        }
        self.broken.retain(|index, _| self.inventory.0.contains_key(index));
        for (index, steered) in &mut self.steered {
            if let Some(device) = self.inventory.0.get(index) {
                // Failing leaves the old address, whose packets no longer come: they pass.
                let _ = steered.steer.describe(device, MAX_FRAME);
            }
        }
        self.refresh_rules();
    }

    fn still_ours(&self, ifindex: u32, steered: &Steered) -> bool {
        let device = self.inventory.0.get(&ifindex);
        device.is_some_and(|d| d.xdp_program == Some(steered.steer.program_id()))
    }

    /// The device was removed or steer was detached from it by another hand.
    fn lose_device(&mut self, ifindex: u32) {
        self.say(format!(
            "interface {ifindex}: the device or its XDP program is gone; its sockets go on through the kernel"
        ));
        self.steered.remove(&ifindex);
        self.table.forget(ifindex);
        let gone: Vec<_> = self.leases.values_mut().flat_map(|lease| lease.drop_device(ifindex)).collect();
        if let Some(pool) = &mut self.pool {
            pool.drop_device(ifindex);
        }
        for socket in self.channels.values_mut().flat_map(|channel| channel.sockets.values_mut()) {
            let had = socket.keys.len();
            socket.keys.retain(|(at, _)| *at != ifindex);
            if had > 0 && socket.keys.is_empty() {
                socket.verdict = Reason::DeviceGone;
            }
        }
        drop(gone);
    }

    /// Once a second: sockets of other processes on lifted ports, and lifted sockets that are no more.
    fn look_for_strangers(&mut self) {
        let lifted =
            |id: &u64| self.channels.get(id).is_some_and(|c| c.sockets.values().any(|s| !s.keys.is_empty()));
        let owners: Vec<u64> = self.leases.keys().copied().filter(lifted).collect();
        if owners.is_empty() {
            return;
        }
        match self.diag.udp(None) {
            Ok(entries) => owners.into_iter().for_each(|owner| self.compare(owner, &entries)),
            Err(error) => self.say(error.to_string()),
        }
    }

    fn compare(&mut self, owner: u64, entries: &[Entry]) {
        let mut by_port: BTreeMap<u16, Vec<&Entry>> = BTreeMap::new();
        entries.iter().for_each(|entry| by_port.entry(entry.port).or_default().push(entry));
        let alive: BTreeSet<u64> = entries.iter().map(|entry| entry.cookie).collect();
        let Some(channel) = self.channels.get(&owner) else { return };
        let lifted = channel.sockets.values().filter(|s| !s.keys.is_empty());
        let shared = |endpoint: &endpoint::Endpoint| {
            let others = by_port.get(&endpoint.local.port()).into_iter().flatten().copied();
            self.is_shared(owner, endpoint, others, || self.speakers())
        };
        let shared: Vec<u64> = lifted.filter(|s| shared(&s.endpoint)).map(|s| s.endpoint.cookie).collect();
        let Some(channel) = self.channels.get_mut(&owner) else { return };
        for (cookie, socket) in &mut channel.sockets {
            socket.missed = if alive.contains(cookie) { 0 } else { socket.missed + 1 };
            socket.shared = if shared.contains(cookie) { socket.shared + 1 } else { 0 };
        }
        // Two looks: a dump may miss a socket that moves between hash chains meanwhile, and another of the run may be about to say who it is.
        let twice = |of: fn(&Registered) -> u32| -> Vec<u64> {
            channel.sockets.iter().filter(|(_, s)| of(s) > 1).map(|(c, _)| *c).collect()
        };
        let (demoted, dead) = (twice(|s| s.shared), twice(|s| s.missed));
        for cookie in demoted {
            self.refuse(owner, cookie, Reason::PortShared);
        }
        for cookie in dead {
            self.forget(owner, cookie);
        }
    }

    /// A process that has rings.
    pub fn holds_rings(&self) -> Option<u32> {
        let owner = self.leases.keys().next()?;
        self.channels.get(owner).map(|channel| channel.pid)
    }

    /// Why a socket that was to be lifted is not, if so: for `--require`.
    pub fn denied(&self) -> Option<&str> {
        self.denied.as_deref()
    }

    /// Notes a message for people.
    pub(crate) fn say(&mut self, text: String) {
        if self.messages.back() == Some(&text) {
            return;
        }
        if self.messages.len() == MESSAGES {
            self.messages.pop_front();
        }
        self.messages.push_back(text.clone());
        // A process that wants to be noticed shall not fill the terminal.
        self.said += 1;
        match self.said {
            ..SPOKEN => self.unread.push(text),
            SPOKEN => self.unread.push(format!("{text} (further messages: hoist status --json)")),
            _ => {}
        }
    }

    /// Messages since the last call.
    pub fn take_messages(&mut self) -> Vec<String> {
        std::mem::take(&mut self.unread)
    }

    /// Ends all leases, so that a last status holds everything.
    pub fn finish(&mut self) {
        let ids: Vec<u64> = self.channels.keys().copied().collect();
        for id in ids {
            self.close_channel(id);
        }
    }

    /// How things stand.
    pub fn status(&self) -> Status {
        let present = self.channels.iter().map(|(id, c)| process_status(c, self.leases.contains_key(id)));
        let sockets = self.channels.values().flat_map(|c| c.sockets.values().map(|s| c.socket_status(s)));
        Status {
            version: env!("CARGO_PKG_VERSION").into(),
            pid: std::process::id(),
            command: self.config.command.clone(),
            devices: self.device_statuses(),
            processes: self.past_processes.iter().cloned().chain(present).collect(),
            sockets: sockets.collect(),
            closed: self.closed.list(),
            connections: self.connection_statuses(),
            closed_connections: self.connections.as_ref().map(Connections::closed).unwrap_or_default(),
            rings: self.ring_statuses(),
            leaked_frames: self.leaked_frames,
            leases_ended: self.leases_ended,
            messages: self.messages.iter().cloned().collect(),
        }
    }

    fn connection_statuses(&self) -> Vec<ConnectionStatus> {
        let mut open = self.connections.as_ref().map(Connections::statuses).unwrap_or_default();
        let sent = if open.is_empty() { None } else { self.diag.tcp_sent().ok() };
        for (cookie, bytes) in sent.into_iter().flatten() {
            if let Some(connection) = open.get_mut(&cookie) {
                connection.sent_bytes = Some(bytes);
            }
        }
        open.into_values().collect()
    }

    fn ring_statuses(&self) -> Vec<RingStatus> {
        let mut rings = self.past_rings.clone();
        for (lease, channel) in self.leases.iter().filter_map(|(id, l)| Some((l, self.channels.get(id)?))) {
            for ring in &lease.rings {
                let kernel = ring.socket.statistics().unwrap_or_default();
                let count = self.ring_status(
                    &channel.page,
                    ring.info.ring,
                    ring.info.ifindex,
                    ring.info.queue,
                    kernel,
                );
                let sum = rings.entry((count.device.clone(), count.queue)).or_default();
                sum.device.clone_from(&count.device);
                sum.queue = count.queue;
                sum.frames = ring.info.frames;
                sum.add(&count);
            }
        }
        rings.into_values().collect()
    }

    fn device_statuses(&self) -> Vec<DeviceStatus> {
        let wanted = |d: &&Device| {
            self.steered.contains_key(&d.ifindex)
                || self.broken.contains_key(&d.ifindex)
                || self.config.devices.contains(&d.name)
                || (self.config.devices.is_empty() && d.unfit().is_none())
        };
        self.inventory.0.values().filter(wanted).map(|device| self.device_status(device)).collect()
    }

    fn device_status(&self, device: &Device) -> DeviceStatus {
        let unattached = || self.broken.get(&device.ifindex).cloned().or_else(|| device.unfit());
        let mut status = DeviceStatus {
            name: device.name.clone(),
            ifindex: device.ifindex,
            driver: sys::driver(&device.name).unwrap_or_default(),
            xdp: "none".into(),
            xdp_reason: unattached(),
            mode: "none".into(),
            ..DeviceStatus::default()
        };
        let Some(steered) = self.steered.get(&device.ifindex) else { return status };
        status.driver.clone_from(&steered.driver);
        status.xdp = if steered.generic.is_some() { "generic" } else { "native" }.into();
        status.xdp_reason.clone_from(&steered.generic);
        if let Some((zero_copy, refused)) = &steered.bound {
            status.mode = if *zero_copy { "zero-copy" } else { "copy" }.into();
            status.mode_reason.clone_from(refused);
        }
        status.ride_refused = steered.tap.refused();
        for (verdict, count) in steered.steer.counters().unwrap_or_default() {
            if is_pass(verdict) {
                status.passed.push(PassedStatus { reason: verdict.word().into(), packets: count.packets });
            } else {
                (status.lifted_packets, status.lifted_bytes) = (count.packets, count.bytes);
            }
        }
        status
    }
}

impl AsFd for Broker {
    /// Readable when [`Broker::dispatch`] has something to do.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.poll.0.as_fd()
    }
}

/// netlink-sys hands out raw descriptors only.
fn borrowed(socket: &netlink_sys::Socket) -> BorrowedFd<'_> {
    sys::borrow(socket.as_raw_fd(), socket)
}

fn steer_device(
    route: &Route,
    config: &Config,
    device: &Device,
    pins: Option<&Pins>,
) -> Result<Steered, Error> {
    let attached = Steer::attach(device, config.admit_flow, MAX_FRAME, pins)?;
    let generic = attached.generic.is_some();
    let tap = Tap::open(route, device.ifindex, generic, pins.filter(|_| !generic))?;
    let driver = sys::driver(&device.name).unwrap_or_else(|| device.kind.clone());
    // A veth hands over what the peer's stack left to hardware; in generic mode any skb may be such.
    let partial_checksum = driver == "veth" || attached.generic.is_some();
    Ok(Steered {
        steer: attached.steer,
        tap,
        generic: attached.generic,
        partial_checksum,
        driver,
        bound: None,
    })
}

fn process_status(channel: &Channel, holds_rings: bool) -> ProcessStatus {
    let page = &channel.page;
    ProcessStatus {
        pid: channel.pid,
        name: channel.name.clone(),
        ended: false,
        holds_rings,
        young_sockets: page.young_sockets.load(Relaxed),
        unregistered_packets: page.unregistered_packets.load(Relaxed),
        unregistered_bytes: page.unregistered_bytes.load(Relaxed),
        sleeps: page.sleeps.load(Relaxed),
        pumps: page.pumps.load(Relaxed),
    }
}

fn check_named(inventory: &Inventory, names: &[String]) -> Result<(), Error> {
    for name in names {
        let Some(device) = inventory.named(name) else {
            let all: Vec<_> = inventory.0.values().map(|d| d.name.as_str()).collect();
            return Err(Error::Other(format!("--dev {name}: no such device; there are {}", all.join(", "))));
        };
        if let Some(why) = device.unfit() {
            return Err(Error::Other(format!("--dev {name}: {why}")));
        }
    }
    Ok(())
}

fn set_blocking(fd: BorrowedFd<'_>) -> Result<(), Error> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    fcntl(fd, FcntlArg::F_SETFL(OFlag::O_RDWR)).context("make the program's socket blocking").map(drop)
}

/// Queues that `device` offers, for sizing.
pub(crate) fn rings_of(device: &Device) -> u32 {
    device::rx_queues(device)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_name_their_source() {
        let sources = [
            Source::Inherited,
            Source::Monitor,
            Source::Timer,
            Source::Status,
            Source::Channel(1),
            Source::Process(1),
            Source::Channel(77),
        ];
        assert!(sources.into_iter().all(|source| Source::of(source.token()) == Some(source)));
        assert!(Source::of(6).is_none());
    }

    #[test]
    fn ports_are_selected_by_range() {
        let some = Ports::Some(vec![53..=53, 1000..=2000]);
        assert!(some.contain(53) && some.contain(2000) && !some.contain(54));
        assert!(Ports::All.contain(1) && !Ports::Off.contain(1));
    }
}
