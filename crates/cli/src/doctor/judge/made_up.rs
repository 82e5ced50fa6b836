//! Machines for the tests.

use super::super::facts::{Attached, Device, Facts, HugePages, Irq, Machine, Rps, Unseen, VethPeer};
use super::super::netdev::{Channels, Features, Rings, XdpSupport};
use super::super::netfilter::{Chain, Hook};
use std::collections::BTreeSet;

const EVERYTHING: u64 = 0x1ff_ffff_ffff;
const CAP_NET_RAW: u64 = 1 << 13;

/// Nothing to say against it.
pub(in super::super) fn server() -> Facts {
    Facts { machine: good_machine(), devices: vec![loopback(), nic()], one_device: false }
}

/// Everything that can be wrong, is.
pub(in super::super) fn wreck() -> Facts {
    let idle = Device { name: "eth9".to_owned(), up: false, ..nic() };
    Facts { machine: poor_machine(), devices: vec![poor_nic(), veth(), idle], one_device: false }
}

/// A good server, but nothing that needs privilege or another kernel is seen.
pub(in super::super) fn by_a_stranger() -> Facts {
    let refused = |what: &str| Unseen {
        why: format!("{what}: Operation not permitted (os error 1)"),
        privileged: true,
    };
    let missing =
        Unseen { why: "generic netlink family 'netdev': No such file".to_owned(), privileged: false };
    let machine = Machine {
        capabilities: Ok(0),
        af_xdp: Err(refused("socket(AF_XDP)")),
        nftables: Err(refused("nf_tables get-chain")),
        iptables: Err(refused("/proc/self/net/ip_tables_names")),
        memlock_bytes: Ok(Some(8 << 20)),
        ..good_machine()
    };
    let attached = Some(Attached { id: 7, name: Err(refused("BPF_PROG_GET_FD_BY_ID")) });
    let device = Device { xdp: Err(missing.clone()), xsk_queues: Err(missing), attached, ..nic() };
    Facts { machine, devices: vec![device], one_device: true }
}

pub(super) fn good_machine() -> Machine {
    Machine {
        kernel: "6.12.48+deb13-amd64".to_owned(),
        btf: true,
        initial_user_namespace: Ok(true),
        capabilities: Ok(EVERYTHING),
        af_xdp: Ok(true),
        memlock_bytes: Ok(None),
        lockdown: Ok(Some("none".to_owned())),
        cgroup2: Ok(Some("/sys/fs/cgroup".into())),
        cores: 8,
        bpf_jit: Ok(true),
        rmem_default_bytes: Ok(4 << 20),
        rmem_max_bytes: Ok(8 << 20),
        netdev_budget: Ok(300),
        rps_sock_flow_entries: Ok(0),
        irqbalance: Ok(false),
        huge_pages: Ok(HugePages { free: 64, size_kib: 2_048 }),
        nftables: Ok(Vec::new()),
        iptables: Ok(Vec::new()),
    }
}

fn poor_machine() -> Machine {
    Machine {
        kernel: "5.15.0-91-generic".to_owned(),
        btf: false,
        initial_user_namespace: Ok(false),
        capabilities: Ok(CAP_NET_RAW),
        af_xdp: Ok(false),
        memlock_bytes: Ok(Some(64 << 10)),
        lockdown: Ok(Some("confidentiality".to_owned())),
        cgroup2: Ok(None),
        bpf_jit: Ok(false),
        rmem_default_bytes: Ok(212_992),
        rmem_max_bytes: Ok(212_992),
        netdev_budget: Ok(64),
        rps_sock_flow_entries: Ok(32_768),
        irqbalance: Ok(true),
        huge_pages: Ok(HugePages { free: 0, size_kib: 2_048 }),
        nftables: Ok(vec![
            input_chain(),
            Chain { hook: Hook::Ingress, device: Some("eth0".into()), ..input_chain() },
        ]),
        iptables: Ok(vec![Chain { name: "iptables filter INPUT".to_owned(), ..input_chain() }]),
        ..good_machine()
    }
}

