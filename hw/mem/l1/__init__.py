"""The private L1 data cache of a core."""

from .cache import L1Cache

__all__ = ["L1Cache"]
