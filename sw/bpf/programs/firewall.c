/* Drops TCP and UDP over IPv4 to ports that are in a hash map, and counts them there; passes all else. */
#include "nicscope_bpf.h"

/* Tags that are looked behind: one of the provider's, one of the customer's. */
#define VLAN_TAGS 2

struct {
    MAP_NUMBER(type, MAP_HASH);
    MAP_NUMBER(max_entries, 1024);
    MAP_TYPE(key, u16); /* destination port, big-endian as on the wire */
    MAP_TYPE(value, u64); /* packets dropped */
} blocked SEC(".maps");

/* Type of what follows the Ethernet header and its tags; *next is moved to it. 0 if the frame ends before. */
static always_inline be16 ethernet_type(void **next, void *data_end)
{
    struct ethhdr *eth = *next;
    be16 type;

    if ((void *)(eth + 1) > data_end)
        return 0;
    type = eth->h_proto;
    *next = eth + 1;
#pragma unroll
    for (int tag = 0; tag < VLAN_TAGS; tag++) {
        struct vlan_hdr *vlan = *next;

        if (type != cpu_to_be16(ETH_P_8021Q) && type != cpu_to_be16(ETH_P_8021AD))
            break;
        if ((void *)(vlan + 1) > data_end)
            return 0;
        type = vlan->h_vlan_encapsulated_proto;
        *next = vlan + 1;
    }
    return type;
}

SEC("xdp") int firewall(struct xdp_md *ctx)
{
    void *data_end = (void *)(long)ctx->data_end;
    void *next = (void *)(long)ctx->data;
    struct iphdr *ip;
    struct ports *ports;
    u32 length;
    u16 port;
    u64 *dropped;

    if (ethernet_type(&next, data_end) != cpu_to_be16(ETH_P_IP))
        return XDP_PASS;
    ip = next;
    if ((void *)(ip + 1) > data_end)
        return XDP_PASS;
    if (ip->protocol != IPPROTO_TCP && ip->protocol != IPPROTO_UDP)
        return XDP_PASS;
    if (ip->frag_off & cpu_to_be16(IP_OFFSET)) /* only the first fragment has ports */
        return XDP_PASS;
    length = (ip->ihl_version & 0xf) * 4;
    if (length < sizeof(*ip))
        return XDP_PASS;
    ports = next + length;
    if ((void *)(ports + 1) > data_end)
        return XDP_PASS;
    port = ports->dest;
    dropped = bpf_map_lookup_elem(&blocked, &port);
    if (!dropped)
        return XDP_PASS;
    __sync_fetch_and_add(dropped, 1); /* other cores count here, too */
    return XDP_DROP;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
