/* Swaps the addresses of every frame and sends it back out of the port it came from. */
#include "nicscope_bpf.h"

SEC("xdp") int mac_swap_tx(struct xdp_md *ctx)
{
    void *data = (void *)(long)ctx->data;
    void *data_end = (void *)(long)ctx->data_end;
    u16 *address = data;
    u16 first, second, third;

    if (data + sizeof(struct ethhdr) > data_end)
        return XDP_ABORTED;
    first = address[0];
    second = address[1];
    third = address[2];
    address[0] = address[3];
    address[1] = address[4];
    address[2] = address[5];
    address[3] = first;
    address[4] = second;
    address[5] = third;
    return XDP_TX;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
