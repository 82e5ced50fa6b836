//! What must hold natively and hoisted alike. One function a behaviour; each runs in a process of its own, alone in a testbed.
//!
//! A case never sleeps and never assumes that what the peer has sent has arrived: it blocks for it, or polls with a deadline.

mod chunk;
mod cmsg;
mod conn;
mod connected;
mod epoll;
mod errors;
mod fault;
mod frames;
mod ipv6;
mod lifecycle;
mod mmsg;
mod multicast;
mod poll;
mod process;
mod queue;
mod recv;
mod select;
mod sharing;
mod signals;
mod tcp_end;
mod tcp_flags;
mod tcp_open;
mod tcp_ready;
mod tcp_recv;
mod tcp_share;
mod threads;
mod udp_gro;

use crate::{
    frame::Frame,
    peer::{Answer, Order, Payloads, Peer, Shot, numbered},
    sock,
};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

/// Environment variable with the [`Net`] in JSON.
pub const ENV_NET: &str = "HOIST_TEST_NET";

/// Port of the fence socket; never counted when lifting is judged.
pub const FENCE_PORT: u16 = 59_999;

/// Flows of a fence: enough that every queue of the device gets one.
const FENCE_FLOWS: u16 = 16;

/// What a case needs to know of the testbed.
#[derive(Serialize, Deserialize, Debug, Clone)]
pub struct Net {
    /// Device of the host namespace.
    pub device: String,
    /// Address of the host.
    pub host4: Ipv4Addr,
    /// Address of the wire.
    pub wire4: Ipv4Addr,
    /// Address of the host.
    pub host6: Ipv6Addr,
    /// Address of the wire.
    pub wire6: Ipv6Addr,
    /// Ethernet address of the host.
    pub host_mac: [u8; 6],
    /// Ethernet address of the wire.
    pub wire_mac: [u8; 6],
}

/// What must have been lifted when a case ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Expect {
    /// Something was lifted, and nothing that the case read came by the kernel.
    Lifted,
    /// Something was lifted, and some came by the kernel as it must: fragments, a forked child, what came before the lift.
    Mixed,
    /// Nothing need be lifted, for this reason.
    Passed(&'static str),
    /// Some payload of streams was lifted. How much depends on when the program reads.
    Streams,
    /// Whatever is lifted: with `--spin-us` the first datagram of a socket never is, and many a case has but one.
    Any,
}

/// One case.
#[derive(Clone, Copy)]
pub struct Case {
    /// `module::function`.
    pub name: &'static str,
    /// What must be lifted.
    pub expect: Expect,
    /// The case.
    pub run: fn(&mut Ctx),
}

/// The case of this name, helpers included.
pub fn find(name: &str) -> Option<&'static Case> {
    ALL.iter().chain(STREAMS).chain(HELPERS).find(|case| case.name == name)
}

