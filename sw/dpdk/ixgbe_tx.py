"""Sending by the poll-mode driver, with vector instructions (drivers/net/ixgbe, ixgbe_rxtx_vec_sse.c)."""

from collections.abc import Sequence

from hw.nic.descriptors import DESCRIPTOR_BYTES, TX_WRITE_BACK
from hw.nic.registers import REG
from sw.core import LINE, function
from sw.dpdk.ixgbe_rx import check_ring
from sw.dpdk.mbuf import RTE_MBUF, rte_pktmbuf_prefree_seg
from sw.dpdk.mempool import Mempool, rte_mempool_put_bulk
from sw.ixgbe.hw import IxgbeHw, tx_data
from sw.linux.cpu import Cpu
from sw.structs import Struct

__all__ = ["IxgbeTxQueue", "ixgbe_xmit_pkts_vec"]

#: Of so many descriptors one asks to be written back (``tx_rs_thresh``), and so many mbufs are freed at once.
RS_THRESH = 32
#: Buffers are freed when fewer descriptors than this are (``tx_free_thresh``).
FREE_THRESH = 32

#: ``struct ixgbe_tx_queue``, the members in use.
TX_QUEUE = Struct(LINE, tx_tail=2, nb_tx_free=2, tx_next_dd=2, tx_next_rs=2)

_DD_OFFSET, _DD_MASK = TX_WRITE_BACK.fields["dd"]
_POINTER = 8


class IxgbeTxQueue:
    """A transmit queue.

    Arguments:
        memory: address of :meth:`bytes_needed` bytes for it, on a 128-byte border, mapped for the program.
        count: descriptors.

    Raises:
        ValueError: for a ring that the driver does not take.
    """

    def __init__(self, memory: int, count: int, queue: int = 0):
        check_ring(count)
        self.count = count
        self.queue = queue
        self.ring = memory
        self.sw_ring = memory + count * DESCRIPTOR_BYTES  # the mbuf of each descriptor
        self.state = self.sw_ring + count * _POINTER
        self.frames = 0  #: given to the card since the start, for observers

    @staticmethod
    def bytes_needed(count: int) -> int:
        """Memory for a queue of ``count`` descriptors."""
        return count * (DESCRIPTOR_BYTES + _POINTER) + TX_QUEUE.size

    def init(self, cpu: Cpu) -> None:
        """An empty queue (``ixgbe_reset_tx_queue_vec``)."""
        state = TX_QUEUE.pack(nb_tx_free=self.count - 1, tx_next_dd=RS_THRESH - 1, tx_next_rs=RS_THRESH - 1)
        cpu.store(self.state, state, TX_QUEUE.size)


@function()
async def ixgbe_xmit_pkts_vec(
    cpu: Cpu, hw: IxgbeHw, queue: IxgbeTxQueue, pool: Mempool, mbufs: Sequence[int], packets: Sequence[tuple[int, int]]
) -> int:
    """Give the card up to 32 frames, write the tail once; returns how many, the rest stays the caller's.

    Arguments:
        pool: where all mbufs that are sent come from.
        packets: which received packet each mbuf holds, for observers.
    """
    free = await cpu.get(queue.state, TX_QUEUE.nb_tx_free)
    if free < FREE_THRESH:
        free += await ixgbe_tx_free_bufs(cpu, queue, pool)
    count = min(len(mbufs), free, RS_THRESH)
    if not count:
        return 0
    tail, next_rs = await cpu.get_all(queue.state, TX_QUEUE.tx_tail, TX_QUEUE.tx_next_rs)
    cpu.execute("ixgbe_xmit_pkts_vec_descriptor", count)
    for n, mbuf in enumerate(mbufs[:count]):
        place = (tail + n) % queue.count
        header = await cpu.load(mbuf, LINE)
        iova, offset, length = (field.of(header) for field in (RTE_MBUF.buf_iova, RTE_MBUF.data_off, RTE_MBUF.data_len))
        # The descriptor that asks for the write-back is told so when the burst has reached it.
        descriptor = tx_data(iova + offset, length, report=place == next_rs)
        cpu.store(queue.ring + place * DESCRIPTOR_BYTES, descriptor, DESCRIPTOR_BYTES)
        cpu.store(queue.sw_ring + place * _POINTER, mbuf, _POINTER)
        cpu.note("sent", packet=packets[n], frame=(queue.queue, queue.frames))
        queue.frames += 1
    if (next_rs - tail) % queue.count < count:
        cpu.put(queue.state, TX_QUEUE.tx_next_rs, (next_rs + RS_THRESH) % queue.count)
    cpu.put(queue.state, TX_QUEUE.nb_tx_free, free - count)
    tail = (tail + count) % queue.count
    cpu.put(queue.state, TX_QUEUE.tx_tail, tail)
    hw.write(cpu, REG.TDT, tail, queue.queue)
    return count


@function()
async def ixgbe_tx_free_bufs(cpu: Cpu, queue: IxgbeTxQueue, pool: Mempool) -> int:
    """Free the oldest 32 mbufs if the card has written their last descriptor back; returns how many."""
    next_dd = await cpu.get(queue.state, TX_QUEUE.tx_next_dd)
    status = queue.ring + next_dd * DESCRIPTOR_BYTES + _DD_OFFSET // 32 * 4
    if not await cpu.load(status, 4) >> _DD_OFFSET % 32 & _DD_MASK:
        return 0
    first = queue.sw_ring + (next_dd - (RS_THRESH - 1)) * _POINTER
    pointers = await cpu.load_bytes(first, RS_THRESH * _POINTER)
    mbufs = [int.from_bytes(pointers[i : i + _POINTER], "little") for i in range(0, len(pointers), _POINTER)]
    cpu.execute("rte_pktmbuf_prefree_seg", len(mbufs))
    for mbuf in mbufs:
        rte_pktmbuf_prefree_seg(cpu, mbuf)
    await rte_mempool_put_bulk(cpu, pool, mbufs)
    cpu.put(queue.state, TX_QUEUE.tx_next_dd, (next_dd + RS_THRESH) % queue.count)
    return RS_THRESH
