//! The DNS wire against a server of a few lines. Needs root; says so and skips without.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use hoist_wire::{Queries, Testbed};
use std::{
    net::UdpSocket,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

const PORT: u16 = 5353;

/// Answers until told to stop; every tenth answer is made wrong by `spoil`.
fn serve(socket: &UdpSocket, stop: &AtomicBool, spoil: impl Fn(&mut Vec<u8>)) -> u64 {
    let (mut buffer, mut answered) = ([0; 512], 0);
    while !stop.load(Ordering::Relaxed) {
        let Ok((length, from)) = socket.recv_from(&mut buffer) else { continue };
        let mut answer = answer(&buffer[..length]);
        if answered % 10 == 9 {
            spoil(&mut answer);
        }
        socket.send_to(&answer, from).unwrap();
        answered += 1;
    }
    answered
}

fn answer(query: &[u8]) -> Vec<u8> {
    let mut answer = query.to_vec();
    let number = (query[18] - b'0') * 10 + query[19] - b'0';
    answer[2] |= 0x80;
    answer[7] = 1;
    answer.extend([0xc0, 0x0c, 0, 1, 0, 1, 0, 0, 1, 44, 0, 4, 192, 0, 2, number]);
    answer
}

fn asked(spoil: impl Fn(&mut Vec<u8>) + Send) -> (hoist_wire::Answers, u64) {
    let testbed = Testbed::builder().up().unwrap();
    let address = (testbed.host().v4(), PORT);
    let socket = testbed.host().enter(|| UdpSocket::bind(address)).unwrap().unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    let stop = AtomicBool::new(false);
    let time = Duration::from_millis(300);
    let queries = Queries { port: PORT, per_second: 2000.0, time, flows: 50, cpu: 0 };
    thread::scope(|scope| {
        let server = scope.spawn(|| serve(&socket, &stop, spoil));
        let answers = queries.run(&testbed);
        stop.store(true, Ordering::Relaxed);
        (answers.unwrap(), server.join().unwrap())
    })
}

fn root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("skipped: the DNS wire needs root");
    }
    root
}

#[test]
fn every_right_answer_is_counted_as_right() {
    if root() {
        let (answers, answered) = asked(|_| {});
        assert!(answered > 100, "{answered} were answered: {answers:?}");
        assert_eq!((answers.right + answers.late, answers.wrong), (answered, 0), "{answers:?}");
        assert!(answers.sent >= answered && answers.sent <= 601, "{answers:?}");
        assert!(answers.seconds > 0.2, "{answers:?}");
        eprintln!("{answers:?}");
    }
}

#[test]
fn answers_with_another_address_or_an_error_are_wrong() {
    if root() {
        let spoils: [fn(&mut Vec<u8>); 4] = [
            |answer| *answer.last_mut().unwrap() ^= 1,
            |answer| answer[3] |= 2,
            |answer| answer[7] = 0,
            |answer| answer[2] = 0,
        ];
        for spoil in spoils {
            let (answers, answered) = asked(spoil);
            assert!(answered > 100, "{answered} were answered: {answers:?}");
            assert_eq!(
                (answers.right + answers.late, answers.wrong),
                (answered - answered / 10, answered / 10)
            );
        }
    }
}
