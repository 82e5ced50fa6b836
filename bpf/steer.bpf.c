// SPDX-License-Identifier: (MIT OR Apache-2.0) OR GPL-2.0-only
/*
 * steer: lifts UDP datagrams and TCP connections that a program of the run owns to its AF_XDP rings, passes all else.
 * Anything not fully understood passes. Unlifted traffic pays for the headers and one array look-up.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include "flow.h"
#include "maps.h"
#include "steer_tcp.h"

MAP(xsks, BPF_MAP_TYPE_XSKMAP, __u32, __u32, 1, 0);
MAP(device, BPF_MAP_TYPE_ARRAY, __u32, struct steer_device, 1, 0);
MAP(counters, BPF_MAP_TYPE_PERCPU_ARRAY, __u32, struct steer_counter, STEER_VERDICTS, 0);
MAP(lift_ports, BPF_MAP_TYPE_ARRAY, __u32, __u32, 65536, 0);
MAP(lift, BPF_MAP_TYPE_HASH, struct lift_key, struct lift_rule, 262144, BPF_F_NO_PREALLOC);
MAP(admitted, BPF_MAP_TYPE_LRU_HASH, struct flow_key, __u8, 65536, 0);

/* Receive queues; ring of a process at a seat: seat * queues + queue. */
const volatile __u32 queues = 1;
/* Set in generic mode, where a frame that rides up the stack meets this program once more. */
const volatile __u32 generic_xdp = 0;

static __always_inline int count(__u32 verdict, __u64 bytes)
{
	struct steer_counter *c = bpf_map_lookup_elem(&counters, &verdict);

	if (!c)
		return XDP_PASS;
	c->packets++;
	c->bytes += bytes; /* a constant 0 but for lifted packets */
	return XDP_PASS;
}

static __always_inline int wanted(__be16 dest)
{
	__u32 port = bpf_ntohs(dest), *lifted = bpf_map_lookup_elem(&lift_ports, &port);

	return lifted && *lifted;
}

/* The two checks that need the device, made only for ports that are lifted. */
static __always_inline int frame_verdict(struct ethhdr *eth, __u64 len)
{
	const __u16 *to = (void *)eth->h_dest;
	__u32 zero = 0;
	struct steer_device *d = bpf_map_lookup_elem(&device, &zero);

	if (!d)
		return STEER_NO_RING;
	if (!(eth->h_dest[0] & 1) && (to[0] != d->mac[0] || to[1] != d->mac[1] || to[2] != d->mac[2]))
		return STEER_OTHER_MAC;
	return len > d->max_frame ? STEER_TOO_LONG : STEER_LIFT;
}

static __always_inline int ipv4_verdict(struct iphdr *ip, void *end, struct flow_key *flow, int *tcp,
					__u32 *seat)
{
	struct udphdr *udp = (void *)(ip + 1);
	__u32 source, total;

	if ((void *)(ip + 1) > end)
		return STEER_TRUNCATED;
	*tcp = lift_tcp && ip->protocol == IPPROTO_TCP;
	if (*tcp)
		return ipv4_tcp_verdict(ip, end, flow, seat);
	if (ip->protocol != IPPROTO_UDP)
		return STEER_NOT_UDP;
	if (*(__u8 *)ip != 0x45)
		return STEER_IP_OPTIONS;
	if (ip->frag_off & bpf_htons(0x3fff))
		return STEER_FRAGMENT;
	if ((void *)(udp + 1) > end)
		return STEER_TRUNCATED;
	if (!wanted(udp->dest))
		return STEER_PORT;
	total = bpf_ntohs(ip->tot_len);
	if (total > end - (void *)ip || total < sizeof(*ip) + sizeof(*udp) ||
	    bpf_ntohs(udp->len) < sizeof(*udp) || bpf_ntohs(udp->len) > total - sizeof(*ip))
		return STEER_TRUNCATED;
	source = bpf_ntohl(ip->saddr) >> 24;
	if (source == 0 || source == 127 || source >= 224)
		return STEER_SOURCE;
	ipv4_flow(flow, ip, udp);
	return STEER_LIFT;
}

static __always_inline int is_extension(__u8 next)
{
	return next == 0 || next == 43 || next == 44 || next == 50 || next == 51 || next == 60 || next == 135;
}

