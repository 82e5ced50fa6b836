//! Which netfilter chains a lifted datagram would never meet: nf_tables over nfnetlink, and legacy iptables.

use super::netlink::{attribute, text, text_of, u16_at, u32_at};
use std::ffi::c_int;

const NFNL_SUBSYS_NFTABLES: u16 = 10;
const NFT_MSG_GETCHAIN: u16 = 4;
pub(super) const GETCHAIN: u16 = NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETCHAIN;
/// struct nfgenmsg for every family.
pub(super) const EVERY_FAMILY: [u8; 4] = [libc::NFPROTO_UNSPEC as u8, 0, 0, 0];
const NFTA_CHAIN_TABLE: u16 = 1;
const NFTA_CHAIN_NAME: u16 = 3;
const NFTA_CHAIN_HOOK: u16 = 4;
const NFTA_CHAIN_POLICY: u16 = 5;
/// A base chain cannot be jumped to, so its uses are its rules.
const NFTA_CHAIN_USE: u16 = 6;
const NFTA_CHAIN_TYPE: u16 = 7;
const NFTA_HOOK_HOOKNUM: u16 = 1;
const NFTA_HOOK_DEV: u16 = 3;
const NF_DROP: u32 = 0;
const NF_INET_PRE_ROUTING: u32 = 0;
const NF_INET_LOCAL_IN: u32 = 1;
const NF_INET_INGRESS: u32 = 5;
const NF_NETDEV_INGRESS: u32 = 0;

/// Where a packet that arrives would meet a chain, in that order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Hook {
    Ingress,
    Prerouting,
    Input,
}

/// A chain at a hook that lifted datagrams bypass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Chain {
    /// As `nft` or `iptables` names it: "inet filter input", "iptables filter INPUT".
    pub(super) name: String,
    pub(super) hook: Hook,
    /// None: every device.
    pub(super) device: Option<String>,
    /// Chains of type nat change addresses, they do not filter.
    pub(super) nat: bool,
    pub(super) rules: u32,
    pub(super) drops_by_default: bool,
}

impl Chain {
    /// Whether a packet that meets it can fare otherwise than without it.
    pub(super) fn acts(&self) -> bool {
        self.rules > 0 || self.drops_by_default
    }
}

/// The chain in one reply to GETCHAIN, if it is a base chain that lifted datagrams bypass.
pub(super) fn nft_chain(body: &[u8]) -> Option<Chain> {
    let family = c_int::from(*body.first()?);
    let bytes = body.get(EVERY_FAMILY.len()..)?;
    let hook = attribute(bytes, NFTA_CHAIN_HOOK)?;
    let name = text(bytes, NFTA_CHAIN_NAME)?;
    let table = text(bytes, NFTA_CHAIN_TABLE)?;
    Some(Chain {
        name: format!("{} {table} {name}", family_name(family)?),
        hook: hook_of(family, big_endian(hook, NFTA_HOOK_HOOKNUM)?)?,
        device: text(hook, NFTA_HOOK_DEV),
        nat: text(bytes, NFTA_CHAIN_TYPE).as_deref() == Some("nat"),
        rules: big_endian(bytes, NFTA_CHAIN_USE).unwrap_or(0),
        drops_by_default: big_endian(bytes, NFTA_CHAIN_POLICY) == Some(NF_DROP),
    })
}

fn family_name(family: c_int) -> Option<&'static str> {
    Some(match family {
        libc::NFPROTO_INET => "inet",
        libc::NFPROTO_IPV4 => "ip",
        libc::NFPROTO_IPV6 => "ip6",
        libc::NFPROTO_NETDEV => "netdev",
        _ => return None,
    })
}

fn hook_of(family: c_int, number: u32) -> Option<Hook> {
    Some(match (family, number) {
        (libc::NFPROTO_NETDEV, NF_NETDEV_INGRESS) | (libc::NFPROTO_INET, NF_INET_INGRESS) => Hook::Ingress,
        (libc::NFPROTO_NETDEV, _) => return None,
        (_, NF_INET_PRE_ROUTING) => Hook::Prerouting,
        (_, NF_INET_LOCAL_IN) => Hook::Input,
        _ => return None,
    })
}

