"""The probability of every arm for every row, where the probabilities of the arms given tell it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lightning_budget.trial.logged import IdFeature, Logged

Method = Literal["constant", "two_arms", "by_feature", "ipw"]
SAME, SUM = 1e-5, 1e-3
"""Propensities that differ by less, relatively, are one; a row's sum to 1 within this."""
MAX_LEVELS = 10_000


@dataclass(frozen=True)
class Assignment:
    """Probabilities ``table[cell[i]]`` (``[K]``) of the arms for row i.

    Attributes:
        method: ``constant``: every arm has one propensity; ``two_arms``: the other arm has the rest of 1;
            ``by_feature``: every arm has one at each level of ``feature``; ``ipw``: they cannot be told.
        table: ``[C, K]`` float64, rows sum to 1; empty for ``ipw``.
        cell: ``[N]`` int64.
        feature: name of the id feature.
        sum: for ``constant`` the sum of the arms' propensities before it was scaled to 1.
    """

    method: Method
    table: Tensor
    cell: Tensor
    feature: str | None = None
    sum: float = 1.0


def told_assignment(trial: Logged) -> Assignment:
    """Tell the probabilities of all arms from those of the arms given."""
    n, k = len(trial), len(trial.arms)
    low, high = _range(trial, trial.treatment, k)
    given = high > 0
    if bool((high <= low * (1 + SAME)).logical_or(~given).all()):
        table, whole = _complete(((low + high) / 2)[None])
        return Assignment("constant", table, torch.zeros(n, dtype=torch.int64), sum=float(whole[0]))
    if k == 2:
        p = trial.propensity.double()
        distinct, cell = torch.where(trial.treatment == 1, p, 1 - p).unique(return_inverse=True)
        return Assignment("two_arms", torch.stack([1 - distinct, distinct], 1), cell)
    for feature in sorted(trial.ids, key=lambda f: f.levels):
        if feature.offsets is None and feature.levels <= MAX_LEVELS:
            table = _by_feature(trial, feature)
            if table is not None:
                return Assignment("by_feature", table, feature.values, feature.name)
    empty = torch.empty(0, k, dtype=torch.float64)
    return Assignment("ipw", empty, torch.empty(0, dtype=torch.int64))


def _range(trial: Logged, key: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Lowest and highest propensity of each key, ``[size]``; infinity and 0 where it has no row."""
    p = trial.propensity.double()
    low = torch.full((size,), torch.inf, dtype=torch.float64).scatter_reduce_(0, key, p, "amin")
    high = torch.zeros(size, dtype=torch.float64).scatter_reduce_(0, key, p, "amax")
    return low, high


def _by_feature(trial: Logged, feature: IdFeature) -> Tensor | None:
    k = len(trial.arms)
    low, high = _range(trial, feature.values * k + trial.treatment, feature.levels * k)
    if bool((high > low * (1 + SAME)).any()):
        return None
    known = ((low + high) / 2).view(-1, k)
    missing = known.isinf().sum(1)
    table, whole = _complete(known)
    seen = missing < k
    # Two arms without rows share a rest that nothing divides; a sum other than 1 is no assignment.
    if bool((seen & ((missing > 1) | ((whole - 1).abs() > SUM))).any()):
        return None
    return table


def _complete(known: Tensor) -> tuple[Tensor, Tensor]:
    """``[C, K]`` with the rest of 1 in place of infinities, scaled to 1, and the ``[C]`` sums before that."""
    missing = known.isinf()
    table = torch.where(missing, torch.zeros_like(known), known)
    rest = (1 - table.sum(1)).clamp(min=0)
    table = torch.where(missing, (rest / missing.sum(1).clamp(min=1))[:, None], table)
    whole = table.sum(1)
    return table / whole[:, None], whole