static __always_inline int ipv6_verdict(struct ipv6hdr *ip, void *end, struct flow_key *flow, int *tcp,
					__u32 *seat)
{
	struct udphdr *udp = (void *)(ip + 1);
	__u32 len;

	if ((void *)(ip + 1) > end)
		return STEER_TRUNCATED;
	*tcp = lift_tcp && ip->nexthdr == IPPROTO_TCP;
	if (*tcp)
		return ipv6_tcp_verdict(ip, end, flow, seat);
	if (ip->nexthdr != IPPROTO_UDP)
		return is_extension(ip->nexthdr) ? STEER_IPV6_EXTENSION : STEER_NOT_UDP;
	if ((void *)(udp + 1) > end || (*(__u8 *)ip & 0xf0) != 0x60)
		return STEER_TRUNCATED;
	if (!wanted(udp->dest))
		return STEER_PORT;
	len = bpf_ntohs(ip->payload_len);
	if (len > end - (void *)udp || bpf_ntohs(udp->len) < sizeof(*udp) || bpf_ntohs(udp->len) > len)
		return STEER_TRUNCATED;
	if (ip->saddr.s6_addr[0] == 0xff || ipv6_reserved(&ip->saddr))
		return STEER_SOURCE;
	if (ipv6_reserved(&ip->daddr))
		return STEER_ADDRESS;
	ipv6_flow(flow, ip, udp);
	return STEER_LIFT;
}

/* The arrival time, in front of the packet; without room for it the packet goes unstamped. */
static __always_inline void stamp(struct xdp_md *ctx)
{
	struct hoist_meta *meta;

	if (bpf_xdp_adjust_meta(ctx, -(int)sizeof(*meta)))
		return;
	meta = (void *)(long)ctx->data_meta;
	if ((void *)(meta + 1) <= (void *)(long)ctx->data)
		*meta = (struct hoist_meta){ HOIST_META_MAGIC, bpf_ktime_get_ns() };
}

/* One of LIFT_PARTS, the same for all packets of a flow. */
static __always_inline __u32 part_of(const struct flow_key *flow)
{
	const __u32 *words = (const void *)flow;
	__u32 hash = 0;

	for (int i = 0; i < sizeof(*flow) / sizeof(*words); i++) {
		hash = (hash ^ words[i]) * 0x9e3779b1;
		hash ^= hash >> 15;
	}
	return hash % LIFT_PARTS;
}

/* Whether the datagram is for a socket of the run; `flags` of its rule, `seat` of its process. */
static __always_inline int rule_verdict(struct flow_key *flow, __u32 *flags, __u32 *seat)
{
	struct lift_key key = {};
	struct lift_rule *rule;

	__builtin_memcpy(key.address, flow->destination, sizeof(key.address));
	key.port = flow->destination_port;
	rule = bpf_map_lookup_elem(&lift, &key);
	if (!rule)
		return STEER_ADDRESS;
	*flags = rule->flags;
	*seat = *flags & LIFT_SPREAD ? rule->seats[part_of(flow)] : rule->seat;
	if ((*flags & LIFT_ADMIT_FLOW) && !bpf_map_lookup_elem(&admitted, flow))
		return STEER_UNADMITTED;
	return STEER_LIFT;
}

SEC("xdp")
int steer(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	__u32 queue = ctx->rx_queue_index, flags = 0, seat = 0, ring;
	struct flow_key flow = {};
	struct ethhdr *eth = data;
	__u64 len = end - data;
	void *ip = eth + 1;
	int verdict, tcp = 0;

	if (ip > end)
		return count(STEER_TRUNCATED, 0);
	/* ride_in marks its frames in the group bit of the source, which no station's address has. */
	if (generic_xdp && (eth->h_source[0] & 1)) {
		eth->h_source[0] &= ~1;
		return count(STEER_RODE, 0);
	}
	if (eth->h_proto == bpf_htons(ETH_P_IP))
		verdict = ipv4_verdict(ip, end, &flow, &tcp, &seat);
	else if (eth->h_proto == bpf_htons(ETH_P_IPV6))
		verdict = ipv6_verdict(ip, end, &flow, &tcp, &seat);
	else if (eth->h_proto == bpf_htons(ETH_P_8021Q) || eth->h_proto == bpf_htons(ETH_P_8021AD))
		verdict = STEER_VLAN;
	else
		verdict = STEER_NOT_IP;
	if (verdict == STEER_LIFT)
		verdict = frame_verdict(eth, len);
	if (verdict == STEER_LIFT && !tcp)
		verdict = rule_verdict(&flow, &flags, &seat);
	ring = seat * queues + queue;
	if (verdict == STEER_LIFT && (queue >= queues || seat >= SEATS || !bpf_map_lookup_elem(&xsks, &ring)))
		verdict = STEER_NO_RING;
	if (verdict != STEER_LIFT)
		return count(verdict, 0);
	if (flags & LIFT_TIMESTAMP)
		stamp(ctx);
	count(STEER_LIFT, len);
	return bpf_redirect_map(&xsks, ring, XDP_PASS);
}

char _license[] SEC("license") = "Dual MIT/GPL";
