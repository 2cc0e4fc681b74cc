"""Which registers a function may still read: the others need not agree for two states to be alike.

As ``compute_live_registers`` in ``kernel/bpf/verifier.c``.
"""

from collections.abc import Sequence

from sw.bpf.helpers import HELPER_NAMES, HELPERS, HelperId
from sw.bpf.instruction import (
    AluOperation,
    AtomicOperation,
    CallKind,
    Instruction,
    InstructionClass,
    Mode,
)
from sw.bpf.verifier.structure import successors

__all__ = ["live_registers"]

_CALLER_SAVED = 0b111111  #: r0 to r5
_ARGUMENTS = 0b111110  #: r1 to r5


def live_registers(instructions: Sequence[Instruction]) -> list[int]:
    """For each slot, the registers whose values may be read from there on, as a mask."""
    count = len(instructions)
    uses, follows = [(0, 0)] * count, [[]] * count  # type: list[tuple[int, int]], list[list[int]]
    before: list[list[int]] = [[] for _ in range(count)]
    index = 0
    while index < count:
        uses[index] = _use_and_definition(instructions[index])
        follows[index] = successors(instructions, index)
        for follower in follows[index]:
            before[follower].append(index)
        index += 2 if instructions[index].is_wide else 1
    live = [0] * count
    waiting = list(range(count))
    while waiting:
        index = waiting.pop()
        use, definition = uses[index]
        after = 0
        for follower in follows[index]:
            after |= live[follower]
        found = after & ~definition | use
        if found != live[index]:
            live[index] = found
            waiting.extend(before[index])
    return live


def _use_and_definition(instruction: Instruction) -> tuple[int, int]:
    """Registers that an instruction reads and those that it writes."""
    kind, destination, source = instruction.instruction_class, 1 << instruction.destination, 1 << instruction.source
    if instruction.is_alu:
        if instruction.operation == AluOperation.MOV:
            return (source if instruction.from_register else 0), destination
        if instruction.operation in (AluOperation.NEG, AluOperation.END) or not instruction.from_register:
            return destination, destination
        return destination | source, destination
    if instruction.is_jump:
        return _jump_use(instruction, destination, source)
    if kind is InstructionClass.LD:
        return 0, destination
    if kind is InstructionClass.LDX:
        return source, destination
    if kind is InstructionClass.ST:
        return destination, 0
    if instruction.mode == Mode.ATOMIC:
        if instruction.immediate == AtomicOperation.CMPXCHG:
            return destination | source | 1, 1
        if instruction.immediate & AtomicOperation.FETCH:
            return destination | source, source
    return destination | source, 0


def _jump_use(instruction: Instruction, destination: int, source: int) -> tuple[int, int]:
    if instruction.is_exit:
        return 1, 0
    if instruction.is_goto:
        return 0, 0
    if instruction.is_call:
        if instruction.source == CallKind.HELPER and instruction.immediate in HELPER_NAMES:
            arguments = len(HELPERS[HelperId(instruction.immediate)].arguments)
            return (1 << (arguments + 1)) - 2, _CALLER_SAVED
        return _ARGUMENTS, _CALLER_SAVED
    return (destination | source if instruction.from_register else destination), 0
