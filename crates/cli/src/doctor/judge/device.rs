//! One network device.

use super::super::facts::{Device, Irq, Machine, Rps, VethPeer};
use super::super::netdev::{Channels, Rings, XdpSupport};
use super::{Finding, plural, when_seen};

/// What the Ethernet header and one VLAN tag add to the MTU.
const LINK_BYTES: u32 = 14 + 4;
/// A chunk less XDP_PACKET_HEADROOM.
const PACKET_2K: u32 = 2_048 - 256;
/// A page less headroom and skb_shared_info, as veth_xdp_set and most drivers reckon.
const PACKET_4K: u32 = 3_516;
const SMALL_RING: u64 = 512;
const LARGE_RING: u64 = 4_096;

pub(super) fn judge(device: &Device, machine: &Machine, asked_for: bool) -> Vec<Finding> {
    if device.loopback {
        return vec![loopback()];
    }
    if !device.up && !asked_for {
        return vec![down(device, asked_for)];
    }
    let mut findings = if device.up { Vec::new() } else { vec![down(device, asked_for)] };
    findings.extend([driver(device), native_xdp(device), zero_copy(device), attached(device)]);
    findings.extend(taken_queues(device));
    findings.extend([queues(device, machine.cores), rings(device), mtu(device), header_split(device)]);
    findings.extend([large_receive(device), vlan(device)]);
    findings.extend(veth(device));
    findings.extend([rps(device, machine.cores), irqs(device, machine.cores), threaded_napi(device)]);
    findings.extend([busy_poll(device), rp_filter(device)]);
    findings
}

fn loopback() -> Finding {
    Finding::note(
        "link",
        "loopback",
        "It has no native XDP: datagrams a machine sends to itself pass to Linux.",
    )
}

fn down(device: &Device, asked_for: bool) -> Finding {
    let means = "Nothing arrives here; a wildcard socket is lifted on devices that are up.";
    let finding = Finding::note("link", "down", means);
    if asked_for { finding.mend(format!("ip link set dev {} up", device.name)) } else { finding }
}

fn driver(device: &Device) -> Finding {
    when_seen("driver", &device.driver, |driver| {
        Finding::ok("driver", driver, "Decides what the next lines can be.")
    })
}

fn native_xdp(device: &Device) -> Finding {
    const TOPIC: &str = "native-xdp";
    when_seen(TOPIC, &device.xdp, |xdp| match xdp.has(XdpSupport::BASIC | XdpSupport::REDIRECT) {
        true => {
            Finding::ok(TOPIC, xdp.names().join(", "), "XDP runs in the driver, before Linux makes an skb.")
        }
        false => Finding::warn(
            TOPIC,
            "the driver does not offer it",
            "Generic XDP is used: Linux makes an skb for each packet before it is lifted, and little is gained.",
        ),
    })
}

/// What the driver offers; the bind decides (virtio-net offers it and wants an IOMMU).
fn zero_copy(device: &Device) -> Finding {
    const TOPIC: &str = "zero-copy";
    when_seen(TOPIC, &device.xdp, |xdp| match xdp.has(XdpSupport::XSK_ZEROCOPY) {
        true => {
            let segments = xdp
                .zero_copy_max_segments
                .map_or(String::new(), |most| format!(", {} a packet", plural(most as usize, "buffer")));
            Finding::ok(
                TOPIC,
                format!("offered{segments}"),
                "The NIC writes payload straight into the program's memory.",
            )
        }
        false => Finding::note(
            TOPIC,
            "the driver does not offer it",
            "Copy mode: the kernel copies each lifted packet once into the program's memory.",
        ),
    })
}

fn attached(device: &Device) -> Finding {
    const TOPIC: &str = "xdp-attached";
    let Some(program) = &device.attached else {
        return Finding::ok(TOPIC, "no XDP program", "The place where Hoist attaches is free.");
    };
    let name = program.name.as_ref().map_or("name unknown without root", |name| name.as_str());
    Finding::bad(
        TOPIC,
        format!("XDP program {} ({name})", program.id),
        "A device carries one XDP program, and Hoist does not displace another's (EBUSY). End the hoist run that owns \
         it, or detach it.",
    )
    .mend(format!("ip link set dev {} xdp off", device.name))
}

/// Said only when it is in the way.
fn taken_queues(device: &Device) -> Option<Finding> {
    let taken = device.xsk_queues.as_ref().ok().filter(|queues| !queues.is_empty())?;
    let numbers: Vec<String> = taken.iter().map(u64::to_string).collect();
    let means = "Another program's AF_XDP socket owns it: Hoist's bind is refused (EBUSY). End that program.";
    Some(
        Finding::bad("queues-taken", format!("receive queue {}", numbers.join(", ")), means)
            .mend("ss --xdp --processes"),
    )
}

