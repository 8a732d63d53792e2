"""The search among open users that are spread over files and processes: few of them ever meet in one place."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from lightning_budget.allocation.fill import PATIENCE
from lightning_budget.allocation.finish import Found, Miss, OpenUsers
from lightning_budget.allocation.frontier import frontier_steps
from lightning_budget.allocation.policy import arms_at
from lightning_budget.allocation.search import Bracket, search
from lightning_budget.allocation.settled import arm_dtype, settle
from lightning_budget.allocation.summation import exact_parts

T = TypeVar("T")

MOST_GATHERED = 1 << 17
"""Users that every process may hold at once for the exact end."""

BINS = 1 << 12

_MARGINS = (0, 16, 1 << 8, BINS)
"""Bins taken on each side of the critical one, in turn, as long as a narrower bracket misses."""


class Team(Protocol):
    """Processes that share the users."""

    def gather(self, mine: T) -> list[T]:
        """What every process brings, in the order of their ranks, to all of them."""
        ...

    def total(self, mine: Tensor) -> Tensor:
        """The sum over processes of float64 tensors of one shape."""
        ...


@dataclass(frozen=True)
class Block:
    """Some open users: value, cost ``[K, n]``, key and place ``[n]`` int64.

    ``key`` breaks ties; ``place`` is the caller's name for where the user stands.
    """

    value: Tensor
    cost: Tensor
    key: Tensor
    place: Tensor

    def select(self, rows: Tensor) -> Block:
        """The users ``rows``."""
        return Block(self.value[:, rows], self.cost[:, rows], self.key[rows], self.place[rows])


@dataclass(frozen=True)
class OpenShare:
    """What a bracket leaves open of the users of one process.

    Attributes:
        blocks: gives the open users, again at each call.
        spend, worth: floats that sum exactly to what this process's other users cost and are worth.
    """

    bracket: Bracket
    blocks: Callable[[], Iterable[Block]]
    spend: list[float]
    worth: list[float]


@dataclass(frozen=True)
class Decision:
    """The multiplier and the few users whose arm is not the policy's at it; the same in every process.

    Attributes:
        place, arm: ``[m]`` int64, users to whom the fill gives another arm.
        policy_spend, policy_worth, spend, worth: see :class:`Found`; over all users of all processes.
    """

    multiplier: float
    place: Tensor
    arm: Tensor
    policy_spend: list[float]
    policy_worth: list[float]
    spend: list[float]
    worth: list[float]

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


@torch.no_grad()
def decide(share: OpenShare, total: float, team: Team, most: int = MOST_GATHERED) -> Decision | Miss:
    """The critical multiplier of a total budget and the fill, over the users of all processes.

    While too many users are open, one histogram of the prices of their steps by slope, summed over processes, says
    in which of its bins the spend passes the budget; whoever is settled within that bin drops out. The rest is
    brought together in every process, which all come to the same end. Histograms are rounded and only guess: the end
    proves the bracket, and a miss takes more bins.

    Args:
        share: this process's users.
        total: currency.
        team: the processes.
        most: users to bring together at most, unless more of them tie in one slope.

    Returns:
        The decision, or on which side of ``share.bracket`` it lies.
    """
    if sum(team.gather(sum(len(b.key) for b in share.blocks()))) <= most:
        return _together(share, total, team)
    found: Decision | Miss = Miss(above=True)
    for margin in _MARGINS:
        found = _together(narrowed(share, total, team, most, margin), total, team)
        if isinstance(found, Decision):
            break
    return found


def narrowed(share: OpenShare, total: float, team: Team, most: int, margin: int = 0) -> OpenShare:
    """The share within a bracket that leaves at most so many users open, if a bracket can do that."""
    while True:
        shift, price, steps, base = _histogram(share, team)
        bracket = _critical_bins(share.bracket, shift, price, steps, base, total, margin)
        if bracket == share.bracket:
            return share
        share = _within(share, bracket)
        if shift == 0 or sum(team.gather(sum(len(b.key) for b in share.blocks()))) <= most:
            return share


def spend_at(share: OpenShare, multiplier: float, team: Team) -> float:
    """Spend of all users of all processes at a multiplier inside the bracket."""
    parts = list(share.spend)
    for block in share.blocks():
        parts += exact_parts(block.cost.gather(0, arms_at(block.value, block.cost, multiplier)[None]))
    return math.fsum(x for mine in team.gather(parts) for x in mine)


def _histogram(share: OpenShare, team: Team) -> tuple[int, Tensor, Tensor, float]:
    """Width of a bin as a power of two, price and number of steps ``[BINS]``, and the spend at the upper end.

    Bins are equally wide in the bits of the slope, which for positive floats grow with it: a wide bracket is cut by
    powers, a narrow one evenly, and half a dozen cuts lead from all floats to a single one.
    """
    low, high = (_bits(x) for x in share.bracket)
    shift = max((high - low - 1).bit_length() - BINS.bit_length() + 1, 0)
    sums = torch.zeros(2 * BINS + 1, dtype=torch.float64)
    base = list(share.spend)
    for block in share.blocks():
        at_high = arms_at(block.value, block.cost, share.bracket[1])
        base += exact_parts(block.cost.gather(0, at_high[None]))
        _, user, arm, previous, slope = frontier_steps(block.value, block.cost, *share.bracket)
        price = block.cost[arm, user].double() - block.cost[previous, user].double()
        index = (slope.view(torch.int64) - low - 1) >> shift
        sums[:BINS] += torch.bincount(index, weights=price, minlength=BINS).cpu()
        sums[BINS:-1] += torch.bincount(index, minlength=BINS).cpu()
    sums[-1] = math.fsum(base)
    sums = team.total(sums)
    return shift, sums[:BINS], sums[BINS:-1], float(sums[-1])


def _critical_bins(
    bracket: Bracket, shift: int, price: Tensor, steps: Tensor, base: float, total: float, margin: int
) -> Bracket:
    downward = base + price.flip(0).cumsum(0)
    critical = BINS - 1 - min(int((downward <= total).sum()), BINS - 1)
    low, high = max(critical - margin, 0), min(critical + 1 + margin, BINS)
    # The fill looks at steps below the multiplier too.
    below = steps[:low].flip(0).cumsum(0)
    low -= min(int((below < 4 * PATIENCE).sum()) + 1, low)
    first, last = (_bits(x) for x in bracket)
    return (
        bracket[0] if low == 0 else _float(first + (low << shift)),
        bracket[1] if first + (high << shift) >= last else _float(first + (high << shift)),
    )


def _within(share: OpenShare, bracket: Bracket) -> OpenShare:
    blocks: list[Block] = []
    spend, worth = list(share.spend), list(share.worth)
    for block in share.blocks():
        arm = torch.empty(len(block.key), dtype=arm_dtype(len(block.value)))
        (part,) = settle(block.value, block.cost, [bracket], arm)
        blocks.append(block.select(part.rows))
        spend += part.spend
        worth += part.worth
    return OpenShare(bracket, lambda: blocks, spend, worth)


def _together(share: OpenShare, total: float, team: Team) -> Decision | Miss:
    """Bring the open users of all processes together and solve them, in every process alike."""
    everyone = team.gather((list(share.blocks()), share.spend, share.worth))
    blocks = [block for mine, _, _ in everyone for block in mine]
    value, cost = torch.cat([b.value for b in blocks], 1), torch.cat([b.cost for b in blocks], 1)
    users = OpenUsers(
        value=value,
        cost=cost,
        key=torch.cat([b.key for b in blocks]),
        low=share.bracket[0],
        high=share.bracket[1],
        spend=[x for _, spend, _ in everyone for x in spend],
        worth=[x for _, _, worth in everyone for x in worth],
    )
    found = search(users, total, leftover=True)
    if isinstance(found, Miss):
        return found
    return _decision(found, users, torch.cat([b.place for b in blocks]))


def _decision(found: Found, users: OpenUsers, place: Tensor) -> Decision:
    filled = (found.arm.long() != arms_at(users.value, users.cost, found.multiplier)).nonzero()[:, 0]
    order = filled[place[filled].argsort()]
    return Decision(
        found.multiplier,
        place[order],
        found.arm[order].long(),
        found.policy_spend,
        found.policy_worth,
        found.spend,
        found.worth,
    )


def _bits(x: float) -> int:
    return int(torch.tensor(x, dtype=torch.float64).view(torch.int64))


def _float(bits: int) -> float:
    return float(torch.tensor(bits, dtype=torch.int64).view(torch.float64))
