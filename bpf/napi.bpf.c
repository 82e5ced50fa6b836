// SPDX-License-Identifier: (MIT OR Apache-2.0) OR GPL-2.0-only
/* napi: counts polls of NAPI instances, on each CPU. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include "maps.h"

struct napi_polls {
	__u64 polls;
	__u64 work; /* packets */
	__u64 full; /* polls that used up their budget */
};

MAP(counts, BPF_MAP_TYPE_PERCPU_ARRAY, __u32, struct napi_polls, 1, 0);

/* napi, work, budget. */
SEC("raw_tp/napi_poll")
int polled(struct bpf_raw_tracepoint_args *ctx)
{
	int work = ctx->args[1], budget = ctx->args[2];
	__u32 zero = 0;
	struct napi_polls *polls = bpf_map_lookup_elem(&counts, &zero);

	if (!polls)
		return 0;
	polls->polls++;
	polls->work += work > 0 ? work : 0;
	polls->full += budget > 0 && work >= budget;
	return 0;
}

char _license[] SEC("license") = "Dual MIT/GPL";
