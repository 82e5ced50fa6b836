//! Against another parser and builder: etherparse writes and this crate reads, this crate writes and etherparse reads.

#![allow(clippy::unwrap_used)] // helpers of tests: a panic is the failure

#[path = "oracle/tcp.rs"]
mod tcp;

use etherparse::{
    EtherType, IpFragOffset, IpNumber, Ipv4Extensions, NetSlice, PacketBuilder, PacketBuilderStep,
    SlicedPacket, TransportSlice, UdpHeader, VlanId, VlanSlice,
};
use hoist_packet::{
    Ip, Refused, SocketAddrRaw, checksum, ethernet,
    udp::{self, ChecksumTrust, Datagram, Template},
};
use proptest::prelude::*;
use std::net::{IpAddr, SocketAddr};

const LINK_TO: [u8; 6] = [2, 0, 0, 0, 0, 2];
const LINK_FROM: [u8; 6] = [2, 0, 0, 0, 0, 1];

/// What goes into a datagram, independent of who writes it.
#[derive(Clone, Debug)]
struct Recipe {
    vlan: Option<u16>,
    source: SocketAddrRaw,
    destination: SocketAddrRaw,
    ttl: u8,
    tos: u8,
    flow_label: u32,
    payload: Vec<u8>,
}

impl Recipe {
    fn is_v4(&self) -> bool {
        matches!(self.source.ip, Ip::V4(_))
    }

    fn headers_len(&self) -> usize {
        14 + if self.vlan.is_some() { 4 } else { 0 } + if self.is_v4() { 28 } else { 48 }
    }

    fn written_by_us(&self) -> Vec<u8> {
        let mut out = vec![0xee; 2048];
        let template = Template {
            link: ethernet::Header { destination: LINK_TO, source: LINK_FROM, vlan: self.vlan },
            source: self.source,
            destination: self.destination,
            ttl: self.ttl,
            tos: self.tos,
            flow_label: self.flow_label,
            payload: &self.payload,
        };
        let len = template.write(&mut out).unwrap();
        out.truncate(len);
        out
    }

    fn written_by_etherparse(&self) -> Vec<u8> {
        let link = PacketBuilder::ethernet2(LINK_FROM, LINK_TO);
        let ip = etherparse::IpHeaders::from(self.clone());
        let step = match self.vlan {
            Some(id) => link.single_vlan(VlanId::try_new(id).unwrap()).ip(ip),
            None => link.ip(ip),
        };
        written(step.udp(self.source.port, self.destination.port), &self.payload)
    }

    fn datagram(&self) -> Datagram {
        let start = self.headers_len() as u32;
        Datagram {
            vlan: self.vlan,
            source: self.source,
            destination: self.destination,
            ttl: self.ttl,
            tos: self.tos,
            flow_label: self.flow_label,
            payload: start..start + self.payload.len() as u32,
            group: self.destination.ip.is_multicast() || self.destination.ip.is_broadcast(),
            partial: false,
        }
    }

    fn pseudo_header(&self) -> u16 {
        let len = self.payload.len() as u16 + 8;
        match (self.source.ip, self.destination.ip) {
            (Ip::V4(a), Ip::V4(b)) => checksum::pseudo_header_v4(a, b, 17, len).fold(),
            (Ip::V6(a), Ip::V6(b)) => checksum::pseudo_header_v6(&a, &b, 17, len.into()).fold(),
            _ => unreachable!("one packet, one family"),
        }
    }
}

impl From<Recipe> for etherparse::IpHeaders {
    fn from(recipe: Recipe) -> Self {
        match (recipe.source.ip, recipe.destination.ip) {
            (Ip::V4(source), Ip::V4(destination)) => {
                let mut ip =
                    etherparse::Ipv4Header::new(0, recipe.ttl, IpNumber::UDP, source, destination).unwrap();
                ip.dscp = (recipe.tos >> 2).try_into().unwrap();
                ip.ecn = (recipe.tos & 3).try_into().unwrap();
                Self::Ipv4(ip, Ipv4Extensions::default())
            }
            (Ip::V6(source), Ip::V6(destination)) => {
                let ip = etherparse::Ipv6Header {
                    traffic_class: recipe.tos,
                    flow_label: recipe.flow_label.try_into().unwrap(),
                    payload_length: 0,
                    next_header: IpNumber::UDP,
                    hop_limit: recipe.ttl,
                    source,
                    destination,
                };
                Self::Ipv6(ip, Default::default())
            }
            _ => unreachable!("one packet, one family"),
        }
    }
}

