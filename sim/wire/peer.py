"""The other end of the card's wire: whatever answers what the card sends."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol

from sim.engine.engine import Engine

from .capture import Captured, Direction
from .frames import FCS_BYTES, HEADER_BYTES_ETHERNET, LEAST_FRAME_BYTES, with_fcs

__all__ = ["Passed", "Peer", "Wire"]

#: Bytes of the longest frame that an engine takes, without FCS.
MOST_BYTES = 65_535 - FCS_BYTES


class Peer(Protocol):
    """A station at the far end. Simulated time stands still while it decides."""

    def connect(self, wire: "Wire") -> None:
        """Take the wire to send on; called once, before anything happens."""

    def frame(self, tick: int, data: bytes) -> None:
        """Take a frame (destination address to last byte before the FCS) of which the last bit arrives at ``tick``."""


@dataclass(frozen=True)
class Passed:
    """A frame that passed the card's port."""

    #: Out of the card: when its last bit left. Into it: when the first bit of its preamble was there; it waits where
    #: it is while the card still takes an earlier frame.
    tick: int
    packet: int  #: into the card: as it was sent, see :meth:`Wire.send`; out of it: as the card counts
    data: bytes  #: without FCS
    outbound: bool  #: out of the card
    damage: str = ""  #: why the peer's MAC threw it away


class Wire:
    """Joins an engine to a peer, before the engine runs.

    A frame takes ``propagation_ns`` from one end to the other. Of what the peer sends the card sees the first bit after
    that; the peer takes a frame when all of it is there, as a network card does that puts it into memory.

    Frames for the card are merged by the times at which they are there. What somebody else hands to the engine ahead of
    its time holds up the peer's frames behind it: other traffic of the same wire should be given to it as well.

    Frames with a wrong FCS, and shorter ones than IEEE 802.3 has (section 4.2.4.1), do not get past the peer's MAC.

    Arguments:
        engine: what runs the card; nobody else may listen to what it sends.
        peer: the other end.
        propagation_ns: about 5 ns for each metre.
        first_packet: id of the first frame that is sent without one; the next ones follow.
    """

    def __init__(self, engine: Engine, peer: Peer, *, propagation_ns: Fraction | float, first_packet: int = 1):
        if propagation_ns < 0:
            raise ValueError(f"a frame cannot arrive {-propagation_ns} ns before it is sent")
        self.passed: list[Passed] = []  #: both ways, in the order in which they passed
        self.damaged = 0  #: frames of the card that did not get past the peer's MAC
        self._engine = engine
        self._peer = peer
        self._ticks_per_ns = Fraction(engine.manifest.ticks_per_second, 10**9)
        self._nic_period = engine.manifest.domains[engine.manifest.wire_domain].period
        self._propagation = self._ticks(propagation_ns)
        self._next_packet = first_packet
        engine.on_transmit(self._left)
        peer.connect(self)

    @property
    def tick(self) -> int:
        """Simulated time."""
        return self._engine.tick

    def send(self, data: bytes, delay_ns: Fraction | float = 0, packet: int | None = None) -> None:
        """Send a frame to the card.

        Arguments:
            data: destination address to the last byte before padding and FCS, which are added.
            delay_ns: from now; its first bit leaves then.
            packet: its id; by default the next one, in the order in which frames come to the card.

        Raises:
            ValueError: when it is no Ethernet frame, or would have been sent before now.
        """
        if not HEADER_BYTES_ETHERNET <= len(data) <= MOST_BYTES:
            raise ValueError(f"a frame has {HEADER_BYTES_ETHERNET} to {MOST_BYTES} bytes without FCS, not {len(data)}")
        padded = data.ljust(LEAST_FRAME_BYTES - FCS_BYTES, b"\0")
        self._in(self._propagation + self._ticks(delay_ns), lambda: self._arrive(padded, packet))

    def after(self, delay_ns: Fraction | float, function: Callable[[], object]) -> int:
        """Have ``function()`` called after a time, at the next tick at the earliest; returns what :meth:`cancel` takes.

        Raises:
            ValueError: for a time before now.
        """
        return self._engine.call_at(self.tick + max(self._ticks(delay_ns), 1), function)

    def cancel(self, call: int) -> bool:
        """Take back a call; false if it has been made."""
        return self._engine.cancel_call(call)

    def captured(self) -> Iterator[Captured]:
        """What passed, for :func:`sim.wire.capture.write_capture`."""
        for frame in self.passed:
            yield Captured(
                frame.tick / self._ticks_per_ns,
                frame.data,
                f"packet {frame.packet} {'from' if frame.outbound else 'to'} the card"
                + (f": {frame.damage}" if frame.damage else ""),
                Direction.OUTBOUND if frame.outbound else Direction.INBOUND,
            )

    def _ticks(self, ns: Fraction | float) -> int:
        """A time in whole ticks, rounded up."""
        if ns < 0:
            raise ValueError(f"{-ns} ns ago is too late")
        return -int(-Fraction(ns) * self._ticks_per_ns // 1)

    def _in(self, ticks: int, function: Callable[[], object]) -> None:
        if ticks:
            self._engine.call_at(self.tick + ticks, function)
        else:
            function()

    def _arrive(self, data: bytes, packet: int | None) -> None:
        """The first bit of a frame of the peer is at the card."""
        if packet is None:
            packet, self._next_packet = self._next_packet, self._next_packet + 1
        self.passed.append(Passed(self.tick, packet, data, outbound=False))
        self._engine.push_frame(with_fcs(data), packet, -(-self.tick // self._nic_period))

    def _left(self, tick: int, packet: int, frame: bytes) -> None:
        """The last bit of a frame of the card has left."""
        data, damage = frame[:-FCS_BYTES], ""
        if len(frame) < LEAST_FRAME_BYTES:
            damage = f"{len(frame)} bytes are no frame"
        elif with_fcs(data) != frame:
            damage = "wrong FCS"
        self.passed.append(Passed(tick, packet, data, outbound=True, damage=damage))
        if damage:
            self.damaged += 1
        else:
            self._in(self._propagation, lambda: self._peer.frame(self.tick, data))
