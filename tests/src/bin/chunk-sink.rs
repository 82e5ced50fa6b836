//! `chunk-sink ADDRESS:PORT SEED KEEP`: reads one connection by chunks of many sizes, and by ordinary reads among them, until its end.
//! The last KEEP pieces are looked at only when they leave, so that a chunk that changes shows. Prints what [`Tally`] has.

use hoist::{Chunk, TcpListener, TcpStream};
use hoist_tests::tally::Tally;
use std::{
    collections::VecDeque,
    io::{self, Read},
};

fn main() -> io::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [address, seed, keep] = &arguments[..] else { panic!("usage: chunk-sink ADDRESS:PORT SEED KEEP") };
    let (stream, _) = TcpListener::bind(address)?.accept()?;
    let (seed, keep) = (seed.parse().expect("a seed"), keep.parse().expect("a number of pieces"));
    println!("{}", tally(&stream, seed, keep)?);
    Ok(())
}

enum Piece {
    Chunk(Chunk),
    Read(Vec<u8>),
}

fn tally(stream: &TcpStream, mut seed: u64, keep: usize) -> io::Result<Tally> {
    let (mut kept, mut tally) = (VecDeque::new(), Tally::default());
    while let Some(piece) = take(stream, &mut seed)? {
        kept.push_back(piece);
        if kept.len() > keep {
            kept.pop_front().iter().for_each(|piece| add(&mut tally, piece));
        }
    }
    kept.iter().for_each(|piece| add(&mut tally, piece));
    Ok(tally)
}

fn add(tally: &mut Tally, piece: &Piece) {
    match piece {
        Piece::Chunk(chunk) => tally.add(chunk, chunk.is_borrowed()),
        Piece::Read(bytes) => tally.add(bytes, false),
    }
}

/// The next piece; None at the end of the stream.
fn take(mut stream: &TcpStream, seed: &mut u64) -> io::Result<Option<Piece>> {
    let draw = hoist_tests::tally::draw(seed);
    let len = (draw >> 8) as usize % 5_000 + 1;
    let piece = match draw % 8 {
        0 => {
            let mut bytes = vec![0; len];
            let len = stream.read(&mut bytes)?;
            bytes.truncate(len);
            Piece::Read(bytes)
        }
        1 => Piece::Chunk(stream.recv_chunk(len)?),
        _ => Piece::Chunk(stream.recv_chunk(hoist::CHUNK_MAX)?),
    };
    let end = match &piece {
        Piece::Chunk(chunk) => chunk.is_empty(),
        Piece::Read(bytes) => bytes.is_empty(),
    };
    Ok((!end).then_some(piece))
}
