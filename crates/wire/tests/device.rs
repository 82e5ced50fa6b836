//! Sending from a device by name: a testbed's, never the machine's own. Needs root; says so and skips without.

use hoist_wire::{Egress, Generator, Limit, Offload, Pattern, Spec, Stamp, Testbed};
use std::{net::UdpSocket, time::Duration};

fn root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("skipped: the generator needs root");
    }
    root
}

#[test]
fn a_device_sends_from_the_address_given_and_those_that_follow() {
    if !root() {
        return;
    }
    let testbed = Testbed::builder().up().unwrap();
    let (wire, host) = (testbed.wire(), testbed.host());
    let socket = host.enter(|| UdpSocket::bind((host.v4(), 0))).unwrap().unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let spec = Spec::to(socket.local_addr().unwrap()).pattern(Pattern::Incast(4));
    let spec = spec.packets_per_second(1e3).limit(Limit::Packets(8));
    let start = || {
        let egress = Egress::device("va", host.mac(), "10.77.3.7".parse().unwrap()).unwrap();
        Generator::start_on(&egress, &spec).unwrap()
    };
    let running = wire.enter(start).unwrap();
    for frame in 0..8 {
        let mut buffer = [0; 64];
        let (length, from) = socket.recv_from(&mut buffer).unwrap();
        assert_eq!(u64::from(Stamp::parse(&buffer[..length]).unwrap().flow), frame % 4);
        assert_eq!(from.ip().to_string(), format!("10.77.3.{}", 7 + frame % 4));
    }
    assert_eq!(running.wait().unwrap().packets, 8);
}

#[test]
fn devices_that_cannot_send_are_refused_with_the_reason() {
    if !root() {
        return;
    }
    let testbed = Testbed::builder().up().unwrap();
    let refused = |device: &str| {
        let source = testbed.wire().v4().into();
        let open = || Egress::device(device, testbed.host().mac(), source).err().unwrap().to_string();
        testbed.wire().enter(open).unwrap()
    };
    assert!(refused("lo").contains("loopback"), "{}", refused("lo"));
    assert!(refused("nothing").contains("looking for the device nothing"), "{}", refused("nothing"));
    testbed.host().set_offload(Offload::Gro, false).unwrap();
    assert!(refused("va").contains("ndo_xdp_xmit"), "{}", refused("va"));
    testbed.wire().set_up(false).unwrap();
    assert!(refused("va").contains("is down"), "{}", refused("va"));
}

#[test]
fn source_and_target_of_two_families_are_refused() {
    if !root() {
        return;
    }
    let testbed = Testbed::builder().up().unwrap();
    let spec = Spec::to((testbed.host().v6(), 9).into());
    let start = || {
        let egress = Egress::device("va", testbed.host().mac(), testbed.wire().v4().into()).unwrap();
        Generator::start_on(&egress, &spec).err().unwrap().to_string()
    };
    assert!(testbed.wire().enter(start).unwrap().contains("two families"));
}
