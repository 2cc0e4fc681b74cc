"""Bringing the card up and its interrupt."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from hw.memory_map import MSI_BASE
from hw.nic.registers import REG, msix_entry
from sw.core import LINE, function
from sw.ixgbe.hw import (
    IxgbeHw,
    ixgbe_reset_hw,
    ixgbe_rx_enable,
    ixgbe_rx_queue_start,
    ixgbe_rx_unit_configure,
    ixgbe_tx_queue_start,
    ixgbe_wait_link,
)
from sw.ixgbe.ring import IXGBE_RX_BUFSZ, IxgbeRing
from sw.ixgbe.rx import ixgbe_alloc_rx_buffers, ixgbe_clean_rx_irq, ixgbe_init_rx_ring, ixgbe_next_status
from sw.ixgbe.tx import IxgbeTxRing, ixgbe_clean_tx_irq, ixgbe_init_tx_ring, ixgbe_xmit_frame_ring
from sw.ixgbe.xdp import IxgbeXdp
from sw.ixgbe.xsk import ixgbe_clean_rx_irq_zc, ixgbe_clean_xdp_tx_irq
from sw.linux.cpu import Cpu
from sw.linux.irq import FIRST_EXTERNAL_VECTOR
from sw.linux.kernel import Kernel
from sw.linux.napi import NAPI_STRUCT, Napi, napi_complete_done, napi_schedule, netif_napi_add
from sw.linux.net.sch_generic import NetdevQueue

__all__ = ["IxgbeAdapter", "ixgbe_probe"]

#: The queue pair and the MSI-X vector in use, and the transmit queue of XDP.
QUEUE = 0
VECTOR = 0
XDP_QUEUE = 1
#: Frames of one poll that are freed on each transmit ring (``IXGBE_DEFAULT_TX_WORK``).
TX_WORK_LIMIT = 256
#: Units of EITR, in nanoseconds at 10 Gb/s.
_EITR_UNIT_NS = 2048


@dataclass(slots=True, eq=False)
class IxgbeAdapter:
    """One port with one receive queue.

    Arguments:
        ring_size: receive descriptors.
        itr_us: least time between two interrupts, in microseconds; 0: no moderation.
        promiscuous: accept frames for others too.
        core: who takes the interrupt.
        polled: the interrupt schedules NAPI and stays masked meanwhile; else its handler does all there is to do.

    Raises:
        ValueError: for a ring or an interval that the card cannot do.
    """

    kernel: Kernel
    ring: IxgbeRing
    napi: Napi
    itr_us: float
    promiscuous: bool
    core: int
    hw: IxgbeHw = field(default_factory=IxgbeHw)
    tx_rings: list[IxgbeTxRing] = field(default_factory=list)
    polled: bool = True

    @classmethod
    def make(
        cls, kernel: Kernel, ring_size: int = 512, itr_us: float = 10.0, promiscuous: bool = False, core: int = 0
    ) -> "IxgbeAdapter":
        """Set the adapter's memory aside."""
        most = REG.EITR.INTERVAL.mask >> REG.EITR.INTERVAL.low
        if not 0 <= itr_us * 1000 / _EITR_UNIT_NS <= most:
            raise ValueError(
                f"the interrupt interval must be between 0 and {most * _EITR_UNIT_NS // 1000} us, not {itr_us:g} us"
            )
        ring = IxgbeRing(kernel.memblock, ring_size, QUEUE)
        ring.map(kernel.dma)

        async def poll(napi: Napi, cpu: Cpu, budget: int) -> int:
            return await ixgbe_poll(cpu, adapter, napi, budget)

        async def watch(cpu: Cpu) -> int:
            return await ixgbe_next_status(cpu, ring)

        napi = Napi(kernel.memblock.allocate(NAPI_STRUCT.size, LINE), poll, watch)
        adapter = cls(kernel, ring, napi, itr_us, promiscuous, core)
        return adapter

    def add_tx(self) -> IxgbeTxRing:
        """Have the kernel send by the transmit queue of the pair."""
        ring = IxgbeTxRing(self.kernel.memblock, self.ring.count, QUEUE)
        ring.map(self.kernel.dma)

        async def ndo_start_xmit(cpu: Cpu, skb: int) -> bool:
            return await ixgbe_xmit_frame_ring(cpu, self.hw, ring, skb)

        ring.netdev_queue = self.kernel.tx_queue = NetdevQueue(self.kernel.memblock, ndo_start_xmit)
        self.tx_rings.append(ring)
        return ring

    def add_xdp(self) -> IxgbeXdp:
        """Let a program run on what is received; what it sends goes out by a queue of its own."""
        ring = IxgbeTxRing(self.kernel.memblock, self.ring.count, XDP_QUEUE)
        ring.map(self.kernel.dma)
        self.tx_rings.append(ring)
        self.ring.xdp = xdp = IxgbeXdp(self.kernel.memblock, ring, self.ring.queue)
        return xdp


@function()
async def ixgbe_probe(cpu: Cpu, adapter: IxgbeAdapter) -> None:
    """Reset the card, set it up and open it; when this returns, frames are received.

    Raises:
        IxgbeError: if the card does not answer as it should.
    """
    await ixgbe_reset_hw(cpu, adapter.hw, adapter.kernel.mac)
    netif_napi_add(cpu, adapter.napi)
    await ixgbe_configure_tx(cpu, adapter)
    await ixgbe_configure_rx(cpu, adapter)
    ixgbe_configure_msix(cpu, adapter)
    await ixgbe_up_complete(cpu, adapter)


