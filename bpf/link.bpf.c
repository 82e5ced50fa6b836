// SPDX-License-Identifier: (MIT OR Apache-2.0) OR GPL-2.0
/*
 * The emulated link: what a device sends or receives takes the way over a TAP, where a process decides what becomes of it.
 *
 * `link_take` sits on the device and turns every packet to the TAP that has not been there; `link_give` sits on the TAP's
 * ingress and gives back what the process lets by. Dropping in here would be no loss: TCP sees NET_XMIT_DROP at once.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define BEEN_THERE 0x686f6c6b
#define ICMPV6 58
#define ECHO_REQUEST 128
#define ECHO_REPLY 129

const volatile __u32 tap_ifindex;
const volatile __u32 device_ifindex;
const volatile __u64 give_flags; /* BPF_F_INGRESS: the packet came in by the device */

/*
 * Neighbour discovery and group management are not the traffic: they come when the kernel likes, and what is decided
 * about a packet must not depend on how many of them there were.
 */
static __always_inline int is_traffic(struct __sk_buff *skb)
{
	__u8 next, type;

	switch (skb->protocol) {
	case bpf_htons(ETH_P_IP):
		return !bpf_skb_load_bytes(skb, ETH_HLEN + offsetof(struct iphdr, protocol), &next, 1) &&
		       next != IPPROTO_IGMP;
	case bpf_htons(ETH_P_8021Q):
		return 1;
	case bpf_htons(ETH_P_IPV6):
		if (bpf_skb_load_bytes(skb, ETH_HLEN + offsetof(struct ipv6hdr, nexthdr), &next, 1) || !next)
			return 0;
		if (next != ICMPV6)
			return 1;
		return !bpf_skb_load_bytes(skb, ETH_HLEN + sizeof(struct ipv6hdr), &type, 1) &&
		       (type == ECHO_REQUEST || type == ECHO_REPLY);
	}
	return 0;
}

SEC("classifier")
int link_take(struct __sk_buff *skb)
{
	if (skb->mark == BEEN_THERE || !is_traffic(skb))
		return TC_ACT_UNSPEC;
	return bpf_redirect(tap_ifindex, 0);
}

SEC("classifier")
int link_give(struct __sk_buff *skb)
{
	skb->mark = BEEN_THERE;
	return bpf_redirect(device_ifindex, give_flags);
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
