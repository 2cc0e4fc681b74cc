"""Sending in copy mode: an skb for each packet, the driver's ordinary way out."""

from sw.linux.cpu import Cpu
from sw.linux.xdp.xsk import XdpSock

__all__ = ["xsk_generic_xmit"]


async def xsk_generic_xmit(cpu: Cpu, xs: XdpSock) -> int:
    """TODO."""
    return 0