@function()
async def ixgbe_configure_rx(cpu: Cpu, adapter: IxgbeAdapter) -> None:
    """Filters, frame size, the ring (sections 4.6.7 and 4.6.7.1)."""
    ring = adapter.ring
    await ixgbe_rx_unit_configure(cpu, adapter.hw, adapter.promiscuous)
    await ixgbe_rx_queue_start(cpu, adapter.hw, ring.queue, ring.dma, ring.count, IXGBE_RX_BUFSZ)
    ixgbe_init_rx_ring(cpu, ring)
    if ring.xdp is not None:
        ring.xdp.init(cpu)
    await ixgbe_alloc_rx_buffers(cpu, ring, adapter.hw, ring.count - 1)


@function()
async def ixgbe_configure_tx(cpu: Cpu, adapter: IxgbeAdapter) -> None:
    """The transmit rings (section 4.6.8)."""
    for ring in adapter.tx_rings:
        ixgbe_init_tx_ring(cpu, ring)
        await ixgbe_tx_queue_start(cpu, adapter.hw, ring.queue, ring.dma, ring.count)


def ixgbe_configure_msix(cpu: Cpu, adapter: IxgbeAdapter) -> None:
    """MSI-X table, causes to vectors, automatic masking and clearing, moderation (section 7.3)."""
    vector = FIRST_EXTERNAL_VECTOR + VECTOR
    entry = adapter.hw.bar3 + msix_entry(VECTOR)
    for offset, value in enumerate((MSI_BASE | adapter.core << 12, 0, vector, 0)):
        cpu.mmio_write(entry + 4 * offset, value)
    adapter.kernel.irq_handlers[vector] = _interrupt_handler(adapter)
    gpie = REG.GPIE
    adapter.hw.write(
        cpu,
        gpie,
        gpie.MSIX_MODE.mask | gpie.PBA_SUPPORT.mask | gpie.OCD.mask | gpie.EIAME.mask,
    )
    causes = REG.EIMS.RTXQ.mask
    adapter.hw.write(cpu, REG.EIAC, causes)
    adapter.hw.write(cpu, REG.EIAM, causes if adapter.polled else 0)
    ivar = REG.IVAR
    vectors = ivar.RX_EVEN.put(VECTOR) | ivar.RX_EVEN_VALID.mask
    for ring in adapter.tx_rings:
        cause, valid = (ivar.TX_ODD, ivar.TX_ODD_VALID) if ring.queue % 2 else (ivar.TX_EVEN, ivar.TX_EVEN_VALID)
        vectors |= cause.put(VECTOR) | valid.mask
    adapter.hw.write(cpu, ivar, vectors, QUEUE // 2)
    interval = round(adapter.itr_us * 1000 / _EITR_UNIT_NS)
    adapter.hw.write(cpu, REG.EITR, REG.EITR.INTERVAL.put(interval), VECTOR)


@function()
async def ixgbe_up_complete(cpu: Cpu, adapter: IxgbeAdapter) -> None:
    """Receive, unmask the queue's interrupt, wait for the link."""
    hw = adapter.hw
    await ixgbe_rx_enable(cpu, hw)
    await hw.read(cpu, REG.EICR)
    _irq_enable_queue(cpu, hw)
    await ixgbe_wait_link(cpu, hw)


def _irq_enable_queue(cpu: Cpu, hw: IxgbeHw) -> None:
    """Unmask the queue's cause; one that came meanwhile interrupts at once."""
    hw.write(cpu, REG.EIMS, 1 << VECTOR)


@function()
async def ixgbe_msix_clean_rings(cpu: Cpu, napi: Napi) -> None:
    """The top half: the card has masked and cleared the cause itself (EIAM, EIAC); only schedule the poll."""
    await napi_schedule(cpu, napi)


@function()
async def ixgbe_intr(cpu: Cpu, adapter: IxgbeAdapter) -> None:
    """All of the receive side in the handler, as drivers had it before NAPI.

    The card has cleared the cause but not masked it, so what comes meanwhile interrupts again. A whole ring of packets
    is the most that is done at once (such drivers had a ``max_interrupt_work``); if there may be more, or memory was
    short, the card is told to interrupt once more.
    """
    if await ixgbe_clean_rx_irq(cpu, adapter.ring, adapter.hw, adapter.ring.count) >= adapter.ring.count:
        adapter.hw.write(cpu, REG.EICS, 1 << VECTOR)


def _interrupt_handler(adapter: IxgbeAdapter) -> Callable[[Cpu], Awaitable[None]]:
    async def handler(cpu: Cpu) -> None:
        if adapter.polled:
            await ixgbe_msix_clean_rings(cpu, adapter.napi)
        else:
            await ixgbe_intr(cpu, adapter)

    return handler


@function()
async def ixgbe_poll(cpu: Cpu, adapter: IxgbeAdapter, napi: Napi, budget: int) -> int:
    """Clean the rings; when they are empty, end polling and unmask the interrupt. ``budget`` means there is more."""
    cleaned = True
    for ring in adapter.tx_rings:
        if ring.xsk_pool is not None:
            cleaned &= await ixgbe_clean_xdp_tx_irq(cpu, adapter.hw, ring, TX_WORK_LIMIT)
        else:
            cleaned &= await ixgbe_clean_tx_irq(cpu, ring, TX_WORK_LIMIT)
    clean_rx_irq = ixgbe_clean_rx_irq if adapter.ring.xsk_pool is None else ixgbe_clean_rx_irq_zc
    work = await clean_rx_irq(cpu, adapter.ring, adapter.hw, budget)
    if work >= budget or not cleaned:
        return budget
    if await napi_complete_done(cpu, napi):
        _irq_enable_queue(cpu, adapter.hw)
    return min(work, budget - 1)
