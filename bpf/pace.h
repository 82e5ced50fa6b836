/* SPDX-License-Identifier: (MIT OR Apache-2.0) OR GPL-2.0 */
/* When a frame may go (crates/wire/src/pace.rs says how many at once). */
#ifndef HOIST_PACE_H
#define HOIST_PACE_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#define LONGEST_WAIT_NS 200000
#define LATE_NS 60000 /* a wire that fell behind further drops the backlog: veth has room for 256 frames only */

struct pace {
	__u64 next; /* 1/256 ns */
	__u64 runs;
	__u64 go; /* this batch may */
};

const volatile __u64 gap; /* 1/256 ns between frames, 0: as fast as possible */
const volatile __u32 batch = 1; /* frames the kernel hands over at once, a power of two */

static long has_come(__u32 i, __u64 *until)
{
	return bpf_ktime_get_ns() >= *until;
}

/*
 * true when the next batch's slot has come; takes it. Waits in here: a frame dropped while waiting goes back to the page
 * pool, whose lock the receiver needs for every frame. Not for long: softirqs of this CPU wait meanwhile.
 */
static __always_inline int slot(struct pace *p, __u64 now)
{
	__u64 until = p->next >> 8;

	if (now < until) {
		if (until - now > LONGEST_WAIT_NS)
			until = now + LONGEST_WAIT_NS;
		bpf_loop(1 << 20, has_come, &until, 0);
		now = bpf_ktime_get_ns();
	}
	if (now << 8 < p->next)
		return 0;
	if ((now << 8) - p->next > (__u64)LATE_NS << 8)
		p->next = now << 8;
	p->next += gap * batch;
	return 1;
}

/* true when this frame may go; only the first of a batch waits, for the kernel wakes the other end after the last */
static __always_inline int due(struct pace *p, __u64 now)
{
	if (!gap)
		return 1;
	if (!(p->runs++ & (batch - 1)))
		p->go = slot(p, now);
	return p->go;
}

#endif
