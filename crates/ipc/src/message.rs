//! Requests and replies, little-endian, each one datagram of at most [`MAX_MESSAGE`](crate::MAX_MESSAGE) bytes.
//!
//! Both sides decode with care: a message that is short, long or unknown is a [`DecodeError`], never a panic.

use crate::{MAX_MESSAGE, Reason, tcp::Policy};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Why a message could not be read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DecodeError {
    /// Fewer bytes than the message needs.
    #[error("message cut short")]
    Short,
    /// More bytes than the message needs.
    #[error("message has {0} bytes too many")]
    Long(usize),
    /// A kind, family or reason that this version does not know.
    #[error("message holds an unknown {what}: {value}")]
    Unknown {
        /// Which field.
        what: &'static str,
        /// Its value.
        value: u32,
    },
}

/// What a process asks of the broker.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Request {
    /// First message, on the inherited socket, with one end of a socketpair. Answered by [`Reply::Welcome`] on that end.
    Hello {
        /// [`crate::VERSION`] of the shim.
        version: u32,
    },
    /// Lift this socket's port. Carries the socket; the broker asks the kernel for its address and options, which
    /// proves that the process owns it. Also sent after `connect`, `AF_UNSPEC` and option changes. Answered by
    /// [`Reply::Registered`].
    Register {
        /// `SO_COOKIE` of the socket.
        cookie: u64,
        /// The socket wants arrival times: `steer` stamps its packets.
        timestamps: bool,
    },
    /// The socket is about to be closed: stop lifting it. [`Reply::Done`] comes once no new packet will be lifted.
    Unregister {
        /// `SO_COOKIE` of the socket.
        cookie: u64,
    },
    /// Stop lifting the socket for good, with a reason. [`Reply::Done`] comes once no new packet will be lifted.
    Demote {
        /// `SO_COOKIE` of the socket; 0: all sockets of this process.
        cookie: u64,
        /// What to show for it.
        reason: Reason,
    },
    /// The socket joined or left a multicast group (IP_ADD_MEMBERSHIP and its kin succeeded). [`Reply::Done`].
    Group {
        /// `SO_COOKIE` of the socket.
        cookie: u64,
        /// Joined, else left.
        join: bool,
        /// The group.
        group: IpAddr,
        /// Interface index, 0: the kernel chose.
        ifindex: u32,
    },
    /// Wait for a grace period (RCU) if a rule was removed since the last one: when [`Reply::Done`] comes, every packet that
    /// XDP had already redirected is in its ring.
    Settle,
    /// `--admit flow`: the kernel has delivered a datagram of this flow to the socket. No reply.
    Admit {
        /// `SO_COOKIE` of the socket.
        cookie: u64,
        /// Where the datagram came from.
        from: SocketAddr,
        /// Where it was sent to (address of this host).
        to: SocketAddr,
    },
    /// Make rings for the devices on which this TCP connection's packets may arrive. Carries the socket. Once for each local
    /// address, not for each connection. Answered by [`Reply::Registered`] (its slot means nothing;
    /// [`Reason::NotWorth`](crate::Reason::NotWorth): nothing was attached, for `--tcp auto` lifts in zero-copy mode only), after
    /// [`Reply::Connections`] the first time.
    Stream {
        /// `SO_COOKIE` of the socket.
        cookie: u64,
    },
}

/// One AF_XDP socket of the lease; `Reply::Ring` carries its descriptor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RingInfo {
    /// Number of the queue in the stats page and in the hub.
    pub ring: u32,
    /// Device the ring belongs to.
    pub ifindex: u32,
    /// Queue of the device.
    pub queue: u32,
    /// Entries of the rx ring.
    pub rx_size: u32,
    /// Entries of the fill ring.
    pub fill_size: u32,
    /// First frame of the UMEM that belongs to the queue.
    pub first_frame: u32,
    /// How many frames belong to it.
    pub frames: u32,
    /// From which of them on `own` are this process's for a start. The others are in the fill ring, or with other processes.
    pub prefilled: u32,
    /// How many those are.
    pub own: u32,
    /// The device writes straight into the UMEM.
    pub zero_copy: bool,
}

