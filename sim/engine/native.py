"""The native engine: Verilator's model and a C++ loop in this process."""

import gc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sim.build.native import NativeBuild
from sim.observe.log import LOG_DTYPE, log_sha256
from sw.issue import Charge

from .engine import (
    OPERATION_DTYPE,
    CoherenceError,
    EngineError,
    Experiment,
    Jump,
    PageFaultError,
    Recording,
    Wake,
    WakeKind,
)

__all__ = ["NativeEngine"]


class NativeEngine:
    """See :class:`sim.engine.engine.Engine`.

    Arguments:
        build: the compiled machine.
        jump: which permitted jumps to take.
        seed: of the choice of jumps.
        record: keep what is handed over, for :meth:`recording`.
        profile: time every step; see :meth:`edge_costs`.
        waves: FST file to write, in picoseconds of simulated time (rounded down); needs a build with waves.
    """

    def __init__(
        self,
        build: NativeBuild,
        *,
        jump: Jump = Jump.ALL,
        seed: int = 0,
        record: bool = False,
        profile: bool = False,
        waves: Path | None = None,
    ):
        self.manifest = build.manifest
        self._loop: Any = build.load().Loop(
            wake=Wake,
            kinds=list(WakeKind),
            engine_error=EngineError,
            coherence_error=CoherenceError,
            page_fault_error=PageFaultError,
            jump=int(jump),
            seed=seed,
            record=record,
            profile=profile,
            waves=str(waves) if waves is not None else "",
        )
        # Called once per operation: no Python in between.
        self.push = self._loop.push
        self.push_frame = self._loop.push_frame
        self.call_at = self._loop.call_at
        self.cancel_call = self._loop.cancel_call
        self.new_context = self._loop.new_context
        self.free_context = self._loop.free_context
        self.switch = getattr(self._loop, "switch")  # noqa: B009

    async def run(self, until: int | None = None) -> Sequence[Wake]:
        """Run until at least one reason to wake, or until tick ``until``. Never suspends."""
        return self._loop.run(until)

    def run_now(self, until: int | None = None) -> Sequence[Wake]:
        """:meth:`run` for callers that are no coroutines."""
        return self._loop.run(until)

    def on_transmit(self, callback: Callable[[int, int, bytes], object] | None) -> None:
        """Have ``callback(tick, packet, frame)`` called for each frame that the card sends."""
        self._loop.on_transmit(callback)

    def keep_transmitted(self) -> None:
        """Keep the frames that the card sends, for :meth:`transmitted`."""
        self._loop.keep_transmitted()

    def transmitted(self, since: int = 0) -> list[tuple[int, int, bytes]]:
        """Tick, packet and bytes of each frame sent so far, from the one of that number on."""
        return self._loop.transmitted(since)

    def issuer(self, costs: dict[str, Charge], functions: list[str]) -> Any:
        """What ``sw.issue.Issuer`` does, in C++."""
        return self._loop.issuer(costs, functions)

    def take_tags(self) -> bytes:
        """Tags that issuers gave since the last call, 16 bits each."""
        return self._loop.take_tags()

    def run_coroutines(
        self,
        until: int | None,
        contexts: dict[int, Any],
        settle: Callable[[Any, bool, Any], None],
        stop: Callable[[], bool] | None,
        notes: list | None,
    ) -> Sequence[Wake]:
        """:meth:`run`, resuming each coroutine whose operation completes, for ``sw.core.Dispatcher``.

        Returns wakes of other kinds, or none when ``stop`` says so.

        Arguments:
            contexts: ``sw.core.Context`` by number.
            settle: called with the context, whether its coroutine has finished and what it wants, if that is not a
                handle.
            notes: ask ``stop`` only when this list has grown; ``None``: after every wake.
        """
        return self._loop.run_coroutines(until, contexts, settle, stop, notes)

    def execute(self, experiment: Experiment) -> Any:
        """Run ``await experiment(engine)`` to its end and return its result."""
        coroutine: Any = experiment(self)
        # Looking for cycles among what lives takes a noticeable part of the time; software makes none.
        collecting = gc.isenabled()
        gc.disable()
        try:
            coroutine.send(None)
        except StopIteration as stop:
            return stop.value
        finally:
            if collecting:
                gc.enable()
        coroutine.close()
        raise RuntimeError("an experiment may await nothing but its engine")

    def replay(self, recording: Recording) -> float:
        """Hand over what was recorded, without Python, up to the recorded end; the engine must be fresh.

        Returns:
            Seconds it took.
        """
        return self._loop.replay(recording.operations.tobytes(), list(recording.frames), recording.end)

    @property
    def tick(self) -> int:
        """Simulated time."""
        return self._loop.tick

    def cycles(self) -> dict[str, int]:
        """Edges of each domain so far, skipped ones included."""
        return self._by_domain(self._loop.cycles())

    def executed(self) -> dict[str, int]:
        """Edges of each domain that were executed."""
        return self._by_domain(self._loop.executed())

    def edge_costs(self) -> dict[str, tuple[int, float]]:
        """With ``profile``: per domain, steps that executed an edge of it alone, and the seconds they took."""
        return self._by_domain(self._loop.edge_costs())

    def log(self, since: int = 0) -> np.ndarray:
        """The events so far, from the one of that number on."""
        return np.frombuffer(self._loop.log(since), LOG_DTYPE)

    def log_sha256(self) -> str:
        """Digest of :meth:`log`."""
        return log_sha256(self.log())

    def counters(self) -> dict[str, int]:
        """Values of the machine's counters."""
        paths = (counter.path for counter in self.manifest.counters)
        return dict(zip(paths, self._loop.counters(), strict=True))

    def issued(self, core: int) -> np.ndarray:
        """Handles of the operations of ``core`` in the order in which they issued."""
        return np.frombuffer(self._loop.issued(core), "<i8")

    def issued_cycles(self, core: int) -> np.ndarray:
        """What each issue asked to compute."""
        return np.frombuffer(self._loop.issued_cycles(core), "<u4")

    def recording(self) -> Recording:
        """What was handed over so far."""
        operations, frames, end = self._loop.recording()
        return Recording(np.frombuffer(operations, OPERATION_DTYPE), tuple(frames), end)

    def close(self) -> None:
        """Finish the waves and let go of callbacks."""
        self._loop.close()

    def _by_domain(self, values: list) -> dict[str, Any]:
        return dict(zip((domain.name for domain in self.manifest.domains), values, strict=True))
