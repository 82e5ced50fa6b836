//! TCP connections: published by conns, steered by their slots, given back through the TAP. On a veth pair of its own, with
//! the test in the run's cgroup. Needs root.
#![allow(clippy::unwrap_used, reason = "a test ends where it fails")]

mod rig;

use hoist_broker::{Config, Policy, Ports, Tcp, status::ConnectionStatus};
use hoist_ipc::{
    Reason, Reply, Request,
    tcp::{CONNECTED, Slot, Steering},
};
use hoist_packet::checksum::{pseudo_header_v4, pseudo_header_v6};
use hoist_wire::{Offload, Testbed};
use nix::sys::socket::{MsgFlags, SockFlag, SockType, SockaddrIn, sendto, setsockopt, socket, sockopt};
use rig::{PATIENCE, Program, Rig, bound, config, cookie, on_host, send, write_tap};
use std::{
    fs,
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::PathBuf,
    sync::{Mutex, MutexGuard, OnceLock, atomic::Ordering::Relaxed},
    time::Instant,
};

const ETHERNET: usize = 14;

fn lift(ports: Ports) -> Config {
    Config { tcp: Tcp { policy: Policy::Lift, ports }, ..config() }
}

/// The process is in one cgroup at a time, whichever of its threads runs a test.
static IN_CGROUP: Mutex<()> = Mutex::new(());

/// `cgroup.procs` of where the process is at home.
fn home() -> &'static PathBuf {
    static HOME: OnceLock<PathBuf> = OnceLock::new();
    HOME.get_or_init(|| {
        let own = fs::read_to_string("/proc/self/cgroup").unwrap();
        let own = own.lines().find_map(|line| line.strip_prefix("0::/")).unwrap().to_owned();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let mount = mounts.lines().find(|line| line.contains(" - cgroup2 ")).unwrap();
        PathBuf::from(mount.split(' ').nth(4).unwrap()).join(own).join("cgroup.procs")
    })
}

/// A broker that follows connections, and one program of its run.
struct Run {
    rig: Rig,
    program: Program,
}

impl Run {
    fn new(config: Config) -> Self {
        home();
        let _alone = IN_CGROUP.lock().unwrap_or_else(|e| e.into_inner());
        let mut rig = Rig::new(config);
        let program = rig.hello();
        Self { rig, program }
    }

    /// While it lives, sockets that are made belong to the run. They keep to it afterwards.
    fn enter(&self) -> Inside {
        let alone = IN_CGROUP.lock().unwrap_or_else(|e| e.into_inner());
        nix::unistd::write(self.rig.broker.cgroup().unwrap(), b"0").unwrap();
        Inside(alone)
    }

    #[track_caller]
    fn stream(&mut self, socket: &impl AsFd) -> Reason {
        let request = Request::Stream { cookie: cookie(socket) };
        match self.rig.ask(&mut self.program, request, &[socket.as_fd()]) {
            Reply::Registered { reason, .. } => reason,
            other => panic!("{other:?}"),
        }
    }

    fn slot(&self, socket: &impl AsFd) -> Option<&'static Slot> {
        self.program.slots.unwrap().of(cookie(socket))
    }

    /// As the shim lifts a connection.
    #[track_caller]
    fn lift(&self, socket: &impl AsFd) -> &'static Slot {
        let slot = self.slot(socket).unwrap();
        self.program.ports.unwrap().of(slot.ports().0).fetch_add(1, Relaxed);
        assert!(slot.steer(cookie(socket), Steering::Lift));
        slot
    }

    /// The next frame that was lifted: sequence number and payload, and the frame.
    #[track_caller]
    fn segment(&self) -> (u32, Vec<u8>, Vec<u8>) {
        let frame = self.program.frame();
        let at = tcp_at(&frame);
        let header = usize::from(frame[at + 12] >> 4) * 4;
        let seq = u32::from_be_bytes(frame[at + 4..at + 8].try_into().unwrap());
        (seq, frame[at + header..end_of(&frame)].to_vec(), frame)
    }

    /// The frame goes up the stack as it is.
    fn ride(&self, frame: &[u8]) {
        write_tap(&self.program.tap.as_ref().unwrap().0, frame);
    }

    fn connections(&mut self) -> Vec<ConnectionStatus> {
        self.rig.status().connections
    }
}

