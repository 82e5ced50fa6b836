//! The TCP connections of a run: `conns` in the run's cgroup, and the maps that it shares with `steer` and `ride_in`.

use crate::{
    abi::TcpClosed,
    cgroup::Cgroup,
    error::{Context, Error, bpf},
    loaders::loader,
    object::{array, missing},
    server::{Ports, Tcp},
    status::{ClosedConnections, ConnectionStatus, StreamTraffic},
    sys,
};
use aya::{Ebpf, EbpfLoader, maps::Array, programs::SockOps};
use hoist_ipc::{
    Reason,
    tcp::{CONNECTED, PortCounts, Slot, Slots, Steering},
};
use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::PathBuf,
    sync::atomic::{AtomicU32, Ordering::Relaxed},
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
        let map = |name| array(&ebpf, "conns", name);
        let slots = Slots::map(map("tcp_slots")?).context("map the connections")?;
        let ports = PortCounts::map(map("tcp_ports")?).context("map the ports of connections")?;
        Ok(Self { pins, cgroup, slots, ports, ebpf, _link: link })
    }

    /// Descriptors of `tcp_slots` and `tcp_ports`.
    pub(crate) fn maps(&self) -> Result<[BorrowedFd<'_>; 2], Error> {
        Ok([array(&self.ebpf, "conns", "tcp_slots")?, array(&self.ebpf, "conns", "tcp_ports")?])
    }

    /// The open ones, by cookie.
    pub(crate) fn statuses(&self) -> BTreeMap<u64, ConnectionStatus> {
        let open = self.slots.iter().filter_map(|slot| {
            let (cookie, steering) = slot.occupant()?;
            Some((cookie, status(slot, steering)))
        });
        open.collect()
    }

    /// The closed ones, summed.
    pub(crate) fn closed(&self) -> ClosedConnections {
        let map = self.ebpf.map("tcp_closed").and_then(|map| Array::<_, TcpClosed>::try_from(map).ok());
        let sums = map.and_then(|map| map.get(&0, 0).ok()).unwrap_or_default();
        let traffic = StreamTraffic {
            lifted_bytes: sums.lifted_bytes,
            passed_bytes: sums.passed_bytes,
            lifts: sums.lifts,
            bad_checksum: sums.bad_checksum,
            rode: sums.rode,
            rode_real: sums.rode_real,
        };
        ClosedConnections { connections: sums.connections, traffic }
    }

    /// Lifts nothing to `seat` any more. Counts of ports are of all processes with rings: gone with the `last` of them, and until then one that
    /// ended leaves its own, which cost a look at each segment.
    pub(crate) fn pass_all(&self, seat: u8, last: bool) {
        for slot in self.slots.iter().filter(|slot| last || slot.seat.load(Relaxed) == u64::from(seat)) {
            if let Some((cookie, Steering::Lift)) = slot.occupant() {
                slot.steer(cookie, Steering::Pass);
            }
        }
        if last {
            (0..=u16::MAX).for_each(|port| self.ports.of(port).store(0, Relaxed));
        }
    }
}

/// What a slot says. The program may have written anything in it.
fn status(slot: &Slot, steering: Steering) -> ConnectionStatus {
    let traffic = StreamTraffic {
        lifted_bytes: slot.lifted_bytes.load(Relaxed),
        passed_bytes: slot.passed_bytes.load(Relaxed),
        lifts: slot.lifts.load(Relaxed),
        bad_checksum: slot.bad_checksum.load(Relaxed),
        rode: slot.rode.load(Relaxed),
        rode_real: slot.rode_real.load(Relaxed),
    };
    let (state, reason) = state(steering, slot.reason.load(Relaxed), traffic.lifts);
    let (local, remote) = slot.ports();
    let option = slot.option.load(Relaxed);
    ConnectionStatus {
        pid: slot.pid.load(Relaxed),
        local: address(&slot.local, local),
        peer: address(&slot.remote, remote),
        direction: if slot.flags.load(Relaxed) & CONNECTED == 0 { "accepted" } else { "connected" }.into(),
        state: state.into(),
        reason: reason.word().into(),
        explain: reason.explain().into(),
        option: (option != 0).then_some((option >> 16, option & 0xffff)),
        sent_bytes: None,
        traffic,
    }
}

