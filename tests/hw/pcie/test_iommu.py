"""IOMMU: translations against a walk of the same bytes, timing, order, faults of every kind, invalidation, limits."""

import random

import pytest

from hw.bus.tlp import TlpType
from hw.config import ConfigError, load_machine
from hw.memory_map import MSI_BASE
from hw.pcie.iommu import Iommu
from hw.pcie.iommu.registers import DMAR, FAULT_RECORDS, Granularity
from hw.pcie.iommu.walkers import Walkers
from tests.hw.pcie.iommu_bench import LARGE, MEBIBYTE, PAGE, READ, WRITE, Bench, Tables, machine

MWR, MRD, CPL = TlpType.MEMORY_WRITE, TlpType.MEMORY_READ, TlpType.COMPLETION
TOP = 0xFFFF_F000  # where Linux's addresses begin


def mapped(*pages: tuple[int, int], rights: int = READ | WRITE) -> Tables:
    tables = Tables()
    for address, frame in pages:
        tables.map(address, frame, rights)
    return tables


# Timing


@pytest.mark.parametrize("lookup", [2, 3, 7])
def test_a_hit_is_offered_after_the_lookup_and_not_before(lookup):
    bench = Bench(machine(lookup_cycles=lookup), mapped((TOP, 0x5000)))

    async def software(b):
        await b.enable()
        b.send(MRD, TOP)
        await b.settle()
        await b.wait(5)
        b.first_offer = None
        b.send(MRD, TOP + 64)

    bench.run(software)
    assert bench.first_offer == bench.accepted[1] + lookup
    assert [given.address for given in bench.given] == [0x5000, 0x5040]


def test_hits_pass_one_packet_per_cycle():
    bench = Bench(machine(lookup_cycles=9), mapped((TOP, 0x5000)))

    async def software(b):
        await b.enable()
        b.send(MWR, TOP)
        await b.settle()
        for number in range(100):
            b.send(MWR, TOP + 64 * (number % 64), tag=number)

    bench.run(software)
    edges = [given.edge for given in bench.given[1:]]
    assert edges == list(range(edges[0], edges[0] + 100))


@pytest.mark.parametrize(
    ("large", "warm", "reads", "way"),
    [
        (False, None, 4, 0),
        (False, TOP - PAGE, 1, 0),
        (True, None, 3, 0),
        (False, TOP - LARGE, 2, 0),
        (False, TOP - LARGE, 2, 7),
        (False, None, 4, 33),
    ],
)
def test_a_miss_takes_its_reads_one_after_the_other(large, warm, reads, way):
    """Each read is asked for in the cycle after the answer to the one before it, when it had its way."""
    latency, lookup = 11, 4
    tables = Tables()
    tables.map(TOP & -LARGE if large else TOP, LARGE if large else 0x5000, large=large)
    if warm is not None:
        tables.map(warm, 0x6000)
    tables.map(0, 0x7000)
    config = machine(lookup_cycles=lookup, walk_read_ns=float(way))
    bench = Bench(config, tables, latency=lambda rng: latency)

    async def software(b):
        await b.enable()
        b.send(MRD, 0)  # so that the context is known
        await b.settle()
        if warm is not None:
            b.send(MRD, warm)
            await b.settle()
        b.reads.clear()
        b.first_offer = None
        b.send(MRD, TOP)

    bench.run(software)
    asked = bench.accepted[-1] + lookup
    assert [edge for edge, _ in bench.reads] == [asked + way + n * (way + latency + 1) for n in range(reads)]
    assert bench.first_offer == asked + reads * (way + latency + 1) + 3


def test_off_everything_passes_in_the_next_cycle():
    bench = Bench(machine(), mapped((TOP, 0x5000)))

    async def software(b):
        b.send(MWR, TOP, length=200)
        b.send(MRD, 0x1234)

    bench.run(software)
    assert bench.first_offer == bench.accepted[0] + 1
    assert [(given.address, given.blocked, given.edge) for given in bench.given] == [
        (TOP, False, 1),
        (0x1234, False, 5),
    ]
    assert not bench.reads
    assert bench.counters["lookups"] == 0


