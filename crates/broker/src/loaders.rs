//! Loaders of BPF programs, made ahead of need.
//!
//! A new `EbpfLoader` reads all of the kernel's types (30 ms, /sys/kernel/btf/vmlinux) whether or not a program relocates by
//! them; none does that is loaded on demand. The first socket that is lifted must not wait for that.

use aya::EbpfLoader;
use std::{
    sync::{
        Mutex, PoisonError,
        mpsc::{Receiver, channel},
    },
    thread,
};

/// `steer` and `ride_in` of the first device.
const SPARE: usize = 2;

static SPARES: Mutex<Option<Receiver<EbpfLoader<'static>>>> = Mutex::new(None);

/// One that knows no types of the kernel. The first call has spare ones made.
pub(crate) fn loader<'a>() -> EbpfLoader<'a> {
    let mut spares = SPARES.lock().unwrap_or_else(PoisonError::into_inner);
    match &*spares {
        Some(made) => made.recv().unwrap_or_else(|_| bare()), // an error: all are used
        None => {
            *spares = Some(start());
            bare()
        }
    }
}

/// One that knows no types of the kernel, made now.
pub(crate) fn bare<'a>() -> EbpfLoader<'a> {
    let mut loader = EbpfLoader::new();
    loader.btf(None);
    loader
}

fn start() -> Receiver<EbpfLoader<'static>> {
    let (sender, receiver) = channel();
    thread::spawn(move || (0..SPARE).all(|_| sender.send(bare()).is_ok()));
    receiver
}
