"""What a network does to frames on their way: delay, loss, reordering, duplication."""

import math
import random
from dataclasses import dataclass, field

__all__ = ["Impairment", "Path"]


@dataclass(frozen=True, kw_only=True)
class Impairment:
    """One direction of a network.

    Attributes:
        delay_ns: every frame's.
        loss, duplicate, reorder: probability of each, for every frame by itself.
        reorder_ns: by how much more a frame is delayed that others are to overtake, at most.
        lose: frames that are lost for certain, counted from 0.

    Raises:
        ValueError: for what is no probability or no delay.
    """

    delay_ns: float = 0.0
    loss: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    reorder_ns: float = 0.0
    lose: frozenset[int] = field(default_factory=frozenset)

    def __post_init__(self):
        for name in ("loss", "duplicate", "reorder"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a probability between 0 and 1, not {getattr(self, name):g}")
        for name in ("delay_ns", "reorder_ns"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise ValueError(f"{name} is at least 0, not {getattr(self, name):g}")


class Path:
    """One direction in use.

    Arguments:
        impairment: what happens on it.
        seed: of what happens by chance.

    Attributes:
        frames, lost, duplicated, delayed: how many.
    """

    def __init__(self, impairment: Impairment, seed: int | str):
        self.impairment = impairment
        self.frames = self.lost = self.duplicated = self.delayed = 0
        self._chance = random.Random(seed)

    def arrivals(self) -> list[float]:
        """After how many ns each copy of the next frame arrives: none when it is lost."""
        impairment, chance = self.impairment, self._chance
        number, self.frames = self.frames, self.frames + 1
        # Drawn for every frame, so that what becomes of one does not depend on another.
        lost, twice, late = (chance.random() for _ in range(3))
        extra = [chance.random() * impairment.reorder_ns for _ in range(2)]
        if number in impairment.lose or lost < impairment.loss:
            self.lost += 1
            return []
        first = impairment.delay_ns
        if late < impairment.reorder:
            self.delayed += 1
            first += extra[0]
        if twice < impairment.duplicate:
            self.duplicated += 1
            return [first, impairment.delay_ns + extra[1]]
        return [first]
