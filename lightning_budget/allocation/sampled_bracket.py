"""Where the multiplier of a budget most likely lies, from users drawn in clusters out of many more."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_budget.allocation.dual import critical_multipliers
from lightning_budget.allocation.fill import PATIENCE
from lightning_budget.allocation.frontier import LARGEST
from lightning_budget.allocation.policy import arms_at
from lightning_budget.allocation.search import Bracket
from lightning_budget.allocation.summation import exact_sum

RUN = 64
"""Neighbours whose mean counts as one draw."""

_DEVIATIONS = 4.0

_BELOW = 1e-6


@torch.no_grad()
def bracket_from_clusters(
    value: Tensor, cost: Tensor, clusters: list[int], all_clusters: int, budget: float, users: int
) -> Bracket:
    """Two multipliers between which the spend of all users most likely passes the budget.

    The spread is that between clusters, as far as some were not drawn, and that between runs of neighbours, so that
    sorted users and unlike files widen the bracket rather than mislead it.

    Args:
        value, cost: ``[K, m]`` of the users drawn, cluster by cluster; finite.
        clusters: users of each cluster drawn.
        all_clusters: how many there are.
        budget: **total** currency for all users.
        users: all of them, N.
    """
    m = value.shape[1]
    target = budget / users
    least = exact_sum(cost.amin(dim=0)) / m

    def at(per_user: float) -> float:
        # A hair above the least spend, which its own division by m may have rounded up.
        total = per_user * m
        if per_user <= least + 1e-9 * abs(least):
            return LARGEST
        return critical_multipliers(value.T, cost.T, [total])[0]

    middle = at(target)
    if middle >= LARGEST and users > m:
        # The sample alone would not do for the budget: nothing is known but the side.
        middle = at(least + 1e-6 * max(abs(least), 1.0))
    paid = cost.gather(0, arms_at(value, cost, middle)[None])[0].double()
    unseen = 1 - len(clusters) / all_clusters
    deviation = math.sqrt(unseen * _variance(paid, clusters) + _variance(paid, _runs(m)))
    # The fill looks past the multiplier, at the steps of about as many users as it is patient.
    margin = _DEVIATIONS * deviation
    lookahead = 4 * PATIENCE / users * float(cost.double().abs().amax(dim=0).mean())
    if not math.isfinite(margin):
        return 0.0, LARGEST
    low, high = at(target + margin + lookahead), at(target - margin)
    low = low if low < LARGEST else middle if middle < LARGEST else 0.0
    # A bracket is open at its lower end, where many users may tie.
    return low * (1 - _BELOW), high


def _variance(x: Tensor, parts: list[int]) -> float:
    """Of the mean, from the spread of the means of its parts."""
    if len(parts) < 2:
        return 0.0
    means = torch.stack([p.mean() for p in x.split(parts)])
    return float(means.var()) / len(parts)


def _runs(m: int) -> list[int]:
    return [min(RUN, m - start) for start in range(0, m, RUN)]
