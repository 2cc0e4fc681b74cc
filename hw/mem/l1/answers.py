"""From the data array, or from channel D, to the core."""

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from hw.bus.l1 import L1Load, L1LoadDone
from hw.bus.tilelink import LINE_BITS, LINE_BYTES

__all__ = ["LoadAnswers"]


class LoadAnswers(wiring.Component):
    """Picks a load's bytes out of its line and holds them until ``delay`` edges after ``valid``.

    With ``valid`` high at edge t, ``done_valid`` is high at edge t + ``delay``. A load whose line arrives is answered
    past that: with ``first_valid`` at edge t its answer comes at t + 1, or in the first cycle after that in which no
    other does. Wide registers change only when an answer passes.

    Arguments:
        delay: cycles of ``domain``, at least 2.
        domain: clock domain.
    """

    def __init__(self, *, delay: int, domain: str):
        if delay < 2:
            raise ValueError(f"answers take at least 2 cycles, not {delay}")
        self.delay, self.domain = delay, domain
        super().__init__(
            {
                "valid": In(1),
                "load": In(L1Load),
                "line_data": In(LINE_BITS),
                "first_ready": Out(1),  #: a load may be answered at once
                "first_valid": In(1),  #: only if ``first_ready``
                "first": In(L1Load),
                "first_data": In(LINE_BITS),
                "done_valid": Out(1),
                "done": Out(L1LoadDone),
                "busy": Out(1),  #: an answer is on its way, or being given
            }
        )

    def elaborate(self, platform):
        """Elaborate."""
        m = Module()
        valid = [Signal(name=f"valid{i}") for i in range(self.delay)]
        done = [Signal(L1LoadDone, name=f"done{i}") for i in range(self.delay)]
        held_valid, held, held_data = Signal(), Signal(L1Load), Signal(LINE_BITS)  # came when another was answered

        m.d[self.domain] += valid[0].eq(self.valid)
        with m.If(self.valid):
            self._pick(m, done[0], self.load, self.line_data)

        # Delay
        for i in range(1, self.delay):
            m.d[self.domain] += valid[i].eq(valid[i - 1])
            with m.If(valid[i - 1]):
                m.d[self.domain] += done[i].eq(done[i - 1])

        # Past it. Bytes are picked in one place only: compiled models then do it only when there is something to pick
        m.d.comb += self.first_ready.eq(~held_valid)
        with m.If(valid[-2]):
            with m.If(self.first_valid):
                m.d[self.domain] += [held_valid.eq(1), held.eq(self.first), held_data.eq(self.first_data)]
        with m.Elif(held_valid | self.first_valid):
            m.d[self.domain] += [held_valid.eq(0), valid[-1].eq(1)]
            load = L1Load(Mux(held_valid, held, self.first))
            self._pick(m, done[-1], load, Mux(held_valid, held_data, self.first_data))

        m.d.comb += [
            self.done_valid.eq(valid[-1]),
            self.done.eq(done[-1]),
            self.busy.eq(Cat(*valid, held_valid).any()),
        ]
        return m

    def _pick(self, m: Module, done: Signal, load: Value, line_data: Value) -> None:
        """Two right shifts: the bytes to the bottom, and a mask for as many of them as were asked for."""
        empty = LINE_BYTES - load.size
        mask = Const((1 << LINE_BITS) - 1, LINE_BITS) >> (empty[:7] << 3)
        m.d[self.domain] += [
            done.use.eq(load.use),
            done.id.eq(load.id),
            done.data.eq((line_data >> (load.offset << 3)) & mask),
        ]
