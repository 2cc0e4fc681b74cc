"""What the recorded machine is sent: frames for each recording, and the far end of a TCP connection."""

import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.l2 import Ether

__all__ = ["CARDS", "PROGRAMS", "SCENARIOS", "Link", "Scenario"]

#: Network cards of the machine, as QEMU calls them.
CARDS = {0: "e1000", 1: "e1000e"}

_SINK, _ECHO, _BUSY, _RAWDROP = 9, 7, 10, 99
_STREAM, _STREAM_ECHO = 9, 7

#: Programs of the machine (guest_programs.c), and their arguments.
PROGRAMS = (
    f"sink {_SINK}",
    f"echo {_ECHO}",
    f"sink {_BUSY} 20000",
    f"stream {_STREAM}",
    f"stream {_STREAM_ECHO} echo",
    f"rawdrop {_RAWDROP}",
)

#: Bytes of TCP in a frame of 1514 bytes, with time stamps.
_SEGMENT = 1448
_NO_OPERATION = ("NOP", None)


@dataclass
class Link:
    """The wire to one card: makes frames for it, takes in what comes from it."""

    card: int
    receive: socket.socket

    def frame(self, above: IP) -> bytes:
        """An Ethernet frame to the card's machine."""
        above.src, above.dst = f"10.0.{self.card}.1", f"10.0.{self.card}.2"
        return bytes(Ether(dst=f"02:00:00:00:00:0{self.card}", src="02:00:00:00:01:00") / above)

    def udp(self, port: int, size: int = 18) -> bytes:
        """A UDP frame of ``size`` bytes of payload."""
        return self.frame(IP() / UDP(sport=1000, dport=port) / bytes(size))

    def drain(self) -> Iterator[Ether]:
        """What the machine has sent until now."""
        self.receive.setblocking(False)
        try:
            while True:
                yield Ether(self.receive.recv(65536))
        except BlockingIOError:
            return


@dataclass
class _Peer:
    """The far end of a TCP connection; what it sends arrives."""

    link: Link
    port: int
    own_port: int
    sequence: int = 1000
    acknowledged: int = 0
    echo: int = 0  #: the machine's last time stamp
    time: int = field(default=1_000_000)

    def segment(self, flags: str, payload: bytes = b"", options: Sequence[tuple] = ()) -> bytes:
        """The next segment."""
        self.time += 1
        stamped = [*options, *(() if options else [_NO_OPERATION] * 2), ("Timestamp", (self.time, self.echo))]
        header = TCP(
            sport=self.own_port,
            dport=self.port,
            flags=flags,
            seq=self.sequence,
            ack=self.acknowledged if "A" in flags else 0,
            window=65535,
            options=stamped,
        )
        self.sequence += len(payload) + ("S" in flags)
        return self.link.frame(IP(id=self.time & 0xFFFF, flags="DF") / header / payload)

    def listen(self) -> None:
        """Take in what the machine has sent."""
        for frame in self.link.drain():
            if TCP not in frame or frame[TCP].sport != self.port or frame[TCP].dport != self.own_port:
                continue
            segment = frame[TCP]
            length = frame[IP].len - 4 * frame[IP].ihl - 4 * segment.dataofs
            self.acknowledged = segment.seq + length + ("S" in segment.flags)
            self.echo = dict(segment.options).get("Timestamp", (self.echo,))[0]


def _udp(port: int, bursts: Sequence[int]) -> Callable[[Link], Iterator[list[bytes]]]:
    def frames(link: Link) -> Iterator[list[bytes]]:
        for burst in bursts:
            yield [link.udp(port)] * burst

    return frames


def _raw_drop(bursts: Sequence[int]) -> Callable[[Link], Iterator[list[bytes]]]:
    """The first packet has the rule added; from then on all are dropped."""

    def frames(link: Link) -> Iterator[list[bytes]]:
        yield [link.udp(_RAWDROP)]
        for _ in range(8):
            yield []
        yield from _udp(_SINK, bursts)(link)

    return frames


def _tcp(port: int, own_port: int, bursts: Sequence[int], size: int) -> Callable[[Link], Iterator[list[bytes]]]:
    def frames(link: Link) -> Iterator[list[bytes]]:
        peer = _Peer(link, port, own_port)
        list(link.drain())
        yield [peer.segment("S", options=(("MSS", 1460), ("SAckOK", b""), ("WScale", 7), _NO_OPERATION))]
        peer.listen()
        yield [peer.segment("A")]
        for burst in bursts:
            peer.listen()
            yield [peer.segment("PA" if last == burst - 1 else "A", bytes(size)) for last in range(burst)]
        peer.listen()
        yield [peer.segment("FA")]

    return frames


@dataclass(frozen=True)
class Scenario:
    """One recording of each card: what arrives together, again and again, and the seconds between."""

    frames: Callable[[Link], Iterator[list[bytes]]]
    seconds: float
    cards: Sequence[int] = tuple(CARDS)
    patches: bool = False  #: the kernel changes its own code (static branches): it is saved anew


#: By name; the first warms up, the last takes all UDP away.
SCENARIOS = {
    "warm": Scenario(_udp(_SINK, [8] * 4), 0.2),
    "single": Scenario(_udp(_SINK, [1] * 40), 0.1),
    "burst": Scenario(_udp(_SINK, [32] * 8), 0.3),
    "echowarm": Scenario(_udp(_ECHO, [8] * 4), 0.2),
    "echo": Scenario(_udp(_ECHO, [1] * 20), 0.1),
    "echoburst": Scenario(_udp(_ECHO, [16] * 8), 0.3),
    "busy": Scenario(_udp(_BUSY, [1] * 20), 0.1, (1,)),
    "stream": Scenario(_tcp(_STREAM, 2001, [1] * 40, _SEGMENT), 0.1),
    "streamburst": Scenario(_tcp(_STREAM, 2002, [8] * 16, _SEGMENT), 0.2),
    "streamecho": Scenario(_tcp(_STREAM_ECHO, 2003, [1] * 40, 64), 0.1),
    "rawdrop": Scenario(_raw_drop([32] * 8), 0.3, patches=True),
}