fn written(step: PacketBuilderStep<UdpHeader>, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    step.write(&mut out, payload).unwrap();
    out
}

fn verify(frame: &[u8]) -> Result<Datagram, Refused> {
    udp::parse(frame, ChecksumTrust::Verify)
}

fn v4_end() -> impl Strategy<Value = (Ip, Ip)> {
    let unicast = (1u8..=223, any::<[u8; 3]>())
        .prop_filter("not loopback", |(first, _)| *first != 127)
        .prop_map(|(first, [b, c, d])| [first, b, c, d]);
    let group = (224u8..=239, any::<[u8; 3]>()).prop_map(|(first, [b, c, d])| [first, b, c, d]);
    let destination = prop_oneof![4 => unicast.clone(), 1 => group, 1 => Just([255; 4])];
    (unicast, destination).prop_map(|(source, destination)| (Ip::V4(source), Ip::V4(destination)))
}

fn v6_end() -> impl Strategy<Value = (Ip, Ip)> {
    let with = |first: u8, second: u8, mut octets: [u8; 16]| {
        (octets[0], octets[1]) = (first, second);
        Ip::V6(octets)
    };
    let unicast = (1u8..=254, any::<u8>(), any::<[u8; 16]>()).prop_map(move |(a, b, rest)| with(a, b, rest));
    let group = (2u8..=14, any::<[u8; 16]>()).prop_map(move |(scope, rest)| with(0xff, scope, rest));
    (unicast.clone(), prop_oneof![4 => unicast, 1 => group])
}

fn recipe() -> impl Strategy<Value = Recipe> {
    let ends = prop_oneof![v4_end(), v6_end()];
    let payload = prop::collection::vec(any::<u8>(), 0..1400);
    let vlan = prop::option::of(1u16..4095);
    (ends, any::<[u16; 2]>(), vlan, any::<[u8; 2]>(), 0u32..1 << 20, payload).prop_map(
        |((source, destination), [from, to], vlan, [ttl, tos], label, payload)| Recipe {
            vlan,
            source: SocketAddrRaw { ip: source, port: from },
            destination: SocketAddrRaw { ip: destination, port: to },
            ttl,
            tos,
            flow_label: if matches!(source, Ip::V6(_)) { label } else { 0 },
            payload,
        },
    )
}

/// Reads with etherparse what a [`Datagram`] holds.
fn read_by_etherparse(frame: &[u8]) -> (SocketAddr, SocketAddr, Option<u16>, u8, u8, u32, Vec<u8>) {
    let packet = SlicedPacket::from_ethernet(frame).unwrap();
    let Some(TransportSlice::Udp(udp)) = packet.transport.as_ref() else { panic!("not UDP: {packet:?}") };
    let vlan = match packet.vlan() {
        Some(VlanSlice::SingleVlan(tag)) => Some(tag.vlan_identifier().value()),
        _ => None,
    };
    let header = udp.to_header();
    let (from, to, ttl, tos, label): (IpAddr, IpAddr, u8, u8, u32) = match packet.net.as_ref().unwrap() {
        NetSlice::Ipv4(ip) => {
            let ip = ip.header();
            assert_eq!(ip.to_header().calc_header_checksum(), ip.header_checksum());
            assert_eq!(header.calc_checksum_ipv4(&ip.to_header(), udp.payload()).unwrap(), header.checksum);
            let tos = ip.dcp().value() << 2 | ip.ecn().value();
            (ip.source_addr().into(), ip.destination_addr().into(), ip.ttl(), tos, 0)
        }
        NetSlice::Ipv6(ip) => {
            let ip = ip.header();
            assert_eq!(header.calc_checksum_ipv6(&ip.to_header(), udp.payload()).unwrap(), header.checksum);
            let (from, to) = (ip.source_addr().into(), ip.destination_addr().into());
            (from, to, ip.hop_limit(), ip.traffic_class(), ip.flow_label().value())
        }
        other => panic!("not IP: {other:?}"),
    };
    let ends = (SocketAddr::new(from, header.source_port), SocketAddr::new(to, header.destination_port));
    (ends.0, ends.1, vlan, ttl, tos, label, udp.payload().to_vec())
}

