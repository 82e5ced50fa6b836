/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * What BPF programs and user space agree on. The Rust mirror (crates/broker/src/abi.rs) asserts
 * every size and offset.
 */
#ifndef HOIST_H
#define HOIST_H

#include <linux/types.h>

/* "hoisttim", in memory order: marks the arrival time in front of a lifted packet. */
#define HOIST_META_MAGIC 0x6d69747473696f68ULL

/* Directly in front of the packet: AF_XDP copies metadata along (xsk_copy_xdp). */
struct hoist_meta {
	__u64 magic;
	__u64 time_ns; /* CLOCK_MONOTONIC */
};

/* What becomes of a packet: lifted, or passed and why. Order is part of the contract. */
enum steer_verdict {
	STEER_LIFT,
	STEER_NOT_IP,
	STEER_NOT_UDP,
	STEER_FRAGMENT,
	STEER_IP_OPTIONS,
	STEER_IPV6_EXTENSION,
	STEER_TRUNCATED,
	STEER_PORT,
	STEER_OTHER_MAC,
	STEER_TOO_LONG,
	STEER_SOURCE,
	STEER_VLAN,
	STEER_ADDRESS,
	STEER_UNADMITTED,
	STEER_NO_RING,
	STEER_RODE,
	STEER_TCP_FLOW,
	STEER_TCP_CONTROL,
	STEER_VERDICTS,
};

struct steer_counter {
	__u64 packets;
	__u64 bytes; /* of lifted packets only */
};

/* lift_rule.flags */
#define LIFT_TIMESTAMP 1
#define LIFT_ADMIT_FLOW 2
#define LIFT_SPREAD 4

/* Processes with rings, each at a seat; hoist_ipc::hub::SEATS. */
#define SEATS 32
/* Parts that flows of a rule hash to. */
#define LIFT_PARTS 256

struct lift_rule {
	__u32 flags;
	__u32 seat; /* of the only process, or by LIFT_SPREAD: */
	__u8 seats[LIFT_PARTS];
};

/* Addresses of IPv4 are ::ffff:a.b.c.d. */
struct lift_key {
	__u8 address[16];
	__be16 port;
	__u16 zero;
};

struct flow_key {
	__u8 source[16];
	__u8 destination[16];
	__be16 source_port;
	__be16 destination_port;
};

/* One entry of the map `device`; user space keeps it current. */
struct steer_device {
	__u16 mac[3];
	__u16 zero;
	__u32 max_frame; /* longest frame a ring's chunk holds */
};

/*
 * TCP. sock_ops (conns) publishes each connection of the run in a slot of the array `tcp_slots`, which the program and the
 * broker map, and in the hash `tcp_flows` (flow_key as its packets carry it: source is the peer). steer reads the slot's
 * word for connections whose local port has a count in the array `tcp_ports`, which the program maps too.
 */
#define TCP_SLOTS 65536
/* A connection's slot is the first free one from SO_COOKIE % TCP_SLOTS on; after so many it gets none. */
#define TCP_PROBES 16

/* The lower two bits of tcp_slot.word. */
#define TCP_FILLING 0 /* not to be looked at */
#define TCP_PASS 1
#define TCP_LIFT 2

/* tcp_slot.flags */
#define TCP_CONNECTED 1 /* this side called connect */

struct tcp_slot {
	__u64 word; /* SO_COOKIE << 2 | state; 0: free */
	__u32 base; /* sequence number of byte 0 of the stream that is received, host order */
	__u32 flags;
	__u8 local[16]; /* IPv4: ::ffff:a.b.c.d */
	__u8 remote[16];
	__u16 local_port; /* host order */
	__u16 remote_port;
	__u32 pid; /* from here on the program writes */
	__u32 reason; /* hoist_ipc::Reason */
	__u32 option; /* the socket option behind it, level << 16 | name */
	__u64 lifted_bytes; /* payload that the program took from frames */
	__u64 passed_bytes; /* from the kernel socket */
	__u64 lifts; /* times lifting began */
	__u64 bad_checksum;
	__u64 rode; /* headers that rode, merged */
	__u64 rode_real; /* segments that rode with their payload */
	__u64 seat; /* whose rings it is lifted to */
};

/* Sums over connections that are closed, of what stood in their slots. */
struct tcp_closed {
	__u64 connections;
	__u64 lifted_bytes;
	__u64 passed_bytes;
	__u64 lifts;
	__u64 bad_checksum;
	__u64 rode;
	__u64 rode_real;
};

/* Value of tcp_flows, which programs cannot write as they can the slots. */
struct tcp_flow {
	__u64 cookie; /* SO_COOKIE */
	__u32 slot;
	__u32 zero;
};

#endif
