"""What software may do to a core, and how its coroutines run there.

A :class:`Core` queues operations for the hardware and waits for their results. Code runs in *contexts* (a task, an
interrupt handler), each a coroutine with its own queue of operations in the engine. At the bottom of every
``await`` one ``yield`` tells the :class:`Dispatcher` what the context waits for:

==============  ==============================================================
yields          meaning
==============  ==============================================================
a handle (int)  resume with the result of that operation, once it has told it
``None``        resume when every queued operation has been handed to the core
a ``Context``   the core goes on with that context once this one's queue is empty
==============  ==============================================================

A coroutine runs only while its context is the one its core draws from; what arrives for another context waits for
it. Python may run ahead of the hardware, so whatever an interrupt handler shares with the code it interrupts has to
lie in modelled memory and be guarded as in a real kernel.
"""

import enum
import inspect
import types
from array import array
from collections.abc import Awaitable, Callable, Coroutine, Generator, Mapping, Sequence
from functools import wraps
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeVar

from sw.costs import Cost
from sw.issue import FUNCTION_MASK, LINE, MODE_SHIFT, Charge, Issuer
from sw.port import AtomicFunction, CorePort, OperationKind, WakeKind
from sw.structs import Field

__all__ = ["LINE", "AtomicFunction", "Context", "Core", "Dispatcher", "Mode", "Note", "Record", "function"]

_FENCE = OperationKind.FENCE.value
_HALT = OperationKind.HALT.value
_CLI = OperationKind.CLI.value
_STI = OperationKind.STI.value
_IRET = OperationKind.IRET.value
_LFENCE = OperationKind.LFENCE.value
_SFENCE = OperationKind.SFENCE.value
_WRITE_CR3 = OperationKind.WRITE_CR3.value
_INVLPG = OperationKind.INVLPG.value
_RDTSC = OperationKind.RDTSC.value
_TSC_DEADLINE = OperationKind.TSC_DEADLINE.value


class Mode(enum.IntEnum):
    """On whose account a core works."""

    IDLE = 0
    IRQ = 1
    SOFTIRQ = 2
    KERNEL = 3  #: system calls and kernel threads
    USER = 4


_functions: list[str] = ["(none)"]
_modules: list[str] = [""]
_numbers: dict[str, int] = {}


def _number_of(name: str, module: str) -> int:
    """Number of the function called ``name``, a new one the first time."""
    number = _numbers.get(name)
    if number is None:
        number = len(_functions)
        if number > FUNCTION_MASK:
            raise ValueError(f"at most {FUNCTION_MASK} functions can be told apart")
        _functions.append(name)
        _modules.append(module)
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

    __slots__ = ("_tags", "_take_tags", "notes", "on_note")

    def __init__(self, on_note: Callable[[Note], None] | None = None):
        self._tags = array("H")
        self._take_tags: Callable[[], bytes] | None = None
        self.notes: list[Note] = []
        self.on_note = on_note

    def issuer(self, port: CorePort, costs: Mapping[str, Charge]) -> Any:
        """Make the issuer of one core, the engine's own if it has one; its tags come here."""
        if not hasattr(type(port), "issuer"):
            return Issuer(port, self._tags, costs, _functions)
        engine: Any = port
        self._take_tags = engine.take_tags
        return engine.issuer(dict(costs), _functions)

    @property
    def tags(self) -> array:
        """Tag of each operation, by handle."""
        if self._take_tags is not None:
            self._tags.frombytes(self._take_tags())
        return self._tags

    def function_of(self, handle: int) -> str:
        """Name of the innermost function that issued the operation."""
        return _functions[self.tags[handle] & FUNCTION_MASK]

    def mode_of(self, handle: int) -> Mode:
        """On whose account the operation ran."""
        return Mode(self.tags[handle] >> MODE_SHIFT)

    @property
    def function_names(self) -> Sequence[str]:
        """Function names by number (``tag & 0xFFF``)."""
        return _functions

    @property
    def function_modules(self) -> Sequence[str]:
        """The module that each function is from, by number."""
        return _modules

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
        "state",
        "successor",
        "tag",
        "waiting",
    )

    def __init__(self, number: int, coroutine: Coroutine[Any, Any, None], mode: Mode, parent: "Context | None" = None):
        self.number = number
        self.coroutine = coroutine
        self.parent = parent
        self.tag = mode << MODE_SHIFT
        self.results: dict[int, Any] = {}  #: results that arrived before they were awaited
        self.waiting = -1  #: handle of the operation whose result it waits for, -1 if it does not
        self.state = _State.READY
        self.successor: Context | None = None
        self.drained = False  #: its queue ran empty while another context was current
        self.pushed = 0  #: last batch of wakes in which it queued something
        self.interrupts = True  #: whether it last left interrupts enabled
        self.registers = b""

    @property
    def mode(self) -> Mode:
        """Mode of the code that was running when the context last stopped."""
        return Mode(self.tag >> MODE_SHIFT)


