// SPDX-License-Identifier: (MIT OR Apache-2.0) OR GPL-2.0
/*
 * The TCP wire: fills connections that the kernel has opened, as fast as their receiver acknowledges.
 *
 * tcpwire  makes the segments, on live frames redirected out of va (see wire.bpf.c)
 * absorb   reads and drops the pure ACKs where they leave vb: what a NIC's transmission costs, and no
 *          wake-up of the wire's CPU
 * consumed counts what NAPI of vb takes from the veth ring, whoever runs it and whatever becomes of it
 * dropped  counts what the ring had no room for
 *
 * Waits happen at the start of a batch only: devmap kicks NAPI at the end of one. They happen in here,
 * because returning XDP_DROP contends with the receiver for the page pool.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_tracing.h>
#include "csum.h"

#define HEADER_WORDS 11
#define MAX_PAYLOAD 4096
#define TIMESTAMP 0x0a080101 /* NOP, NOP, kind 8, length 10, as every Linux writes it */
#define RING_LIMIT 240 /* VETH_RING_SIZE 256, less what ptr_ring hands back late (16) */
#define STUCK_NS 200000000ULL
#define DELACK_NS 60000000ULL /* a lone segment's ACK may take TCP_DELACK_MIN (40 ms) */
#define WAIT_NS 500000ULL /* the longest wait with softirqs off */
#define LATE_NS 2000000ULL /* a paced wire that fell behind further drops the backlog */
#define WAIT_TURNS (1 << 16)
#define ACCESS(x) (*(volatile typeof(x) *)&(x))

enum { NEXT = -1, DROP = 2 }; /* TCX_NEXT and TCX_DROP of newer headers */
enum { NOTHING, RING, WINDOW, PACE, REASONS };
enum { FILLING, CLOSED, KERNELS };

struct connection {
	/* from the receiver's ACKs; positions are bytes of the stream */
	__u64 acked;
	__u64 edge; /* of the window */
	__u64 acks;
	__u32 ack; /* the last acknowledgement number */
	__u32 echo; /* the receiver's last timestamp, in network order */
	__u32 state;
	__u32 window_scale;
	__u64 zero[3];
	/* the sender's */
	__u64 next;
	__u64 furthest;
	__u64 last_acked;
	__u64 progress_ns;
	__u32 sequence; /* the sequence number of stream byte 0 */
	__u32 sum; /* of pseudo header, header, payload without what varies */
	__u64 timestamp_base; /* milliseconds at CLOCK_MONOTONIC 0: the kernel has one for each pair of ends */
	__u64 mark; /* sender.emitted after its last segment */
	__u64 header[HEADER_WORDS];
	__u64 apart[6];
};

struct sender {
	__u64 runs;
	__u64 emitted; /* frames given to the ring, ours or, as far as they are noticed, others' */
	__u64 segments;
	__u64 go_backs;
	__u64 first_ns;
	__u64 last_ns;
	__u64 next_ns; /* 1/256 ns */
	__u64 taken; /* what was consumed when the ring was last seen to move, */
	__u64 moved_ns; /* and when */
	__u64 blocked_ns[REASONS];
	__u32 cursor;
	__u32 current;
	__u32 burst; /* segments of this batch */
	__u32 now_ms;
	__u32 complete; /* connections seen complete in a row */
	__u32 ending;
	__u64 done;
};

struct ring {
	__u64 consumed;
	__u64 zero[7];
	__u64 dropped;
};

const volatile __u32 wire_ifindex;
const volatile __u32 wire_net; /* inode of the network namespace */
const volatile __u32 host_ifindex;
const volatile __u32 host_net;
const volatile __u32 connections_used = 1;
const volatile __u32 is_v6;
const volatile __u32 has_timestamps;
const volatile __u32 mss = 1448;
const volatile __u32 batch = 64;
const volatile __u32 most_burst = 64;
const volatile __u32 cold;
const volatile __u64 cap;
const volatile __u64 gap; /* 1/256 ns a segment, 0: as fast as possible */
const volatile __u64 limit_bytes; /* a connection, 0: no limit */
const volatile __u64 limit_ns;
const volatile __u64 patience_ns = 20000000; /* without an ACK, before it is sent again */
const volatile __u16 host_port;

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 256);
	__type(key, __u32);
	__type(value, struct connection);
} connections SEC(".maps");

