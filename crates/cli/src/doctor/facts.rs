//! What the doctor looks at. Gathering reads only, and a fact that cannot be seen says why instead.

use super::netdev::{self, Channels, Features, Rings, XdpSupport};
use super::netfilter::{self, Chain};
use super::netlink::{Channel, Scope};
use super::sys;
use anyhow::{Context, Result, bail};
use netlink_packet_core::Parseable;
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage, LinkXdp};
use std::fmt::Display;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

const RTM_GETLINK: u16 = 18;
const IFINFOMSG_BYTES: usize = 16;
/// PROC_USER_INIT_INO: the inode of the first user namespace.
const INITIAL_USER_NAMESPACE: u64 = 0xEFFF_FFFD;

/// A fact, or why it could not be seen.
pub(super) type Seen<T> = Result<T, Unseen>;

/// Why a fact could not be seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Unseen {
    pub(super) why: String,
    /// Root would see it.
    pub(super) privileged: bool,
}

/// Everything `judge` needs.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    pub(super) machine: Machine,
    pub(super) devices: Vec<Device>,
    /// One device was asked for by name: it is judged even if it is down.
    pub(super) one_device: bool,
}

/// Facts of the kernel, the caller and the network namespace.
#[derive(Clone, Debug)]
pub(super) struct Machine {
    /// uname's release.
    pub(super) kernel: String,
    pub(super) btf: bool,
    pub(super) initial_user_namespace: Seen<bool>,
    /// The caller's effective capabilities.
    pub(super) capabilities: Seen<u64>,
    pub(super) af_xdp: Seen<bool>,
    /// RLIMIT_MEMLOCK; None: unlimited.
    pub(super) memlock_bytes: Seen<Option<u64>>,
    /// The level in force: none, integrity or confidentiality. None: the kernel has no lockdown.
    pub(super) lockdown: Seen<Option<String>>,
    pub(super) cgroup2: Seen<Option<PathBuf>>,
    /// CPUs the caller may run on.
    pub(super) cores: usize,
    pub(super) bpf_jit: Seen<bool>,
    pub(super) rmem_default_bytes: Seen<u64>,
    pub(super) rmem_max_bytes: Seen<u64>,
    pub(super) netdev_budget: Seen<u64>,
    pub(super) rps_sock_flow_entries: Seen<u64>,
    pub(super) irqbalance: Seen<bool>,
    pub(super) huge_pages: Seen<HugePages>,
    pub(super) nftables: Seen<Vec<Chain>>,
    pub(super) iptables: Seen<Vec<Chain>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct HugePages {
    pub(super) free: u64,
    pub(super) size_kib: u64,
}

/// Facts of one network device.
#[derive(Clone, Debug)]
pub(super) struct Device {
    pub(super) name: String,
    pub(super) up: bool,
    pub(super) loopback: bool,
    pub(super) mtu: u32,
    /// rtnl kind: "veth", "vlan", "bridge"; none for hardware.
    pub(super) kind: Option<String>,
    pub(super) driver: Seen<String>,
    pub(super) xdp: Seen<XdpSupport>,
    pub(super) attached: Option<Attached>,
    /// Receive queues that an AF_XDP socket owns.
    pub(super) xsk_queues: Seen<Vec<u64>>,
    /// None: the driver has no channels to set.
    pub(super) channels: Seen<Option<Channels>>,
    pub(super) rings: Seen<Option<Rings>>,
    pub(super) features: Seen<Features>,
    /// VLAN devices on top.
    pub(super) vlans: Vec<String>,
    /// The bridge it is a port of, if that filters by VLAN.
    pub(super) tags_for: Option<String>,
    pub(super) veth_peer: VethPeer,
    pub(super) rps: Seen<Rps>,
    /// Receive interrupts.
    pub(super) irqs: Seen<Vec<Irq>>,
    pub(super) threaded_napi: Seen<bool>,
    pub(super) defer_hard_irqs: Seen<u64>,
    pub(super) gro_flush_ns: Seen<u64>,
    /// The stricter of conf/all and conf/DEV decides: 0 off, 1 strict, 2 loose.
    pub(super) rp_filter: Seen<u64>,
}

/// An XDP program on a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Attached {
    pub(super) id: u32,
    pub(super) name: Seen<String>,
}

