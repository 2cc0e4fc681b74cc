"""Small parts used everywhere: RAM, clock crossings, time, probes and counters."""
