"""Runs of the machine ``tiny`` that every engine can make: traffic of all fates, meddled engines, broken machines.

cocotb's process and the planted machines import this file by its name.
"""

import random
import time
from fractions import Fraction

from hw.bus.core import OperationKind
from hw.config import load_machine
from hw.lib.time import Timer
from hw.machine import Machine
from sim.engine.engine import WakeKind
from sim.session import PORTS, observe
from sim.wire.frames import HOST_IP, HOST_MAC, udp_frame, with_fcs
from sw.costs import load_costs
from sw.options import Options
from sw.system import System

TICKS_PER_NS = 4  # of machine tiny
#: Tick at which :func:`beginning` ends.
BEGINNING = 20_000
#: A tick before which most edges are executed, jumps or not.
BUSY_BEGINNING = 2400


def mixed_frames(seed=1):
    """Seven frames, start in ns and bytes: two ports, four sizes, and one for each way to be dropped on ``tiny``."""
    chance = random.Random(seed)

    def udp(size, port):
        return with_fcs(udp_frame(chance.randbytes(size - 46), chance.randrange(1024, 65536), port))

    spoiled = udp(64, 9)
    spoiled = spoiled[:-1] + bytes([spoiled[-1] ^ 1])
    foreign = udp(64, 9)[:-4]
    foreign = with_fcs(b"\x02\0\0\0\0\x09" + foreign[6:])
    frames = [udp(64, 9), udp(200, 53), spoiled, with_fcs(udp_frame(b"", 1024)), udp(65, 7), foreign, udp(129, 9)]
    # Back to back, but for a pause before the last, such that its interrupt comes between two operations.
    return [(Fraction(0), frame) for frame in frames[:-1]] + [(Fraction(88630, 2), frames[-1])]


#: Packet id -> fate, of :func:`mixed_frames`.
DELIVERED = {1, 2, 7}
DROPPED = {3: "crc_error", 4: "runt", 5: "NO_SOCKET", 6: "filtered"}


def job(seed=1):
    """Arguments for :func:`sim.session.observe`, but for the engine."""
    return {"machine": load_machine("tiny"), "frames": mixed_frames(seed)}


class Meddled:
    """An engine behind a Python that sleeps at random and asks to come back at random ticks."""

    def __init__(self, engine, seed, longest_s=0.002):
        self._engine = engine
        self._chance = random.Random(seed)
        self._longest = longest_s

    def __getattr__(self, name):
        return getattr(self._engine, name)

    async def run(self, until=None):
        while True:
            if self._chance.random() < 0.1:
                time.sleep(self._chance.uniform(0, self._longest))
            early = self._engine.tick + self._chance.choice((1, 7, 100, 5000))
            stop = early if until is None else min(until, early)
            wakes = await self._engine.run(stop)
            if stop == until or any(wake.kind is not WakeKind.LIMIT for wake in wakes):
                return wakes


async def observe_meddled(engine, *, meddle, **arguments):
    """:func:`sim.session.observe` on a :class:`Meddled` engine."""
    return await observe(Meddled(engine, meddle), **arguments)


def small_system(engine, on_note=None, **options):
    """The software of two cores, with little room for packets."""
    small = {"ring_size": 32, "rcvbuf": 16_384, "netdev_budget": 64, "compute": (0,)} | options
    options = Options(mac=HOST_MAC, addresses=(HOST_IP.packed,), **small)
    return System(engine, 2, 1 << 20, load_costs(), "napi", options, on_note)


async def both_cores(engine, *, meddle=None):
    """Both cores compute, core 0 receives as well, up to a fixed tick."""
    delivered = []
    engine = engine if meddle is None else Meddled(engine, meddle)
    system = small_system(
        engine,
        ports=PORTS,
        compute=(0, 1),
        on_note=lambda note: delivered.append(note.handle) if note.kind == "delivered" else None,
    )
    await system.boot()
    for packet, (time_ns, frame) in enumerate(mixed_frames(2), 1):
        engine.push_frame(frame, packet, (engine.tick + int(time_ns * TICKS_PER_NS)) // 8 + 1)
    await system.run(engine.tick + 100_000 * TICKS_PER_NS)
    return {
        "log": engine.log(),
        "delivered": delivered,
        "counters": engine.counters(),
        "issued": [engine.issued(core).tolist() for core in (0, 1)],
        "tick": engine.tick,
    }


class _Reached(Exception):
    pass


class _Until:
    """An engine that ends by :class:`_Reached`."""

    def __init__(self, engine, tick):
        self._engine = engine
        self._end = tick

    def __getattr__(self, name):
        return getattr(self._engine, name)

    async def run(self, until=None):
        wakes = await self._engine.run(self._end)
        if any(wake.kind is WakeKind.LIMIT for wake in wakes):
            raise _Reached
        return wakes


async def beginning(engine, *, until=BEGINNING):
    """The log of the system's first steps, with a frame on the wire that the card is not ready for.

    Raises:
        RuntimeError: when the machine comes to rest.
    """
    machine = load_machine("tiny")
    system = small_system(_Until(engine, until))
    engine.push_frame(mixed_frames()[0][1], 1, 100)
    assert machine.ticks_per_second == TICKS_PER_NS * 10**9
    try:
        await system.boot()
    except _Reached:
        return engine.log()
    raise AssertionError("the system was up before the end of its beginning")


async def computing(engine):
    """The log of work of different lengths on core 0, with an access after each."""
    context = engine.new_context()
    engine.switch(0, context)
    for number in range(30):
        engine.push(context, OperationKind.EXECUTE.value, cycles=20 + 7 * number, uops=10)
        engine.push(context, OperationKind.STORE.value, address=0x1000 + 64 * number, size=8, data=number)
    while not any(wake.kind is WakeKind.EMPTY for wake in await engine.run(None)):
        pass
    return engine.log()


# ---- Machines with a wake-up bug: they work if every edge is executed


class WrongTimerMachine(Machine):
    """The engines see a timer that differs from the one the hardware goes by."""

    def __init__(self, config):
        super().__init__(config)
        component, name = self._waiting()
        self._real: Timer = getattr(component, name)
        self._shown = Timer(self._real.domain)
        # The engines' view is made from the tree before it elaborates.
        setattr(component, name, self._shown)

    def elaborate(self, platform):
        component, name = self._waiting()
        setattr(component, name, self._real)
        m = super().elaborate(platform)
        m.d.comb += [self._shown.armed.eq(self._armed()), self._shown.deadline.eq(self._deadline())]
        return m

    def _waiting(self):
        """The component and the name of its timer."""
        raise NotImplementedError

    def _armed(self):
        return self._real.armed

    def _deadline(self):
        return self._real.deadline


class DeafWireMachine(WrongTimerMachine):
    """The card sleeps while a frame arrives."""

    def _waiting(self):
        return self.nic.mac, "arrival"

    def _armed(self):
        return 0


class LateExecuteMachine(WrongTimerMachine):
    """Core 0 sleeps one cycle too long."""

    def _waiting(self):
        return self.core[0].port.execute, "timer"

    def _deadline(self):
        return self._real.deadline + 1


class DeafCrossingMachine(Machine):
    """The last-level cache and the root complex sleep although a crossing has something for them."""

    def elaborate(self, platform):
        m = super().elaborate(platform)
        m.d.comb += self.quiet["uncore"].eq(self.llc.quiet & self.noncached.quiet & self.root_complex.quiet)
        return m
