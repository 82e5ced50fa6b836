//! Connections that several descriptors, threads or processes read, and data that others take.

use super::{
    Ctx,
    conn::{Conn, Kind},
    process::{assert_child_succeeds, dual, fork, keep_over_exec, receive_descriptor, send_descriptor},
    signals::Thread,
    tcp_recv::mixed,
    unless_held,
};
use crate::{
    sock::{self, check, errno},
    stream::{self, Draw},
};
use std::{
    collections::HashMap,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::{net::UnixStream, process::CommandExt},
    },
    ptr::{null, null_mut},
    sync::Mutex,
    thread::scope,
};

pub(super) fn a_dup_reads_on(ctx: &mut Ctx) {
    let mut c = ctx.tcp();
    c.arrive(&[3_000]);
    c.exact(1_000);
    let copy = sock::dup(&c).unwrap();
    let mut c = c.with(copy);
    c.exact(2_000);
    mixed(&mut c);
}

pub(super) fn two_descriptors_read_in_turn(ctx: &mut Ctx) {
    let mut c = ctx.tcp();
    let (mut draw, mut other) = (Draw::new(21), sock::dup(&c).unwrap());
    c.write_later(&[3_000; 200]);
    let mut left = 600_000;
    while left > 0 {
        std::mem::swap(&mut c.s, &mut other);
        left -= c.take(draw.size(1, 9_000), 0).unwrap();
    }
    c.finish();
}

/// The last descriptor's close is the one that counts.
pub(super) fn a_closed_dup_ends_nothing(ctx: &mut Ctx) {
    let mut c = ctx.tcp();
    c.arrive(&[500]);
    drop(sock::dup(&c).unwrap());
    c.exact(500);
    c.ask(100);
    let copy = sock::dup(&c).unwrap();
    drop(std::mem::replace(&mut c.s, copy));
    c.warm();
    assert_eq!(c.close(), (0, 0));
}

pub(super) fn threads_read_a_connection_each(ctx: &mut Ctx) {
    let mut all: Vec<_> = (0..8).map(|_| ctx.tcp()).collect();
    for (i, c) in all.iter_mut().enumerate() {
        c.write_later(&Draw::new(30 + i as u64).sizes(1_500_000, 60_000));
    }
    scope(|scope| {
        for (i, c) in all.iter_mut().enumerate() {
            scope.spawn(move || c.exact_mixed(1_500_000, &mut Draw::new(i as u64)));
        }
    });
}

/// Two threads take turns as they please; together they read all of the stream, each byte once.
///
/// Not each read is one piece: `tcp_recvmsg_locked` lets go of the socket when a backlog waits.
pub(super) fn two_threads_read_one_connection(ctx: &mut Ctx) {
    const TOTAL: usize = 3_000_000;
    let mut c = ctx.tcp();
    let (start, number) = (c.at, c.number());
    c.write_later(&Draw::new(40).sizes(TOTAL, 40_000));
    let reads = Mutex::new(Vec::new());
    let s = sock::dup(&c).unwrap();
    scope(|scope| {
        for seed in [41, 42] {
            let (s, reads) = (&s, &reads);
            scope.spawn(move || read_to_end(s, &mut Draw::new(seed), reads));
        }
        c.finish();
        c.order(crate::remote::Do::ShutdownWrite);
    });
    assert_all_read_once(&stream::bytes(number, start, TOTAL), &reads.into_inner().unwrap());
}

fn read_to_end(s: &OwnedFd, draw: &mut Draw, reads: &Mutex<Vec<Vec<u8>>>) {
    loop {
        let bytes = sock::take(s, draw.size(16, 30_000), 0).unwrap();
        if bytes.is_empty() {
            return;
        }
        reads.lock().unwrap().push(bytes);
    }
}

/// Bytes that tell where in a stream they stand.
const KEY: usize = 8;

