//! Any bytes as a message between broker and shim.
#![no_main]

#[path = "../src/ipc_decode.rs"]
mod ipc_decode;

libfuzzer_sys::fuzz_target!(|message: &[u8]| {
    let _ = ipc_decode::check(message);
});
