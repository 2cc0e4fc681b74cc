"""Traffic on the Ethernet wire: captures in and out, generated frames."""
