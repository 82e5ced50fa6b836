/* SPDX-License-Identifier: (MIT OR Apache-2.0) OR GPL-2.0 */
/* The generator's constants, its state, and which flow is next (crates/wire/src/pattern.rs and draw.rs say the same). */
#ifndef HOIST_WIRE_H
#define HOIST_WIRE_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include "pace.h"

#define PORTS 0x4000 /* source ports a sender carries flows on, unless a pattern says otherwise */
#define HEADER_WORDS 9

struct wire_state {
	struct pace pace;
	__u64 sent;
	__u64 flow;
	__u64 seq;
	__u64 first_ns;
	__u64 last_ns;
	__u64 done;
	__u64 random;
	__u64 short_due; /* in 2^-32 of a frame */
	__u64 short_flow;
	__u64 short_seq;
	__u64 header[HEADER_WORDS];
	__u64 short_header[HEADER_WORDS];
};

/* Constants to the verifier: the branches on them cost nothing at run time. */
const volatile __u32 ifindex;
const volatile __u64 limit_packets; /* 0: no limit */
const volatile __u64 limit_ns;
const volatile __u64 flows = 1; /* without the short ones */
const volatile __u32 drawn; /* flows are drawn from `slots`, not taken in turn */
const volatile __u32 wide; /* receivers a sender has flows to; 0: a sender's flows differ in source port */
const volatile __u32 diagonal; /* sender i has a flow to receiver i only */
const volatile __u64 short_flows; /* they follow the others */
const volatile __u64 short_share; /* of the frames, in 2^-32 */
const volatile __u32 shrink; /* bytes that short frames lack */
const volatile __u32 header_words; /* header bytes / 8, rounded up: the stamp is written after it */
const volatile __u32 ip_at;
const volatile __u32 is_v6;
const volatile __u32 checksummed;
const volatile __u32 ip_sum; /* of the header without check and the low half of the source address */
const volatile __u32 udp_sum; /* of pseudo header, header, payload without what varies */
const volatile __u32 short_ip_sum;
const volatile __u32 short_udp_sum;
const volatile __u16 first_port;
const volatile __u16 target_port;
const volatile __u16 first_low; /* low 16 bits of the first sender's address */
const volatile __u16 other_low; /* what the number of any other sender is added to */

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct wire_state);
} state SEC(".maps");

/* An alias table (Walker, Vose), and how many frames each flow has had. */
struct slot {
	__u32 threshold;
	__u32 alias;
	__u64 seq;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct slot);
} slots SEC(".maps");

struct pick {
	__u64 seq;
	__u32 flow;
	__u32 is_short;
};

/* Steele et al., 'Fast splittable pseudorandom number generators' (SplitMix64) */
static __always_inline __u64 next_random(struct wire_state *s)
{
	__u64 z = s->random += 0x9e3779b97f4a7c15;

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
	z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
	return z ^ (z >> 31);
}

static __always_inline int draw(struct wire_state *s, struct pick *pick)
{
	__u64 random = next_random(s);
	__u32 at = (random >> 32) * flows >> 32;
	struct slot *slot = bpf_map_lookup_elem(&slots, &at);

	if (!slot)
		return 0;
	if ((__u32)random >= slot->threshold) {
		at = slot->alias;
		slot = bpf_map_lookup_elem(&slots, &at);
		if (!slot)
			return 0;
	}
	pick->flow = at;
	pick->seq = slot->seq++;
	return 1;
}

static __always_inline void take_turn(struct pick *pick, __u64 *flow, __u64 *seq, __u64 count)
{
	pick->flow = *flow;
	pick->seq = *seq;
	if (++*flow >= count) {
		*flow = 0;
		++*seq;
	}
}

static __always_inline int choose(struct wire_state *s, struct pick *pick)
{
	if (drawn)
		return draw(s, pick);
	if (short_flows) {
		s->short_due += short_share;
		if (s->short_due >> 32) {
			s->short_due -= 1ULL << 32;
			take_turn(pick, &s->short_flow, &s->short_seq, short_flows);
			pick->flow += flows;
			pick->is_short = 1;
			return 1;
		}
	}
	take_turn(pick, &s->flow, &s->seq, flows);
	return 1;
}

struct place {
	__u32 sender;
	__u16 port;
	__u16 receiver;
};

static __always_inline struct place place_of(__u32 flow)
{
	if (diagonal)
		return (struct place){ .sender = flow, .receiver = flow };
	if (wide == 1)
		return (struct place){ .sender = flow };
	if (wide)
		return (struct place){ .sender = flow / wide, .receiver = flow % wide };
	return (struct place){ .sender = flow / PORTS, .port = flow & (PORTS - 1) };
}

#endif
