"""What a run puts on the wire: frames at their times, or a peer that speaks with the host."""

import zlib
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, Protocol

from sim.engine.engine import Engine

from .frames import CLIENT_IP, CLIENT_MAC, FCS_BYTES, neighbours_in
from .peer import Wire
from .tcp_endpoint import Tuning
from .tcp_peer import TcpPeer
from .tcp_segment import TCP_FRAME_HEADER_BYTES

__all__ = ["Conversation", "Offered", "Replay"]

#: Time of a frame from one end of the cable to the other: ten metres.
PROPAGATION_NS = 50


class Offered(Protocol):
    """Where the frames of a run come from. It is made before the engine runs."""

    neighbours: Mapping[bytes, bytes]  #: MAC address of each station the host may answer, by IPv4 address
    patience_ns: int  #: a run ends when nothing has become of any frame for so long

    def start(self) -> None:
        """Begin, at the present time."""

    @property
    def frames(self) -> Sequence[bytes]:
        """What has come to the card so far or will, in order of packet id, without FCS."""

    @property
    def last_tick(self) -> int:
        """No frame begins after that, if that is known; else the last one that has begun."""

    @property
    def over(self) -> bool:
        """No frame will come that is not in :attr:`frames`."""

    def summary(self) -> dict[str, Any]:
        """What the other end has to say when the run is over."""


class Replay:
    """Frames at their times, whatever the host does.

    Arguments:
        frames: start in ns after :meth:`start`, and bytes with FCS, in order of packet id.
    """

    #: Nothing becomes of a packet so much later than the last one arrived.
    patience_ns = 2_000_000

    def __init__(self, engine: Engine, frames: Sequence[tuple[Fraction, bytes]], ticks_per_ns: Fraction, period: int):
        self._engine, self._timed, self._ticks_per_ns, self._nic_period = engine, frames, ticks_per_ns, period
        self.neighbours: Mapping[bytes, bytes] = neighbours_in(data for _, data in frames)
        self.frames: Sequence[bytes] = [data[:-FCS_BYTES] for _, data in frames]
        self.last_tick = 0
        self.over = True

    def start(self) -> None:
        """Hand all frames to the engine, each with its time."""
        ready = self._engine.tick
        ticks, ns = self._ticks_per_ns.as_integer_ratio()
        for packet, (time_ns, data) in enumerate(self._timed, 1):
            # (ready + time_ns * ticks_per_ns) / nic_period, rounded up, in integers: many fractions take long.
            whole, parts = time_ns.as_integer_ratio()
            divisor = ns * parts
            start = -(-(ready * divisor + whole * ticks) // (divisor * self._nic_period)) + 1
            self._engine.push_frame(data, packet, start)
        self.last_tick = ready + int(max(time_ns for time_ns, _ in self._timed) * self._ticks_per_ns)

    def summary(self) -> dict[str, Any]:
        """Nobody is there."""
        return {}


class Conversation:
    """A TCP connection that a peer opens, writes on at the times of frames, and closes.

    What a frame carries behind as many bytes as TCP's headers have is what is written at its time, at least a byte; so
    each write becomes a segment in a frame of the same size, as far as the windows allow.

    Arguments:
        frames: time in ns after :meth:`start`, and bytes with FCS.
        seed: of the peer's choices.
    """

    neighbours: Mapping[bytes, bytes] = {CLIENT_IP.packed: CLIENT_MAC}
    #: A retransmission time-out is waited for.
    patience_ns = 250_000_000

    def __init__(self, engine: Engine, frames: Sequence[tuple[Fraction, bytes]], ticks_per_ns: Fraction, seed: int = 1):
        writes = [(time_ns, data[TCP_FRAME_HEADER_BYTES:-FCS_BYTES] or b"\0") for time_ns, data in frames]
        self._sent = b"".join(data for _, data in writes)
        tuning = Tuning(sends_most=max(len(data) for _, data in writes))
        self.peer = TcpPeer(writes, ticks_per_ns=ticks_per_ns, seed=seed, tuning=tuning)
        self.wire = Wire(engine, self.peer, propagation_ns=PROPAGATION_NS)

    def start(self) -> None:
        """Connect."""
        self.peer.start()

    @property
    def frames(self) -> Sequence[bytes]:
        """What has come to the card so far."""
        return [passed.data for passed in self.wire.passed if not passed.outbound]

    @property
    def last_tick(self) -> int:
        """When the last frame so far began."""
        return max((passed.tick for passed in self.wire.passed if not passed.outbound), default=0)

    @property
    def over(self) -> bool:
        """The connection has ended."""
        return self.peer.finished

    def summary(self) -> dict[str, Any]:
        """The connection as the peer saw it."""
        end = self.peer.endpoint
        return {
            "state": end.state.name,
            "error": end.error,
            "written_bytes": len(self._sent),
            "written_crc32": zlib.crc32(self._sent),
            "received_bytes": len(self.peer.received),
            "received_crc32": zlib.crc32(self.peer.received),
            "retransmissions": end.retransmissions,
            "timeouts": end.timeouts,
            "fast_retransmits": end.fast_retransmits,
        }
