"""Path "dpdk": a poll-mode driver in a program, no kernel on the way."""

from sw.apps.rxonly import RxOnly
from sw.dpdk.ixgbe import IXGBE_MIN_RING_DESC, RTE_IXGBE_RXQ_REARM_THRESH, IxgbeRxQueue
from sw.dpdk.mbuf import mbuf_pool_bytes
from sw.linux.cpu import Cpu
from sw.linux.kernel import Kernel
from sw.linux.sched import PRIORITY_NORMAL
from sw.options import Options
from sw.paths.path import BOOT_CORE, Path

__all__ = ["DpdkPath"]

#: Pointers in the mempool's cache, as DPDK's example programs have them; fewer in a small pool.
_CACHE = 256


class DpdkPath(Path):
    """A program that never sleeps; its buffers and rings lie in pages of 2 MiB."""

    name = "dpdk"
    summary = "a poll-mode driver in user space: bursts, mbufs in huge pages"
    costs = ("linux", "dpdk")
    least_ring = IXGBE_MIN_RING_DESC
    applications = {
        "rxonly": "receives bursts and frees them, as testpmd's rxonly",
    }

    def __init__(self, kernel: Kernel, options: Options):
        super().__init__(kernel, options)
        ring = options.ring_size
        queue_memory = kernel.allocate_huge(IxgbeRxQueue.bytes_needed(ring))
        queue = IxgbeRxQueue(queue_memory, ring)
        # What the ring holds, what may be in the program's hands, and what the cache may keep back.
        cache = min(_CACHE, ring // 2)
        mbufs = ring + 2 * RTE_IXGBE_RXQ_REARM_THRESH + 2 * cache
        pool = kernel.allocate_huge(mbuf_pool_bytes(mbufs, cache))
        program = RxOnly(queue, pool, mbufs, cache, options.mac, options.promiscuous, options.batch)
        self.queue = queue
        self.tasks = [kernel.new_task("rxonly", kernel.cpus[BOOT_CORE], PRIORITY_NORMAL, program.main)]
        self.starting = 1

    async def start(self, cpu: Cpu) -> None:
        """The program brings the card up itself."""
