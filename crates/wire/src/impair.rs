//! What a bad link does to packets: decided here, from a seed and nothing else, and done in link.rs.

use crate::{
    error::{Error, Result},
    random::Random,
};
use std::time::Duration;

/// What a link does to the packets that cross it. The default is a perfect link.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Impairment {
    /// Probability that a packet is lost.
    pub loss: f64,
    /// How long every packet takes.
    pub delay: Duration,
    /// Up to so much longer or shorter, evenly spread. Packets do not overtake each other by it.
    pub jitter: Duration,
    /// Probability that a packet is held back until the next three have passed it, or for 20 ms when there are none.
    pub reorder: f64,
    /// Probability that a bit is flipped that a transport checksum covers. A copy that [`Impairment::duplicate`]
    /// makes is intact.
    pub corrupt: f64,
    /// Probability that a packet arrives twice.
    pub duplicate: f64,
    /// The same seed does the same to the same packets.
    pub seed: u64,
}

impl Impairment {
    pub(crate) fn check(&self) -> Result<()> {
        let wrong = |why: String| Err(Error::Spec(why));
        let all = [
            ("loss", self.loss),
            ("reorder", self.reorder),
            ("corrupt", self.corrupt),
            ("duplicate", self.duplicate),
        ];
        for (name, probability) in all {
            if !(0.0..=1.0).contains(&probability) {
                return wrong(format!("{name} is a probability, 0 to 1, not {probability}"));
            }
        }
        match self.delay.max(self.jitter) > LONGEST {
            true => wrong(format!("delay and jitter are at most {LONGEST:?}")),
            false => Ok(()),
        }
    }
}

const LONGEST: Duration = Duration::from_secs(60);

/// What becomes of one packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fate {
    /// It is lost, and nothing else happens to it.
    pub lost: bool,
    /// It arrives twice.
    pub duplicated: bool,
    /// Others pass it.
    pub held_back: bool,
    /// The bit that is flipped is chosen by this number.
    pub corrupted: Option<u64>,
    /// How long it takes, in nanoseconds.
    pub delay_ns: u64,
}

/// The fates of packets, one after the other.
#[derive(Clone, Debug)]
pub struct Fates {
    impairment: Impairment,
    random: Random,
}

impl Fates {
    /// Those that `impairment` brings about, from its seed.
    pub fn new(impairment: Impairment) -> Self {
        Self { impairment, random: Random::seeded(impairment.seed) }
    }

    /// The next packet's. Takes the same count of random numbers whatever it is, so that which packets are lost
    /// does not depend on whether some are delayed too.
    pub fn fate(&mut self) -> Fate {
        let Impairment { loss, reorder, corrupt, duplicate, .. } = self.impairment;
        let mut happens = |probability: f64| self.random.unit() < probability;
        let [lost, duplicated, held_back, corrupted] = [loss, duplicate, reorder, corrupt].map(&mut happens);
        let bit = self.random.word();
        Fate {
            lost,
            duplicated: duplicated && !lost,
            held_back: held_back && !lost,
            corrupted: (corrupted && !lost).then_some(bit),
            delay_ns: self.delay_ns(),
        }
    }

    fn delay_ns(&mut self) -> u64 {
        let jitter = self.impairment.jitter.as_nanos() as f64;
        let delay = self.impairment.delay.as_nanos() as f64 + jitter * (2.0 * self.random.unit() - 1.0);
        delay.max(0.0) as u64
    }
}

/// Flips a bit of what an IP packet carries. False when there is none that a checksum is sure to miss.
///
/// Length and checksum of UDP stay: a datagram cut short may sum up by chance, and a checksum of 0 means none
/// (RFC 768).
pub(crate) fn corrupt(frame: &mut [u8], bit: u64) -> bool {
    let Some((protocol, at, end)) = carried(frame) else { return false };
    let bits = (end - at) as u64 * 8;
    let mut bit = bit % bits;
    if protocol == UDP && (32..64).contains(&bit) {
        bit -= 32;
    }
    frame[at + (bit / 8) as usize] ^= 1 << (bit % 8);
    true
}

const UDP: u8 = 17;

