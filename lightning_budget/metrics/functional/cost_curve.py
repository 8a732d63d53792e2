"""Value against spend over every multiplier: on randomized logs, and against known truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lightning_budget.allocation.compiled import usable
from lightning_budget.allocation.frontier import frontier_steps
from lightning_budget.allocation.order import by_slope
from lightning_budget.errors import InputError
from lightning_budget.metrics.functional.checks import (
    Normalization,
    as_budgets,
    check_normalization,
    check_outcomes,
    check_policy,
    check_weight,
)
from lightning_budget.metrics.functional.matched import MatchedInterval, matched_interval
from lightning_budget.metrics.functional.walk import Walk, build_walk, first_crossing, groups


@dataclass(frozen=True)
class BudgetPoint:
    """What a policy does at each of B budgets (or multipliers).

    Attributes:
        value: ``[B]``, value units per user.
        spend: ``[B]``, currency per user; equal to the budget where it is met, less where money is left over.
        multiplier: ``[B]``, value per currency; the price at which the two mixed policies meet, 0 where money is left
            over, +inf where even the cheapest arms cost more than the budget.
    """

    value: Tensor
    spend: Tensor
    multiplier: Tensor


@dataclass(frozen=True)
class CostCurve:
    """Spend and value of the policy π_λ(i) = argmax_j v̂_ij − λ ĉ_ij while λ falls from +inf to 0.

    Point m holds for every λ with ``multiplier[m + 1] <= λ < multiplier[m]``, the last one down to λ = 0; the first,
    all users at their cheapest arm, holds at +inf too.

    Attributes:
        multiplier: ``[M]`` float64, strictly descending from +inf, value per currency.
        spend: ``[M]`` float64, currency per user; need not be monotone when predictions are wrong or the sample small.
        value: ``[M]`` float64, value units per user.
    """

    multiplier: Tensor
    spend: Tensor
    value: Tensor

    def at_budget(self, budgets: Tensor | Sequence[float] | float) -> BudgetPoint:
        """Value where the spend, walked from +inf downwards, first exceeds the budget, mixed back to meet it exactly.

        Mixing two neighbouring points by a share s is to randomise users between the two policies. A budget above all
        spends reached gives the λ = 0 point; one below the first point's spend gives the first point.

        Args:
            budgets: ``[B]``, currency per user.

        Raises:
            InputError: if a budget is NaN or not above 0.
        """
        budget = as_budgets(budgets, self.spend.device)
        crossing = first_crossing(self.spend[None], self.value[None], budget)
        above = crossing.above[0]
        multiplier = torch.cat([self.multiplier, self.multiplier.new_zeros(1)])[above]
        return BudgetPoint(crossing.value[0], crossing.spend[0], multiplier)

    def at_multiplier(self, multiplier: Tensor | Sequence[float] | float) -> BudgetPoint:
        """The points that hold at given multipliers ``[B]`` ≥ 0.

        Raises:
            InputError: if a multiplier is NaN or negative.
        """
        price = torch.as_tensor(multiplier, dtype=torch.float64, device=self.spend.device).reshape(-1).contiguous()
        if not bool((price >= 0).all()):
            raise InputError(
                f"multipliers {price.tolist()}", "0 or more (value per currency)", "give prices, not budgets"
            )
        not_above = torch.searchsorted(self.multiplier.flip(0), price, right=True)
        point = (len(self.multiplier) - not_above - 1).clamp(min=0)
        return BudgetPoint(self.value[point], self.spend[point], price)


def cost_curve(
    value_hat: Tensor,
    cost_hat: Tensor,
    treatment: Tensor,
    value: Tensor,
    cost: Tensor,
    propensity: Tensor,
    normalization: Normalization = "hajek",
    weight: Tensor | None = None,
) -> CostCurve:
    """Estimated spend and value of a model's policy on randomized logs, at every multiplier, from one sort.

    With w_i = s_i 1[t_i = π_λ(i)] / p_i::

        hajek:  Σ w y / Σ w          ipw:  Σ w y / Σ s

    Under ``hajek`` a multiplier at which no row is matched has no estimate: the point repeats the nearest one above it
    (below it, at the start). When no row is matched at any multiplier all points are 0, as under ``ipw``.

    Args:
        value_hat: ``[N, K]`` predictions that make the policy, value units per user.
        cost_hat: ``[N, K]``, currency per user.
        treatment: ``[N]`` int64, the arm given.
        value: ``[N]``, observed under the arm given.
        cost: ``[N]``, observed under the arm given.
        propensity: ``[N]``, probability of the arm given.
        normalization: ``hajek`` or ``ipw``.
        weight: ``[N]`` s ≥ 0, how often a row counts; once if not given.

    Raises:
        InputError: as :func:`matched_interval`; if outcomes are not finite, a propensity is outside (0, 1], or weights
            are negative or all 0.

    Source: Zhao, Fang, Simchi-Levi 2017, arXiv 1705.08492; Ai et al. 2022 (LBCF), arXiv 2201.12585.
    """
    interval = matched_interval(value_hat, cost_hat, treatment)
    check_outcomes(value, cost, propensity, len(treatment))
    check_normalization(normalization)
    check_weight(weight, len(treatment))
    return matched_curve(interval, value, cost, propensity, normalization, weight)


def policy_curve(
    value_hat: Tensor, cost_hat: Tensor, true_value: Tensor, true_cost: Tensor, weight: Tensor | None = None
) -> CostCurve:
    """True spend and value, at every multiplier, of the policy that predictions induce.

    Sums of true Δv, Δc over the increments of the predicted frontiers, in order of predicted slope. With the truth as
    prediction it is the optimum: no policy, randomised or not, is worth more at the same spend.

    Args:
        value_hat: ``[N, K]`` predictions that make the policy, value units per user.
        cost_hat: ``[N, K]``, currency per user.
        true_value: ``[N, K]`` means that judge it, value units per user.
        true_cost: ``[N, K]``, currency per user.
        weight: ``[N]`` ≥ 0, how often a user counts; once if not given.

    Raises:
        InputError: if shapes differ, an entry is not finite, or weights are negative or all 0.
    """
    check_policy(value_hat, cost_hat, true_value, true_cost)
    check_weight(weight, len(value_hat))
    return curve_of(policy_walk(value_hat, cost_hat, true_value, true_cost, weight))


def matched_curve(
    interval: MatchedInterval,
    value: Tensor,
    cost: Tensor,
    propensity: Tensor,
    normalization: Normalization,
    weight: Tensor | None = None,
) -> CostCurve:
    """The curve of :func:`matched_walk`, every row counted once; in fewer passes where there is compiled code."""
    if not usable(interval.lower):
        return curve_of(matched_walk(interval, value, cost, propensity, normalization, weight))
    from lightning_budget.metrics.functional.compiled.intervals_run import curve

    interval, propensity, least = _weighted(interval, propensity, weight)
    size = len(interval.lower) if weight is None else float(weight.double().sum())
    total = 0.0 if normalization == "hajek" else float(size)
    return CostCurve(*curve(interval, value, cost, propensity, total, 0.5 * least))


def matched_walk(
    interval: MatchedInterval,
    value: Tensor,
    cost: Tensor,
    propensity: Tensor,
    normalization: Normalization,
    weight: Tensor | None = None,
) -> Walk:
    """Rows enter below ``upper`` with weight s/p and leave below ``lower``."""
    interval, propensity, least = _weighted(interval, propensity, weight)
    if usable(interval.lower):
        from lightning_budget.metrics.functional.compiled.intervals_run import events

        multiplier, row, mass, worth, paid = events(interval, value, cost, propensity)
    else:
        multiplier, row, mass, worth, paid = _events(interval, value, cost, propensity)
    group, end = groups(multiplier)
    held = mass if normalization == "hajek" else None
    size = None if weight is None else weight.double()
    return Walk(group, end, row, held, worth, paid, len(interval.lower), size, least)


def _weighted(
    interval: MatchedInterval, propensity: Tensor, weight: Tensor | None
) -> tuple[MatchedInterval, Tensor, float]:
    """Rows without weight are never matched, the others count s/p; and the least weight of those."""
    if weight is None:
        return interval, propensity, 1.0
    weight = weight.double()
    matched = MatchedInterval(*(torch.where(weight > 0, x, 0.0) for x in interval))
    return matched, propensity.double() / torch.where(weight > 0, weight, 1.0), float(weight[weight > 0].min())


def _events(interval: MatchedInterval, value: Tensor, cost: Tensor, propensity: Tensor) -> tuple[Tensor, ...]:
    """Multiplier, row, and changes of mass, value and cost of every event, by falling multiplier; ``[E]`` each."""
    lower, upper = interval
    enters = (lower < upper).nonzero().squeeze(1)
    leaves = (lower > 0).nonzero().squeeze(1)  # never-matched rows have lower 0
    start = enters.new_zeros(1)  # a weightless event, so that the walk starts at +inf even if no row does
    row = torch.cat([start, enters, leaves])
    sign = torch.ones(len(row), dtype=torch.float64, device=row.device)
    sign[0] = 0.0
    sign[1 + len(enters) :] = -1.0
    multiplier = torch.cat([upper.new_full((1,), torch.inf), upper[enters], lower[leaves]])
    order = by_slope(multiplier)
    row = row[order]
    mass = sign[order] / propensity.double()[row]
    return multiplier[order], row, mass, mass * value.double()[row], mass * cost.double()[row]


def policy_walk(
    value_hat: Tensor, cost_hat: Tensor, true_value: Tensor, true_cost: Tensor, weight: Tensor | None = None
) -> Walk:
    """Users start at their cheapest arm and take the increments of their frontier as their slopes are passed."""
    users, arms = value_hat.shape
    cheapest, user, arm, previous, slope = frontier_steps(value_hat.detach().double().T, cost_hat.detach().double().T)
    everyone = torch.arange(users, device=value_hat.device)
    start, before, after = everyone * arms + cheapest, user * arms + previous, user * arms + arm

    row = torch.cat([everyone, user])

    def changes(truth: Tensor) -> Tensor:
        flat = truth.double().reshape(-1)
        change = torch.cat([flat[start], flat[after] - flat[before]])
        return change if weight is None else change * weight.double()[row]

    multiplier = torch.cat([slope.new_full((users,), torch.inf), slope])
    walk = build_walk(multiplier, row, None, changes(true_value), changes(true_cost), users)
    if weight is None:
        return walk
    size = weight.double()
    return replace(walk, weight=size, least=float(size[size > 0].min()))


def curve_of(walk: Walk) -> CostCurve:
    """The curve of a walk in which every row counts once."""
    spend, value = walk.points()
    return CostCurve(walk.multiplier, spend[0], value[0])
