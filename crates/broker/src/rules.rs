//! Which packets are lifted for which sockets. Pure.
//!
//! A socket wants addresses; on every device with rings it gets one [`Key`] for each address of that device that fits.
//! [`Table`] counts how many sockets want a key and says what must change in the maps of `steer`.

use crate::device::{Address, Device};
use hoist_ipc::hub::SEATS;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

/// A multicast group that a socket has joined.
#[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd, Ord)]
pub struct Membership {
    /// The group.
    pub group: IpAddr,
    /// Where; 0: every device.
    pub ifindex: u32,
}

/// What a socket receives, as far as rules are concerned.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Want {
    /// Local address; unspecified: any of its family.
    pub local: IpAddr,
    /// An IPv6 wildcard that takes IPv4 too (no IPV6_V6ONLY).
    pub dual: bool,
    /// Local port.
    pub port: u16,
    /// Device it is bound to, or the scope of its link-local address; 0: any.
    pub ifindex: u32,
    /// Multicast groups.
    pub groups: Vec<Membership>,
}

/// A device with rings, as far as rules are concerned.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Place {
    /// Interface index.
    pub ifindex: u32,
    /// Addresses it receives for.
    pub addresses: Vec<Address>,
}

impl Place {
    /// What rules need to know of `device`.
    pub fn of(device: &Device) -> Self {
        Self { ifindex: device.ifindex, addresses: device.addresses.clone() }
    }
}

/// Key of a rule of `steer`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd, Ord, Hash)]
pub struct Key {
    /// Destination address.
    pub address: IpAddr,
    /// Destination port.
    pub port: u16,
    /// A group or a broadcast address: each socket gets a copy.
    pub many: bool,
}

impl Key {
    /// Of a single station.
    pub fn unicast(address: IpAddr, port: u16) -> Self {
        Self { address, port, many: false }
    }
}

/// The keys that lift what `want` receives: device and key. Unless its process is `alone`, groups and broadcasts are the stack's: a socket of
/// another may get a copy without having joined (IP_MULTICAST_ALL).
pub fn expand(want: &Want, places: &[Place], alone: bool) -> BTreeSet<(u32, Key)> {
    let mut keys = BTreeSet::new();
    for place in places {
        let here = |ifindex: u32| ifindex == 0 || ifindex == place.ifindex;
        if !here(want.ifindex) {
            continue;
        }
        let fits = |a: &&Address| want.takes(a.ip);
        let own = place.addresses.iter().filter(fits).map(|a| (a.ip, a.broadcast));
        let joined = want.groups.iter().filter(|m| want.takes(m.group) && here(m.ifindex));
        let joined = joined.map(|m| (m.group, true));
        let key = |(address, many)| (place.ifindex, Key { address, port: want.port, many });
        keys.extend(own.chain(joined).filter(|(_, many)| alone || !many).map(key));
    }
    keys
}

impl Want {
    /// Whether some address fits both, port and device aside.
    pub fn meets(&self, other: &Self) -> bool {
        let both_any = self.local.is_unspecified() && other.local.is_unspecified();
        let families_meet = self.local.is_ipv4() == other.local.is_ipv4() || self.dual || other.dual;
        self.takes(other.local) || other.takes(self.local) || (both_any && families_meet)
    }

    /// Whether Linux delivers packets for `address` to this socket, the port aside.
    pub fn takes(&self, address: IpAddr) -> bool {
        match self.local {
            IpAddr::V4(Ipv4Addr::UNSPECIFIED) => address.is_ipv4(),
            IpAddr::V6(Ipv6Addr::UNSPECIFIED) => address.is_ipv6() || self.dual,
            local => local == address,
        }
    }
}

/// A change of `steer`'s maps.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Change {
    /// Write the rule of this key.
    Rule {
        /// Stamp its packets with their arrival time.
        timestamp: bool,
        /// Who gets them.
        shares: Shares,
    },
    /// Remove the rule of this key.
    NoRule,
    /// The port has its first rule.
    Port,
    /// The port has lost its last rule.
    NoPort,
}

/// How many sockets at each seat want a key, as far as it matters: a single seat has it all.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shares(pub [u8; SEATS]);

impl Shares {
    /// All for one.
    pub fn only(seat: u8) -> Self {
        let mut shares = [0; SEATS];
        shares[usize::from(seat)] = 1;
        Self(shares)
    }

