//! The worker, a kernel and a reading program, under any segments of peer and stranger.

#[path = "../../../fuzz/src/worker.rs"]
mod harness;

use harness::Seen;
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_program_reads_what_the_peer_sent_whatever_else_comes(operations in prop::collection::vec(any::<u8>(), 0..300)) {
        harness::check(&operations);
    }
}

#[test]
fn random_operations_meet_every_way_of_a_segment() {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut total = Seen::default();
    for _ in 0..500 {
        let operations: Vec<u8> = (0..300).map(|_| next(&mut state)).collect();
        let seen = harness::check(&operations);
        total.held += seen.held;
        total.real += seen.real;
        total.ghosts += seen.ghosts;
        total.merged += seen.merged;
        total.refused += seen.refused;
        total.lifted += seen.lifted;
        total.passed += seen.passed;
    }
    let Seen { held, real, ghosts, merged, refused, lifted, passed } = total;
    for count in [held, real, ghosts, merged, refused, lifted, passed] {
        assert!(count > 500, "{total:?}");
    }
}

/// A stranger's segment waits to ride, and the peer's own for the same place passes by: the kernel moves on as if it had accepted the
/// stranger's. What it says must not be taken for good.
#[test]
fn a_stranger_is_not_believed_for_what_passed_by() {
    harness::check(&[
        1, 0, 156, 0, 0, 207, 77, 0, 0, 0, 210, 0, 0, 0, 0, 0, 172, 56, 125, 148, 186, 0, 0, 0, 0, 0, 0, 0,
        207, 0, 0, 0, 0, 0, 0, 196, 80, 237, 38, 0, 172, 30, 215, 0,
    ]);
}

#[test]
fn a_repetition_of_what_passed_and_was_read_rides_with_its_bytes() {
    assert!(!harness::repetition_of_what_passed_is_held());
}

/// xorshift64*.
fn next(state: &mut u64) -> u8 {
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    (state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 56) as u8
}