/// Hands the list of cases to a macro: `module { case: expectation, … }`.
#[macro_export]
macro_rules! with_cases {
    ($callback:ident) => {
        $callback! {
            recv {
                recv_takes_one_datagram: Lifted,
                recvfrom_tells_the_sender: Lifted,
                recvfrom_without_an_address_works: Lifted,
                recvfrom_cuts_the_address_and_tells_its_length: Lifted,
                recvmsg_scatters_over_buffers: Lifted,
                read_takes_one_datagram: Lifted,
                readv_scatters_over_buffers: Lifted,
                raw_syscall_reads_the_same: Lifted,
                a_blocked_recv_wakes_up: Lifted,
                a_blocked_read_wakes_up: Lifted,
                peek_leaves_the_datagram: Lifted,
                peek_with_trunc_measures: Lifted,
                trunc_tells_the_real_length: Lifted,
                truncation_is_flagged_and_the_rest_is_gone: Lifted,
                dontwait_says_eagain: Lifted,
                dontwait_takes_what_is_there: Lifted,
                waitall_returns_one_datagram: Lifted,
                an_empty_datagram_is_one: Lifted,
                an_empty_buffer_takes_a_datagram: Lifted,
                a_read_of_nothing_takes_nothing: Lifted,
                rcvtimeo_ends_a_recv: Lifted,
                rcvtimeo_lets_a_datagram_through: Lifted,
                nonblocking_by_socket: Lifted,
                nonblocking_by_fcntl_and_back: Lifted,
                nonblocking_by_ioctl_and_back: Lifted,
                fionread_tells_the_next_length: Lifted,
                the_error_queue_is_empty: Lifted,
                every_size_arrives_whole: Lifted,
                order_is_kept: Lifted,
            }
            mmsg {
                a_batch_is_taken_in_order: Lifted,
                a_full_batch_is_waited_for: Lifted,
                waitforone_takes_what_is_there: Lifted,
                waitforone_waits_for_the_first: Lifted,
                dontwait_takes_what_is_there: Lifted,
                dontwait_says_eagain: Lifted,
                a_passed_timeout_ends_after_one: Lifted,
                a_timeout_in_the_future_lets_a_batch_through: Lifted,
                peek_reads_the_same_over_and_over: Lifted,
                truncation_is_flagged_for_each: Lifted,
                no_buffers_read_nothing: Lifted,
                a_bad_timeout_is_einval: Lifted,
            }
            cmsg {
                none_without_options: Lifted,
                pktinfo: Lifted,
                pktinfo6: Lifted,
                pktinfo_of_mapped_addresses: Lifted,
                ttl_and_tos: Lifted,
                hoplimit_and_tclass: Lifted,
                timestamp_is_true: Lifted,
                timestampns_is_true_and_rises: Lifted,
                several_at_once: Lifted,
                too_little_room_is_flagged: Lifted,
                no_room_is_flagged: Lifted,
                an_option_switched_off_is_silent: Lifted,
            }
            queue {
                a_full_queue_drops_and_counts: Lifted,
                a_burst_nobody_waits_for_is_bounded: Lifted,
                a_drained_queue_takes_more: Lifted,
                one_full_queue_leaves_another_alone: Lifted,
                a_larger_buffer_holds_more: Lifted,
            }
            poll {
                times_out: Lifted,
                sees_what_is_there: Lifted,
                wakes_up: Lifted,
                clears_when_drained: Lifted,
                is_writable_at_once: Lifted,
                finds_the_one_of_many: Lifted,
                a_pipe_wakes_it: Lifted,
                counts_sockets_and_pipes: Lifted,
                skips_negative_and_flags_closed: Lifted,
                the_same_socket_twice: Lifted,
                sees_a_socket_not_bound_yet: Lifted,
                ppoll_times_out: Lifted,
                ppoll_wakes_up: Lifted,
                ppoll_sets_the_mask: Lifted,
            }
            select {
                times_out_and_clears_the_sets: Lifted,
                sees_what_is_there_and_tells_the_time_left: Lifted,
                wakes_up: Lifted,
                clears_when_drained: Lifted,
                mixes_with_pipes: Lifted,
                writable_and_exceptional: Lifted,
                a_closed_descriptor_is_ebadf: Lifted,
                pselect_wakes_up: Lifted,
                pselect_sets_the_mask: Lifted,
            }
            epoll {
                level_reports_until_drained: Lifted,
                edge_reports_each_arrival_once: Lifted,
                edge_reports_what_was_there_before: Lifted,
                oneshot_waits_for_rearming: Lifted,
                exclusive_wakes_somebody: Lifted,
                wakes_up: Lifted,
                times_out: Lifted,
                nested: Lifted,
                an_epoll_in_a_poll: Lifted,
                two_epolls_see_one_socket: Lifted,
                modify_changes_data_and_events: Lifted,
                delete_silences: Lifted,
                close_silences: Lifted,
                a_dup_keeps_reporting: Lifted,
                a_dup_of_the_instance_is_the_instance: Lifted,
                a_forked_child_waits: Mixed,
                maxevents_takes_turns: Lifted,
                data_is_kept_whole: Lifted,
                added_before_bind: Lifted,
                writable_at_once: Lifted,
                pwait_sets_the_mask: Lifted,
                pwait2_times_out_in_microseconds: Lifted,
                pwait2_wakes_up: Lifted,
                mixes_with_timers_pipes_and_tcp: Lifted,
                two_threads_on_one_epoll: Lifted,
                one_thread_waits_another_reads: Lifted,
                errors_are_the_kernels: Lifted,
            }
            connected {
                connect_filters_senders: Lifted,
                connect_keeps_what_is_queued: Lifted,
                disconnect_opens_again: Lifted,
                recv_on_a_connected_socket: Lifted,
                autobind_takes_replies: Passed("young"),
                a_busy_autobound_socket_is_lifted: Mixed,
                port_unreachable_is_econnrefused: Passed("young"),
                port_unreachable_wakes_a_reader: Lifted,
                a_connected_socket_wins: Lifted,
            }
            lifecycle {
                dup_reads_on: Lifted,
                dup2_reads_on: Lifted,
                dup3_reads_on: Lifted,
                f_dupfd_reads_on: Lifted,
                dup2_over_a_socket_replaces_it: Lifted,
                close_frees_the_port: Lifted,
                close_with_data_queued: Lifted,
                close_one_keeps_the_other: Lifted,
                close_range_closes: Lifted,
                fclose_closes: Lifted,
                many_sockets_in_turn: Lifted,
                shutdown_wakes_a_reader: Lifted,
                shutdown_of_a_connected_socket: Lifted,
                shutdown_lets_queued_data_out: Lifted,
            }
            process {
                a_forked_child_reads: Mixed,
                parent_and_child_share: Mixed,
                a_child_that_execs_reads: Mixed,
                exec_of_self_reads: Passed("exec"),
                a_close_on_exec_socket_is_free_after_exec: Mixed,
                posix_spawn_leaves_lifting_alone: Lifted,
                vfork_leaves_lifting_alone: Lifted,
                system_leaves_lifting_alone: Lifted,
                a_passed_descriptor_is_read_elsewhere: Mixed,
                a_child_binds_its_own: Mixed,
            }
            threads {
                two_readers_share_a_socket: Lifted,
                eight_threads_eight_sockets: Lifted,
                a_reader_and_a_poller: Lifted,
                a_socket_opened_while_others_read: Lifted,
                a_blocked_reader_does_not_stop_others: Lifted,
            }
            signals {
                recv_is_interrupted: Lifted,
                recv_goes_on_with_sa_restart: Lifted,
                a_timeout_is_always_interrupted: Lifted,
                recvmmsg_is_interrupted: Lifted,
                poll_is_always_interrupted: Lifted,
                select_is_always_interrupted: Lifted,
                epoll_is_always_interrupted: Lifted,
                a_handler_reads_another_socket: Lifted,
                a_handler_reads_the_same_socket: Lifted,
                a_storm_of_signals_loses_nothing: Lifted,
            }
            multicast {
                both_members_get_a_copy: Lifted,
                leaving_stops_it: Lifted,
                a_group_address_can_be_bound: Lifted,
                strangers_hear_nothing_with_multicast_all_off: Mixed,
                members6_get_a_copy: Lifted,
                unicast_goes_to_one: Lifted,
                a_source_filter_is_honoured: Passed("source-filter"),
                broadcast_reaches_every_socket: Lifted,
                limited_broadcast_is_received: Lifted,
            }
            sharing {
                reuseport_gives_each_datagram_to_one: Lifted,
                reuseport_keeps_a_flow_on_one_socket: Lifted,
                a_member_that_leaves_hands_over: Lifted,
                reuseaddr_gives_to_the_last: Lifted,
                a_specific_address_wins: Lifted,
                two_ports_are_two_sockets: Lifted,
                bound_to_the_device: Lifted,
                bound_to_another_device: Passed("other-device"),
                a_wildcard_socket_is_lifted: Lifted,
            }
            ipv6 {
                recvfrom_tells_the_sender: Lifted,
                a_dual_socket_takes_both: Lifted,
                a_mapped_bind_takes_ipv4: Lifted,
                v6only_leaves_ipv4_alone: Lifted,
                two_families_one_port: Lifted,
                a_link_local_sender_has_its_scope: Lifted,
            }
            frames {
                a_bad_checksum_is_dropped: Lifted,
                a_bad_checksum6_is_dropped: Lifted,
                no_checksum_is_accepted_on_ipv4: Lifted,
                no_checksum_is_dropped_on_ipv6: Lifted,
                padding_is_not_payload: Lifted,
                a_short_udp_length_cuts: Lifted,
                a_long_udp_length_is_dropped: Lifted,
                a_bad_ip_checksum_is_dropped: Lifted,
                cut_frames_are_dropped: Lifted,
                garbage_is_survived: Lifted,
                another_mac_is_not_ours: Lifted,
                a_martian_source_is_dropped: Lifted,
                options_pass: Mixed,
                extension_headers_pass: Mixed,
                fragments_pass: Mixed,
                fragments6_pass: Mixed,
                the_largest_datagram_arrives: Mixed,
                lifted_and_fragmented_keep_their_own_order: Mixed,
            }
            chunk {
                a_lifted_datagram_is_lent: Lifted,
                every_size_arrives_whole: Lifted,
                an_empty_datagram_is_one: Lifted,
                senders_of_ipv6_are_told: Lifted,
                a_stream_read_cuts_a_datagram: Lifted,
                chunks_and_reads_take_turns: Lifted,
                nothing_there_is_would_block: Lifted,
                a_blocked_reader_wakes_up: Lifted,
                a_fragmented_datagram_is_a_copy: Mixed,
                a_keeper_of_chunks_starves_nobody: Lifted,
                chunks_outlive_their_socket: Lifted,
                another_thread_gives_chunks_back: Lifted,
                a_forked_child_keeps_its_chunks: Mixed,
                a_program_may_end_with_chunks: Lifted,
            }
            udp_gro {
                payloads_and_boundaries_are_right: Lifted,
                the_same_over_ipv6: Lifted,
                what_a_sender_segmented_arrives: Lifted,
                a_batch_is_right: Lifted,
                senders_do_not_mix: Lifted,
                congestion_marks_do_not_mix: Lifted,
                empty_datagrams_stay_alone: Lifted,
                the_time_is_the_first_ones: Lifted,
                a_peek_shows_what_the_read_takes: Lifted,
                fionread_tells_what_the_read_takes: Lifted,
                without_control_no_byte_is_lost: Lifted,
                switched_off_they_come_alone: Lifted,
                two_readers_take_rows_without_gaps: Lifted,
            }
            errors {
                a_bad_buffer_is_efault: Lifted,
                a_bad_address_pointer_is_efault: Lifted,
                a_closed_descriptor_is_ebadf: Lifted,
                a_pipe_is_enotsock: Lifted,
                too_many_buffers_are_refused: Lifted,
                a_negative_address_length_is_einval: Lifted,
            }
        }
    };
}

