"""What runs the hardware: native, amaranth and cocotb, one behaviour behind one protocol."""
