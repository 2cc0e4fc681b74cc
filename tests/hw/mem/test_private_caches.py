"""L1, L2 and the last level, in clock domains of their own, under loads, stores, fetches and a device's writes."""

import os
import random
from types import SimpleNamespace

import pytest
from amaranth.hdl import Module, Signal
from amaranth.lib.wiring import connect
from amaranth.sim import Simulator

from hw.bus.fetch import FetchRequest
from hw.bus.l1 import L1Load, L1LoadDone, L1Store, L1Use
from hw.bus.tilelink import ChannelA, ChannelB, ChannelC, ChannelD, ChannelE
from hw.config import load_machine
from hw.lib.crossing import Crossing
from hw.lib.observe import collect
from hw.lib.probe import Counter
from hw.mem.l1 import L1Cache
from hw.mem.l2 import L2Cache
from hw.mem.llc import LastLevelCache
from tests.hw.mem.test_llc import SMALL, Device, Dram, Shadow, Wires, merge, pool

LINES = range(0x100, 0x128)
TEXT = range(0x200, 0x218)
#: Seeds: first, and one past the last.
SEEDS = range(*map(int, os.environ.get("NICSCOPE_L2_SEEDS", "1 2").split()))


class Core:
    """Loads and stores random parts of lines. A load must return what memory holds where it is sampled."""

    def __init__(self, bench, index, operations):
        self.bench, self.left, self.domain = bench, operations, f"core{index}"
        self.l1 = L1Cache(bench.config.l1, bench.config.core, self.domain)
        self.l2 = L2Cache(bench.config, self.domain, hit_cycles=5)
        self.random = random.Random(f"{bench.seed}/{index}")
        self.lines, self.text = pool(LINES), pool(TEXT)
        self.loads = {}  # id -> [message, what was sampled]
        self.stores = []
        self.fetches = set()
        self.checked = self.ids = 0

    @property
    def done(self):
        return not (self.left or self.loads or self.stores or self.fetches)

    def next_load(self):
        if not self.left or len(self.loads) >= self.bench.config.core.load_queue or self.random.random() < 0.4:
            return None
        self.left -= 1
        self.ids = (self.ids + 1) % 256
        offset = self.random.randrange(64)
        size = self.random.randint(1, 64 - offset)
        load = {"use": L1Use.LOAD, "id": self.ids, "line": self.lines(self.random), "offset": offset, "size": size}
        self.loads[self.ids] = [load, None]
        return load

    def next_store(self):
        if not self.left or self.random.random() < 0.7:
            return None
        self.left -= 1
        data, mask = self.random.getrandbits(512), self.random.getrandbits(64)
        self.stores.append({"line": self.lines(self.random), "mask": mask, "data": data})
        return self.stores[-1]

    def next_fetch(self):
        free = [tag for tag in range(self.bench.config.l1i.mshrs) if tag not in self.fetches]
        if not self.left or not free or self.random.random() < 0.9:
            return None
        self.fetches.add(free[0])
        return {"tag": free[0], "line": self.text(self.random)}

    def look(self, s):
        """Check what happens at this edge."""
        shadow = self.bench.shadow
        if s.sampled:
            load = self.loads[s.sampled_id]
            load[1] = shadow.read(load[0]["line"])
        if s.visible:
            store = self.stores.pop(0)
            shadow.write(store["line"], merge(shadow.read(store["line"]), store["data"], store["mask"]))
        if s.load_done_valid:
            load, value = self.loads.pop(s.load_done.id)
            expected = value >> 8 * load["offset"] & (1 << 8 * load["size"]) - 1
            assert s.load_done.data == expected, f"{self.domain} sees stale line {load['line']:#x}"
            self.checked += 1
        if s.fetch_done_valid:
            self.fetches.remove(s.fetch_tag)

    async def run(self, ctx):
        port, fetch = self.l1.port, self.l2.fetch
        load, store = Wires(port.load, L1Load), Wires(port.store, L1Store)
        text = Wires(fetch.request, FetchRequest)
        done = Wires(SimpleNamespace(valid=port.load_done_valid, ready=None, payload=port.load_done), L1LoadDone)
        signals = {
            "load_ready": load.ready,
            "store_ready": store.ready,
            "fetch_ready": text.ready,
            "sampled": port.sampled,
            "sampled_id": port.sampled_id,
            "visible": port.visible,
            "load_done_valid": port.load_done_valid,
            "load_done": done.bits,
            "fetch_done_valid": fetch.done_valid,
            "fetch_tag": fetch.done.tag,
        }
        streams = [(load, "load_ready", self.next_load), (store, "store_ready", self.next_store)]
        streams.append((text, "fetch_ready", self.next_fetch))
        offered = [None] * len(streams)
        async for _, _, *values in ctx.tick(self.domain).sample(*signals.values()):
            s = SimpleNamespace(**dict(zip(signals, values, strict=True)))
            s.load_done = done.unpack(s.load_done)
            self.look(s)
            for i, (wires, ready, following) in enumerate(streams):
                if offered[i] is not None and not getattr(s, ready):
                    continue
                offered[i] = following()
                ctx.set(wires.valid, offered[i] is not None)
                if offered[i] is not None:
                    ctx.set(wires.bits, wires.pack(offered[i]))