struct Inside(#[expect(dead_code, reason = "held")] MutexGuard<'static, ()>);

impl Drop for Inside {
    fn drop(&mut self) {
        fs::write(home(), "0").unwrap();
    }
}

fn tcp_at(frame: &[u8]) -> usize {
    if frame[12..14] == [8, 0] { ETHERNET + 20 } else { ETHERNET + 40 }
}

/// Where the IP packet ends.
fn end_of(frame: &[u8]) -> usize {
    let word = |at: usize| usize::from(u16::from_be_bytes([frame[at], frame[at + 1]]));
    if tcp_at(frame) == ETHERNET + 20 { ETHERNET + word(16) } else { ETHERNET + 40 + word(18) }
}

/// A connection from the wire that the host accepts. Made inside the run.
fn accepted(tb: &Testbed, run: &Run, at: IpAddr) -> (TcpStream, TcpStream) {
    let _inside = run.enter();
    let any = if at.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    accept_from(tb, &TcpListener::bind(any).unwrap(), at)
}

fn accept_from(tb: &Testbed, listener: &TcpListener, at: IpAddr) -> (TcpStream, TcpStream) {
    let to = SocketAddr::new(at, listener.local_addr().unwrap().port());
    let peer = tb.wire().enter(|| TcpStream::connect(to).unwrap()).unwrap();
    let own = listener.accept().unwrap().0;
    own.set_read_timeout(Some(PATIENCE)).unwrap();
    (own, peer)
}

#[track_caller]
fn expect_bytes(socket: &TcpStream, expected: &[u8]) {
    let mut bytes = vec![0; expected.len()];
    (&mut &*socket).read_exact(&mut bytes).unwrap();
    assert!(bytes == expected, "other bytes");
}

#[track_caller]
fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "in vain: {what}");
        std::thread::yield_now();
    }
}

#[test]
fn an_accepted_connection_is_lifted_from_its_first_byte_rides_and_passes_again() {
    on_host(1500, |tb| {
        for at in [IpAddr::from(tb.host().v4()), tb.host().v6().into()] {
            let mut run = Run::new(lift(Ports::All));
            let (own, mut peer) = accepted(tb, &run, at);
            assert_eq!(run.stream(&own), Reason::Lifted);
            let slot = run.slot(&own).unwrap();
            assert_eq!(slot.flags.load(Relaxed), 0);
            assert_eq!(slot.ports(), (own.local_addr().unwrap().port(), peer.local_addr().unwrap().port()));
            peer.write_all(b"kernel's").unwrap();
            expect_bytes(&own, b"kernel's");

            run.lift(&own);
            peer.write_all(b"lifted").unwrap();
            let (seq, payload, frame) = run.segment();
            assert_eq!(payload, b"lifted");
            assert_eq!(seq.wrapping_sub(slot.base.load(Relaxed)), 8, "stream bytes before it");
            run.ride(&frame);
            expect_bytes(&own, b"lifted");

            assert!(slot.steer(cookie(&own), Steering::Pass));
            peer.write_all(b"passed").unwrap();
            expect_bytes(&own, b"passed");
            assert!(run.program.nothing_lifted());
            (&own).write_all(&[1; 500]).unwrap();
            peer.read_exact(&mut [0; 500]).unwrap();
            let [shown] = &run.connections()[..] else { panic!("one connection") };
            assert_eq!((shown.direction.as_str(), shown.sent_bytes), ("accepted", Some(500)));
            assert_eq!(shown.local, own.local_addr().unwrap().to_string());
            assert_eq!(shown.peer, peer.local_addr().unwrap().to_string());
            drop((own, peer));
            eventually("the slot is freed", || run.connections().is_empty());
        }
    });
}

