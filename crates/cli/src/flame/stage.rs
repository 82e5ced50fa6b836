//! Which stage of the receive path a function belongs to. Pure.
//!
//! Kernel functions are recognised by name, those of Linux 6.x. The innermost one on a stack that is recognised decides: a lock taken in
//! `ip_rcv` is IP's.

use serde::Serialize;

/// Stages, in the order of a packet's way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Stage {
    Driver,
    Xdp,
    Gro,
    Rps,
    Ip,
    Transport,
    Socket,
    Copy,
    Program,
    Hoist,
    Other,
    Idle,
}

impl Stage {
    pub(super) const ALL: [Self; 12] = [
        Self::Driver,
        Self::Xdp,
        Self::Gro,
        Self::Rps,
        Self::Ip,
        Self::Transport,
        Self::Socket,
        Self::Copy,
        Self::Program,
        Self::Hoist,
        Self::Other,
        Self::Idle,
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Driver => "interrupt, NAPI, driver",
            Self::Xdp => "XDP, BPF, AF_XDP",
            Self::Gro => "GRO",
            Self::Rps => "RPS, backlog, IPI",
            Self::Ip => "IP",
            Self::Transport => "TCP, UDP",
            Self::Socket => "socket, wake-up",
            Self::Copy => "copy",
            Self::Program => "program",
            Self::Hoist => "hoist",
            Self::Other => "other",
            Self::Idle => "idle",
        }
    }

    /// Fill, told apart also by who sees no red or green (after Okabe and Ito; greys for what is no stage).
    pub(super) fn colour(self) -> &'static str {
        match self {
            Self::Driver => "#e69f00",
            Self::Xdp => "#009e73",
            Self::Gro => "#f0e442",
            Self::Rps => "#cc79a7",
            Self::Ip => "#56b4e9",
            Self::Transport => "#2f7fc1",
            Self::Socket => "#b39ddb",
            Self::Copy => "#d55e00",
            Self::Program => "#c9d6a3",
            Self::Hoist => "#7fd1b9",
            Self::Other => "#cccccc",
            Self::Idle => "#eeeeee",
        }
    }
}