class Bench:
    """Two cores with their caches, the last level, a device and DRAM; no two clocks ever rise together."""

    def __init__(self, *settings, seed=1, operations=90):
        self.seed = seed
        self.config = load_machine(
            "tiny", [*SMALL, "l1.size_kib=1", "l2.size_kib=1", "l2.ways=2", "l2.prefetches=6", *settings]
        )
        self.dut = LastLevelCache(self.config)
        self.shadow = Shadow()
        self.caches = []
        self.cores = [Core(self, i, operations) for i in range(self.config.core.count)]
        self.device = Device(self, pool(LINES), operations // 2)
        self.now = Signal(48)

    def connect(self):
        m = Module()
        m.submodules.dut = self.dut
        m.d.uncore += self.now.eq(self.now + 1)
        m.d.comb += self.dut.now.eq(self.now)
        for index, core in enumerate(self.cores):
            m.submodules += [core.l1, core.l2]
            connect(m, core.l1.tilelink, core.l2.l1)
            core_side, uncore_side = core.l2.tilelink, self.dut.client[index]
            for name, shape in zip("abcde", (ChannelA, ChannelB, ChannelC, ChannelD, ChannelE), strict=True):
                up = name in "bd"
                domains = ("uncore", core.domain) if up else (core.domain, "uncore")
                crossing = Crossing(shape, *domains)
                m.submodules += crossing
                near, far = (uncore_side, core_side) if up else (core_side, uncore_side)
                connect(m, getattr(near, name), crossing.input)
                connect(m, crossing.output, getattr(far, name))
        return m

    def run(self, limit=20_000):
        simulator = Simulator(self.connect())
        simulator.add_clock(1e-9, domain="uncore")
        for index, core in enumerate(self.cores):
            simulator.add_clock(0.9e-9 + index * 0.05e-9, phase=(0.3 + 0.2 * index) * 1e-9, domain=core.domain)
            simulator.add_process(core.run)
        simulator.add_process(self.device.run)
        simulator.add_process(Dram(self).run)

        async def control(ctx):
            finished = 0
            while finished < 300:
                await ctx.tick("uncore")
                self.shadow.cycle += 1
                finished = finished + 1 if all(a.done for a in (*self.cores, self.device)) else 0
                assert self.shadow.cycle < limit, "stuck"
            assert ctx.get(self.dut._free) == (1 << self.dut.layouts.all_slots) - 1
            assert all(ctx.get(cache.quiet) for core in self.cores for cache in (core.l1, core.l2))
            assert not any(ctx.get(core.l2._under_way) for core in self.cores)
            self.final = [{n: ctx.get(c.value) for n, c in collect(core.l2, Counter).items()} for core in self.cores]

        simulator.add_testbench(control)
        simulator.run()


def check(bench):
    bench.run()
    assert all(core.checked > 10 for core in bench.cores) and bench.device.checked
    for name in ("hits", "misses", "probes_received", "probes_forwarded", "fetch_misses", "prefetches_used"):
        assert sum(counters[name] for counters in bench.final), name


def test_coherence():
    for seed in SEEDS:
        check(Bench(seed=seed))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10, 13))
def test_coherence_for_long(seed):
    check(
        Bench(
            "l1.mshrs=4",
            "l2.prefetches=8",
            "llc.ddio=false" if seed % 2 else "llc.ddio=true",
            seed=seed,
            operations=500,
        )
    )
