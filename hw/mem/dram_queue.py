"""The requests a DRAM controller holds, oldest first."""

from amaranth.hdl import Array, Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from hw.bus.memory import MemoryOp
from hw.config import DramConfig

from .dram_timing import DramCommand, place_layout

__all__ = ["DramQueue", "request_layout"]


def request_layout(config: DramConfig, slot_width: int) -> data.StructLayout:
    """A request as the queue holds it; the data of a write waits elsewhere, in ``slot``."""
    return data.StructLayout({"place": place_layout(config), "op": MemoryOp, "tag": 8, "slot": slot_width})


class DramQueue(wiring.Component):
    """A queue in order of age from which any request can be taken: those behind it move up.

    For each request it keeps what the scheduler asks in every cycle, as one vector per question: is it a write,
    is its row open (``hit``), must it wait for an older one (``blocked``). The last keeps two requests to one line
    in order when at least one of them is a write: when a request leaves, the next of its line is released, and with
    it all reads of the line before the next write.

    A request accepted at one edge is in the vectors after that edge.

    Attributes:
        request: accepted whenever there is a place.
        valid, write, hit, blocked: one bit per request, the oldest in bit 0. ``hit`` and ``blocked`` mean something
            only where ``valid`` is high; the valid bits have no gaps.
        bank: bank of each request.
        open: banks with an open row.
        pick: the request the scheduler has chosen; ``picked`` is its contents, ``picked_opened`` and
            ``picked_closed`` tell whether an ACT, a PRE was issued to serve it.
        issue, command, command_bank: the command issued at this edge. RD and WR take the picked request out, ACT
            opens its row.
        serves: that command serves the picked request (and not a refresh).
    """

    def __init__(self, config: DramConfig, slot_width: int):
        self.config = config
        self.layout = request_layout(config, slot_width)
        size = config.queue
        bank_width = exact_log2(config.channel_banks)
        super().__init__(
            {
                "request": In(stream.Signature(self.layout)),
                "valid": Out(size),
                "write": Out(size),
                "hit": Out(size),
                "blocked": Out(size),
                "bank": Out(bank_width).array(size),
                "open": In(config.channel_banks),
                "pick": In(range(size)),
                "picked": Out(self.layout),
                "picked_opened": Out(1),
                "picked_closed": Out(1),
                "issue": In(1),
                "command": In(DramCommand),
                "command_bank": In(bank_width),
                "serves": In(1),
            }
        )
        self._entries = [Signal(self.layout, name=f"entry{index}") for index in range(size)]

    def elaborate(self, platform):
        """Elaborate: the requests themselves, then the vectors beside them."""
        m = Module()
        size = self.config.queue
        entries = self._entries
        opened, closed = Signal(size), Signal(size)
        new = self.request.payload

        # Taking one out moves the younger ones up; a new one goes behind the last.
        remove, accept = Signal(), Signal()
        valid_left, vacancy = Signal(size), Signal(size)
        older = Signal(size)
        m.d.comb += [
            self.request.ready.eq(~self.valid[-1]),
            accept.eq(self.request.valid & self.request.ready),
            remove.eq(self.issue & ((self.command == DramCommand.RD) | (self.command == DramCommand.WR))),
            valid_left.eq(Mux(remove, self.valid >> 1, self.valid)),
            vacancy.eq(Cat(1, valid_left) & ~valid_left),
            older.eq((1 << self.pick) - 1),
        ]

        def moved_up(vector: Value) -> Value:
            return Mux(remove, (vector & older) | (vector >> 1) & ~older, vector)

        m.d.dram += self.valid.eq(valid_left | accept.replicate(size) & vacancy)
        with m.If(remove):
            for index in range(size - 1):
                with m.If(self.pick <= index):
                    m.d.dram += entries[index].eq(entries[index + 1])
        with m.If(accept):
            for index in range(size):
                with m.If(vacancy[index]):
                    m.d.dram += entries[index].eq(new)

        # What the scheduler has chosen
        m.d.comb += [
            self.picked.eq(Array(entries)[self.pick]),
            self.picked_opened.eq(opened.bit_select(self.pick, 1)),
            self.picked_closed.eq(closed.bit_select(self.pick, 1)),
        ]
        m.d.comb += [bank.eq(entry.place.bank) for bank, entry in zip(self.bank, entries, strict=True)]

        # Open row: of those waiting, and of the new one, whose bank may change at this very edge. Comparisons of all
        # requests stand inside the conditions under which they matter, so that they simulate fast.
        opens, closes, new_hit, hit = Signal(), Signal(), Signal(), Signal(size)
        place = self.picked.place
        rows: Memory = Memory(shape=len(place.row), depth=self.config.channel_banks, init=[])
        m.submodules.open_rows = rows
        row_written, row_asked = rows.write_port(domain="dram"), rows.read_port(domain="comb")
        m.d.comb += [
            opens.eq(self.issue & (self.command == DramCommand.ACT)),
            closes.eq(self.issue & (self.command == DramCommand.PRE)),
            row_written.en.eq(opens),
            row_written.addr.eq(place.bank),
            row_written.data.eq(place.row),
            row_asked.addr.eq(new.place.bank),
            new_hit.eq(self.open.bit_select(new.place.bank, 1) & (row_asked.data == new.place.row)),
            hit.eq(self.hit),
        ]
        with m.If((opens | closes) & (new.place.bank == self.command_bank)):
            m.d.comb += new_hit.eq(opens & (new.place.row == place.row))
        with m.If(opens):
            in_row = [(entry.place.bank == place.bank) & (entry.place.row == place.row) for entry in entries]
            m.d.comb += hit.eq(self.hit | Cat(in_row))
        with m.If(closes):
            m.d.comb += hit.eq(self.hit & Cat(bank != self.command_bank for bank in self.bank))

        # Order of requests to one line
        staying, waiting, new_write, new_blocked = Signal(size), Signal(size), Signal(), Signal()
        m.d.comb += [
            new_write.eq(new.op == MemoryOp.WRITE),
            staying.eq(self.valid & ~(remove << self.pick)),
            waiting.eq(self.blocked),
        ]
        with m.If(accept):
            same_line = Cat(entry.place == new.place for entry in entries)
            m.d.comb += new_blocked.eq((same_line & staying & (self.write | new_write.replicate(size))).any())
        with m.If(remove):
            followers, writes, oldest = Signal(size), Signal(size), Signal(size)
            m.d.comb += [
                followers.eq(Cat(entry.place == place for entry in entries) & staying),
                writes.eq(followers & self.write),
                oldest.eq(followers & -followers),
                waiting.eq(self.blocked & ~(oldest | followers & ((writes & -writes) - 1))),
            ]

        # The vectors follow the requests
        served = (self.issue & self.serves) << self.pick
        for vector, now, of_new in (
            (self.write, self.write, new_write),
            (self.hit, hit, new_hit),
            (self.blocked, waiting, new_blocked),
            (opened, opened | opens.replicate(size) & served, Const(0)),
            (closed, closed | closes.replicate(size) & served, Const(0)),
        ):
            m.d.dram += vector.eq(moved_up(now))
            with m.If(accept):
                m.d.dram += vector.eq(moved_up(now) & ~vacancy | of_new.replicate(size) & vacancy)
        return m