/// The other end of a veth, as far as this namespace shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum VethPeer {
    /// No veth, or the peer is gone.
    None,
    Elsewhere,
    Here {
        name: String,
        /// Transmit queues in use.
        queues: Option<u64>,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rps {
    pub(super) queues: usize,
    /// Queues whose rps_cpus names a CPU.
    pub(super) steered: usize,
    /// Sum of rps_flow_cnt (RFS).
    pub(super) flow_entries: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Irq {
    pub(super) number: u64,
    /// The CPUs that take it, as a list ("0", "2-3").
    pub(super) cpus: String,
}

/// Looks at the machine, and at `device` or all devices. Fails as [`devices`] does.
pub(super) fn gather(device: Option<&str>) -> Result<Facts> {
    let devices = devices(device)?;
    Ok(Facts { machine: machine(), devices, one_device: device.is_some() })
}

/// Looks at `device` or all devices. Fails if the links cannot be listed or there is no such one.
pub(super) fn devices(device: Option<&str>) -> Result<Vec<Device>> {
    let links = links().context("doctor: listing network devices by netlink failed")?;
    let mut asker = Asker::open(&links);
    let wanted = links.iter().filter(|link| device.is_none_or(|name| link.name == name));
    let devices: Vec<Device> = wanted.map(|link| asker.device(link, &links)).collect();
    if let (Some(name), true) = (device, devices.is_empty()) {
        let names: Vec<&str> = links.iter().map(|link| link.name.as_str()).collect();
        bail!("doctor: no device '{name}' in this network namespace; there are: {}", names.join(", "));
    }
    Ok(devices)
}

/// What RTM_GETLINK tells of a device.
#[derive(Default)]
struct Link {
    index: u32,
    name: String,
    flags: LinkFlags,
    mtu: u32,
    kind: Option<String>,
    /// The lower device or veth peer.
    lower: Option<u32>,
    lower_elsewhere: bool,
    program: Option<u32>,
    address: Vec<u8>,
}

fn links() -> io::Result<Vec<Link>> {
    let mut route = Channel::open(libc::NETLINK_ROUTE)?;
    let bodies = route.ask(RTM_GETLINK, Scope::All, &[0; IFINFOMSG_BYTES])?;
    bodies.iter().map(|body| link(body)).collect()
}

fn link(body: &[u8]) -> io::Result<Link> {
    let message = LinkMessage::parse(body)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, format!("RTM_GETLINK: {error}")))?;
    let mut link = Link { index: message.header.index, flags: message.header.flags, ..Link::default() };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::Mtu(mtu) => link.mtu = mtu,
            LinkAttribute::Address(address) => link.address = address,
            LinkAttribute::Link(index) => link.lower = Some(index).filter(|index| *index > 0),
            LinkAttribute::LinkNetNsId(_) => link.lower_elsewhere = true,
            LinkAttribute::LinkInfo(infos) => link.kind = infos.into_iter().find_map(kind),
            LinkAttribute::Xdp(xdp) => link.program = xdp.iter().find_map(program),
            _ => {}
        }
    }
    Ok(link)
}

fn kind(info: LinkInfo) -> Option<String> {
    match info {
        LinkInfo::Kind(InfoKind::Other(name)) => Some(name),
        LinkInfo::Kind(kind) => Some(kind.to_string()),
        _ => None,
    }
}

fn program(xdp: &LinkXdp) -> Option<u32> {
    match xdp {
        LinkXdp::ProgId(id) | LinkXdp::DrvProgId(id) | LinkXdp::SkbProgId(id) | LinkXdp::HwProgId(id) => {
            Some(*id)
        }
        _ => None,
    }
    .filter(|id| *id > 0)
}

