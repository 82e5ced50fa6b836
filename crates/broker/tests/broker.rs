//! The broker against a program that the test plays: it registers sockets, maps rings, reads lifted frames and gives them
//! back. On a veth pair of its own. Needs root.
#![allow(clippy::unwrap_used, reason = "a test ends where it fails")]

mod rig;

use hoist_broker::{Broker, Config, Ports, status::Status};
use hoist_ipc::{Reason, Reply, Request, VERSION};
use hoist_packet::udp::fill_checksums;
use hoist_sys::send_with_fds;
use hoist_wire::Testbed;
use hoist_xsk::{FillRing, RxRing};
use nix::{
    poll::PollFlags,
    sys::socket::{AddressFamily, SockFlag, SockType, setsockopt, sockopt},
};
use rig::{PATIENCE, Rig, bound, config, cookie, on_host, pair, receive, send, wait, write_tap};
use std::{
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    os::fd::{AsFd, AsRawFd, OwnedFd},
    sync::atomic::Ordering::Relaxed,
    time::{Duration, Instant},
};

#[test]
fn a_registered_port_is_lifted_given_back_and_passed_again() {
    on_host(1500, |tb| {
        let mut rig = Rig::new(config());
        let mut program = rig.hello();
        let socket = bound(Ipv4Addr::UNSPECIFIED, 5000);
        send(tb, tb.host().v4(), 5000, b"before");
        assert_eq!(receive(&socket), b"before");

        assert_eq!(rig.register(&mut program, &socket), Reason::Lifted);
        assert_eq!(program.rings.len(), 2);
        send(tb, tb.host().v4(), 5000, b"lifted");
        assert_eq!(program.datagram(), (b"lifted".to_vec(), SocketAddr::new(tb.host().v4().into(), 5000)));

        send(tb, tb.host().v4(), 5000, b"returned");
        program.give_back(program.frame());
        assert_eq!(receive(&socket), b"returned");

        rig.done(&mut program, Request::Unregister { cookie: cookie(&socket) });
        send(tb, tb.host().v4(), 5000, b"passed");
        assert_eq!(receive(&socket), b"passed");
        assert!(program.nothing_lifted());

        let status = rig.status();
        let device = &status.devices[0];
        assert_eq!(
            (device.name.as_str(), device.xdp.as_str(), device.mode.as_str()),
            ("vb", "native", "copy")
        );
        assert_eq!(device.lifted_packets, 2);
        assert!(device.mode_reason.is_some());
        assert_eq!(status.closed[0].local, "0.0.0.0:5000");
    });
}

#[test]
fn in_generic_mode_a_frame_given_back_reaches_the_socket_once_and_is_not_lifted_again() {
    // More than a page with its headroom: veth refuses native XDP.
    on_host(4000, |tb| {
        let mut rig = Rig::new(config());
        let mut program = rig.hello();
        let socket = bound(tb.host().v4(), 5000);
        assert_eq!(rig.register(&mut program, &socket), Reason::Lifted);
        let device = rig.status().devices[0].clone();
        assert_eq!(device.xdp, "generic");
        assert!(device.xdp_reason.is_some_and(|why| why.contains("MTU")));
        send(tb, tb.host().v4(), 5000, b"returned");
        let frame = program.frame();
        program.give_back(frame);
        assert_eq!(receive(&socket), b"returned");
        assert!(program.nothing_lifted());
        let device = rig.status().devices[0].clone();
        assert_eq!(device.lifted_packets, 1);
        assert!(device.passed.iter().any(|p| p.reason == "rode" && p.packets == 1));
    });
}

