"""Receiving by the poll-mode driver without vector instructions (drivers/net/ixgbe, ixgbe_rxtx.c).

``ixgbe_recv_pkts_bulk_alloc`` takes what is done, up to 32 descriptors, to a stage of its own and hands it out in
bursts of any size. DPDK chooses it where vectors are ruled out (``--force-max-simd-bitwidth=64``).
"""

import itertools
from collections.abc import Sequence

from hw.nic.descriptors import DESCRIPTOR_BYTES
from hw.nic.registers import REG
from sw.core import function
from sw.dpdk.ixgbe_rx import (
    RTE_IXGBE_RXQ_REARM_THRESH,
    RTE_PMD_IXGBE_RX_MAX_BURST,
    RX_QUEUE,
    IxgbeRxQueue,
    arm,
    descriptor_done,
    fill_mbuf,
)
from sw.ixgbe.hw import IxgbeHw
from sw.linux.cpu import Cpu

__all__ = ["ixgbe_recv_pkts_bulk_alloc"]

#: Descriptors looked at before it is seen which are done.
LOOK_AHEAD = 8
_POINTER = 8


@function()
async def ixgbe_recv_pkts_bulk_alloc(cpu: Cpu, hw: IxgbeHw, queue: IxgbeRxQueue, most: int) -> Sequence[int]:
    """Take up to ``most`` packets (1 to 32); returns their mbufs."""
    available, following = await cpu.get_all(queue.state, RX_QUEUE.rx_nb_avail, RX_QUEUE.rx_next_avail)
    if not available:
        available, following = await _fill_stage(cpu, hw, queue), 0
    if not available:
        return ()
    return await ixgbe_rx_fill_from_stage(cpu, queue, min(most, available), available, following)


async def _fill_stage(cpu: Cpu, hw: IxgbeHw, queue: IxgbeRxQueue) -> int:
    """Take what is done to the stage, and give the card new buffers behind it; how many packets there are now.

    Without new buffers nothing is taken: the descriptors stay done.
    """
    tail, trigger = await cpu.get_all(queue.state, RX_QUEUE.rx_tail, RX_QUEUE.rx_free_trigger)
    mbufs = await ixgbe_rx_scan_hw_ring(cpu, queue, tail)
    if not mbufs:
        return 0
    if tail + len(mbufs) > trigger and not await ixgbe_rx_alloc_bufs(cpu, hw, queue, trigger):
        return 0
    for mbuf in mbufs:
        queue.packet_of[mbuf] = (queue.queue, queue.completed)
        queue.completed += 1
    cpu.put(queue.state, RX_QUEUE.rx_tail, (tail + len(mbufs)) % queue.count)
    cpu.put(queue.state, RX_QUEUE.rx_nb_avail, len(mbufs))
    cpu.put(queue.state, RX_QUEUE.rx_next_avail, 0)
    return len(mbufs)


@function()
async def ixgbe_rx_scan_hw_ring(cpu: Cpu, queue: IxgbeRxQueue, tail: int) -> Sequence[int]:
    """Fill in the mbufs of the descriptors that are done and write their addresses to the stage."""
    mbufs: list[int] = []
    if not descriptor_done(await cpu.load_bytes(queue.ring + tail * DESCRIPTOR_BYTES, DESCRIPTOR_BYTES)):
        return mbufs
    for first in range(0, RTE_PMD_IXGBE_RX_MAX_BURST, LOOK_AHEAD):
        lines = await cpu.load_bytes(queue.ring + (tail + first) * DESCRIPTOR_BYTES, LOOK_AHEAD * DESCRIPTOR_BYTES)
        descriptors = [lines[start : start + DESCRIPTOR_BYTES] for start in range(0, len(lines), DESCRIPTOR_BYTES)]
        pointers = await cpu.load_bytes(queue.sw_ring + _POINTER * (tail + first), LOOK_AHEAD * _POINTER)
        cpu.execute("ixgbe_rx_scan_hw_ring_loop")
        cpu.store(queue.stage + _POINTER * first, pointers, len(pointers))
        count = sum(itertools.takewhile(bool, map(descriptor_done, descriptors)))
        for n in range(count):
            mbuf = int.from_bytes(pointers[_POINTER * n : _POINTER * (n + 1)], "little")
            fill_mbuf(cpu, mbuf, descriptors[n])
            mbufs.append(mbuf)
        if count < LOOK_AHEAD:
            break
    return mbufs


@function()
async def ixgbe_rx_alloc_bufs(cpu: Cpu, hw: IxgbeHw, queue: IxgbeRxQueue, trigger: int) -> bool:
    """Give the descriptors up to ``trigger`` new buffers and write the tail; whether the pool had them."""
    if not await arm(cpu, queue, trigger + 1 - RTE_IXGBE_RXQ_REARM_THRESH):
        return False
    following = (trigger + RTE_IXGBE_RXQ_REARM_THRESH) % queue.count
    cpu.put(queue.state, RX_QUEUE.rx_free_trigger, following)
    hw.write(cpu, REG.RDT, trigger, queue.queue)
    return True


@function()
async def ixgbe_rx_fill_from_stage(
    cpu: Cpu, queue: IxgbeRxQueue, count: int, available: int, following: int
) -> Sequence[int]:
    """Hand out the next ``count`` packets of the stage."""
    cpu.execute("ixgbe_rx_fill_from_stage_loop", count)
    pointers = await cpu.load_bytes(queue.stage + _POINTER * following, _POINTER * count)
    cpu.put(queue.state, RX_QUEUE.rx_nb_avail, available - count)
    cpu.put(queue.state, RX_QUEUE.rx_next_avail, following + count)
    return [int.from_bytes(pointers[start : start + _POINTER], "little") for start in range(0, len(pointers), _POINTER)]
