//! Any segments in any order through GRO.
#![no_main]

#[path = "../src/gro.rs"]
mod gro;

libfuzzer_sys::fuzz_target!(|operations: &[u8]| {
    let _ = gro::check(operations);
});