/// nf_tables' numbers are big-endian.
fn big_endian(bytes: &[u8], kind: u16) -> Option<u32> {
    Some(u32::from_be_bytes(attribute(bytes, kind)?.try_into().ok()?))
}

/// struct ipt_getinfo: name[32], valid_hooks, hook_entry[5], underflow[5].
const INFO_VALID_HOOKS: usize = 32;
const INFO_HOOK_ENTRY: usize = 36;
const INFO_UNDERFLOW: usize = 56;
/// struct xt_standard_target: a 32-byte header, then the verdict, -NF_DROP - 1 for a drop.
const TARGET_VERDICT: usize = 32;
const VERDICT_DROP: u32 = u32::MAX;

/// Where struct ipt_entry and ip6t_entry keep target_offset and next_offset.
#[derive(Clone, Copy)]
pub(super) struct Layout {
    tool: &'static str,
    target_offset: usize,
}

pub(super) const IPTABLES: Layout = Layout { tool: "iptables", target_offset: 88 };
pub(super) const IP6TABLES: Layout = Layout { tool: "ip6tables", target_offset: 140 };

/// The chains of a legacy table that lifted datagrams bypass.
pub(super) fn legacy_chains(layout: Layout, info: &[u8], entries: &[u8]) -> Vec<Chain> {
    let table = text_of(info);
    let hooks =
        [(NF_INET_PRE_ROUTING, Hook::Prerouting, "PREROUTING"), (NF_INET_LOCAL_IN, Hook::Input, "INPUT")];
    let chain = |(number, hook, name)| {
        let number: u32 = number;
        let valid = u32_at(info, INFO_VALID_HOOKS)? & 1 << number != 0;
        let offset = |table: usize| u32_at(info, table + 4 * number as usize).map(|offset| offset as usize);
        let policy = offset(INFO_UNDERFLOW)?;
        valid.then_some(Chain {
            name: format!("{} {table} {name}", layout.tool),
            hook,
            device: None,
            nat: table == "nat",
            rules: rules_between(layout, entries, offset(INFO_HOOK_ENTRY)?, policy),
            drops_by_default: verdict(layout, entries, policy) == Some(VERDICT_DROP),
        })
    };
    hooks.into_iter().filter_map(chain).collect()
}

fn rules_between(layout: Layout, entries: &[u8], from: usize, to: usize) -> u32 {
    let mut at = from;
    let mut rules = 0;
    while at < to {
        let next = entries.get(at..).and_then(|entry| u16_at(entry, layout.target_offset + 2)).unwrap_or(0);
        if next == 0 {
            break;
        }
        rules += 1;
        at += usize::from(next);
    }
    rules
}

fn verdict(layout: Layout, entries: &[u8], at: usize) -> Option<u32> {
    let entry = entries.get(at..)?;
    u32_at(entry, usize::from(u16_at(entry, layout.target_offset)?) + TARGET_VERDICT)
}

#[cfg(test)]
mod tests {
    use super::super::netlink::put;
    use super::*;

    fn nft(family: c_int, hook: Option<u32>, rules: u32, policy: u32) -> Vec<u8> {
        let mut body = vec![family as u8, 0, 0, 0];
        put(&mut body, 1, b"filter\0");
        put(&mut body, 3, b"in\0");
        if let Some(hook) = hook {
            let mut nest = Vec::new();
            put(&mut nest, 1, &hook.to_be_bytes());
            put(&mut body, 4 | 0x8000, &nest);
            put(&mut body, 5, &policy.to_be_bytes());
        }
        put(&mut body, 6, &rules.to_be_bytes());
        put(&mut body, 7, b"filter\0");
        body
    }

