"""What processes decide about all their users, in a form that stays small however many of these tie."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_budget.allocation.frontier import frontier_steps
from lightning_budget.allocation.order import mixed
from lightning_budget.allocation.policy import arms_at
from lightning_budget.allocation.shared_users import Block

Position = tuple[float, int, int]
"""Where a step stands in the order of the fill: slope descending, then mixed key and place ascending.

Steps of one user with one slope share it, and follow each other.
"""


@dataclass(frozen=True)
class Ahead:
    """Steps that the fill may take, user by user, each user's in their order.

    Attributes:
        user, arm, previous: ``[M]`` int64, as in :class:`lightning_budget.allocation.frontier.Frontier`.
        slope: ``[M]`` float64; key: ``[M]`` int64, mixed; place: ``[M]`` int64.
    """

    user: Tensor
    arm: Tensor
    previous: Tensor
    slope: Tensor
    key: Tensor
    place: Tensor

    def select(self, rows: Tensor) -> Ahead:
        """The steps ``rows``."""
        return Ahead(*(x[rows] for x in self._parts()))

    def joined(self, other: Ahead) -> Ahead:
        """These steps, then others; ``user`` is then that of two blocks."""
        return Ahead(*map(torch.cat, zip(self._parts(), other._parts(), strict=True)))

    def _parts(self) -> tuple[Tensor, ...]:
        return self.user, self.arm, self.previous, self.slope, self.key, self.place

    def until(self, end: Position) -> Tensor:
        """Whether each step stands at or before ``end``, ``[M]``."""
        slope, key, place = end
        same_key = (self.key < key) | ((self.key == key) & (self.place <= place))
        return (self.slope > slope) | ((self.slope == slope) & same_key)


def steps_ahead(block: Block, multiplier: float, low: float) -> tuple[Tensor, Ahead]:
    """The policy's arms ``[n]`` at the multiplier, and the steps from there with slopes in ``(low, multiplier]``.

    As in the fill, a user has none whose first step does not start at the policy's arm.
    """
    policy = arms_at(block.value, block.cost, multiplier)
    _, user, arm, previous, slope = frontier_steps(block.value, block.cost, low, multiplier)
    first = torch.ones_like(user, dtype=torch.bool)
    first[1:] = user[1:] != user[:-1]
    starts = torch.zeros_like(policy, dtype=torch.bool)
    starts[user[first]] = previous[first] == policy[user[first]]
    key = mixed(block.key)
    return policy, Ahead(user, arm, previous, slope, key[user], block.place[user]).select(starts[user])


@dataclass(frozen=True)
class Decision:
    """The multiplier, how far the fill goes, and the few users of whom neither tells; the same in every process.

    Attributes:
        place, arm: ``[m]`` int64, those users and their arms, in the order of their places.
        policy_spend, policy_worth, spend, worth: see :class:`lightning_budget.allocation.finish.Found`; over all users
            of all processes.
        end: all others take every step up to here; none: they have the policy's arm.
    """

    multiplier: float
    place: Tensor
    arm: Tensor
    policy_spend: list[float]
    policy_worth: list[float]
    spend: list[float]
    worth: list[float]
    end: Position | None = None

    def arms(self, block: Block) -> Tensor:
        """The arms ``[n]`` int64 of open users."""
        return arms_until(block, self.multiplier, self.end, self.place, self.arm)

    def certificate(self, users: int, budget: float) -> dict[str, float | int]:
        """As :meth:`Allocation.certificate`."""
        spend, value = math.fsum(self.spend), math.fsum(self.worth)
        unspent = math.fsum([budget, *(-x for x in self.policy_spend)])
        bound = math.fsum([*self.policy_worth, self.multiplier * unspent])
        return {
            "users": users,
            "budget": budget,
            "spend": spend,
            "slack": budget - spend,
            "value": value,
            "dual_bound": bound,
            "gap": bound - value,
            "relative_gap": (bound - value) / abs(bound) if bound else 0.0,
            "multiplier": self.multiplier,
        }


def arms_until(block: Block, multiplier: float, end: Position | None, place: Tensor, arm: Tensor) -> Tensor:
    """The policy's arms ``[n]``, then every step up to ``end``, then the users ``place`` at their ``arm``.

    Args:
        place: ``[m]`` int64, ascending; arm: ``[m]`` int64.
    """
    if end is None:
        found = arms_at(block.value, block.cost, multiplier)
    else:
        found, ahead = steps_ahead(block, multiplier, math.nextafter(end[0], 0.0))
        taken = ahead.select(ahead.until(end))
        last = torch.ones_like(taken.user, dtype=torch.bool)
        last[:-1] = taken.user[1:] != taken.user[:-1]
        found[taken.user[last]] = taken.arm[last]
    if len(place) and len(found):
        at = torch.searchsorted(place, block.place).clamp_(max=len(place) - 1)
        found = torch.where(place[at] == block.place, arm[at], found)
    return found
