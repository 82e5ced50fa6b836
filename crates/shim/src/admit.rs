//! `--admit flow`: a flow is lifted only after the stack, with its filters, has delivered a datagram of it.

use crate::{control, socket::Socket, sys};
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use hoist_packet::Ip;
use libc::{sockaddr_in6, socklen_t};
use std::net::{IpAddr, SocketAddr};

/// Flows the broker has been told of lately: a cache that may forget, never invent.
static TOLD: [AtomicU64; 1024] = [const { AtomicU64::new(0) }; 1024];

pub(crate) fn no_name() -> sockaddr_in6 {
    sockaddr_in6 {
        sin6_family: 0,
        sin6_port: 0,
        sin6_flowinfo: 0,
        sin6_addr: libc::in6_addr { s6_addr: [0; 16] },
        sin6_scope_id: 0,
    }
}

/// A copy of the name of `len` bytes at `name`.
///
/// # Safety
/// `name` is null or has `len` readable bytes.
pub(crate) unsafe fn name_at(name: *const u8, len: socklen_t) -> sockaddr_in6 {
    let mut copy = no_name();
    if !name.is_null() {
        let len = (len as usize).min(size_of::<sockaddr_in6>());
        // SAFETY: by contract, and at most our own size.
        unsafe { core::ptr::copy_nonoverlapping(name, (&raw mut copy).cast(), len) };
    }
    copy
}

/// The kernel delivered a datagram from `from` to `socket`.
#[cold]
pub(crate) fn delivered(socket: &'static Socket, fd: i32, from: &sockaddr_in6) {
    let Some((Some(ip), port)) = control::address(from) else { return };
    let mark = mark(socket.cookie.load(Relaxed), ip, port);
    let slot = &TOLD[mark as usize % TOLD.len()];
    if slot.swap(mark, Relaxed) == mark {
        return;
    }
    let Some((local, local_port)) =
        sys::name(fd, libc::SYS_getsockname).ok().and_then(|name| control::address(&name))
    else {
        return;
    };
    let any = match ip {
        Ip::V4(_) => IpAddr::from([0u8; 4]),
        Ip::V6(_) => IpAddr::from([0u8; 16]),
    };
    let to = SocketAddr::new(local.map_or(any, IpAddr::from), local_port);
    control::admit(socket, SocketAddr::new(ip.into(), port), to);
}

fn mark(cookie: u64, ip: Ip, port: u16) -> u64 {
    let octets: [u8; 16] = match ip {
        Ip::V4([a, b, c, d]) => [a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4],
        Ip::V6(octets) => octets,
    };
    let words = u128::from_ne_bytes(octets);
    let mixed =
        (words as u64 ^ (words >> 64) as u64 ^ cookie).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ u64::from(port);
    mixed.wrapping_mul(0xd6e8_feb8_6659_fd93) | 1
}
