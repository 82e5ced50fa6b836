// SPDX-License-Identifier: (MIT OR Apache-2.0) OR GPL-2.0-only
/*
 * rps: spreads the Linux stack over CPUs by CPUMAP. Flows hash to buckets, user space aims each bucket at a CPU, and a bucket
 * follows its aim once the CPU that has it is done with its last packet. So no packet overtakes another of its flow.
 *
 * Packets are numbered for each receive queue and CPU: one NAPI instance at a time serves a queue, and a CPUMAP entry is a
 * FIFO, so numbers arrive in order. A number travels in front of its packet as metadata.
 *
 * What a CPU is done with: cpu_map_kthread_run takes up to CPUMAP_BATCH (8) packets, runs `arrive` on them and gives them to GRO,
 * which it flushes when the FIFO is empty, and every NAPI_POLL_WEIGHT (64) packets: then all (HZ < 1000) or what is older
 * than a jiffy. So `arrive` is sure of what was taken SURE_PACKETS and SURE_JIFFIES ago, and `turn`, which sees that
 * the thread slept, of all that it took before.
 */
#include <linux/bpf.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include "maps.h"
#include "rps.h"

const volatile __u32 queues = 1;
const volatile __u32 observe = 0;   /* count only */
const volatile __u32 symmetric = 0; /* both directions of a flow in one bucket */
const volatile __u32 unfilled = 0;  /* the device may bring packets without a checksum: veth */
const volatile __u32 heedless = 0;  /* for tests: buckets move at once */

MAP(cpus, BPF_MAP_TYPE_CPUMAP, __u32, struct bpf_cpumap_val, 1, 0);
MAP(aims, BPF_MAP_TYPE_ARRAY, __u32, __u64, RPS_BUCKETS, BPF_F_MMAPABLE);
MAP(buckets, BPF_MAP_TYPE_ARRAY, __u32, struct rps_bucket, RPS_BUCKETS, BPF_F_MMAPABLE);
MAP(given, BPF_MAP_TYPE_ARRAY, __u32, __u64, 1, BPF_F_MMAPABLE);
MAP(done, BPF_MAP_TYPE_ARRAY, __u32, __u64, 1, BPF_F_MMAPABLE);
MAP(rings, BPF_MAP_TYPE_ARRAY, __u32, struct rps_ring, 1, BPF_F_MMAPABLE);
MAP(history, BPF_MAP_TYPE_ARRAY, __u32, struct rps_taken, RPS_HISTORY, 0);
MAP(verdicts, BPF_MAP_TYPE_PERCPU_ARRAY, __u32, __u64, RPS_VERDICTS, 0);
MAP(identity, BPF_MAP_TYPE_ARRAY, __u32, __u32, 1, 0);

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
	return kind == RPS_LEFT_OPEN || (kind == RPS_EITHER && bucket->kinds == RPS_LEFT_OPEN);
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

static __always_inline int number(struct xdp_md *ctx, __u32 queue, __u64 position)
{
	struct rps_meta *meta;

	if (bpf_xdp_adjust_meta(ctx, -(int)sizeof(*meta)))
		return 0;
	meta = (void *)(long)ctx->data_meta;
	if ((void *)(meta + 1) > (void *)(long)ctx->data)
		return 0;
	*meta = (struct rps_meta){ RPS_META_MAGIC, position, queue, 0 };
	return 1;
}

SEC("xdp")
int rps(struct xdp_md *ctx)
{
	__u32 queue = ctx->rx_queue_index, slot, at;
	struct rps_flow flow = {};
	struct rps_bucket *bucket;
	__u64 *aim, *position;
	int verdict = flow_of(ctx, &flow);

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
	bucket->packets++;
	if (observe)
		return count(RPS_HOME);
	if (unfilled && stays(ctx, &flow, bucket))
		return count(RPS_UNFILLED);
	at = place(bucket, queue, bucket->kinds == RPS_EITHER ? 0 : *(volatile __u64 *)aim);
	if (!at)
		return count(RPS_HOME);
	slot = --at;
	at = at * queues + queue;
	position = bpf_map_lookup_elem(&given, &at);
	if (!position || !number(ctx, queue, *position + 1))
		return count(RPS_NO_META);
	bucket->last = ++*position;
	count(RPS_SPREAD);
	return bpf_redirect_map(&cpus, slot, XDP_PASS);
}

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
	if (reached)
		*(volatile __u64 *)reached = taken->position;
	ring->finished++;
	return 1;
}

/* On the CPU that the packet was given to, before GRO. */
SEC("xdp/cpumap")
int arrive(struct xdp_md *ctx)
{
	struct rps_meta *meta = (void *)(long)ctx->data_meta;
	__u32 cpu = bpf_get_smp_processor_id(), at, jiffy = bpf_jiffies64();
	struct rps_ring *ring = bpf_map_lookup_elem(&rings, &cpu);
	struct rps_taken *taken;

	if (!ring || (void *)(meta + 1) > (void *)(long)ctx->data || meta->magic != RPS_META_MAGIC)
		return XDP_PASS;
	at = cpu * RPS_HISTORY + ring->taken % RPS_HISTORY;
	taken = bpf_map_lookup_elem(&history, &at);
	if (taken)
		*taken = (struct rps_taken){ meta->position, meta->queue, jiffy };
	ring->taken++;
	if (ring->taken - ring->finished > RPS_HISTORY)
		ring->finished = ring->taken - RPS_HISTORY;
	for (int i = 0; i < 2; i++)
		if (ring->taken - ring->finished <= SURE_PACKETS || !finish(ring, cpu, jiffy, SURE_JIFFIES))
			break;
	bpf_xdp_adjust_meta(ctx, sizeof(*meta)); /* or GRO would find no two packets alike */
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

char _license[] SEC("license") = "Dual MIT/GPL";
