"""Gathers probes, counters and timers from a tree of components."""

from collections.abc import Iterator
from typing import Any

from amaranth.hdl import Elaboratable

from .probe import Counter, Probe
from .time import Timer

__all__ = ["collect"]


def collect(root: Elaboratable, kind: type, name: str = "") -> dict[str, Any]:
    """Find every attribute of type ``kind`` (Probe, Counter or Timer) below ``root``.

    Components are found as attributes, or in lists that are attributes, in order of definition. The result
    maps dotted paths such as ``nic.rx.write_back`` to the objects; the prefix ``name`` is that of ``root``.
    """
    return dict(_walk(root, kind, name))


def _walk(component: Elaboratable, kind: type, path: str) -> Iterator[tuple[str, Any]]:
    for attribute, value in vars(component).items():
        if attribute.startswith("_"):
            continue
        for name, item in _named(attribute, value):
            full = f"{path}.{name}" if path else name
            if isinstance(item, kind):
                yield full, item
            elif isinstance(item, Elaboratable) and not isinstance(item, (Probe, Counter, Timer)):
                yield from _walk(item, kind, full)


def _named(attribute: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield f"{attribute}{index}", item
    else:
        yield attribute, value
