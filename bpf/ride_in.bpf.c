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
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

const volatile __u32 device_ifindex = 0;
const volatile __u32 generic_xdp = 0;

/* One bit for every port that had a rule in this run, lifted or not any more. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 65536 / 64);
	__type(key, __u32);
	__type(value, __u64);
} ride_ports SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} ride_refused SEC(".maps");

static __always_inline int lifted_once(__be16 dest)
{
	__u32 port = bpf_ntohs(dest), word = port / 64;
	__u64 *bits = bpf_map_lookup_elem(&ride_ports, &word);

	return bits && (*bits >> (port % 64) & 1);
}

/* Offset of the UDP header; 0: not what steer lifts. */
static __always_inline __u32 udp_offset(struct __sk_buff *skb, __be16 proto)
{
	struct ipv6hdr v6;
	struct iphdr v4;

	if (proto == bpf_htons(ETH_P_IP)) {
		if (bpf_skb_load_bytes(skb, ETH_HLEN, &v4, sizeof(v4)) || *(__u8 *)&v4 != 0x45 ||
		    v4.protocol != IPPROTO_UDP || (v4.frag_off & bpf_htons(0x3fff)))
			return 0;
		return ETH_HLEN + sizeof(v4);
	}
	if (proto == bpf_htons(ETH_P_IPV6)) {
		if (bpf_skb_load_bytes(skb, ETH_HLEN, &v6, sizeof(v6)) || (*(__u8 *)&v6 & 0xf0) != 0x60 ||
		    v6.nexthdr != IPPROTO_UDP)
			return 0;
		return ETH_HLEN + sizeof(v6);
	}
	return 0;
}

static __always_inline int may_ride(struct __sk_buff *skb)
{
	struct ethhdr eth;
	struct udphdr udp;
	__u32 at;

	/* The stack has taken a tag out already (skb_vlan_untag); steer lifts no tagged frame. */
	if (skb->vlan_present || bpf_skb_load_bytes(skb, 0, &eth, sizeof(eth)))
		return 0;
	at = udp_offset(skb, eth.h_proto);
	return at && !bpf_skb_load_bytes(skb, at, &udp, sizeof(udp)) && lifted_once(udp.dest);
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
