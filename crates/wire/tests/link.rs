//! Real traffic over an emulated link. Needs root; says so and skips without.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use hoist_wire::{Direction, Fates, Generator, Impairment, Limit, Link, LinkCounts, Spec, Stamp, Testbed};
use nix::sys::socket::{setsockopt, sockopt::RcvBufForce};
use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

fn root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("skipped: an emulated link needs root");
    }
    root
}

fn bad(seed: u64) -> Impairment {
    Impairment {
        loss: 0.02,
        delay: Duration::from_micros(300),
        jitter: Duration::from_micros(100),
        reorder: 0.02,
        corrupt: 0.01,
        duplicate: 0.03,
        seed,
    }
}

fn socket(testbed: &Testbed, address: IpAddr) -> UdpSocket {
    let socket = testbed.host().enter(|| UdpSocket::bind((address, 0))).unwrap().unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    // Room for all of a test's datagrams: a receiver that the machine runs late loses nothing.
    setsockopt(&socket, RcvBufForce, &(64 << 20)).unwrap();
    socket
}

/// All that arrive before a last datagram that no link delays any more.
fn drain(testbed: &Testbed, socket: &UdpSocket) -> Vec<u64> {
    let last = testbed.wire().enter(|| UdpSocket::bind((testbed.wire().v4(), 0))).unwrap().unwrap();
    last.send_to(b"last", socket.local_addr().unwrap()).unwrap();
    let mut buffer = [0; 4096];
    let mut all = Vec::new();
    loop {
        let length = socket.recv(&mut buffer).unwrap();
        match Stamp::parse(&buffer[..length]) {
            Some(stamp) => all.push(stamp.seq),
            None => return all,
        }
    }
}

/// Sends `packets` generated datagrams over a link; their numbers as they arrive, and what the link says.
fn over(testbed: &Testbed, impairment: &Impairment, packets: u64) -> (Vec<u64>, LinkCounts) {
    let socket = socket(testbed, testbed.host().v4().into());
    let link = Link::start(testbed, Direction::ToHost, impairment).unwrap();
    let spec = Spec::to(socket.local_addr().unwrap()).payload_len(200).packets_per_second(20e3);
    let running = Generator::start_over(&link, testbed, &spec.limit(Limit::Packets(packets))).unwrap();
    assert_eq!(running.wait().unwrap().packets, packets);
    let counts = link.stop().unwrap();
    assert_eq!((counts.seen, counts.overrun), (packets, 0));
    (drain(testbed, &socket), counts)
}

#[test]
fn what_arrives_is_what_the_link_says_it_let_by() {
    if !root() {
        return;
    }
    let testbed = Testbed::builder().up().unwrap();
    let (all, counts) = over(&testbed, &bad(1), 5000);
    assert!(counts.lost > 0 && counts.duplicated > 0 && counts.corrupted > 0 && counts.held_back > 0);
    assert_eq!(all.len() as u64, counts.seen - counts.lost + counts.duplicated - counts.corrupted);
    assert_eq!(counts.passed, counts.seen - counts.lost + counts.duplicated);
}

/// The pure core says which; the link did it.
#[test]
fn what_is_lost_and_what_comes_twice_is_what_the_seed_says() {
    if !root() {
        return;
    }
    let testbed = Testbed::builder().up().unwrap();
    for seed in [7, 8] {
        let (all, _) = over(&testbed, &bad(seed), 3000);
        let mut arrived: BTreeMap<u64, u32> = (0..3000).map(|seq| (seq, 0)).collect();
        all.iter().for_each(|seq| *arrived.get_mut(seq).unwrap() += 1);
        let mut fates = Fates::new(bad(seed));
        let expected: BTreeMap<u64, u32> = (0..3000)
            .map(|seq| {
                let fate = fates.fate();
                let copies = u32::from(!fate.lost) + u32::from(fate.duplicated);
                (seq, copies - u32::from(fate.corrupted.is_some()))
            })
            .collect();
        assert_eq!(arrived, expected, "seed {seed}");
    }
}

