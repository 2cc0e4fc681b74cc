"""Queues the operations of one core's software, each tagged with the function on whose account it is.

An engine may bring an issuer of its own that does the same faster (``port.issuer(costs, functions)``; the tags it
gave are fetched by ``port.take_tags()``). This one is the reference; it works with any :class:`~sw.port.CorePort`.

What software can wait for is *awaitable*: at the bottom of its ``await`` it yields the handle of an operation, to be
resumed with the result of that operation.
"""

import types
from array import array
from collections.abc import Awaitable, Coroutine, Generator, Mapping, Sequence
from typing import Any

from sw.port import CorePort, OperationKind

__all__ = ["FUNCTION_MASK", "LINE", "MODE_SHIFT", "Issuer"]

#: Bytes of a cache line: no operation crosses a line border.
LINE = 64
_OFFSET = LINE - 1

#: A tag names function and mode of an operation: the mode above, the function's number below.
MODE_SHIFT = 12
FUNCTION_MASK = (1 << MODE_SHIFT) - 1

#: ``Operation.uops`` is 16 bits wide.
_UOPS_MAX = 0xFFFF

_EXECUTE = OperationKind.EXECUTE.value
_LOAD = OperationKind.LOAD.value
_STORE = OperationKind.STORE.value
_PREFETCH = OperationKind.PREFETCH.value
_MMIO_READ = OperationKind.MMIO_READ.value
_MMIO_WRITE = OperationKind.MMIO_WRITE.value


