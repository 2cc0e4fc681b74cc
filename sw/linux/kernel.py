"""What the kernel's parts share: fixed addresses, tables that lead from addresses to Python objects, statistics."""

from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from sw.core import LINE, Mode, Record
from sw.costs import Cost
from sw.linux.cpu import NET_RX_SOFTIRQ, NET_TX_SOFTIRQ, PERCPU, TIMER_SOFTIRQ, Cpu
from sw.linux.cpuidle import Cpuidle
from sw.linux.dma import Dma
from sw.linux.iommu import IntelIommu, init_dmars
from sw.linux.irq import IRQ_DESC_BYTES, interrupt_entry
from sw.linux.list import init_list_head
from sw.linux.mm import PAGE_SIZE, MemBlock, PageAllocator, lay_out_text
from sw.linux.napi import NETDEV_BUDGET, Napi, net_rx_action
from sw.linux.net.dev import PTYPE_BYTES, init_packet_types
from sw.linux.net.inet_hashtables import INET_EHASH_BYTES, INET_LHASH_BYTES
from sw.linux.net.ipv4 import ETH_P_IP, LOCAL_TABLE_BYTES, init_local_table
from sw.linux.net.neighbour import NeighTable
from sw.linux.net.route import FIB_BYTES, Route, init_fib
from sw.linux.net.sch_generic import NetdevQueue, net_tx_action
from sw.linux.net.tcp_sock import TCP_SOCK
from sw.linux.net.tcp_timeout import tcp_delack_timer, tcp_keepalive_timer, tcp_write_timer
from sw.linux.net.udp import UDP_BUSYLOCKS_BYTES, UDP_TABLE_BYTES
from sw.linux.netfilter import NF_TABLE_BYTES, init_raw_table
from sw.linux.sched import (
    PRIORITY_IDLE,
    PRIORITY_NORMAL,
    RQ,
    STACK_BYTES,
    TASK_INTERRUPTIBLE,
    TASK_STRUCT,
    Task,
    cpu_idle,
    init_runqueue,
    init_task_struct,
    wake_up_new_task,
)
from sw.linux.skb import SK_BUFF
from sw.linux.slab import KmemCache
from sw.linux.socket import SOCK, sock_wfree
from sw.linux.softirq import ksoftirqd
from sw.linux.timer import TimerBase, TimerFunction, init_timer_base, local_apic_timer_interrupt, run_timer_softirq
from sw.linux.xdp.xsk import XdpSock
from sw.paging import PHYSICAL_MASK, PageSize, PageTables, virtual
from sw.port import TIMER_VECTOR, CorePort

__all__ = ["Kernel"]