/// The same for streams: what must hold under `--tcp lift`.
#[macro_export]
macro_rules! with_tcp_cases {
    ($callback:ident) => {
        $callback! {
            tcp_recv {
                recv_takes_what_is_there: Streams,
                every_size_arrives: Streams,
                small_writes_arrive: Streams,
                large_reads_of_large_writes: Streams,
                reads_of_one_byte: Streams,
                recvfrom_tells_no_address: Any,
                recvmsg_scatters_over_buffers: Streams,
                recvmsg_of_the_whole_way: Streams,
                read_takes_what_is_there: Streams,
                readv_scatters_over_buffers: Streams,
                preadv2_with_no_offset_reads: Any,
                fortified_calls_read: Streams,
                raw_syscalls_read_the_same: Streams,
                recvmmsg_fills_message_after_message: Streams,
                a_blocked_recv_wakes_up: Streams,
                a_blocked_read_wakes_up: Streams,
                a_read_of_nothing_takes_nothing: Any,
                a_bad_buffer_is_efault_and_loses_nothing: Streams,
                the_error_queue_is_empty: Any,
                ipv6_arrives: Streams,
                mapped_addresses_arrive: Streams,
                both_ways_at_once: Streams,
            }
            tcp_flags {
                peek_leaves_everything: Streams,
                peek_sees_over_segments: Streams,
                peek_grows_with_what_arrives: Streams,
                a_blocked_peek_wakes_up: Any,
                peek_with_waitall_waits_for_all: Streams,
                peek_with_waitall_ends_with_the_stream: Streams,
                peek_with_waitall_wakes_up_at_the_end: Streams,
                a_reset_ends_a_peek_with_waitall: Any,
                peek_with_trunc_measures: Streams,
                peek_by_recvmsg_scatters: Streams,
                a_peek_offset_moves_on: Streams,
                peek_at_the_end_is_zero: Any,
                waitall_fills_the_buffer: Streams,
                waitall_of_more_than_the_window: Streams,
                waitall_by_recvmsg: Streams,
                waitall_ends_with_the_stream: Streams,
                waitall_ends_with_the_timeout: Streams,
                waitall_ends_with_a_signal: Streams,
                waitall_with_dontwait_takes_what_is_there: Streams,
                waitall_of_exactly_what_is_there: Streams,
                trunc_discards: Streams,
                trunc_waits_and_takes_what_comes: Streams,
                dontwait_says_eagain: Streams,
                nonblocking_by_fcntl_and_back: Streams,
                nonblocking_by_ioctl_and_back: Streams,
                rcvtimeo_ends_a_recv: Any,
                rcvlowat_holds_a_recv: Streams,
                rcvlowat_holds_poll: Streams,
                fionread_tells_everything_queued: Any,
                fionread_at_the_end: Streams,
                tcp_info_counts_bytes: Streams,
                tcp_inq_tells_what_is_left: Any,
                zerocopy_receive_never_shows_wrong_bytes: Streams,
                recv_is_interrupted: Any,
                recv_goes_on_with_sa_restart: Any,
                a_storm_of_signals_loses_nothing: Streams,
                a_smaller_receive_buffer_holds_less: Streams,
                an_unread_connection_closes_its_window: Streams,
            }
            tcp_end {
                the_end_comes_after_everything: Streams,
                the_end_wakes_a_reader: Any,
                the_end_in_the_last_segment: Any,
                an_ended_peer_is_still_written_to: Streams,
                shutdown_of_writing_leaves_reading: Streams,
                shutdown_of_reading_lets_queued_data_out: Streams,
                shutdown_wakes_a_reader: Any,
                shutdown_of_both: Streams,
                close_with_everything_read_is_a_fin: Streams,
                close_behind_the_last_read_is_a_fin: Streams,
                close_with_data_unread_is_a_rst: Streams,
                close_after_a_peek_is_a_rst: Any,
                data_after_close_is_a_rst: Any,
                linger_zero_is_a_rst: Streams,
                linger_waits_for_what_was_sent: Any,
                a_reset_comes_after_what_was_sent: Any,
                a_reset_wakes_a_reader: Any,
                a_reset_ends_a_waitall: Streams,
                a_reset_shows_in_poll: Any,
                a_write_after_a_reset_is_epipe: Any,
                both_end_at_once: Streams,
                a_process_that_ends_leaves_a_fin: Any,
                a_process_that_ends_with_data_unread_leaves_a_rst: Any,
                a_killed_process_leaves_a_fin: Any,
                a_killed_parent_leaves_the_childs_copy_open: Any,
                urgent_data_is_read_out_of_band: Any,
                urgent_data_stops_a_read: Any,
                urgent_data_in_line: Any,
                urgent_data_again_and_again: Any,
                keepalive_keeps_an_idle_connection: Any,
                a_socket_connects_again: Streams,
                a_descriptor_number_is_used_again: Streams,
                dup2_over_a_connection_replaces_it: Streams,
                close_in_another_thread_leaves_a_reader_its_data: Any,
            }
            tcp_ready {
                poll_reports_until_drained: Streams,
                nothing_is_ready_that_is_not: Streams,
                poll_wakes_up: Streams,
                ppoll_wakes_up: Streams,
                poll_finds_the_one_of_many: Streams,
                select_reports_until_drained: Streams,
                level_reports_until_drained: Streams,
                edge_reports_each_arrival: Streams,
                edge_triggered_readers_miss_nothing: Streams,
                edge_triggered_readers_are_woken_each_time: Streams,
                edge_reports_what_was_there_before: Streams,
                oneshot_waits_for_rearming: Streams,
                rdhup_tells_the_end: Streams,
                one_thread_waits_another_reads: Streams,
                an_epoll_of_many_connections: Streams,
                two_epolls_see_one_connection: Streams,
                a_blocked_reader_and_a_poller: Streams,
                rearming_wakes_nobody_in_vain: Streams,
                a_poller_of_what_another_reads: Streams,
            }
            tcp_open {
                accept_tells_the_peer: Streams,
                accept4_sets_flags: Any,
                data_before_accept: Any,
                data_around_the_first_read: Streams,
                connect_opens: Streams,
                connect6_opens: Streams,
                connect_to_a_mapped_address_opens: Streams,
                connect_without_waiting: Streams,
                a_read_before_connect_is_enotconn: Any,
                a_refused_connect: Any,
                accept_deferred_until_data: Streams,
                many_connections_in_turn: Any,
                two_listeners_share_a_port: Any,
                options_leave_the_stream_alone: Streams,
            }
            tcp_share {
                a_dup_reads_on: Streams,
                two_descriptors_read_in_turn: Streams,
                a_closed_dup_ends_nothing: Streams,
                threads_read_a_connection_each: Streams,
                two_threads_read_one_connection: Streams,
                a_forked_child_reads_the_rest: Streams,
                a_parent_reads_the_rest: Streams,
                parent_and_child_take_turns: Streams,
                a_server_that_forks_for_each: Any,
                a_fork_while_another_thread_reads: Any,
                connections_come_and_go_in_threads: Streams,
                spawning_leaves_the_stream_alone: Streams,
                a_child_that_execs_reads: Streams,
                exec_of_self_reads: Streams,
                exec_with_data_unread_shows_no_wrong_byte: Streams,
                a_connection_is_passed_before_it_is_read: Any,
                a_connection_is_passed_after_it_was_read: Streams,
                a_connection_is_passed_with_data_unread: Streams,
                splice_takes_the_stream: Streams,
                sendfile_to_a_pipe_takes_the_stream: Streams,
                sendfile_to_a_file_is_einval: Streams,
                sendfile_to_it_leaves_reading_alone: Streams,
                a_tls_socket_reads_on: Streams,
                a_tls_socket_with_data_unread_reads_on: Streams,
                repair_shows_the_queue: Streams,
                stdio_reads_on: Streams,
                lines_are_read_by_stdio: Any,
                a_connection_becomes_standard_input: Streams,
                a_cancelled_reader_takes_nothing: Streams,
            }
        }
    };
}

