"""Receiving by the poll-mode driver, with vector instructions (drivers/net/ixgbe, ixgbe_rxtx_vec_sse.c).

Four descriptors lie in a line and are handled together; buffers are given back, and the tail register is written, once
in 32.
"""

from collections.abc import Sequence

from hw.nic.descriptors import DESCRIPTOR_BYTES, RX_WRITE_BACK
from hw.nic.registers import REG
from sw.core import LINE, function
from sw.dpdk.mbuf import RTE_MBUF, RTE_PKTMBUF_HEADROOM, iova
from sw.dpdk.mempool import Mempool, rte_mempool_get_bulk
from sw.ixgbe.hw import IxgbeHw, ixgbe_rx_queue_start
from sw.linux.cpu import Cpu
from sw.structs import Struct

__all__ = [
    "IXGBE_MIN_RING_DESC",
    "RTE_IXGBE_DESCS_PER_LOOP",
    "RTE_IXGBE_RXQ_REARM_THRESH",
    "RTE_PMD_IXGBE_RX_MAX_BURST",
    "RX_QUEUE",
    "IxgbeRxQueue",
    "arm",
    "check_ring",
    "descriptor_done",
    "fill_mbuf",
    "ixgbe_dev_rx_queue_start",
    "ixgbe_recv_pkts_vec",
    "rx_burst_wait",
]

#: Descriptors handled by one turn of the receive loop.
RTE_IXGBE_DESCS_PER_LOOP = 4
#: Most packets that the receive function without vectors stages.
RTE_PMD_IXGBE_RX_MAX_BURST = 32
#: Buffers given back at once (``rx_free_thresh`` has the same default).
RTE_IXGBE_RXQ_REARM_THRESH = 32
#: Least and most descriptors of a ring, a power of two.
IXGBE_MIN_RING_DESC, IXGBE_MAX_RING_DESC = 64, 4096

#: Bytes of a buffer as the card is told them, headroom left out.
_BUFFER_BYTES = 2048

#: ``struct ixgbe_rx_queue``, the members in use: the state of the ring, and what every mbuf is initialised with.
RX_QUEUE = Struct(
    2 * LINE,
    rx_tail=2,
    rxrearm_nb=2,
    rxrearm_start=2,
    nb_rx_desc=2,
    rx_nb_avail=2,
    rx_next_avail=2,
    rx_free_trigger=2,
    pad=50,
    mbuf_initializer=8,
)

_UPPER = DESCRIPTOR_BYTES // 2


def _upper_field(name: str) -> tuple[int, int]:
    offset, mask = RX_WRITE_BACK.fields[name]
    return offset - 8 * _UPPER, mask


_DD = 1 << _upper_field("dd")[0]
_LENGTH_SHIFT, _LENGTH_MASK = _upper_field("length")
_HASH_SHIFT = RX_WRITE_BACK.fields["rss_hash"][0]


def check_ring(count: int) -> None:
    """Refuse a number of descriptors that the driver does not take.

    Raises:
        ValueError: in one line.
    """
    if not IXGBE_MIN_RING_DESC <= count <= IXGBE_MAX_RING_DESC or count & count - 1:
        raise ValueError(
            f"the poll-mode driver takes {IXGBE_MIN_RING_DESC} to {IXGBE_MAX_RING_DESC} descriptors, "
            f"a power of two, not {count}"
        )


