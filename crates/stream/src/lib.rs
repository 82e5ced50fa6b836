//! A received TCP stream whose payload lies in frames while ghosts stand for it in the kernel. Pure.
//!
//! Positions are bytes from the beginning of the stream, 64 bits wide, so that sequence numbers may wrap.
//!
//! * [`index`]: what payload is held, by position.
//! * [`reader`]: how a read puts together what is held and what only the kernel has.
//! * [`worker`]: what is done with a lifted segment.
//!
//! The one rule that everything rests on: **every ghost byte that the kernel holds at or after the reader's position is held
//! in the index.** Payload goes into the index before its ghost rides, and leaves it only when it has been read. So a byte of
//! the kernel's that the index does not hold is real, and may be given to the program as it is.
#![forbid(unsafe_code)]

pub mod index;
pub mod reader;
pub mod worker;

pub use index::{Entry, Insert, Payload, StreamIndex};
pub use reader::{Kernel, Reader, Sink};
pub use worker::{Arrived, Fate, Load, Ride, Room, Worker};

/// Position of sequence number `seq`, given that some position near it is `near` and byte 0 has sequence number `base`.
///
/// The result is within 2^31 of `near`; None if that lies before the beginning of the stream.
#[inline]
pub fn position(base: u32, near: u64, seq: u32) -> Option<u64> {
    let ahead = seq.wrapping_sub(base.wrapping_add(near as u32)) as i32;
    near.checked_add_signed(ahead.into())
}

#[cfg(test)]
mod tests {
    use super::position;

    #[test]
    fn sequence_numbers_wrap_and_positions_do_not() {
        assert_eq!(position(u32::MAX, 0, 0), Some(1));
        assert_eq!(position(100, 1 << 33, 100), Some(1 << 33));
        assert_eq!(position(100, (1 << 33) + 50, 100), Some(1 << 33));
        assert_eq!(position(100, 5, 99), None);
        assert_eq!(position(0, 0xffff_fff0, 0x10), Some(0x1_0000_0010));
    }
}
