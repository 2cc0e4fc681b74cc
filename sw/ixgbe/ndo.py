"""What the driver offers the network stack (``ixgbe_netdev_ops``)."""

from dataclasses import dataclass
from errno import EINVAL

from sw.ixgbe.main import IxgbeAdapter
from sw.linux.cpu import Cpu
from sw.linux.xdp.pool import XskBuffPool

__all__ = ["IxgbeNetdev"]


@dataclass(frozen=True, slots=True)
class IxgbeNetdev:
    """The adapter as a network device; see ``sw.linux.xdp.xsk.XdpDevice``."""

    adapter: IxgbeAdapter
    ifindex: int = 2  #: the loopback device is 1
    queues: int = 1  #: pairs of queues in use

    async def ndo_setup_xsk_pool(self, cpu: Cpu, pool: XskBuffPool, queue: int) -> int:
        """Use a socket's chunks as buffers."""
        return -EINVAL

    async def ndo_xsk_wakeup(self, cpu: Cpu, queue: int, flags: int) -> int:
        """Have the queue polled soon."""
        return 0