/// The channels devices are asked through.
struct Asker {
    generic: Seen<Channel>,
    netdev: Seen<u16>,
    ethtool: Seen<u16>,
    sysfs: Seen<Sysfs>,
}

impl Asker {
    fn open(links: &[Link]) -> Asker {
        let mut generic = seen("generic netlink socket", Channel::open(libc::NETLINK_GENERIC));
        let netdev = family(&mut generic, "netdev");
        let ethtool = family(&mut generic, "ethtool");
        Asker { generic, netdev, ethtool, sysfs: Sysfs::of(links) }
    }

    fn device(&mut self, link: &Link, links: &[Link]) -> Device {
        let name = &link.name;
        Device {
            name: name.clone(),
            up: link.flags.contains(LinkFlags::Up),
            loopback: link.flags.contains(LinkFlags::Loopback),
            mtu: link.mtu,
            kind: link.kind.clone(),
            driver: driver(link),
            xdp: self.xdp(link.index),
            attached: link.program.map(attached),
            xsk_queues: self.xsk_queues(link.index),
            channels: self.channels(name),
            rings: self.rings(name),
            features: self.features(name),
            vlans: vlans_on(link.index, links),
            tags_for: self.sysfs.as_ref().ok().and_then(|sysfs| sysfs.filtering_bridge(name)),
            veth_peer: self.veth_peer(link, links),
            rps: self.sysfs.as_ref().map_err(Unseen::clone).and_then(|sysfs| sysfs.rps(name)),
            irqs: self.irqs(link),
            threaded_napi: self.in_sysfs(name, "threaded").map(|mode: u64| mode != 0),
            defer_hard_irqs: self.in_sysfs(name, "napi_defer_hard_irqs"),
            gro_flush_ns: self.in_sysfs(name, "gro_flush_timeout"),
            rp_filter: rp_filter(name),
        }
    }

    fn xdp(&mut self, index: u32) -> Seen<XdpSupport> {
        let request = netdev::device_request(netdev::NETDEV_CMD_DEV_GET, index);
        let bodies = self.ask(&self.netdev.clone(), "netdev dev-get", Scope::One, &request)?;
        bodies
            .iter()
            .find_map(|body| netdev::xdp_support(body))
            .ok_or_else(|| unseen("netdev dev-get: empty answer"))
    }

    fn xsk_queues(&mut self, index: u32) -> Seen<Vec<u64>> {
        let request = netdev::queues_request(index);
        let bodies = self.ask(&self.netdev.clone(), "netdev queue-get", Scope::All, &request)?;
        Ok(bodies.iter().filter_map(|body| netdev::owned_by_xsk(body)).collect())
    }

    fn channels(&mut self, name: &str) -> Seen<Option<Channels>> {
        let bodies = self.ethtool("ethtool channels-get", netdev::ETHTOOL_MSG_CHANNELS_GET, name)?;
        Ok(bodies.iter().find_map(|body| netdev::channels(body)))
    }

    fn rings(&mut self, name: &str) -> Seen<Option<Rings>> {
        let bodies = self.ethtool("ethtool rings-get", netdev::ETHTOOL_MSG_RINGS_GET, name)?;
        Ok(bodies.iter().find_map(|body| netdev::rings(body)))
    }

    fn features(&mut self, name: &str) -> Seen<Features> {
        let bodies = self.ethtool("ethtool features-get", netdev::ETHTOOL_MSG_FEATURES_GET, name)?;
        Ok(bodies.first().map(|body| netdev::features(body)).unwrap_or_default())
    }

    /// No bodies where the driver does not have what is asked for.
    fn ethtool(&mut self, what: &str, command: u8, name: &str) -> Seen<Vec<Vec<u8>>> {
        let family = self.ethtool.clone()?;
        let channel = self.generic.as_mut().map_err(|unseen| unseen.clone())?;
        match channel.ask(family, Scope::One, &netdev::ethtool_request(command, name)) {
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(Vec::new()),
            other => seen(what, other),
        }
    }

