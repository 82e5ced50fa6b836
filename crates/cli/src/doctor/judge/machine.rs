//! The kernel, the caller and the network namespace.

use super::super::facts::{HugePages, Machine};
use super::super::netfilter::{Chain, Hook};
use super::{Finding, plural, when_seen};
use std::path::PathBuf;

/// tcx, which the TCP ride needs.
const OLDEST_KERNEL: (u32, u32) = (6, 6);
const CAP_NET_ADMIN: u32 = 12;
const CAP_NET_RAW: u32 = 13;
const CAP_IPC_LOCK: u32 = 14;
const CAP_SYS_ADMIN: u32 = 21;
const CAP_SYS_RESOURCE: u32 = 24;
const CAP_PERFMON: u32 = 38;
const CAP_BPF: u32 = 39;
/// 16,384 frames of 2 KiB: fewer let one stalled ring starve the others of its queue.
const UMEM_BYTES: u64 = 16_384 * 2_048;
/// Linux's default, SK_RMEM_MAX: about 90 full datagrams.
const SMALL_RMEM_BYTES: u64 = 212_992;
const AMPLE_RMEM_BYTES: u64 = 8 << 20;
const DEFAULT_NETDEV_BUDGET: u64 = 300;
const CHAINS_SHOWN: usize = 4;

pub(super) fn judge(machine: &Machine) -> Vec<Finding> {
    let mut findings = vec![kernel(&machine.kernel), btf(machine.btf)];
    findings.extend(user_namespace(machine));
    findings.extend([capabilities(machine), af_xdp(machine), memlock(machine), jit(machine)]);
    findings.extend([lockdown(machine), cgroup(machine), netfilter(machine), socket_buffer(machine)]);
    findings.extend([netdev_budget(machine), rfs(machine), irqbalance(machine), huge_pages(machine)]);
    findings
}

fn kernel(release: &str) -> Finding {
    const TOPIC: &str = "kernel";
    let (major, minor) = OLDEST_KERNEL;
    let needs =
        format!("Hoist needs Linux {major}.{minor} or newer; clang and libbpf are not needed to run it.");
    match version(release) {
        Some(version) if version >= OLDEST_KERNEL => Finding::ok(TOPIC, format!("Linux {release}"), needs),
        Some(_) => Finding::bad(TOPIC, format!("Linux {release}"), needs)
            .mend("apt install -t bookworm-backports linux-image-amd64"),
        None => Finding::note(TOPIC, format!("release '{release}' has no version number"), needs),
    }
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|letter: char| !letter.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

fn btf(present: bool) -> Finding {
    const TOPIC: &str = "btf";
    const MEANS: &str = "The loader fits BPF programs to the running kernel by its BTF.";
    match present {
        true => Finding::ok(TOPIC, "/sys/kernel/btf/vmlinux is there", MEANS),
        false => Finding::bad(
            TOPIC,
            "no /sys/kernel/btf/vmlinux",
            format!("{MEANS} Without it they are not loaded: run a kernel with CONFIG_DEBUG_INFO_BTF=y."),
        )
        .mend("apt install linux-image-amd64"),
    }
}

/// Said only when it is in the way.
fn user_namespace(machine: &Machine) -> Option<Finding> {
    let inside = machine.initial_user_namespace == Ok(false);
    let means = "XDP programs are loaded with capabilities of the first user namespace; those held here do not count. \
                 Run the broker outside the container, or in one that shares the host's user namespace.";
    inside.then(|| {
        Finding::bad("user-namespace", "this is not the first user namespace", means)
            .mend("podman run --userns=host --privileged ...")
    })
}

fn capabilities(machine: &Machine) -> Finding {
    const TOPIC: &str = "capabilities";
    const MEANS: &str =
        "The broker loads BPF and opens AF_XDP; the program itself needs none (hoist run --user).";
    when_seen(TOPIC, &machine.capabilities, |held| {
        let missing = missing_capabilities(*held);
        match missing.is_empty() {
            true => Finding::ok(TOPIC, "all the broker needs", MEANS),
            false => Finding::bad(TOPIC, format!("missing {}", missing.join(", ")), MEANS)
                .mend("sudo hoist run --user $USER -- CMD"),
        }
    })
}

/// CAP_SYS_ADMIN stands in for CAP_BPF and CAP_PERFMON (bpf_capable, perfmon_capable).
fn missing_capabilities(held: u64) -> Vec<&'static str> {
    let needed = [
        (CAP_NET_ADMIN, "CAP_NET_ADMIN"),
        (CAP_BPF, "CAP_BPF"),
        (CAP_NET_RAW, "CAP_NET_RAW"),
        (CAP_PERFMON, "CAP_PERFMON"),
    ];
    let by_admin = |bit| matches!(bit, CAP_BPF | CAP_PERFMON) && holds(held, CAP_SYS_ADMIN);
    let missing = needed.into_iter().filter(|(bit, _)| !holds(held, *bit) && !by_admin(*bit));
    missing.map(|(_, name)| name).collect()
}

