"""Software for ``engine_design``: random operations on both cores, an interrupt handler, frames on the wire."""

import random
import time

from hw.bus.core import AtomicFunction
from hw.bus.core import OperationKind as K
from sim.engine.engine import Notify, WakeKind

LIMIT = 40


async def busy(engine, *, frames=4, batches=LIMIT, seed=1, dawdle=False, ticks=None):
    """Keep both cores at work until each has been fed ``batches`` times; return what was seen."""
    rng = random.Random(seed)
    seen = []
    home = {}
    for core in (0, 1):
        home[core] = engine.new_context()
        engine.switch(core, home[core])
    for number in range(frames):
        data = rng.randbytes(rng.choice((1, 64, 65, 200)))
        engine.push_frame(data, number + 1, 100 + 211 * number)
    interrupted = {}
    left = {0: batches, 1: batches}
    last_load = {}

    def feed(core, context):
        for _ in range(rng.randrange(1, 4)):
            address = rng.randrange(3, 17) * 8  # the last is also written by a device
            match rng.randrange(11):
                case 0:
                    engine.push(context, K.EXECUTE.value, cycles=rng.choice((1, 2, 30, 400)), uops=9)
                case 1:
                    engine.push(context, K.STORE.value, address=address, size=8, data=rng.getrandbits(64))
                case 2:
                    last_load[core] = engine.push(context, K.LOAD.value, address=address, size=8)
                case 3:
                    after = last_load.get(rng.randrange(2), -1)
                    engine.push(context, K.EXECUTE.value, cycles=3, after=after)
                case 4:
                    engine.push(context, K.FENCE.value)
                case 5:
                    engine.push(context, K.STORE.value, address=address, size=4, data=b"abcd")
                case 6:
                    engine.push(context, K.LOAD.value, address=address, size=rng.choice((1, 8)), notify=Notify.COMPLETE)
                case 7:
                    engine.push(context, K.LOAD.value, address=address, size=rng.choice((4, 8)), notify=Notify.ISSUE)
                case 8:
                    data = rng.randbytes(8) + rng.choice((bytes(8), rng.randbytes(8)))
                    function = rng.choice(list(AtomicFunction)).value
                    notify = rng.choice((Notify.NO, Notify.COMPLETE))
                    size = rng.choice((1, 2, 4, 8))
                    engine.push(context, K.ATOMIC.value, address, size, data, notify=notify, argument=function)
                case 9:
                    cycles, period = rng.choice((20, 300)), rng.choice((1, 50))
                    value = rng.choice((0, int.from_bytes(b"abcd", "little")))
                    engine.push(context, K.POLL.value, address, 4, value, cycles, notify=True, argument=period)
                case 10:
                    engine.push(context, K.STORE.value, address=address, size=4, data=0)
                    engine.push(context, K.LOAD.value, address=address, size=rng.choice((4, 8)), notify=Notify.ISSUE)

    while any(left.values()):
        until = None if ticks is None else engine.tick + ticks
        wakes = await engine.run(until)
        if dawdle:
            time.sleep(1e-4)
        for wake in wakes:
            if wake.kind == WakeKind.LIMIT:
                continue
            seen.append((engine.tick, *wake))
            if wake.kind == WakeKind.IDLE:
                return seen
            core = wake.core
            if wake.kind == WakeKind.INTERRUPT:
                handler = engine.new_context()
                interrupted[handler] = wake.context
                engine.push(handler, K.EXECUTE.value, cycles=25, uops=7)
                engine.push(handler, K.LOAD.value, address=8 * (wake.value % 16), size=8)
                engine.push(handler, K.IRET.value)
                engine.switch(core, handler)
            elif wake.kind == WakeKind.EMPTY and wake.context in interrupted:
                back = interrupted.pop(wake.context)
                engine.free_context(wake.context)
                engine.switch(core, back)
            elif wake.kind == WakeKind.EMPTY and left[core]:
                left[core] -= 1
                feed(core, wake.context)
    return seen


class Talker:
    """A peer of fixed habits: answers what it is sent, talks into a silence, and gives up at last."""

    SENDS = 40  #: frames, the one that breaks a silence included
    FIRST_PACKET = 300

    def __init__(self, engine, seed=1):
        self.engine = engine
        self.rng = random.Random(seed)
        self.period = engine.manifest.domains[engine.manifest.wire_domain].period
        self.told = []
        self.left = self.SENDS
        self.alarm = engine.call_at(0, self.silence)
        engine.on_transmit(self.hears)
        engine.keep_transmitted()

    def hears(self, tick, packet, data):
        self.told.append(("frame", tick, packet, data))
        assert self.engine.tick == tick
        self.engine.cancel_call(self.alarm)
        self.alarm = self.engine.call_at(tick + 3000, self.silence)
        if self.rng.randrange(2):
            self.send()
        else:
            delay = self.rng.choice((1, 2, 3, 100, 700))
            self.engine.call_at(tick + delay, self.send)

    def silence(self):
        self.told.append(("silence", self.engine.tick))
        if self.left:
            self.alarm = self.engine.call_at(self.engine.tick + 3000, self.silence)
            self.send()

    def send(self):
        if not self.left:
            return
        self.left -= 1
        data = self.rng.randbytes(self.rng.choice((1, 64, 65, 200, 600)))
        start = self.engine.tick // self.period + self.rng.choice((0, 1, 50))
        self.engine.push_frame(data, self.FIRST_PACKET - self.left, start)


async def conversation(engine, **arguments):
    """:func:`outcome` with a :class:`Talker` at the other end of the wire, and then until nothing is left to happen."""
    talker = Talker(engine)
    result = await outcome(engine, frames=2, **arguments)
    for _ in range(10_000):
        wakes = await engine.run()
        if any(wake.kind == WakeKind.IDLE for wake in wakes):
            break
        for wake in wakes:
            if wake.kind == WakeKind.INTERRUPT:
                handler = engine.new_context()
                engine.push(handler, K.IRET.value)
                engine.switch(wake.core, handler)
    else:
        raise AssertionError("it never ends")
    return {
        **result,
        "told": talker.told,
        "transmitted": engine.transmitted(),
        "whole": engine.log_sha256(),
        "end": engine.tick,
    }


async def outcome(engine, **arguments):
    """Run :func:`busy` and return everything that may not depend on the engine."""
    seen = await busy(engine, **arguments)
    return {
        "sha256": engine.log_sha256(),
        "seen": [list(map(int, row)) for row in seen],
        "counters": engine.counters(),
        "cycles": engine.cycles(),
        "issued": [engine.issued(core).tolist() for core in (0, 1)],
        "events": len(engine.log()),
        "executed": engine.executed(),
    }
