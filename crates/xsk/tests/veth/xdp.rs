//! An XDP program that gives each packet to the AF_XDP socket that its first payload byte names.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

const MAP_CREATE: i64 = 0;
const MAP_UPDATE_ELEM: i64 = 2;
const PROG_LOAD: i64 = 5;
const LINK_CREATE: i64 = 28;
const MAP_TYPE_XSKMAP: u32 = 17;
const PROG_TYPE_XDP: u32 = 6;
const ATTACH_XDP: u32 = 37;
const FLAGS_DRV_MODE: u32 = 1 << 2;

/// Attached to a device for as long as this lives.
pub(crate) struct Steer {
    sockets: OwnedFd,
    _link: OwnedFd,
}

impl Steer {
    /// Attaches in native mode.
    pub(crate) fn attach(ifindex: u32) -> Self {
        let sockets = sockets();
        let program = load(&program(sockets.as_raw_fd()));
        let link = bpf(
            LINK_CREATE,
            &LinkCreate {
                program: program.as_raw_fd(),
                ifindex,
                attach_type: ATTACH_XDP,
                flags: FLAGS_DRV_MODE,
            },
        );
        Self { sockets, _link: owned(link.expect("BPF_LINK_CREATE")) }
    }

    /// Packets whose first payload byte is `key` go to `socket`.
    pub(crate) fn give(&self, key: u32, socket: BorrowedFd<'_>) {
        let value = socket.as_raw_fd();
        let update = MapUpdate {
            map: self.sockets.as_fd().as_raw_fd(),
            pad: 0,
            key: &raw const key as u64,
            value: &raw const value as u64,
            flags: 0,
        };
        bpf(MAP_UPDATE_ELEM, &update).expect("BPF_MAP_UPDATE_ELEM");
    }
}

#[repr(C)]
struct MapCreate {
    kind: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    flags: u32,
}

#[repr(C)]
struct MapUpdate {
    map: i32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
struct ProgLoad {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
}

#[repr(C)]
struct LinkCreate {
    program: i32,
    ifindex: u32,
    attach_type: u32,
    flags: u32,
}

fn sockets() -> OwnedFd {
    let map = MapCreate { kind: MAP_TYPE_XSKMAP, key_size: 4, value_size: 4, max_entries: 4, flags: 0 };
    owned(bpf(MAP_CREATE, &map).expect("BPF_MAP_CREATE"))
}

/// `if (data + 15 <= data_end) return bpf_redirect_map(&sockets, data[14], XDP_PASS); return XDP_PASS;`
fn program(sockets: i32) -> [u64; 13] {
    [
        insn(0x61, 2, 1, 0, 0),       // r2 = ctx->data
        insn(0x61, 3, 1, 4, 0),       // r3 = ctx->data_end
        insn(0xbf, 4, 2, 0, 0),       // r4 = r2
        insn(0x07, 4, 0, 0, 15),      // r4 += 15
        insn(0x2d, 4, 3, 6, 0),       // if r4 > r3 goto pass
        insn(0x71, 2, 2, 14, 0),      // r2 = data[14]
        insn(0x18, 1, 1, 0, sockets), // r1 = &sockets, two slots wide
        0,
        insn(0xb7, 3, 0, 0, 2),  // r3 = XDP_PASS
        insn(0x85, 0, 0, 0, 51), // bpf_redirect_map
        insn(0x95, 0, 0, 0, 0),
        insn(0xb7, 0, 0, 0, 2), // pass: r0 = XDP_PASS
        insn(0x95, 0, 0, 0, 0),
    ]
}

/// `struct bpf_insn` as one number.
fn insn(code: u8, dst: u8, src: u8, offset: i16, immediate: i32) -> u64 {
    let [low, high] = offset.to_le_bytes();
    let [a, b, c, d] = immediate.to_le_bytes();
    u64::from_le_bytes([code, src << 4 | dst, low, high, a, b, c, d])
}

fn load(program: &[u64]) -> OwnedFd {
    let mut log = vec![0u8; 1 << 16];
    let load = ProgLoad {
        kind: PROG_TYPE_XDP,
        count: program.len() as u32,
        instructions: program.as_ptr() as u64,
        license: c"Dual MIT/GPL".as_ptr() as u64,
        log_level: 1,
        log_size: log.len() as u32,
        log: log.as_mut_ptr() as u64,
    };
    match bpf(PROG_LOAD, &load) {
        Ok(fd) => owned(fd),
        Err(error) => panic!("BPF_PROG_LOAD: {error}\n{}", String::from_utf8_lossy(&log)),
    }
}

fn bpf<T>(command: i64, attributes: &T) -> io::Result<i64> {
    // SAFETY: attributes are readable for their size, and what they point to lives in the caller's frame.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attributes as *const T, size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn owned(fd: i64) -> OwnedFd {
    // SAFETY: bpf() has just returned this descriptor; nothing else owns it.
    unsafe { OwnedFd::from_raw_fd(fd as i32) }
}
