//! What a process may ask, and the answers. A request that cannot be understood closes the channel; nothing a process says
//! harms another.

use crate::{
    Broker, Error,
    device::Device,
    endpoint::{Endpoint, Protocol},
    error::Context,
    lease::{CHUNK, Pool},
    raised::Raised,
    registry::{Channel, Registered},
    rules::{Key, Membership, expand},
    server::{Ports, YOUNG, rings_of},
    sock_diag::Entry,
    sys,
};
use hoist_ipc::{
    MAX_MESSAGE, Reason, Reply, Request, VERSION,
    page::{Mapped, StatsPage},
    tcp::Policy,
};
use hoist_sys::{Errno, recv_each_fd, try_send_with_fds};
use std::{
    collections::{BTreeSet, HashSet},
    fs,
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

/// Requests served in a row before others have their turn.
const TURN: usize = 32;
/// Slot in the answer to a socket that could have none.
pub(crate) const NO_SLOT: u32 = u32::MAX;

type Fds = Vec<OwnedFd>;

impl Broker {
    /// A message on the inherited socket: a process says Hello.
    pub(crate) fn accept(&mut self) {
        for _ in 0..TURN {
            let mut bytes = [0; MAX_MESSAGE];
            let mut fds = Fds::new();
            match receive(self.inherited.as_fd(), &mut bytes, &mut fds) {
                Ok(0) if shut(self.inherited.as_fd()) => return self.stop_accepting(),
                Ok(len) => self.hello(&bytes[..len], fds),
                Err(Errno(libc::EMSGSIZE)) => self.dispose(fds),
                Err(_) => return,
            }
        }
    }

    fn hello(&mut self, bytes: &[u8], mut fds: Fds) {
        let Some(socket) = first(&mut fds) else {
            return self.say(
                "a process said Hello without a socket: raise the limit of open files (ulimit -n)?".into(),
            );
        };
        let welcomed = match Request::decode(bytes) {
            Ok(Request::Hello { version }) => match check_channel(socket.as_fd()) {
                Ok(()) if version == VERSION => self.welcome(socket),
                Ok(()) => {
                    let _ = reply(socket.as_fd(), &Reply::Refused { errno: libc::EPROTO as u32 }, &[]);
                    self.disposal.close(socket);
                    Err(Error::Other(format!("the shim speaks version {version}, hoist version {VERSION}")))
                }
                Err(error) => {
                    self.disposal.close(socket);
                    Err(error)
                }
            },
            other => {
                self.disposal.close(socket);
                let why = other.err().map(|error| format!("it made no sense: {error}"));
                Err(Error::Other(why.unwrap_or("it did not begin with Hello".into())))
            }
        };
        if let Err(error) = welcomed {
            self.say(format!("a process is not served: {error}"));
        }
        self.dispose(fds);
    }

    fn welcome(&mut self, socket: OwnedFd) -> Result<(), Error> {
        let (pid, uid) = sys::peer(socket.as_fd()).context("ask for the peer (SO_PEERCRED)")?;
        let pidfd = sys::pidfd(pid).context(format!("watch process {pid} (pidfd_open)"))?;
        let memfd = sys::sealed_memfd(c"hoist-stats", StatsPage::LEN).context("make the stats page")?;
        let page = Mapped::<StatsPage>::new(memfd.as_fd()).context("map the stats page")?;
        page.stamp();
        let welcome = Reply::Welcome {
            version: VERSION,
            spin_us: self.config.spin_us,
            young: YOUNG,
            admit_flow: self.config.admit_flow,
            udp: self.config.udp != Ports::Off,
            tcp: self.config.tcp.policy,
        };
        reply(socket.as_fd(), &welcome, &[memfd.as_fd()]).context("answer a Hello")?;
        self.add_channel(|_| Channel::new(socket, pidfd, (pid, uid), name_of(pid), page)).map(drop)
    }

    /// Messages of one process.
    pub(crate) fn serve(&mut self, id: u64) {
        for _ in 0..TURN {
            let Some(channel) = self.channels.get(&id) else { return };
            let (mut bytes, mut fds) = ([0; MAX_MESSAGE], Fds::new());
            let served = match receive(channel.socket.as_fd(), &mut bytes, &mut fds) {
                Err(Errno(libc::EAGAIN)) => return,
                // A message may be empty, too: only a hang-up is the end.
                Ok(0) if shut(channel.socket.as_fd()) => return self.close_channel(id),
                Err(Errno(libc::ECONNRESET)) => return self.close_channel(id),
                Ok(len) => self.answer(id, &bytes[..len], &mut fds),
                Err(errno) => Err(Error::Other(format!("receive a request: {errno}"))),
            };
            self.dispose(fds);
            if let Err(error) = served {
                let pid = self.channels.get(&id).map_or(0, |c| c.pid);
                self.say(format!("process {pid} is not served any more: {error}"));
                return self.close_channel(id);
            }
        }
    }

    fn dispose(&mut self, fds: Fds) {
        fds.into_iter().for_each(|fd| self.disposal.close(fd));
    }

    fn answer(&mut self, id: u64, bytes: &[u8], fds: &mut Fds) -> Result<(), Error> {
        let request =
            Request::decode(bytes).map_err(|e| Error::Other(format!("a request made no sense: {e}")))?;
        let answer = match request {
            Request::Hello { .. } => return Err(Error::Other("it said Hello twice".into())),
            Request::Register { cookie, timestamps } => self.register(id, cookie, timestamps, first(fds))?,
            Request::Unregister { cookie } => {
                self.forget(id, cookie);
                Reply::Done
            }
            Request::Demote { cookie, reason } => self.demote(id, cookie, reason),
            Request::Settle => self.settled(id),
            Request::Stream { cookie } => self.stream(id, cookie, first(fds))?,
            Request::Group { cookie, join, group, ifindex } => self.group(id, cookie, join, group, ifindex),
            Request::Admit { cookie, from, to } => {
                self.admit(id, cookie, from, to);
                return Ok(());
            }
        };
        self.reply(id, &answer, &[])
    }

    pub(crate) fn reply(&self, id: u64, message: &Reply, fds: &[BorrowedFd<'_>]) -> Result<(), Error> {
        let Some(channel) = self.channels.get(&id) else { return Ok(()) };
        reply(channel.socket.as_fd(), message, fds).context("answer a request")
    }

    fn register(
        &mut self,
        id: u64,
        cookie: u64,
        timestamps: bool,
        fd: Option<OwnedFd>,
    ) -> Result<Reply, Error> {
        let (endpoint, fd) = match self.examine(fd, cookie, Protocol::Udp) {
            Ok(found) => found,
            Err(errno) => return Ok(Reply::Refused { errno }),
        };
        let Some(slot) = self.channels.get_mut(&id).and_then(|c| c.slot(cookie)) else {
            return Ok(Reply::Registered { slot: NO_SLOT, reason: Reason::TooMany });
        };
        let raised = Raised::raise(fd);
        let reason = self.lift(id, &endpoint, slot, timestamps)?;
        drop(raised);
        self.note_denial(&endpoint, reason);
        Ok(Reply::Registered { slot, reason })
    }

    /// The socket `fd` that a process says has this cookie, or the errno of its refusal. Not to be held longer than the
    /// request takes: it keeps the program's socket alive.
    pub(crate) fn examine(
        &mut self,
        fd: Option<OwnedFd>,
        cookie: u64,
        protocol: Protocol,
    ) -> Result<(Endpoint, OwnedFd), u32> {
        let fd = fd.ok_or(libc::EBADF as u32)?;
        let found = Endpoint::examine(fd.as_fd(), protocol, self.netns);
        let errno = match found {
            Ok(endpoint) if endpoint.cookie == cookie => return Ok((endpoint, fd)),
            Ok(_) => libc::EINVAL,
            Err(error) => error.raw_os_error().unwrap_or(libc::EIO),
        };
        self.disposal.close(fd);
        Err(errno as u32)
    }

    /// Remembers a reason that `--require` does not put up with.
    pub(crate) fn note_denial(&mut self, endpoint: &Endpoint, reason: Reason) {
        if self.is_denial(reason) && self.denied.is_none() {
            self.denied = Some(format!("{}: {}", endpoint.local, reason.explain()));
        }
    }

    /// Reasons that `--require` does not put up with.
    fn is_denial(&self, reason: Reason) -> bool {
        use Reason::{
            Generic, NoConnections, NoDevice, OtherDevice, PortShared, RingSetup, RingsBusy, TooMany,
        };
        matches!(
            reason,
            Generic | NoConnections | NoDevice | OtherDevice | PortShared | RingSetup | RingsBusy | TooMany
        )
    }

    /// Lifts a socket if nothing stands in the way, and notes what does.
    fn lift(&mut self, id: u64, endpoint: &Endpoint, slot: u32, timestamps: bool) -> Result<Reason, Error> {
        let verdict = match self.prepare(id, endpoint)? {
            None => Reason::Lifted,
            Some(reason) => reason,
        };
        let seat = self.leases.get(&id).map_or(0, |lease| lease.seat);
        let places = if verdict == Reason::Lifted { self.places(id) } else { Vec::new() };
        let alone = self.one_has_rings();
        let Some(channel) = self.channels.get_mut(&id) else { return Ok(verdict) };
        let keys = expand(&channel.want(endpoint), &places, alone);
        let new = Registered {
            endpoint: endpoint.clone(),
            slot,
            verdict,
            timestamps,
            seat,
            keys: keys.clone(),
            missed: 0,
            shared: 0,
        };
        let old = channel.sockets.insert(endpoint.cookie, new);
        let ops = self.table.add(&keys, timestamps, seat);
        self.apply(ops);
        if let Some(old) = old {
            let ops = self.table.remove(&old.keys, old.timestamps, old.seat);
            self.apply(ops);
        }
        if !matches!(verdict, Reason::Lifted | Reason::Loopback | Reason::Unbound) {
            self.part_with(id, endpoint, verdict);
        }
        Ok(verdict)
    }

    /// Makes sure that the process has rings on every device that carries the address; or says why not.
    fn prepare(&mut self, id: u64, endpoint: &Endpoint) -> Result<Option<Reason>, Error> {
        if let Some(reason) = self.out_of_question(endpoint) {
            return Ok(Some(reason));
        }
        if !self.has_seat(id) {
            return Ok(Some(Reason::RingsBusy));
        }
        let devices = match self.devices_for(endpoint) {
            Ok(devices) => devices,
            Err(reason) => return Ok(Some(reason)),
        };
        if self.shared(id, endpoint)? {
            return Ok(Some(Reason::PortShared));
        }
        match self.steered_of(devices) {
            Ok(steered) => {
                self.give_rings(id, &steered, self.config.tcp.policy == Policy::Lift, endpoint.reuseport)
            }
            Err(reason) => Ok(Some(reason)),
        }
    }

    /// Those of `devices` that steer is attached to.
    pub(crate) fn steered_of(&mut self, devices: Vec<Device>) -> Result<Vec<Device>, Reason> {
        let steered: Vec<Device> = devices.into_iter().filter(|d| self.ensure_steered(d)).collect();
        if steered.is_empty() { Err(Reason::NoDevice) } else { Ok(steered) }
    }

    /// Makes the rings of `devices` and tells the process of them.
    pub(crate) fn give_rings(
        &mut self,
        id: u64,
        devices: &[Device],
        tcp: bool,
        wide: bool,
    ) -> Result<Option<Reason>, Error> {
        if let Err(error) = self.ensure_rings(id, devices, tcp, wide) {
            self.say(error.to_string());
            return Ok(Some(Reason::RingSetup));
        }
        self.announce(id)?;
        Ok(None)
    }

    fn out_of_question(&self, endpoint: &Endpoint) -> Option<Reason> {
        let port = endpoint.local.port();
        match &self.config.udp {
            Ports::Off => Some(Reason::Off),
            _ if port == 0 => Some(Reason::Unbound),
            ports if !ports.contain(port) => Some(Reason::NotSelected),
            _ => endpoint.local.ip().is_loopback().then_some(Reason::Loopback),
        }
    }

    /// Whether the process has a seat or could have one.
    pub(crate) fn has_seat(&mut self, id: u64) -> bool {
        if self.leases.contains_key(&id) {
            return true;
        }
        let gone = |id: &&u64| self.channels.get(id).is_some_and(|channel| hung_up(channel.socket.as_fd()));
        let gone: Vec<u64> = self.leases.keys().filter(gone).copied().collect();
        gone.into_iter().for_each(|id| self.close_channel(id));
        let Some(uid) = self.channels.get(&id).map(|channel| channel.uid) else { return false };
        self.pool.as_ref().is_none_or(|pool| pool.seats_for(uid))
    }

    /// Devices on which packets for this socket may arrive; or why there is none.
    pub(crate) fn devices_for(&self, endpoint: &Endpoint) -> Result<Vec<Device>, Reason> {
        let want = endpoint.want();
        let any = want.local.is_unspecified() || want.local.is_multicast();
        let carries = |device: &&Device| {
            let bound = endpoint.ifindex == 0 || endpoint.ifindex == device.ifindex;
            bound && (any || device.addresses.iter().any(|a| want.takes(a.ip)))
        };
        let devices: Vec<Device> =
            self.inventory.candidates(&self.config.devices).filter(carries).cloned().collect();
        let bound = endpoint.ifindex != 0 && self.inventory.0.contains_key(&endpoint.ifindex);
        match devices.is_empty() {
            false => Ok(devices),
            true => Err(if bound { Reason::OtherDevice } else { Reason::NoDevice }),
        }
    }

    /// Whether a process that is no part of the run, or whose socket is not lifted, could receive what this socket receives.
    fn shared(&self, id: u64, endpoint: &Endpoint) -> Result<bool, Error> {
        let others = self.diag.udp(Some(endpoint.local.port()))?;
        Ok(self.is_shared(id, endpoint, others.iter(), || self.processes()))
    }

    /// The same, given all sockets of the port. What the process itself holds and has not registered is let pass, and of `family` what will be
    /// an equal once it is.
    pub(crate) fn is_shared<'a>(
        &self,
        id: u64,
        endpoint: &Endpoint,
        others: impl Iterator<Item = &'a Entry>,
        family: impl FnOnce() -> BTreeSet<u32>,
    ) -> bool {
        let want = endpoint.want();
        let met = others.filter(|entry| entry.cookie != endpoint.cookie && entry.meets(&want));
        let strangers: Vec<Stranger<'_>> =
            met.filter_map(|entry| self.stranger(id, endpoint, entry)).collect();
        if strangers.is_empty() {
            return false;
        }
        let own = self.channels.get(&id).map(|channel| inodes(channel.pid)).unwrap_or_default();
        let foreign = |stranger: &Stranger<'_>| match stranger {
            Stranger::Known => true,
            Stranger::Unknown(entry) => !own.contains(&entry.inode),
        };
        let foreign: Vec<_> = strangers.into_iter().filter(foreign).collect();
        let equal = |stranger: &Stranger<'_>| match stranger {
            Stranger::Known => None,
            Stranger::Unknown(entry) => endpoint.could_be_mate_of(entry).then_some(entry.inode),
        };
        let Some(equals) = foreign.iter().map(equal).collect::<Option<Vec<u32>>>() else { return true };
        if equals.is_empty() {
            return false;
        }
        let family: HashSet<u32> = family().into_iter().flat_map(inodes).collect();
        !equals.iter().all(|inode| family.contains(inode))
    }

    /// Processes of the run: also those that have bound a socket and are about to say Hello.
    fn processes(&self) -> BTreeSet<u32> {
        let followed = match (&self.connections, self.program) {
            (Some(connections), _) => connections.cgroup.pids(),
            (None, Some(program)) => descendants(program),
            (None, None) => Vec::new(),
        };
        self.speakers().into_iter().chain(followed).collect()
    }

    /// Those that have said Hello.
    pub(crate) fn speakers(&self) -> BTreeSet<u32> {
        self.channels.values().map(|channel| channel.pid).collect()
    }

    /// What `entry` is to the socket of process `id`, if it may take its packets.
    fn stranger<'a>(&self, id: u64, endpoint: &Endpoint, entry: &'a Entry) -> Option<Stranger<'a>> {
        let known = self.channels.iter().find_map(|(at, c)| Some((*at, c, c.sockets.get(&entry.cookie)?)));
        match known {
            Some((at, ..)) if at == id => None,
            Some((_, channel, other)) => {
                let lifted = channel.reason(other) == Reason::Lifted;
                (!lifted || !endpoint.is_mate_of(&other.endpoint)).then_some(Stranger::Known)
            }
            None => Some(Stranger::Unknown(entry)),
        }
    }

    /// A socket of process `id` is not lifted: nor may be those of other processes that would take its packets, nor, if it shares its port,
    /// others of its own that the stack would not prefer to it.
    pub(crate) fn part_with(&mut self, id: u64, endpoint: &Endpoint, reason: Reason) {
        let want = endpoint.want();
        let meets = |other: u64, socket: &Registered| {
            let theirs = socket.endpoint.want();
            let own =
                other == id && (reason != Reason::PortShared || socket.endpoint.cookie == endpoint.cookie);
            !own && !socket.keys.is_empty() && theirs.port == want.port && theirs.meets(&want)
        };
        let sockets = self.channels.iter().flat_map(|(id, c)| c.sockets.iter().map(move |s| (*id, s)));
        let met = sockets.filter(|(other, (_, socket))| meets(*other, socket));
        let met: Vec<(u64, u64)> = met.map(|(other, (cookie, _))| (other, *cookie)).collect();
        for (other, cookie) in met {
            self.refuse(other, cookie, Reason::PortShared);
        }
    }

    fn ensure_rings(&mut self, id: u64, devices: &[Device], tcp: bool, wide: bool) -> Result<(), Error> {
        let Some(uid) = self.channels.get(&id).map(|channel| channel.uid) else { return Ok(()) };
        if self.pool.is_none() {
            let all = self
                .inventory
                .candidates(&self.config.devices)
                .filter(|d| !self.broken.contains_key(&d.ifindex));
            let rings = all.map(rings_of).sum();
            let wide = wide || self.channels.len() > 1;
            self.pool = Some(Pool::new(rings, tcp, wide, uid)?);
        }
        if !self.leases.contains_key(&id)
            && let Some(lease) = self.pool.as_mut().and_then(|pool| pool.sit(uid))
        {
            self.leases.insert(id, lease);
            self.refresh_rules(); // groups pass from the second process on
        }
        let mut failed = None;
        for device in devices {
            if let Err(error) = self.ensure_rings_of(id, device) {
                failed = Some(error);
            }
        }
        let some = self.leases.get(&id).is_some_and(|lease| !lease.rings.is_empty());
        match failed {
            Some(error) if !some => {
                self.give_up_seat(id);
                Err(error)
            }
            Some(error) => {
                self.say(error.to_string());
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// A seat without rings is none.
    fn give_up_seat(&mut self, id: u64) {
        if let (Some(lease), Some(pool)) = (self.leases.remove(&id), &mut self.pool) {
            pool.stand_up(&lease);
        }
        if self.leases.is_empty() {
            self.pool = None;
        }
    }

    fn ensure_rings_of(&mut self, id: u64, device: &Device) -> Result<(), Error> {
        let (Some(pool), Some(lease), Some(steered), Some(channel)) = (
            &mut self.pool,
            self.leases.get_mut(&id),
            self.steered.get_mut(&device.ifindex),
            self.channels.get(&id),
        ) else {
            return Ok(());
        };
        if lease.has(device.ifindex) {
            return Ok(());
        }
        pool.add(lease, device, &mut steered.steer, self.config.mode, &channel.page)?;
        steered.bound = pool.bound(device.ifindex);
        Ok(())
    }

    /// Sends what the process does not know yet: hub, UMEM, devices, rings.
    fn announce(&mut self, id: u64) -> Result<(), Error> {
        let (Some(pool), Some(lease)) = (&self.pool, self.leases.get(&id)) else { return Ok(()) };
        if !lease.umem_sent {
            self.reply(id, &Reply::Hub { seat: lease.seat.into() }, &[pool.hub()])?;
            let umem = Reply::Umem { frames: pool.umem.frames(), chunk: CHUNK.bytes() };
            self.reply(id, &umem, &[pool.umem.fd()])?;
        }
        let (mut devices, mut announced) = (lease.devices.clone(), lease.announced.clone());
        for ring in &lease.rings {
            let ifindex = ring.info.ifindex;
            let Some(steered) = self.steered.get(&ifindex) else { continue };
            if !announced.insert(ring.info.ring) {
                continue;
            }
            if devices.insert(ifindex) {
                let device = Reply::Device { ifindex, partial_checksum: steered.partial_checksum };
                self.reply(id, &device, &[steered.tap.as_fd()])?;
            }
            self.reply(id, &Reply::Ring(ring.info), &[ring.socket.as_fd()])?;
        }
        if let Some(lease) = self.leases.get_mut(&id) {
            (lease.devices, lease.announced, lease.umem_sent) = (devices, announced, true);
        }
        Ok(())
    }

    /// A socket is closed: its rules go first.
    pub(crate) fn forget(&mut self, id: u64, cookie: u64) {
        self.withdraw(id, cookie);
        let Some(channel) = self.channels.get_mut(&id) else { return };
        let last = channel.sockets.get(&cookie).map(|socket| channel.socket_status(socket));
        channel.remove(cookie);
        if let Some(last) = last {
            self.closed.add(&last);
        }
    }

    /// Stops lifting a socket and notes why; the first reason stands.
    pub(crate) fn refuse(&mut self, id: u64, cookie: u64, reason: Reason) {
        self.withdraw(id, cookie);
        let socket = self.channels.get_mut(&id).and_then(|c| c.sockets.get_mut(&cookie));
        if let Some(socket) = socket.filter(|socket| socket.verdict == Reason::Lifted) {
            socket.verdict = reason;
            let endpoint = socket.endpoint.clone();
            self.part_with(id, &endpoint, reason);
        }
    }

    fn demote(&mut self, id: u64, cookie: u64, reason: Reason) -> Reply {
        if reason == Reason::Lifted {
            return Reply::Refused { errno: libc::EINVAL as u32 };
        }
        let all = || self.channels.get(&id).map(|c| c.sockets.keys().copied().collect()).unwrap_or_default();
        let cookies: Vec<u64> = if cookie == 0 { all() } else { vec![cookie] };
        for cookie in cookies {
            self.refuse(id, cookie, reason);
        }
        Reply::Done
    }

    fn settled(&mut self, id: u64) -> Reply {
        self.stale |= self.channels.get(&id).is_some_and(|channel| channel.knows_connections);
        match self.settle() {
            Ok(()) => Reply::Done,
            Err(error) => Reply::Refused { errno: error.raw_os_error().unwrap_or(libc::EIO) as u32 },
        }
    }

    fn group(&mut self, id: u64, cookie: u64, join: bool, group: IpAddr, ifindex: u32) -> Reply {
        if !group.is_multicast() {
            return Reply::Refused { errno: libc::EINVAL as u32 };
        }
        let Some(channel) = self.channels.get_mut(&id) else { return Reply::Done };
        if !channel.group(cookie, join, Membership { group, ifindex }) {
            return Reply::Refused { errno: libc::ENOBUFS as u32 };
        }
        self.refresh_rules();
        Reply::Done
    }

    fn admit(&mut self, id: u64, cookie: u64, from: SocketAddr, to: SocketAddr) {
        let Some(socket) = self.channels.get(&id).and_then(|c| c.sockets.get(&cookie)) else { return };
        if socket.endpoint.local.port() != to.port() {
            return;
        }
        // Only to addresses at which this very socket is lifted; a wildcard socket does not know which one it was.
        let (from, to) = (canonical(from), canonical(to));
        let own = |key: &Key| {
            key.address == to.ip() || to.ip().is_unspecified() && key.address.is_ipv4() == from.is_ipv4()
        };
        let places: BTreeSet<(u32, SocketAddr)> = socket
            .keys
            .iter()
            .filter(|(_, key)| own(key))
            .map(|(device, key)| (*device, SocketAddr::new(key.address, key.port)))
            .collect();
        for (device, to) in places {
            let Some(steered) = self.steered.get_mut(&device) else { continue };
            if let Err(error) = steered.steer.admit(from, to) {
                self.say(error.to_string());
            }
        }
    }
}

/// A socket beside one that is to be lifted.
enum Stranger<'a> {
    /// Registered by another process, and not lifted or not its equal.
    Known,
    /// Not registered.
    Unknown(&'a Entry),
}

/// IPv4-mapped addresses as IPv4.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// The process and all that it has started and that are still its children's children.
fn descendants(pid: u32) -> Vec<u32> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let children = tasks.flat_map(|task| {
        let list = fs::read_to_string(task.path().join("children")).unwrap_or_default();
        list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<u32>>()
    });
    std::iter::once(pid).chain(children.flat_map(descendants)).collect()
}

/// Sockets that a process holds: those it has not registered yet are no strangers.
fn inodes(pid: u32) -> HashSet<u32> {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fd")) else { return HashSet::new() };
    let inode = |entry: std::io::Result<fs::DirEntry>| {
        let target = fs::read_link(entry.ok()?.path()).ok()?;
        target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
    };
    entries.filter_map(inode).collect()
}

fn name_of(pid: u32) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm")).map(|name| name.trim().into()).unwrap_or_default()
}

