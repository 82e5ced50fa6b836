//! AF_XDP sockets on a real veth pair, in copy mode. Needs root; each test has a network namespace of its own.
#![expect(unsafe_code, reason = "the tests make raw system calls and write to frames")]

mod netns;
mod xdp;

use hoist_xsk::{
    Bound, ChunkSize, CompletionRing, Desc, Error, FillRing, Mode, RxRing, Socket, TxRing, Umem,
};
use netns::{MTU, isolated, veth};
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};
use xdp::Steer;

const RING: u32 = 8;
const FRAMES: u32 = 2 * RING;
/// What the kernel keeps free before a packet: XDP_PACKET_HEADROOM.
const HEADROOM: usize = 256;
const PATIENCE: Duration = Duration::from_secs(10);
/// IEEE 802 local experimental ethertype: no kernel code answers it.
const HEADER: [u8; 14] = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 1, 0x88, 0xb5];

/// A bound socket with all of its rings: the lower frames to receive into, the upper ones to send from.
struct Port {
    umem: Umem,
    socket: Socket,
    rx: RxRing,
    fill: FillRing,
    tx: TxRing,
    completion: CompletionRing,
}

impl Port {
    fn open(ifindex: u32, queue: u32, chunk: ChunkSize) -> Self {
        Self::bind(ifindex, queue, chunk, Mode::Copy).expect("bind in copy mode").0
    }

    fn bind(ifindex: u32, queue: u32, chunk: ChunkSize, mode: Mode) -> Result<(Self, Bound), Error> {
        let umem = Umem::create(FRAMES, chunk, false)?;
        let socket = Socket::open()?;
        socket.register_umem(&umem, 0)?;
        socket.set_rings(RING, RING)?;
        socket.set_umem_rings(RING, RING)?;
        let bound = socket.bind(ifindex, queue, mode, None)?;
        let fd = socket.as_fd();
        let (rx, tx) = (RxRing::map(fd, RING)?, TxRing::map(fd, RING)?);
        let (fill, completion) = (FillRing::map(fd, RING)?, CompletionRing::map(fd, RING)?);
        Ok((Self { umem, socket, rx, fill, tx, completion }, bound))
    }

    /// Sends one packet and waits until its frame is back.
    fn send(&mut self, packet: &[u8]) {
        let desc = Desc { addr: self.umem.addr_of(RING), len: packet.len() as u32, options: 0 };
        let frame = self.umem.packet_mut(desc).expect("packet fits its frame");
        // SAFETY: the frame is in no ring, and no slice of it exists.
        unsafe { (*frame).copy_from_slice(packet) };
        assert!(self.tx.reserve(1) && self.tx.push(desc));
        self.tx.submit();
        let deadline = Instant::now() + PATIENCE;
        while self.take_completion() != Some(desc.addr) {
            if self.tx.needs_wakeup() {
                self.socket.wake_tx().expect("wake tx");
            }
            assert!(Instant::now() < deadline, "no completion: {:?}", self.socket.statistics());
            std::thread::yield_now();
        }
    }

    fn take_completion(&mut self) -> Option<u64> {
        self.completion.available();
        let addr = self.completion.peek(0);
        self.completion.release(1);
        addr
    }

    /// Gives the kernel the frames below `n`.
    fn refill(&mut self, n: u32) {
        for frame in 0..n {
            assert!(self.fill.push(self.umem.addr_of(frame)));
        }
        self.fill.submit();
    }

    /// Waits for the next packet, copies it, and gives its frame back.
    fn receive(&mut self) -> Vec<u8> {
        let (packet, frame) = self.take();
        assert!(self.fill.push(self.umem.addr_of(frame)));
        self.fill.submit();
        packet
    }

    /// Waits for the next packet and copies it; its frame stays ours.
    fn take(&mut self) -> (Vec<u8>, u32) {
        readable(&self.socket);
        assert!(self.rx.available() >= 1);
        let desc = self.rx.peek(0).expect("available");
        let packet = self.umem.packet(desc).expect("a packet lies in its frame").to_vec();
        let frame = self.umem.frame_of(desc.addr).expect("a packet lies in the UMEM");
        self.rx.release(1);
        (packet, frame)
    }
}