/// Every read is made of runs of the stream; runs too short to be placed must be what the others leave.
fn assert_all_read_once(stream: &[u8], reads: &[Vec<u8>]) {
    let index: HashMap<&[u8], usize> = stream.windows(KEY).zip(0..).collect();
    let (mut missing, mut crumbs) = (vec![true; stream.len()], Vec::<u8>::new());
    for read in reads {
        let mut rest = &read[..];
        while rest.len() >= KEY {
            let at = index
                .get(&rest[..KEY])
                .copied()
                .unwrap_or_else(|| panic!("{:02x?} is not of the stream", &rest[..KEY]));
            let len = rest.iter().zip(&stream[at..]).take_while(|(a, b)| a == b).count();
            assert!(missing[at..at + len].iter().all(|&missing| missing), "{at} was read twice");
            missing[at..at + len].fill(false);
            rest = &rest[len..];
        }
        crumbs.extend(rest);
    }
    let mut gaps: Vec<u8> =
        stream.iter().zip(missing).filter(|(_, missing)| *missing).map(|(b, _)| *b).collect();
    gaps.sort_unstable();
    crumbs.sort_unstable();
    assert_eq!(gaps, crumbs, "what is missing is not what was read in crumbs");
}

/// The parent has read some, some is queued, some comes later.
pub(super) fn a_forked_child_reads_the_rest(ctx: &mut Ctx) {
    let mut c = ctx.tcp();
    c.arrive(&[50_000, 7]);
    c.exact(20_000);
    let pid = fork(|| c.exact(80_007));
    c.write(&[30_000, 20_000]);
    assert_child_succeeds(pid);
    c.at += 80_007;
    c.write(&[5_000]);
    c.exact(5_000);
}

pub(super) fn a_parent_reads_the_rest(ctx: &mut Ctx) {
    let mut c = ctx.tcp();
    c.arrive(&[50_000, 7]);
    c.exact(20_000);
    let pid = fork(|| ());
    assert_child_succeeds(pid);
    c.write_later(&[30_000, 20_000]);
    c.exact(80_007);
    c.finish();
    mixed(&mut c);
}

/// A pipe tells whose turn it is.
pub(super) fn parent_and_child_take_turns(ctx: &mut Ctx) {
    const TURNS: usize = 20;
    let mut c = ctx.tcp();
    c.arrive(&[30_000]);
    let (to_child, to_parent) = (sock::pipe(), sock::pipe());
    let pid = fork(|| {
        for _ in 0..TURNS {
            sock::read(&to_child.0, &mut [0]).unwrap();
            c.at += 700;
            c.exact(800);
            sock::write(&to_parent.1, &[0]).unwrap();
        }
    });
    c.write(&[1_500; TURNS]);
    for _ in 0..TURNS {
        c.exact(700);
        sock::write(&to_child.1, &[0]).unwrap();
        sock::read(&to_parent.0, &mut [0]).unwrap();
        c.at += 800;
    }
    assert_child_succeeds(pid);
    c.exact(30_000);
}

/// Another thread is in the middle of reading when the process forks.
pub(super) fn a_fork_while_another_thread_reads(ctx: &mut Ctx) {
    for round in 0..8 {
        let mut c = ctx.tcp();
        c.write_later(&[20_000; 50]);
        scope(|scope| {
            let reader = scope.spawn(|| c.exact_mixed(1_000_000, &mut Draw::new(round)));
            // SAFETY: the child makes no call but _exit.
            let pid = check(unsafe { libc::fork() }).unwrap();
            if pid == 0 {
                // SAFETY: ends the child at once.
                unsafe { libc::_exit(0) };
            }
            assert_child_succeeds(pid);
            reader.join().unwrap();
        });
        c.finish();
        c.ask(1_000);
    }
}

/// Threads accept, read all or some, and close, all at once.
pub(super) fn connections_come_and_go_in_threads(ctx: &mut Ctx) {
    let (at, to) = ctx.addresses(Kind::V4);
    let listener = sock::listening(at);
    let ctx = Mutex::new(ctx);
    scope(|scope| {
        for seed in 0..4u64 {
            let (listener, ctx) = (&listener, &ctx);
            scope.spawn(move || {
                let mut draw = Draw::new(seed);
                for _ in 0..40 {
                    let mut c = {
                        let mut ctx = ctx.lock().unwrap();
                        ctx.accepted(listener, to)
                    };
                    let (size, reads_all) = (draw.size(1, 60_000), draw.below(2) == 0);
                    c.write_later(&draw.sizes(size, 20_000));
                    c.exact_mixed(if reads_all { size } else { draw.below(size) }, &mut draw);
                    if reads_all {
                        c.finish();
                        assert_eq!(c.close(), (0, 0));
                    }
                }
            });
        }
    });
}

