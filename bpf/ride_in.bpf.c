// SPDX-License-Identifier: (MIT OR Apache-2.0) OR GPL-2.0-only
/* ride_in: a frame written to the TAP arrives on the real device, as if it had never been lifted. */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_helpers.h>

const volatile __u32 device_ifindex = 0;
const volatile __u32 generic_xdp = 0;

SEC("classifier")
int ride_in(struct __sk_buff *skb)
{
	__u8 source;

	/*
	 * Generic XDP runs on redirected frames too (do_xdp_generic; bpf_redirect does not mark them as
	 * skb_is_redirected): tell steer to let this one by. It restores the bit.
	 */
	if (generic_xdp) {
		if (bpf_skb_load_bytes(skb, ETH_ALEN, &source, 1))
			return TC_ACT_SHOT;
		source |= 1;
		if (bpf_skb_store_bytes(skb, ETH_ALEN, &source, 1, 0))
			return TC_ACT_SHOT;
	}
	return bpf_redirect(device_ifindex, BPF_F_INGRESS);
}

char _license[] SEC("license") = "Dual MIT/GPL";
