"""The protocol of the engines, and what they share.

**Schedule.** Domain d has an edge at every multiple of its period from tick 0. At each step the engine takes the
earliest tick at which a domain that must run has an edge. A domain must run when its ``quiet`` is low, when the host
has something that can be handed over to it, or, if quiet, at the edge whose number is the deadline of an armed timer.
All clocks that rise at a tick rise in one assignment. What the machine shows just before an edge happens at that edge.

**Shadow.** An engine keeps a copy of memory (``sim.engine.shadow``), gives each LOAD its value from it when it
issues, and checks against it what the machine reads. Within a tick come first all cores' issues and reads, then all
that becomes visible.

**Wakes.** A run ends with the first step that gives a reason (``sw.port.WakeKind``). The reasons of one step are
told together: per core COMPLETION (of what issues, then of what completes), then INTERRUPT; then EMPTY per core, but
not for a context that has a COMPLETION in the same batch. IDLE comes when every domain is quiet, no timer other than
background ones is armed, nothing can be handed over and no call is to be made. Nothing that Python does between two
runs takes simulated time.

**The world outside.** Whoever sends to the card and receives from it is no part of the machine: it is called while
simulated time stands still, within a run, and answers by ``push_frame`` and ``call_at``, nothing else. What it is told
is a matter of edges and ticks alone, so what it sends is the same on every engine and with any jumps; recordings hold
it, and a replay calls nobody. Calls for a tick come first, then the edges of that tick, then the call for a frame that
has left at them.
"""

import enum
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from sim.build.manifest import Manifest
from sw.port import CorePort, Notify, Wake, WakeKind

__all__ = [
    "OPERATION_DTYPE",
    "CoherenceError",
    "Engine",
    "EngineError",
    "Experiment",
    "Jump",
    "Notify",
    "PageFaultError",
    "Recording",
    "Wake",
    "WakeKind",
]


class EngineError(RuntimeError):
    """The machine did what it may not; the message is one line. The run cannot go on."""


class CoherenceError(EngineError):
    """What the machine read or made visible does not agree with the engine's shadow of memory."""


class PageFaultError(EngineError):
    """An operation addresses a page that is not present, or a physical address at which there is no memory."""


class Jump(enum.IntEnum):
    """Which of the permitted jumps an engine takes. No result may depend on it."""

    OFF = 0  #: none: every edge of every clock is executed
    ALL = 1  #: all, as far as they go
    RANDOM = 2  #: some, some of them only in part, by the engine's seed


#: An operation as it is recorded; native.cpp has the same, padding included.
OPERATION_DTYPE = np.dtype(
    [
        ("not_before", "<i8"),  # handed over at an edge later than this tick
        ("handle", "<i8"),
        ("after", "<i8"),
        ("address", "<u8"),
        ("cycles", "<u4"),
        ("context", "<i4"),
        ("uops", "<u2"),
        ("argument", "<u2"),
        ("kind", "u1"),
        ("size", "u1"),
        ("notify", "u1"),
        ("core", "u1"),
        ("after_valid", "u1"),
        ("after_id", "u1"),
        ("data", "u1", (64,)),
    ],
    align=True,
)


@dataclass(frozen=True)
class Recording:
    """What the host handed to a machine: enough to run it again without the software.

    ``not_before`` is the tick at which software had pushed the operation, was switched to it, and it had nothing to
    wait for outside the RTL. Simulated time stands still while software decides, so handing each operation over at
    the first edge after that tick at which the core is ready repeats the run exactly.
    """

    operations: np.ndarray  #: of OPERATION_DTYPE, in the order in which they were handed over
    frames: tuple[tuple[int, bytes, int, int], ...]  #: tick after which, frame, packet, start
    end: int  #: tick of the last step

    def save(self, path: Path) -> None:
        """Write to a file (NumPy's ``.npz``)."""
        data = b"".join(frame for _, frame, _, _ in self.frames)
        table = np.array([(t, len(f), p, s) for t, f, p, s in self.frames], dtype="<i8").reshape(-1, 4)
        with open(path, "wb") as file:
            np.savez_compressed(
                file, operations=self.operations, frames=table, data=np.frombuffer(data, "u1"), end=self.end
            )

    @classmethod
    def load(cls, path: Path) -> "Recording":
        """Read what :meth:`save` wrote."""
        with np.load(path) as stored:
            data, at, frames = stored["data"].tobytes(), 0, []
            for tick, size, packet, start in stored["frames"].tolist():
                frames.append((tick, data[at : at + size], packet, start))
                at += size
            return cls(stored["operations"], tuple(frames), int(stored["end"]))


