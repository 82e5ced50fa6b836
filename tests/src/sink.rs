//! What reads the streams of tests/streams.rs: natively or hoisted, by every call, comparing every byte.
//!
//! A connection begins with its seed and length, 8 bytes each, little-endian; the stream follows, then the peer's FIN. The
//! answer is the number of bytes that were right, 8 bytes.

use crate::{
    sock::{self, DEADLINE_MS},
    stream::{self, Draw},
};
use std::{
    collections::HashMap,
    net::SocketAddr,
    os::fd::{AsRawFd, OwnedFd},
    thread,
    time::Duration,
};

/// Bytes in front of a stream.
pub const HEADER: usize = 16;

/// How streams are read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Style {
    /// A thread a connection, every call in turn.
    Mixed,
    /// A thread a connection, recv(2) of 64 KiB.
    Plain,
    /// As mixed, and every 200 KB the reader stays away for 100 ms.
    Stalling,
    /// As mixed, and now and then the reader dozes for a few milliseconds: long enough to be parked, or nearly.
    Dozing,
    /// One thread, edge-triggered epoll.
    Epoll,
    /// One thread, level-triggered epoll, small reads.
    Level,
}

impl Style {
    const ALL: [(&str, Self); 6] = [
        ("mixed", Self::Mixed),
        ("plain", Self::Plain),
        ("stalling", Self::Stalling),
        ("dozing", Self::Dozing),
        ("epoll", Self::Epoll),
        ("level", Self::Level),
    ];

    /// Its word on the command line.
    pub fn word(self) -> &'static str {
        Self::ALL.iter().find(|(_, style)| *style == self).map_or("", |(word, _)| word)
    }

    /// The style of a word.
    pub fn of(word: &str) -> Option<Self> {
        Self::ALL.iter().find(|(known, _)| *known == word).map(|(_, style)| *style)
    }
}

/// Serves so many connections and returns. `buffer` is SO_RCVBUF, 0 leaves it.
pub fn serve(at: SocketAddr, connections: usize, style: Style, buffer: i32) {
    let listener = sock::listening(at);
    if buffer > 0 {
        sock::set(&listener, libc::SOL_SOCKET, libc::SO_RCVBUF, buffer).unwrap();
    }
    match style {
        Style::Epoll | Style::Level => serve_by_epoll(&listener, connections, style),
        _ => thread::scope(|scope| {
            for _ in 0..connections {
                let (s, _) = sock::accept(&listener).unwrap();
                scope.spawn(move || serve_one(&s, style));
            }
        }),
    }
}

fn serve_one(s: &OwnedFd, style: Style) {
    let header = sock::take(s, HEADER, libc::MSG_WAITALL).unwrap();
    let Some((seed, len)) = parse(&header) else { return };
    let mut draw = Draw::new(seed);
    let (mut at, mut next_stall) = (0, 200_000);
    loop {
        if style == Style::Stalling && at > next_stall {
            next_stall += 200_000;
            thread::sleep(Duration::from_millis(100));
        }
        if style == Style::Dozing && draw.below(10) == 0 {
            thread::sleep(Duration::from_micros(draw.size(200, 30_000) as u64));
        }
        let bytes = if style == Style::Plain { sock::take(s, 65_536, 0) } else { one_read(s, &mut draw) };
        let bytes = bytes.unwrap_or_else(|error| panic!("{error} behind byte {at} of {len}"));
        stream::check(seed, at, &bytes);
        at += bytes.len() as u64;
        if bytes.is_empty() {
            break;
        }
    }
    assert_eq!(at, len, "the end came at another place");
    answer(s, at);
}

/// Seed and length. None of a connection that ended before.
fn parse(header: &[u8]) -> Option<(u64, u64)> {
    let (seed, len) = header.split_first_chunk::<8>()?;
    Some((u64::from_le_bytes(*seed), u64::from_le_bytes(*len.first_chunk()?)))
}

fn answer(s: &OwnedFd, count: u64) {
    assert_eq!(sock::send(s, &count.to_le_bytes()).unwrap(), 8);
}

