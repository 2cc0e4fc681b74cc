"""What software may do to a core, and how its coroutines run there.

A :class:`Core` queues operations for the hardware and waits for their results. Code runs in *contexts* (a task, an
interrupt handler), each a coroutine with its own queue of operations in the engine. At the bottom of every
``await`` one ``yield`` tells the :class:`Dispatcher` what the context waits for:

==============  ==============================================================
yields          meaning
==============  ==============================================================
a handle (int)  resume with the result of that operation
``None``        resume when every queued operation has been handed to the core
a ``Context``   the core goes on with that context once this one's queue is empty
==============  ==============================================================

A coroutine runs only while its context is the one its core draws from; what arrives for another context waits for
it. Python may run ahead of the hardware, so whatever an interrupt handler shares with the code it interrupts has to
lie in modelled memory and be guarded as in a real kernel.
"""

import enum
import types
from array import array
from collections.abc import Awaitable, Callable, Coroutine, Generator, Mapping, Sequence
from functools import wraps
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeVar

from sw.costs import Cost
from sw.port import CorePort, OperationKind, WakeKind
from sw.structs import Field

__all__ = ["LINE", "Context", "Core", "Dispatcher", "Mode", "Note", "Record", "function"]

#: Bytes of a cache line: no operation crosses a line border.
LINE = 64
_OFFSET = LINE - 1

_EXECUTE = OperationKind.EXECUTE.value
_LOAD = OperationKind.LOAD.value
_STORE = OperationKind.STORE.value
_PREFETCH = OperationKind.PREFETCH.value
_MMIO_READ = OperationKind.MMIO_READ.value
_MMIO_WRITE = OperationKind.MMIO_WRITE.value
_FENCE = OperationKind.FENCE.value
_HALT = OperationKind.HALT.value
_CLI = OperationKind.CLI.value
_STI = OperationKind.STI.value
_IRET = OperationKind.IRET.value

#: ``Operation.uops`` is 16 bits wide.
_UOPS_MAX = 0xFFFF


class Mode(enum.IntEnum):
    """On whose account a core works."""

    IDLE = 0
    IRQ = 1
    SOFTIRQ = 2
    KERNEL = 3  #: system calls and kernel threads
    USER = 4


#: A tag names function and mode of an operation: the mode above, the function's number below.
_MODE_SHIFT = 12
_FUNCTION_MASK = (1 << _MODE_SHIFT) - 1

_functions: list[str] = ["(none)"]
_numbers: dict[str, int] = {}


def _number_of(name: str) -> int:
    """Number of the function called ``name``, a new one the first time."""
    number = _numbers.get(name)
    if number is None:
        number = len(_functions)
        if number > _FUNCTION_MASK:
            raise ValueError(f"at most {_FUNCTION_MASK} functions can be told apart")
        _functions.append(name)
        _numbers[name] = number
    return number


class Note(NamedTuple):
    """Something observers want to know, tied to the operation with which it happened."""

    handle: int  #: the operation
    core: int
    kind: str
    data: Mapping[str, Any]


class Record:
    """What software did, for observers; it never influences the hardware.

    ``tags[handle]`` is the tag of the operation with that handle; :meth:`function_of` and :meth:`mode_of` read it.

    Arguments:
        on_note: called with every :class:`Note` as it is made.
    """

    __slots__ = ("_append", "notes", "on_note", "tags")

    def __init__(self, on_note: Callable[[Note], None] | None = None):
        self.tags = array("H")
        self.notes: list[Note] = []
        self.on_note = on_note
        self._append = self.tags.append

    def function_of(self, handle: int) -> str:
        """Name of the innermost function that issued the operation."""
        return _functions[self.tags[handle] & _FUNCTION_MASK]

    def mode_of(self, handle: int) -> Mode:
        """On whose account the operation ran."""
        return Mode(self.tags[handle] >> _MODE_SHIFT)

    @property
    def function_names(self) -> Sequence[str]:
        """Function names by number (``tag & 0xFFF``)."""
        return _functions

    def __len__(self) -> int:
        return len(self.tags)