struct { /* by the wire's port: 1 + index of the connection */
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 65536);
	__type(key, __u32);
	__type(value, __u32);
} ports SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct sender);
} sender SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct ring);
} ring SEC(".maps");

struct { /* non-zero: no new data, end when all is acknowledged */
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} stop SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u8[MAX_PAYLOAD]);
} payload SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096);
} done SEC(".maps");

static const __u32 zero;

/* What back-pressure needs to know of a NAPI instance and a device. */
struct ns_common {
	unsigned int inum;
} __attribute__((preserve_access_index));
struct net {
	struct ns_common ns;
} __attribute__((preserve_access_index));
typedef struct {
	struct net *net;
} __attribute__((preserve_access_index)) possible_net_t;
struct net_device {
	int ifindex;
	possible_net_t nd_net;
} __attribute__((preserve_access_index));
struct napi_struct {
	struct net_device *dev;
} __attribute__((preserve_access_index));

SEC("tp_btf/napi_poll")
int BPF_PROG(consumed, struct napi_struct *napi, int work)
{
	struct ring *r = bpf_map_lookup_elem(&ring, &zero);
	struct net_device *dev = napi->dev;

	if (!r || !dev || work <= 0 || dev->ifindex != host_ifindex || dev->nd_net.net->ns.inum != host_net)
		return 0;
	__sync_fetch_and_add(&r->consumed, work);
	return 0;
}

SEC("tp_btf/xdp_devmap_xmit")
int BPF_PROG(dropped, const struct net_device *from, const struct net_device *to, int sent, int drops)
{
	struct ring *r = bpf_map_lookup_elem(&ring, &zero);

	if (!r || drops <= 0 || to->ifindex != wire_ifindex || to->nd_net.net->ns.inum != wire_net)
		return 0;
	__sync_fetch_and_add(&r->dropped, drops);
	return 0;
}

/* The TCP header of a segment without payload from the host's port, or none. */
static __always_inline struct tcphdr *pure(void *data, void *end, __u32 *flags)
{
	struct ethhdr *eth = data;
	struct tcphdr *tcp;
	__u32 length;

	if (is_v6) {
		struct ipv6hdr *ip = data + sizeof(*eth);

		tcp = (void *)(ip + 1);
		if ((void *)(tcp + 1) > end || eth->h_proto != bpf_htons(ETH_P_IPV6) || ip->nexthdr != IPPROTO_TCP)
			return 0;
		length = bpf_ntohs(ip->payload_len);
	} else {
		struct iphdr *ip = data + sizeof(*eth);

		tcp = (void *)(ip + 1);
		if ((void *)(tcp + 1) > end || eth->h_proto != bpf_htons(ETH_P_IP) || ip->ihl != 5 ||
		    ip->protocol != IPPROTO_TCP)
			return 0;
		length = bpf_ntohs(ip->tot_len) - 20;
	}
	if (tcp->source != host_port)
		return 0;
	*flags = ((__u8 *)tcp)[13];
	return length == tcp->doff * 4 || *flags & 5 ? tcp : 0;
}

static __always_inline void learn(struct connection *c, struct tcphdr *tcp, void *end)
{
	__u32 *options = (void *)(tcp + 1);
	__u32 ack = bpf_ntohl(tcp->ack_seq), more = ack - c->ack;
	__u64 acked = c->acked + more;

	if (has_timestamps && (void *)(options + 3) <= end && options[0] == TIMESTAMP)
		ACCESS(c->echo) = options[1];
	c->acks++;
	if ((__s32)more < 0)
		return;
	c->ack = ack;
	ACCESS(c->acked) = acked;
	ACCESS(c->edge) = acked + ((__u64)bpf_ntohs(tcp->window) << (c->window_scale & 15));
}

