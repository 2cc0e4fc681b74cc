"""From Amaranth to something that runs: flat toplevel, Verilog, compiled modules, cached by content."""
