"""The code of a running kernel: its bytes, its symbols, its instructions."""

import bisect
import re
from collections.abc import Iterable
from pathlib import Path

import capstone

from sw.costs.derive.instruction import Instruction

__all__ = ["Text"]

#: Symbols that end where the next begins, beside functions: markers that would cut a function in two.
_NO_FUNCTION = re.compile(r"^(__pfx_|__SCK__|\.|__kstrtab|__UNIQUE)")


class Text:
    """Kernel and modules.

    Arguments:
        pieces: pairs of address and bytes.
        symbols: pairs of address and name.
    """

    def __init__(self, pieces: Iterable[tuple[int, bytes]], symbols: Iterable[tuple[int, str]]):
        self._pieces = sorted(pieces)
        self._starts = [start for start, _ in self._pieces]
        ordered = sorted(symbols)
        self._addresses = [address for address, _ in ordered]
        self._names = [name for _, name in ordered]
        self._by_name: dict[str, int] = {}
        for address, name in ordered:
            self._by_name.setdefault(name, address)
        self._decoder = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
        self._decoder.syntax = capstone.CS_OPT_SYNTAX_ATT
        self._cache: dict[int, Instruction] = {}

    @classmethod
    def load(cls, work: Path, log: str = "") -> "Text":
        """Read what :class:`~sw.costs.derive.record.Recorder` saved.

        The code is that of the recording ``log``, if the kernel changed it then.
        """
        places = work / f"{log}.text" if (work / f"{log}.text").exists() else work
        pieces = [(int(path.name[5:], 16), path.read_bytes()) for path in places.glob("text-*")]
        symbols = re.findall(r"^(\w+) [tTwW] (\S+)", (work / "symbols").read_text(), re.M)
        return cls(pieces, ((int(a, 16), name) for a, name in symbols if not _NO_FUNCTION.match(name)))

    def address_of(self, name: str) -> int:
        """Address of a symbol.

        Raises:
            KeyError: if there is none of that name.
        """
        return self._by_name[name]

    def names_at(self, address: int) -> set[str]:
        """All names of the function that begins exactly here."""
        low = bisect.bisect_left(self._addresses, address)
        return set(self._names[low : bisect.bisect_right(self._addresses, address)])

    def place(self, address: int) -> tuple[str, int]:
        """Name of the function that ``address`` lies in, and the offset within it."""
        index = bisect.bisect_right(self._addresses, address) - 1
        first = bisect.bisect_left(self._addresses, self._addresses[index])
        return self._names[first], address - self._addresses[first]

    def instruction(self, address: int) -> Instruction:
        """The instruction at ``address``.

        Raises:
            ValueError: if no code is there.
        """
        found = self._cache.get(address)
        if found is None:
            index = bisect.bisect_right(self._starts, address) - 1
            start, data = self._pieces[index] if index >= 0 else (0, b"")
            code = data[address - start : address - start + 16]
            for decoded in self._decoder.disasm(code, address, 1):
                found = Instruction(address, decoded.size, decoded.mnemonic, decoded.op_str)
            if found is None:
                raise ValueError(f"there is no instruction at {address:#x}")
            self._cache[address] = found
        return found

    def run(self, start: int, end: int) -> list[Instruction]:
        """The instructions from ``start`` up to ``end``, which must be a border of instructions."""
        found = []
        while start < end:
            found.append(self.instruction(start))
            start = found[-1].end
        if start != end:
            raise ValueError(f"{end:#x} is no border of instructions")
        return found
