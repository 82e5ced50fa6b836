//! Processes that talk to the broker and the sockets they have registered.

use crate::{
    abi::Verdict,
    endpoint::Endpoint,
    requests::hung_up,
    rules::{Key, Membership, Want},
    status::{ClosedStatus, SocketStatus, Traffic},
    sys,
};
use hoist_ipc::{
    Reason,
    page::{Mapped, SOCKETS, SocketStats},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    os::fd::{AsFd, OwnedFd},
    sync::atomic::Ordering::Relaxed,
};

/// Groups remembered for sockets of one process, registered or not.
const GROUPS: usize = 1024;
/// Local addresses kept apart in the sums of closed sockets.
const CLOSED: usize = 4096;

/// One process.
pub(crate) struct Channel {
    pub(crate) socket: OwnedFd,
    pub(crate) pidfd: OwnedFd,
    pub(crate) pid: u32,
    pub(crate) uid: u32,
    pub(crate) name: String,
    pub(crate) page: Mapped,
    pub(crate) sockets: BTreeMap<u64, Registered>,
    /// It has the maps of the TCP connections, and steers these without asking.
    pub(crate) knows_connections: bool,
    groups: BTreeMap<u64, Vec<Membership>>,
    slots: Slots,
}

/// One socket of a process.
pub(crate) struct Registered {
    pub(crate) endpoint: Endpoint,
    pub(crate) slot: u32,
    /// Lifted, or why not, as the broker decided.
    pub(crate) verdict: Reason,
    pub(crate) timestamps: bool,
    /// Seat of the process when it was lifted.
    pub(crate) seat: u8,
    /// Its rules.
    pub(crate) keys: BTreeSet<(u32, Key)>,
    /// Looks in vain for it among the sockets of the kernel.
    pub(crate) missed: u32,
    /// Looks in a row that found a socket which is no part of the run and could receive the same.
    pub(crate) shared: u32,
}

#[derive(Default)]
struct Slots {
    free: Vec<u32>,
    used: u32,
}

impl Slots {
    fn take(&mut self) -> Option<u32> {
        self.free.pop().or_else(|| {
            let slot = self.used;
            ((slot as usize) < SOCKETS).then(|| {
                self.used += 1;
                slot
            })
        })
    }
}

impl Channel {
    pub(crate) fn new(
        socket: OwnedFd,
        pidfd: OwnedFd,
        (pid, uid): (u32, u32),
        name: String,
        page: Mapped,
    ) -> Self {
        let (sockets, groups, slots) = (BTreeMap::new(), BTreeMap::new(), Slots::default());
        Self { socket, pidfd, pid, uid, name, page, sockets, knows_connections: false, groups, slots }
    }

    /// The slot of a socket, taken anew if it has none.
    pub(crate) fn slot(&mut self, cookie: u64) -> Option<u32> {
        if let Some(socket) = self.sockets.get(&cookie) {
            return Some(socket.slot);
        }
        let slot = self.slots.take()?;
        clear(&self.page.sockets[slot as usize]);
        Some(slot)
    }

    /// Forgets a socket and hands back what it was.
    pub(crate) fn remove(&mut self, cookie: u64) -> Option<Registered> {
        self.groups.remove(&cookie);
        let socket = self.sockets.remove(&cookie)?;
        self.slots.free.push(socket.slot);
        Some(socket)
    }

    /// Notes that a socket joined or left a group; false: too many to remember.
    pub(crate) fn group(&mut self, cookie: u64, join: bool, membership: Membership) -> bool {
        let known: usize = self.groups.values().map(Vec::len).sum();
        let groups = self.groups.entry(cookie).or_default();
        groups.retain(|m| {
            *m != membership && !(!join && membership.ifindex == 0 && m.group == membership.group)
        });
        if join && known < GROUPS {
            groups.push(membership);
        }
        if groups.is_empty() {
            self.groups.remove(&cookie);
        }
        !join || known < GROUPS
    }

    /// The process listens and may still use its rings.
    pub(crate) fn alive(&self) -> bool {
        !hung_up(self.socket.as_fd()) && !self.dead()
    }

    /// Its rings are nobody's any more: the process is dead, or was about to end or to become another program when the channel closed.
    pub(crate) fn has_left(&self) -> bool {
        self.dead() || (hung_up(self.socket.as_fd()) && self.page.accounted.load(Relaxed) != 0)
    }

