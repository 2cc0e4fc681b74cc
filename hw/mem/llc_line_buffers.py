"""The lines that transactions of the last-level cache work on, and the bytes that devices write into them."""

from amaranth.hdl import Cat, Const, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from hw.bus.memory import DramResponse
from hw.bus.tilelink import LINE_BITS, LINE_BYTES
from hw.lib.ram import RAM

from .llc_layouts import LlcLayouts

__all__ = ["LineBuffers"]


class LineBuffers(wiring.Component):
    """Two buffers per slot, one line each: its own line, and a *spare* for a line that leaves the cache.

    A request that writes part of a line brings its byte mask at acceptance; whatever arrives for that slot later
    fills the other bytes only. This merges partial writes.

    **Writes**, one per cycle, first come first: ``load`` (from the cache, cannot wait), the line being moved,
    ``returned`` (from channel C; taken unless ``busy``), ``arrived`` (from DRAM), ``accepted``'s data (a
    device's; possible when ``idle``).

    **Reads**, one per cycle: ``fill`` (towards the cache, cannot wait), ``move``, then ``want`` of each output in
    order. ``line`` holds what was read in the next cycle. A ``move`` copies a slot's own line to another slot;
    it may be asked for unless ``move_busy``.
    """

    def __init__(self, layouts: LlcLayouts, outputs: int, domain: str):
        self.domain = domain
        self._layouts, self._outputs = layouts, outputs
        slot = layouts.slot_width
        place = data.StructLayout({"spare": 1, "slot": slot})
        super().__init__(
            {
                "load": In(1),
                "load_next": In(1),  # there will be a load in the next cycle
                "load_place": In(place),
                "load_line": In(LINE_BITS),
                "busy": Out(1),
                "returned": In(1),
                "returned_place": In(place),
                "returned_line": In(LINE_BITS),
                "arrived": In(stream.Signature(DramResponse)),
                "idle": Out(1),
                "accepted": In(1),  # a slot is given to a new request
                "accepted_slot": In(slot),
                "accepted_mask": In(LINE_BYTES),  # bytes it writes
                "accepted_line": In(LINE_BITS),
                "fill": In(1),
                "fill_place": In(place),
                "move_busy": Out(1),
                "move": In(1),
                "move_from": In(slot),
                "move_to": In(place),
                "moving": Out(1),
                "want": In(outputs),
                "want_place": In(place).array(outputs),
                "granted": Out(outputs),
                "line": Out(LINE_BITS),
            }
        )
        self.lines = RAM(width=LINE_BITS, depth=2 << slot, lanes=LINE_BYTES, domain=domain)

    def elaborate(self, platform):
        """Elaborate."""
        m = Module()
        m.submodules.lines = self.lines
        self._write(m)
        self._read(m)
        return m

    def _write(self, m):
        lines = self.lines
        place = Signal.like(self.load_place)
        m.submodules.masks = masks = Memory(shape=LINE_BYTES, depth=1 << self._layouts.slot_width, init=[])
        mask, new_mask = masks.read_port(domain="comb"), masks.write_port(domain=self.domain)
        kept = Signal(LINE_BYTES)  # bytes that are the device's
        self._move_to = Signal.like(self.move_to)
        m.d.comb += [
            new_mask.en.eq(self.accepted),
            new_mask.addr.eq(self.accepted_slot),
            new_mask.data.eq(self.accepted_mask),
            mask.addr.eq(place.slot),
            kept.eq(Mux(place.spare, 0, mask.data)),
            lines.write_address.eq(place),
            self.busy.eq(self.load | self.moving),
            self.idle.eq(~(self.busy | self.returned | self.arrived.valid)),
        ]
        with m.If(self.load):
            m.d.comb += [
                place.eq(self.load_place),
                lines.write_enable.eq(~kept),
                lines.write_data.eq(self.load_line),
            ]
        with m.Elif(self.moving):
            m.d.comb += [
                place.eq(self._move_to),
                lines.write_enable.eq(~kept),
                lines.write_data.eq(lines.read_data),
            ]
        with m.Elif(self.returned):
            m.d.comb += [
                place.eq(self.returned_place),
                lines.write_enable.eq(~kept),
                lines.write_data.eq(self.returned_line),
            ]
        with m.Elif(self.arrived.valid):
            m.d.comb += [
                self.arrived.ready.eq(1),
                place.slot.eq(self.arrived.payload.tag),
                lines.write_enable.eq(~kept),
                lines.write_data.eq(self.arrived.payload.data),
            ]
        with m.Elif(self.accepted):
            m.d.comb += [
                place.slot.eq(self.accepted_slot),
                lines.write_enable.eq(self.accepted_mask),
                lines.write_data.eq(self.accepted_line),
            ]

    def _read(self, m):
        lines = self.lines
        m.d.comb += [
            self.line.eq(lines.read_data),
            # The line moved is written one cycle after it is read, when nothing else may be.
            self.move_busy.eq(self.fill | self.load_next),
        ]
        m.d[self.domain] += self.moving.eq(self.move)
        with m.If(self.fill):
            m.d.comb += [lines.read_enable.eq(1), lines.read_address.eq(self.fill_place)]
        with m.Elif(self.move):
            m.d.comb += [lines.read_enable.eq(1), lines.read_address.eq(Cat(Const(0, 1), self.move_from))]
            m.d[self.domain] += self._move_to.eq(self.move_to)
        for i in range(self._outputs):
            with m.Elif(self.want[i]):
                m.d.comb += [
                    self.granted[i].eq(1),
                    lines.read_enable.eq(1),
                    lines.read_address.eq(self.want_place[i]),
                ]
