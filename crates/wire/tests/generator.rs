//! Generated datagrams as an ordinary socket receives them. Needs root; says so and skips without.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use aya::{
    Ebpf,
    programs::{TestRun, TestRunAttrs, TestRunOptions, Xdp},
};
use hoist_wire::{Generator, Limit, Spec, Stamp, Testbed};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockProtocol, SockType, setsockopt, socket as new_socket, sockopt::RcvBufForce,
};
use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    time::Duration,
};

fn root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("skipped: the generator needs root");
    }
    root
}

fn socket(testbed: &Testbed, address: IpAddr) -> UdpSocket {
    let socket = testbed.host().enter(|| UdpSocket::bind((address, 0))).unwrap().unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    // Room for all of a test's datagrams: a receiver that the machine runs late loses nothing.
    setsockopt(&socket, RcvBufForce, &(64 << 20)).unwrap();
    socket
}

/// Sends `packets` slowly enough for any receiver and returns what arrived with its source.
fn received(testbed: &Testbed, socket: &UdpSocket, spec: Spec, packets: u64) -> Vec<(Vec<u8>, SocketAddr)> {
    let spec = spec.packets_per_second(20e3).limit(Limit::Packets(packets));
    let running = Generator::start(testbed, &spec).unwrap();
    let mut buffer = [0; 4096];
    let all = (0..packets).map(|_| {
        let (length, from) = socket.recv_from(&mut buffer).unwrap();
        (buffer[..length].to_vec(), from)
    });
    let all = all.collect();
    assert_eq!(running.wait().unwrap().packets, packets);
    all
}

/// Every kind of frame passes the checks of the kernel's own UDP receive path, checksum included.
#[test]
fn every_kind_of_frame_is_delivered_whole_and_in_order() {
    if !root() {
        return;
    }
    let testbed = Testbed::builder().up().unwrap();
    for address in [IpAddr::from(testbed.host().v4()), testbed.host().v6().into()] {
        let socket = socket(&testbed, address);
        for payload_len in [Stamp::LEN, 23, 1000, 1452] {
            let spec = Spec::to(socket.local_addr().unwrap()).payload_len(payload_len);
            let all = received(&testbed, &socket, spec, 300);
            for (seq, (payload, _)) in all.iter().enumerate() {
                let stamp = Stamp::parse(payload).unwrap();
                assert_eq!((stamp.flow, stamp.seq, payload.len()), (0, seq as u64, payload_len), "{address}");
            }
            assert!(all.iter().all(|(payload, _)| payload[Stamp::LEN..] == all[0].0[Stamp::LEN..]));
        }
    }
}

/// Seen by a packet socket, for which skb_vlan_untag takes the tag off, so that no VLAN device is needed.
#[test]
fn tagged_frames_are_whole_behind_their_tag() {
    if !root() {
        return;
    }
    let testbed = Testbed::builder().up().unwrap();
    let host = testbed.host();
    let all = || new_socket(AddressFamily::Packet, SockType::Raw, SockFlag::empty(), SockProtocol::EthAll);
    let tap = host.enter(all).unwrap().unwrap();
    for (address, ip_len) in [(IpAddr::from(host.vlan_v4()), 20), (host.vlan_v6().into(), 40)] {
        let spec = Spec::to((address, 4003).into()).vlan(Some(100)).payload_len(101);
        let spec = spec.packets_per_second(1e3).limit(Limit::Packets(20));
        let running = Generator::start(&testbed, &spec).unwrap();
        for seq in 0..20 {
            let frame = captured(&tap, 14 + ip_len + 8 + 101);
            assert_eq!(Stamp::parse(&frame[14 + ip_len + 8..]).unwrap().seq, seq);
            assert_eq!(udp_sum(&frame[14..], ip_len), 0xffff, "{address}");
        }
        running.wait().unwrap();
    }
}

fn captured(tap: &std::os::fd::OwnedFd, len: usize) -> Vec<u8> {
    let mut frame = [0; 2048];
    loop {
        let length = nix::unistd::read(tap, &mut frame).unwrap();
        if length == len {
            return frame[..length].to_vec();
        }
    }
}

fn udp_sum(packet: &[u8], ip_len: usize) -> u32 {
    let addresses = if ip_len == 20 { 12 } else { 8 };
    let mut words = packet[addresses..].to_vec(); // addresses, UDP header, payload
    words.extend((words.len() % 2 == 1).then_some(0));
    words.extend([0, 17]);
    words.extend(&packet[ip_len + 4..ip_len + 6]);
    let sum: u32 = words.chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum();
    (sum & 0xffff) + (sum >> 16)
}

#[test]
fn flows_differ_in_source_and_count_on_their_own() {
    if !root() {
        return;
    }
    let testbed = Testbed::builder().up().unwrap();
    let socket = socket(&testbed, testbed.host().v4().into());
    let all = received(&testbed, &socket, Spec::to(socket.local_addr().unwrap()).flows(50), 500);
    let sources: std::collections::BTreeSet<_> = all.iter().map(|(_, from)| *from).collect();
    assert_eq!(sources.len(), 50);
    for (index, (payload, from)) in all.iter().enumerate() {
        let stamp = Stamp::parse(payload).unwrap();
        assert_eq!((u64::from(stamp.flow), stamp.seq), (index as u64 % 50, index as u64 / 50));
        assert_eq!(*from, SocketAddr::new(testbed.wire().v4().into(), 20000 + stamp.flow as u16));
    }
}

