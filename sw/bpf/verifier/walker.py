"""Follows every path of a program, one instruction at a time, with what is known of registers and stack.

Sources: ``do_check``, ``check_alu_op``, ``check_cond_jmp_op``, ``check_func_call``, ``prepare_func_exit``,
``check_atomic_rmw``, ``is_state_visited`` in ``kernel/bpf/verifier.c``.
"""

from dataclasses import dataclass
from errno import E2BIG, EACCES, EINVAL

from sw.bpf.instruction import (
    ALU_TEXT,
    FRAME_POINTER,
    MAX_CALL_FRAMES,
    REGISTERS,
    AluOperation,
    AtomicOperation,
    CallKind,
    Immediate64,
    Instruction,
    InstructionClass,
    JumpOperation,
    Mode,
    immediate64,
    jump_target,
)
from sw.bpf.verifier import alu
from sw.bpf.verifier.bounds import UNKNOWN, UNKNOWN32, Bounds, constant, from_low_half
from sw.bpf.verifier.branches import decided, learn
from sw.bpf.verifier.calls import check_helper, find_helper
from sw.bpf.verifier.errors import Refusal
from sw.bpf.verifier.fields import check_atomic_operation, check_fields, check_operands
from sw.bpf.verifier.liveness import live_registers
from sw.bpf.verifier.log import Log
from sw.bpf.verifier.memory import Access, check_access
from sw.bpf.verifier.pointers import PacketComparison, add_to_pointer
from sw.bpf.verifier.precision import Origins, mark
from sw.bpf.verifier.pruning import Checkpoint, is_covered, is_repeated
from sw.bpf.verifier.registers import NOT_INITIALISED, PACKET_POINTERS, ZERO, Register, RegisterType, scalar
from sw.bpf.verifier.state import Frame, State
from sw.bpf.verifier.structure import Structure

__all__ = ["Walker"]

#: Paths that may wait to be followed (``BPF_COMPLEXITY_LIMIT_JMP_SEQ``).
_MOST_WAITING = 8192
#: A checkpoint is kept only so many jumps and instructions after the last; more if it is within a loop.
_JUMPS_APART, _INSTRUCTIONS_APART = 2, 8
_LOOP_JUMPS_APART, _LOOP_INSTRUCTIONS_APART = 20, 100
#: A checkpoint is dropped when it was compared in vain so many times as often as with success.
_MISSES_PER_HIT = 3
#: Registers that a call destroys: r0 to r5; r1 to r5 are its arguments.
_CALLER_SAVED = range(6)
_ARGUMENTS = slice(1, 6)
_NEVER_NULL = frozenset({RegisterType.MAP_VALUE, RegisterType.CONST_PTR_TO_MAP})
_ALU_CLASSES = frozenset({InstructionClass.ALU, InstructionClass.ALU64})
_JUMP_CLASSES = frozenset({InstructionClass.JMP, InstructionClass.JMP32})


@dataclass(slots=True)
class _Waiting:
    """A path that is followed later."""

    state: State
    at: int
    came_from: int
    checkpoint: Checkpoint
    log_length: int


