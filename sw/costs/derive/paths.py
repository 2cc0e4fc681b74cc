"""Which code an entry of the table runs: found in the recordings, or walked as described."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sw.costs.derive.instruction import Instruction
from sw.costs.derive.trace import Tracer

if TYPE_CHECKING:
    from sw.costs.derive.text import Text

__all__ = ["CodePath", "PathError", "find_paths"]


class PathError(ValueError):
    """A path that is described does not exist in this kernel; the message is one line."""


@dataclass(frozen=True, slots=True)
class CodePath:
    """One part of an entry."""

    name: str
    runs: tuple[tuple[int, int], ...]  #: straight-line runs, [start, end)
    seen: int  #: calls that took it; 0 if it was walked
    calls: int  #: calls of this function that fit the description
    of: int  #: packets (objects) that one call handles
    times: float  #: how often the entry takes it
    also: tuple[str, ...] = ()  #: special instructions that run outside the kernel's code
    turns: int = 1  #: how often it runs, one time after the other
    log: str = ""  #: the recording it was found in

    def places(self, text: "Text") -> list[str]:
        """The runs as ``function+start-end``, offsets in hexadecimal."""
        named = ((text.place(start), end - start) for start, end in self.runs)
        return [f"{function}+{offset:x}-{offset + size:x}" for (function, offset), size in named]

    def code(self, text: "Text") -> list[Instruction]:
        """Its instructions, in the order in which they run."""
        return [instruction for run in self.runs for instruction in text.run(*run)] * self.turns


def find_paths(text_of: Callable[[str], "Text"], work: Path, plan: Mapping[str, Any]) -> dict[str, list[CodePath]]:
    """The parts of every entry of ``plan`` (``linux.toml``).

    Arguments:
        text_of: the code during the recording of that name; of "", where nothing is recorded.

    Raises:
        PathError: if one of them cannot be found.
    """
    try:
        tracers = {log: Tracer(text_of(log), set(plan["roots"])) for log in _logs(plan)}
    except KeyError as error:
        raise PathError(f"this kernel has no function {error}") from None
    for log, tracer in tracers.items():
        tracer.follow(work / f"{log}.log")
    walker = _Walker(text_of(""), plan["walk"], set(plan["roots"]))
    return {
        name: [_recorded(part, tracers) if "log" in part else _walked(part, walker) for part in entry["parts"]]
        for name, entry in plan["entry"].items()
    }


def _logs(plan: Mapping[str, Any]) -> list[str]:
    return sorted({log for entry in plan["entry"].values() for part in entry["parts"] for log in part.get("log", ())})


def _recorded(part: Mapping[str, Any], tracers: Mapping[str, Tracer]) -> CodePath:
    """The most frequent path in the first recording that has any."""
    for log in part["log"]:
        fitting: Counter = Counter()
        for (runs, nested), count in tracers[log].paths.get(part["path"], Counter()).items():
            if "calls" not in part or list(nested) == part["calls"]:
                fitting[runs] += count
        if fitting:
            runs, seen = min(fitting.items(), key=lambda item: (-item[1], item[0]))
            return _path(part, runs, seen, fitting.total(), log)
    raise PathError(f"no call of {part['path']} in {', '.join(part['log'])} is as described")


def _walked(part: Mapping[str, Any], walker: "_Walker") -> CodePath:
    runs: list[tuple[int, int]] = []
    for start, end in walker.walk(part["path"]):
        if runs and runs[-1][1] == start:
            runs[-1] = (runs[-1][0], end)
        else:
            runs.append((start, end))
    return _path(part, tuple(runs), 0, 0, "")


def _path(part: Mapping[str, Any], runs: tuple[tuple[int, int], ...], seen: int, calls: int, log: str) -> CodePath:
    times = float(part.get("times", 1))
    also = tuple(part.get("also", ()))
    return CodePath(part["path"], runs, seen, calls, part.get("of", 1), times, also, part.get("turns", 1), log)


class _Walker:
    """Follows a description through the code."""

    def __init__(self, text: "Text", walks: Mapping[str, Any], roots: Sequence[str] | set[str]):
        self._text = text
        self._walks = walks
        self._roots = roots

    def walk(self, name: str) -> Iterator[tuple[int, int]]:
        """Runs of walk ``name``; what is described and not met, or met and not described, is refused."""
        walk = self._walks[name]
        try:
            base = self._text.address_of(walk["function"])
        except KeyError:
            raise PathError(f"this kernel has no function {walk['function']}") from None
        at = base + walk.get("begin", 0)
        until = base + walk["until"] if "until" in walk else None
        unmet = set(walk.get("taken", ()))
        unmet |= {int(offset, 16) for calls in ("into", "to") for offset in walk.get(calls, {})}
        passed = 0
        start = at
        while True:
            instruction = self._text.instruction(at)
            offset = at - base
            if (at == until and passed) or passed > _LONGEST:
                break
            passed += 1
            at = instruction.end
            if instruction.is_return or (instruction.mnemonic.startswith("jmp") and self._leaves(instruction, base)):
                yield start, at
                start = at
                break
            target = instruction.target
            if instruction.is_call:
                unmet.discard(offset)
                yield start, at
                start = at
                yield from self._call(name, walk, offset, target)
            elif instruction.is_control:
                jumps = instruction.mnemonic.startswith("jmp") or offset in walk.get("taken", ())
                unmet.discard(offset)
                if jumps:
                    if target is None:
                        raise PathError(f"{name}: the jump at {offset:#x} goes nobody knows where")
                    yield start, at
                    start = at = target
        if start != at:
            yield start, at
        if unmet or passed > _LONGEST:
            places = ", ".join(f"{offset:#x}" for offset in sorted(unmet)) or "its end"
            raise PathError(f"{name}: the path does not come to {places}")

    def _leaves(self, jump: Instruction, base: int) -> bool:
        """Whether a jump is a call in tail position."""
        if jump.target is None:
            return False
        _, offset = self._text.place(jump.target)
        return offset == 0 and jump.target != base

    def _call(self, name: str, walk: Mapping[str, Any], offset: int, target: int | None) -> Iterator[tuple[int, int]]:
        into = walk.get("into", {}).get(f"{offset:#x}")
        if into:
            yield from self.walk(into)
            return
        if f"{offset:#x}" in walk.get("to", {}):
            return
        callee = self._text.place(target)[0] if target is not None else "an indirect call"
        own = [walk["function"] for walk in self._walks.values()]
        if callee not in (*self._roots, *own, *_NEAR_ROOTS):
            raise PathError(f"{name}: nothing is said of the call of {callee} at {offset:#x}")


#: Callees that are roots under another name.
_NEAR_ROOTS = ("__napi_schedule_irqoff",)

#: Instructions of a walk: more mean that it never ends.
_LONGEST = 2000
