//! The thread that runs an XDP program on live frames until it is told to stop.

use crate::{
    error::{During, Error, Result},
    generator::readable,
    netns::Netns,
    sys,
};
use aya::{
    Ebpf,
    programs::{ProgramError, TestRun, TestRunAttrs, TestRunOptions, Xdp},
};
use nix::poll::PollTimeout;
use std::{
    io::{PipeReader, PipeWriter, pipe},
    os::fd::{AsFd, BorrowedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

/// What to run and where.
pub(crate) struct Live {
    /// None: that of the calling thread.
    pub(crate) netns: Option<Netns>,
    pub(crate) cpu: usize,
    pub(crate) favoured: bool,
    pub(crate) bpf: Ebpf,
    pub(crate) program: &'static str,
    pub(crate) frame: Vec<u8>,
    pub(crate) batch: u32,
}

/// A thread that runs it. It gives the BPF object, and all that is attached with it, back at its end.
pub(crate) struct LiveThread {
    ended: PipeReader,
    stopping: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<Ebpf>>>,
}

impl Live {
    pub(crate) fn start(self) -> Result<LiveThread> {
        let (ended, alive) = pipe().during(|| "making a pipe".into())?;
        let stopping = Arc::new(AtomicBool::new(false));
        sys::allow_interrupts();
        let told = Arc::clone(&stopping);
        let thread = thread::Builder::new().name("wire".into()).spawn(move || self.run(&told, alive));
        let thread = thread.during(|| "starting the wire's thread".into())?;
        Ok(LiveThread { ended, stopping, thread: Some(thread) })
    }

    /// `_alive` is closed when the thread ends, which wakes whoever waits.
    fn run(self, stopping: &AtomicBool, _alive: PipeWriter) -> Result<Ebpf> {
        if let Some(netns) = &self.netns {
            netns.join()?;
        }
        sys::pin_thread(self.cpu)?;
        if self.favoured {
            sys::prefer_thread(0, sys::Precedence::Favoured)?;
        }
        let program: &Xdp = self
            .bpf
            .program(self.program)
            .and_then(|program| program.try_into().ok())
            .ok_or_else(|| Error::Spec(format!("the BPF object holds no program `{}`", self.program)))?;
        while !stopping.load(Ordering::Relaxed) {
            let mut options = TestRunOptions::new();
            options.data_in = Some(&self.frame);
            options.repeat = REPEAT;
            options.attrs = TestRunAttrs::new().xdp_live_frames(self.batch);
            match program.test_run(options) {
                Err(ProgramError::SyscallError(error))
                    if error.io_error.raw_os_error() == Some(libc::EINTR) => {}
                Err(error) => return Err(Error::bpf("sending (BPF_PROG_TEST_RUN)", &error)),
                Ok(_) => {}
            }
        }
        Ok(self.bpf)
    }
}

impl LiveThread {
    /// Readable when the thread has ended.
    pub(crate) fn ended(&self) -> BorrowedFd<'_> {
        self.ended.as_fd()
    }

    /// Ends the thread; None when it was ended before.
    pub(crate) fn end(&mut self) -> Result<Option<Ebpf>> {
        let Some(thread) = self.thread.take() else { return Ok(None) };
        self.stopping.store(true, Ordering::Relaxed);
        // A signal that comes just before the thread enters the kernel is lost: repeat it.
        while {
            sys::interrupt(&thread);
            readable(&[self.ended.as_fd()], PollTimeout::from(2u8))? == 0
        } {}
        match thread.join() {
            Ok(result) => result.map(Some),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}

impl Drop for LiveThread {
    fn drop(&mut self) {
        let _ = self.end();
    }
}

/// The most bytes that a live frame has: a page, less struct xdp_page_head, headroom and struct skb_shared_info.
pub(crate) const LONGEST_FRAME: usize = 3408;

/// A limit in time as the programs take it: to them, 0 is no limit.
pub(crate) fn limit_ns(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX).max(1)
}

const REPEAT: u32 = 1 << 31; // the kernel counts iterations in 32 bits