class Walker:
    """One walk through a program.

    Arguments:
        structure: the program.
        gpl_compatible: whether it may call GPL-only helpers.
        privileged: whether its loader may see addresses (CAP_PERFMON).
        limit: instructions that may be looked at.
        log: what it does.
    """

    def __init__(self, structure: Structure, gpl_compatible: bool, privileged: bool, limit: int, log: Log):
        self.structure = structure
        self.code = structure.instructions
        self.gpl_compatible = gpl_compatible
        self.privileged = privileged
        self.limit = limit
        self.log = log
        self.depths = dict.fromkeys(structure.functions, 0)
        self.seen: set[int] = set()
        self.context_accesses: set[int] = set()
        self.other_accesses: set[int] = set()
        self.processed = 0
        self.jumps = 0
        self.total_states = self.peak_states = self.most_states = self.states_now = 0
        self._ids = 0
        self._live = live_registers(self.code)
        self._checkpoints: dict[int, list[Checkpoint]] = {at: [] for at in self._prune_points()}
        self._last_jumps = self._last_processed = 0
        self._waiting: list[_Waiting] = []
        self._checkpoint: Checkpoint

    def walk(self) -> None:
        """Follow all paths.

        Raises:
            Refusal: at the first instruction that is wrong.
        """
        state = State([Frame(0, 0, -1, self.depths)])
        state.registers[1] = Register(RegisterType.CTX)
        self._checkpoint = Checkpoint(0, state.copy(), None)
        self.log.note_state(0, state)
        at: int | None = 0
        while True:
            if at is not None and self._is_known(at, state):
                self.log.note(f"{at}: safe")
                at = None
            if at is not None:
                at = self.step(at, state)
                continue
            self._checkpoint.end_path()
            if not self._waiting:
                return
            path = self._waiting.pop()
            state, at, self._checkpoint = path.state, path.at, path.checkpoint
            self.log.back_to(path.log_length)
            self.log.note(f"\nfrom {path.came_from} to {at}: {state.frame}")

    def step(self, at: int, state: State) -> int | None:
        """Look at one instruction; gives the next one, or None if the path ends."""
        instruction = self.code[at]
        kind = instruction.opcode & 7
        self.processed += 1
        if self.processed > self.limit:
            raise Refusal(E2BIG, f"BPF program is too large. Processed {self.processed} insn")
        frame = state.frame
        self.log.before(at, frame)
        if at not in self.seen:
            self.seen.add(at)
            check_fields(instruction)
        if kind in _ALU_CLASSES:
            self._alu(instruction, state)
            following: int | None = at + 1
        elif kind in _JUMP_CLASSES:
            self.jumps += 1
            following = self._jump(at, instruction, state)
        elif instruction.is_wide:
            self._load_wide(at, instruction, state)
            following = at + 2
        else:
            self._memory(at, instruction, state)
            following = at + 1
        self.log.after(frame)
        return following

    # ---- States that were seen before

    def _prune_points(self) -> set[int]:
        """Slots at which paths may meet."""
        points: set[int] = set(self.structure.functions)
        for at, instruction in enumerate(self.code):
            if instruction.is_branch:
                points |= {at, jump_target(self.code, at)}
            elif instruction.is_goto:
                points.add(jump_target(self.code, at))
            elif instruction.is_call and instruction.source == CallKind.LOCAL:
                points.add(at + 1)
        return points

    def _is_known(self, at: int, state: State) -> bool:
        """Whether an earlier state says that all is well from here; otherwise this one may be kept."""
        known = self._checkpoints.get(at)
        if known is None:
            return False
        jumps, instructions = self.jumps - self._last_jumps, self.processed - self._last_processed
        keep = jumps >= _JUMPS_APART and instructions >= _INSTRUCTIONS_APART
        useless = []
        for checkpoint in known:
            if checkpoint.open_paths:
                if is_repeated(checkpoint.state, state):
                    raise Refusal(EINVAL, f"infinite loop detected at insn {at}")
                if jumps < _LOOP_JUMPS_APART and instructions < _LOOP_INSTRUCTIONS_APART:
                    keep = False
            elif is_covered(checkpoint.state, state, self._live, at, self.privileged):
                checkpoint.hits += 1
                return True
            if keep:
                checkpoint.misses += 1
            if checkpoint.misses > _MISSES_PER_HIT * (checkpoint.hits + 1):
                useless.append(checkpoint)
        for checkpoint in useless:
            known.remove(checkpoint)
            self.states_now -= 1
        if keep:
            self._keep(at, state, known)
        return False

    def _keep(self, at: int, state: State, known: list[Checkpoint]) -> None:
        self._checkpoint = Checkpoint(at, state, self._checkpoint)
        known.append(self._checkpoint)
        self._last_jumps, self._last_processed = self.jumps, self.processed
        self.total_states += 1
        self.states_now += 1
        self.peak_states = max(self.peak_states, self.states_now)
        self.most_states = max(self.most_states, len(known))

    def _push(self, state: State, at: int, came_from: int) -> None:
        """Follow a path later."""
        self._checkpoint.open_paths += 1
        self._waiting.append(_Waiting(state, at, came_from, self._checkpoint, len(self.log)))
        if len(self._waiting) > _MOST_WAITING:
            raise Refusal(E2BIG, f"The sequence of {len(self._waiting)} jumps is too complex.")

    # ---- Registers

    def _new_id(self) -> int:
        self._ids += 1
        return self._ids

    def _read(self, state: State, number: int) -> Register:
        if number >= REGISTERS:
            raise Refusal(EINVAL, f"R{number} is invalid")
        register = state.registers[number]
        if register.type is RegisterType.NOT_INIT:
            raise Refusal(EACCES, f"R{number} !read_ok")
        return register

    def _check_writable(self, number: int) -> None:
        if number >= REGISTERS:
            raise Refusal(EINVAL, f"R{number} is invalid")
        if number == FRAME_POINTER:
            raise Refusal(EACCES, "frame pointer is read only")

    def _copied(self, state: State, number: int) -> Register:
        """A register of which there will be a copy: a number that is not known gets an id that says so."""
        register = state.registers[number]
        if register.is_scalar and not register.id and register.bounds.bits.mask:
            register = register._replace(id=self._new_id())
            state.registers[number] = register
        return register

    # ---- Computing

    def _alu(self, instruction: Instruction, state: State) -> None:
        operation, destination = instruction.operation, instruction.destination
        if operation == AluOperation.MOV:
            if instruction.from_register:
                self._read(state, instruction.source)
            self._check_writable(destination)
            state.registers[destination] = self._moved(instruction, state)
            return
        if operation in (AluOperation.NEG, AluOperation.END):
            register = self._read(state, destination)
            if register.is_pointer and not self.privileged:
                raise Refusal(EACCES, f"R{destination} pointer arithmetic prohibited")
            self._check_writable(destination)
            state.registers[destination] = self._unary(instruction, register)
            return
        operand = self._read(state, instruction.source) if instruction.from_register else None
        register = self._read(state, destination)
        check_operands(instruction)
        self._check_writable(destination)
        if operand is None:
            operand = scalar(constant(instruction.immediate))
        if register.is_scalar and operand.is_scalar:
            state.registers[destination] = self._computed(instruction, register, operand)
        else:
            state.registers[destination] = self._with_pointer(instruction, register, operand)

    def _computed(self, instruction: Instruction, register: Register, operand: Register) -> Register:
        """Result of an operation on two numbers."""
        operation, width = instruction.operation, _width(instruction)
        origins = register.origins | operand.origins
        if instruction.offset:  # a signed quotient or remainder is as unknown as the others
            return scalar(origins=origins)
        result = scalar(alu.result(operation, width, register.bounds, operand.bounds), origins)
        if operation == AluOperation.ADD and width == 64 and not instruction.from_register:
            # So much more than the numbers that it was a copy of; only of copies, not of sums.
            if register.id and not register.off and result.bounds.bits.mask:
                return result._replace(id=register.id, off=instruction.immediate)
        return result

    def _unary(self, instruction: Instruction, register: Register) -> Register:
        """Result of NEG or END."""
        if register.is_pointer:
            return scalar()
        if instruction.operation == AluOperation.END:
            # Memory is little-endian: to little-endian only cuts.
            swaps = _width(instruction) == 64 or instruction.from_register
            return scalar(alu.swapped(register.bounds, instruction.immediate, swaps), register.origins)
        return scalar(alu.result(AluOperation.NEG, _width(instruction), register.bounds, ZERO.bounds), register.origins)

    def _moved(self, instruction: Instruction, state: State) -> Register:
        wide = _width(instruction) == 64
        if not instruction.from_register:
            return scalar(constant(instruction.immediate if wide else instruction.immediate & 0xFFFFFFFF))
        register, bits = state.registers[instruction.source], instruction.offset
        if wide and not bits:
            return self._copied(state, instruction.source)
        if register.is_pointer:
            if not self.privileged:
                raise Refusal(EACCES, f"R{instruction.source} partial copy of pointer")
            return scalar(UNKNOWN if wide else UNKNOWN32)
        most = (1 << (bits - 1)) - 1 if bits else 0xFFFFFFFF
        if register.bounds.whole.umax <= most:  # nothing is cut and no sign is extended: an exact copy
            return self._copied(state, instruction.source)
        if bits:
            return scalar(alu.sign_extended(register.bounds, bits, 64 if wide else 32), register.origins)
        return scalar(from_low_half(register.bounds), register.origins)

    def _with_pointer(self, instruction: Instruction, register: Register, operand: Register) -> Register:
        """Result of an operation with at least one pointer."""
        operation, destination = instruction.operation, instruction.destination
        difference = operation == AluOperation.SUB and self.privileged
        if register.is_pointer and operand.is_pointer:
            if difference:
                return scalar(UNKNOWN if _width(instruction) == 64 else UNKNOWN32)
            symbol = ALU_TEXT[AluOperation(operation)]
            raise Refusal(EACCES, f"R{destination} pointer {symbol} pointer prohibited")
        pointer, addend = (register, operand) if register.is_pointer else (operand, register)
        mark(addend.origins)
        if _width(instruction) == 32:
            if difference:
                return scalar(UNKNOWN32)
            raise Refusal(EACCES, f"R{destination} 32-bit pointer arithmetic prohibited")
        return add_to_pointer(destination, operation, pointer, addend, pointer is register, self._new_id)

    # ---- Memory

    def _load_wide(self, at: int, instruction: Instruction, state: State) -> None:
        self._check_writable(instruction.destination)
        if instruction.source == Immediate64.VALUE:
            found = scalar(constant(immediate64(self.code, at)))
        else:
            fd = instruction.immediate
            definition = self.structure.maps[fd]
            is_map = instruction.source == Immediate64.MAP_FD
            kind = RegisterType.CONST_PTR_TO_MAP if is_map else RegisterType.MAP_VALUE
            off = 0 if is_map else self.code[at + 1].immediate
            found = Register(kind, constant(0), off, map=definition, map_fd=fd)
        state.registers[instruction.destination] = found

    def _memory(self, at: int, instruction: Instruction, state: State) -> None:
        kind = instruction.instruction_class
        if kind is InstructionClass.LDX:
            self._load(at, instruction, state)
        elif instruction.mode == Mode.ATOMIC:
            self._atomic(at, instruction, state)
        else:
            if kind is InstructionClass.STX:
                self._read(state, instruction.source)
                self._read(state, instruction.destination)
                value = state.registers[instruction.source]
                if value.is_scalar and state.registers[instruction.destination].type is RegisterType.STACK:
                    value = self._copied(state, instruction.source)
            else:
                self._read(state, instruction.destination)
                value = scalar(constant(instruction.immediate))
            self._access(at, instruction.destination, instruction, Access.WRITE, state, value)

    def _access(
        self, at: int, number: int, instruction: Instruction, access: Access, state: State, value: Register | None
    ) -> Register | None:
        """One load or store; gives what a load gives, zeros above."""
        to_context = state.registers[number].type is RegisterType.CTX
        found = check_access(
            state,
            at,
            number,
            instruction.offset,
            instruction.bytes,
            access,
            value,
            self.privileged,
            instruction.source,
            instruction.mode == Mode.MEMSX,
        )
        (self.context_accesses if to_context else self.other_accesses).add(at)
        if at in self.context_accesses and at in self.other_accesses:
            raise Refusal(EINVAL, "same insn cannot be used with different pointers")
        return found

    def _load(self, at: int, instruction: Instruction, state: State) -> None:
        self._read(state, instruction.source)
        self._check_writable(instruction.destination)
        found = self._access(at, instruction.source, instruction, Access.READ, state, None)
        assert found is not None
        if instruction.mode == Mode.MEMSX and found.is_scalar:
            found = scalar(alu.sign_extended(found.bounds, 8 * instruction.bytes, 64), found.origins)
        state.registers[instruction.destination] = found

    def _atomic(self, at: int, instruction: Instruction, state: State) -> None:
        check_atomic_operation(instruction)
        source, destination = instruction.source, instruction.destination
        value = self._read(state, source)
        self._read(state, destination)
        exchanges = instruction.immediate == AtomicOperation.CMPXCHG
        for number, register in ((0, self._read(state, 0)), (source, value)) if exchanges else ((source, value),):
            if register.is_pointer and not self.privileged:
                raise Refusal(EACCES, f"R{number} leaks addr into mem")
        kind = state.registers[destination].type
        if kind in (RegisterType.CTX, RegisterType.PACKET, RegisterType.PACKET_META):
            raise Refusal(EACCES, f"BPF_ATOMIC stores into R{destination} {kind.value} is not allowed")
        gets = (0 if exchanges else source) if instruction.immediate & AtomicOperation.FETCH else None
        if gets is not None:
            self._check_writable(gets)
        old = self._access(at, destination, instruction, Access.READ, state, None)
        self._access(at, destination, instruction, Access.WRITE, state, None)
        if gets is not None:
            assert old is not None
            state.registers[gets] = old

    # ---- Jumps

    def _jump(self, at: int, instruction: Instruction, state: State) -> int | None:
        if instruction.is_exit:
            return self._exit(state)
        if instruction.is_call:
            return self._call(at, instruction, state)
        if instruction.is_goto:
            return jump_target(self.code, at)
        return self._branch(at, instruction, state)

    def _branch(self, at: int, instruction: Instruction, state: State) -> int:
        a = self._read(state, instruction.destination)
        b = self._read(state, instruction.source) if instruction.from_register else None
        width = _width(instruction)
        operand = scalar(constant(instruction.immediate)) if b is None else b
        packet = PacketComparison(instruction.operation if width == 64 else JumpOperation.JA, a, operand)
        if not self.privileged:
            self._check_comparable(instruction, a, b, packet)
        target = jump_target(self.code, at)
        taken = self._decided(instruction, a, operand, width, packet)
        if taken is not None:
            mark(a.origins | operand.origins)
            return target if taken else at + 1
        other = state.copy()
        for path, holds in ((other, True), (state, False)):
            if a.is_scalar and operand.is_scalar:
                self._learn(instruction, path, holds, a, operand, width)
            elif a.type is RegisterType.MAP_VALUE_OR_NULL and _tests_null(instruction):
                _learn_null(path, a.id, holds == (instruction.operation == JumpOperation.JEQ))
            else:
                packet.learn(path, holds)
        self._push(other, target, at)
        return at + 1

    def _check_comparable(
        self, instruction: Instruction, a: Register, b: Register | None, packet: PacketComparison
    ) -> None:
        """Without the right to see addresses, they are only compared with null and with the packet's end."""
        if packet.is_one or (a.type is RegisterType.MAP_VALUE_OR_NULL and _tests_null(instruction)):
            return
        for number, register in ((instruction.source, b), (instruction.destination, a)):
            if register is not None and register.is_pointer:
                raise Refusal(EACCES, f"R{number} pointer comparison prohibited")

    def _decided(
        self, instruction: Instruction, a: Register, b: Register, width: int, packet: PacketComparison
    ) -> bool | None:
        if a.is_scalar and instruction.from_register and instruction.source == instruction.destination:
            return _SAME.get(JumpOperation(instruction.operation))
        if a.is_scalar and b.is_scalar:
            return decided(instruction.operation, a.bounds, b.bounds, width)
        if packet.is_one:
            return packet.decided()
        equality = instruction.operation in (JumpOperation.JEQ, JumpOperation.JNE)
        for pointer, number in ((a, b), (b, a)):
            if pointer.type in _NEVER_NULL and number.is_zero and equality and width == 64:
                return instruction.operation == JumpOperation.JNE
        return None

    def _learn(self, instruction: Instruction, state: State, holds: bool, a: Register, b: Register, width: int) -> None:
        """Put what a condition between numbers says into all registers that hold them."""
        if instruction.from_register and instruction.source == instruction.destination:
            return
        found = learn(instruction.operation, holds, a.bounds, b.bounds, width)
        if not instruction.from_register:
            self._put(state, instruction.destination, a, found[0], a.origins)
            return
        origins = a.origins | b.origins
        self._put(state, instruction.destination, a, found[0], origins)
        self._put(state, instruction.source, b, found[1], origins)

    def _put(self, state: State, number: int, register: Register, bounds: Bounds, origins: Origins) -> None:
        """More is known of a number, in one register and its copies."""
        state.registers[number] = register._replace(bounds=bounds, origins=origins)
        if register.id:
            self._learn_linked(state, register, bounds, origins)

    def _learn_linked(self, state: State, learnt: Register, bounds: Bounds, origins: Origins) -> None:
        """All copies of a number are as it is, or more by what was added, and depend on the same."""

        def linked(register: Register) -> Register | None:
            if register.id != learnt.id or not register.is_scalar:
                return None
            more = register.off - learnt.off
            found = alu.result(AluOperation.ADD, 64, bounds, constant(more)) if more else bounds
            return register._replace(bounds=found, origins=register.origins | origins)

        state.replace(linked)

    # ---- Calls

    def _call(self, at: int, instruction: Instruction, state: State) -> int:
        if instruction.source == CallKind.LOCAL:
            return self._call_local(at, state)
        helper = find_helper(instruction.immediate, self.gpl_compatible)
        result = check_helper(state, helper, self.privileged)
        if result.type is RegisterType.MAP_VALUE_OR_NULL:
            result = result._replace(id=self._new_id())
        if helper.changes_packet:
            lost = scalar() if self.privileged else NOT_INITIALISED
            state.replace(lambda register: lost if register.type in PACKET_POINTERS else None)
        for number in _CALLER_SAVED:
            state.registers[number] = NOT_INITIALISED
        state.registers[0] = result
        return at + 1

    def _call_local(self, at: int, state: State) -> int:
        if len(state.frames) >= MAX_CALL_FRAMES:
            raise Refusal(E2BIG, f"the call stack of {len(state.frames) + 1} frames is too deep")
        target = jump_target(self.code, at)
        caller = state.frame
        callee = Frame(len(state.frames), target, at, self.depths)
        callee.registers[_ARGUMENTS] = caller.registers[_ARGUMENTS]
        for number in _CALLER_SAVED:
            caller.registers[number] = NOT_INITIALISED
        state.frames.append(callee)
        self.log.note(f"caller:\n {caller}\ncallee:\n {callee}")
        return target

    def _exit(self, state: State) -> int | None:
        frame = state.frame
        result = frame.registers[0]
        if len(state.frames) > 1:
            if result.type is RegisterType.STACK:
                raise Refusal(EINVAL, "cannot return stack pointer to the caller")
            state.frames.pop()
            state.registers[0] = result
            self.log.note(f"returning from callee:\n {frame}\nto caller at {frame.call_site + 1}:\n {state.frame}")
            return frame.call_site + 1
        self._read(state, 0)
        if result.is_pointer and not self.privileged:
            raise Refusal(EACCES, "R0 leaks addr as return value")
        return None