/// Beginnings of function names; a name that ends in `$` is whole. The first that fits decides.
const KERNEL: [(Stage, &[&str]); 8] = [
    (
        Stage::Copy,
        &[
            "_copy_to_iter",
            "_copy_from_iter",
            "copy_user_",
            "rep_movs_alternative",
            "rep_stos_alternative",
            "_copy_to_user",
            "_copy_from_user",
            "copyout",
            "memcpy",
            "__memcpy",
            "skb_copy_datagram_iter",
            "__skb_datagram_iter",
            "simple_copy_to_iter",
            "skb_copy_bits",
            "csum_partial",
            "copy_page",
            "__check_object_size",
        ],
    ),
    (
        Stage::Gro,
        &[
            "dev_gro_receive",
            "napi_gro_",
            "gro_",
            "inet_gro_",
            "ipv6_gro_",
            "tcp4_gro_",
            "tcp6_gro_",
            "tcp_gro_",
            "udp4_gro_",
            "udp6_gro_",
            "udp_gro_",
            "skb_gro_",
        ],
    ),
    (
        Stage::Rps,
        &[
            "get_rps_cpu",
            "enqueue_to_backlog",
            "process_backlog",
            "net_rps_",
            "rps_trigger_softirq",
            "napi_schedule_rps",
            "smp_call_function",
            "generic_smp_call_function",
            "__flush_smp_call_function_queue",
            "flush_smp_call_function_queue",
            "sysvec_call_function",
            "asm_sysvec_call_function",
            "netif_rx",
            "__netif_rx",
        ],
    ),
    (
        Stage::Xdp,
        &[
            "bpf_prog_",
            "bpf_dispatcher",
            "bpf_redirect",
            "xdp_",
            "__xdp_",
            "xsk_",
            "__xsk_",
            "xp_",
            "cpu_map_",
            "dev_map_",
            "__dev_map_",
            "bpf_xdp_",
            "generic_xdp_",
            "do_xdp_generic",
            "netif_receive_generic_xdp",
            "__htab_map_",
            "htab_",
            "array_map_",
        ],
    ),
    (
        Stage::Transport,
        &[
            "tcp_",
            "__tcp_",
            "udp_",
            "__udp",
            "udpv6_",
            "tcp4_",
            "tcp6_",
            "udp4_",
            "udp6_",
            "inet_csk_",
            "sk_stream_",
            "skb_splice",
        ],
    ),
    (
        Stage::Ip,
        &[
            "ip_",
            "__ip_",
            "ip6_",
            "ipv6_",
            "__ip6_",
            "fib_",
            "nf_",
            "ipt_",
            "nft_",
            "inet_ehash",
            "netif_receive_skb",
            "__netif_receive_skb",
            "deliver_skb",
            "tcf_",
            "tcx_",
            "neigh_",
            "icmp_",
            "arp_",
            "rt_",
            "ipv4_",
        ],
    ),
    (
        Stage::Socket,
        &[
            "sock_",
            "__sock_",
            "__sys_recv",
            "__x64_sys_recv",
            "__arm64_sys_recv",
            "___sys_recv",
            "inet_recvmsg",
            "inet6_recvmsg",
            "inet_send",
            "____sys_recv",
            "do_recvmmsg",
            "__sys_send",
            "__x64_sys_send",
            "ep_",
            "__ep_",
            "do_epoll_",
            "epoll_",
            "__x64_sys_epoll",
            "do_sys_poll",
            "do_poll",
            "__x64_sys_poll",
            "poll_",
            "do_select",
            "core_sys_select",
            "try_to_wake_up",
            "ttwu_",
            "__wake_up",
            "wake_up_",
            "autoremove_wake_function",
            "default_wake_function",
            "receiver_wake_function",
            "__skb_wait",
            "__skb_recv",
            "skb_recv",
            "__skb_try_recv",
            "schedule",
            "__schedule",
            "finish_task_switch",
            "kfree_skb",
            "consume_skb",
            "skb_release",
            "skb_free",
            "__kfree_skb",
            "skb_consume",
            "sk_",
            "lock_sock",
            "release_sock",
            "__lock_sock",
            "skb_attempt_defer_free",
            "skb_defer_free",
            "datagram_poll",
            "lsm_",
            "security_sock",
        ],
    ),
    (
        Stage::Driver,
        &[
            "net_rx_action",
            "__napi_",
            "napi_",
            "veth_",
            "virtnet_",
            "vring_",
            "virtqueue_",
            "igb_",
            "igc_",
            "e1000",
            "ixgbe_",
            "i40e_",
            "ice_",
            "mlx4_",
            "mlx5",
            "bnxt_",
            "ena_",
            "gve_",
            "r8169",
            "rtl8169_",
            "tun_",
            "tap_",
            "loopback_xmit",
            "dev_hard_start_xmit",
            "__dev_queue_xmit",
            "handle_irq",
            "handle_edge_irq",
            "handle_fasteoi_irq",
            "__common_interrupt",
            "common_interrupt",
            "asm_common_interrupt",
            "build_skb",
            "__build_skb",
            "napi_build_skb",
            "eth_type_trans",
            "page_pool_",
            "__page_pool_",
            "__alloc_skb",
            "skb_page_frag_refill",
            "net_tx_action",
            "packet_",
            "tpacket_",
        ],
    ),
];

/// What runs when nothing does.
const IDLE: [&str; 8] = [
    "default_idle",
    "native_safe_halt",
    "pv_native_safe_halt",
    "acpi_",
    "intel_idle",
    "mwait_idle",
    "cpuidle_",
    "poll_idle",
];

/// Mark of kernel frames in folded stacks, as others write it too.
pub(super) const KERNEL_MARK: &str = "_[k]";
/// Frames of Hoist's shim.
pub(super) const HOIST_MARK: &str = "hoist:";

/// What other programs than the one that is looked at run.
pub(super) const STRANGER: &str = "[other program]";

