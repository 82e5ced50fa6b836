//! Any segments of peer and stranger through the worker.
#![no_main]

#[path = "../src/worker.rs"]
mod worker;

libfuzzer_sys::fuzz_target!(|operations: &[u8]| {
    let _ = worker::check(operations);
});
