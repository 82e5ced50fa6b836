//! TCP against etherparse.

use super::{LINK_FROM, LINK_TO, v4_end, v6_end};
use etherparse::{
    EtherType, IpFragOffset, IpHeaders, IpNumber, Ipv4Extensions, NetSlice, PacketBuilder, SlicedPacket,
    TcpHeader, TransportSlice, VlanId,
};
use hoist_packet::{
    Ip, Refused, SocketAddrRaw, checksum, ethernet,
    tcp::{self, ChecksumTrust, Segment, Template},
};
use proptest::prelude::*;
use std::net::{IpAddr, SocketAddr};

/// What goes into a segment, independent of who writes it.
#[derive(Clone, Debug)]
struct Recipe {
    source: SocketAddrRaw,
    destination: SocketAddrRaw,
    ttl: u8,
    tos: u8,
    flow_label: u32,
    seq: u32,
    ack: u32,
    flags: u8,
    window: u16,
    urgent: u16,
    options: Vec<u8>,
    payload: Vec<u8>,
}

impl Recipe {
    fn is_v4(&self) -> bool {
        matches!(self.source.ip, Ip::V4(_))
    }

    fn transport_at(&self) -> usize {
        if self.is_v4() { 34 } else { 54 }
    }

    fn payload_at(&self) -> usize {
        self.transport_at() + 20 + self.options.len()
    }

    fn template(&self) -> Template<'_> {
        Template {
            link: ethernet::Header { destination: LINK_TO, source: LINK_FROM, vlan: None },
            source: self.source,
            destination: self.destination,
            ttl: self.ttl,
            tos: self.tos,
            flow_label: self.flow_label,
            seq: self.seq,
            ack: self.ack,
            flags: self.flags,
            window: self.window,
            urgent: self.urgent,
            options: &self.options,
            payload: &self.payload,
        }
    }

    fn written_by_us(&self) -> Vec<u8> {
        let mut out = vec![0xee; 2048];
        let len = self.template().write(&mut out).unwrap();
        out.truncate(len);
        out
    }

    fn tcp_header(&self) -> TcpHeader {
        let mut header = TcpHeader::new(self.source.port, self.destination.port, self.seq, self.window);
        header.acknowledgment_number = self.ack;
        header.urgent_pointer = self.urgent;
        let has = |flag| self.flags & flag != 0;
        header.fin = has(tcp::FIN);
        header.syn = has(tcp::SYN);
        header.rst = has(tcp::RST);
        header.psh = has(tcp::PSH);
        header.ack = has(tcp::ACK);
        header.urg = has(tcp::URG);
        header.ece = has(tcp::ECE);
        header.cwr = has(tcp::CWR);
        header.set_options_raw(&self.options).unwrap();
        header
    }

    fn written_by_etherparse(&self) -> Vec<u8> {
        let link = PacketBuilder::ethernet2(LINK_FROM, LINK_TO);
        let step = link.ip(IpHeaders::from(self)).tcp_header(self.tcp_header());
        let mut out = Vec::new();
        step.write(&mut out, &self.payload).unwrap();
        out
    }

    fn segment(&self) -> Segment {
        let start = self.payload_at() as u32;
        Segment {
            source: self.source,
            destination: self.destination,
            seq: self.seq,
            ack: self.ack,
            flags: self.flags,
            window: self.window,
            ttl: self.ttl,
            tos: self.tos,
            transport_at: self.transport_at() as u32,
            payload: start..start + self.payload.len() as u32,
            partial: false,
        }
    }

    fn pseudo_header(&self) -> u16 {
        let len = (20 + self.options.len() + self.payload.len()) as u16;
        match (self.source.ip, self.destination.ip) {
            (Ip::V4(a), Ip::V4(b)) => checksum::pseudo_header_v4(a, b, 6, len).fold(),
            (Ip::V6(a), Ip::V6(b)) => checksum::pseudo_header_v6(&a, &b, 6, len.into()).fold(),
            _ => unreachable!("one packet, one family"),
        }
    }
}