fn holds(held: u64, capability: u32) -> bool {
    held & 1 << capability != 0
}

fn af_xdp(machine: &Machine) -> Finding {
    const TOPIC: &str = "af-xdp";
    const MEANS: &str = "Lifted packets arrive in AF_XDP rings.";
    when_seen(TOPIC, &machine.af_xdp, |present| match present {
        true => Finding::ok(TOPIC, "AF_XDP sockets can be opened", MEANS),
        false => Finding::bad(
            TOPIC,
            "socket(AF_XDP): EAFNOSUPPORT",
            format!("{MEANS} This kernel was built without CONFIG_XDP_SOCKETS."),
        )
        .mend("apt install linux-image-amd64"),
    })
}

/// xdp_umem_account_pages counts the UMEM against RLIMIT_MEMLOCK unless the caller has CAP_IPC_LOCK.
fn memlock(machine: &Machine) -> Finding {
    const TOPIC: &str = "memlock";
    let means =
        format!("A UMEM is locked memory, {} MiB a queue; ENOBUFS when the limit is less.", UMEM_BYTES >> 20);
    let exempt = |held: &u64| holds(*held, CAP_IPC_LOCK) || holds(*held, CAP_SYS_RESOURCE);
    if machine.capabilities.as_ref().is_ok_and(exempt) {
        return Finding::ok(TOPIC, "no limit for a caller with CAP_IPC_LOCK or CAP_SYS_RESOURCE", means);
    }
    when_seen(TOPIC, &machine.memlock_bytes, |limit| match *limit {
        Some(bytes) if bytes < UMEM_BYTES => {
            Finding::warn(TOPIC, format!("limit {} KiB", bytes >> 10), means).mend("ulimit -l unlimited")
        }
        Some(bytes) => Finding::ok(TOPIC, format!("limit {} MiB", bytes >> 20), means),
        None => Finding::ok(TOPIC, "unlimited", means),
    })
}

fn jit(machine: &Machine) -> Finding {
    const TOPIC: &str = "bpf-jit";
    const MEANS: &str = "Steering runs once a packet: interpreted, it costs several times as much.";
    when_seen(TOPIC, &machine.bpf_jit, |on| match on {
        true => Finding::ok(TOPIC, "BPF is compiled", MEANS),
        false => {
            Finding::warn(TOPIC, "BPF is interpreted", MEANS).mend("sysctl -w net.core.bpf_jit_enable=1")
        }
    })
}

fn lockdown(machine: &Machine) -> Finding {
    const TOPIC: &str = "lockdown";
    when_seen(TOPIC, &machine.lockdown, |level| match level.as_deref() {
        None | Some("none") => Finding::ok(TOPIC, "none", "Nothing that Hoist uses is refused."),
        Some(level) => Finding::note(
            TOPIC,
            level,
            "Lifting is not touched. Tracing of kernel functions (kprobes, fentry) may be refused, so Hoist's own views \
             use tracepoints and sampling.",
        ),
    })
}

fn cgroup(machine: &Machine) -> Finding {
    const TOPIC: &str = "cgroup";
    when_seen(TOPIC, &machine.cgroup2, |mount: &Option<PathBuf>| match mount {
        Some(point) => Finding::ok(
            TOPIC,
            format!("cgroup v2 at {}", point.display()),
            "TCP connections are followed by a program on a cgroup v2.",
        ),
        None => Finding::warn(
            TOPIC,
            "no cgroup v2 is mounted",
            "UDP is lifted as ever; TCP connections cannot be followed.",
        )
        .mend("mount -t cgroup2 none /sys/fs/cgroup/unified"),
    })
}

fn netfilter(machine: &Machine) -> Finding {
    const TOPIC: &str = "netfilter";
    let acting = |chains: &[Chain]| chains.iter().filter(|chain| chain.acts()).cloned().collect::<Vec<_>>();
    let known = [&machine.nftables, &machine.iptables];
    let chains: Vec<Chain> =
        known.iter().filter_map(|chains| chains.as_ref().ok()).flat_map(|c| acting(c)).collect();
    match known.iter().find_map(|chains| chains.as_ref().err()) {
        Some(unseen) if chains.is_empty() => Finding::unseen(TOPIC, unseen),
        _ => bypassed(TOPIC, &chains),
    }
}

