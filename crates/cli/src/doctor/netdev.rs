//! What a device says of itself over generic netlink: the families `netdev` (Linux 6.3) and `ethtool` (5.6).
//! Numbers are those of include/uapi/linux/netdev.h and ethtool_netlink.h.

use super::netlink::{attribute, attributes, number, put, text};
use std::collections::BTreeSet;

pub(super) const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;
const CTRL_VERSION: u8 = 2;

pub(super) const NETDEV_CMD_DEV_GET: u8 = 1;
pub(super) const NETDEV_CMD_QUEUE_GET: u8 = 10;
pub(super) const NETDEV_CMD_NAPI_GET: u8 = 11;
const NETDEV_A_DEV_IFINDEX: u16 = 1;
const NETDEV_A_DEV_XDP_FEATURES: u16 = 3;
const NETDEV_A_DEV_XDP_ZC_MAX_SEGS: u16 = 4;
const NETDEV_A_QUEUE_ID: u16 = 1;
const NETDEV_A_QUEUE_IFINDEX: u16 = 2;
const NETDEV_A_QUEUE_TYPE: u16 = 3;
/// Present when an AF_XDP socket owns the queue (Linux 6.14).
const NETDEV_A_QUEUE_XSK: u16 = 7;
const NETDEV_QUEUE_TYPE_RX: u64 = 0;
const NETDEV_A_NAPI_IFINDEX: u16 = 1;
const NETDEV_A_NAPI_IRQ: u16 = 3;

pub(super) const ETHTOOL_MSG_FEATURES_GET: u8 = 11;
pub(super) const ETHTOOL_MSG_RINGS_GET: u8 = 15;
pub(super) const ETHTOOL_MSG_CHANNELS_GET: u8 = 17;
/// The header is attribute 1 of every ethtool request.
const ETHTOOL_A_HEADER: u16 = 1;
const ETHTOOL_A_HEADER_DEV_NAME: u16 = 2;
const ETHTOOL_A_RINGS_RX_MAX: u16 = 2;
const ETHTOOL_A_RINGS_RX: u16 = 6;
const ETHTOOL_A_RINGS_TCP_DATA_SPLIT: u16 = 11;
const ETHTOOL_TCP_DATA_SPLIT_DISABLED: u64 = 1;
const ETHTOOL_TCP_DATA_SPLIT_ENABLED: u64 = 2;
const ETHTOOL_A_CHANNELS_RX_MAX: u16 = 2;
const ETHTOOL_A_CHANNELS_COMBINED_MAX: u16 = 5;
const ETHTOOL_A_CHANNELS_RX_COUNT: u16 = 6;
const ETHTOOL_A_CHANNELS_TX_COUNT: u16 = 7;
const ETHTOOL_A_CHANNELS_COMBINED_COUNT: u16 = 9;
const ETHTOOL_A_FEATURES_HW: u16 = 2;
const ETHTOOL_A_FEATURES_ACTIVE: u16 = 4;
const ETHTOOL_A_FEATURES_NOCHANGE: u16 = 5;
const ETHTOOL_A_BITSET_NOMASK: u16 = 1;
const ETHTOOL_A_BITSET_BITS: u16 = 3;
const ETHTOOL_A_BITSET_BITS_BIT: u16 = 1;
const ETHTOOL_A_BITSET_BIT_NAME: u16 = 2;
const ETHTOOL_A_BITSET_BIT_VALUE: u16 = 3;

/// enum netdev_xdp_act, and how many buffers a zero-copy packet may have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct XdpSupport {
    pub(super) features: u64,
    pub(super) zero_copy_max_segments: Option<u64>,
}

impl XdpSupport {
    /// Native XDP programs run.
    pub(super) const BASIC: u64 = 1;
    /// XDP_REDIRECT works, which lifting needs.
    pub(super) const REDIRECT: u64 = 1 << 1;
    pub(super) const NDO_XMIT: u64 = 1 << 2;
    pub(super) const XSK_ZEROCOPY: u64 = 1 << 3;
    pub(super) const RX_SG: u64 = 1 << 5;

