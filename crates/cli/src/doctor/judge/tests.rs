use super::super::facts::{Attached, Device, Irq, Machine, Rps, VethPeer};
use super::super::netdev::{Channels, Rings, XdpSupport};
use super::super::netfilter::Chain;
use super::made_up::{active, by_a_stranger, good_machine, input_chain, nic, server, veth, wreck};
use super::*;

const CAP_NET_ADMIN: u64 = 1 << 12;
const CAP_NET_RAW: u64 = 1 << 13;
const CAP_IPC_LOCK: u64 = 1 << 14;
const CAP_SYS_ADMIN: u64 = 1 << 21;
const CAP_PERFMON: u64 = 1 << 38;
const CAP_BPF: u64 = 1 << 39;
const NEEDED: u64 = CAP_NET_ADMIN | CAP_NET_RAW | CAP_PERFMON | CAP_BPF;

fn of_machine(topic: &str, machine: Machine) -> Finding {
    only(topic, judge(&Facts { machine, devices: Vec::new(), one_device: false }))
}

fn of_device(topic: &str, device: Device) -> Finding {
    only(topic, judge(&Facts { machine: good_machine(), devices: vec![device], one_device: false }))
}

fn only(topic: &str, findings: Vec<Finding>) -> Finding {
    let mut found: Vec<_> = findings.into_iter().filter(|finding| finding.topic == topic).collect();
    assert_eq!(found.len(), 1, "{topic}");
    found.remove(0)
}

fn has_topic(topic: &str, findings: &[Finding]) -> bool {
    findings.iter().any(|finding| finding.topic == topic)
}

#[test]
fn a_good_server_has_nothing_to_mend() {
    let findings = judge(&server());
    assert!(
        findings.iter().all(|finding| finding.severity <= Severity::Note && finding.mend.is_empty()),
        "{findings:#?}"
    );
}

#[test]
fn what_is_bad_or_warned_of_says_what_to_do() {
    for finding in judge(&wreck()).into_iter().filter(|finding| finding.severity >= Severity::Warn) {
        // No command gives a driver native XDP.
        let mendable = finding.topic != "native-xdp";
        assert_eq!(!finding.mend.is_empty(), mendable, "{finding:?}");
        assert!(!finding.means.is_empty(), "{finding:?}");
    }
}

#[test]
fn every_topic_has_its_section_in_tuning() {
    let sections: Vec<&str> = include_str!("../../../../../docs/tuning.md")
        .lines()
        .filter_map(|line| line.strip_prefix("### "))
        .collect();
    let findings = [server(), wreck(), by_a_stranger()].iter().flat_map(judge).collect::<Vec<_>>();
    for finding in &findings {
        assert!(sections.contains(&finding.topic), "docs/tuning.md has no section '### {}'", finding.topic);
    }
    for section in sections {
        assert!(has_topic(section, &findings), "no test machine has the finding '{section}'");
    }
}

#[test]
fn findings_of_the_machine_name_no_device() {
    for finding in judge(&Facts { devices: vec![veth()], ..wreck() }) {
        assert!(matches!(finding.device.as_deref(), None | Some("va")));
    }
    assert_eq!(of_device("mtu", veth()).device.as_deref(), Some("va"));
}

#[test]
fn kernels_before_6_6_are_bad() {
    let severity =
        |release: &str| of_machine("kernel", Machine { kernel: release.into(), ..good_machine() }).severity;
    assert_eq!(severity("6.1.0-28-amd64"), Severity::Bad);
    assert_eq!(severity("6.5.13"), Severity::Bad);
    assert_eq!(severity("6.6.0"), Severity::Ok);
    assert_eq!(severity("6.10-rc1"), Severity::Ok);
    assert_eq!(severity("10.0"), Severity::Ok);
    assert_eq!(severity("custom"), Severity::Note, "an odd name is no reason to refuse");
}

#[test]
fn each_missing_capability_is_named() {
    let with = |held| of_machine("capabilities", Machine { capabilities: Ok(held), ..good_machine() });
    assert_eq!(with(NEEDED).severity, Severity::Ok);
    for (bit, name) in [
        (CAP_NET_ADMIN, "CAP_NET_ADMIN"),
        (CAP_NET_RAW, "CAP_NET_RAW"),
        (CAP_PERFMON, "CAP_PERFMON"),
        (CAP_BPF, "CAP_BPF"),
    ] {
        let finding = with(NEEDED & !bit);
        assert_eq!((finding.severity, finding.found), (Severity::Bad, format!("missing {name}")));
    }
    assert_eq!(with(CAP_NET_ADMIN | CAP_NET_RAW | CAP_SYS_ADMIN).severity, Severity::Ok);
    assert_eq!(with(CAP_SYS_ADMIN).found, "missing CAP_NET_ADMIN, CAP_NET_RAW");
}

