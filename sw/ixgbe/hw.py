"""The card's registers as every driver of it uses them: reset, filters, one queue after another.

The kernel's driver and the poll-mode driver share this code, as the real ones share Intel's.
"""

from dataclasses import dataclass

from hw.memory_map import BAR0_BASE, BAR3_BASE
from hw.nic.descriptors import DESCRIPTOR_BYTES, TX_DATA
from hw.nic.registers import REG, Register
from sw.core import function
from sw.linux.cpu import Cpu

__all__ = [
    "MAX_FRAME",
    "IxgbeError",
    "IxgbeHw",
    "ixgbe_reset_hw",
    "ixgbe_rx_enable",
    "ixgbe_rx_queue_start",
    "ixgbe_rx_queue_stop",
    "ixgbe_rx_unit_configure",
    "ixgbe_tx_queue_start",
    "ixgbe_tx_queue_stop",
    "ixgbe_wait_link",
    "tx_data",
]

#: Reads of a register before the driver gives up on the card.
MAX_POLLS = 100
#: Cycles between two such reads (the kernel sleeps microseconds).
POLL_CYCLES = 1000

#: Largest frame, FCS included: an MTU of 1500 (``ETH_DATA_LEN + ETH_HLEN + ETH_FCS_LEN``).
MAX_FRAME = 1518


class IxgbeError(RuntimeError):
    """The card does not do what its datasheet says; the message is one line."""


@dataclass(frozen=True)
class IxgbeHw:
    """Where the card's registers lie, and how they are reached."""

    bar0: int = BAR0_BASE
    bar3: int = BAR3_BASE

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
async def ixgbe_reset_hw(cpu: Cpu, hw: IxgbeHw, mac: bytes) -> None:
    """Mask interrupts, reset (section 4.2.1.6.1 of the datasheet), set the station address."""
    hw.write(cpu, REG.EIMC, 0xFFFF_FFFF)
    hw.write(cpu, REG.RXCTRL, 0)
    control = await hw.read(cpu, REG.CTRL)
    hw.write(cpu, REG.CTRL, control | REG.CTRL.RST.mask)
    await hw.wait_for(cpu, REG.CTRL, REG.CTRL.RST.mask, 0)
    hw.write(cpu, REG.EIMC, 0xFFFF_FFFF)
    await hw.read(cpu, REG.EICR)
    await hw.wait_for(cpu, REG.EEC, REG.EEC.AUTO_RD.mask, REG.EEC.AUTO_RD.mask)
    await hw.wait_for(cpu, REG.RDRXCTL, REG.RDRXCTL.DMAIDONE.mask, REG.RDRXCTL.DMAIDONE.mask)
    hw.write(cpu, REG.RAL, int.from_bytes(mac[:4], "little"))
    hw.write(cpu, REG.RAH, int.from_bytes(mac[4:], "little") | REG.RAH.AV.mask)


@function()
async def ixgbe_rx_unit_configure(cpu: Cpu, hw: IxgbeHw, promiscuous: bool) -> None:
    """Frame size, CRC stripping, filters (section 4.6.7)."""
    hw.write(cpu, REG.MAXFRS, REG.MAXFRS.MFS.put(MAX_FRAME))
    hlreg0 = await hw.read(cpu, REG.HLREG0)
    hw.write(cpu, REG.HLREG0, hlreg0 | REG.HLREG0.JUMBOEN.mask | REG.HLREG0.RXCRCSTRP.mask)
    rdrxctl = await hw.read(cpu, REG.RDRXCTL)
    hw.write(cpu, REG.RDRXCTL, rdrxctl | REG.RDRXCTL.CRCSTRIP.mask)
    fctrl = REG.FCTRL.BAM.mask
    if promiscuous:
        fctrl |= REG.FCTRL.UPE.mask | REG.FCTRL.MPE.mask
    hw.write(cpu, REG.FCTRL, fctrl)
    hw.write(cpu, REG.MRQC, 0)