/// A Hello must bring one end of a Unix SOCK_SEQPACKET pair. Made non-blocking: the broker waits for nobody.
fn check_channel(socket: BorrowedFd<'_>) -> Result<(), Error> {
    let option = |name| sys::option_i32(socket, libc::SOL_SOCKET, name).unwrap_or(-1);
    if option(libc::SO_DOMAIN) != libc::AF_UNIX || option(libc::SO_TYPE) != libc::SOCK_SEQPACKET {
        return Err(Error::Other("its Hello brought no SOCK_SEQPACKET socket".into()));
    }
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    fcntl(socket, FcntlArg::F_SETFL(OFlag::O_RDWR | OFlag::O_NONBLOCK)).context("set O_NONBLOCK")?;
    Ok(())
}

/// Receives a message and whatever descriptors come with it: who sent them decides how long their last close takes.
fn receive(socket: BorrowedFd<'_>, bytes: &mut [u8], fds: &mut Fds) -> Result<usize, Errno> {
    recv_each_fd(socket, bytes, libc::MSG_DONTWAIT, |fd| fds.push(fd))
}

fn first(fds: &mut Fds) -> Option<OwnedFd> {
    (!fds.is_empty()).then(|| fds.remove(0))
}

/// Never waits: a process that leaves its answers unread is not served any more.
fn reply(socket: BorrowedFd<'_>, message: &Reply, fds: &[BorrowedFd<'_>]) -> Result<(), Errno> {
    try_send_with_fds(socket, message.encode().as_ref(), fds)
}

/// Nobody has the other end any more.
pub(crate) fn hung_up(socket: BorrowedFd<'_>) -> bool {
    sys::shows(socket, libc::POLLHUP)
}

/// Nothing more will come: the other end is gone, or shut for sending (shutdown(2)).
fn shut(socket: BorrowedFd<'_>) -> bool {
    sys::shows(socket, libc::POLLHUP | libc::POLLRDHUP)
}
