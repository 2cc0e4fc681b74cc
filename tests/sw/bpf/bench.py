"""A BPF subsystem on memory without a machine, for tests."""

from collections.abc import Iterable
from pathlib import Path

import sw.bpf
from sw.bpf.context import NET_DEVICE, XDP_BUFF, XDP_RXQ_INFO
from sw.bpf.elf import load_object
from sw.bpf.instruction import Instruction, InstructionClass, jump_target
from sw.bpf.memory import FunctionalCore, complete
from sw.bpf.program import Program, Verification, functions
from sw.bpf.syscall import Bpf, LoadedProgram
from sw.linux.mm import MemBlock

#: Where the example programs are.
PROGRAMS = Path(sw.bpf.__file__).parent / "programs"
HEADROOM = 256
FRAME_BYTES = 4096
IFINDEX, QUEUE = 7, 3


def trust(program: Program) -> Verification:
    """Stands for the verifier: believes everything, and only finds out which loads are of the context."""
    code = program.instructions
    holds: dict[int, frozenset[int]] = {0: frozenset({1})}
    waiting, accesses = [0], set()
    while waiting:
        slot = waiting.pop()
        instruction, context = code[slot], holds[slot]
        if instruction.instruction_class is InstructionClass.LDX:
            if instruction.source in context:
                accesses.add(slot)
            context -= {instruction.destination}
        elif instruction.is_alu:
            copies = instruction.opcode == 0xBF and instruction.source in context
            context = context | {instruction.destination} if copies else context - {instruction.destination}
        elif instruction.is_call:
            context -= frozenset(range(6))
        elif instruction.is_wide:
            context -= {instruction.destination}
        for following in _successors(code, slot):
            known = holds.get(following)
            if known is None or not context <= known:
                holds[following] = (known or frozenset()) | context
                waiting.append(following)
    return Verification(frozenset(accesses), dict.fromkeys(functions(code), 512))


def _successors(code: tuple[Instruction, ...], slot: int) -> Iterable[int]:
    instruction = code[slot]
    if instruction.is_exit:
        return []
    if instruction.is_goto:
        return [jump_target(code, slot)]
    following = slot + (2 if instruction.is_wide else 1)
    return [following, jump_target(code, slot)] if instruction.is_branch else [following]


class Bench:
    """Memory, cores, the subsystem and a receive queue."""

    def __init__(self, cores: int = 1, jit: bool = True, memory_bytes: int = 1 << 20, verify=trust, **options):
        self.memory = bytearray(memory_bytes)
        self.cores = [FunctionalCore(self.memory, index) for index in range(cores)]
        self.core = self.cores[0]
        self.memblock = MemBlock(memory_bytes)
        self.bpf = Bpf(self.memblock.allocate, cores, verify, jit_enable=jit, **options)
        self.frame = self.memblock.allocate(FRAME_BYTES, 4096)
        self.xdp = self.memblock.allocate(XDP_BUFF.size, 64)
        self.rxq = self.memblock.allocate(XDP_RXQ_INFO.size, 64)
        self.device = self.memblock.allocate(NET_DEVICE.size, 64)
        self.core.put(self.device, NET_DEVICE.ifindex, IFINDEX)
        self.core.put(self.rxq, XDP_RXQ_INFO.dev, self.device)
        self.core.put(self.rxq, XDP_RXQ_INFO.queue_index, QUEUE)

    def do(self, coroutine):
        return complete(coroutine)

    def load(self, name: str) -> tuple[LoadedProgram, dict[str, int]]:
        return self.do(self.bpf.load_object(self.core, load_object(PROGRAMS / f"{name}.o")))

    def program(self, instructions: Iterable[Instruction]) -> LoadedProgram:
        fd = self.do(self.bpf.prog_load(self.core, Program(tuple(instructions))))
        program = self.bpf.program(fd)
        self.bpf.close(fd)
        return program

    def run(self, program: LoadedProgram, packet: bytes, core: int = 0) -> tuple[int, bytes]:
        """Verdict and the packet afterwards."""
        data = self.frame + HEADROOM
        self.memory[data : data + len(packet)] = packet
        buff = XDP_BUFF.pack(
            data=data,
            data_end=data + len(packet),
            data_meta=data,
            data_hard_start=self.frame,
            rxq=self.rxq,
            frame_sz=FRAME_BYTES,
        )
        self.memory[self.xdp : self.xdp + len(buff)] = buff
        verdict = self.do(program.run(self.cores[core], self.xdp))
        after = bytes(self.memory[self.xdp : self.xdp + XDP_BUFF.size])
        return verdict, bytes(self.memory[XDP_BUFF.data.of(after) : XDP_BUFF.data_end.of(after)])
