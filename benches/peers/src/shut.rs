//! Keeps the kernel's stack from what a peer receives at AF_PACKET.
//!
//! Packet taps see a frame before tcx does (__netif_receive_skb_core), so a tcx ingress program that drops what is for the
//! peer's port spares the kernel the rest of its way, and the sender an ICMP error or a RST. Linux 6.6.
#![allow(unsafe_code)]

use crate::tap::Protocol;
use nix::net::if_::if_nametoindex;
use std::{
    io, mem,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

/// The stack receives nothing for the port while this lives.
#[derive(Debug)]
pub struct Shut {
    _link: OwnedFd,
}

impl Shut {
    /// Attaches to `device`, before whatever is there.
    pub fn to(device: &str, protocol: Protocol, port: u16) -> io::Result<Self> {
        let program = load(&program(protocol, port))?;
        Ok(Self { _link: attach(&program, if_nametoindex(device)?)? })
    }
}

/// struct bpf_insn of include/uapi/linux/bpf.h.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct Instruction {
    code: u8,
    registers: u8, // the source in the upper half
    offset: i16,
    immediate: i32,
}

fn program(protocol: Protocol, port: u16) -> [Instruction; 13] {
    let op = |code, registers, offset, immediate| Instruction { code, registers, offset, immediate };
    [
        op(MOVE, 0x16, 0, 0),        // r6 = r1: loads below take the context from r6
        op(LOAD_HALF, 0, 0, 12),     // r0 = EtherType
        op(JUMP_OTHER, 0, 8, 0x800), // to the end
        op(LOAD_BYTE, 0, 0, 14),
        op(JUMP_OTHER, 0, 6, 0x45),
        op(LOAD_BYTE, 0, 0, 23),
        op(JUMP_OTHER, 0, 4, protocol.number().into()),
        op(LOAD_HALF, 0, 0, 36),
        op(JUMP_OTHER, 0, 2, port.into()),
        op(MOVE_IMMEDIATE, 0, 0, TCX_DROP),
        op(EXIT, 0, 0, 0),
        op(MOVE_IMMEDIATE, 0, 0, TCX_NEXT),
        op(EXIT, 0, 0, 0),
    ]
}

const MOVE: u8 = 0xbf;
const MOVE_IMMEDIATE: u8 = 0xb7;
const LOAD_HALF: u8 = 0x28;
const LOAD_BYTE: u8 = 0x30;
const JUMP_OTHER: u8 = 0x55;
const EXIT: u8 = 0x95;
const TCX_NEXT: i32 = -1;
const TCX_DROP: i32 = 2;

fn load(program: &[Instruction]) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Attributes {
        kind: u32,
        instructions_count: u32,
        instructions: u64,
        license: u64,
    }
    let attributes = Attributes {
        kind: BPF_PROG_TYPE_SCHED_CLS,
        instructions_count: program.len() as u32,
        instructions: program.as_ptr() as u64,
        license: c"Dual MIT/GPL".as_ptr() as u64,
    };
    bpf(BPF_PROG_LOAD, &attributes)
}

fn attach(program: &OwnedFd, ifindex: u32) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Attributes {
        program: u32,
        target: u32,
        attach_type: u32,
        flags: u32,
        relative: u32,
        padding: u32,
        expected_revision: u64,
    }
    let attributes = Attributes {
        program: program.as_raw_fd() as u32,
        target: ifindex,
        attach_type: BPF_TCX_INGRESS,
        flags: BPF_F_BEFORE,
        relative: 0,
        padding: 0,
        expected_revision: 0,
    };
    bpf(BPF_LINK_CREATE, &attributes)
}

const BPF_PROG_LOAD: i32 = 5;
const BPF_LINK_CREATE: i32 = 28;
const BPF_PROG_TYPE_SCHED_CLS: u32 = 3;
const BPF_TCX_INGRESS: u32 = 46;
const BPF_F_BEFORE: u32 = 1 << 3;

/// A command of bpf(2) that returns a descriptor.
fn bpf<T>(command: i32, attributes: &T) -> io::Result<OwnedFd> {
    let size = mem::size_of_val(attributes);
    // SAFETY: `attributes` begins as this command's part of union bpf_attr does and outlives the call, as does all that it
    // points to; the kernel takes what lies beyond `size` as zero.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just returned this descriptor, and nobody else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}
