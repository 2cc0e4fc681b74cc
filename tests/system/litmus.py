"""Litmus tests of the memory model: programs, what x86-TSO allows, and how a machine is asked.

The model is the abstract machine of Sewell, Sarkar, Owens, Zappa Nardelli and Myreen, "x86-TSO: a rigorous and usable
programmer's model for x86 multiprocessors", CACM 53 (2010): a first-in, first-out store buffer per thread before one
memory, explored exhaustively.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass

from hw.bus.core import AtomicFunction
from hw.bus.tilelink import LINE_BYTES
from sim.bare_metal import BareMetal

__all__ = ["LITMUS", "Exchange", "Fence", "Litmus", "Read", "Runner", "Write", "allowed"]


@dataclass(frozen=True)
class Write:
    """Store ``value`` to a variable."""

    variable: str
    value: int


@dataclass(frozen=True)
class Read:
    """Load a variable; ``register`` names the value in the outcome."""

    variable: str
    register: str


@dataclass(frozen=True)
class Fence:
    """MFENCE."""


@dataclass(frozen=True)
class Exchange:
    """XCHG with memory, which is locked: store ``value``, the old one goes to ``register``."""

    variable: str
    value: int
    register: str


Instruction = Write | Read | Fence | Exchange

#: Values of all registers by name, then of all variables by name.
Outcome = tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Litmus:
    """One test. Variables are zero at the start."""

    name: str
    threads: tuple[tuple[Instruction, ...], ...]

    @property
    def variables(self) -> list[str]:
        """Names of the variables."""
        return sorted({i.variable for thread in self.threads for i in thread if not isinstance(i, Fence)})


def _litmus(name: str, *threads: str) -> Litmus:
    """Threads in short: "x=1; r0=y; mfence; r1=xchg x 2"."""
    return Litmus(name, tuple(tuple(map(_instruction, thread.split(";"))) for thread in threads))


def _instruction(text: str) -> Instruction:
    words = text.split()
    if words == ["mfence"]:
        return Fence()
    left, right = words[0].split("=")
    if right == "xchg":
        return Exchange(words[1], int(words[2]), left)
    if right.isdigit():
        return Write(left, int(right))
    return Read(right, left)


#: The classic tests, in the names of the literature; then with fences and locked instructions.
LITMUS = [
    _litmus("SB", "x=1; r0=y", "y=1; r1=x"),
    _litmus("MP", "x=1; y=1", "r0=y; r1=x"),
    _litmus("LB", "r0=x; y=1", "r1=y; x=1"),
    _litmus("R", "x=1; y=1", "y=2; r0=x"),
    _litmus("S", "x=2; y=1", "r0=y; x=1"),
    _litmus("2+2W", "x=1; y=2", "y=1; x=2"),
    _litmus("CoRR", "x=1; x=2", "r0=x; r1=x"),
    _litmus("n6", "x=1; r0=x; r1=y", "y=2; x=2"),
    _litmus("n5", "x=1; r0=x", "x=2; r1=x"),
    _litmus("SB+rfi", "x=1; r0=x; r1=y", "y=1; r2=y; r3=x"),
    _litmus("SB+mfences", "x=1; mfence; r0=y", "y=1; mfence; r1=x"),
    _litmus("SB+mfence+po", "x=1; mfence; r0=y", "y=1; r1=x"),
    _litmus("R+mfence", "x=1; y=1", "y=2; mfence; r0=x"),
    _litmus("SB+xchgs", "r0=xchg x 1; r1=y", "r2=xchg y 1; r3=x"),
    _litmus("MP+xchg", "x=1; r0=xchg y 1", "r1=y; r2=x"),
    _litmus("xchg+xchg", "r0=xchg x 1", "r1=xchg x 2"),
    _litmus("IRIW", "x=1", "y=1", "r0=x; r1=y", "r2=y; r3=x"),
    _litmus("IRIW+xchgs", "r4=xchg x 1", "r5=xchg y 1", "r0=x; r1=y", "r2=y; r3=x"),
    _litmus("WRC", "x=1", "r0=x; y=1", "r1=y; r2=x"),
]


def allowed(litmus: Litmus) -> set[Outcome]:
    """Every outcome that x86-TSO allows, by trying all interleavings."""
    threads = litmus.threads
    start = (tuple(0 for _ in threads), tuple(() for _ in threads), tuple((v, 0) for v in litmus.variables), ())
    seen, stack, outcomes = {start}, [start], set()
    while stack:
        state = stack.pop()
        following = list(_steps(threads, *state))
        if not following:
            _, _, memory, registers = state
            outcomes.add(tuple(sorted(registers)) + memory)
        for other in following:
            if other not in seen:
                seen.add(other)
                stack.append(other)
    return outcomes


def _steps(threads, places, buffers, memory, registers) -> Iterator[tuple]:
    """The states one step away."""

    def put(items, index, value):
        return (*items[:index], value, *items[index + 1 :])

    def store(variable, value):
        return tuple((v, value if v == variable else old) for v, old in memory)

    for t, thread in enumerate(threads):
        buffer = buffers[t]
        if buffer:
            yield places, put(buffers, t, buffer[1:]), store(*buffer[0]), registers
        if places[t] == len(thread):
            continue
        instruction = thread[places[t]]
        after = put(places, t, places[t] + 1)
        match instruction:
            case Write(variable, value):
                yield after, put(buffers, t, (*buffer, (variable, value))), memory, registers
            case Read(variable, register):
                own = [value for v, value in buffer if v == variable]
                value = own[-1] if own else dict(memory)[variable]
                yield after, buffers, memory, (*registers, (register, value))
            case Fence() if not buffer:
                yield after, buffers, memory, registers
            case Exchange(variable, value, register) if not buffer:
                yield after, buffers, store(variable, value), (*registers, (register, dict(memory)[variable]))


class Runner:
    """Runs litmus tests on the cores of a machine, over and over, each time with other timings.

    What is drawn anew each time: which thread runs on which core, where the variables lie (on one line or several, of
    one set of the caches or of different ones), who has their lines, delays before and between the instructions.
    """

    def __init__(self, bench: BareMetal, rng: random.Random, lines: list[int]):
        self.bench, self.rng, self.lines = bench, rng, lines

    def run(self, litmus: Litmus, times: int) -> dict[Outcome, int]:
        """How often each outcome came."""
        counts: dict[Outcome, int] = {}
        for _ in range(times):
            outcome = self._once(litmus)
            counts[outcome] = counts.get(outcome, 0) + 1
        return counts

    def _once(self, litmus: Litmus) -> Outcome:
        rng, bench = self.rng, self.bench
        cores = rng.sample(range(bench.cores), len(litmus.threads))
        address = self._places(litmus.variables)
        for variable in litmus.variables:
            for _ in range(rng.randint(0, 2)):
                bench.load(rng.randrange(bench.cores), address[variable], 8)
        self._settle()

        longest = rng.choice((1, 8, 40, 300))
        handles: dict[int, str] = {}
        for core, thread in zip(cores, litmus.threads, strict=True):
            bench.execute(core, rng.randint(1, longest))
            if rng.random() < 0.3:
                self._disturb(core, address)
            for instruction in thread:
                handle = self._push(core, instruction, address)
                if isinstance(instruction, Read | Exchange):
                    handles[handle] = instruction.register
                if rng.random() < 0.3:
                    bench.execute(core, rng.randint(1, longest))
        registers = {handles[h]: value for h, value in self._settle().items() if h in handles}
        assert registers.keys() == set(handles.values()), "a load got no value"

        finals = {bench.load(cores[0], address[v], 8): v for v in litmus.variables}
        memory = {finals[h]: value for h, value in self._settle().items() if h in finals}
        core = rng.randrange(bench.cores)
        for variable in litmus.variables:
            bench.store(core, address[variable], bytes(8))
        self._settle()
        return tuple(sorted(registers.items())) + tuple(sorted(memory.items()))

    def _places(self, variables: list[str]) -> dict[str, int]:
        """Different 8-byte words, sometimes of one line."""
        rng = self.rng
        if rng.random() < 0.15:
            line = rng.choice(self.lines)
            words = rng.sample(range(LINE_BYTES // 8), len(variables))
            return {v: line * LINE_BYTES + 8 * word for v, word in zip(variables, words, strict=True)}
        lines = rng.sample(self.lines, len(variables))
        return {v: line * LINE_BYTES + 8 * rng.randrange(8) for v, line in zip(variables, lines, strict=True)}

    def _disturb(self, core: int, address: dict[str, int]) -> None:
        """Fill the store buffer a little, with stores beside the variables."""
        for _ in range(self.rng.randint(1, 3)):
            place = self.rng.choice(self.lines) * LINE_BYTES + 8 * self.rng.randrange(8)
            if place not in address.values():
                self.bench.store(core, place, bytes(8))

    def _push(self, core: int, instruction: Instruction, address: dict[str, int]) -> int:
        bench = self.bench
        match instruction:
            case Write(variable, value):
                return bench.store(core, address[variable], value.to_bytes(8, "little"))
            case Read(variable, _):
                return bench.load(core, address[variable], 8)
            case Fence():
                return bench.fence(core)
            case Exchange(variable, value, _):
                return bench.atomic(core, address[variable], 8, AtomicFunction.EXCHANGE, value)

    def _settle(self) -> dict[int, int]:
        """Let every core do all it has, stores visible; the values that came, by handle."""
        self.bench.values.clear()
        self.bench.settle()
        return dict(self.bench.values)
