"""The private L2 cache of a core and its prefetchers."""

from .cache import HIT_CYCLES, L2Cache

__all__ = ["HIT_CYCLES", "L2Cache"]
