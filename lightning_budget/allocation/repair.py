"""Spend what the multiplier leaves over, and never more."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_budget.allocation.frontier import efficient_frontier
from lightning_budget.allocation.policy import policy_treatment
from lightning_budget.allocation.summation import exact_parts

_ROUNDS = 64


@torch.no_grad()
def spend_leftover(
    value: Tensor, cost: Tensor, treatment: Tensor, budget: float, multiplier: float, floor: float = 0.0
) -> Tensor:
    r"""Take the next steps of the frontier, best slope first, as long as each still fits.

    At the critical multiplier the policy leaves less than one tied group of steps unspent. After the fill the value
    lies within one user's step of the linear relaxation.

    Args:
        value: ``[N, K]``, value units per user.
        cost: ``[N, K]``, currency per user.
        treatment: ``[N]`` int64, the policy at ``multiplier``, whose spend is within the budget.
        budget: **total** currency.
        multiplier: λ, value per currency.
        floor: smaller multiplier: only users whose arm changes between the two are looked at; 0 looks at all.

    Returns:
        Tensor: ``[N]`` int64; a user only ever moves up its own frontier, step by step.

    Source:
        Zemel 1980, doi:10.1287/opre.28.6.1412 (greedy for the multiple-choice knapsack).
    """
    movable = treatment != policy_treatment(value, cost, floor)
    v, c, start = value[movable].double(), cost[movable].double(), treatment[movable]
    frontier = efficient_frontier(v, c)
    rest = frontier.slope <= multiplier
    user, arm, previous = frontier.user[rest], frontier.arm[rest], frontier.previous[rest]
    fixed = exact_parts(cost.gather(1, treatment[:, None])[~movable])

    def after(steps: Tensor) -> Tensor:
        """Arms once the steps at these ascending positions are taken: the last step of a user wins."""
        last = torch.full_like(start, -1).scatter_reduce_(0, user[steps], steps, "amax")
        return torch.where(last >= 0, arm[last.clamp(min=0)], start) if len(arm) else start

    def spend(steps: Tensor) -> float:
        return math.fsum(fixed + exact_parts(c.gather(1, after(steps)[:, None])))

    none = user.new_empty(0)
    slack = budget - spend(none)
    price = c[user, arm] - c[user, previous]
    steps = _greedy(user, price, _reachable(user, previous, start), slack)
    # Running sums are rounded: recount, and if that overspends give the last steps back.
    fits, too_many = 0, len(steps) + 1
    probe = len(steps)
    while too_many - fits > 1:
        if spend(steps[:probe]) <= budget:
            fits = probe
        else:
            too_many = probe
        probe = (fits + too_many) // 2
    out = treatment.clone()
    out[movable] = after(steps[:fits])
    return out


def _reachable(user: Tensor, previous: Tensor, start: Tensor) -> Tensor:
    """Positions of the steps of those users whose first step left starts at the arm they have."""
    position = torch.arange(len(user), device=user.device)
    first = _first_of(user, position, len(start), len(user))
    starts_here = previous[first[user]] == start[user] if len(user) else user.new_empty(0, dtype=torch.bool)
    return position[starts_here]


def _greedy(user: Tensor, price: Tensor, left: Tensor, slack: float) -> Tensor:
    """Ascending positions of the steps taken: longest prefix that fits, drop what cannot fit any more, again."""
    users = int(user.max()) + 1 if len(user) else 0
    taken = [left[:0]]
    tolerance = 1e-14 * slack
    for _ in range(_ROUNDS):
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
    return torch.cat(taken)


def _first_of(user: Tensor, position: Tensor, users: int, none: int) -> Tensor:
    """Smallest position per user ``[users]``, ``none`` where there is none."""
    return torch.full((users,), none, dtype=torch.int64, device=user.device).scatter_reduce_(0, user, position, "amin")
