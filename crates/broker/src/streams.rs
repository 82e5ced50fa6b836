//! What a process may ask about TCP connections.

use crate::{
    Broker, Error,
    device::Device,
    endpoint::{Endpoint, Protocol},
    requests::NO_SLOT,
};
use hoist_ipc::{Reason, Reply, tcp::Policy};
use hoist_xsk::Mode;
use std::os::fd::{BorrowedFd, OwnedFd};

impl Broker {
    /// Makes sure that the process has rings wherever packets for this connection's local address may arrive; or says why
    /// not.
    pub(crate) fn stream(&mut self, id: u64, cookie: u64, fd: Option<OwnedFd>) -> Result<Reply, Error> {
        let (endpoint, fd) = match self.examine(fd, cookie, Protocol::Tcp) {
            Ok(found) => found,
            Err(errno) => return Ok(Reply::Refused { errno }),
        };
        self.disposal.close(fd);
        if endpoint.peer.is_none() {
            return Ok(Reply::Refused { errno: libc::ENOTCONN as u32 });
        }
        self.announce_connections(id)?;
        let reason = self.prepare_stream(id, &endpoint)?.unwrap_or(Reason::Lifted);
        if self.config.tcp.policy == Policy::Lift {
            self.note_denial(&endpoint, reason);
        }
        Ok(Reply::Registered { slot: NO_SLOT, reason })
    }

    fn prepare_stream(&mut self, id: u64, endpoint: &Endpoint) -> Result<Option<Reason>, Error> {
        if self.config.tcp.policy == Policy::Off {
            return Ok(Some(Reason::Off));
        }
        if self.connections.is_none() {
            return Ok(Some(Reason::NoConnections));
        }
        if endpoint.local.ip().is_loopback() {
            return Ok(Some(Reason::Loopback));
        }
        if !self.has_seat(id) {
            return Ok(Some(Reason::RingsBusy));
        }
        let worth = |devices: Vec<Device>| self.worth(devices);
        let steered =
            match self.devices_for(endpoint).and_then(worth).and_then(|devices| self.steered_of(devices)) {
                Ok(steered) => steered,
                Err(reason) => return Ok(Some(reason)),
            };
        let native: Vec<Device> = steered.into_iter().filter(|device| !self.is_generic(device)).collect();
        if native.is_empty() {
            return Ok(Some(Reason::Generic));
        }
        self.give_rings(id, &native, true, false)
    }

    /// Devices from which lifting pays, or is forced. In copy mode it costs more than it saves (SPEC.md). A device that is not
    /// attached yet may write to the UMEM itself if it is hardware.
    fn worth(&self, devices: Vec<Device>) -> Result<Vec<Device>, Reason> {
        let bound = |device: &Device| {
            self.steered.get(&device.ifindex)?.bound.as_ref().map(|(zero_copy, _)| *zero_copy)
        };
        let hardware = |device: &Device| device.kind.is_empty() && self.config.mode != Mode::Copy;
        let forced = self.config.tcp.policy == Policy::Lift;
        let pays = |device: &Device| forced || bound(device).unwrap_or_else(|| hardware(device));
        let worth: Vec<Device> = devices.into_iter().filter(pays).collect();
        if worth.is_empty() { Err(Reason::NotWorth) } else { Ok(worth) }
    }

    fn is_generic(&self, device: &Device) -> bool {
        self.steered.get(&device.ifindex).is_some_and(|steered| steered.generic.is_some())
    }

    /// Sends the maps of the connections, once.
    fn announce_connections(&mut self, id: u64) -> Result<(), Error> {
        let known = self.channels.get(&id).is_none_or(|channel| channel.knows_connections);
        let Some(connections) = self.connections.as_ref().filter(|_| !known) else { return Ok(()) };
        for (ports, map) in [false, true].into_iter().zip(connections.maps()?) {
            self.reply(id, &Reply::Connections { ports }, &[map])?;
        }
        if let Some(channel) = self.channels.get_mut(&id) {
            channel.knows_connections = true;
        }
        Ok(())
    }

    /// For the program to join before it starts: `cgroup.procs` of the run's cgroup, if connections are followed.
    pub fn cgroup(&self) -> Option<BorrowedFd<'_>> {
        self.connections.as_ref().map(|connections| connections.cgroup.procs())
    }

    /// The program has started as `pid`: says so if it could not join the cgroup.
    pub fn check_joined(&mut self, pid: u32) {
        self.program = Some(pid);
        let outside = |c: &crate::connections::Connections| !c.cgroup.holds(pid);
        // A zombie has left it.
        let lives = || {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
        };
        if self.connections.as_ref().is_some_and(outside) && lives() {
            self.say(format!("TCP is not lifted: process {pid} could not join the run's cgroup"));
        }
    }
}
