"""The memory hierarchy: private caches, last-level cache with DDIO, DRAM controller."""
