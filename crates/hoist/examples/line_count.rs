//! `line_count ADDRESS:PORT`: counts the lines of whatever is sent to it, without copying it, and prints one line for each connection.
//! SIGTERM ends it. docs/native.md shows it under `hoist run`.

use hoist::{CHUNK_MAX, TcpListener, TcpStream};
use std::{io, thread};

fn main() -> io::Result<()> {
    let address = std::env::args().nth(1).expect("usage: line_count ADDRESS:PORT");
    for stream in TcpListener::bind(&address)?.incoming() {
        let stream = stream?;
        thread::spawn(move || report(&stream));
    }
    Ok(())
}

fn report(stream: &TcpStream) {
    let peer = stream.peer_addr().map_or_else(|_| "gone".to_string(), |peer| peer.to_string());
    match Count::of(stream) {
        Ok(count) => println!("{peer}: {count}"),
        Err(error) => println!("{peer}: {error}"),
    }
}

#[derive(Default)]
struct Count {
    lines: u64,
    bytes: u64,
    chunks: u64,
    /// Bytes read where they arrived.
    borrowed: u64,
    /// The last byte was not the end of a line.
    unfinished: bool,
}

impl Count {
    /// Of a whole stream.
    fn of(stream: &TcpStream) -> io::Result<Self> {
        let mut count = Self::default();
        loop {
            let chunk = match stream.recv_chunk(CHUNK_MAX) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                chunk => chunk?,
            };
            let Some(&last) = chunk.last() else { break };
            count.lines += chunk.iter().filter(|&&byte| byte == b'\n').count() as u64;
            count.bytes += chunk.len() as u64;
            count.borrowed += if chunk.is_borrowed() { chunk.len() as u64 } else { 0 };
            count.chunks += 1;
            count.unfinished = last != b'\n';
        }
        count.lines += u64::from(count.unfinished);
        Ok(count)
    }
}

impl std::fmt::Display for Count {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { lines, bytes, chunks, borrowed, .. } = self;
        write!(f, "{lines} lines, {bytes} bytes in {chunks} chunks, {borrowed} bytes borrowed")
    }
}
