"""Bringing the card up and its interrupt."""

from dataclasses import dataclass

from hw.memory_map import BAR0_BASE, BAR3_BASE, MSI_BASE
from hw.nic.descriptors import DESCRIPTOR_BYTES
from hw.nic.registers import REG, Register, msix_entry
from sw.core import LINE, function
from sw.ixgbe.ring import IXGBE_RX_BUFSZ, IxgbeRing
from sw.ixgbe.rx import ixgbe_alloc_rx_buffers, ixgbe_clean_rx_irq, ixgbe_init_rx_ring
from sw.linux.cpu import Cpu
from sw.linux.irq import FIRST_EXTERNAL_VECTOR
from sw.linux.kernel import Kernel
from sw.linux.napi import NAPI_STRUCT, Napi, napi_complete_done, napi_schedule, netif_napi_add

__all__ = ["IxgbeAdapter", "IxgbeError", "ixgbe_probe"]

#: Reads of a register before the driver gives up on the card.
MAX_POLLS = 100
#: Cycles between two such reads (the kernel sleeps microseconds).
POLL_CYCLES = 1000

#: Largest frame, FCS included: an MTU of 1500 (``ETH_DATA_LEN + ETH_HLEN + ETH_FCS_LEN``).
MAX_FRAME = 1518

#: The queue and the MSI-X vector in use.
QUEUE = 0
VECTOR = 0
#: Units of EITR, in nanoseconds at 10 Gb/s.
_EITR_UNIT_NS = 2048


class IxgbeError(RuntimeError):
    """The card does not do what its datasheet says; the message is one line."""


@dataclass(slots=True, eq=False)
class IxgbeAdapter:
    """One port with one receive queue.

    Arguments:
        ring_size: receive descriptors.
        itr_us: least time between two interrupts, in microseconds; 0: no moderation.
        promiscuous: accept frames for others too.
        core: who takes the interrupt.

    Raises:
        ValueError: for a ring or an interval that the card cannot do.
    """

    kernel: Kernel
    ring: IxgbeRing
    napi: Napi
    itr_us: float
    promiscuous: bool
    core: int
    bar0: int = BAR0_BASE
    bar3: int = BAR3_BASE

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
        napi = Napi(kernel.memblock.allocate(NAPI_STRUCT.size, LINE), poll=_poller(ring))
        return cls(kernel, ring, napi, itr_us, promiscuous, core)

    async def read(self, cpu: Cpu, register: Register, index: int = 0) -> int:
        """Read a register."""
        return await cpu.mmio_read(self.bar0 + register.offset(index))

    def write(self, cpu: Cpu, register: Register, value: int, index: int = 0) -> None:
        """Write a register."""
        cpu.mmio_write(self.bar0 + register.offset(index), value)

    async def wait_for(self, cpu: Cpu, register: Register, mask: int, wanted: int, index: int = 0) -> None:
        """Read a register until the bits of ``mask`` are ``wanted``.

        Raises:
            IxgbeError: after :data:`MAX_POLLS` reads.
        """
        for _ in range(MAX_POLLS):
            value = await self.read(cpu, register, index)
            if value & mask == wanted:
                return
            cpu.execute(POLL_CYCLES)
        raise IxgbeError(
            f"ixgbe: {register.name} reads {value:#010x} for the {MAX_POLLS}th time; "
            f"its bits {mask:#x} should be {wanted:#x}"
        )


@function()
async def ixgbe_probe(cpu: Cpu, adapter: IxgbeAdapter) -> None:
    """Reset the card, set it up and open it; when this returns, frames are received.

    Raises:
        IxgbeError: if the card does not answer as it should.
    """
    await ixgbe_reset_hw(cpu, adapter)
    netif_napi_add(cpu, adapter.napi)
    await ixgbe_configure_rx(cpu, adapter)
    ixgbe_configure_msix(cpu, adapter)
    await ixgbe_up_complete(cpu, adapter)


@function()
async def ixgbe_reset_hw(cpu: Cpu, adapter: IxgbeAdapter) -> None:
    """Mask interrupts, reset (section 4.2.1.6.1 of the datasheet), set the station address."""
    adapter.write(cpu, REG.EIMC, 0xFFFF_FFFF)
    adapter.write(cpu, REG.RXCTRL, 0)
    control = await adapter.read(cpu, REG.CTRL)
    adapter.write(cpu, REG.CTRL, control | REG.CTRL.RST.mask)
    await adapter.wait_for(cpu, REG.CTRL, REG.CTRL.RST.mask, 0)
    adapter.write(cpu, REG.EIMC, 0xFFFF_FFFF)
    await adapter.read(cpu, REG.EICR)
    await adapter.wait_for(cpu, REG.EEC, REG.EEC.AUTO_RD.mask, REG.EEC.AUTO_RD.mask)
    await adapter.wait_for(cpu, REG.RDRXCTL, REG.RDRXCTL.DMAIDONE.mask, REG.RDRXCTL.DMAIDONE.mask)
    mac = adapter.kernel.mac
    adapter.write(cpu, REG.RAL, int.from_bytes(mac[:4], "little"))
    adapter.write(cpu, REG.RAH, int.from_bytes(mac[4:], "little") | REG.RAH.AV.mask)


