/* What the example programs need of the kernel's interface: numbers, structures, byte order. No other header is used. */
#ifndef NICSCOPE_BPF_H
#define NICSCOPE_BPF_H

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef u16 be16;
typedef u32 be32;

#define SEC(name) __attribute__((section(name), used))
#define always_inline inline __attribute__((always_inline))

/* A map is a variable in the section .maps whose type says it all: numbers as the length of an array, types as what a
 * pointer points to. */
#define MAP_NUMBER(name, value) int(*name)[value]
#define MAP_TYPE(name, type) type *name

enum map_type {
    MAP_HASH = 1,
    MAP_ARRAY = 2,
    MAP_PERCPU_HASH = 5,
    MAP_PERCPU_ARRAY = 6,
    MAP_XSKMAP = 17,
};

enum xdp_action {
    XDP_ABORTED = 0,
    XDP_DROP = 1,
    XDP_PASS = 2,
    XDP_TX = 3,
    XDP_REDIRECT = 4,
};

struct xdp_md {
    u32 data;
    u32 data_end;
    u32 data_meta;
    u32 ingress_ifindex;
    u32 rx_queue_index;
    u32 egress_ifindex;
};

static void *(*const bpf_map_lookup_elem)(const void *map, const void *key) = (void *)1;
static long (*const bpf_map_update_elem)(const void *map, const void *key, const void *value, u64 flags) = (void *)2;
static long (*const bpf_redirect_map)(const void *map, u64 key, u64 flags) = (void *)51;

#define be16_to_cpu(x) __builtin_bswap16(x)
#define cpu_to_be16(x) ((be16)(__builtin_constant_p(x) ? (((x)&0xff) << 8 | ((x) >> 8 & 0xff)) : __builtin_bswap16(x)))

/* Headers on the wire. */
#define ETH_P_IP 0x0800
#define ETH_P_8021Q 0x8100
#define ETH_P_8021AD 0x88a8
#define IPPROTO_TCP 6
#define IPPROTO_UDP 17
#define IP_OFFSET 0x1fff /* fragment offset, in units of 8 bytes */

struct ethhdr {
    u8 h_dest[6];
    u8 h_source[6];
    be16 h_proto;
};

struct vlan_hdr {
    be16 h_vlan_TCI;
    be16 h_vlan_encapsulated_proto;
};

struct iphdr {
    u8 ihl_version; /* header length in words: bits 3:0; version: bits 7:4 */
    u8 tos;
    be16 tot_len;
    be16 id;
    be16 frag_off;
    u8 ttl;
    u8 protocol;
    u16 check;
    be32 saddr;
    be32 daddr;
};

/* What UDP and TCP begin with. */
struct ports {
    be16 source;
    be16 dest;
};

#endif
