/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* Definition of maps, and those that conns, steer and ride_in share (pinned once a run). */
#ifndef HOIST_MAPS_H
#define HOIST_MAPS_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include "hoist.h"

#define MAP(name, kind, k, v, n, flags)     \
	struct {                            \
		__uint(type, kind);         \
		__uint(max_entries, n);     \
		__uint(map_flags, flags);   \
		__type(key, k);             \
		__type(value, v);           \
	} name SEC(".maps")

#define TCP_FLOWS_MAP \
	MAP(tcp_flows, BPF_MAP_TYPE_HASH, struct flow_key, struct tcp_flow, TCP_SLOTS, BPF_F_NO_PREALLOC)
#define TCP_SLOTS_MAP \
	MAP(tcp_slots, BPF_MAP_TYPE_ARRAY, __u32, struct tcp_slot, TCP_SLOTS, BPF_F_MMAPABLE)
#define TCP_PORTS_MAP MAP(tcp_ports, BPF_MAP_TYPE_ARRAY, __u32, __u32, 65536, BPF_F_MMAPABLE)

#endif
