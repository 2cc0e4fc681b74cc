/* Drops every packet without looking at it. */
#include "nicscope_bpf.h"

SEC("xdp") int drop_all(struct xdp_md *ctx)
{
    return XDP_DROP;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
