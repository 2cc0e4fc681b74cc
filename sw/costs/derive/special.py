"""Figures of the instructions that llvm-mca knows nothing of, published ones where any was found."""

import tomllib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

__all__ = ["special_figures"]


@cache
def special_figures() -> Mapping[str, Mapping[str, Any]]:
    """``special.toml``: cycles, band, micro-operations, kind and source by name."""
    return tomllib.loads(Path(__file__).with_name("special.toml").read_text())