SEC("classifier")
int absorb(struct __sk_buff *skb)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct connection *c;
	struct tcphdr *tcp;
	__u32 flags, port, *found;

	tcp = pure(data, end, &flags);
	if (!tcp)
		return NEXT;
	port = bpf_ntohs(tcp->dest);
	found = bpf_map_lookup_elem(&ports, &port);
	if (!found || !*found)
		return NEXT;
	port = *found - 1;
	c = bpf_map_lookup_elem(&connections, &port);
	if (!c || c->state != FILLING)
		return NEXT;
	if (flags & 7) { /* FIN, SYN, RST: the receiver wants no more */
		ACCESS(c->state) = CLOSED;
		return NEXT;
	}
	learn(c, tcp, end);
	return DROP;
}

/* Frames in the veth ring that NAPI has not taken. */
static __always_inline __u64 waiting(struct sender *s, __u64 now)
{
	struct ring *r = bpf_map_lookup_elem(&ring, &zero);
	__u64 taken;

	if (!r)
		return 0;
	taken = ACCESS(r->consumed) + ACCESS(r->dropped);
	if (taken != s->taken || s->emitted == taken) {
		s->taken = taken;
		s->moved_ns = now;
	}
	/* Others' frames were counted, or ours vanished (the device went down). */
	if ((__s64)(s->emitted - taken) < 0 || now - s->moved_ns > STUCK_NS)
		s->emitted = taken;
	return s->emitted - taken;
}

/* What went missing is sent again, once nothing of the connection can be under way any more. */
static __always_inline void recover(struct sender *s, struct connection *c, __u64 acked, __u64 now)
{
	int queued = s->taken < c->mark && c->mark <= s->emitted;
	__u64 patience = patience_ns;

	if (patience < DELACK_NS && c->next - acked <= 2 * mss)
		patience = DELACK_NS;
	if (acked != c->last_acked || c->next <= acked || queued) {
		c->last_acked = acked;
		c->progress_ns = now;
	} else if (now - c->progress_ns > patience) {
		c->next = acked;
		c->progress_ns = now;
		s->go_backs++;
	}
	if (c->next <= acked)
		c->next = acked - acked % mss;
}

/* Segments that the connection may send now, and that are worth a batch. */
static __always_inline __u64 room(struct sender *s, struct connection *c, __u64 now)
{
	__u64 acked = ACCESS(c->acked), edge = ACCESS(c->edge);
	__u64 end = s->ending ? c->furthest : limit_bytes ?: ~0ULL;
	__u64 segments;

	if (ACCESS(c->state) != FILLING || acked >= end) {
		s->complete++;
		return 0;
	}
	s->complete = 0;
	recover(s, c, acked, now);
	if (edge > acked + cap)
		edge = acked + cap;
	if (edge > end)
		edge = end;
	if (edge < c->next + mss)
		return 0;
	segments = (edge - c->next) / mss;
	if (segments >= most_burst)
		return most_burst;
	return edge == end || c->next <= acked + 2 * mss || segments * mss * 2 >= edge - acked ? segments : 0;
}

struct look {
	__u64 then;
	__u64 deadline;
	__u32 reason;
};

static __always_inline int due(struct sender *s, __u64 now)
{
	if (!gap)
		return 1;
	if ((now << 8) < s->next_ns)
		return 0;
	if ((now << 8) - s->next_ns > LATE_NS << 8)
		s->next_ns = now << 8;
	return 1;
}

/* The next connection in turn, if it may send; else the reason why not. */
static __always_inline __u32 choose(struct sender *s, __u64 now)
{
	struct connection *c;

	if (!due(s, now))
		return PACE;
	if (waiting(s, now) + most_burst > RING_LIMIT)
		return RING;
	s->current = s->cursor;
	s->cursor = s->cursor + 1 < connections_used ? s->cursor + 1 : 0;
	c = bpf_map_lookup_elem(&connections, &s->current);
	if (!c)
		return WINDOW;
	s->burst = room(s, c, now);
	return s->burst ? NOTHING : WINDOW;
}

