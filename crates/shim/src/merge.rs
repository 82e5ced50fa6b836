//! UDP_GRO: neighbours in a socket's queue read as one datagram, by the rules of `udp_gro_receive_segment`.

use crate::{
    engine,
    message::{Buffers, Received, Taken},
    socket::Socket,
};
use hoist_packet::{Ip, SocketAddrRaw};
use hoist_sys::Errno;

/// `UDP_GRO_CNT_MAX`.
const DATAGRAMS: usize = 64;

/// `skb_gro_receive` keeps the merged IP packet below `gro_max_size`, which for UDP is 65,536.
const PACKET: usize = 65_535;

/// What is equal in datagrams that merge.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Kin {
    /// Interface it arrived on.
    pub(crate) ifindex: u32,
    pub(crate) source: SocketAddrRaw,
    /// The port is the socket's own.
    pub(crate) destination: Ip,
    /// TOS, or version, traffic class and flow label.
    pub(crate) class: [u8; 4],
    /// Time to live, or hop limit.
    pub(crate) ttl: u8,
}

/// A datagram that may merge with others.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Segment {
    pub(crate) kin: Kin,
    /// It has a UDP checksum.
    pub(crate) checksummed: bool,
    /// Length of IP and UDP header, bytes.
    pub(crate) headers: usize,
    /// Length of the payload, bytes.
    pub(crate) len: usize,
}

/// Datagrams merged so far.
struct Merged {
    first: Segment,
    count: usize,
    bytes: usize,
    /// Bytes that fit the program's buffers and one packet.
    limit: usize,
}

impl Merged {
    fn new(first: Segment, room: usize) -> Self {
        Self { first, count: 1, bytes: first.len, limit: room.min(PACKET - first.headers) }
    }

    /// Whether `next` follows: of the same kin, not longer than the first, and no shorter one has ended the row.
    fn takes(&self, next: &Segment) -> bool {
        let row = self.count < DATAGRAMS && self.bytes == self.count * self.first.len;
        row && (1..=self.first.len).contains(&next.len)
            && self.bytes + next.len <= self.limit
            && self.first.checksummed
            && next.checksummed
            && self.first.kin == next.kin
    }

    fn add(&mut self, len: usize) {
        self.count += 1;
        self.bytes += len;
    }
}

/// Takes the datagrams behind `first` that merge with it, the next one having ticket `next`, and copies them behind `taken`,
/// which is `first` alone. One that does not fit the buffers whole stays.
pub(crate) fn followers(
    socket: &'static Socket,
    first: &Received<'_>,
    next: u32,
    buffers: Buffers,
    taken: Taken,
) -> Result<Taken, Errno> {
    let Some(memory) = engine::memory() else { return Ok(taken) };
    let mut merged = Merged::new(first.segment(), buffers.room());
    let mut ticket = next;
    // the frame is ours only once it is popped: until then the arrival is a copy, and what it tells may be void
    let follows =
        |merged: &Merged, frame| merged.takes(&Received::new(memory, &memory.frames.peek(frame)).segment());
    while let Some(frame) = socket.pop_if(ticket, |frame| follows(&merged, frame)) {
        ticket = ticket.wrapping_add(1);
        socket.count_taken();
        let received = Received::new(memory, memory.frames.arrival(frame));
        let copied = buffers.fill(merged.bytes, received.payload());
        merged.add(received.arrival.payload_len.into());
        engine::give_back(memory, frame);
        copied?;
    }
    if merged.count == 1 {
        return Ok(taken);
    }
    Ok(Taken { copied: merged.bytes, len: merged.bytes, segment: Some(merged.first.len as u16) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(len: usize) -> Segment {
        let kin = Kin {
            ifindex: 3,
            source: SocketAddrRaw { ip: Ip::V4([10, 0, 0, 1]), port: 4000 },
            destination: Ip::V4([10, 0, 0, 2]),
            class: [0; 4],
            ttl: 64,
        };
        Segment { kin, checksummed: true, headers: 28, len }
    }

    /// How many of `segments` one read takes.
    fn taken(room: usize, segments: &[Segment]) -> usize {
        let mut merged = Merged::new(segments[0], room);
        for next in &segments[1..] {
            if !merged.takes(next) {
                break;
            }
            merged.add(next.len);
        }
        merged.count
    }

    fn lengths(room: usize, lengths: &[usize]) -> usize {
        taken(room, &lengths.iter().map(|&len| segment(len)).collect::<Vec<_>>())
    }

    #[test]
    fn equal_lengths_merge_and_a_shorter_one_ends_the_row() {
        assert_eq!(lengths(1 << 20, &[100, 100, 100]), 3);
        assert_eq!(lengths(1 << 20, &[100, 100, 40, 40]), 3);
        assert_eq!(lengths(1 << 20, &[100, 40, 100]), 2);
        assert_eq!(lengths(1 << 20, &[100, 101]), 1);
    }

    #[test]
    fn nothing_merges_with_an_empty_datagram() {
        assert_eq!(lengths(1 << 20, &[0, 0]), 1);
        assert_eq!(lengths(1 << 20, &[100, 0]), 1);
        assert_eq!(lengths(1 << 20, &[0, 100]), 1);
    }

    #[test]
    fn a_row_ends_at_the_most_datagrams_and_at_the_longest_packet() {
        assert_eq!(lengths(1 << 20, &[1; 100]), 64);
        assert_eq!(lengths(1 << 20, &[1400; 64]), 46);
        // 65,535 bytes less 20 and 8 of headers
        assert_eq!(lengths(1 << 20, &[32_753, 32_753]), 2);
        assert_eq!(lengths(1 << 20, &[32_754, 32_754]), 1);
        assert_eq!(lengths(1 << 20, &[32_754, 32_753]), 2);
        let v6 = Segment { headers: 48, ..segment(32_744) };
        assert_eq!(taken(1 << 20, &[v6, Segment { len: 32_743, ..v6 }]), 2);
        assert_eq!(taken(1 << 20, &[v6, v6]), 1);
    }

    #[test]
    fn only_what_fits_the_buffers_whole_merges() {
        assert_eq!(lengths(299, &[100; 5]), 2);
        assert_eq!(lengths(300, &[100; 5]), 3);
        assert_eq!(lengths(50, &[100, 10]), 1);
        assert_eq!(lengths(0, &[100, 100]), 1);
    }

    #[test]
    fn strangers_do_not_merge() {
        let first = segment(100);
        let kin = first.kin;
        let other_port = SocketAddrRaw { port: 4001, ..kin.source };
        let other_sender = SocketAddrRaw { ip: Ip::V4([10, 0, 0, 3]), ..kin.source };
        for kin in [
            Kin { source: other_port, ..kin },
            Kin { source: other_sender, ..kin },
            Kin { destination: Ip::V4([10, 0, 0, 4]), ..kin },
            Kin { class: [0, 1, 0, 0], ..kin },
            Kin { ttl: 63, ..kin },
            Kin { ifindex: 4, ..kin },
        ] {
            assert_eq!(taken(1 << 20, &[first, Segment { kin, ..first }]), 1, "{kin:?}");
        }
        let unchecked = Segment { checksummed: false, ..first };
        assert_eq!(taken(1 << 20, &[unchecked, unchecked]), 1);
        assert_eq!(taken(1 << 20, &[first, unchecked]), 1);
    }
}
