"""On which stage of a packet's way a function of the software works."""

import enum

__all__ = ["Stage", "stage_of"]


class Stage(enum.StrEnum):
    """Where a core's cycles go, per packet."""

    SWITCHING = "interrupt and switching"  #: interrupts, softirqs, NAPI's own part, the scheduler
    CROSSING = "user/kernel crossing"  #: system calls' entry and exit
    DRIVER = "driver"  #: rings, descriptors, buffers
    PROTOCOL = "protocol"  #: skbs, Ethernet, IP, UDP, TCP, sockets
    COPY = "copy"  #: payload between kernel and program
    APPLICATION = "application"  #: what the program does with packets, eBPF programs too
    STALLS = "memory stalls"  #: of all of these, what they would not take if every access hit L1 at once
    WAITING = "waiting"  #: sleeping, polling in vain, computing that packets do not cause


#: By module, the longest prefix counts.
_MODULES = {
    "sw.linux": Stage.PROTOCOL,
    "sw.linux.busy_poll": Stage.SWITCHING,
    "sw.linux.irq": Stage.SWITCHING,
    "sw.linux.napi": Stage.SWITCHING,
    "sw.linux.napi_threaded": Stage.SWITCHING,
    "sw.linux.ptrace": Stage.SWITCHING,
    "sw.linux.sched": Stage.SWITCHING,
    "sw.linux.smp": Stage.SWITCHING,
    "sw.linux.softirq": Stage.SWITCHING,
    "sw.linux.syscall": Stage.CROSSING,
    "sw.linux.tcp_syscall": Stage.CROSSING,
    "sw.linux.timer": Stage.SWITCHING,
    "sw.linux.select": Stage.CROSSING,
    "sw.linux.uaccess": Stage.COPY,
    "sw.linux.xdp.syscall": Stage.CROSSING,
    "sw.ixgbe": Stage.DRIVER,
    "sw.dpdk": Stage.DRIVER,
    "sw.bpf": Stage.APPLICATION,
    "sw.libxdp": Stage.APPLICATION,
    "sw.apps": Stage.APPLICATION,
    "sw.apps.compute": Stage.WAITING,
    "sw.system": Stage.WAITING,
}

#: Functions that are not what their module is.
_FUNCTIONS = {
    "busy_poll_wait": Stage.WAITING,
    "cpu_idle": Stage.WAITING,
    "default_idle": Stage.WAITING,
    "rx_burst_wait": Stage.WAITING,
    "sched_yield": Stage.WAITING,
    "skb_store_bits": Stage.COPY,
    "xsk_copy_xdp": Stage.COPY,
    "xsk_ring_wait": Stage.WAITING,
}


def stage_of(module: str, function: str) -> Stage:
    """The stage of a function of that module; APPLICATION for modules that are not part of ``sw``."""
    if function in _FUNCTIONS:
        return _FUNCTIONS[function]
    while module:
        if module in _MODULES:
            return _MODULES[module]
        module = module.rpartition(".")[0]
    return Stage.APPLICATION
