// SPDX-License-Identifier: (MIT OR Apache-2.0) OR GPL-2.0-only
/*
 * rps: spreads the Linux stack over CPUs by CPUMAP. Flows hash to buckets, user space aims each bucket at a CPU, and a bucket
 * follows its aim once the CPU that has it is done with its last packet. So no packet overtakes another of its bucket.
 *
 * Packets are numbered for each receive queue and CPU: one NAPI instance at a time serves a queue, and a CPUMAP entry is a
 * FIFO, so numbers arrive in order. A number travels in front of its packet as metadata.
 */
#include <linux/bpf.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include "maps.h"
#include "rps.h"
#include "rps_done.h"

const volatile __u32 observe = 0;   /* count only */
const volatile __u32 symmetric = 0; /* both directions of a flow in one bucket */
const volatile __u32 unfilled = 0;  /* the device may bring packets without a checksum: veth */
const volatile __u32 heedless = 0;  /* for tests: buckets move at once */

MAP(cpus, BPF_MAP_TYPE_CPUMAP, __u32, struct bpf_cpumap_val, 1, 0);
MAP(aims, BPF_MAP_TYPE_ARRAY, __u32, __u64, RPS_BUCKETS, BPF_F_MMAPABLE);
MAP(buckets, BPF_MAP_TYPE_ARRAY, __u32, struct rps_bucket, RPS_BUCKETS, BPF_F_MMAPABLE);
MAP(given, BPF_MAP_TYPE_ARRAY, __u32, __u64, 1, BPF_F_MMAPABLE);
MAP(verdicts, BPF_MAP_TYPE_PERCPU_ARRAY, __u32, __u64, RPS_VERDICTS, 0);

static __always_inline int count(__u32 verdict)
{
	__u64 *n = bpf_map_lookup_elem(&verdicts, &verdict);

	if (n)
		++*n;
	return XDP_PASS;
}

/*
 * Packets without a checksum stay here, those that may be either go as the bucket's others did, and a bucket with both goes home: a
 * flow is never in two places.
 */
static __always_inline int stays(struct xdp_md *ctx, const struct rps_flow *flow, struct rps_bucket *bucket)
{
	__u32 kind = kind_of(ctx, flow);

	if (kind != RPS_EITHER)
		bucket->kinds |= kind;
	return kind == RPS_LEFT_OPEN || (kind == RPS_EITHER && !(bucket->kinds & RPS_FILLED));
}

/* Where a packet of the bucket goes, CPU + 1, or 0: it stays here. */
static __always_inline __u64 place(struct rps_bucket *bucket, __u32 queue, __u64 aim)
{
	if (bucket->ring == aim)
		return aim;
	if (bucket->ring && !heedless) {
		__u32 at = (bucket->ring - 1) * queues + queue;
		__u64 *reached = bpf_map_lookup_elem(&done, &at);

		if (!reached || *(volatile __u64 *)reached < bucket->last)
			return bucket->ring;
	}
	bucket->moves++;
	return bucket->ring = aim;
}

/* Room for the number, and for nothing else: a frame may come with metadata (drivers; frames that a generator uses again). */
static __always_inline int make_room(struct xdp_md *ctx)
{
	int there = ctx->data - ctx->data_meta;

	return !bpf_xdp_adjust_meta(ctx, there - (int)sizeof(struct rps_meta));
}

static __always_inline void number(struct xdp_md *ctx, __u32 queue, __u32 cpu, __u64 position)
{
	struct rps_meta *meta = (void *)(long)ctx->data_meta;

	if ((void *)(meta + 1) <= (void *)(long)ctx->data)
		*meta = (struct rps_meta){ RPS_META_MAGIC, position, queue, cpu };
}

SEC("xdp")
int rps(struct xdp_md *ctx)
{
	__u32 queue = ctx->rx_queue_index, slot, at, mixed;
	struct rps_flow flow = {};
	struct rps_bucket *bucket;
	__u64 *aim, *position;
	int verdict = flow_of(ctx, &flow), room;

	if (verdict != RPS_SPREAD)
		return count(verdict);
	if (queue >= queues)
		return count(RPS_QUEUE);
	slot = flow_hash(&flow, symmetric) % RPS_BUCKETS;
	aim = bpf_map_lookup_elem(&aims, &slot);
	slot += queue * RPS_BUCKETS;
	bucket = bpf_map_lookup_elem(&buckets, &slot);
	if (!aim || !bucket)
		return count(RPS_QUEUE);
	if (unfilled && stays(ctx, &flow, bucket))
		return count(RPS_UNFILLED);
	mixed = bucket->kinds == RPS_EITHER;
	if (!mixed)
		bucket->packets++;
	if (observe)
		return count(mixed ? RPS_UNFILLED : RPS_HOME);
	room = make_room(ctx);
	if (!room && !bucket->ring)
		return count(RPS_NO_META);
	at = place(bucket, queue, mixed ? 0 : *(volatile __u64 *)aim);
	if (!at) {
		bpf_xdp_adjust_meta(ctx, ctx->data - ctx->data_meta);
		return count(mixed ? RPS_UNFILLED : RPS_HOME);
	}
	slot = --at;
	at = at * queues + queue;
	position = bpf_map_lookup_elem(&given, &at);
	if (!position)
		return count(RPS_HOME);
	bucket->last = ++*position;
	if (room)
		number(ctx, queue, slot, *position); /* without, it is known to be done when a later one is */
	count(RPS_SPREAD);
	return bpf_redirect_map(&cpus, slot, XDP_PASS);
}

char _license[] SEC("license") = "Dual MIT/GPL";