class IxgbeRxQueue:
    """A receive queue.

    Arguments:
        memory: address of :meth:`bytes_needed` bytes for it, on a 128-byte border, mapped for the program.
        count: descriptors.
        vector: received from with vector instructions.

    Attributes:
        pool: where its buffers come from; set before the queue is started.

    Raises:
        ValueError: for a ring that the driver does not take.
    """

    def __init__(self, memory: int, count: int, queue: int = 0, vector: bool = True):
        check_ring(count)
        self.count = count
        self.queue = queue
        self.vector = vector
        self.ring = memory
        entries = count + _beyond(vector)
        # Address of the mbuf behind each descriptor, 8 bytes each. Behind the last descriptor lie some that are never
        # done, so that the loop may look past the end.
        self.sw_ring = memory + entries * DESCRIPTOR_BYTES
        self.state = self.sw_ring + 8 * entries
        self.stage = self.state + RX_QUEUE.size  #: addresses of mbufs that were taken and not yet handed out
        self.pool: Mempool | None = None
        self.completed = 0  #: descriptors taken since the start, for observers
        self.packet_of: dict[int, tuple[int, int]] = {}  #: which received packet is in each mbuf in use, likewise

    @staticmethod
    def bytes_needed(count: int, vector: bool = True) -> int:
        """Memory for a queue of ``count`` descriptors."""
        stage = 0 if vector else 8 * RTE_PMD_IXGBE_RX_MAX_BURST
        return (count + _beyond(vector)) * (DESCRIPTOR_BYTES + 8) + RX_QUEUE.size + stage


def _beyond(vector: bool) -> int:
    """Descriptors behind the last one that a receive function may look at."""
    return RTE_IXGBE_DESCS_PER_LOOP if vector else RTE_PMD_IXGBE_RX_MAX_BURST


@function()
async def ixgbe_dev_rx_queue_start(cpu: Cpu, hw: IxgbeHw, queue: IxgbeRxQueue, dma_offset: int = 0) -> None:
    """Enable the queue and give the card a full ring.

    Raises:
        MemoryError: if the pool has too few mbufs.
    """
    ring = iova(queue.ring, dma_offset)
    await ixgbe_rx_queue_start(cpu, hw, queue.queue, ring, queue.count, _BUFFER_BYTES)
    state = RX_QUEUE.pack(nb_rx_desc=queue.count, rx_free_trigger=RTE_IXGBE_RXQ_REARM_THRESH - 1)
    cpu.store(queue.state, state, RX_QUEUE.size)
    for start in range(0, queue.count, RTE_IXGBE_RXQ_REARM_THRESH):
        if not await arm(cpu, queue, start):
            raise MemoryError(f"the mempool has too few mbufs for {queue.count} descriptors")
    hw.write(cpu, REG.RDT, queue.count - 1, queue.queue)


@function()
async def ixgbe_recv_pkts_vec(cpu: Cpu, hw: IxgbeHw, queue: IxgbeRxQueue, most: int) -> Sequence[int]:
    """Take up to ``most`` packets (a multiple of 4, 32 at most) from the ring; returns their mbufs.

    A packet that takes several descriptors would need another receive function; buffers hold the largest frame that
    the card is told to accept.
    """
    tail, rearm = await cpu.get_all(queue.state, RX_QUEUE.rx_tail, RX_QUEUE.rxrearm_nb)
    if rearm > RTE_IXGBE_RXQ_REARM_THRESH:
        rearm -= await ixgbe_rxq_rearm(cpu, hw, queue)
    descriptor = queue.ring + tail * DESCRIPTOR_BYTES
    mbufs: list[int] = []
    if not await cpu.load(descriptor + _UPPER, 4) & _DD:
        cpu.put(queue.state, RX_QUEUE.rxrearm_nb, rearm)
        return mbufs
    for first in range(0, most, RTE_IXGBE_DESCS_PER_LOOP):
        here = descriptor + first * DESCRIPTOR_BYTES
        line = await cpu.load(here, RTE_IXGBE_DESCS_PER_LOOP * DESCRIPTOR_BYTES)
        done = _leading_done(line)
        cpu.execute("ixgbe_recv_pkts_vec_loop")
        if done:
            pointers = await cpu.load(queue.sw_ring + 8 * (tail + first), 8 * RTE_IXGBE_DESCS_PER_LOOP)
            taken = [int.from_bytes(pointers[8 * n : 8 * n + 8], "little") for n in range(done)]
            for n, mbuf in enumerate(taken):
                fill_mbuf(cpu, mbuf, line[n * DESCRIPTOR_BYTES : (n + 1) * DESCRIPTOR_BYTES])
                queue.packet_of[mbuf] = (queue.queue, queue.completed)
                queue.completed += 1
            mbufs += taken
        if done < RTE_IXGBE_DESCS_PER_LOOP:
            break
    cpu.put(queue.state, RX_QUEUE.rx_tail, (tail + len(mbufs)) % queue.count)
    cpu.put(queue.state, RX_QUEUE.rxrearm_nb, rearm + len(mbufs))
    return mbufs


