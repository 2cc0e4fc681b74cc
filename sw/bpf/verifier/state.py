"""The state of a program at one instruction: frames of registers and stack slots.

Registers and slots are immutable, so that a copy of a state is a copy of a few lists.
Sources: ``struct bpf_verifier_state``, ``bpf_func_state`` and ``bpf_stack_state`` in ``include/linux/bpf_verifier.h``.
"""

from collections.abc import Callable
from typing import NamedTuple

from sw.bpf.instruction import FRAME_POINTER, REGISTERS, SLOT_BYTES
from sw.bpf.verifier.precision import Origin
from sw.bpf.verifier.registers import NOT_INITIALISED, Register, RegisterType

__all__ = ["INVALID", "MISC", "SPILL", "ZERO_BYTE", "Frame", "Slot", "State", "slot_of"]

#: What is known of one byte of stack (``enum bpf_stack_slot_type``).
INVALID, SPILL, MISC, ZERO_BYTE = range(4)
_LETTERS = "?rm0"


class Slot(NamedTuple):
    """Eight bytes of stack, lowest address first."""

    kinds: bytes
    spilled: Register | None = None  #: what the bytes of kind SPILL are the low bytes of
    origin: Origin | None = None  #: set by a checkpoint; whether anybody reads it afterwards

    def text(self, frame: int) -> str:
        """As the log writes it: highest byte first, a spilled register for the bytes that hold it."""
        kinds = "".join(_LETTERS[kind] for kind in reversed(self.kinds) if self.spilled is None or kind != SPILL)
        return kinds if self.spilled is None else kinds + self.spilled.text(frame)


def slot_of(offset: int) -> tuple[int, int]:
    """Slot and byte of it at an offset from the frame pointer, which is negative."""
    return (-offset - 1) // SLOT_BYTES, offset % SLOT_BYTES


class Frame:
    """One active function."""

    __slots__ = ("call_site", "depths", "function", "number", "registers", "stack")

    def __init__(self, number: int, function: int, call_site: int, depths: dict[int, int]):
        self.number = number
        self.function = function  #: slot of its first instruction
        self.call_site = call_site  #: slot of the CALL, in the frame below
        self.depths = depths  #: bytes of stack used by each function so far, shared by all frames
        self.registers = [NOT_INITIALISED] * REGISTERS
        self.registers[FRAME_POINTER] = Register(RegisterType.STACK, frame=number)
        self.stack: dict[int, Slot] = {}

    def copy(self) -> "Frame":
        """One that can be changed alone."""
        copied = Frame.__new__(Frame)
        copied.number, copied.function, copied.call_site = self.number, self.function, self.call_site
        copied.depths = self.depths
        copied.registers = self.registers.copy()
        copied.stack = self.stack.copy()
        return copied

    def __str__(self) -> str:
        known = [(n, r) for n, r in enumerate(self.registers) if r.type is not RegisterType.NOT_INIT]
        parts = [f"R{n}={register.text(self.number)}" for n, register in known]
        parts += [f"fp-{SLOT_BYTES * (n + 1)}={slot.text(self.number)}" for n, slot in sorted(self.stack.items())]
        return f"frame{self.number}: {' '.join(parts)}" if self.number else " ".join(parts)


class State:
    """All frames; the last one runs."""

    __slots__ = ("frames",)

    def __init__(self, frames: list[Frame]):
        self.frames = frames

    @property
    def frame(self) -> Frame:
        """The function that runs."""
        return self.frames[-1]

    @property
    def registers(self) -> list[Register]:
        """Those of the function that runs."""
        return self.frames[-1].registers

    def copy(self) -> "State":
        """One that can be changed alone."""
        return State([frame.copy() for frame in self.frames])

    def replace(self, change: Callable[[Register], Register | None]) -> None:
        """Put what ``change`` gives in place of every register and spilled register for which it gives one."""
        for frame in self.frames:
            for number, register in enumerate(frame.registers):
                changed = change(register)
                if changed is not None:
                    frame.registers[number] = changed
            for number, slot in frame.stack.items():
                if slot.spilled is not None:
                    changed = change(slot.spilled)
                    if changed is not None:
                        frame.stack[number] = slot._replace(spilled=changed)

    def __str__(self) -> str:
        return " ".join(str(frame) for frame in self.frames)