class _State(enum.Enum):
    READY = enum.auto()  #: never ran, or was switched away from: runs as soon as it is current
    WAITS = enum.auto()  #: for the result of operation ``waiting``
    DRAINS = enum.auto()  #: until its queue is empty
    LEAVES = enum.auto()  #: for ``successor``, once its queue is empty
    FINISHED = enum.auto()  #: its coroutine has returned; goes on with ``parent`` once its queue is empty


class Context:
    """A coroutine, its queue of operations in the engine and where it stands.

    ``registers`` is the architectural register file of the code that runs here, as bytes: interrupt entry saves it
    to modelled memory, the return restores it from there.
    """

    __slots__ = (
        "coroutine",
        "drained",
        "interrupts",
        "number",
        "parent",
        "pushed",
        "registers",
        "results",
        "stack",
        "state",
        "successor",
        "tag",
        "waiting",
    )

    def __init__(self, number: int, coroutine: Coroutine[Any, Any, None], mode: Mode, parent: "Context | None" = None):
        self.number = number
        self.coroutine = coroutine
        self.parent = parent
        self.tag = mode << _MODE_SHIFT
        self.stack: list[int] = []  #: tags of the calling functions
        self.results: dict[int, int | bytes] = {}  #: results that arrived before they were awaited
        self.waiting = -1
        self.state = _State.READY
        self.successor: Context | None = None
        self.drained = False  #: its queue ran empty while another context was current
        self.pushed = 0  #: last batch of wakes in which it queued something
        self.interrupts = True  #: whether it last left interrupts enabled
        self.registers = b""

    @property
    def mode(self) -> Mode:
        """Mode of the code that was running when the context last stopped."""
        return Mode(self.tag >> _MODE_SHIFT)