#: What a core takes from its issuer as it is.
_ISSUED = (
    "load",
    "load_now",
    "get",
    "load_bytes",
    "load_all",
    "get_all",
    "load_begin",
    "touch",
    "prefetch",
    "store",
    "put",
    "store_nt",
    "clflush",
    "poll",
    "mmio_read",
    "mmio_write",
    "execute",
)


class Core:
    """One core, as software sees it.

    Arguments:
        index: number of the core.
        port: the engine's side.
        record: where attribution and notes go.
        costs: cycles per function; a function decorated with :func:`function` is charged under its own name.
        text: physical address of each function's code, at which ``text_bytes`` of it are fetched; without it, none is.
    """

    # Slots, since what software does most is to look up an attribute of its core.
    __slots__ = (*_ISSUED, "contexts", "costs", "current", "index", "issuer", "port", "record")

    #: What :meth:`new_context` makes.
    context_class: type[Context] = Context

    # The issuer's own methods: nothing lies in between. See sw.issue.Issuer for what each does.
    load: Callable[..., Awaitable[Any]]
    load_now: Callable[..., Awaitable[Any]]
    get: Callable[..., Awaitable[Any]]
    load_bytes: Callable[..., Awaitable[bytes]]
    load_all: Callable[..., Awaitable[list[Any]]]
    get_all: Callable[..., Awaitable[list[Any]]]
    load_begin: Callable[..., int]
    touch: Callable[..., None]
    prefetch: Callable[[int], None]
    store: Callable[[int, int | bytes, int], None]
    put: Callable[[int, Field, int | bytes], None]
    store_nt: Callable[[int, int | bytes, int], None]
    clflush: Callable[[int], None]
    poll: Callable[[int, int, int | bytes, int, int], Awaitable[int]]
    mmio_read: Callable[..., Awaitable[int]]
    mmio_write: Callable[..., None]
    execute: Callable[..., None]

    def __init__(
        self,
        index: int,
        port: CorePort,
        record: Record,
        costs: Mapping[str, Cost],
        text: Mapping[str, int] | None = None,
    ):
        self.index = index
        self.port = port
        self.record = record
        self.costs = costs
        self.current: Any = None  #: the :class:`Context` this core draws from
        self.contexts: dict[int, Context] = {}  #: by number; all cores of a machine share them
        charges = {name: _charge(cost, None if text is None else text.get(name)) for name, cost in costs.items()}
        self.issuer: Any = record.issuer(port, charges)
        for name in _ISSUED:
            setattr(self, name, getattr(self.issuer, name))

    # Contexts

    def new_context(self, coroutine: Coroutine[Any, Any, None], mode: Mode, parent: Context | None = None) -> Context:
        """Make a context that will run ``coroutine``; when it returns, the core goes on with ``parent``."""
        routine = self.issuer.routine(coroutine)
        context = self.context_class(self.port.new_context(), routine, mode, parent)
        self.contexts[context.number] = context
        return context

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
        tag = self.issuer.enter(context.number, context.tag)
        if self.current is not None:
            self.current.tag = tag
        self.current = context

    @types.coroutine
    def result(self, handle: int) -> Generator[int, Any, Any]:
        """The value of a load begun by this context."""
        return (yield handle)

    @types.coroutine
    def chase(self, address: int, size: int = 8, /, *, after: int = -1) -> Generator[int, Any, tuple[Any, int]]:
        """Load a pointer, or whatever else other addresses are computed from: its value, and the load's handle.

        What is loaded from such an address is ``after`` that handle, so that the two do not overlap.
        """
        handle = self.load_begin(address, size, after=after)
        return (yield handle), handle

    def atomic(
        self, address: int, size: int, function: AtomicFunction, operand: int, compare: int = 0
    ) -> Awaitable[int]:
        """Read and write 1, 2, 4 or 8 aligned bytes in one step; gives the old value.

        Arguments:
            operand, compare: unsigned; COMPARE_EXCHANGE writes the operand if the old value is ``compare``.
        """
        return self.issuer.atomic(address, size, function.value, operand, compare)

    def fence(self) -> Awaitable[None]:
        """Wait until every earlier load is complete and every earlier store visible (MFENCE)."""
        return self.issuer.wait(_FENCE)

    def lfence(self) -> Awaitable[None]:
        """Wait until every earlier load is complete (LFENCE)."""
        return self.issuer.wait(_LFENCE)

    def sfence(self) -> Awaitable[None]:
        """Wait until every earlier store is visible, around the caches too (SFENCE)."""
        return self.issuer.wait(_SFENCE)

    # Translation

    def write_cr3(self, root: int) -> None:
        """Translate through the page tables at physical address ``root`` from now on; 0: no translation."""
        self.issuer.plain(_WRITE_CR3, root)

    def invlpg(self, address: int) -> None:
        """Forget the translation of the page of ``address``."""
        self.issuer.plain(_INVLPG, address)

    # Time

    def rdtsc(self) -> Awaitable[int]:
        """The time-stamp counter, cycles of the core's clock, once every earlier load is complete (LFENCE, RDTSC)."""
        return self.issuer.wait(_RDTSC)

    def write_tsc_deadline(self, deadline: int) -> None:
        """Have the core's timer interrupt when the time-stamp counter is ``deadline``; 0: not at all."""
        self.issuer.plain(_TSC_DEADLINE, deadline)

    # Interrupts

    def halt(self, state: int = 0) -> Awaitable[None]:
        """Sleep, in a sleep state of the machine (``core.sleep_exit_ns``), until an interrupt is taken and handled."""
        return self.issuer.wait(_HALT, state)

    def cli(self) -> None:
        """Take no interrupts."""
        self.current.interrupts = False
        self.issuer.plain(_CLI)

    def sti(self) -> None:
        """Take interrupts again."""
        self.current.interrupts = True
        self.issuer.plain(_STI)

    def iret(self) -> None:
        """End an interrupt handler: its last operation."""
        self.issuer.plain(_IRET)

    # Observation

    def note(self, kind: str, **data: Any) -> None:
        """Tie a note to the next operation, which the caller queues before it waits for anything."""
        record = self.record
        note = Note(self.issuer.next_handle(), self.index, kind, data)
        record.notes.append(note)
        if record.on_note is not None:
            record.on_note(note)