class Kernel:
    """One kernel on all cores of a machine.

    Its own addresses are physical ones, mapped by pages of 1 GiB as Linux maps all memory; programs have pages of
    4 KiB. All tasks share one set of page tables.

    Arguments:
        port: the engine's side of the cores.
        cores: number of cores.
        dram_bytes: size of memory, from address 0.
        costs: cycles per function.
        record: where attribution and notes go.
        mac: the station address, 6 bytes.
        addresses: the host's IPv4 addresses, 4 bytes each in network order.
        skbs: slots for socket buffers.
        netdev_budget: packets per receive softirq.
        cpuidle: how deep idle cores sleep.
        tsc_khz: frequency of the time-stamp counter.
        routes: to where the host can send.
        neighbours: hardware address of each host on the link that it can send to, by IPv4 address.
        iommu: how the IOMMU is used, one of ``sw.linux.iommu.IOMMU_MODES``; anything but "off" needs one.

    Raises:
        OutOfMemoryError: when DRAM is too small.
    """

    def __init__(
        self,
        port: CorePort,
        cores: int,
        dram_bytes: int,
        costs: Mapping[str, Cost],
        record: Record,
        mac: bytes,
        addresses: Iterable[bytes],
        skbs: int,
        netdev_budget: int = NETDEV_BUDGET,
        cpuidle: Cpuidle = Cpuidle(),
        tsc_khz: int = 1_000_000,
        routes: tuple[Route, ...] = (),
        neighbours: Mapping[bytes, bytes] = MappingProxyType({}),
        iommu: str = "off",
    ):
        self.mac = mac
        self.routes = routes
        self.costs = costs
        self.addresses = list(addresses)
        self.netdev_budget = netdev_budget
        self.cpuidle = cpuidle
        self.tsc_khz = tsc_khz
        self.busy_read_us = 0.0  #: how long a program that reads polls the card (``net.core.busy_read``)
        self.receives_in_hardirq = False  #: packets come to sockets from interrupt handlers, not from softirqs
        self.stopping = False  #: programs end as soon as they look

        # Addresses, as the linker and the early boot would fix them
        self.memblock = MemBlock(dram_bytes)
        allocate = self.memblock.allocate
        self.iommu = IntelIommu(self.memblock, iommu) if iommu != "off" else None
        self.dma: Dma = self.iommu or Dma()  #: the card's addresses of memory
        self.text = lay_out_text(costs, self.memblock)
        self.cpus = [
            Cpu(
                i,
                port,
                record,
                costs,
                self.text,
                self,
                percpu=allocate(PERCPU.size),
                runqueue=allocate(RQ.size),
                timer_base=TimerBase(self.memblock),
            )
            for i in range(cores)
        ]
        self.ptype_base = allocate(PTYPE_BYTES)
        self.local_table = allocate(LOCAL_TABLE_BYTES)
        self.udp_table = allocate(UDP_TABLE_BYTES)
        self.tcp_cache: KmemCache | None = None  #: of TCP's sockets, None without TCP
        self.inet_ehash = self.inet_lhash = 0  #: addresses of TCP's tables
        self.raw_table = 0  #: address of iptables' raw table, 0 if it is not there
        self.raw_counters = 0
        self.fib = allocate(FIB_BYTES)
        self.arp_table = NeighTable(self.memblock, neighbours)
        self.tx_queue: NetdevQueue | None = None  #: by which the host sends, if it does
        self.udp_busylocks = allocate(UDP_BUSYLOCKS_BYTES)
        self.irq_desc = allocate(IRQ_DESC_BYTES)
        self.skb_cache = KmemCache(self.memblock, "skbuff_head_cache", SK_BUFF.size, skbs, cores)
        self.pages = PageAllocator(self.memblock)
        self.page_tables = PageTables(allocate)
        self._page_table_entries = list(self.page_tables.map(0, dram_bytes, PageSize.GIB_1))

        # From addresses and numbers in memory to what they stand for
        self.tasks: dict[int, Task] = {}
        self.napi: dict[int, Napi] = {}
        self.xdp_sockets: dict[int, XdpSock] = {}
        self.skb_destructors: dict[int, Callable[[Cpu, int], Awaitable[None]]] = {}
        self.skb_destructors[self.text["sock_wfree"]] = sock_wfree
        self.tx_queues: dict[int, NetdevQueue] = {}
        self.irq_handlers: dict[int, Callable[[Cpu], Awaitable[None]]] = {TIMER_VECTOR: local_apic_timer_interrupt}
        self.timer_functions: dict[int, TimerFunction] = {}  #: by the address of their code

        self.interrupt_entry = interrupt_entry
        self.softirq_vec = {
            TIMER_SOFTIRQ: run_timer_softirq,
            NET_TX_SOFTIRQ: net_tx_action,
            NET_RX_SOFTIRQ: net_rx_action,
        }

        # For observers
        self.packet_of: dict[int, tuple[int, int]] = {}  #: which received packet (queue, number) each skb in use is
        self.coalesced: dict[int, list[tuple[int, int]]] = {}  #: packets whose bytes were appended to those of an skb
        self.drops: dict[str, int] = {}  #: packets by reason
        self.time_squeezes = 0  #: softirqs that ended for want of budget
        self.spurious_interrupts = 0  #: on vectors without a handler

        for cpu in self.cpus:
            cpu.idle_task = self.new_task("idle", cpu, PRIORITY_IDLE, cpu_idle, Mode.IDLE)
            cpu.ksoftirqd = self.new_task(f"ksoftirqd/{cpu.index}", cpu, PRIORITY_NORMAL, ksoftirqd, Mode.KERNEL)
            cpu.task = cpu.idle_task
            cpu.governor = cpuidle.governor()

    def new_task(
        self,
        name: str,
        cpu: Cpu,
        priority: int,
        main: Callable[[Cpu], Coroutine[Any, Any, None]],
        mode: Mode = Mode.USER,
    ) -> Task:
        """Set a task and its memory aside; ``init_task_struct`` and ``wake_up_new_task`` bring it to life."""
        allocate = self.memblock.allocate
        task = Task(name, allocate(TASK_STRUCT.size), allocate(STACK_BYTES), cpu, priority, main, mode)
        self.tasks[task.address] = task
        return task

    def allocate_user(self, size: int) -> int:
        """Memory for a program, in pages of 4 KiB; its virtual address."""
        address = self.memblock.allocate(size, PAGE_SIZE)
        self._page_table_entries += self.page_tables.map(address, size, PageSize.KIB_4)
        return virtual(address, PageSize.KIB_4)

    def allocate_huge(self, size: int) -> int:
        """Memory for a program, in pages of 2 MiB (hugetlbfs); its virtual address.

        It lies in one piece, so that a device can be told its physical address.
        """
        address = self.memblock.allocate(size, PAGE_SIZE)
        self._page_table_entries += self.page_tables.map(address, size, PageSize.MIB_2)
        return virtual(address, PageSize.MIB_2)

    def allocate_vfio(self, size: int) -> int:
        """The same for a program that drives the card: it lets the card reach it (VFIO)."""
        address = self.allocate_huge(size)
        self.dma.map_user(address & PHYSICAL_MASK, size)
        return address

    def add_raw_table(self) -> None:
        """Set memory aside for iptables' raw table with one rule, which drops all UDP."""
        self.raw_table = self.memblock.allocate(NF_TABLE_BYTES)
        self.raw_counters = self.memblock.allocate(LINE * len(self.cpus))

    def add_tcp(self, sockets: int) -> None:
        """Set memory aside for so many TCP sockets."""
        self.tcp_cache = KmemCache(self.memblock, "TCP", TCP_SOCK.size, sockets, len(self.cpus))
        self.inet_ehash = self.memblock.allocate(INET_EHASH_BYTES)
        self.inet_lhash = self.memblock.allocate(INET_LHASH_BYTES)
        for action in (tcp_write_timer, tcp_delack_timer, tcp_keepalive_timer):
            self.timer_functions[self.text[action.__name__]] = action

    def allocate_sock(self) -> int:
        """Memory for one socket; sockets are few and stay."""
        return self._socks.pop()

    def reserve_socks(self, count: int) -> None:
        """Set memory for ``count`` sockets aside."""
        self._socks = [self.memblock.allocate(SOCK.size, LINE) for _ in range(count)]

    async def start_kernel(self, cpu: Cpu, tasks: Sequence[Task]) -> None:
        """Write every structure to memory and make ``tasks`` runnable; runs on the boot core before anything else."""
        for address, entry in self._page_table_entries:
            cpu.store(address, entry, 8)
        if self.iommu is not None:
            if self.dma.for_kernel:
                self.iommu.map_pages()
            await init_dmars(cpu, self.iommu)
        self.pages.init(cpu)
        self.skb_cache.init(cpu)
        init_packet_types(cpu)
        init_local_table(cpu, self.addresses)
        if self.tcp_cache is not None:
            self.tcp_cache.init(cpu)
        init_fib(cpu, self.routes)
        self.arp_table.init(cpu, ETH_P_IP)
        if self.raw_table:
            init_raw_table(cpu, self.raw_table)
        for each in self.cpus:
            init_list_head(cpu, each.poll_list)
            init_timer_base(cpu, each.timer_base)
            init_runqueue(cpu, each)
            init_task_struct(cpu, each.idle_task)
            init_task_struct(cpu, each.ksoftirqd, TASK_INTERRUPTIBLE)
        for task in tasks:
            init_task_struct(cpu, task)
            await wake_up_new_task(cpu, task)
        await cpu.fence()