#[test]
fn a_connection_of_its_own_is_published_with_the_peers_first_byte() {
    on_host(1500, |tb| {
        let mut run = Run::new(lift(Ports::All));
        let listener = tb.wire().enter(|| TcpListener::bind((tb.wire().v6(), 0)).unwrap()).unwrap();
        let own = {
            let _inside = run.enter();
            TcpStream::connect(listener.local_addr().unwrap()).unwrap()
        };
        assert_eq!(run.stream(&own), Reason::Lifted);
        let slot = run.lift(&own);
        assert_eq!(slot.flags.load(Relaxed), CONNECTED);
        let mut peer = listener.accept().unwrap().0;
        peer.write_all(b"first").unwrap();
        let (seq, payload, _) = run.segment();
        assert_eq!((seq, &payload[..]), (slot.base.load(Relaxed), &b"first"[..]));
    });
}

#[test]
fn an_ipv6_listener_publishes_ipv4_peers_as_their_packets_come() {
    on_host(1500, |tb| {
        let mut run = Run::new(lift(Ports::All));
        let (own, mut peer) = {
            let _inside = run.enter();
            accept_from(tb, &TcpListener::bind("[::]:0").unwrap(), tb.host().v4().into())
        };
        assert!(own.local_addr().unwrap().is_ipv6());
        assert_eq!(run.stream(&own), Reason::Lifted);
        run.lift(&own);
        peer.write_all(b"mapped").unwrap();
        assert_eq!(run.segment().1, b"mapped");
        assert_eq!(run.connections()[0].peer, peer.local_addr().unwrap().to_string());
    });
}

#[test]
fn byte_0_of_a_stream_that_began_in_its_syn_is_the_first_of_the_syn() {
    on_host(1500, |tb| {
        // 1 client, 2 server, 4 data in the SYN without a cookie, 0x200 taken without one.
        tb.wire().netns().sysctl("net.ipv4.tcp_fastopen", "5").unwrap();
        tb.host().netns().sysctl("net.ipv4.tcp_fastopen", "514").unwrap();
        let mut run = Run::new(lift(Ports::All));
        let (own, mut peer) = {
            let _inside = run.enter();
            let listener = TcpListener::bind((tb.host().v4(), 0)).unwrap();
            fast_open(&listener);
            let port = listener.local_addr().unwrap().port();
            let peer = tb.wire().enter(|| connect_with_data(tb, port, b"in the SYN")).unwrap();
            (listener.accept().unwrap().0, peer)
        };
        expect_bytes(&own, b"in the SYN");
        assert_eq!(run.stream(&own), Reason::Lifted);
        let slot = run.lift(&own);
        peer.write_all(b"after it").unwrap();
        let (seq, payload, _) = run.segment();
        assert_eq!(payload, b"after it");
        assert_eq!(seq.wrapping_sub(slot.base.load(Relaxed)), 10);
        let syn_data = nstat(tb, "TCPFastOpenPassive");
        assert_eq!(syn_data, 1, "the SYN carried the data");
    });
}

#[expect(unsafe_code, reason = "nix has no TCP_FASTOPEN")]
fn fast_open(listener: &TcpListener) {
    let backlog = 16_i32;
    // SAFETY: an int that lives across the call.
    let done = unsafe {
        libc::setsockopt(
            listener.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_FASTOPEN,
            (&raw const backlog).cast(),
            4,
        )
    };
    assert_eq!(done, 0);
}

fn connect_with_data(tb: &Testbed, port: u16, data: &[u8]) -> TcpStream {
    let fd: OwnedFd =
        socket(nix::sys::socket::AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)
            .unwrap();
    let to = SockaddrIn::from(std::net::SocketAddrV4::new(tb.host().v4(), port));
    let sent = sendto(fd.as_raw_fd(), data, &to, MsgFlags::from_bits_retain(libc::MSG_FASTOPEN)).unwrap();
    assert_eq!(sent, data.len());
    fd.into()
}