proptest! {
    #[test]
    fn etherparse_writes_and_we_read(recipe in recipe()) {
        let frame = recipe.written_by_etherparse();
        let datagram = verify(&frame).unwrap();
        prop_assert_eq!(datagram.payload_in(&frame).unwrap(), &recipe.payload[..]);
        prop_assert_eq!(datagram, recipe.datagram());
    }

    #[test]
    fn we_write_and_etherparse_reads(recipe in recipe()) {
        let (source, destination, vlan, ttl, tos, label, payload) = read_by_etherparse(&recipe.written_by_us());
        prop_assert_eq!(source, SocketAddr::from(recipe.source));
        prop_assert_eq!(destination, SocketAddr::from(recipe.destination));
        prop_assert_eq!((vlan, ttl, tos, label), (recipe.vlan, recipe.ttl, recipe.tos, recipe.flow_label));
        prop_assert_eq!(payload, recipe.payload);
    }

    #[test]
    fn trailing_padding_is_ignored(recipe in recipe(), padding in prop::collection::vec(any::<u8>(), 1..64)) {
        let mut frame = recipe.written_by_etherparse();
        frame.extend(padding);
        prop_assert_eq!(verify(&frame), Ok(recipe.datagram()));
    }

    #[test]
    fn every_prefix_is_refused(recipe in recipe()) {
        let frame = recipe.written_by_etherparse();
        for len in 0..frame.len() {
            prop_assert!(verify(&frame[..len]).is_err(), "{} of {} bytes", len, frame.len());
        }
    }

    #[test]
    fn a_corrupted_segment_is_refused(recipe in recipe(), at: prop::sample::Index, change in 1u8..) {
        let mut frame = recipe.written_by_etherparse();
        let segment = recipe.headers_len() - 8;
        let at = segment + at.index(frame.len() - segment);
        // A changed length also changes what is summed, which one time in 65,536 fits again.
        prop_assume!(!(segment + 4..segment + 6).contains(&at));
        frame[at] ^= change;
        // A whole checksum of zero is no damage but the absence of a checksum: it takes two changed bytes.
        prop_assume!(frame[recipe.headers_len() - 2..recipe.headers_len()] != [0, 0]);
        prop_assert_eq!(verify(&frame), Err(Refused::Checksum), "byte {}", at);
    }

    #[test]
    fn a_corrupted_ipv4_header_is_refused(recipe in recipe(), at in 0usize..20, change in 1u8..) {
        prop_assume!(recipe.is_v4());
        let mut frame = recipe.written_by_etherparse();
        let header = recipe.headers_len() - 28;
        frame[header + at] ^= change;
        prop_assert!(verify(&frame).is_err(), "byte {}", at);
    }

    #[test]
    fn a_partial_checksum_needs_permission_and_completion_makes_it_whole(recipe in recipe()) {
        let whole = recipe.written_by_etherparse();
        let mut frame = whole.clone();
        let field = recipe.headers_len() - 2;
        frame[field..field + 2].copy_from_slice(&recipe.pseudo_header().to_be_bytes());
        // One payload in 65,536 sums to nothing: its partial checksum is also its whole one.
        prop_assume!(frame != whole && verify(&frame).is_err());
        prop_assert_eq!(verify(&frame), Err(Refused::Checksum));
        let partial = Datagram { partial: true, ..recipe.datagram() };
        prop_assert_eq!(udp::parse(&frame, ChecksumTrust::PartialAllowed), Ok(partial));
        prop_assert_eq!(udp::complete_checksum(&mut frame), Ok(()));
        prop_assert_eq!(frame, whole);
    }

    #[test]
    fn a_wrong_checksum_stays_wrong_where_partial_ones_are_allowed(recipe in recipe(), change in 1u16..) {
        let mut frame = recipe.written_by_etherparse();
        let field = recipe.headers_len() - 2;
        let right = u16::from_be_bytes([frame[field], frame[field + 1]]);
        let wrong = right ^ change;
        prop_assume!(wrong != 0 && wrong != recipe.pseudo_header());
        frame[field..field + 2].copy_from_slice(&wrong.to_be_bytes());
        prop_assert_eq!(udp::parse(&frame, ChecksumTrust::PartialAllowed), Err(Refused::Checksum));
        prop_assert_eq!(udp::complete_checksum(&mut frame), Err(Refused::Checksum));
    }

    #[test]
    fn a_zero_checksum_means_none_on_ipv4_and_damage_on_ipv6(recipe in recipe()) {
        let mut frame = recipe.written_by_etherparse();
        frame[recipe.headers_len() - 2..recipe.headers_len()].fill(0);
        let expected = if recipe.is_v4() { Ok(recipe.datagram()) } else { Err(Refused::Checksum) };
        for trust in [ChecksumTrust::Verify, ChecksumTrust::PartialAllowed] {
            prop_assert_eq!(udp::parse(&frame, trust), expected.clone());
        }
    }

    #[test]
    fn filling_restores_every_checksum(recipe in recipe(), garbage: [u8; 2]) {
        let whole = recipe.written_by_etherparse();
        let mut frame = whole.clone();
        frame[recipe.headers_len() - 2..recipe.headers_len()].copy_from_slice(&garbage);
        if recipe.is_v4() {
            let header = recipe.headers_len() - 28;
            frame[header + 10..header + 12].copy_from_slice(&garbage);
        }
        prop_assert_eq!(udp::fill_checksums(&mut frame), Ok(()));
        prop_assert_eq!(frame, whole);
    }

    #[test]
    fn a_shorter_udp_length_trims_the_datagram(recipe in recipe(), cut: prop::sample::Index) {
        let mut frame = recipe.written_by_etherparse();
        let len = cut.index(recipe.payload.len() + 1);
        let at = recipe.headers_len() - 4;
        frame[at..at + 2].copy_from_slice(&(len as u16 + 8).to_be_bytes());
        udp::fill_checksums(&mut frame).unwrap();
        prop_assert_eq!(verify(&frame).unwrap().payload_in(&frame).unwrap(), &recipe.payload[..len]);
    }

    #[test]
    fn a_udp_length_below_8_or_beyond_the_packet_is_refused(recipe in recipe(), len: u16) {
        let own = recipe.payload.len() + 8;
        prop_assume!(len < 8 || usize::from(len) > own);
        let mut frame = recipe.written_by_etherparse();
        let at = recipe.headers_len() - 4;
        frame[at..at + 2].copy_from_slice(&len.to_be_bytes());
        // A length of zero on IPv6 means the whole packet, and the checksum was made for that.
        let expected = if len == 0 && !recipe.is_v4() { Refused::Checksum } else { Refused::Length };
        prop_assert_eq!(verify(&frame), Err(expected));
    }
}

