// SPDX-License-Identifier: (MIT OR Apache-2.0) OR GPL-2.0
/* A receiver that costs next to nothing: what is sent to it shows how fast the wire is. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

SEC("xdp")
int discard(struct xdp_md *ctx)
{
	return XDP_DROP;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
