"""The event log: every event of every probe of a run, ordered by (tick, domain, probe)."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from sim.build.manifest import Manifest, Probe

__all__ = ["LOG_DTYPE", "Event", "EventLog", "log_sha256"]

#: One event: tick, number of the probe (see ``Manifest.probes``), the probe's fields in order, the rest zero.
LOG_DTYPE = np.dtype([("tick", "<u8"), ("probe", "<u8"), ("fields", "<u8", (4,))])


def log_sha256(log: np.ndarray) -> str:
    """The digest of a log: SHA-256 of its rows, little-endian, hexadecimal."""
    if log.dtype != LOG_DTYPE:
        raise ValueError(f"a log has rows of {LOG_DTYPE}, not {log.dtype}")
    return hashlib.sha256(np.ascontiguousarray(log).tobytes()).hexdigest()


@dataclass(frozen=True)
class Event:
    """One event, decoded."""

    tick: int
    cycle: int  #: edge of the probe's domain
    path: str
    fields: dict[str, int]


class EventLog:
    """A log together with the manifest that says what its numbers mean."""

    def __init__(self, manifest: Manifest, log: np.ndarray):
        self.manifest = manifest
        self.log = log

    def __len__(self) -> int:
        return len(self.log)

    def __iter__(self) -> Iterator[Event]:
        for tick, number, fields in self.log.tolist():
            probe = self.manifest.probes[number]
            names = (name for name, _ in probe.fields)
            yield Event(tick, tick // self._period(probe), probe.path, dict(zip(names, fields, strict=False)))

    def select(self, path: str) -> np.ndarray:
        """The events of one probe, as a structured array of ``tick``, ``cycle`` and the probe's fields.

        Raises:
            KeyError: when the machine has no such probe.
        """
        number = self.manifest.probe_number(path)
        probe = self.manifest.probes[number]
        rows = self.log[self.log["probe"] == number]
        names = ["tick", "cycle", *(name for name, _ in probe.fields)]
        result = np.empty(len(rows), np.dtype([(name, "<u8") for name in names]))
        result["tick"] = rows["tick"]
        result["cycle"] = rows["tick"] // self._period(probe)
        for place, (name, _) in enumerate(probe.fields):
            result[name] = rows["fields"][:, place]
        return result

    def sha256(self) -> str:
        """The digest of the log."""
        return log_sha256(self.log)

    def _period(self, probe: Probe) -> int:
        return self.manifest.domains[probe.domain].period