#[test]
fn ipv6_broadcast_and_joined_groups_are_lifted() {
    on_host(1500, |tb| {
        let mut rig = Rig::new(config());
        let mut program = rig.hello();
        let six = bound(std::net::Ipv6Addr::UNSPECIFIED, 5000);
        assert_eq!(rig.register(&mut program, &six), Reason::Lifted);
        send(tb, tb.host().v6(), 5000, b"six");
        assert_eq!(program.datagram().0, b"six");
        send(tb, tb.host().v4(), 5000, b"four");
        assert_eq!(program.datagram().0, b"four", "an IPv6 wildcard takes IPv4 too");
        let [a, b, ..] = tb.host().v4().octets(); // a /16
        send(tb, Ipv4Addr::new(a, b, 255, 255), 5000, b"all");
        assert_eq!(program.datagram().0, b"all");

        let four = bound(Ipv4Addr::UNSPECIFIED, 5001);
        let group = Ipv4Addr::new(239, 1, 2, 3);
        four.join_multicast_v4(&group, &tb.host().v4()).unwrap();
        assert_eq!(rig.register(&mut program, &four), Reason::Lifted);
        let ifindex = tb.host().ifindex();
        let join = |join| Request::Group { cookie: cookie(&four), join, group: group.into(), ifindex };
        rig.done(&mut program, join(true));
        let to_group = |payload: &'static [u8]| {
            let from = tb.wire().v4();
            let sent = tb.wire().enter(move || {
                let socket = UdpSocket::bind((from, 0)).unwrap();
                socket.send_to(payload, (group, 5001)).unwrap()
            });
            assert_eq!(sent.unwrap(), payload.len());
        };
        to_group(b"group");
        assert_eq!(program.datagram(), (b"group".to_vec(), SocketAddr::new(group.into(), 5001)));
        rig.done(&mut program, join(false));
        to_group(b"kernel");
        assert_eq!(receive(&four), b"kernel");
    });
}

#[test]
fn what_cannot_be_lifted_is_answered_with_its_reason() {
    on_host(1500, |tb| {
        let only = Config { udp: Ports::Some(vec![5000..=5010]), ..config() };
        let mut rig = Rig::new(only);
        let mut program = rig.hello();
        let mut reason = |socket: &UdpSocket| rig.register(&mut program, socket);
        assert_eq!(reason(&bound(Ipv4Addr::LOCALHOST, 5000)), Reason::Loopback);
        assert_eq!(reason(&bound(tb.host().v4(), 6000)), Reason::NotSelected);
        assert_eq!(reason(&bound(Ipv4Addr::new(127, 0, 0, 9), 5001)), Reason::Loopback);
        let lo = bound(Ipv4Addr::UNSPECIFIED, 5002);
        setsockopt(&lo, sockopt::BindToDevice, &"lo".into()).unwrap();
        assert_eq!(reason(&lo), Reason::OtherDevice);
        assert_eq!(reason(&bound(tb.host().v4(), 5003)), Reason::Lifted);
        let status = rig.status();
        let words: Vec<_> = status.sockets.iter().map(|s| s.reason.as_str()).collect();
        assert_eq!(words.len(), 5);
        assert!(words.contains(&"other-device") && words.contains(&"not-selected"));
        assert!(status.sockets.iter().all(|s| !s.explain.is_empty()));
    });
}

#[test]
fn each_process_has_rings_of_its_own_and_the_last_leaves_nothing() {
    on_host(1500, |tb| {
        let mut rig = Rig::new(config());
        let (mut first, mut second) = (rig.hello(), rig.hello());
        let (a, b) = (bound(tb.host().v4(), 5000), bound(tb.host().v4(), 5001));
        assert_eq!(rig.register(&mut first, &a), Reason::Lifted);
        assert_eq!(rig.register(&mut second, &b), Reason::Lifted);
        assert_eq!((first.seat, second.seat), (0, 1));
        send(tb, tb.host().v4(), 5000, b"first");
        send(tb, tb.host().v4(), 5001, b"second");
        assert_eq!((first.datagram().0, second.datagram().0), (b"first".to_vec(), b"second".to_vec()));
        assert!(first.nothing_lifted() && second.nothing_lifted());
        assert_eq!(rig.status().processes.iter().filter(|p| p.holds_rings).count(), 2);
        // This test is both processes, and lives on: what the first has stays its own.
        drop(first);
        rig.until(|broker| broker.status().processes.iter().filter(|p| p.holds_rings).count() == 1);
        send(tb, tb.host().v4(), 5000, b"passed");
        assert_eq!(receive(&a), b"passed");
        send(tb, tb.host().v4(), 5001, b"still");
        assert_eq!(second.datagram().0, b"still");
        drop(second);
        rig.until(|broker| broker.status().leases_ended == 1);
        assert_eq!(rig.status().leaked_frames, 0);
    });
}