fn bypassed(topic: &'static str, chains: &[Chain]) -> Finding {
    if chains.is_empty() {
        return Finding::ok(
            topic,
            "no rules that lifted datagrams would bypass",
            "What Linux would admit, Hoist lifts.",
        );
    }
    let found = listed(chains);
    if chains.iter().all(|chain| chain.nat) {
        let means = "Lifted datagrams bypass these: no address is translated for ports that Hoist lifts.";
        return Finding::note(topic, found, means);
    }
    let means = "Lifted datagrams bypass these rules. With --admit flow, a flow is lifted only after the stack has \
                 delivered a datagram of it.";
    Finding::warn(topic, found, means).mend("hoist run --admit flow -- CMD")
}

/// A cluster node may have dozens: the first few make the point.
fn listed(chains: &[Chain]) -> String {
    let mut shown: Vec<String> = chains.iter().take(CHAINS_SHOWN).map(described).collect();
    let more = chains.len().saturating_sub(CHAINS_SHOWN);
    shown.extend((more > 0).then(|| format!("{more} more")));
    shown.join("; ")
}

fn described(chain: &Chain) -> String {
    let hook = match chain.hook {
        Hook::Ingress => "ingress",
        Hook::Prerouting => "prerouting",
        Hook::Input => "input",
    };
    let place = chain.device.as_ref().map_or(String::new(), |device| format!(" on {device}"));
    let policy = if chain.drops_by_default { ", drops by default" } else { "" };
    format!("{} ({hook}{place}: {}{policy})", chain.name, plural(chain.rules as usize, "rule"))
}

fn socket_buffer(machine: &Machine) -> Finding {
    const TOPIC: &str = "socket-buffer";
    const MEANS: &str =
        "SO_RCVBUF bounds what waits on a lifted socket as on a plain one; the rest is dropped and counted.";
    let both =
        machine.rmem_default_bytes.clone().and_then(|default| Ok((default, machine.rmem_max_bytes.clone()?)));
    when_seen(TOPIC, &both, |(default, max)| {
        let found = format!("rmem_default {} KiB, rmem_max {} KiB", default >> 10, max >> 10);
        match *default.min(max) <= SMALL_RMEM_BYTES {
            true => Finding::note(TOPIC, found, MEANS)
                .mend(format!("sysctl -w net.core.rmem_max={AMPLE_RMEM_BYTES}"))
                .mend(format!("sysctl -w net.core.rmem_default={}", AMPLE_RMEM_BYTES >> 1)),
            false => Finding::ok(TOPIC, found, MEANS),
        }
    })
}

fn netdev_budget(machine: &Machine) -> Finding {
    const TOPIC: &str = "netdev-budget";
    const MEANS: &str = "How many packets a core's receive interrupt handles before others get their turn.";
    when_seen(TOPIC, &machine.netdev_budget, |budget| match *budget < DEFAULT_NETDEV_BUDGET {
        true => Finding::warn(TOPIC, budget.to_string(), MEANS)
            .mend(format!("sysctl -w net.core.netdev_budget={DEFAULT_NETDEV_BUDGET}")),
        false => Finding::ok(TOPIC, budget.to_string(), MEANS),
    })
}

fn rfs(machine: &Machine) -> Finding {
    const TOPIC: &str = "rfs";
    when_seen(TOPIC, &machine.rps_sock_flow_entries, |entries| match *entries {
        0 => Finding::ok(TOPIC, "off", "Hoist's own steering follows the reading thread for lifted flows."),
        entries => Finding::note(
            TOPIC,
            format!("on, {entries} entries"),
            "RFS steers only packets that pass; lifted flows follow Hoist's steering.",
        ),
    })
}

fn irqbalance(machine: &Machine) -> Finding {
    const TOPIC: &str = "irqbalance";
    when_seen(TOPIC, &machine.irqbalance, |running| {
        match running {
        false => Finding::ok(TOPIC, "not running", "Receive interrupts stay where they are put."),
        true => Finding::note(
            TOPIC,
            "running",
            "It moves receive interrupts between cores; a core that a program was pinned next to may lose its queue.",
        )
        .mend("systemctl stop irqbalance"),
    }
    })
}

fn huge_pages(machine: &Machine) -> Finding {
    const TOPIC: &str = "huge-pages";
    const MEANS: &str = "A UMEM may lie in huge pages (fewer TLB misses); ordinary pages work too.";
    when_seen(TOPIC, &machine.huge_pages, |HugePages { free, size_kib }| {
        let found = format!("{free} free of {size_kib} KiB");
        let wanted = UMEM_BYTES / 1024 / size_kib.max(&1);
        match *free >= wanted.max(1) {
            true => Finding::ok(TOPIC, found, MEANS),
            false => Finding::note(TOPIC, found, MEANS)
                .mend(format!("sysctl -w vm.nr_hugepages={}", 2 * wanted.max(1))),
        }
    })
}
