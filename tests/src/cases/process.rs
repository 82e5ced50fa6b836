//! fork, exec, spawn, and descriptors that go elsewhere.

use super::{Ctx, lifecycle::adopt};
use crate::{
    peer::number_of,
    sock::{self, check},
};
use std::{
    ffi::CString,
    mem::zeroed,
    net::SocketAddr,
    os::{
        fd::{AsRawFd, OwnedFd, RawFd},
        unix::{net::UnixStream, process::CommandExt},
    },
    process::Command,
    ptr::{null, null_mut},
};

/// Forks; the child runs `work` and exits 0, or aborts by panicking.
pub(super) fn fork(work: impl FnOnce()) -> i32 {
    // SAFETY: the process has one thread, so the child may do anything.
    match check(unsafe { libc::fork() }).unwrap() {
        0 => {
            work();
            // SAFETY: ends the child without running the parent's destructors.
            unsafe { libc::_exit(0) }
        }
        pid => pid,
    }
}

#[track_caller]
pub(super) fn assert_child_succeeds(pid: i32) {
    let mut status = 0;
    // SAFETY: the status is a local.
    assert_eq!(unsafe { libc::waitpid(pid, &mut status, 0) }, pid);
    assert_eq!(status, 0, "the child's wait status");
}

/// A socket through which one datagram has come.
fn used(ctx: &mut Ctx) -> (OwnedFd, SocketAddr) {
    let (s, at) = ctx.bound4();
    ctx.send(at, &[b"first"]);
    assert_eq!(sock::take(&s, 100, 0).unwrap(), b"first");
    (s, at)
}

pub(super) fn keep_over_exec(s: &impl AsRawFd) -> RawFd {
    sock::fcntl(s, libc::F_SETFD, 0).unwrap();
    s.as_raw_fd()
}

/// This program running another case.
pub(super) fn dual(case: &str, argument: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([case, argument]);
    command
}

pub(super) fn a_forked_child_reads(ctx: &mut Ctx) {
    let (s, at) = used(ctx);
    ctx.send(at, &[b"before"]);
    sock::wait_readable(&s);
    let pid = fork(|| {
        assert_eq!(sock::take(&s, 100, 0).unwrap(), b"before");
        assert_eq!(sock::take(&s, 100, 0).unwrap(), b"after");
    });
    ctx.send(at, &[b"after"]);
    assert_child_succeeds(pid);
    ctx.send(at, &[b"parent"]);
    assert_eq!(sock::take(&s, 100, 0).unwrap(), b"parent");
}

/// Each datagram is read by one of the two, whoever it is.
pub(super) fn parent_and_child_share(ctx: &mut Ctx) {
    let (s, at) = used(ctx);
    let (reader, writer) = sock::pipe();
    ctx.send_numbered(at, 0, 10, 8);
    ctx.fence();
    let pid = fork(|| {
        for bytes in std::iter::from_fn(|| sock::take(&s, 100, 0).ok()).take_while(|b| b.len() == 8) {
            sock::write(&writer, &bytes).unwrap();
        }
    });
    ctx.send_numbered(at, 10, 30, 8);
    let mut seen = Vec::new();
    while seen.len() < 40 {
        let mut set = [sock::pollfd(&reader, libc::POLLIN), sock::pollfd(&s, libc::POLLIN)];
        assert_ne!(sock::poll(&mut set, sock::DEADLINE_MS).unwrap(), 0, "lost: only {seen:?} came");
        if set[0].revents != 0 {
            let mut bytes = [0; 8];
            sock::read(&reader, &mut bytes).unwrap();
            seen.push(number_of(&bytes));
        }
        if let Ok(bytes) = sock::take(&s, 100, libc::MSG_DONTWAIT) {
            seen.push(number_of(&bytes));
        }
    }
    ctx.send(at, &[b"end"]);
    assert_child_succeeds(pid);
    seen.sort_unstable();
    assert_eq!(seen, (0..40).collect::<Vec<_>>());
}

