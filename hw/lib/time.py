"""Time inside the RTL: one ``now`` per clock domain, and timers that are absolute deadlines against it.

An engine may skip an edge of a domain when nothing but ``now`` would change there. It then catches up
by one pulse of the domain's *time clock* with ``advance`` holding the number of skipped edges, before the
next real edge. No counter other than ``now`` runs by itself, so skipping leaves every result unchanged.
"""

from amaranth.hdl import ClockDomain, Elaboratable, Module, Signal

__all__ = ["NOW_WIDTH", "Now", "Timer", "time_domain"]

#: Bits of a cycle count: 2**48 cycles of 3 GHz are 26 hours of simulated time.
NOW_WIDTH = 48


def time_domain(domain: str) -> str:
    """Name of the domain that clocks ``now`` of ``domain``."""
    return f"{domain}_time"


class Now(Elaboratable):
    """The number of the next edge of ``domain``: 0 before the first.

    The time clock rises together with the clock of ``domain`` at every executed edge (then ``advance`` is
    0 and ``now`` steps by one), and alone, before an executed edge, with ``advance`` = n - 1 when n
    edges were skipped (then ``now`` steps by n).

    Attributes:
        now: ``Signal(48)``, cycles of ``domain``.
        advance: input, cycles of ``domain`` skipped in addition to this one.
    """

    def __init__(self, domain: str):
        self.domain = domain
        self.now = Signal(NOW_WIDTH, name="now")
        self.advance = Signal(NOW_WIDTH, name="advance")

    def elaborate(self, platform):
        """Elaborate; the time domain itself is made by the machine."""
        m = Module()
        m.d[time_domain(self.domain)] += self.now.eq(self.now + self.advance + 1)
        return m


class Timer:
    """A deadline its component waits for. While ``armed``, edge number ``deadline`` must not be skipped.

    A component may call itself quiet while it only waits for a timer. Both signals must depend on
    registers of ``domain`` alone.

    Attributes:
        armed: ``Signal()``.
        deadline: ``Signal(48)``, the value of ``now`` at which something happens.
        background: what happens recurs for ever and alone leads to nothing else (DRAM refresh): a machine in
            which only such timers are armed is idle.
    """

    def __init__(self, domain: str, *, background: bool = False):
        self.domain = domain
        self.background = background
        self.armed = Signal(name="armed")
        self.deadline = Signal(NOW_WIDTH, name="deadline")


def clock_domains(*names: str) -> list[ClockDomain]:
    """Make the reset-less domains ``names`` and the time domain of each."""
    return [ClockDomain(n, reset_less=True) for name in names for n in (name, time_domain(name))]
