//! What must hold for any segments through the worker, the kernel behind it and the reads of the program; shared by
//! the fuzz target `tcp_worker` and `crates/stream/tests`.
//!
//! The peer is honest, the wire loses, doubles and reorders, and a stranger sends what a receiver must refuse: a wrong
//! acknowledgement, or a time long past. The stranger's bytes, ghosts and the peer's can be told apart.

#[allow(dead_code)]
#[path = "stream.rs"]
mod model;

/// What the worker holds payload in, with a UMEM of its own.
mod payload {
    use hoist_stream::{Payload, worker::Load};
    use std::{cell::RefCell, rc::Rc};

    thread_local! {
        /// Frames ever given to the worker.
        pub(super) static UMEM: RefCell<Vec<Rc<[u8]>>> = const { RefCell::new(Vec::new()) };
    }

    /// Bytes of address space of a frame.
    pub(super) const FRAME: u64 = 4096;

    pub(super) fn bytes_at(load: &Load) -> Vec<u8> {
        let (frame, at) = ((load.address / FRAME) as usize, (load.address % FRAME) as usize);
        UMEM.with_borrow(|umem| umem[frame][at..at + load.len as usize].to_vec())
    }

    #[derive(Debug)]
    pub(super) struct Held {
        /// None: copied out.
        pub(super) frame: Option<u32>,
        pub(super) bytes: Vec<u8>,
    }

    impl Payload for Held {
        fn bytes(&self) -> &[u8] {
            &self.bytes
        }
    }
}

use hoist_packet::{
    Ip, SocketAddrRaw, ethernet,
    flow::FlowKey,
    gro::Merged,
    tcp::{self, ChecksumTrust, Segment, Template},
};
use hoist_stream::{
    Kernel, Reader, Sink, position,
    worker::{Arrived, Fate, Load, Ride, Room, Worker},
};
use model::{Receiver, byte};
use payload::{FRAME, Held, UMEM, bytes_at};

const BASE: u32 = u32::MAX - 5000;
const START: u64 = (1 << 32) - 3000;
const WINDOW: u64 = 5_000;
/// Full segments are held, small ones only behind them.
const MSS: u64 = 400;
/// What the program has sent and the peer may acknowledge.
const SENT_FROM: u32 = 7_000;
const SENT_TO: u32 = 9_000;
const FOREIGN: u8 = 0xff;

/// What was met, so that a caller can see that its operations reach every part.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Seen {
    pub(crate) held: u64,
    pub(crate) real: u64,
    pub(crate) ghosts: u64,
    pub(crate) merged: u64,
    pub(crate) refused: u64,
    pub(crate) lifted: u64,
    pub(crate) passed: u64,
}

/// Runs the operations that `bytes` describe.
///
/// # Panics
/// If the program does not read the peer's stream.
pub(crate) fn check(bytes: &[u8]) -> Seen {
    let mut input = Input(bytes);
    let mut world = World::new(input.next() & 1 == 1);
    while !input.0.is_empty() {
        for _ in 0..4 {
            step(&mut world, &mut input);
        }
        world.holds();
    }
    world.read_to_the_end();
    world.seen
}

/// Whether a repetition is held of what passed the worker by and has been read.
#[allow(dead_code)] // the fuzz target finds its own way
pub(crate) fn repetition_of_what_passed_is_held() -> bool {
    let mut world = World::new(true);
    for _ in 0..3 {
        world.next_segment(MSS, Wire::Ring);
        world.flush();
    }
    assert!(world.seen.held > 0, "lifting is under way");
    let from = world.sent;
    world.next_segment(MSS, Wire::Passed);
    world.through(4 * MSS as usize, false);
    assert_eq!(world.reader.position(), world.sent);
    let (held, frame) = (world.seen.held, world.genuine(from, MSS));
    world.ring(frame);
    world.holds();
    world.seen.held > held
}

struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn next(&mut self) -> u8 {
        let (first, rest) = self.0.split_first().map_or((0, self.0), |(first, rest)| (*first, rest));
        self.0 = rest;
        first
    }
}

fn step(world: &mut World, input: &mut Input<'_>) {
    let operation = input.next();
    match operation {
        0..=123 => world.next_segment(MSS, Wire::Ring),
        124..=139 => world.next_segment(1 + u64::from(input.next()) * 3 / 2, Wire::Ring),
        140..=147 => world.next_segment(MSS, Wire::Lost),
        148..=155 => world.next_segment(MSS, Wire::Passed),
        156..=165 => world.again(input.next(), input.next()),
        166..=171 => world.repair(),
        172..=183 => world.stranger(input.next(), input.next()),
        184..=185 => world.ack = SENT_FROM + u32::from(input.next()) % (SENT_TO - SENT_FROM),
        186..=195 => world.time = world.time.wrapping_add(input.next().into()),
        196..=199 => world.flags = tcp::ACK | input.next() & (tcp::PSH | tcp::ECE | tcp::CWR),
        200..=203 => world.bare(),
        204..=206 => world.rider.kernel.losing = input.next() % 4,
        207..=209 => world.room = [Room::Frame, Room::Copy, Room::None][usize::from(input.next() % 3)],
        210..=212 => world.rider.kernel.receiver.later.clear(),
        213..=224 => world.flush(),
        225..=236 => world.take(usize::from(input.next()) * 16),
        237..=244 => world.through(usize::from(input.next()) * 16, false),
        245..=248 => world.through(usize::from(input.next()) * 16, true),
        _ => world.drain(),
    }
}

/// Which way a segment takes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wire {
    Ring,
    Lost,
    /// `steer` does not lift it.
    Passed,
}

/// Linux: `tcp_validate_incoming`, `tcp_paws_check`, `tcp_ack`, as far as the harness sends anything that they judge.
struct Tcp {
    receiver: Receiver,
    newest_time: Option<u32>,
    /// The TAP refuses so many packets from now on.
    losing: u8,
    refused: u64,
}

impl Tcp {
    fn packet(&mut self, packet: &[u8]) {
        let segment = tcp::parse(packet, ChecksumTrust::PartialAllowed).expect("what rides is sound");
        let time = time_of(packet, &segment);
        let late =
            time.zip(self.newest_time).is_some_and(|(time, newest)| (time.wrapping_sub(newest) as i32) < 0);
        let acknowledges = segment.flags & tcp::ACK != 0 && (SENT_FROM..=SENT_TO).contains(&segment.ack);
        if late || !acknowledges {
            self.refused += 1;
            return;
        }
        let next = self.receiver.next();
        let from = position(BASE, next, segment.seq).expect("within the stream");
        if from <= next {
            self.newest_time = time;
        }
        let payload = segment.payload_in(packet).expect("its own packet");
        self.receiver.receive(from, payload, segment.seq & 1 == 0);
    }
}

fn time_of(packet: &[u8], segment: &Segment) -> Option<u32> {
    let options = &packet[segment.transport_at as usize + 20..segment.payload.start as usize];
    options.get(4..8).map(|time| u32::from_be_bytes(time.try_into().expect("four bytes")))
}

impl Kernel for Tcp {
    type Error = ();

    fn queued(&mut self) -> Result<u64, ()> {
        self.receiver.queued()
    }

    fn discard(&mut self, len: u64) -> Result<u64, ()> {
        self.receiver.discard(len)
    }

    fn read(&mut self, at: usize, len: usize, peek: bool) -> Result<usize, ()> {
        self.receiver.read(at, len, peek)
    }
}

/// The way up the stack, with the books of frames.
struct Rider {
    kernel: Tcp,
    /// Frames that are the worker's, by number.
    out: Vec<bool>,
    ghosts: u64,
    merged: u64,
}

impl Rider {
    fn write(&mut self, packet: &[u8]) {
        if self.kernel.losing > 0 {
            self.kernel.losing -= 1;
        } else {
            self.kernel.packet(packet);
        }
    }

