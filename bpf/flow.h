/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* A packet's flow_key from its headers; `ports` is where UDP or TCP begins. */
#ifndef HOIST_FLOW_H
#define HOIST_FLOW_H

#include <linux/ip.h>
#include <linux/ipv6.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include "hoist.h"

static __always_inline void ipv4_flow(struct flow_key *flow, struct iphdr *ip, void *ports)
{
	flow->source[10] = flow->source[11] = flow->destination[10] = flow->destination[11] = 0xff;
	__builtin_memcpy(&flow->source[12], &ip->saddr, 4);
	__builtin_memcpy(&flow->destination[12], &ip->daddr, 4);
	__builtin_memcpy(&flow->source_port, ports, 4);
}

static __always_inline void ipv6_flow(struct flow_key *flow, struct ipv6hdr *ip, void *ports)
{
	__builtin_memcpy(flow, &ip->saddr, 32);
	__builtin_memcpy(&flow->source_port, ports, 4);
}

/* ::/64 holds ::, ::1 and the IPv4-mapped addresses that keys of IPv4 are made of: none comes in an IPv6 packet. */
static __always_inline int ipv6_reserved(struct in6_addr *address)
{
	return !address->s6_addr32[0] && !address->s6_addr32[1];
}

#endif