    pub(super) fn has(self, features: u64) -> bool {
        self.features & features == features
    }

    /// The names of what is offered, in the kernel's order.
    pub(super) fn names(self) -> Vec<&'static str> {
        let all = [
            (Self::BASIC, "basic"),
            (Self::REDIRECT, "redirect"),
            (Self::NDO_XMIT, "ndo-xmit"),
            (Self::XSK_ZEROCOPY, "xsk-zerocopy"),
            (Self::RX_SG, "rx-sg"),
        ];
        all.into_iter().filter(|(bit, _)| self.has(*bit)).map(|(_, name)| name).collect()
    }
}

/// Queues, `ethtool -l`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Channels {
    /// Receive queues.
    pub(super) current: u64,
    /// Receive queues there could be.
    pub(super) max: u64,
    /// Transmit queues.
    pub(super) transmit: u64,
    /// The name `ethtool -L` takes: combined or rx.
    pub(super) combined: bool,
}

/// The receive ring and header split, `ethtool -g`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rings {
    pub(super) receive: u64,
    pub(super) receive_max: u64,
    /// None where the driver does not know header split.
    pub(super) header_split: Option<bool>,
}

/// Names of features, `ethtool -k`, as the kernel spells them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Features {
    pub(super) active: BTreeSet<String>,
    /// Those that can be switched.
    pub(super) changeable: BTreeSet<String>,
}

/// A generic netlink body: header and attributes.
pub(super) fn request(command: u8, version: u8, attributes: &[u8]) -> Vec<u8> {
    let mut body = vec![command, version, 0, 0];
    body.extend(attributes);
    body
}

pub(super) fn family_request(name: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    put(&mut bytes, CTRL_ATTR_FAMILY_NAME, format!("{name}\0").as_bytes());
    request(CTRL_CMD_GETFAMILY, CTRL_VERSION, &bytes)
}

pub(super) fn device_request(command: u8, index: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    put(&mut bytes, NETDEV_A_DEV_IFINDEX, &index.to_ne_bytes());
    request(command, 1, &bytes)
}

pub(super) fn queues_request(index: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    put(&mut bytes, NETDEV_A_QUEUE_IFINDEX, &index.to_ne_bytes());
    request(NETDEV_CMD_QUEUE_GET, 1, &bytes)
}

pub(super) fn napis_request(index: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    put(&mut bytes, NETDEV_A_NAPI_IFINDEX, &index.to_ne_bytes());
    request(NETDEV_CMD_NAPI_GET, 1, &bytes)
}

pub(super) fn ethtool_request(command: u8, device: &str) -> Vec<u8> {
    let mut header = Vec::new();
    put(&mut header, ETHTOOL_A_HEADER_DEV_NAME, format!("{device}\0").as_bytes());
    let mut bytes = Vec::new();
    put(&mut bytes, ETHTOOL_A_HEADER | libc::NLA_F_NESTED as u16, &header);
    request(command, 1, &bytes)
}

pub(super) fn family_id(body: &[u8]) -> Option<u16> {
    number(payload(body), CTRL_ATTR_FAMILY_ID).and_then(|id| id.try_into().ok())
}

pub(super) fn xdp_support(body: &[u8]) -> Option<XdpSupport> {
    let bytes = payload(body);
    Some(XdpSupport {
        features: number(bytes, NETDEV_A_DEV_XDP_FEATURES)?,
        zero_copy_max_segments: number(bytes, NETDEV_A_DEV_XDP_ZC_MAX_SEGS),
    })
}

/// The number of the receive queue if an AF_XDP socket owns it.
pub(super) fn owned_by_xsk(body: &[u8]) -> Option<u64> {
    let bytes = payload(body);
    attribute(bytes, NETDEV_A_QUEUE_XSK)?;
    let receives = number(bytes, NETDEV_A_QUEUE_TYPE)? == NETDEV_QUEUE_TYPE_RX;
    number(bytes, NETDEV_A_QUEUE_ID).filter(|_| receives)
}

