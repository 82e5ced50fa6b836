//! Testbeds as they are made, used and removed. Needs root; says so and skips without.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use hoist_wire::{Error, State, Testbed, list, pin_thread, remove};
use std::{
    fs,
    io::{BufRead, BufReader},
    net::{IpAddr, UdpSocket},
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

/// False, with the reason on the terminal, when the test cannot run.
fn root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("skipped: a testbed needs root");
    }
    root
}

/// A datagram from the wire arrives at the host, and its answer comes back.
fn exchange(testbed: &Testbed, wire: IpAddr, host: IpAddr) {
    let server = testbed.host().enter(|| UdpSocket::bind((host, 0))).unwrap().unwrap();
    let client = testbed.wire().enter(|| UdpSocket::bind((wire, 0))).unwrap().unwrap();
    for socket in [&server, &client] {
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    }
    let mut buffer = [0; 64];
    client.send_to(b"over", server.local_addr().unwrap()).unwrap();
    let (length, from) = server.recv_from(&mut buffer).unwrap_or_else(|e| panic!("{wire} to {host}: {e}"));
    assert_eq!((&buffer[..length], from), (&b"over"[..], client.local_addr().unwrap()));
    server.send_to(b"back", from).unwrap();
    let length = client.recv(&mut buffer).unwrap_or_else(|e| panic!("{host} to {wire}: {e}"));
    assert_eq!(&buffer[..length], b"back");
}

fn names_of(testbed: &Testbed) -> [String; 2] {
    [testbed.wire(), testbed.host()].map(|end| format!("/run/netns/{}", end.netns().name()))
}

#[test]
fn datagrams_cross_over_ipv4_and_ipv6_as_soon_as_it_is_up() {
    if !root() {
        return;
    }
    let testbed = Testbed::builder().up().unwrap();
    let (wire, host) = (testbed.wire(), testbed.host());
    exchange(&testbed, wire.v4().into(), host.v4().into());
    exchange(&testbed, wire.v6().into(), host.v6().into());
}

#[test]
fn datagrams_cross_over_a_vlan_or_the_kernel_is_said_to_lack_them() {
    if !root() {
        return;
    }
    let testbed = match Testbed::builder().vlan(100).up() {
        Ok(testbed) => testbed,
        Err(error) => {
            assert!(error.to_string().contains("CONFIG_VLAN_8021Q"), "{error}");
            return eprintln!("skipped: {error}");
        }
    };
    let (wire, host) = (testbed.wire(), testbed.host());
    exchange(&testbed, wire.vlan_v4().into(), host.vlan_v4().into());
    exchange(&testbed, wire.vlan_v6().into(), host.vlan_v6().into());
}

#[test]
fn several_stand_side_by_side_and_each_removes_only_itself() {
    if !root() {
        return;
    }
    let first = Testbed::builder().up().unwrap();
    let second = Testbed::builder().up().unwrap();
    let gone = names_of(&first);
    drop(first);
    assert!(gone.iter().all(|name| !Path::new(name).exists()), "{gone:?}");
    exchange(&second, second.wire().v4().into(), second.host().v4().into());
}

#[test]
fn as_many_queues_as_asked_for() {
    if !root() {
        return;
    }
    let testbed = Testbed::builder().queues(16).mtu(3000).up().unwrap();
    let queues = |end: &hoist_wire::End| {
        let directory = format!("/sys/class/net/{}/queues", end.device());
        end.netns().enter_with_sysfs(|| fs::read_dir(directory).unwrap().count()).unwrap()
    };
    assert_eq!((queues(testbed.wire()), queues(testbed.host())), (32, 32)); // rx-n and tx-n
    assert_eq!(testbed.napis().unwrap().len(), 16);
}

#[test]
fn napi_runs_in_threads_bound_to_the_cpu_asked_for() {
    if !root() {
        return;
    }
    let testbed = Testbed::builder().queues(2).up().unwrap();
    let napis = testbed.threaded_napi(0).unwrap();
    assert_eq!(napis.len(), 2);
    for napi in napis {
        let status = fs::read_to_string(format!("/proc/{}/status", napi.thread.unwrap())).unwrap();
        assert!(status.contains("Cpus_allowed_list:\t0\n"), "{status}");
        assert!(napi.cpu_ns().is_some());
    }
}

#[test]
fn checksums_on_the_wire_are_complete() {
    if !root() {
        return;
    }
    let testbed = Testbed::builder().up().unwrap();
    let tap = testbed.host().enter(packet_socket).unwrap();
    let client = testbed.wire().enter(|| UdpSocket::bind((testbed.wire().v4(), 4001))).unwrap().unwrap();
    client.send_to(b"sum", (testbed.host().v4(), 4002)).unwrap();
    let frame = loop {
        let mut frame = [0; 2048];
        let length = nix::unistd::read(&tap, &mut frame).unwrap();
        if length > 42 && frame[12..14] == [8, 0] && frame[36..38] == 4002u16.to_be_bytes() {
            break frame[..length].to_vec();
        }
    };
    let mut words: Vec<u8> = frame[26..].to_vec(); // addresses, UDP header, payload
    words.extend((words.len() % 2 == 1).then_some(0));
    words.extend([0, 17]);
    words.extend(&frame[38..40]);
    let sum: u32 = words.chunks(2).map(|w| u32::from(u16::from_be_bytes([w[0], w[1]]))).sum();
    assert_eq!((sum & 0xffff) + (sum >> 16), 0xffff);
}

