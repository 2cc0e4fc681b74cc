"""Memory without a machine: what a program needs of a core, on a ``bytearray``, in no time.

For loading, tests and tools. What costs time on a :class:`~sw.core.Core` is counted here instead.
"""

import types
from collections.abc import Coroutine, Generator
from itertools import count
from typing import Any

from sw.port import AtomicFunction

__all__ = ["FunctionalCore", "complete"]


def complete(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Result of a coroutine that never has to wait, such as any on a :class:`FunctionalCore`."""
    try:
        waits_for = coroutine.send(None)
    except StopIteration as stop:
        return stop.value
    coroutine.close()
    raise RuntimeError(f"a coroutine that should run through waits for {waits_for!r}")


class _Ready:
    """Something to await that is there already."""

    __slots__ = ("value",)

    def __init__(self, value: Any):
        self.value = value

    def __await__(self) -> Generator[Any, Any, Any]:
        return self.value
        yield


class _Interrupts:
    """Stands for the context that runs: only whether it takes interrupts."""

    __slots__ = ("interrupts",)

    def __init__(self) -> None:
        self.interrupts = True


class _Caller:
    """Calls functions without charging them."""

    def call(self, code: Coroutine[Any, Any, Any], number: int, mode: int) -> Coroutine[Any, Any, Any]:
        """``code`` itself."""
        return code


class FunctionalCore:
    """The operations of :class:`~sw.core.Core` that programs, helpers and maps use.

    Arguments:
        memory: what lies at address 0 and up; shared by several cores if they are given the same.
        index: number of the core.

    Raises:
        IndexError: from what addresses bytes outside ``memory``.
    """

    def __init__(self, memory: bytearray, index: int = 0):
        self.memory = memory
        self.index = index
        self.issuer = _Caller()
        self.current = _Interrupts()
        self.loads = self.stores = self.atomics = 0  #: operations so far
        self.cycles = 0  #: cycles charged so far
        self._values: dict[int, Any] = {}  #: of loads begun, until they are asked for
        self._handles = count()

    def _place(self, address: int, size: int) -> slice:
        if not 0 < address <= len(self.memory) - size:
            raise IndexError(f"{size} bytes at {address:#x} are outside the memory of {len(self.memory)} bytes")
        return slice(address, address + size)

    def _load(self, address: int, size: int) -> Any:
        self.loads += 1
        data = self.memory[self._place(address, size)]
        return int.from_bytes(data, "little") if size <= 8 else bytes(data)

    def load(self, address: int, size: int, *, after: int = -1) -> _Ready:
        """As :meth:`sw.issue.Issuer.load`."""
        return _Ready(self._load(address, size))

    def load_bytes(self, address: int, size: int, *, after: int = -1) -> _Ready:
        """As :meth:`sw.issue.Issuer.load_bytes`."""
        self.loads += 1
        return _Ready(bytes(self.memory[self._place(address, size)]))

    def load_begin(self, address: int, size: int, *, after: int = -1) -> int:
        """As :meth:`sw.issue.Issuer.load_begin`."""
        handle = next(self._handles)
        self._values[handle] = self._load(address, size)
        return handle

    @types.coroutine
    def result(self, handle: int) -> Generator[int, Any, Any]:
        """As :meth:`sw.core.Core.result`."""
        return self._values.pop(handle)
        yield

    def get(self, base: int, field: tuple[int, int]) -> _Ready:
        """As :meth:`sw.issue.Issuer.get`."""
        return self.load(base + field[0], field[1])

    @types.coroutine
    def get_all(self, base: int, *fields: tuple[int, int]) -> Generator[Any, Any, list[Any]]:
        """As :meth:`sw.issue.Issuer.get_all`."""
        return [self._load(base + offset, size) for offset, size in fields]
        yield

    def touch(self, address: int, size: int, *, after: int = -1) -> None:
        """As :meth:`sw.issue.Issuer.touch`."""
        self._load(address, size)

    def store(self, address: int, value: int | bytes, size: int) -> None:
        """As :meth:`sw.issue.Issuer.store`."""
        self.stores += 1
        data = value if isinstance(value, bytes) else value.to_bytes(size, "little")
        if len(data) != size:
            raise ValueError(f"{len(data)} bytes are stored as {size}")
        self.memory[self._place(address, size)] = data

    def put(self, base: int, field: tuple[int, int], value: int | bytes) -> None:
        """As :meth:`sw.issue.Issuer.put`."""
        self.store(base + field[0], value, field[1])

    def atomic(self, address: int, size: int, function: AtomicFunction, operand: int, compare: int = 0) -> _Ready:
        """As :meth:`sw.core.Core.atomic`."""
        self.atomics += 1
        place = self._place(address, size)
        if address % size:
            raise IndexError(f"an atomic access of {size} bytes at {address:#x} is not aligned")
        old = int.from_bytes(self.memory[place], "little")
        if function is AtomicFunction.EXCHANGE:
            new = operand
        elif function is AtomicFunction.COMPARE_EXCHANGE:
            new = operand if old == compare else old
        elif function is AtomicFunction.ADD:
            new = old + operand
        elif function is AtomicFunction.AND:
            new = old & operand
        elif function is AtomicFunction.OR:
            new = old | operand
        else:
            new = old ^ operand
        self.memory[place] = (new & ((1 << 8 * size) - 1)).to_bytes(size, "little")
        return _Ready(old)

    def poll(self, address: int, size: int, value: int | bytes, cycles: int, period: int) -> _Ready:
        """One look: nobody else changes this memory meanwhile."""
        return _Ready(self._load(address, size))

    def execute(self, cost: Any, count: int = 1, *, after: int = -1) -> None:
        """Count the cycles of a charge; a name costs nothing here."""
        if isinstance(cost, tuple):
            self.cycles += cost[0] * count
        elif isinstance(cost, int):
            self.cycles += cost * count

    def cli(self) -> None:
        """Take no interrupts."""
        self.current.interrupts = False

    def sti(self) -> None:
        """Take interrupts again."""
        self.current.interrupts = True