pub(super) fn napi_irq(body: &[u8]) -> Option<u64> {
    number(payload(body), NETDEV_A_NAPI_IRQ).filter(|irq| *irq > 0)
}

/// Channels that receive: the combined ones, else the rx ones.
pub(super) fn channels(body: &[u8]) -> Option<Channels> {
    let bytes = payload(body);
    let pair = |current, max| {
        let max = number(bytes, max).filter(|max| *max > 0)?;
        Some((number(bytes, current)?, max))
    };
    let combined = pair(ETHTOOL_A_CHANNELS_COMBINED_COUNT, ETHTOOL_A_CHANNELS_COMBINED_MAX);
    let receive = pair(ETHTOOL_A_CHANNELS_RX_COUNT, ETHTOOL_A_CHANNELS_RX_MAX);
    let count = |kind| number(bytes, kind).unwrap_or(0);
    let transmit = count(ETHTOOL_A_CHANNELS_TX_COUNT) + count(ETHTOOL_A_CHANNELS_COMBINED_COUNT);
    let make = |combined| move |(current, max)| Channels { current, max, transmit, combined };
    // A driver may offer both: the form in use counts.
    let used = combined.filter(|(current, _)| *current > 0).map(make(true));
    used.or(receive.filter(|(current, _)| *current > 0).map(make(false)))
}

/// None where the driver has no rings to size.
pub(super) fn rings(body: &[u8]) -> Option<Rings> {
    let bytes = payload(body);
    let header_split = match number(bytes, ETHTOOL_A_RINGS_TCP_DATA_SPLIT) {
        Some(ETHTOOL_TCP_DATA_SPLIT_DISABLED) => Some(false),
        Some(ETHTOOL_TCP_DATA_SPLIT_ENABLED) => Some(true),
        _ => None,
    };
    Some(Rings {
        receive: number(bytes, ETHTOOL_A_RINGS_RX)?,
        receive_max: number(bytes, ETHTOOL_A_RINGS_RX_MAX)?,
        header_split,
    })
}

pub(super) fn features(body: &[u8]) -> Features {
    let bytes = payload(body);
    let names = |kind| attribute(bytes, kind).map(bit_names).unwrap_or_default();
    let changeable = &names(ETHTOOL_A_FEATURES_HW) - &names(ETHTOOL_A_FEATURES_NOCHANGE);
    Features { active: names(ETHTOOL_A_FEATURES_ACTIVE), changeable }
}

/// The bits that are set in a verbose bitset: a plain list names only these, one with a mask names all and marks them.
fn bit_names(bitset: &[u8]) -> BTreeSet<String> {
    let list = attribute(bitset, ETHTOOL_A_BITSET_NOMASK).is_some();
    let bits = attribute(bitset, ETHTOOL_A_BITSET_BITS).unwrap_or_default();
    attributes(bits)
        .filter(|(kind, bit)| {
            *kind == ETHTOOL_A_BITSET_BITS_BIT
                && (list || attribute(bit, ETHTOOL_A_BITSET_BIT_VALUE).is_some())
        })
        .filter_map(|(_, bit)| text(bit, ETHTOOL_A_BITSET_BIT_NAME))
        .collect()
}