/// A counter of TcpExt in the host's namespace.
fn nstat(tb: &Testbed, name: &str) -> u64 {
    let text = tb.host().enter(|| fs::read_to_string("/proc/thread-self/net/netstat").unwrap()).unwrap();
    let mut lines = text.lines().filter(|line| line.starts_with("TcpExt:"));
    let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
    let at = names.split(' ').position(|n| n == name).unwrap();
    values.split(' ').nth(at).unwrap().parse().unwrap()
}

#[test]
fn fin_and_reset_of_a_lifted_connection_ride_behind_its_data() {
    on_host(1500, |tb| {
        let mut run = Run::new(lift(Ports::All));
        let (own, mut peer) = accepted(tb, &run, tb.host().v4().into());
        assert_eq!(run.stream(&own), Reason::Lifted);
        run.lift(&own);
        peer.write_all(b"last").unwrap();
        drop(peer);
        let data = run.segment();
        assert_eq!(data.1, b"last");
        run.ride(&data.2);
        if data.2[tcp_at(&data.2) + 13] & 1 == 0 {
            let fin = run.segment();
            assert_eq!((fin.0, fin.1.len()), (data.0.wrapping_add(4), 0));
            run.ride(&fin.2);
        }
        let mut rest = Vec::new();
        (&own).read_to_end(&mut rest).unwrap();
        assert_eq!(rest, b"last");
    });
}

#[test]
fn what_is_no_connection_of_this_namespace_is_refused_and_the_channel_lives() {
    on_host(1500, |tb| {
        let mut run = Run::new(lift(Ports::All));
        let (own, _peer) = accepted(tb, &run, tb.host().v4().into());
        let udp = bound(tb.host().v4(), 5000);
        let listener = TcpListener::bind((tb.host().v4(), 0)).unwrap();
        let file = fs::File::open("/dev/null").unwrap();
        let (_theirs, foreign) = accepted(tb, &run, tb.host().v4().into());
        let ask = |run: &mut Run, cookie: u64, fd: Option<&dyn AsFd>| {
            let fds: Vec<_> = fd.iter().map(|fd| fd.as_fd()).collect();
            run.rig.ask(&mut run.program, Request::Stream { cookie }, &fds)
        };
        let refused = |errno: i32| Reply::Refused { errno: errno as u32 };
        assert_eq!(ask(&mut run, cookie(&own), None), refused(libc::EBADF));
        assert_eq!(ask(&mut run, cookie(&own) + 1, Some(&own)), refused(libc::EINVAL));
        assert_eq!(ask(&mut run, cookie(&udp), Some(&udp)), refused(libc::EPROTONOSUPPORT));
        assert_eq!(ask(&mut run, cookie(&listener), Some(&listener)), refused(libc::ENOTCONN));
        assert_eq!(ask(&mut run, 0, Some(&file)), refused(libc::ENOTSOCK));
        assert_eq!(ask(&mut run, cookie(&foreign), Some(&foreign)), refused(libc::EPROTONOSUPPORT));
        assert_eq!(run.stream(&own), Reason::Lifted);
        assert_eq!(run.connections().len(), 2, "the wire's ends are not this namespace's");
    });
}

#[test]
fn connections_that_cannot_be_lifted_have_their_reason() {
    on_host(1500, |tb| {
        let mut run = Run::new(lift(Ports::Some(vec![81..=81])));
        let (own, peer) = {
            let _inside = run.enter();
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            (listener.accept().unwrap().0, peer)
        };
        assert_eq!(run.stream(&own), Reason::Loopback);
        assert!(run.connections().iter().all(|c| c.reason == "loopback" && c.state == "passed"));
        drop((own, peer));
        let accept_at = |run: &Run, port: u16| {
            let _inside = run.enter();
            accept_from(tb, &TcpListener::bind((tb.host().v4(), port)).unwrap(), tb.host().v4().into())
        };
        let (_chosen, _peer) = accept_at(&run, 81);
        let (other, _peer) = accept_at(&run, 82);
        let reasons = |run: &mut Run| -> Vec<String> {
            let mut all: Vec<_> = run.connections().into_iter().map(|c| c.reason).collect();
            all.sort();
            all
        };
        eventually("loopback ones are gone", || reasons(&mut run) == ["not-selected", "parked"]);
        // Whatever the program does, steer knows no such flow.
        assert_eq!(run.stream(&other), Reason::Lifted);
        run.lift(&other);
        let mut peer = _peer;
        peer.write_all(b"passed").unwrap();
        expect_bytes(&other, b"passed");
        assert!(run.program.nothing_lifted());
    });
}