    fn of(sockets: &[u32; SEATS]) -> Self {
        let mut seats = (0_u8..).zip(sockets).filter(|(_, sockets)| **sockets > 0).map(|(seat, _)| seat);
        match (seats.next(), seats.next()) {
            (Some(only), None) => Self::only(only),
            _ => Self(sockets.map(|sockets| sockets.min(255) as u8)),
        }
    }

    /// The seat, if it is one.
    pub fn single(&self) -> Option<u8> {
        let mut seats = (0_u8..).zip(self.0).filter(|(_, share)| *share > 0).map(|(seat, _)| seat);
        seats.next().filter(|_| seats.next().is_none())
    }

    /// The seat of each of `N` parts, in proportion.
    pub fn parts<const N: usize>(&self) -> [u8; N] {
        let all: usize = self.0.iter().map(|share| usize::from(*share)).sum();
        let mut parts = [0; N];
        let mut end = 0;
        for (seat, share) in (0_u8..).zip(self.0) {
            let begin = end;
            end += usize::from(share);
            parts[begin * N / all.max(1)..end * N / all.max(1)].fill(seat);
        }
        parts
    }
}

/// One change: device, key (for ports only its port counts), what.
pub type Op = (u32, Key, Change);

#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
struct Count {
    seats: [u32; SEATS],
    timestamps: u32,
}

impl Count {
    fn sockets(&self) -> u32 {
        self.seats.iter().sum()
    }

    /// None: nobody wants it, or several processes want a copy each, which only the stack makes.
    fn rule(&self, key: &Key) -> Option<Change> {
        let shares = Shares::of(&self.seats);
        let lifted = self.sockets() > 0 && (!key.many || shares.single().is_some());
        lifted.then_some(Change::Rule { timestamp: self.timestamps > 0, shares })
    }
}

/// How many sockets want each key.
#[derive(Default, Debug, PartialEq, Eq)]
pub struct Table {
    keys: BTreeMap<(u32, Key), Count>,
    ports: BTreeMap<(u32, u16), u32>,
}

impl Table {
    /// One more socket of the process at `seat` wants `keys`. Changes come in an order in which no packet meets half a rule.
    pub fn add(&mut self, keys: &BTreeSet<(u32, Key)>, timestamp: bool, seat: u8) -> Vec<Op> {
        let mut ops = Vec::new();
        for &(device, key) in keys {
            let count = self.keys.entry((device, key)).or_default();
            let before = count.rule(&key);
            count.seats[usize::from(seat)] += 1;
            count.timestamps += u32::from(timestamp);
            let after = count.rule(&key);
            self.change(device, key, before, after, &mut ops);
        }
        ops
    }

    /// A socket that was added with the same arguments is gone.
    pub fn remove(&mut self, keys: &BTreeSet<(u32, Key)>, timestamp: bool, seat: u8) -> Vec<Op> {
        let mut ops = Vec::new();
        for &(device, key) in keys {
            let Some(count) = self.keys.get_mut(&(device, key)) else { continue };
            let before = count.rule(&key);
            count.seats[usize::from(seat)] -= 1;
            count.timestamps -= u32::from(timestamp);
            let after = count.rule(&key);
            if count.sockets() == 0 {
                self.keys.remove(&(device, key));
            }
            self.change(device, key, before, after, &mut ops);
        }
        ops
    }

    fn change(
        &mut self,
        device: u32,
        key: Key,
        before: Option<Change>,
        after: Option<Change>,
        ops: &mut Vec<Op>,
    ) {
        let port = self.ports.entry((device, key.port)).or_default();
        match (before, after) {
            (None, Some(rule)) => {
                *port += 1;
                ops.push((device, key, rule));
                ops.extend((*port == 1).then_some((device, key, Change::Port)));
            }
            (Some(_), None) => {
                *port -= 1;
                ops.extend((*port == 0).then_some((device, key, Change::NoPort)));
                ops.push((device, key, Change::NoRule));
            }
            (Some(old), Some(new)) if old != new => ops.push((device, key, new)),
            _ => {}
        }
        if *port == 0 {
            self.ports.remove(&(device, key.port));
        }
    }