class Engine(CorePort, Protocol):
    """A machine that runs. Made fresh for each run; nothing resets it."""

    manifest: Manifest

    def push_frame(self, data: bytes, packet: int, start: int) -> None:
        """Queue a frame for the wire.

        Arguments:
            data: the frame, FCS included, 1 to 65535 bytes.
            packet: its id, counted from 1.
            start: cycle of the card's clock before which its preamble may not start; not earlier than the present one,
                ``tick`` divided by the card's period.

        Frames are handed over in the order in which they are pushed, each one as soon as the wire takes it: the first
        beat at the first edge of the card's clock later than ``tick`` (pushed by what ``call_at`` calls: at or after
        it) at which the wire is ready and no earlier frame is left. One that waits for its start holds up those
        behind it.

        Raises:
            ValueError: when the card cannot take it, or it starts in the past.
        """

    def on_transmit(self, callback: Callable[[int, int, bytes], object] | None) -> None:
        """Have ``callback(tick, packet, frame)`` called for each frame that the card sends (FCS included).

        It is called when the last beat has left, after all edges of that tick and before software is woken.
        An exception it raises ends the run, which raises it, and closes the engine; it may not run the engine. Must be
        set before the first edge. Without a callback, and if they are not kept, frames are not gathered.
        """

    def keep_transmitted(self) -> None:
        """Keep the frames that the card sends, for :meth:`transmitted`; before the first edge."""

    def transmitted(self, since: int = 0) -> list[tuple[int, int, bytes]]:
        """Tick at which its last beat left, packet and bytes (FCS included) of each frame sent so far.

        Arguments:
            since: the first ones that are left out.

        Raises:
            ValueError: when they were not kept.
        """

    def call_at(self, tick: int, function: Callable[[], object]) -> int:
        """Have ``function()`` called when simulated time reaches ``tick``, before the edges of that tick.

        Calls for one tick are made in the order in which they were asked for. A call still to be made keeps the engine
        from IDLE. Exceptions as for :meth:`on_transmit`.

        Arguments:
            tick: later than the present one (before the first edge: 0 or later).

        Returns:
            A number for :meth:`cancel_call`.

        Raises:
            ValueError: when the tick has passed.
        """

    def cancel_call(self, call: int) -> bool:
        """Take back a call; false if there is none of that number to be made."""

    def cycles(self) -> dict[str, int]:
        """Edges of each domain so far, skipped ones included."""

    def executed(self) -> dict[str, int]:
        """Edges of each domain that were executed."""

    def log(self, since: int = 0) -> np.ndarray:
        """The events so far, of ``sim.observe.log.LOG_DTYPE``, ordered by (tick, domain, probe).

        Arguments:
            since: the first ones that are left out.
        """

    def log_sha256(self) -> str:
        """Digest of :meth:`log`."""

    def counters(self) -> dict[str, int]:
        """Values of the machine's counters."""

    def issued(self, core: int) -> np.ndarray:
        """Handles of the operations of a core in the order in which they issued, one per issue.

        An EXECUTE or POLL that an interrupt cut short issues once for each part, under one handle.
        """

    def issued_cycles(self, core: int) -> np.ndarray:
        """Cycles that each of :meth:`issued` asked to compute: those of an EXECUTE, or what was left of it; else 0."""

    def recording(self) -> Recording:
        """What was handed over so far.

        Raises:
            ValueError: when the engine was not made with ``record``.
        """

    def close(self) -> None:
        """Finish files and let go of callbacks."""


#: What runs on an engine. It awaits ``engine.run()`` and nothing else.
Experiment = Callable[[Any], Awaitable[Any]]
