"""From QEMU's log to paths: which straight-line runs of code each call of a function went through."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from sw.costs.derive.instruction import Instruction

if TYPE_CHECKING:
    from sw.costs.derive.text import Text

__all__ = ["Activation", "Tracer", "executed"]

#: Straight-line runs of code, [start, end) each, in the order in which they ran.
Runs = tuple[tuple[int, int], ...]

_LINE = re.compile(rb"Trace (\d+): \S+ \[\w+/(\w+)/")
_KERNEL = 1 << 63
#: Entries of the interrupt descriptor table, one after the other under one name; those of exceptions begin with asm_.
_VECTORS = {"irq_entries_start", "spurious_entries_start"}


@dataclass(slots=True)
class Activation:
    """One call of a root, without what nested calls of roots did."""

    name: str
    runs: list[tuple[int, int]] = field(default_factory=list)
    nested: list[str] = field(default_factory=list)  #: roots it called, in order


@dataclass(slots=True)
class _Frame:
    back: int | None  #: return address
    activation: Activation | None = None  #: if a root began here
    tail: bool = False  #: entered by a jump: returns for its caller too
    interrupted: tuple[int, Instruction] | None = None  #: block that an interrupt came after, and its last instruction


def executed(log: Path, processor: int = 0) -> Iterator[int]:
    """Start addresses of the translation blocks that one processor ran, in order; 0 for all user code."""
    held = None
    with log.open("rb") as lines:
        for line in lines:
            match = _LINE.match(line)
            if match is None:
                # The block logged last was not run after all: an interrupt came before it.
                if line.startswith(b"Stopped execution"):
                    held = None
                continue
            if int(match[1]) != processor:
                continue
            if held is not None:
                yield held
            address = int(match[2], 16)
            held = address if address >= _KERNEL else 0
    if held is not None:
        yield held


class Tracer:
    """Follows calls and returns and gives every run to the innermost *root*.

    A root is a function whose cost is an entry of the table (or part of one). What is called from it and is no root
    itself counts as its own. :attr:`paths` holds, per root, how often it ran through which runs and called which
    roots. A function that switches to another task has two paths: ``NAME.before`` up to the switch, ``NAME.after``
    from it.
    """

    def __init__(self, text: "Text", roots: set[str]):
        self._text = text
        self._roots = {text.address_of(name): name for name in roots}
        self._switch = text.address_of("__switch_to_asm")
        self._stack: list[_Frame] = []
        self._sleeping: list[list[_Frame]] = []
        self.paths: dict[str, Counter[tuple[Runs, tuple[str, ...]]]] = {}

    def follow(self, log: Path) -> None:
        """Take in one log."""
        blocks = executed(log)
        here = next(blocks, 0)
        for following in blocks:
            self._block(here, following)
            here = following
        self._stack = []

    def _block(self, here: int, following: int) -> None:
        """One block has run, and the one at ``following`` runs next."""
        if not here:
            self._stack = [self._frame(None, following)] if following else []
            return
        last = self._text.instruction(here)
        while not last.is_control and last.end != following:
            if last.is_repeated and last.address == following:
                # QEMU takes one turn of a repeated string instruction at a time.
                self._spend(here, last.address)
                return
            last = self._text.instruction(last.end)
        self._spend(here, last.end)
        if self._interrupts(following) and following != last.target:
            self._interrupted(here, last, following)
        else:
            self._go(here, last, following)

    def _go(self, here: int, last: Instruction, following: int) -> None:
        """The block at ``here`` ended with ``last``, which led to ``following``."""
        if not following:
            self._end(0)
        elif last.is_call and following == (last.target or following):
            self._stack.append(self._frame(last.end, following))
        elif last.is_return:
            self._returned(here, following)
        elif last.mnemonic.startswith("iret"):
            self._interrupt_returned(following)
        elif last.is_control and following in self._roots and following != self._start_of(last):
            frame = self._frame(None, following)
            frame.tail = True
            self._stack.append(frame)

    def _start_of(self, instruction: Instruction) -> int:
        _, offset = self._text.place(instruction.address)
        return instruction.address - offset

    def _interrupts(self, address: int) -> bool:
        if not address:
            return False
        name, offset = self._text.place(address)
        names = self._text.names_at(address - offset)
        return not names.isdisjoint(_VECTORS) or (offset == 0 and name.startswith("asm_"))

    def _frame(self, back: int | None, address: int) -> _Frame:
        """A frame of the function at ``address``."""
        name = self._roots.get(address)
        if name is None:
            return _Frame(back)
        for frame in reversed(self._stack):
            if frame.activation is not None:
                frame.activation.nested.append(name)
                break
        return _Frame(back, Activation(name))

    def _spend(self, start: int, end: int) -> None:
        if start == end:
            return
        for frame in reversed(self._stack):
            if frame.activation is not None:
                runs = frame.activation.runs
                if runs and runs[-1][1] == start:
                    runs[-1] = (runs[-1][0], end)
                else:
                    runs.append((start, end))
                return

    def _end(self, depth: int, complete: bool = True) -> None:
        """Leave all frames from ``depth`` on."""
        while len(self._stack) > depth:
            frame = self._stack.pop()
            if frame.activation is not None and complete:
                path = (tuple(frame.activation.runs), tuple(frame.activation.nested))
                self.paths.setdefault(frame.activation.name, Counter())[path] += 1

    def _returned(self, here: int, back: int) -> None:
        depth = len(self._stack)
        while depth and self._stack[depth - 1].tail:
            depth -= 1
        top = self._stack[depth - 1] if depth else None
        if top is not None and top.back == back:
            switched = self._text.place(here)[0] in ("__switch_to_asm", "__switch_to")
            self._end(depth - 1)
            if switched:
                self._switched()
            return
        self._returned_elsewhere(back)

    def _switched(self) -> None:
        """Another task runs now; which one shows when it returns from the scheduler."""
        for index in range(len(self._stack) - 1, -1, -1):
            frame = self._stack[index]
            if frame.activation is not None:
                frame.activation.name += ".before"
                below = self._stack[:index]
                self._end(index)
                self._sleeping.append(below)
                break
        self._stack = [_Frame(None, Activation(".after"))]

    def _returned_elsewhere(self, back: int) -> None:
        after = self._stack[0].activation if self._stack else None
        if after is not None and after.name.endswith(".after"):
            name, _ = self._text.place(back)
            del self._stack[1:]
            if name in self._roots.values() and after.name == ".after":
                after.name = name + ".after"
                return
            self._end(0, complete=after.name != ".after")
        for index in range(len(self._stack) - 1, -1, -1):
            if self._stack[index].back == back:
                self._end(index, complete=False)
                return
        for stack in reversed(self._sleeping):
            for index in range(len(stack) - 1, max(-1, len(stack) - 4), -1):
                if stack[index].back == back:
                    self._sleeping.remove(stack)
                    self._stack = stack[:index]
                    return
        self._stack = []

    def _interrupted(self, here: int, last: Instruction, following: int) -> None:
        frame = self._frame(None, following)
        frame.interrupted = (here, last)
        frame.activation = frame.activation or Activation("(interrupt)")
        self._stack.append(frame)

    def _interrupt_returned(self, back: int) -> None:
        for index in range(len(self._stack) - 1, -1, -1):
            interrupted = self._stack[index].interrupted
            if interrupted is not None:
                self._end(index)
                here, last = interrupted
                # What follows in a straight line had not all run, unless a jump led back into it.
                if here < back <= last.address and back != last.target:
                    self._cut(back)
                else:
                    self._go(here, last, back)
                return
        self._stack = []

    def _cut(self, back: int) -> None:
        """Take back that what follows ``back`` in a straight line has run."""
        for frame in reversed(self._stack):
            if frame.activation is not None:
                runs = frame.activation.runs
                if runs and runs[-1][0] <= back < runs[-1][1]:
                    runs[-1] = (runs[-1][0], back)
                return
