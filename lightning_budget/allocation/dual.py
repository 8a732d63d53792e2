"""The price of money that meets a budget, for one or many budgets, and the bound it proves."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_budget.allocation import compiled
from lightning_budget.allocation.chunks import user_chunks
from lightning_budget.allocation.finish import Found, Miss, OpenUsers, finish
from lightning_budget.allocation.frontier import LARGEST
from lightning_budget.allocation.policy import arms_at
from lightning_budget.allocation.problem import check_feasible, check_finite, check_shapes
from lightning_budget.allocation.search import Bracket, few_enough, guessed, inside, narrows, search
from lightning_budget.allocation.settled import settle
from lightning_budget.allocation.summation import exact_parts
from lightning_budget.errors import InputError

FEWEST_TOGETHER, MOST_ARMS_TOGETHER = 3, 8
"""Budgets from which on, and arms up to which, one curve of the spend costs less than a bracket for each budget."""

WARM = 0.005
"""How far, relatively, a multiplier may have moved from the one given for it to be found in one pass."""


@torch.no_grad()
def solve_multipliers(
    value: Tensor, cost: Tensor, budgets: Tensor | float, near: Tensor | Sequence[float] | None = None
) -> Tensor:
    r"""The smallest multiplier at which each budget holds.

    .. math:: \lambda(b) = \min \{\lambda \ge 0 : \tfrac1N \sum_i c_{i,\pi_\lambda(i)} \le b\}

    0 where the free optimum fits; otherwise a breakpoint, that is the slope of a step of some user's frontier. All
    budgets share one sample and one pass over the users.

    Args:
        value: ``[N, K]``, value units per user. Storage contiguous over users (``x.T.contiguous().T``) is fastest.
        cost: ``[N, K]``, currency per user.
        budgets: ``[B]``, currency per user.
        near: multipliers ``[B]`` thought to be near, as those of the last solve; they save time and change nothing.

    Returns:
        Tensor: multipliers ``[B]`` float64 on the device of ``value``, value per currency.

    Raises:
        InputError: if the predictions are not finite ``[N, K]`` tensors, or a budget lies below the cheapest
            feasible spend.
    """
    check_shapes(value, cost)
    per_user = torch.as_tensor(budgets, dtype=torch.float64).detach().cpu()
    if not bool(torch.isfinite(per_user).all()):
        raise InputError(
            f"budgets={per_user.tolist()}", "finite currency per user", "drop the budgets that are not numbers"
        )
    totals = [_largest_total(b, len(value)) for b in per_user.reshape(-1).tolist()]
    brackets = None
    if near is not None:
        brackets = [bracket_near([m]) for m in torch.as_tensor(near, dtype=torch.float64).reshape(-1).tolist()]
        if len(brackets) != len(totals):
            raise InputError(f"near has {len(brackets)} multipliers", f"{len(totals)}, one per budget", "drop near")
    found = critical_multipliers(value, cost, totals, brackets)
    return torch.tensor(found, dtype=torch.float64, device=value.device).reshape(per_user.shape)


def critical_multipliers(
    value: Tensor, cost: Tensor, totals: list[float], brackets: list[Bracket] | None = None
) -> list[float]:
    """For each **total** budget its multiplier, given guesses of where they lie.

    Raises:
        InputError: if a number is not finite, or a budget lies below the cheapest feasible spend.
    """
    users = all_users(value, cost, None)
    if few_enough(len(value)) or not totals:
        check_finite(value, cost)
        return [_found(finish(users, total, leftover=False), cost, totals).multiplier for total in totals]
    found: list[float | None] = [None] * len(totals)
    if len(totals) >= FEWEST_TOGETHER and compiled.usable(users.value) and len(users.value) <= MOST_ARMS_TOGETHER:
        found = _together(users, totals, brackets)
        brackets = None
    rest = [i for i, multiplier in enumerate(found) if multiplier is None]
    if brackets is None and rest:
        brackets = guessed(users, [totals[i] for i in rest])
    parts = settle(users.value, users.cost, brackets) if rest and brackets else []
    for i, part in zip(rest, parts, strict=True):
        if not part.finite:
            check_finite(value, cost)
        left = inside(users, part)
        go_on = narrows(len(part.rows), len(value))
        one = search(left, totals[i], leftover=False) if go_on else finish(left, totals[i], leftover=False)
        if isinstance(one, Miss):
            one = search(users, totals[i], leftover=False)
        found[i] = _found(one, cost, totals).multiplier
    return [multiplier for multiplier in found if multiplier is not None]


def _together(users: OpenUsers, totals: list[float], brackets: list[Bracket] | None) -> list[float | None]:
    """The multipliers that one curve of the spend shows, and those of budgets that do not bind."""
    from lightning_budget.allocation.compiled import together

    if brackets is None:
        targets = [total / users.value.shape[1] for total in totals]
        brackets = together.brackets_together(users.value, users.cost, targets)
    found = together.multipliers_together(users, totals, brackets)
    if None not in found:
        return found
    free = _spent_when_free(users)
    return [0.0 if one is None and total >= free else one for one, total in zip(found, totals, strict=True)]


def _spent_when_free(users: OpenUsers) -> float:
    """What all spend at multiplier 0; NaN if a number is not finite."""
    (part,) = settle(users.value, users.cost, [(0.0, 0.0)])
    left = inside(users, part)
    return left.spent(arms_at(left.value, left.cost, 0.0)) if part.finite else math.nan


def all_users(value: Tensor, cost: Tensor, key: Tensor | None) -> OpenUsers:
    """The whole problem ``[N, K]``, of which nothing is known; half precision becomes single, losing nothing."""
    value, cost = (x.float() if x.element_size() < 4 else x for x in (value.detach(), cost.detach()))
    return OpenUsers(value.T, cost.T, key, 0.0, LARGEST, [], [])


def bracket_near(multipliers: Sequence[float]) -> Bracket:
    """A bracket around multipliers that are thought to be near."""
    low, high = min(multipliers), max(multipliers)
    return max(low * (1 - WARM), 0.0), min(high * (1 + WARM), LARGEST)


def _found(found: Found | Miss, cost: Tensor, totals: list[float]) -> Found:
    if isinstance(found, Miss):
        check_feasible(cost, min(totals))
        raise AssertionError("no multiplier fits a feasible budget")
    return found


@torch.no_grad()
def dual_value(value: Tensor, cost: Tensor, multiplier: float | Tensor, budget_total: float) -> float:
    r"""Upper bound on the value of every allocation within the budget, integer or fractional.

    .. math:: D(\lambda) = \lambda B + \sum_i \max_j\, (v_{ij} - \lambda c_{ij}), \qquad \lambda \ge 0

    Args:
        value: ``[N, K]``, value units per user.
        cost: ``[N, K]``, currency per user.
        multiplier: λ, value per currency; at the one of :func:`solve_multipliers` the bound is the optimum of the
            linear relaxation.
        budget_total: B, currency for all N users together.
    """
    price = float(multiplier)
    parts = [price * budget_total]
    for _, v, c in user_chunks(value, cost):
        parts += exact_parts((v - price * c).amax(dim=0))
    return math.fsum(parts)


def treatment_cost(cost: Tensor, treatment: Tensor) -> Tensor:
    """Cost ``[N]`` of the treatment ``[N]`` given."""
    return cost.gather(1, treatment.long()[:, None])[:, 0]


def _largest_total(per_user: float, users: int) -> float:
    """The largest total whose mean still rounds to at most ``per_user``; the product alone may miss it by rounding."""
    total = per_user * users
    while total / users > per_user:
        total = math.nextafter(total, -math.inf)
    while math.nextafter(total, math.inf) / users <= per_user:
        total = math.nextafter(total, math.inf)
    return total
