/* Counts packets and bytes on each core, and passes every packet on. */
#include "nicscope_bpf.h"

struct counter {
    u64 packets;
    u64 bytes;
};

struct {
    MAP_NUMBER(type, MAP_PERCPU_ARRAY);
    MAP_NUMBER(max_entries, 1);
    MAP_TYPE(key, u32);
    MAP_TYPE(value, struct counter);
} counters SEC(".maps");

SEC("xdp") int packet_counter(struct xdp_md *ctx)
{
    void *data = (void *)(long)ctx->data;
    void *data_end = (void *)(long)ctx->data_end;
    u32 key = 0;
    struct counter *counter = bpf_map_lookup_elem(&counters, &key);
    if (!counter)
        return XDP_ABORTED;
    counter->packets++; /* this core's own: nobody else writes it */
    counter->bytes += data_end - data;
    return XDP_PASS;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
