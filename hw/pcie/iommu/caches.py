"""What the IOMMU remembers of page tables: the IOTLB and the paging-structure caches."""

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from hw.bus.translate import FRAME_WIDTH
from hw.config import IommuConfig
from hw.lib.associative_ram import AssociativeRAM

from .layouts import DOMAIN_WIDTH, PAGE_WIDTH, Fill

__all__ = ["DIRECTORY_CACHE", "TranslationCaches"]

#: Bits of a page's number within a page of 2 MiB, and within 1 GiB.
_LARGE, _GIB = 9, 18

#: Entries of the cache of page directories; a few, as each covers a GiB.
DIRECTORY_CACHE = 4

_SMALL_VALUE = data.StructLayout({"frame": FRAME_WIDTH, "read": 1, "write": 1})
_LARGE_VALUE = data.StructLayout({"frame": FRAME_WIDTH - _LARGE, "read": 1, "write": 1})


class TranslationCaches(wiring.Component):
    """IOTLB for pages of 4 KiB and 2 MiB, caches of page tables and of page directories; domain ``uncore``.

    All are looked up together: a page asked for at edge t by ``look`` is answered from then on until the next look,
    ``fill`` or ``forget``. Entries belong to the domain in whose name they were filled; pseudo-LRU decides who goes.

    A fill takes two edges: at the first its page is looked up, at the second what is not there yet is written
    (``fill.ready``). ``forget`` likewise: at the second edge (``forgotten``) the page's IOTLB entries are dropped.
    Meanwhile ``free`` is low for one cycle, in which no look is taken.

    Ports:
        look, page, domain: see above.
        free: a look is taken.
        hit, frame, read, write: of the IOTLB; ``large``: the page is of 2 MiB.
        table_hit, table, directory_hit, directory: of the paging-structure caches.
        use: at this edge the IOTLB's entry counts as used; ``use_structures``: those of the other caches.
        fill, forget, forgotten: see above.
        flush: at this edge the IOTLB is emptied; ``flush_structures``: the others.
        moving: the next edge changes something here.
    """

    def __init__(self, config: IommuConfig):
        def cache(entries: int, ways: int, key_width: int, value_width: int) -> AssociativeRAM:
            return AssociativeRAM(
                sets=entries // ways,
                ways=ways,
                key_width=DOMAIN_WIDTH + key_width,
                value_width=value_width,
                domain="uncore",
            )

        entries, ways = config.iotlb_entries, config.iotlb_ways
        self.small = cache(entries, ways, PAGE_WIDTH, _SMALL_VALUE.size)
        self.large = cache(entries, ways, PAGE_WIDTH - _LARGE, _LARGE_VALUE.size)
        self.tables = cache(config.walk_cache, config.walk_cache, PAGE_WIDTH - _LARGE, FRAME_WIDTH)
        self.directories = cache(DIRECTORY_CACHE, DIRECTORY_CACHE, PAGE_WIDTH - _GIB, FRAME_WIDTH)
        super().__init__(
            {
                "look": In(1),
                "page": In(PAGE_WIDTH),
                "domain": In(DOMAIN_WIDTH),
                "free": Out(1),
                "hit": Out(1),
                "is_large": Out(1),
                "frame": Out(FRAME_WIDTH),
                "read": Out(1),
                "write": Out(1),
                "asked": In(PAGE_WIDTH),  #: the page that is being answered
                "table_hit": Out(1),
                "table": Out(FRAME_WIDTH),
                "directory_hit": Out(1),
                "directory": Out(FRAME_WIDTH),
                "use": In(1),
                "use_structures": In(1),
                "fill": In(stream.Signature(Fill)),
                "forget": In(1),
                "forget_page": In(PAGE_WIDTH),
                "forget_domain": In(DOMAIN_WIDTH),
                "forgotten": Out(1),
                "flush": In(1),
                "flush_structures": In(1),
                "moving": Out(1),
            }
        )

    def elaborate(self, platform):
        """Place the caches, then looking up, answering, filling and forgetting."""
        m = Module()
        caches = {"small": self.small, "large": self.large, "tables": self.tables, "directories": self.directories}
        shift = {"small": 0, "large": _LARGE, "tables": _LARGE, "directories": _GIB}
        for name, cache in caches.items():
            m.submodules[name] = cache

        # Who looks: an entry that is to be filled or dropped goes first
        second = Signal()  # the second edge of a fill or a forget
        first = Signal()
        concerned, its_domain = Signal(PAGE_WIDTH), Signal(DOMAIN_WIDTH)  # the page of the fill, or to be dropped
        page, domain = Signal(PAGE_WIDTH), Signal(DOMAIN_WIDTH)  # who looks
        m.d.comb += [
            first.eq((self.fill.valid | self.forget) & ~second),
            self.free.eq(~first),
            concerned.eq(Mux(self.forget, self.forget_page, self.fill.payload.page)),
            its_domain.eq(Mux(self.forget, self.forget_domain, self.domain)),
            page.eq(Mux(first, concerned, self.page)),
            domain.eq(Mux(first, its_domain, self.domain)),
            self.moving.eq(first | second | self.flush | self.flush_structures),
            self.fill.ready.eq(second & ~self.forget),
            self.forgotten.eq(second & self.forget),
        ]
        m.d.uncore += second.eq(first)
        for name, cache in caches.items():
            number = page >> shift[name]
            m.d.comb += [
                cache.read_enable.eq(first | self.look),
                cache.read_set.eq(number[: ceil_log2(cache.sets)]),
                cache.read_key.eq(Cat(number[: PAGE_WIDTH - shift[name]], domain)),
                cache.flush.eq(self.flush if name in ("small", "large") else self.flush_structures),
            ]

        # Answer
        small, large = data.View(_SMALL_VALUE, self.small.value), data.View(_LARGE_VALUE, self.large.value)
        m.d.comb += [
            self.hit.eq(self.small.hit | self.large.hit),
            self.is_large.eq(self.large.hit),
            self.read.eq(Mux(self.large.hit, large.read, small.read)),
            self.write.eq(Mux(self.large.hit, large.write, small.write)),
            self.frame.eq(Mux(self.large.hit, Cat(self.asked[:_LARGE], large.frame), small.frame)),
            self.table_hit.eq(self.tables.hit),
            self.table.eq(self.tables.value),
            self.directory_hit.eq(self.directories.hit),
            self.directory.eq(self.directories.value),
        ]

        # Use, fill, forget: at the second edge the answer is about the entry concerned
        what = self.fill.payload
        filled = {
            "small": (what.leaf & ~what.large, Cat(what.frame, what.read, what.write)),
            "large": (what.leaf & what.large, Cat(what.frame[_LARGE:], what.read, what.write)),
            "tables": (what.table_known, what.table),
            "directories": (what.directory_known, what.directory),
        }
        for name, cache in caches.items():
            wanted, value = filled[name]
            write, drop = Signal(name=f"write_{name}"), Signal(name=f"drop_{name}")
            of_pages = name in ("small", "large")
            number = concerned >> shift[name]
            m.d.comb += [
                write.eq(self.fill.valid & self.fill.ready & wanted & ~cache.hit),
                drop.eq(self.forgotten & cache.hit if of_pages else 0),
                cache.touch.eq(write | ((self.use if of_pages else self.use_structures) & cache.hit)),
                cache.write_enable.eq(Mux(write | drop, cache.way, 0)),
                cache.write_valid.eq(write),
                cache.write_set.eq(number[: ceil_log2(cache.sets)]),
                cache.write_key.eq(Cat(number[: PAGE_WIDTH - shift[name]], its_domain)),
                cache.write_value.eq(value),
            ]
        return m
