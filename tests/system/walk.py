"""The way of an access through the machine, as arithmetic on the edges of its clocks."""

import math
from dataclasses import dataclass
from fractions import Fraction

from hw.config import TLP_OVERHEAD_COMPLETION, TLP_OVERHEAD_REQUEST, MachineConfig
from hw.mem.dram import DramController

__all__ = ["Walk"]

#: Flip-flops of a crossing's synchronisers (``hw.lib.crossing``).
STAGES = 2


@dataclass(frozen=True)
class Walk:
    """Arithmetic on edge numbers. Every method returns the edge of its clock at which the next step is taken."""

    config: MachineConfig

    def cross(self, edge: int, source: str, sink: str) -> int:
        """Through a crossing: accepted at ``edge`` of ``source``, taken at the edge of ``sink`` returned.

        That is edge STAGES + 1 of ``sink`` after it; one that coincides with ``edge`` does not count.
        """
        tick = edge * self.config.period_ticks(source)
        return tick // self.config.period_ticks(sink) + STAGES + 1

    def link(self, edge: int, overhead: int, data: int = 0) -> int:
        """Along the link, idle before: a TLP of one beat accepted at ``edge`` of the card's clock.

        Its bytes take their time on the wire, the end of which is rounded up, then comes the flight.
        """
        serialisation = math.ceil((overhead + data) * self.config.cycles_per_byte(self.config.pcie.gbps))
        flight = max(1, math.ceil(self.nanoseconds("nic", self.config.pcie.latency_ns)))
        return edge + serialisation + flight

    def l1_hit(self, issue: int) -> int:
        """A load that hits the L1: issued at ``issue``, answered ``l1.latency`` cycles later."""
        return issue + self.config.l1.latency

    def l2_hit(self, issue: int) -> int:
        """A load that misses the L1 and hits the L2: as configured.

        The L1 offers its Acquire at t + 2 and answers 2 cycles after the Grant is offered; in between lie the L2's.
        """
        return issue + self.config.l2.latency

    def acquire(self, issue: int) -> int:
        """A load that misses both private caches: the edge of uncore at which the last level accepts its Acquire.

        The L1 offers its Acquire at t + 2. A hit would take the L2 l2.latency - 4 cycles; a miss is offered below one
        cycle earlier than a Grant above.
        """
        return self.cross(issue + 2 + self.config.l2.latency - 4 - 1, "core", "uncore")

    def granted(self, edge: int) -> int:
        """The Grant enters its crossing at ``edge`` of uncore: the edge of core at which the load is answered.

        One cycle through the L2, and the L1 answers 2 cycles after the Grant is offered to it.
        """
        return self.cross(edge, "uncore", "core") + 1 + 2

    def llc_hit(self, issue: int) -> int:
        """A load that misses the L1 and hits the last level, where nobody else holds the line.

        "Grant is offered llc.latency cycles after Acquire was accepted, to the cycle."
        """
        return self.granted(self.acquire(issue) + self.config.llc.latency)

    def llc_miss(self, issue: int, dram_cycles: int) -> int:
        """A load that DRAM answers, in ``dram_cycles`` from the acceptance of the request to the response.

        In the last level, a hit's Grant leaves llc.latency after the Acquire was accepted, 3 cycles after
        it was pushed (it reads the line first); a request to DRAM is pushed by the same pass but leaves 2 cycles
        after the push: llc.latency - 1. When the line comes back the slot makes a second pass, without the wait for
        the configured latency: chosen, decided, pushed (one cycle each). The line buffers have one read port, and the
        line goes into the cache first ("fill ... cannot wait"): one cycle. Then the Grant leaves, 3 cycles later.
        """
        request = self.acquire(issue) + self.config.llc.latency - 3 + 2
        response = self.cross(request, "uncore", "dram") + dram_cycles
        arrival = self.cross(response, "dram", "uncore")
        return self.granted(arrival + 1 + 1 + 1 + 1 + 3)

    def probed(self, issue: int, dirty: bool) -> int:
        """A load that misses the L1 and hits the last level, but the other core holds the line and may write it.

        The first pass pushes a Probe where an unshared line's would push the Grant, llc.latency - 3 after the Acquire
        was accepted; it leaves one cycle later. In the other core's L2 it passes stages 0 and 1, and is offered to the
        L1 in the next cycle: 2. There it passes stages 0, 1 and 2, and the ProbeAck is offered one cycle after the
        last: 3. The L2 takes it in a pass of its own, and sends it on likewise: 3. Then the second pass in the last
        level: chosen, decided, pushed (one cycle each), and the Grant leaves 3 cycles after. A dirty line came back
        with the ProbeAck, and goes into the cache first: one cycle.
        """
        probe = self.acquire(issue) + self.config.llc.latency - 3 + 1
        answer = self.cross(probe, "uncore", "core") + 2 + 3 + 3
        arrival = self.cross(answer, "core", "uncore")
        return self.granted(arrival + 1 + 1 + 1 + (1 if dirty else 0) + 3)

    def dram(self, *before: int) -> int:
        """DRAM cycles from acceptance to response of a request.

        The way to the queue, the controller's front end, what goes before RD, CL, the burst, and the way back.
        """
        dram = self.config.dram
        controller, phy = (math.ceil(self.nanoseconds("dram", ns)) for ns in (dram.controller_ns, dram.phy_ns))
        return controller + DramController.FRONT_END + sum(before) + dram.CL + dram.BURST + phy

    def nanoseconds(self, clock: str, ns: float) -> Fraction:
        """A time in cycles of ``clock``."""
        return Fraction(str(ns)) * self.config.clocks.khz(clock) / 10**6

    def mmio_read(self, issue: int, size: int) -> int:
        """A read of a register of the card.

        Core to root complex; one cycle there to make a packet ("accepted at edge t is offered at t + 1"); the link
        (a request without data); in the card the access at t + 2, and 2 later for the upper half of 8 bytes,
        the completion one cycle after; the link (a completion with the data); one cycle in the root complex;
        back to the core, where it completes.
        """
        packet = self.cross(issue, "core", "uncore") + 1
        at_card = self.link(self.cross(packet, "uncore", "nic"), TLP_OVERHEAD_REQUEST)
        completion = at_card + 2 + (2 if size == 8 else 0) + 1
        at_root = self.cross(self.link(completion, TLP_OVERHEAD_COMPLETION, size), "nic", "uncore")
        return self.cross(at_root + 1, "uncore", "core")

    def mmio_read_unclaimed(self, issue: int) -> int:
        """A read of an address that no device has: the root complex answers one cycle after it accepted it."""
        return self.cross(self.cross(issue, "core", "uncore") + 1, "uncore", "core")

    def interrupt(self, issue: int) -> int:
        """A core's write to the interrupt window: the edge at which the other core's interrupt controller has it.

        To the root complex; one cycle there ("accepted at edge t is offered at t + 1"); to the other core.
        """
        return self.cross(self.cross(issue, "core", "uncore") + 1, "uncore", "core")
