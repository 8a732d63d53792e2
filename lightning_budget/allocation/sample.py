"""A guess, from a sample, between which multipliers each budget's lies."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_budget.allocation.frontier import LARGEST, steps_between
from lightning_budget.allocation.policy import arms_at
from lightning_budget.allocation.settled import arm_dtype, settle

SAMPLE_USERS = 1 << 12
"""Fewest users drawn."""

MOST_USERS = 1 << 17

_RUN = 64
"""Neighbours drawn together: memory comes in lines."""

COARSE = 64
"""Runs of a first look."""

COARSE_DEVIATIONS, DEVIATIONS = 6.0, 4.0


def sample_size(users: int, budgets: int) -> int:
    """Users to draw: what a wider sample costs and what it saves grow alike at about this size."""
    size = int(0.5 * users**0.75 * min(budgets, 4) ** 0.5)
    return min(max(size, SAMPLE_USERS), MOST_USERS, users)


def brackets_from_sample(
    value: Tensor, cost: Tensor, targets: list[float], low: float = 0.0, high: float = LARGEST
) -> list[tuple[float, float]]:
    """Multipliers in ``[low, high]`` between which the spend per user most likely passes each target.

    The spread is that between runs of neighbours, so sorted users widen the bracket rather than mislead it.

    Args:
        value, cost: ``[K, N]``; targets: B, currency per user.
    """
    v, c, run = drawn(value, cost, len(targets))
    if len(targets) == 1 and v.shape[1] > 4 * COARSE * run:
        coarse = COARSE * run
        ((low, high, _),) = read(v[:, :coarse], c[:, :coarse], targets, low, high, COARSE_DEVIATIONS, run)
    return [(low, high) for low, high, _ in read(v, c, targets, low, high, DEVIATIONS, run)]


def drawn(value: Tensor, cost: Tensor, budgets: int) -> tuple[Tensor, Tensor, int]:
    """Value and cost ``[K, m]`` of some users for so many budgets, and how many neighbours stand together."""
    users = value.shape[1]
    runs = max(sample_size(users, budgets) // _RUN, 4)
    run = min(_RUN, users)
    generator = torch.Generator().manual_seed(users)
    starts = torch.randint(users - run + 1, (runs,), generator=generator)
    rows = (starts[:, None] + torch.arange(run)).reshape(-1).to(value.device)
    if value.stride(1) != 1:  # users first: whole rows
        return value.T[rows].T, cost.T[rows].T, run
    return value.index_select(1, rows), cost.index_select(1, rows), run


def read(
    v: Tensor, c: Tensor, targets: list[float], low: float, high: float, deviations: float, run: int
) -> list[tuple[float, float, float]]:
    """For each target a bracket, so many standard deviations wide, and the deviation of the mean of one run."""
    users = v.shape[1]
    arm = torch.empty(users, dtype=arm_dtype(len(v)), device=v.device)
    (part,) = settle(v, c, [(low, high)], arm)
    arm[part.rows] = arms_at(part.value, part.cost, high).to(arm.dtype)
    paid = c.gather(0, arm.long()[None])[0].double()
    steps = steps_between(part.value, part.cost, low, high)
    spend = torch.cat([paid.sum()[None], steps.price]).cumsum(0) / users
    target = torch.tensor(targets, dtype=torch.float64, device=v.device)
    by_run = _by_run(paid, part.rows[steps.user] // run, steps.price, _past(spend, target).clamp_(min=0), run)
    deviation = by_run.std(dim=1)
    margin = deviations * deviation / math.sqrt(by_run.shape[1]) + 2 * (spend[-1] - spend[0]) / users
    # Before the first step the multiplier is above all slopes, past the last below them.
    slope = torch.nn.functional.pad(torch.nn.functional.pad(steps.slope, (1, 0), value=high), (0, 1), value=low)
    dear, cheap = (slope[_past(spend, x) + 1] for x in (target + margin, target - margin))
    known = margin.isfinite()
    ends = torch.where(known, dear, low), torch.where(known, cheap, high), torch.where(known, deviation, math.inf)
    return list(zip(*(x.tolist() for x in ends), strict=True))


def _by_run(paid: Tensor, run_of: Tensor, price: Tensor, taken: Tensor, run: int) -> Tensor:
    """Mean spend ``[T, R]`` of each run of neighbours when so many steps ``[T]`` of all are taken.

    Args:
        paid: ``[m]``, before any step; run_of, price: ``[S]``, of each step.
    """
    runs, ascending = len(paid) // run, taken.sort()
    step = torch.arange(len(price), device=paid.device)
    # A step counts from the first target on that takes it.
    first = torch.searchsorted(ascending.values, step, right=True)
    added = paid.new_zeros((len(taken) + 1) * runs).index_add_(0, first * runs + run_of, price.double())
    total = paid.view(runs, run).sum(1) + added.view(-1, runs)[:-1].cumsum(0)
    return torch.empty_like(total).index_copy_(0, ascending.indices, total / run)


def _past(spend: Tensor, target: Tensor) -> Tensor:
    """The step that takes the running spend past each target; −1 where it is past before any."""
    return torch.searchsorted(spend, target, right=True) - 1
