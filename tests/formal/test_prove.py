"""The quiet proof itself: it accepts a component that is right, and sees each way in which one can be wrong."""

import pytest
from amaranth.hdl import Const, Module, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from hw.lib.probe import Counter, Probe
from hw.lib.ram import RAM
from hw.lib.time import NOW_WIDTH, Timer
from tests.formal.prove import ProofFailed, prove_quiet

DELAY = 3


class Echo(wiring.Component):
    """Takes a number, writes it to memories, reports it and counts it ``DELAY`` edges later.

    ``wrong`` names what is planted: something done in a quiet edge, or a quiet that ends without a timer.
    """

    def __init__(self, wrong: str = ""):
        self.wrong = wrong
        super().__init__({"input": In(stream.Signature(4)), "now": In(NOW_WIDTH), "quiet": Out(1)})
        self.ram = RAM(width=4, depth=16, domain="echo")
        self.timer = Timer("echo")
        self.echoed = Probe("echo", "a number came back", number=4)
        self.numbers = Counter("echo", "numbers")

    def elaborate(self, platform):
        m = Module()
        m.submodules.ram = self.ram
        m.submodules.memory = memory = Memory(shape=4, depth=2, init=[])
        write, read = memory.write_port(domain="echo"), memory.read_port(domain="echo")
        waiting, number, wake_at = Signal(), Signal(4), Signal(NOW_WIDTH)
        accept, due, idle = Signal(), Signal(), Signal()
        m.d.comb += [
            self.input.ready.eq(~waiting),
            accept.eq(self.input.valid & self.input.ready),
            due.eq(waiting & (self.now >= wake_at)),
            self.timer.armed.eq(waiting & (self.wrong != "timer")),
            self.timer.deadline.eq(wake_at),
            idle.eq(~accept & ~due),
            self.quiet.eq(idle),
            write.en.eq(accept | (idle & (self.wrong == "memory"))),
            write.data.eq(self.input.payload),
            read.en.eq(due | (idle & (self.wrong == "read port"))),
            read.addr.eq(self.input.payload),
            self.ram.write_enable.eq(accept),
            self.ram.read_enable.eq(due | (idle & (self.wrong == "ram"))),
        ]
        with m.If(accept):
            m.d.echo += [waiting.eq(1), number.eq(self.input.payload), wake_at.eq(self.now + DELAY)]
        with m.If(due):
            m.d.echo += waiting.eq(0)
        self.echoed.emit(m, due | (idle & (self.wrong == "probe")), number=number)
        self.numbers.increment(m, due | (idle & (self.wrong == "counter")))
        return m


def test_accepts_what_is_right():
    dut = Echo()
    planted = {"always": Const(1), "forgets arrivals": dut.quiet | dut.input.valid}
    prove_quiet(dut, domain="echo", cover_depth=8, planted=planted)


@pytest.mark.parametrize(
    ("wrong", "property"),
    [
        ("timer", "quiet stays until something happens"),
        ("memory", "no memory changes"),
        ("ram", "no memory changes"),
        ("read port", "is stable"),
        ("probe", "probe echoed does not fire"),
        ("counter", "register count is stable"),
    ],
)
def test_finds(wrong, property):
    with pytest.raises(ProofFailed, match=property):
        prove_quiet(Echo(wrong), domain="echo", mode="bmc", depth=8, cover_depth=None)


def test_finds_nothing_wrong_with_a_right_quiet():
    dut = Echo()
    with pytest.raises(ProofFailed, match="cover: planted: right"):
        prove_quiet(dut, domain="echo", cover_depth=4, planted={"right": dut.quiet & ~dut.input.valid})


def test_cover_finds_what_is_never_quiet():
    with pytest.raises(ProofFailed, match="cover: becomes quiet"):
        prove_quiet(Echo(), domain="echo", quiet=Const(0), cover_depth=6)