fn sample(v6: bool) -> Recipe {
    let address = |last| if v6 { format!("[fd00::{last}]:5000") } else { format!("10.0.0.{last}:5000") };
    let end = |last| SocketAddrRaw::from(address(last).parse::<SocketAddr>().unwrap());
    Recipe {
        vlan: None,
        source: end(1),
        destination: end(2),
        ttl: 64,
        tos: 0,
        flow_label: 0,
        payload: b"payload".to_vec(),
    }
}

#[test]
fn a_udp_length_of_zero_takes_the_whole_ipv6_packet() {
    let recipe = sample(true);
    let mut frame = recipe.written_by_us();
    frame[58..60].fill(0);
    udp::fill_checksums(&mut frame).unwrap();
    assert_eq!(verify(&frame), Ok(recipe.datagram()));
}

#[test]
fn what_only_the_stack_understands_is_refused_without_being_called_damage() {
    let link = || PacketBuilder::ethernet2(LINK_FROM, LINK_TO);
    let udp = |headers| written(link().ip(headers).udp(1, 2), b"payload");
    let v4 = |change: fn(&mut etherparse::Ipv4Header)| {
        let mut headers = etherparse::IpHeaders::from(sample(false));
        let etherparse::IpHeaders::Ipv4(ip, _) = &mut headers else { panic!("not IPv4") };
        change(ip);
        udp(headers)
    };
    let mut extended = etherparse::IpHeaders::from(sample(true));
    let extension = etherparse::Ipv6RawExtHeader::new_raw(IpNumber::UDP, &[1, 4, 0, 0, 0, 0]).unwrap();
    let etherparse::IpHeaders::Ipv6(_, extensions) = &mut extended else { panic!("not IPv6") };
    extensions.destination_options = Some(extension);
    let tcp = link().ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64).tcp(1, 2, 3, 4);
    let mut tcp_frame = Vec::new();
    tcp.write(&mut tcp_frame, b"payload").unwrap();
    let mut arp = sample(false).written_by_us();
    arp[12..14].copy_from_slice(&EtherType::ARP.0.to_be_bytes());

    let cases = [
        (v4(|ip| ip.more_fragments = true), Refused::Fragment),
        (v4(|ip| ip.fragment_offset = IpFragOffset::try_new(8).unwrap()), Refused::Fragment),
        (v4(|ip| ip.options = [1, 1, 1, 1].into()), Refused::Options),
        (v4(|ip| ip.source = [127, 0, 0, 1]), Refused::Martian),
        (udp(extended), Refused::Extension),
        (tcp_frame, Refused::NotUdp),
        (arp, Refused::NotIp),
    ];
    for (frame, expected) in cases {
        assert_eq!(verify(&frame), Err(expected));
        assert!(!expected.is_damaged());
    }
}

