"""What any number of users would spend and earn at any price of money, in constant memory and mergeable."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_budget.allocation import compiled
from lightning_budget.allocation.frontier import LARGEST, frontier_steps
from lightning_budget.allocation.problem import check_finite, check_shapes
from lightning_budget.errors import InputError

FRACTION_BITS = 7
"""Bins per doubling of the slope are two to this power: a bin is at most 1/128 wide, relatively."""

OCTAVES = 40
"""Slopes from 2⁻⁴⁰ to 2⁴⁰ value per currency have bins of their own, all others one at either end."""

BINS = 2 * OCTAVES << FRACTION_BITS
_SHIFT = 52 - FRACTION_BITS
_FIRST = (1023 - OCTAVES) << FRACTION_BITS
_USERS = 1 << 18


@dataclass(frozen=True)
class SketchedMultiplier:
    """A multiplier for a budget, and how far from the exact one it can be.

    Attributes:
        multiplier: λ at which the sketched users spend no more than the budget.
        low: the exact, smallest such λ lies in ``(low, multiplier]``, or is 0 as ``multiplier`` is.
        spend, value: currency and value units per user at ``multiplier``, not approximated.
        dual_bound: no policy within the budget is worth more per user.
    """

    multiplier: float
    low: float
    spend: float
    value: float
    dual_bound: float


@dataclass(frozen=True)
class SketchCurve:
    """Spend and value per user of the policy, exact between the M filled bins of a sketch.

    Attributes:
        high, low: bounds of the slopes of each filled bin ``(low, high]``, descending, M each.
        spend, value: M + 1 each: with the cheapest arms, then with the steps of the first bins taken.
    """

    high: tuple[float, ...]
    low: tuple[float, ...]
    spend: tuple[float, ...]
    value: tuple[float, ...]

    def at_budget(self, budget: float) -> SketchedMultiplier:
        """The smallest edge of a bin at which the users keep to a budget, currency **per user**.

        Raises:
            InputError: if it is not a number, or even the cheapest arms overspend it.
        """
        if not budget >= self.spend[0]:
            raise InputError(
                f"budget={budget} per user",
                f"at least {self.spend[0]!r}, the least feasible spend per user",
                "raise the budget or add a cheaper treatment, such as a free control arm",
            )
        taken = bisect_right(self.spend, budget) - 1
        high, low = (self.high[taken], self.low[taken]) if taken < len(self.high) else (0.0, 0.0)
        spend, value = self.spend[taken], self.value[taken]
        # Steps of the bin itself earn at most `high` per currency.
        unspent = high * (budget - spend) if high else 0.0
        return SketchedMultiplier(high, low, spend, value, value + unspent)

    def at_multiplier(self, multiplier: float) -> tuple[tuple[float, float], tuple[float, float]]:
        """Bounds of the spend and of the value per user at λ; equal where no filled bin has λ inside."""
        least = bisect_right(self.low, -multiplier, key=lambda x: -x)
        most = bisect_left(self.high, -multiplier, key=lambda x: -x)
        return (self.spend[least], self.spend[most]), (self.value[least], self.value[most])


class SlopeSketch:
    """Sums over users of the steps of their frontiers, by slope.

    At an edge λ of a bin the policy takes exactly the steps of the bins above, so spend and value are those of the
    users themselves; in between they are bounded by both edges. 164 KB, however many users.

    Attributes:
        users: N; treatments: K, 0 before the first users.
        cost, value: totals of the cheapest arms of all users.
        price, gain: ``[BINS + 2]`` float64: what the steps of each bin cost and earn, in total.
    """

    def __init__(self) -> None:
        self.users, self.treatments, self.cost, self.value = 0, 0, 0.0, 0.0
        self.price = torch.zeros(BINS + 2, dtype=torch.float64)
        self.gain = torch.zeros(BINS + 2, dtype=torch.float64)

    @torch.no_grad()
    def add(self, value: Tensor, cost: Tensor) -> SlopeSketch:
        """Count N users with value and cost ``[N, K]``.

        Raises:
            InputError: if they are not finite ``[N, K]`` tensors, or K is not that of the users before.
        """
        check_shapes(value, cost)
        self._check_treatments(value.shape[1])
        price, gain, spent, worth = self.price.clone(), self.gain.clone(), self.cost, self.value
        for total, cheapest, finite in _sums_of_steps(value.detach(), cost.detach()):
            if not finite:
                check_finite(value, cost)
            price += total[0]
            gain += total[1]
            spent += float(cheapest[0].sum())
            worth += float(cheapest[1].sum())
        self.price, self.gain, self.cost, self.value = price, gain, spent, worth
        self.users += len(value)
        self.treatments = value.shape[1]
        return self

    def merge(self, other: SlopeSketch) -> SlopeSketch:
        """Count the users of another sketch too; the same, up to rounding, as adding them here."""
        if other.users:
            self._check_treatments(other.treatments)
            self.users, self.treatments = self.users + other.users, other.treatments
            self.cost, self.value = self.cost + other.cost, self.value + other.value
            self.price += other.price
            self.gain += other.gain
        return self

    def curve(self) -> SketchCurve:
        """What the users counted so far spend and earn, per user.

        Raises:
            InputError: if there are none.
        """
        if not self.users:
            raise InputError("a sketch of no users", "at least one", "add users to it first")
        filled = (self.price > 0).nonzero()[:, 0].flip(0)

        def running(start: float, x: Tensor) -> tuple[float, ...]:
            total = torch.cat([torch.tensor([start], dtype=torch.float64), x[filled]]).cumsum(0)
            return tuple((total / self.users).tolist())

        high, low = edges()[filled + 1].tolist(), edges()[filled].tolist()
        return SketchCurve(tuple(high), tuple(low), running(self.cost, self.price), running(self.value, self.gain))

    def multiplier(self, budget: float) -> SketchedMultiplier:
        """For a budget in currency **per user**; see :meth:`SketchCurve.at_budget`."""
        return self.curve().at_budget(budget)

    def to_dict(self) -> dict[str, Any]:
        """Plain containers only; of the bins, the filled ones."""
        filled = (self.price > 0).nonzero()[:, 0]
        return {
            "users": self.users,
            "treatments": self.treatments,
            "cost": self.cost,
            "value": self.value,
            "layout": [FRACTION_BITS, OCTAVES],
            "bins": filled.tolist(),
            "price": self.price[filled].tolist(),
            "gain": self.gain[filled].tolist(),
        }

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> SlopeSketch:
        """Inverse of :meth:`to_dict`.

        Raises:
            InputError: if its bins are laid out in another way.
        """
        if state["layout"] != [FRACTION_BITS, OCTAVES]:
            raise InputError(
                f"a sketch laid out as {state['layout']}",
                f"{[FRACTION_BITS, OCTAVES]}, bits and octaves",
                "make it again with this release",
            )
        out = cls()
        out.users, out.treatments = state["users"], state["treatments"]
        out.cost, out.value = state["cost"], state["value"]
        for name in ("price", "gain"):
            getattr(out, name)[state["bins"]] = torch.tensor(state[name], dtype=torch.float64)
        return out

    def _check_treatments(self, found: int) -> None:
        if found != (self.treatments or found):
            raise InputError(
                f"users with {found} treatments", f"{self.treatments}, as those before", "use another sketch for them"
            )


def _sums_of_steps(value: Tensor, cost: Tensor) -> Iterator[tuple[Tensor, Tensor, bool]]:
    """Of each ``_USERS`` users: ``[2, BINS + 2]`` price and gain, ``[2, n]`` cost and value of their cheapest arms.

    Yields:
        Both in float64, and whether all numbers are finite.
    """
    if compiled.usable(value):
        from lightning_budget.allocation.compiled import binning_run

        yield from binning_run.sums_of_steps(value.T, cost.T, _USERS, _SHIFT, _FIRST, BINS + 2)
        return
    check_finite(value, cost)
    for v, c in zip(value.split(_USERS), cost.split(_USERS), strict=True):
        first, user, arm, previous, slope = frontier_steps(v.T, c.T)
        index = bin_of(slope)
        steps = [x[user, arm].double() - x[user, previous].double() for x in (c, v)]
        total = torch.stack([torch.bincount(index, weights=step, minlength=BINS + 2) for step in steps])
        yield total.cpu(), torch.stack([x.gather(1, first[:, None])[:, 0].double() for x in (c, v)]), True


def bin_of(slope: Tensor) -> Tensor:
    """Bins ``[M]`` int64 of slopes ``[M]`` float64 above 0: ``(lower edge, upper edge]``.

    The exponent and the leading bits of the fraction, which for positive floats grow with the number; those of the
    float before it, so that a slope on an edge, as among small integers, lies below it, where the policy has it.
    """
    return (((slope.view(torch.int64) - 1) >> _SHIFT) - _FIRST + 1).clamp_(0, BINS + 1)


def edges() -> Tensor:
    """``[BINS + 3]`` float64: bin k has the slopes in ``(edges[k], edges[k + 1]]``."""
    inner = (torch.arange(BINS + 1) + _FIRST << _SHIFT).view(torch.float64)
    ends = torch.tensor([0.0, LARGEST], dtype=torch.float64)
    return torch.cat([ends[:1], inner, ends[1:]])
