"""What software needs of whatever runs the hardware: the contract between ``sw/`` and the engines.

An engine holds, per *context* (a process, an interrupt handler), a queue of operations. Each core draws
from the context it was last switched to. Simulated time stands still while Python decides.

A LOAD has its value from its issue on ("bound at issue", ``docs/core.md``). Software that only needs the value to go on
asks for ``Notify.ISSUE``, as a core speculates past it; the data still take the time the hardware takes.
"""

import enum
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from hw.bus.core import TIMER_VECTOR, AtomicFunction, OperationKind

__all__ = ["TIMER_VECTOR", "AtomicFunction", "CorePort", "Notify", "OperationKind", "Wake", "WakeKind"]


class Notify(enum.IntEnum):
    """When an operation tells its context, by a COMPLETION, that it has its value."""

    NO = 0  #: never
    COMPLETE = 1  #: when it completes; a HALT, when an interrupt is taken
    ISSUE = 2  #: when it issues: a LOAD only


class WakeKind(enum.IntEnum):
    """Why an engine returned to Python."""

    EMPTY = 0  #: the core's context has handed over every operation and waits for no result: give it more
    COMPLETION = 1  #: an operation pushed with a ``notify`` has its value
    INTERRUPT = 2  #: the core took an interrupt; its context is set aside, and the core waits for ``switch``
    IDLE = 3  #: nothing will ever happen again without new work (core is -1)
    LIMIT = 4  #: the tick given to ``run`` was reached (core is -1)


class Wake(NamedTuple):
    """One reason to wake."""

    kind: WakeKind
    core: int
    context: int  #: the core's context (INTERRUPT: the interrupted one); -1 if none
    value: int  #: COMPLETION: the operation's handle; INTERRUPT: the vector
    #: COMPLETION: the bytes read, as an int (little-endian) up to 8 bytes, else as bytes. A LOAD gives what it was
    #: bound to at its issue, an ATOMIC the old value, a POLL what it saw last.
    data: int | bytes


class CorePort(Protocol):
    """Operations on the cores."""

    def new_context(self) -> int:
        """Make an empty queue of operations and return its number."""

    def free_context(self, context: int) -> None:
        """Forget a context whose operations have all issued."""

    def switch(self, core: int, context: int) -> None:
        """Let ``core`` draw from ``context`` from its next edge on.

        What the interrupted context had not issued stays in its queue, the rest of a cut-short EXECUTE or POLL first.
        """

    def push(
        self,
        context: int,
        kind: int,
        address: int = 0,
        size: int = 0,
        data: int | bytes = 0,
        cycles: int = 0,
        uops: int = 0,
        after: int = -1,
        notify: int = Notify.NO,
        argument: int = 0,
    ) -> int:
        """Queue one operation (an ``OperationKind`` value and its fields, see ``hw.bus.core.Operation``).

        Returns the operation's handle: handles count up from 0 over all contexts. ``after`` is the handle
        of an operation that must complete first. With a ``notify`` (a :class:`Notify`) the context counts as
        waiting: no EMPTY until it is told. What has a result or ends can tell: LOAD, MMIO_READ, ATOMIC, POLL, RDTSC,
        the fences, HALT. ``data`` of an ATOMIC is 16 bytes: the operand, then what is compared, 8 bytes each; of a
        POLL, ``size`` bytes.
        """

    async def run(self, until: int | None = None) -> Sequence[Wake]:
        """Run the hardware until at least one reason to wake, or until tick ``until``."""

    @property
    def tick(self) -> int:
        """Simulated time in ticks of the machine's schedule."""
