"""One pass over many users for several budgets: whose arm is settled within each bracket, and who is left to sort."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_budget.allocation.chunks import user_chunks
from lightning_budget.allocation.policy import policy_treatment
from lightning_budget.allocation.summation import exact_parts

TIE = 1e-12
"""Scores nearer than this, relative to their size, count as tied: far above rounding, far below any real margin."""

SLICE = 1 << 17
"""Users whose costs are held at a time, for an exact sum."""

PIECE = 1 << 12
"""Users on a CPU whose scores at the ends of all brackets stay in cache."""


@dataclass(frozen=True)
class Narrowed:
    """What is left of one budget's problem once its multiplier is known to lie in ``[low, high]``.

    Attributes:
        low, high: at ``high`` the spend fits, at ``low`` it does not, unless ``low`` is 0.
        users: ``[M]`` int64, whose arm may depend on where in the bracket the multiplier lies.
        settled: parts that sum exactly to what all others spend, wherever it lies.
    """

    low: float
    high: float
    users: Tensor
    settled: list[float]


def narrowed(
    value: Tensor, cost: Tensor, totals: list[float], brackets: list[tuple[float, float]]
) -> list[Narrowed | None]:
    """Prove each bracket and leave out the users that it settles; ``None`` for a bracket that misses its multiplier.

    The spend of a user does not increase in λ: who clearly prefers arms of one cost at both ends has that cost in
    between. Whoever is near a tie at an end is left in, so rounding never settles anybody: a lead of the best arm over
    another is linear in λ, and so is the size that it is compared with, hence who leads clearly at both ends does in
    between. An end so large that scores overflow settles nobody.

    Args:
        value, cost: ``[N, K]``; totals: B budgets for all N users together; brackets: B multipliers ``(low, high)``.
    """
    ends = torch.tensor(brackets, dtype=torch.float64, device=value.device).reshape(-1)
    budgets = range(len(totals))
    users: list[list[Tensor]] = [[] for _ in budgets]
    settled: list[list[float]] = [[] for _ in budgets]
    for start in range(0, len(value), SLICE):
        paid, is_open = _settle(value[start : start + SLICE], cost[start : start + SLICE], ends)
        for b in budgets:
            users[b].append(is_open[b].nonzero().squeeze(1) + start)
            settled[b] += two_floats(exact_parts(paid[b].masked_fill(is_open[b], 0)))
    return [
        _prove(value, cost, total, bracket, torch.cat(left), done)
        for total, bracket, left, done in zip(totals, brackets, users, settled, strict=True)
    ]


def two_floats(parts: list[float]) -> list[float]:
    """The sum of many parts as a float and what its rounding left out."""
    total = math.fsum(parts)
    return [total, math.fsum([*parts, -total])]


def _prove(
    value: Tensor, cost: Tensor, total: float, bracket: tuple[float, float], users: Tensor, settled: list[float]
) -> Narrowed | None:
    v, c = value[users], cost[users]

    def fits(multiplier: float) -> bool:
        paid = c.gather(1, policy_treatment(v, c, multiplier)[:, None])
        return math.fsum(settled + exact_parts(paid)) <= total

    low, high = bracket
    holds = fits(high) and (low == 0 or not fits(low))
    return Narrowed(low, high, users, settled) if holds else None


def _settle(value: Tensor, cost: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]:
    """What each user costs at the upper end of each bracket, and whether that is open, ``[B, n]`` each."""
    paid = torch.empty(len(ends) // 2, len(value), dtype=cost.dtype, device=cost.device)
    is_open = torch.empty_like(paid, dtype=torch.bool)
    size = PIECE if value.device.type == "cpu" else len(value)
    for start, v, c in user_chunks(value, cost):
        for i in range(0, v.shape[1], size):
            chosen, clear = _clear_choice(v[:, i : i + size], c[:, i : i + size], ends)
            cut = slice(start + i, start + i + chosen.shape[1])
            paid[:, cut] = chosen[1::2]
            is_open[:, cut] = (chosen[0::2] != chosen[1::2]) | ~(clear[0::2] & clear[1::2])
    return paid, is_open


def _clear_choice(v: Tensor, c: Tensor, multipliers: Tensor) -> tuple[Tensor, Tensor]:
    """Cost of the best arm ``[L, n]`` at each multiplier, and whether no other arm comes near it."""
    price = multipliers[:, None]
    best = torch.addcmul(v[0][None], c[0][None], price, value=-1)
    paid = c[0].expand_as(best).clone()
    second = torch.full_like(best, -torch.inf)
    better = torch.empty_like(best)
    for j in range(1, len(v)):
        score = torch.addcmul(v[j][None], c[j][None], price, value=-1)
        second = torch.maximum(second, torch.minimum(score, best))
        # Exact at weights 0 and 1, and several times faster than a choice by a mask of booleans.
        paid.lerp_(c[j].expand_as(paid), torch.gt(score, best, out=better))
        best = torch.maximum(best, score)
    size = v.abs().amax(dim=0)[None] + price * c.abs().amax(dim=0)[None]
    return paid, best - second > TIE * size
