//! What a loaded BPF object holds, by name.

use crate::error::Error;
use aya::{
    Ebpf,
    maps::{Map, MapData},
};
use std::os::fd::{AsFd, BorrowedFd};

/// The descriptor of an array, to be mapped or handed over.
pub(crate) fn array<'a>(ebpf: &'a Ebpf, object: &str, name: &str) -> Result<BorrowedFd<'a>, Error> {
    match ebpf.map(name) {
        Some(Map::Array(map)) => Ok(MapData::fd(map).as_fd()),
        _ => Err(missing(object, name)),
    }
}

/// It holds no map or program of that name.
pub(crate) fn missing(object: &str, name: &str) -> Error {
    Error::Other(format!("{object} has no {name}"))
}
