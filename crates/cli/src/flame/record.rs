//! Records of perf_event_open(2), parsed. Pure.

/// What a ring says.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Record {
    Sample(Sample),
    /// A file was mapped executable.
    Mapped(Mapping),
    /// A process became another program, or a thread has another name.
    Named {
        pid: u32,
        tid: u32,
        name: String,
        exec: bool,
    },
    /// So many records found no room.
    Lost(u64),
    /// Fewer samples than asked for from here on.
    Throttled,
    Unknown,
}

/// One look at a CPU.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Sample {
    pub(super) pid: u32,
    pub(super) tid: u32,
    /// Addresses, innermost first.
    pub(super) kernel: Vec<u64>,
    pub(super) user: Vec<u64>,
}

/// A part of a process's memory that holds code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mapping {
    pub(super) pid: u32,
    pub(super) start: u64,
    pub(super) end: u64,
    /// In the file.
    pub(super) offset: u64,
    pub(super) file: String,
}

const LOST: u32 = 2;
const COMM: u32 = 3;
const THROTTLE: u32 = 5;
const SAMPLE: u32 = 9;
const MMAP2: u32 = 10;
const COMM_EXEC: u16 = 1 << 13;
const HEADER: usize = 8;
/// PERF_CONTEXT_KERNEL and PERF_CONTEXT_USER; all from PERF_CONTEXT_MAX on are marks.
const KERNEL: u64 = -128_i64 as u64;
const USER: u64 = -512_i64 as u64;
const MARKS: u64 = -4095_i64 as u64;

/// Splits what a ring held. A record that is cut short ends it.
pub(super) fn parse(mut bytes: &[u8]) -> Vec<Record> {
    let mut records = Vec::new();
    while let (Some(kind), Some(misc), Some(size)) = (u32_at(bytes, 0), u16_at(bytes, 4), u16_at(bytes, 6)) {
        let Some(body) = bytes.get(HEADER..usize::from(size)) else { break };
        records.push(record(kind, misc, body).unwrap_or(Record::Unknown));
        bytes = &bytes[usize::from(size)..];
    }
    records
}

fn record(kind: u32, misc: u16, body: &[u8]) -> Option<Record> {
    match kind {
        SAMPLE => sample(body).map(Record::Sample),
        MMAP2 => {
            let (start, len) = (u64_at(body, 8)?, u64_at(body, 16)?);
            let (pid, offset, file) = (u32_at(body, 0)?, u64_at(body, 24)?, text(body.get(64..)?));
            Some(Record::Mapped(Mapping { pid, start, end: start.checked_add(len)?, offset, file }))
        }
        COMM => {
            let (pid, tid, name) = (u32_at(body, 0)?, u32_at(body, 4)?, text(body.get(8..)?));
            Some(Record::Named { pid, tid, name, exec: misc & COMM_EXEC != 0 })
        }
        LOST => u64_at(body, 8).map(Record::Lost),
        THROTTLE => Some(Record::Throttled),
        _ => None,
    }
}

/// PERF_SAMPLE_IP | TID | TIME | CPU | CALLCHAIN.
fn sample(body: &[u8]) -> Option<Sample> {
    let mut sample = Sample { pid: u32_at(body, 8)?, tid: u32_at(body, 12)?, ..Sample::default() };
    let count = usize::try_from(u64_at(body, 32)?).ok()?;
    let chain = body.get(40..count.checked_mul(8)?.checked_add(40)?)?;
    let mut kernel = true;
    for address in chain.chunks_exact(8).filter_map(|bytes| u64_at(bytes, 0)) {
        match address {
            KERNEL => kernel = true,
            USER => kernel = false,
            MARKS.. => {}
            _ if kernel => sample.kernel.push(address),
            _ => sample.user.push(address),
        }
    }
    Some(sample)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned()
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn with_header(kind: u32, misc: u16, body: &[u8]) -> Vec<u8> {
        let size = (HEADER + body.len()) as u16;
        [&kind.to_ne_bytes()[..], &misc.to_ne_bytes(), &size.to_ne_bytes(), body].concat()
    }

    fn words(words: &[u64]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_ne_bytes()).collect()
    }

    #[test]
    fn samples_names_maps_and_losses_are_read() {
        let ids = u64::from(7_u32) | u64::from(8_u32) << 32;
        let sample = with_header(SAMPLE, 0, &words(&[1, ids, 0, 0, 5, KERNEL, 100, 101, USER, 55]));
        let lost = with_header(LOST, 0, &words(&[0, 12]));
        let comm = with_header(COMM, COMM_EXEC, &[&words(&[ids])[..], b"knotd\0\0\0"].concat());
        let map = [&words(&[ids, 4096, 8192, 512, 0, 0, 0, 0])[..], b"/lib/a.so\0\0\0\0\0\0\0"].concat();
        let map = with_header(MMAP2, 0, &map);
        let records = parse(
            &[sample, lost, comm, map, with_header(THROTTLE, 0, &[]), with_header(77, 0, &[])].concat(),
        );
        let expected = [
            Record::Sample(Sample { pid: 7, tid: 8, kernel: vec![100, 101], user: vec![55] }),
            Record::Lost(12),
            Record::Named { pid: 7, tid: 8, name: "knotd".into(), exec: true },
            Record::Mapped(Mapping {
                pid: 7,
                start: 4096,
                end: 12288,
                offset: 512,
                file: "/lib/a.so".into(),
            }),
            Record::Throttled,
            Record::Unknown,
        ];
        assert_eq!(records, expected);
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..300), kind in 0_u32..12) {
            parse(&bytes);
            parse(&with_header(kind, 0, &bytes));
        }
    }
}
