//! Netlink requests and replies as bytes: generic netlink and nfnetlink, which the route crate does not speak.
//!
//! A reply is input: every length is checked, and a malformed one ends the walk instead of the program.

use netlink_sys::{Socket, SocketAddr};
use std::io;

const HEADER: usize = 16;
const ATTRIBUTE: usize = 4;
/// The kernel sets NLA_F_NESTED and NLA_F_NET_BYTEORDER in the type's upper bits.
const TYPE_MASK: u16 = 0x3fff;
const NLMSG_ERROR: u16 = libc::NLMSG_ERROR as u16;
const NLMSG_DONE: u16 = libc::NLMSG_DONE as u16;
const NLM_F_REQUEST: u16 = libc::NLM_F_REQUEST as u16;

/// Whether a request wants one object or all of them.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Scope {
    /// One object; the kernel ends its answer with an acknowledgement.
    One,
    /// A dump; the kernel ends its answer with NLMSG_DONE.
    All,
}

impl Scope {
    fn flags(self) -> u16 {
        NLM_F_REQUEST
            | match self {
                Scope::One => libc::NLM_F_ACK as u16,
                Scope::All => libc::NLM_F_DUMP as u16,
            }
    }
}

/// A netlink socket that asks one question at a time.
pub(super) struct Channel {
    socket: Socket,
    sequence: u32,
}

impl Channel {
    pub(super) fn open(protocol: libc::c_int) -> io::Result<Channel> {
        let mut socket = Socket::new(protocol as isize)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Channel { socket, sequence: 0 })
    }

    /// The bodies of all messages the kernel answers with.
    pub(super) fn ask(&mut self, kind: u16, scope: Scope, body: &[u8]) -> io::Result<Vec<Vec<u8>>> {
        self.sequence += 1;
        self.socket.send(&message(kind, scope.flags(), self.sequence, body), 0)?;
        let mut bodies = Vec::new();
        loop {
            let (datagram, _) = self.socket.recv_from_full()?;
            for reply in replies(&datagram, self.sequence) {
                match reply {
                    Reply::Body(body) => bodies.push(body.to_vec()),
                    Reply::End(0) => return Ok(bodies),
                    Reply::End(errno) => return Err(io::Error::from_raw_os_error(errno)),
                }
            }
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Reply<'a> {
    Body(&'a [u8]),
    /// Acknowledgement or end of dump, with an errno (0: success).
    End(i32),
}

fn message(kind: u16, flags: u16, sequence: u32, body: &[u8]) -> Vec<u8> {
    let length = (HEADER + body.len()) as u32;
    let mut bytes = Vec::with_capacity(length as usize);
    bytes.extend(length.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    bytes.extend(0u32.to_ne_bytes());
    bytes.extend(body);
    bytes
}

fn replies(datagram: &[u8], sequence: u32) -> Vec<Reply<'_>> {
    let mut found = Vec::new();
    let mut rest = datagram;
    while let Some(length) = u32_at(rest, 0).map(|length| length as usize) {
        let Some(body) = rest.get(HEADER..length) else { break };
        if u32_at(rest, 8) == Some(sequence) {
            found.push(match u16_at(rest, 4) {
                Some(NLMSG_ERROR | NLMSG_DONE) => Reply::End(errno_in(body)),
                _ => Reply::Body(body),
            });
        }
        rest = rest.get(aligned(length)..).unwrap_or_default();
    }
    found
}

/// The kernel reports a negative errno; an end without one is a success.
fn errno_in(body: &[u8]) -> i32 {
    u32_at(body, 0).map_or(0, |errno| (errno as i32).wrapping_neg())
}

/// Appends one attribute.
pub(super) fn put(bytes: &mut Vec<u8>, kind: u16, value: &[u8]) {
    bytes.extend(((ATTRIBUTE + value.len()) as u16).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(aligned(bytes.len()), 0);
}

/// The attributes in `bytes`, in order.
pub(super) fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let length = u16_at(rest, 0)? as usize;
        let kind = u16_at(rest, 2)? & TYPE_MASK;
        let value = rest.get(ATTRIBUTE..length)?;
        rest = rest.get(aligned(length)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// The first attribute of this kind.
pub(super) fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(found, _)| *found == kind).map(|(_, value)| value)
}

/// An unsigned attribute: u8, u16, u32 or u64 (netlink's `uint` may be either of the last two).
pub(super) fn number(bytes: &[u8], kind: u16) -> Option<u64> {
    let value = attribute(bytes, kind)?;
    Some(match value.len() {
        1 => value[0].into(),
        2 => u16_at(value, 0)?.into(),
        4 => u32_at(value, 0)?.into(),
        8 => u64::from_ne_bytes(value.try_into().ok()?),
        _ => return None,
    })
}

/// A NUL-terminated text attribute.
pub(super) fn text(bytes: &[u8], kind: u16) -> Option<String> {
    attribute(bytes, kind).map(text_of)
}

/// Text up to the first NUL.
pub(super) fn text_of(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

pub(super) fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(offset..)?.first_chunk().copied()?))
}