    fn dead(&self) -> bool {
        sys::shows(self.pidfd.as_fd(), libc::POLLIN)
    }

    /// What a socket wants, its groups included.
    pub(crate) fn want(&self, endpoint: &Endpoint) -> Want {
        Want { groups: self.groups.get(&endpoint.cookie).cloned().unwrap_or_default(), ..endpoint.want() }
    }

    /// The stats of a slot.
    pub(crate) fn stats(&self, socket: &Registered) -> &SocketStats {
        &self.page.sockets[socket.slot as usize]
    }

    /// Lifted or why not: the broker's word, or the shim's if the broker has nothing against it.
    pub(crate) fn reason(&self, socket: &Registered) -> Reason {
        match socket.verdict {
            Reason::Lifted => {
                Reason::try_from(self.stats(socket).reason.load(Relaxed)).unwrap_or(Reason::Lifted)
            }
            verdict => verdict,
        }
    }

    pub(crate) fn socket_status(&self, socket: &Registered) -> SocketStatus {
        let stats = self.stats(socket);
        let reason = self.reason(socket);
        let option = stats.option.load(Relaxed);
        SocketStatus {
            pid: self.pid,
            local: socket.endpoint.local.to_string(),
            peer: socket.endpoint.peer.map(|peer| peer.to_string()),
            state: if reason == Reason::Lifted { "lifted" } else { "passed" }.into(),
            reason: reason.word().into(),
            explain: reason.explain().into(),
            option: (option != 0).then_some((option >> 16, option & 0xffff)),
            queued: stats.queued.load(Relaxed),
            traffic: Traffic::read(stats),
        }
    }
}

fn clear(stats: &SocketStats) {
    let counters = [
        &stats.lifted_packets,
        &stats.lifted_bytes,
        &stats.passed_packets,
        &stats.passed_bytes,
        &stats.dropped_rcvbuf,
        &stats.rode,
        &stats.queued,
    ];
    counters.into_iter().for_each(|counter| counter.store(0, Relaxed));
    stats.reason.store(0, Relaxed);
    stats.option.store(0, Relaxed);
}

/// Sums of sockets that are closed.
#[derive(Default)]
pub(crate) struct Closed(BTreeMap<String, ClosedStatus>);

impl Closed {
    pub(crate) fn add(&mut self, socket: &SocketStatus) {
        let full = self.0.len() >= CLOSED && !self.0.contains_key(&socket.local);
        let local = if full { "other" } else { &socket.local };
        let sum = self.0.entry(local.into()).or_default();
        sum.local = local.into();
        sum.sockets += 1;
        sum.reason.clone_from(&socket.reason);
        sum.traffic.add(&socket.traffic);
    }

    pub(crate) fn list(&self) -> Vec<ClosedStatus> {
        self.0.values().cloned().collect()
    }
}

/// Verdicts that are shown as passed.
pub(crate) fn is_pass(verdict: Verdict) -> bool {
    verdict != Verdict::Lift
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_used_again_and_run_out() {
        let mut slots = Slots::default();
        assert_eq!((slots.take(), slots.take()), (Some(0), Some(1)));
        slots.free.push(0);
        assert_eq!((slots.take(), slots.take()), (Some(0), Some(2)));
        slots.used = SOCKETS as u32;
        assert_eq!(slots.take(), None);
    }

    #[test]
    fn closed_sockets_are_summed_by_local_address_and_the_list_is_bounded() {
        let mut closed = Closed::default();
        let socket = |local: String| SocketStatus {
            local,
            traffic: Traffic { lifted_packets: 2, ..Traffic::default() },
            ..SocketStatus::default()
        };
        closed.add(&socket("a".into()));
        closed.add(&socket("a".into()));
        assert_eq!((closed.list()[0].sockets, closed.list()[0].traffic.lifted_packets), (2, 4));
        (0..2 * CLOSED).for_each(|i| closed.add(&socket(format!("b{i}"))));
        assert_eq!(closed.list().len(), CLOSED + 1);
        assert_eq!(closed.list().iter().map(|c| c.sockets).sum::<u64>(), 2 + 2 * CLOSED as u64);
    }
}
