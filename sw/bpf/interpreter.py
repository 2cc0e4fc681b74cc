"""Runs a program instruction by instruction, as the kernel's ``___bpf_prog_run`` (``kernel/bpf/core.c``) does.

Registers are Python numbers; all else lies in memory and is reached through the core. What the interpreter itself takes
(fetching an instruction, jumping to its code, registers, which lie on the kernel's stack) is charged in one piece
before each access to memory, from the costs ``bpf_interpreter.*`` of ``sw/costs/bpf.toml``.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sw.bpf.arithmetic import CONDITIONS, MASK64, compute, sign_extend, swap_bytes
from sw.bpf.instruction import (
    FRAME_POINTER,
    MAX_CALL_FRAMES,
    REGISTERS,
    SLOT_BYTES,
    STACK_BYTES,
    AluOperation,
    AtomicOperation,
    CallKind,
    Instruction,
    InstructionClass,
    JumpOperation,
    Mode,
    immediate64,
    jump_target,
)
from sw.core import LINE
from sw.costs import Cost
from sw.port import AtomicFunction

__all__ = ["ATOMIC_FUNCTIONS", "ExecutionError", "Interpreter", "cost_name"]

#: Arguments of a helper: r1 to r5.
_ARGUMENTS = slice(1, 6)
#: Registers that a call leaves as they are: r6 to r9.
_SAVED = slice(6, 10)

#: What memory does in one step for each atomic instruction.
ATOMIC_FUNCTIONS = {
    AtomicOperation.ADD: AtomicFunction.ADD,
    AtomicOperation.OR: AtomicFunction.OR,
    AtomicOperation.AND: AtomicFunction.AND,
    AtomicOperation.XOR: AtomicFunction.XOR,
    AtomicOperation.ADD_FETCH: AtomicFunction.ADD,
    AtomicOperation.OR_FETCH: AtomicFunction.OR,
    AtomicOperation.AND_FETCH: AtomicFunction.AND,
    AtomicOperation.XOR_FETCH: AtomicFunction.XOR,
    AtomicOperation.XCHG: AtomicFunction.EXCHANGE,
    AtomicOperation.CMPXCHG: AtomicFunction.COMPARE_EXCHANGE,
}

#: A helper: of the core and r1 to r5; gives r0.
HelperFunction = Callable[..., Any]


class ExecutionError(RuntimeError):
    """A program that no verifier would have let through."""


def cost_name(instruction: Instruction) -> str:
    """Entry of ``sw/costs/bpf.toml`` that says what the interpreter takes for an instruction."""
    if instruction.is_alu:
        if instruction.operation in (AluOperation.DIV, AluOperation.MOD):
            return "bpf_interpreter.divide"
        if instruction.operation == AluOperation.END:
            return "bpf_interpreter.swap"
        return "bpf_interpreter.alu"
    if instruction.is_jump:
        if instruction.is_call:
            return "bpf_interpreter.call_local" if instruction.source == CallKind.LOCAL else "bpf_interpreter.call"
        if instruction.is_exit:
            return "bpf_interpreter.exit"
        return "bpf_interpreter.goto" if instruction.is_goto else "bpf_interpreter.branch"
    if instruction.is_wide:
        return "bpf_interpreter.immediate64"
    if instruction.mode == Mode.ATOMIC:
        return "bpf_interpreter.atomic"
    return "bpf_interpreter.store" if instruction.instruction_class >= InstructionClass.ST else "bpf_interpreter.load"


class Interpreter:
    """Runs one program.

    Arguments:
        instructions: what the verifier let through, maps and context accesses filled in.
        text: address at which the instructions lie in memory: the interpreter reads them as data.
        helpers: helper functions by number.
        costs: of ``sw/costs/bpf.toml``; without them, computing takes no time.
    """

    #: Cost of a run, besides those of its instructions.
    ENTRY = "___bpf_prog_run"

    def __init__(
        self,
        instructions: Sequence[Instruction],
        text: int,
        helpers: Mapping[int, HelperFunction],
        costs: Mapping[str, Cost] | None = None,
    ):
        self.instructions = tuple(instructions)
        self.text = text
        self.helpers = helpers
        self.charged = costs is not None
        #: Per slot: does it compute, is it no jump, a call, an exit? Asked once, since it is asked at every step.
        self.kinds = [(i.is_alu, not i.is_jump, i.is_call, i.is_exit) for i in self.instructions]
        self.slot_costs = [
            (0, 0) if costs is None else (costs[cost_name(i)].cycles, costs[cost_name(i)].uops)
            for i in self.instructions
        ]

    async def run(self, core: Any, context: int, stack: int) -> int:
        """Run the program; gives r0.

        Arguments:
            context: address of what r1 points to.
            stack: address of ``MAX_CALL_FRAMES`` frames of ``STACK_BYTES``; the program's own is the topmost.
        """
        if self.charged:
            core.execute(self.ENTRY)
        return await _Activation(self, core, context, stack).run()


class _Activation:
    """One run of a program."""

    def __init__(self, interpreter: Interpreter, core: Any, context: int, stack: int):
        self.code = interpreter.instructions
        self.costs = interpreter.slot_costs
        self.kinds = interpreter.kinds
        self.text = interpreter.text
        self.helpers = interpreter.helpers
        self.core = core
        self.registers = [0] * REGISTERS
        self.registers[1] = context
        self.registers[FRAME_POINTER] = stack + MAX_CALL_FRAMES * STACK_BYTES
        self.frames: list[tuple[int, list[int], int]] = []  #: return slot, saved registers, frame pointer
        self.cycles = self.uops = 0  #: not yet charged
        self.line = -1

    async def run(self) -> int:
        code, costs, kinds, registers = self.code, self.costs, self.kinds, self.registers
        slot = 0
        while True:
            if not 0 <= slot < len(code):
                raise ExecutionError(f"the program runs out of its {len(code)} slots to slot {slot}")
            instruction = code[slot]
            cycles, uops = costs[slot]
            self.cycles += cycles
            self.uops += uops
            self._fetch(slot)
            computes, no_jump, is_call, is_exit = kinds[slot]
            if computes:
                self._alu(instruction)
                slot += 1
            elif no_jump:
                slot += await self._memory(slot, instruction)
            elif is_call:
                slot = await self._call(slot, instruction)
            elif is_exit:
                if not self.frames:
                    self._charge()
                    return registers[0]
                slot, registers[_SAVED], registers[FRAME_POINTER] = self.frames.pop()
            else:
                slot = jump_target(code, slot) if self._taken(instruction) else slot + 1

    def _fetch(self, slot: int) -> None:
        """The interpreter reads its instructions, eight of them in a line."""
        address = self.text + slot * SLOT_BYTES
        if self.text and address // LINE != self.line:
            self.line = address // LINE
            self._charge()
            self.core.touch(address, SLOT_BYTES)

    def _charge(self) -> None:
        if self.cycles:
            self.core.execute((self.cycles, self.uops, 0, 0))
            self.cycles = self.uops = 0

    def _alu(self, instruction: Instruction) -> None:
        registers, operation = self.registers, instruction.operation
        wide = instruction.instruction_class is InstructionClass.ALU64
        value = registers[instruction.destination]
        if operation == AluOperation.END:
            bits = instruction.immediate
            swap = wide or instruction.from_register  # memory is little-endian: only "to big-endian" swaps
            registers[instruction.destination] = swap_bytes(value, bits) if swap else value & ((1 << bits) - 1)
            return
        operand = registers[instruction.source] if instruction.from_register else instruction.immediate & MASK64
        registers[instruction.destination] = compute(operation, 64 if wide else 32, value, operand, instruction.offset)

    def _taken(self, instruction: Instruction) -> bool:
        if instruction.operation == JumpOperation.JA:
            return True
        bits = 64 if instruction.instruction_class is InstructionClass.JMP else 32
        mask = (1 << bits) - 1
        registers = self.registers
        operand = registers[instruction.source] if instruction.from_register else instruction.immediate
        return CONDITIONS[instruction.operation](registers[instruction.destination] & mask, operand & mask, bits)

    async def _memory(self, slot: int, instruction: Instruction) -> int:
        """Do a load or store; gives the number of slots it takes."""
        registers, kind, size = self.registers, instruction.instruction_class, instruction.bytes
        if instruction.is_wide:
            registers[instruction.destination] = immediate64(self.code, slot)
            return 2
        self._charge()
        if kind is InstructionClass.LDX:
            value = await self.core.load((registers[instruction.source] + instruction.offset) & MASK64, size)
            signed = instruction.mode == Mode.MEMSX
            registers[instruction.destination] = sign_extend(value, 8 * size) & MASK64 if signed else value
            return 1
        address = (registers[instruction.destination] + instruction.offset) & MASK64
        mask = (1 << 8 * size) - 1
        if kind is InstructionClass.STX and instruction.mode == Mode.ATOMIC:
            await self._atomic(instruction, address, size, mask)
        elif kind in (InstructionClass.ST, InstructionClass.STX) and instruction.mode == Mode.MEM:
            stx = kind is InstructionClass.STX
            self.core.store(address, (registers[instruction.source] if stx else instruction.immediate) & mask, size)
        else:
            raise ExecutionError(f"opcode {instruction.opcode:#04x} at slot {slot} is legacy packet access or unknown")
        return 1

    async def _atomic(self, instruction: Instruction, address: int, size: int, mask: int) -> None:
        registers, immediate = self.registers, instruction.immediate
        operation = AtomicOperation(immediate)
        operand, compare = registers[instruction.source] & mask, registers[0] & mask
        old = await self.core.atomic(address, size, ATOMIC_FUNCTIONS[operation], operand, compare)
        if operation is AtomicOperation.CMPXCHG:
            registers[0] = old
        elif immediate & AtomicOperation.FETCH:
            registers[instruction.source] = old

    async def _call(self, slot: int, instruction: Instruction) -> int:
        """Call a helper or a function; gives the slot to go on with."""
        registers = self.registers
        if instruction.source == CallKind.LOCAL:
            if len(self.frames) + 1 >= MAX_CALL_FRAMES:
                raise ExecutionError(f"the call at slot {slot} is the {MAX_CALL_FRAMES + 1}th frame")
            self.frames.append((slot + 1, registers[_SAVED], registers[FRAME_POINTER]))
            registers[FRAME_POINTER] -= STACK_BYTES
            return jump_target(self.code, slot)
        self._charge()
        helper = self.helpers.get(instruction.immediate)
        if helper is None:
            raise ExecutionError(f"the call at slot {slot} is of unknown helper {instruction.immediate}")
        registers[0] = await helper(self.core, *registers[_ARGUMENTS]) & MASK64
        return slot + 1