fn queues(device: &Device, cores: usize) -> Finding {
    const TOPIC: &str = "queues";
    when_seen(TOPIC, &device.channels, |channels| match channels {
        Some(channels) => queues_against_cores(device, *channels, cores as u64),
        None => Finding::ok(TOPIC, "not settable", "Hoist opens a ring on every receive queue there is."),
    })
}

fn queues_against_cores(device: &Device, channels: Channels, cores: u64) -> Finding {
    const TOPIC: &str = "queues";
    let Channels { current, max, combined, .. } = channels;
    let found = format!(
        "{} (most {max}), {}",
        plural(current as usize, "receive queue"),
        plural(cores as usize, "core")
    );
    let setting = if combined { "combined" } else { "rx" };
    let set = |count| format!("ethtool -L {} {setting} {count}", device.name);
    if current < cores && current < max {
        return Finding::warn(TOPIC, found, "Fewer queues than cores: fewer cores share the driver's work.")
            .mend(set(cores.min(max)));
    }
    if current > cores {
        return Finding::note(
            TOPIC,
            found,
            "More queues than cores: each has a ring and frames of its own to keep.",
        )
        .mend(set(cores));
    }
    if current == 1 && cores > 1 {
        let means =
            "All packets arrive on one core; Hoist can spread lifted flows over rings that other cores read.";
        return Finding::note(TOPIC, found, means);
    }
    Finding::ok(TOPIC, found, "Every core can have a queue.")
}

fn rings(device: &Device) -> Finding {
    const TOPIC: &str = "rings";
    when_seen(TOPIC, &device.rings, |rings| match rings {
        None => Finding::ok(TOPIC, "not settable", "The driver has no descriptor ring to size."),
        Some(Rings { receive, receive_max, .. }) => {
            let found = format!("{receive} receive descriptors (most {receive_max})");
            let means = "The descriptor ring is what absorbs a burst while no core is receiving.";
            match *receive < SMALL_RING && receive < receive_max {
                true => Finding::warn(TOPIC, found, means).mend(format!(
                    "ethtool -G {} rx {}",
                    device.name,
                    LARGE_RING.min(*receive_max)
                )),
                false => Finding::ok(TOPIC, found, means),
            }
        }
    })
}

fn mtu(device: &Device) -> Finding {
    const TOPIC: &str = "mtu";
    let found = format!("{} bytes", device.mtu);
    match device.mtu.saturating_add(LINK_BYTES) {
        frame if frame <= PACKET_2K => Finding::ok(TOPIC, found, "A packet fits a 2 KiB chunk."),
        frame if frame <= PACKET_4K => Finding::note(
            TOPIC,
            found,
            "Larger than a 2 KiB chunk holds (1,792 bytes with link header): it takes 4 KiB chunks, twice the memory.",
        ),
        _ => Finding::warn(
            TOPIC,
            found,
            "Larger than a 4 KiB chunk holds: only packets that fit are lifted, and many drivers refuse native XDP.",
        )
        .mend(format!("ip link set dev {} mtu {}", device.name, PACKET_4K - LINK_BYTES)),
    }
}

/// netif_xdp_propagate: EBUSY for an XDP program of single buffers (dev_xdp_propagate in Linux 6.14).
fn header_split(device: &Device) -> Finding {
    const TOPIC: &str = "header-split";
    const MEANS: &str = "Hoist splits on the frames itself.";
    when_seen(TOPIC, &device.rings, |rings| match rings.and_then(|rings| rings.header_split) {
        None => Finding::ok(TOPIC, "the driver has none", MEANS),
        Some(false) => Finding::ok(TOPIC, "off", MEANS),
        Some(true) => Finding::bad(
            TOPIC,
            "on",
            "AF_XDP and hardware header split exclude each other on one device (EBUSY).",
        )
        .mend(format!("ethtool -G {} tcp-data-split off", device.name)),
    })
}