/// The classic server: the child serves, the parent closes.
pub(super) fn a_server_that_forks_for_each(ctx: &mut Ctx) {
    let (at, to) = ctx.addresses(Kind::V4);
    let listener = sock::listening(at);
    for round in 1..6 {
        let mut c = ctx.accepted(&listener, to);
        c.write(&[100]);
        let pid = fork(|| {
            c.exact(100 + 40_000 * round);
            c.send(1_000);
        });
        c.write(&vec![10_000; 4 * round]);
        c.order(crate::remote::Do::Read(1_000));
        assert_child_succeeds(pid);
        assert_eq!(c.close(), (0, 0));
    }
    let mut c = ctx.accepted(&listener, to);
    c.warm();
}

/// A child that has nothing to do with the connection runs while it is read.
pub(super) fn spawning_leaves_the_stream_alone(ctx: &mut Ctx) {
    let mut c = ctx.tcp();
    for _ in 0..5 {
        c.arrive(&[20_000]);
        c.exact(5_000);
        assert!(std::process::Command::new("/bin/true").status().unwrap().success());
        c.write_when_asleep(&[10_000]);
        c.exact(25_000);
        c.finish();
    }
}

/// `child::tcp_read FD:NUMBER:AT:LEN`: reads from an inherited descriptor.
pub(super) fn read_inherited(ctx: &mut Ctx) {
    let numbers: Vec<u64> = ctx.args[0].split(':').map(|word| word.parse().unwrap()).collect();
    let mut c = Conn::of(super::lifecycle::adopt(numbers[0] as i32), numbers[1], numbers[2]);
    c.exact(numbers[3] as usize);
}

fn inherited(c: &Conn, len: usize) -> String {
    format!("{}:{}:{}:{len}", keep_over_exec(c), c.number(), c.at)
}

/// Everything was read; what comes then is read by the child.
pub(super) fn a_child_that_execs_reads(ctx: &mut Ctx) {
    let mut c = ctx.tcp();
    c.arrive(&[20_000]);
    c.exact(20_000);
    let mut child = dual("child::tcp_read", &inherited(&c, 30_000)).spawn().unwrap();
    c.write(&[30_000]);
    assert!(child.wait().unwrap().success());
    c.at += 30_000;
    c.write(&[100]);
    c.exact(100);
}

pub(super) fn exec_of_self_reads(ctx: &mut Ctx) {
    let mut c = ctx.tcp();
    c.arrive(&[20_000]);
    c.exact(20_000);
    c.write_later(&[30_000]);
    panic!("{}", dual("child::tcp_read", &inherited(&c, 30_000)).exec());
}

/// Unread lifted data cannot be read by another program, which gets no descriptor then (docs/limitations.md): never zeros.
pub(super) fn exec_with_data_unread_shows_no_wrong_byte(ctx: &mut Ctx) {
    let mut c = ctx.tcp();
    c.arrive(&[20_000]);
    c.exact(5_000);
    c.write_later(&[30_000]);
    panic!("{}", dual("child::tcp_read_if_open", &inherited(&c, 45_000)).exec());
}

/// `child::tcp_read_if_open FD:NUMBER:AT:LEN`: the same, if it was given the descriptor.
pub(super) fn read_if_open(ctx: &mut Ctx) {
    let fd: i32 = ctx.args[0].split(':').next().unwrap().parse().unwrap();
    let open = unless_closed(sock::fcntl(&fd, libc::F_GETFD, 0));
    if open {
        read_inherited(ctx);
    }
}

#[track_caller]
fn unless_closed(result: std::io::Result<i32>) -> bool {
    let hoisted = std::env::var("LD_PRELOAD").is_ok_and(|list| list.contains("hoist"));
    match result {
        Err(error) if hoisted && error.raw_os_error() == Some(libc::EBADF) => false,
        other => other.is_ok(),
    }
}

/// `child::tcp_read_passed FD:NUMBER:AT:LEN`: takes the connection over the Unix stream FD.
pub(super) fn read_passed(ctx: &mut Ctx) {
    let numbers: Vec<u64> = ctx.args[0].split(':').map(|word| word.parse().unwrap()).collect();
    let s = receive_descriptor(&super::lifecycle::adopt(numbers[0] as i32));
    Conn::of(s, numbers[1], numbers[2]).exact(numbers[3] as usize);
}

