//! Any segments, reads and failures through stream index and reader.
#![no_main]

#[path = "../src/stream.rs"]
mod stream;

libfuzzer_sys::fuzz_target!(|operations: &[u8]| {
    let _ = stream::check(operations);
});
