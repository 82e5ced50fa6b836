//! Loaders of BPF programs, made ahead of need.
//!
//! A new `EbpfLoader` reads all of the kernel's types (30 ms, /sys/kernel/btf/vmlinux) whether or not a program relocates by
//! them; none here does. A socket that is being lifted must not wait for that.

use aya::EbpfLoader;
use std::{
    sync::{
        Mutex,
        mpsc::{Receiver, sync_channel},
    },
    thread,
};

static SPARE: Mutex<Option<Receiver<EbpfLoader<'static>>>> = Mutex::new(None);

/// One that knows no types of the kernel; another is made meanwhile.
pub(crate) fn loader<'a>() -> EbpfLoader<'a> {
    let mut spare = SPARE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let taken = spare.as_ref().and_then(|receiver| receiver.try_recv().ok());
    spare.get_or_insert_with(start);
    taken.unwrap_or_else(bare)
}

fn bare<'a>() -> EbpfLoader<'a> {
    let mut loader = EbpfLoader::new();
    loader.btf(None);
    loader
}

/// Keeps one in the queue for `steer` and holds the next for `ride_in`.
fn start() -> Receiver<EbpfLoader<'static>> {
    let (sender, receiver) = sync_channel(1);
    thread::spawn(move || while sender.send(bare()).is_ok() {});
    receiver
}
