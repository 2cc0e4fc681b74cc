"""A RAM with one read and one write port, cheap in every engine."""

from pathlib import Path

from amaranth.hdl import ClockSignal, Instance, Module
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from .platform import CompiledSimulation

__all__ = ["RAM", "RAM_VERILOG"]

#: The Verilog module that :class:`RAM` instantiates in compiled builds.
RAM_VERILOG = Path(__file__).with_name("ram.v")


class RAM(wiring.Component):
    """``depth`` rows of ``width`` bits, zero at the start, with one read and one write port in ``domain``.

    ``read_data`` holds the row addressed at the last edge at which ``read_enable`` was high; a row written
    at that same edge is read as it was before. ``write_enable`` has one bit per lane of ``width / lanes``
    bits.

    Under :class:`~hw.lib.platform.CompiledSimulation` this becomes an instance of ``ram.v``, which is equal
    in behaviour; elsewhere it is :class:`amaranth.lib.memory.Memory`.

    Raises:
        ValueError: when ``depth`` or ``width`` is not positive or ``lanes`` does not divide ``width``.
    """

    def __init__(self, *, width: int, depth: int, lanes: int = 1, domain: str):
        if width < 1 or depth < 1:
            raise ValueError(f"RAM needs at least one row of one bit, not {depth} rows of {width} bits")
        if lanes < 1 or width % lanes:
            raise ValueError(f"{lanes} lanes do not divide a width of {width} bits")
        self.width, self.depth, self.lanes, self.domain = width, depth, lanes, domain
        self.address_width = max(1, ceil_log2(depth))
        super().__init__(
            {
                "read_enable": In(1),
                "read_address": In(self.address_width),
                "read_data": Out(width),
                "write_enable": In(lanes),
                "write_address": In(self.address_width),
                "write_data": In(width),
            }
        )

    def elaborate(self, platform):
        """Elaborate as an instance or as a memory, see the class."""
        m = Module()
        if isinstance(platform, CompiledSimulation):
            m.submodules.rows = Instance(
                "nicscope_ram",
                p_WIDTH=self.width,
                p_DEPTH=self.depth,
                p_LANES=self.lanes,
                p_ADDRESS_WIDTH=self.address_width,
                i_clk=ClockSignal(self.domain),
                i_read_enable=self.read_enable,
                i_read_address=self.read_address,
                o_read_data=self.read_data,
                i_write_enable=self.write_enable,
                i_write_address=self.write_address,
                i_write_data=self.write_data,
            )
            return m
        m.submodules.rows = self._memory = rows = Memory(shape=self.width, depth=self.depth, init=[])
        granularity = None if self.lanes == 1 else self.width // self.lanes
        write = rows.write_port(domain=self.domain, granularity=granularity)
        read = rows.read_port(domain=self.domain)
        m.d.comb += [
            read.en.eq(self.read_enable),
            read.addr.eq(self.read_address),
            self.read_data.eq(read.data),
            write.en.eq(self.write_enable),
            write.addr.eq(self.write_address),
            write.data.eq(self.write_data),
        ]
        return m
