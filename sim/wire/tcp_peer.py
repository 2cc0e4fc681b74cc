"""A station that holds a TCP connection with the host."""

import ipaddress
import random
import struct
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

from .arp import ETHERTYPE_ARP, arp_reply
from .frames import CLIENT_IP, CLIENT_MAC, GENERATOR_PORT, HOST_IP, HOST_MAC
from .impairment import Impairment, Path
from .peer import Wire
from .tcp_endpoint import State, TcpEndpoint, Tuning
from .tcp_segment import Segment

__all__ = ["TcpPeer", "WireClock"]

#: First port of those that a station chooses by itself (RFC 6335 section 6).
EPHEMERAL_PORT = 49152


class WireClock:
    """Time on a wire, in ns, for an endpoint.

    Arguments:
        ticks_per_ns: of the wire's ticks.
    """

    def __init__(self, wire: Wire, ticks_per_ns: Fraction):
        self._wire, self._ticks_per_ns = wire, ticks_per_ns

    def now(self) -> int:
        """The time."""
        return int(self._wire.tick / self._ticks_per_ns)

    def after(self, ns: int, function: Callable[[], object]) -> int:
        """Have ``function()`` called in ``ns``."""
        return self._wire.after(ns, function)

    def cancel(self, call: int) -> bool:
        """Take back a call."""
        return self._wire.cancel(call)


class TcpPeer:
    """Connects to the host, writes what it is given at its times, closes, and keeps what comes back.

    It answers ARP requests for its address; other frames are left alone. Frames pass a network in each direction.

    Arguments:
        writes: ns after :meth:`start`, and the bytes of a write: a segment each, if the host takes such long ones.
        ticks_per_ns: of the wire's ticks.
        port: the host's.
        to_host, from_host: the network.
        seed: initial sequence number, and what the network does.
        closes: it closes when it has written everything.

    Attributes:
        endpoint: the connection.
        received: the byte stream of the host.
    """

    def __init__(
        self,
        writes: Sequence[tuple[Fraction | float, bytes]] = (),
        *,
        ticks_per_ns: Fraction,
        port: int = GENERATOR_PORT,
        to_host: Impairment = Impairment(),
        from_host: Impairment = Impairment(),
        tuning: Tuning = Tuning(),
        seed: int = 1,
        closes: bool = True,
        mac: bytes = CLIENT_MAC,
        ip: ipaddress.IPv4Address = CLIENT_IP,
    ):
        self.writes, self.closes = list(writes), closes
        self.mac, self.ip = mac, ip
        self.port, self.tuning = port, tuning
        self.received = bytearray()
        self.to_host, self.from_host = Path(to_host, f"{seed} to host"), Path(from_host, f"{seed} from host")
        self._ticks_per_ns = ticks_per_ns
        self._chance = random.Random(seed)
        self._identification = 0
        self._wire: Wire | None = None
        self._endpoint: TcpEndpoint | None = None
        self._written = 0
        self._began: Fraction | float = 0

    def connect(self, wire: Wire) -> None:
        """Take the wire."""
        self._wire = wire
        self._endpoint = TcpEndpoint(
            WireClock(wire, self._ticks_per_ns),
            self._transmit,
            port=EPHEMERAL_PORT,
            peer_port=self.port,
            iss=self._chance.randrange(1 << 32),
            tuning=self.tuning,
            on_data=self.received.extend,
        )

    @property
    def endpoint(self) -> TcpEndpoint:
        """The connection."""
        assert self._endpoint is not None, "the peer has no wire"
        return self._endpoint

    @property
    def finished(self) -> bool:
        """The connection has ended, from the peer's side (TIME_WAIT is not waited for)."""
        return self.endpoint.state in (State.CLOSED, State.TIME_WAIT)

    def start(self) -> None:
        """Connect. What is written at times before the connection is there waits for it."""
        self.endpoint.open()
        if not self.writes and self.closes:
            self.endpoint.close()
        self._began = self._now_ns()
        self._write_due()

    def frame(self, tick: int, data: bytes) -> None:
        """Take a frame of the host, when the network lets it through."""
        for delay in self.from_host.arrivals():
            self._after(delay, lambda: self._take(data))

    def _now_ns(self) -> Fraction:
        assert self._wire is not None, "the peer has no wire"
        return self._wire.tick / self._ticks_per_ns

    def _write_due(self) -> None:
        """Write what is due; come back for the rest."""
        while self._written < len(self.writes):
            time_ns, data = self.writes[self._written]
            early = self._began + time_ns - self._now_ns()
            if early > 0:
                self._after(early, self._write_due)
                return
            if self.endpoint.state is State.CLOSED:
                return
            self._written += 1
            self.endpoint.write(data)
        if self.closes:
            self.endpoint.close()

    def _take(self, data: bytes) -> None:
        if data[12:14] == struct.pack(">H", ETHERTYPE_ARP):
            reply = arp_reply(data, self.mac, self.ip.packed)
            if reply is not None:
                self._send(reply)
            return
        found = Segment.of(data)
        if found is None or data[:6] != self.mac or found[1] != self.ip.packed or found[2].port != EPHEMERAL_PORT:
            return
        self.endpoint.segment(found[2])

    def _transmit(self, segment: Segment) -> None:
        self._identification += 1
        source, destination = (self.mac, self.ip.packed), (HOST_MAC, HOST_IP.packed)
        self._send(segment.frame(source, destination, self._identification))

    def _send(self, frame: bytes) -> None:
        assert self._wire is not None, "the peer has no wire"
        for delay in self.to_host.arrivals():
            self._wire.send(frame, delay)

    def _after(self, delay_ns: Fraction | float, function: Callable[[], Any]) -> None:
        if not delay_ns:
            function()
            return
        assert self._wire is not None, "the peer has no wire"
        self._wire.after(delay_ns, function)