fn packet_socket() -> std::os::fd::OwnedFd {
    use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};
    socket(AddressFamily::Packet, SockType::Raw, SockFlag::empty(), SockProtocol::EthAll).unwrap()
}

#[test]
fn processes_left_inside_end_with_it_and_others_live() {
    if !root() {
        return;
    }
    let testbed = Testbed::builder().up().unwrap();
    let mut inside = testbed.host().command("sleep").arg("600").spawn().unwrap();
    let mut outside = Command::new("sleep").arg("600").spawn().unwrap();
    drop(testbed);
    assert!(!inside.wait().unwrap().success());
    assert!(outside.try_wait().unwrap().is_none());
    outside.kill().unwrap();
    outside.wait().unwrap();
}

#[test]
fn a_kept_one_outlives_sweeps_until_it_is_removed() {
    if !root() {
        return;
    }
    let name = format!("keep-{}", std::process::id());
    Testbed::builder().name(&name).mtu(1400).up().unwrap().keep().unwrap();
    drop(Testbed::builder().up().unwrap());
    let opened = Testbed::open(&name).unwrap();
    assert_eq!(opened.facts().mtu, 1400);
    exchange(&opened, opened.wire().v4().into(), opened.host().v4().into());
    assert!(matches!(Testbed::builder().name(&name).up(), Err(Error::Exists(_))));
    let names = names_of(&opened);
    drop(opened);
    assert!(list().unwrap().iter().any(|listed| listed.name == name && listed.state == State::Kept));
    remove(&name).unwrap();
    assert!(names.iter().all(|name| !Path::new(name).exists()));
    assert!(matches!(remove(&name), Err(Error::Unknown(_))));
}

#[test]
fn one_that_is_in_use_cannot_be_taken_or_removed() {
    if !root() {
        return;
    }
    let testbed = Testbed::builder().up().unwrap();
    assert!(matches!(remove(testbed.name()), Err(Error::InUse(_))));
    assert!(matches!(Testbed::builder().name(testbed.name()).up(), Err(Error::Exists(_))));
}

/// Not a test of its own: the owner that the next test kills.
#[test]
fn owner_to_be_killed() {
    let Ok(name) = std::env::var("HOIST_TESTBED_OWNER") else { return };
    let testbed = Testbed::builder().name(&name).up().unwrap();
    let mut inside = testbed.host().command("sleep").arg("600").spawn().unwrap();
    println!("\nup");
    inside.wait().unwrap(); // it is killed long before
}

#[test]
fn what_a_killed_owner_left_is_swept_by_the_next() {
    if !root() {
        return;
    }
    let name = format!("dead-{}", std::process::id());
    let mut owner = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "owner_to_be_killed", "--nocapture"])
        .env("HOIST_TESTBED_OWNER", &name)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = BufReader::new(owner.stdout.take().unwrap()).lines(); // stays open: the owner goes on printing
    assert!(output.any(|line| line.unwrap() == "up"));
    let left = Testbed::open(&name).unwrap();
    let sleeper = left.host().netns().processes().unwrap();
    assert_eq!(sleeper.len(), 1);
    owner.kill().unwrap();
    owner.wait().unwrap();
    assert_eq!(left.host().netns().processes().unwrap(), sleeper);

    let _next = Testbed::builder().up().unwrap();
    assert!(names_of(&left).iter().all(|name| !Path::new(name).exists()));
    assert!(left.host().netns().processes().unwrap().is_empty());
    assert!(matches!(Testbed::open(&name), Err(Error::Unknown(_))));
    let device = left.host().enter(|| nix::net::if_::if_nametoindex("vb")).unwrap();
    assert!(device.is_err(), "the veth pair outlived the sweep");
}

/// More than a receive queue's ring holds while its NAPI instance waits for the processor: senders wait, and go on.
#[test]
fn no_queue_of_the_wire_stops_for_good() {
    if !root() {
        return;
    }
    let testbed = Testbed::builder().queues(2).up().unwrap();
    for napi in testbed.threaded_napi(0).unwrap() {
        let renice =
            Command::new("renice").args(["-n", "19", "-p", &napi.thread.unwrap().to_string()]).output();
        assert!(renice.unwrap().status.success());
    }
    let sink = testbed.host().enter(|| UdpSocket::bind((testbed.host().v4(), 0))).unwrap().unwrap();
    let target = sink.local_addr().unwrap();
    let send = || {
        pin_thread(0).unwrap();
        let socket = testbed.wire().enter(|| UdpSocket::bind((testbed.wire().v4(), 0))).unwrap().unwrap();
        socket.set_write_timeout(Some(Duration::from_secs(5))).unwrap();
        (0..5_000).try_for_each(|_| socket.send_to(&[0; 1_000], target).map(drop))
    };
    let stopped = std::thread::scope(|scope| {
        let senders: Vec<_> = (0..16).map(|_| scope.spawn(send)).collect();
        senders.into_iter().map(|sender| sender.join().unwrap()).filter(Result::is_err).count()
    });
    let queue = testbed.wire().command("tc").args(["-s", "qdisc", "show", "dev", "va"]).output().unwrap();
    let queue = String::from_utf8_lossy(&queue.stdout).into_owned();
    assert_eq!(stopped, 0, "of 16 senders could not send for 5 s: {queue}");
    assert!(!queue.contains("requeues 0)"), "no ring was ever full: {queue}");
}
