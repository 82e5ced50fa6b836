//! What must hold for any frame as TCP; shared by the fuzz target and `crates/packet/tests/garbage.rs`.

use hoist_packet::{
    Refused,
    tcp::{self, ChecksumTrust, Segment},
};

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
    let verified = tcp::parse(frame, ChecksumTrust::Verify);
    let allowed = tcp::parse(frame, ChecksumTrust::PartialAllowed);
    if let Ok(segment) = &verified {
        assert!(!segment.partial);
        lies_within(segment, frame);
        let lenient = allowed.as_ref().expect("more trust never refuses more");
        assert_eq!(&Segment { partial: false, ..lenient.clone() }, segment);
    }
    completes(frame, &allowed);
    Seen {
        verify: verified.map(|_| ()),
        partial: allowed.is_ok_and(|segment| segment.partial),
        filled: fills(frame),
    }
}

/// The payload is inside the frame behind all headers, and nothing after it matters.
fn lies_within(segment: &Segment, frame: &[u8]) {
    let payload = segment.payload_in(frame).expect("payload within the frame");
    assert_eq!(payload.len(), segment.payload_len() as usize);
    assert!(matches!(segment.transport_at, 34 | 54));
    assert!((20..=60).contains(&(segment.payload.start - segment.transport_at)));
    let mut padded = frame.to_vec();
    padded.extend([0xa5; 46]);
    assert_eq!(tcp::parse(&padded, ChecksumTrust::Verify).as_ref(), Ok(segment), "padding is ignored");
}

/// A frame that is accepted with a partial checksum is accepted as complete after completion; no other byte
/// changes.
fn completes(frame: &[u8], allowed: &Result<Segment, Refused>) {
    let mut copy = frame.to_vec();
    let completed = tcp::complete_checksum(&mut copy);
    match allowed {
        Ok(segment) => {
            assert_eq!(completed, Ok(()));
            let complete = Segment { partial: false, ..segment.clone() };
            assert_eq!(tcp::parse(&copy, ChecksumTrust::Verify), Ok(complete));
            if segment.partial {
                let field = segment.transport_at as usize + 16;
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
    let filled = tcp::fill_checksums(&mut copy);
    let verified = tcp::parse(&copy, ChecksumTrust::Verify);
    assert_eq!(filled, verified.as_ref().map(|_| ()).map_err(|&refused| refused));
    match verified {
        Ok(segment) => lies_within(&segment, &copy),
        Err(_) => assert_eq!(copy, frame),
    }
    filled.is_ok()
}
