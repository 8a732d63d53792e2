"""One look at every user at given multipliers: the dual bound, who is settled, and who is still open."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_budget.allocation.constrained.rows import Block, Rows
from lightning_budget.allocation.constrained.scale import TIE, tie_noise
from lightning_budget.allocation.constrained.sums import GroupSums
from lightning_budget.allocation.constrained.ties import by_hash
from lightning_budget.allocation.summation import exact_parts

_PIECE = 1 << 14


@dataclass(frozen=True)
class FullPass:
    """What a pass tells.

    Attributes:
        bound: the dual there, above the value of every allocation.
        treatment: ``[N]`` int64, each user's best score.
        open: users whose best treatment depends on small changes of the multipliers, ordered by the hash of their key.
        settled: ``[P]`` float64, usage of all others.
        settled_value: value of all others.
    """

    bound: float
    treatment: Tensor
    open: Tensor
    settled: Tensor
    settled_value: float

    def least(self, rows: Rows, multiplier: Tensor) -> float:
        """The dual at other multipliers with the settled users held at their treatment: nowhere above the dual."""
        parts = [self.settled_value, *(multiplier * (rows.limit - self.settled)).tolist()]
        for users in self.open.split(_PIECE):
            parts += exact_parts(rows.block(users).scores(multiplier).amax(dim=0))
        return math.fsum(parts)

    def opened(self, rows: Rows, more: Tensor) -> FullPass:
        """The same pass with more users ``[N]`` bool open."""
        more = more.index_fill(0, self.open, False)
        extra = more.nonzero()[:, 0]
        parts, used = [self.settled_value], [self.settled]
        for users in extra.split(_PIECE):
            block, arm = rows.block(users), self.treatment[users]
            parts += exact_parts(-block.value.gather(0, arm[None]))
            used.append(-block.used(block.given(arm)))
        found = torch.cat([self.open, extra])
        found = found[by_hash(rows.key[found])]
        return FullPass(self.bound, self.treatment, found, torch.stack(used).sum(dim=0), math.fsum(parts))


def full_pass(rows: Rows, multiplier: Tensor, error: Tensor, reach: float, unit: float) -> FullPass:
    """Score every user; those whose lead is below ``reach`` standard errors ``[P]`` of the multipliers stay open.

    Args:
        unit: a typical user's range of values, for ties.
    """
    treatment = torch.zeros(rows.users, dtype=torch.int64, device=rows.device)
    bound, value = [float(x) for x in (multiplier * rows.limit).tolist()], []
    sums, open_users = GroupSums(len(rows.limit)), []
    for piece, block, score, best in _scored(rows, multiplier, unit):
        bound += exact_parts(best)
        arm = score.argmax(dim=0)
        treatment[piece] = arm
        is_open = leads(block, score, error) < reach if reach < math.inf else torch.ones_like(arm, dtype=torch.bool)
        open_users.append(is_open.nonzero()[:, 0] + piece.start)
        value += exact_parts(block.value.gather(0, arm[None])[0].masked_fill(is_open, 0.0))
        for used, index in zip(block.given(arm).masked_fill(is_open, 0.0), block.index, strict=True):
            sums.add(used, index)
    found = torch.cat(open_users)
    found = found[by_hash(rows.key[found])]
    settled = torch.tensor(sums.totals(), dtype=torch.float64, device=rows.device)
    return FullPass(math.fsum(bound), treatment, found, settled, math.fsum(value))


def all_leads(rows: Rows, multiplier: Tensor, error: Tensor, unit: float) -> Tensor:
    """:func:`leads` of every user, ``[N]`` float64."""
    lead = torch.empty(rows.users, dtype=torch.float64, device=rows.device)
    for piece, block, score, _ in _scored(rows, multiplier, unit):
        lead[piece] = leads(block, score, error)
    return lead


def leads(block: Block, score: Tensor, error: Tensor) -> Tensor:
    """Smallest lead ``[n]`` over another treatment, in standard errors of the difference of their scores."""
    best, arm = score.max(dim=0)
    square = torch.zeros_like(score)
    for usage, given, size in zip(block.usage, block.given(arm), error[block.index], strict=True):
        square.addcmul_((usage - given) * size, (usage - given) * size)
    lead = (best - score) / square.sqrt()
    return torch.where(square > 0, lead, math.inf).amin(dim=0)


def _scored(rows: Rows, multiplier: Tensor, unit: float) -> Iterator[tuple[slice, Block, Tensor, Tensor]]:
    """Users, their block, scores without ties ``[K, n]``, and the best score as it is ``[n]``."""
    for piece, block in rows.chunks():
        score = block.scores(multiplier)
        best, arm = score.max(dim=0)
        second = score.scatter(0, arm[None], -math.inf).amax(dim=0)
        # Noise tells only those apart who are nearer than it; the bound is that of the problem as it is.
        near = (best - second <= TIE * unit).nonzero()[:, 0]
        if len(near):
            score[:, near] += tie_noise(rows.key[piece][near], rows.arms, unit)
        yield piece, block, score, best
