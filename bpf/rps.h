/* SPDX-License-Identifier: (MIT OR Apache-2.0) OR GPL-2.0 */
/* Flows of rps.bpf.c, and what it and user space agree on (crates/broker/src/rps.rs maps it as words of 64 bits). */
#ifndef HOIST_RPS_H
#define HOIST_RPS_H

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include "csum.h"
#include "maps.h"

#define RPS_BUCKETS 1024 /* of each receive queue; hoist_steering::BUCKETS */
#define RPS_DATAGRAMS 4096 /* in fragments, at a time */
#define RPS_HISTORY 4096 /* packets that a CPU took and may not be done with */
#define SURE_PACKETS 128 /* two flushes of NAPI_POLL_WEIGHT, so at least one whole */
#define CPUMAP_BATCH 8
#define RPS_META_MAGIC 0x737072747369000fULL

/* What becomes of a packet. Order is part of the contract. */
enum rps_verdict {
	RPS_SPREAD,
	RPS_HOME,      /* its bucket is here, or only watched */
	RPS_NOT_IP,
	RPS_TRUNCATED,
	RPS_QUEUE,     /* a receive queue that did not exist at the start */
	RPS_UNFILLED,  /* its checksum is still to be computed, or may be: CPUMAP would lose the note */
	RPS_NO_META,   /* no room for the number in front of it */
	RPS_VERDICTS,
};

/* `ring`: CPU + 1, or 0: home. */
struct rps_bucket {
	__u64 last; /* number of its latest packet */
	__u64 packets; /* that may go where it is aimed */
	__u64 ring;
	__u64 moves;
	__u64 kinds; /* enum rps_kind, or-ed */
};

/* Whether packets of a bucket have had a checksum. */
enum rps_kind {
	RPS_FILLED = 1,
	RPS_LEFT_OPEN = 2,
	RPS_EITHER = 3,
};

/* One CPU's. */
struct rps_ring {
	__u64 taken;    /* out of the FIFO */
	__u64 finished; /* of those, received by the stack for sure */
	__u64 before;   /* taken, at the latest turn of the thread */
	__u64 sleeps;
	__u64 dropped;  /* the FIFO was full */
	__u64 switches; /* voluntary ones of the thread, at its latest turn */
	__u64 thread;   /* its id */
};

_Static_assert(sizeof(struct rps_bucket) == 5 * sizeof(__u64), "BUCKET in rps.rs");
_Static_assert(sizeof(struct rps_ring) == 7 * sizeof(__u64), "CPU in rps.rs");

struct rps_taken {
	__u64 position;
	__u32 queue;
	__u32 jiffy;
};

struct rps_meta {
	__u64 magic;
	__u64 position;
	__u32 queue;
	__u32 cpu; /* that it was given to; the thread of one that went offline runs on another */
};

/* A datagram in fragments. */
struct rps_datagram {
	__u32 source[4], destination[4];
	__u32 id, protocol;
};

struct frag_hdr {
	__u8 nexthdr, reserved;
	__be16 frag_off;
	__be32 identification;
};

/* `l4`: where UDP or TCP begins, of unfragmented packets; else 0. */
struct rps_flow {
	__u32 words[9]; /* source, destination, ports */
	__u32 protocol;
	__u32 l4, l4_bytes;
	__u32 fragment;
};

MAP(datagrams, BPF_MAP_TYPE_LRU_HASH, struct rps_datagram, __u32, RPS_DATAGRAMS, 0);

/*
 * Fragments go with the whole datagrams of their flow: the first has the ports, and those behind it find them here. One that comes
 * before the first goes by addresses.
 */
static __always_inline int fragment_of(struct rps_flow *flow, __u32 id, int first, void *l4, void *end)
{
	struct rps_datagram datagram = { .id = id, .protocol = flow->protocol };
	__u32 *ports;

	flow->fragment = 1;
	if (flow->protocol != IPPROTO_TCP && flow->protocol != IPPROTO_UDP)
		return RPS_SPREAD;
	__builtin_memcpy(datagram.source, flow->words, 32);
	if (first) {
		if (l4 + 4 > end)
			return RPS_TRUNCATED;
		flow->words[8] = *(__u32 *)l4;
		bpf_map_update_elem(&datagrams, &datagram, &flow->words[8], BPF_ANY);
	} else {
		ports = bpf_map_lookup_elem(&datagrams, &datagram);
		if (ports)
			flow->words[8] = *ports;
	}
	return RPS_SPREAD;
}

static __always_inline int ports_of(struct rps_flow *flow, void *data, void *l4, void *end, __u32 bytes)
{
	if (flow->protocol != IPPROTO_TCP && flow->protocol != IPPROTO_UDP)
		return RPS_SPREAD;
	if (l4 + 4 > end)
		return RPS_TRUNCATED;
	flow->words[8] = *(__u32 *)l4;
	flow->l4 = l4 - data;
	flow->l4_bytes = bytes;
	return RPS_SPREAD;
}

