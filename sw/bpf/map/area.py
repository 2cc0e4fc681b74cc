"""Where maps and per-CPU variables of the BPF subsystem lie."""

from collections.abc import Callable
from errno import ENOMEM

from sw.bpf.errors import BpfError

__all__ = ["Allocate", "Area"]

#: Gives the address of so many bytes with such an alignment, for good: ``MemBlock.allocate``.
Allocate = Callable[[int, int], int]

_PAGE_SIZE = 4096
#: Bytes of per-CPU memory of each core (``PCPU_MIN_UNIT_SIZE``).
_UNIT_BYTES = 32 << 10


class Area:
    """Memory of the subsystem.

    A per-CPU variable has an address in the area of core 0; that of core ``n`` lies ``n * percpu_stride`` further.

    Arguments:
        allocate: where memory comes from.
        cores: how many cores there are.
    """

    def __init__(self, allocate: Allocate, cores: int):
        if cores < 1:
            raise ValueError(f"cores = {cores} must be at least 1")
        self.allocate = allocate
        self.cores = cores
        self.percpu_stride = _UNIT_BYTES
        self._next = allocate(_UNIT_BYTES * cores, _PAGE_SIZE)
        self._end = self._next + _UNIT_BYTES

    def allocate_percpu(self, size: int, alignment: int = 8) -> int:
        """A variable of ``size`` bytes on each core.

        Raises:
            BpfError: ENOMEM.
        """
        address = (self._next + alignment - 1) // alignment * alignment
        if address + size > self._end:
            left = self._end - self._next
            raise BpfError(ENOMEM, f"{size} bytes on each core are wanted, of {_UNIT_BYTES} there are {left} left")
        self._next = address + size
        return address

    def on_core(self, variable: int, core: int) -> int:
        """Address of a core's own copy of a variable."""
        return variable + core * self.percpu_stride