#[test]
fn a_user_namespace_is_bad_and_only_then_mentioned() {
    assert!(!has_topic("user-namespace", &judge(&server())));
    let inside = Machine { initial_user_namespace: Ok(false), ..good_machine() };
    assert_eq!(of_machine("user-namespace", inside).severity, Severity::Bad);
}

#[test]
fn memlock_matters_only_without_ipc_lock() {
    let with = |held, memlock_bytes| {
        let machine = Machine { capabilities: Ok(held), memlock_bytes: Ok(memlock_bytes), ..good_machine() };
        of_machine("memlock", machine).severity
    };
    assert_eq!(with(NEEDED, Some(8 << 20)), Severity::Warn);
    assert_eq!(with(NEEDED | CAP_IPC_LOCK, Some(8 << 20)), Severity::Ok);
    assert_eq!(with(NEEDED, Some(32 << 20)), Severity::Ok);
    assert_eq!(with(NEEDED, None), Severity::Ok);
}

#[test]
fn a_kernel_without_what_lifting_needs_is_bad() {
    assert_eq!(of_machine("btf", Machine { btf: false, ..good_machine() }).severity, Severity::Bad);
    assert_eq!(of_machine("af-xdp", Machine { af_xdp: Ok(false), ..good_machine() }).severity, Severity::Bad);
}

#[test]
fn lockdown_and_a_missing_cgroup_do_not_keep_hoist_from_running() {
    for level in ["integrity", "confidentiality"] {
        let machine = Machine { lockdown: Ok(Some(level.to_owned())), ..good_machine() };
        assert_eq!(of_machine("lockdown", machine).severity, Severity::Note);
    }
    assert_eq!(
        of_machine("lockdown", Machine { lockdown: Ok(None), ..good_machine() }).severity,
        Severity::Ok
    );
    assert_eq!(
        of_machine("cgroup", Machine { cgroup2: Ok(None), ..good_machine() }).severity,
        Severity::Warn
    );
}

fn firewalled(nftables: Seen<Vec<Chain>>, iptables: Seen<Vec<Chain>>) -> Finding {
    of_machine("netfilter", Machine { nftables, iptables, ..good_machine() })
}

#[test]
fn rules_that_would_be_bypassed_are_warned_of_and_named() {
    let finding = firewalled(Ok(vec![input_chain()]), Ok(Vec::new()));
    assert_eq!(finding.severity, Severity::Warn);
    assert_eq!(finding.found, "inet filter input (input: 3 rules, drops by default)");
    assert!(finding.mend[0].contains("--admit flow"));
    assert_eq!(
        firewalled(Ok(Vec::new()), Ok(vec![input_chain()])).severity,
        Severity::Warn,
        "legacy counts too"
    );
}

#[test]
fn of_many_chains_the_first_few_are_named_and_the_rest_counted() {
    let finding = firewalled(Ok(vec![input_chain(); 11]), Ok(Vec::new()));
    assert_eq!(finding.found.matches("inet filter input").count(), 4);
    assert!(finding.found.ends_with("; 7 more"), "{}", finding.found);
}

#[test]
fn empty_chains_are_no_firewall() {
    let empty = Chain { rules: 0, drops_by_default: false, ..input_chain() };
    assert_eq!(firewalled(Ok(vec![empty]), Ok(Vec::new())).severity, Severity::Ok);
}

#[test]
fn address_translation_alone_is_a_note() {
    let nat = Chain { nat: true, drops_by_default: false, ..input_chain() };
    assert_eq!(firewalled(Ok(vec![nat.clone()]), Ok(Vec::new())).severity, Severity::Note);
    assert_eq!(firewalled(Ok(vec![nat, input_chain()]), Ok(Vec::new())).severity, Severity::Warn);
}

#[test]
fn an_unseen_firewall_is_never_called_absent() {
    let unseen = Unseen { why: "nf_tables get-chain: EPERM".to_owned(), privileged: true };
    let finding = firewalled(Err(unseen.clone()), Ok(Vec::new()));
    assert_eq!(finding.severity, Severity::Note);
    assert_eq!(finding.found, "unknown: nf_tables get-chain: EPERM");
    assert_eq!(finding.mend, ["sudo hoist doctor"]);
    let half = firewalled(Err(unseen), Ok(vec![input_chain()]));
    assert_eq!(half.severity, Severity::Warn, "what was seen is still said");
}