def test_what_comes_behind_a_miss_is_walked_for_meanwhile():
    latency = 40
    pages = [TOP - PAGE * n for n in range(4)]
    bench = Bench(machine(walks=4), mapped(*((page, 0x5000 + PAGE * n) for n, page in enumerate(pages))))
    bench.latency = lambda rng: latency

    async def software(b):
        await b.enable()
        b.send(MRD, pages[0])
        await b.settle()
        await b.invalidate(Granularity.PAGE, pages[0] | 1 << 6)
        for page in pages:
            b.send(MRD, page)
            b.send(MWR, page + 64)

    bench.run(software)
    first = bench.accepted[1]
    assert bench.given[-1].edge < first + 2 * latency  # one read each, at the same time
    assert len(bench.reads) == 6 + 4
    assert [given.address % PAGE for given in bench.given] == [0] + [0, 64] * 4


# Contents


def test_a_page_is_walked_for_once_until_it_is_replaced():
    pages = [TOP - PAGE * n for n in range(9)]
    bench = Bench(machine(iotlb_entries=8, iotlb_ways=8), mapped(*((p, 0x5000 + p % MEBIBYTE // 2) for p in pages)))

    async def software(b):
        await b.enable()
        for page in pages[:8] * 2:
            b.send(MRD, page)
            await b.settle()
        assert len(b.events["walked"]) == 8
        b.send(MRD, pages[8])
        await b.settle()
        for page in pages:
            b.send(MRD, page)
            await b.settle()

    bench.run(software)
    assert len(bench.events["walked"]) > 9
    assert bench.counters["hits_4k"] + bench.counters["misses"] == bench.counters["lookups"] == 26


@pytest.mark.parametrize("seed", range(4))
def test_random_requests_go_where_the_tables_say(seed):
    """Pages of both sizes, rights of every kind, holes, random delays everywhere; tables change between rounds."""
    rng = random.Random(seed)
    config = machine(
        iotlb_entries=rng.choice([4, 8]), iotlb_ways=rng.choice([1, 2, 4]), walks=rng.choice([1, 2, 5]),
        walk_cache=rng.choice([1, 3]), lookup_cycles=rng.choice([2, 5]), walk_read_ns=rng.choice([0.0, 3.0]),
    )  # fmt: skip
    tables = Tables()
    small = [TOP - PAGE * n for n in range(12)] + [0x8000_0000 + LARGE * n for n in range(3)]
    large = [0x4000_0000 + LARGE * n for n in range(3)]

    def remap():
        for page in small:
            tables.map(page, rng.randrange(128) * PAGE, rng.choice([READ | WRITE] * 4 + [READ, WRITE, 0]))
        for page in large:
            tables.map(page, rng.randrange(4) * LARGE, rng.choice([READ | WRITE, READ]), large=True)

    remap()
    bench = Bench(
        config, tables, seed, latency=lambda r: r.randrange(1, 30),
        push=rng.choice([0.5, 1.0]), pull=rng.choice([0.4, 1.0]), take=rng.choice([0.3, 1.0]),
    )  # fmt: skip
    expected = []

    async def software(b):
        await b.enable()
        for _ in range(4):
            for _ in range(40):
                kind = rng.choice([MRD, MWR])
                page = rng.choice(small + [big + PAGE * rng.randrange(512) for big in large] + [0x1000])
                line = rng.randrange(60)
                address, tag = page + 64 * line + rng.randrange(64), len(expected) % 256
                length = rng.choice([1, 64, 190])
                if rng.random() < 0.1:
                    kind, address = rng.choice([(CPL, 0), (MWR, MSI_BASE + 0x1000)])
                    expected.append((kind, address, tag, False))
                else:
                    physical, reason = tables.translate(address, kind is MWR)
                    expected.append((kind, address if reason else physical, tag, bool(reason)))
                b.send(kind, address, tag, length)
            await b.settle()
            remap()
            await b.invalidate(rng.choice([Granularity.GLOBAL, Granularity.DOMAIN]))

    bench.run(software)
    assert [(given.kind, given.address, given.tag, given.blocked) for given in bench.given] == expected
    assert all(given.data == [given.tag << 8 | i for i in range(given.beats)] for given in bench.given)
    faults = sum(blocked for *_, blocked in expected)
    assert bench.counters["register_file.faults"] == faults > 10


# Faults


def broken(how: str) -> tuple[Tables, int, int]:
    """Tables with a mistake, the address that meets it, and the reason it should give."""
    tables = mapped((TOP, 0x5000))
    words = tables.words
    address = TOP
    match how:
        case "root not present":
            words[tables.root + 16] = 0
        case "root reserved":
            words[tables.root + 16] |= 1 << 4
        case "root beyond memory":
            tables.root = MEBIBYTE
        case "context table beyond memory":
            words[tables.root + 16] = MEBIBYTE | 1
        case "context not present":
            words[tables.contexts] = 0
        case "context reserved":
            words[tables.contexts + 8] |= 1 << 40
        case "context of three levels":
            tables.context(width=1)
        case "context with device TLB":
            tables.context(translation_type=1)
        case "page table beyond memory":
            words[tables.entry(TOP, 1)] = 2 * MEBIBYTE | READ | WRITE
        case "entry reserved":
            words[tables.entry(TOP, 0)] |= 1 << 45
        case "page of 1 GiB":
            words[tables.entry(TOP, 2)] |= 1 << 7
        case "large page not aligned":
            words[tables.entry(TOP, 1)] |= 1 << 7
        case "beyond the width":
            address = 1 << 37
        case "no right in the directory":
            words[tables.entry(TOP, 1)] &= ~WRITE
        case "nothing there":
            words[tables.entry(TOP, 0)] = 0
        case "nothing at the top":
            words[tables.entry(TOP, 3)] = 0
    return tables, address, tables.translate(address, True)[1]


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("root not present", 1), ("root reserved", 0xA), ("root beyond memory", 8), ("context table beyond memory", 9),
        ("context not present", 2), ("context reserved", 0xB), ("context of three levels", 3),
        ("context with device TLB", 3), ("page table beyond memory", 7), ("entry reserved", 0xC),
        ("page of 1 GiB", 0xC), ("large page not aligned", 0xC), ("beyond the width", 4),
        ("no right in the directory", 5), ("nothing there", 5), ("nothing at the top", 5),
    ],
)  # fmt: skip
def test_every_fault_stops_the_access_and_reaches_software(how, reason):
    tables, address, expected = broken(how)
    assert expected == reason or how == "beyond the width"
    bench = Bench(machine(address_width=36), tables)

    async def software(b):
        await b.write(DMAR.FEDATA, 0x21)
        await b.write(DMAR.FEADDR, MSI_BASE | 1 << 12)
        await b.write(DMAR.FECTL, 0)
        await b.enable()
        b.send(MWR, address + 64, length=128)
        await b.settle()
        await b.wait(3)
        assert await b.read(DMAR.FSTS) == DMAR.FSTS.PPF.mask
        assert await b.read(DMAR.FRCD_LOW) == address
        record = await b.read(DMAR.FRCD_HIGH)
        assert record == DMAR.FRCD_HIGH.F.mask | DMAR.FRCD_HIGH.FR.put(reason) | 0x0100
        await b.access(DMAR.FRCD_HIGH.offset + 4, 1 << 31)
        assert await b.read(DMAR.FSTS) == 0

    bench.run(software)
    assert bench.given[0].blocked
    assert [(core, vector) for _, core, vector in bench.interrupts] == [(1, 0x21)]


def test_records_are_used_in_turn_and_what_finds_none_is_told():
    bench = Bench(machine(), Tables())
    frcd, size = DMAR.FRCD_HIGH, 16

    async def software(b):
        await b.enable()
        for number in range(FAULT_RECORDS + 2):
            b.send(MRD if number % 2 else MWR, PAGE * (16 + number))
        await b.settle()
        await b.wait(2)
        assert await b.read(DMAR.FSTS) == DMAR.FSTS.PPF.mask | DMAR.FSTS.PFO.mask
        assert await b.read(DMAR.FECTL) == DMAR.FECTL.IM.mask | DMAR.FECTL.IP.mask
        for number in range(FAULT_RECORDS):
            assert await b.access(DMAR.FRCD_LOW.offset + size * number, None, 8) == PAGE * (16 + number)
            record = await b.access(frcd.offset + size * number, None, 8)
            assert frcd.T.get(record) == number % 2
            assert frcd.FR.get(record) == 5 + number % 2
        # The first is freed: the next fault goes there again, behind the others
        await b.access(frcd.offset + 4, 1 << 31)
        await b.write(DMAR.FSTS, DMAR.FSTS.PFO.mask)
        assert await b.read(DMAR.FSTS) == DMAR.FSTS.PPF.mask | DMAR.FSTS.FRI.put(1)
        b.send(MRD, PAGE * 99)
        await b.settle()
        await b.wait(2)
        assert await b.read(DMAR.FRCD_LOW) == PAGE * 99
        assert not b.interrupts
        await b.write(DMAR.FEADDR, MSI_BASE)
        await b.write(DMAR.FECTL, 0)  # unmasked: what waits goes
        await b.wait(2)
        assert len(b.interrupts) == 1

    bench.run(software)
    assert bench.counters["register_file.faults"] == FAULT_RECORDS + 3
    assert bench.counters["register_file.faults_lost"] == 2


def test_a_fault_event_for_no_core_goes_nowhere_and_blocks_nothing():
    bench = Bench(machine(), Tables())

    async def software(b):
        await b.write(DMAR.FEADDR, MSI_BASE | 7 << 12)
        await b.write(DMAR.FECTL, 0)
        await b.enable()
        b.send(MRD, PAGE)
        await b.settle()
        await b.wait(3)
        assert await b.read(DMAR.FECTL) == 0

    bench.run(software)
    assert not bench.interrupts


# Invalidation and pass-through


def stale_pages(make=Iommu) -> list[int]:
    """Where packets go before and after invalidations of one page, and of a domain."""
    tables = mapped((TOP, 0x5000), (TOP - PAGE, 0x6000))
    bench = Bench(machine(iotlb_ways=8), tables, make=make)

    async def software(b):
        await b.enable()
        b.send(MRD, TOP)
        b.send(MRD, TOP - PAGE)
        await b.settle()
        tables.map(TOP, 0x7000)
        tables.map(TOP - PAGE, 0x8000)
        b.send(MRD, TOP)
        await b.settle()
        assert await b.invalidate(Granularity.PAGE, TOP | 1 << 6) == Granularity.PAGE
        b.send(MRD, TOP)
        b.send(MRD, TOP - PAGE)
        await b.settle()
        assert await b.invalidate(Granularity.PAGE, TOP | 3) == Granularity.DOMAIN  # more than one page
        b.send(MRD, TOP - PAGE)

    return [given.address for given in bench.run(software).given]


def test_a_stale_page_is_used_until_it_is_invalidated_and_never_after():
    assert stale_pages() == [0x5000, 0x6000, 0x5000, 0x7000, 0x6000, 0x8000]


@pytest.mark.parametrize("seed", range(4))
def test_invalidation_races(seed):
    """Requests keep coming while pages are remapped and invalidated: what was accepted after the command was given
    goes to the new frame, and all that went to the old one has left when it is done."""
    rng = random.Random(seed)
    pages = [TOP - PAGE * n for n in range(4)]
    tables = mapped(*((page, 0x10_000 + PAGE * n) for n, page in enumerate(pages)))
    bench = Bench(
        machine(walks=rng.choice([1, 3])),
        tables,
        seed,
        latency=lambda r: r.randrange(1, 20),
        pull=0.7,
        take=0.5,
        push=0.6,
    )
    history = {page: [(0, 0x10_000 + PAGE * n)] for n, page in enumerate(pages)}  # frames, each from an edge on
    done: list[tuple[int, int, int]] = []  # invalidations: edge, page, new frame
    sent = [(rng.choice([MRD, MWR]), rng.choice(pages) + 64 * rng.randrange(64)) for _ in range(300)]

    async def software(b):
        await b.enable()
        for number, (kind, address) in enumerate(sent):
            b.send(kind, address, tag=number % 256)
        for turn in range(12):
            await b.wait(rng.randrange(40))
            page, frame = rng.choice(pages), (0x20 + turn) * PAGE
            tables.map(page, frame)
            history[page].append((b.edge + 2, frame))  # the second access gives the command
            await b.invalidate(rng.choice([Granularity.PAGE, Granularity.GLOBAL]), page | rng.randrange(2) << 6)
            done.append((b.edge, page, frame))

    bench.run(software)
    assert len(bench.given) == len(sent)
    for (_, address), accepted, given in zip(sent, bench.accepted, bench.given, strict=True):
        page, frame = address & -PAGE, given.address & -PAGE
        old = max(edge for edge, _ in history[page] if edge <= accepted)
        assert frame in {new for edge, new in history[page] if old <= edge <= given.edge}
        assert all(
            frame != gone
            for edge, of, new in done
            if of == page and given.edge > edge
            for gone in _before(history[page], new)
        )


def _before(frames: list[tuple[int, int]], new: int) -> list[int]:
    """The frames that a page had before it got ``new``."""
    return [frame for _, frame in frames][: [frame for _, frame in frames].index(new)]


def test_an_invalidation_waits_for_accesses_under_way():
    bench = Bench(machine(), mapped((TOP, 0x5000)), drained=lambda edge: edge < 60 or edge > 200)

    async def software(b):
        await b.enable()
        b.send(MWR, TOP)
        await b.settle()
        await b.wait(61 - b.edge)
        await b.invalidate()
        assert b.edge > 200

    bench.run(software)


def test_pass_through_needs_no_page_tables():
    bench = Bench(machine(), Tables(translation_type=2))

    async def software(b):
        await b.enable()
        for number in range(5):
            b.send(MWR, PAGE * number + 8, tag=number)

    bench.run(software)
    assert [given.address for given in bench.given] == [PAGE * n + 8 for n in range(5)]
    assert not any(given.blocked for given in bench.given)
    assert {line for _, line in bench.reads} == {(Tables().root + 16) // 64, Tables().contexts // 64}


def test_translation_is_switched_off_again():
    bench = Bench(machine(), mapped((TOP, 0x5000)))

    async def software(b):
        await b.enable()
        b.send(MRD, TOP)
        await b.settle()
        await b.write(DMAR.GCMD, 0)
        await b.until(DMAR.GSTS, DMAR.GSTS.TES.mask, 0)
        b.send(MRD, TOP)

    bench.run(software)
    assert [given.address for given in bench.given] == [0x5000, TOP]


def test_a_new_context_takes_effect_once_the_caches_are_emptied():
    tables = mapped((TOP, 0x5000))
    bench = Bench(machine(), tables)

    async def software(b):
        await b.enable()
        b.send(MRD, TOP)
        await b.settle()
        tables.context(domain=9, translation_type=2)
        b.send(MRD, TOP)
        await b.settle()
        await b.write(DMAR.CCMD, DMAR.CCMD.ICC.mask | DMAR.CCMD.CIRG.put(1))
        await b.until(DMAR.CCMD, DMAR.CCMD.ICC.mask, 0)
        b.send(MRD, TOP)

    bench.run(software)
    assert [given.address for given in bench.given] == [0x5000, 0x5000, TOP]


def test_registers_tell_what_there_is():
    bench = Bench(machine(address_width=39), Tables())

    async def software(b):
        cap, ecap = await b.read(DMAR.CAP), await b.read(DMAR.ECAP)
        assert DMAR.CAP.MGAW.get(cap) == 38
        assert 16 * DMAR.CAP.FRO.get(cap) == DMAR.FRCD_LOW.offset
        assert DMAR.CAP.NFR.get(cap) == FAULT_RECORDS - 1
        assert 16 * DMAR.ECAP.IRO.get(ecap) == DMAR.IVA.offset
        assert await b.read(DMAR.VER) == 0x10
        assert await b.access(DMAR.CAP.offset + 4) == cap >> 32
        assert await b.access(0x800, None, 8) == 0
        await b.access(DMAR.RTADDR.offset, 0x1234_5FFF)
        assert await b.read(DMAR.RTADDR) == 0x1234_5000

    bench.run(software)


# Planted bugs


class Forgetful(Iommu):
    """Says that a page was invalidated and keeps it."""

    def __init__(self, config):
        super().__init__(config)
        elaborate = self.caches.elaborate

        def forgetful(platform):
            m = elaborate(platform)
            with m.If(self.caches.forgotten):
                m.d.comb += self.caches.small.write_enable.eq(0)
            return m

        self.caches.elaborate = forgetful


def test_a_stale_entry_after_an_invalidation_is_found():
    assert stale_pages(Forgetful) == [0x5000, 0x6000, 0x5000, 0x5000, 0x6000, 0x8000]


# Impossible units


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("iotlb_entries=0", "iommu.iotlb_entries must be between 1 and 4096, not 0"),
        ("iotlb_ways=3", "iommu.iotlb_entries = 8 is no multiple of 3 ways"),
        ("iotlb_entries=12", "sets) must be a power of two of at least 1, not 3"),
        ("walks=17", "iommu.walks must be between 1 and 16, not 17"),
        ("walk_cache=0", "iommu.walk_cache must be between 1 and 128, not 0"),
        ("walk_read_ns=2001.0", "iommu.walk_read_ns must be between 0 and 2000, not 2001.0"),
        ("lookup_cycles=1", "iommu.lookup_cycles must be between 2 and 64, not 1"),
        ("address_width=41", "iommu.address_width must be between 36 and 40, not 41"),
        ("enabled=1", "iommu.enabled must be true or false, not 1"),
    ],
)
def test_impossible_units_name_the_field_and_the_bound(setting, message):
    with pytest.raises(ConfigError) as error:
        load_machine("tiny", [f"iommu.{setting}"])
    assert message in str(error.value)


def test_a_walker_needs_walks():
    with pytest.raises(ValueError, match="at least one walk"):
        Walkers(0, 4, MEBIBYTE)
