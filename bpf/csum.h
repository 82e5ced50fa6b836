/* SPDX-License-Identifier: (MIT OR Apache-2.0) OR GPL-2.0 */
/* RFC 1071. */
#ifndef HOIST_CSUM_H
#define HOIST_CSUM_H

#include <linux/types.h>
#include <bpf/bpf_helpers.h>

/* The checksum of what adds up to `sum`; 0 if a checksum was part of it and is right. */
static __always_inline __u16 fold(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

#endif
