"""Intervals for curves and for the difference of two models, by a Poisson bootstrap over users."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_budget.allocation.compiled import usable
from lightning_budget.errors import InputError
from lightning_budget.metrics.functional.checks import (
    Normalization,
    as_budgets,
    check_normalization,
    check_outcomes,
    check_policy,
    check_resamples,
    check_user,
    check_weight,
)
from lightning_budget.metrics.functional.cost_curve import matched_walk, policy_walk
from lightning_budget.metrics.functional.matched import MatchedInterval
from lightning_budget.metrics.functional.poisson import hashed_counts, poisson_weights, user_hash
from lightning_budget.metrics.functional.walk import Walk, first_crossing

__all__ = [
    "PairedDifference",
    "bootstrap_curves",
    "paired_difference",
    "paired_oracle_difference",
    "percentile_interval",
    "poisson_weights",
]

_CHUNK_ELEMENTS = 1 << 20
"""Events times resamples worked on at once: 8 MiB a buffer, a handful of buffers."""


@dataclass(frozen=True)
class PairedDifference:
    """Value of model a minus value of model b, both on the same resamples; value units per user.

    Attributes:
        estimate, low, high: ``[B]`` on the rows as they are, and the ends of the percentile interval.
        mean, mean_low, mean_high: the same for the mean over the budgets, scalars.
    """

    estimate: Tensor
    low: Tensor
    high: Tensor
    mean: Tensor
    mean_low: Tensor
    mean_high: Tensor


def percentile_interval(samples: Tensor, level: float = 0.95) -> tuple[Tensor, Tensor]:
    """Ends of the central interval of ``samples`` ``[R, …]`` over resamples, each ``[…]``."""
    tail = (1 - level) / 2
    low, high = torch.quantile(samples, samples.new_tensor([tail, 1 - tail]), dim=0)
    return low, high


def bootstrap_curves(
    interval: MatchedInterval,
    user: Tensor,
    value: Tensor,
    cost: Tensor,
    propensity: Tensor,
    budgets: Tensor | Sequence[float] | float,
    resamples: int = 200,
    seed: int = 0,
    normalization: Normalization = "hajek",
    weight: Tensor | None = None,
) -> Tensor:
    """EOM at budgets on R resamples of the users; each resample finds its own multiplier for each budget.

    Breakpoints are sorted once. ``ipw`` divides by the rows of the resample. A resample without rows counts as 0.

    Args:
        interval: :func:`matched_interval` of the model, ``[N]`` each.
        user: ``[N]`` int64, whose rows are drawn together.
        value: ``[N]``, observed under the arm given.
        cost: ``[N]``, observed under the arm given.
        propensity: ``[N]``, probability of the arm given.
        budgets: ``[B]``, currency per user.
        resamples: R.
        seed: the same seed gives two models the same resamples.
        normalization: ``hajek`` or ``ipw``.
        weight: ``[N]``, sample weights; they multiply the counts.

    Returns:
        ``[R, B]`` float64, value units per user.

    Raises:
        InputError: if columns are misaligned or not finite, a propensity is outside (0, 1], a budget not above 0.
    """
    budget = _check(user, budgets, resamples)
    _check_rows([interval], value, cost, propensity, normalization, len(user), weight)
    walk = matched_walk(interval, value, cost, propensity, normalization, weight)
    return _resample([walk], user, budget, resamples, seed)[0]


def paired_difference(
    a: MatchedInterval,
    b: MatchedInterval,
    user: Tensor,
    value: Tensor,
    cost: Tensor,
    propensity: Tensor,
    budgets: Tensor | Sequence[float] | float,
    resamples: int = 200,
    seed: int = 0,
    normalization: Normalization = "hajek",
    level: float = 0.95,
    weight: Tensor | None = None,
) -> PairedDifference:
    """EOM of model a minus EOM of model b on randomized logs, with percentile intervals from common resamples of users.

    ``a`` and ``b`` are the :func:`matched_interval` of the two models, ``level`` is that of the interval; the other
    arguments are those of :func:`bootstrap_curves`.

    Raises:
        InputError: as :func:`bootstrap_curves`.
    """
    budget = _check(user, budgets, resamples, level)
    _check_rows([a, b], value, cost, propensity, normalization, len(user), weight)
    walks = [matched_walk(interval, value, cost, propensity, normalization, weight) for interval in (a, b)]
    return _difference(walks, user, budget, resamples, seed, level)


def paired_oracle_difference(
    a: tuple[Tensor, Tensor],
    b: tuple[Tensor, Tensor],
    true_value: Tensor,
    true_cost: Tensor,
    user: Tensor,
    budgets: Tensor | Sequence[float] | float,
    resamples: int = 200,
    seed: int = 0,
    level: float = 0.95,
    weight: Tensor | None = None,
) -> PairedDifference:
    """True value of model a's policy minus model b's at true spend, with intervals for the sampling of users alone.

    ``a`` and ``b`` are (value_hat, cost_hat) of the two models, ``[N, K]`` each, as are the known means ``true_value``
    and ``true_cost``; the other arguments are those of :func:`paired_difference`.

    Raises:
        InputError: if shapes differ, an entry is not finite, a budget is not above 0, or weights are negative or all 0.
    """
    budget = _check(user, budgets, resamples, level)
    for prediction in (a, b):
        check_policy(*prediction, true_value, true_cost)
    check_user(user, len(true_value))
    check_weight(weight, len(true_value))
    walks = [policy_walk(*prediction, true_value, true_cost, weight) for prediction in (a, b)]
    return _difference(walks, user, budget, resamples, seed, level)


def _difference(
    walks: list[Walk], user: Tensor, budgets: Tensor, resamples: int, seed: int, level: float
) -> PairedDifference:
    at_once = [first_crossing(*walk.points(), budgets).value[0] for walk in walks]
    samples = _resample(walks, user, budgets, resamples, seed)
    estimate, difference = at_once[0] - at_once[1], samples[0] - samples[1]
    low, high = percentile_interval(difference, level)
    mean_low, mean_high = percentile_interval(difference.mean(1), level)
    return PairedDifference(estimate, low, high, estimate.mean(), mean_low, mean_high)


def _resample(walks: list[Walk], user: Tensor, budgets: Tensor, resamples: int, seed: int) -> list[Tensor]:
    """Values ``[R, B]`` of each walk, all on the same counts."""
    hashed = user_hash(user, seed)
    if usable(hashed):
        from lightning_budget.metrics.functional.compiled.sweep_run import sweep

        return [sweep(walk, hashed, budgets, resamples, seed) for walk in walks]
    values: list[list[Tensor]] = [[] for _ in walks]
    # A few resamples at a time bound the memory.
    step = max(1, _CHUNK_ELEMENTS // max(len(walk.row) for walk in walks))
    for first in range(0, resamples, step):
        counts = hashed_counts(hashed, seed, range(first, min(first + step, resamples)))
        for walk, out in zip(walks, values, strict=True):
            out.append(first_crossing(*walk.points(counts), budgets).value)
    return [torch.cat(out) for out in values]


def _check(user: Tensor, budgets: Tensor | Sequence[float] | float, resamples: int, level: float = 0.95) -> Tensor:
    check_user(user, user.numel())
    check_resamples(resamples, level)
    return as_budgets(budgets, user.device)


def _check_rows(
    intervals: Sequence[MatchedInterval],
    value: Tensor,
    cost: Tensor,
    propensity: Tensor,
    normalization: str,
    rows: int,
    weight: Tensor | None,
) -> None:
    check_outcomes(value, cost, propensity, rows)
    check_normalization(normalization)
    check_weight(weight, rows)
    for lower, upper in intervals:
        if lower.shape != (rows,) or upper.shape != (rows,):
            raise InputError(
                f"interval of shape {list(lower.shape)}", f"[{rows}]", "take matched_interval over the same rows"
            )
