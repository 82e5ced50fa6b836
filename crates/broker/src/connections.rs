//! The TCP connections of a run: `conns` in the run's cgroup, and the maps that it shares with `steer` and `ride_in`.

use crate::{
    cgroup::Cgroup,
    error::{Context, Error, bpf},
    server::{Ports, Tcp},
    sys,
};
use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, Map, MapData},
    programs::SockOps,
};
use hoist_ipc::tcp::{PortCounts, Slots, Steering};
use std::{
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::PathBuf,
    sync::atomic::Ordering::Relaxed,
};

/// Maps that several programs of a run use, by name: a BPF file system of the run's own, mounted nowhere, gone with its
/// descriptor.
pub struct Pins(OwnedFd);

impl Pins {
    /// Makes one without maps in it.
    ///
    /// # Errors
    /// A kernel without bpffs, or no CAP_SYS_ADMIN.
    pub fn new() -> Result<Self, Error> {
        sys::detached_bpffs().context("make a BPF file system (fsopen, fsmount)").map(Self)
    }

    /// Where the map `name` is.
    pub fn path(&self, name: &str) -> PathBuf {
        format!("/proc/self/fd/{}/{name}", self.0.as_raw_fd()).into()
    }

    /// Has programs loaded by `loader` use the maps.
    pub(crate) fn share<'a>(&self, loader: &mut EbpfLoader<'a>, names: &[&'a str]) {
        for name in names {
            loader.map_pin_path(name, self.path(name));
        }
    }
}

/// `conns`, attached, and its maps.
pub(crate) struct Connections {
    pub(crate) pins: Pins,
    pub(crate) cgroup: Cgroup,
    slots: Slots,
    ports: PortCounts,
    ebpf: Ebpf,
    _link: OwnedFd,
}

/// Maps of connections that steer uses.
pub(crate) const STEER_MAPS: [&str; 3] = ["tcp_flows", "tcp_slots", "tcp_ports"];

impl Connections {
    /// Makes the run's cgroup and has its connections published from now on.
    ///
    /// # Errors
    /// As [`Cgroup::make`] and [`Pins::new`]; the kernel refuses the program or a map.
    pub(crate) fn start(tcp: &Tcp, netns_cookie: Option<u64>) -> Result<Self, Error> {
        let cgroup = Cgroup::make()?;
        let pins = Pins::new()?;
        let mut ebpf = load(tcp, netns_cookie, &pins)?;
        let link = attach(&mut ebpf, &cgroup)?;
        let map = |name| descriptor(&ebpf, name);
        let slots = Slots::map(map("tcp_slots")?).context("map the connections")?;
        let ports = PortCounts::map(map("tcp_ports")?).context("map the ports of connections")?;
        Ok(Self { pins, cgroup, slots, ports, ebpf, _link: link })
    }

    /// Descriptors of `tcp_slots` and `tcp_ports`.
    pub(crate) fn maps(&self) -> Result<[BorrowedFd<'_>; 2], Error> {
        Ok([descriptor(&self.ebpf, "tcp_slots")?, descriptor(&self.ebpf, "tcp_ports")?])
    }

    /// Lifts nothing any more. Counts of ports are the holder's of the rings alone, and so are all gone with it.
    pub(crate) fn pass_all(&self) {
        for slot in self.slots.iter() {
            if let Some((cookie, Steering::Lift)) = slot.occupant() {
                slot.steer(cookie, Steering::Pass);
            }
        }
        (0..=u16::MAX).for_each(|port| self.ports.of(port).store(0, Relaxed));
    }
}

fn load(tcp: &Tcp, netns_cookie: Option<u64>, pins: &Pins) -> Result<Ebpf, Error> {
    let mut loader = EbpfLoader::new();
    let (all, netns) = (u32::from(tcp.ports == Ports::All), netns_cookie.unwrap_or(0));
    loader.override_global("all_selected", &all, true);
    loader.override_global("netns_cookie", &netns, true);
    pins.share(&mut loader, &STEER_MAPS);
    let mut ebpf = loader
        .load(aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/conns.bpf.o")))
        .map_err(|e| bpf("load conns", &e))?;
    select(&mut ebpf, &tcp.ports)?;
    Ok(ebpf)
}

fn select(ebpf: &mut Ebpf, ports: &Ports) -> Result<(), Error> {
    let map = ebpf.map_mut("tcp_selected").ok_or_else(|| missing("tcp_selected"))?;
    let mut selected: Array<_, u64> = map.try_into().map_err(|e| bpf("tcp_selected", &e))?;
    for word in 0..1024_u16 {
        let bits =
            (0..64).filter(|bit| ports.contain(word * 64 + bit)).fold(0, |bits, bit| bits | 1_u64 << bit);
        selected.set(word.into(), bits, 0).map_err(|e| bpf("select ports of connections", &e))?;
    }
    Ok(())
}

fn attach(ebpf: &mut Ebpf, cgroup: &Cgroup) -> Result<OwnedFd, Error> {
    let program = ebpf.program_mut("conns").ok_or_else(|| missing("conns"))?;
    let program: &mut SockOps = program.try_into().map_err(|e| bpf("load conns", &e))?;
    program.load().map_err(|e| bpf("load conns", &e))?;
    let program = program.fd().map_err(|e| bpf("load conns", &e))?;
    let target = cgroup.as_fd().as_raw_fd() as u32;
    sys::link_create(program.as_fd(), target, sys::BPF_CGROUP_SOCK_OPS, 0)
        .context("attach conns to the run's cgroup")
}

fn descriptor<'a>(ebpf: &'a Ebpf, name: &str) -> Result<BorrowedFd<'a>, Error> {
    match ebpf.map(name) {
        Some(Map::Array(map)) => Ok(MapData::fd(map).as_fd()),
        _ => Err(missing(name)),
    }
}

fn missing(name: &str) -> Error {
    Error::Other(format!("conns has no {name}"))
}