/// Sends the descriptor to a child that reads `held` unread bytes and 30,000 more.
fn pass(c: &mut Conn, held: usize) {
    let (mine, theirs) = UnixStream::pair().unwrap();
    let theirs = OwnedFd::from(theirs);
    let argument = format!("{}:{}:{}:{}", keep_over_exec(&theirs), c.number(), c.at, held + 30_000);
    if unless_held(send_descriptor(&mine, c)).is_none() {
        c.exact(held);
        return pass(c, 0);
    }
    let mut child = dual("child::tcp_read_passed", &argument).spawn().unwrap();
    drop(theirs);
    c.write(&[30_000]);
    assert!(child.wait().unwrap().success());
    c.at += 30_000 + held as u64;
    c.write(&[100]);
    c.exact(100);
}

pub(super) fn a_connection_is_passed_before_it_is_read(ctx: &mut Ctx) {
    let mut c = ctx.fresh(Kind::V4);
    c.arrive(&[10_000]);
    pass(&mut c, 10_000);
}

pub(super) fn a_connection_is_passed_after_it_was_read(ctx: &mut Ctx) {
    let mut c = ctx.tcp();
    c.arrive(&[15_000]);
    c.exact(15_000);
    pass(&mut c, 0);
}

pub(super) fn a_connection_is_passed_with_data_unread(ctx: &mut Ctx) {
    let mut c = ctx.tcp();
    c.arrive(&[15_000]);
    c.exact(5_000);
    pass(&mut c, 10_000);
}

/// What splice(2) moves is what recv(2) would have read.
pub(super) fn splice_takes_the_stream(ctx: &mut Ctx) {
    let mut c = ctx.tcp();
    c.arrive(&[20_000]);
    c.exact(3_000);
    let (reader, writer) = sock::pipe();
    c.write_later(&[10_000; 20]);
    let mut left = 217_000;
    while left > 0 {
        let (from, to) = (c.as_raw_fd(), writer.as_raw_fd());
        // SAFETY: no offsets: a socket and a pipe have none.
        let got = unsafe { libc::splice(from, null_mut(), to, null_mut(), 30_000, libc::SPLICE_F_MOVE) };
        assert!(got > 0, "{}", std::io::Error::last_os_error());
        let mut buffer = vec![0; got as usize];
        let mut filled = 0;
        while filled < buffer.len() {
            filled += sock::read(&reader, &mut buffer[filled..]).unwrap();
        }
        c.advance(&buffer);
        left -= buffer.len();
    }
    c.finish();
    c.write(&[5_000]);
    c.exact(5_000);
}

/// To a pipe it is a splice (`splice_file_to_pipe`).
pub(super) fn sendfile_to_a_pipe_takes_the_stream(ctx: &mut Ctx) {
    let mut c = ctx.tcp();
    c.arrive(&[5_000]);
    c.exact(1_000);
    let (reader, writer) = sock::pipe();
    assert_eq!(sendfile(&writer, &c, 3_000).unwrap(), 3_000);
    let mut buffer = [0; 3_000];
    assert_eq!(sock::read(&reader, &mut buffer).unwrap(), 3_000);
    c.advance(&buffer);
    c.exact(1_000);
    mixed(&mut c);
}

/// To a file it needs a source that can seek (`splice_direct_to_actor`).
pub(super) fn sendfile_to_a_file_is_einval(ctx: &mut Ctx) {
    let mut c = ctx.tcp();
    c.arrive(&[5_000]);
    // SAFETY: a C string.
    let file = sock::own(unsafe { libc::memfd_create(c"sendfile".as_ptr(), 0) }).unwrap();
    assert_eq!(errno(sendfile(&file, &c, 1_000)), libc::EINVAL);
    c.exact(5_000);
    mixed(&mut c);
}

fn sendfile(to: &OwnedFd, from: &Conn, len: usize) -> std::io::Result<i64> {
    // SAFETY: no offset.
    check(unsafe { libc::sendfile(to.as_raw_fd(), from.as_raw_fd(), null_mut(), len) } as i64)
}

