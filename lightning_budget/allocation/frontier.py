"""The efficient frontier of every user: the only arms that some price of money selects."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_budget.allocation import compiled
from lightning_budget.allocation.chunks import user_chunks
from lightning_budget.allocation.order import by_slope

LARGEST = sys.float_info.max


@dataclass(frozen=True)
class Frontier:
    """The cheapest arm of every user, and the M steps to dearer ones in the order in which a growing budget takes them.

    Attributes:
        cheapest: ``[N]`` int64, the arm at an infinite multiplier: least cost, then most value, then lowest index.
        user: ``[M]`` int64, who steps.
        arm: ``[M]`` int64, the arm after the step.
        previous: ``[M]`` int64, the arm before it.
        slope: ``[M]`` float64, value gained per currency, above 0; sorted descending, ties by user, and within a user
            in the order of the steps.
    """

    cheapest: Tensor
    user: Tensor
    arm: Tensor
    previous: Tensor
    slope: Tensor


@torch.no_grad()
def efficient_frontier(value: Tensor, cost: Tensor) -> Frontier:
    r"""Upper concave hull of each user's points (cost, value), from the cheapest arm up to the most valuable one.

    From arm :math:`a` the next one is :math:`\arg\max_j (v_j - v_a) / (c_j - c_a)` over the arms both dearer and
    better, the dearest of equals: dominated arms, duplicates and arms inside the hull never appear.

    Args:
        value: ``[N, K]``, value units per user.
        cost: ``[N, K]``, currency per user.

    Returns:
        Frontier: M ≤ N·(K−1) steps.

    Source:
        Sinha, Zoltners 1979, doi:10.1287/opre.27.3.503; gift wrapping: Jarvis 1973, doi:10.1016/0020-0190(73)90020-3.
    """
    cheapest, user, arm, previous, slope = frontier_steps(value.T, cost.T)
    order = by_slope(slope)
    return Frontier(cheapest, user[order], arm[order], previous[order], slope[order])


def frontier_steps(
    value: Tensor, cost: Tensor, low: float = 0.0, high: float = LARGEST
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Cheapest arm ``[N]``, then user, arm, previous arm and slope ``[M]`` of the steps of ``[K, N]``, user by user.

    Only steps with slopes in ``(low, high]``.
    """
    if compiled.usable(value):
        from lightning_budget.allocation.compiled import run

        return run.steps(value, cost, low, high)
    cheapest, users, arms, previous, slopes = [], [], [], [], []
    for start, v, c in user_chunks(value.T, cost.T):
        first, step_arm, step_slope = _wrap(v, c)
        cheapest.append(first)
        before = torch.cat([first[:, None], step_arm], dim=1)[:, :-1]
        taken = (step_slope > low) & (step_slope <= high)
        users.append(taken.nonzero()[:, 0] + start)
        arms.append(step_arm[taken])
        previous.append(before[taken])
        slopes.append(step_slope[taken])
    return torch.cat(cheapest), torch.cat(users), torch.cat(arms), torch.cat(previous), torch.cat(slopes)


@dataclass(frozen=True)
class Steps:
    """Steps of the frontiers of n users with slopes in a bracket, in the order of :class:`Frontier`.

    Attributes:
        user, arm, previous: ``[M]`` int64; slope, price: ``[M]`` float64, the latter in currency.
    """

    user: Tensor
    arm: Tensor
    previous: Tensor
    slope: Tensor
    price: Tensor


def steps_between(value: Tensor, cost: Tensor, low: float, high: float, key: Tensor | None = None) -> Steps:
    """Steps of ``[K, n]`` with slopes in ``(low, high]``, descending; ties by ``key [n]``, else by user."""
    _, user, arm, previous, slope = frontier_steps(value, cost, low, high)
    order = by_slope(slope, None if key is None else key[user])
    user, arm, previous, slope = user[order], arm[order], previous[order], slope[order]
    price = cost[arm, user].double() - cost[previous, user].double()
    return Steps(user, arm, previous, slope, price)


def slopes_between(gain: Tensor, price: Tensor) -> Tensor:
    """``gain / price``, an overflow held at the largest float so that a finite multiplier always stops it."""
    return torch.div(gain, price).clamp_(max=LARGEST)


def _wrap(v: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Cheapest arm ``[n]``, then arm and slope ``[n, steps]`` of every step; slope 0 where a user has no more."""
    arms, n = v.shape
    # As floats: the minimum of integers is several times slower.
    index = torch.arange(arms, device=v.device, dtype=v.dtype)[:, None].expand(arms, n)
    at = _pick(torch.ones_like(v, dtype=torch.bool), (-c, v), index)
    first, step_arm, step_slope = at, [], []
    bound = v.new_full((n,), LARGEST)
    for _ in range(arms - 1):
        gain, price = v - v.gather(0, at[None]), c - c.gather(0, at[None])
        upward = (gain > 0) & (price > 0)
        slope = torch.where(upward, slopes_between(gain, price), 0.0)
        best = slope.amax(dim=0)
        moves = best > 0
        if not bool(moves.any()):
            break
        # Equal rounded slopes: the dearest, and of equally dear ones the most valuable, as an exact comparison would.
        at = torch.where(moves, _pick(upward & (slope == best), (c, v), index), at)
        bound = torch.minimum(bound, best)
        step_arm.append(at)
        step_slope.append(bound.where(moves, 0.0))
    if not step_arm:
        return first, at.new_empty(n, 0), v.new_empty(n, 0)
    return first, torch.stack(step_arm, dim=1), torch.stack(step_slope, dim=1)


def _pick(allowed: Tensor, keys: tuple[Tensor, ...], index: Tensor) -> Tensor:
    """Per user the allowed arm that is largest in the keys, in their order; of equal arms the lowest index."""
    for key in keys:
        masked = key.masked_fill(~allowed, float("-inf"))
        allowed = allowed & (masked == masked.amax(dim=0))
    return index.masked_fill(~allowed, len(index)).amin(dim=0).clamp_(max=len(index) - 1).long()
