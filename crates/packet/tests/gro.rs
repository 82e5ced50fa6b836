//! GRO by its rules one by one, and against a model of them over any operations.

#![allow(clippy::unwrap_used)] // helpers of tests: a panic is the failure

#[path = "../../../fuzz/src/gro.rs"]
mod model;
#[path = "gro/rules.rs"]
mod rules;

use hoist_packet::gro::Counts;
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_operations_give_what_the_model_gives_and_segment_again(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        model::check(&bytes);
    }
}

#[test]
fn random_operations_meet_every_reason_to_merge_and_to_flush() {
    let mut total = Counts::default();
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for _ in 0..2000 {
        let bytes: Vec<u8> = (0..300).map(|_| next(&mut state)).collect();
        let Counts { merged, alone, pushed, short, full, gap, differed, longer, overtaken, evicted, asked } =
            model::check(&bytes);
        total.merged += merged;
        total.alone += alone;
        total.pushed += pushed;
        total.short += short;
        total.full += full;
        total.gap += gap;
        total.differed += differed;
        total.longer += longer;
        total.overtaken += overtaken;
        total.evicted += evicted;
        total.asked += asked;
    }
    let Counts { merged, alone, pushed, short, full, gap, differed, longer, overtaken, evicted, asked } =
        total;
    for count in [merged, alone, pushed, short, full, gap, differed, longer, overtaken, evicted, asked] {
        assert!(count > 100, "{total:?}");
    }
}

/// xorshift64*.
fn next(state: &mut u64) -> u8 {
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    (state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 56) as u8
}