class Core:
    """One core, as software sees it.

    Arguments:
        index: number of the core.
        port: the engine's side.
        record: where attribution and notes go.
        costs: cycles per function; a function decorated with :func:`function` is charged under its own name.
    """

    #: What :meth:`new_context` makes.
    context_class: type[Context] = Context

    def __init__(self, index: int, port: CorePort, record: Record, costs: Mapping[str, Cost]):
        self.index = index
        self.port = port
        self.record = record
        self.costs = costs
        self.current: Any = None  #: the :class:`Context` this core draws from
        self.waiters: dict[int, Context] = {}  #: who waits for which operation
        self._costs: list[tuple[int, int] | None] = []
        self._push = port.push
        self._tagged = record.tags.append
        self._number = -1
        self._tag = 0
        self._stack: list[int] = []

    # Contexts

    def new_context(self, coroutine: Coroutine[Any, Any, None], mode: Mode, parent: Context | None = None) -> Context:
        """Make a context that will run ``coroutine``; when it returns, the core goes on with ``parent``."""
        return self.context_class(self.port.new_context(), coroutine, mode, parent)

    @types.coroutine
    def switch_to(self, context: Context) -> Generator[Context, None, None]:
        """Let the core go on with ``context`` after what this one has queued; returns when switched back to."""
        yield context

    @types.coroutine
    def drain(self) -> Generator[None, None, None]:
        """Wait until every queued operation has been handed over, so as not to run ahead without bound."""
        yield None

    def interrupt(self, vector: int) -> Coroutine[Any, Any, None]:
        """Code that handles an interrupt; runs in a context of its own, with interrupts disabled."""
        raise NotImplementedError(f"core {self.index} has no handler for vector {vector}")

    def _enter(self, context: Context) -> None:
        """Make ``context`` the one that runs here."""
        previous = self.current
        if previous is not None:
            previous.tag = self._tag
        self.current = context
        self._number = context.number
        self._tag = context.tag
        self._stack = context.stack

    # Memory

    @types.coroutine
    def load(self, address: int, size: int) -> Generator[int, Any, Any]:
        """Read ``size`` bytes: an ``int`` (little-endian) up to 8 bytes, else ``bytes``.

        What crosses line borders is read in one operation per line, overlapping.
        """
        if (address & _OFFSET) + size > LINE:
            data = yield from self.load_bytes(address, size)
            return int.from_bytes(data, "little") if size <= 8 else data
        handle = self._push(self._number, _LOAD, address, size, 0, 0, 1, -1, True)
        self._tagged(self._tag)
        self.waiters[handle] = self.current
        return (yield handle)

    @types.coroutine
    def load_bytes(self, address: int, size: int) -> Generator[int, Any, bytes]:
        """Read any number of bytes, also 0, as ``bytes``; one operation per line, overlapping."""
        data = bytearray()
        for handle, length in self._load_pieces(address, size):
            results = self.current.results
            value = results.pop(handle) if handle in results else (yield handle)
            data += value.to_bytes(length, "little") if type(value) is int else value
        return bytes(data)

    def _load_pieces(self, address: int, size: int) -> list[tuple[int, int]]:
        handles = []
        while size > 0:
            length = min(size, LINE - (address & _OFFSET))
            handles.append((self.load_begin(address, length), length))
            address += length
            size -= length
        return handles

    def load_begin(self, address: int, size: int) -> int:
        """Issue a load within one line and go on; :meth:`result` of the handle gives the value later."""
        handle = self._push(self._number, _LOAD, address, size, 0, 0, 1, -1, True)
        self._tagged(self._tag)
        self.waiters[handle] = self.current
        return handle

    @types.coroutine
    def result(self, handle: int) -> Generator[int, Any, Any]:
        """The value of a load begun by this context."""
        results = self.current.results
        if handle in results:
            return results.pop(handle)
        return (yield handle)

    @types.coroutine
    def load_all(self, *places: tuple[int, int]) -> Generator[int, Any, list[Any]]:
        """Read several ``(address, size)`` places, none of which crosses a line border, overlapping."""
        handles = [self.load_begin(address, size) for address, size in places]
        values = []
        for handle in handles:
            results = self.current.results
            values.append(results.pop(handle) if handle in results else (yield handle))
        return values

    def touch(self, address: int, size: int) -> None:
        """Read bytes within one line whose value nobody waits for (they are known or restored wholesale)."""
        self._push(self._number, _LOAD, address, size, 0, 0, 1)
        self._tagged(self._tag)

    def store(self, address: int, value: int | bytes, size: int) -> None:
        """Write ``size`` bytes, in program order; one operation per line."""
        if (address & _OFFSET) + size > LINE:
            data = value.to_bytes(size, "little") if isinstance(value, int) else value
            start = 0
            while start < size:
                length = min(size - start, LINE - (address & _OFFSET))
                self.store(address, data[start : start + length], length)
                address += length
                start += length
            return
        self._push(self._number, _STORE, address, size, value, 0, 1)
        self._tagged(self._tag)

    def get(self, base: int, field: Field) -> Awaitable[Any]:
        """Load one field of the structure at ``base``."""
        return self.load(base + field[0], field[1])

    def put(self, base: int, field: Field, value: int | bytes) -> None:
        """Store one field of the structure at ``base``."""
        self.store(base + field[0], value, field[1])

    def prefetch(self, address: int) -> None:
        """Ask for the line of ``address``."""
        self._push(self._number, _PREFETCH, address, 1, 0, 0, 1)
        self._tagged(self._tag)

    @types.coroutine
    def fence(self) -> Generator[int, Any, None]:
        """Wait until every earlier load is complete and every earlier store visible."""
        yield self._wait_for(_FENCE)

    # Devices

    @types.coroutine
    def mmio_read(self, address: int, size: int = 4) -> Generator[int, Any, int]:
        """Read a device register of 4 or 8 bytes."""
        handle = self._push(self._number, _MMIO_READ, address, size, 0, 0, 1, -1, True)
        self._tagged(self._tag)
        self.waiters[handle] = self.current
        return (yield handle)

    def mmio_write(self, address: int, value: int, size: int = 4) -> None:
        """Write a device register of 4 or 8 bytes; posted, after every earlier store is visible."""
        self._push(self._number, _MMIO_WRITE, address, size, value, 0, 1)
        self._tagged(self._tag)

    # Time and interrupts

    def execute(self, cost: str | int, count: int = 1) -> None:
        """Compute for ``count`` times the cost of that name, or for so many cycles of the core's clock."""
        if isinstance(cost, int):
            cycles = uops = cost * count
        else:
            entry = self.costs[cost]
            cycles = entry.cycles * count
            uops = entry.uops * count
        if cycles > 0:
            self._push(self._number, _EXECUTE, 0, 0, 0, cycles, uops if uops < _UOPS_MAX else _UOPS_MAX)
            self._tagged(self._tag)

    @types.coroutine
    def halt(self) -> Generator[int, Any, None]:
        """Sleep until an interrupt has been taken and handled."""
        yield self._wait_for(_HALT)

    def cli(self) -> None:
        """Take no interrupts."""
        self.current.interrupts = False
        self._push(self._number, _CLI)
        self._tagged(self._tag)

    def sti(self) -> None:
        """Take interrupts again."""
        self.current.interrupts = True
        self._push(self._number, _STI)
        self._tagged(self._tag)

    def iret(self) -> None:
        """End an interrupt handler: its last operation."""
        self._push(self._number, _IRET)
        self._tagged(self._tag)

    def _wait_for(self, kind: int) -> int:
        handle = self._push(self._number, kind, 0, 0, 0, 0, 0, -1, True)
        self._tagged(self._tag)
        self.waiters[handle] = self.current
        return handle

    # Observation

    def note(self, kind: str, **data: Any) -> None:
        """Tie a note to the next operation, which the caller queues before it waits for anything."""
        record = self.record
        note = Note(len(record.tags), self.index, kind, data)
        record.notes.append(note)
        if record.on_note is not None:
            record.on_note(note)

    def _call(self, number: int, mode: int) -> None:
        """Enter a function: remember the caller's tag and charge the function's own cost."""
        tag = self._tag
        self._stack.append(tag)
        self._tag = tag = ((tag & ~_FUNCTION_MASK) if mode < 0 else mode) | number
        try:
            cost = self._costs[number]
        except IndexError:
            self._resolve_costs()
            cost = self._costs[number]
        if cost is not None:
            self._push(self._number, _EXECUTE, 0, 0, 0, cost[0], cost[1])
            self._tagged(tag)

    def _resolve_costs(self) -> None:
        """Look up the costs of all functions known by now."""
        for name in _functions[len(self._costs) :]:
            cost = self.costs.get(name)
            self._costs.append((cost.cycles, cost.uops) if cost is not None and cost.cycles else None)


