//! What must hold for any frame; shared by the fuzz target and `crates/packet/tests/garbage.rs`.

use hoist_packet::{
    Refused,
    udp::{self, ChecksumTrust, Datagram},
};

const ETHERNET_AND_UDP: usize = 14 + 8;

/// What became of a frame, so that a caller can see that its frames reach every part.
#[allow(dead_code)] // the fuzz target asks for panics only
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Seen {
    pub(crate) verify: Result<(), Refused>,
    pub(crate) partial: bool,
    pub(crate) filled: bool,
}

/// # Panics
/// If the parser breaks a promise.
pub(crate) fn check(frame: &[u8]) -> Seen {
    let verified = udp::parse(frame, ChecksumTrust::Verify);
    let allowed = udp::parse(frame, ChecksumTrust::PartialAllowed);
    if let Ok(datagram) = &verified {
        assert!(!datagram.partial);
        lies_within(datagram, frame);
        let lenient = allowed.as_ref().expect("more trust never refuses more");
        assert_eq!(&Datagram { partial: false, ..lenient.clone() }, datagram);
    }
    completes(frame, &allowed);
    Seen {
        verify: verified.map(|_| ()),
        partial: allowed.is_ok_and(|datagram| datagram.partial),
        filled: fills(frame),
    }
}

/// The payload is inside the frame behind all headers, and nothing after it matters.
fn lies_within(datagram: &Datagram, frame: &[u8]) {
    let payload = datagram.payload_in(frame).expect("payload within the frame");
    assert_eq!(payload.len(), datagram.payload_len() as usize);
    assert!(datagram.payload.start as usize > ETHERNET_AND_UDP);
    let mut padded = frame.to_vec();
    padded.extend([0xa5; 46]);
    assert_eq!(udp::parse(&padded, ChecksumTrust::Verify).as_ref(), Ok(datagram), "padding is ignored");
}

/// A frame that is accepted with a partial checksum is accepted as complete after completion; no other byte
/// changes.
fn completes(frame: &[u8], allowed: &Result<Datagram, Refused>) {
    let mut copy = frame.to_vec();
    let completed = udp::complete_checksum(&mut copy);
    match allowed {
        Ok(datagram) => {
            assert_eq!(completed, Ok(()));
            let complete = Datagram { partial: false, ..datagram.clone() };
            assert_eq!(udp::parse(&copy, ChecksumTrust::Verify), Ok(complete));
            if datagram.partial {
                let field = datagram.payload.start as usize - 2;
                copy[field..field + 2].copy_from_slice(&frame[field..field + 2]);
            }
        }
        Err(refused) => assert_eq!(completed, Err(*refused)),
    }
    assert_eq!(copy, frame);
}

/// With right checksums every frame that has the right structure is accepted, so mutations get past the checksums.
fn fills(frame: &[u8]) -> bool {
    let mut copy = frame.to_vec();
    let filled = udp::fill_checksums(&mut copy);
    let verified = udp::parse(&copy, ChecksumTrust::Verify);
    assert_eq!(filled, verified.as_ref().map(|_| ()).map_err(|&refused| refused));
    match verified {
        Ok(datagram) => lies_within(&datagram, &copy),
        Err(_) => assert_eq!(copy, frame),
    }
    filled.is_ok()
}
