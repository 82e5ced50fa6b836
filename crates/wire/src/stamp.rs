//! What a generated datagram carries: enough to tell loss, duplication, reordering and delay.

/// The first 22 bytes of a generated payload, little-endian (bpf/wire.bpf.c, `struct stamp`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// The flow, from 0.
    pub flow: u32,
    /// The datagram's number within its flow, from 0.
    pub seq: u64,
    /// CLOCK_MONOTONIC when it was sent, in nanoseconds.
    pub time_ns: u64,
}

impl Stamp {
    /// Bytes of a stamp: with Ethernet, IPv4 and UDP headers a frame of 64.
    pub const LEN: usize = 22;
    const MAGIC: u16 = 0x7748;

    /// The stamp of a payload, if it has one.
    pub fn parse(payload: &[u8]) -> Option<Self> {
        let bytes = payload.get(..Self::LEN)?;
        let magic = u16::from_le_bytes(bytes[0..2].try_into().ok()?);
        (magic == Self::MAGIC).then_some(Self {
            flow: u32::from_le_bytes(bytes[2..6].try_into().ok()?),
            seq: u64::from_le_bytes(bytes[6..14].try_into().ok()?),
            time_ns: u64::from_le_bytes(bytes[14..22].try_into().ok()?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payloads_without_the_magic_or_too_short_have_no_stamp() {
        let mut bytes = [0; 40];
        assert_eq!(Stamp::parse(&bytes), None);
        bytes[..2].copy_from_slice(&Stamp::MAGIC.to_le_bytes());
        bytes[2] = 5;
        assert_eq!(Stamp::parse(&bytes), Some(Stamp { flow: 5, seq: 0, time_ns: 0 }));
        assert_eq!(Stamp::parse(&bytes[..21]), None);
    }
}