fn large_receive(device: &Device) -> Finding {
    const TOPIC: &str = "gro-lro";
    when_seen(TOPIC, &device.features, |features| {
        let on = |name: &str| features.active.contains(name);
        let stuck = |name: &str| !features.changeable.contains(name);
        for (feature, keyword) in [("rx-lro", "lro"), ("rx-gro-hw", "rx-gro-hw")] {
            if on(feature) {
                return hardware_merges(device, keyword, stuck(feature));
            }
        }
        match on("rx-gro") {
            true => Finding::ok(
                TOPIC,
                "GRO on, LRO off",
                "GRO serves what passes; lifted packets never reach it.",
            ),
            false => Finding::note(
                TOPIC,
                "GRO off",
                "TCP that passes costs more without GRO; lifted packets do not use it.",
            )
            .mend(format!("ethtool -K {} gro on", device.name)),
        }
    })
}

fn hardware_merges(device: &Device, keyword: &str, fixed: bool) -> Finding {
    const TOPIC: &str = "gro-lro";
    const MEANS: &str = "Packets merged by hardware do not fit XDP.";
    let command = format!("ethtool -K {} {keyword} off", device.name);
    match fixed {
        true => Finding::warn(
            TOPIC,
            format!("{keyword} on, cannot be switched off"),
            format!(
                "{MEANS} The driver may refuse native XDP (EOPNOTSUPP), and Hoist falls back to generic XDP."
            ),
        ),
        false => Finding::warn(
            TOPIC,
            format!("{keyword} on"),
            format!(
                "{MEANS} Some drivers switch this off themselves, others refuse native XDP until you do."
            ),
        )
        .mend(command),
    }
}

/// XDP sees the tag only if nobody has put it aside.
fn vlan(device: &Device) -> Finding {
    const TOPIC: &str = "vlan-offload";
    if device.vlans.is_empty() {
        return Finding::ok(TOPIC, "no VLAN devices on top", "Tags do not matter here.");
    }
    let vlans = device.vlans.join(", ");
    when_seen(TOPIC, &device.features, |features| match features.active.contains("rx-vlan-hw-parse") {
        false => Finding::ok(TOPIC, format!("off, under {vlans}"), "XDP sees the VLAN tag."),
        true => Finding::warn(
            TOPIC,
            format!("on, under {vlans}"),
            "The tag is taken off before XDP, so a tagged datagram looks like one of the untagged network.",
        )
        .mend(keep_tags(device)),
    })
}

/// A veth carries the tag beside the packet when the sender says so: that end must stop.
fn keep_tags(device: &Device) -> String {
    match (&device.veth_peer, device.kind.as_deref()) {
        (VethPeer::Here { name, .. }, _) => format!("ethtool -K {name} txvlan off"),
        (_, Some("veth")) => "ethtool -K PEER txvlan off".to_owned(),
        _ => format!("ethtool -K {} rxvlan off", device.name),
    }
}

/// veth_set_xdp_features withholds native XDP while the peer sends on more queues than receive here.
fn veth(device: &Device) -> Option<Finding> {
    const TOPIC: &str = "veth";
    const MEANS: &str = "Native XDP on a veth switches the peer's TSO off and copies each skb before XDP runs: good for \
                         tests, no measure of a NIC.";
    let channels = device.channels.as_ref().ok().copied().flatten();
    let receive = channels.map(|channels| channels.current);
    match &device.veth_peer {
        VethPeer::None => None,
        VethPeer::Here { name, queues: Some(queues) } if receive.is_some_and(|receive| receive < *queues) => {
            let found = format!("peer {name} has {}", plural(*queues as usize, "transmit queue"));
            let means =
                "Native XDP needs as many receive queues here (ENOSPC otherwise); generic XDP is used.";
            Some(Finding::warn(TOPIC, found, means).mend(match channels {
                Some(Channels { max, .. }) if max < *queues => format!("ethtool -L {name} tx {max}"),
                _ => format!("ethtool -L {} rx {queues}", device.name),
            }))
        }
        VethPeer::Here { name, .. } => Some(Finding::note(TOPIC, format!("peer {name}"), MEANS)),
        VethPeer::Elsewhere => Some(Finding::note(TOPIC, "peer in another namespace", MEANS)),
    }
}

fn rps(device: &Device, cores: usize) -> Finding {
    const TOPIC: &str = "rps";
    when_seen(TOPIC, &device.rps, |rps: &Rps| {
        let Rps { queues, steered, flow_entries } = *rps;
        let flows = if flow_entries > 0 { format!(", RFS with {flow_entries} flows") } else { String::new() };
        let found = format!("on for {steered} of {}{flows}", plural(queues, "queue"));
        match (steered, queues) {
            (0, 1) if cores > 1 => Finding::note(
                TOPIC,
                "off, one queue",
                "Packets that pass, and the headers of lifted TCP, are handled on the queue's core alone.",
            )
            .mend(format!(
                "echo {} > /sys/class/net/{}/queues/rx-0/rps_cpus",
                mask(cores),
                device.name
            )),
            (0, _) => Finding::ok(TOPIC, "off", "Packets that pass are handled on their queue's core."),
            _ => Finding::ok(
                TOPIC,
                found,
                "It spreads packets that pass; lifted ones follow Hoist's steering.",
            ),
        }
    })
}

