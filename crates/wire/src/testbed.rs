//! Two network namespaces, `wire` and `host`, joined by a veth pair: a peer and the machine under test.
//!
//! The host's end runs NAPI (GRO is on), so frames can be handed to it by pointer; the wire's end sends
//! complete checksums and frames no larger than the MTU, as a cable does.

use crate::{
    error::{During, Error, Result},
    napi::{self, Napi},
    netlink::{self, LocalRoutes, Route},
    netns::Netns,
    registry::{self, Facts, Hold},
    sys::{self, Offload},
};
use nix::net::if_::if_nametoindex;
use std::{
    ffi::OsStr,
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
};

pub(crate) const WIRE: &str = "wire";
pub(crate) const HOST: &str = "host";
pub(crate) const WIRE_DEVICE: &str = "va";
const HOST_DEVICE: &str = "vb";
const SYSCTLS: [(&str, &str); 5] = [
    ("net.ipv4.tcp_no_metrics_save", "1"),
    ("net.ipv4.conf.all.rp_filter", "0"),
    ("net.ipv4.conf.default.rp_filter", "0"),
    ("net.ipv6.conf.default.accept_dad", "0"),
    ("net.ipv6.conf.default.router_solicitations", "0"),
];
const V4_PREFIX: u8 = 16; // generated flows come from many addresses of it
const V6_PREFIX: u8 = 64;

/// What a testbed is to be like.
#[derive(Clone, Debug)]
pub struct Builder {
    name: Option<String>,
    facts: Facts,
}

impl Builder {
    /// A name of its own (1 to 24 of a-z, 0-9 and -) instead of a unique one.
    pub fn name(mut self, name: &str) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Receive and transmit queues of each end; 1 unless told.
    pub fn queues(mut self, queues: u32) -> Self {
        self.facts.queues = queues;
        self
    }

    /// MTU in bytes; 1500 unless told. Native XDP on veth takes up to about 3,500.
    pub fn mtu(mut self, mtu: u32) -> Self {
        self.facts.mtu = mtu;
        self
    }

    /// Adds the VLAN devices `va.ID` and `vb.ID` with addresses of their own.
    pub fn vlan(mut self, id: u16) -> Self {
        self.facts.vlan = Some(id);
        self
    }

    /// Makes the testbed, after sweeping what unclean ends of others have left.
    pub fn up(self) -> Result<Testbed> {
        check(&self.facts)?;
        registry::sweep()?;
        let name = self.name.unwrap_or_else(unique_name);
        let mut hold = Hold::claim(&name)?;
        hold.write(false, self.facts)?;
        match build(&name, self.facts) {
            Ok([wire, host]) => Ok(Testbed { name, facts: self.facts, wire, host, hold: Some(hold) }),
            Err(error) => {
                let _ = hold.clear();
                Err(error)
            }
        }
    }
}

/// A testbed. The one that made it removes it when dropped.
#[derive(Debug)]
pub struct Testbed {
    name: String,
    facts: Facts,
    wire: End,
    host: End,
    hold: Option<Hold>,
}

impl Testbed {
    /// A testbed of one queue, MTU 1500, without VLAN, unless told otherwise.
    pub fn builder() -> Builder {
        Builder { name: None, facts: Facts { queues: 1, mtu: 1500, vlan: None } }
    }

    /// The testbed `name` that somebody else made. Dropping it leaves it as it is.
    pub fn open(name: &str) -> Result<Self> {
        let facts = registry::facts(name)?;
        let wire = End::open(name, Side::Wire, facts.vlan)?;
        let host = End::open(name, Side::Host, facts.vlan)?;
        Ok(Self { name: name.into(), facts, wire, host, hold: None })
    }

