// SPDX-License-Identifier: (MIT OR Apache-2.0) OR GPL-2.0-only
/*
 * ride_in: a frame written to the TAP arrives on the real device, as if it had never been lifted. The program holds the
 * TAP, whatever its privilege: only what steer could have lifted comes in.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include "flow.h"
#include "maps.h"

const volatile __u32 device_ifindex = 0;
const volatile __u32 generic_xdp = 0;
const volatile __u32 ride_tcp = 0;

/* One bit for every port that had a rule in this run, lifted or not any more. */
MAP(ride_ports, BPF_MAP_TYPE_ARRAY, __u32, __u64, 65536 / 64, 0);
MAP(ride_refused, BPF_MAP_TYPE_PERCPU_ARRAY, __u32, __u64, 1, 0);
TCP_FLOWS_MAP;

static __always_inline int lifted_once(__be16 dest)
{
	__u32 port = bpf_ntohs(dest), word = port / 64;
	__u64 *bits = bpf_map_lookup_elem(&ride_ports, &word);

	return bits && (*bits >> (port % 64) & 1);
}

/* A TCP segment, merged or not, of a connection of the run. */
static __always_inline int tcp_may_ride(struct flow_key *flow)
{
	return ride_tcp && bpf_map_lookup_elem(&tcp_flows, flow);
}

/* No UDP is merged: what claims to be was made up. */
static __always_inline int udp_may_ride(struct __sk_buff *skb, struct flow_key *flow)
{
	return !skb->gso_size && lifted_once(flow->destination_port);
}

static __always_inline int may_ride_as(struct __sk_buff *skb, __u8 protocol, struct flow_key *flow)
{
	if (protocol == IPPROTO_TCP)
		return tcp_may_ride(flow);
	return protocol == IPPROTO_UDP && udp_may_ride(skb, flow);
}

static __always_inline int ipv4_may_ride(struct __sk_buff *skb)
{
	struct flow_key flow = {};
	struct iphdr ip;
	__be16 ports[2];

	if (bpf_skb_load_bytes(skb, ETH_HLEN, &ip, sizeof(ip)) || *(__u8 *)&ip != 0x45 ||
	    (ip.frag_off & bpf_htons(0x3fff)) || bpf_skb_load_bytes(skb, ETH_HLEN + sizeof(ip), ports, sizeof(ports)))
		return 0;
	ipv4_flow(&flow, &ip, ports);
	return may_ride_as(skb, ip.protocol, &flow);
}

static __always_inline int ipv6_may_ride(struct __sk_buff *skb)
{
	struct flow_key flow = {};
	struct ipv6hdr ip;
	__be16 ports[2];

	if (bpf_skb_load_bytes(skb, ETH_HLEN, &ip, sizeof(ip)) || (*(__u8 *)&ip & 0xf0) != 0x60 ||
	    ipv6_reserved(&ip.saddr) || ipv6_reserved(&ip.daddr) ||
	    bpf_skb_load_bytes(skb, ETH_HLEN + sizeof(ip), ports, sizeof(ports)))
		return 0;
	ipv6_flow(&flow, &ip, ports);
	return may_ride_as(skb, ip.nexthdr, &flow);
}

static __always_inline int may_ride(struct __sk_buff *skb)
{
	struct ethhdr eth;

	/* The stack has taken a tag out already (skb_vlan_untag); steer lifts no tagged frame. */
	if (skb->vlan_present || bpf_skb_load_bytes(skb, 0, &eth, sizeof(eth)))
		return 0;
	if (eth.h_proto == bpf_htons(ETH_P_IP))
		return ipv4_may_ride(skb);
	return eth.h_proto == bpf_htons(ETH_P_IPV6) && ipv6_may_ride(skb);
}

SEC("classifier")
int ride_in(struct __sk_buff *skb)
{
	__u32 zero = 0;
	__u8 source;

	if (!may_ride(skb)) {
		__u64 *refused = bpf_map_lookup_elem(&ride_refused, &zero);

		if (refused)
			++*refused;
		return TC_ACT_SHOT;
	}
	/*
	 * Generic XDP runs on redirected frames too (do_xdp_generic; bpf_redirect does not mark them as
	 * skb_is_redirected): tell steer to let this one by. It restores the bit.
	 */
	if (generic_xdp) {
		if (bpf_skb_load_bytes(skb, ETH_ALEN, &source, 1))
			return TC_ACT_SHOT;
		source |= 1;
		if (bpf_skb_store_bytes(skb, ETH_ALEN, &source, 1, 0))
			return TC_ACT_SHOT;
	}
	return bpf_redirect(device_ifindex, BPF_F_INGRESS);
}

char _license[] SEC("license") = "Dual MIT/GPL";
