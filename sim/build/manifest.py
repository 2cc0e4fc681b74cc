"""What a built machine offers to an engine: clocks, probes, counters, timers and the ports to reach them.

A manifest is plain data, stored as JSON beside what was built, so that an engine starts without Amaranth.
"""

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

__all__ = ["Counter", "Domain", "Field", "Layout", "Manifest", "Port", "Probe", "ProbeWord", "Timer"]


@dataclass(frozen=True)
class Field:
    """One field of a structure: ``width`` bits from bit ``offset`` up."""

    name: str
    offset: int
    width: int


@dataclass(frozen=True)
class Layout:
    """A structure as it lies in a port."""

    width: int
    fields: tuple[Field, ...]

    def pack(self, **values: int) -> int:
        """Build the port's value; fields not given are zero."""
        fields = {field.name: field for field in self.fields}
        word = 0
        for name, value in values.items():
            word |= (value & ((1 << fields[name].width) - 1)) << fields[name].offset
        return word

    def unpack(self, word: int) -> dict[str, int]:
        """Split the port's value into its fields."""
        return {f.name: word >> f.offset & ((1 << f.width) - 1) for f in self.fields}


@dataclass(frozen=True)
class Domain:
    """A clock domain; its number is its place in :attr:`Manifest.domains`."""

    name: str
    period: int  #: ticks; the clock rises at every multiple of it


@dataclass(frozen=True)
class Probe:
    """An event that can be logged; its number is its place in :attr:`Manifest.probes`."""

    path: str
    domain: int
    doc: str
    fields: tuple[tuple[str, int], ...]  #: name and width; their ports are ``probe_<number>_<name>``


@dataclass(frozen=True)
class ProbeWord:
    """A port with the ``valid`` of up to 64 consecutive probes of one domain, the first in bit 0."""

    port: str
    domain: int
    first: int  #: number of the probe in bit 0
    count: int


@dataclass(frozen=True)
class Counter:
    """A counter; its port is ``counter_<place in Manifest.counters>``."""

    path: str
    domain: int
    doc: str


@dataclass(frozen=True)
class Timer:
    """A timer; its ports are ``<port>_armed`` and ``<port>_deadline``."""

    path: str
    domain: int
    port: str
    background: bool  #: alone, it leads to nothing else


@dataclass(frozen=True)
class Port:
    """A port of the toplevel."""

    name: str
    width: int
    output: bool


@dataclass(frozen=True)
class Manifest:
    """Everything an engine knows of a machine."""

    name: str  #: of the machine
    ticks_per_second: int
    domains: tuple[Domain, ...]
    probes: tuple[Probe, ...]  #: by domain, then path: the order of the log within a tick
    probe_words: tuple[ProbeWord, ...]
    counters: tuple[Counter, ...]
    timers: tuple[Timer, ...]
    core_domains: tuple[int, ...]  #: domain of each core
    wire_domain: int
    #: Domain of the ports ``device_write_*``: writes to memory other than by a core's stores; -1 without them.
    device_domain: int
    operation: Layout
    completion: Layout
    interrupt: Layout
    frame_beat: Layout
    sent_beat: Layout  #: of ``wire_out_payload``; without fields when nothing is sent
    ports: tuple[Port, ...]

    @property
    def sends(self) -> bool:
        """Whether the card can send frames."""
        return bool(self.sent_beat.fields)

    def domain_number(self, name: str) -> int:
        """Number of a domain."""
        return [domain.name for domain in self.domains].index(name)

    def probe_number(self, path: str) -> int:
        """Number of a probe.

        Raises:
            KeyError: when the machine has no such probe.
        """
        for number, probe in enumerate(self.probes):
            if probe.path == path:
                return number
        raise KeyError(path)

    def to_json(self) -> str:
        """Write as JSON."""
        return json.dumps(dataclasses.asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> "Manifest":
        """Read what :meth:`to_json` wrote."""
        tree: dict[str, Any] = json.loads(text)
        for name, kind in (
            ("domains", Domain),
            ("probe_words", ProbeWord),
            ("counters", Counter),
            ("timers", Timer),
            ("ports", Port),
        ):
            tree[name] = tuple(kind(**item) for item in tree[name])
        tree["probes"] = tuple(
            Probe(**{**item, "fields": tuple((name, width) for name, width in item["fields"])})
            for item in tree["probes"]
        )
        tree["core_domains"] = tuple(tree["core_domains"])
        for name in ("operation", "completion", "interrupt", "frame_beat", "sent_beat"):
            layout = tree[name]
            tree[name] = Layout(layout["width"], tuple(Field(**field) for field in layout["fields"]))
        return cls(**tree)
