//! Any bytes as a frame from a ring.
#![no_main]

#[path = "../src/udp_parse.rs"]
mod udp_parse;

libfuzzer_sys::fuzz_target!(|frame: &[u8]| {
    let _ = udp_parse::check(frame);
});
