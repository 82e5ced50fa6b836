//! Whether nftables has rules for what comes in (nfnetlink NFT_MSG_GETCHAIN). iptables-nft shows here too.

use crate::netlink;
use std::io;

const NFT_MSG_GETCHAIN: u16 = (10 << 8) | 4; // NFNL_SUBSYS_NFTABLES
const NFT_MSG_NEWCHAIN: u16 = (10 << 8) | 3;
const NFTA_CHAIN_HOOK: u16 = 4;
const NFTA_CHAIN_USE: u16 = 6;
const NFTA_HOOK_HOOKNUM: u16 = 1;
/// NF_INET_PRE_ROUTING and NF_INET_LOCAL_IN.
const INCOMING: [u32; 2] = [0, 1];
const NETLINK_NETFILTER: isize = 12;

/// Rules in chains hooked to PREROUTING or INPUT; 0 also if the kernel has no nftables or does not tell us.
pub fn input_rules() -> u64 {
    count().unwrap_or(0)
}

fn count() -> io::Result<u64> {
    let socket = netlink::open(NETLINK_NETFILTER)?;
    let mut request = [0_u8; 20];
    request[..4].copy_from_slice(&20_u32.to_ne_bytes());
    request[4..6].copy_from_slice(&NFT_MSG_GETCHAIN.to_ne_bytes());
    request[6..8].copy_from_slice(&((libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16).to_ne_bytes());
    socket.send(&request, 0)?;
    let mut rules = 0;
    while parse(&socket.recv_from_full()?.0, &mut rules) {}
    Ok(rules)
}

/// Adds what one datagram of the dump tells; false: it was the last.
fn parse(mut bytes: &[u8], rules: &mut u64) -> bool {
    while let Some((header, _)) = bytes.split_first_chunk::<16>() {
        let len = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
        match u16::from_ne_bytes([header[4], header[5]]) {
            NFT_MSG_NEWCHAIN => *rules += bytes.get(20..len).and_then(incoming_rules).unwrap_or(0),
            2 | 3 => return false,
            _ => {}
        }
        bytes = bytes.get(len.max(16).next_multiple_of(4)..).unwrap_or_default();
    }
    true
}

/// Rules of the chain if it is hooked to what comes in.
fn incoming_rules(chain: &[u8]) -> Option<u64> {
    let hook = attributes(chain).find(|(kind, _)| *kind == NFTA_CHAIN_HOOK)?.1;
    let number = attributes(hook).find(|(kind, _)| *kind == NFTA_HOOK_HOOKNUM)?.1;
    let rules = attributes(chain).find(|(kind, _)| *kind == NFTA_CHAIN_USE)?.1;
    INCOMING.contains(&be32(number)?).then_some(be32(rules)?.into())
}

fn be32(bytes: &[u8]) -> Option<u32> {
    bytes.first_chunk().map(|bytes| u32::from_be_bytes(*bytes))
}

fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let header = bytes.first_chunk::<4>()?;
        let len = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let kind = u16::from_ne_bytes([header[2], header[3]]) & 0x3fff; // NLA_TYPE_MASK
        let value = bytes.get(4..len)?;
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut bytes = ((value.len() + 4) as u16).to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(value);
        bytes
    }

    fn chain(hook: u32, rules: u32) -> Vec<u8> {
        let nested = attribute(NFTA_HOOK_HOOKNUM, &hook.to_be_bytes());
        let body =
            [attribute(NFTA_CHAIN_HOOK | 0x8000, &nested), attribute(NFTA_CHAIN_USE, &rules.to_be_bytes())]
                .concat();
        let mut bytes = vec![0; 20];
        bytes[..4].copy_from_slice(&((20 + body.len()) as u32).to_ne_bytes());
        bytes[4..6].copy_from_slice(&NFT_MSG_NEWCHAIN.to_ne_bytes());
        bytes.extend(body);
        bytes
    }

    #[test]
    fn only_rules_for_what_comes_in_count() {
        let mut rules = 0;
        assert!(parse(&[chain(1, 3), chain(0, 2), chain(3, 50)].concat(), &mut rules));
        assert_eq!(rules, 5);
    }

    #[test]
    fn a_message_cut_short_is_ignored() {
        let whole = chain(1, 3);
        for len in 0..whole.len() {
            let mut rules = 0;
            parse(&whole[..len], &mut rules);
            assert_eq!(rules, 0, "{len}");
        }
    }
}