pub(super) fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(offset..)?.first_chunk().copied()?))
}

fn aligned(length: usize) -> usize {
    length.next_multiple_of(4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_read_back_in_order_whatever_their_length() {
        let mut bytes = Vec::new();
        put(&mut bytes, 1, b"odd");
        put(&mut bytes, 2 | 0x8000, &7u32.to_ne_bytes());
        put(&mut bytes, 3, &[]);
        let found: Vec<_> = attributes(&bytes).collect();
        assert_eq!(found, [(1, &b"odd"[..]), (2, &7u32.to_ne_bytes()[..]), (3, &[][..])]);
        assert_eq!(number(&bytes, 2), Some(7));
        assert_eq!(text(&bytes, 1).as_deref(), Some("odd"));
    }

    #[test]
    fn numbers_of_every_width_are_read() {
        let mut bytes = Vec::new();
        put(&mut bytes, 1, &[9]);
        put(&mut bytes, 2, &300u16.to_ne_bytes());
        put(&mut bytes, 8, &u64::MAX.to_ne_bytes());
        put(&mut bytes, 5, &[1, 2, 3]);
        assert_eq!(number(&bytes, 1), Some(9));
        assert_eq!(number(&bytes, 2), Some(300));
        assert_eq!(number(&bytes, 8), Some(u64::MAX));
        assert_eq!(number(&bytes, 5), None, "no number has three bytes");
    }

    #[test]
    fn truncated_attributes_end_the_walk() {
        let mut bytes = Vec::new();
        put(&mut bytes, 1, b"whole");
        put(&mut bytes, 2, b"cut off here");
        for end in 0..bytes.len() {
            assert!(attributes(&bytes[..end]).count() <= 2);
        }
        assert_eq!(attributes(&bytes[..14]).count(), 1);
        assert_eq!(attributes(&[0, 0, 1, 0, 0, 0, 0, 0]).count(), 0, "a length of zero must not loop");
        assert_eq!(attributes(&[3, 0, 1, 0]).count(), 0, "shorter than its own header");
    }

    #[test]
    fn replies_to_other_requests_are_passed_over() {
        let mut datagram = message(20, 0, 6, b"stale");
        datagram.resize(aligned(datagram.len()), 0);
        datagram.extend(message(20, 0, 7, b"mine"));
        datagram.extend(message(NLMSG_DONE, 0, 7, &0i32.to_ne_bytes()));
        assert_eq!(replies(&datagram, 7), [Reply::Body(b"mine"), Reply::End(0)]);
    }

    #[test]
    fn a_refusal_carries_its_errno() {
        let datagram = message(NLMSG_ERROR, 0, 1, &(-libc::EPERM).to_ne_bytes());
        assert_eq!(replies(&datagram, 1), [Reply::End(libc::EPERM)]);
    }

    #[test]
    fn a_message_longer_than_its_datagram_is_not_read() {
        let whole = message(20, 0, 1, b"12345678");
        for end in 0..whole.len() {
            assert!(replies(&whole[..end], 1).is_empty());
        }
    }
}