pub(super) fn input_chain() -> Chain {
    Chain {
        name: "inet filter input".to_owned(),
        hook: Hook::Input,
        device: None,
        nat: false,
        rules: 3,
        drops_by_default: true,
    }
}

fn loopback() -> Device {
    Device { name: "lo".to_owned(), loopback: true, mtu: 65_536, ..nic() }
}

pub(super) fn nic() -> Device {
    Device {
        name: "eth0".to_owned(),
        up: true,
        loopback: false,
        mtu: 1_500,
        kind: None,
        driver: Ok("ice".to_owned()),
        xdp: Ok(XdpSupport { features: 0x7f, zero_copy_max_segments: Some(5) }),
        attached: None,
        xsk_queues: Ok(Vec::new()),
        channels: Ok(Some(Channels { current: 8, transmit: 8, max: 64, combined: true })),
        rings: Ok(Some(Rings { receive: 2_048, receive_max: 8_160, header_split: Some(false) })),
        features: Ok(active(&["rx-gro", "rx-checksum", "rx-vlan-hw-parse"])),
        vlans: Vec::new(),
        tags_for: None,
        veth_peer: VethPeer::None,
        rps: Ok(Rps { queues: 8, steered: 0, flow_entries: 0 }),
        irqs: Ok((0..8).map(|cpu| Irq { number: 120 + cpu, cpus: cpu.to_string() }).collect()),
        threaded_napi: Ok(false),
        defer_hard_irqs: Ok(0),
        gro_flush_ns: Ok(0),
        rp_filter: Ok(0),
    }
}

pub(super) fn active(names: &[&str]) -> Features {
    let active: BTreeSet<String> = names.iter().map(|name| (*name).to_owned()).collect();
    Features { changeable: active.clone(), active }
}

fn poor_nic() -> Device {
    Device {
        xdp: Ok(XdpSupport { features: 0, zero_copy_max_segments: None }),
        mtu: 9_000,
        attached: Some(Attached { id: 7, name: Ok("xdp_firewall".to_owned()) }),
        xsk_queues: Ok(vec![0, 3]),
        channels: Ok(Some(Channels { current: 2, transmit: 2, max: 64, combined: true })),
        rings: Ok(Some(Rings { receive: 256, receive_max: 8_160, header_split: Some(true) })),
        features: Ok(active(&["rx-lro", "rx-vlan-hw-parse"])),
        vlans: vec!["eth0.100".to_owned(), "eth0.200".to_owned()],
        tags_for: None,
        rps: Ok(Rps { queues: 2, steered: 2, flow_entries: 4_096 }),
        irqs: Ok((0..6).map(|queue| Irq { number: 120 + queue, cpus: "0".to_owned() }).collect()),
        threaded_napi: Ok(true),
        defer_hard_irqs: Ok(2),
        gro_flush_ns: Ok(200_000),
        rp_filter: Ok(1),
        ..nic()
    }
}

pub(super) fn veth() -> Device {
    Device {
        name: "va".to_owned(),
        kind: Some("veth".to_owned()),
        driver: Ok("veth".to_owned()),
        xdp: Ok(XdpSupport { features: 0x67, zero_copy_max_segments: None }),
        channels: Ok(Some(Channels { current: 1, transmit: 1, max: 1, combined: false })),
        rings: Ok(None),
        features: Ok(active(&["rx-vlan-hw-parse"])),
        vlans: vec!["va.100".to_owned()],
        tags_for: None,
        veth_peer: VethPeer::Here { name: "vb".to_owned(), queues: Some(2) },
        rps: Ok(Rps { queues: 1, steered: 0, flow_entries: 0 }),
        irqs: Ok(Vec::new()),
        rp_filter: Ok(2),
        ..nic()
    }
}
