/* SPDX-License-Identifier: (MIT OR Apache-2.0) OR GPL-2.0 */
/*
 * What a CPU is done with: cpu_map_kthread_run takes up to CPUMAP_BATCH (8) packets, runs `arrive` on them and gives them to GRO,
 * which it flushes when the FIFO is empty, and every NAPI_POLL_WEIGHT (64) packets: then all (HZ < 1000) or what is older
 * than a jiffy. So `arrive` is sure of what was taken SURE_PACKETS and SURE_JIFFIES ago, and `turn` of all that the
 * thread took before it slept. Not right yet: `sched` of the tracepoint is 1 also when cond_resched gave the CPU away, with
 * packets in the FIFO and in GRO.
 */
#ifndef HOIST_RPS_DONE_H
#define HOIST_RPS_DONE_H

#include "maps.h"
#include "rps.h"

const volatile __u32 queues = 1;

MAP(done, BPF_MAP_TYPE_ARRAY, __u32, __u64, 1, BPF_F_MMAPABLE);
MAP(rings, BPF_MAP_TYPE_ARRAY, __u32, struct rps_ring, 1, BPF_F_MMAPABLE);
MAP(history, BPF_MAP_TYPE_ARRAY, __u32, struct rps_taken, RPS_HISTORY, 0);
MAP(identity, BPF_MAP_TYPE_ARRAY, __u32, __u32, 1, 0);

/* Up to `taken` the CPU is done with what it took; the entry may have been written over meanwhile, then by a later one. */
static __always_inline int finish(struct rps_ring *ring, __u32 cpu, __u32 jiffy, __u32 age)
{
	__u32 at = cpu * RPS_HISTORY + ring->finished % RPS_HISTORY;
	struct rps_taken *taken = bpf_map_lookup_elem(&history, &at);
	__u64 *reached;

	if (!taken || jiffy - taken->jiffy < age)
		return 0;
	at = cpu * queues + taken->queue;
	reached = bpf_map_lookup_elem(&done, &at);
	if (reached && *reached < taken->position)
		*(volatile __u64 *)reached = taken->position;
	ring->finished++;
	return 1;
}

/* What is in front of the packet; of one without a number it is position 0 of queue 0, which every queue has reached. */
static __always_inline struct rps_meta number_of(struct xdp_md *ctx)
{
	struct rps_meta *meta = (void *)(long)ctx->data_meta;

	if ((void *)(meta + 1) <= (void *)(long)ctx->data && meta->magic == RPS_META_MAGIC)
		return *meta;
	return (struct rps_meta){};
}

/* On the CPU that the packet was given to, before GRO. */
SEC("xdp/cpumap")
int arrive(struct xdp_md *ctx)
{
	struct rps_meta meta = number_of(ctx);
	__u32 cpu = bpf_get_smp_processor_id(), at, jiffy = bpf_jiffies64();
	struct rps_ring *ring = bpf_map_lookup_elem(&rings, &cpu);
	struct rps_taken *taken;

	if (!ring)
		return XDP_PASS;
	at = cpu * RPS_HISTORY + ring->taken % RPS_HISTORY;
	taken = bpf_map_lookup_elem(&history, &at);
	if (taken)
		*taken = (struct rps_taken){ meta.position, meta.queue, jiffy };
	ring->taken++;
	if (ring->taken - ring->finished > RPS_HISTORY)
		ring->finished = ring->taken - RPS_HISTORY;
	for (int i = 0; i < 2; i++)
		if (ring->taken - ring->finished <= SURE_PACKETS || !finish(ring, cpu, jiffy, SURE_JIFFIES))
			break;
	bpf_xdp_adjust_meta(ctx, ctx->data - ctx->data_meta); /* or GRO would find no two packets alike */
	return XDP_PASS;
}

static __always_inline int ours(__u64 map)
{
	__u32 zero = 0, *id = bpf_map_lookup_elem(&identity, &zero);

	return id && *id == (__u32)map;
}

static long finish_one(__u32 i, void *cpu)
{
	__u32 at = *(__u32 *)cpu;
	struct rps_ring *ring = bpf_map_lookup_elem(&rings, &at);

	return !ring || ring->finished >= ring->before || !finish(ring, at, 0, 0);
}

/* map_id, processed, drops, sched: each turn of the thread, after `arrive` and before its packets are received. */
SEC("raw_tp/xdp_cpumap_kthread")
int turn(struct bpf_raw_tracepoint_args *ctx)
{
	__u32 cpu = bpf_get_smp_processor_id();
	struct rps_ring *ring = bpf_map_lookup_elem(&rings, &cpu);

	if (!ring || !ours(ctx->args[0]))
		return 0;
	if ((int)ctx->args[3]) {
		ring->sleeps++;
		bpf_loop(RPS_HISTORY, finish_one, &cpu, 0);
	}
	ring->before = ring->taken;
	return 0;
}

/* map_id, processed, drops, to_cpu: frames that found the FIFO full. */
SEC("raw_tp/xdp_cpumap_enqueue")
int enqueue(struct bpf_raw_tracepoint_args *ctx)
{
	__u32 cpu = ctx->args[3];
	struct rps_ring *ring = bpf_map_lookup_elem(&rings, &cpu);

	if (ring && ours(ctx->args[0]) && ctx->args[2])
		__sync_fetch_and_add(&ring->dropped, (__u32)ctx->args[2]);
	return 0;
}

#endif