/// `child::read_descriptor FD:BYTES…`: reads each word from the descriptor.
pub(super) fn read_descriptor(ctx: &mut Ctx) {
    let mut words = ctx.args[0].split(':');
    let s = adopt(words.next().unwrap().parse().unwrap());
    for word in words {
        assert_eq!(sock::take(&s, 100, 0).unwrap(), word.as_bytes());
    }
}

pub(super) fn a_child_that_execs_reads(ctx: &mut Ctx) {
    let (s, at) = used(ctx);
    ctx.send(at, &[b"before"]);
    sock::wait_readable(&s);
    let fd = keep_over_exec(&s);
    let mut child = dual("child::read_descriptor", &format!("{fd}:before:after")).spawn().unwrap();
    ctx.send(at, &[b"after"]);
    assert!(child.wait().unwrap().success());
}

pub(super) fn exec_of_self_reads(ctx: &mut Ctx) {
    let (s, at) = used(ctx);
    ctx.send(at, &[b"before"]);
    sock::wait_readable(&s);
    let fd = keep_over_exec(&s);
    ctx.send_when_asleep(at, &[b"after"]);
    panic!("{}", dual("child::read_descriptor", &format!("{fd}:before:after")).exec());
}

/// `child::read_own PORT`: binds the port and reads from it.
pub(super) fn read_own(ctx: &mut Ctx) {
    let at = SocketAddr::from((ctx.net.host4, ctx.args[0].parse::<u16>().unwrap()));
    let s = sock::bound(at);
    ctx.send_numbered(at, 0, 20, 8);
    for i in 0..20 {
        assert_eq!(number_of(&sock::take(&s, 100, 0).unwrap()), i);
    }
}

pub(super) fn a_close_on_exec_socket_is_free_after_exec(ctx: &mut Ctx) {
    let (_s, at) = used(ctx);
    panic!("{}", dual("child::read_own", &at.port().to_string()).exec());
}

pub(super) fn a_child_binds_its_own(ctx: &mut Ctx) {
    let (s, at) = used(ctx);
    let port = ctx.port();
    assert!(dual("child::read_own", &port.to_string()).status().unwrap().success());
    ctx.send(at, &[b"parent"]);
    assert_eq!(sock::take(&s, 100, 0).unwrap(), b"parent");
}

/// Starts something that has nothing to do with the socket while datagrams wait and others come.
fn leaves_lifting_alone(ctx: &mut Ctx, start: impl Fn()) {
    let (s, at) = used(ctx);
    for round in 0..5 {
        ctx.send_numbered(at, 2 * round, 1, 8);
        sock::wait_readable(&s);
        start();
        ctx.send_numbered(at, 2 * round + 1, 1, 8);
        for i in 0..2 {
            assert_eq!(number_of(&sock::take(&s, 100, 0).unwrap()), 2 * round + i);
        }
    }
}

pub(super) fn posix_spawn_leaves_lifting_alone(ctx: &mut Ctx) {
    leaves_lifting_alone(ctx, || {
        let program = CString::new("/bin/true").unwrap();
        let argv = [program.as_ptr().cast_mut(), null_mut()];
        let environment = [null_mut()];
        let mut pid = 0;
        // SAFETY: path, arguments and environment are null-terminated; no attributes, no actions.
        let result = unsafe {
            libc::posix_spawn(&mut pid, program.as_ptr(), null(), null(), argv.as_ptr(), environment.as_ptr())
        };
        assert_eq!(result, 0);
        assert_child_succeeds(pid);
    });
}