def _charge(cost: Cost, text: int | None) -> Charge:
    if text is None:
        return (cost.cycles, cost.uops, 0, 0)
    return (cost.cycles, cost.uops, text, (text % LINE + cost.text_bytes + LINE - 1) // LINE if cost.text_bytes else 0)


P = ParamSpec("P")
T = TypeVar("T")
AnyCore = TypeVar("AnyCore", bound=Core)
_Code = Callable[Concatenate[AnyCore, P], Coroutine[Any, Any, T]]


def function(mode: Mode | None = None) -> Callable[[_Code], _Code]:
    """Decorate a coroutine function whose first argument is the core, so that what it does is told apart.

    Every operation is attributed to the innermost decorated function by name, and to ``mode`` (default: the
    caller's). Each call executes the cost of the function's name, if the table has one.
    """
    mode_bits = -1 if mode is None else mode << MODE_SHIFT

    def decorate(code: _Code) -> _Code:
        return wraps(code)(_caller(code, _number_of(code.__name__, code.__module__), mode_bits))

    return decorate


def _caller(code: _Code, number: int, mode: int) -> Any:
    """``code``, called through the issuer.

    Written out with the parameters of ``code``, as ``dataclasses`` writes ``__init__``: passing on ``*args`` and
    ``**kwargs`` would take longer than the rest of a call.
    """
    declared, passed = [], []
    for name, parameter in inspect.signature(code).parameters.items():
        only = parameter.kind is inspect.Parameter.KEYWORD_ONLY
        if only and "*" not in declared:
            declared.append("*")
        declared.append(name if parameter.default is inspect.Parameter.empty else f"{name}=None")
        passed.append(f"{name}={name}" if only else name)
    call = f"code({', '.join(passed)})"
    source = f"def called({', '.join(declared)}): return {declared[0]}.issuer.call({call}, number, mode)"
    scope = {"code": code, "number": number, "mode": mode}
    exec(source, scope)
    called: Any = scope["called"]
    called.__defaults__ = code.__defaults__
    called.__kwdefaults__ = code.__kwdefaults__
    return called


class Dispatcher:
    """Runs the contexts of all cores: takes wakes from the engine and resumes who waits for them."""

    def __init__(self, port: CorePort, cores: Sequence[Core], record: Record):
        self.port = port
        self.cores = cores
        self.record = record
        self.batch = 0
        self.interrupts_taken = 0
        self._contexts: dict[int, Context] = {}
        for core in cores:
            core.contexts = self._contexts

    def start(self, core: Core, context: Context) -> None:
        """Let ``core``, which has no context yet, begin with ``context``."""
        self._switch(core, context)

    async def run(
        self, until: int | None = None, stop: Callable[[], bool] | None = None, *, only_notes: bool = False
    ) -> WakeKind | None:
        """Dispatch until ``stop()``, tick ``until``, or until nothing will ever happen.

        Arguments:
            only_notes: nothing but a note changes what ``stop`` says, so it need not be asked all the time.

        Returns:
            ``WakeKind.LIMIT`` or ``WakeKind.IDLE``, or ``None`` when ``stop`` ended it.
        """
        # An engine may do the most frequent part by itself, without coming back here: resume a coroutine with what it
        # waits for, as long as it goes on to wait for something else, and ask `stop`. What merely passes on to an
        # engine, to look at its wakes, does not.
        engine: Any = self.port
        quick = hasattr(type(engine), "run_coroutines")
        cores = self.cores
        contexts = self._contexts
        notes = self.record.notes if only_notes else None
        completion, empty, interrupt = WakeKind.COMPLETION, WakeKind.EMPTY, WakeKind.INTERRUPT
        while stop is None or not stop():
            if quick:
                wakes = engine.run_coroutines(until, contexts, self._settle, stop, notes)
            else:
                wakes = await engine.run(until)
            # Not before: what is queued while the engine runs is older than the wakes that it ends with.
            self.batch += 1
            for kind, index, number, value, data in wakes:
                if kind == completion:
                    core = cores[index]
                    context = contexts[number]
                    if context.waiting == value and context is core.current:
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
        next_handle = core.issuer.next_handle
        before = next_handle()
        try:
            request = context.coroutine.send(value)
            results = context.results
            while results and type(request) is int and request in results:
                request = context.coroutine.send(results.pop(request))
        except StopIteration as stop:
            self._settle(context, True, stop.value)
        else:
            self._settle(context, False, request)
        after = next_handle()
        if after != before:
            context.pushed = self.batch
        if record.notes and record.notes[-1].handle >= after:
            raise RuntimeError(f"note {record.notes[-1].kind!r} was not followed by an operation")

    def _settle(self, context: Context, finished: bool, request: Any) -> None:
        """Note what the coroutine of ``context`` waits for, or that it has finished."""
        context.waiting = -1
        if finished:
            context.state = _State.FINISHED
        elif type(request) is int:
            context.waiting = request
            context.state = _State.WAITS
        elif request is None:
            context.state = _State.DRAINS
        else:
            context.successor = request
            context.state = _State.LEAVES

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
                del self._contexts[context.number]
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
                self._resume(core, context, context.results.pop(context.waiting))
        elif drained:
            self._drained(core, context)
