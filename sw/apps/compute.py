"""A program that computes all the time and notices when its registers or its memory are not its own."""

from sw.core import LINE, function
from sw.linux.cpu import Cpu

__all__ = ["Compute"]

_MULTIPLIER = 6364136223846793005  # Knuth's MMIX generator
_INCREMENT = 1442695040888963407
_WORD = (1 << 64) - 1

#: Registers the program keeps values in, 8 bytes each: all of ``struct pt_regs``.
_REGISTERS = 21


class Compute:
    """Works on an array, line by line, with values that depend on each other.

    Arguments:
        array: address of its array.
        lines: lines of the array.

    Every chunk steps a generator, adds its number to one word of the array, and keeps the generator's last values
    in the registers. At the end of the run it checks both. Notes: ``computed`` (task, chunks, intact), once.
    """

    def __init__(self, name: str, array: int, lines: int = 16):
        if lines < 1:
            raise ValueError(f"the array has at least 1 line, not {lines}")
        self.name = name
        self.array = array
        self.lines = lines
        self.chunks = 0
        self.intact: bool | None = None  #: known at the end

    async def main(self, cpu: Cpu) -> None:
        """The program."""
        seed = 1
        cpu.current.registers = _registers(seed)
        while not cpu.kernel.stopping:
            seed = await compute_chunk(cpu, self, seed)
        await compute_check(cpu, self, seed)


def _registers(seed: int) -> bytes:
    """The register file after a step."""
    return seed.to_bytes(8, "little") * _REGISTERS


@function()
async def compute_chunk(cpu: Cpu, program: Compute, seed: int) -> int:
    """One chunk; the decorator's cost is the computing, an interrupt may cut it short."""
    if cpu.current.registers != _registers(seed):
        program.intact = False
    seed = (seed * _MULTIPLIER + _INCREMENT) & _WORD
    cpu.current.registers = _registers(seed)
    word = program.array + program.chunks % program.lines * LINE
    value = await cpu.load(word, 8)
    cpu.store(word, (value + program.chunks) & _WORD, 8)
    program.chunks += 1
    return seed


@function()
async def compute_check(cpu: Cpu, program: Compute, seed: int) -> None:
    """Whether the registers are as they were left and every word of the array is the sum of what was added."""
    intact = program.intact is not False and cpu.current.registers == _registers(seed)
    for line in range(program.lines):
        expected = sum(range(line, program.chunks, program.lines)) & _WORD
        intact &= await cpu.load(program.array + line * LINE, 8) == expected
    program.intact = intact
    cpu.note("computed", task=program.name, chunks=program.chunks, intact=intact)
