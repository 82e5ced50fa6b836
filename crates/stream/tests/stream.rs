//! Index and reader against a stream whose bytes are known, under any interleaving.

#[path = "stream/exhaustive.rs"]
mod exhaustive;
#[path = "../../../fuzz/src/stream.rs"]
mod model;

use model::Seen;
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_interleaving_reads_the_stream_as_it_was_sent(operations in prop::collection::vec(any::<u8>(), 0..300)) {
        model::check(&operations);
    }
}

#[test]
fn random_interleavings_meet_every_case() {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut total = Seen::default();
    for _ in 0..3000 {
        let operations: Vec<u8> = (0..300).map(|_| next(&mut state)).collect();
        let seen = model::check(&operations);
        total.kept += seen.kept;
        total.covered += seen.covered;
        total.scattered += seen.scattered;
        total.taken += seen.taken;
        total.chunks += seen.chunks;
        total.overlaid += seen.overlaid;
        total.plain += seen.plain;
        total.peeked += seen.peeked;
        total.failed += seen.failed;
        total.ahead += seen.ahead;
        total.pruned += seen.pruned;
    }
    let Seen { kept, covered, scattered, taken, chunks, overlaid, plain, peeked, failed, ahead, pruned } =
        total;
    for count in [kept, covered, scattered, taken, chunks, overlaid, plain, peeked, failed, ahead, pruned] {
        assert!(count > 1000, "{total:?}");
    }
}

/// xorshift64*.
fn next(state: &mut u64) -> u8 {
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    (state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 56) as u8
}
