"""Traffic of a run: frames for the wire, and where they come from."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from sim.build.cache import REPOSITORY
from sim.wire.capture import read_capture
from sim.wire.frames import FCS_BYTES, Frame, TrafficError, at_rate, generate, parse_rate

__all__ = ["BUNDLED_CAPTURE", "Traffic"]

#: Real programs, recorded by the script beside it.
BUNDLED_CAPTURE = REPOSITORY / "traffic" / "programs.pcapng"

DEFAULT_COUNT = 1000
#: The log keeps some kilobytes of events for each frame in memory.
MOST_COUNT = 10_000_000
DEFAULT_SIZE = 64


@dataclass(frozen=True)
class Traffic:
    """Frames for the wire, and where they come from."""

    frames: tuple[Frame, ...]
    description: str
    parameters: dict[str, Any]

    @classmethod
    def make(
        cls,
        *,
        capture: Path | None = None,
        speed: float | None = None,
        size: int | None = None,
        rate: str | None = None,
        count: int | None = None,
        seed: int = 1,
    ) -> "Traffic":
        """Build what the options ask for: a capture (its own timing scaled, or at a rate), else generated frames.

        Raises:
            TrafficError: when options contradict each other or cannot be.
        """
        if count is not None and not 1 <= count <= MOST_COUNT:
            raise TrafficError(f"--count takes 1 to {MOST_COUNT}, not {count}")
        if capture is None:
            if speed is not None:
                raise TrafficError("--speed scales the timing of a capture; with generated frames use --rate")
            size, count = DEFAULT_SIZE if size is None else size, count or DEFAULT_COUNT
            rate = "line" if rate is None else rate
            frames = at_rate(generate(size, count, seed), *parse_rate(rate))
            parameters: dict[str, Any] = {"size": size, "rate": rate, "count": count, "seed": seed}
            return cls._described(frames, f"{count:,} UDP frames of {size} bytes at {_spoken(rate)}", parameters)
        if size is not None:
            raise TrafficError("--size is for generated frames; a capture has its own sizes")
        if speed is not None and rate is not None:
            raise TrafficError("--speed keeps the timing of a capture and --rate replaces it: give one of them")
        frames, left_out = read_capture(capture)
        frames = frames[:count]
        parameters = {"file": str(capture), "left_out": left_out}
        if rate is not None:
            frames = at_rate([frame.data for frame in frames], *parse_rate(rate))
            parameters["rate"] = rate
            how = f"at {_spoken(rate)}"
        else:
            speed = 1.0 if speed is None else speed
            if not (math.isfinite(speed) and speed > 0):
                raise TrafficError(f"--speed takes a positive number, not {speed:g}")
            scale = 1 / Fraction(str(speed))
            frames = [Frame(frame.time_ns * scale, frame.data) for frame in frames]
            parameters["speed"] = speed
            how = "with its own timing" if speed == 1 else f"{speed:g} times as fast as recorded"
        return cls._described(frames, f"{len(frames):,} frames of {_place(capture)} {how}", parameters)

    @classmethod
    def _described(cls, frames: Sequence[Frame], description: str, parameters: dict[str, Any]) -> "Traffic":
        return cls(tuple(frames), description, {"description": description, **parameters})

    @property
    def sizes(self) -> list[int]:
        """Bytes of each frame, FCS included."""
        return [len(frame.data) + FCS_BYTES for frame in self.frames]


def _place(file: Path) -> str:
    """A file as people would name it: from here, if it lies below."""
    return os.path.relpath(file) if file.resolve().is_relative_to(Path.cwd()) else str(file)


def _spoken(rate: str) -> str:
    return "line rate" if rate.lower() == "line" else rate