#[test]
fn three_packets_pass_each_one_that_is_held_back_and_jitter_reorders_nothing() {
    if !root() {
        return;
    }
    let testbed = Testbed::builder().up().unwrap();
    let jitter = Duration::from_micros(500);
    let (all, _) = over(&testbed, &Impairment { delay: jitter, jitter, ..Impairment::default() }, 1000);
    assert!(all.iter().copied().eq(0..1000));

    let (all, counts) = over(&testbed, &Impairment { reorder: 0.01, seed: 5, ..Impairment::default() }, 1000);
    let mut fates = Fates::new(Impairment { reorder: 0.01, seed: 5, ..Impairment::default() });
    let held: Vec<u64> = (0..1000).filter(|_| fates.fate().held_back).collect();
    assert_eq!(held.len() as u64, counts.held_back);
    let passed = |seq: &&u64| {
        let at = all.iter().position(|other| other == *seq).unwrap();
        all[at.saturating_sub(3)..at].iter().all(|other| other > *seq)
    };
    // But for those that wait for others longer than a held one does: the machine may run the generator late.
    assert!(held.len() > 5 && held.iter().filter(passed).count() > held.len() / 2, "{held:?} {all:?}");
}

#[test]
fn every_packet_takes_the_delay_that_was_asked_for() {
    if !root() {
        return;
    }
    let testbed = Testbed::builder().up().unwrap();
    let delay = Duration::from_millis(30);
    let socket = socket(&testbed, testbed.host().v6().into());
    let _link =
        Link::start(&testbed, Direction::ToHost, &Impairment { delay, ..Impairment::default() }).unwrap();
    let peer = testbed.wire().enter(|| UdpSocket::bind((testbed.wire().v6(), 0))).unwrap().unwrap();
    for _ in 0..3 {
        let sent = Instant::now();
        peer.send_to(b"late", socket.local_addr().unwrap()).unwrap();
        socket.recv(&mut [0; 8]).unwrap();
        assert!(sent.elapsed() >= delay, "{:?}", sent.elapsed());
    }
}

/// Data one way, acknowledgements the other, both over a bad link.
#[test]
fn a_transfer_of_kernel_tcp_arrives_whole() {
    if !root() {
        return;
    }
    let testbed = Testbed::builder().up().unwrap();
    let listener = testbed.host().enter(|| TcpListener::bind((testbed.host().v4(), 0))).unwrap().unwrap();
    let address = listener.local_addr().unwrap();
    let links = [(Direction::ToHost, 1), (Direction::ToWire, 2)]
        .map(|(direction, seed)| Link::start(&testbed, direction, &bad(seed)).unwrap());
    let data: Vec<u8> = (0u32..1 << 19).flat_map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    let mut arrived = Vec::new();
    thread::scope(|scope| {
        scope.spawn(|| send(&testbed, address, &data));
        listener.accept().unwrap().0.read_to_end(&mut arrived).unwrap();
    });
    assert!(arrived == data, "{} of {} bytes, or others", arrived.len(), data.len());
    for link in links {
        let counts = link.stop().unwrap();
        assert!(counts.lost > 0 && counts.corrupted > 0 && counts.duplicated > 0, "{counts:?}");
    }
}

fn send(testbed: &Testbed, address: SocketAddr, data: &[u8]) {
    let mut stream = testbed.wire().enter(|| TcpStream::connect(address)).unwrap().unwrap();
    stream.write_all(data).unwrap();
}

#[test]
fn nothing_is_left_when_it_ends() {
    if !root() {
        return;
    }
    let testbed = Testbed::builder().up().unwrap();
    drop(Link::start(&testbed, Direction::ToHost, &Impairment { loss: 1.0, ..bad(1) }).unwrap());
    assert_untouched(&testbed);

    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "link_to_be_killed", "--nocapture"])
        .env("HOIST_TEST_LINK", testbed.name())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("link is on")));
    child.kill().unwrap();
    child.wait().unwrap();
    assert_untouched(&testbed);
}

/// Not a test of its own: the process that the one above kills.
#[test]
fn link_to_be_killed() {
    let Ok(name) = std::env::var("HOIST_TEST_LINK") else { return };
    let testbed = Testbed::open(&name).unwrap();
    let _link = Link::start(&testbed, Direction::ToHost, &Impairment { loss: 1.0, ..bad(1) }).unwrap();
    println!("link is on");
    loop {
        thread::park();
    }
}

fn assert_untouched(testbed: &Testbed) {
    let devices =
        testbed.wire().enter(|| std::fs::read_to_string("/proc/thread-self/net/dev")).unwrap().unwrap();
    assert!(!devices.contains("link"), "{devices}");
    let socket = socket(testbed, testbed.host().v4().into());
    assert!(drain(testbed, &socket).is_empty());
}

#[test]
fn what_is_no_probability_is_refused() {
    if !root() {
        return;
    }
    let testbed = Testbed::builder().up().unwrap();
    let refused = Link::start(&testbed, Direction::ToHost, &Impairment { corrupt: 2.0, ..bad(1) });
    assert!(refused.err().unwrap().to_string().contains("corrupt is a probability"));
}
