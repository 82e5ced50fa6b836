// SPDX-License-Identifier: (MIT OR Apache-2.0) OR GPL-2.0-only
/*
 * conns: publishes the TCP connections of the run's cgroup, from the end of their handshake to TCP_CLOSE. Nothing is
 * lifted by it.
 */
#include <linux/bpf.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include "hoist.h"
#include "maps.h"

#define AF_INET 2
#define AF_INET6 10

/* hoist_ipc::Reason */
#define REASON_LIFTED 0
#define REASON_NOT_SELECTED 1
#define REASON_LOOPBACK 4

TCP_FLOWS_MAP;
TCP_SLOTS_MAP;
TCP_PORTS_MAP; /* not used here: made with the others */

MAP(tcp_closed, BPF_MAP_TYPE_ARRAY, __u32, struct tcp_closed, 1, 0);

/* One bit for every port of --tcp PORT,...; not looked at if all are selected. */
MAP(tcp_selected, BPF_MAP_TYPE_ARRAY, __u32, __u64, 65536 / 64, 0);

const volatile __u32 all_selected = 1;
/* The run's network namespace: addresses mean something in it only. 0: not known. */
const volatile __u64 netns_cookie = 0;

/* A word of the context; the barrier keeps clang from computing an address in it, which the verifier refuses. */
#define WORD(field)                              \
	({                                       \
		__u32 word = (field);            \
		asm volatile("" : "+r"(word));   \
		word;                            \
	})

/* As the connection's packets carry it. */
static __always_inline void flow_of(struct bpf_sock_ops *ctx, struct flow_key *flow)
{
	__u32 *peer = (__u32 *)flow->source, *own = (__u32 *)flow->destination;

	if (ctx->family == AF_INET) {
		peer[0] = peer[1] = own[0] = own[1] = 0;
		peer[2] = own[2] = bpf_htonl(0xffff);
		peer[3] = WORD(ctx->remote_ip4);
		own[3] = WORD(ctx->local_ip4);
	} else {
		peer[0] = WORD(ctx->remote_ip6[0]);
		peer[1] = WORD(ctx->remote_ip6[1]);
		peer[2] = WORD(ctx->remote_ip6[2]);
		peer[3] = WORD(ctx->remote_ip6[3]);
		own[0] = WORD(ctx->local_ip6[0]);
		own[1] = WORD(ctx->local_ip6[1]);
		own[2] = WORD(ctx->local_ip6[2]);
		own[3] = WORD(ctx->local_ip6[3]);
	}
	flow->source_port = bpf_htons(bpf_ntohl(ctx->remote_port));
	flow->destination_port = bpf_htons(ctx->local_port);
}

static __always_inline int is_loopback(const __u32 *address)
{
	if (address[0] || address[1])
		return 0;
	if (address[2] == bpf_htonl(0xffff))
		return bpf_ntohl(address[3]) >> 24 == 127;
	return !address[2] && address[3] == bpf_htonl(1);
}

static __always_inline int selected(__u32 port)
{
	__u32 word = port / 64;
	__u64 *bits;

	if (all_selected)
		return 1;
	bits = bpf_map_lookup_elem(&tcp_selected, &word);
	return bits && (*bits >> (port % 64) & 1);
}

/* Claims a slot. TCP_SLOTS: all that the connection may have are taken. */
static __always_inline __u32 claim(__u64 cookie)
{
	for (int probe = 0; probe < TCP_PROBES; probe++) {
		__u32 index = (cookie + probe) % TCP_SLOTS;
		struct tcp_slot *slot = bpf_map_lookup_elem(&tcp_slots, &index);

		if (slot && !__sync_val_compare_and_swap(&slot->word, 0, cookie << 2 | TCP_FILLING))
			return index;
	}
	return TCP_SLOTS;
}

static __always_inline __u32 reason(const struct flow_key *flow, int connected)
{
	if (is_loopback((__u32 *)flow->destination))
		return REASON_LOOPBACK;
	return selected(bpf_ntohs(connected ? flow->source_port : flow->destination_port)) ? REASON_LIFTED :
											     REASON_NOT_SELECTED;
}

