"""What each arm of a trial earns and costs over control, and its return on investment, with intervals."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor

from lightning_budget.errors import InputError
from lightning_budget.metrics.functional.checks import check_treatment, check_user
from lightning_budget.metrics.functional.columns import as_column, as_propensity, as_row_weight


@dataclass(frozen=True)
class Increments:
    """Arms 1 … K − 1 against control; all ``[K − 1]`` float64.

    Attributes:
        value, value_error: value units per user given the arm instead of control, and its standard error.
        cost, cost_error: currency per user, likewise.
        roi: ``value / cost``; NaN where both are 0, infinite where the cost alone is.
        roi_low, roi_high: Fieller interval. −inf and +inf where the cost increment is not distinguishable from 0 at the
            level asked for: the ratios that fit then are all of them, or all but a stretch in the middle.
    """

    value: Tensor
    value_error: Tensor
    cost: Tensor
    cost_error: Tensor
    roi: Tensor
    roi_low: Tensor
    roi_high: Tensor


def increments(
    treatment: Tensor,
    value: Tensor,
    cost: Tensor,
    propensity: Tensor,
    num_treatments: int,
    *,
    user: Tensor | None = None,
    weight: Tensor | None = None,
    level: float = 0.95,
) -> Increments:
    """Incremental value, cost and ROI of every arm, Hájek means of the rows given it.

    With s_i the sample weight and ω_i = s_i / p_i::

        ȳ_j = Σ_{t_i = j} ω_i y_i / Σ_{t_i = j} ω_i,          Δ_j = ȳ_j − ȳ_0
        ψ_i = ω_i (y_i − ȳ_{t_i}) / Σ_{t = t_i} ω · √(n / (n − 1)),          n: rows (or users) of arm t_i
        variance of Δ_j = Σ_users ( Σ_{i: t_i = j} ψ_i − Σ_{i: t_i = 0} ψ_i )²

    Without ``user`` every row is a user of its own (a row of weight s is s of them); at equal propensities that is
    s_1² / n_1 + s_0² / n_0 of the unpaired comparison of two means. The interval of the ROI ρ is Fieller's, all ρ with
    (Δv − ρ Δc)² ≤ z² Var(Δv − ρ Δc), normal quantile z; it keeps its level however noisy the cost is, and is the delta
    method's where the cost is certain.

    Args:
        treatment: ``[N]`` integers, the arm given, 0 for control.
        value: ``[N]``, observed under it.
        cost: ``[N]``, observed under it.
        propensity: ``[N]``, its probability.
        num_treatments: K ≥ 2.
        user: ``[N]`` int64, whose rows are not independent.
        weight: ``[N]`` ≥ 0, how often a row counts.
        level: of the interval.

    Raises:
        InputError: if columns are misaligned or not finite, a weight is negative, a propensity outside (0, 1], a
            treatment outside 0 … K − 1, an arm has fewer than 2 rows or users, or the level is not between 0 and 1.

    Source: Fieller 1954, doi:10.1111/j.2517-6161.1954.tb00159.x.
    """
    if num_treatments < 2:
        raise InputError(f"num_treatments={num_treatments}", "at least 2", "count control as an arm")
    if not 0 < level < 1:
        raise InputError(f"level={level}", "between 0 and 1", "0.95 is usual")
    rows = treatment.numel()
    outcome = torch.stack([as_column("value", value, rows), as_column("cost", cost, rows)], 1)
    check_treatment(treatment, rows, num_treatments)
    inverse = 1 / as_propensity(propensity, rows)
    count = as_row_weight(weight, rows, outcome.device)
    arm, mass = treatment.long(), count * inverse
    if user is not None:
        check_user(user, rows)

    def sums(x: Tensor) -> Tensor:
        return x.new_zeros(num_treatments, *x.shape[1:]).index_add_(0, arm, x)

    total = sums(mass)
    mean = sums(mass[:, None] * outcome) / total[:, None]
    influence = (inverse / total[arm])[:, None] * (outcome - mean[arm])  # of a row that counts once
    if user is None:
        squares = sums(count[:, None, None] * influence[:, :, None] * influence[:, None, :])
        arms = squares * _correction(sums(count))[:, None, None]
        covariance = arms[1:] + arms[:1]
    else:
        covariance = _clustered(influence * count[:, None], arm, count, user, num_treatments)
    value_gain, cost_gain = (mean[1:] - mean[:1]).unbind(1)
    z = NormalDist().inv_cdf((1 + level) / 2)
    low, high = _fieller(value_gain, cost_gain, covariance, z)
    error = covariance.diagonal(dim1=1, dim2=2).sqrt()
    return Increments(value_gain, error[:, 0], cost_gain, error[:, 1], value_gain / cost_gain, low, high)


def _correction(held: Tensor) -> Tensor:
    """Factor n / (n − 1) of each arm."""
    few = held < 2
    if bool(few.any()):
        raise InputError(
            f"treatments {few.nonzero().squeeze(1).tolist()} have fewer than 2 rows or users",
            "at least 2 of every arm",
            "check the split and the arm numbers",
        )
    return held / (held - 1)


def _clustered(influence: Tensor, arm: Tensor, count: Tensor, user: Tensor, arms: int) -> Tensor:
    """Covariance ``[K − 1, 2, 2]`` of the increments, users being independent of one another."""
    users, position = user.unique(return_inverse=True)
    cell = position * arms + arm
    cells = len(users) * arms
    seen = count.new_zeros(cells).index_add_(0, cell, count).reshape(-1, arms) > 0
    by_user = influence.new_zeros(cells, 2).index_add_(0, cell, influence).reshape(-1, arms, 2)
    by_user = by_user * _correction(seen.double().sum(0)).sqrt()[:, None]
    difference = by_user[:, 1:] - by_user[:, :1]
    return torch.einsum("ujx,ujy->jxy", difference, difference)


def _fieller(value: Tensor, cost: Tensor, covariance: Tensor, z: float) -> tuple[Tensor, Tensor]:
    """Ends of the ratio's interval: roots of a ρ² − 2 b ρ + c, where a > 0 makes them bound it."""
    a = cost.square() - z**2 * covariance[:, 1, 1]
    b = value * cost - z**2 * covariance[:, 0, 1]
    c = value.square() - z**2 * covariance[:, 0, 0]
    root = (b.square() - a * c).clamp(min=0.0).sqrt()
    bounded = a > 0
    a = torch.where(bounded, a, 1.0)
    return torch.where(bounded, (b - root) / a, -torch.inf), torch.where(bounded, (b + root) / a, torch.inf)
