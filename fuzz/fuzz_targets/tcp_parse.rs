//! Any bytes as a frame of TCP from a ring.
#![no_main]

#[path = "../src/tcp_parse.rs"]
mod tcp_parse;

libfuzzer_sys::fuzz_target!(|frame: &[u8]| {
    let _ = tcp_parse::check(frame);
});