/// A connection that is not lifted and has no reason is one that nobody reads.
fn state(steering: Steering, reason: u32, lifts: u64) -> (&'static str, Reason) {
    let reason = match Reason::try_from(reason) {
        _ if steering == Steering::Lift => return ("lifted", Reason::Lifted),
        Ok(Reason::Lifted) => Reason::Parked,
        Ok(reason) => reason,
        Err(_) => Reason::Refused,
    };
    let for_now = matches!(reason, Reason::Parked | Reason::Memory);
    (if lifts > 0 && !for_now { "demoted" } else { "passed" }, reason)
}

fn address(words: &[AtomicU32; 4], port: u16) -> String {
    SocketAddr::new(IpAddr::from(Slot::address(words)).to_canonical(), port).to_string()
}

fn load(tcp: &Tcp, netns_cookie: Option<u64>, pins: &Pins) -> Result<Ebpf, Error> {
    let mut loader = loader();
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
    let map = ebpf.map_mut("tcp_selected").ok_or_else(|| missing("conns", "tcp_selected"))?;
    let mut selected: Array<_, u64> = map.try_into().map_err(|e| bpf("tcp_selected", &e))?;
    for word in 0..1024_u16 {
        let bits =
            (0..64).filter(|bit| ports.contain(word * 64 + bit)).fold(0, |bits, bit| bits | 1_u64 << bit);
        selected.set(word.into(), bits, 0).map_err(|e| bpf("select ports of connections", &e))?;
    }
    Ok(())
}

fn attach(ebpf: &mut Ebpf, cgroup: &Cgroup) -> Result<OwnedFd, Error> {
    let program = ebpf.program_mut("conns").ok_or_else(|| missing("conns", "conns"))?;
    let program: &mut SockOps = program.try_into().map_err(|e| bpf("load conns", &e))?;
    program.load().map_err(|e| bpf("load conns", &e))?;
    let program = program.fd().map_err(|e| bpf("load conns", &e))?;
    let target = cgroup.as_fd().as_raw_fd() as u32;
    sys::link_create(program.as_fd(), target, sys::BPF_CGROUP_SOCK_OPS, 0)
        .context("attach conns to the run's cgroup")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_is_lifted_passed_for_now_or_demoted() {
        let lifted = Reason::Lifted as u32;
        assert_eq!(state(Steering::Lift, 99, 1), ("lifted", Reason::Lifted));
        assert_eq!(state(Steering::Pass, lifted, 0), ("passed", Reason::Parked));
        assert_eq!(state(Steering::Pass, Reason::Parked as u32, 3), ("passed", Reason::Parked));
        assert_eq!(state(Steering::Pass, Reason::Forked as u32, 3), ("demoted", Reason::Forked));
        assert_eq!(state(Steering::Pass, Reason::Forked as u32, 0), ("passed", Reason::Forked));
        assert_eq!(state(Steering::Pass, 9999, 0), ("passed", Reason::Refused));
    }

    #[test]
    fn a_slot_is_shown_with_addresses_of_its_own_family() {
        let slot = Slot::default();
        slot.flags.store(CONNECTED, Relaxed);
        slot.ports.store(443 << 16 | 5000, Relaxed);
        slot.local[2].store(0xffff_0000_u32.to_le(), Relaxed);
        slot.local[3].store(u32::from_ne_bytes([10, 0, 0, 1]), Relaxed);
        slot.remote[0].store(u32::from_ne_bytes([0xfd, 0, 0, 0]), Relaxed);
        let shown = status(&slot, Steering::Pass);
        assert_eq!((shown.local.as_str(), shown.peer.as_str()), ("10.0.0.1:5000", "[fd00::]:443"));
        assert_eq!(shown.direction, "connected");
    }
}