#[test]
fn what_root_would_not_see_either_does_not_ask_for_root() {
    let unseen = Unseen { why: "no such file".to_owned(), privileged: false };
    assert!(
        of_machine("rfs", Machine { rps_sock_flow_entries: Err(unseen), ..good_machine() }).mend.is_empty()
    );
}

#[test]
fn linux_default_buffers_are_noted() {
    let with = |default, max| {
        let machine = Machine { rmem_default_bytes: Ok(default), rmem_max_bytes: Ok(max), ..good_machine() };
        of_machine("socket-buffer", machine).severity
    };
    assert_eq!(with(212_992, 212_992), Severity::Note);
    assert_eq!(with(212_992, 8 << 20), Severity::Note);
    assert_eq!(with(4 << 20, 8 << 20), Severity::Ok);
}

#[test]
fn huge_pages_suffice_when_one_umem_fits() {
    use super::super::facts::HugePages;
    let with = |free, size_kib| {
        of_machine("huge-pages", Machine { huge_pages: Ok(HugePages { free, size_kib }), ..good_machine() })
    };
    assert_eq!(with(16, 2_048).severity, Severity::Ok);
    assert_eq!(with(15, 2_048).mend, ["sysctl -w vm.nr_hugepages=32"]);
    assert_eq!(with(1, 1 << 20).severity, Severity::Ok, "one page of 1 GiB holds it");
    assert_eq!(with(0, 1 << 20).mend, ["sysctl -w vm.nr_hugepages=2"]);
}

#[test]
fn small_budgets_interpreters_and_irqbalance_are_mentioned() {
    assert_eq!(
        of_machine("netdev-budget", Machine { netdev_budget: Ok(64), ..good_machine() }).severity,
        Severity::Warn
    );
    assert_eq!(
        of_machine("bpf-jit", Machine { bpf_jit: Ok(false), ..good_machine() }).severity,
        Severity::Warn
    );
    assert_eq!(
        of_machine("irqbalance", Machine { irqbalance: Ok(true), ..good_machine() }).severity,
        Severity::Note
    );
}

#[test]
fn loopback_has_one_finding_and_so_has_a_device_that_is_down() {
    let findings =
        |device, one_device| judge(&Facts { machine: good_machine(), devices: vec![device], one_device });
    let of_it = |device, asked| {
        findings(device, asked).into_iter().filter(|finding| finding.device.is_some()).count()
    };
    assert_eq!(of_it(Device { loopback: true, ..nic() }, false), 1);
    assert_eq!(of_it(Device { up: false, ..nic() }, false), 1);
    assert!(of_it(Device { up: false, ..nic() }, true) > 10, "asked for by name, it is judged all the same");
}

#[test]
fn native_xdp_needs_redirect_too() {
    let with = |features| {
        let xdp = XdpSupport { features, zero_copy_max_segments: None };
        of_device("native-xdp", Device { xdp: Ok(xdp), ..nic() }).severity
    };
    assert_eq!(with(XdpSupport::BASIC | XdpSupport::REDIRECT), Severity::Ok);
    assert_eq!(with(XdpSupport::BASIC), Severity::Warn);
    assert_eq!(with(0), Severity::Warn);
}

#[test]
fn without_the_netdev_family_support_is_unknown_and_not_absent() {
    let missing = Unseen { why: "generic netlink family 'netdev': ENOENT".to_owned(), privileged: false };
    for topic in ["native-xdp", "zero-copy"] {
        let finding = of_device(topic, Device { xdp: Err(missing.clone()), ..nic() });
        assert_eq!(finding.severity, Severity::Note);
        assert!(finding.found.starts_with("unknown: "));
    }
}

#[test]
fn another_xdp_program_is_bad_and_named() {
    let with =
        |name| of_device("xdp-attached", Device { attached: Some(Attached { id: 42, name }), ..nic() });
    let finding = with(Ok("xdp_lb".to_owned()));
    assert_eq!((finding.severity, finding.found.as_str()), (Severity::Bad, "XDP program 42 (xdp_lb)"));
    assert_eq!(finding.mend, ["ip link set dev eth0 xdp off"]);
    let unseen = with(Err(Unseen { why: "EPERM".to_owned(), privileged: true }));
    assert_eq!(
        (unseen.severity, unseen.found.as_str()),
        (Severity::Bad, "XDP program 42 (name unknown without root)")
    );
}