macro_rules! table {
    ($($module:ident { $($case:ident: $expect:ident $(($reason:literal))?,)* })*) => {
        &[$($(Case {
            name: concat!(stringify!($module), "::", stringify!($case)),
            expect: Expect::$expect $(($reason))?,
            run: $module::$case,
        },)*)*]
    };
}

/// Every case of datagrams.
pub const ALL: &[Case] = with_cases!(table);

/// Every case of streams.
pub const STREAMS: &[Case] = with_tcp_cases!(table);

/// What cases start in other processes, and what tests/faults.rs runs.
const HELPERS: &[Case] = &[
    Case { name: "child::read_descriptor", expect: Expect::Mixed, run: process::read_descriptor },
    Case { name: "child::read_passed", expect: Expect::Mixed, run: process::read_passed },
    Case { name: "fault::ten_thousand_sockets", expect: Expect::Lifted, run: fault::ten_thousand_sockets },
    Case { name: "fault::a_hoarder_of_frames", expect: Expect::Mixed, run: fault::a_hoarder_of_frames },
    Case { name: "child::tcp_ends", expect: Expect::Any, run: tcp_end::child },
    Case { name: "child::tcp_read", expect: Expect::Any, run: tcp_share::read_inherited },
    Case { name: "child::tcp_read_if_open", expect: Expect::Any, run: tcp_share::read_if_open },
    Case { name: "child::tcp_read_passed", expect: Expect::Any, run: tcp_share::read_passed },
    Case { name: "merge::what_waits_is_one", expect: Expect::Lifted, run: udp_gro::what_waits_is_one },
    Case { name: "merge::only_what_fits", expect: Expect::Lifted, run: udp_gro::only_what_fits },
    Case {
        name: "merge::segments_stay_together",
        expect: Expect::Lifted,
        run: udp_gro::segments_stay_together,
    },
    Case { name: "child::read_own", expect: Expect::Mixed, run: process::read_own },
];

