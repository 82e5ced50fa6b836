//! Where the frames of a ring are when its lease ends. Pure.

/// Frames of one ring, counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Frames {
    /// How many belong to the ring.
    pub total: u64,
    /// In the fill ring, for the kernel to take.
    pub fill: u64,
    /// In the rx ring, for the program to take.
    pub rx: u64,
    /// Queued on sockets.
    pub queued: u64,
    /// Held by the shim for refilling.
    pub free: u64,
    /// Lost on purpose: the kernel named a place outside the UMEM.
    pub bad: u64,
    /// The driver may hold frames: zero-copy mode.
    pub zero_copy: bool,
    /// The program was killed before it could say where its frames are.
    pub uncounted: bool,
    /// The kernel has found the rx ring full at least once.
    pub was_full: bool,
}

impl Frames {
    /// Frames that nobody has, or, below zero, that somebody has twice.
    ///
    /// In copy mode the kernel keeps one frame when the rx ring was full (__xsk_rcv: xsk_buff_free puts it on the pool's free
    /// list); in zero-copy mode the driver's ring may hold any number.
    /// A killed program's frames cannot be counted; they go with its UMEM. A program may write any number.
    pub fn leaked(&self) -> i64 {
        if self.uncounted {
            return 0;
        }
        let known =
            [self.rx, self.queued, self.free, self.bad].into_iter().fold(self.fill, u64::saturating_add);
        let signed = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        let missing = signed(self.total).saturating_sub(signed(known));
        let kernel = match (self.zero_copy, self.was_full) {
            (true, _) => i64::MAX,
            (false, true) => 1,
            (false, false) => 0,
        };
        if (0..=kernel).contains(&missing) { 0 } else { missing }
    }
}

#[cfg(test)]
mod tests {
    use super::Frames;

    #[test]
    fn a_frame_that_nobody_has_is_a_leak_and_one_held_twice_is_negative() {
        let whole = Frames { total: 10, fill: 4, rx: 3, queued: 2, free: 1, ..Frames::default() };
        assert_eq!(whole.leaked(), 0);
        assert_eq!(Frames { free: 0, ..whole }.leaked(), 1);
        assert_eq!(Frames { free: 3, ..whole }.leaked(), -2);
        assert_eq!(Frames { free: 0, uncounted: true, ..whole }.leaked(), 0);
    }

    #[test]
    fn absurd_counts_are_as_many_as_can_be() {
        let absurd = Frames { total: 10, queued: u64::MAX, free: u64::MAX, ..Frames::default() };
        assert_eq!(absurd.leaked(), 10 - i64::MAX);
    }

    #[test]
    fn what_the_kernel_may_hold_is_no_leak() {
        let frames = Frames { total: 10, fill: 9, ..Frames::default() };
        assert_eq!(Frames { was_full: true, ..frames }.leaked(), 0);
        assert_eq!(Frames { was_full: true, fill: 8, ..frames }.leaked(), 2);
        assert_eq!(Frames { zero_copy: true, fill: 1, ..frames }.leaked(), 0);
        assert_eq!(Frames { zero_copy: true, fill: 11, ..frames }.leaked(), -1);
    }
}