/// The first `cores` CPUs as sysfs reads a mask: hexadecimal words of 32, commas between.
fn mask(cores: usize) -> String {
    let words = vec!["ffffffff"; cores / 32];
    let first = (!cores.is_multiple_of(32)).then(|| format!("{:x}", (1u64 << (cores % 32)) - 1));
    first.as_deref().into_iter().chain(words).collect::<Vec<_>>().join(",")
}

fn irqs(device: &Device, cores: usize) -> Finding {
    const TOPIC: &str = "irq-affinity";
    when_seen(TOPIC, &device.irqs, |irqs| match irqs.as_slice() {
        [] => Finding::ok(TOPIC, "no receive interrupts", "A virtual device receives where its sender runs."),
        [first, _, ..]
            if cores > 1 && irqs.iter().all(|irq| irq.cpus == first.cpus && is_one_cpu(&irq.cpus)) =>
        {
            Finding::warn(
                TOPIC,
                listed(irqs),
                "One core takes every queue's interrupts and the rest wait for it.",
            )
            .mend(format!(
                "echo {} > /proc/irq/{}/smp_affinity_list",
                other_cpu(&first.cpus),
                irqs[1].number
            ))
        }
        irqs => Finding::ok(
            TOPIC,
            listed(irqs),
            "A program reads cheapest on the core that takes its queue's interrupt.",
        ),
    })
}

/// "irq 31 on 0, irq 32 on 1, …", at most four.
fn listed(irqs: &[Irq]) -> String {
    let shown: Vec<String> =
        irqs.iter().take(4).map(|irq| format!("irq {} on CPU {}", irq.number, irq.cpus)).collect();
    let more = irqs.len().saturating_sub(shown.len());
    let rest = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{}{rest}", shown.join(", "))
}

fn is_one_cpu(list: &str) -> bool {
    list.parse::<u32>().is_ok()
}

fn other_cpu(list: &str) -> u32 {
    u32::from(list.trim() == "0")
}

fn threaded_napi(device: &Device) -> Finding {
    const TOPIC: &str = "threaded-napi";
    when_seen(TOPIC, &device.threaded_napi, |on| {
        match on {
        false => Finding::ok(TOPIC, "off", "The driver is polled in softirq."),
        true => Finding::note(
            TOPIC,
            "on",
            "A kernel thread polls the driver. Pin it: the scheduler may move it next to, or onto, the reading thread. \
             It is made anew when XDP attaches.",
        )
        .mend(format!("for p in $(pgrep napi/{}-); do taskset -cp 1 $p; done", device.name)),
    }
    })
}

fn busy_poll(device: &Device) -> Finding {
    const TOPIC: &str = "busy-poll";
    let both = device.defer_hard_irqs.clone().and_then(|defer| Ok((defer, device.gro_flush_ns.clone()?)));
    when_seen(TOPIC, &both, |(defer, flush)| {
        let found = format!("napi_defer_hard_irqs {defer}, gro_flush_timeout {flush} ns");
        match *defer > 0 && *flush > 0 {
            false => Finding::ok(TOPIC, found, "Interrupts are not held back; --spin-us does without (Linux 6.9)."),
            true => Finding::note(
                TOPIC,
                found,
                "Whoever sleeps waits for the timer: up to the timeout is added to the delay of packets that nobody polls \
                 for. --spin-us does without (Linux 6.9).",
            )
            .mend(format!("echo 0 > /sys/class/net/{}/napi_defer_hard_irqs", device.name)),
        }
    })
}

fn rp_filter(device: &Device) -> Finding {
    const TOPIC: &str = "rp-filter";
    const MEANS: &str = "Lifted datagrams bypass the check of their source address. With --admit flow, a flow is lifted \
                         only after the stack has delivered a datagram of it.";
    when_seen(TOPIC, &device.rp_filter, |mode| match mode {
        0 => Finding::ok(TOPIC, "off", "Linux would not check source addresses either."),
        1 => Finding::warn(TOPIC, "strict", MEANS).mend("hoist run --admit flow -- CMD"),
        _ => Finding::note(TOPIC, "loose", MEANS).mend("hoist run --admit flow -- CMD"),
    })
}