    fn ask(&mut self, family: &Seen<u16>, what: &str, scope: Scope, body: &[u8]) -> Seen<Vec<Vec<u8>>> {
        let family = family.clone()?;
        let channel = self.generic.as_mut().map_err(|unseen| unseen.clone())?;
        seen(what, channel.ask(family, scope, body))
    }

    fn veth_peer(&mut self, link: &Link, links: &[Link]) -> VethPeer {
        let Some(peer) = link.lower.filter(|_| link.kind.as_deref() == Some("veth")) else {
            return VethPeer::None;
        };
        let here = links.iter().find(|other| other.index == peer && !link.lower_elsewhere);
        here.map_or(VethPeer::Elsewhere, |peer| VethPeer::Here {
            name: peer.name.clone(),
            queues: self.channels(&peer.name).ok().flatten().map(|channels| channels.transmit),
        })
    }

    /// From the NAPI instances (Linux 6.8, drivers that tell), else from the PCI device.
    fn irqs(&mut self, link: &Link) -> Seen<Vec<Irq>> {
        let request = netdev::napis_request(link.index);
        let told = self.ask(&self.netdev.clone(), "netdev napi-get", Scope::All, &request);
        let numbers: Vec<u64> = told.iter().flatten().filter_map(|body| netdev::napi_irq(body)).collect();
        let numbers = match numbers.is_empty() {
            false => numbers,
            true => self.sysfs.as_ref().map_err(Unseen::clone)?.irqs(&link.name),
        };
        numbers.into_iter().map(|number| Ok(Irq { number, cpus: affinity(number)? })).collect()
    }

    fn in_sysfs<T: FromStr>(&self, name: &str, file: &str) -> Seen<T>
    where
        T::Err: Display,
    {
        number_in(&self.sysfs.as_ref().map_err(Unseen::clone)?.device(name).join(file))
    }
}

fn family(generic: &mut Seen<Channel>, name: &str) -> Seen<u16> {
    let channel = generic.as_mut().map_err(|unseen| unseen.clone())?;
    let what = format!("generic netlink family '{name}'");
    let kind = libc::GENL_ID_CTRL as u16;
    let bodies = seen(&what, channel.ask(kind, Scope::One, &netdev::family_request(name)))?;
    bodies.iter().find_map(|body| netdev::family_id(body)).ok_or_else(|| unseen(&format!("{what}: no id")))
}

/// Virtual devices without ethtool operations have their kind for a driver.
fn driver(link: &Link) -> Seen<String> {
    match (sys::driver(&link.name), &link.kind) {
        (Err(error), Some(kind)) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(kind.clone()),
        (result, _) => seen("ETHTOOL_GDRVINFO", result),
    }
}

fn attached(id: u32) -> Attached {
    Attached { id, name: seen("BPF_PROG_GET_FD_BY_ID", sys::program_name(id)) }
}

fn vlans_on(index: u32, links: &[Link]) -> Vec<String> {
    let on_top = |link: &&Link| link.kind.as_deref() == Some("vlan") && link.lower == Some(index);
    links.iter().filter(on_top).map(|link| link.name.clone()).collect()
}

/// A sysfs that shows the caller's network namespace.
struct Sysfs {
    root: PathBuf,
    /// Keeps an unmounted sysfs alive.
    _mount: Option<OwnedFd>,
}

impl Sysfs {
    fn of(links: &[Link]) -> Seen<Sysfs> {
        let mounted = PathBuf::from("/sys");
        if shows(&mounted, links) {
            return Ok(Sysfs { root: mounted, _mount: None });
        }
        let mount = seen("/sys shows another network namespace, and fsopen(sysfs)", sys::own_sysfs())?;
        Ok(Sysfs { root: format!("/proc/self/fd/{}", mount.as_raw_fd()).into(), _mount: Some(mount) })
    }

    fn device(&self, name: &str) -> PathBuf {
        self.root.join("class/net").join(name)
    }

