"""From the protocols to the driver (net/core/dev.c)."""

from typing import Protocol

from sw.core import function
from sw.linux.cpu import Cpu
from sw.linux.skb import kfree_skb
from sw.linux.spinlock import raw_spin_lock, raw_spin_unlock

__all__ = ["NetDevice", "dev_queue_xmit"]


class NetDevice(Protocol):
    """What sends frames (``struct net_device``)."""

    xmit_lock: int  #: address of the lock of its transmit queue

    async def start_xmit(self, cpu: Cpu, skb: int) -> bool:
        """Take a frame (``ndo_start_xmit``); false if there is no room. The queue's lock is held."""


@function()
async def dev_queue_xmit(cpu: Cpu, skb: int) -> bool:
    """Give a frame to the device under its queue's lock; whether it took it. Softirqs are disabled."""
    netdev = cpu.kernel.netdev
    await raw_spin_lock(cpu, netdev.xmit_lock)
    taken = await netdev.start_xmit(cpu, skb)
    raw_spin_unlock(cpu, netdev.xmit_lock)
    if not taken:
        await kfree_skb(cpu, skb)
    return taken
