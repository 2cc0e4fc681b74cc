"""XDP in the driver: the program runs on a received buffer before there is an skb (ixgbe_main.c)."""

import enum
from dataclasses import dataclass, field

from hw.nic.registers import REG
from sw.bpf.context import NET_DEVICE, XDP_BUFF, XDP_RXQ_INFO, XdpAction
from sw.bpf.syscall import LoadedProgram
from sw.core import LINE, function
from sw.ixgbe.hw import IxgbeHw
from sw.ixgbe.tx import IxgbeTxRing, ixgbe_xmit_xdp_ring, tx_next_to_use
from sw.linux.cpu import Cpu
from sw.linux.mm import MemBlock, put_page
from sw.linux.xdp.redirect import redirect_drop_reason, xdp_do_redirect
from sw.linux.xdp.xsk import AfXdp

__all__ = ["IxgbeXdp", "XdpResult", "ixgbe_run_xdp", "ixgbe_xdp_ring_update_tail"]

_IFINDEX = 2  #: the loopback device is 1


class XdpResult(enum.Enum):
    """What becomes of a buffer (``IXGBE_XDP_*``)."""

    PASS = enum.auto()  #: on to the stack
    CONSUMED = enum.auto()  #: dropped: the driver keeps the buffer
    TX = enum.auto()  #: given to the card to be sent
    REDIRECT = enum.auto()  #: with whom the program has chosen
    EXIT = enum.auto()  #: kept for the next poll: whom it is for takes no more now


@dataclass(slots=True, eq=False)
class IxgbeXdp:
    """A program on a receive queue, and what it needs.

    Arguments:
        ring: where it sends (``adapter->xdp_ring``), a queue of its own.
        program: set before packets come.
        sockets: where it may redirect to, if anywhere.
    """

    memblock: MemBlock
    ring: IxgbeTxRing
    queue: int = 0  #: of the receive ring
    program: LoadedProgram | None = None
    sockets: AfXdp | None = None
    buff: int = field(init=False)  #: address of the ``struct xdp_buff``, which lies on the poll's stack
    rxq: int = field(init=False)  #: address of the ``struct xdp_rxq_info``
    device: int = field(init=False)  #: address of the ``struct net_device``

    def __post_init__(self):
        self.buff = self.memblock.allocate(LINE)
        self.rxq = self.memblock.allocate(XDP_RXQ_INFO.size)
        self.device = self.memblock.allocate(NET_DEVICE.size)

    def init(self, cpu: Cpu) -> None:
        """Write what does not change from packet to packet (``xdp_rxq_info_reg``, ``xdp_init_buff``)."""
        cpu.put(self.device, NET_DEVICE.ifindex, _IFINDEX)
        rxq = XDP_RXQ_INFO.pack(dev=self.device, queue_index=self.queue, reg_state=1)
        cpu.store(self.rxq, rxq, XDP_RXQ_INFO.size)


@function()
async def ixgbe_run_xdp(
    cpu: Cpu, xdp: IxgbeXdp, packet: tuple[int, int], page: int, start: int, data: int, length: int, size: int
) -> tuple[XdpResult, int, int]:
    """Run the program on a packet and do what it says.

    Arguments:
        packet: which received packet it is, for observers.
        page: the page the buffer lies in.
        start: address of the buffer, of ``size`` bytes.
        data: address of the packet, of ``length`` bytes.

    Returns:
        what becomes of the buffer, and where the packet begins and how long it is now.
    """
    values = {"data": data, "data_end": data + length, "data_meta": data, "data_hard_start": start}
    cpu.store(xdp.buff, XDP_BUFF.pack(**values, rxq=xdp.rxq, frame_sz=size), XDP_BUFF.size)
    assert xdp.program is not None
    verdict = await xdp.program.run(cpu, xdp.buff)
    data, end = await cpu.get_all(xdp.buff, XDP_BUFF.data, XDP_BUFF.data_end)
    length = end - data
    if verdict == XdpAction.PASS:
        return XdpResult.PASS, data, length
    if verdict == XdpAction.TX:
        if await ixgbe_xmit_xdp_ring(cpu, xdp.ring, page, data, length, packet):
            return XdpResult.TX, data, length
        cpu.note("dropped", packet=packet, reason="XDP_TX_FULL")
    elif verdict == XdpAction.DROP:
        cpu.note("delivered", packet=packet, length=length)
    elif verdict == XdpAction.REDIRECT:
        error = await xdp_do_redirect(cpu, xdp.program.runtime, xdp.sockets, xdp.buff, packet)
        if not error:
            # The packet has been copied: nobody needs this half of the page any more (xdp_return_buff).
            await put_page(cpu, page)
            return XdpResult.REDIRECT, data, length
        cpu.note("dropped", packet=packet, reason=redirect_drop_reason(error))
    else:
        # ABORTED, or a verdict that there is not: an exception for whoever traces them.
        cpu.note("dropped", packet=packet, reason="XDP_ABORTED")
    cpu.execute("xdp_consumed")
    return XdpResult.CONSUMED, data, length


@function()
async def ixgbe_xdp_ring_update_tail(cpu: Cpu, hw: IxgbeHw, ring: IxgbeTxRing) -> None:
    """Tell the card of all frames that were put into the ring by a poll."""
    hw.write(cpu, REG.TDT, await tx_next_to_use(cpu, ring), ring.queue)
