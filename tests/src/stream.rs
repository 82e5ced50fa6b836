//! The streams that tests send: every byte follows from a seed and its position, so each one that arrives can be judged.

/// Bytes of stream `seed` from position `at` on.
pub fn fill(seed: u64, at: u64, buffer: &mut [u8]) {
    let mut word = at / 8;
    let mut skip = (at % 8) as usize;
    let mut rest = buffer;
    while !rest.is_empty() {
        let bytes = mix(seed, word).to_le_bytes();
        let len = (8 - skip).min(rest.len());
        rest[..len].copy_from_slice(&bytes[skip..skip + len]);
        rest = &mut rest[len..];
        (word, skip) = (word + 1, 0);
    }
}

/// `len` bytes of stream `seed` from position `at` on.
pub fn bytes(seed: u64, at: u64, len: usize) -> Vec<u8> {
    let mut buffer = vec![0; len];
    fill(seed, at, &mut buffer);
    buffer
}

/// Panics unless `got` is what stream `seed` has from position `at` on; says what it looks like instead.
#[track_caller]
pub fn check(seed: u64, at: u64, got: &[u8]) {
    if let Err(why) = judge(seed, at, got) {
        panic!("{why}");
    }
}

/// Whether `got` is what stream `seed` has from position `at` on; the error says what it looks like instead.
pub fn judge(seed: u64, at: u64, got: &[u8]) -> Result<(), String> {
    let wanted = bytes(seed, at, got.len());
    let differ = |i: &usize| wanted[*i] != got[*i];
    let Some(first) = (0..got.len()).find(differ) else { return Ok(()) };
    let count = (0..got.len()).filter(differ).count();
    let shown = &got[first..got.len().min(first + 16)];
    Err(format!(
        "wrong byte at position {} of stream {seed:x}: {count} of {} from {at} on differ; {shown:02x?} is {}",
        at + first as u64,
        got.len(),
        likeness(seed, at + first as u64, shown),
    ))
}

/// How far from their place bytes are looked for.
const NEAR: u64 = 1 << 20;

fn likeness(seed: u64, at: u64, shown: &[u8]) -> String {
    if shown.iter().all(|&b| b == 0) {
        return "nothing but zeros".into();
    }
    let start = at.saturating_sub(NEAR);
    let around = bytes(seed, start, (2 * NEAR) as usize);
    match around.windows(shown.len()).position(|window| window == shown) {
        Some(found) => format!("what stands at {}", start + found as u64),
        None => "of no place near".into(),
    }
}

/// splitmix64.
fn mix(seed: u64, word: u64) -> u64 {
    let mut z = seed.wrapping_add(word.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

/// Numbers that follow from a seed: the same sizes and turns in every run.
pub struct Draw {
    seed: u64,
    count: u64,
}

impl Draw {
    /// From a seed.
    pub fn new(seed: u64) -> Self {
        Self { seed: !seed, count: 0 }
    }

    /// One of `low..=high`, small ones as often as large ones by order of magnitude.
    pub fn size(&mut self, low: usize, high: usize) -> usize {
        let span = (high - low + 1) as f64;
        low + (span.powf(self.unit()) - 1.0) as usize
    }

    /// One below `limit`.
    pub fn below(&mut self, limit: usize) -> usize {
        (self.unit() * limit as f64) as usize
    }

    fn unit(&mut self) -> f64 {
        self.count += 1;
        (mix(self.seed, self.count) >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Sizes between 1 and `high` that add up to `total`.
    pub fn sizes(&mut self, total: usize, high: usize) -> Vec<usize> {
        let mut left = total;
        let mut list = Vec::new();
        while left > 0 {
            list.push(self.size(1, high).min(left));
            left -= list[list.len() - 1];
        }
        list
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_the_same_however_it_is_cut() {
        let whole = bytes(7, 0, 1_000);
        for at in [1, 7, 8, 9, 500] {
            assert_eq!(bytes(7, at, 400), whole[at as usize..at as usize + 400]);
        }
        assert_ne!(bytes(8, 0, 16), whole[..16]);
    }

    #[test]
    fn a_wrong_byte_is_found_and_what_it_looks_like_is_said() {
        let mut got = bytes(7, 100, 1_000);
        assert_eq!(judge(7, 100, &got), Ok(()));
        got[300..].fill(0);
        assert!(judge(7, 100, &got).unwrap_err().contains("position 400"));
        assert!(judge(7, 100, &got).unwrap_err().contains("zeros"));
        let shifted = bytes(7, 150, 1_000);
        assert!(judge(7, 100, &shifted).unwrap_err().contains("what stands at 150"));
    }

    #[test]
    fn sizes_add_up_and_stay_in_bounds() {
        let list = Draw::new(3).sizes(1_000_000, 50_000);
        assert_eq!(list.iter().sum::<usize>(), 1_000_000);
        assert!(list.iter().all(|size| (1..=50_000).contains(size)));
        assert!(list.iter().any(|&size| size < 10) && list.iter().any(|&size| size > 10_000));
        assert_eq!(list, Draw::new(3).sizes(1_000_000, 50_000));
    }
}
