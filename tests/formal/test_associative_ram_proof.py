"""The two forms of an associative RAM, ``associative_ram.v`` and that in Amaranth, do the same, for ever."""

import pytest
from amaranth.hdl import Cat, ClockSignal, Const, Fragment, Instance, MemoryInstance, Signal
from amaranth.utils import ceil_log2

from hw.lib.associative_ram import ASSOCIATIVE_RAM_VERILOG, AssociativeRAM
from tests.formal.prove import FORMAL_DOMAIN, Harness, ProofFailed, fragments_below

#: Inputs that do something at an edge, and those that go with them.
ENABLES = ("read_enable", "touch", "write_enable", "flush")
OPERANDS = ("read_set", "read_key", "write_set", "write_valid", "write_key", "write_value")


def with_contents(verilog: str, sets: int, ways: int) -> str:
    """The Verilog with one more output that shows all it holds, so that a proof can speak of it."""
    port = "    input  wire                   flush\n"
    assert port in verilog
    width = "SET_WIDTH + 2*SETS*WAYS + SETS*WAYS*(KEY_WIDTH + VALUE_WIDTH)"
    verilog = verilog.replace(port, f"{port.rstrip()},\n    output wire [{width}-1:0] contents\n")
    shown = ["set_read"]
    shown += [f"{name}[{index}]" for name in ("valid", "recent") for index in range(sets)]
    shown += [f"{name}[{s * ways + w}]" for w in range(ways) for s in range(sets) for name in ("keys", "values")]
    return verilog.replace("endmodule", f"    assign contents = {{{', '.join(reversed(shown))}}};\nendmodule")


def prove(*, sets: int, ways: int, verilog: str, **tasks: int) -> None:
    """Feed both forms the same, compare what they show and what they hold."""
    ram = AssociativeRAM(sets=sets, ways=ways, key_width=2, value_width=1, domain="ram")
    fragment = Fragment.get(ram, None)
    rows = []
    for memory in (each for each in fragments_below(fragment) if isinstance(each, MemoryInstance)):
        for index in range(sets):
            rows.append(data := Signal(3))
            address = Const(index, ceil_log2(sets))
            memory.read_port(domain="comb", addr=address, data=data, en=Const(1), transparent_for=())
    harness = Harness(ram, fragment=fragment)
    m = harness.module
    shown = {name: Signal.like(getattr(ram, name)) for name in ("hit", "way", "value")}
    holds = Cat(ram._set_read, *ram._valid, *ram._recent, *rows)
    contents = Signal(len(holds))
    tick = harness.tick["ram"]
    m.submodules.verilog = Instance(
        "nicscope_associative_ram",
        p_SETS=sets,
        p_WAYS=ways,
        p_KEY_WIDTH=2,
        p_VALUE_WIDTH=1,
        p_SET_WIDTH=ram.set_width,
        i_clk=ClockSignal(FORMAL_DOMAIN),
        o_contents=contents,
        **{f"i_{name}": getattr(ram, name) & tick.replicate(len(getattr(ram, name))) for name in ENABLES},
        **{f"i_{name}": getattr(ram, name) for name in OPERANDS},
        **{f"o_{name}": value for name, value in shown.items()},
    )
    # What an address beyond the sets does is nobody's business
    harness.assume((ram.read_set < sets) & (ram.write_set < sets))
    harness.always(Cat(value == getattr(ram, name) for name, value in shown.items()).all(), "same answer")
    harness.always(contents == holds, "same contents")
    harness.cover(ram.hit & ram.value)
    harness.run(verilog=with_contents(verilog, sets, ways), **tasks)


@pytest.mark.parametrize(("sets", "ways"), [(1, 1), (1, 3), (2, 2), (4, 2)])
def test_same(sets, ways):
    prove(sets=sets, ways=ways, verilog=ASSOCIATIVE_RAM_VERILOG.read_text(), prove=2, cover=5)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("if (&recent[set_read]) recent[set_read] = way;", ""),
        ("~valid[read_set] & ~recent[read_set]", "~valid[read_set]"),
        ("            value <= found;", "            if (equal != 0) value <= found;"),
        ("if (touch) begin", "if (touch && !read_enable) begin"),
    ],
    ids=["all ways stay recent", "takes a way that is spoken for", "keeps an old value", "no use while reading"],
)
def test_finds_difference(right, wrong):
    verilog = ASSOCIATIVE_RAM_VERILOG.read_text()
    assert right in verilog
    with pytest.raises(ProofFailed, match="same"):
        prove(sets=1, ways=2, verilog=verilog.replace(right, wrong), bmc=6)
