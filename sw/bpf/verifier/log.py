"""The verifier's log: each instruction with what is then known of its registers, text only made when it is read."""

from collections.abc import Sequence

from sw.bpf.helpers import HELPER_NAMES
from sw.bpf.instruction import SLOT_BYTES, AluOperation, CallKind, Instruction, InstructionClass, disassemble
from sw.bpf.verifier.registers import Register, RegisterType
from sw.bpf.verifier.state import Frame, Slot, State, slot_of

__all__ = ["Log"]

#: Column at which what is known begins, and by how much it moves for longer instructions.
_COLUMN, _COLUMN_STEP = 38, 8
#: Lines that are kept at least: of a longer log the end, as in the kernel's ring.
_KEPT = 1 << 15


class _Entry:
    """One instruction."""

    __slots__ = ("at", "frame", "registers", "slots")

    def __init__(self, at: int, frame: int):
        self.at = at
        self.frame = frame
        self.registers: tuple[tuple[int, Register], ...] = ()
        self.slots: tuple[tuple[int, Slot], ...] = ()


class Log:
    """What the verifier did.

    Arguments:
        instructions: the program.
        level: 0: nothing; 1: the path that is refused; 2: all paths (``BPF_LOG_LEVEL1``, ``BPF_LOG_LEVEL2``).
    """

    def __init__(self, instructions: Sequence[Instruction], level: int):
        self.instructions = instructions
        self.level = level
        self._lines: list[str | _Entry] = []
        self._dropped = 0
        self._named: dict[int, list[int]] = {}

    def __len__(self) -> int:
        return self._dropped + len(self._lines)

    def note(self, line: str) -> None:
        """Add a line."""
        if self.level:
            self._lines.append(line)

    def note_state(self, at: int, state: State) -> None:
        """Add a line with all that is known before an instruction."""
        if self.level:
            self._lines.append(f"{at}: {state.frame}")

    def back_to(self, length: int) -> None:
        """A path is done: below level 2 only what came before it is kept."""
        if self.level < 2:
            del self._lines[max(length - self._dropped, 0) :]

    def before(self, at: int, frame: Frame) -> None:
        """An instruction is about to be looked at."""
        if self.level:
            self._lines.append(_Entry(at, frame.number))
            if len(self._lines) > 2 * _KEPT:
                self._dropped += _KEPT
                del self._lines[:_KEPT]

    def after(self, frame: Frame) -> None:
        """The instruction is right: keep what is known of its registers in the frame that it ran in."""
        if not self.level or not isinstance(self._lines[-1], _Entry):
            return
        entry = self._lines[-1]
        instruction = self.instructions[entry.at]
        numbers = self._named.get(entry.at)
        if numbers is None:
            numbers = self._named[entry.at] = _named(instruction)
        entry.registers = tuple([(number, frame.registers[number]) for number in numbers])
        kind = instruction.opcode & 7
        if kind in (InstructionClass.LDX, InstructionClass.ST, InstructionClass.STX):
            base = frame.registers[instruction.source if kind == InstructionClass.LDX else instruction.destination]
            if base.type is RegisterType.STACK and base.bounds.is_known and base.frame == frame.number:
                number = slot_of(base.off + base.bounds.whole.smin + instruction.offset)[0]
                if number in frame.stack:
                    entry.slots = ((number, frame.stack[number]),)

    def text(self) -> str:
        """All lines."""
        return "\n".join(line if isinstance(line, str) else self._format(line) for line in self._lines)

    def _format(self, entry: _Entry) -> str:
        text = disassemble(self.instructions, entry.at, HELPER_NAMES)
        line = f"{entry.at}: ({self.instructions[entry.at].opcode:02x}) {text}"
        number = entry.frame
        there = [(n, register) for n, register in entry.registers if register.type is not RegisterType.NOT_INIT]
        known = [f"R{n}={register.text(number)}" for n, register in there]
        known += [f"fp-{SLOT_BYTES * (n + 1)}={slot.text(number)}" for n, slot in entry.slots]
        if not known:
            return line
        frame = f"frame{entry.frame}: " if entry.frame else ""
        column = max(_COLUMN, -(-(len(line) + _COLUMN_STEP // 2) // _COLUMN_STEP) * _COLUMN_STEP - 2)
        return f"{line.ljust(column)}; {frame}{' '.join(known)}"


def _named(instruction: Instruction) -> list[int]:
    """Registers that an instruction names, lowest first."""
    if instruction.is_call:
        return [0] if instruction.source == CallKind.HELPER else []
    if instruction.is_exit or instruction.is_goto:
        return []
    numbers = {instruction.destination}
    if instruction.is_alu and instruction.operation == AluOperation.END:
        return [instruction.destination]
    if not instruction.is_wide and (not (instruction.is_alu or instruction.is_jump) or instruction.from_register):
        if instruction.instruction_class is not InstructionClass.ST:
            numbers.add(instruction.source)
    return sorted(numbers)
