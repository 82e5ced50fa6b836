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
	STEER_VERDICTS,
};

struct steer_counter {
	__u64 packets;
	__u64 bytes; /* of lifted packets only */
};

/* lift_rule.flags */
#define LIFT_TIMESTAMP 1
#define LIFT_ADMIT_FLOW 2

struct lift_rule {
	__u32 flags;
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

#endif
