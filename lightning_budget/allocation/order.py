"""An order of users that belongs to them, not to where they stand: ties fall the same way in any partition."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_budget.allocation import compiled


def mixed(key: Tensor) -> Tensor:
    """A one-to-one scramble of int64 keys, so that ties favour nobody for a small key.

    Source: Steele, Lea, Flood 2014, doi:10.1145/2660193.2660195 (SplitMix64's finaliser).
    """
    x = key.to(torch.int64) + _signed(0x9E3779B97F4A7C15)
    x = (x ^ _shifted(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shifted(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _shifted(x, 31)


def by_slope(slope: Tensor, key: Tensor | None = None) -> Tensor:
    """Positions ``[M]`` in order of slope ``[M]`` descending, then of the key; equals in both keep their order.

    Args:
        slope: float64, at least 0.
        key: ``[M]`` int64; none: equals keep their order.
    """
    if compiled.usable(slope):
        from lightning_budget.allocation.compiled import run

        return run.descending(slope, key)
    if key is None:
        return torch.argsort(slope, descending=True, stable=True)
    by_key = torch.argsort(key, stable=True)
    return by_key[torch.argsort(slope[by_key], descending=True, stable=True)]


def _signed(x: int) -> int:
    return x - (1 << 64) if x >= 1 << 63 else x


def _shifted(x: Tensor, bits: int) -> Tensor:
    """Logical shift right; torch's own keeps the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
