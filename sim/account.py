"""What has become of the packets of a run so far."""

from collections import Counter
from typing import Any

import numpy as np

from hw.nic.drop import DropReason
from sim.engine.engine import Engine
from sw.core import Note

__all__ = ["Account", "Frame"]

#: A frame as software knows it: number of its queue, and how many came before it there.
Frame = tuple[int, int]


class Account:
    """Joins what the software notes to what the card's log says. Frames of the card are to be kept by the engine.

    Attributes:
        delivered: handle of the operation that ended its way, of each packet an application got.
        sent: what each packet that was sent on became, by the software's word.
        dropped: reason, of each packet that software dropped.
        consumed: packets that were for the protocol alone.
        streams: what programs say of the byte streams they read.
        polls: calls of poll functions.
        dropped_by_card: reason, by packet id.
        written: packet id of each frame the card wrote to memory.
        left: tick at which the last bit of each frame that software gave to the card left.
    """

    def __init__(self, engine: Engine):
        self.delivered: dict[Frame, int] = {}
        self.sent: dict[Frame, Frame] = {}
        self.dropped: dict[Frame, str] = {}
        self.consumed: set[Frame] = set()
        self.streams: list[dict[str, Any]] = []
        self.polls = 0
        self.dropped_by_card: dict[int, str] = {}
        self.written: dict[Frame, int] = {}
        self.left: dict[Frame, int] = {}
        self._engine = engine
        self._events = self._frames = 0  # of the log and of what was transmitted, that have been looked at
        self._came: Counter[int] = Counter()  # frames by queue
        self._taken: dict[int, Frame] = {}  # by packet id
        self._went: Counter[int] = Counter()
        # Fields of these probes begin with packet and queue, or packet and reason
        self._drop_probes = self._probes("nic.", "drop")
        self._write_probes = self._probes("nic.rx.write_back", "")
        self._take_probes = self._probes("nic.tx.dma.descriptor_taken", "")

    def _probes(self, start: str, end: str) -> list[int]:
        probes = enumerate(self._engine.manifest.probes)
        return [number for number, probe in probes if probe.path.startswith(start) and probe.path.endswith(end)]

    @property
    def settled(self) -> int:
        """Packets that have come to their end, as far as the machine has been looked at."""
        by_software = len(self.delivered) + len(self.sent) + len(self.dropped) + len(self.consumed)
        return by_software + len(self.dropped_by_card)

    @property
    def all_left(self) -> bool:
        """Every frame that software sent has left the card."""
        return len(self.left) >= len(self.sent)

    def note(self, note: Note) -> None:
        """Take one note of the software."""
        if note.kind == "delivered":
            self.delivered[note.data["packet"]] = note.handle
        elif note.kind == "sent":
            self.sent[note.data["packet"]] = note.data["frame"]
        elif note.kind == "dropped":
            self.dropped[note.data["packet"]] = note.data["reason"]
        elif note.kind == "consumed":
            self.consumed.add(note.data["packet"])
        elif note.kind == "stream":
            self.streams.append(dict(note.data))
        elif note.kind == "poll":
            self.polls += 1

    def look(self) -> None:
        """Read what is new in the card's log."""
        log = self._engine.log(self._events)
        self._events += len(log)
        for packet, reason in _of(log, self._drop_probes):
            self.dropped_by_card[packet] = DropReason(reason).name.lower()
        for packet, queue in _of(log, self._write_probes):
            self.written[queue, self._came[queue]] = packet
            self._came[queue] += 1
        for packet, queue in _of(log, self._take_probes):
            if packet not in self._taken:  # a packet of several descriptors is told of several times
                self._taken[packet] = queue, self._went[queue]
                self._went[queue] += 1
        frames = self._engine.transmitted(self._frames)
        self._frames += len(frames)
        for tick, packet, _ in frames:
            if packet in self._taken:
                self.left[self._taken[packet]] = tick


def _of(log: np.ndarray, probes: list[int]) -> list[tuple[int, int]]:
    """The first two fields of the events of some probes."""
    return log["fields"][np.isin(log["probe"], probes)][:, :2].tolist() if len(log) else []
