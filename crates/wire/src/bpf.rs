//! Programs and maps of a BPF object, by name.

use crate::error::{Error, Result};
use aya::{Ebpf, maps::Map, programs::Program};

pub(crate) fn program<'a, P>(bpf: &'a mut Ebpf, name: &str) -> Result<&'a mut P>
where
    &'a mut P: TryFrom<&'a mut Program>,
{
    let found = bpf.program_mut(name).and_then(|program| program.try_into().ok());
    found.ok_or_else(|| Error::Spec(format!("the BPF object holds no program `{name}`")))
}

pub(crate) fn take<M, E: std::error::Error + 'static>(
    bpf: &mut Ebpf,
    name: &str,
    convert: impl FnOnce(Map) -> std::result::Result<M, E>,
) -> Result<M> {
    let map =
        bpf.take_map(name).ok_or_else(|| Error::Spec(format!("the BPF object holds no map `{name}`")))?;
    convert(map).map_err(|error| Error::bpf("taking a map of the wire", &error))
}