/// What the broker answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reply {
    /// Answer to Hello; carries the stats page (memfd of [`crate::page::StatsPage`]).
    Welcome {
        /// [`crate::VERSION`] of the broker.
        version: u32,
        /// Microseconds to spin before sleeping (`--spin-us`).
        spin_us: u32,
        /// Datagrams an ephemeral port must have received before it is registered.
        young: u32,
        /// `--admit flow`.
        admit_flow: bool,
        /// UDP is lifted at all (`--udp off` is false).
        udp: bool,
        /// `--tcp`.
        tcp: Policy,
    },
    /// The memory about frames that processes share; carries the memfd of a [`crate::hub::Hub`]. Right before [`Reply::Umem`].
    Hub {
        /// The place of this process in it, below [`crate::hub::SEATS`].
        seat: u32,
    },
    /// The UMEM of the run; carries its memfd. At most once, before the first [`Reply::Ring`].
    Umem {
        /// Frames in it.
        frames: u32,
        /// Bytes of a frame: 2048 or 4096.
        chunk: u32,
    },
    /// A device whose packets may arrive in a ring; carries the TAP on which unmatched packets ride to the stack.
    Device {
        /// Interface index.
        ifindex: u32,
        /// The driver hands over packets whose UDP checksum is not filled in (veth: `CHECKSUM_PARTIAL`).
        partial_checksum: bool,
    },
    /// An AF_XDP socket, bound and in the XSKMAP; carries it.
    Ring(RingInfo),
    /// A map of the connections of the run; carries its descriptor. Comes twice: `tcp_slots` and `tcp_ports`.
    Connections {
        /// `tcp_ports`, else `tcp_slots`.
        ports: bool,
    },
    /// Final: answer to Register and Stream.
    Registered {
        /// Slot of the socket in the stats page.
        slot: u32,
        /// Lifted, or why not.
        reason: Reason,
    },
    /// Final: done.
    Done,
    /// Final: the request was not understood or could not be carried out; nothing changed.
    Refused {
        /// errno.
        errno: u32,
    },
}

impl Reply {
    /// Whether this reply ends the conversation of one request.
    pub fn is_final(&self) -> bool {
        !matches!(
            self,
            Self::Hub { .. }
                | Self::Umem { .. }
                | Self::Device { .. }
                | Self::Ring(_)
                | Self::Connections { .. }
        )
    }
}

/// An encoded message.
#[derive(Clone, Copy)]
pub struct Encoded {
    bytes: [u8; MAX_MESSAGE],
    len: usize,
}

impl AsRef<[u8]> for Encoded {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl Encoded {
    fn new(kind: u32) -> Self {
        Self { bytes: [0; MAX_MESSAGE], len: 0 }.u32(kind)
    }

    fn put(mut self, bytes: &[u8]) -> Self {
        self.bytes[self.len..self.len + bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len();
        self
    }

    fn u32(self, value: u32) -> Self {
        self.put(&value.to_le_bytes())
    }

    fn u64(self, value: u64) -> Self {
        self.put(&value.to_le_bytes())
    }

    fn ip(self, ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(ip) => self.u32(4).put(&ip.octets()).put(&[0; 12]),
            IpAddr::V6(ip) => self.u32(6).put(&ip.octets()),
        }
    }

    fn address(self, address: SocketAddr) -> Self {
        self.ip(address.ip()).u32(address.port().into())
    }
}

struct Cursor<'a>(&'a [u8]);

