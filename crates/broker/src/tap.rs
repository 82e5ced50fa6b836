//! The TAP through which frames that nobody in the program wanted ride to the stack.
//!
//! It exists as long as somebody holds its descriptor, the program included: a broker that is killed takes nothing from
//! what the program still has to give back.

use crate::{
    Pins,
    error::{Context, Error, bpf},
    loaders::loader,
    netlink::Route,
    sys,
};
use aya::{
    maps::{Array, MapData, PerCpuArray},
    programs::SchedClassifier,
};
use netlink_packet_route::link::LinkAttribute;
use nix::{net::if_::if_nametoindex, sys::uio::writev};
use std::{
    io::{self, IoSlice},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

/// More than any device's, so that a change of MTU needs no attention (TAP maximum: 65,535 less the Ethernet header).
const MTU: u32 = 65_521;

/// Alias of every TAP made here, by which the next run knows those that are left.
const ALIAS: &str = "hoist run";

/// A TAP whose frames arrive on a device.
pub(crate) struct Tap {
    fd: OwnedFd,
    ports: Array<MapData, u64>,
    refused: PerCpuArray<MapData, u64>,
}

impl Tap {
    /// Makes one for device `ifindex`; `generic`: the device runs steer in generic mode, which must let its frames by.
    /// With `pins`, TCP segments of the connections there may ride too.
    ///
    /// # Errors
    /// No /dev/net/tun, no permission, or a kernel without tcx.
    pub(crate) fn open(
        route: &Route,
        ifindex: u32,
        generic: bool,
        pins: Option<&Pins>,
    ) -> Result<Self, Error> {
        let (fd, name) = sys::open_tap("hoist%d").context("make a TAP (/dev/net/tun)")?;
        let index = if_nametoindex(name.as_str()).context(format!("find the TAP {name}"))?;
        let mut loader = loader();
        loader.override_global("device_ifindex", &ifindex, true);
        let (generic, tcp) = (u32::from(generic), u32::from(pins.is_some()));
        loader.override_global("generic_xdp", &generic, true);
        loader.override_global("ride_tcp", &tcp, true);
        match pins {
            Some(pins) => pins.share(&mut loader, &["tcp_flows"]),
            None => {
                loader.map_max_entries("tcp_flows", 1);
            }
        }
        let mut ebpf = loader
            .load(aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/ride_in.bpf.o")))
            .map_err(|e| bpf("load ride_in", &e))?;
        let program = ebpf.program_mut("ride_in").ok_or_else(|| Error::Other("ride_in is missing".into()))?;
        let program: &mut SchedClassifier = program.try_into().map_err(|e| bpf("load ride_in", &e))?;
        program.load().map_err(|e| bpf("load ride_in", &e))?;
        let program = program.fd().map_err(|e| bpf("load ride_in", &e))?;
        sys::attach(program.as_fd(), index, sys::BPF_TCX_INGRESS)
            .context(format!("attach ride_in to {name} (tcx, Linux 6.6)"))?;
        route.set_up_silently(index, MTU, ALIAS)?;
        let mut take =
            |map: &str| ebpf.take_map(map).ok_or_else(|| Error::Other(format!("ride_in has no map {map}")));
        let ports = take("ride_ports")?.try_into().map_err(|e| bpf("ride_ports", &e))?;
        let refused = take("ride_refused")?.try_into().map_err(|e| bpf("ride_refused", &e))?;
        Ok(Self { fd, ports, refused })
    }

    /// Lets datagrams to `port` ride, for good: some may be queued when its rule is gone.
    ///
    /// # Errors
    /// bpf(2)'s.
    pub(crate) fn allow(&mut self, port: u16) -> Result<(), Error> {
        let word = u32::from(port / 64);
        let bits = self.ports.get(&word, 0).map_err(|e| bpf("read the ports that may ride", &e))?;
        self.ports.set(word, bits | 1 << (port % 64), 0).map_err(|e| bpf("let a port ride", &e))
    }

    /// Frames that were written to it and dropped because steer would not have lifted them.
    pub(crate) fn refused(&self) -> u64 {
        self.refused.get(&0, 0).map_or(0, |cpus| cpus.iter().fold(0, |sum: u64, n| sum.saturating_add(*n)))
    }

    /// Gives one Ethernet frame to the stack.
    ///
    /// # Errors
    /// writev(2)'s.
    pub(crate) fn ride(&self, header: [u8; sys::VNET_HEADER], frame: &[u8]) -> io::Result<()> {
        writev(&self.fd, &[IoSlice::new(&header), IoSlice::new(frame)])?;
        Ok(())
    }
}

/// Removes TAPs that programs of ended runs made persistent (TUNSETPERSIST): nobody holds their descriptor, so they have no
/// carrier.
pub(crate) fn sweep(route: &Route) -> Result<(), Error> {
    for link in route.links()? {
        let ours = link.attributes.contains(&LinkAttribute::IfAlias(ALIAS.into()));
        if ours && link.attributes.contains(&LinkAttribute::Carrier(0)) {
            route.remove(link.header.index)?;
        }
    }
    Ok(())
}

impl Drop for Tap {
    fn drop(&mut self) {
        // The program has the descriptor too and may have made the device outlive it.
        let _ = sys::forget_tap(self.fd.as_fd());
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