pub(super) fn vfork_leaves_lifting_alone(ctx: &mut Ctx) {
    let program = CString::new("/bin/true").unwrap();
    let argv = [program.as_ptr(), null()];
    leaves_lifting_alone(ctx, || {
        #[allow(deprecated)] // it is what is tested
        // SAFETY: the child only execs or exits, as vfork(2) demands.
        let pid = unsafe {
            let pid = libc::vfork();
            if pid == 0 {
                libc::execv(program.as_ptr(), argv.as_ptr());
                libc::_exit(1);
            }
            pid
        };
        assert_child_succeeds(pid);
    });
}

pub(super) fn system_leaves_lifting_alone(ctx: &mut Ctx) {
    let command = CString::new("exit 7").unwrap();
    leaves_lifting_alone(ctx, || {
        // SAFETY: a C string.
        assert_eq!(unsafe { libc::system(command.as_ptr()) }, 7 << 8);
    });
}

/// `child::read_passed FD`: takes a socket over the Unix stream FD and reads from it.
pub(super) fn read_passed(ctx: &mut Ctx) {
    let stream = adopt(ctx.args[0].parse().unwrap());
    let s = receive_descriptor(&stream);
    for word in [b"before", b"after!"] {
        assert_eq!(sock::take(&s, 100, 0).unwrap(), word);
    }
}

pub(super) fn a_passed_descriptor_is_read_elsewhere(ctx: &mut Ctx) {
    let (s, at) = used(ctx);
    let (mine, theirs) = UnixStream::pair().unwrap();
    let theirs = OwnedFd::from(theirs);
    let mut child = dual("child::read_passed", &keep_over_exec(&theirs).to_string()).spawn().unwrap();
    drop(theirs);
    ctx.send(at, &[b"before"]);
    sock::wait_readable(&s);
    send_descriptor(&mine, &s).unwrap();
    ctx.send(at, &[b"after!"]);
    assert!(child.wait().unwrap().success());
    ctx.send(at, &[b"parent"]);
    assert_eq!(sock::take(&s, 100, 0).unwrap(), b"parent");
}

/// Room for one descriptor's control message.
#[repr(C, align(8))]
struct Rights([u8; 24]);

fn rights_message(iov: &mut libc::iovec, rights: &mut Rights) -> libc::msghdr {
    // SAFETY: msghdr is plain old data for which all-zero is valid.
    let mut header: libc::msghdr = unsafe { zeroed() };
    header.msg_iov = iov;
    header.msg_iovlen = 1;
    header.msg_control = rights.0.as_mut_ptr().cast();
    header.msg_controllen = 24;
    header
}

pub(super) fn send_descriptor(stream: &impl AsRawFd, s: &impl AsRawFd) -> std::io::Result<()> {
    let mut byte = 0u8;
    let mut iov = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
    let mut rights = Rights([0; 24]);
    let header = rights_message(&mut iov, &mut rights);
    // SAFETY: the control buffer holds one header and one int; all pointers live across the call.
    check(unsafe {
        let control = libc::CMSG_FIRSTHDR(&header);
        (*control).cmsg_level = libc::SOL_SOCKET;
        (*control).cmsg_type = libc::SCM_RIGHTS;
        (*control).cmsg_len = libc::CMSG_LEN(4) as _;
        libc::CMSG_DATA(control).cast::<i32>().write_unaligned(s.as_raw_fd());
        libc::sendmsg(stream.as_raw_fd(), &header, 0)
    } as i64)
    .map(drop)
}

pub(super) fn receive_descriptor(stream: &impl AsRawFd) -> OwnedFd {
    let mut byte = 0u8;
    let mut iov = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
    let mut rights = Rights([0; 24]);
    let mut header = rights_message(&mut iov, &mut rights);
    // SAFETY: as above; the kernel fills in one descriptor.
    unsafe {
        check(libc::recvmsg(stream.as_raw_fd(), &mut header, 0) as i64).unwrap();
        let control = libc::CMSG_FIRSTHDR(&header);
        assert!(!control.is_null(), "a descriptor was passed");
        adopt(libc::CMSG_DATA(control).cast::<i32>().read_unaligned())
    }
}
