"""Units in which a problem's numbers are about 1, and equal users told apart in them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lightning_budget.allocation.constrained.rows import Block
from lightning_budget.allocation.constrained.ties import hashed_unit

TIE = 1e-7
"""Random part of a value, as a share of a typical user's range: of equal users few are undecided at any multipliers."""


@dataclass(frozen=True)
class Scale:
    """Units in which a typical user's range of values and usages is about 1; powers of two, so that nothing rounds.

    Attributes:
        value: value units.
        usage: ``[R]``, units of each constraint.
        limit: ``[P]``, the same for each limit.
    """

    value: float
    usage: Tensor
    limit: Tensor

    @classmethod
    def of(cls, block: Block, constraint: list[int]) -> Scale:
        """From the ranges over the treatments of some users."""
        masked = torch.isinf(block.value)
        ranges = torch.cat([block.value[None], block.usage])
        high = ranges.masked_fill(masked, -math.inf).amax(dim=1)
        span = high - ranges.masked_fill(masked, math.inf).amin(dim=1)
        some = (span > 0).sum(dim=1).clamp(min=1)
        mean = span.sum(dim=1) / some
        unit = torch.where(mean > 0, mean.log2().round().exp2(), 1.0)
        return cls(float(unit[0]), unit[1:], unit[1:][constraint])

    def shrink(self, block: Block) -> Block:
        """The block in these units."""
        return replace(
            block,
            value=block.value / self.value,
            usage=block.usage / self.usage[:, None, None],
            limit=block.limit / self.limit,
        )

    def price(self, multiplier: Tensor) -> Tensor:
        """Multipliers in these units."""
        return multiplier * self.limit / self.value

    def multiplier(self, price: Tensor) -> Tensor:
        """Back from these units."""
        return price / self.limit * self.value


def untied(block: Block, key: Tensor) -> Block:
    """The block with values that differ by a little that belongs to the user's key and the treatment."""
    return replace(block, value=block.value + tie_noise(key, len(block.value), 1.0))


def tie_noise(key: Tensor, arms: int, unit: float) -> Tensor:
    """``[K, n]``: what is added to the values, between 0 and ``TIE`` of a typical range ``unit``."""
    return torch.stack([hashed_unit(key, arm) for arm in range(arms)]).mul_(TIE * unit)
