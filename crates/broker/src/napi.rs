//! Polls of NAPI instances, counted by the tracepoint napi:napi_poll.

use crate::{
    error::{Error, bpf},
    loaders::bare,
    object::missing,
};
use aya::{Ebpf, maps::PerCpuArray, programs::RawTracePoint};

/// Of one CPU, since it was attached. `struct napi_polls` in bpf/napi.bpf.c.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Polls {
    /// Polls.
    pub polls: u64,
    /// Packets that drivers took.
    pub work: u64,
    /// Polls that used up their budget (64 packets): more was waiting.
    pub full: u64,
}

// SAFETY: plain integers without padding.
#[expect(unsafe_code, reason = "aya asks for it")]
unsafe impl aya::Pod for Polls {}

/// The program, attached for as long as it lives.
pub struct Napi(Ebpf);

impl Napi {
    /// # Errors
    /// No CAP_BPF and CAP_PERFMON; bpf(2)'s.
    pub fn watch() -> Result<Self, Error> {
        const WHAT: &str = "count NAPI polls (tracepoint napi:napi_poll)";
        let object = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/napi.bpf.o"));
        let mut ebpf = bare().load(object).map_err(|e| bpf(WHAT, &e))?;
        let program = ebpf.program_mut("polled").ok_or_else(|| missing("napi", "polled"))?;
        let program: &mut RawTracePoint = program.try_into().map_err(|e| bpf(WHAT, &e))?;
        program.load().map_err(|e| bpf(WHAT, &e))?;
        program.attach("napi_poll").map_err(|e| bpf(WHAT, &e))?;
        Ok(Self(ebpf))
    }

    /// By number of the CPU.
    ///
    /// # Errors
    /// bpf(2)'s.
    pub fn counts(&self) -> Result<Vec<Polls>, Error> {
        let map = self.0.map("counts").ok_or_else(|| missing("napi", "counts"))?;
        let map = PerCpuArray::<_, Polls>::try_from(map).map_err(|e| bpf("read NAPI polls", &e))?;
        Ok(map.get(&0, 0).map_err(|e| bpf("read NAPI polls", &e))?.to_vec())
    }
}
