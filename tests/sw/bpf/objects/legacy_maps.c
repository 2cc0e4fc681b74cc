/* Maps as before BTF: struct bpf_map_def in the section "maps". */
struct bpf_map_def {
    unsigned int type, key_size, value_size, max_entries, map_flags;
};

__attribute__((section("maps"), used)) struct bpf_map_def first = {2, 4, 8, 16, 0};
__attribute__((section("maps"), used)) struct bpf_map_def second = {1, 8, 4, 100, 0};

static void *(*const lookup)(const void *map, const void *key) = (void *)1;

__attribute__((section("xdp"), used)) int legacy_maps(void *ctx)
{
    unsigned int index = 3;
    unsigned long long key = 5;
    unsigned long long *value = lookup(&first, &index);
    if (!value)
        return 0;
    return lookup(&second, &key) ? 1 : *value + 2;
}

__attribute__((section("license"), used)) char LICENSE[] = "GPL";
