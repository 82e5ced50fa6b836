//! TCP connections as `conns` (sock_ops) publishes them: the Rust mirror of `struct tcp_slot` in bpf/hoist.h.
//!
//! The array is the map `tcp_slots`. `conns` owns a slot's word from free to filled and back to free; in between the program
//! may change its state, by compare-and-swap with its own cookie, so that a slot that went to another connection is left alone.

use core::{
    mem::offset_of,
    sync::atomic::{
        AtomicU32, AtomicU64,
        Ordering::{AcqRel, Acquire, Relaxed},
    },
};
use hoist_sys::Errno;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Slots of a run.
pub const SLOTS: usize = 65_536;
/// A connection's slot is one of so many from `cookie % SLOTS` on.
pub const PROBES: usize = 16;
/// `tcp_slot.flags`: this side called connect.
pub const CONNECTED: u32 = 1;

/// What `steer` does with a connection's data. The lower two bits of the word.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u64)]
pub enum Steering {
    /// Leaves it to the stack.
    Pass = 1,
    /// Lifts it.
    Lift = 2,
}

/// `--tcp`, as the shim is told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Policy {
    /// No connection is lifted.
    Off = 0,
    /// Those for which it pays.
    Auto = 1,
    /// All that are selected.
    Lift = 2,
}

impl TryFrom<u32> for Policy {
    type Error = u32;
    fn try_from(value: u32) -> Result<Self, u32> {
        [Self::Off, Self::Auto, Self::Lift].into_iter().find(|policy| *policy as u32 == value).ok_or(value)
    }
}

/// `struct tcp_slot`.
#[repr(C)]
#[derive(Default)]
pub struct Slot {
    /// `SO_COOKIE << 2 | state`; 0: free.
    pub word: AtomicU64,
    /// Sequence number of byte 0 of the received stream.
    pub base: AtomicU32,
    /// [`CONNECTED`].
    pub flags: AtomicU32,
    /// Local address; IPv4 as `::ffff:a.b.c.d`.
    pub local: [AtomicU32; 4],
    /// The peer's.
    pub remote: [AtomicU32; 4],
    /// Local port in the lower half, the peer's in the upper, both in host order (`local_port`, `remote_port`).
    pub ports: AtomicU32,
    /// Process that reads it; 0: none yet.
    pub pid: AtomicU32,
    /// [`crate::Reason`].
    pub reason: AtomicU32,
    /// The socket option behind it: level << 16 | name.
    pub option: AtomicU32,
    /// Payload bytes that the program took from frames.
    pub lifted_bytes: AtomicU64,
    /// Payload bytes that it took from the kernel socket.
    pub passed_bytes: AtomicU64,
    /// Times that lifting began.
    pub lifts: AtomicU64,
    /// Segments dropped for their checksum.
    pub bad_checksum: AtomicU64,
    /// Headers that rode, merged ones once.
    pub rode: AtomicU64,
    /// Segments that rode with their payload.
    pub rode_real: AtomicU64,
    /// Whose rings it is lifted to ([`crate::hub`]).
    pub seat: AtomicU64,
}

const _: () = {
    assert!(size_of::<Slot>() == 120);
    assert!(offset_of!(Slot, local) == 16 && offset_of!(Slot, remote) == 32 && offset_of!(Slot, ports) == 48);
    assert!(offset_of!(Slot, pid) == 52 && offset_of!(Slot, option) == 60 && offset_of!(Slot, seat) == 112);
};

impl Slot {
    /// The connection in it, if it is filled: cookie and steering.
    pub fn occupant(&self) -> Option<(u64, Steering)> {
        let word = self.word.load(Acquire);
        match word & 3 {
            1 => Some((word >> 2, Steering::Pass)),
            2 => Some((word >> 2, Steering::Lift)),
            _ => None,
        }
    }

    /// Changes the steering of connection `cookie`; false if the slot is not its own any more.
    pub fn steer(&self, cookie: u64, to: Steering) -> bool {
        let other = if to == Steering::Lift { Steering::Pass } else { Steering::Lift };
        let (from, to) = (cookie << 2 | other as u64, cookie << 2 | to as u64);
        match self.word.compare_exchange(from, to, AcqRel, Acquire) {
            Ok(_) => true,
            Err(found) => found == to,
        }
    }