fn readable(socket: &Socket) {
    let mut poll = libc::pollfd { fd: socket.as_fd().as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one pollfd.
    let ready = unsafe { libc::poll(&raw mut poll, 1, PATIENCE.as_millis() as i32) };
    assert_eq!((ready, poll.revents), (1, libc::POLLIN), "{:?}", socket.statistics());
}

/// A packet for the socket under `key` whose payload tells `n`.
fn packet(key: u8, n: u32, len: usize) -> Vec<u8> {
    let mut packet = HEADER.to_vec();
    packet.push(key);
    packet.extend(n.to_le_bytes());
    packet.extend((packet.len()..len).map(|i| (i as u32).wrapping_mul(n | 1) as u8));
    packet
}

#[test]
fn refused_zero_copy_falls_back_to_copy_with_the_reason() {
    isolated(|| {
        let (va, vb) = veth(1);
        let (port, bound) = Port::bind(va, 0, ChunkSize::K2, Mode::Auto).expect("bind in some mode");
        let reason = bound.refused.expect("veth has no zero-copy").raw_os_error();
        assert_eq!((bound.zero_copy, reason), (false, Some(libc::EOPNOTSUPP)));
        assert!(!port.socket.is_zero_copy().expect("bound"));
        let error = Port::bind(vb, 0, ChunkSize::K2, Mode::ZeroCopy).err().expect("veth has no zero-copy");
        assert!(error.to_string().contains("use copy mode"), "{error}");
        let (_copy, bound) = Port::bind(vb, 0, ChunkSize::K2, Mode::Copy).expect("bind in copy mode");
        assert!(!bound.zero_copy && bound.refused.is_none());
    });
}

#[test]
fn packets_cross_from_tx_ring_to_rx_ring_whole_and_in_order() {
    for (chunk, longest) in [(ChunkSize::K2, 2048 - HEADROOM), (ChunkSize::K4, 14 + MTU as usize)] {
        isolated(move || {
            let (va, vb) = veth(1);
            let (mut from, mut to) = (Port::open(va, 0, chunk), Port::open(vb, 0, chunk));
            let steer = Steer::attach(vb);
            steer.give(0, to.socket.as_fd());
            to.refill(RING);
            for n in 0..5 * RING {
                let sent = packet(0, n, [60, 61, 1000, longest][n as usize % 4]);
                from.send(&sent);
                assert_eq!(to.receive(), sent);
            }
            assert_eq!((to.rx.pending(), to.fill.pending(), from.tx.pending()), (0, RING, 0));
            assert_eq!(to.socket.statistics().expect("bound").rx_dropped, 0);
        });
    }
}

#[test]
fn a_queue_just_given_up_is_bound_again() {
    isolated(|| {
        let (va, _) = veth(1);
        for _ in 0..20 {
            drop(Port::open(va, 0, ChunkSize::K2));
        }
    });
}

#[test]
fn a_queue_that_is_held_is_refused_with_the_remedy() {
    isolated(|| {
        let (va, _) = veth(1);
        let holder = Port::open(va, 0, ChunkSize::K2);
        let error = Port::bind(va, 0, ChunkSize::K2, Mode::Auto).err().expect("the queue is held");
        assert_eq!(error.errno(), Some(libc::EBUSY));
        assert!(error.to_string().contains("ss --xdp"), "{error}");
        drop(holder);
    });
}

#[test]
fn a_ring_mapped_again_from_a_passed_descriptor_goes_on_where_the_first_stopped() {
    isolated(|| {
        let (va, vb) = veth(1);
        let (mut from, mut to) = (Port::open(va, 0, ChunkSize::K2), Port::open(vb, 0, ChunkSize::K2));
        let steer = Steer::attach(vb);
        steer.give(0, to.socket.as_fd());
        to.refill(4);
        for n in 0..3 {
            from.send(&packet(0, n, 60));
        }
        assert_eq!(to.receive(), packet(0, 0, 60));
        assert_eq!(to.rx.available(), 2);

        let passed = Socket::from(to.socket.as_fd().try_clone_to_owned().expect("dup"));
        let umem =
            Umem::map(to.umem.fd().try_clone_to_owned().expect("dup"), FRAMES, ChunkSize::K2).expect("map");
        let mut rx = RxRing::map(passed.as_fd(), RING).expect("map rx of a bound socket");
        let fill = FillRing::map(passed.as_fd(), RING).expect("map fill of a bound socket");
        assert_eq!((rx.pending(), rx.available(), fill.pending()), (2, 2, 2));
        for n in [1, 2] {
            let desc = rx.peek(n - 1).expect("two packets wait");
            assert_eq!(umem.packet(desc), Some(&packet(0, n, 60)[..]));
        }
        rx.release(2);
        assert_eq!((to.rx.pending(), to.rx.corrupt(), rx.corrupt()), (0, 0, 0));
        assert_eq!(
            passed.statistics().expect("a received descriptor"),
            to.socket.statistics().expect("bound")
        );
    });
}

#[test]
fn a_ring_that_is_not_there_is_refused() {
    isolated(|| {
        let socket = Socket::open().expect("open");
        socket.set_rings(RING, 0).expect("rx ring alone");
        let (fd, invalid) = (socket.as_fd(), Some(libc::EINVAL));
        assert_eq!(RxRing::map(fd, RING).expect("the ring set").size(), RING);
        assert_eq!(RxRing::map(fd, 1 << 20).expect_err("a larger ring").errno(), invalid);
        assert_eq!(TxRing::map(fd, RING).expect_err("no tx ring").errno(), invalid);
        assert_eq!(CompletionRing::map(fd, RING).expect_err("no completion ring").errno(), invalid);
        assert!(matches!(FillRing::map(fd, 3), Err(Error::RingSize { size: 3 })));
        assert!(matches!(FillRing::map(fd, 0), Err(Error::RingSize { size: 0 })));
    });
}

#[test]
fn two_sockets_of_one_queue_share_its_fill_ring() {
    isolated(|| {
        let (va, vb) = veth(1);
        let (mut from, mut first) = (Port::open(va, 0, ChunkSize::K2), Port::open(vb, 0, ChunkSize::K2));
        let second = Socket::open().expect("open");
        second.set_rings(RING, 0).expect("rx ring");
        let bound = second.bind(vb, 0, Mode::Auto, Some(first.socket.as_fd())).expect("share the queue");
        assert!(!bound.zero_copy && bound.refused.is_none());
        let mut rx = RxRing::map(second.as_fd(), RING).expect("map");
        let steer = Steer::attach(vb);
        steer.give(0, first.socket.as_fd());
        steer.give(1, second.as_fd());
        first.refill(RING);
        from.send(&packet(1, 7, 60));
        from.send(&packet(0, 8, 60));
        assert_eq!(first.receive(), packet(0, 8, 60));
        readable(&second);
        assert_eq!(rx.available(), 1);
        assert_eq!(rx.peek(0).and_then(|desc| first.umem.packet(desc)), Some(&packet(1, 7, 60)[..]));
        let fill =
            FillRing::map(second.as_fd(), RING).expect("the queue's fill ring, from its second socket");
        assert_eq!(fill.pending(), RING - 1);
    });
}

#[test]
fn two_queues_of_a_device_share_one_umem() {
    isolated(|| {
        let (va, vb) = veth(2);
        let mut from = [0, 1].map(|queue| Port::open(va, queue, ChunkSize::K4));
        let mut first = Port::open(vb, 0, ChunkSize::K4);
        let second = Socket::open().expect("open");
        second.set_rings(RING, 0).expect("rx ring");
        second.set_umem_rings(RING, RING).expect("a queue's own fill ring");
        second.bind(vb, 1, Mode::Auto, Some(first.socket.as_fd())).expect("share the UMEM");
        let mut rx = RxRing::map(second.as_fd(), RING).expect("map");
        let mut fill = FillRing::map(second.as_fd(), RING).expect("map");
        let steer = Steer::attach(vb);
        steer.give(0, first.socket.as_fd());
        steer.give(1, second.as_fd());
        first.refill(1);
        assert!(fill.push(first.umem.addr_of(RING)));
        fill.submit();
        from[1].send(&packet(1, 1, 60));
        from[0].send(&packet(0, 2, 60));
        assert_eq!(first.receive(), packet(0, 2, 60));
        readable(&second);
        assert_eq!(rx.available(), 1);
        let desc = rx.peek(0).expect("available");
        assert_eq!(first.umem.frame_of(desc.addr), Some(RING));
        assert_eq!(first.umem.packet(desc), Some(&packet(1, 1, 60)[..]));
    });
}

#[test]
fn a_starved_fill_ring_is_counted() {
    isolated(|| {
        let (va, vb) = veth(1);
        let (mut from, mut to) = (Port::open(va, 0, ChunkSize::K2), Port::open(vb, 0, ChunkSize::K2));
        let steer = Steer::attach(vb);
        steer.give(0, to.socket.as_fd());
        from.send(&packet(0, 0, 60));
        to.refill(1);
        from.send(&packet(0, 1, 60));
        assert_eq!(to.receive(), packet(0, 1, 60));
        let counted = to.socket.statistics().expect("bound");
        assert_eq!((counted.rx_dropped, counted.rx_fill_ring_empty_descs), (1, 1), "{counted:?}");
    });
}

#[test]
fn a_full_rx_ring_is_counted_and_costs_no_frame() {
    isolated(|| {
        let (va, vb) = veth(1);
        let (mut from, mut to) = (Port::open(va, 0, ChunkSize::K2), Port::open(vb, 0, ChunkSize::K2));
        let steer = Steer::attach(vb);
        steer.give(0, to.socket.as_fd());
        to.refill(RING);
        for n in 0..RING {
            from.send(&packet(0, n, 60));
        }
        readable(&to.socket);
        assert_eq!(to.rx.available(), RING);
        let spare = RING + 1;
        assert!(to.fill.push(to.umem.addr_of(spare)));
        to.fill.submit();
        from.send(&packet(0, RING, 60));
        for n in 0..RING {
            assert_eq!(to.take().0, packet(0, n, 60));
        }
        from.send(&packet(0, RING + 1, 60));
        assert_eq!(to.take(), (packet(0, RING + 1, 60), spare));
        assert_eq!(to.fill.pending(), 0);
        let counted = to.socket.statistics().expect("bound");
        assert_eq!((counted.rx_ring_full, counted.rx_dropped), (1, 0), "{counted:?}");
    });
}

#[test]
fn addresses_beyond_the_umem_are_skipped_by_the_kernel() {
    isolated(|| {
        let (va, vb) = veth(1);
        let (mut from, mut to) = (Port::open(va, 0, ChunkSize::K2), Port::open(vb, 0, ChunkSize::K2));
        let steer = Steer::attach(vb);
        steer.give(0, to.socket.as_fd());
        assert!(to.fill.push(to.umem.addr_of(FRAMES)));
        to.refill(1);
        assert!(from.tx.push(Desc { addr: from.umem.addr_of(FRAMES), len: 60, options: 0 }));
        from.send(&packet(0, 1, 60));
        assert_eq!(to.receive(), packet(0, 1, 60));
        assert_eq!(from.socket.statistics().expect("bound").tx_invalid_descs, 1);
    });
}

#[test]
fn a_device_that_goes_away_is_an_error_and_not_a_crash() {
    isolated(|| {
        let (va, _) = veth(1);
        let mut port = Port::open(va, 0, ChunkSize::K2);
        netns::remove("va");
        let error = port.socket.wake_tx().expect_err("there is no device to send on");
        assert!(error.errno().is_some(), "{error}");
        assert_eq!((port.rx.available(), port.completion.available(), port.fill.free()), (0, 0, RING));
        port.socket.statistics().expect("the socket is still there");
    });
}