    fn rps(&self, name: &str) -> Seen<Rps> {
        let queues = self.device(name).join("queues");
        let mut rps = Rps { queues: 0, steered: 0, flow_entries: 0 };
        for entry in seen(&format!("reading {}", queues.display()), fs::read_dir(&queues))?.flatten() {
            if entry.file_name().to_string_lossy().starts_with("rx-") {
                rps.queues += 1;
                rps.steered += usize::from(names_a_cpu(&text_in(&entry.path().join("rps_cpus"))?));
                rps.flow_entries += number_in::<u64>(&entry.path().join("rps_flow_cnt"))?;
            }
        }
        Ok(rps)
    }

    fn filtering_bridge(&self, port: &str) -> Option<String> {
        let bridge = self.device(port).join("brport/bridge");
        let filters =
            number_in::<u64>(&bridge.join("bridge/vlan_filtering")).is_ok_and(|filters| filters > 0);
        let name = fs::read_link(bridge).ok().filter(|_| filters)?;
        Some(name.file_name()?.to_string_lossy().into_owned())
    }

    /// A virtio device's interrupts belong to the PCI device above it.
    fn irqs(&self, name: &str) -> Vec<u64> {
        let device = self.device(name).join("device");
        let listed = [device.join("msi_irqs"), device.join("../msi_irqs")]
            .into_iter()
            .find_map(|path| fs::read_dir(path).ok());
        let numbers = listed.into_iter().flatten().flatten();
        let mut irqs: Vec<u64> = numbers
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .filter(|number| self.receives(*number))
            .collect();
        irqs.sort_unstable();
        irqs
    }

    /// By the names drivers give: control and transmit interrupts say so, one without a name has no handler.
    fn receives(&self, irq: u64) -> bool {
        let actions = text_in(&self.root.join(format!("kernel/irq/{irq}/actions"))).unwrap_or_default();
        let other = ["config", "control", "output", "async", "misc", "fdir"];
        !actions.is_empty() && !other.iter().any(|word| actions.contains(word))
    }
}

/// Whether this sysfs lists exactly these devices: /proc and netlink follow the caller, a mounted sysfs does not.
fn shows(sysfs: &Path, links: &[Link]) -> bool {
    let class = sysfs.join("class/net");
    let count = fs::read_dir(&class)
        .map_or(0, |entries| entries.flatten().filter(|entry| entry.path().is_dir()).count());
    count == links.len()
        && links.iter().all(|link| {
            number_in(&class.join(&link.name).join("ifindex")) == Ok(link.index)
                && text_in(&class.join(&link.name).join("address")) == Ok(colons(&link.address))
        })
}

fn colons(address: &[u8]) -> String {
    address.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":")
}

/// A CPU mask is hexadecimal words with commas.
fn names_a_cpu(mask: &str) -> bool {
    mask.chars().any(|digit| digit.is_ascii_hexdigit() && digit != '0')
}

fn affinity(irq: u64) -> Seen<String> {
    let in_proc = |file| text_in(Path::new(&format!("/proc/irq/{irq}/{file}")));
    in_proc("effective_affinity_list")
        .ok()
        .filter(|list| !list.is_empty())
        .map_or_else(|| in_proc("smp_affinity_list"), Ok)
}

/// Linux takes the larger of the two (IN_DEV_MAXCONF in IN_DEV_RPFILTER).
fn rp_filter(device: &str) -> Seen<u64> {
    let of = |name: &str| number_in::<u64>(Path::new(&format!("/proc/sys/net/ipv4/conf/{name}/rp_filter")));
    Ok(of("all")?.max(of(device)?))
}