    /// An address as bytes in network order.
    pub fn address(words: &[AtomicU32; 4]) -> [u8; 16] {
        let mut bytes = [0; 16];
        for (chunk, word) in bytes.chunks_exact_mut(4).zip(words) {
            chunk.copy_from_slice(&word.load(Relaxed).to_ne_bytes());
        }
        bytes
    }

    /// Local port and the peer's.
    pub fn ports(&self) -> (u16, u16) {
        let ports = self.ports.load(Relaxed);
        (ports as u16, (ports >> 16) as u16)
    }
}

/// The slots of a run, mapped; never unmapped.
#[derive(Clone, Copy)]
pub struct Slots(&'static [Slot]);

/// For each local port how many connections are lifted (`tcp_ports`), mapped; never unmapped.
#[derive(Clone, Copy)]
pub struct PortCounts(&'static [AtomicU32]);

impl Slots {
    /// Maps the map `tcp_slots`.
    ///
    /// # Errors
    /// mmap(2)'s: `EINVAL` or `EACCES` if it is not such a map.
    pub fn map(fd: BorrowedFd<'_>) -> Result<Self, Errno> {
        let address = map(fd, SLOTS * size_of::<Slot>())?;
        // SAFETY: the mapping is whole, page-aligned, never removed, and holds integers that are reached as atomics only.
        Ok(Self(unsafe { core::slice::from_raw_parts(address as *const Slot, SLOTS) }))
    }

    /// The slot of connection `cookie`.
    pub fn of(&self, cookie: u64) -> Option<&'static Slot> {
        let first = cookie as usize % SLOTS;
        (0..PROBES)
            .map(|probe| &self.0[(first + probe) % SLOTS])
            .find(|slot| slot.occupant().is_some_and(|(owner, _)| owner == cookie))
    }

    /// Every slot.
    pub fn iter(&self) -> impl Iterator<Item = &'static Slot> {
        self.0.iter()
    }
}

impl PortCounts {
    /// Maps the map `tcp_ports`, whose values are 8 bytes apart.
    ///
    /// # Errors
    /// As [`Slots::map`].
    pub fn map(fd: BorrowedFd<'_>) -> Result<Self, Errno> {
        let address = map(fd, (1 << 16) * 8)?;
        // SAFETY: as in `Slots::map`.
        Ok(Self(unsafe { core::slice::from_raw_parts(address as *const AtomicU32, 1 << 17) }))
    }

    /// The count of local port `port` (an element of a BPF array takes a multiple of 8 bytes).
    pub fn of(&self, port: u16) -> &'static AtomicU32 {
        &self.0[usize::from(port) * 2]
    }
}

fn map(fd: BorrowedFd<'_>, len: usize) -> Result<usize, Errno> {
    let prot = (libc::PROT_READ | libc::PROT_WRITE) as usize;
    let args = [0, len, prot, libc::MAP_SHARED as usize, fd.as_raw_fd() as usize, 0];
    // SAFETY: a new mapping at an address the kernel chooses; nothing else refers to it.
    hoist_sys::check(unsafe { hoist_sys::syscall(libc::SYS_mmap, args) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_steered_by_its_owner_alone() {
        let slot = Slot::default();
        assert_eq!(slot.occupant(), None);
        assert!(!slot.steer(7, Steering::Lift));
        slot.word.store(7 << 2 | Steering::Pass as u64, Relaxed);
        assert!(slot.steer(7, Steering::Lift) && slot.steer(7, Steering::Lift));
        assert_eq!(slot.occupant(), Some((7, Steering::Lift)));
        assert!(!slot.steer(8, Steering::Pass));
        assert_eq!(slot.occupant(), Some((7, Steering::Lift)));
    }

    #[test]
    fn numbers_are_those_of_the_header() {
        let header = include_str!("../../../bpf/hoist.h");
        for line in ["TCP_SLOTS 65536", "TCP_PROBES 16", "TCP_PASS 1", "TCP_LIFT 2", "TCP_CONNECTED 1"] {
            assert!(header.contains(&format!("#define {line}")), "{line}");
        }
    }
}