@function()
async def ixgbe_configure_rx(cpu: Cpu, adapter: IxgbeAdapter) -> None:
    """Filters, frame size, the ring (sections 4.6.7 and 4.6.7.1)."""
    ring = adapter.ring
    queue = ring.queue
    adapter.write(cpu, REG.MAXFRS, REG.MAXFRS.MFS.put(MAX_FRAME))
    hlreg0 = await adapter.read(cpu, REG.HLREG0)
    adapter.write(cpu, REG.HLREG0, hlreg0 | REG.HLREG0.JUMBOEN.mask | REG.HLREG0.RXCRCSTRP.mask)
    rdrxctl = await adapter.read(cpu, REG.RDRXCTL)
    adapter.write(cpu, REG.RDRXCTL, rdrxctl | REG.RDRXCTL.CRCSTRIP.mask)
    fctrl = REG.FCTRL.BAM.mask
    if adapter.promiscuous:
        fctrl |= REG.FCTRL.UPE.mask | REG.FCTRL.MPE.mask
    adapter.write(cpu, REG.FCTRL, fctrl)
    adapter.write(cpu, REG.MRQC, 0)
    adapter.write(cpu, REG.RDBAL, ring.descriptors & 0xFFFF_FFFF, queue)
    adapter.write(cpu, REG.RDBAH, ring.descriptors >> 32, queue)
    adapter.write(cpu, REG.RDLEN, ring.count * DESCRIPTOR_BYTES, queue)
    adapter.write(cpu, REG.RDH, 0, queue)
    adapter.write(cpu, REG.RDT, 0, queue)
    srrctl = REG.SRRCTL
    adapter.write(
        cpu,
        srrctl,
        srrctl.BSIZEPACKET.put(IXGBE_RX_BUFSZ // 1024) | srrctl.DESCTYPE.put(1) | srrctl.DROP_EN.mask,
        queue,
    )
    adapter.write(cpu, REG.RXDCTL, REG.RXDCTL.ENABLE.mask, queue)
    await adapter.wait_for(cpu, REG.RXDCTL, REG.RXDCTL.ENABLE.mask, REG.RXDCTL.ENABLE.mask, queue)
    ixgbe_init_rx_ring(cpu, ring)
    await ixgbe_alloc_rx_buffers(cpu, ring, adapter.bar0, ring.count - 1)


def ixgbe_configure_msix(cpu: Cpu, adapter: IxgbeAdapter) -> None:
    """MSI-X table, causes to vectors, automatic masking and clearing, moderation (section 7.3)."""
    vector = FIRST_EXTERNAL_VECTOR + VECTOR
    entry = adapter.bar3 + msix_entry(VECTOR)
    for offset, value in enumerate((MSI_BASE | adapter.core << 12, 0, vector, 0)):
        cpu.mmio_write(entry + 4 * offset, value)
    adapter.kernel.irq_handlers[vector] = _interrupt_handler(adapter.napi)
    gpie = REG.GPIE
    adapter.write(
        cpu,
        gpie,
        gpie.MSIX_MODE.mask | gpie.PBA_SUPPORT.mask | gpie.OCD.mask | gpie.EIAME.mask,
    )
    causes = REG.EIMS.RTXQ.mask
    adapter.write(cpu, REG.EIAC, causes)
    adapter.write(cpu, REG.EIAM, causes)
    adapter.write(cpu, REG.IVAR, REG.IVAR.RX_EVEN.put(VECTOR) | REG.IVAR.RX_EVEN_VALID.mask, QUEUE // 2)
    interval = round(adapter.itr_us * 1000 / _EITR_UNIT_NS)
    adapter.write(cpu, REG.EITR, REG.EITR.INTERVAL.put(interval), VECTOR)


@function()
async def ixgbe_up_complete(cpu: Cpu, adapter: IxgbeAdapter) -> None:
    """Receive, unmask the queue's interrupt, wait for the link."""
    adapter.write(cpu, REG.CTRL_EXT, await adapter.read(cpu, REG.CTRL_EXT) | REG.CTRL_EXT.DRV_LOAD.mask)
    adapter.write(cpu, REG.RXCTRL, REG.RXCTRL.RXEN.mask)
    await adapter.read(cpu, REG.EICR)
    _irq_enable_queue(cpu, adapter.bar0)
    await adapter.wait_for(cpu, REG.LINKS, REG.LINKS.UP.mask, REG.LINKS.UP.mask)


def _irq_enable_queue(cpu: Cpu, bar0: int) -> None:
    """Unmask the queue's cause; one that came meanwhile interrupts at once."""
    cpu.mmio_write(bar0 + REG.EIMS.offset(), 1 << VECTOR)


@function()
async def ixgbe_msix_clean_rings(cpu: Cpu, napi: Napi) -> None:
    """The top half: the card has masked and cleared the cause itself (EIAM, EIAC); only schedule the poll."""
    await napi_schedule(cpu, napi)


def _interrupt_handler(napi: Napi):
    async def handler(cpu: Cpu) -> None:
        await ixgbe_msix_clean_rings(cpu, napi)

    return handler


@function()
async def ixgbe_poll(cpu: Cpu, ring: IxgbeRing, napi: Napi, budget: int) -> int:
    """Clean the ring; when it is empty, end polling and unmask the interrupt. ``budget`` means there is more."""
    work = await ixgbe_clean_rx_irq(cpu, ring, BAR0_BASE, budget)
    if work >= budget:
        return budget
    if await napi_complete_done(cpu, napi):
        _irq_enable_queue(cpu, BAR0_BASE)
    return min(work, budget - 1)


def _poller(ring: IxgbeRing):
    async def poll(napi: Napi, cpu: Cpu, budget: int) -> int:
        return await ixgbe_poll(cpu, ring, napi, budget)

    return poll
