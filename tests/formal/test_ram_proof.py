"""The two forms of a RAM, ``ram.v`` and Amaranth's Memory, do the same from the first read on, for ever."""

import pytest
from amaranth.hdl import Cat, ClockSignal, Const, Fragment, Instance, MemoryInstance, Signal

from hw.lib.ram import RAM, RAM_VERILOG
from tests.formal.prove import FORMAL_DOMAIN, Harness, ProofFailed, fragments_below


def with_contents(verilog: str, depth: int) -> str:
    """``ram.v`` with one more output that shows every row, so that a proof can speak of the rows."""
    port = "    output reg  [WIDTH-1:0]         read_data,"
    assert port in verilog
    rows = ", ".join(f"rows[{row}]" for row in reversed(range(depth)))
    verilog = verilog.replace(port, f"    output wire [{depth}*WIDTH-1:0] contents,\n{port}")
    return verilog.replace("endmodule", f"    assign contents = {{{rows}}};\nendmodule")


def prove_ram(*, width: int, depth: int, lanes: int, verilog: str, **tasks: int) -> None:
    """Feed both forms the same, compare what they show and what they hold."""
    ram = RAM(width=width, depth=depth, lanes=lanes, domain="ram")
    fragment = Fragment.get(ram, None)
    instance = next(f for f in fragments_below(fragment) if isinstance(f, MemoryInstance))
    rows = []
    for row in range(depth):
        rows.append(data := Signal(width, name=f"row{row}"))
        address = Const(row, ram.address_width)
        instance.read_port(domain="comb", addr=address, data=data, en=Const(1), transparent_for=())
    harness = Harness(ram, fragment=fragment)
    m = harness.module
    read_data, contents = Signal(width), Signal(width * depth)
    m.submodules.verilog = Instance(
        "nicscope_ram",
        p_WIDTH=width,
        p_DEPTH=depth,
        p_LANES=lanes,
        p_ADDRESS_WIDTH=ram.address_width,
        i_clk=ClockSignal(FORMAL_DOMAIN),
        i_read_enable=ram.read_enable & harness.tick["ram"],
        i_read_address=ram.read_address,
        i_write_enable=ram.write_enable & harness.tick["ram"].replicate(lanes),
        i_write_address=ram.write_address,
        i_write_data=ram.write_data,
        o_read_data=read_data,
        o_contents=contents,
    )
    # Before the first read Amaranth's Verilog and RTLIL leave the answer undefined, ram.v answers 0.
    has_read = Signal()
    with m.If(ram.read_enable & harness.tick["ram"]):
        m.d[FORMAL_DOMAIN] += has_read.eq(1)
    harness.always(~has_read | (read_data == ram.read_data), "same answer")
    harness.always(contents == Cat(rows), "same rows")
    harness.cover((read_data == (1 << width) - 1) & (contents == 1))
    harness.run(verilog=with_contents(verilog, depth), **tasks)


@pytest.mark.parametrize(("width", "depth", "lanes"), [(3, 4, 1), (4, 2, 2), (6, 4, 3), (4, 4, 4)])
def test_same(width, depth, lanes):
    verilog = RAM_VERILOG.read_text()
    prove_ram(width=width, depth=depth, lanes=lanes, verilog=verilog, prove=2, cover=8)


@pytest.mark.parametrize(
    ("lanes", "right", "wrong"),
    [
        (1, "read_data <= rows[read_address]", "read_data <= write_enable[0] ? write_data : rows[read_address]"),
        (1, "rows[i] = 0;", "rows[i] = i;"),
        (2, "if (write_enable[i])", "if (write_enable[0])"),
    ],
    ids=["reads what is being written", "does not start at zero", "mixes up lanes"],
)
def test_finds_difference(lanes, right, wrong):
    verilog = RAM_VERILOG.read_text()
    assert right in verilog
    with pytest.raises(ProofFailed, match="same"):
        prove_ram(width=4, depth=2, lanes=lanes, verilog=verilog.replace(right, wrong), bmc=4)