/// The stage of a stack, root first.
pub(super) fn of_stack<S: AsRef<str>>(frames: &[S]) -> Stage {
    let mut idle = false;
    for frame in frames.iter().skip(1).rev().map(AsRef::as_ref) {
        if frame.starts_with(HOIST_MARK) {
            return Stage::Hoist;
        }
        let Some(function) = frame.strip_suffix(KERNEL_MARK) else {
            return user(frames);
        };
        if let Some(stage) = of_kernel(function) {
            return stage;
        }
        idle |= begins(function, &IDLE) || function == "do_idle" || function == "cpu_startup_entry";
    }
    if idle { Stage::Idle } else { user(frames) }
}

/// The root is the name of the thread, the one behind it the outermost function.
fn user<S: AsRef<str>>(frames: &[S]) -> Stage {
    match frames.get(1).map(AsRef::as_ref) {
        Some(outermost) if !outermost.ends_with(KERNEL_MARK) && outermost != STRANGER => Stage::Program,
        _ => Stage::Other,
    }
}

fn of_kernel(function: &str) -> Option<Stage> {
    KERNEL.iter().find(|(_, names)| begins(function, names)).map(|(stage, _)| *stage)
}

fn begins(function: &str, names: &[&str]) -> bool {
    names.iter().any(|name| function.starts_with(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn is(stack: &str, stage: Stage) {
        assert_eq!(of_stack(&stack.split(';').collect::<Vec<_>>()), stage, "{stack}");
    }

    #[test]
    fn the_innermost_function_that_is_known_decides() {
        is("ksoftirqd/0;net_rx_action_[k];__napi_poll_[k];veth_poll_[k]", Stage::Driver);
        is("ksoftirqd/0;net_rx_action_[k];ip_rcv_[k];_raw_spin_lock_[k]", Stage::Ip);
        is(
            "napi/eth0-5;veth_poll_[k];napi_gro_receive_[k];inet_gro_receive_[k];tcp4_gro_receive_[k]",
            Stage::Gro,
        );
        is(
            "iperf3;main;recv;do_syscall_64_[k];__x64_sys_recvfrom_[k];udp_recvmsg_[k];_copy_to_iter_[k]",
            Stage::Copy,
        );
        is(
            "iperf3;main;recv;do_syscall_64_[k];__x64_sys_recvfrom_[k];udp_recvmsg_[k];__check_heap_[k]",
            Stage::Transport,
        );
        is("a;net_rx_action_[k];process_backlog_[k]", Stage::Rps);
        is("a;veth_poll_[k];bpf_prog_47d1_steer_[k]", Stage::Xdp);
        is("a;main;recv;do_syscall_64_[k];__sys_recvfrom_[k];sock_recvmsg_[k]", Stage::Socket);
    }

    #[test]
    fn softirqs_on_top_of_a_program_are_not_the_programs() {
        is("a;main;work;asm_common_interrupt_[k];net_rx_action_[k];udp_rcv_[k]", Stage::Transport);
        is("a;main;work", Stage::Program);
        is("a;main;work;do_syscall_64_[k];vfs_write_[k]", Stage::Program);
        is("a;main;recv;hoist:pump", Stage::Hoist);
        is("kworker/0;worker_thread_[k];flush_[k]", Stage::Other);
        is("cc1;[other program]", Stage::Other);
    }

    #[test]
    fn idle_is_idle_unless_something_is_done_on_top_of_it() {
        is(
            "swapper/0;cpu_startup_entry_[k];do_idle_[k];default_idle_[k];pv_native_safe_halt_[k]",
            Stage::Idle,
        );
        is(
            "swapper/0;do_idle_[k];default_idle_[k];asm_common_interrupt_[k];net_rx_action_[k];tcp_v4_rcv_[k]",
            Stage::Transport,
        );
    }

    #[test]
    fn stages_have_names_and_colours_of_their_own() {
        let of = |f: fn(Stage) -> &'static str| {
            Stage::ALL.map(f).into_iter().collect::<std::collections::BTreeSet<_>>().len()
        };
        assert_eq!((of(Stage::name), of(Stage::colour)), (12, 12));
    }
}
