//! What must hold natively and hoisted alike. One function a behaviour; each runs in a process of its own, alone in a testbed.
//!
//! A case never sleeps and never assumes that what the peer has sent has arrived: it blocks for it, or polls with a deadline.

mod chunk;
mod cmsg;
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
    ALL.iter().chain(HELPERS).find(|case| case.name == name)
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

macro_rules! table {
    ($($module:ident { $($case:ident: $expect:ident $(($reason:literal))?,)* })*) => {
        /// Every case.
        pub const ALL: &[Case] = &[$($(Case {
            name: concat!(stringify!($module), "::", stringify!($case)),
            expect: Expect::$expect $(($reason))?,
            run: $module::$case,
        },)*)*];
    };
}
with_cases!(table);

/// What cases start in other processes, and what tests/faults.rs runs.
const HELPERS: &[Case] = &[
    Case { name: "child::read_descriptor", expect: Expect::Mixed, run: process::read_descriptor },
    Case { name: "child::read_passed", expect: Expect::Mixed, run: process::read_passed },
    Case { name: "fault::ten_thousand_sockets", expect: Expect::Lifted, run: fault::ten_thousand_sockets },
    Case { name: "fault::a_hoarder_of_frames", expect: Expect::Mixed, run: fault::a_hoarder_of_frames },
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