@function()
async def ixgbe_rx_queue_start(
    cpu: Cpu, hw: IxgbeHw, queue: int, descriptors: int, count: int, buffer_bytes: int
) -> None:
    """Give the card a ring of ``count`` descriptors at physical address ``descriptors``, and enable it, empty.

    Arguments:
        buffer_bytes: bytes of the buffer behind each descriptor, a multiple of 1024.
    """
    hw.write(cpu, REG.RDBAL, descriptors & 0xFFFF_FFFF, queue)
    hw.write(cpu, REG.RDBAH, descriptors >> 32, queue)
    hw.write(cpu, REG.RDLEN, count * DESCRIPTOR_BYTES, queue)
    hw.write(cpu, REG.RDH, 0, queue)
    hw.write(cpu, REG.RDT, 0, queue)
    srrctl = REG.SRRCTL
    buffers = srrctl.BSIZEPACKET.put(buffer_bytes // 1024)
    hw.write(cpu, srrctl, buffers | srrctl.DESCTYPE.put(1) | srrctl.DROP_EN.mask, queue)
    enable = REG.RXDCTL.ENABLE.mask
    hw.write(cpu, REG.RXDCTL, enable, queue)
    await hw.wait_for(cpu, REG.RXDCTL, enable, enable, queue)


@function()
async def ixgbe_rx_queue_stop(cpu: Cpu, hw: IxgbeHw, queue: int) -> None:
    """Take a ring from the card, and wait until it has no use for it any more (section 4.6.7.1.2)."""
    hw.write(cpu, REG.RXDCTL, await hw.read(cpu, REG.RXDCTL, queue) & ~REG.RXDCTL.ENABLE.mask, queue)
    await hw.wait_for(cpu, REG.RXDCTL, REG.RXDCTL.ENABLE.mask, 0, queue)


@function()
async def ixgbe_rx_enable(cpu: Cpu, hw: IxgbeHw) -> None:
    """Say that a driver is there, and let frames in."""
    hw.write(cpu, REG.CTRL_EXT, await hw.read(cpu, REG.CTRL_EXT) | REG.CTRL_EXT.DRV_LOAD.mask)
    hw.write(cpu, REG.RXCTRL, REG.RXCTRL.RXEN.mask)


@function()
async def ixgbe_wait_link(cpu: Cpu, hw: IxgbeHw) -> None:
    """Wait for the link."""
    await hw.wait_for(cpu, REG.LINKS, REG.LINKS.UP.mask, REG.LINKS.UP.mask)


@function()
async def ixgbe_tx_queue_start(cpu: Cpu, hw: IxgbeHw, queue: int, descriptors: int, count: int) -> None:
    """Let the card pad and append the FCS, give it a ring, and enable both (section 4.6.8)."""
    hlreg0 = await hw.read(cpu, REG.HLREG0)
    hw.write(cpu, REG.HLREG0, hlreg0 | REG.HLREG0.TXCRCEN.mask | REG.HLREG0.TXPADEN.mask)
    hw.write(cpu, REG.TDBAL, descriptors & 0xFFFF_FFFF, queue)
    hw.write(cpu, REG.TDBAH, descriptors >> 32, queue)
    hw.write(cpu, REG.TDLEN, count * DESCRIPTOR_BYTES, queue)
    hw.write(cpu, REG.TDH, 0, queue)
    hw.write(cpu, REG.TDT, 0, queue)
    hw.write(cpu, REG.DMATXCTL, await hw.read(cpu, REG.DMATXCTL) | REG.DMATXCTL.TE.mask)
    enable = REG.TXDCTL.ENABLE.mask
    hw.write(cpu, REG.TXDCTL, enable, queue)
    await hw.wait_for(cpu, REG.TXDCTL, enable, enable, queue)


@function()
async def ixgbe_tx_queue_stop(cpu: Cpu, hw: IxgbeHw, queue: int) -> None:
    """Take a transmit ring from the card, and wait until it has no use for it any more (section 4.6.8)."""
    hw.write(cpu, REG.TXDCTL, await hw.read(cpu, REG.TXDCTL, queue) & ~REG.TXDCTL.ENABLE.mask, queue)
    await hw.wait_for(cpu, REG.TXDCTL, REG.TXDCTL.ENABLE.mask, 0, queue)


def tx_data(address: int, length: int, *, report: bool = True) -> bytes:
    """An advanced descriptor for a frame in one piece.

    Arguments:
        address: physical address of the frame, without FCS.
        report: have the card write the descriptor back when it is done.
    """
    return TX_DATA.pack(
        address=address,
        length=length,
        dtyp=3,
        dext=1,
        ifcs=1,
        eop=1,
        rs=int(report),
        payload_length=length,
    )