/// A case's hold on the testbed.
pub struct Ctx {
    /// Addresses.
    pub net: Net,
    /// Arguments after the case's name.
    pub args: Vec<String>,
    peer: Peer,
    next_port: u16,
    fence: Option<OwnedFd>,
}

impl Ctx {
    /// From the environment that the lab sets.
    pub fn from_env() -> Self {
        let net = std::env::var(ENV_NET).expect("HOIST_TEST_NET tells the addresses");
        let net = serde_json::from_str(&net).expect("HOIST_TEST_NET is a Net");
        let args = std::env::args().skip(2).collect();
        Self { net, args, peer: Peer::connect(), next_port: 20_000, fence: None }
    }

    /// An IPv4 address of the host with a port nobody uses.
    pub fn address4(&mut self) -> SocketAddr {
        (self.net.host4, self.port()).into()
    }

    /// The same for IPv6.
    pub fn address6(&mut self) -> SocketAddr {
        (self.net.host6, self.port()).into()
    }

    /// A port nobody uses.
    pub fn port(&mut self) -> u16 {
        self.next_port += 1;
        self.next_port
    }

    /// A socket on a new IPv4 address.
    pub fn bound4(&mut self) -> (OwnedFd, SocketAddr) {
        let at = self.address4();
        (sock::bound(at), at)
    }

