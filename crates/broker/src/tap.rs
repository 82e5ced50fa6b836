//! The TAP through which frames that nobody in the program wanted ride to the stack.
//!
//! It exists as long as somebody holds its descriptor, the program included: a broker that is killed takes nothing from
//! what the program still has to give back.

use crate::{
    error::{Context, Error, bpf},
    netlink::Route,
    sys,
};
use aya::{EbpfLoader, programs::SchedClassifier};
use nix::net::if_::if_nametoindex;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// More than any device's, so that a change of MTU needs no attention (TAP maximum: 65,535 less the Ethernet header).
const MTU: u32 = 65_521;

/// A TAP whose frames arrive on a device.
pub(crate) struct Tap {
    fd: OwnedFd,
}

impl Tap {
    /// Makes one for device `ifindex`; `generic`: the device runs steer in generic mode, which must let its frames by.
    ///
    /// # Errors
    /// No /dev/net/tun, no permission, or a kernel without tcx.
    pub(crate) fn open(route: &Route, ifindex: u32, generic: bool) -> Result<Self, Error> {
        let (fd, name) = sys::open_tap("hoist%d").context("make a TAP (/dev/net/tun)")?;
        let index = if_nametoindex(name.as_str()).context(format!("find the TAP {name}"))?;
        let mut loader = EbpfLoader::new();
        loader.override_global("device_ifindex", &ifindex, true);
        let generic = u32::from(generic);
        loader.override_global("generic_xdp", &generic, true);
        let mut ebpf = loader
            .load(aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/ride_in.bpf.o")))
            .map_err(|e| bpf("load ride_in", &e))?;
        let program = ebpf.program_mut("ride_in").ok_or_else(|| Error::Other("ride_in is missing".into()))?;
        let program: &mut SchedClassifier = program.try_into().map_err(|e| bpf("load ride_in", &e))?;
        program.load().map_err(|e| bpf("load ride_in", &e))?;
        let program = program.fd().map_err(|e| bpf("load ride_in", &e))?;
        sys::attach(program.as_fd(), index, sys::BPF_TCX_INGRESS)
            .context(format!("attach ride_in to {name} (tcx, Linux 6.6)"))?;
        route.set_up_silently(index, MTU)?;
        Ok(Self { fd })
    }

    /// Gives one Ethernet frame to the stack.
    ///
    /// # Errors
    /// write(2)'s.
    pub(crate) fn ride(&self, frame: &[u8]) -> std::io::Result<()> {
        nix::unistd::write(&self.fd, frame)?;
        Ok(())
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
