"""The network card: MAC, packet buffer, descriptor rings, DMA engine, registers, interrupts."""
