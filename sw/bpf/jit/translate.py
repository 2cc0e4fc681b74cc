"""A program as one Python coroutine function per function of it.

Registers are local variables ``r0`` to ``r10``; ``h0`` to ``h10`` are the handles of the loads they come from (-1:
none), so that a load whose address was loaded waits for it. Memory is reached through the core. Each basic block begins
with the EXECUTE of its machine code.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sw.bpf.instruction import (
    FRAME_POINTER,
    MAX_CALL_FRAMES,
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
from sw.bpf.interpreter import ATOMIC_FUNCTIONS, ExecutionError, HelperFunction
from sw.bpf.jit.layout import Block, Image
from sw.bpf.jit.x86 import ADDR_PERCPU
from sw.core import LINE

__all__ = ["JitProgram"]

_M32, _M64 = "0xFFFFFFFF", "0xFFFFFFFFFFFFFFFF"
_S32, _S64 = "0x80000000", "0x8000000000000000"

_SYMBOLS = {
    AluOperation.ADD: "+",
    AluOperation.SUB: "-",
    AluOperation.MUL: "*",
    AluOperation.OR: "|",
    AluOperation.AND: "&",
    AluOperation.XOR: "^",
}
_COMPARISONS = {
    JumpOperation.JEQ: "==",
    JumpOperation.JNE: "!=",
    JumpOperation.JGT: ">",
    JumpOperation.JGE: ">=",
    JumpOperation.JLT: "<",
    JumpOperation.JLE: "<=",
    JumpOperation.JSET: "&",
    JumpOperation.JSGT: ">",
    JumpOperation.JSGE: ">=",
    JumpOperation.JSLT: "<",
    JumpOperation.JSLE: "<=",
}
_SIGNED = frozenset({JumpOperation.JSGT, JumpOperation.JSGE, JumpOperation.JSLT, JumpOperation.JSLE})


class JitProgram:
    """A program, translated.

    Arguments:
        instructions: what the verifier let through, maps and context accesses filled in.
        image: where its machine code lies.
        helpers: helper functions by number.
        text: address of the code; 0: none is fetched.
        percpu_stride: bytes from a variable of one core to that of the next.
        figure: which of a block's figures is charged: ``cycles``, ``low`` or ``high``; without one, computing takes no
            time.
    """

    def __init__(
        self,
        instructions: Sequence[Instruction],
        image: Image,
        helpers: Mapping[int, HelperFunction],
        text: int = 0,
        percpu_stride: int = 0,
        figure: str | None = "cycles",
    ):
        self.instructions = tuple(instructions)
        self.image = image
        writer = _Writer(self.instructions, self.image, text, percpu_stride, figure)
        self.source = "\n".join(writer.lines)
        names = writer.names | {f"helper_{number}": function for number, function in helpers.items()}
        missing = writer.helpers - helpers.keys()
        if missing:
            raise ExecutionError(f"calls of unknown helpers {', '.join(map(str, sorted(missing)))}")
        exec(compile(self.source, "<bpf>", "exec"), names)
        self._entry: Callable[..., Any] = names["function_0"]

    async def run(self, core: Any, context: int, stack: int) -> int:
        """Run the program; arguments and result as those of :meth:`sw.bpf.interpreter.Interpreter.run`."""
        return await self._entry(core, context, 0, 0, 0, 0, stack + MAX_CALL_FRAMES * STACK_BYTES)


def _signed_divide(a: int, b: int, sign: int, mask: int) -> int:
    if not b & mask:
        return 0
    a, b = (a & mask ^ sign) - sign, (b & mask ^ sign) - sign
    return (-(-a // b) if (a < 0) != (b < 0) else a // b) & mask


def _signed_modulo(a: int, b: int, sign: int, mask: int) -> int:
    if not b & mask:
        return a & mask
    a, b = (a & mask ^ sign) - sign, (b & mask ^ sign) - sign
    return (a - b * (-(-a // b) if (a < 0) != (b < 0) else a // b)) & mask


class _Writer:
    """Writes the Python source.

    Arguments:
        text: address of the code.
        figure: which of a block's figures is charged; None: none.
    """

    def __init__(
        self,
        instructions: Sequence[Instruction],
        image: Image,
        text: int,
        percpu_stride: int,
        figure: str | None,
    ):
        self.figure = figure
        self.instructions = instructions
        self.text = text
        self.percpu_stride = percpu_stride
        self.lines: list[str] = []
        self.names: dict[str, Any] = {"signed_divide": _signed_divide, "signed_modulo": _signed_modulo}
        self.helpers: set[int] = set()
        self._fetched = -1  #: last line of text of the block before
        functions: dict[int, list[Block]] = {}
        for block in image.blocks:
            functions.setdefault(block.function, []).append(block)
        for start, blocks in functions.items():
            self._function(start, blocks)

    def _put(self, depth: int, line: str) -> None:
        self.lines.append("    " * depth + line)

    def _function(self, start: int, blocks: list[Block]) -> None:
        self._put(0, f"async def function_{start}(core, r1, r2, r3, r4, r5, r10):")
        self._put(1, "begin, result, load, store = core.load_begin, core.result, core.load, core.store")
        self._put(1, "r0 = r6 = r7 = r8 = r9 = 0")
        self._put(1, "h0 = h1 = h2 = h3 = h4 = h5 = h6 = h7 = h8 = h9 = h10 = -1")
        self._put(1, f"block = {start}")
        self._put(1, "while True:")
        for block in blocks:
            self._put(2, f"if block == {block.start}:")
            self._charge(block)
            self._block(block)

    def _charge(self, block: Block) -> None:
        if self.figure is None:
            return
        cost, cycles = block.cost, getattr(block.cost, self.figure)
        first = last = 0
        if self.text and block.size:
            first, last = (self.text + block.offset) // LINE, (self.text + block.offset + block.size - 1) // LINE
        new_lines = bool(self.text and block.size) and (first != self._fetched or last != first)
        self._fetched = last
        if cycles or new_lines:
            lines = last - first + 1 if self.text and block.size else 0
            charge = (max(cycles, 1), max(cost.uops, 1), first * LINE if lines else 0, lines)
            self._put(3, f"core.execute({charge})")

    def _block(self, block: Block) -> None:
        slot = block.start
        while slot < block.end:
            instruction = self.instructions[slot]
            if instruction.is_wide:
                to = instruction.destination
                self._put(3, f"r{to} = {immediate64(self.instructions, slot)}; h{to} = -1")
                slot += 2
                continue
            if instruction.is_alu:
                self._alu(instruction)
            elif instruction.is_jump:
                self._jump(slot, instruction)
            else:
                self._memory(slot, instruction)
            slot += 1
        if not self.instructions[block.end - 1].is_jump:
            self._put(3, f"block = {block.end}")

    # Computing

    def _alu(self, instruction: Instruction) -> None:
        to, source = instruction.destination, instruction.source
        self._put(3, f"r{to} = {self._value(instruction)}")
        if instruction.operation == AluOperation.MOV:
            self._put(3, f"h{to} = {f'h{source}' if instruction.from_register else -1}")
        elif instruction.from_register and instruction.operation != AluOperation.END and source != to:
            self._put(3, f"if h{source} > h{to}: h{to} = h{source}")

    def _value(self, instruction: Instruction) -> str:
        _, to, source, offset, immediate = instruction
        wide = instruction.instruction_class is InstructionClass.ALU64
        mask, sign, bits = (_M64, _S64, 64) if wide else (_M32, _S32, 32)
        operation = AluOperation(instruction.operation)
        if operation is AluOperation.END:
            return self._swap(instruction, wide)
        constant = str(immediate & int(mask, 16))
        operand = f"r{source}" if instruction.from_register else constant
        low = operand if wide or not instruction.from_register else f"(r{source} & {mask})"
        left = f"r{to}" if wide else f"(r{to} & {mask})"
        if operation is AluOperation.MOV:
            return self._move(source, offset, mask) if instruction.from_register else constant
        if operation in (AluOperation.DIV, AluOperation.MOD):
            modulo = operation is AluOperation.MOD
            if offset:
                return f"signed_{'modulo' if modulo else 'divide'}(r{to}, {operand}, {sign}, {mask})"
            return f"{left} {'%' if modulo else '//'} {low} if {low} else {left if modulo else 0}"
        if operation in (AluOperation.LSH, AluOperation.RSH, AluOperation.ARSH):
            count = f"({operand} & {bits - 1})" if instruction.from_register else str(immediate & (bits - 1))
            if operation is AluOperation.LSH:
                return f"r{to} << {count} & {mask}"
            return (
                f"{left} >> {count}"
                if operation is AluOperation.RSH
                else (f"(({left} ^ {sign}) - {sign} >> {count}) & {mask}")
            )
        if operation is AluOperation.NEG:
            return f"-r{to} & {mask}"
        return f"(r{to} {_SYMBOLS[operation]} {operand}) & {mask}"

    def _move(self, source: int, offset: int, mask: str) -> str:
        if offset == ADDR_PERCPU:
            return f"r{source} + core.index * {self.percpu_stride}"
        if offset:
            part, sign = (1 << offset) - 1, 1 << (offset - 1)
            return f"((r{source} & {part}) ^ {sign}) - {sign} & {mask}"
        return f"r{source} & {mask}" if mask == _M32 else f"r{source}"

    def _swap(self, instruction: Instruction, wide: bool) -> str:
        to, bits = instruction.destination, instruction.immediate
        if not wide and not instruction.from_register:
            return f"r{to} & {(1 << bits) - 1}"
        low = f"(r{to} & {(1 << bits) - 1})"
        return f"int.from_bytes({low}.to_bytes({bits // 8}, 'little'), 'big')"

    # Jumps

    def _jump(self, slot: int, instruction: Instruction) -> None:
        if instruction.is_exit:
            self._put(3, "return r0")
            return
        if instruction.is_call:
            self._call(slot, instruction)
            self._put(3, f"block = {slot + 1}")
            return
        target = jump_target(self.instructions, slot)
        if instruction.is_goto:
            self._put(3, f"block = {target}")
        else:
            self._put(3, f"block = {target} if {self._condition(instruction)} else {slot + 1}")
        if target <= slot:
            self._put(3, f"if block <= {slot}: continue")

    def _condition(self, instruction: Instruction) -> str:
        _, to, source, _, immediate = instruction
        wide = instruction.instruction_class is InstructionClass.JMP
        mask, sign = (_M64, _S64) if wide else (_M32, _S32)
        operation = JumpOperation(instruction.operation)
        left, right = f"r{to}", f"r{source}"
        if not wide:
            left, right = f"(r{to} & {mask})", f"(r{source} & {mask})"
        constant = immediate & int(mask, 16)
        if operation in _SIGNED:  # both moved by half the range: unsigned order is then the signed one
            left = f"({left} ^ {sign})"
            right, constant = f"({right} ^ {sign})", constant ^ int(sign, 16)
        return f"{left} {_COMPARISONS[operation]} {right if instruction.from_register else constant}"

    def _call(self, slot: int, instruction: Instruction) -> None:
        if instruction.source == CallKind.LOCAL:
            called = f"function_{jump_target(self.instructions, slot)}"
            self._put(3, f"r0 = await {called}(core, r1, r2, r3, r4, r5, r10 - {STACK_BYTES})")
        else:
            self.helpers.add(instruction.immediate)
            name = f"helper_{instruction.immediate}"
            self._put(3, f"r0 = await {name}(core, r1, r2, r3, r4, r5) & {_M64}")
        self._put(3, "h0 = -1")

    # Memory

    def _memory(self, slot: int, instruction: Instruction) -> None:
        opcode, to, source, offset, immediate = instruction
        kind, size = instruction.instruction_class, instruction.bytes
        if kind is InstructionClass.LDX and instruction.mode in (Mode.MEM, Mode.MEMSX):
            self._load(instruction, size)
        elif kind is InstructionClass.STX and instruction.mode == Mode.ATOMIC:
            self._atomic(instruction, size)
        elif kind in (InstructionClass.ST, InstructionClass.STX) and instruction.mode == Mode.MEM:
            mask = (1 << 8 * size) - 1
            value = str(immediate & mask)
            if kind is InstructionClass.STX:
                value = f"r{source}" if size == 8 else f"r{source} & {mask}"
            self._put(3, f"store({_address(to, offset)}, {value}, {size})")
        else:
            raise ExecutionError(f"opcode {opcode:#04x} at slot {slot} is legacy packet access or unknown")

    def _load(self, instruction: Instruction, size: int) -> None:
        _, to, source, offset, _ = instruction
        after = "" if source == FRAME_POINTER else f", after=h{source}"
        if size == 1:
            self._put(3, f"h{to} = begin({_address(source, offset)}, 1{after})")
            self._put(3, f"r{to} = await result(h{to})")
        else:
            self._put(3, f"address = {_address(source, offset)}")
            self._put(3, f"if address & {LINE - 1} <= {LINE - size}:")
            self._put(4, f"h{to} = begin(address, {size}{after})")
            self._put(4, f"r{to} = await result(h{to})")
            self._put(3, "else:")  # over the border of two lines
            self._put(4, f"r{to} = await load(address, {size}{after}); h{to} = -1")
        if instruction.mode == Mode.MEMSX:
            sign = 1 << (8 * size - 1)
            self._put(3, f"r{to} = (r{to} ^ {sign}) - {sign} & {_M64}")

    def _atomic(self, instruction: Instruction, size: int) -> None:
        _, to, source, offset, immediate = instruction
        function = ATOMIC_FUNCTIONS[AtomicOperation(immediate)]
        self.names[f"atomic_{function.name}"] = function
        mask = (1 << 8 * size) - 1
        compare = f", r0 & {mask}" if immediate == AtomicOperation.CMPXCHG else ""
        call = f"core.atomic({_address(to, offset)}, {size}, atomic_{function.name}, r{source} & {mask}{compare})"
        keeps = 0 if immediate == AtomicOperation.CMPXCHG else source if immediate & AtomicOperation.FETCH else None
        self._put(3, f"await {call}" if keeps is None else f"r{keeps} = await {call}; h{keeps} = -1")


def _address(register: int, offset: int) -> str:
    return f"(r{register} + {offset} & {_M64})" if offset else f"r{register}"
