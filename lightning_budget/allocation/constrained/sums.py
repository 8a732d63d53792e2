"""Sums over the users of each group that do not depend on their order, for any number of groups and any device."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_BITS = 29


class GroupSums:
    r"""Adds ``[n]`` to P totals, a piece at a time, and rounds each only once.

    Every number is cut into three pieces of 29 bits below the piece's largest one. Whole numbers that small add up
    without rounding in a float64, in any order, for up to :math:`2^{24}` at a time; what is cut off is below
    :math:`2^{-87}` of the largest.
    """

    def __init__(self, totals: int) -> None:
        self._parts: list[list[float]] = [[] for _ in range(totals)]

    def add(self, x: Tensor, index: Tensor) -> None:
        """Add the entries of ``x [n]`` to the totals at ``index [n]``."""
        for part, where in zip(x.split(1 << 24), index.split(1 << 24), strict=True):
            largest = float(part.abs().max()) if part.numel() else 0.0
            if largest == 0.0:
                continue
            unit = math.ldexp(1.0, math.frexp(largest)[1] - _BITS)
            rest = part.double()
            for _ in range(3):
                # Powers of two: neither the division nor the difference rounds.
                whole = (rest / unit).round_()
                rest = rest - whole * unit
                sums = torch.zeros(len(self._parts), dtype=torch.float64, device=x.device).index_add_(0, where, whole)
                for parts, total in zip(self._parts, sums.tolist(), strict=True):
                    if total:
                        parts.append(total * unit)
                unit = math.ldexp(unit, -_BITS)

    def totals(self) -> list[float]:
        """The P sums, each rounded once."""
        return [math.fsum(parts) for parts in self._parts]