P = ParamSpec("P")
T = TypeVar("T")
AnyCore = TypeVar("AnyCore", bound=Core)
_Code = Callable[Concatenate[AnyCore, P], Coroutine[Any, Any, T]]


def function(mode: Mode | None = None) -> Callable[[_Code], _Code]:
    """Decorate a coroutine function whose first argument is the core, so that what it does is told apart.

    Every operation is attributed to the innermost decorated function by name, and to ``mode`` (default: the
    caller's). Each call executes the cost of the function's name, if the table has one. A coroutine that is
    abandoned in the middle (the end of a run) must not touch the core, so there is no ``finally`` here; an exception
    ends the run anyway.
    """
    mode_bits = -1 if mode is None else mode << _MODE_SHIFT

    def decorate(code: _Code) -> _Code:
        number = _number_of(code.__name__)

        @wraps(code)
        async def called(core: Core, *args: Any, **kwargs: Any) -> Any:
            core._call(number, mode_bits)
            value = await code(core, *args, **kwargs)
            core._tag = core._stack.pop()
            return value

        return called

    return decorate


class Dispatcher:
    """Runs the contexts of all cores: takes wakes from the engine and resumes who waits for them."""

    def __init__(self, port: CorePort, cores: Sequence[Core], record: Record):
        self.port = port
        self.cores = cores
        self.record = record
        self.batch = 0
        self.interrupts_taken = 0
        self._free: list[int] = []
        waiters: dict[int, Context] = {}
        for core in cores:
            core.waiters = waiters
        self._waiters = waiters
        self._core_of: dict[int, Core] = {}

    def start(self, core: Core, context: Context) -> None:
        """Let ``core``, which has no context yet, begin with ``context``."""
        self._switch(core, context)

    async def run(self, until: int | None = None, stop: Callable[[], bool] | None = None) -> WakeKind | None:
        """Dispatch until ``stop()``, tick ``until``, or until nothing will ever happen.

        Returns:
            ``WakeKind.LIMIT`` or ``WakeKind.IDLE``, or ``None`` when ``stop`` ended it.
        """
        run = self.port.run
        cores = self.cores
        waiters = self._waiters
        completion, empty, interrupt = WakeKind.COMPLETION, WakeKind.EMPTY, WakeKind.INTERRUPT
        waits = _State.WAITS
        while stop is None or not stop():
            self.batch += 1
            for kind, index, number, value, data in await run(until):
                if kind == completion:
                    context = waiters.pop(value)
                    core = cores[index]
                    if context.waiting == value and context is core.current and context.state is waits:
                        context.waiting = -1
                        self._resume(core, context, data)
                    else:
                        context.results[value] = data
                elif kind == empty:
                    core = cores[index]
                    context = core.current
                    if context is not None and context.number == number:
                        # Not if it queued more since the engine found it empty.
                        if context.pushed != self.batch:
                            self._drained(core, context)
                    elif number >= 0:
                        self._mark_drained(number)
                elif kind == interrupt:
                    core = cores[index]
                    self.interrupts_taken += 1
                    handler = core.new_context(core.interrupt(value), Mode.IRQ, core.current)
                    handler.interrupts = False
                    self._switch(core, handler)
                else:
                    return kind
        return None

    def _mark_drained(self, number: int) -> None:
        """A context's queue ran empty just as its core left it: it will not be told again."""
        for core in self.cores:
            context = core.current
            while context is not None:
                if context.number == number:
                    context.drained = True
                    return
                context = context.parent

    def _resume(self, core: Core, context: Context, value: int | bytes | None) -> None:
        """Run the coroutine until it waits."""
        record = self.record
        before = len(record.tags)
        try:
            request = context.coroutine.send(value)
        except StopIteration:
            context.state = _State.FINISHED
        else:
            if type(request) is int:
                context.waiting = request
                context.state = _State.WAITS
            elif request is None:
                context.state = _State.DRAINS
            else:
                context.successor = request
                context.state = _State.LEAVES
        after = len(record.tags)
        if after != before:
            context.pushed = self.batch
        if record.notes and record.notes[-1].handle >= after:
            raise RuntimeError(f"note {record.notes[-1].kind!r} was not followed by an operation")

    def _drained(self, core: Core, context: Context) -> None:
        """``context``, current on ``core``, has nothing queued any more."""
        state = context.state
        if state is _State.LEAVES:
            successor = context.successor
            assert successor is not None
            context.successor = None
            context.state = _State.READY
            self._switch(core, successor)
        elif state is _State.FINISHED:
            parent = context.parent
            if parent is not None:
                self._switch(core, parent)
                self.port.free_context(context.number)
        elif state is _State.DRAINS:
            self._resume(core, context, None)

    def _switch(self, core: Core, context: Context) -> None:
        """``core`` goes on with ``context``."""
        core._enter(context)
        self.port.switch(core.index, context.number)
        drained = context.drained
        context.drained = False
        if context.state is _State.READY:
            self._resume(core, context, None)
        elif context.state is _State.WAITS:
            if context.waiting in context.results:
                value = context.results.pop(context.waiting)
                context.waiting = -1
                self._resume(core, context, value)
        elif drained:
            self._drained(core, context)
