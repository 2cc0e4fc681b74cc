"""How the verifier says no."""

from sw.bpf.errors import BpfError

__all__ = ["Refusal", "VerifierError"]


class Refusal(Exception):
    """A rule that the program breaks, while it is looked at.

    Arguments:
        errno: positive.
        lines: the kernel's message; its first line says which rule.
    """

    def __init__(self, errno: int, *lines: str):
        super().__init__(*lines)
        self.errno = errno
        self.lines = lines


class VerifierError(BpfError):
    """A program that is refused; ``log`` ends with the kernel's message, ``message`` is its first line."""
