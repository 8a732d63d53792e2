"""The price of money that meets a budget, found from a sample, few passes over the users, and an exact finish."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from lightning_budget.allocation.chunks import user_chunks
from lightning_budget.allocation.frontier import LARGEST, Frontier, efficient_frontier
from lightning_budget.allocation.narrowing import Narrowed, narrowed, two_floats
from lightning_budget.allocation.policy import policy_treatment
from lightning_budget.allocation.problem import check_feasible, check_predictions
from lightning_budget.allocation.summation import exact_parts
from lightning_budget.errors import InputError

FINISH_USERS = 1 << 16
"""At most this many users are sorted; more are first thinned out by a bracket."""

SAMPLE_USERS = 1 << 14
"""Users drawn to guess a bracket."""

_DEVIATIONS = 4.0


@torch.no_grad()
def solve_multipliers(value: Tensor, cost: Tensor, budgets: Tensor | float) -> Tensor:
    r"""The smallest multiplier at which each budget holds.

    .. math:: \lambda(b) = \min \{\lambda \ge 0 : \tfrac1N \sum_i c_{i,\pi_\lambda(i)} \le b\}

    0 where the free optimum fits; otherwise a breakpoint, that is the slope of a step of some user's frontier.

    Args:
        value: ``[N, K]``, value units per user.
        cost: ``[N, K]``, currency per user.
        budgets: ``[B]``, currency per user.

    Returns:
        Tensor: multipliers ``[B]`` float64 on the device of ``value``, value per currency.

    Raises:
        InputError: if the predictions are not finite ``[N, K]`` tensors, or a budget lies below the cheapest
            feasible spend.
    """
    check_predictions(value, cost)
    per_user = torch.as_tensor(budgets, dtype=torch.float64).detach().cpu()
    if not bool(torch.isfinite(per_user).all()):
        raise InputError(
            f"budgets={per_user.tolist()}", "finite currency per user", "drop the budgets that are not numbers"
        )
    totals = [_largest_total(b, len(value)) for b in per_user.reshape(-1).tolist()]
    if totals:
        check_feasible(cost, min(totals))
    found = [multiplier for multiplier, _ in critical_multipliers(value, cost, totals)]
    return torch.tensor(found, dtype=torch.float64, device=value.device).reshape(per_user.shape)


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
    return cost.gather(1, treatment[:, None])[:, 0]


def critical_multipliers(value: Tensor, cost: Tensor, totals: list[float]) -> list[tuple[float, float]]:
    """For each feasible **total** budget its multiplier, and a smaller one (or 0) that brackets it from below."""
    if len(value) <= FINISH_USERS:
        frontier = efficient_frontier(value, cost)
        return [(_finish(value, cost, frontier, total, [], 0.0, LARGEST), 0.0) for total in totals]
    # A larger sample costs all budgets once and leaves each fewer users to sort.
    sample = max(SAMPLE_USERS, min(4 * SAMPLE_USERS, len(value) // 16))
    brackets = _brackets(value, cost, [total / len(value) for total in totals], sample)
    return [
        (_narrow(value, cost, total) if part is None else _finish_part(value, cost, total, part))
        for total, part in zip(totals, narrowed(value, cost, totals, brackets), strict=True)
    ]


def _finish_part(v: Tensor, c: Tensor, total: float, part: Narrowed) -> tuple[float, float]:
    if len(part.users) > FINISH_USERS:
        return _narrow(v, c, total)
    v, c = v[part.users], c[part.users]
    frontier = efficient_frontier(v, c)
    return _finish(v, c, frontier, total, part.settled, part.low, part.high), part.low


def _narrow(v: Tensor, c: Tensor, total: float) -> tuple[float, float]:
    """Keep the users whose arm still depends on where in ``[low, high]`` the multiplier lies; the others are a sum.

    Invariant: the policy at ``high`` fits; at ``low`` it does not, unless ``low`` is 0.
    """
    low, high = 0.0, LARGEST
    settled: list[float] = []
    while (users := len(v)) > FINISH_USERS:
        ((guess_low, guess_high),) = _brackets(v, c, [(total - math.fsum(settled)) / users], SAMPLE_USERS)
        guess_low, guess_high = min(max(guess_low, low), high), min(max(guess_high, low), high)
        at_low, at_high = policy_treatment(v, c, guess_low), policy_treatment(v, c, guess_high)
        if _spend(c, at_low, settled) <= total:
            high, at_high = guess_low, at_low
            at_low = policy_treatment(v, c, low)
        elif _spend(c, at_high, settled) > total:
            low, at_low = guess_high, at_high
            at_high = policy_treatment(v, c, high)
        else:
            low, high = guess_low, guess_high
        still = at_low != at_high
        settled += two_floats(exact_parts(treatment_cost(c, at_high)[~still]))
        v, c = v[still], c[still]
        if len(v) > users // 2:  # many users share one slope: no bracket separates them, sorting does
            break
    return _finish(v, c, efficient_frontier(v, c), total, settled, low, high), low


def _spend(cost: Tensor, treatment: Tensor, settled: list[float]) -> float:
    return math.fsum(settled + exact_parts(treatment_cost(cost, treatment)))


def _brackets(v: Tensor, c: Tensor, targets: list[float], users: int) -> list[tuple[float, float]]:
    """Multipliers between which the spend per user most likely passes each target, from a sample."""
    generator = torch.Generator().manual_seed(len(v))
    rows = torch.randint(len(v), (min(users, len(v)),), generator=generator).to(v.device)
    v, c = v[rows], c[rows]
    frontier = efficient_frontier(v, c)
    spend = _running_spend(c, frontier) / len(rows)
    found = []
    for target in targets:
        middle = _multiplier_at(frontier, spend, target)
        spread = treatment_cost(c, policy_treatment(v, c, middle)).double()
        margin = _DEVIATIONS * float(spread.std()) / math.sqrt(len(rows)) + 2 * float(spend[-1] - spend[0]) / len(rows)
        found.append(
            (_multiplier_at(frontier, spend, target + margin), _multiplier_at(frontier, spend, target - margin))
        )
    return found


def _running_spend(cost: Tensor, frontier: Frontier) -> Tensor:
    """Spend ``[M + 1]`` before any step and after each."""
    c = cost.double()
    step = c[frontier.user, frontier.arm] - c[frontier.user, frontier.previous]
    return torch.cat([treatment_cost(c, frontier.cheapest).sum()[None], step]).cumsum(0)


def _multiplier_at(frontier: Frontier, spend: Tensor, target: float) -> float:
    """Slope of the step that takes the spend past ``target``; 0 past the last, the largest float before the first."""
    step = int((spend <= target).sum()) - 1
    if step < 0:
        return LARGEST
    return float(frontier.slope[step]) if step < len(frontier.slope) else 0.0


def _finish(
    v: Tensor, c: Tensor, frontier: Frontier, total: float, settled: list[float], low: float, high: float
) -> float:
    """The smallest breakpoint in ``(low, high]``, or 0, at which the exactly summed spend fits."""
    slope = frontier.slope
    inside = torch.unique_consecutive(slope[(slope > low) & (slope < high)])
    ends = [slope.new_tensor([high]), inside] + ([slope.new_zeros(1)] if low == 0 else [])
    candidates = torch.cat(ends)
    taken = torch.searchsorted(-slope, -candidates)
    spend = _running_spend(c, frontier)[taken] + math.fsum(settled)
    # The running sum is rounded, so it only says where to look first.
    guess = int((spend <= total).sum()) - 1

    def fits(i: int) -> bool:
        return _spend(c, policy_treatment(v, c, candidates[i]), settled) <= total

    return float(candidates[_last_true(fits, guess, len(candidates))])


def _last_true(test: Callable[[int], bool], guess: int, size: int) -> int:
    """Largest index in ``[0, size)`` that passes, given that 0 does and that none passes after one that fails."""
    low, high, step = 0, size, 1
    while high - low > 1:
        guess = min(max(guess, low + 1), high - 1)
        if test(guess):
            low = guess
            guess = min(low + step, (low + high) // 2)
        else:
            high = guess
            guess = max(high - step, (low + high) // 2)
        step *= 2
    return low


def _largest_total(per_user: float, users: int) -> float:
    """The largest total whose mean still rounds to at most ``per_user``; the product alone may miss it by rounding."""
    total = per_user * users
    while total / users > per_user:
        total = math.nextafter(total, -math.inf)
    while math.nextafter(total, math.inf) / users <= per_user:
        total = math.nextafter(total, math.inf)
    return total
