"""Sending by a device (net/core/dev.c, the transmit side)."""

from errno import ENETDOWN, ENOBUFS

from sw.core import function
from sw.linux.cpu import Cpu
from sw.linux.net.sch_generic import qdisc_xmit
from sw.linux.skb import kfree_skb_reason
from sw.linux.softirq import local_bh_disable, local_bh_enable

__all__ = ["__dev_queue_xmit"]


@function()
async def __dev_queue_xmit(cpu: Cpu, skb: int) -> int:
    """Send a whole frame by the host's device; 0, or a negative errno if it was dropped. The skb is gone either way."""
    local_bh_disable(cpu)
    queue = cpu.kernel.tx_queue
    if queue is None:
        await kfree_skb_reason(cpu, skb, "DEV_READY")
        error = -ENETDOWN
    else:
        error = 0 if await qdisc_xmit(cpu, queue, skb) else -ENOBUFS
    await local_bh_enable(cpu)
    return error
