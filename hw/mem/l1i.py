"""The L1 instruction cache: tags without instructions."""

from amaranth.hdl import Cat, Module, Mux, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from hw.bus.fetch import FETCH_TAG_WIDTH, FetchPort, TextPort
from hw.bus.tilelink import LINE_ADDRESS_WIDTH
from hw.config import L1iConfig
from hw.lib.associative_ram import AssociativeRAM
from hw.lib.probe import Counter, Probe

from .llc_bits import encode, index_width, lowest, one_hot

__all__ = ["L1ICache"]

#: Consecutive lines looked up per cycle; at most half as many as there are sets, so that no set is read at the edge at
#: which the lookup before marks it as used.
BANKS = 4


class L1ICache(wiring.Component):
    """Looks up the text of an EXECUTE, line by line in order, and fetches what is missing from the L2 cache.

    Started at edge t, it looks up as many as four consecutive lines in each cycle from t + 1 on, up to and including
    the first that is missing. That one gets an MSHR and is offered to the L2 in the next cycle, while the lookup goes
    on behind it. So n lines that all hit keep it busy for ceil(n / 4) cycles, and never stall; a line found missing in
    cycle c, offered in c + 1 and answered at edge d stalls from c + 1 up to and including d. The lookup stands while
    every MSHR is taken or a request is not accepted, and pauses for a cycle when an answer fills a set it would read.

    The way to replace is chosen when the line is missed, by bit pseudo-LRU. Text is never written: nothing is
    invalidated.

    Ports:
        text: the core port's, see :class:`hw.bus.fetch.TextPort`.
        l2: to the L2 cache.
        quiet: see docs/architecture.md.

    Arguments:
        l1i: sizes.
        domain: clock domain of the core.

    Attributes:
        miss: probe.
        lines, misses: counters.
    """

    def __init__(self, l1i: L1iConfig, domain: str):
        self.l1i, self.domain = l1i, domain
        super().__init__({"text": In(TextPort()), "l2": Out(FetchPort()), "quiet": Out(1)})

        self._bank_count = min(BANKS, l1i.sets // 2)
        self._bank_bits = (self._bank_count - 1).bit_length()
        self._set_bits = (l1i.sets - 1).bit_length()
        self.banks = [
            AssociativeRAM(
                sets=l1i.sets // self._bank_count,
                ways=l1i.ways,
                key_width=LINE_ADDRESS_WIDTH - self._set_bits,
                domain=domain,
            )
            for _ in range(self._bank_count)
        ]
        self.miss = Probe(domain, "a line of text was missed", line=LINE_ADDRESS_WIDTH)
        self.lines = Counter(domain, "lines of text looked up")
        self.misses = Counter(domain, "lines of text asked of the L2")

        # The next line to look up, lines left, whether its tags have been read, whether it waits for an MSHR
        self._line = Signal(LINE_ADDRESS_WIDTH, name="line")
        self._left = Signal(16, name="left")
        self._looking = Signal(name="looking")
        self._stuck = Signal(name="stuck")
        # MSHRs: taken; for text that is still wanted
        self._taken = Signal(l1i.mshrs, name="taken")
        self._awaited = Signal(l1i.mshrs, name="awaited")
        self._mshr_lines = [Signal(LINE_ADDRESS_WIDTH, name=f"mshr{i}_line") for i in range(l1i.mshrs)]
        self._mshr_ways = [Signal(l1i.ways, name=f"mshr{i}_way") for i in range(l1i.mshrs)]
        # The request to the L2
        self._offered = Signal(name="offered")
        self._request_tag = Signal(FETCH_TAG_WIDTH, name="request_tag")
        self._request_line = Signal(LINE_ADDRESS_WIDTH, name="request_line")

        # What this cycle's lookup finds: lines that it leaves behind, and the first that is missing
        self._advance = Signal(range(self._bank_count + 1), name="advance")
        self._missing = Signal(name="missing")
        self._missing_line = Signal(LINE_ADDRESS_WIDTH, name="missing_line")
        self._victim = Signal(l1i.ways, name="victim")
        # Its MSHR (one-hot): a new one, or the one it has already
        self._allocate = Signal(l1i.mshrs, name="allocate")
        self._attach = Signal(l1i.mshrs, name="attach")
        self._answered = Signal(l1i.mshrs, name="answered")

    def elaborate(self, platform):
        """Elaborate."""
        m = Module()
        for index, bank in enumerate(self.banks):
            m.submodules[f"bank{index}"] = bank
        self._read(m)
        with m.If(self._looking & ~self.text.cancel):
            self._look_up(m)
        self._ask(m)
        self._fill(m)
        self._observe(m)
        return m

    def _rotated(self, bits: Value, first: Value) -> Value:
        """From the order of lines, of which the first is in bank ``first``, to the order of banks."""
        return (Cat(bits, bits) << first)[self._bank_count : 2 * self._bank_count]

    def _read(self, m: Module) -> None:
        """Go on behind the lines left behind: read the tags of the next."""
        sync = m.d[self.domain]
        text = self.text
        line = Signal(LINE_ADDRESS_WIDTH)
        left = Signal.like(self._left)
        read = Signal()
        clash = Signal()
        m.d.comb += [line.eq(self._line + self._advance), left.eq(self._left - self._advance)]
        with m.If(text.start):
            m.d.comb += [line.eq(text.line), left.eq(text.lines), read.eq(1)]
            sync += [self._line.eq(line), self._left.eq(left)]
        with m.Elif(text.cancel):
            sync += [self._left.eq(0), self._looking.eq(0)]
        with m.Elif(self._advance.any()):
            m.d.comb += read.eq(left.any())
            sync += [self._line.eq(line), self._left.eq(left), self._looking.eq(0)]
        with m.Elif(self._left.any() & ~self._looking):
            m.d.comb += read.eq(1)

        with m.If(read):
            sync += self._looking.eq(~clash)
            first, here, following = line[: self._bank_bits], line[self._bank_bits :], Signal(LINE_ADDRESS_WIDTH)
            m.d.comb += following.eq(here + 1)
            for index, bank in enumerate(self.banks):
                place = Mux(first > index, following, here)[: len(here)]
                m.d.comb += [bank.read_enable.eq(1), *self._place(bank.read_set, bank.read_key, place)]
                # What is read while its set is being filled is not right any more
                with m.If(bank.write_enable.any() & (bank.write_set == bank.read_set)):
                    m.d.comb += clash.eq(1)

    def _place(self, row: Signal, tag: Signal, place: Value) -> list:
        """Assign row and tag of a line in its bank."""
        row_bits = self._set_bits - self._bank_bits
        return [row.eq(place[:row_bits]), tag.eq(place[row_bits:])]

    def _look_up(self, m: Module) -> None:
        """Leave behind lines that are there, and the first that is not, once it has an MSHR."""
        count = self._bank_count
        first = Signal(index_width(count))
        hits, found, misses = Signal(count), Signal(count), Signal(count)
        m.d.comb += [
            first.eq(self._line[: self._bank_bits]),
            hits.eq(Cat(bank.hit for bank in self.banks)),
            found.eq(Cat(hits, hits) >> first),
            misses.eq(Cat(~found[i] & (self._left > i) for i in range(count))),
            self._missing.eq(misses.any()),
        ]
        with m.If(self._missing):
            behind = encode(lowest(misses))
            missing_bank = self._rotated(lowest(misses), first)
            m.d.comb += self._missing_line.eq(self._line + behind)
            for index, bank in enumerate(self.banks):
                with m.If(missing_bank[index]):
                    m.d.comb += self._victim.eq(bank.way)
            for index, line in enumerate(self._mshr_lines):
                m.d.comb += self._attach[index].eq(self._taken[index] & (line == self._missing_line))
            with m.If(~self._attach.any() & (~self._offered | self.l2.request.ready)):
                m.d.comb += self._allocate.eq(lowest(~self._taken))
            with m.If((self._attach | self._allocate).any()):
                m.d.comb += self._advance.eq(behind + 1)
        with m.Else():
            m.d.comb += self._advance.eq(Mux(self._left < count, self._left, count))

        behind_bank = self._rotated(Cat(self._advance > i for i in range(count)), first)
        for index, bank in enumerate(self.banks):
            m.d.comb += bank.touch.eq(behind_bank[index] & (bank.hit | self._allocate.any()))

    def _ask(self, m: Module) -> None:
        """MSHRs and the request to the L2."""
        sync = m.d[self.domain]
        request = self.l2.request
        m.d.comb += [
            request.valid.eq(self._offered),
            request.payload.tag.eq(self._request_tag),
            request.payload.line.eq(self._request_line),
        ]
        with m.If(request.ready):
            sync += self._offered.eq(0)
        with m.If(self._allocate.any()):
            sync += [
                self._offered.eq(1),
                self._request_tag.eq(encode(self._allocate)),
                self._request_line.eq(self._missing_line),
            ]
            for index, (line, way) in enumerate(zip(self._mshr_lines, self._mshr_ways, strict=True)):
                with m.If(self._allocate[index]):
                    sync += [line.eq(self._missing_line), way.eq(self._victim)]
        sync += [
            self._taken.eq((self._taken | self._allocate) & ~self._answered),
            self._awaited.eq((self._awaited | self._allocate | self._attach) & ~self._answered),
            self._stuck.eq(self._missing & ~self._advance.any()),
        ]
        with m.If(self.text.cancel):
            sync += self._awaited.eq(0)

    def _fill(self, m: Module) -> None:
        """An answer of the L2 fills the way that was chosen for it."""
        line = Signal(LINE_ADDRESS_WIDTH)
        way = Signal(self.l1i.ways)
        with m.If(self.l2.done_valid):
            m.d.comb += self._answered.eq(one_hot(self.l2.done.tag, self.l1i.mshrs))
            for index in range(self.l1i.mshrs):
                with m.If(self._answered[index]):
                    m.d.comb += [line.eq(self._mshr_lines[index]), way.eq(self._mshr_ways[index])]
            for index, bank in enumerate(self.banks):
                with m.If(line[: self._bank_bits] == index):
                    m.d.comb += bank.write_enable.eq(way)
        for bank in self.banks:
            m.d.comb += [
                bank.write_valid.eq(1),
                *self._place(bank.write_set, bank.write_key, line[self._bank_bits :]),
            ]

    def _observe(self, m: Module) -> None:
        """What the core port sees, probes, counters, quiet."""
        text, busy = self.text, Signal()
        m.d.comb += [
            busy.eq(self._left.any() | self._awaited.any()),
            text.busy.eq(busy),
            text.stall.eq(self._awaited.any() | self._stuck),
            self.quiet.eq(
                ~(text.start | (text.cancel & busy) | self.l2.done_valid | (self._offered & self.l2.request.ready))
                & (self._left.any() == self._looking)
                & (self._stuck == (self._missing & ~self._advance.any()))
                & ~self._advance.any()
            ),
        ]
        self.miss.emit(m, self._allocate.any(), line=self._missing_line)
        self.misses.increment(m, self._allocate.any())
        self.lines.increment(m, self._advance.any(), self._advance)
