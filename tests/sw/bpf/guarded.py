"""Runs programs as they are written, and watches: no access outside what it may touch, nothing untrue believed.

The program is not rewritten: ``struct xdp_md`` lies in memory with addresses of 32 bits, as its declaration says.
"""

import random
from collections.abc import Mapping, Sequence

from sw.bpf import interpreter
from sw.bpf.arithmetic import MASK32, MASK64
from sw.bpf.helpers import HelperId
from sw.bpf.instruction import MAX_CALL_FRAMES, STACK_BYTES, Immediate64, Instruction
from sw.bpf.maps import MapDefinition
from sw.bpf.memory import FunctionalCore, complete
from sw.bpf.program import Program
from sw.bpf.verifier.log import Log
from sw.bpf.verifier.registers import AT_PACKET_END, BEYOND_PACKET_END, Register, RegisterType
from sw.bpf.verifier.state import SPILL, ZERO_BYTE, Frame, State
from sw.bpf.verifier.structure import Structure
from sw.bpf.verifier.walker import Walker

__all__ = ["Forbidden", "Machine", "Untrue", "states_of"]

_CONTEXT, _HEADROOM = 0x1000, 256
_PACKET = 0x8000
_STACK = 0x20000
_MAPS, _MAP_ROOM = 0x40000, 0x1000
_MEMORY = 0x80000
_CONTEXT_BYTES = 24
_STACK_END = _STACK + MAX_CALL_FRAMES * STACK_BYTES


class Forbidden(AssertionError):
    """An access outside of packet, context, stack and values."""


class Untrue(AssertionError):
    """A register that is none of what the verifier believes it to be."""


class _Recorder(Walker):
    """Walks without skipping what it has seen, and keeps every state."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.states: dict[int, list[State]] = {}

    def _is_known(self, at, state):
        return False

    def step(self, at, state):
        self.states.setdefault(at, []).append(state.copy())
        return super().step(at, state)


def states_of(program: Program, limit: int = 3000) -> dict[int, list[State]]:
    """All that the verifier believes before each instruction, by slot."""
    walker = _Recorder(Structure(program), True, True, limit, Log(program.instructions, 0))
    walker.walk()
    return walker.states


class _Core(FunctionalCore):
    """Memory with fences."""

    def __init__(self, machine: "Machine"):
        super().__init__(bytearray(_MEMORY))
        self.machine = machine

    def _place(self, address: int, size: int) -> slice:
        if not any(start <= address and address + size <= end for start, end in self.machine.allowed()):
            raise Forbidden(f"{size} bytes at {address:#x}")
        return slice(address, address + size)

    def store(self, address, value, size):
        if _CONTEXT <= address < _CONTEXT + _CONTEXT_BYTES:
            raise Forbidden(f"the context is written at {address:#x}")
        super().store(address, value, size)


class _Watcher(interpreter._Activation):
    """Compares registers before every instruction with the verifier's states."""

    believed: Mapping[int, Sequence[State]] | None = None
    machine: "Machine"

    def _fetch(self, slot: int) -> None:
        self.machine.executed += 1
        if self.machine.executed > 100_000:
            raise Untrue("the program does not end")
        if self.believed is None:
            return
        states = self.believed.get(slot, ())
        if not any(self.machine.matches(state, self) for state in states):
            raise Untrue(f"slot {slot}: {[hex(r) for r in self.registers]} is none of {[str(s) for s in states]}")