impl Cursor<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let (head, tail) = self.0.split_first_chunk::<N>().ok_or(DecodeError::Short)?;
        self.0 = tail;
        Ok(*head)
    }

    fn u32(&mut self) -> Result<u32, DecodeError> {
        self.take().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, DecodeError> {
        self.take().map(u64::from_le_bytes)
    }

    fn flag(&mut self) -> Result<bool, DecodeError> {
        match self.u32()? {
            0 => Ok(false),
            1 => Ok(true),
            value => Err(DecodeError::Unknown { what: "flag", value }),
        }
    }

    fn reason(&mut self) -> Result<Reason, DecodeError> {
        Reason::try_from(self.u32()?).map_err(|value| DecodeError::Unknown { what: "reason", value })
    }

    fn policy(&mut self) -> Result<Policy, DecodeError> {
        Policy::try_from(self.u32()?).map_err(|value| DecodeError::Unknown { what: "policy", value })
    }

    fn ip(&mut self) -> Result<IpAddr, DecodeError> {
        let family = self.u32()?;
        let octets: [u8; 16] = self.take()?;
        match family {
            4 => Ok(Ipv4Addr::new(octets[0], octets[1], octets[2], octets[3]).into()),
            6 => Ok(Ipv6Addr::from(octets).into()),
            value => Err(DecodeError::Unknown { what: "family", value }),
        }
    }

    fn address(&mut self) -> Result<SocketAddr, DecodeError> {
        let ip = self.ip()?;
        let port = self.u32()?;
        let port = u16::try_from(port).map_err(|_| DecodeError::Unknown { what: "port", value: port })?;
        Ok(SocketAddr::new(ip, port))
    }

    fn end<T>(self, value: T) -> Result<T, DecodeError> {
        if self.0.is_empty() { Ok(value) } else { Err(DecodeError::Long(self.0.len())) }
    }
}

impl Request {
    /// The bytes to send.
    pub fn encode(&self) -> Encoded {
        match *self {
            Self::Hello { version } => Encoded::new(1).u32(version),
            Self::Register { cookie, timestamps } => Encoded::new(2).u64(cookie).u32(timestamps.into()),
            Self::Unregister { cookie } => Encoded::new(3).u64(cookie),
            Self::Demote { cookie, reason } => Encoded::new(4).u64(cookie).u32(reason as u32),
            Self::Group { cookie, join, group, ifindex } => {
                Encoded::new(5).u64(cookie).u32(join.into()).ip(group).u32(ifindex)
            }
            Self::Admit { cookie, from, to } => Encoded::new(6).u64(cookie).address(from).address(to),
            Self::Settle => Encoded::new(7),
            Self::Stream { cookie } => Encoded::new(8).u64(cookie),
        }
    }

    /// Reads one message.
    ///
    /// # Errors
    /// [`DecodeError`] for anything that [`Request::encode`] does not make.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut c = Cursor(bytes);
        let request = match c.u32()? {
            1 => Self::Hello { version: c.u32()? },
            2 => Self::Register { cookie: c.u64()?, timestamps: c.flag()? },
            3 => Self::Unregister { cookie: c.u64()? },
            4 => Self::Demote { cookie: c.u64()?, reason: c.reason()? },
            5 => Self::Group { cookie: c.u64()?, join: c.flag()?, group: c.ip()?, ifindex: c.u32()? },
            6 => Self::Admit { cookie: c.u64()?, from: c.address()?, to: c.address()? },
            7 => Self::Settle,
            8 => Self::Stream { cookie: c.u64()? },
            value => return Err(DecodeError::Unknown { what: "request", value }),
        };
        c.end(request)
    }
}

impl Reply {
    /// The bytes to send.
    pub fn encode(&self) -> Encoded {
        match *self {
            Self::Welcome { version, spin_us, young, admit_flow, udp, tcp } => {
                let flags = [admit_flow.into(), udp.into(), tcp as u32];
                flags.into_iter().fold(Encoded::new(1).u32(version).u32(spin_us).u32(young), Encoded::u32)
            }
            Self::Umem { frames, chunk } => Encoded::new(2).u32(frames).u32(chunk),
            Self::Device { ifindex, partial_checksum } => {
                Encoded::new(3).u32(ifindex).u32(partial_checksum.into())
            }
            Self::Ring(r) => {
                let sizes = [
                    r.ring,
                    r.ifindex,
                    r.queue,
                    r.rx_size,
                    r.fill_size,
                    r.first_frame,
                    r.frames,
                    r.prefilled,
                    r.own,
                    r.zero_copy.into(),
                ];
                sizes.into_iter().fold(Encoded::new(4), Encoded::u32)
            }
            Self::Registered { slot, reason } => Encoded::new(5).u32(slot).u32(reason as u32),
            Self::Done => Encoded::new(6),
            Self::Refused { errno } => Encoded::new(7).u32(errno),
            Self::Connections { ports } => Encoded::new(8).u32(ports.into()),
            Self::Hub { seat } => Encoded::new(9).u32(seat),
        }
    }