fn machine() -> Machine {
    let status = text_in(Path::new("/proc/self/status"));
    Machine {
        kernel: text_in(Path::new("/proc/sys/kernel/osrelease")).unwrap_or_default(),
        btf: Path::new("/sys/kernel/btf/vmlinux").exists(),
        initial_user_namespace: initial_user_namespace(),
        capabilities: status.and_then(|status| effective_capabilities(&status)),
        af_xdp: af_xdp(),
        memlock_bytes: memlock(),
        lockdown: lockdown(),
        cgroup2: text_in(Path::new("/proc/self/mountinfo")).map(|mounts| cgroup2_in(&mounts)),
        cores: std::thread::available_parallelism().map_or(1, usize::from),
        bpf_jit: core_setting("bpf_jit_enable").map(|level| level > 0),
        rmem_default_bytes: core_setting("rmem_default"),
        rmem_max_bytes: core_setting("rmem_max"),
        netdev_budget: core_setting("netdev_budget"),
        rps_sock_flow_entries: core_setting("rps_sock_flow_entries"),
        irqbalance: irqbalance(),
        huge_pages: text_in(Path::new("/proc/meminfo")).and_then(|meminfo| huge_pages_in(&meminfo)),
        nftables: nftables(),
        iptables: iptables(),
    }
}

fn initial_user_namespace() -> Seen<bool> {
    let path = "/proc/self/ns/user";
    seen(path, fs::metadata(path)).map(|namespace| namespace.ino() == INITIAL_USER_NAMESPACE)
}

fn effective_capabilities(status: &str) -> Seen<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    line.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .ok_or_else(|| unseen("/proc/self/status has no CapEff"))
}

fn af_xdp() -> Seen<bool> {
    match sys::af_xdp() {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => Ok(false),
        Err(error) => seen("socket(AF_XDP)", Err(error)),
    }
}

fn memlock() -> Seen<Option<u64>> {
    use nix::sys::resource::{Resource, getrlimit};
    let (soft, _) = seen("getrlimit(MEMLOCK)", getrlimit(Resource::RLIMIT_MEMLOCK).map_err(io::Error::from))?;
    Ok(Some(soft).filter(|limit| *limit != libc::RLIM_INFINITY))
}

fn lockdown() -> Seen<Option<String>> {
    let lsms = text_in(Path::new("/sys/kernel/security/lsm"));
    match (text_in(Path::new("/sys/kernel/security/lockdown")), lsms) {
        (Ok(levels), _) => Ok(chosen(&levels)),
        (Err(_), Ok(_)) => Ok(None),
        (Err(unseen), Err(_)) => {
            Err(Unseen { why: format!("{} (securityfs not mounted?)", unseen.why), ..unseen })
        }
    }
}

/// The word in brackets: "none [integrity] confidentiality".
fn chosen(levels: &str) -> Option<String> {
    levels.split_whitespace().find_map(|level| Some(level.strip_prefix('[')?.strip_suffix(']')?.to_owned()))
}

/// The mount point of the first cgroup v2 mount; on hybrid systems not /sys/fs/cgroup itself.
fn cgroup2_in(mountinfo: &str) -> Option<PathBuf> {
    let mounted = |line: &str| {
        let (mount, filesystem) = line.split_once(" - ")?;
        let point = mount.split(' ').nth(4)?;
        filesystem.starts_with("cgroup2 ").then(|| point.into())
    };
    mountinfo.lines().find_map(mounted)
}

/// Some are the first network namespace's alone (net_core_table) and have no file in others.
fn core_setting(name: &str) -> Seen<u64> {
    number_in(Path::new(&format!("/proc/sys/net/core/{name}"))).map_err(|unseen| Unseen {
        why: format!("{} (seen only in the first network namespace)", unseen.why),
        ..unseen
    })
}

fn irqbalance() -> Seen<bool> {
    let processes = seen("reading /proc", fs::read_dir("/proc"))?;
    let named = |path: PathBuf| fs::read_to_string(path).is_ok_and(|name| name.trim_end() == "irqbalance");
    Ok(processes.flatten().any(|entry| named(entry.path().join("comm"))))
}

fn huge_pages_in(meminfo: &str) -> Seen<HugePages> {
    let value = |name: &str| {
        meminfo.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse().ok())
    };
    let pages = || Some(HugePages { free: value("HugePages_Free:")?, size_kib: value("Hugepagesize:")? });
    pages().ok_or_else(|| unseen("/proc/meminfo has no huge pages"))
}