    /// Forgets a device whose maps are gone.
    pub fn forget(&mut self, device: u32) {
        self.keys.retain(|(at, _), _| *at != device);
        self.ports.retain(|(at, _), _| *at != device);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn addresses(texts: &[&str]) -> Vec<Address> {
        texts.iter().map(|text| Address { ip: ip(text), broadcast: false }).collect()
    }

    fn places() -> Vec<Place> {
        let eth0 = ["10.0.0.1", "10.0.0.255", "255.255.255.255", "fd00::1", "fe80::1"];
        let eth1 = ["10.1.0.1", "fe80::1"];
        vec![
            Place { ifindex: 2, addresses: addresses(&eth0) },
            Place { ifindex: 3, addresses: addresses(&eth1) },
        ]
    }

    fn want(local: &str) -> Want {
        Want { local: ip(local), dual: false, port: 53, ifindex: 0, groups: vec![] }
    }

    fn shown(want: &Want) -> Vec<String> {
        let keys = expand(want, &places(), true);
        keys.into_iter().map(|(at, key)| format!("{at} {}", key.address)).collect()
    }

    #[test]
    fn a_wildcard_gets_every_address_of_its_family_on_every_device() {
        let v4 = ["2 10.0.0.1", "2 10.0.0.255", "2 255.255.255.255", "3 10.1.0.1"];
        assert_eq!(shown(&want("0.0.0.0")), v4);
        assert_eq!(shown(&want("::")), ["2 fd00::1", "2 fe80::1", "3 fe80::1"]);
        let dual = Want { dual: true, ..want("::") };
        assert_eq!(shown(&dual).len(), v4.len() + 3);
    }

    #[test]
    fn a_bound_device_or_scope_narrows_to_it() {
        assert_eq!(shown(&Want { ifindex: 3, ..want("0.0.0.0") }), ["3 10.1.0.1"]);
        assert_eq!(shown(&Want { ifindex: 3, ..want("fe80::1") }), ["3 fe80::1"]);
        assert!(shown(&Want { ifindex: 9, ..want("0.0.0.0") }).is_empty());
    }

    #[test]
    fn an_address_of_another_host_gets_no_rule() {
        assert!(shown(&want("192.0.2.1")).is_empty());
    }

    #[test]
    fn a_group_is_lifted_where_it_was_joined_and_only_for_sockets_that_receive_it() {
        let group = |ifindex| vec![Membership { group: ip("239.1.2.3"), ifindex }];
        let joined = |want: Want| shown(&want).into_iter().filter(|k| k.contains("239")).collect::<Vec<_>>();
        assert_eq!(joined(Want { groups: group(2), ..want("0.0.0.0") }), ["2 239.1.2.3"]);
        assert!(joined(Want { groups: group(4), ..want("0.0.0.0") }).is_empty());
        assert_eq!(joined(Want { groups: group(0), ..want("239.1.2.3") }), ["2 239.1.2.3", "3 239.1.2.3"]);
        assert!(joined(Want { groups: group(2), ..want("10.0.0.1") }).is_empty());
        assert!(joined(Want { groups: group(2), ifindex: 3, ..want("0.0.0.0") }).is_empty());
    }

    #[test]
    fn parts_are_shared_in_proportion_to_sockets() {
        let mut shares = [0; SEATS];
        (shares[0], shares[3]) = (3, 1);
        let parts: [u8; 256] = Shares(shares).parts();
        assert_eq!(parts.iter().filter(|seat| **seat == 0).count(), 192);
        assert_eq!(parts.iter().filter(|seat| **seat == 3).count(), 64);
        assert_eq!((Shares(shares).single(), Shares::only(7).single()), (None, Some(7)));
        assert_eq!(Shares::only(7).parts::<256>(), [7; 256]);
        let all: [u8; 256] = Shares([255; SEATS]).parts();
        assert!((0..SEATS as u8).all(|seat| all.iter().filter(|part| **part == seat).count() == 8));
    }

    #[test]
    fn a_group_that_several_processes_have_joined_is_the_stacks_to_copy() {
        let groups = vec![Membership { group: ip("239.1.2.3"), ifindex: 2 }];
        let keys = expand(&Want { groups, ..want("239.1.2.3") }, &places(), true);
        let mut table = Table::default();
        let is = |ops: &[Op]| ops.iter().map(|(_, _, change)| *change).collect::<Vec<_>>();
        let rule = |seat| Change::Rule { timestamp: false, shares: Shares::only(seat) };
        assert_eq!(is(&table.add(&keys, false, 0)), [rule(0), Change::Port]);
        assert_eq!(is(&table.add(&keys, false, 0)), [], "two sockets of one process: it makes the copy");
        assert_eq!(is(&table.add(&keys, false, 1)), [Change::NoPort, Change::NoRule]);
        assert_eq!(is(&table.remove(&keys, false, 0)), []);
        assert_eq!(is(&table.remove(&keys, false, 0)), [rule(1), Change::Port]);
        table.remove(&keys, false, 1);
        assert_eq!(table, Table::default());
    }

    /// What `steer`'s maps would hold.
    #[derive(Default, PartialEq, Debug)]
    struct Maps {
        rules: BTreeMap<(u32, Key), (bool, Shares)>,
        ports: BTreeSet<(u32, u16)>,
    }

    impl Maps {
        fn apply(&mut self, ops: Vec<Op>) {
            for (device, key, change) in ops {
                match change {
                    Change::Rule { timestamp, shares } => {
                        self.rules.insert((device, key), (timestamp, shares));
                    }
                    Change::NoRule => assert!(self.rules.remove(&(device, key)).is_some()),
                    Change::Port => assert!(self.ports.insert((device, key.port))),
                    Change::NoPort => assert!(self.ports.remove(&(device, key.port))),
                }
                let orphan = |(device, port): &(u32, u16)| {
                    !self.rules.keys().any(|(d, k)| d == device && k.port == *port)
                };
                assert!(change == Change::NoPort || !self.ports.iter().any(orphan), "a port without a rule");
            }
        }
    }

    fn some_want() -> impl Strategy<Value = (Want, bool, u8)> {
        let local = prop::sample::select(vec!["0.0.0.0", "::", "10.0.0.1", "10.1.0.1", "fe80::1"]);
        let groups = prop::collection::vec(0_u32..5, 0..3);
        (local, any::<bool>(), 1_u16..4, 0_u32..5, groups, any::<bool>(), 0_u8..3).prop_map(
            |(local, dual, port, ifindex, groups, timestamp, seat)| {
                let groups = groups.into_iter().map(|ifindex| Membership { group: ip("239.1.1.1"), ifindex });
                (Want { local: ip(local), dual, port, ifindex, groups: groups.collect() }, timestamp, seat)
            },
        )
    }

    proptest! {
        #[test]
        fn maps_always_hold_what_the_sockets_want(steps in prop::collection::vec((some_want(), any::<prop::sample::Index>(), any::<bool>()), 1..40)) {
            let (mut table, mut maps, mut live) = (Table::default(), Maps::default(), Vec::new());
            for ((want, timestamp, seat), victim, close) in steps {
                if close && !live.is_empty() {
                    let (keys, timestamp, seat) = live.swap_remove(victim.index(live.len()));
                    maps.apply(table.remove(&keys, timestamp, seat));
                } else {
                    let keys = expand(&want, &places(), true);
                    maps.apply(table.add(&keys, timestamp, seat));
                    live.push((keys, timestamp, seat));
                }
                let mut wanted: BTreeMap<_, (bool, [u32; SEATS])> = BTreeMap::new();
                for (keys, timestamp, seat) in &live {
                    for key in keys {
                        let (stamped, seats) = wanted.entry(*key).or_default();
                        *stamped |= timestamp;
                        seats[usize::from(*seat)] += 1;
                    }
                }
                let shares = |(key, (stamped, seats)): ((u32, Key), (bool, [u32; SEATS]))| (key, (stamped, Shares::of(&seats)));
                let alone = |(key, (_, shares)): &((u32, Key), (bool, Shares))| !key.1.many || shares.single().is_some();
                let rules: BTreeMap<_, _> = wanted.into_iter().map(shares).filter(alone).collect();
                let ports = rules.keys().map(|(device, key)| (*device, key.port)).collect();
                let expected = Maps { rules, ports };
                prop_assert_eq!(&maps, &expected);
            }
            for (keys, timestamp, seat) in live {
                maps.apply(table.remove(&keys, timestamp, seat));
            }
            prop_assert_eq!(maps, Maps::default());
            prop_assert_eq!(table, Table::default());
        }
    }
}
