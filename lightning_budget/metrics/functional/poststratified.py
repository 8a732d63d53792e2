"""EOM with every arm's matched rows standing for all users to whom the policy would give that arm."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_budget.metrics.functional.checks import check_outcomes, check_weight
from lightning_budget.metrics.functional.cost_curve import BudgetPoint, CostCurve
from lightning_budget.metrics.functional.eom import at_one
from lightning_budget.metrics.functional.matched import MatchedInterval, matched_interval

Numbers = Tensor | Sequence[float] | float


@torch.no_grad()
def poststratified_curve(
    value_hat: Tensor, cost_hat: Tensor, treatment: Tensor, value: Tensor, cost: Tensor, weight: Tensor | None = None
) -> CostCurve:
    r"""Estimated spend and value of a policy at every multiplier, arm by arm.

    .. math:: \bar V(\lambda) = \sum_j \frac{n^\pi_j}{N}\, \text{mean}(y \mid t = j, \pi_\lambda = j)

    with :math:`n^\pi_j` the users to whom the policy gives arm j, whatever they were given. Less noise than ``hajek``
    where arms were given in other proportions than the policy gives them; unbiased where the trial's propensities do
    not vary within the users of one arm. A multiplier at which an arm that the policy uses has no matched row has no
    estimate: the point repeats the nearest one above that has one (below it, at the start).

    Args:
        value_hat, cost_hat: ``[N, K]`` predictions that make the policy.
        treatment: ``[N]`` int64, the arm given; value, cost: ``[N]``, observed under it.
        weight: ``[N]`` ≥ 0, how often a row counts; once if not given.

    Raises:
        InputError: as :func:`~lightning_budget.metrics.functional.cost_curve.cost_curve`.
    """
    users, arms = value_hat.shape if value_hat.ndim == 2 else (0, 0)
    given = matched_interval(value_hat, cost_hat, treatment)
    check_outcomes(value, cost, torch.ones_like(value), len(treatment))
    check_weight(weight, len(treatment))
    size = torch.ones(users, dtype=torch.float64, device=value.device) if weight is None else weight.double()
    by_arm = [matched_interval(value_hat, cost_hat, torch.full_like(treatment, j)) for j in range(arms)]
    ends = torch.cat([torch.tensor([torch.inf], dtype=torch.float64, device=value.device), *(x.upper for x in by_arm)])
    multiplier = ends[ends > 0].unique().flip(0)
    totals = torch.zeros(2, len(multiplier), dtype=torch.float64, device=value.device)
    held = torch.ones(len(multiplier), dtype=torch.bool, device=value.device)
    for j, chosen in enumerate(by_arm):
        rows = treatment == j
        matched = MatchedInterval(given.lower[rows], given.upper[rows])
        columns = torch.stack([size[rows], size[rows] * value[rows].double(), size[rows] * cost[rows].double()])
        users_at = _held(chosen, size[None], multiplier)[0]
        mass, worth, paid = _held(matched, columns, multiplier)
        least = 0.5 * float(size[size > 0].min())
        has_rows, is_used = mass > least, users_at > least
        share = torch.where(is_used & has_rows, users_at / torch.where(has_rows, mass, 1.0), 0.0)
        totals += share * torch.stack([worth, paid])
        held &= has_rows | ~is_used
    value_at, spend = totals / size.sum()
    here = torch.arange(len(held), device=held.device)
    source = torch.where(held, here, held.byte().argmax()).cummax(0).values
    nothing = not bool(held.any())
    return CostCurve(multiplier, *(x[source] * (0.0 if nothing else 1.0) for x in (spend, value_at)))


def eom_poststratified(
    value_hat: Tensor,
    cost_hat: Tensor,
    treatment: Tensor,
    value: Tensor,
    cost: Tensor,
    *,
    budgets: Numbers | None = None,
    multiplier: Numbers | None = None,
    weight: Tensor | None = None,
) -> BudgetPoint:
    """:func:`poststratified_curve` at budgets ``[B]``, currency per user, or at multipliers ``[B]`` ≥ 0.

    Raises:
        InputError: as the curve, or unless exactly one of budgets and multiplier is given.
    """
    curve = poststratified_curve(value_hat, cost_hat, treatment, value, cost, weight)
    return at_one(curve, budgets, multiplier)


def _held(interval: MatchedInterval, columns: Tensor, multiplier: Tensor) -> Tensor:
    """Sums ``[C, M]`` of columns ``[C, n]`` over the rows that are matched just below each multiplier, descending."""
    taken = interval.lower < interval.upper
    sums = columns.new_zeros(len(columns), len(multiplier))
    for end, sign in ((interval.upper, 1.0), (interval.lower, -1.0)):
        order = end[taken].argsort(descending=True)
        running = torch.cat([columns.new_zeros(len(columns), 1), columns[:, taken][:, order].cumsum(1)], 1)
        # Entered at or above this multiplier, or left at or above it.
        count = torch.searchsorted(-end[taken][order], -multiplier, right=True)
        sums += sign * running[:, count]
    return sums
