"""How a design is to be elaborated."""

__all__ = ["CompiledSimulation"]


class CompiledSimulation:
    """Platform for designs that become Verilog: large RAMs turn into instances of one Verilog module.

    Amaranth writes one ``initial`` line per memory row, which makes the Verilog of a multi-megabyte
    array slow to write and to compile. Under this platform :class:`hw.lib.ram.RAM` instantiates the
    hand-written ``nicscope_ram`` instead (``hw/lib/ram.v``).
    """
