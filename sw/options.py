"""What a run asks of the software, whatever its path."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Network

from sw.linux.cpuidle import Cpuidle
from sw.linux.napi import NETDEV_BUDGET
from sw.linux.net.route import Route
from sw.linux.socket import SOCK_RCVBUF, SOCK_SNDBUF
from sw.linux.tcp_syscall import TCP_RCVBUF

__all__ = ["OPTIONAL", "WAKEUPS", "XDP_MODES", "Options"]

#: What an AF_XDP socket may be: the card writes into its memory, or the kernel copies.
XDP_MODES = ("zero-copy", "copy")
#: How a program with such a socket may wait: in a loop, or in poll(2).
WAKEUPS = ("spin", "poll")

#: What a user may ask for that only some paths can do, see ``sw.paths.path.Path.uses``.
OPTIONAL = frozenset({"app_core", "batch", "busy_poll_us", "itr_us", "napi_thread", "tx_ring", "wakeup", "xdp_mode"})


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a run asks of the software. A path that has no use for one leaves it alone.

    Attributes:
        mac: station address, 6 bytes.
        addresses: the host's IPv4 addresses, 4 bytes each in network order.
        routes: to where the host can send.
        neighbours: hardware address (6 bytes) of each host on the link that it can send to, by IPv4 address.
        application: what receives, one of ``Path.applications``; None: the path's first.
        ports: UDP ports that a program listens on.
        app_core: core that the receiving programs run on, as taskset would have it; the boot core takes the interrupt.
        napi_thread: core of the thread that polls instead of the softirq (threaded NAPI); None: there is none.
        busy_poll_us: microseconds that a program that reads polls the card before it sleeps, on the path busypoll.
        compute: cores that run a computing program of the lowest rank.
        ring_size: receive descriptors.
        tx_ring: transmit descriptors, where a program has the driver in itself; None: as many as receive descriptors.
        ddio: whether device writes allocate in the last level; None: as the machine is at the start.
        ddio_ways: how many of its last ways they may allocate in; None likewise.
        llc_ways: ways of the last level, as CPUID tells them.
        itr_us: least time between two interrupts in microseconds, 0 for no moderation.
        rcvbuf: receive buffer of each socket, in bytes of ``truesize``.
        sndbuf: send buffer likewise.
        tcp_rcvbuf: receive buffer of TCP's sockets.
        tsc_khz: frequency of the cores' time-stamp counters.
        promiscuous: the card accepts frames for others too; the stack drops them as ``OTHERHOST``.
        netdev_budget: packets per receive softirq.
        read: the receiving programs read what they get.
        batch: packets of a burst, where a program polls.
        bpf_jit: eBPF programs are translated to machine code, as ``net.core.bpf_jit_enable`` says; else interpreted.
        xdp_mode: of an AF_XDP socket, one of :data:`XDP_MODES`.
        wakeup: how a program with such a socket waits, one of :data:`WAKEUPS`.
        cpuidle: how deep idle cores sleep.
        iommu: how the machine's IOMMU is used, one of ``sw.linux.iommu.IOMMU_MODES``.
    """

    mac: bytes
    addresses: tuple[bytes, ...]
    routes: tuple[Route, ...] = (Route(IPv4Network("0.0.0.0/0")),)
    neighbours: Mapping[bytes, bytes] = field(default_factory=dict)
    application: str | None = None
    ports: tuple[int, ...] = (9,)
    app_core: int = 0
    napi_thread: int | None = None
    busy_poll_us: float = 50.0
    compute: tuple[int, ...] = ()
    ring_size: int = 512
    tx_ring: int | None = None
    ddio: bool | None = None
    ddio_ways: int | None = None
    llc_ways: int = 1
    itr_us: float = 10.0
    rcvbuf: int = SOCK_RCVBUF
    sndbuf: int = SOCK_SNDBUF
    tcp_rcvbuf: int = TCP_RCVBUF
    tsc_khz: int = 1_000_000
    promiscuous: bool = False
    netdev_budget: int = NETDEV_BUDGET
    read: bool = True
    batch: int = 32
    bpf_jit: bool = True
    xdp_mode: str = XDP_MODES[0]
    wakeup: str = WAKEUPS[0]
    cpuidle: Cpuidle = field(default_factory=Cpuidle)
    iommu: str = "off"