    fn give_back(&mut self, held: Held) {
        if let Some(frame) = held.frame {
            self.free(frame);
        }
    }
}

impl Ride for Rider {
    type Held = Held;

    fn hold(&mut self, load: Load, payload: &[u8], room: Room) -> Held {
        assert_eq!(payload, bytes_at(&load));
        if room == Room::Copy {
            self.free(load.frame);
        }
        Held { frame: (room == Room::Frame).then_some(load.frame), bytes: payload.to_vec() }
    }

    fn ghost(&mut self, merged: &Merged) {
        let mut packet = merged.headers().to_vec();
        packet.resize(packet.len() + merged.payload_len() as usize, 0);
        self.ghosts += 1;
        self.merged += u64::from(merged.segments() > 1);
        self.write(&packet);
    }

    fn real(&mut self, merged: &Merged, loads: &[Load]) {
        let mut packet = merged.headers().to_vec();
        loads.iter().for_each(|load| packet.extend(bytes_at(load)));
        assert_eq!(loads.len(), merged.segments() as usize);
        assert_eq!(packet.len(), merged.headers().len() + merged.payload_len() as usize);
        self.write(&packet);
    }

    fn frame(&mut self, frame: &[u8], _: &Segment) {
        self.write(frame);
    }

    fn drop(&mut self, held: Held) {
        self.give_back(held);
    }

    fn free(&mut self, frame: u32) {
        assert!(std::mem::take(&mut self.out[frame as usize]), "frame {frame} is given back twice");
    }

    fn accepted(&mut self, reader: &Reader) -> Option<u64> {
        let drained = reader.position() - reader.undrained();
        assert_eq!(drained, self.kernel.receiver.copied);
        Some(self.kernel.receiver.next())
    }
}

/// The program's buffer: pieces by offset.
#[derive(Default)]
struct Buffer(Vec<(usize, Vec<u8>)>);

impl Sink for Buffer {
    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.0.push((at, bytes.to_vec()));
    }
}

struct World {
    worker: Worker<Held>,
    reader: Reader,
    rider: Rider,
    room: Room,
    /// The peer's: what it sends next, and what its segments say.
    sent: u64,
    ack: u32,
    time: u32,
    flags: u8,
    timestamps: bool,
    seen: Seen,
}

impl World {
    fn new(timestamps: bool) -> Self {
        UMEM.with_borrow_mut(Vec::clear);
        let mut worker = Worker::new();
        worker.begin(BASE, key(), START);
        let receiver = Receiver::new(START, WINDOW);
        let kernel = Tcp { receiver, newest_time: None, losing: 0, refused: 0 };
        Self {
            worker,
            reader: Reader::at(START),
            rider: Rider { kernel, out: vec![], ghosts: 0, merged: 0 },
            room: Room::Frame,
            sent: START,
            ack: SENT_FROM,
            time: u32::MAX - 100,
            flags: tcp::ACK,
            timestamps,
            seen: Seen::default(),
        }
    }

    fn next_segment(&mut self, len: u64, wire: Wire) {
        if self.sent + len > self.rider.kernel.receiver.copied + WINDOW + MSS {
            return; // the peer respects the window, but for probes of it
        }
        let frame = self.genuine(self.sent, len);
        self.sent += len;
        self.flags = tcp::ACK;
        match wire {
            Wire::Ring => self.ring(frame),
            Wire::Lost => {}
            Wire::Passed => self.rider.kernel.packet(&frame),
        }
    }

    /// Something that was sent before, cut anew.
    fn again(&mut self, back: u8, len: u8) {
        let from = self.sent.saturating_sub(u64::from(back) * 24).max(START);
        let len = (1 + u64::from(len) * 5).min(self.sent - from);
        let frame = self.genuine(from, len);
        self.ring(frame);
    }

