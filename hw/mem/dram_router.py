"""Spreads the last level's requests over the channels of the DRAM."""

import functools
import operator

from amaranth.hdl import Array, Cat, Module, Mux, Signal, Value
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from hw.bus.memory import DramPort
from hw.bus.tilelink import LINE_ADDRESS_WIDTH
from hw.config import DramConfig, MachineConfig
from hw.lib.round_robin import round_robin

__all__ = ["DramRouter"]


class DramRouter(wiring.Component):
    """Between the last level and the controllers, domain ``uncore``; it takes no time. With one channel it is wires.

    The bits of a line's number that ``dram.mapping`` calls ``channel`` pick its channel, with ``dram.channel_hash``
    after every other bit of the number has been XORed into them: then no stride keeps to one channel. The channel's
    controller gets the number without those bits, so that each channel's lines are numbered without gaps.

    Answers of the channels take turns at the last level's port; one that has been offered stays until it is taken.

    Attributes:
        cache: the last level.
        channel: one per controller.
    """

    def __init__(self, config: MachineConfig):
        self.config = config.dram
        super().__init__({"cache": In(DramPort()), "channel": Out(DramPort()).array(self.config.channels)})

    def elaborate(self, platform):
        """Elaborate: the way there, then the way back."""
        m = Module()
        if self.config.channels == 1:
            wiring.connect(m, wiring.flipped(self.cache), wiring.flipped(self.channel[0]))
            return m
        self._elaborate_requests(m)
        self._elaborate_answers(m)
        return m

    def _elaborate_requests(self, m: Module) -> None:
        request = self.cache.request
        line = _line_layout(self.config)(request.payload.line)
        others = Cat(line.below, line.above)
        width = len(line.channel)
        number = Signal(width)
        m.d.comb += number.eq(line.channel ^ _folded(others, width) if self.config.channel_hash else line.channel)
        m.d.comb += request.ready.eq(Array(channel.request.ready for channel in self.channel)[number])
        for index, channel in enumerate(self.channel):
            m.d.comb += [
                channel.request.valid.eq(request.valid & (number == index)),
                channel.request.payload.eq(request.payload),
                channel.request.payload.line.eq(others),
            ]

    def _elaborate_answers(self, m: Module) -> None:
        answer = self.cache.response
        served, waits = Signal(range(self.config.channels)), Signal()
        offered = [channel.response.valid for channel in self.channel]
        choice = round_robin(m, offered, served)
        chosen = Signal.like(served)
        m.d.comb += [
            chosen.eq(Mux(waits, served, choice)),
            answer.valid.eq(Cat(offered).any()),
            answer.payload.eq(Array(channel.response.payload.as_value() for channel in self.channel)[chosen]),
        ]
        for index, channel in enumerate(self.channel):
            m.d.comb += channel.response.ready.eq(answer.ready & (chosen == index))
        with m.If(answer.valid):
            m.d.uncore += [served.eq(chosen), waits.eq(~answer.ready)]


def _line_layout(config: DramConfig) -> data.StructLayout:
    """The number of a line: the channel, and what lies below and above it."""
    order, width = config.mapping.split(), exact_log2(config.channels)
    widths = {
        "group": exact_log2(config.bank_groups),
        "column": exact_log2(config.lines_per_row),
        "bank": exact_log2(config.banks_per_group),
        "rank": exact_log2(config.ranks),
        "row": exact_log2(config.rows),
    }
    below = sum(widths[name] for name in order[: order.index("channel")])
    return data.StructLayout({"below": below, "channel": width, "above": LINE_ADDRESS_WIDTH - below - width})


def _folded(value: Value, width: int) -> Value:
    """The XOR of all pieces of ``width`` bits."""
    pieces = (value[begin : begin + width] for begin in range(0, len(value), width))
    return functools.reduce(operator.xor, pieces)