#[test]
fn without_tcp_or_in_generic_mode_nothing_is_lifted_and_udp_is() {
    on_host(1500, |tb| {
        let mut run = Run::new(config());
        let listener = TcpListener::bind((tb.host().v4(), 0)).unwrap();
        let (own, _peer) = accept_from(tb, &listener, tb.host().v4().into());
        assert!(run.rig.broker.cgroup().is_none());
        assert_eq!(run.stream(&own), Reason::Off);
        assert!(run.program.slots.is_none());
        assert_eq!(run.rig.register(&mut run.program, &bound(tb.host().v4(), 5000)), Reason::Lifted);
    });
    on_host(4000, |tb| {
        let mut run = Run::new(lift(Ports::All));
        let (own, mut peer) = accepted(tb, &run, tb.host().v4().into());
        assert_eq!(run.stream(&own), Reason::Generic);
        run.lift(&own);
        peer.write_all(b"passed").unwrap();
        expect_bytes(&own, b"passed");
        assert_eq!(run.rig.register(&mut run.program, &bound(tb.host().v4(), 5000)), Reason::Lifted);
    });
}

#[test]
fn where_the_kernel_copies_auto_attaches_nothing() {
    on_host(1500, |tb| {
        let tcp = Tcp { policy: Policy::Auto, ports: Ports::All };
        let mut run = Run::new(Config { tcp, ..lift(Ports::All) });
        let (own, _peer) = accepted(tb, &run, tb.host().v4().into());
        assert_eq!(run.stream(&own), Reason::NotWorth);
        assert!(run.program.rings.is_empty() && run.program.slots.is_some());
        assert_eq!(run.rig.status().devices[0].xdp, "none");
    });
}

#[test]
fn datagrams_and_connections_share_the_rings_whichever_come_first() {
    on_host(1500, |tb| {
        for udp_first in [true, false] {
            let mut run = Run::new(lift(Ports::All));
            let (own, mut peer) = accepted(tb, &run, tb.host().v4().into());
            let datagrams = bound(tb.host().v4(), 5000);
            if udp_first {
                assert_eq!(run.rig.register(&mut run.program, &datagrams), Reason::Lifted);
            }
            assert_eq!(run.stream(&own), Reason::Lifted);
            assert_eq!(run.stream(&own), Reason::Lifted, "a second time");
            if !udp_first {
                assert_eq!(run.rig.register(&mut run.program, &datagrams), Reason::Lifted);
            }
            assert_eq!(run.program.rings.len(), 2);
            run.lift(&own);
            peer.write_all(b"stream").unwrap();
            assert_eq!(run.segment().1, b"stream");
            send(tb, tb.host().v4(), 5000, b"datagram");
            assert_eq!(run.program.datagram().0, b"datagram");
        }
    });
}

#[test]
fn the_holders_connections_pass_when_it_ends_and_what_was_in_its_rings_rides() {
    on_host(1500, |tb| {
        for partial in [false, true] {
            // A sender that leaves checksums to its device: over veth they stay partial.
            tb.wire().set_offload(Offload::TxChecksum, partial).unwrap();
            let mut run = Run::new(lift(Ports::All));
            let second = run.rig.hello();
            let (own, mut peer) = accepted(tb, &run, tb.host().v4().into());
            assert_eq!(run.stream(&own), Reason::Lifted);
            let slot = run.lift(&own);
            peer.write_all(b"in the ring").unwrap();
            run.rig.until(|broker| broker.status().devices[0].lifted_packets > 0);
            let ports = run.program.ports.unwrap();
            let first = std::mem::replace(&mut run.program, second);
            drop(first);
            run.rig.until(|broker| broker.status().leases_ended == 1);
            assert_eq!(slot.occupant(), Some((cookie(&own), Steering::Pass)));
            assert_eq!(ports.of(slot.ports().0).load(Relaxed), 0);
            expect_bytes(&own, b"in the ring");
            peer.write_all(b"passed").unwrap();
            expect_bytes(&own, b"passed");
            assert_eq!(run.stream(&own), Reason::Lifted);
        }
    });
}