fn nftables() -> Seen<Vec<Chain>> {
    let mut channel = match Channel::open(libc::NETLINK_NETFILTER) {
        Err(error) if error.raw_os_error() == Some(libc::EPROTONOSUPPORT) => return Ok(Vec::new()),
        other => seen("nfnetlink socket", other)?,
    };
    match channel.ask(netfilter::GETCHAIN, Scope::All, &netfilter::EVERY_FAMILY) {
        // nfnetlink_rcv_msg: no such subsystem, so no nf_tables and no rules.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(Vec::new()),
        other => Ok(seen("nf_tables get-chain", other)?
            .iter()
            .filter_map(|body| netfilter::nft_chain(body))
            .collect()),
    }
}

/// Asks only for tables that exist: asking by name makes the kernel create the table.
fn iptables() -> Seen<Vec<Chain>> {
    let mut chains = Vec::new();
    for (file, level, layout) in [
        ("/proc/self/net/ip_tables_names", libc::IPPROTO_IP, netfilter::IPTABLES),
        ("/proc/self/net/ip6_tables_names", libc::IPPROTO_IPV6, netfilter::IP6TABLES),
    ] {
        let names = match fs::read_to_string(file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            other => seen(file, other)?,
        };
        for table in names.lines() {
            let (info, entries) = seen("IPT_SO_GET_ENTRIES", sys::legacy_table(level, table))?;
            chains.extend(netfilter::legacy_chains(layout, &info, &entries));
        }
    }
    Ok(chains)
}

fn text_in(path: &Path) -> Seen<String> {
    let text = seen(&format!("reading {}", path.display()), fs::read_to_string(path))?;
    Ok(text.trim_end().to_owned())
}

fn number_in<T: FromStr>(path: &Path) -> Seen<T>
where
    T::Err: Display,
{
    text_in(path)?.parse().map_err(|error| unseen(&format!("{}: {error}", path.display())))
}

fn seen<T>(what: &str, result: io::Result<T>) -> Seen<T> {
    result.map_err(|error| Unseen {
        why: format!("{what}: {error}"),
        privileged: error.kind() == io::ErrorKind::PermissionDenied,
    })
}

fn unseen(why: &str) -> Unseen {
    Unseen { why: why.to_owned(), privileged: false }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cgroup2_is_found_on_unified_and_hybrid_systems() {
        let unified = "29 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw";
        assert_eq!(cgroup2_in(unified), Some("/sys/fs/cgroup".into()));
        let hybrid = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
                      40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n\
                      41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw";
        assert_eq!(cgroup2_in(hybrid), Some("/sys/fs/cgroup/unified".into()));
        assert_eq!(cgroup2_in("31 23 0:28 / / rw - ext4 /dev/vda rw"), None);
    }

    #[test]
    fn the_lockdown_level_in_force_is_the_one_in_brackets() {
        assert_eq!(chosen("none [integrity] confidentiality").as_deref(), Some("integrity"));
        assert_eq!(chosen(""), None);
    }

    #[test]
    fn a_mask_of_zeros_names_no_cpu() {
        assert!(!names_a_cpu("00000000,00000000"));
        assert!(names_a_cpu("00000000,00000a00"));
    }

    #[test]
    fn capabilities_are_read_in_hexadecimal() {
        assert_eq!(effective_capabilities("Name:\tx\nCapEff:\t00000000a80425fb\n"), Ok(0xa804_25fb));
        assert!(effective_capabilities("Name:\tx\n").is_err());
    }

    #[test]
    fn huge_pages_are_read_from_meminfo() {
        let meminfo = "HugePages_Total:      16\nHugePages_Free:       12\nHugepagesize:       2048 kB\n";
        assert_eq!(huge_pages_in(meminfo), Ok(HugePages { free: 12, size_kib: 2048 }));
        assert!(huge_pages_in("MemTotal: 1 kB").is_err());
    }
}
