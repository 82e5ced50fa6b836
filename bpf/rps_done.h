/* SPDX-License-Identifier: (MIT OR Apache-2.0) OR GPL-2.0 */
/*
 * What a CPU is done with: cpu_map_kthread_run takes up to CPUMAP_BATCH packets, runs `arrive` on them and gives them to GRO, which it
 * flushes when the FIFO is empty, and every NAPI_POLL_WEIGHT (64) packets: then all (HZ < 1000) or what is older than a jiffy.
 *
 * So `turn` is sure of all that the thread took before it slept, for it sleeps on an empty FIFO only. `sched` of the tracepoint is 1 also when
 * cond_resched gave the CPU away, with packets in the FIFO and in GRO; that is no voluntary switch. And `arrive` is sure of a packet when
 * SURE_PACKETS came in jiffies later than the one in which it was received.
 */
#ifndef HOIST_RPS_DONE_H
#define HOIST_RPS_DONE_H

#include <bpf/bpf_core_read.h>
#include "maps.h"
#include "rps.h"

const volatile __u32 queues = 1;

MAP(done, BPF_MAP_TYPE_ARRAY, __u32, __u64, 1, BPF_F_MMAPABLE);
MAP(rings, BPF_MAP_TYPE_ARRAY, __u32, struct rps_ring, 1, BPF_F_MMAPABLE);
MAP(history, BPF_MAP_TYPE_ARRAY, __u32, struct rps_taken, RPS_HISTORY, 0);
MAP(identity, BPF_MAP_TYPE_ARRAY, __u32, __u32, 1, 0);

static __always_inline struct rps_taken *taken_at(__u32 cpu, __u64 place)
{
	__u32 at = cpu * RPS_HISTORY + place % RPS_HISTORY;

	return bpf_map_lookup_elem(&history, &at);
}

/* The CPU is done with one more of those it took. The entry may have been written over meanwhile, then by a later one. */
static __always_inline int finish(struct rps_ring *ring, __u32 cpu)
{
	struct rps_taken *taken = taken_at(cpu, ring->finished);
	__u64 *reached;
	__u32 at;

	if (!taken)
		return 0;
	at = cpu * queues + taken->queue;
	reached = bpf_map_lookup_elem(&done, &at);
	if (reached && *reached < taken->position)
		*(volatile __u64 *)reached = taken->position;
	ring->finished++;
	return 1;
}

/* A batch after it, it was received; SURE_PACKETS ago a later jiffy had begun. */
static __always_inline int aged(struct rps_ring *ring, __u32 cpu)
{
	struct rps_taken *received, *later;

	if (ring->taken - ring->finished <= SURE_PACKETS + CPUMAP_BATCH)
		return 0;
	received = taken_at(cpu, ring->finished + CPUMAP_BATCH);
	later = taken_at(cpu, ring->taken - SURE_PACKETS);
	return received && later && (__s32)(later->jiffy - received->jiffy) > 0;
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
	__u32 cpu = bpf_get_smp_processor_id(), jiffy = bpf_jiffies64();
	struct rps_ring *ring = bpf_map_lookup_elem(&rings, &cpu);
	struct rps_taken *taken;

	if (ring && (!meta.magic || meta.cpu == cpu)) {
		taken = taken_at(cpu, ring->taken);
		if (taken)
			*taken = (struct rps_taken){ meta.position, meta.queue, jiffy };
		ring->taken++;
		if (ring->taken - ring->finished > RPS_HISTORY)
			ring->finished = ring->taken - RPS_HISTORY;
		for (int i = 0; i < 2; i++)
			if (!aged(ring, cpu) || !finish(ring, cpu))
				break;
	}
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

	return !ring || ring->finished >= ring->before || !finish(ring, at);
}

struct task_struct {
	unsigned long nvcsw;
} __attribute__((preserve_access_index));

/* Times that the running thread has slept. */
static __always_inline __u64 switches(void)
{
	struct task_struct *task = (void *)bpf_get_current_task();

	return BPF_CORE_READ(task, nvcsw);
}

/* map_id, processed, drops, sched: each turn of the thread, after `arrive` and before its packets are received. */
SEC("raw_tp/xdp_cpumap_kthread")
int turn(struct bpf_raw_tracepoint_args *ctx)
{
	__u32 cpu = bpf_get_smp_processor_id(), thread = bpf_get_current_pid_tgid();
	struct rps_ring *ring = bpf_map_lookup_elem(&rings, &cpu);
	__u64 now = switches();

	if (!ring || !ours(ctx->args[0]))
		return 0;
	if (!ring->thread)
		ring->thread = thread;
	if (ring->thread != thread)
		return 0; /* of a CPU that is offline */
	if ((int)ctx->args[3] && now != ring->switches) {
		ring->sleeps++;
		bpf_loop(RPS_HISTORY, finish_one, &cpu, 0);
	}
	ring->switches = now;
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