    /// Leaves the testbed in place until [`registry::remove`], whatever becomes of this process.
    pub fn keep(mut self) -> Result<()> {
        match self.hold.take() {
            Some(mut hold) => hold.write(true, self.facts),
            None => Ok(()),
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it was made with.
    pub fn facts(&self) -> Facts {
        self.facts
    }

    /// The peer's end, `va`.
    pub fn wire(&self) -> &End {
        &self.wire
    }

    /// The end of the machine under test, `vb`.
    pub fn host(&self) -> &End {
        &self.host
    }

    /// Gives the NAPI instances of `vb` kernel threads of their own and binds them to `cpu`.
    ///
    /// They are made anew when the device goes down and up: call this again then.
    pub fn threaded_napi(&self, cpu: usize) -> Result<Vec<Napi>> {
        let path = format!("/sys/class/net/{HOST_DEVICE}/threaded");
        self.host
            .netns
            .enter_with_sysfs(|| fs::write(&path, "1").during(|| format!("writing 1 to {path}")))??;
        let all = self.napis()?;
        for napi in &all {
            let thread =
                napi.thread.ok_or_else(|| Error::Spec(format!("NAPI {} of vb has no thread", napi.id)))?;
            sys::pin(thread, cpu)?;
        }
        Ok(all)
    }

    /// The NAPI instances of `vb`, one a queue.
    pub fn napis(&self) -> Result<Vec<Napi>> {
        let index = self.host.ifindex;
        self.host
            .netns
            .enter(|| napi::of_device(index))?
            .during(|| "reading the NAPI instances of vb (netdev)".into())
    }
}

impl Drop for Testbed {
    fn drop(&mut self) {
        // What cannot be removed here is left to the next sweep, which reports.
        if let Some(hold) = &self.hold {
            let _ = hold.clear();
        }
    }
}

/// One end of a testbed.
#[derive(Clone, Debug)]
pub struct End {
    netns: Netns,
    side: Side,
    ifindex: u32,
    vlan: Option<u16>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Wire,
    Host,
}

impl End {
    fn open(name: &str, side: Side, vlan: Option<u16>) -> Result<Self> {
        let netns = Netns::open(&registry::namespace(name, side.name()))?;
        let ifindex = netns.enter(|| index_of(side.device()))??;
        Ok(Self { netns, side, ifindex, vlan })
    }

    /// Its network namespace.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// Its device: `va` or `vb`.
    pub fn device(&self) -> &'static str {
        self.side.device()
    }

    /// The VLAN device on top, if the testbed has one.
    pub fn vlan_device(&self) -> Option<String> {
        self.vlan.map(|id| vlan_name(self.side, id))
    }

    /// The index of its device within its namespace.
    pub fn ifindex(&self) -> u32 {
        self.ifindex
    }

    /// The MAC address of its device.
    pub fn mac(&self) -> [u8; 6] {
        self.side.mac()
    }

    /// Its IPv4 address.
    pub fn v4(&self) -> Ipv4Addr {
        self.side.v4(0)
    }

    /// Its IPv6 address.
    pub fn v6(&self) -> Ipv6Addr {
        self.side.v6(0)
    }

    /// The IPv4 address of its VLAN device (which exists only if the testbed has a VLAN).
    pub fn vlan_v4(&self) -> Ipv4Addr {
        self.side.v4(1)
    }

    /// The IPv6 address of its VLAN device (which exists only if the testbed has a VLAN).
    pub fn vlan_v6(&self) -> Ipv6Addr {
        self.side.v6(1)
    }

    /// Runs `work` on a thread of its own in this end's namespace. Sockets it opens stay in it.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        self.netns.enter(work)
    }

    /// A command that starts in this end's namespace.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        self.netns.command(program)
    }

    /// Switches an offload of its device.
    pub fn set_offload(&self, offload: Offload, on: bool) -> Result<()> {
        let device = self.device();
        self.enter(|| sys::set_offload(device, offload, on))?
            .during(|| format!("switching {offload:?} of {device} (ioctl SIOCETHTOOL)"))
    }

    /// Has the receive queues of its device, which is up, know their numbers.
    ///
    /// veth tells them only when XDP is attached (`veth_enable_xdp_range`); until then each believes it is queue 0, and wakes
    /// queue 0 of the sender (`veth_poll`, since Linux 6.16): another that once found its ring full never sends again.
    fn number_queues(&self) -> Result<()> {
        let (device, index) = (self.device(), self.ifindex);
        self.enter(|| sys::attach_xdp_for_a_moment(index))?
            .during(|| format!("attaching XDP to {device} (BPF_PROG_LOAD, BPF_LINK_CREATE)"))
    }

    /// Sets its device up or down.
    pub fn set_up(&self, up: bool) -> Result<()> {
        let index = self.ifindex;
        self.enter(|| Route::open()?.set_up(index, up))?
            .during(|| format!("setting {} {} (RTM_SETLINK)", self.device(), if up { "up" } else { "down" }))
    }

    /// Completes a change of its link that the kernel still holds back. True when the link is on: from then on
    /// nothing that is sent is swallowed. To be called on both ends after one was set up again.
    pub fn settle(&self) -> Result<bool> {
        let device = self.device();
        self.enter(|| sys::has_link(device))?
            .during(|| format!("asking for the link of {device} (ETHTOOL_GLINK)"))
    }

    /// Changes the MTU of its device.
    pub fn set_mtu(&self, mtu: u32) -> Result<()> {
        let index = self.ifindex;
        self.enter(|| Route::open()?.set_mtu(index, mtu))?
            .during(|| format!("setting the MTU of {} to {mtu} (RTM_SETLINK)", self.device()))
    }

    /// Removes its device, and with it the other end's.
    pub fn delete_device(&self) -> Result<()> {
        let index = self.ifindex;
        self.enter(|| Route::open()?.delete_link(index))?
            .during(|| format!("removing {} (RTM_DELLINK)", self.device()))
    }
}

