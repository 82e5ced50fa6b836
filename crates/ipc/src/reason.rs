//! Why a socket is not lifted.

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $name:ident = $value:literal, $word:literal, $text:literal;)+) => {
        /// The state of a socket: lifted, or why not. Numbers are part of the protocol, words of `--json`.
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, PartialOrd, Ord)]
        #[repr(u32)]
        pub enum Reason { $($(#[doc = $doc])+ $name = $value,)+ }

        impl Reason {
            /// Every reason, in order of its number.
            pub const ALL: &[Self] = &[$(Self::$name,)+];

            /// One word for tables and JSON.
            pub fn word(self) -> &'static str { match self { $(Self::$name => $word,)+ } }

            /// One sentence for people: what it means and, where something can be done, what.
            pub fn explain(self) -> &'static str { match self { $(Self::$name => $text,)+ } }
        }

        impl TryFrom<u32> for Reason {
            type Error = u32;
            fn try_from(value: u32) -> Result<Self, u32> {
                match value { $($value => Ok(Self::$name),)+ other => Err(other) }
            }
        }
    };
}

reasons! {
    /// Nothing stands in the way.
    Lifted = 0, "lifted", "lifted";
    /// `--udp` does not name this port.
    NotSelected = 1, "not-selected", "--udp does not select this port";
    /// An ephemeral port that has not received enough for lifting to pay.
    Young = 2, "young", "an ephemeral port that has received only a few datagrams yet; it is lifted if more come";
    /// No device that can lift carries the socket's address.
    NoDevice = 3, "no-device", "no device that can lift is up and carries this address; see hoist doctor";
    /// Bound to a loopback address: loopback traffic never meets a device driver.
    Loopback = 4, "loopback", "a loopback address: its traffic never meets a device driver";
    /// A socket that is not lifted could receive the same.
    PortShared = 5, "port-shared", "another process has a socket on this port that is not lifted, and lifting would take its datagrams";
    /// No seat for one more process.
    RingsBusy = 6, "rings-busy", "32 processes of this run have AF_XDP rings already, or those that do belong to another user";
    /// The process forked while the socket was open: a child may read it.
    Forked = 7, "forked", "the process forked: parent and child share this socket through the kernel";
    /// The descriptor was passed to another process.
    FdPassed = 8, "fd-passed", "the descriptor was sent over a Unix socket: another process may read it";
    /// A socket option whose meaning Hoist does not reproduce.
    Option = 9, "option", "a socket option is set that only the kernel can honour; see docs/limitations.md";
    /// A multicast source filter.
    SourceFilter = 10, "source-filter", "a multicast source filter is set, which only the kernel applies";
    /// Bound to a device that is not lifted.
    OtherDevice = 11, "other-device", "bound to a device that hoist does not lift from";
    /// The broker has ended.
    BrokerGone = 12, "broker-gone", "the hoist process has ended; the kernel serves this socket";
    /// The program replaced itself with exec.
    Exec = 13, "exec", "the process replaced itself by exec; inherited sockets go on through the kernel";
    /// The socket was not made by this process image.
    Inherited = 14, "inherited", "the socket was made before the shim was loaded or by another process";
    /// The device went down, was removed, or its program was replaced.
    DeviceGone = 15, "device-gone", "the device was removed or its XDP program was replaced";
    /// UMEM or AF_XDP socket could not be made.
    RingSetup = 16, "ring-setup", "AF_XDP rings could not be made; the first error is in the run's messages";
    /// More sockets than the stats page has slots.
    TooMany = 17, "too-many", "more sockets than hoist keeps count of";
    /// `--udp off`.
    Off = 18, "off", "lifting of UDP is switched off (--udp off)";
    /// The socket has no local port yet.
    Unbound = 19, "unbound", "the socket has no local port yet";
    /// `--tcp auto`, and lifting would not pay.
    NotWorth = 21, "not-worth", "--tcp auto: lifting this connection would cost more than it saves; --tcp lift forces it";
    /// A connection that has not received enough for lifting to pay.
    Small = 22, "small", "--tcp auto: the connection has received only little yet; it is lifted if much comes at once";
    /// No thread of the program reads: the kernel holds the data meanwhile.
    Parked = 23, "parked", "the program is not reading at the moment; lifting goes on when it does";
    /// Frames or memory ran short.
    Memory = 24, "memory", "too much unread data is held in frames; lifting goes on when it has been read";
    /// Urgent data.
    Urgent = 25, "urgent", "the peer sent urgent data, which only the kernel can place";
    /// The descriptor became a stdio stream, whose reads do not pass the shim.
    Stdio = 26, "stdio", "the program reads it through stdio (fdopen), past the shim";
    /// The program reads the socket by calls that the shim does not see.
    ReadAround = 27, "read-around", "bytes of this connection were read past the shim";
    /// The connection is not in the table of the run.
    Unpublished = 28, "unpublished", "the connection was made before hoist could see it, or there are too many";
    /// Generic XDP.
    Generic = 29, "generic-xdp", "the device runs XDP in generic mode, after GRO: TCP is not lifted there";
    /// The tracing of connections could not be set up.
    NoConnections = 30, "no-sock-ops", "hoist cannot follow connections here (cgroup v2 or bpffs is missing); see its messages";
    /// Another call takes the connection's data.
    Spliced = 31, "spliced", "data of this connection is taken by a call that only the kernel can serve (splice, kTLS, TCP_REPAIR)";
    /// Segments longer than a frame.
    Jumbo = 32, "jumbo", "its segments are longer than a frame of the UMEM: lower the MTU of the device to 1,750";
    /// The broker could not examine the socket or refused the request.
    Refused = 20, "refused", "hoist refused the socket: it is not a UDP socket it can examine";
}

#[cfg(test)]
mod tests {
    use super::Reason;

    #[test]
    fn numbers_and_words_are_unique_and_survive_a_round_trip() {
        let mut words = std::collections::HashSet::new();
        for &reason in Reason::ALL {
            assert_eq!(Reason::try_from(reason as u32), Ok(reason));
            assert!(words.insert(reason.word()), "{} twice", reason.word());
            assert!(!reason.explain().is_empty());
        }
        assert_eq!(Reason::try_from(9999), Err(9999));
    }
}
