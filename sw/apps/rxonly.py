"""A DPDK program that receives and frees (testpmd's ``rxonly``)."""

from sw.core import function
from sw.dpdk.ixgbe import IxgbeRxQueue, ixgbe_dev_start, ixgbe_recv_pkts_vec, rx_burst_wait
from sw.dpdk.mbuf import rte_pktmbuf_free_bulk, rte_pktmbuf_pool_create
from sw.ixgbe.hw import IxgbeHw
from sw.linux.cpu import Cpu

__all__ = ["MAX_PKT_BURST", "RxOnly"]

#: Packets of a burst, unless asked otherwise.
MAX_PKT_BURST = 32

#: How long an empty ring is watched before the program looks whether it should end, in cycles.
_PATIENCE = 100_000


class RxOnly:
    """Receives bursts and frees them.

    Arguments:
        queue: the queue to receive from.
        pool_memory: where its mempool goes.
        mbufs: objects of the pool.
        cache: objects in the pool's cache for this core.
        mac: station address.
        burst: packets asked for at once, a multiple of 4.

    Notes: ``ready`` once; ``poll`` (work) for each burst; ``delivered`` (packet, length) for each packet, when the
    burst is handed to the program.
    """

    def __init__(
        self,
        queue: IxgbeRxQueue,
        pool_memory: int,
        mbufs: int,
        cache: int,
        mac: bytes,
        promiscuous: bool = False,
        burst: int = MAX_PKT_BURST,
    ):
        if not 4 <= burst <= MAX_PKT_BURST or burst % 4:
            raise ValueError(f"the poll-mode driver takes bursts of 4 to {MAX_PKT_BURST}, a multiple of 4, not {burst}")
        self.queue = queue
        self.pool_memory = pool_memory
        self.mbufs = mbufs
        self.cache = cache
        self.mac = mac
        self.promiscuous = promiscuous
        self.burst = burst
        self.hw = IxgbeHw()

    async def main(self, cpu: Cpu) -> None:
        """The program."""
        await rte_eal_init(cpu, self)
        while not cpu.kernel.stopping:
            await rxonly_loop(cpu, self)


@function()
async def rte_eal_init(cpu: Cpu, program: RxOnly) -> None:
    """Mempool and port; everything is in memory before anyone is told."""
    queue = program.queue
    queue.pool = await rte_pktmbuf_pool_create(cpu, program.pool_memory, program.mbufs, program.cache)
    await ixgbe_dev_start(cpu, program.hw, program.mac, queue, program.promiscuous)
    await cpu.fence()
    cpu.note("ready", program="rxonly")


@function()
async def rxonly_loop(cpu: Cpu, program: RxOnly) -> None:
    """One burst."""
    queue = program.queue
    mbufs = await ixgbe_recv_pkts_vec(cpu, program.hw, queue, program.burst)
    cpu.note("poll", work=len(mbufs))
    if not mbufs:
        await rx_burst_wait(cpu, queue, _PATIENCE)
        return
    for mbuf in mbufs:
        cpu.note("delivered", packet=queue.packet_of.pop(mbuf))
    assert queue.pool is not None
    await rte_pktmbuf_free_bulk(cpu, queue.pool, mbufs)
