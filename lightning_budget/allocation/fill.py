"""Spend what the multiplier leaves over, and never more."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_budget.allocation.frontier import Steps
from lightning_budget.allocation.summation import exact_parts

PATIENCE = 1024
"""Steps passed over before the fill stops: by then next to nothing is left, or nothing fits."""


@dataclass(frozen=True)
class Fill:
    """Arms ``[n]`` int64 after the fill, and whether it stopped of itself or because no more steps were in sight."""

    arm: Tensor
    complete: bool


def spend_leftover(cost: Tensor, arm: Tensor, steps: Steps, budget: float, others: list[float]) -> Fill:
    """Take steps in their order as long as each still fits; a user whose step does not fit takes no later one.

    At the critical multiplier the policy leaves less than one tied group of steps unspent. After the fill the value
    lies within one user's step of the linear relaxation. Where it stops depends on the steps alone, not on how many
    more are in sight.

    Args:
        cost: ``[K, n]``, currency.
        arm: ``[n]`` int64, the policy at the multiplier, whose spend fits.
        steps: with slopes at most the multiplier, in the order of the fill; more of them may exist below the last.
        budget: **total** currency; others: floats that sum to the spend of all users but these.

    Source:
        Zemel 1980, doi:10.1287/opre.28.6.1412 (greedy for the multiple-choice knapsack).
    """
    user, price = steps.user, steps.price

    def after(taken: Tensor) -> Tensor:
        """Arms once the steps at these ascending positions are taken: the last step of a user wins."""
        if not len(user):
            return arm
        last = torch.full_like(arm, -1).scatter_reduce_(0, user[taken], taken, "amax")
        return torch.where(last >= 0, steps.arm[last.clamp(min=0)], arm)

    def spend(taken: Tensor) -> float:
        return math.fsum(others + exact_parts(cost.gather(0, after(taken)[None])))

    slack = budget - spend(user.new_empty(0))
    taken, complete = _greedy(user, price, _reachable(user, steps.previous, arm), slack, len(arm))
    # Running sums are rounded: recount, and if that overspends give the last steps back.
    fits, too_many = 0, len(taken) + 1
    probe = len(taken)
    while too_many - fits > 1:
        if spend(taken[:probe]) <= budget:
            fits = probe
        else:
            too_many = probe
        probe = (fits + too_many) // 2
    return Fill(after(taken[:fits]), complete)


def _reachable(user: Tensor, previous: Tensor, start: Tensor) -> Tensor:
    """Positions of the steps of those users whose first step left starts at the arm they have."""
    position = torch.arange(len(user), device=user.device)
    first = _first_of(user, position, len(start), len(user))
    starts_here = previous[first[user]] == start[user] if len(user) else user.new_empty(0, dtype=torch.bool)
    return position[starts_here]


def _greedy(user: Tensor, price: Tensor, left: Tensor, slack: float, users: int) -> tuple[Tensor, bool]:
    """Ascending positions of the steps taken: longest prefix that fits, drop what cannot fit any more, again."""
    taken = [left[:0]]
    everything = left
    tolerance = 1e-14 * slack
    passed = 0
    while passed < PATIENCE:
        too_dear = left[price[left] > slack + tolerance]
        blocked = _first_of(user[too_dear], too_dear, users, len(user))
        left = left[left < blocked[user[left]]]  # a user's later steps need the earlier ones
        if not len(left):
            break
        running = price[left].cumsum(0)
        prefix = int((running <= slack + tolerance).sum())
        taken.append(left[:prefix])
        slack -= float(running[prefix - 1])
        left = left[prefix:]
        passed = int((everything <= taken[-1][-1]).sum()) - sum(map(len, taken))
    found = torch.cat(taken)
    left_out = everything[~torch.isin(everything, found, assume_unique=True)]
    if len(left_out) < PATIENCE:
        return found, False
    return found[found < left_out[PATIENCE - 1]], True


def _first_of(user: Tensor, position: Tensor, users: int, none: int) -> Tensor:
    """Smallest position per user ``[users]``, ``none`` where there is none."""
    return torch.full((users,), none, dtype=torch.int64, device=user.device).scatter_reduce_(0, user, position, "amin")
