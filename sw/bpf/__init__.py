"""eBPF as the Linux kernel runs it: instruction set, ELF loader, maps, helpers, interpreter and JIT.

The instruction set is RFC 9669's; what the kernel adds is as in Linux 6.x and said where it is used.
"""
