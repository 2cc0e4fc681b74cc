"""A kernel: interrupts, softirqs, NAPI, scheduler, memory, socket buffers, the network stack. Names are Linux's."""
