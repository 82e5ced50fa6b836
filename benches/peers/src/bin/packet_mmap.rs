//! `peer-packet-mmap`: a sink on AF_PACKET's mapped ring (TPACKET_V3), what libpcap receives with.
//!
//! `peer-packet-mmap DEVICE PORT [--seconds N] [--idle-ms N] [--block-kib N] [--blocks N] [--retire-ms N]`. Payloads are read in
//! place; the kernel's stack is shut for PORT.

#![deny(unsafe_code)]

#[path = "../../../../crates/wire/src/tally.rs"]
#[allow(dead_code, reason = "no peer looks at delays")]
mod tally;

use hoist_peers::{
    options::Options,
    shut::Shut,
    stop,
    tap::{self, Protocol},
};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};
use ring::Ring;
use std::{env, error::Error, os::fd::AsFd, process::ExitCode, time::Instant};
use tally::{Tally, say};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("peer-packet-mmap: {why}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let options = Options::parse(env::args().skip(1), &["--block-kib", "--blocks", "--retire-ms"])?;
    stop::on_sigterm();
    let socket = tap::open().map_err(|e| format!("opening a packet socket: {e}: needs CAP_NET_RAW"))?;
    tap::narrow(&socket, Protocol::Udp, options.port)?;
    let own = |name, default| options.own(name).unwrap_or(default);
    let shape = ring::Shape {
        block_len: own("--block-kib", 64) << 10,
        blocks: own("--blocks", 128),
        retire_ms: own("--retire-ms", 1),
    };
    let mut ring = Ring::map(socket, shape).map_err(|e| format!("mapping the ring (TPACKET_V3): {e}"))?;
    let _shut = Shut::to(&options.device, Protocol::Udp, options.port)
        .map_err(|e| format!("shutting the stack for the port (tcx, bpf): {e}: needs root and Linux 6.6"))?;
    tap::bind(&ring.as_fd().as_fd(), &options.device)?;
    say("ready")?;
    Ok(say(&receive(&mut ring, &options)?.json())?)
}

fn receive(ring: &mut Ring, options: &Options) -> nix::Result<Tally> {
    let (mut tally, start) = (Tally::default(), Instant::now());
    while !stop::asked() && start.elapsed().as_secs_f64() < options.seconds {
        let took = ring.take(|frame| tally.count(frame.get(tap::UDP_HEADERS..).unwrap_or_default()));
        if !took && !sleep(ring, options)? && tally.packets > 0 {
            break;
        }
    }
    tally.end();
    Ok(tally)
}

/// Waits for a block; false when none has come for the idle time.
fn sleep(ring: &Ring, options: &Options) -> nix::Result<bool> {
    let mut fds = [PollFd::new(ring.as_fd(), PollFlags::POLLIN)];
    let idle = PollTimeout::try_from(options.idle).unwrap_or(PollTimeout::MAX);
    match poll(&mut fds, idle) {
        Err(Errno::EINTR) => Ok(true),
        other => Ok(other? > 0),
    }
}

/// The ring: blocks that the kernel fills with frames and hands over whole (Documentation/networking/packet_mmap.rst).
#[allow(unsafe_code)]
mod ring {
    use super::tap;
    use std::{
        io, mem,
        os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        ptr, slice,
        sync::atomic::{AtomicU32, Ordering},
    };

    pub(crate) struct Shape {
        pub(crate) block_len: u32,
        pub(crate) blocks: u32,
        /// A block that is not full is handed over after so long.
        pub(crate) retire_ms: u32,
    }

    pub(crate) struct Ring {
        socket: OwnedFd,
        memory: *mut u8,
        shape: Shape,
        next: u32,
    }

    impl Ring {
        pub(crate) fn map(socket: OwnedFd, shape: Shape) -> io::Result<Self> {
            tap::set(
                &socket,
                libc::SOL_PACKET,
                libc::PACKET_VERSION,
                &(libc::tpacket_versions::TPACKET_V3 as i32),
            )?;
            tap::set(&socket, libc::SOL_PACKET, libc::PACKET_RX_RING, &request(&shape))?;
            let (length, fd) = (shape.length(), socket.as_raw_fd());
            let protection = libc::PROT_READ | libc::PROT_WRITE;
            let flags = libc::MAP_SHARED | libc::MAP_POPULATE;
            // SAFETY: maps anew, where the kernel likes.
            let memory = unsafe { libc::mmap(ptr::null_mut(), length, protection, flags, fd, 0) };
            if memory == libc::MAP_FAILED {
                return Err(io::Error::last_os_error());
            }
            Ok(Self { socket, memory: memory.cast(), shape, next: 0 })
        }

