"""Components that are written for one clock domain, put into another of the same clock."""

from amaranth.hdl import DomainRenamer, Elaboratable

from .observe import collect
from .probe import Counter, Probe
from .time import Timer

__all__ = ["in_domain", "tell_domain"]


def tell_domain(component: Elaboratable, domain: str, other: str) -> None:
    """Have what observers see of ``component`` say that it belongs to ``other`` instead of ``domain``."""
    for kind in (Probe, Counter, Timer):
        for item in collect(component, kind).values():
            if item.domain == domain:
                item.domain = other


def in_domain(component: Elaboratable, domain: str, other: str) -> Elaboratable:
    """The component to be made a submodule: what it does in ``domain`` it does in ``other``."""
    return DomainRenamer({domain: other})(component)