#[test]
fn what_is_left_in_the_rings_of_the_last_process_rides_and_the_next_begins_anew() {
    on_host(1500, |tb| {
        let mut rig = Rig::new(config());
        let (mut first, mut second) = (rig.hello(), rig.hello());
        let (a, b) = (bound(tb.host().v4(), 5000), bound(tb.host().v4(), 5001));
        assert_eq!(rig.register(&mut first, &a), Reason::Lifted);
        send(tb, tb.host().v4(), 5000, b"left in the ring");
        rig.until(|broker| broker.status().devices[0].lifted_packets == 1);
        // The page, as a shim that held half of the frames back would have written it.
        let free = |(ring, _): &(hoist_ipc::RingInfo, OwnedFd)| {
            first.page.rings[ring.ring as usize].free.load(Relaxed) == u64::from(ring.own)
        };
        assert!(first.rings.iter().all(free));
        drop(first);
        rig.until(|broker| broker.status().leases_ended == 1);
        assert_eq!(receive(&a), b"left in the ring");
        assert_eq!(rig.status().leaked_frames, 0);
        assert_eq!(rig.register(&mut second, &b), Reason::Lifted);
        send(tb, tb.host().v4(), 5001, b"second");
        assert_eq!(second.datagram().0, b"second");
    });
}

#[test]
fn flows_to_a_port_that_processes_share_are_spread_over_them_and_stay() {
    on_host(1500, |tb| {
        let mut rig = Rig::new(config());
        let (mut first, mut second) = (rig.hello(), rig.hello());
        let (a, b) = (reusable(tb.host().v4(), 5000), reusable(tb.host().v4(), 5000));
        assert_eq!(rig.register(&mut first, &a), Reason::Lifted);
        assert_eq!(rig.register(&mut second, &b), Reason::Lifted);
        let mut counts = [0, 0];
        let sockets: Vec<UdpSocket> = (0..32).map(|_| wire_socket(tb)).collect();
        for (number, socket) in sockets.iter().enumerate() {
            let mut places = Vec::new();
            for _ in 0..3 {
                socket.send_to(&[number as u8], (tb.host().v4(), 5000)).unwrap();
                let place = which(&first, &second);
                assert_eq!([&first, &second][place].datagram().0, [number as u8]);
                places.push(place);
            }
            assert!(places.iter().all(|place| *place == places[0]), "a flow stays: {places:?}");
            counts[places[0]] += 1;
        }
        assert!(counts[0] > 6 && counts[1] > 6, "{counts:?}");
        // One that is closed leaves its flows to the other.
        rig.done(&mut second, Request::Unregister { cookie: cookie(&b) });
        drop(b);
        for socket in &sockets {
            socket.send_to(b"x", (tb.host().v4(), 5000)).unwrap();
            assert_eq!(first.datagram().0, b"x");
        }
    });
}

/// What a process had done with the fill ring's lock when it was killed: nothing, one frame written, one published.
#[derive(Clone, Copy, PartialEq)]
enum Died {
    Holding,
    Writing,
    Published,
}

#[test]
fn a_fill_ring_s_lock_outlives_its_holder_and_no_frame_is_lost_or_doubled() {
    for died in [Died::Holding, Died::Writing, Died::Published] {
        on_host(1500, |tb| {
            let mut rig = Rig::new(config());
            let (mut first, mut second) = (rig.hello(), rig.hello());
            let (a, b) = (bound(tb.host().v4(), 5000), bound(tb.host().v4(), 5001));
            assert_eq!(rig.register(&mut first, &a), Reason::Lifted);
            assert_eq!(rig.register(&mut second, &b), Reason::Lifted);
            let peer = wire_socket(tb); // one flow, one queue
            peer.send_to(b"taken by one who dies", (tb.host().v4(), 5001)).unwrap();
            peer.send_to(b"left in his ring", (tb.host().v4(), 5001)).unwrap();
            rig.until(|broker| broker.status().devices[0].lifted_packets == 2);
            die(&second, died);
            // As the shim leaves it at the end, so that the broker need not wait for the death of this test.
            second.page.accounted.store(1, Relaxed);
            drop(second);
            rig.until(|broker| broker.status().leases_ended == 1);
            assert_eq!(receive(&b), b"left in his ring", "as if it had passed");
            // Rings and lock are as good as new.
            let hub = first.hub.as_ref().unwrap();
            assert!(first.rings.iter().all(|(info, _)| hub.fill(info.ring).unwrap().try_lock(1)));
            for number in 0..100_u8 {
                send(tb, tb.host().v4(), 5000, &[number]);
                assert_eq!(first.datagram().0, [number]);
            }
            drop(first);
            rig.until(|broker| broker.status().leases_ended == 2);
            assert_eq!(rig.status().leaked_frames, 0);
        });
    }
}

