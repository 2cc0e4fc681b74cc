"""The shadow: an engine's own copy of memory, from which loads have their values and by which they are checked.

It changes when the machine says that a write becomes visible: a core's stores in program order, writes by devices
(and by cores around the caches) in the order in which the last level accepted them. ``docs/core.md`` says why a load
may have its value when it issues.

The reference for ``shadow.h``.
"""

from collections import deque
from dataclasses import dataclass

from hw.bus.core import AtomicFunction
from hw.bus.tilelink import LINE_BYTES, PHYSICAL_ADDRESS_WIDTH

__all__ = ["PendingStore", "Shadow", "physical"]

_PAGE_BYTES = 4096
_PHYSICAL_MASK = (1 << PHYSICAL_ADDRESS_WIDTH) - 1


def physical(address: int) -> int:
    """Physical address of a virtual one: every page is mapped to the frame of its own number (``docs/core.md``)."""
    return address & _PHYSICAL_MASK


@dataclass(frozen=True, slots=True)
class PendingStore:
    """A STORE or ATOMIC that has issued and is not visible yet."""

    order: int  #: how many operations of its core issued before it
    address: int  #: physical
    data: bytes  #: STORE: what it writes. ATOMIC: the operand, then what is compared, 8 bytes each
    size: int
    function: AtomicFunction | None = None  #: of an ATOMIC

    def overlaps(self, address: int, size: int) -> bool:
        """Whether it writes to any of these bytes."""
        return self.address < address + size and address < self.address + self.size

    def written(self, old: bytes) -> bytes:
        """What it makes of its bytes."""
        if self.function is None:
            return self.data
        number = int.from_bytes(old, "little")
        operand = int.from_bytes(self.data[: self.size], "little")
        compared = int.from_bytes(self.data[8 : 8 + self.size], "little")
        new = {
            AtomicFunction.EXCHANGE: operand,
            AtomicFunction.ADD: number + operand,
            AtomicFunction.AND: number & operand,
            AtomicFunction.OR: number | operand,
            AtomicFunction.XOR: number ^ operand,
            AtomicFunction.COMPARE_EXCHANGE: operand if number == compared else number,
        }[self.function]
        return (new & (1 << 8 * self.size) - 1).to_bytes(self.size, "little")


class Shadow:
    """Memory, zero at the start, and what each core and the devices have yet to make visible.

    No access crosses a line.

    Arguments:
        cores: how many there are.
    """

    def __init__(self, cores: int):
        self._pages: dict[int, bytearray] = {}
        self._pending: list[deque[PendingStore]] = [deque() for _ in range(cores)]
        self._device: deque[tuple[int, int, int]] = deque()

    def read(self, address: int, size: int) -> bytes:
        """What memory holds."""
        page = self._pages.get(address // _PAGE_BYTES)
        start = address % _PAGE_BYTES
        return bytes(size) if page is None else bytes(page[start : start + size])

    def _write(self, address: int, data: bytes) -> None:
        page = self._pages.setdefault(address // _PAGE_BYTES, bytearray(_PAGE_BYTES))
        start = address % _PAGE_BYTES
        page[start : start + len(data)] = data

    # Cores

    def issue(self, core: int, store: PendingStore) -> None:
        """A STORE or ATOMIC has issued."""
        self._pending[core].append(store)

    def bound(self, core: int, address: int, size: int) -> bytes:
        """What a load that issues now is bound to: the core's youngest store to each byte, else memory."""
        data = bytearray(self.read(address, size))
        for store in self._pending[core]:
            if store.overlaps(address, size):
                begin, end = max(address, store.address), min(address + size, store.address + store.size)
                data[begin - address : end - address] = store.data[begin - store.address : end - store.address]
        return bytes(data)

    def waits_for_store(self, core: int, order: int, address: int, size: int) -> bool:
        """Whether a store of the core older than ``order`` to any of these bytes is not visible yet."""
        return any(store.order < order and store.overlaps(address, size) for store in self._pending[core])

    def visible(self, core: int) -> bool:
        """The core's oldest store becomes visible; False if there is none."""
        if not self._pending[core]:
            return False
        store = self._pending[core].popleft()
        self._write(store.address, store.written(self.read(store.address, store.size)))
        return True

    # Devices, and writes around the caches

    def device_accepted(self, line: int, mask: int, data: int) -> None:
        """The last level has accepted a write to those bytes of ``line`` that ``mask`` names."""
        self._device.append((line, mask, data))

    def device_done(self) -> bool:
        """The oldest that was accepted becomes visible; False if there is none."""
        if not self._device:
            return False
        line, mask, data = self._device.popleft()
        bytes_ = data.to_bytes(LINE_BYTES, "little")
        for offset in range(LINE_BYTES):
            if mask >> offset & 1:
                self._write(line * LINE_BYTES + offset, bytes_[offset : offset + 1])
        return True