    /// A socket on a new IPv6 address.
    pub fn bound6(&mut self) -> (OwnedFd, SocketAddr) {
        let at = self.address6();
        (sock::bound(at), at)
    }

    /// Where the peer sends from to such an address.
    pub fn from(&self, to: SocketAddr) -> SocketAddr {
        self.from_port(to, 30_000)
    }

    /// The same from another port.
    pub fn from_port(&self, to: SocketAddr, port: u16) -> SocketAddr {
        match to.ip() {
            IpAddr::V4(_) => (self.net.wire4, port).into(),
            IpAddr::V6(_) => (self.net.wire6, port).into(),
        }
    }

    /// One or more datagrams, with everything else as usual.
    pub fn shot(&self, to: SocketAddr, payloads: &[&[u8]]) -> Shot {
        let payloads = Payloads::List(payloads.iter().map(|p| p.to_vec()).collect());
        Shot {
            from: self.from(to),
            to,
            payloads,
            ttl: None,
            tos: None,
            gap_us: 0,
            asleep: None,
            segment: None,
        }
    }

    /// Sends datagrams; they may still be on their way.
    #[track_caller]
    pub fn send(&mut self, to: SocketAddr, payloads: &[&[u8]]) {
        let shot = self.shot(to, payloads);
        self.shoot(shot);
    }