/// Takes a datagram out of its ring, and then gets as far as `died` says with giving the frame back.
fn die(program: &rig::Program, died: Died) {
    let hub = program.hub.as_ref().unwrap();
    let ready = |(info, fd): &&(hoist_ipc::RingInfo, OwnedFd)| {
        RxRing::map(fd.as_fd(), info.rx_size).unwrap().available() > 0
    };
    let (info, fd) = program.rings.iter().find(ready).unwrap();
    let mut rx = RxRing::map(fd.as_fd(), info.rx_size).unwrap();
    assert!(rx.available() > 0);
    let umem = program.umem.as_ref().unwrap();
    let frame = umem.frame_of(rx.peek(0).unwrap().addr).unwrap();
    hub.take(frame, program.seat as u8);
    rx.release(1);
    let (lock, mut fill) = (hub.fill(info.ring).unwrap(), FillRing::map(fd.as_fd(), info.fill_size).unwrap());
    assert!(lock.try_lock(program.seat + 1));
    lock.begin(fill.take_over());
    if died == Died::Holding {
        return;
    }
    assert!(fill.push(umem.addr_of(frame)));
    lock.pushed();
    hub.give(frame);
    if died == Died::Published {
        fill.submit();
    }
}

fn wire_socket(tb: &Testbed) -> UdpSocket {
    tb.wire().enter(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap()).unwrap()
}

/// The program that has something in its rings.
fn which(first: &rig::Program, second: &rig::Program) -> usize {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match (first.nothing_lifted(), second.nothing_lifted()) {
            (false, _) => return 0,
            (_, false) => return 1,
            _ => assert!(Instant::now() < deadline, "nothing was lifted"),
        }
    }
}

#[test]
fn a_port_whose_sockets_are_not_all_lifted_is_lifted_for_none() {
    on_host(1500, |tb| {
        let mut rig = Rig::new(config());
        let (mut first, mut second) = (rig.hello(), rig.hello());
        let (a, b) = (reusable(tb.host().v4(), 5000), reusable(tb.host().v4(), 5000));
        assert_eq!(rig.register(&mut first, &a), Reason::Lifted);
        assert_eq!(rig.register(&mut second, &b), Reason::Lifted);
        rig.done(&mut second, Request::Demote { cookie: cookie(&b), reason: Reason::Forked });
        let mut reasons: Vec<_> = rig.status().sockets.iter().map(|s| s.reason.clone()).collect();
        reasons.sort();
        assert_eq!(reasons, ["forked", "port-shared"]);
        // Nor when the two overlap without being equals.
        let overlapping = |address| with_option(address, 5001, sockopt::ReuseAddr);
        let (any, one) = (overlapping(Ipv4Addr::UNSPECIFIED), overlapping(tb.host().v4()));
        one.set_read_timeout(Some(PATIENCE)).unwrap();
        assert_eq!(rig.register(&mut first, &any), Reason::Lifted);
        assert_eq!(rig.register(&mut second, &one), Reason::PortShared);
        // Nor do two equals keep what a third of one of them, for one address, would get.
        let any = || with_option(Ipv4Addr::UNSPECIFIED, 5002, sockopt::ReusePort);
        let (mine, yours) = (any(), any());
        let special = with_option(tb.host().v4(), 5002, sockopt::ReusePort);
        assert_eq!(rig.register(&mut first, &mine), Reason::Lifted);
        assert_eq!(rig.register(&mut second, &yours), Reason::Lifted);
        assert_eq!(rig.register(&mut first, &special), Reason::PortShared);
        send(tb, tb.host().v4(), 5002, b"special");
        special.set_read_timeout(Some(PATIENCE)).unwrap();
        assert_eq!(receive(&special), b"special");
        send(tb, tb.host().v4(), 5001, b"to the kernel's choice");
        assert_eq!(receive(&one), b"to the kernel's choice");
    });
}

#[test]
fn a_frame_that_the_program_lost_is_reported() {
    on_host(1500, |tb| {
        let mut rig = Rig::new(config());
        let mut program = rig.hello();
        let socket = bound(tb.host().v4(), 5000);
        assert_eq!(rig.register(&mut program, &socket), Reason::Lifted);
        program.page.rings[0].free.store(2040, Relaxed);
        drop(program);
        rig.until(|broker| broker.status().leases_ended == 1);
        assert_eq!(rig.status().leaked_frames, 8);
    });
}

#[test]
fn a_port_that_another_process_has_is_not_lifted_and_is_demoted_when_it_comes_later() {
    on_host(1500, |tb| {
        let mut rig = Rig::new(config());
        let mut program = rig.hello();
        let other = Stranger::start(tb, 5000);
        let shared = reusable(tb.host().v4(), 5000);
        assert_eq!(rig.register(&mut program, &shared), Reason::PortShared);
        drop(other);
        assert_eq!(rig.register(&mut program, &shared), Reason::Lifted);
        let _again = Stranger::start(tb, 5000);
        rig.until(|broker| broker.status().sockets[0].reason == "port-shared");
        // A second socket of the program itself is no stranger, registered or not.
        let (one, _two) = (reusable(tb.host().v4(), 5001), reusable(tb.host().v4(), 5001));
        assert_eq!(rig.register(&mut program, &one), Reason::Lifted);
    });
}