def _leading_done(line: bytes) -> int:
    """How many descriptors from the first on are done."""
    for n in range(RTE_IXGBE_DESCS_PER_LOOP):
        if not descriptor_done(line[n * DESCRIPTOR_BYTES :]):
            return n
    return RTE_IXGBE_DESCS_PER_LOOP


def descriptor_done(descriptor: bytes) -> bool:
    """Whether the card has written it back."""
    return bool(descriptor[_UPPER] & _DD)


def fill_mbuf(cpu: Cpu, mbuf: int, descriptor: bytes) -> None:
    """Write what the descriptor says, in two stores of 16 bytes."""
    length = int.from_bytes(descriptor[_UPPER:], "little") >> _LENGTH_SHIFT & _LENGTH_MASK
    rss = int.from_bytes(descriptor, "little") >> _HASH_SHIFT & 0xFFFF_FFFF
    written = RTE_MBUF.pack(
        data_off=RTE_PKTMBUF_HEADROOM, refcnt=1, nb_segs=1, pkt_len=length, data_len=length, rss=rss
    )
    rearm, fields = RTE_MBUF.data_off.offset, RTE_MBUF.packet_type.offset
    cpu.store(mbuf + rearm, written[rearm:fields], fields - rearm)
    cpu.store(mbuf + fields, written[fields : fields + 16], 16)


@function()
async def ixgbe_rxq_rearm(cpu: Cpu, hw: IxgbeHw, queue: IxgbeRxQueue) -> int:
    """Give 32 descriptors new buffers and write the tail; returns how many, 0 when the pool is empty."""
    start = await cpu.get(queue.state, RX_QUEUE.rxrearm_start)
    if not await arm(cpu, queue, start):
        return 0
    end = (start + RTE_IXGBE_RXQ_REARM_THRESH) % queue.count
    cpu.put(queue.state, RX_QUEUE.rxrearm_start, end)
    hw.write(cpu, REG.RDT, (end - 1) % queue.count, queue.queue)
    return RTE_IXGBE_RXQ_REARM_THRESH


async def arm(cpu: Cpu, queue: IxgbeRxQueue, start: int) -> bool:
    """New buffers for the descriptors from ``start`` on; whether the pool had them."""
    assert queue.pool is not None
    mbufs = await rte_mempool_get_bulk(cpu, queue.pool, queue.sw_ring + 8 * start, RTE_IXGBE_RXQ_REARM_THRESH)
    for n, mbuf in enumerate(mbufs):
        buffer = (await cpu.load(mbuf, 16))[RTE_MBUF.buf_iova.offset :]
        address = int.from_bytes(buffer, "little") + RTE_PKTMBUF_HEADROOM
        descriptor = address.to_bytes(8, "little") + bytes(8)
        cpu.store(queue.ring + (start + n) * DESCRIPTOR_BYTES, descriptor, DESCRIPTOR_BYTES)
    return bool(mbufs)


@function()
async def rx_burst_wait(cpu: Cpu, queue: IxgbeRxQueue, cycles: int) -> None:
    """What calling the receive function in vain comes to, for ``cycles`` or until the next descriptor is done.

    Each look is one turn of the program's loop over an empty ring.
    """
    tail = await cpu.get(queue.state, RX_QUEUE.rx_tail)
    status = queue.ring + tail * DESCRIPTOR_BYTES + _UPPER
    await cpu.poll(status, 4, 0, cycles, cpu.costs["rx_burst_empty"].cycles)
