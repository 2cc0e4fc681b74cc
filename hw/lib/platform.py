"""How a design is to be elaborated."""

__all__ = ["CompiledSimulation"]


class CompiledSimulation:
    """Platform for designs that become Verilog: large RAMs turn into instances of one Verilog module.

    Amaranth writes one ``initial`` line per memory row, which makes the Verilog of a multi-megabyte
    array slow to write and to compile. Under this platform :class:`hw.lib.ram.RAM` instantiates the
    hand-written ``nicscope_ram`` instead (``hw/lib/ram.v``).

    Attributes:
        files: Verilog of other hand-written modules that the design instantiates, by name, see :meth:`add_file`.
    """

    def __init__(self) -> None:
        self.files: dict[str, str] = {}

    def add_file(self, name: str, contents: str) -> None:
        """Called while elaborating: the design needs the Verilog ``contents`` too."""
        self.files[name] = contents