impl Side {
    fn name(self) -> &'static str {
        if self == Self::Wire { WIRE } else { HOST }
    }

    fn device(self) -> &'static str {
        if self == Self::Wire { WIRE_DEVICE } else { HOST_DEVICE }
    }

    fn other(self) -> Self {
        if self == Self::Wire { Self::Host } else { Self::Wire }
    }

    fn number(self) -> u8 {
        if self == Self::Wire { 1 } else { 2 }
    }

    fn mac(self) -> [u8; 6] {
        [0x02, 0x68, 0x6f, 0x73, 0x74, self.number()]
    }

    fn v4(self, net: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 77 + net, 0, self.number())
    }

    fn v6(self, net: u8) -> Ipv6Addr {
        Ipv6Addr::new(0xfd77, 0, 0, net.into(), 0, 0, 0, self.number().into())
    }
}

fn check(facts: &Facts) -> Result<()> {
    let wrong = |why: String| Err(Error::Spec(why));
    if !(1..=4096).contains(&facts.queues) {
        return wrong(format!("a veth has 1 to 4096 queues, not {}", facts.queues));
    }
    if !(1280..=65535).contains(&facts.mtu) {
        return wrong(format!("the MTU is 1280 (IPv6 needs that) to 65535 bytes, not {}", facts.mtu));
    }
    match facts.vlan {
        Some(id) if !(1..=4094).contains(&id) => wrong(format!("a VLAN id is 1 to 4094, not {id}")),
        _ => Ok(()),
    }
}

fn unique_name() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

fn build(name: &str, facts: Facts) -> Result<[End; 2]> {
    let wire = Netns::create(&registry::namespace(name, WIRE))?;
    let host = Netns::create(&registry::namespace(name, HOST))?;
    for netns in [&wire, &host] {
        prepare(netns)?;
    }
    let ends = [Side::Wire, Side::Host].map(|side| netlink::End {
        device: side.device(),
        mac: side.mac(),
        queues: facts.queues,
        mtu: facts.mtu,
    });
    wire.enter(|| Route::open()?.add_veth(&ends[0], &ends[1], host.raw_fd()))?
        .during(|| "making the veth pair va, vb (RTM_NEWLINK)".into())?;
    let wire = End::open(name, Side::Wire, facts.vlan)?;
    let host = End::open(name, Side::Host, facts.vlan)?;
    for offload in [Offload::TxChecksum, Offload::Tso, Offload::Gso] {
        wire.set_offload(offload, false)?;
    }
    host.set_offload(Offload::Gro, true)?;
    for end in [&wire, &host] {
        end.enter(|| configure(end))?.during(|| format!("configuring {}", end.device()))?;
    }
    host.number_queues()?;
    for end in [&wire, &host] {
        end.settle()?;
        end.enter(|| add_vlan(end))??;
    }
    Ok([wire, host])
}

fn prepare(netns: &Netns) -> Result<()> {
    for (key, value) in SYSCTLS {
        netns.sysctl(key, value)?;
    }
    netns
        .enter(|| Route::open()?.set_up(1, true))? // lo is the first device of every namespace
        .during(|| format!("setting lo of {} up (RTM_SETLINK)", netns.name()))
}

fn configure(end: &End) -> io::Result<()> {
    let route = Route::open()?;
    if end.side == Side::Wire {
        route.add_pfifo(end.ifindex)?;
    }
    route.set_up(end.ifindex, true)?;
    address(&route, end.side, end.ifindex, 0)
}

fn add_vlan(end: &End) -> Result<()> {
    let Some(id) = end.vlan else { return Ok(()) };
    let name = vlan_name(end.side, id);
    let made = Route::open().and_then(|route| {
        route.add_vlan(end.ifindex, &name, id)?;
        let index = if_nametoindex(name.as_str())?;
        route.set_up(index, true)?;
        address(&route, end.side, index, 1)
    });
    match made {
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Err(Error::Spec(format!(
            "making {name} (RTM_NEWLINK): this kernel has no VLAN devices (CONFIG_VLAN_8021Q): do without the VLAN"
        ))),
        other => other.during(|| format!("making {name} (RTM_NEWLINK)")),
    }
}

/// Own addresses, and the other end as a neighbour that nobody has to ask for.
fn address(route: &Route, side: Side, index: u32, net: u8) -> io::Result<()> {
    let other = side.other();
    let pairs: [(IpAddr, IpAddr, u8); 2] = [
        (side.v4(net).into(), other.v4(net).into(), V4_PREFIX),
        (side.v6(net).into(), other.v6(net).into(), V6_PREFIX),
    ];
    let routes = LocalRoutes::watch()?;
    for (own, peer, prefix) in pairs {
        route.add_address(index, own, prefix)?;
        route.add_neighbour(index, peer, other.mac())?;
    }
    routes.wait_for(side.v6(net))
}

fn vlan_name(side: Side, id: u16) -> String {
    format!("{}.{id}", side.device())
}

fn index_of(device: &str) -> Result<u32> {
    if_nametoindex(device).during(|| format!("looking for the device {device} (if_nametoindex)"))
}