impl From<&Recipe> for IpHeaders {
    fn from(recipe: &Recipe) -> Self {
        match (recipe.source.ip, recipe.destination.ip) {
            (Ip::V4(source), Ip::V4(destination)) => {
                let mut ip =
                    etherparse::Ipv4Header::new(0, recipe.ttl, IpNumber::TCP, source, destination).unwrap();
                ip.dscp = (recipe.tos >> 2).try_into().unwrap();
                ip.ecn = (recipe.tos & 3).try_into().unwrap();
                Self::Ipv4(ip, Ipv4Extensions::default())
            }
            (Ip::V6(source), Ip::V6(destination)) => {
                let ip = etherparse::Ipv6Header {
                    traffic_class: recipe.tos,
                    flow_label: recipe.flow_label.try_into().unwrap(),
                    payload_length: 0,
                    next_header: IpNumber::TCP,
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

fn verify(frame: &[u8]) -> Result<Segment, Refused> {
    tcp::parse(frame, ChecksumTrust::Verify)
}

fn recipe() -> impl Strategy<Value = Recipe> {
    let ends = prop_oneof![v4_end(), v6_end()]
        .prop_filter("one host", |(_, to)| !to.is_multicast() && !to.is_broadcast());
    let options = prop::collection::vec(any::<[u8; 4]>(), 0..=10).prop_map(|words| words.concat());
    let payload = prop::collection::vec(any::<u8>(), 0..1400);
    let numbers = (any::<[u32; 2]>(), any::<u8>(), any::<[u16; 2]>());
    (ends, any::<[u16; 2]>(), any::<[u8; 2]>(), 0u32..1 << 20, numbers, options, payload).prop_map(
        |((source, destination), ports, [ttl, tos], label, numbers, options, payload)| {
            let ([seq, ack], flags, [window, urgent]) = numbers;
            Recipe {
                source: SocketAddrRaw { ip: source, port: ports[0] },
                destination: SocketAddrRaw { ip: destination, port: ports[1] },
                ttl,
                tos,
                flow_label: if matches!(source, Ip::V6(_)) { label } else { 0 },
                seq,
                ack,
                flags,
                window,
                urgent,
                options,
                payload,
            }
        },
    )
}

/// Addresses, TTL, TOS and flow label as etherparse reads them.
fn network_by_etherparse(packet: &SlicedPacket<'_>) -> (IpAddr, IpAddr, u8, u8, u32) {
    match packet.net.as_ref().unwrap() {
        NetSlice::Ipv4(ip) => {
            let ip = ip.header();
            assert_eq!(ip.to_header().calc_header_checksum(), ip.header_checksum());
            let tos = ip.dcp().value() << 2 | ip.ecn().value();
            (ip.source_addr().into(), ip.destination_addr().into(), ip.ttl(), tos, 0)
        }
        NetSlice::Ipv6(ip) => {
            let ip = ip.header();
            let (from, to) = (ip.source_addr().into(), ip.destination_addr().into());
            (from, to, ip.hop_limit(), ip.traffic_class(), ip.flow_label().value())
        }
        other => panic!("not IP: {other:?}"),
    }
}

proptest! {
    #[test]
    fn etherparse_writes_and_we_read(recipe in recipe()) {
        let frame = recipe.written_by_etherparse();
        let segment = verify(&frame).unwrap();
        prop_assert_eq!(segment.payload_in(&frame).unwrap(), &recipe.payload[..]);
        prop_assert_eq!(segment.payload_len() as usize, recipe.payload.len());
        prop_assert_eq!(segment, recipe.segment());
    }

    #[test]
    fn we_write_what_etherparse_writes(recipe in recipe()) {
        prop_assert_eq!(recipe.written_by_us(), recipe.written_by_etherparse());
    }

    #[test]
    fn we_write_and_etherparse_reads(recipe in recipe()) {
        let frame = recipe.written_by_us();
        let packet = SlicedPacket::from_ethernet(&frame).unwrap();
        let Some(TransportSlice::Tcp(read)) = packet.transport.as_ref() else { panic!("not TCP: {packet:?}") };
        let mut expected = recipe.tcp_header();
        expected.checksum = read.checksum();
        prop_assert_eq!(read.to_header(), expected);
        prop_assert_eq!(read.payload(), &recipe.payload[..]);
        let (from, to, ttl, tos, label) = network_by_etherparse(&packet);
        prop_assert_eq!(SocketAddr::new(from, recipe.source.port), SocketAddr::from(recipe.source));
        prop_assert_eq!(SocketAddr::new(to, recipe.destination.port), SocketAddr::from(recipe.destination));
        prop_assert_eq!((ttl, tos, label), (recipe.ttl, recipe.tos, recipe.flow_label));
    }

    #[test]
    fn what_follows_the_length_of_ip_is_ignored(recipe in recipe(), tail in prop::collection::vec(any::<u8>(), 1..64)) {
        let mut frame = recipe.written_by_etherparse();
        frame.extend(tail);
        prop_assert_eq!(verify(&frame), Ok(recipe.segment()));
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
        let at = recipe.transport_at() + at.index(frame.len() - recipe.transport_at());
        frame[at] ^= change;
        let expected = match verify(&frame) {
            Err(Refused::Length) => at == recipe.transport_at() + 12,
            other => other == Err(Refused::Checksum),
        };
        prop_assert!(expected, "byte {}: {:?}", at, verify(&frame));
    }

    #[test]
    fn a_corrupted_ip_header_is_refused(recipe in recipe(), at: prop::sample::Index, change in 1u8..) {
        let mut frame = recipe.written_by_etherparse();
        let at = 14 + at.index(recipe.transport_at() - 14);
        // Traffic class, flow label and hop limit of IPv6 have no checksum; another length may sum up by chance.
        prop_assume!(recipe.is_v4() || at == 20 || at > 21);
        frame[at] ^= change;
        prop_assert!(verify(&frame).is_err(), "byte {}", at);
    }

    #[test]
    fn a_partial_checksum_needs_permission_and_completion_makes_it_whole(recipe in recipe()) {
        let whole = recipe.written_by_etherparse();
        let mut frame = whole.clone();
        let field = recipe.transport_at() + 16;
        frame[field..field + 2].copy_from_slice(&recipe.pseudo_header().to_be_bytes());
        // One payload in 65,536 sums to nothing: its partial checksum is also its whole one.
        prop_assume!(verify(&frame).is_err());
        prop_assert_eq!(verify(&frame), Err(Refused::Checksum));
        let partial = Segment { partial: true, ..recipe.segment() };
        prop_assert_eq!(tcp::parse(&frame, ChecksumTrust::PartialAllowed), Ok(partial));
        prop_assert_eq!(tcp::complete_checksum(&mut frame), Ok(()));
        prop_assert_eq!(frame, whole);
    }

    #[test]
    fn a_wrong_checksum_stays_wrong_where_partial_ones_are_allowed(recipe in recipe(), change in 1u16..) {
        let mut frame = recipe.written_by_etherparse();
        let field = recipe.transport_at() + 16;
        let right = u16::from_be_bytes([frame[field], frame[field + 1]]);
        let wrong = right ^ change;
        // Zero and 0xffff are the same sum.
        prop_assume!(wrong != recipe.pseudo_header() && right | wrong != 0xffff);
        frame[field..field + 2].copy_from_slice(&wrong.to_be_bytes());
        prop_assert_eq!(tcp::parse(&frame, ChecksumTrust::PartialAllowed), Err(Refused::Checksum));
        prop_assert_eq!(tcp::complete_checksum(&mut frame), Err(Refused::Checksum));
    }

    #[test]
    fn filling_restores_every_checksum(recipe in recipe(), garbage: [u8; 2]) {
        let whole = recipe.written_by_etherparse();
        let mut frame = whole.clone();
        let field = recipe.transport_at() + 16;
        frame[field..field + 2].copy_from_slice(&garbage);
        if recipe.is_v4() {
            frame[24..26].copy_from_slice(&garbage);
        }
        prop_assert_eq!(tcp::fill_checksums(&mut frame), Ok(()));
        prop_assert_eq!(frame, whole);
    }

    #[test]
    fn a_data_offset_below_20_or_beyond_the_packet_is_refused(recipe in recipe(), words in 0u8..16) {
        let len = usize::from(words) * 4;
        prop_assume!(len < 20 || len > 20 + recipe.options.len() + recipe.payload.len());
        let mut frame = recipe.written_by_etherparse();
        frame[recipe.transport_at() + 12] = words << 4;
        prop_assert_eq!(verify(&frame), Err(Refused::Length));
        prop_assert_eq!(tcp::fill_checksums(&mut frame), Err(Refused::Length));
    }
}

fn sample(v6: bool) -> Recipe {
    let address = |last| if v6 { format!("[fd00::{last}]:5000") } else { format!("10.0.0.{last}:5000") };
    let end = |last| SocketAddrRaw::from(address(last).parse::<SocketAddr>().unwrap());
    Recipe {
        source: end(1),
        destination: end(2),
        ttl: 64,
        tos: 0,
        flow_label: 0,
        seq: 1,
        ack: 2,
        flags: tcp::ACK,
        window: 500,
        urgent: 0,
        options: vec![1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2],
        payload: b"payload".to_vec(),
    }
}

#[test]
fn a_checksum_that_computes_to_zero_is_no_missing_one() {
    for v6 in [false, true] {
        let mut recipe = sample(v6);
        recipe.payload = vec![0, 0];
        let frame = recipe.written_by_us();
        let field = recipe.transport_at() + 16;
        recipe.payload = frame[field..field + 2].to_vec();
        let mut frame = recipe.written_by_us();
        assert_eq!(frame[field..field + 2], [0, 0]);
        assert_eq!(verify(&frame), Ok(recipe.segment()));
        frame[recipe.payload_at()] ^= 1;
        assert_eq!(verify(&frame), Err(Refused::Checksum));
    }
}

#[test]
fn what_only_the_stack_understands_is_refused_without_being_called_damage() {
    let link = || PacketBuilder::ethernet2(LINK_FROM, LINK_TO);
    let recipe = sample(false);
    let ip = |headers: IpHeaders| {
        let mut out = Vec::new();
        link().ip(headers).tcp_header(recipe.tcp_header()).write(&mut out, b"payload").unwrap();
        out
    };
    let v4 = |change: fn(&mut etherparse::Ipv4Header)| {
        let mut headers = IpHeaders::from(&sample(false));
        let IpHeaders::Ipv4(header, _) = &mut headers else { panic!("not IPv4") };
        change(header);
        ip(headers)
    };
    let mut extended = IpHeaders::from(&sample(true));
    let extension = etherparse::Ipv6RawExtHeader::new_raw(IpNumber::TCP, &[1, 4, 0, 0, 0, 0]).unwrap();
    let IpHeaders::Ipv6(_, extensions) = &mut extended else { panic!("not IPv6") };
    extensions.destination_options = Some(extension);
    let tagged = |id| {
        let mut out = Vec::new();
        let step = link().single_vlan(VlanId::try_new(id).unwrap()).ip(IpHeaders::from(&recipe));
        step.tcp_header(recipe.tcp_header()).write(&mut out, b"payload").unwrap();
        out
    };
    let mut udp = Vec::new();
    link().ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64).udp(1, 2).write(&mut udp, b"payload").unwrap();
    let mut arp = recipe.written_by_us();
    arp[12..14].copy_from_slice(&EtherType::ARP.0.to_be_bytes());
    let mut group = recipe.written_by_us();
    group[..6].fill(0xff);
    let cases = [
        (v4(|ip| ip.more_fragments = true), Refused::Fragment),
        (v4(|ip| ip.fragment_offset = IpFragOffset::try_new(8).unwrap()), Refused::Fragment),
        (v4(|ip| ip.options = [1, 1, 1, 1].into()), Refused::Options),
        (v4(|ip| ip.source = [127, 0, 0, 1]), Refused::Martian),
        (v4(|ip| ip.destination = [224, 0, 0, 1]), Refused::Group),
        (v4(|ip| ip.destination = [255; 4]), Refused::Group),
        (ip(extended), Refused::Extension),
        (tagged(5), Refused::Vlan),
        (tagged(0), Refused::Vlan),
        (group, Refused::Group),
        (udp, Refused::NotTcp),
        (arp, Refused::NotIp),
    ];
    for (frame, expected) in cases {
        assert_eq!(verify(&frame), Err(expected));
        assert!(!expected.is_damaged());
    }
}

#[test]
fn a_template_refuses_what_does_not_fit() {
    let recipe = sample(false);
    let (len, mut out) = (recipe.written_by_us().len(), vec![0; 70_000]);
    let template = recipe.template();
    assert_eq!(template.write(&mut out[..len]), Some(len));
    assert_eq!(template.write(&mut out[..len - 1]), None);
    assert_eq!(Template { destination: sample(true).destination, ..template }.write(&mut out), None);
    assert_eq!(Template { options: &[1; 6], ..template }.write(&mut out), None);
    assert_eq!(Template { options: &[1; 44], ..template }.write(&mut out), None);
    let (longest, too_long) = (vec![0; 65_535 - 52], vec![0; 65_536 - 52]);
    assert_eq!(Template { payload: &longest, ..template }.write(&mut out), Some(65_549));
    assert_eq!(Template { payload: &too_long, ..template }.write(&mut out), None);
}
