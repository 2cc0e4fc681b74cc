/* Hands a packet to the AF_XDP socket bound to the queue it came in by; without one, the kernel gets it. */
#include "nicscope_bpf.h"

struct {
    MAP_NUMBER(type, MAP_XSKMAP);
    MAP_NUMBER(max_entries, 64);
    MAP_TYPE(key, u32);
    MAP_TYPE(value, u32);
} xsks SEC(".maps");

SEC("xdp") int xsk_redirect(struct xdp_md *ctx)
{
    return bpf_redirect_map(&xsks, ctx->rx_queue_index, XDP_PASS);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