        /// Shows every frame of the next block and gives the block back; false when the kernel still has it.
        pub(crate) fn take(&mut self, mut show: impl FnMut(&[u8])) -> bool {
            let start = (self.next * self.shape.block_len) as usize;
            // SAFETY: `start` is a whole number of blocks below their count, so the block lies in the mapping, which lives as
            // long as `self`; the kernel aligns blocks to pages.
            let (block, status) = unsafe {
                let block = self.memory.add(start);
                let header = block.cast::<libc::tpacket_block_desc>();
                (block, AtomicU32::from_ptr(&raw mut (*header).hdr.bh1.block_status))
            };
            if status.load(Ordering::Acquire) & libc::TP_STATUS_USER == 0 {
                return false;
            }
            // SAFETY: the kernel has handed the block over and leaves it alone until the status says otherwise.
            let block = unsafe { slice::from_raw_parts(block, self.shape.block_len as usize) };
            frames(block).for_each(&mut show);
            status.store(libc::TP_STATUS_KERNEL, Ordering::Release);
            self.next = (self.next + 1) % self.shape.blocks;
            true
        }
    }

    impl AsFd for Ring {
        fn as_fd(&self) -> BorrowedFd<'_> {
            self.socket.as_fd()
        }
    }

    impl Drop for Ring {
        fn drop(&mut self) {
            // SAFETY: the mapping is this ring's own, and no frame outlives the closure that it was shown to.
            unsafe { libc::munmap(self.memory.cast(), self.shape.length()) };
        }
    }

    impl Shape {
        fn length(&self) -> usize {
            self.block_len as usize * self.blocks as usize
        }
    }

    fn request(shape: &Shape) -> libc::tpacket_req3 {
        libc::tpacket_req3 {
            tp_block_size: shape.block_len,
            tp_block_nr: shape.blocks,
            tp_frame_size: FRAME_LEN,
            tp_frame_nr: shape.block_len / FRAME_LEN * shape.blocks,
            tp_retire_blk_tov: shape.retire_ms,
            tp_sizeof_priv: 0,
            tp_feature_req_word: 0,
        }
    }

    const FRAME_LEN: u32 = 2048; // in V3 only the unit of tp_frame_nr: frames take what they need

    /// The frames of a block, with their Ethernet headers.
    fn frames(block: &[u8]) -> impl Iterator<Item = &[u8]> {
        let count = word(block, BLOCK_FRAMES).unwrap_or(0);
        let mut at = word(block, BLOCK_FIRST).unwrap_or(0) as usize;
        (0..count).map_while(move |_| {
            let header = block.get(at..)?;
            let start = mem::offset_of!(libc::tpacket3_hdr, tp_mac);
            let start = u16::from_ne_bytes(header.get(start..start + 2)?.try_into().ok()?) as usize;
            let length = word(header, mem::offset_of!(libc::tpacket3_hdr, tp_snaplen))? as usize;
            at += word(header, mem::offset_of!(libc::tpacket3_hdr, tp_next_offset))? as usize;
            header.get(start..start + length)
        })
    }

    const BLOCK: usize = mem::offset_of!(libc::tpacket_block_desc, hdr);
    const BLOCK_FRAMES: usize = BLOCK + mem::offset_of!(libc::tpacket_hdr_v1, num_pkts);
    const BLOCK_FIRST: usize = BLOCK + mem::offset_of!(libc::tpacket_hdr_v1, offset_to_first_pkt);

    fn word(bytes: &[u8], at: usize) -> Option<u32> {
        Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        /// A block as the kernel lays it out: frames one after another, each behind its header.
        fn block(frames: &[&[u8]]) -> Vec<u8> {
            let mut block = vec![0; 48 + 256 * frames.len()];
            let mut put = |at: usize, value: u32| block[at..at + 4].copy_from_slice(&value.to_ne_bytes());
            put(BLOCK_FRAMES, frames.len() as u32);
            put(BLOCK_FIRST, 48);
            for (i, frame) in frames.iter().enumerate() {
                let at = 48 + 256 * i;
                put(at + mem::offset_of!(libc::tpacket3_hdr, tp_next_offset), 256);
                put(at + mem::offset_of!(libc::tpacket3_hdr, tp_snaplen), frame.len() as u32);
                put(at + mem::offset_of!(libc::tpacket3_hdr, tp_mac), 82);
            }
            for (i, frame) in frames.iter().enumerate() {
                block[48 + 256 * i + 82..][..frame.len()].copy_from_slice(frame);
            }
            block
        }

        #[test]
        fn frames_come_in_their_order() {
            let block = block(&[b"one", b"two", b"three"]);
            assert_eq!(frames(&block).collect::<Vec<_>>(), [&b"one"[..], b"two", b"three"]);
        }

        #[test]
        fn a_block_that_lies_about_its_frames_ends_early() {
            let mut block = block(&[b"one", b"two"]);
            let end = block.len() as u32;
            let next = 48 + mem::offset_of!(libc::tpacket3_hdr, tp_next_offset);
            block[next..next + 4].copy_from_slice(&end.to_ne_bytes());
            assert_eq!(frames(&block).collect::<Vec<_>>(), [b"one"]);
        }
    }
}