#[test]
fn flows_beyond_the_ports_of_an_address_use_further_addresses() {
    if !root() {
        return;
    }
    let testbed = Testbed::builder().up().unwrap();
    for address in [IpAddr::from(testbed.host().v4()), testbed.host().v6().into()] {
        let socket = socket(&testbed, address);
        let all = received(&testbed, &socket, Spec::to(socket.local_addr().unwrap()).flows(1 << 20), 16400);
        let sources: std::collections::BTreeSet<_> = all.iter().map(|(_, from)| *from).collect();
        assert_eq!(sources.len(), 16400, "{address}");
    }
}

#[test]
fn groups_are_reached_at_their_own_mac() {
    if !root() {
        return;
    }
    let testbed = Testbed::builder().up().unwrap();
    let group = "239.1.2.3".parse().unwrap();
    let socket = socket(&testbed, "0.0.0.0".parse().unwrap());
    socket.join_multicast_v4(&group, &testbed.host().v4()).unwrap();
    let target = (IpAddr::from(group), socket.local_addr().unwrap().port());
    assert_eq!(received(&testbed, &socket, Spec::to(target.into()), 100).len(), 100);
}

#[test]
fn the_rate_is_held_and_a_running_one_can_be_stopped() {
    if !root() {
        return;
    }
    let testbed = Testbed::builder().up().unwrap();
    let target = SocketAddr::new(testbed.host().v4().into(), 9);
    let spec = Spec::to(target).packets_per_second(50e3).limit(Limit::Time(Duration::from_millis(300)));
    let sent = Generator::start(&testbed, &spec).unwrap().wait().unwrap();
    // One after the other, however late the machine runs it: never more than the rate allows.
    assert!(sent.packets > 0 && sent.packets <= 15_001, "{sent:?}");

    let running = Generator::start(&testbed, &Spec::to(target)).unwrap();
    assert!(!running.wait_for(Duration::from_millis(50)).unwrap());
    assert!(running.stop().unwrap().packets > 0);
}

#[test]
fn frames_that_do_not_fit_are_refused_with_the_bounds() {
    if !root() {
        return;
    }
    let testbed = Testbed::builder().up().unwrap();
    let target = SocketAddr::new(testbed.host().v4().into(), 9);
    for bytes in [63, 1515] {
        let refused = Generator::start(&testbed, &Spec::to(target).frame_len(bytes)).err().unwrap();
        assert!(refused.to_string().contains("64 to 1514"), "{refused}");
    }
}

/// Whatever the MTU.
#[test]
fn frames_are_as_long_as_live_frames_can_be_and_no_longer() {
    if !root() {
        return;
    }
    let testbed = Testbed::builder().mtu(9000).up().unwrap();
    let socket = socket(&testbed, testbed.host().v4().into());
    let spec = Spec::to(socket.local_addr().unwrap());
    let all = received(&testbed, &socket, spec.clone().frame_len(3408), 20);
    assert!(all.iter().all(|(payload, _)| payload.len() == 3408 - 42));
    let refused = Generator::start(&testbed, &spec.frame_len(3409)).err().unwrap();
    assert!(
        refused.to_string().contains("64 to 3408") && refused.to_string().contains("a page"),
        "{refused}"
    );
}

/// What the bound rests on: the kernel takes so many bytes, and not one more.
#[test]
fn the_kernel_says_how_long_live_frames_can_be() {
    if !root() {
        return;
    }
    let mut bpf = Ebpf::load(DISCARD).unwrap();
    let program: &mut Xdp = bpf.program_mut("discard").unwrap().try_into().unwrap();
    program.load().unwrap();
    let takes = |bytes: usize| {
        let frame = vec![0; bytes];
        let mut options = TestRunOptions::new();
        options.data_in = Some(&frame);
        options.attrs = TestRunAttrs::new().xdp_live_frames(1);
        program.test_run(options).is_ok()
    };
    assert_eq!([3408, 3409].map(takes), [true, false]);
}

static DISCARD: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/discard.bpf.o"));

#[test]
fn limits_next_to_none_are_no_lack_of_limits() {
    if !root() {
        return;
    }
    let testbed = Testbed::builder().up().unwrap();
    let spec = Spec::to((testbed.host().v4(), 9).into());
    let refused = Generator::start(&testbed, &spec.clone().limit(Limit::Packets(0))).err().unwrap();
    assert!(refused.to_string().contains("nothing to send"), "{refused}");
    let running = Generator::start(&testbed, &spec.limit(Limit::Time(Duration::ZERO))).unwrap();
    assert!(running.wait_for(Duration::from_secs(10)).unwrap());
}

#[test]
fn vlan_ids_that_no_frame_can_have_are_refused() {
    if !root() {
        return;
    }
    let testbed = Testbed::builder().up().unwrap();
    for id in [0, 4095] {
        let spec = Spec::to((testbed.host().v4(), 9).into()).vlan(Some(id));
        assert!(Generator::start(&testbed, &spec).err().unwrap().to_string().contains("1 to 4094"));
    }
}
