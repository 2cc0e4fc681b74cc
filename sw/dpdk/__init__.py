"""DPDK, as far as a poll-mode driver needs it. Names and structures are those of DPDK 22.11."""
