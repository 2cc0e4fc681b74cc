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

from sw.port import CorePort, Notify, OperationKind

__all__ = ["FUNCTION_MASK", "LINE", "MODE_SHIFT", "Charge", "Issuer"]

#: What a name costs: cycles, micro-operations, physical address of its text, lines of text (0: none is fetched).
Charge = tuple[int, int, int, int]

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
_ATOMIC = OperationKind.ATOMIC.value
_POLL = OperationKind.POLL.value
_STORE_NT = OperationKind.STORE_NT.value
_CLFLUSH = OperationKind.CLFLUSH.value
_NO, _COMPLETE, _ISSUE = (int(notify) for notify in (Notify.NO, Notify.COMPLETE, Notify.ISSUE))


class Issuer:
    """The operations of one core.

    Arguments:
        port: the engine's side of the cores.
        tags: takes the tag of each operation, in the order of handles.
        costs: what each name costs.
        functions: names of functions by number; grows.
    """

    def __init__(
        self,
        port: CorePort,
        tags: array,
        costs: Mapping[str, Charge],
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
        charge = self._costs.get(self._functions[number])
        if charge is not None:
            self._execute(*charge)
        value = await code
        self.tag = caller
        return value

    # Memory
    #
    # A load gives its value when it issues: software goes on with it as a core does that speculates. ``after`` is the
    # handle of a load whose value the address depends on (a pointer chase); without it, the loads overlap.

    @types.coroutine
    def load(self, address: int, size: int, /, *, after: int = -1) -> Generator[int, Any, Any]:
        """Read ``size`` bytes: an ``int`` (little-endian) up to 8 bytes, else ``bytes``.

        What crosses line borders is read in one operation per line, overlapping.
        """
        return (yield from self._load(address, size, _ISSUE, after))

    @types.coroutine
    def load_now(self, address: int, size: int, /, *, after: int = -1) -> Generator[int, Any, Any]:
        """:meth:`load`, but go on only when the data are there."""
        return (yield from self._load(address, size, _COMPLETE, after))

    def get(self, base: int, field: tuple[int, int], /, *, after: int = -1) -> Awaitable[Any]:
        """Load one field of the structure at ``base``."""
        return self.load(base + field[0], field[1], after=after)

    @types.coroutine
    def load_bytes(self, address: int, size: int, /, *, after: int = -1) -> Generator[int, Any, bytes]:
        """Read any number of bytes, also 0, as ``bytes``; one operation per line, overlapping."""
        return (yield from self._load_bytes(address, size, _ISSUE, after))

    @types.coroutine
    def load_all(self, /, *places: tuple[int, int], after: int = -1) -> Generator[int, Any, list[Any]]:
        """Read several ``(address, size)`` places, none of which crosses a line border, overlapping."""
        values = []
        for handle in [self.load_begin(address, size, after=after) for address, size in places]:
            values.append((yield handle))
        return values

    def get_all(self, base: int, /, *fields: tuple[int, int], after: int = -1) -> Awaitable[list[Any]]:
        """Load several fields of the structure at ``base``, none of which crosses a line border, overlapping."""
        return self.load_all(*((base + offset, size) for offset, size in fields), after=after)

    def load_begin(self, address: int, size: int, /, *, after: int = -1) -> int:
        """Read within one line and go on: the handle that it returns can be awaited later, or be an ``after``."""
        return self._push(_LOAD, address, size, 0, 0, 1, after, _ISSUE)

    def touch(self, address: int, size: int, /, *, after: int = -1) -> None:
        """Read bytes within one line whose value nobody waits for (they are known or restored wholesale)."""
        self._push(_LOAD, address, size, 0, 0, 1, after)

    def prefetch(self, address: int, /) -> None:
        """Ask for the line of ``address``."""
        self._push(_PREFETCH, address, 1, 0, 0, 1)

    def store(self, address: int, value: int | bytes, size: int, /) -> None:
        """Write ``size`` bytes, in program order; one operation per line."""
        self._store(_STORE, address, value, size)

    def put(self, base: int, field: tuple[int, int], value: int | bytes, /) -> None:
        """Store one field of the structure at ``base``."""
        self.store(base + field[0], value, field[1])

    def store_nt(self, address: int, value: int | bytes, size: int, /) -> None:
        """Write around the caches, ordered only by the next fence, atomic or device access; one operation per line."""
        self._store(_STORE_NT, address, value, size)

    def clflush(self, address: int, /) -> None:
        """Write the line of ``address`` back to DRAM and drop it from every cache; ordered as :meth:`store_nt`."""
        self._push(_CLFLUSH, address, 1, 0, 0, 1)

    @types.coroutine
    def atomic(
        self, address: int, size: int, function: int, operand: int, compare: int = 0, /
    ) -> Generator[int, Any, int]:
        """Read and write 1, 2, 4 or 8 aligned bytes in one step, as an ``AtomicFunction`` says; gives the old value."""
        data = operand.to_bytes(8, "little") + compare.to_bytes(8, "little")
        return (yield self._push(_ATOMIC, address, size, data, 0, 1, -1, _COMPLETE, function))

    @types.coroutine
    def poll(
        self, address: int, size: int, value: int | bytes, cycles: int, period: int, /
    ) -> Generator[int, Any, int]:
        """Spin until up to 8 bytes are not ``value``, for ``cycles`` at most; gives what was seen last.

        Arguments:
            period: cycles from one look to the next: what a turn of the loop takes.
        """
        return (yield self._push(_POLL, address, size, value, cycles, 1, -1, _COMPLETE, period))

    # Devices, time, the rest

    @types.coroutine
    def mmio_read(self, address: int, size: int = 4, /) -> Generator[int, Any, int]:
        """Read a device register of 4 or 8 bytes."""
        return (yield self._push(_MMIO_READ, address, size, 0, 0, 1, -1, _COMPLETE))

    def mmio_write(self, address: int, value: int, size: int = 4, /) -> None:
        """Write a device register of 4 or 8 bytes; posted, after every earlier store is visible."""
        self._push(_MMIO_WRITE, address, size, value, 0, 1)

    def execute(self, cost: str | int | Charge, count: int = 1, /, *, after: int = -1) -> None:
        """Compute for ``count`` times the cost of that name, or a :data:`Charge`, or so many cycles of its clock.

        The text is fetched once: ``count`` is for loops. With ``after``, it needs the value of that load.
        """
        if isinstance(cost, str):
            cost = self._costs[cost]
        cycles, uops, text, lines = (cost, cost, 0, 0) if isinstance(cost, int) else cost
        self._execute(cycles * count, uops * count, text, lines, after)

    def plain(self, kind: int, address: int = 0, /) -> None:
        """Queue an operation that has a kind and perhaps an address."""
        self._push(kind, address)

    @types.coroutine
    def wait(self, kind: int, argument: int = 0, /) -> Generator[int, Any, Any]:
        """Queue an operation that has a kind and perhaps an argument, and wait for its completion."""
        return (yield self._push(kind, 0, 0, 0, 0, 0, -1, _COMPLETE, argument))

    def _load(self, address: int, size: int, notify: int, after: int) -> Generator[int, Any, Any]:
        if (address & _OFFSET) + size > LINE:
            data = yield from self._load_bytes(address, size, notify, after)
            return int.from_bytes(data, "little") if size <= 8 else data
        return (yield self._push(_LOAD, address, size, 0, 0, 1, after, notify))

    def _load_bytes(self, address: int, size: int, notify: int, after: int) -> Generator[int, Any, bytes]:
        places = list(_pieces(address, size))
        handles = [self._push(_LOAD, *place, 0, 0, 1, after, notify) for place in places]
        data = bytearray()
        for handle, (_, length) in zip(handles, places, strict=True):
            value = yield handle
            data += value.to_bytes(length, "little") if type(value) is int else value
        return bytes(data)

    def _store(self, kind: int, address: int, value: int | bytes, size: int) -> None:
        if (address & _OFFSET) + size <= LINE:
            self._push(kind, address, size, value, 0, 1)
            return
        data = value.to_bytes(size, "little") if isinstance(value, int) else value
        for start, length in _pieces(address, size):
            self._push(kind, start, length, data[start - address : start - address + length], 0, 1)

    def _execute(self, cycles: int, uops: int, text: int, lines: int, after: int = -1) -> None:
        if cycles <= 0:
            return
        # More micro-operations than an operation can stand for become several of equal shares, the text with the first.
        parts = min(-(-uops // _UOPS_MAX), cycles) or 1
        for n in range(parts):
            share = (n + 1) * cycles // parts - n * cycles // parts
            uops_share = (n + 1) * uops // parts - n * uops // parts
            self._push(_EXECUTE, text, 0, 0, share, min(max(uops_share, 1), _UOPS_MAX), after, _NO, lines)
            text, lines, after = 0, 0, -1

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
