//! Cases of the dual suite under options of `hoist run`, and on other devices than the usual one.

use anyhow::Result;
use hoist_tests::{
    cases::{
        Case,
        Expect::{self, Lifted, Mixed, Passed},
        find,
    },
    lab::{Lab, Mode, bin, may_run},
};
use hoist_wire::{Offload, Testbed};
use std::{fs, os::unix::fs::PermissionsExt};

const WAKING: [&str; 4] = [
    "recv::a_blocked_recv_wakes_up",
    "poll::wakes_up",
    "epoll::wakes_up",
    "threads::two_readers_share_a_socket",
];
const ORDER: [&str; 1] = ["recv::order_is_kept"];

/// Runs cases, each in a lab of its own.
fn run(mode: Mode, cases: &[&str], expect: Expect, up: impl Fn() -> Result<Lab>) {
    for name in cases.iter().filter(|_| may_run()) {
        let case = Case { expect, ..*find(name).expect("a case of this name") };
        up().and_then(|lab| lab.run_case(mode, &case)).unwrap_or_else(|error| panic!("{name}: {error:#}"));
    }
}

fn with(options: &[&str]) -> impl Fn() -> Result<Lab> {
    move || {
        let mut lab = Lab::up()?;
        lab.options = options.iter().map(Into::into).collect();
        Ok(lab)
    }
}

/// All but the first datagram of a socket is lifted, also when threads spin.
#[test]
fn spinning_lifts_from_the_second_datagram_on() {
    run(Mode::Hoisted, &ORDER, Mixed, with(&["--spin-us", "50"]));
}

#[test]
fn copy_mode_on_the_named_device() {
    run(Mode::Hoisted, &ORDER, Lifted, with(&["--mode", "copy", "--dev", "vb", "--require"]));
}

#[test]
fn a_flow_is_admitted_after_the_kernel_delivered_one() {
    run(Mode::Hoisted, &ORDER, Mixed, with(&["--admit", "flow"]));
}

#[test]
fn ports_that_are_named_are_lifted() {
    run(Mode::Hoisted, &ORDER, Lifted, with(&["--udp", "9,20000-20010"]));
}

#[test]
fn ports_that_are_not_named_pass() {
    run(Mode::Hoisted, &ORDER, Passed("not-selected"), with(&["--udp", "9"]));
}

#[test]
fn nothing_is_lifted_when_it_is_off() {
    for name in ORDER.iter().filter(|_| may_run()) {
        let lab = with(&["--udp", "off"])().unwrap();
        let mut running = lab
            .program(Mode::Hoisted, &[bin("dual").unwrap().as_os_str(), name.as_ref()])
            .unwrap()
            .start()
            .unwrap();
        running.succeed(hoist_tests::lab::LIMIT).unwrap();
        assert_eq!(running.report().unwrap().packets().0, 0);
    }
}

/// The program has no privilege at all; the copy is one that everybody may execute.
#[test]
fn an_unprivileged_user_is_lifted() {
    if may_run() {
        let lab = with(&["--user", "65534"])().unwrap();
        let program = lab.path("dual");
        fs::copy(bin("dual").unwrap(), &program).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let argv = [program.as_os_str(), "recv::order_is_kept".as_ref()];
        let mut running = lab.program(Mode::Hoisted, &argv).unwrap().start().unwrap();
        running.succeed(hoist_tests::lab::LIMIT).unwrap_or_else(|error| panic!("{error:#}"));
        running.report().unwrap().judge(Lifted).unwrap();
    }
}

/// As between containers: a peer on the same machine leaves its checksums to a device that has none.
fn offloaded() -> Result<Lab> {
    let testbed = Testbed::builder().queues(2).up()?;
    testbed.wire().set_offload(Offload::TxChecksum, true)?;
    Lab::on(testbed)
}

const CHECKSUMS: [&str; 5] = [
    "recv::every_size_arrives_whole",
    "ipv6::recvfrom_tells_the_sender",
    "frames::a_bad_checksum_is_dropped",
    "frames::no_checksum_is_dropped_on_ipv6",
    "multicast::both_members_get_a_copy",
];

#[test]
fn unfilled_checksums_native() {
    run(Mode::Native, &CHECKSUMS, Lifted, offloaded);
}

#[test]
fn unfilled_checksums_hoisted() {
    run(Mode::Hoisted, &CHECKSUMS, Lifted, offloaded);
}

/// A sender's segments cross this device whole.
fn segmenting() -> Result<Lab> {
    let testbed = Testbed::builder().queues(2).up()?;
    for offload in [Offload::TxChecksum, Offload::Gso] {
        testbed.wire().set_offload(offload, true)?;
    }
    Lab::on(testbed)
}

const SEGMENTS: [&str; 1] = ["merge::segments_stay_together"];

#[test]
fn segments_native() {
    run(Mode::Native, &SEGMENTS, Lifted, segmenting);
}

#[test]
fn segments_hoisted() {
    run(Mode::Hoisted, &SEGMENTS, Lifted, segmenting);
}

#[test]
fn datagrams_that_wait_are_read_as_one() {
    run(Mode::Hoisted, &["merge::what_waits_is_one", "merge::only_what_fits"], Lifted, Lab::up);
}

#[test]
fn one_queue() {
    let up = || Lab::on(Testbed::builder().queues(1).up()?);
    run(Mode::Hoisted, &WAKING, Lifted, up);
}

#[test]
fn eight_queues() {
    let up = || Lab::on(Testbed::builder().queues(8).up()?);
    let cases = ["sharing::reuseport_keeps_a_flow_on_one_socket", "threads::eight_threads_eight_sockets"];
    run(Mode::Hoisted, &cases, Lifted, up);
}

/// Datagrams up to the MTU come whole; whether they fit a chunk decides only how.
#[test]
fn a_larger_mtu() {
    let up = || Lab::on(Testbed::builder().queues(2).mtu(3_000).up()?);
    run(
        Mode::Hoisted,
        &["frames::the_largest_datagram_arrives", "recv::every_size_arrives_whole"],
        Mixed,
        up,
    );
}
