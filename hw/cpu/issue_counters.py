"""How many operations of each kind have issued."""

from amaranth.hdl import Module
from amaranth.lib import wiring
from amaranth.lib.wiring import In

from hw.bus.core import OperationKind
from hw.lib.probe import Counter

__all__ = ["IssueCounters"]


class IssueCounters(wiring.Component):
    """Counts operations by kind.

    Arguments:
        domain: clock domain.

    Attributes:
        issue: ``In(1)``, one of ``kind`` issues at this edge.
        kind: ``In``.
    """

    issue: In(1)
    kind: In(OperationKind)

    def __init__(self, domain: str):
        super().__init__()
        self.executes = Counter(domain, "times of computing issued")
        self.loads = Counter(domain, "loads issued")
        self.stores = Counter(domain, "stores issued")
        self.prefetches = Counter(domain, "prefetches issued")
        self.atomics = Counter(domain, "atomics issued")
        self.polls = Counter(domain, "polls issued")
        self.nontemporal_stores = Counter(domain, "non-temporal stores issued")
        self.line_flushes = Counter(domain, "cache-line flushes issued")
        self.mmio_reads = Counter(domain, "reads of devices issued")
        self.mmio_writes = Counter(domain, "writes to devices issued")
        self.fences = Counter(domain, "fences of every kind issued")
        self.halts = Counter(domain, "halts issued")

    def elaborate(self, platform):
        """Elaborate."""
        m = Module()
        for counter, *kinds in (
            (self.executes, OperationKind.EXECUTE),
            (self.loads, OperationKind.LOAD),
            (self.stores, OperationKind.STORE),
            (self.prefetches, OperationKind.PREFETCH),
            (self.atomics, OperationKind.ATOMIC),
            (self.polls, OperationKind.POLL),
            (self.nontemporal_stores, OperationKind.STORE_NT),
            (self.line_flushes, OperationKind.CLFLUSH),
            (self.mmio_reads, OperationKind.MMIO_READ),
            (self.mmio_writes, OperationKind.MMIO_WRITE),
            (self.fences, OperationKind.FENCE, OperationKind.LFENCE, OperationKind.SFENCE),
            (self.halts, OperationKind.HALT),
        ):
            counter.increment(m, self.issue & self.kind.as_value().matches(*kinds))
        return m
