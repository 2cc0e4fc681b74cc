"""Rings and what the driver keeps beside them."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from hw.nic.descriptors import DESCRIPTOR_BYTES
from sw.core import LINE
from sw.linux.cpu import Cpu
from sw.linux.dma import Dma
from sw.linux.mm import MemBlock
from sw.linux.net.dev import napi_gro_receive
from sw.structs import Struct

__all__ = [
    "IXGBE_RX_BUFFER",
    "IXGBE_RX_BUFFER_WRITE",
    "IXGBE_RX_BUFSZ",
    "IXGBE_SKB_PAD",
    "RX_RING",
    "DescriptorRing",
    "IxgbeRing",
    "check_ring",
]

#: Bytes of a receive buffer: half a page.
IXGBE_RX_BUFSZ = 2048
#: Where in its buffer a frame starts (``NET_SKB_PAD``; ``NET_IP_ALIGN`` is 0 on x86).
IXGBE_SKB_PAD = 64
#: Descriptors are given back in batches of so many.
IXGBE_RX_BUFFER_WRITE = 16
#: Bounds of a ring's descriptors: two batches; what the driver allows (``IXGBE_MAX_RXD``, ``IXGBE_MAX_TXD``).
RING_LEAST, RING_MOST = 2 * IXGBE_RX_BUFFER_WRITE, 4096

#: ``struct ixgbe_rx_buffer``, one per descriptor.
IXGBE_RX_BUFFER = Struct(LINE // 2, page=8, page_offset=4, pagecnt_bias=4)

#: The part of ``struct ixgbe_ring`` that changes.
RX_RING = Struct(LINE, next_to_clean=2, next_to_use=2, next_to_alloc=2, packets=8, bytes=8, alloc_rx_page_failed=8)


def check_ring(count: int, direction: str = "receive") -> None:
    """Refuse a number of descriptors that the card could not use.

    Raises:
        ValueError: in one line.
    """
    if not RING_LEAST <= count <= RING_MOST or count % 8:
        bounds = f"{RING_LEAST} to {RING_MOST}"
        raise ValueError(f"a {direction} ring has {bounds} descriptors, a multiple of 8, not {count}")


@dataclass(slots=True, eq=False)
class DescriptorRing:
    """A ring of either direction in memory.

    Arguments:
        count: descriptors, a multiple of 8 (RDLEN and TDLEN are multiples of 128 bytes).
        queue: number of the card's queue.

    Raises:
        ValueError: if the card could not use so many descriptors.
    """

    memblock: MemBlock
    count: int
    queue: int = 0
    descriptors: int = field(init=False)  #: address of the descriptors
    dma: int = field(init=False)  #: where the card has them
    buffers: int = field(init=False)  #: address of the array of :attr:`buffer_struct`
    state: int = field(init=False)  #: address of the :attr:`state_struct`
    xsk_pool: Any = field(default=None, init=False)  #: the ``XskBuffPool`` whose chunks are its buffers, if any

    direction: ClassVar[str]
    buffer_struct: ClassVar[Struct]  #: one per descriptor
    state_struct: ClassVar[Struct]

    def __post_init__(self):
        check_ring(self.count, self.direction)
        self.descriptors = self.dma = self.memblock.allocate(self.count * DESCRIPTOR_BYTES, 128)
        self.buffers = self.memblock.allocate(self.count * self.buffer_struct.size)
        self.state = self.memblock.allocate(self.state_struct.size)

    def map(self, dma: Dma) -> None:
        """Let the card reach the descriptors (``dma_alloc_coherent``)."""
        dma.for_kernel = True
        self.dma = dma.map(self.descriptors, self.count * DESCRIPTOR_BYTES)


@dataclass(slots=True, eq=False)
class IxgbeRing(DescriptorRing):
    """A receive ring."""

    direction = "receive"
    buffer_struct = IXGBE_RX_BUFFER
    state_struct = RX_RING

    completed: int = field(default=0, init=False)  #: descriptors cleaned since the start, for observers
    in_frame: bool = field(default=False, init=False)  #: the next descriptor continues a frame
    xdp: Any = field(default=None, init=False)  #: the ``IxgbeXdp`` that runs on what is received, if any
    napi_id: int = field(default=0, init=False)  #: what skbs are marked with, 0: with nothing (``skb_mark_napi_id``)
    receive: Callable[[Cpu, int], Awaitable[None]] = field(default=napi_gro_receive, init=False)  #: takes each skb
