/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * The TCP half of steer. Whole flows are lifted, whatever the size of a segment: what passed beside them would overtake
 * them. SYN and acknowledgements alone pass: they carry nothing that could.
 */
#ifndef HOIST_STEER_TCP_H
#define HOIST_STEER_TCP_H

#include <linux/tcp.h>
#include "flow.h"
#include "maps.h"

TCP_FLOWS_MAP;
TCP_SLOTS_MAP;
TCP_PORTS_MAP;

/* Off, or in generic mode (which runs after GRO): none of this stays in the program. */
const volatile __u32 lift_tcp = 0;

#define TCP_FLAG_BYTE 13
#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_URG 0x20

static __always_inline int tcp_port_verdict(struct tcphdr *tcp, void *end)
{
	__u32 port, *lifted;

	if ((void *)(tcp + 1) > end)
		return STEER_TRUNCATED;
	port = bpf_ntohs(tcp->dest);
	lifted = bpf_map_lookup_elem(&tcp_ports, &port);
	return lifted && *lifted ? STEER_LIFT : STEER_TCP_FLOW;
}

/* `len`: bytes of header and payload, as IP says. */
static __always_inline int tcp_segment_verdict(struct tcphdr *tcp, __u32 len)
{
	__u32 header = tcp->doff * 4;
	__u8 flags = ((__u8 *)tcp)[TCP_FLAG_BYTE];

	if (header < sizeof(*tcp) || header > len)
		return STEER_TRUNCATED;
	if ((flags & TCP_SYN) || (header == len && !(flags & (TCP_FIN | TCP_RST | TCP_URG))))
		return STEER_TCP_CONTROL;
	return STEER_LIFT;
}

static __always_inline int tcp_flow_verdict(struct flow_key *key, __u32 *seat)
{
	struct tcp_flow *flow = bpf_map_lookup_elem(&tcp_flows, key);
	struct tcp_slot *slot = flow ? bpf_map_lookup_elem(&tcp_slots, &flow->slot) : 0;

	if (!slot || *(volatile __u64 *)&slot->word != (flow->cookie << 2 | TCP_LIFT))
		return STEER_TCP_FLOW;
	*seat = *(volatile __u64 *)&slot->seat;
	return STEER_LIFT;
}

static __always_inline int ipv4_tcp_verdict(struct iphdr *ip, void *end, struct flow_key *flow,
					    __u32 *seat)
{
	struct tcphdr *tcp = (void *)(ip + 1);
	__u32 total = bpf_ntohs(ip->tot_len);
	int verdict;

	if (*(__u8 *)ip != 0x45)
		return STEER_IP_OPTIONS;
	if (ip->frag_off & bpf_htons(0x3fff))
		return STEER_FRAGMENT;
	verdict = tcp_port_verdict(tcp, end);
	if (verdict != STEER_LIFT)
		return verdict;
	if (total > end - (void *)ip || total < sizeof(*ip))
		return STEER_TRUNCATED;
	verdict = tcp_segment_verdict(tcp, total - sizeof(*ip));
	if (verdict != STEER_LIFT)
		return verdict;
	ipv4_flow(flow, ip, tcp);
	return tcp_flow_verdict(flow, seat);
}

static __always_inline int ipv6_tcp_verdict(struct ipv6hdr *ip, void *end, struct flow_key *flow,
					    __u32 *seat)
{
	struct tcphdr *tcp = (void *)(ip + 1);
	__u32 len = bpf_ntohs(ip->payload_len);
	int verdict;

	if ((*(__u8 *)ip & 0xf0) != 0x60)
		return STEER_TRUNCATED;
	verdict = tcp_port_verdict(tcp, end);
	if (verdict != STEER_LIFT)
		return verdict;
	if (len > end - (void *)tcp)
		return STEER_TRUNCATED;
	if (ipv6_reserved(&ip->saddr) || ipv6_reserved(&ip->daddr))
		return STEER_SOURCE;
	verdict = tcp_segment_verdict(tcp, len);
	if (verdict != STEER_LIFT)
		return verdict;
	ipv6_flow(flow, ip, tcp);
	return tcp_flow_verdict(flow, seat);
}

#endif