#[test]
fn segments_of_the_runs_connections_alone_come_in_through_the_tap() {
    on_host(1500, |tb| {
        let mut run = Run::new(lift(Ports::All));
        let (own, mut peer) = accepted(tb, &run, tb.host().v4().into());
        let listener = TcpListener::bind((tb.host().v4(), 0)).unwrap();
        let (outside, outside_peer) = accept_from(tb, &listener, tb.host().v4().into());
        assert_eq!(run.stream(&own), Reason::Lifted);
        run.lift(&own);
        peer.write_all(b"own").unwrap();
        let (_, _, frame) = run.segment();
        let mut forged = frame.clone();
        let at = tcp_at(&frame);
        forged[at..at + 2].copy_from_slice(&outside_peer.local_addr().unwrap().port().to_be_bytes());
        forged[at + 2..at + 4].copy_from_slice(&listener.local_addr().unwrap().port().to_be_bytes());
        forged[at + 13] = 4; // a reset
        let mut fragment = frame.clone();
        fragment[ETHERNET + 6] = 0x20;
        for refused in [&forged, &fragment] {
            run.ride(refused);
        }
        run.ride(&frame);
        expect_bytes(&own, b"own");
        assert_eq!(run.rig.status().devices[0].ride_refused, 2);
        outside.set_nonblocking(true).unwrap();
        let nothing = (&outside).read(&mut [0]).unwrap_err();
        assert_eq!(nothing.kind(), std::io::ErrorKind::WouldBlock);
        drop(own);
        eventually("the flow is gone", || {
            run.ride(&frame);
            run.rig.status().devices[0].ride_refused > 2
        });
    });
}

#[test]
fn merged_segments_ride_as_one() {
    on_host(1500, |tb| {
        for at in [IpAddr::from(tb.host().v4()), tb.host().v6().into()] {
            let mut run = Run::new(lift(Ports::All));
            let (own, mut peer) = accepted(tb, &run, at);
            setsockopt(&own, sockopt::RcvBuf, &1_000_000).unwrap();
            assert_eq!(run.stream(&own), Reason::Lifted);
            let slot = run.lift(&own);
            peer.write_all(b"x").unwrap();
            let (_, _, frame) = run.segment();
            // Ghosts of 40 segments in place of the one byte.
            let bytes: Vec<u8> = (0..40 * 1400_u32).map(|i| (i % 251) as u8).collect();
            let (header, merged) = merge(&frame, &bytes, 1400);
            let tap = &run.program.tap.as_ref().unwrap().0;
            let pieces = [std::io::IoSlice::new(&header), std::io::IoSlice::new(&merged)];
            assert_eq!(nix::sys::uio::writev(tap, &pieces).unwrap(), 10 + merged.len());
            expect_bytes(&own, &bytes);
            assert_eq!(run.rig.status().devices[0].ride_refused, 0);
            assert!(slot.steer(cookie(&own), Steering::Pass));
        }
    });
}

