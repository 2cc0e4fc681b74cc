"""One machine instruction."""

from typing import NamedTuple

__all__ = ["Instruction"]


class Instruction(NamedTuple):
    """One instruction of x86-64, in AT&T syntax."""

    address: int
    size: int
    mnemonic: str
    operands: str

    @property
    def end(self) -> int:
        """Address of what follows it in memory."""
        return self.address + self.size

    @property
    def target(self) -> int | None:
        """Where a direct jump or call goes."""
        return int(self.operands, 16) if self.is_control and self.operands.startswith("0x") else None

    @property
    def is_control(self) -> bool:
        """Whether it ends a straight-line run."""
        return self.mnemonic.startswith(("j", "call", "lcall", "ret", "iret", "sysret", "syscall", "loop"))

    @property
    def is_repeated(self) -> bool:
        """Whether it is a string instruction with a REP prefix."""
        return self.mnemonic.startswith("rep") and not self.mnemonic.endswith("retq")

    @property
    def is_call(self) -> bool:
        """Whether it is a call."""
        return self.mnemonic.startswith("call")

    @property
    def is_return(self) -> bool:
        """Whether it is a near return."""
        return self.mnemonic.startswith("ret")

    @property
    def is_indirect(self) -> bool:
        """Whether it is a jump or call through a register or memory."""
        return self.operands.startswith("*")