/// sendfile(2) to it concerns the other direction.
pub(super) fn sendfile_to_it_leaves_reading_alone(ctx: &mut Ctx) {
    let mut c = ctx.tcp();
    let path = std::env::temp_dir().join(format!("hoist-sendfile-{}", std::process::id()));
    std::fs::write(&path, stream::bytes(!c.number(), 0, 50_000)).unwrap();
    let file = std::fs::File::open(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    c.write(&[20_000]);
    let (mut sent, mut offset) = (0, 0);
    while sent < 50_000 {
        // SAFETY: the offset is a local.
        let got = unsafe { libc::sendfile(c.as_raw_fd(), file.as_raw_fd(), &mut offset, 50_000 - sent) };
        assert!(got > 0, "{}", std::io::Error::last_os_error());
        sent += got as usize;
    }
    c.exact(20_000);
    c.order(crate::remote::Do::Read(50_000));
}

/// `TCP_ULP`: without keys the stream goes through as it is. A kernel without TLS says ENOENT.
pub(super) fn a_tls_socket_reads_on(ctx: &mut Ctx) {
    let mut c = ctx.tcp();
    c.arrive(&[20_000]);
    c.exact(20_000);
    assert!(set_tls(&c));
    c.write(&[30_000]);
    c.exact(30_000);
    mixed(&mut c);
}

pub(super) fn a_tls_socket_with_data_unread_reads_on(ctx: &mut Ctx) {
    let mut c = ctx.tcp();
    c.arrive(&[20_000]);
    c.exact(5_000);
    set_tls(&c);
    c.exact(15_000);
    c.write(&[30_000]);
    c.exact(30_000);
}

/// False if lifted data is unread.
fn set_tls(c: &Conn) -> bool {
    match sock::set(c, libc::IPPROTO_TCP, libc::TCP_ULP, *b"tls") {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
        result => unless_held(result).is_some(),
    }
}

/// With TCP_REPAIR a read says EPERM and a peek shows the queue.
pub(super) fn repair_shows_the_queue(ctx: &mut Ctx) {
    let (tcp, mut c) = (libc::IPPROTO_TCP, ctx.tcp());
    c.arrive(&[20_000]);
    c.exact(5_000);
    if unless_held(sock::set(&c, tcp, libc::TCP_REPAIR, 1)).is_none() {
        c.exact(15_000);
        c.arrive(&[15_000]);
        sock::set(&c, tcp, libc::TCP_REPAIR, 1).unwrap();
    }
    assert_eq!(errno(c.take(100, libc::MSG_DONTWAIT)), libc::EPERM);
    sock::set(&c, tcp, libc::TCP_REPAIR_QUEUE, 1).unwrap(); // TCP_RECV_QUEUE
    assert_eq!(c.take(50_000, libc::MSG_PEEK).unwrap(), 15_000);
    sock::set(&c, tcp, libc::TCP_REPAIR, 0).unwrap();
    c.exact(15_000);
    c.write(&[5_000]);
    c.exact(5_000);
}

unsafe extern "C" {
    fn fdopen(fd: i32, mode: *const libc::c_char) -> *mut libc::FILE;
}

fn stdio(c: &Conn) -> std::io::Result<*mut libc::FILE> {
    let fd = sock::dup(c).unwrap();
    // SAFETY: a descriptor that the stream owns from here on.
    let file = unsafe { fdopen(fd.as_raw_fd(), c"r+".as_ptr()) };
    if file.is_null() {
        return Err(std::io::Error::last_os_error());
    }
    std::mem::forget(fd);
    Ok(file)
}

/// fread(3) of exactly so much.
fn fread(file: *mut libc::FILE, len: usize) -> Vec<u8> {
    let mut buffer = vec![0u8; len];
    // SAFETY: an open stream and a buffer of `len` bytes.
    assert_eq!(unsafe { libc::fread(buffer.as_mut_ptr().cast(), 1, len, file) }, len);
    buffer
}

/// stdio reads by calls that nothing can be put in front of.
pub(super) fn stdio_reads_on(ctx: &mut Ctx) {
    let mut c = ctx.tcp();
    c.arrive(&[30_000]);
    c.exact(5_000);
    let file = unless_held(stdio(&c)).unwrap_or_else(|| {
        c.exact(25_000);
        c.arrive(&[25_000]);
        stdio(&c).unwrap()
    });
    c.write_later(&[20_000; 5]);
    for len in [1, 4_999, 20_000, 100_000] {
        let bytes = fread(file, len);
        c.advance(&bytes);
    }
    c.finish();
    // SAFETY: the stream is open and not used again.
    unsafe { libc::fclose(file) };
    c.write(&[100]);
    c.exact(100);
}

/// Lines by fgets(3), behind bytes that recv(2) took.
pub(super) fn lines_are_read_by_stdio(ctx: &mut Ctx) {
    let mut c = ctx.tcp();
    let file = stdio(&c).unwrap();
    c.write_later(&[50_000]);
    let mut left = 50_000;
    while left > 0 {
        let mut line = [0xeeu8; 200];
        // SAFETY: an open stream and a buffer of 200 bytes, of which the last that fgets writes is zero.
        let got = unsafe { libc::fgets(line.as_mut_ptr().cast(), (left + 1).min(200) as i32, file) };
        assert!(!got.is_null());
        let len = line.iter().rposition(|&b| b != 0xee).expect("fgets writes a terminator behind the line");
        c.advance(&line[..len]);
        left -= len;
    }
    // SAFETY: the stream is open and not used again.
    unsafe { libc::fclose(file) };
    c.finish();
}

/// As inetd does: the connection becomes standard input, which stdio reads by calls of its own.
pub(super) fn a_connection_becomes_standard_input(ctx: &mut Ctx) {
    let mut c = ctx.tcp();
    c.arrive(&[20_000]);
    c.exact(20_000);
    // SAFETY: no pointers; nothing uses standard input.
    check(unsafe { libc::dup2(c.as_raw_fd(), 0) }).unwrap();
    c.write_later(&[20_000; 3]);
    // SAFETY: descriptor 0 is open, and nobody else reads it.
    let file = unsafe { stdin };
    for len in [1, 9_999, 50_000] {
        let bytes = fread(file, len);
        c.advance(&bytes);
    }
    c.finish();
}

unsafe extern "C" {
    static stdin: *mut libc::FILE;
}

/// A thread cancelled while it waits in a read leaves the connection as it was.
pub(super) fn a_cancelled_reader_takes_nothing(ctx: &mut Ctx) {
    let mut c = ctx.tcp();
    for _ in 0..5 {
        cancel_a_reader(&c);
        c.write_when_asleep(&[2_000]);
        c.exact(2_000);
        c.finish();
    }
    mixed(&mut c);
}

extern "C" fn read_until_cancelled(argument: *mut libc::c_void) -> *mut libc::c_void {
    // SAFETY: the starter's locals, which live until this thread was joined.
    let (fd, tid) = unsafe { &*argument.cast::<(i32, Mutex<Option<Thread>>)>() };
    *tid.lock().unwrap() = Some(Thread::this());
    let mut buffer = [0u8; 100];
    // SAFETY: recv(2), in which the thread is cancelled; nothing on its stack needs to be dropped.
    unsafe { libc::recv(*fd, buffer.as_mut_ptr().cast(), 100, 0) };
    null_mut()
}

fn cancel_a_reader(c: &Conn) {
    let shared = (c.as_raw_fd(), Mutex::new(None::<Thread>));
    let (mut thread, mut result) = (0, null_mut());
    let argument = (&raw const shared).cast_mut().cast();
    // SAFETY: the argument outlives the thread, which is joined below.
    assert_eq!(unsafe { libc::pthread_create(&mut thread, null(), read_until_cancelled, argument) }, 0);
    let reader = loop {
        let started = *shared.1.lock().unwrap();
        if let Some(reader) = started {
            break reader;
        }
        std::thread::yield_now();
    };
    reader.until_asleep();
    // SAFETY: the thread is not joined yet.
    unsafe {
        assert_eq!(pthread_cancel(thread), 0);
        assert_eq!(libc::pthread_join(thread, &mut result), 0);
    }
    assert_eq!(result as isize, -1, "PTHREAD_CANCELED");
}

unsafe extern "C" {
    fn pthread_cancel(thread: libc::pthread_t) -> i32;
}
