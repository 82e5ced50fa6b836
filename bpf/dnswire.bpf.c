// SPDX-License-Identifier: (MIT OR Apache-2.0) OR GPL-2.0
/*
 * The DNS wire: queries made by BPF_PROG_TEST_RUN with live frames and redirected out of va (as bpf/wire.bpf.c makes datagrams),
 * and their answers, judged and dropped as they leave vb: no client and no second stack is the limit.
 *
 * Every query asks for the address of hostsNN; NN, the id and the source port vary. A right answer repeats the question, has
 * rcode 0 and one record, and that is 192.0.2.NN.
 */
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_endian.h>
#include "pace.h"

#define UDP_AT 34
#define DNS_AT 42
#define DIGITS_AT (DNS_AT + 18) /* NN, after the header, a length, "hosts" */
#define WORDS 10
#define NAMES 100

struct dns_state {
	struct pace pace;
	__u64 sent;
	__u64 first_ns;
	__u64 last_ns;
	__u64 done;
};

struct dns_counts {
	__u64 right; /* while queries were sent */
	__u64 late; /* right, but afterwards */
	__u64 wrong;
};

/* The part of an answer that is judged, from the id on. */
struct answer {
	__be16 id, flags, questions, records, authority, additional;
	__u8 question[26]; /* 7 hosts N N 7 example 4 test 0, type A, class IN */
	__be16 name, type, class;
	__be32 ttl;
	__be16 length;
	__u8 address[4];
} __attribute__((packed));

const volatile __u32 ifindex;
const volatile __u64 limit_ns;
const volatile __u32 flows = 1;
const volatile __u16 first_port;
const volatile __u16 server_port;
const volatile __u32 udp_sum; /* of pseudo header, header and payload without what varies */
const volatile __u64 query[WORDS]; /* the frame without what varies */

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct dns_state);
} state SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct dns_counts);
} counts SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096);
} done SEC(".maps");

static __always_inline __u16 fold(__u32 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

static __always_inline int fill(struct xdp_md *ctx, __u64 number)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	__u16 id = number, port = bpf_htons(first_port + number % flows);
	__u32 name = number % NAMES;
	__u16 digits = bpf_htons(('0' + name / 10) << 8 | ('0' + name % 10));

	if (data + WORDS * 8 > end)
		return 0;
#pragma unroll
	for (int i = 0; i < WORDS; i++)
		((__u64 *)data)[i] = query[i];
	*(__u16 *)(data + UDP_AT) = port;
	*(__u16 *)(data + DNS_AT) = id;
	*(__u16 *)(data + DIGITS_AT) = digits;
	*(__u16 *)(data + UDP_AT + 6) = fold(udp_sum + port + id + digits) ?: 0xffff;
	return 1;
}

SEC("xdp")
int queries(struct xdp_md *ctx)
{
	__u32 zero = 0;
	struct dns_state *s = bpf_map_lookup_elem(&state, &zero);
	__u64 now;

	if (!s || s->done)
		return XDP_DROP;
	now = bpf_ktime_get_ns();
	if (!s->first_ns)
		s->first_ns = now;
	if (now - s->first_ns >= limit_ns) {
		s->done = 1;
		bpf_ringbuf_output(&done, &s->sent, sizeof(s->sent), BPF_RB_FORCE_WAKEUP);
		return XDP_DROP;
	}
	if (!due(&s->pace, now))
		return XDP_DROP;
	if (!fill(ctx, s->sent))
		return XDP_ABORTED;
	s->sent++;
	s->last_ns = now;
	return bpf_redirect(ifindex, 0);
}

static __always_inline int is_right(const struct answer *a)
{
	__u8 tens = a->question[6] - '0', ones = a->question[7] - '0';

	return (a->flags & bpf_htons(0x800f)) == bpf_htons(0x8000) && a->questions == bpf_htons(1) &&
	       a->records == bpf_htons(1) && a->type == bpf_htons(1) && a->length == bpf_htons(4) && tens < 10 && ones < 10 &&
	       a->address[0] == 192 && a->address[1] == 0 && a->address[2] == 2 && a->address[3] == tens * 10 + ones;
}

SEC("classifier")
int answers(struct __sk_buff *skb)
{
	__u32 zero = 0;
	struct dns_counts *c = bpf_map_lookup_elem(&counts, &zero);
	struct dns_state *s = bpf_map_lookup_elem(&state, &zero);
	void *data, *end;
	struct answer *a;

	bpf_skb_pull_data(skb, DNS_AT + sizeof(*a));
	data = (void *)(long)skb->data;
	end = (void *)(long)skb->data_end;
	if (!c || !s || data + DNS_AT > end || skb->protocol != bpf_htons(0x0800) || *(__u8 *)(data + 23) != 17 ||
	    *(__be16 *)(data + UDP_AT) != bpf_htons(server_port))
		return TC_ACT_UNSPEC;
	a = data + DNS_AT;
	if ((void *)(a + 1) > end || !is_right(a))
		__sync_fetch_and_add(&c->wrong, 1);
	else if (s->done)
		__sync_fetch_and_add(&c->late, 1);
	else
		__sync_fetch_and_add(&c->right, 1);
	return TC_ACT_SHOT; /* no error to the server: udp_send_skb forgives it */
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