    /// Sends what the shot says.
    #[track_caller]
    pub fn shoot(&mut self, shot: Shot) {
        self.peer.order(&Order::Send(shot));
    }

    /// Sends `count` numbered datagrams.
    #[track_caller]
    pub fn send_numbered(&mut self, to: SocketAddr, first: u32, count: u32, len: usize) {
        let payloads = Payloads::Numbered { first, count, len };
        let shot = Shot { payloads, ..self.shot(to, &[]) };
        self.shoot(shot);
    }

    /// Has datagrams sent as soon as the calling thread sleeps; [`Ctx::finish`] takes the answer.
    pub fn send_when_asleep(&mut self, to: SocketAddr, payloads: &[&[u8]]) {
        // SAFETY: no arguments.
        let tid = unsafe { libc::gettid() };
        let shot = Shot { asleep: Some(tid), ..self.shot(to, payloads) };
        self.peer.tell(&Order::Send(shot));
    }

    /// Takes the answer to an order not answered yet.
    #[track_caller]
    pub fn finish(&mut self) {
        self.peer.answer();
    }

    /// A frame from the peer with nothing wrong.
    pub fn frame(&self, to: SocketAddr, payload: &[u8]) -> Frame {
        Frame::new((self.net.wire_mac, self.net.host_mac), self.from(to), to, payload)
    }