/* Everything but the word. */
static __always_inline void fill(struct tcp_slot *slot, const struct flow_key *flow, __u32 base, int connected)
{
	struct tcp_slot new = {};

	new.base = base;
	new.flags = connected ? TCP_CONNECTED : 0;
	__builtin_memcpy(new.local, flow->destination, sizeof(new.local));
	__builtin_memcpy(new.remote, flow->source, sizeof(new.remote));
	new.local_port = bpf_ntohs(flow->destination_port);
	new.remote_port = bpf_ntohs(flow->source_port);
	new.reason = reason(flow, connected);
	__builtin_memcpy((__u64 *)slot + 1, (__u64 *)&new + 1, sizeof(new) - sizeof(__u64));
}

/*
 * The word comes last: whoever sees it sees the rest. rcv_nxt is stream byte 0 on either side: tcp_init_transfer runs
 * before data of the last ACK, or of a SYN with Fast Open (tcp_fastopen_create_child), is taken in.
 */
static __always_inline void publish(struct bpf_sock_ops *ctx, int connected)
{
	struct tcp_flow value = { .cookie = bpf_get_socket_cookie(ctx) };
	struct flow_key flow = {};
	struct tcp_slot *slot;
	__u64 word = value.cookie << 2 | TCP_PASS;

	value.slot = claim(value.cookie);
	slot = bpf_map_lookup_elem(&tcp_slots, &value.slot);
	if (!slot)
		return;
	flow_of(ctx, &flow);
	fill(slot, &flow, ctx->rcv_nxt, connected);
	if (reason(&flow, connected) == REASON_LIFTED && bpf_map_update_elem(&tcp_flows, &flow, &value, BPF_ANY))
		word = 0;
	__sync_lock_test_and_set(&slot->word, word);
	bpf_sock_ops_cb_flags_set(ctx, ctx->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_STATE_CB_FLAG);
}

static __always_inline void sum(const struct tcp_slot *slot)
{
	__u32 zero = 0;
	struct tcp_closed *closed = bpf_map_lookup_elem(&tcp_closed, &zero);

	if (!closed)
		return;
	__sync_fetch_and_add(&closed->connections, 1);
	__sync_fetch_and_add(&closed->lifted_bytes, slot->lifted_bytes);
	__sync_fetch_and_add(&closed->passed_bytes, slot->passed_bytes);
	__sync_fetch_and_add(&closed->lifts, slot->lifts);
	__sync_fetch_and_add(&closed->bad_checksum, slot->bad_checksum);
	__sync_fetch_and_add(&closed->rode, slot->rode);
	__sync_fetch_and_add(&closed->rode_real, slot->rode_real);
}

/* Programs may have written anything in the slot: the flow is the socket's own, and goes first. */
static __always_inline void retire(struct bpf_sock_ops *ctx)
{
	__u64 cookie = bpf_get_socket_cookie(ctx);
	struct flow_key key = {};
	struct tcp_flow *flow;

	flow_of(ctx, &key);
	flow = bpf_map_lookup_elem(&tcp_flows, &key);
	if (flow && flow->cookie == cookie)
		bpf_map_delete_elem(&tcp_flows, &key);
	for (int probe = 0; probe < TCP_PROBES; probe++) {
		__u32 index = (cookie + probe) % TCP_SLOTS;
		struct tcp_slot *slot = bpf_map_lookup_elem(&tcp_slots, &index);

		if (slot && *(volatile __u64 *)&slot->word >> 2 == cookie) {
			sum(slot);
			__sync_lock_test_and_set(&slot->word, 0);
			return;
		}
	}
}

SEC("sockops")
int conns(struct bpf_sock_ops *ctx)
{
	if (netns_cookie && bpf_get_netns_cookie(ctx) != netns_cookie)
		return 1;
	if (ctx->family != AF_INET && ctx->family != AF_INET6)
		return 1;
	if (ctx->op == BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB)
		publish(ctx, 1);
	else if (ctx->op == BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB)
		publish(ctx, 0);
	else if (ctx->op == BPF_SOCK_OPS_STATE_CB && ctx->args[1] == BPF_TCP_CLOSE)
		retire(ctx);
	return 1;
}

char _license[] SEC("license") = "Dual MIT/GPL";
