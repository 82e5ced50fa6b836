//! What a stream of the TCP wire must be. Shared source of the sink and of tests; it uses nothing of Hoist.

/// Compares a stream of the TCP wire with what it must be: each segment starts with its offset (8 bytes,
/// little-endian), byte n of the rest is n modulo 256.
pub(crate) struct Check {
    segment: Vec<u8>,
    /// Bytes so far.
    pub(crate) position: u64,
    /// Pieces of segments that were not as they must be.
    pub(crate) errors: u64,
}

impl Check {
    /// Of a stream in segments of `length` bytes.
    pub(crate) fn of_segments(length: usize) -> Self {
        Self { segment: (0..length).map(|n| n as u8).collect(), position: 0, errors: 0 }
    }

    /// Takes the stream's next bytes, wherever they are cut.
    pub(crate) fn take(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let within = (self.position % self.segment.len() as u64) as usize;
            let start = self.position - within as u64;
            self.segment[..8].copy_from_slice(&start.to_le_bytes());
            let (piece, rest) = bytes.split_at(bytes.len().min(self.segment.len() - within));
            self.errors += u64::from(*piece != self.segment[within..within + piece.len()]);
            self.position += piece.len() as u64;
            bytes = rest;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(segments: u64, length: usize) -> Vec<u8> {
        let segment = |n: u64| {
            let tag = (n * length as u64).to_le_bytes();
            tag.into_iter().chain((8..length).map(|n| n as u8))
        };
        (0..segments).flat_map(segment).collect()
    }

    fn errors(bytes: &[u8], cut: usize) -> u64 {
        let mut check = Check::of_segments(100);
        bytes.chunks(cut).for_each(|piece| check.take(piece));
        check.errors
    }

    #[test]
    fn a_whole_stream_has_no_errors_wherever_it_is_cut() {
        let bytes = stream(30, 100);
        for cut in 1..350 {
            assert_eq!(errors(&bytes, cut), 0, "cut every {cut} bytes");
        }
    }

    #[test]
    fn any_wrong_byte_is_an_error() {
        let bytes = stream(3, 100);
        for at in 0..bytes.len() {
            let mut wrong = bytes.clone();
            wrong[at] ^= 4;
            assert_eq!(errors(&wrong, 64), 1, "byte {at}");
        }
    }

    #[test]
    fn a_missing_segment_is_an_error() {
        let mut bytes = stream(5, 100);
        bytes.drain(100..200);
        assert_eq!(errors(&bytes, 1000), 3);
    }
}