    #[test]
    fn an_input_chain_is_read_with_rules_and_policy() {
        let chain = nft_chain(&nft(libc::NFPROTO_INET, Some(1), 3, 0)).unwrap();
        assert_eq!(chain.name, "inet filter in");
        assert_eq!((chain.hook, chain.rules, chain.drops_by_default), (Hook::Input, 3, true));
        assert!(chain.acts());
    }

    #[test]
    fn a_chain_that_accepts_and_has_no_rules_does_not_act() {
        assert!(!nft_chain(&nft(libc::NFPROTO_INET, Some(1), 0, 1)).unwrap().acts());
        assert!(nft_chain(&nft(libc::NFPROTO_INET, Some(1), 0, 0)).unwrap().acts(), "policy drop alone acts");
    }

    #[test]
    fn hooks_that_lifted_datagrams_do_not_bypass_are_left_out() {
        assert_eq!(nft_chain(&nft(libc::NFPROTO_INET, None, 9, 0)), None, "no base chain");
        assert_eq!(nft_chain(&nft(libc::NFPROTO_INET, Some(2), 9, 0)), None, "forward");
        assert_eq!(nft_chain(&nft(libc::NFPROTO_INET, Some(3), 9, 0)), None, "output");
        assert_eq!(nft_chain(&nft(libc::NFPROTO_NETDEV, Some(1), 9, 0)), None, "netdev egress");
        assert_eq!(nft_chain(&nft(libc::NFPROTO_BRIDGE, Some(1), 9, 0)), None, "bridge");
        assert_eq!(nft_chain(&nft(libc::NFPROTO_NETDEV, Some(0), 9, 0)).unwrap().hook, Hook::Ingress);
    }

    /// A filter table with `rules` in INPUT and the given verdict as INPUT's policy.
    fn legacy(layout: Layout, rules: usize, verdict: i32) -> (Vec<u8>, Vec<u8>) {
        let head = layout.target_offset + 24;
        let length = head + 40;
        let mut entry = vec![0u8; length];
        entry[layout.target_offset..][..2].copy_from_slice(&(head as u16).to_ne_bytes());
        entry[layout.target_offset + 2..][..2].copy_from_slice(&(length as u16).to_ne_bytes());
        entry[head + TARGET_VERDICT..][..4].copy_from_slice(&verdict.to_ne_bytes());
        let mut info = vec![0u8; 84];
        info[..6].copy_from_slice(b"filter");
        info[INFO_VALID_HOOKS..][..4].copy_from_slice(&0b1110u32.to_ne_bytes());
        info[INFO_UNDERFLOW + 4..][..4].copy_from_slice(&((rules * length) as u32).to_ne_bytes());
        (info, entry.repeat(rules + 1))
    }

    #[test]
    fn legacy_tables_of_both_families_are_walked() {
        for layout in [IPTABLES, IP6TABLES] {
            let (info, entries) = legacy(layout, 3, -1);
            let chains = legacy_chains(layout, &info, &entries);
            assert_eq!(chains.len(), 1, "filter has no PREROUTING");
            assert_eq!((chains[0].rules, chains[0].drops_by_default, chains[0].hook), (3, true, Hook::Input));
            assert_eq!(chains[0].name, format!("{} filter INPUT", layout.tool));
        }
    }

    #[test]
    fn an_empty_accepting_table_does_not_act() {
        let (info, entries) = legacy(IPTABLES, 0, -2);
        assert!(legacy_chains(IPTABLES, &info, &entries).iter().all(|chain| !chain.acts()));
    }

    #[test]
    fn truncated_tables_are_not_read_beyond_their_end() {
        let (info, entries) = legacy(IPTABLES, 2, -1);
        for end in 0..entries.len() {
            assert!(legacy_chains(IPTABLES, &info, &entries[..end])[0].rules <= 2);
        }
        for end in 0..info.len().min(INFO_UNDERFLOW + 8) {
            assert!(legacy_chains(IPTABLES, &info[..end], &entries).is_empty());
        }
    }
}