    /// Reads one message.
    ///
    /// # Errors
    /// [`DecodeError`] for anything that [`Reply::encode`] does not make.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut c = Cursor(bytes);
        let reply = match c.u32()? {
            1 => Self::Welcome {
                version: c.u32()?,
                spin_us: c.u32()?,
                young: c.u32()?,
                admit_flow: c.flag()?,
                udp: c.flag()?,
                tcp: c.policy()?,
            },
            2 => Self::Umem { frames: c.u32()?, chunk: c.u32()? },
            3 => Self::Device { ifindex: c.u32()?, partial_checksum: c.flag()? },
            4 => Self::Ring(RingInfo {
                ring: c.u32()?,
                ifindex: c.u32()?,
                queue: c.u32()?,
                rx_size: c.u32()?,
                fill_size: c.u32()?,
                first_frame: c.u32()?,
                frames: c.u32()?,
                prefilled: c.u32()?,
                own: c.u32()?,
                zero_copy: c.flag()?,
            }),
            5 => Self::Registered { slot: c.u32()?, reason: c.reason()? },
            6 => Self::Done,
            7 => Self::Refused { errno: c.u32()? },
            8 => Self::Connections { ports: c.flag()? },
            9 => Self::Hub { seat: c.u32()? },
            value => return Err(DecodeError::Unknown { what: "reply", value }),
        };
        c.end(reply)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ip() -> impl Strategy<Value = IpAddr> {
        prop_oneof![any::<[u8; 4]>().prop_map(IpAddr::from), any::<[u8; 16]>().prop_map(IpAddr::from)]
    }

    fn request() -> impl Strategy<Value = Request> {
        let address = || (ip(), any::<u16>()).prop_map(SocketAddr::from);
        prop_oneof![
            any::<u32>().prop_map(|version| Request::Hello { version }),
            any::<(u64, bool)>().prop_map(|(cookie, timestamps)| Request::Register { cookie, timestamps }),
            any::<u64>().prop_map(|cookie| Request::Unregister { cookie }),
            any::<u64>().prop_map(|cookie| Request::Demote { cookie, reason: Reason::Forked }),
            (any::<u64>(), any::<bool>(), ip(), any::<u32>())
                .prop_map(|(cookie, join, group, ifindex)| Request::Group { cookie, join, group, ifindex }),
            Just(Request::Settle),
            any::<u64>().prop_map(|cookie| Request::Stream { cookie }),
            (any::<u64>(), address(), address()).prop_map(|(cookie, from, to)| Request::Admit {
                cookie,
                from,
                to
            }),
        ]
    }

    proptest! {
        #[test]
        fn requests_survive_the_wire_and_no_prefix_does(request in request()) {
            let encoded = request.encode();
            let bytes = encoded.as_ref();
            prop_assert_eq!(Request::decode(bytes), Ok(request));
            for len in 0..bytes.len() {
                prop_assert!(Request::decode(&bytes[..len]).is_err());
            }
        }

        #[test]
        fn garbage_never_panics_and_what_decodes_encodes_back(bytes in prop::collection::vec(any::<u8>(), 0..140)) {
            if let Ok(request) = Request::decode(&bytes) {
                prop_assert_eq!(Request::decode(request.encode().as_ref()), Ok(request));
            }
            if let Ok(reply) = Reply::decode(&bytes) {
                let again = reply.encode();
                prop_assert_eq!(again.as_ref(), &bytes[..]);
            }
        }
    }
}
