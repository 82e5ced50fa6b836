// SPDX-License-Identifier: (MIT OR Apache-2.0) OR GPL-2.0
/*
 * The wire: UDP frames made by BPF_PROG_TEST_RUN with live frames and redirected out of va.
 *
 * Pages come from a page pool and change hands by pointer, as a NIC hands over DMA buffers. One long
 * run is paced in here, because each run costs some 25 ms of set-up. Headers are written anew for every
 * frame: the pages are recycled, and the receiving stack rewrites them (skb_vlan_untag moves the MACs).
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_endian.h>
#include "csum.h"
#include "wire.h"

#define STAMP_MAGIC 0x7748

struct stamp {
	__u16 magic;
	__u32 flow;
	__u64 seq;
	__u64 time_ns;
} __attribute__((packed));

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096);
} done SEC(".maps");

static __always_inline int finish(struct wire_state *s)
{
	s->done = 1;
	bpf_ringbuf_output(&done, &s->sent, sizeof(s->sent), BPF_RB_FORCE_WAKEUP);
	return XDP_DROP;
}

static __always_inline __u64 halves(__u64 value)
{
	return (value & 0xffffffff) + (value >> 32);
}

static __always_inline int fill(struct xdp_md *ctx, struct wire_state *s, const struct pick *pick, __u64 now)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	const __u64 *header = pick->is_short ? s->short_header : s->header;
	__u32 udp_at = ip_at + (is_v6 ? 40 : 20);
	struct place place = place_of(pick->flow);
	__u16 low = bpf_htons(place.sender ? other_low + place.sender : first_low);
	__u16 port = bpf_htons(first_port + place.port);
	__u16 target = bpf_htons(target_port + place.receiver);
	struct stamp *stamp;
	__u64 sum;

	if (data + udp_at + 8 + sizeof(*stamp) > end || data + header_words * 8 > end)
		return 0;
#pragma unroll
	for (int i = 0; i < HEADER_WORDS; i++)
		if (i < header_words)
			((__u64 *)data)[i] = header[i];
	if (is_v6) {
		*(__u16 *)(data + ip_at + 22) = low;
	} else {
		*(__u16 *)(data + ip_at + 14) = low;
		*(__u16 *)(data + ip_at + 10) = fold((pick->is_short ? short_ip_sum : ip_sum) + low);
	}
	*(__u16 *)(data + udp_at) = port;
	*(__u16 *)(data + udp_at + 2) = target;
	stamp = data + udp_at + 8;
	stamp->magic = STAMP_MAGIC;
	stamp->flow = pick->flow;
	stamp->seq = pick->seq;
	stamp->time_ns = now;
	if (!checksummed)
		return 1;
	sum = (__u64)(pick->is_short ? short_udp_sum : udp_sum) + low + port + target;
	sum += (__u64)STAMP_MAGIC + pick->flow + halves(pick->seq) + halves(now);
	*(__u16 *)(data + udp_at + 6) = fold(sum) ?: 0xffff;
	return 1;
}

static __always_inline int send(struct xdp_md *ctx, struct wire_state *s, __u64 now)
{
	struct pick pick = {};

	if (!choose(s, &pick))
		return XDP_ABORTED;
	if (shrink && pick.is_short && bpf_xdp_adjust_tail(ctx, -(int)shrink))
		return XDP_ABORTED;
	if (!fill(ctx, s, &pick, now))
		return XDP_ABORTED;
	s->sent++;
	s->last_ns = now;
	return bpf_redirect(ifindex, 0);
}

SEC("xdp")
int wire(struct xdp_md *ctx)
{
	__u32 zero = 0;
	struct wire_state *s = bpf_map_lookup_elem(&state, &zero);
	__u64 now;

	if (!s || s->done)
		return XDP_DROP;
	if (limit_packets && s->sent >= limit_packets)
		return finish(s);
	now = bpf_ktime_get_ns();
	if (!s->first_ns)
		s->first_ns = now;
	if (limit_ns && now - s->first_ns >= limit_ns)
		return finish(s);
	if (!due(&s->pace, now))
		return XDP_DROP;
	return send(ctx, s, bpf_ktime_get_ns());
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