class Issuer:
    """The operations of one core.

    Arguments:
        port: the engine's side of the cores.
        tags: takes the tag of each operation, in the order of handles.
        costs: cycles and micro-operations by name.
        functions: names of functions by number; grows.
    """

    def __init__(
        self,
        port: CorePort,
        tags: array,
        costs: Mapping[str, tuple[int, int]],
        functions: Sequence[str],
    ):
        self.tag = 0  #: of what is queued next
        self._context = -1
        self._port_push = port.push
        self._tags = tags
        self._costs = costs
        self._functions = functions

    def enter(self, context: int, tag: int) -> int:
        """Queue for ``context`` from now on, under ``tag``; returns the tag so far."""
        before, self.tag = self.tag, tag
        self._context = context
        return before

    def next_handle(self) -> int:
        """Handle of the operation that is queued next, by whatever core."""
        return len(self._tags)

    def routine(self, code: Coroutine[Any, Any, None]) -> Coroutine[Any, Any, None]:
        """What a context resumes to run ``code``, which :meth:`call` may need."""
        return code

    def call(self, code: Coroutine[Any, Any, Any], number: int, mode: int) -> Coroutine[Any, Any, Any]:
        """Run ``code`` as function ``number``.

        It is charged with the function's cost when it begins. What it queues is tagged with ``mode`` (in place; -1: the
        caller's) and ``number``.
        """
        return self._call(code, number, mode)

    async def _call(self, code: Coroutine[Any, Any, Any], number: int, mode: int) -> Any:
        # A coroutine that is abandoned in the middle (the end of a run) must not touch the core, so there is no
        # `finally` here; an exception ends the run anyway.
        caller = self.tag
        self.tag = ((caller & ~FUNCTION_MASK) if mode < 0 else mode) | number
        cycles, uops = self._costs.get(self._functions[number], (0, 0))
        self._execute(cycles, uops)
        value = await code
        self.tag = caller
        return value

    # Memory

    @types.coroutine
    def load(self, address: int, size: int, /) -> Generator[int, Any, Any]:
        """Read ``size`` bytes: an ``int`` (little-endian) up to 8 bytes, else ``bytes``.

        What crosses line borders is read in one operation per line, overlapping.
        """
        if (address & _OFFSET) + size > LINE:
            data = yield from self.load_bytes(address, size)
            return int.from_bytes(data, "little") if size <= 8 else data
        return (yield self.load_begin(address, size))

    def get(self, base: int, field: tuple[int, int], /) -> Awaitable[Any]:
        """Load one field of the structure at ``base``."""
        return self.load(base + field[0], field[1])

    @types.coroutine
    def load_bytes(self, address: int, size: int, /) -> Generator[int, Any, bytes]:
        """Read any number of bytes, also 0, as ``bytes``; one operation per line, overlapping."""
        places = list(_pieces(address, size))
        handles = [self.load_begin(*place) for place in places]
        data = bytearray()
        for handle, (_, length) in zip(handles, places, strict=True):
            value = yield handle
            data += value.to_bytes(length, "little") if type(value) is int else value
        return bytes(data)

    @types.coroutine
    def load_all(self, /, *places: tuple[int, int]) -> Generator[int, Any, list[Any]]:
        """Read several ``(address, size)`` places, none of which crosses a line border, overlapping."""
        values = []
        for handle in [self.load_begin(address, size) for address, size in places]:
            values.append((yield handle))
        return values

    def get_all(self, base: int, /, *fields: tuple[int, int]) -> Awaitable[list[Any]]:
        """Load several fields of the structure at ``base``, none of which crosses a line border, overlapping."""
        return self.load_all(*((base + offset, size) for offset, size in fields))

    def load_begin(self, address: int, size: int, /) -> int:
        """Read within one line and go on: the handle that it returns can be awaited later."""
        return self._push(_LOAD, address, size, 0, 0, 1, -1, True)

    def touch(self, address: int, size: int, /) -> None:
        """Read bytes within one line whose value nobody waits for (they are known or restored wholesale)."""
        self._push(_LOAD, address, size, 0, 0, 1)

    def prefetch(self, address: int, /) -> None:
        """Ask for the line of ``address``."""
        self._push(_PREFETCH, address, 1, 0, 0, 1)

    def store(self, address: int, value: int | bytes, size: int, /) -> None:
        """Write ``size`` bytes, in program order; one operation per line."""
        if (address & _OFFSET) + size <= LINE:
            self._push(_STORE, address, size, value, 0, 1)
            return
        data = value.to_bytes(size, "little") if isinstance(value, int) else value
        for start, length in _pieces(address, size):
            self._push(_STORE, start, length, data[start - address : start - address + length], 0, 1)

    def put(self, base: int, field: tuple[int, int], value: int | bytes, /) -> None:
        """Store one field of the structure at ``base``."""
        self.store(base + field[0], value, field[1])

    # Devices, time, the rest

    @types.coroutine
    def mmio_read(self, address: int, size: int = 4, /) -> Generator[int, Any, int]:
        """Read a device register of 4 or 8 bytes."""
        return (yield self._push(_MMIO_READ, address, size, 0, 0, 1, -1, True))

    def mmio_write(self, address: int, value: int, size: int = 4, /) -> None:
        """Write a device register of 4 or 8 bytes; posted, after every earlier store is visible."""
        self._push(_MMIO_WRITE, address, size, value, 0, 1)

    def execute(self, cost: str | int, count: int = 1, /) -> None:
        """Compute for ``count`` times the cost of that name, or for so many cycles of the core's clock."""
        cycles, uops = (cost, cost) if isinstance(cost, int) else self._costs[cost]
        self._execute(cycles * count, uops * count)

    def plain(self, kind: int) -> None:
        """Queue an operation that has only a kind."""
        self._push(kind)

    @types.coroutine
    def wait(self, kind: int) -> Generator[int, Any, Any]:
        """Queue an operation that has only a kind and wait for its completion."""
        return (yield self._push(kind, 0, 0, 0, 0, 0, -1, True))

    def _execute(self, cycles: int, uops: int) -> None:
        if cycles > 0:
            self._push(_EXECUTE, 0, 0, 0, cycles, min(uops, _UOPS_MAX))

    def _push(self, kind: int, *operands: Any) -> int:
        self._tags.append(self.tag)
        return self._port_push(self._context, kind, *operands)


def _pieces(address: int, size: int) -> Generator[tuple[int, int], None, None]:
    """Address and length of each part of a range that lies in one line."""
    while size > 0:
        length = min(size, LINE - (address & _OFFSET))
        yield address, length
        address += length
        size -= length
