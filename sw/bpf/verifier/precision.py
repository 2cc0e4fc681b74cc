"""Which values of an earlier state its success depends on: where two states must agree and where they need not.

The kernel walks its history of jumps backwards when it turns out that a value mattered (``mark_chain_precision``).
Here every value carries its origins forward instead: the values of the last checkpoint that it was computed from. What
matters is marked there and, through the origins' own origins, at all checkpoints before.
"""

from collections.abc import Iterable

__all__ = ["NO_ORIGINS", "Origin", "Origins", "mark"]


class Origin:
    """One value (or one stack slot) of one checkpoint."""

    __slots__ = ("earlier", "matters")

    def __init__(self, earlier: "Origins"):
        self.earlier = earlier  #: of which values of earlier checkpoints it was made
        self.matters = False


Origins = frozenset[Origin]
#: Of constants, and of what comes from outside.
NO_ORIGINS: Origins = frozenset()


def mark(origins: Iterable[Origin]) -> None:
    """Remember that the path after their checkpoints, up to here, depends on these values."""
    waiting = list(origins)
    while waiting:
        origin = waiting.pop()
        if not origin.matters:
            origin.matters = True
            waiting.extend(origin.earlier)
