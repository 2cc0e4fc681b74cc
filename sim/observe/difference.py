"""Where two runs that should be one part ways."""

import numpy as np

from sim.build.manifest import Manifest

from .log import Event, EventLog

__all__ = ["first_difference"]


def first_difference(manifest: Manifest, first: np.ndarray, second: np.ndarray) -> str | None:
    """Describe the first event in which two logs of one machine differ: tick, probe and fields in both.

    None when the logs are equal.
    """
    common = min(len(first), len(second))
    differing = np.flatnonzero(first[:common] != second[:common])
    if not len(differing) and len(first) == len(second):
        return None
    at = int(differing[0]) if len(differing) else common
    told = [_told(manifest, log, at) for log in (first, second)]
    return f"logs of {len(first)} and {len(second)} events differ first in event {at}: {told[0]} against {told[1]}"


def _told(manifest: Manifest, log: np.ndarray, at: int) -> str:
    if at >= len(log):
        return "the end of the log"
    event: Event = next(iter(EventLog(manifest, log[at : at + 1])))
    fields = ", ".join(f"{name}={value:#x}" for name, value in event.fields.items())
    return f"tick {event.tick} (cycle {event.cycle}) {event.path}({fields})"
