"""Published figures of the instructions that llvm-mca knows nothing of."""

import tomllib
from collections.abc import Mapping
from functools import cache
from pathlib import Path

__all__ = ["special_figures"]


@cache
def special_figures() -> Mapping[str, Mapping[str, int]]:
    """``special.toml``: cycles, band, micro-operations by name."""
    return tomllib.loads(Path(__file__).with_name("special.toml").read_text())