fn reusable(address: Ipv4Addr, port: u16) -> UdpSocket {
    with_option(address, port, sockopt::ReusePort)
}

fn with_option(
    address: Ipv4Addr,
    port: u16,
    option: impl nix::sys::socket::SetSockOpt<Val = bool>,
) -> UdpSocket {
    use nix::sys::socket::{SockaddrIn, bind, socket};
    let fd = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None).unwrap();
    setsockopt(&fd, option, &true).unwrap();
    bind(fd.as_raw_fd(), &SockaddrIn::from(std::net::SocketAddrV4::new(address, port))).unwrap();
    fd.into()
}

/// Another process with a socket on a port.
struct Stranger(std::process::Child);

impl Stranger {
    fn start(tb: &Testbed, port: u16) -> Self {
        use std::io::{BufRead, BufReader};
        let script = format!(
            "import socket,sys\ns=socket.socket(socket.AF_INET,socket.SOCK_DGRAM)\n\
             s.setsockopt(socket.SOL_SOCKET,socket.SO_REUSEPORT,1)\ns.bind(('0.0.0.0',{port}))\nprint('up',flush=True)\nsys.stdin.read()"
        );
        let mut command = tb.host().command("python3");
        let pipe = std::process::Stdio::piped;
        let mut child = command.arg("-c").arg(script).stdin(pipe()).stdout(pipe()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "up\n");
        Self(child)
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[test]
fn a_device_that_goes_away_leaves_the_sockets_to_the_kernel() {
    on_host(1500, |tb| {
        let mut rig = Rig::new(config());
        let mut program = rig.hello();
        let socket = bound(Ipv4Addr::UNSPECIFIED, 5000);
        assert_eq!(rig.register(&mut program, &socket), Reason::Lifted);
        tb.host().delete_device().unwrap();
        rig.until(|broker| broker.status().sockets[0].reason == "device-gone");
        assert_eq!(rig.register(&mut program, &socket), Reason::NoDevice);
    });
}

#[test]
fn an_address_that_comes_is_lifted_and_one_that_goes_is_not() {
    on_host(1500, |tb| {
        let mut rig = Rig::new(config());
        let mut program = rig.hello();
        let socket = bound(Ipv4Addr::UNSPECIFIED, 5000);
        assert_eq!(rig.register(&mut program, &socket), Reason::Lifted);
        let [a, b, ..] = tb.host().v4().octets();
        let second = Ipv4Addr::new(a, b, 9, 9);
        let verdict = |status: Status, word: &str| {
            status.devices[0].passed.iter().find(|p| p.reason == word).map_or(0, |p| p.packets)
        };
        // The neighbour is known by the frames of the first: the second has the same MAC address.
        set_address(tb.host().ifindex(), second, true);
        let deadline = Instant::now() + PATIENCE;
        while rig.status().devices[0].lifted_packets == 0 {
            assert!(Instant::now() < deadline);
            send(tb, second, 5000, b"second");
        }
        assert_eq!(program.datagram(), (b"second".to_vec(), SocketAddr::new(second.into(), 5000)));
        set_address(tb.host().ifindex(), second, false);
        while verdict(rig.status(), "address") == 0 {
            assert!(Instant::now() < deadline);
            send(tb, second, 5000, b"gone");
        }
        send(tb, tb.host().v4(), 5000, b"first");
        while program.datagram().0 != b"first" {}
    });
}

/// Adds or removes an address of a device of this namespace.
fn set_address(ifindex: u32, address: Ipv4Addr, add: bool) {
    use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
    use netlink_packet_route::{
        AddressFamily as Family, RouteNetlinkMessage,
        address::{AddressAttribute, AddressMessage},
    };
    let mut message = AddressMessage::default();
    (message.header.family, message.header.prefix_len, message.header.index) = (Family::Inet, 32, ifindex);
    message.attributes =
        vec![AddressAttribute::Local(address.into()), AddressAttribute::Address(address.into())];
    let message =
        if add { RouteNetlinkMessage::NewAddress(message) } else { RouteNetlinkMessage::DelAddress(message) };
    let mut message = NetlinkMessage::from(message);
    message.header.flags = NLM_F_REQUEST | NLM_F_ACK | if add { NLM_F_CREATE } else { 0 };
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    let mut socket = netlink_sys::Socket::new(netlink_sys::protocols::NETLINK_ROUTE).unwrap();
    socket.bind_auto().unwrap();
    socket.send_to(&bytes, &netlink_sys::SocketAddr::new(0, 0), 0).unwrap();
    let reply =
        NetlinkMessage::<RouteNetlinkMessage>::deserialize(&socket.recv_from_full().unwrap().0).unwrap();
    assert!(matches!(reply.payload, NetlinkPayload::Error(e) if e.code.is_none()));
}

#[test]
fn demotion_of_all_sockets_stops_lifting_before_it_is_answered() {
    on_host(1500, |tb| {
        let mut rig = Rig::new(config());
        let mut program = rig.hello();
        let sockets = [bound(tb.host().v4(), 5000), bound(tb.host().v4(), 5001)];
        for socket in &sockets {
            assert_eq!(rig.register(&mut program, socket), Reason::Lifted);
        }
        rig.done(&mut program, Request::Demote { cookie: 0, reason: Reason::Forked });
        send(tb, tb.host().v4(), 5001, b"kernel");
        assert_eq!(receive(&sockets[1]), b"kernel");
        assert!(rig.status().sockets.iter().all(|s| s.reason == "forked"));
    });
}

#[test]
fn sockets_closed_behind_the_shims_back_are_forgotten() {
    on_host(1500, |tb| {
        let mut rig = Rig::new(config());
        let mut program = rig.hello();
        let socket = bound(tb.host().v4(), 5000);
        assert_eq!(rig.register(&mut program, &socket), Reason::Lifted);
        let stays = bound(tb.host().v4(), 5001);
        assert_eq!(rig.register(&mut program, &stays), Reason::Lifted);
        drop(socket);
        rig.until(|broker| broker.status().sockets.len() == 1);
        assert_eq!(rig.status().closed[0].local, format!("{}:5000", tb.host().v4()));
    });
}

#[test]
fn with_admit_flow_a_flow_is_lifted_once_it_was_admitted() {
    on_host(1500, |tb| {
        let mut rig = Rig::new(Config { admit_flow: true, ..config() });
        let mut program = rig.hello();
        let socket = bound(tb.host().v4(), 5000);
        assert_eq!(rig.register(&mut program, &socket), Reason::Lifted);
        let peer = tb.wire().enter(|| UdpSocket::bind((tb.wire().v4(), 7000)).unwrap()).unwrap();
        let to = SocketAddr::new(tb.host().v4().into(), 5000);
        peer.send_to(b"first", to).unwrap();
        assert_eq!(receive(&socket), b"first");
        let admit = Request::Admit { cookie: cookie(&socket), from: peer.local_addr().unwrap(), to };
        send_with_fds(program.channel.as_fd(), admit.encode().as_ref(), &[]).unwrap();
        // No reply to Admit; the reply to the next request comes after it.
        rig.done(&mut program, Request::Unregister { cookie: 1 });
        peer.send_to(b"second", to).unwrap();
        assert_eq!(program.datagram().0, b"second");
    });
}

#[test]
fn garbage_closes_the_channel_it_came_on_and_no_other() {
    on_host(1500, |tb| {
        let mut rig = Rig::new(config());
        let mut good = rig.hello();
        let socket = bound(tb.host().v4(), 5000);
        assert_eq!(rig.register(&mut good, &socket), Reason::Lifted);
        let file = std::fs::File::open("/dev/null").unwrap();
        let mut state = 88_172_645_463_325_252_u64;
        for round in 0..300_usize {
            let bad = rig.hello();
            let garbage: Vec<u8> = (0..round % 200).map(|_| xorshift(&mut state) as u8).collect();
            let fds = vec![file.as_fd(); round % 9];
            let _ = send_with_fds(bad.channel.as_fd(), &garbage, &fds);
            let _ = send_with_fds(rig.inherited.as_fd(), &garbage, &fds);
        }
        rig.until(|broker| broker.status().processes.iter().filter(|p| !p.ended).count() == 1);
        send(tb, tb.host().v4(), 5000, b"still");
        assert_eq!(good.datagram().0, b"still");
    });
}

fn xorshift(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

#[test]
fn a_register_that_is_not_what_it_says_is_refused_and_the_channel_lives() {
    on_host(1500, |tb| {
        let mut rig = Rig::new(config());
        let mut program = rig.hello();
        let socket = bound(tb.host().v4(), 5000);
        let register = |cookie| Request::Register { cookie, timestamps: false };
        let refused = |reply| matches!(reply, Reply::Refused { .. });
        assert!(refused(rig.ask(&mut program, register(cookie(&socket)), &[])));
        assert!(refused(rig.ask(&mut program, register(1), &[socket.as_fd()])));
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(refused(rig.ask(&mut program, register(1), &[file.as_fd()])));
        let foreign = tb.wire().enter(|| bound(tb.wire().v4(), 5000)).unwrap();
        assert!(refused(rig.ask(&mut program, register(cookie(&foreign)), &[foreign.as_fd()])));
        let group = Request::Group { cookie: 1, join: true, group: Ipv4Addr::LOCALHOST.into(), ifindex: 0 };
        assert!(refused(rig.ask(&mut program, group, &[])));
        assert_eq!(rig.register(&mut program, &socket), Reason::Lifted);
    });
}

#[test]
fn a_flood_from_a_process_that_does_not_read_harms_nobody() {
    on_host(1500, |tb| {
        let mut rig = Rig::new(config());
        let (mut good, flooder) = (rig.hello(), rig.hello());
        let request = Request::Unregister { cookie: 1 }.encode();
        for _ in 0..20_000 {
            let sendable = wait(flooder.channel.as_fd(), PollFlags::POLLOUT, Duration::ZERO);
            if !sendable || send_with_fds(flooder.channel.as_fd(), request.as_ref(), &[]).is_err() {
                rig.broker.dispatch().unwrap();
            }
        }
        rig.until(|broker| broker.status().processes.iter().any(|p| p.ended));
        assert_eq!(rig.register(&mut good, &bound(tb.host().v4(), 5000)), Reason::Lifted);
    });
}

#[test]
fn more_processes_than_there_is_room_for_are_turned_away() {
    on_host(1500, |tb| {
        let mut rig = Rig::new(config());
        let mut programs: Vec<_> = (0..256).map(|_| rig.hello()).collect();
        let (ours, theirs) = pair();
        let hello = Request::Hello { version: VERSION }.encode();
        send_with_fds(rig.inherited.as_fd(), hello.as_ref(), &[theirs.as_fd()]).unwrap();
        drop(theirs);
        rig.until(|broker| broker.status().messages.iter().any(|m| m.contains("more than 256")));
        drop(ours);
        assert_eq!(rig.register(&mut programs[255], &bound(tb.host().v4(), 5000)), Reason::Lifted);
    });
}

#[test]
fn a_device_with_a_foreign_xdp_program_is_left_alone() {
    on_host(1500, |tb| {
        let (mut first, mut second) = (Rig::new(config()), Rig::new(config()));
        let (mut a, mut b) = (first.hello(), second.hello());
        let (one, two) = (bound(tb.host().v4(), 5000), bound(tb.host().v4(), 5001));
        assert_eq!(first.register(&mut a, &one), Reason::Lifted);
        second.broker.dispatch().unwrap();
        assert_eq!(second.register(&mut b, &two), Reason::NoDevice);
        let why = second.status().devices[0].xdp_reason.clone().unwrap();
        assert!(why.contains("XDP program"), "{why}");
        send(tb, tb.host().v4(), 5000, b"first");
        assert_eq!(a.datagram().0, b"first");
    });
}

#[test]
fn the_first_reason_stands_and_a_program_lifts_nothing_by_demotion() {
    on_host(1500, |tb| {
        let mut rig = Rig::new(Config { udp: Ports::Some(vec![5000..=5000]), ..config() });
        let mut program = rig.hello();
        let unselected = bound(tb.host().v4(), 6000);
        assert_eq!(rig.register(&mut program, &unselected), Reason::NotSelected);
        let demote = |reason| Request::Demote { cookie: cookie(&unselected), reason };
        let refused = Reply::Refused { errno: libc::EINVAL as u32 };
        assert_eq!(rig.ask(&mut program, demote(Reason::Lifted), &[]), refused);
        rig.done(&mut program, demote(Reason::Forked));
        assert_eq!(rig.status().sockets[0].reason, "not-selected");
    });
}

#[test]
fn a_living_owner_whose_channel_is_closed_reads_its_rings_to_the_end() {
    on_host(1500, |tb| {
        let mut rig = Rig::new(config());
        let mut program = rig.hello();
        let socket = bound(tb.host().v4(), 5000);
        assert_eq!(rig.register(&mut program, &socket), Reason::Lifted);
        send(tb, tb.host().v4(), 5000, b"mine");
        rig.until(|broker| broker.status().devices[0].lifted_packets == 1);
        send_with_fds(program.channel.as_fd(), b"garbage", &[]).unwrap();
        rig.until(|broker| broker.status().leases_ended == 1);
        assert_eq!(program.datagram().0, b"mine");
        assert_eq!(rig.status().leaked_frames, 0);
    });
}

#[test]
fn an_inherited_socket_that_was_shut_for_sending_does_not_keep_the_broker_busy() {
    on_host(1500, |_| {
        let mut rig = Rig::new(config());
        nix::sys::socket::shutdown(rig.inherited.as_raw_fd(), nix::sys::socket::Shutdown::Write).unwrap();
        rig.until(|broker| !wait(broker.as_fd(), PollFlags::POLLIN, Duration::ZERO));
    });
}

#[test]
fn a_process_that_clears_o_nonblock_and_reads_nothing_does_not_stop_the_broker() {
    on_host(1500, |tb| {
        use nix::fcntl::{FcntlArg, OFlag, fcntl};
        let mut rig = Rig::new(config());
        let mut good = rig.hello();
        let (ours, theirs) = pair();
        let hello = Request::Hello { version: VERSION }.encode();
        send_with_fds(rig.inherited.as_fd(), hello.as_ref(), &[theirs.as_fd()]).unwrap();
        rig.until(|_| wait(ours.as_fd(), PollFlags::POLLIN, Duration::ZERO));
        fcntl(&theirs, FcntlArg::F_SETFL(OFlag::O_RDWR)).unwrap();
        let request = Request::Unregister { cookie: 1 }.encode();
        let stuck = |broker: &Broker| broker.status().messages.iter().any(|m| m.contains("answer a request"));
        while !stuck(&rig.broker) {
            if wait(ours.as_fd(), PollFlags::POLLOUT, Duration::ZERO) {
                send_with_fds(ours.as_fd(), request.as_ref(), &[]).unwrap();
            }
            rig.broker.dispatch().unwrap();
        }
        assert_eq!(rig.register(&mut good, &bound(tb.host().v4(), 5000)), Reason::Lifted);
    });
}

#[test]
fn only_datagrams_to_ports_that_were_lifted_come_in_through_the_tap() {
    on_host(1500, |tb| {
        let mut rig = Rig::new(config());
        let mut program = rig.hello();
        let (socket, other) = (bound(tb.host().v4(), 5000), bound(tb.host().v4(), 6000));
        assert_eq!(rig.register(&mut program, &socket), Reason::Lifted);
        send(tb, tb.host().v4(), 5000, b"forged");
        let frame = program.frame();
        let mut forged = frame.clone();
        forged[36..38].copy_from_slice(&6000_u16.to_be_bytes());
        fill_checksums(&mut forged).unwrap();
        let mut tcp = frame.clone();
        tcp[23] = 6;
        let (tap, _) = program.tap.as_ref().unwrap();
        for refused in [&forged[..], &tcp, &[0; 14]] {
            write_tap(tap, refused);
        }
        rig.done(&mut program, Request::Unregister { cookie: cookie(&socket) });
        program.give_back(frame);
        assert_eq!(receive(&socket), b"forged");
        assert_eq!(rig.status().devices[0].ride_refused, 3);
        other.set_nonblocking(true).unwrap();
        assert!(other.recv(&mut [0]).is_err());
    });
}

#[test]
fn a_tap_that_a_program_made_persistent_does_not_outlive_the_next_start() {
    on_host(1500, |tb| {
        let mut rig = Rig::new(config());
        let mut program = rig.hello();
        assert_eq!(rig.register(&mut program, &bound(tb.host().v4(), 5000)), Reason::Lifted);
        let (tap, _) = program.tap.take().unwrap();
        persist(&tap);
        drop(rig);
        // The broker took it back; the program insists.
        persist(&tap);
        assert!(tap_exists());
        let _live = Rig::new(config());
        assert!(tap_exists(), "somebody holds it");
        drop(tap);
        assert!(tap_exists());
        let _next = Rig::new(config());
        assert!(!tap_exists());
    });
}

#[expect(unsafe_code, reason = "nix has no TUNSETPERSIST")]
fn persist(tap: &OwnedFd) {
    // SAFETY: the argument is a number.
    assert_eq!(unsafe { libc::ioctl(tap.as_raw_fd(), 0x4004_54cb, 1) }, 0);
}

fn tap_exists() -> bool {
    nix::net::if_::if_nametoindex("hoist0").is_ok()
}