#[test]
fn queues_owned_by_another_socket_are_bad() {
    assert!(!has_topic("queues-taken", &judge(&server())));
    let finding = of_device("queues-taken", Device { xsk_queues: Ok(vec![0, 3]), ..nic() });
    assert_eq!((finding.severity, finding.found.as_str()), (Severity::Bad, "receive queue 0, 3"));
}

#[test]
fn queues_are_weighed_against_cores() {
    let with = |current, max, combined| {
        of_device(
            "queues",
            Device { channels: Ok(Some(Channels { current, max, transmit: current, combined })), ..nic() },
        )
    };
    assert_eq!(with(8, 64, true).severity, Severity::Ok);
    let few = with(2, 64, true);
    assert_eq!((few.severity, few.mend), (Severity::Warn, vec!["ethtool -L eth0 combined 8".to_owned()]));
    assert_eq!(with(2, 4, false).mend, ["ethtool -L eth0 rx 4"]);
    let many = with(16, 64, true);
    assert_eq!((many.severity, many.mend), (Severity::Note, vec!["ethtool -L eth0 combined 8".to_owned()]));
    let single = with(1, 1, true);
    assert_eq!((single.severity, single.mend), (Severity::Note, Vec::new()));
    assert_eq!(with(4, 4, true).severity, Severity::Ok, "no more to be had");
}

#[test]
fn small_rings_that_can_grow_are_warned_of() {
    let with = |receive, receive_max| {
        let rings = Rings { receive, receive_max, header_split: None };
        of_device("rings", Device { rings: Ok(Some(rings)), ..nic() })
    };
    assert_eq!(with(256, 8_160).mend, ["ethtool -G eth0 rx 4096"]);
    assert_eq!(with(256, 1_024).mend, ["ethtool -G eth0 rx 1024"]);
    assert_eq!(with(256, 256).severity, Severity::Ok);
    assert_eq!(with(512, 8_160).severity, Severity::Ok);
}

#[test]
fn mtu_is_weighed_against_both_chunk_sizes() {
    let with = |mtu| of_device("mtu", Device { mtu, ..nic() });
    assert_eq!(with(1_500).severity, Severity::Ok);
    assert_eq!(with(1_774).severity, Severity::Ok);
    assert_eq!(with(1_775).severity, Severity::Note);
    assert_eq!(with(3_498).severity, Severity::Note);
    let jumbo = with(3_499);
    assert_eq!(
        (jumbo.severity, jumbo.mend),
        (Severity::Warn, vec!["ip link set dev eth0 mtu 3498".to_owned()])
    );
    assert_eq!(with(u32::MAX).severity, Severity::Warn);
}

#[test]
fn header_split_is_bad_only_when_on() {
    let with = |header_split| {
        let rings = Rings { receive: 512, receive_max: 512, header_split };
        of_device("header-split", Device { rings: Ok(Some(rings)), ..nic() }).severity
    };
    assert_eq!(with(Some(true)), Severity::Bad);
    assert_eq!(with(Some(false)), Severity::Ok);
    assert_eq!(with(None), Severity::Ok);
}

#[test]
fn hardware_merging_is_warned_of_and_mended_where_it_can_be() {
    let with = |names: &[&str]| of_device("gro-lro", Device { features: Ok(active(names)), ..nic() });
    assert_eq!(with(&["rx-gro", "rx-lro"]).mend, ["ethtool -K eth0 lro off"]);
    assert_eq!(with(&["rx-gro", "rx-gro-hw"]).mend, ["ethtool -K eth0 rx-gro-hw off"]);
    assert_eq!(with(&["rx-gro"]).severity, Severity::Ok);
    assert_eq!(with(&[]).severity, Severity::Note);
    let mut fixed = active(&["rx-gro-hw"]);
    fixed.changeable.clear();
    let finding = of_device("gro-lro", Device { features: Ok(fixed), ..nic() });
    assert_eq!((finding.severity, finding.mend), (Severity::Warn, Vec::new()));
}

#[test]
fn stripped_tags_matter_only_under_vlan_devices() {
    let with = |vlans: &[&str], names: &[&str]| {
        let vlans = vlans.iter().map(|name| (*name).to_owned()).collect();
        of_device("vlan-offload", Device { vlans, features: Ok(active(names)), ..nic() })
    };
    assert_eq!(with(&[], &["rx-vlan-hw-parse"]).severity, Severity::Ok);
    assert_eq!(with(&["eth0.5"], &[]).severity, Severity::Ok);
    let finding = with(&["eth0.5"], &["rx-vlan-hw-parse"]);
    assert_eq!(
        (finding.severity, finding.mend),
        (Severity::Warn, vec!["ethtool -K eth0 rxvlan off".to_owned()])
    );
}