    /// What the receiver misses is sent again.
    fn repair(&mut self) {
        self.flush();
        let next = self.rider.kernel.receiver.next();
        if next < self.sent {
            let frame = self.genuine(next, MSS.min(self.sent - next));
            self.ring(frame);
        }
    }

    /// A segment that Linux refuses, just where the next one is due or somewhere else.
    fn stranger(&mut self, place: u8, kind: u8) {
        let at = if place & 1 == 0 { self.sent } else { self.sent + u64::from(place) * 7 };
        let mut template = self.template(at);
        let stamp = options(self.time.wrapping_sub(1_000_000));
        if kind & 1 == 0 || !self.timestamps {
            template.ack = SENT_TO + 1 + u32::from(kind);
        } else {
            template.options = &stamp;
            // A connection that has not seen a time yet believes any.
            if self.rider.kernel.newest_time.is_none() {
                return;
            }
        }
        let payload = [FOREIGN; MSS as usize];
        let frame = written(&Template { payload: &payload, ..template });
        self.ring(frame);
    }

    /// No payload.
    fn bare(&mut self) {
        let frame = self.genuine(self.sent, 0);
        self.ring(frame);
    }

    fn template(&self, at: u64) -> Template<'static> {
        let FlowKey { source, destination } = key();
        Template {
            link: ethernet::Header {
                destination: [2, 0, 0, 0, 0, 2],
                source: [2, 0, 0, 0, 0, 1],
                vlan: None,
            },
            source,
            destination,
            ttl: 64,
            tos: 0,
            flow_label: 0,
            seq: BASE.wrapping_add(at as u32),
            ack: self.ack,
            flags: self.flags,
            window: 500,
            urgent: 0,
            options: &[],
            payload: &[],
        }
    }

    fn genuine(&self, from: u64, len: u64) -> Vec<u8> {
        let payload: Vec<u8> = (from..from + len).map(byte).collect();
        let stamp = options(self.time);
        let options: &[u8] = if self.timestamps { &stamp } else { &[] };
        written(&Template { options, payload: &payload, ..self.template(from) })
    }

    /// A frame comes in from the ring.
    fn ring(&mut self, frame: Vec<u8>) {
        let segment = tcp::parse(&frame, ChecksumTrust::Verify).expect("a sound frame");
        let number = UMEM.with_borrow_mut(|umem| {
            umem.push(frame.into());
            umem.len() as u32 - 1
        });
        self.rider.out.push(true);
        let address = u64::from(number) * FRAME;
        let packet = UMEM.with_borrow(|umem| umem[number as usize].clone());
        let arrived = Arrived { frame: number, address, packet: &packet, segment: &segment };
        match self.worker.segment(&self.reader, &arrived, self.room, &mut self.rider) {
            Fate::Held => self.seen.held += 1,
            Fate::Real => self.seen.real += 1,
            Fate::Urgent => panic!("nothing is urgent"),
        }
    }

    fn flush(&mut self) {
        self.worker.flush(&self.reader, &mut self.rider);
        assert!(self.worker.idle());
    }

    fn take(&mut self, max: usize) {
        let (mut buffer, from) = (Buffer::default(), self.reader.position());
        let mut freed = Vec::new();
        let (index, kernel) = (&mut self.worker.index, &mut self.rider.kernel);
        let taken = self.reader.take(index, kernel, &mut buffer, 0, max, |held| freed.push(held));
        let taken = taken.expect("nothing fails");
        freed.into_iter().for_each(|held| self.rider.give_back(held));
        let got: Vec<u8> = buffer.0.into_iter().flat_map(|(_, bytes)| bytes).collect();
        assert_eq!(got.len(), taken);
        self.is_the_peers(from, &got);
        self.seen.lifted += taken as u64;
    }

    fn through(&mut self, max: usize, peek: bool) {
        let (mut buffer, from) = (Buffer::default(), self.reader.position());
        let mut freed = Vec::new();
        let (index, kernel) = (&mut self.worker.index, &mut self.rider.kernel);
        let taken = self.reader.through(index, kernel, &mut buffer, 0, max, peek, |held| freed.push(held));
        let taken = taken.expect("nothing fails").expect("all can be drained");
        freed.into_iter().for_each(|held| self.rider.give_back(held));
        let mut got = self.rider.kernel.receiver.buffer.clone();
        assert_eq!(got.len(), taken.bytes);
        buffer.0.into_iter().for_each(|(at, bytes)| got[at..at + bytes.len()].copy_from_slice(&bytes));
        self.is_the_peers(from, &got);
        if !peek {
            self.seen.lifted += taken.lifted as u64;
            self.seen.passed += (taken.bytes - taken.lifted) as u64;
        }
    }

    fn drain(&mut self) {
        assert_eq!(self.reader.drain(&mut self.rider.kernel), Ok(true));
    }

    fn is_the_peers(&self, from: u64, got: &[u8]) {
        for (at, got) in (from..).zip(got) {
            assert_eq!(*got, byte(at), "at {at}");
        }
    }

    /// Every ghost is held, and every frame is with the worker or given back.
    fn holds(&self) {
        let receiver = &self.rider.kernel.receiver;
        let read = (self.reader.position() - receiver.copied) as usize;
        let later: Vec<(u64, u8)> = receiver.later.iter().map(|(at, got)| (*at, *got)).collect();
        let in_order =
            receiver.queue.chunk_by(|a, b| (*a == 0) == (*b == 0)).scan(receiver.copied, |at, run| {
                let from = *at;
                *at += run.len() as u64;
                Some((from, run.len() as u64, run[0]))
            });
        let out_of_order = later.chunk_by(|a, b| a.0 + 1 == b.0 && (a.1 == 0) == (b.1 == 0));
        let out_of_order = out_of_order.map(|run| (run[0].0, run.len() as u64, run[0].1));
        for (from, len, _) in in_order.chain(out_of_order).filter(|(.., first)| *first == 0) {
            let unread = from.max(receiver.copied + read as u64);
            let ghosts = (from + len).saturating_sub(unread);
            assert_eq!(self.worker.index.covered(unread, ghosts), ghosts, "ghosts at {from} are not held");
        }
        assert!(!receiver.queue.contains(&FOREIGN), "Linux refuses the stranger's");
        let held = self.worker.index.iter().filter(|entry| entry.data.frame.is_some()).count();
        let out = self.rider.out.iter().filter(|out| **out).count();
        assert!(out >= held, "a frame is held and given back");
        assert!(!self.worker.idle() || out == held, "a frame is lost");
    }

    /// The peer sends again what was not acknowledged, until the program has read everything.
    fn read_to_the_end(&mut self) {
        self.rider.kernel.losing = 0;
        while self.reader.position() < self.sent {
            let before = self.reader.position();
            self.flush();
            self.drain();
            self.time = self.time.wrapping_add(1);
            self.repair();
            self.flush();
            self.take(5000);
            self.through(5000, false);
            self.holds();
            assert!(self.reader.position() > before, "no progress at {before}");
        }
        self.seen.ghosts = self.rider.ghosts;
        self.seen.merged = self.rider.merged;
        self.seen.refused = self.rider.kernel.refused;
    }
}

fn key() -> FlowKey {
    let end = |host, port| SocketAddrRaw { ip: Ip::V4([10, 0, 0, host]), port };
    FlowKey { source: end(1, 4000), destination: end(2, 80) }
}

/// NOP, NOP, timestamps.
fn options(time: u32) -> [u8; 12] {
    let [a, b, c, d] = time.to_be_bytes();
    [1, 1, 8, 10, a, b, c, d, 0, 0, 0, 0]
}

fn written(template: &Template<'_>) -> Vec<u8> {
    let mut out = vec![0; 2048];
    let len = template.write(&mut out).expect("room for every frame");
    out.truncate(len);
    out
}
