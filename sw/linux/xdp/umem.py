"""The memory that packets are exchanged in (net/xdp/xdp_umem.c)."""

from dataclasses import dataclass
from errno import EINVAL

from sw.linux.mm import PAGE_SIZE
from sw.linux.xdp.errors import XskError

__all__ = ["XDP_PACKET_HEADROOM", "XDP_UMEM_MIN_CHUNK_SIZE", "XdpUmem"]

#: Bytes in front of each received packet, for programs that prepend headers (include/uapi/linux/bpf.h).
XDP_PACKET_HEADROOM = 256
#: Least bytes of a chunk (net/xdp/xdp_umem.h).
XDP_UMEM_MIN_CHUNK_SIZE = 2048

_WORD = 1 << 64


@dataclass(frozen=True, slots=True)
class XdpUmem:
    """A program's memory, divided into chunks of one size.

    Arguments:
        address: where it begins, as the program (and the kernel's own mapping of the same pages) addresses it.
        size: bytes.
        chunk_size: bytes of a chunk.
        headroom: bytes of each chunk that the program keeps in front of a packet, besides the kernel's own.

    Raises:
        XskError: EINVAL, as ``xdp_umem_reg`` refuses it.
    """

    address: int
    size: int
    chunk_size: int
    headroom: int = 0
    flags: int = 0

    def __post_init__(self):
        least = XDP_UMEM_MIN_CHUNK_SIZE
        if not least <= self.chunk_size <= PAGE_SIZE or self.chunk_size & self.chunk_size - 1:
            raise XskError(EINVAL, f"a chunk is {least} or {PAGE_SIZE} bytes, not {self.chunk_size}")
        if self.flags:
            raise XskError(EINVAL, f"flags = {self.flags:#x}: unaligned chunks are not modelled, others not defined")
        if self.address % PAGE_SIZE:
            raise XskError(EINVAL, f"the UMEM begins on a page, not at {self.address:#x}")
        if self.address + self.size >= _WORD:
            raise XskError(EINVAL, f"{self.size} bytes at {self.address:#x} wrap around")
        if not self.size or self.size % self.chunk_size:
            raise XskError(EINVAL, f"the UMEM is at least one whole chunk of {self.chunk_size} bytes, not {self.size}")
        if self.headroom >= self.chunk_size - XDP_PACKET_HEADROOM:
            raise XskError(
                EINVAL,
                f"a headroom of {self.headroom} bytes and the kernel's {XDP_PACKET_HEADROOM} leave nothing "
                f"of a chunk of {self.chunk_size}",
            )

    @property
    def chunks(self) -> int:
        """Number of chunks."""
        return self.size // self.chunk_size