#[test]
fn a_group_is_told_by_the_ethernet_destination_alone() {
    // A subnet broadcast: only the device's prefix would tell it from unicast.
    let mut frame = sample(false).written_by_us();
    assert!(!verify(&frame).unwrap().group);
    frame[..6].fill(0xff);
    assert!(verify(&frame).unwrap().group);
}

#[test]
fn a_checksum_that_computes_to_zero_travels_as_ffff() {
    let mut recipe = sample(false);
    // The two bytes that make the sum 0xffff: the checksum of the datagram without them.
    recipe.payload = vec![0, 0];
    let frame = recipe.written_by_us();
    recipe.payload = frame[40..42].to_vec();
    let frame = recipe.written_by_us();
    assert_eq!(frame[40..42], [0xff, 0xff]);
    assert_eq!(verify(&frame), Ok(recipe.datagram()));
    assert_eq!(frame, recipe.written_by_etherparse());
}

#[test]
fn a_template_refuses_what_does_not_fit() {
    let recipe = sample(false);
    let (len, mut out) = (recipe.written_by_us().len(), vec![0; 70_000]);
    let link = ethernet::Header { destination: LINK_TO, source: LINK_FROM, vlan: None };
    let template = Template {
        link,
        source: recipe.source,
        destination: recipe.destination,
        ttl: 64,
        tos: 0,
        flow_label: 0,
        payload: &recipe.payload,
    };
    assert_eq!(template.write(&mut out[..len]), Some(len));
    assert_eq!(template.write(&mut out[..len - 1]), None);
    assert_eq!(Template { destination: sample(true).destination, ..template }.write(&mut out), None);
    let (longest, too_long) = (vec![0; 65_507], vec![0; 65_508]);
    assert_eq!(Template { payload: &longest, ..template }.write(&mut out), Some(65_549));
    assert_eq!(Template { payload: &too_long, ..template }.write(&mut out), None);
}
