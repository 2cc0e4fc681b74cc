"""The second-level TLB: one set-associative array for pages of 4 KiB and 2 MiB."""

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from hw.bus.translate import FRAME_WIDTH, PAGE_WIDTH
from hw.lib.ram import RAM
from hw.mem.bit_plru import plru_touched, plru_victim
from hw.mem.llc_bits import index_width

from .page import PageSize, key_of

__all__ = ["SecondLevelTlb"]


class SecondLevelTlb(wiring.Component):
    """Read in one cycle, compared and written in the next.

    Both sizes share the sets: the index is the low bits of the page's number of its own size, exclusive-or the bits
    above them. (Hashes of this form were found in second-level TLBs of Intel's: Gras et al., "Translation
    Leak-aside Buffer", USENIX Security 2018.) So a page is looked for twice, once per size.

    An entry belongs to an epoch and is valid in that alone: to flush is to begin the next. Epoch 0 is never valid. When
    the epochs are used up, a sweep writes all rows, one per cycle, and the TLB is busy.

    Ports:
        read: at this edge, the row where ``page`` is if it is ``large`` (2 MiB) or not is read.
        hit: in the cycle after it: whether it is there.
        frame: where (for a large page: its first 4 KiB frame).
        touch: it is used. In that cycle, as:
        forget: drop it if it is there.
        write: let it enter with ``write_frame``; it is not there.
        flush: drop everything. Not in a cycle with a write.
        busy: sweeping; nothing is there, and what is read means nothing.

    Arguments:
        entries: number of entries.
        ways: of each set.
        domain: clock domain of the core.
        epoch_bits: width of the number of an epoch, at least 2.
    """

    def __init__(self, *, entries: int, ways: int, domain: str, epoch_bits: int = 12):
        sets = entries // ways
        if entries % ways or sets < 1 or sets & (sets - 1):
            raise ValueError(f"{entries} entries of {ways} ways are no power of two of sets")
        if epoch_bits < 2:
            raise ValueError(f"epochs need at least 2 bits, not {epoch_bits}")
        self.sets, self.ways, self.domain = sets, ways, domain
        self.set_bits = (sets - 1).bit_length()
        super().__init__(
            {
                "read": In(1),
                "page": In(PAGE_WIDTH),
                "large": In(1),
                "hit": Out(1),
                "frame": Out(FRAME_WIDTH),
                "touch": In(1),
                "forget": In(1),
                "write": In(1),
                "write_frame": In(FRAME_WIDTH),
                "flush": In(1),
                "busy": Out(1),
            }
        )
        tag = data.StructLayout({"epoch": epoch_bits, "large": 1, "number": PAGE_WIDTH - self.set_bits})
        self.entry = data.StructLayout({"tag": tag, "frame": FRAME_WIDTH})
        self.rows = RAM(width=ways * self.entry.size, depth=sets, lanes=ways, domain=domain)
        self.recent = RAM(width=ways, depth=sets, domain=domain)
        self._epoch = Signal(epoch_bits, init=1, name="epoch")
        self._sweeping = Signal(name="sweeping")
        self._sweep_set = Signal(index_width(sets), name="sweep_set")
        # What was read
        self._active = Signal(name="active")
        self._set = Signal(index_width(sets), name="set")
        self._tag = Signal(tag, name="tag")

    def elaborate(self, platform):
        """Elaborate."""
        m = Module()
        m.submodules.rows = self.rows
        m.submodules.recent = self.recent
        sync = m.d[self.domain]
        row = data.View(data.ArrayLayout(self.entry, self.ways), self.rows.read_data)
        recent = self.recent.read_data

        # Read
        number = Signal(PAGE_WIDTH)
        index = Signal.like(self._set)
        sync += self._active.eq(self.read)
        with m.If(self.read):
            large = key_of(self.page, PageSize.MIB_2)
            m.d.comb += [
                number.eq(Mux(self.large, large, self.page)),
                index.eq(number[: self.set_bits] ^ number[self.set_bits : 2 * self.set_bits]),
                self.rows.read_enable.eq(1),
                self.rows.read_address.eq(index),
                self.recent.read_enable.eq(1),
                self.recent.read_address.eq(index),
            ]
            sync += [
                self._set.eq(index),
                self._tag.number.eq(number[self.set_bits :]),
                self._tag.large.eq(self.large),
            ]

        # Compare
        tag = Signal(self.entry.members["tag"])
        matches = Signal(self.ways)
        m.d.comb += [tag.eq(self._tag), tag.epoch.eq(self._epoch)]
        with m.If(self._active):
            m.d.comb += [matches.eq(Cat(entry.tag == tag for entry in row)), self.hit.eq(matches.any())]
            for way, entry in enumerate(row):
                with m.If(matches[way]):
                    m.d.comb += self.frame.eq(entry.frame)

        # Change
        victim = Signal(self.ways)
        written = Signal(self.entry)
        m.d.comb += [self.rows.write_address.eq(self._set), self.recent.write_address.eq(self._set)]
        with m.If(self.write):
            valid = Cat(entry.tag.epoch == self._epoch for entry in row)
            m.d.comb += [
                victim.eq(plru_victim(recent, valid)),
                written.tag.eq(tag),
                written.frame.eq(self.write_frame),
                self.rows.write_enable.eq(victim),
                self.rows.write_data.eq(written.as_value().replicate(self.ways)),
            ]
        with m.Elif(self.forget):
            m.d.comb += self.rows.write_enable.eq(matches)
        with m.If(self.write | self.touch):
            m.d.comb += [
                self.recent.write_enable.eq(1),
                self.recent.write_data.eq(plru_touched(recent, matches | victim)),
            ]

        # Flush
        m.d.comb += self.busy.eq(self._sweeping)
        with m.If(self._sweeping):
            m.d.comb += [self.rows.write_enable.eq(~0), self.rows.write_address.eq(self._sweep_set)]
            sync += [
                self._sweep_set.eq(self._sweep_set + 1),
                self._sweeping.eq(self._sweep_set != self.sets - 1),
            ]
        with m.Elif(self.flush):
            sync += self._epoch.eq(self._epoch + 1)
            with m.If(self._epoch.all()):
                sync += [self._epoch.eq(1), self._sweeping.eq(1), self._sweep_set.eq(0)]
        return m
