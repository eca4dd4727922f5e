"""Checks that several parts' configs make, in words that name the flag."""

from __future__ import annotations

from mmm.core.registry import PartConfig


def check_positive(config: PartConfig, *names: str) -> None:
    """Raises ValueError where a field that is set is below 1."""
    for name in names:
        value = getattr(config, name)
        if value is not None and value < 1:
            raise ValueError(f"{config.kind}.{name} {value} must be at least 1")


def check_width(kind: str, width: int, heads: int) -> None:
    """Raises ValueError where a transformer of `kind` cannot have this width: it is odd, or its heads do not divide it."""
    if width % 2:
        raise ValueError(f"{kind}.width {width} is odd, and sines and cosines come in pairs; use {width + 1}")
    if width % heads:
        raise ValueError(f"{kind}.heads {heads} do not divide {kind}.width {width}; choose a divisor")
