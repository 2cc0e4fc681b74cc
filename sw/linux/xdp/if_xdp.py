"""What programs and the kernel share of AF_XDP: numbers and layouts of include/uapi/linux/if_xdp.h.

Rings lie in memory as the kernel lays them out (``struct xdp_ring``, net/xdp/xsk_queue.h): producer, consumer and flags
in lines of their own, then the entries. A program learns the places by ``XDP_MMAP_OFFSETS``.
"""

import enum

from sw.core import LINE
from sw.structs import Struct

__all__ = [
    "XDP_DESC",
    "XDP_RING",
    "XDP_RING_NEED_WAKEUP",
    "XDP_STATISTICS",
    "XDP_UMEM_REG",
    "BindFlag",
    "PageOffset",
    "SocketOption",
]


class SocketOption(enum.IntEnum):
    """Options of level ``SOL_XDP``."""

    MMAP_OFFSETS = 1
    RX_RING = 2
    TX_RING = 3
    UMEM_REG = 4
    UMEM_FILL_RING = 5
    UMEM_COMPLETION_RING = 6
    STATISTICS = 7


class PageOffset(enum.IntEnum):
    """Which ring mmap() is asked for."""

    RX_RING = 0
    TX_RING = 0x8000_0000
    UMEM_FILL_RING = 0x1_0000_0000
    UMEM_COMPLETION_RING = 0x1_8000_0000


class BindFlag(enum.IntFlag):
    """``sxdp_flags``."""

    SHARED_UMEM = 1 << 0
    COPY = 1 << 1  #: refuse anything but copy mode
    ZEROCOPY = 1 << 2  #: refuse anything but zero-copy mode
    USE_NEED_WAKEUP = 1 << 3  #: the kernel says in the rings' flags when it has to be called


#: In the flags of the fill and transmit rings: the kernel does nothing before the program calls it.
XDP_RING_NEED_WAKEUP = 1 << 0

#: ``struct xdp_umem_reg``.
XDP_UMEM_REG = Struct(addr=8, len=8, chunk_size=4, headroom=4, flags=4)

#: ``struct xdp_ring``; the entries follow.
XDP_RING = Struct(
    5 * LINE, producer=4, pad=LINE - 4, pad1=LINE, consumer=4, pad2=LINE - 4, pad3=4, flags=4, pad4=LINE - 8
)

#: ``struct xdp_desc``, an entry of the receive and transmit rings; those of the other two are addresses of 8 bytes.
XDP_DESC = Struct(addr=8, len=4, options=4)

#: ``struct xdp_statistics``.
XDP_STATISTICS = Struct(
    rx_dropped=8,
    rx_invalid_descs=8,
    tx_invalid_descs=8,
    rx_ring_full=8,
    rx_fill_ring_empty_descs=8,
    tx_ring_empty_descs=8,
)