/// The frame with another payload, as its header and that of virtio say: NEEDS_CSUM, and GSO of `size`.
fn merge(frame: &[u8], payload: &[u8], size: u16) -> ([u8; 10], Vec<u8>) {
    let at = tcp_at(frame);
    let headers = at + usize::from(frame[at + 12] >> 4) * 4;
    let mut merged = [&frame[..headers], payload].concat();
    let v4 = at == ETHERNET + 20;
    let len = (merged.len() - at) as u16;
    let sum = if v4 {
        merged[16..18].copy_from_slice(&(len + 20).to_be_bytes());
        hoist_packet::ipv4::set_checksum((&mut merged[ETHERNET..at]).try_into().unwrap());
        pseudo_header_v4(merged[26..30].try_into().unwrap(), merged[30..34].try_into().unwrap(), 6, len)
    } else {
        merged[18..20].copy_from_slice(&len.to_be_bytes());
        let (source, destination) = (merged[22..38].try_into().unwrap(), merged[38..54].try_into().unwrap());
        pseudo_header_v6(&source, &destination, 6, len.into())
    };
    merged[at + 16..at + 18].copy_from_slice(&sum.fold().to_be_bytes());
    let words = [headers as u16, size, at as u16, 16];
    let kind: [u8; 2] = [1, if v4 { 1 } else { 4 }];
    let header: Vec<u8> = kind.into_iter().chain(words.into_iter().flat_map(u16::to_ne_bytes)).collect();
    (header.try_into().unwrap(), merged)
}

#[test]
fn a_full_table_leaves_connections_to_the_kernel() {
    on_host(1500, |tb| {
        let mut run = Run::new(lift(Ports::All));
        let (own, peer) = accepted(tb, &run, tb.host().v4().into());
        assert_eq!(run.stream(&own), Reason::Lifted);
        let foreign = u64::MAX >> 2;
        for slot in run.program.slots.unwrap().iter() {
            let _ = slot.word.compare_exchange(0, foreign << 2 | 1, Relaxed, Relaxed);
        }
        let (late, mut late_peer) = accepted(tb, &run, tb.host().v4().into());
        assert!(run.slot(&late).is_none());
        late_peer.write_all(b"kernel").unwrap();
        expect_bytes(&late, b"kernel");
        // Whatever stands in its slot, its flow goes with it.
        run.slot(&own).unwrap().word.store(0, Relaxed);
        drop((own, peer, late, late_peer));
        run.rig.status();
    });
}

#[test]
fn connections_that_close_and_come_again_by_the_thousand_leave_nothing() {
    on_host(1500, |tb| {
        let mut run = Run::new(lift(Ports::All));
        let listener = {
            let _inside = run.enter();
            TcpListener::bind((tb.host().v4(), 0)).unwrap()
        };
        let to = listener.local_addr().unwrap();
        for _ in 0..1000 {
            let peer = tb.wire().enter(|| TcpStream::connect(to).unwrap()).unwrap();
            setsockopt(&peer, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 }).unwrap();
            drop((listener.accept().unwrap(), peer));
        }
        eventually("all slots are free", || run.connections().is_empty());
    });
}

#[test]
fn what_stood_in_the_slots_of_closed_connections_is_summed() {
    on_host(1500, |tb| {
        let mut run = Run::new(lift(Ports::All));
        for count in 1..=2 {
            let (own, peer) = accepted(tb, &run, tb.host().v4().into());
            assert_eq!(run.stream(&own), Reason::Lifted);
            let slot = run.slot(&own).unwrap();
            slot.lifted_bytes.store(10 * count, Relaxed);
            slot.rode_real.store(count, Relaxed);
            drop((own, peer));
            eventually("it is closed", || run.connections().is_empty());
        }
        let closed = run.rig.status().closed_connections;
        assert_eq!((closed.connections, closed.traffic.lifted_bytes, closed.traffic.rode_real), (2, 30, 3));
    });
}

#[test]
fn the_runs_cgroup_goes_with_the_broker() {
    on_host(1500, |_| {
        let run = Run::new(lift(Ports::All));
        let directory = home().parent().unwrap().to_owned();
        let ours = || {
            let prefix = format!("hoist-{}.", std::process::id());
            let names = fs::read_dir(&directory).unwrap().map(|e| e.unwrap().file_name());
            names.filter(|name| name.to_str().unwrap().starts_with(&prefix)).count()
        };
        let _alone = IN_CGROUP.lock().unwrap_or_else(|e| e.into_inner());
        let before = ours();
        assert!(before > 0);
        drop(run);
        assert!(ours() < before);
    });
}