static long look(__u32 turn, struct look *l)
{
	struct sender *s = bpf_map_lookup_elem(&sender, &zero);
	__u64 now;

	if (!s)
		return 1;
	if (turn && (l->reason != WINDOW || !s->cursor)) /* leaves the shared cache lines alone for a moment */
		for (int i = 0; i < 4; i++)
			bpf_ktime_get_ns();
	now = bpf_ktime_get_ns();
	s->blocked_ns[l->reason & 3] += now - l->then;
	l->then = now;
	l->reason = choose(s, now);
	return l->reason == NOTHING || s->complete >= connections_used || now > l->deadline;
}

static __always_inline void finish(struct sender *s)
{
	s->done = 1;
	bpf_ringbuf_output(&done, &s->segments, sizeof(s->segments), BPF_RB_FORCE_WAKEUP);
}

static __always_inline void start_batch(struct sender *s)
{
	__u64 now = bpf_ktime_get_ns();
	struct look l = { .then = now, .deadline = now + WAIT_NS };
	__u32 *stopped = bpf_map_lookup_elem(&stop, &zero);

	s->burst = 0;
	if (s->done)
		return;
	if (!s->first_ns)
		s->first_ns = now;
	if ((stopped && ACCESS(*stopped)) || (limit_ns && now - s->first_ns >= limit_ns))
		s->ending = 1;
	bpf_loop(WAIT_TURNS, look, &l, 0);
	s->now_ms = l.then / 1000000;
	if (gap)
		s->next_ns += gap * s->burst;
	s->last_ns = l.then;
	if (s->complete >= connections_used)
		finish(s);
}

static __always_inline int fill(struct xdp_md *ctx, struct sender *s, struct connection *c)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	__u32 tcp_at = is_v6 ? 54 : 34, tag_at = tcp_at + (has_timestamps ? 32 : 20);
	__u32 sequence = bpf_htonl(c->sequence + (__u32)c->next), echo = ACCESS(c->echo);
	__u64 sum = (__u64)c->sum + sequence + (c->next & 0xffffffff) + (c->next >> 32);

	if (data + HEADER_WORDS * 8 > end || data + tag_at + 8 > end)
		return 0;
	for (int i = 0; i < HEADER_WORDS; i++)
		if (i * 8 < tag_at)
			((__u64 *)data)[i] = c->header[i];
	*(__u32 *)(data + tcp_at + 4) = sequence;
	if (has_timestamps) {
		__u32 timestamp = bpf_htonl(s->now_ms + (__u32)c->timestamp_base);

		*(__u32 *)(data + tcp_at + 24) = timestamp;
		*(__u32 *)(data + tcp_at + 28) = echo;
		sum += (__u64)timestamp + echo;
	}
	*(__u16 *)(data + tcp_at + 16) = fold(sum);
	*(__u64 *)(data + tag_at) = c->next;
	if (cold) {
		__u8 *bytes = bpf_map_lookup_elem(&payload, &zero);

		if (bytes)
			bpf_xdp_store_bytes(ctx, tag_at + 8, bytes, mss - 8);
	}
	return 1;
}

SEC("xdp")
int tcpwire(struct xdp_md *ctx)
{
	struct sender *s = bpf_map_lookup_elem(&sender, &zero);
	struct connection *c;
	__u64 slot;

	if (!s)
		return XDP_DROP;
	slot = s->runs++ & (batch - 1);
	if (!slot)
		start_batch(s);
	if (slot >= s->burst)
		return XDP_DROP;
	c = bpf_map_lookup_elem(&connections, &s->current);
	if (!c || !fill(ctx, s, c))
		return XDP_ABORTED;
	c->next += mss;
	if (c->next > c->furthest)
		c->furthest = c->next;
	c->mark = ++s->emitted;
	s->segments++;
	return bpf_redirect(wire_ifindex, 0);
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
