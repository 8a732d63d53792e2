"""Standard errors of EOM and of differences of it, in closed form: a check on the bootstrap, and the fast way."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_budget.metrics.functional.checks import (
    Normalization,
    as_budgets,
    check_normalization,
    check_outcomes,
    check_user,
    check_weight,
)
from lightning_budget.metrics.functional.cost_curve import CostCurve, matched_curve
from lightning_budget.metrics.functional.matched import MatchedInterval

WINDOW = 0.1
"""Of a budget: over so much on either side the slope of the curve is measured."""


@dataclass(frozen=True)
class Influence:
    """What each row moves EOM by.

    Attributes:
        estimate: ``[B]``, value units per user.
        rows: ``[B, N]``, of which the squares, summed over users, add up to the variance.
    """

    estimate: Tensor
    rows: Tensor


@torch.no_grad()
def eom_influence(
    interval: MatchedInterval,
    value: Tensor,
    cost: Tensor,
    propensity: Tensor,
    budgets: Tensor | Sequence[float] | float,
    normalization: Normalization = "hajek",
    weight: Tensor | None = None,
) -> Influence:
    r"""First-order effect of every row on EOM at budgets, the multiplier's own reaction to the row included.

    .. math:: \psi_i = \phi^v_i - \mu\, \phi^c_i, \qquad \mu = \frac{d\bar V}{d\bar C}\Big|_b,
        \qquad \phi^y_i = \frac{w_i (y_i - \bar Y)}{\sum w} \ (\text{hajek}), \quad
        \frac{w_i y_i - s_i \bar Y}{\sum s} \ (\text{ipw})

    The budget holds the spend, so a row that costs more than its share lowers what is left for others at the rate μ,
    the slope of the curve there, measured over a tenth of the budget on either side; 0 where the budget does not bind.

    Args:
        interval: :func:`~lightning_budget.metrics.functional.matched.matched_interval` of the policy.
        value, cost, propensity: ``[N]``, of the arm given.
        budgets: ``[B]``, currency per user.
        weight: ``[N]`` s ≥ 0, how often a row counts.

    Raises:
        InputError: as :func:`~lightning_budget.metrics.functional.cost_curve.cost_curve`.

    Source: delta method; for ratio estimators Hájek 1971.
    """
    rows = len(interval.lower)
    budget = as_budgets(budgets, value.device)
    check_outcomes(value, cost, propensity, rows)
    check_normalization(normalization)
    check_weight(weight, rows)
    size = torch.ones_like(propensity, dtype=torch.float64) if weight is None else weight.double()
    curve = matched_curve(interval, value, cost, propensity, normalization, weight)
    point = curve.at_budget(budget)
    found = []
    for b, multiplier in enumerate(point.multiplier.tolist()):
        at = min(multiplier, torch.finfo(torch.float64).max)
        matched = (interval.lower <= at) & (at < interval.upper)
        w = size * matched / propensity.double()
        binds = 0 < multiplier < torch.inf
        rate = curve_slope(curve, float(budget[b])) if binds else 0.0
        y = value.double() - rate * cost.double()
        if normalization == "hajek":
            total = w.sum().clamp(min=torch.finfo(torch.float64).tiny)
            found.append(w * (y - (w * y).sum() / total) / total)
        else:
            found.append((w * y - size * (w * y).sum() / size.sum()) / size.sum())
    return Influence(point.value, torch.stack(found))


def standard_error(influence: Tensor, user: Tensor | None = None) -> Tensor:
    """Standard error ``[B]`` from the influence of rows ``[B, N]``; the rows of a user count as one.

    Of two models on the same rows, the error of the difference is that of the difference of their influences.

    Raises:
        InputError: if ``user`` is not ``[N]`` int64.
    """
    if user is not None:
        check_user(user, influence.shape[1])
        _, place = user.unique(return_inverse=True)
        influence = influence.new_zeros(len(influence), int(place.max()) + 1).index_add_(1, place, influence)
    n = influence.shape[1]
    return (influence.square().sum(1) * (n / max(n - 1, 1))).sqrt()


def normal_interval(estimate: Tensor, error: Tensor, level: float = 0.95) -> tuple[Tensor, Tensor]:
    """``estimate ± z · error`` with the normal quantile of a level."""
    z = math.sqrt(2) * float(torch.special.erfinv(torch.tensor(level, dtype=torch.float64)))
    return estimate - z * error, estimate + z * error


def curve_slope(curve: CostCurve, budget: float) -> float:
    """dV/dC of a curve around a budget, over ``WINDOW`` of it on either side as far as the curve reaches."""
    ends = curve.at_budget([budget * (1 - WINDOW), budget * (1 + WINDOW)])
    run = float(ends.spend[1] - ends.spend[0])
    return float(ends.value[1] - ends.value[0]) / run if run > 0 else 0.0
