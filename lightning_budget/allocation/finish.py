"""The exact end: sort the steps of the users that a bracket leaves open, and decide by exactly summed spend."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_budget.allocation.fill import spend_leftover
from lightning_budget.allocation.frontier import Steps, steps_between
from lightning_budget.allocation.order import mixed
from lightning_budget.allocation.policy import arms_at
from lightning_budget.allocation.summation import exact_parts


@dataclass(frozen=True)
class OpenUsers:
    """What is left of a problem once the multiplier is known to lie in ``[low, high]``.

    Attributes:
        value, cost: ``[K, n]`` of the users left.
        key: ``[n]`` int64, names users whatever their order, for ties; ``None``: their position.
        spend, worth: floats that sum exactly to what all other users cost and are worth.
    """

    value: Tensor
    cost: Tensor
    key: Tensor | None
    low: float
    high: float
    spend: list[float]
    worth: list[float]

    def spent(self, arm: Tensor) -> float:
        """Spend of all users with these arms ``[n]`` for the ones left, rounded once."""
        return math.fsum(self.spend + exact_parts(self.cost.gather(0, arm.long()[None])))

    def totals(self, arm: Tensor) -> tuple[list[float], list[float]]:
        """Exact parts of spend and worth of all users with these arms for the ones left."""
        chosen = arm.long()[None]
        return (
            self.spend + exact_parts(self.cost.gather(0, chosen)),
            self.worth + exact_parts(self.value.gather(0, chosen)),
        )


@dataclass(frozen=True)
class Found:
    """The multiplier, arms ``[n]`` of the users left, and floats that sum exactly to totals over **all** users.

    Attributes:
        arm: after the fill.
        policy_spend, policy_worth: of the policy at the multiplier; spend, worth: after the fill.
    """

    multiplier: float
    arm: Tensor
    policy_spend: list[float]
    policy_worth: list[float]
    spend: list[float]
    worth: list[float]


@dataclass(frozen=True)
class Miss:
    """The bracket does not do: the multiplier, or what the fill needs to see, lies above or below it.

    Attributes:
        above: on which side.
        fits: a multiplier at which the spend fits, where it is below.
    """

    above: bool
    fits: float = math.inf


def finish(users: OpenUsers, total: float, leftover: bool) -> Found | Miss:
    """The smallest breakpoint in ``(low, high]``, or 0, at which the spend fits ``total``; then, if asked, the fill."""
    at_high = arms_at(users.value, users.cost, users.high)
    if users.spent(at_high) > total:
        return Miss(above=True)
    if users.low > 0 and users.spent(arms_at(users.value, users.cost, users.low)) <= total:
        return Miss(above=False, fits=users.low)
    key = torch.arange(len(at_high), device=at_high.device) if users.key is None else users.key
    steps = steps_between(users.value, users.cost, users.low, users.high, mixed(key))
    multiplier = _critical(users, total, steps, at_high)
    policy = arms_at(users.value, users.cost, multiplier)
    if not leftover:
        return Found(multiplier, policy, [], [], [], [])
    arm = policy
    if multiplier > 0:
        filled = spend_leftover(users.cost, policy, _from(steps, multiplier), total, users.spend)
        if users.low > 0 and not filled.complete:
            return Miss(above=False, fits=multiplier)
        arm = filled.arm
    policy_spend, policy_worth = users.totals(policy)
    return Found(multiplier, arm, policy_spend, policy_worth, *users.totals(arm))


def _from(steps: Steps, multiplier: float) -> Steps:
    first = int(torch.searchsorted(-steps.slope, -multiplier))
    return Steps(*(x[first:] for x in (steps.user, steps.arm, steps.previous, steps.slope, steps.price)))


def _critical(users: OpenUsers, total: float, steps: Steps, at_high: Tensor) -> float:
    slope = steps.slope
    inside = torch.unique_consecutive(slope[slope < users.high])
    ends = [slope.new_tensor([users.high]), inside] + ([slope.new_zeros(1)] if users.low == 0 else [])
    candidates = torch.cat(ends)
    running = torch.cat([slope.new_zeros(1), steps.price]).cumsum(0) + users.spent(at_high)
    spend = running[torch.searchsorted(-slope, -candidates)]
    # The running sum is rounded, so it only says where to look first.
    guess = int((spend <= total).sum()) - 1

    def fits(i: int) -> bool:
        return users.spent(arms_at(users.value, users.cost, float(candidates[i]))) <= total

    return float(candidates[last_true(fits, guess, len(candidates))])


def last_true(test: Callable[[int], bool], guess: int, size: int) -> int:
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