#: How a number compares with itself; JSET depends on whether it is 0.
_SAME = {
    JumpOperation.JEQ: True,
    JumpOperation.JGE: True,
    JumpOperation.JLE: True,
    JumpOperation.JSGE: True,
    JumpOperation.JSLE: True,
    JumpOperation.JNE: False,
    JumpOperation.JGT: False,
    JumpOperation.JLT: False,
    JumpOperation.JSGT: False,
    JumpOperation.JSLT: False,
}


def _width(instruction: Instruction) -> int:
    """Bits on which an instruction computes or decides."""
    return 64 if instruction.opcode & 7 in (InstructionClass.ALU64, InstructionClass.JMP) else 32


def _tests_null(instruction: Instruction) -> bool:
    """Whether a branch is on whether a pointer is null."""
    return (
        _width(instruction) == 64
        and instruction.operation in (JumpOperation.JEQ, JumpOperation.JNE)
        and not instruction.from_register
        and instruction.immediate == 0
    )


def _learn_null(state: State, id: int, is_null: bool) -> None:
    """All copies of a pointer that may be null are null, or are not."""

    def known(register: Register) -> Register | None:
        if register.type is not RegisterType.MAP_VALUE_OR_NULL or register.id != id:
            return None
        return ZERO if is_null else register._replace(type=RegisterType.MAP_VALUE, id=0)

    state.replace(known)