/// One read, by a call that is drawn.
fn one_read(s: &OwnedFd, draw: &mut Draw) -> std::io::Result<Vec<u8>> {
    let size = draw.size(1, 80_000);
    match draw.below(7) {
        0 => {
            let mut buffer = vec![0; size];
            sock::read(s, &mut buffer).map(|len| cut(buffer, len))
        }
        1 => {
            let (mut a, mut b) = (vec![0; size], vec![0; 5_000]);
            let len = sock::readv(s, &mut [&mut a, &mut b])?;
            Ok(cut([a, b].concat(), len))
        }
        2 => {
            let (mut a, mut b) = (vec![0; 100], vec![0; size]);
            let len = sock::recv_msg(s, &mut [&mut a, &mut b], 0, 0)?.len;
            Ok(cut([a, b].concat(), len))
        }
        3 => sock::take(s, size, libc::MSG_WAITALL),
        4 => {
            let peeked = sock::take(s, size, libc::MSG_PEEK)?;
            let taken = sock::take(s, peeked.len().max(1), 0)?;
            assert_eq!(taken, peeked[..taken.len()], "a peek and a read differ");
            Ok(taken)
        }
        5 => {
            assert_ne!(sock::events(s, libc::POLLIN, DEADLINE_MS), 0, "nothing comes");
            sock::take(s, size, libc::MSG_DONTWAIT)
        }
        _ => sock::take(s, size, 0),
    }
}

fn cut(mut bytes: Vec<u8>, len: usize) -> Vec<u8> {
    bytes.truncate(len);
    bytes
}

/// Where a connection of the epoll loop stands.
#[derive(Default)]
struct Reader {
    header: Vec<u8>,
    at: u64,
}

impl Reader {
    /// Takes what was read; true when the stream has ended.
    fn take(&mut self, s: &OwnedFd, mut bytes: &[u8]) -> bool {
        if bytes.is_empty() {
            if let Some((_, len)) = parse(&self.header) {
                assert_eq!(self.at, len, "the end came at another place");
                answer(s, self.at);
            }
            return true;
        }
        let wanted = (HEADER - self.header.len()).min(bytes.len());
        self.header.extend(&bytes[..wanted]);
        bytes = &bytes[wanted..];
        if let Some((seed, _)) = parse(&self.header) {
            stream::check(seed, self.at, bytes);
            self.at += bytes.len() as u64;
        }
        false
    }
}

fn serve_by_epoll(listener: &OwnedFd, connections: usize, style: Style) {
    let ep = sock::epoll();
    sock::fionbio(listener, true).unwrap();
    sock::epoll_add(&ep, listener, libc::EPOLLIN, 0);
    let (mut open, mut ended) = (HashMap::new(), 0);
    while ended < connections {
        let events = sock::epoll_wait(&ep, 64, DEADLINE_MS).unwrap();
        assert!(!events.is_empty(), "nothing comes; {} open, {ended} ended", open.len());
        for (_, data) in events {
            if data == 0 {
                accept_all(listener, &ep, &mut open, style);
            } else if let Some((s, reader)) = open.get_mut(&data)
                && read_some(s, reader, style)
            {
                open.remove(&data);
                ended += 1;
            }
        }
    }
}

fn accept_all(listener: &OwnedFd, ep: &OwnedFd, open: &mut HashMap<u64, (OwnedFd, Reader)>, style: Style) {
    let edge = if style == Style::Epoll { libc::EPOLLET } else { 0 };
    while let Ok((s, _)) = sock::accept4(listener, libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC) {
        sock::epoll_add(ep, &s, libc::EPOLLIN | edge, s.as_raw_fd() as u64);
        open.insert(s.as_raw_fd() as u64, (s, Reader::default()));
    }
}

/// Edge-triggered until nothing is left, level-triggered once; true when the stream has ended.
fn read_some(s: &OwnedFd, reader: &mut Reader, style: Style) -> bool {
    let size = if style == Style::Epoll { 65_536 } else { 4_000 };
    loop {
        match sock::take(s, size, 0) {
            Ok(bytes) if reader.take(s, &bytes) => return true,
            Ok(_) if style == Style::Epoll => {}
            Ok(_) => return false,
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(libc::EAGAIN));
                return false;
            }
        }
    }
}
