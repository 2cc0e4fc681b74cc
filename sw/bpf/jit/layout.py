"""Where the JIT's code lies: functions, basic blocks, addresses and lengths as the kernel's JIT would lay them out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sw.bpf.instruction import Instruction, InstructionClass, jump_target
from sw.bpf.jit.cost import block_cost
from sw.bpf.jit.x86 import X86, emit, epilogue, prologue
from sw.costs import Cost

__all__ = ["Block", "Image", "lay_out"]

_FUNCTION_ALIGNMENT = 16
_SHORT_REACH = range(-128, 128)
#: Bytes by which a jump grows when its target is out of a short one's reach.
_NEAR_CONDITIONAL, _NEAR = 4, 3


@dataclass(frozen=True, slots=True)
class Block:
    """Instructions that run one after the other."""

    function: int  #: first slot of its function
    start: int  #: first slot
    end: int  #: slot behind the last one
    offset: int  #: bytes from the start of the image
    code: tuple[X86, ...]
    cost: Cost

    @property
    def size(self) -> int:
        """Bytes of code."""
        return self.cost.text_bytes


@dataclass(frozen=True, slots=True)
class Image:
    """The code of a program."""

    blocks: tuple[Block, ...]
    size: int  #: bytes

    @property
    def text(self) -> str:
        """The code as an assembler takes it (Intel's syntax), a label per block."""
        return "\n".join(f"slot_{b.start}:\n" + "\n".join(f"    {x86.text}" for x86 in b.code) for b in self.blocks)


def lay_out(instructions: Sequence[Instruction], functions: Sequence[int], stack_depths: Mapping[int, int]) -> Image:
    """Lay out a program.

    Arguments:
        functions: first slots of its functions, in order.
        stack_depths: bytes of stack by first slot; what is not there uses none.
    """
    blocks: list[Block] = []
    offset = 0
    for start, end in zip(functions, [*functions[1:], len(instructions)], strict=True):
        offset = (offset + _FUNCTION_ALIGNMENT - 1) // _FUNCTION_ALIGNMENT * _FUNCTION_ALIGNMENT
        blocks += _Function(instructions, start, end, stack_depths.get(start, 0)).blocks(offset)
        offset = blocks[-1].offset + blocks[-1].size
    return Image(tuple(blocks), offset)


class _Function:
    """Lays out one function: code by slot, then lengths of jumps, which depend on each other."""

    def __init__(self, instructions: Sequence[Instruction], start: int, end: int, stack_depth: int):
        self.instructions = instructions
        self.start, self.end = start, end
        self.code: dict[int, list[X86]] = {}
        used: set[int] = set()
        self.exit = -1  #: slot of the EXIT that has the epilogue
        slot = start
        while slot < end:
            instruction = instructions[slot]
            used |= {instruction.destination} if instruction.is_call else {instruction.destination, instruction.source}
            self.code[slot] = self._emit(slot)
            slot += 2 if instruction.is_wide else 1
        registers = frozenset(used)
        self.code[start][:0] = prologue(registers, stack_depth)
        if self.exit >= 0:
            self.code[self.exit] += epilogue(registers)
        self._grow_jumps()

    def _emit(self, slot: int) -> list[X86]:
        instruction = self.instructions[slot]
        if instruction.is_exit:
            if self.exit < 0:
                self.exit = slot
                return []
            return [X86(f"jmp slot_{self.exit}", 2)]
        high = self.instructions[slot + 1].immediate if instruction.is_wide else 0
        label = f"slot_{jump_target(self.instructions, slot)}" if instruction.is_jump else ""
        code = emit(instruction, high, label)
        # A jump to what follows is left out.
        return [] if instruction.is_goto and jump_target(self.instructions, slot) == slot + 1 else code

    def _offsets(self) -> dict[int, int]:
        offsets, offset = {}, 0
        for slot in self.code:
            offsets[slot] = offset
            offset += sum(x86.size for x86 in self.code[slot])
        return offsets

    def _grow_jumps(self) -> None:
        """Make those jumps long whose target is too far, until all reach."""
        grown = True
        while grown:
            grown = False
            offsets = self._offsets()
            for slot, code in self.code.items():
                target = self._target(slot)
                if target is None or not code or code[-1].size != 2:
                    continue
                behind = offsets[slot] + sum(x86.size for x86 in code)
                if offsets[target] - behind not in _SHORT_REACH:
                    more = _NEAR if code[-1].text.startswith("jmp ") else _NEAR_CONDITIONAL
                    code[-1] = code[-1]._replace(size=code[-1].size + more)
                    grown = True

    def _target(self, slot: int) -> int | None:
        """Slot to which a jump goes."""
        instruction = self.instructions[slot]
        if instruction.is_exit:
            return self.exit if slot != self.exit else None
        if instruction.is_jump and not instruction.is_call:
            return jump_target(self.instructions, slot)
        return None

    def _leaders(self) -> list[int]:
        """First slots of the basic blocks."""
        leaders = {self.start}
        for slot in self.code:
            instruction = self.instructions[slot]
            if instruction.is_jump:
                if not instruction.is_call and not instruction.is_exit:
                    leaders.add(jump_target(self.instructions, slot))
                if slot + 1 < self.end:
                    leaders.add(slot + 1)
        return sorted(leaders)

    def blocks(self, base: int) -> list[Block]:
        """Basic blocks; the function lies at ``base``."""
        offsets = self._offsets()
        leaders = self._leaders()
        found, carry = [], 0.0
        for start, end in zip(leaders, [*leaders[1:], self.end], strict=True):
            slots = [slot for slot in range(start, end) if slot in self.code]
            code = tuple(x86 for slot in slots for x86 in self.code[slot])
            operations = sum(_is_operation(self.instructions[slot]) for slot in slots)
            cost, carry = block_cost(code, operations, sum(x86.size for x86 in code), carry)
            found.append(Block(self.start, start, end, base + offsets[start], code, cost))
        return found


def _is_operation(instruction: Instruction) -> bool:
    """Whether the model issues an operation for it."""
    return instruction.instruction_class in (InstructionClass.LDX, InstructionClass.ST, InstructionClass.STX)
