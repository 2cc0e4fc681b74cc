"""What programs ask of a bound socket: send, receive, wait (``xsk_sendmsg``, ``xsk_recvmsg``, ``xsk_poll``)."""

from errno import EINVAL, ENOBUFS, ENXIO

from sw.core import function
from sw.linux.cpu import Cpu
from sw.linux.select import PollEvent
from sw.linux.xdp.generic import xsk_generic_xmit
from sw.linux.xdp.pool import XDP_WAKEUP_RX, XDP_WAKEUP_TX, XSK_BUFF_POOL
from sw.linux.xdp.queue import xskq_cons_present, xskq_prod_is_empty
from sw.linux.xdp.xsk import XdpSock

__all__ = ["xsk_poll", "xsk_recvmsg", "xsk_sendmsg"]


@function()
async def xsk_sendmsg(cpu: Cpu, xs: XdpSock) -> int:
    """See to it that what is on the transmit ring is sent, without waiting; 0 or a negative errno."""
    if xs.pool is None:
        return -ENXIO
    if xs.tx is None:
        return -ENOBUFS
    if await cpu.get(xs.pool.address, XSK_BUFF_POOL.cached_need_wakeup) & XDP_WAKEUP_TX:
        return await _transmit(cpu, xs, XDP_WAKEUP_TX)
    return 0


@function()
async def xsk_recvmsg(cpu: Cpu, xs: XdpSock) -> int:
    """See to it that the driver looks at the fill ring again; 0 or a negative errno."""
    if xs.pool is None:
        return -ENXIO
    if xs.rx is None:
        return -ENOBUFS
    if xs.zc and await cpu.get(xs.pool.address, XSK_BUFF_POOL.cached_need_wakeup) & XDP_WAKEUP_RX:
        return await _wakeup(cpu, xs, XDP_WAKEUP_RX)
    return 0


@function()
async def xsk_poll(cpu: Cpu, xs: XdpSock) -> PollEvent:
    """What the socket is ready for; the driver is woken for whatever it waits for."""
    ready = PollEvent(0)
    if xs.pool is None:
        return ready
    wanted = await cpu.get(xs.pool.address, XSK_BUFF_POOL.cached_need_wakeup)
    if wanted:
        await _transmit(cpu, xs, wanted)
    if xs.rx is not None and not await xskq_prod_is_empty(cpu, xs.rx):
        ready |= PollEvent.POLLIN
    if xs.tx is not None and await xskq_cons_present(cpu, xs.tx) <= xs.tx.entries // 2:
        ready |= PollEvent.POLLOUT
    return ready


async def _transmit(cpu: Cpu, xs: XdpSock, flags: int) -> int:
    """Have the driver send, or in copy mode do it here and now (``xsk_xmit``)."""
    if xs.zc:
        return await _wakeup(cpu, xs, flags)
    return await xsk_generic_xmit(cpu, xs) if xs.tx is not None else -EINVAL


async def _wakeup(cpu: Cpu, xs: XdpSock, flags: int) -> int:
    assert xs.device is not None
    return await xs.device.ndo_xsk_wakeup(cpu, xs.queue, flags)