/// The protocol of what an IP packet in a frame carries, and where that begins and ends. At least 8 bytes.
fn carried(frame: &[u8]) -> Option<(u8, usize, usize)> {
    let word = |at: usize| Some(u16::from_be_bytes(frame.get(at..at + 2)?.try_into().ok()?));
    let ip = if word(12)? == 0x8100 { 18 } else { 14 };
    let (protocol, at, end) = match word(ip - 2)? {
        0x0800 => {
            let header = usize::from(frame.get(ip)? & 0xf) * 4;
            (*frame.get(ip + 9)?, ip + header, ip + usize::from(word(ip + 2)?))
        }
        0x86dd => (*frame.get(ip + 6)?, ip + 40, ip + 40 + usize::from(word(ip + 4)?)),
        _ => return None,
    };
    (at + 8 <= end && end <= frame.len()).then_some((protocol, at, end))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bad() -> Impairment {
        Impairment {
            loss: 0.02,
            delay: Duration::from_micros(200),
            jitter: Duration::from_micros(50),
            reorder: 0.03,
            corrupt: 0.04,
            duplicate: 0.05,
            seed: 9,
        }
    }

    fn fates(impairment: Impairment, count: usize) -> Vec<Fate> {
        let mut fates = Fates::new(impairment);
        (0..count).map(|_| fates.fate()).collect()
    }

    #[test]
    fn a_perfect_link_does_nothing() {
        let nothing = Fate { lost: false, duplicated: false, held_back: false, corrupted: None, delay_ns: 0 };
        assert!(fates(Impairment::default(), 1000).iter().all(|fate| *fate == nothing));
    }

    #[test]
    fn each_impairment_is_as_frequent_as_asked() {
        let all = fates(bad(), 200_000);
        let share = |of: &dyn Fn(&Fate) -> bool| all.iter().filter(|fate| of(fate)).count() as f64 / 2e5;
        for (share, asked) in [
            (share(&|fate| fate.lost), 0.02),
            (share(&|fate| fate.held_back), 0.03 * 0.98),
            (share(&|fate| fate.corrupted.is_some()), 0.04 * 0.98),
            (share(&|fate| fate.duplicated), 0.05 * 0.98),
        ] {
            // Five standard deviations of 200,000 draws of 5 % are 0.24 %.
            assert!((share - asked).abs() < 0.0025, "{share} instead of {asked}");
        }
        assert!(all.iter().all(|fate| (150_000..=250_000).contains(&fate.delay_ns)));
        let mean = all.iter().map(|fate| fate.delay_ns).sum::<u64>() / 200_000;
        assert!((199_500..200_500).contains(&mean), "{mean}");
    }

    #[test]
    fn the_seed_decides_and_other_impairments_do_not_change_what_is_lost() {
        assert_eq!(fates(bad(), 10_000), fates(bad(), 10_000));
        assert_ne!(fates(bad(), 10_000), fates(Impairment { seed: 10, ..bad() }, 10_000));
        let lost = |impairment| fates(impairment, 10_000).iter().map(|fate| fate.lost).collect::<Vec<_>>();
        assert_eq!(lost(bad()), lost(Impairment { loss: 0.02, seed: 9, ..Impairment::default() }));
    }

    #[test]
    fn jitter_longer_than_the_delay_is_never_a_step_back_in_time() {
        let jitter = Impairment { jitter: Duration::from_micros(100), ..Impairment::default() };
        assert!(fates(jitter, 1000).iter().all(|fate| fate.delay_ns <= 100_000));
    }

    #[test]
    fn what_is_no_probability_is_refused() {
        for loss in [-0.1, 1.1, f64::NAN] {
            assert!(Impairment { loss, ..bad() }.check().is_err(), "{loss}");
        }
        assert!(Impairment { delay: Duration::from_secs(61), ..bad() }.check().is_err());
        assert!(bad().check().is_ok());
    }

    /// Frames with 20 bytes behind their IP header, where that begins, and 6 bytes of padding.
    fn frames(protocol: u8) -> [(Vec<u8>, usize); 3] {
        let mut v4 = [&[0; 12][..], &[8, 0], &[0x45, 0, 0, 40], &[0; 5], &[protocol], &[0; 10]].concat();
        let mut v6 = [&[0; 12][..], &[0x86, 0xdd], &[0x60, 0, 0, 0, 0, 20, protocol], &[0; 33]].concat();
        let mut tagged = [&[0; 12][..], &[0x81, 0, 0, 100], &v4[12..]].concat();
        for frame in [&mut v4, &mut v6, &mut tagged] {
            frame.extend([0; 26]);
        }
        [(v4, 34), (v6, 54), (tagged, 38)]
    }

    #[test]
    fn one_bit_is_flipped_behind_the_ip_header_and_before_the_padding() {
        for (frame, at) in frames(6) {
            let hit: std::collections::BTreeSet<usize> = (0..1000)
                .map(|bit| {
                    let mut copy = frame.clone();
                    assert!(corrupt(&mut copy, bit * 7));
                    let changed: Vec<_> = (0..frame.len()).filter(|i| copy[*i] != frame[*i]).collect();
                    assert_eq!((changed.len(), (copy[changed[0]] ^ frame[changed[0]]).count_ones()), (1, 1));
                    changed[0]
                })
                .collect();
            assert_eq!(hit, (at..at + 20).collect());
        }
    }

    #[test]
    fn length_and_checksum_of_udp_stay() {
        for (frame, at) in frames(UDP) {
            for bit in 0..160 {
                let mut copy = frame.clone();
                assert!(corrupt(&mut copy, bit));
                assert_eq!(copy[at + 4..at + 8], frame[at + 4..at + 8]);
                assert_ne!(copy, frame);
            }
        }
    }

    #[test]
    fn what_is_no_whole_ip_packet_stays_as_it_is() {
        let (frame, _) = frames(6)[0].clone();
        for end in 0..54 {
            assert!(!corrupt(&mut frame[..end].to_vec(), 1), "{end} bytes");
        }
        let mut arp = frame.clone();
        arp[13] = 6;
        assert!(!corrupt(&mut arp, 1));
    }
}
