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

#define STAMP_MAGIC 0x7748
#define PORTS 0x4000 /* source ports a source address carries flows on */
#define LONGEST_WAIT_NS 200000
#define LATE_NS 20000 /* a wire that fell behind further drops the backlog: veth has room for 256 frames only */

struct stamp {
	__u16 magic;
	__u32 flow;
	__u64 seq;
	__u64 time_ns;
} __attribute__((packed));

struct wire_state {
	__u64 next; /* 1/256 ns */
	__u64 sent;
	__u64 flow;
	__u64 seq;
	__u64 first_ns;
	__u64 last_ns;
	__u64 done;
	__u64 runs;
	__u64 go;
	__u64 header[9];
};

/* Constants to the verifier: the branches on them cost nothing at run time. */
const volatile __u32 ifindex;
const volatile __u64 gap; /* 1/256 ns between frames, 0: as fast as possible */
const volatile __u32 batch = 1; /* frames the kernel hands over at once, a power of two */
const volatile __u64 limit_packets; /* 0: no limit */
const volatile __u64 limit_ns;
const volatile __u64 flows = 1;
const volatile __u32 header_words; /* header bytes / 8, rounded up: the stamp is written after it */
const volatile __u32 ip_at;
const volatile __u32 is_v6;
const volatile __u32 checksummed;
const volatile __u32 ip_sum; /* of the header without check and the low half of the source address */
const volatile __u32 udp_sum; /* of pseudo header, header, payload without what varies */
const volatile __u16 first_port;
const volatile __u16 first_low; /* low 16 bits of the first source address */
const volatile __u16 other_low; /* the base of those that further flows come from */

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct wire_state);
} state SEC(".maps");

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

static __always_inline __u16 fold(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

static __always_inline __u64 halves(__u64 value)
{
	return (value & 0xffffffff) + (value >> 32);
}

static long has_come(__u32 i, __u64 *until)
{
	return bpf_ktime_get_ns() >= *until;
}

/*
 * true when the next batch's slot has come; takes it. Waits in here: a frame dropped while waiting goes back to the page
 * pool, whose lock the receiver needs for every frame. Not for long: softirqs of this CPU wait meanwhile.
 */
static __always_inline int slot(struct wire_state *s, __u64 now)
{
	__u64 until = s->next >> 8;

	if (now < until) {
		if (until - now > LONGEST_WAIT_NS)
			until = now + LONGEST_WAIT_NS;
		bpf_loop(1 << 20, has_come, &until, 0);
		now = bpf_ktime_get_ns();
	}
	if (now << 8 < s->next)
		return 0;
	if ((now << 8) - s->next > (__u64)LATE_NS << 8)
		s->next = now << 8;
	s->next += gap * batch;
	return 1;
}

/* true when this frame may go; only the first of a batch waits, for the kernel wakes the other end after the last */
static __always_inline int due(struct wire_state *s, __u64 now)
{
	if (!gap)
		return 1;
	if (!(s->runs++ & (batch - 1)))
		s->go = slot(s, now);
	return s->go;
}

static __always_inline void next_flow(struct wire_state *s)
{
	s->flow++;
	if (s->flow >= flows) {
		s->flow = 0;
		s->seq++;
	}
}

static __always_inline int fill(struct xdp_md *ctx, struct wire_state *s, __u64 now)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	__u32 udp_at = ip_at + (is_v6 ? 40 : 20);
	__u16 low = s->flow < PORTS ? first_low : other_low + (s->flow / PORTS);
	__u16 port = bpf_htons(first_port + (s->flow & (PORTS - 1)));
	struct stamp *stamp;
	__u64 sum;

	if (data + udp_at + 8 + sizeof(*stamp) > end || data + header_words * 8 > end)
		return 0;
#pragma unroll
	for (int i = 0; i < 9; i++)
		if (i < header_words)
			((__u64 *)data)[i] = s->header[i];
	low = bpf_htons(low);
	if (is_v6) {
		*(__u16 *)(data + ip_at + 22) = low;
	} else {
		*(__u16 *)(data + ip_at + 14) = low;
		*(__u16 *)(data + ip_at + 10) = fold(ip_sum + low);
	}
	*(__u16 *)(data + udp_at) = port;
	stamp = data + udp_at + 8;
	stamp->magic = STAMP_MAGIC;
	stamp->flow = s->flow;
	stamp->seq = s->seq;
	stamp->time_ns = now;
	if (!checksummed)
		return 1;
	sum = (__u64)udp_sum + low + port + STAMP_MAGIC + s->flow + halves(s->seq) + halves(now);
	*(__u16 *)(data + udp_at + 6) = fold(sum) ?: 0xffff;
	return 1;
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
	if (!due(s, now))
		return XDP_DROP;
	now = bpf_ktime_get_ns();
	if (!fill(ctx, s, now))
		return XDP_ABORTED;
	next_flow(s);
	s->sent++;
	s->last_ns = now;
	return bpf_redirect(ifindex, 0);
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
