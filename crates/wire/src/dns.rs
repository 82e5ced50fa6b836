//! The DNS wire: queries at a stated rate from one CPU, and their answers judged where they leave (bpf/dnswire.bpf.c).

use crate::{
    bpf::{program, take},
    error::{During, Error, Result},
    frame::{sum, v4_header_summed},
    generator::readable,
    live::{Live, LiveThread, limit_ns},
    pace::Pace,
    testbed::Testbed,
};
use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, MapData, RingBuf},
    programs::{SchedClassifier, Xdp, tc::TcAttachType},
};
use nix::poll::{PollTimeout, poll};
use std::{os::fd::AsFd, time::Duration};

/// What to ask, and how fast.
///
/// A query asks for the IPv4 address of `hostsNN.example.test`, NN from 00 to 99 in turn, and 192.0.2.NN is the right answer.
#[derive(Clone, Copy, Debug)]
pub struct Queries {
    /// The server's UDP port on the host's end.
    pub port: u16,
    /// Queries per second; 0 is as fast as possible.
    pub per_second: f64,
    /// For so long.
    pub time: Duration,
    /// Source ports in turn, at most 16,384.
    pub flows: u16,
    /// The CPU that sends.
    pub cpu: usize,
}

/// What became of the queries.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Answers {
    /// Queries sent.
    pub sent: u64,
    /// From the first query to the last, in seconds.
    pub seconds: f64,
    /// Right answers that came while queries were sent.
    pub right: u64,
    /// Right answers that came afterwards.
    pub late: u64,
    /// Other datagrams from the server's port.
    pub wrong: u64,
}

impl Answers {
    /// Right answers per second while queries were sent.
    pub fn per_second(&self) -> f64 {
        if self.seconds > 0.0 { self.right as f64 / self.seconds } else { 0.0 }
    }

    /// The fraction of the queries that got no right answer.
    pub fn loss(&self) -> f64 {
        self.sent.saturating_sub(self.right + self.late) as f64 / self.sent.max(1) as f64
    }
}

impl Queries {
    /// The names that are asked for, and the address of each.
    pub fn names() -> impl Iterator<Item = (String, std::net::Ipv4Addr)> {
        (0..NAMES).map(|number| (format!("hosts{number:02}.{ZONE}"), [192, 0, 2, number].into()))
    }

    /// The DNS message that asks for `hostsNN`, with NN as its id.
    pub fn message(number: u8) -> Vec<u8> {
        let mut message = question();
        message[1] = number;
        message[18..20].copy_from_slice(&[b'0' + number / 10 % 10, b'0' + number % 10]);
        message
    }

    /// The zone that the names are in.
    pub const ZONE: &str = ZONE;

    /// Asks the server on the host's end of `testbed` and waits until all is asked.
    ///
    /// The answers are counted, and dropped, on the host's device: nothing of them arrives on the wire's.
    ///
    /// # Errors
    /// A rate or a number of flows that cannot be, or BPF programs that the kernel refuses.
    pub fn run(&self, testbed: &Testbed) -> Result<Answers> {
        self.check()?;
        let mut bpf = self.load(testbed)?;
        testbed.host().enter(|| attach(&mut bpf, testbed.host().device()))??;
        let state = take(&mut bpf, "state", Array::<_, [u64; STATE_WORDS]>::try_from)?;
        let counts = take(&mut bpf, "counts", Array::<_, [u64; COUNT_WORDS]>::try_from)?;
        let done = take(&mut bpf, "done", RingBuf::try_from)?;
        let live = Live {
            netns: Some(testbed.wire().netns().clone()),
            cpu: self.cpu,
            favoured: true,
            bpf,
            program: "queries",
            frame: vec![0; FRAME_LEN],
            batch: self.pace().batch(),
        };
        let mut sender = live.start()?;
        wait(&done, &sender, self.time + PATIENCE)?;
        settle(&counts)?;
        let _attached = sender.end()?; // the thread's own error, if that is why it ended
        read(&state, &counts)
    }

    fn check(&self) -> Result<()> {
        if !(self.per_second >= 0.0 && self.per_second <= 1e9) {
            return Err(Error::Spec(format!("{} queries per second is no rate", self.per_second)));
        }
        if !(1..=MOST_FLOWS).contains(&self.flows) {
            return Err(Error::Spec(format!("1 to {MOST_FLOWS} flows, not {}", self.flows)));
        }
        Ok(())
    }

    fn pace(&self) -> Pace {
        Pace(self.per_second)
    }

    fn load(&self, testbed: &Testbed) -> Result<Ebpf> {
        let frame = frame(testbed, self.port);
        let mut bpf = EbpfLoader::new()
            .override_global("ifindex", &testbed.wire().ifindex(), true)
            .override_global("gap", &self.pace().gap(), true)
            .override_global("batch", &self.pace().batch(), true)
            .override_global("limit_ns", &limit_ns(self.time), true)
            .override_global("flows", &u32::from(self.flows), true)
            .override_global("first_port", &FIRST_PORT, true)
            .override_global("server_port", &self.port, true)
            .override_global("udp_sum", &udp_sum(&frame), true)
            .override_global("query", &words(&frame)[..], true)
            .load(OBJECT)
            .map_err(|error| Error::bpf("loading the DNS wire (bpf)", &error))?;
        let program: &mut Xdp = program(&mut bpf, "queries")?;
        program.load().map_err(|error| Error::bpf("loading the DNS wire (BPF_PROG_LOAD)", &error))?;
        Ok(bpf)
    }
}

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/dnswire.bpf.o"));
const ZONE: &str = "example.test";
const NAMES: u8 = 100;
const FIRST_PORT: u16 = 20000;
const MOST_FLOWS: u16 = 16384;
const FRAME_LEN: usize = 80;
const UDP_AT: usize = 34;
const PATIENCE: Duration = Duration::from_secs(10);
/// Answers to the last queries have come when none has for so long.
const QUIET_MS: u8 = 20;