static __always_inline int ipv4_of(struct rps_flow *flow, void *data, struct iphdr *ip, void *end)
{
	__u32 total, header, place;

	if ((void *)(ip + 1) > end || ip->version != 4 || ip->ihl < 5)
		return RPS_TRUNCATED;
	flow->words[0] = ip->saddr;
	flow->words[4] = ip->daddr;
	flow->protocol = ip->protocol;
	header = ip->ihl * 4;
	place = bpf_ntohs(ip->frag_off) & 0x3fff; /* IP_MF and offset */
	if (place)
		return fragment_of(flow, ip->id, !(place & 0x1fff), (void *)ip + header, end);
	total = bpf_ntohs(ip->tot_len);
	if (total < header)
		return RPS_TRUNCATED;
	return ports_of(flow, data, (void *)ip + header, end, total - header);
}

static __always_inline int ipv6_of(struct rps_flow *flow, void *data, struct ipv6hdr *ip, void *end)
{
	struct frag_hdr *fragment = (void *)(ip + 1);

	if ((void *)(ip + 1) > end)
		return RPS_TRUNCATED;
	__builtin_memcpy(flow->words, &ip->saddr, 32);
	flow->protocol = ip->nexthdr; /* an extension header: by addresses */
	if (ip->nexthdr == IPPROTO_FRAGMENT) {
		if ((void *)(fragment + 1) > end)
			return RPS_TRUNCATED;
		flow->protocol = fragment->nexthdr;
		return fragment_of(flow, fragment->identification, !(fragment->frag_off & bpf_htons(0xfff8)),
				   fragment + 1, end);
	}
	return ports_of(flow, data, ip + 1, end, bpf_ntohs(ip->payload_len));
}

static __always_inline int flow_of(struct xdp_md *ctx, struct rps_flow *flow)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = data;
	void *next = eth + 1;
	__be16 type;

	if (next > end)
		return RPS_TRUNCATED;
	type = eth->h_proto;
	for (int tag = 0; tag < 2; tag++) {
		if (type != bpf_htons(ETH_P_8021Q) && type != bpf_htons(ETH_P_8021AD))
			break;
		if (next + 4 > end)
			return RPS_TRUNCATED;
		type = *(__be16 *)(next + 2);
		next += 4;
	}
	if (type == bpf_htons(ETH_P_IP))
		return ipv4_of(flow, data, next, end);
	if (type == bpf_htons(ETH_P_IPV6))
		return ipv6_of(flow, data, next, end);
	return RPS_NOT_IP;
}

static __always_inline __u32 mix(__u32 hash, __u32 word)
{
	hash = (hash ^ word) * 0x9e3779b1;
	return hash ^ hash >> 15;
}

static __always_inline __u32 flow_hash(const struct rps_flow *flow, __u32 symmetric)
{
	__u32 source = 0, destination = 0, hash, ports = flow->words[8];

	for (int i = 0; i < 4; i++) {
		source = mix(source, flow->words[i]);
		destination = mix(destination, flow->words[4 + i]);
	}
	if (symmetric) {
		source = mix(source, ports & 0xffff) + mix(destination, ports >> 16);
		destination = ports = 0;
	}
	hash = mix(mix(mix(0x686f6973, source), destination), ports);
	return mix(hash, flow->protocol);
}

#define CHUNK 128

/* The sum of `bytes` from `from` on; 0 where they cannot be read. */
static __always_inline __u64 sum_of(struct xdp_md *ctx, __u32 from, __u32 bytes)
{
	__u32 chunk[CHUNK / 4];
	__u64 sum = 0;

	for (int i = 0; i < 80; i++) {
		__u32 part = bytes < CHUNK ? bytes : CHUNK;

		if (part == 0 || part > CHUNK)
			break;
		if (part < CHUNK)
			__builtin_memset(chunk, 0, sizeof(chunk));
		if (bpf_xdp_load_bytes(ctx, from, chunk, part))
			return 0;
		sum += (__u32)bpf_csum_diff(0, 0, chunk, CHUNK, 0);
		from += part;
		bytes -= part;
	}
	return sum;
}

/*
 * A local sender leaves the sum of the pseudo-header in the checksum's place and a note in the skb (CHECKSUM_PARTIAL). Of packets with
 * that sum there, one in 65,536 adds up as a whole: it may be either, and so may the flow of a fragment. Of what else a note may be about (SCTP, tunnels,
 * where UDP has no checksum) nothing can be seen.
 */
static __always_inline __u32 kind_of(struct xdp_md *ctx, const struct rps_flow *flow)
{
	__u64 pseudo = bpf_htons(flow->l4_bytes) + bpf_htons(flow->protocol);
	__u32 at = flow->l4;
	__u16 check;

	if (!at)
		return flow->fragment ? RPS_EITHER : RPS_LEFT_OPEN;
	at += flow->protocol == IPPROTO_TCP ? 16 : 6;
	if (bpf_xdp_load_bytes(ctx, at, &check, sizeof(check)) || (!check && flow->protocol == IPPROTO_UDP))
		return RPS_LEFT_OPEN;
	for (int i = 0; i < 8; i++)
		pseudo += flow->words[i];
	if (check != (__u16)~fold(pseudo))
		return RPS_FILLED;
	return fold(sum_of(ctx, flow->l4, flow->l4_bytes) + pseudo) ? RPS_LEFT_OPEN : RPS_EITHER;
}

#endif
