//! `steer` on one device: loaded, attached, its maps.

use crate::{
    Pins,
    abi::{
        Counter, FlowKey, LIFT_ADMIT_FLOW, LIFT_SPREAD, LIFT_TIMESTAMP, LiftKey, LiftRule, SteerDevice,
        Verdict,
    },
    connections::STEER_MAPS,
    device::Device,
    error::{Context, Error, bpf},
    loaders::loader,
    object::missing,
    rules::{Change, Key, Shares},
    sys,
};
use aya::{
    Ebpf, Pod,
    maps::{Array, HashMap, MapError, PerCpuArray, XskMap},
    programs::Xdp,
};
use hoist_ipc::hub::SEATS;
use std::{
    io,
    net::SocketAddr,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

/// The program, loaded. Attached for as long as it lives.
pub struct Steer {
    ebpf: Ebpf,
    program_id: u32,
    admit_flow: bool,
    queues: u32,
    link: Option<OwnedFd>,
}

/// How it came to be attached.
pub struct Attached {
    /// The program.
    pub steer: Steer,
    /// Why native mode was refused, if generic mode had to do.
    pub generic: Option<String>,
}

impl Steer {
    /// Loads and attaches to `device`: native XDP, or generic with the reason.
    ///
    /// # Errors
    /// Another XDP program is attached, which is left alone; or neither mode works.
    pub(crate) fn attach(
        device: &Device,
        admit_flow: bool,
        max_frame: u32,
        pins: Option<&Pins>,
    ) -> Result<Attached, Error> {
        if let Some(id) = device.xdp_program {
            return Err(Error::Other(format!(
                "{}: another XDP program (id {id}) is attached, and hoist replaces none: see bpftool net",
                device.name
            )));
        }
        let mut steer = Self::load(device, admit_flow, max_frame, false, pins)?;
        let Err(refused) = steer.link(device.ifindex, sys::XDP_FLAGS_DRV_MODE) else {
            return Ok(Attached { steer, generic: None });
        };
        if refused.raw_os_error() == Some(libc::EBUSY) {
            return Err(refused)
                .context(format!("attach steer to {}: an XDP program is attached", device.name));
        }
        let mut steer = Self::load(device, admit_flow, max_frame, true, None)?;
        steer
            .link(device.ifindex, sys::XDP_FLAGS_SKB_MODE)
            .context(format!("attach steer to {} in generic mode", device.name))?;
        Ok(Attached { steer, generic: Some(format!("{refused}{}", why_not_native(&refused))) })
    }

    /// Loads without attaching; for tests that run single packets. With `pins` it lifts TCP by the maps there.
    ///
    /// # Errors
    /// The kernel refuses the program or a map.
    pub fn load(
        device: &Device,
        admit_flow: bool,
        max_frame: u32,
        generic: bool,
        pins: Option<&Pins>,
    ) -> Result<Self, Error> {
        let (generic, lift_tcp) = (u32::from(generic), u32::from(pins.is_some()));
        let mut loader = loader();
        loader.override_global("generic_xdp", &generic, true);
        loader.override_global("lift_tcp", &lift_tcp, true);
        loader.override_global("queues", &device.max_rx_queues, true);
        loader.map_max_entries("xsks", device.max_rx_queues * SEATS as u32);
        match pins {
            Some(pins) => pins.share(&mut loader, &STEER_MAPS),
            None => {
                STEER_MAPS.iter().for_each(|map| {
                    loader.map_max_entries(map, 1);
                });
            }
        }
        if !admit_flow {
            loader.map_max_entries("admitted", 1);
        }
        let mut ebpf = loader
            .load(aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/steer.bpf.o")))
            .map_err(|e| bpf("load steer", &e))?;
        let program = ebpf.program_mut("steer").ok_or_else(|| Error::Other("steer is missing".into()))?;
        let program: &mut Xdp = program.try_into().map_err(|e| bpf("load steer", &e))?;
        program.load().map_err(|e| bpf("load steer", &e))?;
        let program_id = program.info().map_err(|e| bpf("load steer", &e))?.id();
        let queues = device.max_rx_queues;
        let mut steer = Self { ebpf, program_id, admit_flow, queues, link: None };
        steer.describe(device, max_frame)?;
        Ok(steer)
    }

    fn link(&mut self, ifindex: u32, mode: u32) -> io::Result<()> {
        let program = self.program().map_err(io::Error::other)?;
        let link = sys::link_create(program, ifindex, sys::BPF_XDP, mode)?;
        self.link = Some(link);
        Ok(())
    }

    /// The loaded program.
    ///
    /// # Errors
    /// Never, once loaded.
    pub fn program(&self) -> Result<BorrowedFd<'_>, Error> {
        let program = self.ebpf.program("steer").ok_or_else(|| Error::Other("steer is missing".into()))?;
        let program: &Xdp = program.try_into().map_err(|e| bpf("find steer", &e))?;
        Ok(program.fd().map_err(|e| bpf("find steer", &e))?.as_fd())
    }

    /// Its id, as bpftool and IFLA_XDP show it.
    pub fn program_id(&self) -> u32 {
        self.program_id
    }

    /// Tells steer the device's address and the longest frame a ring takes.
    ///
    /// # Errors
    /// bpf(2)'s.
    pub fn describe(&mut self, device: &Device, max_frame: u32) -> Result<(), Error> {
        let value = SteerDevice { mac: device.mac, zero: 0, max_frame };
        self.array("device")?.set(0, value, 0).map_err(|e| bpf("describe the device to steer", &e))
    }

    /// Applies one change of the rules.
    ///
    /// # Errors
    /// bpf(2)'s; the map is full (E2BIG).
    pub fn apply(&mut self, key: Key, change: Change) -> Result<(), Error> {
        let port = u32::from(key.port);
        let done = match change {
            Change::Port => self.array("lift_ports")?.set(port, 1_u32, 0),
            Change::NoPort => self.array("lift_ports")?.set(port, 0_u32, 0),
            Change::Rule { timestamp, shares } => {
                let rule = rule(self.admit_flow, timestamp, &shares);
                self.hash::<LiftKey, LiftRule>("lift")?.insert(LiftKey::from(key), rule, 0)
            }
            Change::NoRule => unless_absent(self.hash::<LiftKey, LiftRule>("lift")?.remove(&key.into())),
        };
        done.map_err(|e| bpf("change a rule of steer", &e))
    }

    /// Lifts this flow from now on (`--admit flow`).
    ///
    /// # Errors
    /// bpf(2)'s.
    pub fn admit(&mut self, source: SocketAddr, destination: SocketAddr) -> Result<(), Error> {
        let key = FlowKey::new(source, destination);
        self.hash::<FlowKey, u8>("admitted")?.insert(key, 1, 0).map_err(|e| bpf("admit a flow", &e))
    }

    /// Puts an AF_XDP socket of the process at `seat` behind a queue.
    ///
    /// # Errors
    /// bpf(2)'s.
    pub fn set_ring(&mut self, seat: u8, queue: u32, socket: BorrowedFd<'_>) -> Result<(), Error> {
        let ring = u32::from(seat) * self.queues + queue;
        self.xsks()?.set(ring, socket.as_raw_fd(), 0).map_err(|e| bpf("put a ring behind a queue", &e))
    }

    /// Takes it away again.
    ///
    /// # Errors
    /// bpf(2)'s.
    pub fn unset_ring(&mut self, seat: u8, queue: u32) -> Result<(), Error> {
        let ring = u32::from(seat) * self.queues + queue;
        unless_absent(self.xsks()?.unset(ring)).map_err(|e| bpf("take a ring from a queue", &e))
    }

    /// Packets and bytes of each verdict since it was loaded.
    ///
    /// # Errors
    /// bpf(2)'s.
    pub fn counters(&self) -> Result<Vec<(Verdict, Counter)>, Error> {
        let map = self.ebpf.map("counters").ok_or_else(|| missing("steer", "counters"))?;
        let map = PerCpuArray::<_, Counter>::try_from(map).map_err(|e| bpf("read steer's counters", &e))?;
        let sum = |&verdict: &Verdict| {
            let cpus = map.get(&(verdict as u32), 0).map_err(|e| bpf("read steer's counters", &e))?;
            let add = |a: Counter, b: &Counter| Counter {
                packets: a.packets.wrapping_add(b.packets),
                bytes: a.bytes.wrapping_add(b.bytes),
            };
            Ok((verdict, cpus.iter().fold(Counter::default(), add)))
        };
        Verdict::ALL.iter().map(sum).collect()
    }

    fn array<V: Pod>(&mut self, name: &'static str) -> Result<Array<&mut aya::maps::MapData, V>, Error> {
        let map = self.ebpf.map_mut(name).ok_or_else(|| missing("steer", name))?;
        Array::try_from(map).map_err(|e| bpf(name, &e))
    }

    fn hash<K: Pod, V: Pod>(
        &mut self,
        name: &'static str,
    ) -> Result<HashMap<&mut aya::maps::MapData, K, V>, Error> {
        let map = self.ebpf.map_mut(name).ok_or_else(|| missing("steer", name))?;
        HashMap::try_from(map).map_err(|e| bpf(name, &e))
    }

    fn xsks(&mut self) -> Result<XskMap<&mut aya::maps::MapData>, Error> {
        let map = self.ebpf.map_mut("xsks").ok_or_else(|| missing("steer", "xsks"))?;
        XskMap::try_from(map).map_err(|e| bpf("xsks", &e))
    }
}

fn rule(admit_flow: bool, timestamp: bool, shares: &Shares) -> LiftRule {
    let single = shares.single();
    let flags = [(admit_flow, LIFT_ADMIT_FLOW), (timestamp, LIFT_TIMESTAMP), (single.is_none(), LIFT_SPREAD)];
    LiftRule {
        flags: flags.into_iter().filter(|(set, _)| *set).map(|(_, flag)| flag).sum(),
        seat: single.unwrap_or_default().into(),
        seats: shares.parts(),
    }
}

/// An entry that is gone already (the socket of a ring was closed, a map was rebuilt) is as good as removed.
fn unless_absent(result: Result<(), MapError>) -> Result<(), MapError> {
    match result {
        Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(e)) if e.io_error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        other => other,
    }
}

/// Why a driver refuses native mode, in brackets, as far as its errno tells.
pub(crate) fn why_not_native(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EBUSY) => " (an XDP program is attached, and hoist replaces none)",
        Some(libc::EOPNOTSUPP) => " (the driver has no native XDP)",
        Some(libc::ENOSPC) => " (a veth needs as many rx queues as its peer has tx queues)",
        Some(libc::ERANGE) => " (the MTU is too large for native XDP)",
        _ => "",
    }
}