// struct dns_state and struct dns_counts, in words.
const SENT: usize = 3;
const FIRST_NS: usize = 4;
const LAST_NS: usize = 5;
const STATE_WORDS: usize = 7;
const COUNT_WORDS: usize = 3;

/// A query with id, source port, the digits of its name and the UDP checksum still zero.
fn frame(testbed: &Testbed, port: u16) -> [u8; FRAME_LEN] {
    let (wire, host) = (testbed.wire(), testbed.host());
    let mut bytes = [host.mac(), wire.mac()].concat();
    bytes.extend([0x08, 0x00]);
    bytes.extend(v4_header_summed(17, FRAME_LEN - UDP_AT, wire.v4().octets(), host.v4().octets()));
    bytes.extend([0, 0]);
    bytes.extend(port.to_be_bytes());
    bytes.extend(((FRAME_LEN - UDP_AT) as u16).to_be_bytes());
    bytes.extend([0, 0]);
    bytes.extend(question());
    let mut frame = [0; FRAME_LEN];
    frame.copy_from_slice(&bytes);
    frame
}

/// RFC 1035, section 4.1: a header of one question (no recursion asked for), name, type A, class IN.
fn question() -> Vec<u8> {
    let mut bytes = vec![0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in ["hosts\0\0"].into_iter().chain(ZONE.split('.')) {
        bytes.push(label.len() as u8);
        bytes.extend(label.bytes());
    }
    bytes.extend([0, 0, 1, 0, 1]);
    bytes
}

/// The sum of pseudo header, UDP header and payload, in the machine's byte order, not folded.
fn udp_sum(frame: &[u8; FRAME_LEN]) -> u32 {
    let length = frame[UDP_AT + 4..UDP_AT + 6].to_vec();
    sum(&frame[UDP_AT - 8..]) + sum(&[0, 17]) + sum(&length)
}

fn words(frame: &[u8; FRAME_LEN]) -> Vec<u64> {
    frame.chunks_exact(8).map(|bytes| u64::from_ne_bytes(bytes.try_into().unwrap_or_default())).collect()
}

fn attach(bpf: &mut Ebpf, device: &str) -> Result<()> {
    let refused = |error| Error::bpf("attaching to the host's device (BPF_LINK_CREATE, tcx egress)", &error);
    let program: &mut SchedClassifier = program(bpf, "answers")?;
    program.load().map_err(refused)?;
    program.attach(device, TcAttachType::Egress).map(drop).map_err(refused)
}

fn wait(done: &RingBuf<MapData>, sender: &LiveThread, patience: Duration) -> Result<()> {
    let timeout = PollTimeout::try_from(patience).unwrap_or(PollTimeout::MAX);
    match readable(&[done.as_fd(), sender.ended()], timeout)? {
        0 => Err(Error::Spec("the DNS wire did not end in time".into())),
        _ => Ok(()),
    }
}

/// Waits until no more answers come.
fn settle(counts: &Array<MapData, [u64; COUNT_WORDS]>) -> Result<()> {
    let look = || counts.get(&0, 0).map_err(|error| Error::bpf("reading the DNS wire's counters", &error));
    let mut before = look()?;
    loop {
        poll(&mut [], PollTimeout::from(QUIET_MS)).during(|| "waiting for answers (poll)".into())?;
        let now = look()?;
        if now == before {
            return Ok(());
        }
        before = now;
    }
}

fn read(
    state: &Array<MapData, [u64; STATE_WORDS]>,
    counts: &Array<MapData, [u64; COUNT_WORDS]>,
) -> Result<Answers> {
    let refused = |error| Error::bpf("reading the DNS wire's counters", &error);
    let state = state.get(&0, 0).map_err(refused)?;
    let [right, late, wrong] = counts.get(&0, 0).map_err(refused)?;
    let seconds = state[LAST_NS].saturating_sub(state[FIRST_NS]) as f64 / 1e9;
    Ok(Answers { sent: state[SENT], seconds, right, late, wrong })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_asks_for_the_address_of_a_name_of_the_zone() {
        let bytes = question();
        assert_eq!(bytes.len(), FRAME_LEN - 42);
        assert_eq!(&bytes[12..18], b"\x07hosts");
        assert_eq!(&bytes[20..], b"\x07example\x04test\0\0\x01\0\x01");
    }

    #[test]
    fn a_message_names_its_number() {
        assert_eq!(&Queries::message(42)[..2], [0, 42]);
        assert_eq!(&Queries::message(42)[12..20], b"\x07hosts42");
    }

    #[test]
    fn names_have_two_digits_and_addresses_their_number() {
        let names: Vec<_> = Queries::names().collect();
        assert_eq!(names.len(), 100);
        assert_eq!(names[7], ("hosts07.example.test".into(), [192, 0, 2, 7].into()));
    }

    #[test]
    fn late_answers_are_no_loss_but_do_not_raise_the_rate() {
        let answers = Answers { sent: 100, seconds: 0.5, right: 60, late: 20, wrong: 5 };
        assert_eq!((answers.per_second(), answers.loss()), (120.0, 0.2));
    }
}
