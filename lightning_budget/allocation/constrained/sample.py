"""Users who stand for all others: drawn with equal chances, or by their size where spend has a heavy tail."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_budget.allocation.constrained.rows import Block, Rows
from lightning_budget.allocation.constrained.ties import by_hash, hashed_unit, lowest_hashes
from lightning_budget.allocation.summation import exact_parts

_HEAVY = 2.0
"""Mean square over squared mean of the users' sizes from which they are drawn by size."""

_STREAM = 1 << 20


class Sample(NamedTuple):
    """Some users.

    Attributes:
        users: positions ``[n]``, in an order that does not depend on that of the rows.
        chance: ``[n]`` float64, with which each was drawn.
        passes: looks at all users that it took.
    """

    users: Tensor
    chance: Tensor
    passes: int

    def block(self, rows: Rows) -> Block:
        r"""The block in which each user counts for :math:`n / (N \pi_i)` users, under n/N of the limits."""
        block, share = rows.block(self.users), len(self.users) / rows.users
        weight = share / self.chance
        return replace(block, value=block.value * weight, usage=block.usage * weight, limit=block.limit * share)


def draw(rows: Rows, count: int) -> Sample:
    r"""Draw so many users; with chances in proportion to their size where a few of them make up much of the total.

    The size of a user is the mean over value and constraints of the range over the treatments, each in units of its
    mean. Sequential Poisson sampling: the users with the lowest :math:`u_i / \pi_i`, :math:`u_i` a hash of the key.

    Source:
        Ohlsson 1998, J. Official Statistics 14, 149–162.
    """
    if count >= rows.users:
        everyone = by_hash(rows.key)
        return Sample(everyone, torch.ones(len(everyone), dtype=torch.float64, device=rows.device), 0)
    users = lowest_hashes(rows.key, count)
    ranges = _ranges(rows.block(users))
    mean = ranges.mean(dim=1, keepdim=True)
    size = _size(ranges, mean)
    if float(size.square().mean()) <= _HEAVY * float(size.mean()) ** 2:
        return Sample(users, torch.full_like(size, count / rows.users), 0)
    size = torch.cat([_size(_ranges(block), mean) for _, block in rows.chunks()])
    chance = _chances(size, count)
    rank = torch.where(chance < 1, hashed_unit(rows.key, _STREAM) / chance, -1.0)
    users = rank.topk(count, largest=False).indices
    users = users[by_hash(rows.key[users])]
    return Sample(users, chance[users], 1)


def _ranges(block: Block) -> Tensor:
    """``[1 + R, n]``: range over the treatments of value and of each usage."""
    masked = torch.isinf(block.value)
    every = torch.cat([block.value[None], block.usage])
    return every.masked_fill(masked, -math.inf).amax(dim=1) - every.masked_fill(masked, math.inf).amin(dim=1)


def _size(ranges: Tensor, mean: Tensor) -> Tensor:
    return torch.where(mean > 0, ranges / mean, 0.0).mean(dim=0).clamp(min=1e-3)


def _chances(size: Tensor, count: int) -> Tensor:
    """In proportion to the size, at most 1, and so that they add up to ``count``."""
    certain = torch.zeros_like(size, dtype=torch.bool)
    while True:
        total = math.fsum(exact_parts(size.masked_fill(certain, 0.0)))
        chance = size * ((count - int(certain.sum())) / total)
        more = (chance >= 1) & ~certain
        if not bool(more.any()):
            return torch.where(certain, 1.0, chance)
        certain |= more