/// What follows struct genlmsghdr.
fn payload(body: &[u8]) -> &[u8] {
    body.get(4..).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(fields: &[(u16, &[u8])]) -> Vec<u8> {
        let mut bytes = vec![0, 0, 0, 0];
        fields.iter().for_each(|(kind, value)| put(&mut bytes, *kind, value));
        bytes
    }

    fn nested(fields: &[(u16, &[u8])]) -> Vec<u8> {
        reply(fields).split_off(4)
    }

    #[test]
    fn xdp_features_are_read_and_named() {
        let body = reply(&[(1, &2u32.to_ne_bytes()), (3, &0x2bu64.to_ne_bytes()), (4, &5u32.to_ne_bytes())]);
        let support = xdp_support(&body).unwrap();
        assert_eq!(support.names(), ["basic", "redirect", "xsk-zerocopy", "rx-sg"]);
        assert_eq!(support.zero_copy_max_segments, Some(5));
        assert!(!support.has(XdpSupport::NDO_XMIT));
    }

    #[test]
    fn rings_say_unknown_split_as_none() {
        let with = |split: u8| {
            rings(&reply(&[(2, &4096u32.to_ne_bytes()), (6, &512u32.to_ne_bytes()), (11, &[split])])).unwrap()
        };
        assert_eq!(with(0).header_split, None);
        assert_eq!(with(1).header_split, Some(false));
        assert_eq!(with(2), Rings { receive: 512, receive_max: 4096, header_split: Some(true) });
        assert_eq!(rings(&reply(&[(11, &[1])])), None, "no sizes, no rings");
    }

    #[test]
    fn the_channels_in_use_count() {
        let both = reply(&[
            (2, &8u32.to_ne_bytes()),
            (5, &16u32.to_ne_bytes()),
            (6, &3u32.to_ne_bytes()),
            (7, &2u32.to_ne_bytes()),
            (9, &0u32.to_ne_bytes()),
        ]);
        assert_eq!(channels(&both), Some(Channels { current: 3, max: 8, transmit: 2, combined: false }));
        let combined = reply(&[(5, &16u32.to_ne_bytes()), (9, &4u32.to_ne_bytes())]);
        assert_eq!(channels(&combined), Some(Channels { current: 4, max: 16, transmit: 4, combined: true }));
        assert_eq!(channels(&reply(&[])), None);
    }

    #[test]
    fn set_bits_are_read_from_lists_and_from_masks() {
        let named = |name: &[u8]| nested(&[(1, &3u32.to_ne_bytes()), (2, name)]);
        let marked = |name: &[u8]| nested(&[(1, &3u32.to_ne_bytes()), (2, name), (3, &[])]);
        let bits = |bits: &[Vec<u8>]| nested(&bits.iter().map(|bit| (1, bit.as_slice())).collect::<Vec<_>>());
        let list = |names: &[&[u8]]| {
            nested(&[(1, &[]), (3, &bits(&names.iter().map(|name| named(name)).collect::<Vec<_>>()))])
        };
        let switchable =
            nested(&[(3, &bits(&[marked(b"rx-gro\0"), named(b"rx-gro-hw\0"), marked(b"rx-fcs\0")]))]);
        let found = features(&reply(&[
            (2, &switchable),
            (4, &list(&[b"rx-gro-hw\0", b"rx-gro\0"])),
            (5, &list(&[b"rx-fcs\0"])),
        ]));
        assert_eq!(found.active.into_iter().collect::<Vec<_>>(), ["rx-gro", "rx-gro-hw"]);
        assert_eq!(found.changeable.into_iter().collect::<Vec<_>>(), ["rx-gro"]);
    }

    #[test]
    fn only_receive_queues_with_a_socket_are_owned() {
        let queue = |kind: u32, xsk: bool| {
            let mut body = reply(&[(1, &6u32.to_ne_bytes()), (3, &kind.to_ne_bytes())]);
            if xsk {
                put(&mut body, 7, &[]);
            }
            owned_by_xsk(&body)
        };
        assert_eq!(queue(0, true), Some(6));
        assert_eq!(queue(0, false), None);
        assert_eq!(queue(1, true), None);
    }

    #[test]
    fn an_irq_of_zero_is_none() {
        assert_eq!(napi_irq(&reply(&[(3, &0u32.to_ne_bytes())])), None);
        assert_eq!(napi_irq(&reply(&[(3, &41u32.to_ne_bytes())])), Some(41));
        assert_eq!(napi_irq(&[]), None);
    }
}