    /// Sends Ethernet frames.
    #[track_caller]
    pub fn send_frames(&mut self, frames: Vec<Vec<u8>>) {
        self.peer.order(&Order::Frames { frames, rounds: 1 });
    }

    /// Binds a socket of the peer.
    #[track_caller]
    pub fn open_peer(&mut self, at: SocketAddr) {
        self.peer.order(&Order::Open(at));
    }

    /// Closes a socket of the peer, so that its port is unreachable.
    #[track_caller]
    pub fn close_peer(&mut self, at: SocketAddr) {
        self.peer.order(&Order::Close(at));
    }

    /// What the peer received at `at`.
    #[track_caller]
    pub fn peer_receives(&mut self, at: SocketAddr, count: usize) -> Vec<(Vec<u8>, SocketAddr)> {
        match self.peer.order(&Order::Receive { at, count }) {
            Answer::Received(list) => list,
            answer => panic!("{answer:?}"),
        }
    }

    /// Waits until everything sent before has arrived or is lost: datagrams on many flows, so on every queue, follow it.
    /// A full ring drops fences too; they are sent again until one of each flow has come.
    #[track_caller]
    pub fn fence(&mut self) {
        let at = SocketAddr::from((self.net.host4, FENCE_PORT));
        let socket = self.fence.take().unwrap_or_else(|| sock::bound(at));
        let mut missing: BTreeSet<u16> = (50_000..50_000 + FENCE_FLOWS).collect();
        let start = Instant::now();
        while !missing.is_empty() {
            assert!(start.elapsed() < Duration::from_secs(20), "no fence came through on flows {missing:?}");
            for &port in &missing {
                let shot = Shot { from: self.from_port(at, port), ..self.shot(at, &[b"fence"]) };
                self.shoot(shot);
            }
            while !missing.is_empty() && sock::events(&socket, libc::POLLIN, 500) != 0 {
                missing.remove(&sock::recv_from(&socket, &mut [0; 16], 0).unwrap().1.port());
            }
        }
        drain(&socket);
        self.fence = Some(socket);
    }
}

/// What a call came to that may fail with EBUSY under Hoist, and only there, as long as lifted data is unread
/// (docs/limitations.md): then None.
#[track_caller]
pub(crate) fn unless_held<T>(result: std::io::Result<T>) -> Option<T> {
    let hoisted = std::env::var("LD_PRELOAD").is_ok_and(|list| list.contains("hoist"));
    match result {
        Err(error) if hoisted && error.raw_os_error() == Some(libc::EBUSY) => None,
        other => Some(other.unwrap()),
    }
}

/// Numbered payloads as a sender would list them.
pub(crate) fn numbers(range: std::ops::Range<u32>, len: usize) -> Vec<Vec<u8>> {
    range.map(|i| numbered(i, len)).collect()
}

/// Asserts that nothing is readable.
#[track_caller]
pub(crate) fn assert_empty(s: &OwnedFd) {
    assert_eq!(sock::errno(sock::take(s, 2048, libc::MSG_DONTWAIT)), libc::EAGAIN);
}

/// Reads until nothing is left.
#[track_caller]
pub(crate) fn drain(s: &OwnedFd) -> Vec<Vec<u8>> {
    let mut list = Vec::new();
    loop {
        match sock::take(s, 65_536, libc::MSG_DONTWAIT) {
            Ok(bytes) => list.push(bytes),
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(libc::EAGAIN));
                return list;
            }
        }
    }
}