#[test]
fn on_a_veth_it_is_the_sender_that_keeps_tags() {
    assert_eq!(of_device("vlan-offload", veth()).mend, ["ethtool -K vb txvlan off"]);
    let far = Device { veth_peer: VethPeer::Elsewhere, ..veth() };
    assert_eq!(of_device("vlan-offload", far).mend, ["ethtool -K PEER txvlan off"]);
}

#[test]
fn a_veth_with_fewer_queues_than_its_peer_sends_on_is_warned_of() {
    let with = |queues| {
        let veth_peer = VethPeer::Here { name: "vb".to_owned(), queues };
        of_device("veth", Device { veth_peer, ..veth() }).severity
    };
    assert_eq!(with(Some(2)), Severity::Warn);
    assert_eq!(with(Some(1)), Severity::Note);
    assert_eq!(with(None), Severity::Note);
    let mend = |max| {
        let channels = Channels { current: 1, max, transmit: 1, combined: false };
        of_device("veth", Device { channels: Ok(Some(channels)), ..veth() }).mend
    };
    assert_eq!(mend(4), ["ethtool -L va rx 2"]);
    assert_eq!(mend(1), ["ethtool -L vb tx 1"], "there are no more receive queues to be had");
    assert!(!has_topic("veth", &judge(&server())));
}

#[test]
fn a_single_queue_without_rps_is_noted_with_a_mask_for_the_cores() {
    let with = |cores, queues, steered| {
        let device = Device { rps: Ok(Rps { queues, steered, flow_entries: 0 }), ..nic() };
        let machine = Machine { cores, ..good_machine() };
        only("rps", judge(&Facts { machine, devices: vec![device], one_device: false }))
    };
    let mask = |cores| with(cores, 1, 0).mend.remove(0).split(' ').nth(1).unwrap().to_owned();
    assert_eq!(mask(2), "3");
    assert_eq!(mask(8), "ff");
    assert_eq!(mask(32), "ffffffff");
    assert_eq!(mask(65), "1,ffffffff,ffffffff");
    assert_eq!(with(1, 1, 0).severity, Severity::Ok, "one core has nowhere to spread to");
    assert_eq!(with(8, 8, 0).severity, Severity::Ok);
    assert_eq!(with(8, 1, 1).severity, Severity::Ok);
}

#[test]
fn interrupts_piled_on_one_core_are_warned_of() {
    let with = |cpus: &[&str]| {
        let irq = |(at, cpus): (usize, &&str)| Irq { number: 30 + at as u64, cpus: (*cpus).to_owned() };
        of_device("irq-affinity", Device { irqs: Ok(cpus.iter().enumerate().map(irq).collect()), ..nic() })
    };
    let piled = with(&["0", "0"]);
    assert_eq!(
        (piled.severity, piled.mend),
        (Severity::Warn, vec!["echo 1 > /proc/irq/31/smp_affinity_list".to_owned()])
    );
    assert_eq!(with(&["3", "3"]).mend, ["echo 0 > /proc/irq/31/smp_affinity_list"]);
    assert_eq!(with(&["0", "1"]).severity, Severity::Ok);
    assert_eq!(with(&["0-7", "0-7"]).severity, Severity::Ok, "free to go anywhere");
    assert_eq!(with(&["0"]).severity, Severity::Ok);
    assert_eq!(with(&[]).severity, Severity::Ok);
}

#[test]
fn interrupts_are_held_back_by_both_settings_together() {
    let with = |defer, flush| {
        let device = Device { defer_hard_irqs: Ok(defer), gro_flush_ns: Ok(flush), ..nic() };
        of_device("busy-poll", device).severity
    };
    assert_eq!(with(2, 200_000), Severity::Note);
    assert_eq!(with(2, 0), Severity::Ok);
    assert_eq!(with(0, 200_000), Severity::Ok);
}

#[test]
fn a_threaded_napi_is_noted() {
    assert_eq!(
        of_device("threaded-napi", Device { threaded_napi: Ok(true), ..nic() }).severity,
        Severity::Note
    );
}

#[test]
fn strict_source_checks_weigh_more_than_loose_ones() {
    let with = |mode| of_device("rp-filter", Device { rp_filter: Ok(mode), ..nic() }).severity;
    assert_eq!([with(0), with(1), with(2)], [Severity::Ok, Severity::Warn, Severity::Note]);
}