class Machine:
    """A core, a packet and maps for one program.

    Arguments:
        program: with maps of any type; hash maps begin with keys 0 to 3.
    """

    def __init__(self, program: Program, seed: int = 0):
        self.random = random.Random(seed)
        self.core = _Core(self)
        self.maps: dict[int, MapDefinition] = dict(program.maps)
        self.values = {fd: _MAPS + n * _MAP_ROOM for n, fd in enumerate(self.maps)}
        self.present = {fd: [key.to_bytes(m.key_size, "little") for key in range(4)] for fd, m in self.maps.items()}
        self.data = self.data_end = 0
        self.executed = 0
        self.code = self._resolved(program.instructions)

    def allowed(self) -> list[tuple[int, int]]:
        found = [
            (_CONTEXT, _CONTEXT + _CONTEXT_BYTES),
            (self.data, self.data_end),
            (_STACK, _STACK_END),
        ]
        for fd, definition in self.maps.items():
            count = definition.max_entries if definition.is_array else 4
            size = self._stride(definition)
            found += [
                (self.values[fd] + n * size, self.values[fd] + n * size + definition.value_size) for n in range(count)
            ]
        return found

    def run(self, packet: bytes, believed: Mapping[int, Sequence[State]] | None = None) -> int:
        memory = self.core.memory
        self.data, self.data_end = _PACKET, _PACKET + len(packet)
        memory[_PACKET : _PACKET + len(packet)] = packet
        memory[_STACK:_STACK_END] = self.random.randbytes(_STACK_END - _STACK)
        for fd, definition in self.maps.items():
            size = 16 * self._stride(definition)
            memory[self.values[fd] : self.values[fd] + size] = self.random.randbytes(size)
        self._write_context()
        _Watcher.believed, _Watcher.machine = believed, self
        self.executed = 0
        original, interpreter._Activation = interpreter._Activation, _Watcher
        try:
            return complete(interpreter.Interpreter(self.code, 0, self._helpers()).run(self.core, _CONTEXT, _STACK))
        finally:
            interpreter._Activation = original

    def _write_context(self) -> None:
        fields = (self.data, self.data_end, self.data, 7, self.random.randrange(16), 9)
        self.core.memory[_CONTEXT : _CONTEXT + _CONTEXT_BYTES] = b"".join(f.to_bytes(4, "little") for f in fields)

    def _stride(self, definition: MapDefinition) -> int:
        return (definition.value_size + 7) // 8 * 8

    def _resolved(self, code: tuple[Instruction, ...]) -> list[Instruction]:
        found = list(code)
        for slot, instruction in enumerate(code):
            if instruction.is_wide and instruction.source in (Immediate64.MAP_FD, Immediate64.MAP_VALUE):
                fd, is_map = instruction.immediate, instruction.source == Immediate64.MAP_FD
                address = fd if is_map else self.values[fd] + code[slot + 1].immediate
                found[slot] = instruction._replace(immediate=address, source=0)
                found[slot + 1] = code[slot + 1]._replace(immediate=0)
        return found

    # ---- Helpers: as little as tells right from wrong

    def _helpers(self):
        async def nothing(core, *arguments):
            return self.random.getrandbits(64)

        async def lookup(core, fd, key, *rest):
            definition = self.maps[fd]
            read = bytes(core.memory[core._place(key, definition.key_size)])
            if definition.is_array:
                index = int.from_bytes(read, "little")
            else:
                index = self.present[fd].index(read) if read in self.present[fd] else definition.max_entries
            return self.values[fd] + index * self._stride(definition) if index < definition.max_entries else 0

        async def update(core, fd, key, value, *rest):
            core._place(key, self.maps[fd].key_size)
            core._place(value, self.maps[fd].value_size)
            return 0

        async def checksum(core, source, source_size, target, target_size, seed):
            for address, size in ((source, source_size), (target, target_size)):
                if size & MASK32:
                    core._place(address, size & MASK32)
            return self.random.getrandbits(32)

        async def adjust_head(core, context, delta, *rest):
            assert context == _CONTEXT
            delta = (delta & MASK32) - ((delta & 0x80000000) << 1)
            if not _PACKET - _HEADROOM <= self.data + delta < self.data_end - 14:
                return -22 & MASK64
            self.data += delta
            self._write_context()
            return 0

        return {
            **{number: nothing for number in HelperId},
            HelperId.MAP_LOOKUP_ELEM: lookup,
            HelperId.MAP_UPDATE_ELEM: update,
            HelperId.CSUM_DIFF: checksum,
            HelperId.XDP_ADJUST_HEAD: adjust_head,
        }

    # ---- Is it what the verifier believes?

    def matches(self, state: State, activation: interpreter._Activation) -> bool:
        """Whether this state, among others, allows what the registers and the stack hold."""
        if len(state.frames) != len(activation.frames) + 1:
            return False
        if any(f.call_site + 1 != saved[0] for f, saved in zip(state.frames[1:], activation.frames, strict=True)):
            return False
        ids: dict[tuple[bool, int], int] = {}
        frame, top = state.frame, activation.registers[10]
        return all(
            self._register(register, activation.registers[n], ids) for n, register in enumerate(frame.registers)
        ) and self._stack(frame, top, ids)

    def _stack(self, frame: Frame, top: int, ids: dict) -> bool:
        for number, slot in frame.stack.items():
            place = top - 8 * (number + 1)
            content = bytes(self.core.memory[place : place + 8])
            if any(kind == ZERO_BYTE and byte for kind, byte in zip(slot.kinds, content, strict=True)):
                return False
            count = sum(kind == SPILL for kind in slot.kinds)
            if count == 8 and not self._register(slot.spilled, int.from_bytes(content, "little"), ids):
                return False
        return True

    def _register(self, register: Register, value: int, ids: dict) -> bool:
        kind = register.type
        if kind is RegisterType.NOT_INIT:
            return True
        if kind is RegisterType.SCALAR:
            base = (value - register.off) & MASK64
            same = not register.id or ids.setdefault((True, register.id), base) == base
            return same and value in register.bounds
        if kind is RegisterType.CONST_PTR_TO_MAP:
            return value == register.map_fd
        if kind is RegisterType.PACKET_END:
            return value == self.data_end
        if kind is RegisterType.MAP_VALUE_OR_NULL and value == 0:
            return ids.setdefault((False, register.id), 0) == 0
        rest = (value - register.off - self._base(register, value)) & MASK64
        if rest not in register.bounds and kind is not RegisterType.MAP_VALUE:
            return False
        if kind in (RegisterType.PACKET, RegisterType.PACKET_META):
            base = value - register.off
            if register.id and ids.setdefault((False, register.id), base) != base:
                return False
            if register.range == AT_PACKET_END:
                return value >= self.data_end
            if register.range == BEYOND_PACKET_END:
                return value > self.data_end
            return register.range == 0 or base + register.range <= self.data_end
        return True

    def _base(self, register: Register, value: int) -> int:
        if register.type is RegisterType.CTX:
            return _CONTEXT
        if register.type is RegisterType.STACK:
            return _STACK_END - register.frame * STACK_BYTES
        if register.type in (RegisterType.PACKET, RegisterType.PACKET_META):
            return self.data
        definition = self.maps[register.map_fd]
        first, stride = self.values[register.map_fd], self._stride(definition)
        return first + (value - register.off - first) // stride * stride if definition.max_entries > 1 else first
